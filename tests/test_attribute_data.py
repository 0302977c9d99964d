from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from mnvision.data.attribute_csv import AttributeCsvDataModule, LfwAttributesDataModule, read_attribute_csv
from mnvision.data.attribute_splits import split_off
from mnvision.errors import UserError
from tests.builders_faces import make_attribute_csv, make_tiny_lfw_attributes
from tools import cli

TABLE = "file,A,B\n0.jpg,1,0\n1.jpg,0,\n2.jpg,1,1\n3.jpg,0,0\n4.jpg,1,1\n5.jpg,0,nan\n"


def module(root: Path, **options: Any) -> AttributeCsvDataModule:
    defaults = {"framing": {"resize": "stretch"}, "resolution": 16, "batch_size": 2, "num_workers": 0}
    return AttributeCsvDataModule(root, **{**defaults, "augment": False, **options})


def names(data: AttributeCsvDataModule, split: Any) -> list[str]:
    source = data.source(split)
    return [source.file_name(position) for position in range(len(source))]


def test_batches_hold_labels_of_their_pictures(tmp_path: Path):
    data = module(make_attribute_csv(tmp_path, TABLE), val_fraction=0.3)
    data.setup("fit")
    seen: dict[int, list[int]] = {}
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        for batch in loader:
            assert batch["images"].dtype == torch.uint8
            assert batch["labels"].dtype == torch.int8
            for image, labels, position in zip(batch["images"], batch["labels"], batch["indices"].tolist()):
                number = round(image.float().mean().item() / 40)
                assert names(data, split)[position] == f"{number}.jpg"
                seen[number] = labels.tolist()
    assert seen == {0: [1, 0], 1: [0, -1], 2: [1, 1], 3: [0, 0], 4: [1, 1], 5: [0, -1]}
    assert data.class_names == ["A", "B"]
    assert data.labelled
    assert data.preprocess == {"resize": "stretch"}


@pytest.mark.parametrize(
    ("text", "options", "labels"),
    [
        ("f,A\n0.jpg,1\n1.jpg,0\n2.jpg,\n", {}, [1, 0, -1]),
        ("f,A\n0.jpg,1\n1.jpg,-1\n2.jpg,NaN\n", {}, [1, 0, -1]),
        ("f;A\n0.jpg;1.0\n1.jpg;0.0\n2.jpg;\n", {}, [1, 0, -1]),
        ('f\tA\n"0.jpg"\t1\n1.jpg\t0\n2.jpg\t?\n', {"missing_value": "?"}, [1, 0, -1]),
        ("f,A\n0.jpg,1\n1.jpg,-1\n2.jpg,0\n", {"negative": -1}, [1, 0, -1]),
        ("f,A\n0.jpg,1\n1.jpg,-1\n2.jpg,0\n", {"negative": 0}, [1, -1, 0]),
        ("f,A\n0.jpg,1\n1.jpg,-1\n2.jpg,0\n", {"missing_value": "0"}, [1, 0, -1]),
        ("\ufefff,A\r\n0.jpg, 1\r\n1.jpg,0 \r\n2.jpg,\r\n\r\n", {}, [1, 0, -1]),
    ],
)
def test_notations_of_labels(tmp_path: Path, text: str, options: dict[str, Any], labels: list[int]):
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode())
    table = read_attribute_csv(path, **options).table
    assert table.values[:, 0].tolist() == labels
    assert table.file_names == ["0.jpg", "1.jpg", "2.jpg"]


def test_ambiguous_notation_is_refused_with_counts(tmp_path: Path):
    data = module(make_attribute_csv(tmp_path, "file,A,B\n0.jpg,1,-1\n1.jpg,0,-1\n2.jpg,1,1\n"))
    with pytest.raises(UserError, match=r"2 times -1, 1 times 0 and 3 times 1.*data\.negative=-1 or data\.negative=0"):
        data.source("train")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("file,A,B\n0.jpg,1,0\n1.jpg,1,yes\n", {}, "line 3, column 'B': 'yes' is not 1, 0, -1 or empty"),
        ("file,A\n0.jpg,1\n1.jpg,2\n", {"missing_value": 9}, "column 'A': '2' is not 1, 0, -1 or empty or '9'"),
        ("file,A\n0.jpg,1\n1.jpg\n", {}, "line 3: 1 fields instead of 2"),
        ("file,A,A\n0.jpg,1,1\n", {}, "line 1: column 'A' occurs more than once"),
        ("file,A,\n0.jpg,1,\n", {}, "line 1: column 3 has no name"),
        ("0.jpg,1,0\n1.jpg,0,1\n2.jpg,0,0\n", {}, "line 1: 0.jpg, 1, 0 is a row of labels; put"),
        ("file,A\n0.jpg,1\n ,0\n", {"missing": "skip"}, "line 3: there is no file name"),
        ("file\n0.jpg\n", {}, "no column of an attribute beside file"),
        ('file,A\n0.jpg,"1\n', {}, "line 3: unexpected end of data"),
        ("file,A\n0.jpg,1\n", {"attributes": ["A", "Z"]}, "line 1: no column 'Z'; there are file, A"),
        ("file,A\n0.jpg,1\n", {"columns": {"split": "part"}}, "line 1: no column 'part'"),
        ("file,A,s\n0.jpg,1,train\n1.jpg,0,dev\n", {"columns": {"split": "s"}}, "line 3, column 's': 'dev' is not"),
        ("file,A\n0.jpg,1\nx.jpg,0\n", {}, r"1 of 2 pictures .* are not in .*: x\.jpg; .*data\.missing=skip"),
        ("file,A\nx.jpg,0\n", {"missing": "skip"}, "1 of 1 pictures"),
        ("file,A\n0.jpg,1\n1.jpg,0\n", {}, "no picture belongs to the val split.*data.val_fraction"),
    ],
)
def test_bad_tables_are_refused_with_their_place(tmp_path: Path, text: str, options: dict[str, Any], message: str):
    data = module(make_attribute_csv(tmp_path, text), **options)
    with pytest.raises(UserError, match=message) as caught:
        data.setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": "ignore"}, "data.missing must be error or skip"),
        ({"val_fraction": 1.0}, "val_fraction must lie between 0 and 1"),
        ({"attributes": []}, "at least one attribute"),
        ({"attributes": ["A", "A"]}, "none twice"),
        ({"attributes": "Smiling"}, r"write a list, data\.attributes=\[Smiling\]"),
        ({"negative": 1}, "data.negative must be -1 or 0"),
        ({"columns": {"picture": "file"}}, "data.columns: unknown 'picture'"),
        ({"val_labels": "v.csv", "val_fraction": 0.1}, "two ways to split"),
        ({"test_labels": "t.csv", "partition": "p.txt"}, "two ways to split"),
        ({"framing": {"resize": "fit"}}, "preprocess.resize='fit'"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        module(tmp_path, **options)


def test_missing_files_are_left_out_and_counted(tmp_path: Path):
    text = "file,A\n0.jpg,1\nx/9.jpg,0\n1.jpg,0\n8.jpg,1\n"
    data = module(make_attribute_csv(tmp_path, text), missing="skip")
    assert names(data, "train") == ["0.jpg", "1.jpg"]
    assert data.source("train").labels.tolist() == [[1], [0]]
    finding = data.reports()["train"].findings["labelled pictures without a file left out"]
    assert (finding.count, finding.examples) == (2, ("x/9.jpg", "8.jpg"))


def test_splits_by_column_partition_and_files(tmp_path: Path):
    text = "s,file,A\nTrain,0.jpg,1\nval,1.jpg,0\ntest,2.jpg,1\n,3.jpg,0\ntrain,4.jpg,0\n"
    data = module(make_attribute_csv(tmp_path / "a", text), columns={"file": "file", "split": "s"})
    parts = {"train": ["0.jpg", "4.jpg"], "val": ["1.jpg"], "test": ["2.jpg"]}
    assert {split: names(data, split) for split in parts} == parts
    assert data.reports()["train"].findings["pictures with an empty split left out"].examples == ("3.jpg",)

    root = make_attribute_csv(tmp_path / "b", "file,A\n" + "".join(f"{i}.jpg,{i % 2}\n" for i in range(5)))
    (root / "parts.txt").write_text("4.jpg 0\n0.jpg 0\n1.jpg 1\n2.jpg 2\n77.jpg 2\n")
    data = module(root, partition="parts.txt")
    assert {split: names(data, split) for split in parts} == parts
    findings = data.reports()["train"].findings
    assert findings["labelled pictures that the partition file does not name left out"].examples == ("3.jpg",)
    assert findings["pictures of the partition file without labels left out"].examples == ("77.jpg",)

    root = make_attribute_csv(tmp_path / "c", "file,A,B\n0.jpg,1,0\n4.jpg,0,1\n")
    make_attribute_csv(root, "file,B,Extra,A\n1.jpg,0,1,1\n0.jpg,1,1,0\n", "val.csv")
    make_attribute_csv(root, "file,A\n2.jpg,0\n", "test.csv")
    data = module(root, val_labels="val.csv", test_labels="test.csv")
    assert names(data, "train") == ["0.jpg", "4.jpg"]
    assert data.source("val").attribute_names == ("A", "B")
    assert data.source("val").labels.tolist() == [[1, 0], [0, 1]]
    assert data.reports()["val"].findings["pictures that are also in train"].examples == ("0.jpg",)
    with pytest.raises(UserError, match=r"test\.csv has no attribute B; it has A"):
        data.source("test")
    with pytest.raises(UserError, match=r"no test split: give data\.test_labels"):
        module(root, val_labels="val.csv").source("test")


def test_evaluation_alone_reads_one_file(tmp_path: Path):
    root = make_attribute_csv(tmp_path, "file,B,A\n1.jpg,0,1\n", "val.csv")
    data = module(root, labels="absent.csv", val_labels="val.csv")
    data.setup("validate")
    assert data.class_names == ["B", "A"]


def test_val_fraction_keeps_groups_together_and_test_untouched(tmp_path: Path):
    rows = "".join(f"{i}.jpg,{i % 2},p{i // 2},{'test' if i > 9 else 'train'}\n" for i in range(12))
    root = make_attribute_csv(tmp_path, "file,A,who,s\n" + rows, num=12)
    options = {"columns": {"group": "who", "split": "s"}, "val_fraction": 0.4}
    data = module(root, **options)
    train, val = names(data, "train"), names(data, "val")
    assert sorted([*train, *val]) == sorted(f"{i}.jpg" for i in range(10))
    assert len(val) == 4
    assert not {int(name[:-4]) // 2 for name in train} & {int(name[:-4]) // 2 for name in val}
    assert names(data, "test") == ["10.jpg", "11.jpg"]
    again = module(root, **options)
    assert names(again, "test") == ["10.jpg", "11.jpg"]
    assert (names(again, "train"), names(again, "val")) == (train, val)
    assert names(module(root, **options, seed=1), "val") != val


def test_attributes_are_chosen_in_the_order_asked_for(tmp_path: Path):
    root = make_attribute_csv(tmp_path, "file,A,note,B\n0.jpg,1,hello,0\n1.jpg,0,,\n")
    data = module(root, attributes=["B", "A"])
    assert data.source("train").labels.tolist() == [[0, 1], [-1, 0]]
    assert data.class_names == ["B", "A"]


def test_label_counts_and_constant_attributes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    text = "file,A,Never,Always,Blank\n0.jpg,1,0,1,\n1.jpg,0,0,,\n2.jpg,1,,1,\n"
    data = module(make_attribute_csv(tmp_path, text))
    with caplog.at_level(logging.WARNING, "mnvision.data.attributes"):
        counts = data.source("train").counts()
    assert counts.positive.tolist() == [2, 0, 2, 0]
    assert counts.negative.tolist() == [1, 2, 0, 0]
    assert [record.getMessage().split("attributes that ")[1] for record in caplog.records] == [
        "are never true in any picture: Never",
        "are true in every picture: Always",
        "are not known in any picture: Blank",
    ]


def test_landmark_framing_needs_landmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = module(make_attribute_csv(tmp_path, TABLE))
    monkeypatch.setattr(data.framing, "needs_landmarks", True)
    with pytest.raises(UserError, match=r"6 of 6 pictures have no landmarks.*data\.framing"):
        data.source("train")


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(10), 3)])
def test_split_off_takes_whole_groups_of_about_the_share(groups: Any):
    for fraction in (0.01, 0.2, 0.5, 0.99):
        chosen = split_off(30, fraction, 0, groups)
        assert 0 < chosen.sum() < 30
        assert abs(chosen.sum() - fraction * 30) <= (1 if groups is None else 3)
        if groups is not None:
            assert all(len(set(chosen[groups == group])) == 1 for group in range(10))
    with pytest.raises(UserError, match="nothing to split"):
        split_off(3, 0.5, 0, np.zeros(3, np.int64))


# LFW


def lfw(root: Path, **options: Any) -> LfwAttributesDataModule:
    defaults = {"framing": {"resize": "box", "box": [0.14, 0.14, 0.86, 0.86]}, "resolution": 16, "num_workers": 0}
    return LfwAttributesDataModule(root, **{**defaults, "augment": False, **options})


def test_lfw_scores_become_labels_by_their_sign(tmp_path: Path):
    data = lfw(make_tiny_lfw_attributes(tmp_path), val_fraction=0.3)
    train, val = data.source("train"), data.source("val")
    assert train.attribute_names == ("Male", "Bald Head")
    every = {source.file_name(i): source.labels[i].tolist() for source in (train, val) for i in range(len(source))}
    assert every["Ann_Lee/Ann_Lee_0002.jpg"] == [1, 0]
    assert every["Bo/Bo_0001.jpg"] == [0, -1]  # a score of zero says nothing
    assert len(every) == 9
    people = [{source.file_name(i).split("/")[0] for i in range(len(source))} for source in (train, val)]
    assert not people[0] & people[1]
    batch = next(iter(data.val_dataloader()))
    assert batch["images"].shape == (3, 3, 16, 16)
    assert data.preprocess == {"resize": "box", "box": [0.14, 0.14, 0.86, 0.86]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("#\tperson\timagenum", "#\twho\twhich"), r"line 2: expected tab-separated columns person, imagenum"),
        (("Bo\t2", "Bo\tx"), "line 7: no number of a picture"),
        (("Bo\t2\t-1.0", "Bo\t2\tmale"), "line 7, column 'Male': 'male' is not a score"),
        (("Bo\t2\t-1.0", "Bo\t2"), r"line 7 \(Bo/Bo_0002.jpg\): 1 values instead of 2"),
        (("Bo\t2", "Bo\t7"), "1 of 9 pictures .* are not in .*: Bo/Bo_0007.jpg"),
    ],
)
def test_bad_lfw_tables_are_refused_with_their_place(tmp_path: Path, change: tuple[str, str], message: str):
    root = make_tiny_lfw_attributes(tmp_path)
    path = root / "lfw_attributes.txt"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=message):
        lfw(root, val_fraction=0.3).source("train")


# Configs


@pytest.mark.parametrize("name", ["celeba", "lfw_attributes", "attributes_csv", "shapes_attributes"])
def test_config_makes_the_data_module(name: str):
    words = ["task=face_attributes", f"data={name}", "paths.output_dir=out", "backbone.resolution=128"]
    plain, changed = (
        instantiate(cli.compose_config("config", [*words, *more]).data, _convert_="all")
        for more in (
            [],
            ["data.augment=false", "data.framing={resize: box, box: [0, 0, 0.5, 1]}", "data.attributes=[a]"],
        )
    )
    assert plain.resolution == (128, 128)
    assert plain.augment.area[0] >= 0.7
    assert plain.preprocess["resize"] == {"celeba": "box", "lfw_attributes": "box"}.get(
        name, "center_crop" if name == "attributes_csv" else "stretch"
    )
    assert changed.augment is None
    assert changed.preprocess == {"resize": "box", "box": [0, 0, 0.5, 1]}
    assert changed.attributes == ["a"]
