"""The portraits view of the generated data: facts of its scenes, and its files in CelebA's layout."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mnvision.data.celeba import CelebaDataModule
from mnvision.data.celeba_files import PARTITIONS, read_attributes, read_identities, read_landmarks, read_partition
from mnvision.data.shapes import ShapesAttributesDataModule, write_shapes_portraits
from mnvision.data.shapes_portraits import (
    ATTRIBUTES,
    LANDMARKS,
    attributes_of,
    design_of,
    identity_of,
    landmarks_of,
    portrait_scene,
)
from mnvision.data.shapes_render import Rendered, object_contours, render_scene
from mnvision.data.shapes_scene import Scene, SceneOptions
from mnvision.errors import UserError

OPTIONS = SceneOptions(min_side=96, max_side=128)
SPLITS = ("train", "val", "test")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_portraits(tmp_path_factory.mktemp("shapes"), 54, 27, seed=1, processes=1)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [portrait_scene(0, "train", index, OPTIONS) for index in range(0, 2800, 7)]


def facts(scene: Scene) -> dict[str, bool]:
    return dict(zip(ATTRIBUTES, attributes_of(scene, render_scene(scene))))


# Identities


def test_identities_have_eight_to_ten_pictures_and_one_split():
    owners = {split: [identity_of(split, index) for index in range(270)] for split in SPLITS}
    for identities in owners.values():
        assert set(Counter(identities).values()) == {8, 9, 10}
        assert len(set(identities)) == 30
    every = set(owners["train"]) | set(owners["val"]) | set(owners["test"])
    assert every == set(range(1, 91))


def test_an_identity_keeps_its_design_and_nothing_else():
    scenes = [portrait_scene(0, "val", index, OPTIONS) for index in range(8)]
    items = [scene.objects[0] for scene in scenes]
    assert (
        len({(item.shape, item.stretch, item.paint.texture, item.paint.first, item.paint.second) for item in items})
        == 1
    )
    assert len({round(item.paint.period / item.size, 9) for item in items}) == 1
    assert np.ptp([item.paint.angle - item.angle for item in items]) < 1e-9
    for varied in ("center", "size", "angle"):
        assert len({getattr(item, varied) for item in items}) == 8
    assert len({scene.background for scene in scenes}) == 8
    own = [name for name in ATTRIBUTES if len({facts(scene)[name] for scene in scenes}) == 1]
    assert set(ATTRIBUTES[:7]) <= set(own)


def test_designs_differ_between_identities_and_seeds():
    designs = [design_of(seed, identity) for seed in (0, 1) for identity in range(1, 60)]
    assert len(set(designs)) == len(designs)
    assert design_of(0, 5) == design_of(0, 5)


# Attributes


def test_objects_lie_inside_and_pictures_are_square(scenes: list[Scene]):
    for scene in scenes:
        (item,) = scene.objects
        assert scene.height == scene.width
        assert 96 <= scene.width <= 128
        points = np.concatenate([*object_contours(item), landmarks_of(scene)])
        assert points.min() > -1e-9
        assert points.max() < scene.width + 1e-9


def test_rates_vary_and_one_attribute_is_rare(scenes: list[Scene]):
    nothing_drawn = Rendered(np.zeros((1, 1, 3), np.uint8), ())
    rows = np.array([attributes_of(scene, nothing_drawn) for scene in scenes])
    rates = {name: rate for name, rate in zip(ATTRIBUTES, rows.mean(axis=0)) if name != "occluded"}
    assert 0.02 < rates.pop("blurry") < 0.08
    assert all(0.1 < rate < 0.85 for rate in rates.values()), rates
    assert max(rates.values()) - min(rates.values()) > 0.5
    covered = [facts(scene)["occluded"] for scene in scenes if scene.occluders]
    assert 30 < len(covered) < 90
    assert np.mean(covered) > 0.6
    assert not any(facts(scene)["occluded"] for scene in scenes[:40] if not scene.occluders)


def test_attributes_can_be_measured_in_the_pixels(scenes: list[Scene]):
    """Each from the picture alone, without a look at the description (the object's mask apart)."""
    checked: Counter[str] = Counter()
    for scene in scenes[:120]:
        rendered = render_scene(scene)
        (instance,) = rendered.instances
        facts_of = dict(zip(ATTRIBUTES, attributes_of(scene, rendered)))
        image = rendered.image.astype(np.float64)
        whole = render_scene(replace(scene, occluders=())).instances[0]
        width, height = whole.box[2] - whole.box[0], whole.box[3] - whole.box[1]
        assert (max(width, height) > 0.66 * scene.width) == facts_of["large"]
        assert facts_of["occluded"] == (instance.area < 0.95 * whole.area)
        rim = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)])
        assert (np.median(rim @ (0.299, 0.587, 0.114)) < 105) == facts_of["dark_background"]
        contours, levels = cv2.findContours(whole.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        assert any(level[3] >= 0 for level in levels[0]) == facts_of["has_hole"]
        if scene.objects[0].shape == "disc":
            _, sides, _ = cv2.minAreaRect(max(contours, key=len))
            assert (max(sides) / min(sides) > 1.5) == facts_of["elongated"]
            checked["disc"] += 1
        red, _, blue = np.median(image[instance.mask], axis=0)
        if abs(red - blue) > 20:
            assert (red > blue) == facts_of["warm_colour"]
            checked["warm"] += 1
        for name in ("large", "occluded", "has_hole", "dark_background"):
            checked[name] += facts_of[name]
    assert min(checked.values()) >= 3, checked


def test_blur_takes_the_fine_detail_away(scenes: list[Scene]):
    def detail(scene: Scene) -> float:
        grey = cv2.cvtColor(render_scene(replace(scene, noise=0.0)).image, cv2.COLOR_RGB2GRAY)
        return float(np.abs(cv2.Laplacian(grey, cv2.CV_64F)).max())

    blurry = [scene for scene in scenes if scene.blur > 1][:8]
    sharp = [scene for scene in scenes if scene.blur <= 1][:40]
    assert len(blurry) == 8
    assert max(detail(scene) for scene in blurry) < min(detail(scene) for scene in sharp)


# Landmarks


def test_landmarks_turn_and_move_with_the_object(scenes: list[Scene]):
    for scene in scenes[:50]:
        item, points = scene.objects[0], landmarks_of(scene)
        assert np.allclose(points[2], item.center)  # the nose
        eyes = points[1] - points[0]
        assert math.atan2(eyes[1], eyes[0]) == pytest.approx(item.angle)
        scale = np.linalg.norm(eyes) / np.linalg.norm(LANDMARKS[1] - LANDMARKS[0])
        upright = (
            (points - points[2])
            / scale
            @ np.array([[math.cos(item.angle), -math.sin(item.angle)], [math.sin(item.angle), math.cos(item.angle)]])
        )
        assert np.allclose(upright, LANDMARKS)


def test_a_turn_seen_in_the_pixels_is_that_of_the_landmarks():
    scene = next(
        scene
        for scene in (portrait_scene(0, "train", index, OPTIONS) for index in range(1800))
        if scene.objects[0].stretch > 1.7 and scene.objects[0].shape == "disc" and abs(scene.objects[0].angle) > 0.3
    )
    mask = render_scene(replace(scene, occluders=())).instances[0].mask
    ys, xs = np.nonzero(mask)
    direction = np.linalg.eigh(np.cov(xs, ys))[1][:, 1]
    points = landmarks_of(scene)
    seen, given = math.atan2(*direction[::-1]), math.atan2(*(points[1] - points[0])[::-1])
    assert math.remainder(seen - given, math.pi) == pytest.approx(0, abs=0.03)


# Files


def test_files_are_celebas(folder: Path):
    assert (folder / "list_attr_celeba.txt").read_text().splitlines()[:2] == ["108", " ".join(ATTRIBUTES) + " "]
    attributes = read_attributes(folder / "list_attr_celeba.txt")
    partition = read_partition(folder / "list_eval_partition.txt")
    identities = read_identities(folder / "identity_CelebA.txt")
    landmarks = read_landmarks(folder / "list_landmarks_align_celeba.txt")
    names = [f"{i + 1:06d}.jpg" for i in range(108)]
    for table in (attributes, partition, identities, landmarks):
        assert table.file_names == names
    assert np.bincount(partition.values).tolist() == [54, 27, 27]
    people = [set(identities.values[partition.values == number].tolist()) for number in PARTITIONS.values()]
    assert [len(group) for group in people] == [6, 3, 3]
    assert len(set.union(*people)) == 12
    for row in (0, 60, 100):
        split = SPLITS[partition.values[row]]
        scene = portrait_scene(1, split, row - {"train": 0, "val": 54, "test": 81}[split], OPTIONS)
        assert attributes.values[row].tolist() == [int(value) for value in facts(scene).values()]
        assert np.abs(landmarks.values[row] - landmarks_of(scene)).max() <= 0.5
        assert cv2.imread(str(folder / "img_align_celeba" / names[row])).shape == (scene.width, scene.width, 3)


def test_pairs_are_balanced_true_and_within_a_split(folder: Path):
    identities = read_identities(folder / "identity_CelebA.txt")
    partition = read_partition(folder / "list_eval_partition.txt")
    lines = [line.split() for line in (folder / "pairs.txt").read_text().splitlines()]
    assert len(lines) == len(set(map(tuple, lines))) == 2 * 2 * (27 - 3)
    answers = Counter()
    for first, second, same in lines:
        rows = identities.rows([first, second])
        assert len(set(partition.values[rows])) == 1
        assert partition.values[rows[0]] > 0
        assert (identities.values[rows[0]] == identities.values[rows[1]]) == (same == "1")
        answers[same] += 1
    assert answers["0"] == answers["1"]


def test_coco_annotations_are_of_the_same_pictures(folder: Path):
    for split, count in (("train", 54), ("val", 27)):
        coco = COCO(str(folder / "annotations" / f"instances_{split}2017.json"))
        assert len(coco.imgs) == len(coco.anns) == count
        assert all((folder / "img_align_celeba" / image["file_name"]).is_file() for image in coco.imgs.values())


def test_bytes_depend_on_the_seed_alone(tmp_path: Path):
    small = SceneOptions(min_side=64, max_side=72)
    runs = [write_shapes_portraits(tmp_path / str(n), 5, 2, 7, small, processes=n) for n in (1, 2)]
    assert contents(runs[0]) == contents(runs[1])
    other = write_shapes_portraits(tmp_path / "other", 5, 2, 8, small, processes=1)
    pictures = [{data for name, data in contents(run).items() if name.endswith("jpg")} for run in (runs[0], other)]
    assert len(pictures[0]) == 9
    assert not pictures[0] & pictures[1]


def test_data_module_generates_and_reads(tmp_path: Path):
    options: dict[str, Any] = {"num_train": 18, "num_val": 9, "resolution": 64, "batch_size": 9, "num_workers": 0}
    data = ShapesAttributesDataModule(tmp_path, augment=False, **options)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert data.class_names == list(ATTRIBUTES)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [18, 9, 9]
    batch = next(iter(data.val_dataloader()))
    assert batch["images"].shape == (9, 3, 64, 64)
    dark = ATTRIBUTES.index("dark_background")
    rims = batch["images"].float().mean(1)[:, :3].flatten(1).median(1).values
    assert ((rims < 105) == (batch["labels"][:, dark] == 1)).all()
    assert data.source("val").landmarks(0) is not None
    with pytest.raises(UserError, match="num_val"):
        ShapesAttributesDataModule(tmp_path, num_val=0)


def test_alignment_brings_the_object_to_its_place(folder: Path):
    """The pixel where the template has the nose shows the object's colour, wherever the object was."""
    options: dict[str, Any] = {"resolution": 112, "batch_size": 54, "num_workers": 0, "augment": False}
    hits = {}
    for framing in ("five_points", "stretch"):
        data = CelebaDataModule(folder, framing={"resize": framing}, **options)
        pictures = next(iter(data.eval_dataloader("train")))["images"][:, :, 70:74, 54:58].float().mean((2, 3)).numpy()
        found = []
        for index, colour in enumerate(pictures):
            scene = portrait_scene(1, "train", index, OPTIONS)
            item = scene.objects[0]
            if not facts(scene)["has_hole"] and not facts(scene)["occluded"] and item.paint.texture == "flat":
                expected = np.array(item.paint.first)
                found.append(colour @ expected / np.linalg.norm(colour) / np.linalg.norm(expected) > 0.97)
        hits[framing] = np.mean(found)
        assert len(found) >= 8
    assert hits["five_points"] == 1.0
    assert hits["stretch"] < 0.9
