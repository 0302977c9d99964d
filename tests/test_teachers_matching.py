"""Which columns of a teacher answer to the student's classes, and what is refused before the first step."""

from __future__ import annotations

import pytest
import torch

from mnvision.backbones.pretrained.classes import imagenet_names
from mnvision.errors import UserError
from mnvision.teachers.matching import (
    match_columns,
    match_default_boxes,
    match_embedding,
    match_labels,
    require_outputs,
)
from mnvision.teachers.spec import TeacherSpec


def spec(**changes: object) -> TeacherSpec:
    fields = {
        "name": "teacher x.ckpt",
        "kind": "classification",
        "resolution": (64, 64),
        "outputs": {"logits": (3,)},
        "class_names": None,
        "parameters": 1,
    }
    return TeacherSpec(**(fields | changes))  # type: ignore[arg-type]


def test_columns_are_taken_by_name_in_the_students_order():
    index = match_columns(["cat", "dog", "bird"], 3, ["Bird", "cat"])
    assert index is not None
    assert index.tolist() == [2, 0]
    assert torch.tensor([10.0, 20.0, 30.0])[index].tolist() == [30.0, 10.0]


@pytest.mark.parametrize("names", [["cat", "dog"], ["Cat", "DOG"]])
def test_columns_in_the_same_order_need_no_index(names: list[str]):
    assert match_columns(["cat", "dog"], 2, names) is None
    assert match_columns(None, 2, names) is None


def test_a_reordering_of_all_columns_is_no_identity():
    index = match_columns(["Male", "Smiling"], 2, ["Smiling", "Male"], "attributes")
    assert index is not None
    assert index.tolist() == [1, 0]


def test_the_first_columns_of_a_larger_teacher_are_still_chosen():
    index = match_columns(["cat", "dog", "bird"], 3, ["cat", "dog"])
    assert index is not None
    assert index.tolist() == [0, 1]


def test_wordnet_ids_and_synonyms_find_imagenet_columns():
    names = imagenet_names()
    index = match_columns(names, 1000, ["n02086240", "n02099601"])
    assert index is not None
    assert [names[row].split(",")[0].lower() for row in index.tolist()] == ["shih-tzu", "golden retriever"]


def test_a_class_that_the_teacher_lacks_is_named_with_both_counts():
    with pytest.raises(UserError, match=r"teacher x has 2 classes \(cat, dog\), the student 2.*lacks 1.*: cow"):
        match_columns(["cat", "dog"], 2, ["cat", "cow"], teacher="teacher x")


def test_long_lists_of_names_are_cut():
    with pytest.raises(UserError, match=r"lacks 40 of them: a0, a1, a2, a3, a4, \.\.\. 35 more"):
        match_columns(["cat"], 1, [f"a{i}" for i in range(40)])


def test_without_names_the_counts_decide():
    with pytest.raises(UserError, match="has 5 attributes, the student 2"):
        match_columns(None, 5, ["a", "b"], "attributes")
    with pytest.raises(UserError, match="has 3 classes but 2 names"):
        match_columns(["a", "b"], 3, ["a", "b"])


def test_labels_of_a_detector_are_renumbered():
    assert match_labels(torch.tensor([2, 0]), 4).tolist() == [1, -1, 0, -1]
    assert match_labels(None, 3).tolist() == [0, 1, 2]


def test_a_teacher_without_the_output_is_refused():
    require_outputs(spec(), "logits")
    with pytest.raises(UserError, match=r"teacher x.ckpt gives logits \(3\), not attribute_logits"):
        require_outputs(spec(), "attribute_logits")
    with pytest.raises(UserError, match=r"teacher\.features=\[16, 32\]"):
        require_outputs(spec(), "logits", "features_16", "features_32")


def test_embeddings_of_another_length_are_refused():
    embedder = spec(kind="face_embeddings", outputs={"embedding": (128,)})
    match_embedding(embedder, 128)
    with pytest.raises(UserError, match="of 128 numbers, the student one of 64"):
        match_embedding(embedder, 64)
    with pytest.raises(UserError, match="not embedding"):
        match_embedding(spec(), 64)


def test_default_boxes_must_be_the_same():
    pixels = torch.tensor([[0.0, 0.0, 32.0, 48.0], [16.0, 24.0, 64.0, 96.0]])
    shapes = {"cls_logits": (2, 4), "box_offsets": (2, 4)}
    ssd = spec(kind="ssd", outputs=shapes, default_boxes=pixels / torch.tensor([64.0, 96.0, 64.0, 96.0]))
    match_default_boxes(ssd, pixels, (96, 64))
    with pytest.raises(UserError, match="2 default boxes at 64 x 64 px, the student 1 at 96 x 64"):
        match_default_boxes(ssd, pixels[:1], (96, 64))
    with pytest.raises(UserError, match=r"not the student's \(up to 0.0312"):
        match_default_boxes(ssd, pixels + torch.tensor([0.0, 0.0, 2.0, 0.0]), (96, 64))
    with pytest.raises(UserError, match="not cls_logits and box_offsets"):
        match_default_boxes(spec(), pixels, (96, 64))
