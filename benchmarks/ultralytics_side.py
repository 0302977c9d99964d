"""Ultralytics' side of the duel of exported files; it runs in an environment of its own (``make env-ultralytics``).

``python -m benchmarks.ultralytics_side FOLDER CLASSIFIER_SIDE DETECTOR_SIDE`` writes the files, their weights random.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLASSIFIERS = ("yolov8n-cls", "yolo11n-cls")
DETECTOR = "yolo11n"


def main() -> None:
    """Export the models by Ultralytics' own command; standard output's last line names versions as JSON."""
    folder, sides = Path(sys.argv[1]), [int(word) for word in sys.argv[2:4]]
    ultralytics = _ultralytics(folder)
    import onnxruntime
    import torch

    os.chdir(folder)  # it exports into the current folder
    for name in (*CLASSIFIERS, DETECTOR):
        torch.manual_seed(0)
        ultralytics.YOLO(f"{name}.yaml").export(format="onnx", imgsz=sides[name == DETECTOR])
    versions = {"ultralytics": ultralytics.__version__, "onnxruntime": onnxruntime.__version__}
    print(json.dumps(versions | {"torch": torch.__version__}))


def whole(threads: int, seconds: float, path: str, side: int) -> Callable[[], list[float]]:
    """Their predictor of a file: a picture in memory to results, with their own resizing and post-processing."""
    from benchmarks.exported_sides import noise, timed_calls, torch_on

    torch_on(threads)
    ultralytics = _ultralytics(Path(path).parent)
    model, picture = ultralytics.YOLO(path, task="detect"), noise(side)
    return timed_calls(lambda: model.predict(picture, imgsz=side, verbose=False, device="cpu"), seconds)


def _ultralytics(folder: Path) -> Any:
    os.environ |= {"YOLO_CONFIG_DIR": str(folder.resolve()), "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    return importlib.import_module("ultralytics")


if __name__ == "__main__":
    main()
