"""Predict on the frames of a video."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mnvision.errors import UserError
from mnvision.files import whole_file
from mnvision.prediction.folders import Options, Summary, disk_errors, progress_bar, say
from mnvision.prediction.pictures import PictureWriter
from mnvision.prediction.predictor import Predictor
from mnvision.prediction.preprocess import Prepared
from mnvision.prediction.records import open_records

Pixels = NDArray[np.uint8]
_USUAL_FPS = 25.0


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame.

    Attributes:
        number: From 0, in the whole video.
        pixels: ``(h, w, 3)`` uint8 RGB.
        prepared: The network's input.
    """

    number: int
    pixels: Pixels
    prepared: Prepared


class Video:
    """Reads every ``stride``-th frame of a video file, in batches.

    Args:
        path: The file.
        stride: 1 for every frame.

    Raises:
        UserError: It cannot be opened.
    """

    def __init__(self, path: Path, stride: int = 1) -> None:
        self.path, self.stride, self.frames_read = path, stride, 0
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise UserError(f"cannot open the video {path}: missing, damaged, or of an unknown format")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else _USUAL_FPS
        self.frames_announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def batches(self, predictor: Predictor[Any], size: int) -> Iterator[list[Frame]]:
        """Frames in order; the next batch is decoded while the caller works on this one."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._batch, predictor, size)
            while batch := coming.result():
                coming = pool.submit(self._batch, predictor, size)
                yield batch

    def close(self) -> None:
        """Let go of the file."""
        self._capture.release()

    def _batch(self, predictor: Predictor[Any], size: int) -> list[Frame]:
        frames: list[Frame] = []
        while len(frames) < size and self._capture.grab():
            self.frames_read += 1
            if (self.frames_read - 1) % self.stride:
                continue
            decoded, bgr = self._capture.retrieve()
            if not decoded:
                break
            pixels = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            frames.append(Frame(self.frames_read - 1, pixels, predictor.preprocess(pixels)))
        return frames


class VideoSink:
    """Writes frames to an MP4 file that appears, whole, when the ``with`` block of ``stack`` ends.

    Args:
        path: The file.
        fps: Frames per second.
        stack: Holds the file open.
    """

    def __init__(self, path: Path, fps: float, stack: ExitStack) -> None:
        self.path, self.fps, self.frames = path, fps, 0
        self._partial = stack.enter_context(whole_file(path))
        stack.callback(self._release)
        self._writer: Any = None

    def write(self, pixels: Pixels) -> None:
        """Append a frame ``(h, w, 3)`` uint8 RGB; all have the size of the first.

        Raises:
            UserError: This OpenCV cannot write such a video.
        """
        if self._writer is None:
            height, width = pixels.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._partial), codec, self.fps, (width, height))
            if not self._writer.isOpened():
                raise UserError(f"cannot write the video {self.path}; save_images=false leaves it out")
        self._writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def finish(self) -> None:
        """Close the file and count its frames: OpenCV says nothing of a full disk.

        Raises:
            UserError: Frames are missing.
        """
        self._release()
        with closing(Video(self._partial)) as written:
            if written.frames_announced < self.frames:
                raise UserError(
                    f"the video {self.path} could not be written whole ({written.frames_announced} of "
                    f"{self.frames} frames); is the disk full?"
                )

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()


def predict_video(predictor: Predictor[Any], source: str | Path, options: Options, console: Console) -> Summary:
    """Predict on a video: an annotated copy ``<name>.mp4``, records with frame and time, crops.

    Args:
        predictor: From :func:`mnvision.load`.
        source: The file.
        options: What is written.
        console: Gets the progress bar.

    Raises:
        UserError: The video cannot be opened or has no frame, the copy would replace it, a result cannot be
            written, or wrong options.
    """
    options.check(predictor)
    if predictor.note:
        say(console, predictor.note)
    shown = options.shown
    path = Path(source).expanduser()
    target = options.output / f"{path.stem}.mp4"
    if options.save_images and target.resolve() == path.resolve():
        raise UserError(f"output={options.output}: the annotated copy would replace {path}; choose another folder")
    summary, start = Summary(), time.perf_counter()
    with closing(Video(path, options.stride)) as video:
        # ExitStack last: the copy is complete before the records that go with it appear.
        with (
            open_records(options.file_format, options.output, predictor, shown, extra=("frame", "time_s")) as records,
            disk_errors(options.output),
            ExitStack() as stack,
        ):
            sink = VideoSink(target, video.fps / options.stride, stack) if options.save_images else None
            progress = stack.enter_context(progress_bar(console))
            bar = progress.add_task("", total=-(-video.frames_announced // options.stride) or None)
            writer = PictureWriter(options.output, images=False, crops=options.crops)
            for frames in video.batches(predictor, options.batch_size):
                results = predictor.predict_prepared([f.prepared for f in frames], options.score_threshold)
                for frame, result in zip(frames, results):
                    extra = {"frame": frame.number, "time_s": round(frame.number / video.fps, 4)}
                    records.add(summary.done, path.name, result, extra)
                    summary.count(result)
                    writer.save(frame.pixels, result, f"{path.stem}_{frame.number:06d}.jpg")
                    if sink is not None:
                        sink.write(result.draw(frame.pixels, shown))
                progress.advance(bar, len(frames))
            if not summary.done:
                raise UserError(f"{path}: the video has no frame that can be decoded")
            if sink is not None:
                sink.finish()
        if video.frames_read < video.frames_announced:
            say(
                console,
                f"{path} ended after {video.frames_read} of {video.frames_announced} frames: damaged?",
            )
    summary.seconds = time.perf_counter() - start
    summary.written = [*records.names, *([target.name] if sink is not None else []), *writer.written]
    return summary
