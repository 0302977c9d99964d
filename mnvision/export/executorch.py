"""ExecuTorch (.pte): torch's runtime for phones and boards, here with XNNPACK on the CPU."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.export.appended import appended_text, write_with_metadata
from mnvision.export.base import Format, Pixels, Session, Wish, check_outputs, need, one_line
from mnvision.export.graph import ExportGraph
from mnvision.export.metadata import FileMetadata
from mnvision.export.onnx import quiet_torch

if TYPE_CHECKING:
    from mnvision.export.base import Quantizer
    from mnvision.export.int8_direct import Roundings


class ExecuTorch(Format):
    """ExecuTorch; non-maximum suppression stays outside (``nms=false``).

    The batch is fixed: memory is planned ahead, and of an SSD's graph ExecuTorch 1.5 keeps the traced batch whatever
    it is told.
    """

    name = "executorch"
    suffix = ".pte"
    precisions = ("fp32", "int8")
    packages = ("executorch", "torchao")
    extra = "executorch"
    any_batch: ClassVar[bool] = False

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
        with quiet_torch():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

        module: torch.nn.Module = graph
        batch = wish.batch or 1
        if roundings is not None:
            from mnvision.export.int8_insert import insert_rounding
            from mnvision.export.int8_traced import trace

            module = insert_rounding(trace(graph, batch), roundings, stored=True)
        try:
            with quiet_torch(), torch.no_grad():
                program = torch.export.export(module, (graph.example(batch),))
                lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
                return bytes(lowered.to_executorch().buffer)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(f"ExecuTorch cannot convert this model ({one_line(error)})") from None

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
        self.path = path
        self.metadata = FileMetadata.from_text(appended_text(path), path)
        if not _begins_as_program(path):
            raise UserError(f"{path}: not a usable ExecuTorch file (damaged at its beginning)")
        try:
            with quiet_torch(), _without_remarks():
                from executorch.runtime import Runtime

                _set_threads(torch.get_num_threads())
                self._program = Runtime.get().load_program(str(path))
                self._method: Any = self._program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: not a usable ExecuTorch file ({one_line(error)})") from None
        _OPEN.add(self)
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


def _begins_as_program(path: Path) -> bool:
    """Whether the identifier is there, such as ``ET12``; ExecuTorch 1.5 ends the process where it is no text."""
    with path.open("rb") as file:
        return re.fullmatch(rb"ET\d\d", file.read(8)[4:]) is not None


_OPEN: WeakSet[ExecuTorchSession] = WeakSet()
"""Opened files: ExecuTorch has one pool of threads for all of them, which may not be replaced under them."""


def _set_threads(count: int) -> None:
    """Have ExecuTorch use as many threads as torch does; files that are open already keep what they have."""
    from executorch.extension.pybindings import portable_lib

    if not _OPEN and portable_lib._threadpool_get_thread_count() != count:
        portable_lib._unsafe_reset_threadpool(count)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Without what ExecuTorch's own code prints to stderr about the processor; what fails is raised all the same."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
