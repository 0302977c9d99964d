"""Class names and the rows that answer to them."""

from __future__ import annotations

import pytest

from mnvision.backbones.pretrained.classes import (
    imagenet_classes,
    imagenet_names,
    labels_beside,
    match_classes,
    parse_labels,
)
from mnvision.errors import UserError


def test_imagenet_order_and_uniqueness():
    names = imagenet_names()
    assert (len(names), len(set(names))) == (1000, 1000)
    # Labels that every ImageNet network agrees on: tench, golden retriever, toilet tissue.
    assert (names[0], names[207], names[999]) == (
        "tench, Tinca tinca",
        "golden retriever",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert list(imagenet_classes()) == sorted(imagenet_classes())
    assert imagenet_names(with_background=True) == ("background", *names)


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        (["n01440764", "n01443537"], [1, 2]),
        (["Goldfish", "tench"], [2, 1]),
        (["great_white-shark"], [3]),
        (["background"], [0]),
    ],
)
def test_matching_imagenet(wanted, rows):
    assert match_classes(wanted, imagenet_names(with_background=True)) == (rows, [])


def test_ids_match_ids_and_short_names_match_long_ones():
    assert match_classes(["n01443537"], list(imagenet_classes())) == ([1], [])
    assert match_classes(imagenet_names()[:3], ["goldfish", "tench", "white shark"]) == ([1, 0, 2], [])


def test_all_thousand_match_by_id():
    assert match_classes(list(imagenet_classes()), imagenet_names()) == (list(range(1000)), [])


def test_ambiguous_or_unknown_names_match_nothing():
    assert match_classes(["crane", "tench"], imagenet_names()) == ([], ["crane"])
    assert match_classes(["a", "b"], ["a", "a", "b"]) == ([], ["a"])
    assert match_classes(["a", "A"], ["a", "b"]) == ([], ["a", "A"])
    assert match_classes(["x"], []) == ([], ["x"])
    assert match_classes(["a", "a"], ["a", "a"]) == ([0, 1], [])


def test_labels_files(tmp_path):
    assert parse_labels("person\r\nred fox\n\n", "x") == ("person", "red fox")
    assert parse_labels("0  person\n1  bicycle\n", "x") == ("person", "bicycle")
    assert parse_labels("3 wheeler\n4 wheeler\n", "x") == ("3 wheeler", "4 wheeler")
    for text in ("", "a\n\nb"):
        with pytest.raises(UserError, match="one class name per line"):
            parse_labels(text, "x")
    file = tmp_path / "net.h5"
    assert labels_beside(file) is None
    (tmp_path / "labels.txt").write_text("a")
    assert labels_beside(file) == ("a",)
    (tmp_path / "net.h5.labels.txt").write_text("b")
    assert labels_beside(file) == ("b",)
    (tmp_path / "net.h5.labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"net\.h5\.labels\.txt: cannot be read as UTF-8"):
        labels_beside(file)
