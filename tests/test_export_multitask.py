"""Files with several heads: one run answers for all, as the checkpoint does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mnvision.checkpoints import KEY, Metadata
from mnvision.errors import UserError
from mnvision.export.base import Wish
from mnvision.export.calibration import Samples
from mnvision.export.exporter import export
from mnvision.export.graph import GraphOptions, build_graph
from mnvision.export.heads import HeadsJudgement, chosen_heads, joined_samples
from mnvision.export.judge import Judgement
from mnvision.export.onnx import Onnx
from mnvision.export.runtime import MultiTaskFile, open_file
from mnvision.prediction.predictor import load_predictor
from mnvision.prediction.preprocess import Prepared
from tests.builders_multitask import blotches, joint_model, save_joint, write

NAMES = ("ssd", "attributes", "embedding")


def calm(path, *names):
    """A checkpoint whose answers do not blow up the last bits of its sums, and its model."""
    save_joint(path, *names)
    content = torch.load(path, weights_only=True)
    state = {key.removeprefix("model."): value for key, value in content["state_dict"].items()}
    for key, value in state.items():
        if key.startswith("heads.") and key.endswith("weight") and value.ndim > 1:
            value *= 0.2
    write(path, state, Metadata.from_dict(content[KEY], path))
    return load_predictor(path).model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    model = calm(folder / "all.ckpt", *NAMES)
    done = export(folder / "all.ckpt", Onnx(), Wish())
    return folder / "all.ckpt", model, done.path


def test_outputs_carry_the_name_of_their_head(exported):
    file = open_file(exported[2])
    assert isinstance(file, MultiTaskFile)
    assert list(file.session.metadata.outputs) == [
        *("ssd_boxes", "ssd_scores", "ssd_classes", "ssd_count"),
        *("attributes_probabilities", "embedding_embeddings"),
    ]
    assert file.names == NAMES
    assert file.part("ssd").metadata.nms is True
    assert set(file.part("attributes").metadata.outputs) == {"probabilities"}
    assert file.metadata.head("attributes").class_names == ["Smiling", "Male", "Young"]


def test_one_run_answers_for_all_heads_as_torch_does(exported):
    _, model, path = exported
    file, images = open_file(path), blotches(3, seed=5)
    runs = []
    file.session.run = lambda pixels, run=file.session.run: runs.append(len(pixels)) or run(pixels)
    found = file.predict(images)
    assert runs == [3]
    with torch.inference_mode():
        expected = {name: model.part(name).predict(images) for name in NAMES}
    for name in ("attributes", "embedding"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=0)
    torch.testing.assert_close(found["ssd"]["scores"], expected["ssd"]["scores"], atol=1e-4, rtol=0)
    assert file.predict(images, ["embedding"]).keys() == {"embedding"}
    torch.testing.assert_close(file.part("embedding").predict(images), found["embedding"], atol=0, rtol=0)


def test_predictor_of_the_file_gives_the_checkpoints_results(exported):
    checkpoint, _, path = exported
    picture = np.ascontiguousarray(blotches(1, 120, seed=3)[0].permute(1, 2, 0).numpy())
    ours, theirs = load_predictor(checkpoint).predict(picture), load_predictor(path).predict(picture)
    assert ours.answers.keys() == theirs.answers.keys()
    expected, found = ours.answers["attributes"].probabilities, theirs.answers["attributes"].probabilities
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # The calibration of the embeddings mirrors, so the file runs once more for them.
    cosine = float(ours.answers["embedding"].embedding @ theirs.answers["embedding"].embedding)
    assert cosine == pytest.approx(1, abs=1e-5)


def test_some_heads_or_one(tmp_path):
    model = calm(tmp_path / "all.ckpt", *NAMES)
    metadata = load_predictor(tmp_path / "all.ckpt").metadata
    two, told = chosen_heads(model, metadata, ["embedding", "ssd"])
    assert two.names == ("embedding", "ssd") == tuple(told.heads) == tuple(told.model["heads"])
    images = blotches(2)
    with torch.inference_mode():
        # One is channels_last, the other is not: their sums are rounded otherwise.
        torch.testing.assert_close(two.predict(images)["embedding"], model.predict(images)["embedding"])
    one, single = chosen_heads(model, metadata, ["attributes"])
    assert (one.kind, single.kind, single.heads) == ("face_attributes", "face_attributes", {})
    done = export(tmp_path / "all.ckpt", Onnx(), Wish(), tmp_path / "one.onnx", heads=["attributes"])
    assert open_file(done.path).kind == "face_attributes"
    with pytest.raises(UserError, match="no head 'cells'; the heads are ssd, attributes, embedding"):
        chosen_heads(model, metadata, ["cells"])
    with pytest.raises(UserError, match="ssd is named twice"):
        chosen_heads(model, metadata, ["ssd", "ssd"])
    with pytest.raises(UserError, match="has one head: leave it out"):
        chosen_heads(one, single, ["attributes"])


def test_norms_of_their_own_stay_those_of_each_head():
    model = joint_model("attributes", "embedding", "classifier", norms="per_head")
    configs = {name: model.part(name) for name in model.names}
    metadata = Metadata(
        "multitask", {}, [], heads={name: Metadata(part.kind, {}, []).as_head() for name, part in configs.items()}
    )
    from tests.builders_multitask import joint_config

    metadata.model = joint_config("attributes", "embedding", "classifier", norms="per_head")
    two, _ = chosen_heads(model, metadata, ["classifier", "embedding"])
    images = blotches(2)
    for name in ("classifier", "embedding"):
        assert torch.equal(two.part(name).predict(images), model.part(name).predict(images))


def test_refuses_heads_that_need_several_runs_of_the_trunk():
    model = joint_model("attributes", "embedding", norms="per_head")
    with pytest.raises(UserError, match=r"these heads need 2 runs of it.*heads=\[attributes\] and \[embedding\]"):
        build_graph(model, GraphOptions())


def test_a_file_is_as_good_as_its_worst_head():
    fine, poor = Judgement(None, "mAP", 0.7, 0.699), Judgement(None, "AP", 0.5, 0.4)
    both = HeadsJudgement(
        None, "AP", 0.5, 0.4, heads={"attributes": ("face_attributes", fine), "ssd": ("detection", poor)}
    )
    assert both.drop == pytest.approx(0.1)
    assert not both.fits("multitask", 0.05)
    assert both.fits("multitask", 0.11)
    assert "ssd: AP 0.5000 became 0.4000" in both.words()
    assert both.to_dict()["heads"]["attributes"]["metric"]["int8"] == 0.699


def test_pictures_of_the_heads_take_turns_and_come_once():
    samples = {
        name: Samples(
            np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 2), np.uint8),
            [Prepared(np.full((2, 2, 3), value, np.uint8), (2, 2), None) for value in values],
            *("pictures", name, name, None, "nothing is known of them"),
        )
        for name, values in (("a", [10, 11, 12]), ("b", [1, 10]))
    }
    joined = joined_samples(samples)
    assert joined.calibration[:, 0, 0, 0].tolist() == [10, 1, 11, 12]
    assert [int(one.pixels[0, 0, 0]) for one in joined.held_out] == [10, 1, 11, 12]
    assert (joined.folder, joined.why_unscored) == ("a and b", "nothing is known of them")
