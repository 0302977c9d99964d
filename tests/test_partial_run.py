"""Training heads on pictures that carry labels of any of them, by the words of the command line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from mnvision.errors import UserError
from tests.builders_partial import make_partial
from tests.builders_resuming import assert_cut_changes_nothing
from tools import cli
from tools.heads import fold
from tools.run import train

COMMON = (
    *(
        "backbone.alpha=0.25",
        "backbone.resolution=64",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "logger=none",
    ),
    *("callbacks.progress=null", "multitask.same_pictures=true", "multitask.pictures.batch_size=5"),
)
WHOLE = "data.framing={resize: stretch}"

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*",
    "ignore:.*LeafSpec.*:FutureWarning",
)


def words(root: Path) -> list[str]:
    """As ``docs/data.md`` shows them."""
    own = {
        "ssd": [
            *("data=coco", f"data.root={root}", "data.train_images=pictures", "data.train_annotations=train.json"),
            *("data.val_images=pictures", "data.val_annotations=val.json"),
        ],
        "attributes": [
            *("data=attributes_csv", f"data.root={root}", "data.labels=attributes.csv", "data.images=pictures"),
            *("data.columns.split=split", WHOLE),
        ],
        "embedding": [
            *("data=identity_list", f"data.root={root}/pictures", "data.list=people.txt", "data.pairs=pairs.txt"),
            *("data.overlap=exclude", WHOLE),
        ],
    }
    heads = [f"{name}.{word}" for name, given in own.items() for word in (*given, "data.num_workers=0")]
    return ["task=multitask", f"heads=[{','.join(own)}]", *COMMON, *heads]


def run(root: Path, folder: Path, *more: str) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return train(cli.compose_config("config", [*fold([*words(root), *more]), f"paths.output_dir={folder}"]))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_partial(tmp_path_factory.mktemp("partial") / "set")


@pytest.mark.slow
def test_all_heads_learn_and_a_cut_run_goes_on_bit_for_bit(root: Path, tmp_path: Path):
    # Two steps in an epoch: 11 pictures.
    assert_cut_changes_nothing(tmp_path, *words(root), cuts=(1, 3))
    rows = list(csv.DictReader((tmp_path / "whole" / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 2
    for name in ("train/ssd/loss", "train/attributes/loss", "train/embedding/loss", "val/ssd/AP", "val/attributes/mAP"):
        assert all(float(row[name]) >= 0 for row in rows)


def test_refusals_come_before_training(root: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"of a batch of 3; raise multitask\.pictures\.batch_size to"):
        run(root, tmp_path / "run", "multitask.pictures.batch_size=3")
