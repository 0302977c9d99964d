"""Checkpoints of one frozen trunk as one, heads that are still the same, and other uses of multi-task checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mnvision
from mnvision.backbones.pretrained.sources import read_weights
from mnvision.build import build_model
from mnvision.checkpoints import EMA_KEY, KEY, load_model, read_checkpoint, read_metadata, shipped_weights
from mnvision.errors import UserError
from mnvision.merging import first_difference, merge, one_head, read_heads, same_bits
from mnvision.multitask import MultiTaskModel, single_weights
from mnvision.prediction.embedding_files import load_embedder
from mnvision.prediction.pictures import write_picture
from mnvision.teachers.checkpoint import CheckpointTeacher
from tasks.composition import compose_model
from tests.builders_models import CLASS_NAMES, CLASSIFIER, DETECTOR, files_below, picture
from tests.builders_multitask import HEADS, MODELS, blotches, save_joint, save_part
from tools import merge as merge_tool
from tools import same as same_tool
from tools.cli import compose_config
from tools.heads import fold, words_by_head
from tools.merge import measuring_words

SSD_WORDS = ["task=ssd_coco", "data=shapes", "data.batch_size=16", "backbone.alpha=0.25", "trainer.max_epochs=3"]
FACE_WORDS = ["task=face_attributes", "data=shapes_attributes", "backbone.alpha=0.25", "init_from=ssd.ckpt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    save_joint(path / "all.ckpt")
    for name, words in (("ssd", SSD_WORDS), ("attributes", FACE_WORDS), ("embedding", []), ("classifier", [])):
        save_part(path / f"{name}.ckpt", path / "all.ckpt", name, overrides=words)
    save_joint(path / "other.ckpt", "classifier", seed=7)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(3):
        write_picture(tmp_path / "in" / f"{seed}.jpg", picture(seed, 100 + 10 * seed, 150))
    return tmp_path / "in"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: Any) -> Callable[..., tuple[int, str]]:
    """Run a tool on words in which ``@name`` is a checkpoint; gives the exit code and all that it printed."""

    def call(tool: Any, *words: str) -> tuple[int, str]:
        given = [word.replace("@", f"{folder}/") for word in words]
        monkeypatch.setattr(sys, "argv", ["tool.py", *given])
        try:
            tool.main()
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out = capsys.readouterr()
        return code, out.out + out.err

    return call


def change(source: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    content = torch.load(source, weights_only=True)
    edit(content)
    torch.save(content, target)
    return target


def test_single_checkpoints_become_one_that_answers_as_they_do(run: Any, folder: Path, photos: Path, tmp_path: Path):
    code, text = run(merge_tool, "@ssd.ckpt", "@attributes.ckpt", "@embedding.ckpt", f"out={tmp_path / 'm.ckpt'}")
    assert code == 0, text
    assert "3 heads, one pass of the trunk answers for all" in text
    joint, metadata = load_model(tmp_path / "m.ckpt")
    assert isinstance(joint, MultiTaskModel)
    assert joint.names == ("ssd", "attributes", "embedding")
    for name in joint.names:
        stored = torch.load(folder / f"{name}.ckpt", weights_only=True)
        assert first_difference(shipped_weights(stored), single_weights(joint, name)) is None
        assert metadata.head(name).as_head() == HEADS[name]
    result = mnvision.load(tmp_path / "m.ckpt").predict(photos / "0.jpg")
    for name in joint.names:
        assert result[name].to_dict() == mnvision.load(folder / f"{name}.ckpt").predict(photos / "0.jpg").to_dict()
    assert files_below(tmp_path) == {"m.ckpt", "in/0.jpg", "in/1.jpg", "in/2.jpg"}


def test_a_multi_task_checkpoint_takes_another_head(run: Any, folder: Path, tmp_path: Path):
    first, second = tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    assert run(merge_tool, "@ssd.ckpt", "@attributes.ckpt", f"out={first}")[0] == 0
    assert run(merge_tool, str(first), "@classifier.ckpt", f"out={second}", "names=[boxes,faces,dogs]")[0] == 0
    assert list(read_metadata(second).heads) == ["boxes", "faces", "dogs"]
    same = run(same_tool, f"checkpoints=[{first},{second}]", "heads=[ssd]", f"input={picture_file(tmp_path)}")
    assert same[0] == 0, same[1]
    assert "ssd = boxes" in same[1]  # the only one of its kind, under another name


def picture_file(folder: Path) -> Path:
    write_picture(folder / "a.png", picture(1))
    return folder / "a.png"


def test_averaged_weights_are_those_that_count(folder: Path, tmp_path: Path):
    def average(content: dict[str, Any]) -> None:
        content[EMA_KEY] = {key.removeprefix("model."): value for key, value in content["state_dict"].items()}
        content["state_dict"] = {key: value + 1 for key, value in content["state_dict"].items()}

    path = change(folder / "ssd.ckpt", tmp_path / "ema.ckpt", average)
    model, _ = merge([*read_heads(path), *read_heads(folder / "attributes.ckpt")])
    assert first_difference(single_weights(model, "ssd"), shipped_weights(read_checkpoint(folder / "ssd.ckpt"))) is None


@pytest.mark.parametrize(
    "key", ["backbone.blocks.3.depthwise.bn.running_var", "backbone.blocks.12.pointwise.conv.weight"]
)
def test_one_bit_in_the_trunk_is_refused_with_its_key(run: Any, folder: Path, tmp_path: Path, key: str):
    def flip(content: dict[str, Any]) -> None:
        value = content["state_dict"][f"model.{key}"].flatten()
        value[0] = torch.nextafter(value[0], torch.tensor(torch.inf))

    path = change(folder / "attributes.ckpt", tmp_path / "flipped.ckpt", flip)
    code, text = run(merge_tool, "@ssd.ckpt", str(path), f"out={tmp_path / 'm.ckpt'}")
    assert code == 2
    assert f"not trained on the same frozen trunk: they differ first in {key}, 1 of" in text
    assert not (tmp_path / "m.ckpt").exists()


def test_bits_are_compared_and_not_values():
    one = torch.tensor([0.0, float("nan")])
    assert same_bits(one, one.clone())
    assert not same_bits(one, torch.tensor([-0.0, float("nan")]))
    assert first_difference({"a": one}, {}) == "a is missing"
    assert first_difference({"a": one}, {"a": one.double()}) == "a is torch.float32 (2,) and torch.float64 (2,)"


def test_other_settings_are_refused_with_the_first_key(run: Any, folder: Path, tmp_path: Path):
    wide = {**CLASSIFIER, "backbone": {**CLASSIFIER["backbone"], "alpha": 0.5}}
    save_joint(tmp_path / "wide.ckpt", "classifier", classifier=wide)
    code, text = run(merge_tool, "@ssd.ckpt", str(tmp_path / "wide.ckpt"), f"out={tmp_path / 'm.ckpt'}")
    assert code == 2
    assert "heads ssd and classifier cannot share a trunk: backbone.alpha is 0.25 for ssd and 0.5" in text


def test_a_deeper_trunk_takes_a_shallower_one(folder: Path, tmp_path: Path):
    shallow = {**CLASSIFIER, "backbone": {**CLASSIFIER["backbone"], "out_strides": [16]}}
    save_joint(tmp_path / "a.ckpt", "ssd", "shallow", shallow=shallow, heads={"shallow": HEADS["classifier"]})
    for name in ("ssd", "shallow"):
        save_part(tmp_path / f"{name}.ckpt", tmp_path / "a.ckpt", name)
    for order in (("ssd", "shallow"), ("shallow", "ssd")):
        model, _ = merge([part for name in order for part in read_heads(tmp_path / f"{name}.ckpt")])
        assert len(model.backbone.blocks) == 13
        assert model.backbone.feature_strides == [16, 32]
        for name, other in (("ssd", "ssd"), ("classifier", "shallow")):
            alone, _ = load_model(tmp_path / f"{other}.ckpt")
            images = blotches()
            raw, expected = model.part(name)(images), alone(images)
            assert torch.equal(
                raw["cls_logits"] if name == "ssd" else raw, expected["cls_logits"] if name == "ssd" else expected
            )


def test_norms_of_their_own_stay_their_own(folder: Path, tmp_path: Path):
    save_joint(tmp_path / "a.ckpt", "ssd", "attributes", norms="per_head")
    save_part(tmp_path / "b.ckpt", tmp_path / "a.ckpt", "attributes")
    parts = [*read_heads(tmp_path / "a.ckpt"), *read_heads(tmp_path / "b.ckpt")]
    model, metadata = merge([parts[0], parts[2]])
    assert metadata.model["norms"] == "per_head"
    for part in (parts[0], parts[2]):
        assert first_difference(part.weights, single_weights(model, part.name)) is None


def test_names_that_clash_or_do_not_fit(run: Any, tmp_path: Path):
    out = f"out={tmp_path / 'm.ckpt'}"
    for words, said in (
        (("@ssd.ckpt", "@ssd.ckpt", out), "a head ssd is both in"),
        (("@ssd.ckpt", "@all.ckpt", out), "names=[ssd,ssd_2,attributes,embedding,classifier]"),
        (("@ssd.ckpt", "@ssd.ckpt", out, "names=[a]"), "1 names for 2 heads: ssd of ssd.ckpt, ssd of ssd.ckpt"),
        (("@ssd.ckpt", "@classifier.ckpt", out, "names=[a,'b c']"), "cannot be a head's name"),
        (("@all.ckpt", out, "heads=[ssdd]"), "there is no head 'ssdd'"),
        (("@ssd.ckpt", "@other.ckpt", out), "they differ first in backbone.stem.conv.weight, 216 of 216 numbers"),
        (("@none.ckpt", out), "does not exist"),
        (("@ssd.ckpt", "out=@ssd.ckpt"), "would replace a checkpoint that is merged"),
        (("@ssd.ckpt", "out=m.pt"), "ends in .ckpt"),
        ((out,), "give checkpoints and where to write"),
    ):
        code, text = run(merge_tool, *words)
        assert code == 2
        assert said in text
    assert not files_below(tmp_path)


def test_one_head_becomes_a_single_task_checkpoint_again(run: Any, folder: Path, tmp_path: Path):
    out = tmp_path / "ssd.ckpt"
    assert run(merge_tool, "@all.ckpt", f"out={out}", "heads=[ssd]")[0] == 0
    ours, theirs = (read_checkpoint(path) for path in (out, folder / "ssd.ckpt"))
    assert first_difference(ours["state_dict"], theirs["state_dict"]) is None
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for key in ("kind", "model", "class_names", "category_ids", "preprocess", "calibration"):
        assert ours[KEY][key] == theirs[KEY][key]


def test_the_runs_that_trained_the_heads_say_how_to_measure_them(run: Any, folder: Path, tmp_path: Path):
    out = tmp_path / "m.ckpt"
    assert run(merge_tool, "@ssd.ckpt", "@attributes.ckpt", f"out={out}", "names=[boxes,attributes]")[0] == 0
    words = read_metadata(out).overrides
    cfg = compose_config("config", words)
    assert cfg.backbone.alpha == 0.25
    own = words_by_head(cfg)
    assert own["boxes"] == ["task=ssd_coco", "data=shapes", "data.batch_size=16", "backbone.resolution=96"]
    assert own["attributes"] == ["task=face_attributes", "data=shapes_attributes", "backbone.resolution=96"]
    assert run(merge_tool, str(out), f"out={tmp_path / 's.ckpt'}", "heads=[boxes]")[0] == 0
    words = read_metadata(tmp_path / "s.ckpt").overrides
    assert {"task=ssd_coco", "data=shapes", "backbone.alpha=0.25", "backbone.resolution=96"} <= set(words)
    compose_config("config", words)


def test_a_head_of_a_joint_run_keeps_its_task_under_another_name(folder: Path):
    words = fold(["task=multitask", "heads=[ssd,attributes]", "ssd.data=shapes", "attributes.data=shapes_attributes"])
    parts = [
        replace(part, metadata=replace(part.metadata, overrides=words)) for part in read_heads(folder / "all.ckpt")[:2]
    ]
    own = words_by_head(compose_config("config", measuring_words([(part, f"my_{part.name}") for part in parts])))
    assert own["my_ssd"] == ["task=ssd_coco", "data=shapes", "backbone.resolution=96"]
    assert own["my_attributes"] == ["task=face_attributes", "data=shapes_attributes", "backbone.resolution=96"]


def test_sameness_is_shown_and_a_difference_is_named(run: Any, folder: Path, photos: Path, tmp_path: Path):
    code, text = run(same_tool, "checkpoints=[@ssd.ckpt,@all.ckpt]", f"input={photos}")
    assert code == 0, text
    assert text.splitlines()[-1].split()[-1] == "same"
    assert "0 of 4,896" in text  # 3 pictures of 96 boxes ... of 3 classes with background and 4 offsets

    def nudge(content: dict[str, Any]) -> None:
        content["state_dict"]["model.heads.classifier.fc.bias"][1] += 1e-6
        content[KEY]["heads"]["attributes"]["calibration"]["thresholds"][0] = 0.25

    changed = change(folder / "all.ckpt", tmp_path / "changed.ckpt", nudge)
    code, text = run(same_tool, f"checkpoints=[@all.ckpt,{changed}]", f"input={photos}", "limit=2")
    assert code == 1
    rows = {line.split()[0]: line.split() for line in text.splitlines()[2:6]}
    assert {name: row[-1] for name, row in rows.items()} == {
        "ssd": "same",
        "attributes": "DIFFERENT",
        "embedding": "same",
        "classifier": "DIFFERENT",
    }
    assert rows["classifier"][2:6] == ["2", "2", "of", "6"]
    assert "classifier: weights differ first in head.fc.bias, 1 of 3 numbers" in text
    assert "attributes: calibration differs: {'thresholds': [0.5, 0.3, 0.7]} and {'thresholds': [0.25" in text
    assert run(same_tool, f"checkpoints=[@all.ckpt,{changed}]", f"input={photos}", "heads=[ssd]")[0] == 0


def test_what_cannot_be_compared(run: Any, photos: Path):
    for words, said in (
        (("checkpoints=[@ssd.ckpt]", f"input={photos}"), "give two checkpoints"),
        (("checkpoints=[@ssd.ckpt,@other.ckpt]", f"input={photos}"), "has no head 'ssd'; its heads are classifier"),
        (("checkpoints=[@ssd.ckpt,@all.ckpt]", f"input={photos}", "heads=[dogs]"), "no head 'dogs', only ssd"),
        (("checkpoints=[@ssd.ckpt,@all.ckpt]", f"input={photos}/none"), "no such file or folder"),
        (("checkpoints=[@ssd.ckpt,@all.ckpt]", f"input={photos}", "limit=0"), "limit must be a whole number"),
    ):
        code, text = run(same_tool, *words)
        assert code == 2
        assert said in text


def test_a_single_task_starts_from_the_trunk_and_from_a_head_of_its_kind(folder: Path):
    config = deepcopy(CLASSIFIER)
    model, _ = compose_model(config, ["dog", "bird", "cat"], init_from=str(folder / "all.ckpt"), init_head=True)
    weights = single_weights(load_model(folder / "all.ckpt")[0], "classifier")
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, weights[f"backbone.{key}"])
    for row, name in ((0, "dog"), (2, "cat")):
        assert torch.equal(model.head.fc.weight[row], weights["head.fc.weight"][CLASS_NAMES.index(name)])
    detector, _ = compose_model(deepcopy(DETECTOR), CLASS_NAMES, init_from=str(folder / "all.ckpt"))
    extra = {key: value for key, value in detector.head.state_dict().items() if key.startswith("extra")}
    assert extra
    stored = single_weights(load_model(folder / "all.ckpt")[0], "ssd")
    assert all(torch.equal(value, stored[f"head.{key}"]) for key, value in extra.items())


def test_a_start_without_such_a_head_is_refused(folder: Path, tmp_path: Path):
    save_joint(tmp_path / "faces.ckpt", "attributes", "embedding")
    with pytest.raises(UserError, match="has no classification head; leave init_head out"):
        compose_model(deepcopy(CLASSIFIER), CLASS_NAMES, init_from=str(tmp_path / "faces.ckpt"), init_head=True)
    save_joint(tmp_path / "two.ckpt", "classifier", "more", more=CLASSIFIER, heads={"more": HEADS["classifier"]})
    with pytest.raises(UserError, match=r"several classification heads \(classifier, more\)"):
        compose_model(deepcopy(CLASSIFIER), CLASS_NAMES, init_from=str(tmp_path / "two.ckpt"), init_head=True)


def test_its_backbone_is_a_source_of_weights_as_any(folder: Path):
    joint, alone = (read_weights(str(folder / f"{name}.ckpt")) for name in ("all", "ssd"))
    assert joint.state.keys() == alone.state.keys()
    assert all(torch.equal(value, alone.state[key]) for key, value in joint.state.items())
    assert joint.backbone_arguments() == alone.backbone_arguments()
    assert (joint.mean, joint.std, joint.resolution) == (alone.mean, alone.std, alone.resolution)


@pytest.mark.parametrize("resolution", [None, 128])
def test_a_head_teaches_as_its_single_checkpoint(folder: Path, resolution: int | None):
    images = blotches(2, resolution or 96)
    for name in ("ssd", "classifier", "embedding"):
        joint = CheckpointTeacher(folder / "all.ckpt", resolution, head=name).eval()
        alone = CheckpointTeacher(folder / f"{name}.ckpt", resolution).eval()
        assert joint.spec.class_names == alone.spec.class_names
        with torch.inference_mode():
            for key, value in alone.answer(images).items():
                assert torch.equal(joint.answer(images)[key], value)


def test_a_teacher_of_several_heads_needs_a_choice(folder: Path):
    with pytest.raises(UserError, match=r"several of its heads can be used here: .*teacher\.head=NAME chooses one"):
        CheckpointTeacher(folder / "all.ckpt")
    with pytest.raises(UserError, match=r"teacher\.head=dogs: .* has no such head, only ssd, attributes"):
        CheckpointTeacher(folder / "all.ckpt", head="dogs")
    with pytest.raises(UserError, match=r"a classification checkpoint of one head: leave teacher\.head out"):
        CheckpointTeacher(folder / "classifier.ckpt", head="classifier")
    with pytest.raises(UserError, match=r"none of its heads can be used here: ssd \(detection\)"):
        one_head(folder / "all.ckpt", None, ("geolocation",), "head")


def test_embeddings_come_from_the_head_that_gives_them(folder: Path):
    joint, alone = (load_embedder(folder / f"{name}.ckpt") for name in ("all", "embedding"))
    np.testing.assert_array_equal(joint.embed([picture(0)]), alone.embed([picture(0)]))
    assert joint.threshold == alone.threshold == 0.4
    with pytest.raises(UserError, match="gives no embeddings"):
        load_embedder(folder / "other.ckpt")


def test_the_builders_models_are_what_they_seem():
    assert [build_model(config).kind for config in MODELS.values()] == [entry["kind"] for entry in HEADS.values()]
