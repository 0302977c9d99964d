"""OpenVINO: a graph (.xml) with its weights beside it (.bin), the fastest engine on Intel's and AMD's CPUs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.export.base import Format, Pixels, Quantizer, Session, Wish, check_outputs, need, one_line
from mnvision.export.graph import ExportGraph
from mnvision.export.metadata import KEY, FileMetadata
from mnvision.export.openvino_slim import slim, without_indentation
from mnvision.export.suppression import KeepRule

_TEXT, _WEIGHTS = [KEY, "metadata"], [KEY, "weights"]


class OpenVino(Format):
    """OpenVINO's own format, converted from ONNX in memory.

    fp16 stores the weights in float16: half the file. What is computed with is chosen where the file runs;
    :class:`OpenVinoSession` asks for float32, since OpenVINO's own choice on newer CPUs is bfloat16, which was seen to
    move scores by 0.02.

    Args:
        opset: Of the ONNX graph in between, see :class:`~mnvision.export.onnx.Onnx`.
    """

    name = "openvino"
    suffix = ".xml"
    precisions = ("fp32", "fp16", "int8")
    packages = ("openvino", "onnx", "onnxscript")
    extra = "openvino"
    any_size: ClassVar[bool] = True

    def __init__(self, opset: int = 20) -> None:
        from mnvision.export.onnx import Onnx

        self._onnx = Onnx(opset)

    @property
    def keep(self) -> KeepRule:
        """See :attr:`Format.keep`."""
        return self._onnx.keep

    def require_int8(self, trained: bool = False) -> None:
        """See :meth:`Format.require_int8`."""
        self._onnx.require_int8(trained)

    def quantizer(self, graph: ExportGraph, wish: Wish) -> Quantizer:
        """See :meth:`Format.quantizer`."""
        from mnvision.export.int8_onnx import OnnxQuantizer

        return OnnxQuantizer(self, graph, wish, by_map=False)

    def trained_quantizer(self, graph: ExportGraph, wish: Wish, stored: Mapping[str, Any]) -> Quantizer:
        """See :meth:`Format.trained_quantizer`."""
        from mnvision.export.int8_trained import TrainedQuantizer

        return TrainedQuantizer(self, graph, wish, stored)

    def write(self, graph: ExportGraph, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Format.write`."""
        return self.save(self.proto(graph, wish), wish, metadata, target)

    def proto(self, graph: ExportGraph, wish: Wish) -> Any:
        """The ``onnx.ModelProto`` in between."""
        return self._onnx.proto(graph, wish)

    def save(self, proto: Any, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """Write an ``onnx.ModelProto``; see :meth:`Format.write`."""
        ov = _openvino()
        weights = target.with_suffix(".bin")
        try:
            model = _converted(proto, target, ov)
            for name, port in zip(metadata.outputs, model.outputs):
                port.set_names({name})
            model.set_rt_info(metadata.to_text(), _TEXT)
            # Twice, for the digest of the weights can only be known once they are written.
            for digest in ("", None):
                model.set_rt_info(_digest(weights) if digest is None else digest, _WEIGHTS)
                ov.save_model(model, str(target), compress_to_fp16=wish.precision == "fp16")
            without_indentation(target)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot write {target} ({one_line(error)})") from None
        return [weights, target]

    @staticmethod
    def open(path: Path) -> OpenVinoSession:
        """See :meth:`Format.open`."""
        return OpenVinoSession(path)


class OpenVinoSession(Session):
    """A file in OpenVINO on the CPU, computed in float32.

    Args:
        path: The ``.xml``; the ``.bin`` of the same name lies beside it.

    Raises:
        UserError: See :meth:`Format.open`; or the ``.bin`` is another file's.
    """

    def __init__(self, path: Path) -> None:
        need(("openvino",), "openvino", str(path))
        ov = _openvino()
        self.path, weights = path, path.with_suffix(".bin")
        if not weights.is_file():
            raise UserError(f"{path}: its weights {weights.name} do not lie beside it: put them there")
        core = ov.Core()
        try:
            model = core.read_model(str(path))
            text = model.get_rt_info(_TEXT).astype(str) if model.has_rt_info(_TEXT) else None
            self.metadata = FileMetadata.from_text(text, path)
            if not model.has_rt_info(_WEIGHTS) or model.get_rt_info(_WEIGHTS).astype(str) != _digest(weights):
                raise UserError(f"{weights}: not the weights that {path.name} was written with: copy both files again")
            options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            self._model: Any = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise UserError(f"{path}: not a usable OpenVINO file ({one_line(error)})") from None
        self._ports = {name: port for port in self._model.outputs for name in port.get_names()}
        check_outputs(path, self.metadata, self._ports)

    def run(self, images: Pixels) -> dict[str, NDArray[Any]]:
        """See :meth:`Session.run`."""
        try:
            found = self._model(np.ascontiguousarray(images))
        except RuntimeError as error:
            raise UserError(f"{self.path}: OpenVINO failed on {images.shape} ({one_line(error)})") from None
        # Copies: the next run writes into the same memory.
        return {name: np.array(found[self._ports[name]]) for name in self.metadata.outputs}


def _converted(proto: Any, target: Path, ov: Any) -> Any:
    """An ``openvino.Model``, constants folded; of several sources only files are folded."""
    source = target.with_suffix(".graph")
    source.write_bytes(proto.SerializeToString())
    try:
        model = ov.convert_model(str(source))
    finally:
        source.unlink()
    _antialias(model)
    slim(model, ov)
    return model


def _antialias(model: Any) -> None:
    """Resize as ONNX's antialiased one: converted, it is a mode of OpenVINO's that ignores antialiasing.

    See https://github.com/openvinotoolkit/openvino/issues/35893; Pillow's filter, which OpenVINO has, is the same one.
    """
    from openvino import opset11

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Interpolate" or not node.get_attributes()["antialias"]:
            continue
        size = opset11.gather(node.input_value(1), [2, 3], 0)
        resized = opset11.interpolate(
            node.input_value(0),
            size,
            mode="bilinear_pillow",
            shape_calculation_mode="sizes",
            coordinate_transformation_mode="half_pixel",
            antialias=True,
            axes=[2, 3],
        )
        node.output(0).replace(resized.output(0))


def _openvino() -> Any:
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")  # it would send usage reports else
    import openvino

    return openvino


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
