"""ExecuTorch (.pte): torch's runtime for phones and boards, here with XNNPACK on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.export.appended import append_text, appended_text
from mnvision.export.base import Format, Pixels, Session, Wish, check_outputs, need, one_line
from mnvision.export.graph import ExportGraph
from mnvision.export.metadata import FileMetadata
from mnvision.export.onnx import quiet_torch


class ExecuTorch(Format):
    """ExecuTorch; non-maximum suppression stays outside (``nms=false``).

    The batch is fixed: memory is planned ahead, and of an SSD's graph ExecuTorch 1.5 keeps the traced batch whatever
    it is told.
    """

    name = "executorch"
    suffix = ".pte"
    packages = ("executorch", "torchao")
    extra = "executorch"
    any_batch: ClassVar[bool] = False

    def write(self, graph: ExportGraph, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Format.write`."""
        with quiet_torch():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

        try:
            with quiet_torch(), torch.no_grad():
                program = torch.export.export(graph, (graph.example(wish.batch or 1),))
                lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
                target.write_bytes(lowered.to_executorch().buffer)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(f"ExecuTorch cannot convert this model ({one_line(error)})") from None
        append_text(target, metadata.to_text())
        return [target]

    @staticmethod
    def open(path: Path) -> ExecuTorchSession:
        """See :meth:`Format.open`."""
        return ExecuTorchSession(path)


class ExecuTorchSession(Session):
    """A file in ExecuTorch on the CPU.

    Args:
        path: The file.

    Raises:
        UserError: See :meth:`Format.open`.
    """

    def __init__(self, path: Path) -> None:
        need(("executorch",), "executorch", str(path))
        with quiet_torch():
            from executorch.runtime import Runtime

        self.path = path
        self.metadata = FileMetadata.from_text(appended_text(path), path)
        try:
            self._program = Runtime.get().load_program(str(path))
            self._method: Any = self._program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: not a usable ExecuTorch file ({one_line(error)})") from None
        self._names = list(self.metadata.outputs)
        check_outputs(path, self.metadata, self._names[: self._method.metadata.num_outputs()])

    def run(self, images: Pixels) -> dict[str, NDArray[Any]]:
        """See :meth:`Session.run`."""
        try:
            found = self._method.execute((torch.from_numpy(np.ascontiguousarray(images)),))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.path}: ExecuTorch failed on {images.shape} ({one_line(error)})") from None
        # Copies: the next run writes into the same memory.
        return {name: value.numpy().copy() for name, value in zip(self._names, found)}
