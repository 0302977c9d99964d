"""A run that is cut off anywhere and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import make_image_folder, make_tiny_coco
from tests.builders_faces import make_tiny_celeba
from tests.builders_identities import make_people
from tests.builders_partial import make_partial
from tests.builders_resuming import assert_cut_changes_nothing

# A schedule that ends with the run, averaged weights, and an optimizer with a memory.
RUN = (
    *("backbone.alpha=0.25", "backbone.resolution=32", "trainer.max_epochs=2"),
    *("scheduler=cosine", "optimizer=adamw", "callbacks.ema.decay=0.9"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 pictures of three classes: four batches of four, or six of three."""
    return make_image_folder(tmp_path_factory.mktemp("images") / "set")


@pytest.mark.parametrize(
    ("words", "cuts", "resume_from"),
    [
        ([], (2, 4, 7), None),  # in both epochs, and after the last batch of one
        # Without a schedule, Lightning hands over the place in the epoch itself.
        (["task.scheduler=null"], (6,), None),
        # The last step of an epoch takes the batches that are left; a step that was not done is begun again.
        (["data.batch_size=3", "trainer.accumulate_grad_batches=4"], (5, 10), (4, 10)),
        pytest.param(["data.num_workers=2"], (3, 5), None, marks=pytest.mark.slow),
        pytest.param(["trainer.limit_train_batches=3"], (2, 3, 4), None, marks=pytest.mark.slow),
        pytest.param(["+trainer.val_check_interval=2"], (2, 3), None, marks=pytest.mark.slow),
    ],
    ids=["schedule", "constant", "accumulated", "workers", "limited", "validated"],
)
def test_classification(
    words: list[str], cuts: tuple[int, ...], resume_from: tuple[int, ...] | None, images: Path, tmp_path: Path
):
    own = ["task=classification", f"data.root={images}", "data.batch_size=4", "data.num_workers=0", "head.dropout=0.2"]
    assert_cut_changes_nothing(tmp_path, *own, *RUN, *words, cuts=cuts, resume_from=resume_from)


@pytest.mark.slow
def test_detection(tmp_path: Path):
    words = ["task=ssd_coco", *RUN, "backbone.resolution=64", "data=shapes", f"data.root={tmp_path / 'data'}"]
    words += ["data.num_train=16", "data.num_val=4", "data.batch_size=4", "data.num_workers=0"]
    assert_cut_changes_nothing(tmp_path, *words, cuts=(3, 6))


def test_batches_of_identities(tmp_path: Path):
    make_people(tmp_path / "people", {f"Person_{number}": 3 for number in range(20)})
    words = ["task=face_embeddings", *RUN, f"data.root={tmp_path / 'people'}", "data.points=arcface", "loss=triplet"]
    words += ["data.val_fraction=0.3", "data.batch_size=8", "data.num_workers=0"]
    words += ["data.images_per_identity=2", "data.identities_per_batch=4"]
    assert_cut_changes_nothing(tmp_path, *words, cuts=(6,))


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["round_robin", "proportional"])
def test_heads_with_sets_of_their_own(draw: str, tmp_path: Path):
    make_tiny_coco(tmp_path / "coco")
    make_tiny_celeba(tmp_path / "celeba", num=30)
    words = ["task=multitask", "heads=[ssd,attributes]", *RUN, "backbone.resolution=64", f"multitask.draw={draw}"]
    for name, root in (("ssd", "coco"), ("attributes", "celeba")):
        words += [f"{name}.data.root={tmp_path / root}", f"{name}.data.batch_size=4", f"{name}.data.num_workers=0"]
    assert_cut_changes_nothing(tmp_path, *words, "multitask.weighting=uncertainty", cuts=(2, 5))


@pytest.mark.slow
def test_heads_with_labels_of_the_same_pictures(tmp_path: Path):
    root = make_partial(tmp_path / "set")
    ssd = ["data=coco", f"data.root={root}", "data.train_images=pictures", "data.train_annotations=train.json"]
    ssd += ["data.val_images=pictures", "data.val_annotations=val.json", "data.num_workers=0"]
    attributes = ["data=attributes_csv", f"data.root={root}", "data.labels=attributes.csv", "data.images=pictures"]
    attributes += ["data.columns.split=split", "data.framing={resize: stretch}", "data.num_workers=0"]
    words = ["task=multitask", "heads=[ssd,attributes]", *RUN, "backbone.resolution=64"]
    words += [*(f"ssd.{word}" for word in ssd), *(f"attributes.{word}" for word in attributes)]
    words += ["multitask.same_pictures=true", "multitask.pictures.batch_size=4"]
    assert_cut_changes_nothing(tmp_path, *words, cuts=(1, 3))
