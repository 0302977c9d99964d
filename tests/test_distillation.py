"""The teacher's part of a task: mixture, what is checked before the first step, and a teacher that stays as it was."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from mnvision.build import build_model
from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.losses.distillation import EmbeddingTargets, SoftTargets
from mnvision.teachers.base import Outputs, Teacher
from tasks.classification import ClassificationTask
from tasks.distillation import Distillation
from tests.builders_models import CLASS_NAMES, CLASSIFIER


class TinyTeacher(Teacher):
    """A convolution with batch normalisation; its statistics move as soon as it is run in training mode."""

    def __init__(self, names: tuple[str, ...] | None = tuple(CLASS_NAMES)) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=32), nn.BatchNorm2d(4, momentum=0.5), nn.ReLU())
        self.fc = nn.Linear(4, 3)
        self.options = {}
        self._settle("teacher tiny", "classification", (64, 64), class_names=names)

    def answer(self, images: Tensor) -> Outputs:
        features = self.body(images.float() / 255)
        return {"logits": self.fc(features.mean((2, 3))), "features_32": features}


@pytest.fixture(scope="module")
def student() -> nn.Module:
    torch.manual_seed(0)
    return build_model(CLASSIFIER)


def make_batch(size: int = 4) -> dict[str, Tensor]:
    pixels = torch.randint(0, 256, (size, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return {"images": pixels, "teacher_images": pixels}


def distil(student: nn.Module, **settings) -> Distillation:
    arguments = {"teacher": TinyTeacher(), "criterion": SoftTargets(2.0), **settings}
    return Distillation(student=student, class_names=CLASS_NAMES, **arguments)


@pytest.mark.parametrize(("labels", "weight"), [(0.0, 1.0), (0.5, 2.0), (1.0, 3.0), (0.25, 0.0)])
def test_losses_are_mixed_as_written(student: nn.Module, labels: float, weight: float):
    logits, batch = torch.randn(4, 3), make_batch()
    distillation = distil(student, labels=labels, weight=weight)
    found = distillation.mix(torch.tensor(7.0), logits, batch)
    answers = TinyTeacher()(batch["teacher_images"])["logits"].half().float()
    expected = SoftTargets(2.0)(logits, answers)
    assert torch.equal(found["loss_distill"], expected)
    assert float(found["loss_labels"]) == 7.0
    assert float(found["loss"]) == pytest.approx(labels * 7 + (1 - labels) * weight * float(expected), rel=1e-6)


def test_without_labels_nothing_of_them_is_reported(student: nn.Module):
    assert set(distil(student).mix(None, torch.randn(4, 3), make_batch())) == {"loss", "loss_distill"}
    with pytest.raises(UserError, match=r"distill.labels=0.5, but the data have no labels: set distill.labels=0"):
        distil(student, labels=0.5).mix(None, torch.randn(4, 3), make_batch())


def test_stored_answers_teach_the_same_as_live_ones(student: nn.Module):
    batch, logits = make_batch(), torch.randn(4, 3)
    stored = {name: value.half() for name, value in TinyTeacher()(batch["teacher_images"]).items()}
    distillation = distil(student, features=[32], feature_weight=0.3)
    maps = {32: torch.randn(4, 256, 2, 2)}
    live = distillation(logits, batch, maps)
    assert torch.equal(live, distillation(logits, {"images": batch["images"], "teacher_outputs": stored}, maps))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(live, distillation(logits, batch, maps))


def test_feature_regression_adds_to_the_criterion_or_stands_alone(student: nn.Module):
    batch, logits, maps = make_batch(), torch.randn(4, 3), {32: torch.randn(4, 256, 2, 2)}
    both = distil(student, features=[32], feature_weight=0.3)
    features = both.feature_targets(maps, both.teacher_outputs(batch))
    assert torch.allclose(both(logits, batch, maps), distil(student)(logits, batch) + 0.3 * features)
    alone = distil(student, features=[32], criterion=None, labels=0.5)
    alone.load_state_dict(both.state_dict())
    assert torch.allclose(alone(logits, batch, maps), features)
    with pytest.raises(UserError, match="gives no feature maps"):
        both(logits, batch)


def test_a_teacher_stays_outside_of_everything_that_is_trained_and_saved(student: nn.Module):
    distillation = distil(student, features=[32])
    names = {"feature_targets.adapters.32.weight", "feature_targets.adapters.32.bias"}
    assert set(distillation.state_dict()) == names
    assert {name for name, _ in distillation.named_parameters()} == names
    assert not any(isinstance(module, Teacher) for module in distillation.modules())


def test_training_leaves_the_teacher_as_it_was(student: nn.Module):
    distillation = distil(student, labels=0.5)
    before = deepcopy(distillation.teacher.state_dict())
    distillation.train()
    distillation.teacher.train()
    distillation.teacher.body.train()
    logits = torch.randn(4, 3, requires_grad=True)
    distillation.mix(logits.sum(), logits, make_batch())["loss"].backward()
    after = distillation.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert int(after["body.1.num_batches_tracked"]) == 0
    assert all(p.grad is None and not p.requires_grad for p in distillation.teacher.parameters())
    assert not any(module.training for module in distillation.teacher.modules())
    assert logits.grad is not None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"weight": -1}, "distill.weight=-1"),
        ({"weight": "heavy"}, "distill.weight='heavy'"),
        ({"weight": math.nan}, "distill.weight=nan"),
        ({"labels": 1.5}, "distill.labels=1.5"),
        ({"labels": -0.1}, "distill.labels=-0.1"),
        ({"feature_weight": -2}, "distill.feature_weight=-2"),
        ({"features": [16]}, "add backbone.out_strides=\\[16,32\\]"),
        ({"criterion": None}, "leaves nothing to learn from the teacher"),
        ({"criterion": None, "features": [32]}, "leave the head untrained"),
        ({"criterion": EmbeddingTargets()}, r"teacher tiny gives logits \(3\).*not embedding"),
        ({"teacher": TinyTeacher(("cat", "cow", "pig"))}, "lacks 2 of them: dog, a/b"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(student: nn.Module, settings, text: str):
    with pytest.raises(UserError, match=text) as caught:
        distil(student, **settings)
    assert "\n" not in str(caught.value)


def test_a_batch_without_a_part_for_the_teacher_is_refused(student: nn.Module):
    with pytest.raises(UserError, match="no view for the teacher"):
        distil(student)(torch.randn(4, 3), {"images": make_batch()["images"]})
    with pytest.raises(UserError, match="stored outputs of teacher tiny lack logits; they hold embedding"):
        distil(student)(torch.randn(4, 3), {"teacher_outputs": {"embedding": torch.zeros(4, 2).half()}})


@pytest.mark.parametrize("features", [[], [32]])
def test_what_is_compiled_is_what_is_called(student: nn.Module, features: list[int], monkeypatch: pytest.MonkeyPatch):
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    task = ClassificationTask(
        student,
        Metadata("classification", CLASSIFIER, CLASS_NAMES),
        nn.CrossEntropyLoss(),
        torch.optim.SGD,
        compile=True,
        distillation=distil(student, features=features),
    )
    task.on_fit_start()
    called: list[nn.Module] = []
    hooks = [part.register_forward_pre_hook(lambda part, _: called.append(part)) for part in compiled]
    outputs, maps = task.answers(make_batch())
    for hook in hooks:
        hook.remove()
    assert called == compiled == ([student.backbone, student.head] if features else [student])
    assert outputs.shape == (4, 3)
    assert (None if maps is None else [*maps]) == (features or None)
