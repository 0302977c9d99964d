"""Exported files of random weights: as fast as trained ones of the same network, and good for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mnvision.export.base import INT8, Wish
from mnvision.latency.subjects import Candidate, save_untrained

if TYPE_CHECKING:
    from mnvision.export.onnx import Onnx
    from mnvision.export.openvino import OpenVino

_PICTURES = 2


def untrained_file(candidate: Candidate, form: Onnx | OpenVino, precision: str, folder: Path) -> Path:
    """A composed model as a file that takes one picture at a time, decoding and non-maximum suppression inside.

    int8 is calibrated on two drawn scenes, without correction of the biases and without a comparison: where the numbers
    lie does not change how long they take.

    Args:
        candidate: With a config.
        form: The format.
        precision: "fp32", "fp16" or "int8".
        folder: Where the file goes, named as the candidate.

    Raises:
        UserError: A package is missing, or the export fails.
    """
    from mnvision.export.exporter import export

    form.require()
    checkpoint = folder / f"{candidate.name}.ckpt"
    save_untrained(candidate, checkpoint)
    if precision == INT8:
        path = _int8(checkpoint, form)
    else:
        path = export(checkpoint, form, Wish(precision=precision, batch=1, nms=True, resize=False), folder).path
    checkpoint.unlink()
    return path


def _int8(checkpoint: Path, form: Onnx | OpenVino) -> Path:
    from mnvision.checkpoints import load_model
    from mnvision.export.graph import GraphOptions, build_graph
    from mnvision.export.int8 import quantized
    from mnvision.export.metadata import describe
    from mnvision.export.parity import drawn_pictures

    form.require_int8()
    model, metadata = load_model(checkpoint)
    graph = build_graph(model, GraphOptions(keep=form.keep))
    wish = Wish(INT8, batch=1, nms=True)
    written = describe(metadata, graph, wish.batch, wish.precision, checkpoint, model)
    written.quantization = {
        "pictures": _PICTURES,
        "float_layers": [],
        "measured": "nothing: random weights",
    }
    images = drawn_pictures(graph.resolution, _PICTURES).transpose(0, 3, 1, 2).copy()
    int8 = quantized(form.proto(graph, wish), images, wish.batch, corrected=False)
    # Not with_suffix: a name such as 0.5-160 has a dot of its own.
    return form.save(int8, wish, written, checkpoint.parent / f"{checkpoint.stem}_int8{form.suffix}")[-1]
