"""MobileFaceNet: its published weights on real faces, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.teachers.mobilefacenet import MobileFaceNet, MobileFaceNetTeacher
from tests.test_teachers import equal_states, pictures, state_of

WEIGHTS = "weights/mobilefacenet_foamliu.pt"
# Eyes, nose and corners of the mouth in the 112 x 112 crop of ArcFace, https://arxiv.org/abs/1801.07698.
TEMPLATE = np.array([[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]])
POINTS = ("leye", "reye", "nose", "lmouth", "rmouth")


@pytest.fixture(scope="module")
def teacher(shared_data: Path) -> MobileFaceNetTeacher:
    return MobileFaceNetTeacher(shared_data / WEIGHTS)


def aligned(image: NDArray[np.uint8], points: NDArray[np.float64]) -> torch.Tensor:
    """The face at the template, by the similarity with the least squared error."""
    x, y = points.T
    one, zero = np.ones(5), np.zeros(5)
    system = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, right, down = np.linalg.lstsq(system, TEMPLATE.T.ravel(), rcond=None)[0]
    face = cv2.warpAffine(image, np.array([[a, -b, right], [b, a, down]]), (112, 112))
    return torch.from_numpy(np.ascontiguousarray(face.transpose(2, 0, 1)))


def lfw_pairs(root: Path, each: int) -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.bool_]]:
    """Faces, pairs of their rows, and whether a pair is one person: ``each`` of both sorts from the first fold."""
    with (root / "mtcnn_landmarks.csv").open(newline="") as file:
        landmarks = {row["file"]: row for row in csv.DictReader(file) if row["nose_x"]}
    lines = [line.split("\t") for line in (root / "pairs.txt").read_text().splitlines()[1:]]
    faces: list[torch.Tensor] = []
    for line in lines[:each] + lines[300 : 300 + each]:
        for person, number in ((line[0], line[1]), (line[-2] if len(line) == 4 else line[0], line[-1])):
            name = f"{person}/{person}_{int(number):04d}.jpg"
            points = np.array([[float(landmarks[name][f"{point}_{axis}"]) for axis in "xy"] for point in POINTS])
            image = cv2.cvtColor(cv2.imread(str(root / "lfw-deepfunneled" / name)), cv2.COLOR_BGR2RGB)
            faces.append(aligned(np.asarray(image, np.uint8), points))
    return torch.stack(faces), np.arange(len(faces)).reshape(-1, 2), np.repeat([True, False], each)


def test_it_tells_people_apart(teacher: MobileFaceNetTeacher, shared_data: Path):
    faces, pairs, same = lfw_pairs(shared_data / "lfw", 10)
    embedding = teacher(faces)["embedding"].numpy()
    similarity = (embedding[pairs[:, 0]] * embedding[pairs[:, 1]]).sum(axis=1)
    assert ((similarity > 0.3) == same).mean() >= 0.9
    assert similarity[same].mean() > 0.5
    assert abs(similarity[~same].mean()) < 0.1


def test_its_description(teacher: MobileFaceNetTeacher):
    spec = teacher.spec
    assert (spec.kind, spec.resolution, spec.outputs) == ("face_embeddings", (112, 112), {"embedding": (128,)})
    assert spec.parameters == 999_936
    assert spec.multiply_adds is not None
    assert 220e6 < spec.multiply_adds < 240e6


def test_embeddings_have_length_one_and_statistics_stay(teacher: MobileFaceNetTeacher):
    before = state_of(teacher)
    outputs = teacher.train()(pictures(3, 112))
    assert torch.allclose(outputs["embedding"].norm(dim=1), torch.ones(3), atol=1e-5)
    assert equal_states(before, teacher.state_dict())


def test_a_mirrored_face_may_be_added(teacher: MobileFaceNetTeacher, shared_data: Path):
    both = MobileFaceNetTeacher(shared_data / WEIGHTS, flip=True)
    images = pictures(2, 112)
    answers = both(images)["embedding"]
    assert torch.allclose(both(images.flip(3))["embedding"], answers, atol=1e-5)
    assert not torch.allclose(teacher(images)["embedding"], answers, atol=1e-3)
    assert both.fingerprint() != teacher.fingerprint()
    assert both.spec.multiply_adds == 2 * (teacher.spec.multiply_adds or 0)


def test_other_weights_are_refused(shared_data: Path, tmp_path: Path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: not the weights of foamliu/MobileFaceNet"):
        MobileFaceNetTeacher(tmp_path / "other.pt")
    state = torch.load(shared_data / WEIGHTS, map_location="cpu", weights_only=True)
    state["features.3.conv.4.weight"] = state.pop("features.3.conv.3.weight")
    torch.save(state, tmp_path / "renamed.pt")
    with pytest.raises(UserError, match=r"missing blocks\.3\.project\.bn\.weight; unexpected features\.3"):
        MobileFaceNetTeacher(tmp_path / "renamed.pt")
    with pytest.raises(UserError, match=r"gone\.pt does not exist"):
        MobileFaceNetTeacher(tmp_path / "gone.pt")


def test_the_network_follows_table_1():
    network = MobileFaceNet(dim=64).eval()
    shapes: list[tuple[int, ...]] = []
    for block in (network.second, network.blocks[0], network.blocks[5], network.blocks[12], network.widen):
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 112, 112)).shape == (1, 64)
    assert shapes == [(64, 56, 56), (64, 28, 28), (128, 14, 14), (128, 7, 7), (512, 7, 7)]
    assert len(network.blocks) == 15
