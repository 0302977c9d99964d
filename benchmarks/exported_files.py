"""Files for the duel of exported files: ours, timm's, Ultralytics', and ours cut at the borders of their parts."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.duel import ROOT
from benchmarks.ultralytics_side import CLASSIFIERS, DETECTOR
from mnvision.export.base import INT8
from mnvision.latency.subjects import Candidate, file_megabytes

PRECISIONS = ("fp32", INT8)
PARTS = ("backbone", "head", "decoding", "suppression")


def candidates(classifier_side: int, detector_side: int) -> tuple[Candidate, Candidate]:
    """``task=imagenet`` with 1000 classes and ``task=ssd_coco`` with 80, alpha 1, as the tools compose them."""
    from tools.benchmark import composed

    classifier = composed(["task=imagenet", f"backbone.resolution={classifier_side}"], whole=True)[0]
    words = ["task=ssd_coco", f"backbone.resolution={detector_side}", "head.num_classes=80"]
    return replace(classifier, name="classifier"), replace(composed(words, whole=True)[0], name="ssd")


def our_files(candidate: Candidate, folder: Path) -> dict[str, Path]:
    """By row of the table; files of an earlier run are taken."""
    from mnvision.export.onnx import Onnx
    from mnvision.export.openvino import OpenVino
    from mnvision.latency.untrained import untrained_file

    found = {}
    for form in (Onnx(), OpenVino()):
        for precision in PRECISIONS:
            path = folder / f"{candidate.name}{'' if precision == 'fp32' else '_int8'}{form.suffix}"
            if not path.is_file():
                untrained_file(candidate, form, precision, folder)
            found[f"ours, {form.name} {precision}"] = path
    return found


def parts_of(candidate: Candidate, precision: str, folder: Path) -> dict[str, Path]:
    """ONNX files that end behind the backbone, behind the head, behind decoding, and behind suppression.

    The last is the whole file; the others are one graph of the same precision, cut.
    """
    ends = {part: folder / f"{candidate.name}_{precision}_{part}.onnx" for part in PARTS[:-1]}
    if not all(path.is_file() for path in ends.values()):
        _write_parts(candidate, precision, ends, folder)
    suffix = "" if precision == "fp32" else f"_{precision}"
    return {**ends, PARTS[-1]: folder / f"{candidate.name}{suffix}.onnx"}


def _write_parts(candidate: Candidate, precision: str, ends: dict[str, Path], folder: Path) -> None:
    from mnvision.checkpoints import load_model
    from mnvision.export.base import Wish
    from mnvision.export.graph import GraphOptions, build_graph
    from mnvision.export.int8 import ends_of, layers_of, quantized
    from mnvision.export.int8_form import settled
    from mnvision.export.onnx import Onnx
    from mnvision.export.parity import drawn_pictures
    from mnvision.latency.subjects import save_untrained

    checkpoint = folder / "parts.ckpt"
    save_untrained(candidate, checkpoint)
    model, _ = load_model(checkpoint)
    checkpoint.unlink()
    graph = build_graph(model, GraphOptions())
    proto = Onnx().proto(graph, Wish(batch=1))
    layers = layers_of(proto)
    trunk = [layer for layer in layers if layer.title.startswith("backbone.")]
    if precision == INT8:
        images = drawn_pictures(graph.resolution, 2).transpose(0, 3, 1, 2).copy()
        proto = settled(quantized(proto, images, 1, corrected=False))
    cuts = {
        "backbone": [layer.output for layer in ends_of(proto, trunk)],
        "head": [layer.output for layer in ends_of(proto, layers)],
        "decoding": [output.name for output in proto.graph.output],
    }
    for part, names in cuts.items():
        ends[part].write_bytes(_cut(proto, names).SerializeToString())


def _cut(proto: Any, names: list[str]) -> Any:
    """A graph that gives inner tensors; in int8 the 8 bits that the layers behind read, where they read such."""
    import onnx

    from mnvision.export.int8_form import drop_unread

    rounded = {node.input[0]: node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    del changed.graph.output[:]
    for name in names:
        kind = onnx.TensorProto.UINT8 if name in rounded else onnx.TensorProto.FLOAT
        changed.graph.output.append(onnx.helper.make_tensor_value_info(rounded.get(name, name), kind, None))
    drop_unread(changed.graph)  # onnxruntime would compute what nobody reads
    return changed


def timm_file(folder: Path, side: int) -> Path:
    """Timm's own ONNX export of ``mobilenetv1_100``."""
    import timm
    from timm.utils.onnx import onnx_export

    path = folder / "timm_mobilenetv1_100.onnx"
    if not path.is_file():
        model = timm.create_model("mobilenetv1_100", num_classes=1000, exportable=True)
        onnx_export(model, str(path), batch_size=1, input_size=(3, side, side), use_dynamo=True, external_data=False)
    return path


def ultralytics_files(python: Path | None, folder: Path, sides: tuple[int, int]) -> tuple[dict[str, Path], str]:
    """Their exports by name, and the versions that made them; none without their environment."""
    if python is None:
        return {}, ""
    names, told = (*CLASSIFIERS, DETECTOR), folder / "ultralytics.json"
    if not told.is_file() or not all((folder / f"{name}.onnx").is_file() for name in names):
        words = [str(python), "-m", "benchmarks.ultralytics_side", str(folder.resolve()), *map(str, sides)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        told.write_text(done.stdout.strip().splitlines()[-1])
    versions = json.loads(told.read_text())
    return {name: folder / f"{name}.onnx" for name in names}, ", ".join(f"{k} {v}" for k, v in versions.items())


def mult_adds(path: Path) -> float | None:
    """Millions of multiply-adds of an ONNX file's convolutions and products, by the shapes that are known of it."""
    import onnx

    if path.suffix != ".onnx":
        return None
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {entry.name: list(entry.dims) for entry in graph.initializer}
    for entry in (*graph.value_info, *graph.output):
        shapes[entry.name] = [size.dim_value or 1 for size in entry.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        taps, out = shapes.get(node.input[1] if len(node.input) > 1 else ""), shapes.get(node.output[0])
        if node.op_type == "Conv" and taps and out:
            total += _product(out) * _product(taps[1:])
        elif node.op_type in ("Gemm", "MatMul") and taps and out:
            transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
            total += _product(out) * taps[-1 if transposed else -2]
    return total / 1e6


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def megabytes(path: Path) -> float:
    """See :func:`mnvision.latency.subjects.file_megabytes`."""
    return file_megabytes(path)
