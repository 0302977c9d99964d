"""What all export formats share: what a format can do, what the user wishes, and how an exported file is run."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.export.graph import ExportGraph, Layout
from mnvision.export.metadata import FileMetadata
from mnvision.export.suppression import KeepRule

if TYPE_CHECKING:
    from mnvision.export.layer_noise import LayerNoise

Pixels = NDArray[np.uint8]
PRECISIONS = ("fp32", "fp16")
"""Whose answers are the checkpoint's but for rounding."""
INT8 = "int8"
"""Decisions are the checkpoint's; needs pictures, and is not for every format."""


@dataclass(frozen=True)
class Wish:
    """What the user asks of a file.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        batch: Images that go in at once; None is any number.
        nms: Non-maximum suppression inside a detector's file.
        resize: Pictures are stretched inside: True takes those of any size, (height, width) of that one.
    """

    precision: str = "fp32"
    batch: int | None = None
    nms: bool = True
    resize: bool | tuple[int, int] = False

    @property
    def any_size(self) -> bool:
        """Whether pictures of any size go in."""
        return self.resize is True

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the pictures that go in; None is the network's, or any."""
        return self.resize if isinstance(self.resize, tuple) else None


class Session(ABC):
    """An exported file, opened in its own runtime.

    Attributes:
        path: The file.
        metadata: What it says of itself.
    """

    path: Path
    metadata: FileMetadata

    @abstractmethod
    def run(self, images: Pixels) -> dict[str, NDArray[Any]]:
        """The outputs by name for pixels in the file's own layout and batch."""


class Quantizer(ABC):
    """A graph on its way to an int8 file: it can be written again and again, with other layers in float.

    Attributes:
        layers: Titles of all layers with weights in the network's order, such as
            ``backbone.blocks.0.depthwise.conv``.
    """

    layers: Sequence[str]

    @abstractmethod
    def write(self, images: Pixels, kept: Collection[str], metadata: FileMetadata, target: Path) -> list[Path]:
        """Quantise and write.

        Args:
            images: Pictures to calibrate on, ``(N, 3, H, W)`` uint8, whatever layout the file takes.
            kept: Titles of layers that stay in float.
            metadata: Goes into the file.
            target: The file, in a folder that exists.

        Returns:
            The files written, ``target`` last.

        Raises:
            UserError: The converter cannot do it.
        """

    @abstractmethod
    def rewrite(self, metadata: FileMetadata, target: Path) -> list[Path]:
        """Write what :meth:`write` made last once more, with other metadata."""

    @abstractmethod
    def write_float(self, metadata: FileMetadata, target: Path) -> list[Path]:
        """Write the same graph in float32: what int8 is compared with."""

    @abstractmethod
    def noise(self, images: Pixels) -> list[LayerNoise]:
        """Of every layer of what :meth:`write` made last, on pictures ``(N, 3, H, W)`` uint8."""


class Format(ABC):
    """One file format.

    Attributes:
        name: As the user writes it.
        suffix: Of the file.
        layout: Of the pixels that go in.
        precisions: What it can hold.
        packages: Modules that writing it imports -> nothing else is needed.
        extra: The optional dependencies of mnvision that bring them.
        any_batch: Whether the number of images can be left open.
        any_size: Whether the size of the pictures can be left open.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    layout: ClassVar[Layout] = "nchw"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    any_batch: ClassVar[bool] = True
    any_size: ClassVar[bool] = False

    @property
    def keep(self) -> KeepRule | None:
        """How candidates are chosen inside the file; None where the format cannot hold it."""
        return None

    @property
    def half_graph(self) -> bool:
        """Whether fp16 is asked of the graph, and not of the file written from a float32 one."""
        return False

    def require(self) -> None:
        """Refuse before work begins what cannot be written here.

        Raises:
            UserError: A package is missing, or an option is out of range.
        """
        need(self.packages, self.extra, f"format={self.name}")

    def require_int8(self, trained: bool = False) -> None:
        """Refuse before work begins where a package that int8 needs is missing.

        Args:
            trained: The checkpoint brings the ranges of its training: nothing is calibrated where the format has a
                :meth:`trained_quantizer`.

        Raises:
            UserError: With the command that installs it.
        """
        self.require()

    def quantizer(self, graph: ExportGraph, wish: Wish) -> Quantizer:
        """How int8 files of a graph are made; every format with "int8" among its precisions has it.

        Args:
            graph: What goes in, in eval mode.
            wish: What the user asks for.

        Raises:
            UserError: The format cannot, or the converter fails.
        """
        raise UserError(f"format={self.name} holds {' or '.join(self.precisions)}, not precision=int8")

    def trained_quantizer(self, graph: ExportGraph, wish: Wish, stored: Mapping[str, Any]) -> Quantizer | None:
        """How a checkpoint that was fine-tuned for int8 becomes a file with the very ranges of its training.

        Args:
            graph: What goes in, in eval mode.
            wish: What the user asks for.
            stored: ``quantization`` of the checkpoint's metadata.

        Returns:
            None where the format calibrates such a checkpoint like any other.
        """
        return None

    @abstractmethod
    def write(self, graph: ExportGraph, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """Write the file.

        Args:
            graph: What goes in, in eval mode.
            wish: What the user asks for.
            metadata: Goes into the file.
            target: The file, in a folder that exists.

        Returns:
            The files written, ``target`` last.

        Raises:
            UserError: The converter cannot do it.
        """

    @staticmethod
    @abstractmethod
    def open(path: Path) -> Session:
        """The file in its own runtime.

        Raises:
            UserError: The runtime is missing, or the file is damaged, stripped or altered.
        """


def need(packages: tuple[str, ...], extra: str, what: str) -> None:
    """Refuse where a package is missing.

    Raises:
        UserError: With the command that installs it.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install 'mnvision[{extra}]'")


def one_line(error: BaseException) -> str:
    """The first line of another library's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def check_outputs(path: Path, metadata: FileMetadata, names: Mapping[str, Any] | list[str]) -> None:
    """Refuse a file that does not give what its metadata say.

    Raises:
        UserError: Outputs are missing.
    """
    missing = [name for name in metadata.outputs if name not in names]
    if missing:
        raise UserError(f"{path}: has no output {' or '.join(missing)}, which its metadata name: export it again")
