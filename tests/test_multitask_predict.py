"""Answers of several heads: those of the single-task checkpoints, from one pass of the trunk."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import mnvision
from mnvision.errors import UserError
from mnvision.prediction.pictures import crop
from mnvision.prediction.two_stage import Crops, TwoStagePredictor
from tests.builders_embeddings import ALIGNED
from tests.builders_models import CLASSIFIER, files_below, picture, save_detector
from tests.builders_multitask import ATTRIBUTES, HEADS, at, save_joint, save_part
from tests.builders_tools import call, refusal, save_photos
from tools.cli import compose_config
from tools.predict import heads_of, main

NAMES = ["a.png", "b.jpg", "sub/c.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    save_joint(path / "all.ckpt")
    for name in HEADS:
        save_part(path / f"{name}.ckpt", path / "all.ckpt", name)
    return path


@pytest.fixture(scope="module")
def joint(folder: Path) -> Any:
    return mnvision.load(folder / "all.ckpt")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_photos(tmp_path / "in", NAMES)


@pytest.fixture
def run_tool(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(source: Path | str, output: Path, *words: str, checkpoint: str = "all") -> None:
        paths = [f"checkpoint={folder / checkpoint}.ckpt", f"input={source}", f"output={output}"]
        call(monkeypatch, main, *paths, "device=cpu", *words)

    return run


def passes(model: Any) -> list[int]:
    """Sides of the pictures of each pass of the trunk from now on."""
    seen: list[int] = []
    model.backbone.stem.conv.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[-1]))
    return seen


@pytest.mark.parametrize("heads", [None, ["embedding"], ["classifier", "ssd"]])
def test_answers_are_those_of_the_single_task_checkpoints(folder: Path, joint: Any, photos: Path, heads: Any):
    files = [photos / name for name in NAMES]
    found = joint.predict(files, heads=heads)
    assert [list(result.answers) for result in found] == [heads or list(HEADS)] * 3
    for name in heads or HEADS:
        alone = mnvision.load(folder / f"{name}.ckpt").predict(files)
        assert [result[name].to_dict() for result in found] == [one.to_dict() for one in alone]
        assert type(found[0][name]) is type(alone[0])
        assert found[1][name].path == files[1]
    one = joint.predict(picture(3), heads=heads)
    assert one.path is None
    assert one.size == (120, 200)


def test_heads_that_see_the_same_share_one_pass(folder: Path):
    joint = mnvision.load(folder / "all.ckpt")
    seen = passes(joint.model)
    joint.predict([picture(0), picture(1)], heads=["ssd", "attributes"])
    assert seen == [96]
    seen.clear()
    joint.predict(picture(0), heads=["ssd", "classifier", "attributes"])  # another layout of the same size
    assert seen == [96, 96]
    seen.clear()
    joint.predict(picture(0), heads=["ssd", "embedding"])  # calibrated on mirrored pictures, too
    assert seen == [96, 96]


def test_heads_of_another_size_get_a_pass_of_their_own_and_a_note(tmp_path: Path):
    heads = {"small": {**HEADS["classifier"], "preprocess": HEADS["ssd"]["preprocess"]}}
    save_joint(tmp_path / "a.ckpt", "ssd", "attributes", "small", small=at(CLASSIFIER, 64), heads=heads)
    joint = mnvision.load(tmp_path / "a.ckpt")
    assert joint.note == (
        "the trunk runs 2 times, since sizes or layouts of their input differ: for ssd and attributes; for small"
    )
    seen = passes(joint.model)
    result = joint.predict(picture(0))
    assert seen == [96, 64]
    save_part(tmp_path / "b.ckpt", tmp_path / "a.ckpt", "small")
    assert result["small"].to_dict() == mnvision.load(tmp_path / "b.ckpt").predict(picture(0)).to_dict()
    assert joint.only(["ssd", "attributes"]).note == ""


def test_norms_of_their_own_take_a_pass_each_and_answer_as_the_single_models(tmp_path: Path):
    save_joint(tmp_path / "a.ckpt", "ssd", "attributes", norms="per_head")
    joint = mnvision.load(tmp_path / "a.ckpt")
    assert "once for every head" in joint.note
    result = joint.predict(picture(0))
    for name in ("ssd", "attributes"):
        save_part(tmp_path / "b.ckpt", tmp_path / "a.ckpt", name)
        assert result[name].to_dict() == mnvision.load(tmp_path / "b.ckpt").predict(picture(0)).to_dict()


def test_faces_without_landmarks_are_taken_as_alone_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    heads = {name: {**HEADS[name], "preprocess": ALIGNED} for name in ("attributes", "embedding")}
    save_joint(tmp_path / "a.ckpt", "attributes", "embedding", "ssd", heads=heads)
    joint = mnvision.load(tmp_path / "a.ckpt")
    seen = passes(joint.model)
    with caplog.at_level(logging.WARNING, "mnvision"):
        result = joint.predict([picture(0), picture(1)], heads=["attributes", "ssd", "embedding"])
    assert len(caplog.records) == 1
    assert seen == [96, 96, 96]  # attributes with embedding, mirrored pictures, ssd
    save_part(tmp_path / "b.ckpt", tmp_path / "a.ckpt", "embedding")
    alone = mnvision.load(tmp_path / "b.ckpt").predict([picture(0), picture(1)])
    assert [one["embedding"].to_dict() for one in result] == [one.to_dict() for one in alone]


def test_thresholds_are_the_detectors(joint: Any):
    every, few = (joint.predict(picture(0), score_threshold=threshold) for threshold in (0.05, 0.9))
    assert len(every["ssd"]) > len(few["ssd"])
    assert all(found.score >= 0.9 for found in few["ssd"])
    assert every["attributes"].to_dict() == few["attributes"].to_dict()
    with pytest.raises(UserError, match="score_threshold is for detectors; attributes, classifier are none"):
        joint.predict(picture(0), score_threshold=0.5, heads=["attributes", "classifier"])
    with pytest.raises(UserError, match=r"head ssd: score_threshold=0\.01 must lie in \[0\.05, 1\]"):
        joint.predict(picture(0), score_threshold=0.01)


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (["sdd"], "there is no head 'sdd'; the heads are ssd, attributes, embedding, classifier"),
        (["ssd", "ssd"], "ssd is named twice"),
        ([], "give at least one of ssd"),
    ],
)
def test_heads_that_are_not_there_are_refused(joint: Any, heads: list[str], said: str):
    with pytest.raises(UserError, match=said):
        joint.predict(picture(0), heads=heads)


def test_checkpoints_that_contradict_themselves_are_refused(tmp_path: Path):
    broken = {**HEADS["attributes"], "class_names": ["one"]}
    save_joint(tmp_path / "a.ckpt", "ssd", "attributes", heads={"attributes": broken})
    with pytest.raises(UserError, match=r"a\.ckpt: head attributes: 1 class names for a model of 3 classes"):
        mnvision.load(tmp_path / "a.ckpt")
    save_joint(tmp_path / "a.ckpt", "ssd", "attributes", heads={"attributes": HEADS["classifier"]})
    with pytest.raises(UserError, match="head attributes: calls itself classification but is a face_attributes model"):
        mnvision.load(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del content["mnvision"]["heads"]["ssd"]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="its metadata are of the heads attributes, its model has ssd, attributes"):
        mnvision.load(tmp_path / "a.ckpt")


def test_one_file_has_every_answer(
    run_tool: Callable[..., None], joint: Any, photos: Path, tmp_path: Path, capsys: Any
):
    output = tmp_path / "out"
    run_tool(photos, output, "batch_size=3", "topk=2")
    assert files_below(output) == {"predictions.json", *(f"images/{name}" for name in NAMES)}
    stored = json.loads((output / "predictions.json").read_text())
    assert [item["path"] for item in stored] == NAMES
    results = joint.predict([photos / name for name in NAMES])
    for item, result in zip(stored, results, strict=True):
        assert item["size"] == list(result.size)
        assert list(item["answers"]) == list(HEADS)
        assert item["answers"]["ssd"]["detections"] == [found.to_dict() for found in result["ssd"]]
        assert item["answers"]["attributes"]["attributes"][0]["name"] == ATTRIBUTES[0]
        assert len(item["answers"]["classifier"]["classes"]) == 2
        assert item["answers"]["embedding"].keys() == {"embedding"}
    drawn = cv2.imread(str(output / "images" / NAMES[0]))
    assert drawn.shape[1] > 2 * 150  # enlarged, with panels at its right
    assert "attributes: " in capsys.readouterr().out


def test_a_table_per_head(run_tool: Callable[..., None], joint: Any, photos: Path, tmp_path: Path):
    output = tmp_path / "out"
    run_tool(photos, output, "format=csv", "save_images=false", "heads=[attributes,ssd]")
    assert files_below(output) == {"predictions_attributes.csv", "predictions_ssd.csv"}
    with (output / "predictions_ssd.csv").open() as file:
        rows = list(csv.DictReader(file))
    results = joint.predict([photos / name for name in NAMES])
    assert [row["name"] for row in rows] == [found.name for result in results for found in result["ssd"]]
    with (output / "predictions_attributes.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == NAMES


def test_coco_results_are_of_the_detectors(run_tool: Callable[..., None], photos: Path, tmp_path: Path, capsys: Any):
    run_tool(photos, tmp_path / "a", "format=coco", "save_images=false")
    run_tool(photos, tmp_path / "b", "format=coco", "save_images=false", checkpoint="ssd")
    for name in ("detections", "images"):
        joint, alone = tmp_path / "a" / f"{name}_ssd.json", tmp_path / "b" / f"{name}.json"
        assert joint.read_text() == alone.read_text()
    with pytest.raises(SystemExit):
        run_tool(photos, tmp_path / "c", "format=coco", "heads=[attributes]")
    assert "format=coco is for detectors" in capsys.readouterr().err


def test_a_video_has_every_answer_in_frames_of_one_size(run_tool: Callable[..., None], tmp_path: Path):
    writer = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (160, 120))
    for seed in range(4):
        writer.write(picture(seed, 120, 160))
    writer.release()
    run_tool(tmp_path / "in.mp4", tmp_path / "out", "heads=[ssd,attributes]")
    stored = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [item["frame"] for item in stored] == [0, 1, 2, 3]
    assert all(list(item["answers"]) == ["ssd", "attributes"] for item in stored)
    video = cv2.VideoCapture(str(tmp_path / "out" / "in.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 4


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_boxes_are_cut_out_and_asked_about(folder: Path, joint: Any, margin: float):
    pixels = picture(0)
    both = TwoStagePredictor(joint.only(["ssd"]), joint.only(["attributes", "classifier"]), Crops(margin=margin))
    result = both.predict(pixels)
    plain = joint.predict(pixels, heads=["ssd"])
    assert result["ssd"].detections == plain["ssd"].detections
    assert len(result["ssd"]) > 3
    alone = {name: mnvision.load(folder / f"{name}.ckpt") for name in ("attributes", "classifier")}
    for found in result["ssd"]:
        x1, y1, x2, y2 = found.box
        grown = (x1 - margin * (x2 - x1), y1 - margin * (y2 - y1), x2 + margin * (x2 - x1), y2 + margin * (y2 - y1))
        part = np.ascontiguousarray(crop(pixels, grown))
        assert found.answers.keys() == alone.keys()
        for name, predictor in alone.items():
            expected = predictor.predict(part)
            assert found.answers[name].size == expected.size == part.shape[:2]
            np.testing.assert_allclose(found.answers[name].probabilities, expected.probabilities, atol=1e-5)


def test_only_boxes_of_the_classes_asked_for(joint: Any):
    crops = Crops(classes=["dog"])
    found = TwoStagePredictor(joint.only(["ssd"]), joint.only(["attributes"]), crops).predict(picture(0))["ssd"]
    assert {one.name for one in found if one.answers} == {"dog"}
    assert {one.name for one in found if not one.answers} == {"cat", "a/b"}


def test_two_checkpoints_in_one_command(run_tool: Callable[..., None], folder: Path, photos: Path, tmp_path: Path):
    words = [f"crops_checkpoint={folder / 'attributes.ckpt'}", "crop_margin=0.1", "crop_classes=[dog,cat]"]
    run_tool(photos, tmp_path / "a", *words, checkpoint="ssd")
    stored = json.loads((tmp_path / "a" / "predictions.json").read_text())
    found = [one for item in stored for one in item["detections"]]
    assert {one["name"] for one in found if "answers" in one} == {"dog", "cat"}
    assert {len(one["answers"]["attributes"]["attributes"]) for one in found if "answers" in one} == {3}
    run_tool(photos, tmp_path / "b", *words, "format=csv", checkpoint="ssd")
    assert files_below(tmp_path / "b") == {
        "predictions.csv",
        "predictions_boxes_attributes.csv",
        *(f"images/{name}" for name in NAMES),
    }
    with (tmp_path / "b" / "predictions_boxes_attributes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum("answers" in one for one in found)
    first = [number for number, one in enumerate(stored[0]["detections"]) if "answers" in one]
    assert [int(row["box"]) for row in rows if row["path"] == NAMES[0]] == first
    drawn, plain = (cv2.imread(str(tmp_path / name / "images" / NAMES[0])) for name in ("a", "b"))
    assert (drawn == plain).all()
    assert drawn.shape == (100, 150, 3)


def test_one_checkpoint_does_both(run_tool: Callable[..., None], photos: Path, tmp_path: Path):
    run_tool(photos, tmp_path / "a", "crops_to=[attributes,embedding]", "crops=true")
    stored = json.loads((tmp_path / "a" / "predictions.json").read_text())
    assert list(stored[0]["answers"]) == ["ssd", "classifier"]
    assert stored[0]["answers"]["ssd"]["detections"][0]["answers"].keys() == {"attributes", "embedding"}
    assert any(name.startswith("crops/dog/") for name in files_below(tmp_path / "a"))


def test_nothing_found_is_nothing_asked(tmp_path: Path, joint: Any):
    both = TwoStagePredictor(joint.only(["ssd"]), joint.only(["attributes"]), Crops())
    assert both.predict([picture(0), picture(1)], score_threshold=1.0)[1]["ssd"].detections == ()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["crops_to=[attributes]", "crop_classes=[dgo]"], "knows no class 'dgo'; did you mean 'dog'?"),
        (["crops_to=[attributes]", "crop_margin=-1"], "crop_margin=-1: give a share"),
        (["crops_to=[attributes]", "heads=[classifier]"], "none of classifier is a detector"),
        (["crops_to=[attributes]", "crops_of=classifier"], "crops_of=classifier: no such detector; there is ssd"),
        (["crop_margin=0.1"], "crop_margin=0.1: needs crops_to=[HEAD,...]"),
        (["crops_to=[faces]"], "there is no head 'faces'"),
        (["heads=[ssd,ssd]"], "ssd is named twice"),
        (["heads=[]"], "give at least one"),
    ],
)
def test_options_that_do_not_go_together(
    run_tool: Any, photos: Path, tmp_path: Path, words: Any, said: str, capsys: Any
):
    assert said in refusal(capsys, run_tool, photos, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_single_task_checkpoint_has_no_heads_to_choose(tmp_path: Path, photos: Path, run_tool: Any, capsys: Any):
    with pytest.raises(SystemExit):
        run_tool(photos, tmp_path / "out", "heads=[ssd]", checkpoint="ssd")
    assert "this is a detection checkpoint of one head" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["predict", "same", "merge", "export"])
def test_a_list_of_heads_is_a_plain_value(tool: str):
    for word, names in (("heads=[a,b]", ["a", "b"]), ("heads=a", ["a"]), ("heads=null", [])):
        assert heads_of(compose_config(tool, [word]).heads) == names


def test_detectors_with_several_heads_need_a_choice(tmp_path: Path):
    from tests.builders_models import DETECTOR

    save_detector(tmp_path / "x.ckpt")
    save_joint(tmp_path / "a.ckpt", "ssd", "other", other=DETECTOR, heads={"other": HEADS["ssd"]})
    joint = mnvision.load(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="crops_of=NAME must say whose boxes are cut out: ssd or other"):
        TwoStagePredictor(joint, joint.only(["ssd"]), Crops())
    assert TwoStagePredictor(joint, joint.only(["ssd"]), Crops("other")).detector == "other"
