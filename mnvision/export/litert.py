"""LiteRT (.tflite), for phones and small boards: NHWC pixels in, a fixed number of images."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.export.appended import appended_text, write_with_metadata
from mnvision.export.base import Format, Pixels, Session, Wish, check_outputs, need, one_line
from mnvision.export.graph import INPUT, ExportGraph, Layout
from mnvision.export.litert_linear import store_linear_weights
from mnvision.export.litert_slim import slim
from mnvision.export.metadata import FileMetadata

if TYPE_CHECKING:
    from mnvision.export.base import Quantizer
    from mnvision.export.int8_direct import Roundings

_ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "MNVISION_LITERT_PYTHON"
_ENVIRONMENT = _ROOT / ".venv-litert" / "bin" / "python"  # what `make env-litert` makes
_ADVICE = (
    f"litert-torch needs torch below 2.15, so an environment of its own: make env-litert makes {_ENVIRONMENT}; of "
)
_ADVICE += "another one, give converter=PYTHON"


class LiteRT(Format):
    """LiteRT, converted by litert-torch; non-maximum suppression stays outside (``nms=false``).

    Args:
        converter: Python of an environment with mnvision and litert-torch; None is this process if it has litert-torch,
            else what the variable ``MNVISION_LITERT_PYTHON`` names, else what ``make env-litert`` made.
    """

    name = "litert"
    suffix = ".tflite"
    layout: ClassVar[Layout] = "nhwc"
    precisions = ("fp32", "int8")
    any_batch: ClassVar[bool] = False

    def __init__(self, converter: str | None = None) -> None:
        self.here = converter is None and importlib.util.find_spec("litert_torch") is not None
        python = Path(converter or os.environ.get(VARIABLE) or _ENVIRONMENT).expanduser()
        # Absolute, but not resolved: the python of an environment is a link, and knows its environment by where it is.
        self.converter = python.absolute()

    def require(self) -> None:
        """See :meth:`Format.require`."""
        need(("ai_edge_litert",), "tflite", "format=litert")
        if not self.here and not (self.converter.is_file() and os.access(self.converter, os.X_OK)):
            raise UserError(f"format=litert: there is no converter {self.converter}; {_ADVICE}")

    def write(self, graph: ExportGraph, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Format.write`."""
        return write_with_metadata(self.content(graph, wish, metadata.model, None), metadata, target)

    def quantizer(self, graph: ExportGraph, wish: Wish) -> Quantizer:
        """See :meth:`Format.quantizer`."""
        from mnvision.export.int8_direct import DirectQuantizer

        return DirectQuantizer(self, graph, wish)

    def trained_quantizer(self, graph: ExportGraph, wish: Wish, stored: Mapping[str, Any]) -> Quantizer | None:
        """See :meth:`Format.trained_quantizer`."""
        from mnvision.export.int8_ranges import trained_direct

        return trained_direct(self, graph, wish, stored)

    def content(self, graph: ExportGraph, wish: Wish, config: dict[str, Any], roundings: Roundings | None) -> bytes:
        """See :meth:`Direct.content`."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model.tflite"
            if self.here:
                convert(graph, wish.batch or 1, roundings, target)
            else:
                self._elsewhere(graph, wish, config, roundings, target)
            content = target.read_bytes()
        return content if roundings is None else slim(content)

    def _elsewhere(
        self, graph: ExportGraph, wish: Wish, config: dict[str, Any], roundings: Roundings | None, target: Path
    ) -> None:
        """Have the other environment build the same graph from plain data, and convert it."""
        request = target.with_name("request.pt")
        content = {
            "model": config,
            "weights": graph.state_dict(),
            "batch": wish.batch or 1,
            "resize": graph.options.resize,
            "roundings": None if roundings is None else {title: asdict(entry) for title, entry in roundings.items()},
            "target": str(target),
        }
        torch.save(content, request)
        try:
            done = subprocess.run(
                [str(self.converter), "-m", "mnvision.export.litert_worker", str(request)],
                cwd=target.parent,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise UserError(f"converter={self.converter} cannot be run: {error.strerror}") from None
        if done.returncode != 0 or not target.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise UserError(f"converter={self.converter} failed: {lines[-1].strip()[:300]}")

    @staticmethod
    def open(path: Path) -> LiteRTSession:
        """See :meth:`Format.open`."""
        return LiteRTSession(path)


class LiteRTSession(Session):
    """A file in LiteRT on the CPU.

    Args:
        path: The file.

    Raises:
        UserError: See :meth:`Format.open`.
    """

    def __init__(self, path: Path) -> None:
        need(("ai_edge_litert",), "tflite", str(path))
        from ai_edge_litert.interpreter import Interpreter

        self.path = path
        self.metadata = FileMetadata.from_text(appended_text(path), path)
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
            self._runner: Any = self._interpreter.get_signature_runner()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: not a usable LiteRT file ({one_line(error)})") from None
        check_outputs(path, self.metadata, self._runner.get_output_details())

    def run(self, images: Pixels) -> dict[str, NDArray[Any]]:
        """See :meth:`Session.run`."""
        try:
            found = self._runner(**{self.metadata.input["name"]: np.ascontiguousarray(images)})
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.path}: LiteRT failed on {images.shape} ({one_line(error)})") from None
        return {name: np.array(found[name]) for name in self.metadata.outputs}


class Named(nn.Module):
    """A graph that gives its outputs by name, which the converter takes over into the file.

    Args:
        graph: The graph, or its operations.
        names: Of the outputs.
    """

    def __init__(self, graph: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.inner, self.names = graph, names  # "graph" is what torch.fx calls its own

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See :meth:`ExportGraph.forward`."""
        return dict(zip(self.names, self.inner(images)))


def convert(graph: ExportGraph, batch: int, roundings: Roundings | None, target: Path) -> None:
    """Write a graph with litert-torch, which this environment has to have.

    Args:
        graph: What is exported.
        batch: Images at once.
        roundings: See :meth:`~mnvision.export.int8_direct.Direct.content`.
        target: The file.

    Raises:
        UserError: The converter fails.
    """
    import litert_torch

    module: nn.Module = graph
    options: dict[str, Any] = {}
    if roundings is not None:
        from mnvision.export.int8_insert import insert_rounding
        from mnvision.export.int8_traced import trace

        module = insert_rounding(trace(graph, batch), roundings, stored=False)
        options["quant_config"] = _as_it_stands()
    try:
        model = litert_torch.convert(Named(module, graph.names), sample_kwargs={INPUT: graph.example(batch)}, **options)
        model.export(str(target))
        if roundings is not None:
            opened = [rounding.values().numpy() for rounding in roundings.values() if rounding.open]
            target.write_bytes(store_linear_weights(target.read_bytes(), opened))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"litert-torch cannot convert this model ({one_line(error)})") from None


def _as_it_stands() -> Any:
    """The option by which litert-torch turns operations between roundings into int8 ones; it chooses nothing itself."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    static = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(static))


def has_metadata(path: Path) -> bool:
    """Whether a ``.tflite`` was written here, and is no published one."""
    return appended_text(path) is not None
