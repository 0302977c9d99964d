"""ONNX: one file with everything inside, run by onnxruntime and by most other engines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision import __version__
from mnvision.errors import UserError
from mnvision.export.base import INT8, Format, Pixels, Quantizer, Session, Wish, check_outputs, need, one_line
from mnvision.export.graph import INPUT, ExportGraph
from mnvision.export.int8_form import settled
from mnvision.export.metadata import KEY, FileMetadata
from mnvision.export.suppression import KeepRule

OPSETS = range(18, 24)
"""What the exporter writes: 18 has the antialiased resize, 23 is the last that torch 2.15 knows."""


class Onnx(Format):
    """ONNX, by torch's exporter.

    fp16 holds weights and everything up to the raw outputs in float16, decoding in float32. onnxruntime's CPU has no
    float16 convolutions and computes those in float32: half the file, not half the time.

    Args:
        opset: Version of ONNX's operators, 18 to 23.

    Raises:
        UserError: Another opset.
    """

    name = "onnx"
    suffix = ".onnx"
    precisions = ("fp32", "fp16", "int8")
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    any_size: ClassVar[bool] = True

    def __init__(self, opset: int = 20) -> None:
        if isinstance(opset, bool) or opset not in OPSETS:
            raise UserError(f"opset={opset}: choose {OPSETS[0]} to {OPSETS[-1]}; 20 suits onnxruntime from 1.17 on")
        self.opset = opset

    @property
    def keep(self) -> KeepRule:
        """See :attr:`Format.keep`."""
        from mnvision.export.onnx_nms import keep_in_onnx  # registers an operator, which only this needs

        return keep_in_onnx

    @property
    def half_graph(self) -> bool:
        """See :attr:`Format.half_graph`."""
        return True

    def require_int8(self, trained: bool = False) -> None:
        """See :meth:`Format.require_int8`."""
        calibrating = () if trained else ("nncf",)
        need((*calibrating, "onnx", "onnxruntime"), "quantization", "precision=int8")

    def quantizer(self, graph: ExportGraph, wish: Wish) -> Quantizer:
        """See :meth:`Format.quantizer`."""
        from mnvision.export.int8_onnx import OnnxQuantizer

        return OnnxQuantizer(self, graph, wish)

    def trained_quantizer(self, graph: ExportGraph, wish: Wish, stored: Mapping[str, Any]) -> Quantizer:
        """See :meth:`Format.trained_quantizer`."""
        from mnvision.export.int8_trained import TrainedQuantizer

        return TrainedQuantizer(self, graph, wish, stored)

    def write(self, graph: ExportGraph, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Format.write`."""
        return self.save(self.proto(graph, wish), wish, metadata, target)

    def proto(self, graph: ExportGraph, wish: Wish) -> Any:
        """See :func:`onnx_proto`."""
        return onnx_proto(graph, wish, self.opset)

    def save(self, proto: Any, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """Write an ``onnx.ModelProto``; see :meth:`Format.write`."""
        import onnx

        if wish.precision == INT8:
            proto = settled(proto)
        proto.producer_name, proto.producer_version = "mnvision", __version__
        onnx.helper.set_model_props(proto, {KEY: metadata.to_text()})
        try:
            onnx.checker.check_model(proto, full_check=False)
            target.write_bytes(proto.SerializeToString())
        except ValueError as error:  # protobuf's limit of 2 GiB, or a graph that breaks ONNX's rules
            raise UserError(f"cannot write {target}: {one_line(error)}") from None
        return [target]

    @staticmethod
    def open(path: Path) -> OnnxSession:
        """See :meth:`Format.open`."""
        return OnnxSession(path)


class OnnxSession(Session):
    """A file in onnxruntime, on CUDA where its build has it.

    Args:
        path: The file.

    Raises:
        UserError: See :meth:`Format.open`.
    """

    def __init__(self, path: Path) -> None:
        need(("onnxruntime",), "onnx", str(path))
        import onnxruntime

        self.path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        offered = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in offered]
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise UserError(f"{path}: not a usable ONNX file ({one_line(error)})") from None
        self.metadata = FileMetadata.from_text(self._session.get_modelmeta().custom_metadata_map.get(KEY), path)
        check_outputs(path, self.metadata, [output.name for output in self._session.get_outputs()])
        self._names = list(self.metadata.outputs)

    def run(self, images: Pixels) -> dict[str, NDArray[Any]]:
        """See :meth:`Session.run`."""
        try:
            found = self._session.run(self._names, {self.metadata.input["name"]: np.ascontiguousarray(images)})
        except Exception as error:  # likewise
            raise UserError(f"{self.path}: onnxruntime failed on {images.shape} ({one_line(error)})") from None
        return dict(zip(self._names, found))


def onnx_proto(graph: ExportGraph, wish: Wish, opset: int) -> Any:
    """An ``onnx.ModelProto`` of a graph.

    Raises:
        UserError: The exporter fails.
    """
    from mnvision.export.onnx_nms import translations

    axes: dict[int, str] = {} if wish.batch else {0: "batch"}
    if wish.any_size:
        axes |= {2: "height", 3: "width"}
    try:
        with quiet_torch():
            program = torch.onnx.export(
                graph,
                (graph.example(wish.batch or 2),),
                dynamo=True,
                dynamic_shapes=(axes,) if axes else None,
                input_names=[INPUT],
                output_names=list(graph.names),
                opset_version=opset,
                custom_translation_table=translations(),
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"torch cannot export this model to ONNX opset {opset} ({one_line(error)})") from None
    _strip(proto)
    return proto


def _strip(proto: Any) -> None:
    """Take out where in whose source each node was traced: it says nothing to a runtime and names local folders."""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        parts = [graph, *graph.node, *graph.value_info, *getattr(graph, "input", ()), *getattr(graph, "output", ())]
        parts += getattr(graph, "initializer", ())
        for part in parts:
            if hasattr(part, "metadata_props"):
                del part.metadata_props[:]
            if hasattr(part, "doc_string"):
                part.ClearField("doc_string")
    del proto.metadata_props[:]


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Without the exporter's remarks, which are for its developers."""
    names = ("torch.onnx", "torch.export", "torch._export", "torch.utils._pytree", "onnxscript")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
