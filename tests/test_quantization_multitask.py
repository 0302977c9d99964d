"""``quantize=qat`` of several heads on one trunk: training, resuming, the int8 file, and what a cut head keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnvision.checkpoints import load_model, read_checkpoint, read_metadata
from mnvision.errors import UserError
from mnvision.export.heads import chosen_heads
from mnvision.merging import merge, read_heads, save_single
from mnvision.multitask import MultiTaskModel
from mnvision.quantization.layers import quantize, restore
from mnvision.quantization.ranges import OUTPUT
from tests.builders import make_tiny_coco
from tests.builders_faces import make_tiny_celeba
from tests.builders_identities import make_people
from tests.builders_multitask import blotches, joint_model
from tools import cli
from tools.evaluate import expand_checkpoint
from tools.run import evaluate, train
from tools.train import expand_start

HEADS = ("ssd", "attributes", "embedding")
COMMON = [
    *("backbone.alpha=0.25", "backbone.resolution=64", "logger=none", "scheduler=constant"),
    *("callbacks.progress=null", "trainer.accelerator=cpu", "trainer.limit_train_batches=2", "trainer.max_epochs=1"),
]


def words_of(root: Path) -> list[str]:
    """A run of three heads."""
    roots = {"ssd": "coco", "attributes": "celeba", "embedding": "people"}
    own = [f"{name}.data.root={root / roots[name]}" for name in HEADS]
    own += [f"{name}.data.{word}" for name in HEADS for word in ("batch_size=4", "num_workers=0")]
    more = ["embedding.data.points=arcface", "embedding.data.val_fraction=0.3"]
    return ["task=multitask", f"heads=[{','.join(HEADS)}]", *COMMON, *own, *more]


def run(folder: Path, *words: str) -> Path:
    """As the command line does it, down to the overrides in the checkpoint; gives the last checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    expanded = expand_start([*words, f"paths.output_dir={folder}"])
    train(cli.compose_config("config", expanded))
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["mnvision"]["overrides"] = expanded
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_tiny_coco(root / "coco")
    make_tiny_celeba(root / "celeba", num=24)
    make_people(root / "people", {f"Person_{i}": 2 for i in range(20)})
    return root


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return run(tmp_path_factory.mktemp("plain"), *words_of(data))


def qat(folder: Path, plain: Path, epochs: int, *words: str) -> Path:
    options = [*COMMON[2:-1], f"trainer.max_epochs={epochs}", "quantize.batches=2"]
    return run(folder, "quantize=qat", f"init_from={plain}", *options, *words)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, plain: Path) -> Path:
    return qat(tmp_path_factory.mktemp("qat"), plain, 2)


def rounded(path: Path) -> MultiTaskModel:
    model, metadata = load_model(path)
    return restore(model, metadata.quantization)


def leaves(raw: Any) -> list[torch.Tensor]:
    return list(raw.values()) if isinstance(raw, dict) else [raw]


def same(one: Any, two: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(leaves(one), leaves(two), strict=True))


def test_all_heads_are_trained_towards_their_own_float_answers(tuned: Path, plain: Path):
    before, after = read_metadata(plain), read_metadata(tuned)
    assert after.model["heads"] == before.model["heads"]
    assert all(after.heads[name]["class_names"] == before.heads[name]["class_names"] for name in HEADS)
    old, new = load_model(plain)[0].state_dict(), load_model(tuned)[0].state_dict()
    weights = [name for name in old if name.endswith(("weight", "bias"))]
    assert {name.split(".")[0] for name in weights} == {"backbone", "heads"}
    changed = {".".join(name.split(".")[:2]) for name in weights if not torch.equal(old[name], new[name])}
    assert {"backbone.blocks", "heads.ssd", "heads.attributes", "heads.embedding"} <= changed
    statistics = [name for name in old if "running" in name]
    assert all(torch.equal(old[name], new[name]) for name in statistics)
    header, *rows = (tuned.parent.parent / "metrics.csv").read_text().splitlines()
    assert {f"train/{name}/loss_distill" for name in HEADS} <= set(header.split(","))
    assert not any(column.endswith("/loss_labels") for column in header.split(","))
    assert len(rows) == 2


def test_the_trunk_is_rounded_once_and_its_maps_have_one_range_for_all(tuned: Path):
    metadata = read_metadata(tuned)
    ranges = metadata.quantization["ranges"]
    assert {"backbone.stem.conv", "heads.attributes.fc", "heads.ssd.predictors.0.cls", "heads.embedding.fc"} <= set(
        ranges
    )
    maps = [name for name in ranges if name.endswith(OUTPUT)]
    assert maps == ["backbone.blocks.10.pointwise.conv:output", "backbone.blocks.12.pointwise.conv:output"]
    readers = ("backbone.blocks.11.depthwise.conv", "heads.ssd.predictors.0.cls", "heads.ssd.predictors.0.box")
    assert all(ranges[name] == ranges[maps[0]] for name in readers)
    names = {f"backbone.{name}" for name, _ in load_model(tuned)[0].backbone.named_modules()}
    trunk = [name for name in ranges if name.startswith("backbone.") and not name.endswith(OUTPUT)]
    assert set(trunk) <= names
    assert len(trunk) == 27


@pytest.mark.slow
def test_a_resumed_run_is_the_whole_run_bit_for_bit(tuned: Path, plain: Path, tmp_path: Path):
    halves = qat(tmp_path / "halves", plain, 1)
    qat(tmp_path / "halves", plain, 2, f"ckpt_path={halves}")
    one, two = read_checkpoint(tuned), read_checkpoint(halves)
    for key in ("state_dict", "ema_state_dict"):
        assert one[key].keys() == two[key].keys()
        assert all(torch.equal(one[key][name], two[key][name]) for name in one[key])
    assert "quantization.bounds" in one["state_dict"]
    assert read_metadata(tuned).quantization == read_metadata(halves).quantization


@pytest.mark.parametrize("name", HEADS)
def test_a_head_cut_out_is_rounded_as_it_was_among_the_others(tuned: Path, name: str, tmp_path: Path):
    part = next(part for part in read_heads(tuned) if part.name == name)
    save_single(tmp_path / "one.ckpt", part)
    whole, images = rounded(tuned), blotches(4, 64)
    model, metadata = load_model(tmp_path / "one.ckpt")
    alone = restore(model, metadata.quantization)
    with torch.no_grad():
        assert same(alone(images), whole(images)[name])
        assert not same(load_model(tuned)[0](images)[name], whole(images)[name])


def test_joined_heads_keep_ranges_that_agree_and_no_others(tuned: Path):
    parts = read_heads(tuned)
    assert merge(parts)[1].quantization == read_metadata(tuned).quantization
    model, metadata = merge(parts[1:])
    with torch.no_grad():
        again = restore(model, metadata.quantization)(blotches(4, 64))
        assert all(same(again[name], rounded(tuned)(blotches(4, 64))[name]) for name in HEADS[1:])
    assert chosen_heads(*load_model(tuned), HEADS[1:])[1].quantization == metadata.quantization
    parts[0].metadata.quantization["ranges"]["backbone.stem.conv"] = [-2.0, 2.0]
    assert merge(parts)[1].quantization == {}
    parts[0].metadata.quantization = {}
    assert merge(parts)[1].quantization == {}


@pytest.mark.parametrize("heads", [None, ["attributes"]])
def test_the_int8_file_has_the_ranges_of_the_training(tuned: Path, heads: list[str] | None, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from mnvision.export.base import INT8, Wish
    from mnvision.export.graph import GraphOptions, build_graph
    from mnvision.export.onnx import Onnx
    from mnvision.export.rounded_graph import with_ranges

    model, metadata = load_model(tuned)
    if heads is not None:
        model, metadata = chosen_heads(model, metadata, heads)
    wish = Wish(precision=INT8, batch=None, nms=False, resize=False)
    graph = build_graph(model, GraphOptions())
    int8 = with_ranges(Onnx().proto(graph, wish), metadata.quantization)
    makers = [node.input[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"]
    assert len(makers) == len(set(makers))  # no map is rounded twice
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(int8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shown = blotches(8, 64)
    found = dict(zip(graph.names, session.run(None, {"images": shown.numpy()})))
    whole, plain = rounded(tuned), load_model(tuned)[0]
    with torch.no_grad():
        for name in {"attributes", "embedding"} & set(heads or HEADS):
            own = next(value for key, value in found.items() if key.startswith(name) or key == "probabilities")
            expected, float_answer = whole.predict(shown)[name].numpy(), plain.predict(shown)[name].numpy()
            assert np.abs(own - expected).mean() < 0.25 * np.abs(float_answer - expected).mean()


def test_it_is_evaluated_as_any_checkpoint(tuned: Path, tmp_path: Path):
    expanded = expand_checkpoint([f"checkpoint={tuned}"])
    scores = evaluate(cli.compose_config("evaluate", [*expanded, f"paths.output_dir={tmp_path}"]), expanded)
    assert {"val/ssd/AP", "val/attributes/mAP", "val/embedding/accuracy", "val/joint"} <= scores.keys()


def test_words_of_heads_go_to_them(plain: Path):
    words = expand_start(
        ["quantize=qat", f"init_from={plain}", "attributes.data.root=elsewhere", "ssd.distill.labels=0.5"]
    )
    (heads,) = [word for word in words if word.startswith("heads=")]
    assert "data.root=elsewhere" in heads
    assert "distill.labels=0.5" in heads
    assert heads.count("distill.labels=0.0") == 2
    assert heads.count("teacher=checkpoint") == 3
    assert heads.count("data.root=") == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["heads=[ssd]"], "quantize=qat is for all of them, since it changes their trunk"),
        (["task=classification"], "is a model of several heads: leave task=classification out"),
        (["backbone.alpha=0.5"], r"backbone\.alpha=0\.5, but .* has 0\.25"),
        (["quantize.batches=0"], "quantize.batches=0"),
        (["multitask.norms=per_head"], "multitask.norms=per_head, but .* has shared ones: leave it out"),
    ],
)
def test_what_does_not_fit_is_refused(words: list[str], text: str, plain: Path, tmp_path: Path):
    with pytest.raises(UserError, match=text):
        qat(tmp_path / "run", plain, 1, *words)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_normalisations_of_each_head_are_refused():
    with pytest.raises(UserError, match="norms=per_head cannot be quantised"):
        quantize(joint_model("attributes", "classifier", norms="per_head"))
