"""Files with several heads, or one of several: proven and measured on the data of each head's own run."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from mnvision.checkpoints import KEY, Metadata, read_checkpoint
from mnvision.errors import UserError
from mnvision.export.base import Wish
from mnvision.export.calibration import Calibration
from mnvision.export.exporter import export
from mnvision.export.pt2 import Pt2
from mnvision.export.runtime import open_metadata
from mnvision.prediction.calibration import save_calibrated
from mnvision.prediction.embedding_files import load_embedder
from mnvision.prediction.predictor import load_predictor
from tests.builders import make_image_folder
from tests.builders_faces import make_tiny_celeba
from tests.builders_models import SIDE
from tests.builders_multitask import ATTRIBUTER, CLASSIFIER, save_joint
from tools import cli, compare, prove
from tools.evaluate import expand_checkpoint, head_config
from tools.export import gather_data, samples_of_data, wanted_heads
from tools.heads import fold, unfold
from tools.run import build_data, evaluate

MODELS = {"attributes": ATTRIBUTER, "classifier": CLASSIFIER}
METRICS = {"attributes": "mAP", "classifier": "top1"}


def save_with_data(folder: Path) -> None:
    """A checkpoint ``a.ckpt`` of two heads whose run had data below ``folder``."""
    make_tiny_celeba(folder / "attributes", num=30)
    make_image_folder(folder / "classifier")
    common = [f"backbone.resolution={SIDE}", "backbone.alpha=0.25", "trainer.accelerator=cpu"]
    own = [
        word
        for name in MODELS
        for word in (f"{name}.data.root={folder / name}", f"{name}.data.batch_size=4", f"{name}.data.num_workers=0")
    ]
    words = fold(["task=multitask", f"heads=[{','.join(MODELS)}]", *common, *own])
    cfg = cli.compose_config("evaluate", [*words, "paths.output_dir=out"])
    heads, models = {}, {name: deepcopy(model) for name, model in MODELS.items()}
    for name, kind in (("attributes", "face_attributes"), ("classifier", "classification")):
        data = build_data(head_config(name, cfg), "validate")
        classes = list(data.class_names)
        models[name]["head"]["num_classes"] = len(classes)
        thresholds = {"thresholds": [0.5] * len(classes)} if name == "attributes" else {}
        heads[name] = Metadata(kind, {}, classes, preprocess=data.preprocess, calibration=thresholds).as_head()
    save_joint(folder / "a.ckpt", *MODELS, heads=heads, **models)
    content = torch.load(folder / "a.ckpt", weights_only=True)
    content[KEY]["overrides"] = words
    torch.save(content, folder / "a.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``a.ckpt``, its data, ``a.pt2`` of both heads and ``one.pt2`` of the attributes alone."""
    made = tmp_path_factory.mktemp("files")
    save_with_data(made)
    export(made / "a.ckpt", Pt2(), Wish())
    cfg = cli.compose_config("export", [f"checkpoint={made / 'a.ckpt'}", "heads=[attributes]"])
    heads, words = wanted_heads(cfg)
    export(made / "a.ckpt", Pt2(), Wish(), made / "one.pt2", heads=heads, overrides=words)
    return made


def measured(file: Path, output: Path, *more: str) -> dict[str, float]:
    """As ``tools/evaluate.py`` gives it."""
    words = expand_checkpoint([f"checkpoint={file}", f"paths.output_dir={output}", *more])
    output.mkdir(parents=True, exist_ok=True)
    return evaluate(cli.compose_config("evaluate", words), words)


def test_every_head_of_a_file_is_proven_by_the_score_that_evaluation_gives(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    files = f"files=[{folder / 'a.pt2'},{folder / 'one.pt2'}]"
    words = [f"checkpoint={folder / 'a.ckpt'}", files, "latency=false", f"output={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["tools/prove.py", *words])
    prove.main()
    assert "head attributes:" in capsys.readouterr().out
    found = json.loads((tmp_path / "prove.json").read_text())
    assert found["passed"] is True
    assert {name: len(proof["files"]) for name, proof in found["heads"].items()} == {"attributes": 2, "classifier": 1}
    scores = measured(folder / "a.ckpt", tmp_path / "out")
    for name, metric in METRICS.items():
        proof = found["heads"][name]
        assert proof["metric"] == metric
        assert proof["checkpoint"]["score"] == pytest.approx(scores[f"val/{name}/{metric}"], abs=1e-6)
        for file in proof["files"]:
            assert file["score"] == pytest.approx(proof["checkpoint"]["score"], abs=1e-6)
            assert file["differences"]["flipped"] == 0


def test_files_are_evaluated_as_their_checkpoint(folder: Path, tmp_path: Path):
    expected = measured(folder / "a.ckpt", tmp_path / "ckpt")
    found = measured(folder / "a.pt2", tmp_path / "file")
    alone = measured(folder / "one.pt2", tmp_path / "one")
    for name, metric in METRICS.items():
        key = f"val/{name}/{metric}"
        assert found[key] == pytest.approx(expected[key], abs=1e-6)
    assert alone["val/mAP"] == pytest.approx(expected["val/attributes/mAP"], abs=1e-6)
    assert measured(folder / "a.pt2", tmp_path / "some", "heads=[classifier]").keys() & {
        "val/classifier/top1",
        "val/attributes/mAP",
    } == {"val/classifier/top1"}
    with pytest.raises(UserError, match="is finished: resolution and decoding are those it was exported with"):
        measured(folder / "a.pt2", tmp_path / "other", "backbone.resolution=64")


def test_a_file_of_some_heads_asks_for_their_data_only(folder: Path, tmp_path: Path):
    assert "task=face_attributes" in open_metadata(folder / "one.pt2").overrides
    stored = unfold(expand_checkpoint([f"checkpoint={folder / 'a.pt2'}", "heads=[attributes]"]))
    assert "heads=[attributes]" in stored
    assert not [word for word in stored if word.startswith("classifier.")]


def test_int8_takes_the_data_of_the_head_that_goes_in(folder: Path):
    assert gather_data(["attributes.data.root=a", "pictures=b"]) == [
        "pictures='b'",
        "overrides=['attributes.data.root=a']",
    ]
    cfg = cli.compose_config("export", [f"checkpoint={folder / 'a.ckpt'}", "heads=[attributes]"])
    predictor = load_predictor(folder / "a.ckpt").parts["attributes"]
    samples = samples_of_data(cfg, predictor, Calibration(limit=8))
    assert str(folder / "attributes") in samples.folder
    assert len(samples.calibration) == 8


def test_no_heads_and_commands_of_one_head_are_refused(folder: Path):
    cfg = cli.compose_config("export", [f"checkpoint={folder / 'a.ckpt'}", "heads=[]"])
    with pytest.raises(UserError, match=r"heads=\[\]: give at least one"):
        wanted_heads(cfg)
    with pytest.raises(UserError, match="has several heads, and this table is of one"):
        compare.require_one_kind([str(folder / "a.ckpt"), str(folder / "one.pt2")])
    with pytest.raises(UserError, match="this command is about one head"):
        cli.one_task(["task=multitask", "heads=[ssd]"])
    cfg = cli.compose_config("prove", [f"checkpoint={folder / 'a.ckpt'}", "files=[a.pt2]", "overrides=['heads=[ssd]']"])
    with pytest.raises(UserError, match=r"heads=\[ssd\]: a proof is of the model as it was exported"):
        prove.check(cfg)
    with pytest.raises(UserError, match=r"one.pt2 is an exported file: give the .ckpt"):
        read_checkpoint(folder / "one.pt2")


def test_a_checkpoint_that_names_no_data_asks_for_them(tmp_path: Path):
    save_joint(tmp_path / "a.ckpt", "attributes", "embedding")
    with pytest.raises(UserError, match=r"does not say which data it was trained on: add task=multitask heads="):
        expand_checkpoint([f"checkpoint={tmp_path / 'a.ckpt'}"])


def test_a_calibrated_threshold_goes_to_the_head_of_the_embeddings(tmp_path: Path):
    save_joint(tmp_path / "a.ckpt", "attributes", "embedding")
    assert load_embedder(tmp_path / "a.ckpt").threshold == 0.4
    save_calibrated(tmp_path / "a.ckpt", tmp_path / "b.ckpt", {"similarity": 0.25, "mirror": False})
    assert load_embedder(tmp_path / "b.ckpt").threshold == 0.25
    others = [load_predictor(tmp_path / name).parts["attributes"].metadata.calibration for name in ("a.ckpt", "b.ckpt")]
    assert others[0] == others[1] != {}
