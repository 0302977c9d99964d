"""Contestants of the duel of exported files: one picture in, answers out, each call timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.latency.machine import pin
from mnvision.runtime import tune_threads

Round = Callable[[], list[float]]


def timed_calls(call: Callable[[], Any], seconds: float) -> Round:
    """A round of calls for some seconds: the milliseconds of each, without the first, which finds cold caches."""

    def run() -> list[float]:
        call()
        times: list[float] = []
        start = time.perf_counter()
        while not times or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            call()
            times.append((time.perf_counter() - before) * 1000)
        return times

    return run


def torch_on(threads: int) -> Any:
    """``torch`` with as many threads on as many cores, waiting as in our tools; for a process that lacks it yet."""
    tune_threads()
    pin(threads)
    import torch

    torch.set_num_threads(threads)
    return torch


def noise(side: int) -> NDArray[np.uint8]:
    """A picture ``(side, side, 3)`` uint8."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def timm_eager(threads: int, seconds: float, side: int, channels_last: bool) -> Round:
    """Timm's ``mobilenetv1_100`` in eager mode; its input is normalised already, and it gives logits."""
    torch = torch_on(threads)
    import timm

    model = timm.create_model("mobilenetv1_100", num_classes=1000).eval()
    images = torch.from_numpy(noise(side)).permute(2, 0, 1)[None].float().div_(127.5).sub_(1).contiguous()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    def call() -> Any:
        with torch.inference_mode():
            return model(images)

    return timed_calls(call, seconds)


def our_eager(threads: int, seconds: float, side: int, config: dict[str, Any]) -> Round:
    """Our model of a config in eager mode, pixels to finished answers."""
    torch_on(threads)
    from mnvision.latency.subjects import MODEL, Candidate, Subject

    return timed_calls(Subject(Candidate("ours", config=config), "cpu", noise(side)).call(MODEL, 1), seconds)


def onnx_file(threads: int, seconds: float, path: str) -> Round:
    """Any ONNX file of one input in onnxruntime."""
    import onnxruntime

    pin(threads)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    kind = np.uint8 if entry.type == "tensor(uint8)" else np.float32
    feed = {entry.name: _pixels([size if isinstance(size, int) else 1 for size in entry.shape], kind)}
    return timed_calls(lambda: session.run(None, feed), seconds)


def openvino_file(threads: int, seconds: float, path: str) -> Round:
    """Any OpenVINO file of one input, computed in float32 where it is not int8."""
    import openvino

    pin(threads)
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    model = core.compile_model(core.read_model(path), "CPU", options)
    (entry,) = model.inputs
    shape = [size.get_length() if size.is_static else 1 for size in entry.partial_shape]
    images = _pixels(shape, np.uint8 if entry.element_type.get_type_name() == "u8" else np.float32)
    return timed_calls(lambda: model(images), seconds)


def whole(threads: int, seconds: float, path: str, side: int) -> Round:
    """Our predictor of a file: a picture in memory to results."""
    torch_on(threads)
    import mnvision

    predictor, picture = mnvision.load(Path(path)), noise(side)
    return timed_calls(lambda: predictor.predict(picture), seconds)


def _pixels(shape: list[int], kind: Any) -> NDArray[Any]:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return values if kind is np.uint8 else values.astype(np.float32) / 255
