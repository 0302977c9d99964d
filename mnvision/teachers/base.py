"""What every teacher is: frozen, always in evaluation, from uint8 pictures to named float32 outputs."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mnvision.errors import UserError
from mnvision.teachers.spec import TeacherSpec

Outputs = dict[str, Tensor]
Resolution = int | tuple[int, int] | list[int]
"""Side, or height and width, of a teacher's input in pixels."""


class Teacher(nn.Module, ABC):
    """A network (or a file of its outputs) that a student learns from.

    Its weights have no gradients, its batch statistics never change and evaluation mode cannot be left: ``train()``
    keeps it. Every teacher normalises inside, in its own way, so all take the same pictures.

    Attributes:
        spec: Set when the constructor ends.
        options: What decides the outputs beside the weights, as plain data.
    """

    spec: TeacherSpec
    options: dict[str, Any]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    def forward(self, images: Tensor) -> Outputs:
        """Outputs of one batch, in float32 whatever autocast is on, and without gradients.

        Args:
            images: ``(B, 3, h, w)`` uint8 RGB at ``spec.resolution``, on the device of the teacher.

        Returns:
            Name -> ``(B, ...)`` float32, see :class:`TeacherSpec`.

        Raises:
            UserError: Pictures of another type or size.
        """
        wanted = (3, *self.spec.resolution)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise UserError(
                f"{self.spec.name} takes uint8 pictures (B, {', '.join(map(str, wanted))}), not {images.dtype} "
                f"{tuple(images.shape)}"
            )
        self.train(False)  # someone may have called train() of a part
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return {name: output.float() for name, output in self.answer(images).items()}

    @abstractmethod
    def answer(self, images: Tensor) -> Outputs:
        """What :meth:`forward` gives, without its checks."""

    def fingerprint(self) -> str:
        """Hex digest of all that decides the outputs: class, options, and the bytes of all weights."""
        return digest({"class": type(self).__name__, **self.options}, self.state_dict())

    def _settle(self, name: str, kind: str, resolution: tuple[int, int], **known: Any) -> None:
        """Freeze the network and set the spec, the outputs' shapes and the cost found by running it once.

        Args:
            name: For messages.
            kind: See :class:`TeacherSpec`.
            resolution: Height and width of the input.
            **known: Further fields of the spec.

        Raises:
            UserError: It cannot run at that resolution.
        """
        self.requires_grad_(False).eval()
        parameters = sum(parameter.numel() for parameter in self.parameters())
        counter = FlopCounterMode(display=False)
        try:
            with torch.no_grad(), counter:
                outputs = self.answer(torch.zeros(1, 3, *resolution, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:
            height, width = resolution
            raise UserError(f"{name} cannot run at {height} x {width} px ({one_line(error)})") from error
        self.spec = TeacherSpec(
            name=name,
            kind=kind,
            resolution=resolution,
            outputs={key: tuple(output.shape[1:]) for key, output in outputs.items()},
            parameters=parameters,
            multiply_adds=counter.get_total_flops() // 2,
            **known,
        )


class PixelInput(nn.Module):
    """From uint8 RGB pictures to the numbers that a network was trained on: ``(pixel - mean) / std``.

    Args:
        mean: Per channel in the network's order, in pixel units 0-255; one number for all.
        std: Likewise, above 0.
        bgr: The network's channels are blue, green, red.

    Raises:
        UserError: Not one or three numbers, or a std that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float], bgr: bool = False) -> None:
        super().__init__()
        self.bgr = bgr
        for name, value in (("mean", mean), ("std", std)):
            numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * 3
            plain = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
            if len(numbers) != 3 or not plain or (name == "std" and min(numbers) <= 0):
                raise UserError(
                    f"teacher.{name}={value!r}: give one number or three, in pixel units 0-255, std above 0"
                )
            column = torch.tensor([float(number) for number in numbers]).reshape(1, 3, 1, 1)
            self.register_buffer(name, column, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, h, w)`` float32 from uint8 RGB."""
        return ((images.flip(1) if self.bgr else images).float() - self.mean) / self.std


def digest(options: Mapping[str, Any], state: Mapping[str, Tensor] | None = None, files: Sequence[Path] = ()) -> str:
    """SHA-256, in hex, of plain options, named tensors and the contents of files.

    Raises:
        UserError: A file cannot be read.
    """
    sha = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for name, tensor in sorted((state or {}).items()):
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    for path in files:
        try:
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return sha.hexdigest()


def one_line(error: BaseException) -> str:
    """The first line of an error, or its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
