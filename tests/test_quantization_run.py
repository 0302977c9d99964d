"""Runs with ``quantize=qat``: from the command line's words to an int8 file that decides as the run measured."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnvision.checkpoints import load_model, read_checkpoint, read_metadata
from mnvision.errors import UserError
from mnvision.export.base import INT8, Wish
from mnvision.export.calibration import Calibration
from mnvision.export.exporter import export
from mnvision.export.runtime import open_model
from mnvision.prediction.predictor import load_predictor
from mnvision.quantization.layers import restore
from tests.builders import make_image_folder, make_tiny_coco
from tests.builders_harm import compose
from tests.builders_models import save_classifier, save_detector
from tools.quantizing import expand_quantize
from tools.run import evaluate, train

NAMES = ["red", "blue", "green"]  # in another order than the folders
OBJECTS = ["kite", "car", "person"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "data", per_class=4)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "classifier.ckpt"
    save_classifier(path, class_names=NAMES)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "detector.ckpt"
    save_detector(path, class_names=OBJECTS)
    return path


def words_for(data: Path, checkpoint: Path, *words: str, epochs: int = 1) -> list[str]:
    model = read_metadata(checkpoint).model["backbone"]
    return [
        *("quantize=qat", f"init_from={checkpoint}", "teacher=checkpoint", f"teacher.path={checkpoint}"),
        *(f"backbone.alpha={model['alpha']}", f"backbone.resolution={model['resolution']}"),
        *(f"data.root={data}", "quantize.batches=2", "scheduler=constant", f"trainer.max_epochs={epochs}", *words),
    ]


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path, classifier: Path) -> Path:
    folder = tmp_path_factory.mktemp("qat") / "run"
    train(compose(folder, "classification", *words_for(images, classifier, epochs=2)))
    return folder


def test_the_checkpoint_is_that_of_a_float_model_with_ranges(run: Path, classifier: Path):
    model, metadata = load_model(last(run))
    before, stored = load_model(classifier)
    assert model.state_dict().keys() == before.state_dict().keys()
    assert metadata.class_names == stored.class_names
    assert metadata.model == stored.model
    assert {"weights", "ranges"} == set(metadata.quantization)
    content = read_checkpoint(last(run))
    names = [name for name in content["state_dict"] if not name.startswith("model.")]
    assert names == ["quantization.bounds"]
    statistics = [name for name in model.state_dict() if "running" in name]
    assert statistics
    assert all(torch.equal(model.state_dict()[name], before.state_dict()[name]) for name in statistics)
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, before.state_dict()[name])]
    assert len(changed) == len(list(model.parameters()))
    assert load_predictor(last(run)).kind == "classification"


def test_validation_measures_the_rounded_model(run: Path, images: Path):
    """The last row of the run's metrics, computed again from the checkpoint alone."""
    with (run / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    predictor = load_predictor(last(run))
    model, metadata = load_model(last(run))
    rounded = restore(model, metadata.quantization)
    losses, right = [], []
    for folder in [images / "val" / name for name in NAMES]:
        for path in sorted(folder.glob("*.[jJ]*")):
            pixels = torch.from_numpy(predictor.preprocess(path).pixels.transpose(2, 0, 1).copy())[None]
            label = torch.tensor([NAMES.index(folder.name)])
            with torch.no_grad():
                logits = rounded(pixels)
            losses.append(float(torch.nn.functional.cross_entropy(logits, label)))
            right.append(float(logits.argmax(1) == label))
    assert float(row["val/loss"]) == pytest.approx(np.mean(losses), rel=1e-3)
    assert float(row["val/top1"]) == pytest.approx(np.mean(right))


def test_a_resumed_run_is_the_whole_run_bit_for_bit(run: Path, images: Path, classifier: Path, tmp_path: Path):
    halves = tmp_path / "halves"
    train(compose(halves, "classification", *words_for(images, classifier, epochs=1)))
    words = words_for(images, classifier, f"ckpt_path={last(halves)}", epochs=2)
    train(compose(halves, "classification", *words))
    one, two = read_checkpoint(last(run)), read_checkpoint(last(halves))
    for key in ("state_dict", "ema_state_dict"):
        assert one[key].keys() == two[key].keys()
        assert all(torch.equal(one[key][name], two[key][name]) for name in one[key])
    assert read_metadata(last(run)).quantization == read_metadata(last(halves)).quantization


def test_ranges_move_with_training_or_stay_as_measured(images: Path, classifier: Path, tmp_path: Path):
    bounds = []
    for momentum in (0.0, 0.5):
        folder = tmp_path / str(momentum)
        train(compose(folder, "classification", *words_for(images, classifier, f"quantize.momentum={momentum}")))
        bounds.append(read_checkpoint(last(folder))["state_dict"]["quantization.bounds"])
    assert torch.isfinite(torch.stack(bounds)).all()
    assert not torch.equal(*bounds)


def test_the_int8_file_decides_as_the_rounded_model(run: Path, images: Path, tmp_path: Path):
    pytest.importorskip("onnxscript")
    from mnvision.export.onnx import Onnx

    wish = Wish(precision=INT8, batch=None, nms=False, resize=False)
    done = export(last(run), Onnx(), wish, tmp_path, pictures=images, calibration=Calibration(8, 8))
    assert any("training with quantize=qat" in line for line in done.lines)
    file, metadata = open_model(done.path)
    assert metadata.class_names == NAMES
    shown = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 3, *file.resolution), dtype=np.uint8))
    rounded = restore(*_model_and_ranges(last(run)))
    with torch.no_grad():
        expected, plain = rounded.predict(shown), load_model(last(run))[0].predict(shown)
    found = file.predict(shown)
    # Integer biases alone turn some values to the next number; an untrained network carries that on to its end.
    assert float((found - expected).abs().mean()) < 0.4 * float((plain - expected).abs().mean())
    assert int((found.argmax(1) == expected.argmax(1)).sum()) >= 14


def _model_and_ranges(path: Path) -> tuple[Any, dict[str, Any]]:
    model, metadata = load_model(path)
    return model, metadata.quantization


def test_a_detector_is_fine_tuned_and_exported(tmp_path: Path, detector: Path):
    root = make_tiny_coco(tmp_path / "data")
    train(compose(tmp_path / "run", "ssd_coco", *words_for(root, detector)))
    model, metadata = load_model(last(tmp_path / "run"))
    assert metadata.class_names == OBJECTS
    layers = set(metadata.quantization["ranges"])
    assert {"head.predictors.0.cls", "head.predictors.0.box", "backbone.stem.conv"} <= layers
    restore(model, metadata.quantization)
    evaluate(
        compose(
            tmp_path / "scores",
            "ssd_coco",
            f"data.root={root}",
            f"checkpoint={last(tmp_path / 'run')}",
            name="evaluate",
        )
    )


def test_the_command_line_takes_everything_from_the_checkpoint(run: Path):
    words = expand_quantize(["quantize=qat", f"init_from={last(run)}", "task=classification", "trainer.max_epochs=3"])
    path = f"'{last(run)}'"
    assert words[-3:] == ["quantize=qat", "task=classification", "trainer.max_epochs=3"]
    assert "teacher=checkpoint" in words
    assert f"teacher.path={path}" in words
    assert f"init_from={path}" in words
    mine = expand_quantize(["quantize=qat", f"init_from={last(run)}", "task=classification", "teacher=timm"])
    assert "teacher=checkpoint" not in mine
    assert expand_quantize(["task=classification", "init_from=x.ckpt"]) == ["task=classification", "init_from=x.ckpt"]
    resumed = ["quantize=qat", "resume='run'", "init_from=x.ckpt"]
    assert expand_quantize(resumed) == resumed


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["quantize=qat"], "quantize=qat fine-tunes a trained checkpoint: give init_from"),
        (["quantize=qat", "init_from=null"], "give init_from"),
        (["quantize=qat", "init_from=none.ckpt", "task=classification"], "none.ckpt does not exist"),
        (["quantize=qat", "init_from=model.onnx"], "is an exported file"),
    ],
)
def test_the_command_line_refuses_what_cannot_be_fine_tuned(
    words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(UserError, match=text):
        expand_quantize(words)


def test_a_checkpoint_of_one_head_is_not_one_of_several(classifier: Path):
    with pytest.raises(UserError, match="is a model of one head: leave task=multitask out"):
        expand_quantize(["quantize=qat", f"init_from={classifier}", "task=multitask", "heads=[classifier]"])


def test_a_checkpoint_without_its_command_line_needs_a_task(classifier: Path):
    with pytest.raises(UserError, match="does not say which task it was trained for: add task="):
        expand_quantize(["quantize=qat", f"init_from={classifier}"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["backbone.alpha=0.5"], r"backbone\.alpha=0\.5, but .* has 0\.25: leave it out"),
        (["quantize.momentum=-1"], "quantize.momentum=-1"),
        (["quantize.batches=0"], "quantize.batches=0"),
        (["quantize.weights=row"], "quantize.weights='row'"),
        (["distill.labels=0.5"], "or in another order: give the data it was trained on, or distill.labels=0"),
        (["backbone.pretrained=x.h5"], "keep the first alone"),
    ],
)
def test_a_run_refuses_what_does_not_fit(words: list[str], text: str, tmp_path: Path, images: Path, classifier: Path):
    with pytest.raises(UserError, match=text):
        train(compose(tmp_path / "run", "classification", *words_for(images, classifier), *words))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_of_another_task_is_refused(tmp_path: Path, images: Path, detector: Path):
    with pytest.raises(UserError, match="is a detection model, but this task is classification"):
        train(compose(tmp_path / "run", "classification", *words_for(images, detector)))
