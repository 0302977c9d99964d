"""Generates the shapes data set once and caches it; a cached folder is whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnvision.data.shapes_celeba import write_celeba_files
from mnvision.data.shapes_places import write_tables
from mnvision.data.shapes_scene import CATEGORY_IDS, SHAPES, SceneOptions
from mnvision.data.shapes_worker import CANNOT_WRITE, PLACES, PORTRAIT_FOLDER, PORTRAITS, Job, job_to_json, write_share
from mnvision.errors import UserError
from mnvision.runtime import usable_cores

VERSION = 1  # raise it whenever the pictures or the annotations change
MANIFEST = "shapes.json"
STALE_SECONDS = 3600

logger = logging.getLogger(__name__)


def shapes_job(num_train: int = 2000, num_val: int = 400, seed: int = 0, options: SceneOptions | None = None) -> Job:
    """Return the checked description of a detection set.

    Raises:
        UserError: A split is empty or the seed is negative.
    """
    return _checked(Job("detection", num_train, num_val, seed, options or SceneOptions()))


def shapes_classes_job(
    num_train: int = 2400, num_val: int = 480, seed: int = 0, options: SceneOptions | None = None
) -> Job:
    """Return the checked description of a classification set; pictures have sides of 128 to 256 by default.

    Raises:
        UserError: A split is empty or the seed is negative.
    """
    return _checked(Job("classes", num_train, num_val, seed, options or SceneOptions(min_side=128, max_side=256)))


def shapes_portraits_job(
    num_train: int = 1809, num_val: int = 351, seed: int = 0, options: SceneOptions | None = None
) -> Job:
    """Return the checked description of a set of portraits; pictures have sides of 96 to 128 by default.

    Raises:
        UserError: A split is empty or the seed is negative.
    """
    return _checked(Job(PORTRAITS, num_train, num_val, seed, options or SceneOptions(min_side=96, max_side=128)))


def shapes_places_job(
    num_train: int = 1500, num_val: int = 300, seed: int = 0, options: SceneOptions | None = None
) -> Job:
    """Return the checked description of a set of places; pictures have sides of 96 to 144 by default.

    Raises:
        UserError: A split is empty or the seed is negative.
    """
    return _checked(Job(PLACES, num_train, num_val, seed, options or SceneOptions(min_side=96, max_side=144)))


def shapes_folder(root: str | Path, job: Job) -> Path:
    """Return where a job's data set lies in the cache ``root``; its name holds version and parameters."""
    digest = hashlib.sha256(job_to_json(job).encode()).hexdigest()[:10]
    return Path(root) / f"{job.view}-v{VERSION}-{digest}"


class GeneratedSet:
    """What makes a data module one of generated pictures; it stands before the module that reads them.

    Attributes:
        job: What is generated.
        cache: Folder that the data set becomes a folder in.
    """

    job: Job
    cache: Path

    def place(self, root: str | Path, job: Job) -> Path:
        """The data set's folder, once it is known what is to be generated where."""
        self.job, self.cache = job, Path(root).expanduser()
        return shapes_folder(self.cache, job)

    def prepare_data(self) -> None:
        """Generates the pictures unless they are cached; Lightning calls it in one process of a node.

        Raises:
            UserError: The cache cannot be written.
        """
        generate(self.cache, self.job)


def generate(root: str | Path, job: Job, processes: int | None = None) -> Path:
    """Return the folder of a job's data set, generating it unless it is there.

    The pictures depend on the job alone, not on ``processes``. They are written into a temporary folder
    beside the final one, which is renamed when whole; of two generators at once the slower discards its copy.

    Args:
        root: Cache folder, made if absent.
        job: What to generate.
        processes: Generating processes; None takes one for each usable core, 1 stays in this process.

    Raises:
        UserError: The cache cannot be written, or a folder of that name is not a whole data set.
    """
    folder = shapes_folder(root, job)
    if _is_whole(folder):
        return folder
    count = processes if processes is not None else len(usable_cores())
    if count < 1:
        raise UserError(f"shapes: processes must be at least 1, got {count}")
    total = len(job.pictures())
    logger.info("generating %d shapes pictures into %s, once", total, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder.parent)
        with _temporary_folder(folder) as temporary:
            _fill(temporary, job, min(count, total))
            _publish(temporary, folder)
    except OSError as error:
        raise UserError(
            f"shapes: cannot write the data set to {folder} ({error}); free space or choose another folder"
        ) from error
    return folder


def _checked(job: Job) -> Job:
    for name in ("num_train", "num_val"):
        if getattr(job, name) < 1:
            raise UserError(f"shapes: {name} must be at least 1, got {getattr(job, name)}")
    if job.seed < 0:
        raise UserError(f"shapes: the seed must not be negative, got {job.seed}")
    return job


def _is_whole(folder: Path) -> bool:
    if (folder / MANIFEST).is_file():
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"shapes: {folder} lacks {MANIFEST}, so it is not a whole data set; delete that folder")
    return False


def _remove_stale(root: Path) -> None:
    """Remove what killed generators left behind long ago."""
    for path in root.glob(".*.part-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Give a whole folder its name; another generator's whole folder of that name is as good."""
    temporary.chmod(0o755)  # temporary folders are private
    try:
        temporary.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


def _fill(folder: Path, job: Job, processes: int) -> None:
    """Write pictures, annotations and, last, the manifest."""
    names = {
        "detection": ["train2017", "val2017", "annotations"],
        "classes": [f"{split}/{shape}" for split in ("train", "val") for shape in SHAPES],
        PORTRAITS: [PORTRAIT_FOLDER, "annotations"],
        PLACES: ["train", "val"],
    }[job.view]
    for name in names:
        (folder / name).mkdir(parents=True)
    records = list(write_share(job, folder, 0, 1)) if processes == 1 else _in_parallel(folder, job, processes)
    if job.view in ("detection", PORTRAITS):
        for split in ("train", "val"):
            path = folder / "annotations" / f"instances_{split}2017.json"
            path.write_text(json.dumps(_coco(records, split, job)), encoding="utf-8")
    if job.view == PORTRAITS:
        write_celeba_files(folder, records)
    if job.view == PLACES:
        write_tables(folder, records)
    (folder / MANIFEST).write_text(f'{{"version": {VERSION}, "job": {job_to_json(job)}}}\n', encoding="utf-8")


def _in_parallel(folder: Path, job: Job, processes: int) -> list[dict[str, Any]]:
    """Let several programs write their shares; return all records in the order of one process."""
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    command = [sys.executable, "-m", "mnvision.data.shapes_worker", job_to_json(job), str(folder.resolve())]
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(_program([*command, str(share), str(processes)], environment))
            for share in range(processes)
        ]
        for worker in workers:
            _, message = worker.communicate()
            if worker.returncode == CANNOT_WRITE:
                raise OSError(message.strip())
            if worker.returncode != 0:
                raise RuntimeError(f"a shapes process ended with code {worker.returncode}: {message.strip()}")
    shares = []
    for share in range(processes):
        path = folder / f"share-{share}.json"
        shares.append(json.loads(path.read_text(encoding="utf-8")))
        path.unlink()
    return [shares[number % processes][number // processes] for number in range(len(job.pictures()))]


@contextlib.contextmanager
def _program(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program that does not outlive the block."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def _coco(records: list[dict[str, Any]], split: str, job: Job) -> dict[str, Any]:
    """Return the content of one annotation file; annotation ids count from 1 (0 confuses pycocotools)."""
    own = [record for record in records if record["split"] == split]
    annotations = [annotation for record in own for annotation in record["annotations"]]
    return {
        "info": {"description": f"mnvision shapes, {split}", "version": str(VERSION), "seed": job.seed},
        "licenses": [],
        "images": [record["image"] for record in own],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, start=1)],
        "categories": [
            {"id": category, "name": name, "supercategory": "shape"} for category, name in zip(CATEGORY_IDS, SHAPES)
        ],
    }
