"""Losses towards a teacher against PyTorch's own functions, hand-made numbers and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mnvision.errors import UserError
from mnvision.losses.distillation import AttributeTargets, EmbeddingTargets, SoftTargets, stored_outputs
from mnvision.losses.distillation_features import FeatureTargets
from mnvision.losses.distillation_ssd import PseudoLabels, SSDTargets
from mnvision.losses.multibox import MultiBoxLoss
from mnvision.teachers.spec import TeacherSpec


def rand(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_spec(kind: str, outputs: dict[str, tuple[int, ...]], names: tuple[str, ...] | None) -> TeacherSpec:
    return TeacherSpec("teacher t", kind, (32, 32), outputs, names, parameters=1)


# --- soft targets ---------------------------------------------------------------------------------------------


def test_soft_targets_of_two_classes_by_hand():
    """T = 2: teacher logits (2 ln 3, 0) give 3/4 and 1/4, student (0, 0) gives 1/2 each."""
    loss = SoftTargets(2.0)(torch.zeros(1, 2), torch.tensor([[2 * math.log(3.0), 0.0]]))
    assert float(loss) == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 20.0), st.integers(2, 7), st.integers(1, 5), st.integers(0, 1000))
def test_soft_targets_are_kl_div(temperature: float, classes: int, batch: int, seed: int):
    student, teacher = rand(batch, classes, seed=seed), rand(batch, classes, seed=seed + 1)
    p = (teacher / temperature).softmax(1)
    expected = temperature**2 * F.kl_div((student / temperature).log_softmax(1), p, reduction="batchmean")
    rounding = 1e-6 * temperature**2
    assert torch.allclose(SoftTargets(temperature)(student, teacher), expected, rtol=1e-4, atol=rounding)
    assert float(SoftTargets(temperature)(teacher, teacher)) == pytest.approx(0.0, abs=rounding)


def test_at_a_high_temperature_the_gradient_is_that_of_matched_logits():
    """Hinton et al., equation 4: for zero-mean logits (z - v) / N, here times T^2."""
    student, teacher = rand(1, 4).requires_grad_(), rand(1, 4, seed=1)
    with torch.no_grad():
        student -= student.mean()
    teacher = teacher - teacher.mean()
    SoftTargets(1000.0)(student.double(), teacher.double()).backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, (student - teacher) / 4, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    "loss", [SoftTargets(3.0), AttributeTargets(2.0), EmbeddingTargets(), EmbeddingTargets("cosine")]
)
def test_gradients_of_vectors_are_those_of_finite_differences(loss: torch.nn.Module, monkeypatch: pytest.MonkeyPatch):
    # The losses compute in float32 by design; the differences need more.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    student = rand(3, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, rand(3, 5, seed=1).double()), (student,))


# --- attributes, embeddings -----------------------------------------------------------------------------------


def test_attribute_targets_by_hand():
    """Teacher probability 3/4 and 1/2, student 1/2 and 1/2: both cross-entropies are ln 2."""
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    assert float(AttributeTargets()(torch.zeros(1, 2), teacher)) == pytest.approx(math.log(2.0))
    certain = AttributeTargets()(torch.tensor([[30.0, -30.0]]), torch.tensor([[30.0, -30.0]]))
    assert float(certain) == pytest.approx(0.0, abs=1e-6)
    sure_and_wrong = AttributeTargets()(torch.tensor([[4.0, 0.0]]), torch.tensor([[-100.0, 0.0]]))
    assert float(sure_and_wrong) == pytest.approx((math.log1p(math.exp(4.0)) + math.log(2.0)) / 2, rel=1e-6)


def test_attribute_targets_are_least_at_the_teacher():
    teacher = rand(4, 6)
    student = teacher.clone().requires_grad_()
    AttributeTargets()(student, teacher).backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-7


def test_embedding_distances_by_hand():
    student, teacher = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(EmbeddingTargets()(student, teacher)) == pytest.approx((4 + 16 + 0) / 2)
    assert float(EmbeddingTargets("cosine")(student, teacher)) == pytest.approx(((1 - 0.6) + 0) / 2)


def test_squared_distance_of_unit_embeddings_is_twice_the_cosine_distance():
    student, teacher = F.normalize(rand(8, 16)), F.normalize(rand(8, 16, seed=1))
    assert float(EmbeddingTargets()(student, teacher)) == pytest.approx(
        2 * float(EmbeddingTargets("cosine")(student, teacher)), rel=1e-5
    )


# --- classes by name ------------------------------------------------------------------------------------------


def test_a_teacher_of_more_classes_answers_for_those_of_the_student():
    loss = SoftTargets(1.0)
    loss.fit_to(None, ["cat", "dog"], make_spec("classification", {"logits": (3,)}, ("dog", "cow", "cat")))
    teacher, student = rand(4, 3), rand(4, 2, seed=1)
    assert torch.equal(loss(student, teacher), SoftTargets(1.0)(student, teacher[:, [2, 0]]))
    assert not loss.state_dict()


@pytest.mark.parametrize(
    ("loss", "spec", "words"),
    [
        (SoftTargets(), make_spec("classification", {"logits": (3,)}, ("a", "b", "c")), ["3", "2", "cat"]),
        (SoftTargets(), make_spec("classification", {"logits": (7,)}, None), ["7", "2"]),
        (SoftTargets(), make_spec("face_embeddings", {"embedding": (64,)}, None), ["embedding (64)", "logits"]),
        (AttributeTargets(), make_spec("face_attributes", {"attribute_logits": (1,)}, ("cat",)), ["1", "2", "dog"]),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_with_both_numbers(loss, spec: TeacherSpec, words: list[str]):
    with pytest.raises(UserError) as caught:
        loss.fit_to(None, ["cat", "dog"], spec)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_outputs_of_another_shape_are_refused_by_name():
    with pytest.raises(UserError, match=r"\(2, 3\).*\(2, 4\)"):
        SoftTargets()(rand(2, 3), rand(2, 4))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "hot", None, True])
@pytest.mark.parametrize("loss", [SoftTargets, AttributeTargets, SSDTargets])
def test_a_temperature_out_of_range_is_refused(loss: type, temperature: float):
    with pytest.raises(UserError, match="temperature"):
        loss(temperature)


def test_stored_outputs_are_what_float16_can_hold():
    outputs = stored_outputs({"logits": torch.tensor([1.0001, 1e9, -1e9, 3.0]), "half": torch.tensor([0.1]).bfloat16()})
    assert outputs["logits"].tolist() == [1.0, 65504.0, -65504.0, 3.0]
    assert outputs["half"].dtype == torch.float32


@pytest.mark.parametrize("loss", [SoftTargets(2.0), AttributeTargets(), EmbeddingTargets(), EmbeddingTargets("cosine")])
def test_losses_are_computed_in_float32_under_autocast(loss: torch.nn.Module):
    student, teacher = rand(4, 6), rand(4, 6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(student, teacher), loss(student, teacher))
        inside = loss(student, teacher)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss(student, teacher))
    assert loss(student.bfloat16(), teacher).dtype == torch.float32


# --- feature maps ---------------------------------------------------------------------------------------------


def test_feature_regression_by_hand():
    loss = FeatureTargets([16], {16: 2}, {16: 1})
    with torch.no_grad():
        loss.adapters["16"].weight.copy_(torch.tensor([1.0, -2.0]).reshape(1, 2, 1, 1))
        loss.adapters["16"].bias.fill_(0.5)
    student = torch.stack([torch.full((2, 2), 3.0), torch.full((2, 2), 1.0)])[None]  # adapted: 3 - 2 + 0.5
    assert loss({16: student}, {"features_16": torch.full((1, 1, 2, 2), 4.0)}).item() == pytest.approx(2.5**2)


def test_maps_of_a_larger_teacher_are_averaged_onto_the_students_grid():
    loss = FeatureTargets([32], {32: 1}, {32: 1})
    with torch.no_grad():
        loss.adapters["32"].weight.fill_(1.0)
        loss.adapters["32"].bias.zero_()
    teacher = rand(1, 1, 4, 4)
    student = F.interpolate(teacher, (2, 2), mode="bilinear", antialias=True)
    assert loss({32: student}, {"features_32": teacher}).item() == pytest.approx(0.0, abs=1e-10)
    flat = torch.full((1, 1, 5, 5), 7.0)
    assert loss({32: torch.full((1, 1, 3, 3), 7.0)}, {"features_32": flat}).item() == pytest.approx(0.0, abs=1e-8)


def test_several_maps_count_alike_and_their_adapters_learn():
    loss = FeatureTargets([32, 16], {16: 3, 32: 4}, {16: 5, 32: 6})
    student = {16: rand(2, 3, 4, 4), 32: rand(2, 4, 2, 2)}
    teacher = {"features_16": rand(2, 5, 4, 4, seed=1), "features_32": rand(2, 6, 2, 2, seed=2)}
    alone = [F.mse_loss(loss.adapters[str(s)](student[s]), teacher[f"features_{s}"]) for s in (16, 32)]
    total = loss(student, teacher)
    assert torch.allclose(total, (alone[0] + alone[1]) / 2)
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert loss.outputs == ("features_16", "features_32")


def test_feature_regression_is_float32_under_autocast():
    loss = FeatureTargets([32], {32: 3}, {32: 3})
    student, teacher = {32: rand(2, 3, 2, 2)}, {"features_32": rand(2, 3, 2, 2, seed=1)}
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(student, teacher)
    assert torch.equal(inside, loss(student, teacher))


@pytest.mark.parametrize(
    ("strides", "text"),
    [
        ([], "give different strides"),
        ([16, 16], "give different strides"),
        ([8], r"student gives maps of stride \[16, 32\]; add backbone.out_strides=\[8,16,32\]"),
        ([32], r"teacher gives maps of stride \[8, 16\]"),
    ],
)
def test_strides_without_a_map_are_refused(strides: list[int], text: str):
    with pytest.raises(UserError, match=text):
        FeatureTargets(strides, {16: 4, 32: 4}, {8: 4, 16: 4})


# --- SSD ------------------------------------------------------------------------------------------------------


def ssd_outputs(batch: int, boxes: int, columns: int, seed: int) -> dict[str, torch.Tensor]:
    return {"cls_logits": rand(batch, boxes, columns, seed=seed), "box_offsets": rand(batch, boxes, 4, seed=seed + 1)}


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_ssd_targets_are_weighted_kl_and_smooth_l1_box_by_box(temperature: float):
    student, teacher = ssd_outputs(2, 9, 4, seed=0), ssd_outputs(2, 9, 4, seed=5)
    expected_cls = expected_box = objects = 0.0
    for i in range(2):
        for a in range(9):
            p = teacher["cls_logits"][i, a].softmax(0)
            seen = 1 - float(p[0])
            objects += seen
            q = (student["cls_logits"][i, a] / temperature).log_softmax(0)
            soft = (teacher["cls_logits"][i, a] / temperature).softmax(0)
            kl = float(F.kl_div(q, soft, reduction="sum"))
            expected_cls += (seen + 0.1 * (1 - seen)) * temperature**2 * kl
            if seen >= 0.6:
                offsets = student["box_offsets"][i, a], teacher["box_offsets"][i, a]
                expected_box += seen * float(F.smooth_l1_loss(*offsets, reduction="sum"))
    assert expected_box > 0
    loss = SSDTargets(temperature, box_weight=2.0, background_weight=0.1, object_threshold=0.6)
    expected = (expected_cls + 2 * expected_box) / max(objects, 1.0)
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("classification", ["softmax", "sigmoid", "focal"])
def test_ssd_targets_are_least_at_the_teacher(classification):
    teacher = ssd_outputs(2, 9, 4, seed=0)
    student = {name: value.clone().requires_grad_() for name, value in teacher.items()}
    loss = SSDTargets(2.0, classification=classification)(student, teacher)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
    loss.backward()
    assert all(v.grad is not None and float(v.grad.abs().max()) < 1e-5 for v in student.values())
    away = {name: value + 0.5 * rand(*value.shape, seed=3) for name, value in teacher.items()}
    assert float(SSDTargets(2.0, classification=classification)(away, teacher)) > 0.01


def test_sigmoid_scores_leave_the_background_column_alone():
    student, teacher = ssd_outputs(1, 5, 4, seed=0), ssd_outputs(1, 5, 4, seed=3)
    loss = SSDTargets(classification="sigmoid")
    other = {**student, "cls_logits": student["cls_logits"].clone()}
    other["cls_logits"][..., 0] += 10
    assert torch.equal(loss(student, teacher), loss(other, teacher))


def test_background_does_not_drown_the_objects():
    """One object among 1917 default boxes: forgetting it must cost more than a little noise on all the others."""
    teacher = {"cls_logits": torch.zeros(1, 1917, 3), "box_offsets": torch.zeros(1, 1917, 4)}
    teacher["cls_logits"][..., 0] = 6.0
    teacher["cls_logits"][0, 7] = torch.tensor([0.0, 6.0, 0.0])
    blind = {**teacher, "cls_logits": teacher["cls_logits"].clone()}
    blind["cls_logits"][0, 7] = torch.tensor([6.0, 0.0, 0.0])
    noisy = {**teacher, "cls_logits": teacher["cls_logits"].clone()}
    noisy["cls_logits"][..., 0] -= 0.5
    noisy["cls_logits"][0, 7, 0] += 0.5
    assert float(SSDTargets()(blind, teacher)) > 5 * float(SSDTargets()(noisy, teacher))


def test_a_picture_without_objects_gives_a_finite_loss():
    teacher = {"cls_logits": torch.zeros(1, 4, 3), "box_offsets": torch.zeros(1, 4, 4)}
    teacher["cls_logits"][..., 0] = 80.0
    student = ssd_outputs(1, 4, 3, seed=0)
    assert math.isfinite(float(SSDTargets()(student, teacher)))


def detector(names: list[str], resolution: int = 32):
    """What a criterion looks at in a student."""
    from mnvision.heads.ssd import SSDHead

    head = SSDHead([8, 16], [16, 32], len(names), resolution, alpha=0.25, extra_channels=())
    return type("Student", (), {"head": head})()


def ssd_spec(student, names: tuple[str, ...] | None, shift: float = 0.0, count: int | None = None) -> TeacherSpec:
    boxes = student.head.default_boxes / 32 + shift
    boxes = boxes if count is None else boxes[:count]
    outputs = {"cls_logits": (len(boxes), 1 + len(names or ("?",) * 2)), "box_offsets": (len(boxes), 4)}
    return TeacherSpec("teacher t", "ssd", (32, 32), outputs, names, parameters=1, default_boxes=boxes)


def test_classes_that_only_the_teacher_has_are_background():
    student = detector(["cat", "dog"])
    loss = SSDTargets()
    loss.fit_to(student, ["cat", "dog"], ssd_spec(student, ("dog", "cow", "cat")))
    teacher, ours = ssd_outputs(1, 5, 4, seed=0), ssd_outputs(1, 5, 3, seed=3)
    p = teacher["cls_logits"].softmax(-1)
    merged = torch.stack([p[..., 0] + p[..., 2], p[..., 3], p[..., 1]], dim=-1).log()
    expected = SSDTargets()(ours, {**teacher, "cls_logits": merged})
    assert torch.allclose(loss(ours, teacher), expected, rtol=1e-5)


def test_other_default_boxes_are_refused_with_both_counts():
    student = detector(["cat", "dog"])
    total = len(student.head.default_boxes)
    SSDTargets().fit_to(student, ["cat", "dog"], ssd_spec(student, None))
    with pytest.raises(UserError, match=rf"has {total - 1} default boxes.*{total} at"):
        SSDTargets().fit_to(student, ["cat", "dog"], ssd_spec(student, None, count=total - 1))
    with pytest.raises(UserError, match=rf"{total} default boxes are not the student's"):
        SSDTargets().fit_to(student, ["cat", "dog"], ssd_spec(student, None, shift=0.01))
    with pytest.raises(UserError, match=r"\(1, 4, 3\).*\(1, 5, 3\)"):
        SSDTargets()(ssd_outputs(1, 4, 3, seed=0), ssd_outputs(1, 5, 3, seed=0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"box_weight": -1},
        {"background_weight": 1.5},
        {"object_threshold": -0.1},
        {"classification": "hinge"},
        {"background_weight": "much"},
    ],
)
def test_ssd_settings_out_of_range_are_refused(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        SSDTargets(**arguments)


# --- pseudo-labels --------------------------------------------------------------------------------------------


def detections() -> dict[str, torch.Tensor]:
    """Teacher classes dog 0, cow 1, cat 2: a cat, an unsure dog, a cow, a hopeless cat, padding; and nothing."""
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    return {
        "boxes": torch.stack([boxes.float(), torch.zeros(5, 4)]),
        "scores": torch.tensor([[0.5, 0.4, 0.99, 0.2, 0.0], [0.0] * 5]),
        "labels": torch.tensor([[2.0, 0.0, 1.0, 2.0, -1.0], [-1.0] * 5]),
    }


def pseudo(student) -> PseudoLabels:
    loss = PseudoLabels(MultiBoxLoss(), score_threshold=0.5, ignore_threshold=0.3)
    outputs = {"boxes": (5, 4), "scores": (5,), "labels": (5,)}
    loss.fit_to(student, ["cat", "dog"], make_spec("detection", outputs, ("dog", "cow", "cat")))
    return loss


def test_detections_become_targets():
    targets = pseudo(detector(["cat", "dog"])).targets(detections())
    assert targets["labels"].tolist() == [[0, 1], [-1, -1]]
    assert targets["boxes"].tolist() == [[[0, 0, 16, 16], [16, 16, 32, 32]], [[0, 0, 0, 0], [0, 0, 0, 0]]]
    assert targets["crowd"].tolist() == [[False, True], [False, False]]


def test_pseudo_labels_are_the_students_own_loss_on_them():
    student = detector(["cat", "dog"])
    loss, boxes = pseudo(student), student.head.default_boxes
    outputs = ssd_outputs(2, len(boxes), 3, seed=0)
    targets = {
        "boxes": torch.tensor([[[0.0, 0, 16, 16]], [[0.0, 0, 0, 0]]]),
        "labels": torch.tensor([[0], [-1]]),
        "crowd": torch.zeros(2, 1, dtype=torch.bool),
    }
    without_unsure = detections()
    without_unsure["scores"][0, 1] = 0.0
    assert torch.equal(loss(outputs, without_unsure), MultiBoxLoss()(outputs, targets, boxes)["loss"])
    nothing = {name: value[1:] for name, value in detections().items()}
    assert math.isfinite(float(loss({name: value[1:] for name, value in outputs.items()}, nothing)))


def test_nothing_kept_leaves_one_row_of_padding():
    none = {name: value[1:] for name, value in detections().items()}
    targets = pseudo(detector(["cat", "dog"])).targets(none)
    assert targets["labels"].tolist() == [[-1]]


@pytest.mark.parametrize(("score", "ignore"), [(0.0, 0.0), (1.1, 0.3), (0.5, 0.6), (0.5, -0.1)])
def test_thresholds_out_of_range_are_refused(score: float, ignore: float):
    with pytest.raises(UserError, match="score_threshold"):
        PseudoLabels(MultiBoxLoss(), score, ignore)


def test_a_detector_that_lacks_a_class_is_refused():
    loss = PseudoLabels(MultiBoxLoss())
    outputs = {"boxes": (5, 4), "scores": (5,), "labels": (5,)}
    with pytest.raises(UserError, match="lacks 1 of them: dog"):
        loss.fit_to(detector(["cat", "dog"]), ["cat", "dog"], make_spec("detection", outputs, ("cat", "cow")))
