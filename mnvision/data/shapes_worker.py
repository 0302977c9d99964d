"""Writes a share of the shapes data set's pictures; also the program of one generating process.

The generating processes are plain ``python -m mnvision.data.shapes_worker`` programs rather than forked or
spawned copies of the caller: nothing of the caller (threads, GPU state, an unguarded main script)
reaches them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from mnvision.data.shapes_draw import class_scene, detection_scene
from mnvision.data.shapes_places import write_place
from mnvision.data.shapes_portraits import attributes_of, identity_of, landmarks_of, portrait_scene
from mnvision.data.shapes_render import Instance, Rendered, render_scene
from mnvision.data.shapes_scene import CATEGORY_IDS, SHAPES, SceneOptions

VAL_IDS_FROM = 10_000_000  # image ids of the two splits never meet
CANNOT_WRITE = 3  # exit code
PORTRAITS = "portraits"
PORTRAIT_FOLDER = "img_align_celeba"
PLACES = "places"


@dataclass(frozen=True)
class Job:
    """What to generate; equal jobs give equal bytes.

    Attributes:
        view: "detection", "classes", "portraits" or "places".
        num_train: Pictures of the training split.
        num_val: Pictures of the validation split; the portraits' test split has as many.
        seed: Not negative.
        options: See :class:`SceneOptions`.
    """

    view: str
    num_train: int
    num_val: int
    seed: int
    options: SceneOptions

    def pictures(self) -> list[tuple[str, int]]:
        """Return split and index of every picture, training first."""
        counts = {"train": self.num_train, "val": self.num_val, "test": self.num_val if self.view == PORTRAITS else 0}
        return [(split, index) for split, count in counts.items() for index in range(count)]


def write_share(job: Job, folder: Path, share: int, shares: int) -> Iterator[dict[str, Any]]:
    """Write every ``shares``-th picture into ``folder``, yielding one COCO record after each.

    A record holds ``split``, ``image`` (the COCO image entry) and ``annotations`` (without ids); that of a portrait
    also ``identity``, ``attributes`` (bools) and ``landmarks`` (x and y of five points). Of a place it is what
    :func:`~mnvision.data.shapes_places.write_place` gives.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    for split, index in job.pictures()[share::shares]:
        if job.view == PLACES:
            yield write_place(job.seed, folder, split, index, job.options)
        else:
            yield _write_picture(job, folder, split, index)


def _write_picture(job: Job, folder: Path, split: str, index: int) -> dict[str, Any]:
    draw = {"detection": detection_scene, "classes": class_scene, PORTRAITS: portrait_scene}[job.view]
    scene = draw(job.seed, split, index, job.options)
    rendered = render_scene(scene)
    if job.view == PORTRAITS:
        image_id = index + 1 + {"train": 0, "val": job.num_train, "test": job.num_train + job.num_val}[split]
        name, under = f"{image_id:06d}.jpg", PORTRAIT_FOLDER
    else:
        image_id = index + 1 + (VAL_IDS_FROM if split == "val" else 0)
        name = f"{image_id:012d}.jpg"
        under = f"{split}2017" if job.view == "detection" else f"{split}/{scene.objects[0].shape}"
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(rendered.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, scene.quality]
    )
    (folder / under / name).write_bytes(data.tobytes())
    image = {"id": image_id, "file_name": name, "width": scene.width, "height": scene.height}
    record: dict[str, Any] = {"split": split, "image": image, "annotations": _annotations(rendered, image_id)}
    if job.view == PORTRAITS:
        record["identity"] = identity_of(split, index)
        record["attributes"] = attributes_of(scene, rendered)
        record["landmarks"] = landmarks_of(scene).tolist()
    return record


def _annotations(rendered: Rendered, image_id: int) -> list[dict[str, Any]]:
    return [{"image_id": image_id, **_annotation(instance)} for instance in rendered.instances]


def _annotation(instance: Instance) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
    x0, y0, x1, y1 = instance.box
    return {
        "category_id": CATEGORY_IDS[SHAPES.index(instance.shape)],
        "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        "area": float(instance.area),
        "iscrowd": int(instance.crowd),
        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
    }


def job_to_json(job: Job) -> str:
    """Return a job as text with a fixed order, fit for hashing."""
    return json.dumps(asdict(job), sort_keys=True)


def job_from_json(text: str) -> Job:
    """Undo :func:`job_to_json`."""
    fields = json.loads(text)
    return Job(**{**fields, "options": SceneOptions(**fields["options"])})


def main() -> int:
    """Write a share; arguments: job, folder, share, shares. Records go to ``share-<n>.json`` in folder."""
    job, folder, share, shares = (
        job_from_json(sys.argv[1]),
        Path(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
    )
    cv2.setNumThreads(1)
    parent, records = os.getppid(), []
    try:
        for record in write_share(job, folder, share, shares):
            if os.getppid() != parent:
                return 1  # whoever wanted the pictures is gone
            records.append(record)
        (folder / f"share-{share}.json").write_text(json.dumps(records), encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return CANNOT_WRITE
    return 0


if __name__ == "__main__":
    sys.exit(main())
