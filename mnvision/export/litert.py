"""LiteRT (.tflite), for phones and small boards: NHWC pixels in, a fixed number of images."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.export.appended import append_text, appended_text
from mnvision.export.base import Format, Pixels, Session, Wish, check_outputs, need, one_line
from mnvision.export.graph import INPUT, ExportGraph, Layout
from mnvision.export.metadata import FileMetadata

_ROOT = Path(__file__).resolve().parents[2]
_ADVICE = "litert-torch needs torch below 2.15, so an environment of its own: make env-litert, then add "
_ADVICE += "converter=.venv-litert/bin/python"


class LiteRT(Format):
    """LiteRT, converted by litert-torch; non-maximum suppression stays outside (``nms=false``).

    Args:
        converter: Python of an environment with mnvision and litert-torch; None converts in this process.
    """

    name = "litert"
    suffix = ".tflite"
    layout: ClassVar[Layout] = "nhwc"
    any_batch: ClassVar[bool] = False

    def __init__(self, converter: str | None = None) -> None:
        self.converter = converter

    def require(self) -> None:
        """See :meth:`Format.require`."""
        need(("ai_edge_litert",), "tflite", "format=litert")
        if self.converter is None and importlib.util.find_spec("litert_torch") is None:
            raise UserError(f"format=litert: {_ADVICE}")
        if self.converter is not None and not os.access(Path(self.converter).expanduser(), os.X_OK):
            raise UserError(f"converter={self.converter} is no program: give the python of an environment; {_ADVICE}")

    def write(self, graph: ExportGraph, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Format.write`."""
        if self.converter is None:
            convert(graph, wish.batch or 1, target)
        else:
            self._elsewhere(graph, wish, metadata, target)
        append_text(target, metadata.to_text())
        return [target]

    def _elsewhere(self, graph: ExportGraph, wish: Wish, metadata: FileMetadata, target: Path) -> None:
        """Have the other environment build the same graph from plain data, and convert it."""
        with tempfile.TemporaryDirectory() as folder:
            request = Path(folder) / "request.pt"
            content = {
                "model": metadata.model,
                "weights": graph.state_dict(),
                "resize": wish.resize,
                "batch": wish.batch or 1,
                "target": str(target.resolve()),
            }
            torch.save(content, request)
            command = [str(Path(str(self.converter)).expanduser()), "-m", "mnvision.export.litert_worker", str(request)]
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
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
        graph: The graph.
    """

    def __init__(self, graph: ExportGraph) -> None:
        super().__init__()
        self.inner = graph  # "graph" is what torch.fx calls its own

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See :meth:`ExportGraph.forward`."""
        return dict(zip(self.inner.names, self.inner(images)))


def convert(graph: ExportGraph, batch: int, target: Path) -> None:
    """Write a graph with litert-torch, which this environment has to have.

    Raises:
        UserError: The converter fails.
    """
    import litert_torch

    try:
        model = litert_torch.convert(Named(graph).eval(), sample_kwargs={INPUT: graph.example(batch)})
        model.export(str(target))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"litert-torch cannot convert this model ({one_line(error)})") from None


def has_metadata(path: Path) -> bool:
    """Whether a ``.tflite`` was written here, and is no published one."""
    return appended_text(path) is not None
