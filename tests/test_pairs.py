"""Files of pairs: every accepted form by hand, and clear refusals."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from mnvision.data.identity_pairs import keep_pairs, pairs_among, pictures_of_pairs, sample_pairs
from mnvision.data.index import FindingCounter
from mnvision.data.pairs import PairArrays, blocks, read_pairs
from mnvision.errors import UserError
from tests.builders_identities import LFW_PAIRS, make_lfw, people_of

LIST = "a.jpg b.jpg 1\nc.jpg d.jpg 0\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "pairs.txt"
    path.write_text(text)
    return path


class TestForms:
    def test_lfw(self, tmp_path: Path):
        pairs = read_pairs(write(tmp_path, LFW_PAIRS))
        assert pairs.first[:3] == ["Ann_Lee/Ann_Lee_0001", "Bob_Ray/Bob_Ray_0001", "Ann_Lee/Ann_Lee_0001"]
        assert pairs.second[1:4] == ["Bob_Ray/Bob_Ray_0002", "Bob_Ray/Bob_Ray_0001", "Bob_Ray/Bob_Ray_0002"]
        assert pairs.same.tolist() == [True, True, False, False] * 2
        assert pairs.folds.tolist() == [0] * 4 + [1] * 4
        assert pairs.lines.tolist() == list(range(2, 10))
        assert pairs.numbered

    def test_lfws_development_list_gets_folds_of_both_kinds(self, tmp_path: Path):
        same = "".join(f"P{i}\t1\t2\n" for i in range(23))
        different = "".join(f"P{i}\t1\tQ{i}\t1\n" for i in range(23))
        pairs = read_pairs(write(tmp_path, f"23\n{same}{different}"))
        expected = [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
        assert np.bincount(pairs.folds[pairs.same]).tolist() == expected
        assert np.bincount(pairs.folds[~pairs.same]).tolist() == expected
        assert (np.diff(pairs.folds[pairs.same]) >= 0).all()

    @pytest.mark.parametrize(
        "text",
        [
            LIST,
            "# a comment\n\na.jpg\tb.jpg\t1\nc.jpg\td.jpg\t0",
            "a.jpg,b.jpg,1\nc.jpg,d.jpg,-1\n",
            "1 a.jpg b.jpg\r\n0 c.jpg d.jpg\r\n",
            "a.jpg b.jpg same\nc.jpg d.jpg different\n",
            "file1,file2,same\na.jpg,b.jpg,1\nc.jpg,d.jpg,0\n",
            "\ufefflabel;Image 2;Image 1\nTrue;b.jpg;a.jpg\nFalse;d.jpg;c.jpg\n",
            "path1\tpath2\tis_same\na.jpg\tb.jpg\t1\nc.jpg\td.jpg\t0\n",
        ],
    )
    def test_lists(self, tmp_path: Path, text: str):
        pairs = read_pairs(write(tmp_path, text))
        assert (pairs.first, pairs.second) == (["a.jpg", "c.jpg"], ["b.jpg", "d.jpg"])
        assert pairs.same.tolist() == [True, False]
        assert pairs.folds.tolist() == [0, 1]
        assert not pairs.numbered

    def test_names_with_blanks(self, tmp_path: Path):
        for text in ("file1,file2,same\na b.jpg,c d.jpg,1\ne.jpg,f.jpg,0\n", "a b.jpg\tc d.jpg\t1\ne.jpg\tf.jpg\t0\n"):
            pairs = read_pairs(write(tmp_path, text))
            assert (pairs.first[0], pairs.second[0]) == ("a b.jpg", "c d.jpg")

    def test_folds_of_the_file(self, tmp_path: Path):
        for text in (
            "a.jpg b.jpg 1 7\nc.jpg d.jpg 0 7\ne.jpg f.jpg 0 2\n",
            "fold,a,b,same\n7,a.jpg,b.jpg,1\n7,c.jpg,d.jpg,0\n2,e.jpg,f.jpg,0\n",
        ):
            assert read_pairs(write(tmp_path, text)).folds.tolist() == [0, 0, 1]

    def test_kaggles_table_of_lfw(self, tmp_path: Path):
        pairs = read_pairs(write(tmp_path, "name,imagenum1,imagenum2,\nAnn_Lee,1,4,\nAnn_Lee,1,Bob_Ray,12\n"))
        assert pairs.second == ["Ann_Lee/Ann_Lee_0004", "Bob_Ray/Bob_Ray_0012"]
        assert pairs.lines.tolist() == [2, 3]

    @given(st.integers(10, 300))
    def test_blocks_are_those_of_an_unshuffled_kfold(self, length: int):
        expected = np.empty(length, np.int64)
        for fold, (_, rows) in enumerate(KFold(10, shuffle=False).split(np.zeros(length))):
            expected[rows] = fold
        np.testing.assert_array_equal(blocks(length), expected)

    def test_the_real_list(self, shared_data: Path):
        path = shared_data / "lfw" / "pairs.txt"
        if not path.is_file():
            pytest.skip("no LFW there")
        pairs = read_pairs(path)
        assert len(pairs) == 6000
        assert np.bincount(pairs.folds[pairs.same]).tolist() == [300] * 10
        assert np.bincount(pairs.folds[~pairs.same]).tolist() == [300] * 10
        assert len({*pairs.first, *pairs.second}) == 7701


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "pairs file is empty"),
        ("# nothing\n", "holds no pairs"),
        ("a.jpg b.jpg 1\na.jpg c.jpg\n", "line 2: 'a.jpg c.jpg' is no pair; give 'name n1 n2'"),
        ("a.jpg b.jpg 1\na.jpg c.jpg 2\n", "line 2: 'a.jpg c.jpg 2' is no pair"),
        ("a.jpg b.jpg 1\nc.jpg c.jpg 0\n", "line 2: c.jpg is paired with itself"),
        ("a.jpg b.jpg 1\nb.jpg c.jpg 0\nb.jpg a.jpg 0\n", "line 3: b.jpg and a.jpg are one person"),
        ("a.jpg b.jpg 1\nAnn 1 Bob 2\n", "line 2: numbered names as in LFW and file names are mixed"),
        ("a.jpg b.jpg 1\na.jpg c.jpg 1\n", "2 of 2 pairs are of one person"),
        ("a.jpg b.jpg 1 3\nc.jpg d.jpg 0 3\n", "all pairs are of fold 3"),
        ("a.jpg b.jpg 1 3\nc.jpg d.jpg 0\n", "line 2: the fold is missing"),
        ("left,right,person\na.jpg,b.jpg,1\n", "line 1: columns left, right, person; call them file1, file2, same"),
        ("file1,file2,same\na.jpg,b.jpg,maybe\n", "line 2: 'maybe' is not 1 (one person) or 0 (two)"),
        ("file1,file2,same\na.jpg,b.jpg\n", "line 2: 2 fields instead of 3"),
        ("file1,file2,same\na.jpg,,1\n", "line 2: a file name is missing"),
        (LFW_PAIRS.rsplit("\n", 2)[0], "line 1 announces 2 x 2 x 2 pairs, but 7 follow"),
        ("1\nA\t1\tB\t1\nA\t1\t2\n", "line 2: a pair of one person should stand here"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        read_pairs(write(tmp_path, text))


def test_a_missing_and_a_binary_file(tmp_path: Path):
    with pytest.raises(UserError, match="pairs file not found"):
        read_pairs(tmp_path / "pairs.txt")
    (tmp_path / "lfw.bin").write_bytes(b"\x80\x04\x95\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_pairs(tmp_path / "lfw.bin")


class TestPictures:
    @pytest.mark.parametrize("ending", [".jpg", ".png"])
    def test_each_picture_once_in_order_of_the_pairs(self, tmp_path: Path, ending: str):
        root = make_lfw(tmp_path, ending=ending)
        people, arrays = pictures_of_pairs(read_pairs(root / "pairs.txt"), root, "error")
        assert people.folder == root / "lfw-deepfunneled"
        assert people.file_names[:3] == [f"Ann_Lee/Ann_Lee_000{i}{ending}" for i in (1, 2)] + [
            f"Bob_Ray/Bob_Ray_0001{ending}"
        ]
        assert len(people) == len(set(people.file_names)) == 10
        assert arrays.positions[:4].tolist() == [[0, 1], [2, 3], [0, 2], [4, 3]]
        assert people.names == ["Ann_Lee", "Bob_Ray", "Cid_Sun", "Dan_Fox", "Eve_Poe"]
        same = people.identities[arrays.positions[:, 0]] == people.identities[arrays.positions[:, 1]]
        np.testing.assert_array_equal(same, arrays.same)

    def test_folders_that_contradict_the_answers_are_no_identities(self, tmp_path: Path):
        root = make_lfw(tmp_path)
        text = "".join(f"Ann_Lee/Ann_Lee_000{i}.jpg Ann_Lee/Ann_Lee_000{i % 3 + 1}.jpg {i % 2}\n" for i in (1, 2, 3))
        people, _ = pictures_of_pairs(read_pairs(write(tmp_path, text)), root, "error")
        assert people.names == []
        assert (people.identities == -1).all()

    def test_missing_pictures(self, tmp_path: Path):
        root = make_lfw(tmp_path)
        (root / "lfw-deepfunneled" / "Bob_Ray" / "Bob_Ray_0002.jpg").unlink()
        pairs = read_pairs(root / "pairs.txt")
        with pytest.raises(
            UserError,
            match=r"1 of 10 pictures that .*pairs.txt names \(first in line 3\) are not in .*Bob_Ray_0002.jpg",
        ):
            pictures_of_pairs(pairs, root, "error")
        people, arrays = pictures_of_pairs(pairs, root, "skip")
        assert len(people) == 9
        assert arrays.same.tolist() == [True, False, True, True, False, False]
        names = [[people.file_names[i] for i in row] for row in arrays.positions]
        assert names[1] == ["Ann_Lee/Ann_Lee_0001.jpg", "Bob_Ray/Bob_Ray_0001.jpg"]
        findings = people.found.findings()
        assert findings["pictures of pairs without a file left out"].examples == ("Bob_Ray/Bob_Ray_0002.jpg",)
        assert findings["pairs left out with their pictures"].count == 2

    def test_all_pictures_missing(self, tmp_path: Path):
        for missing in ("error", "skip"):
            with pytest.raises(UserError, match=r"10 of 10 pictures.*set data.pairs_root"):
                pictures_of_pairs(read_pairs(write(tmp_path, LFW_PAIRS)), tmp_path / "nowhere", missing)

    def test_pairs_within_a_split(self, tmp_path: Path):
        text = "a.jpg b.jpg 1 1\na.jpg c.jpg 0 2\nc.jpg e.jpg 0 1\nx.jpg y.jpg 1 1\n"
        people, arrays = pairs_among(
            read_pairs(write(tmp_path, text)), people_of(["c.jpg", "b.jpg", "z.jpg", "a.jpg"], [1, 0, 2, 0])
        )
        assert people.file_names == ["a.jpg", "b.jpg", "c.jpg"]
        assert people.identities.tolist() == [0, 0, 1]
        assert arrays.positions.tolist() == [[0, 1], [0, 2]]
        assert arrays.folds.tolist() == [0, 1]
        finding = people.found.findings()["pairs left out, of which one picture is in another split"]
        assert finding.examples == ("line 3",)

    def test_a_split_has_blocks_of_its_own(self, tmp_path: Path):
        text = "".join(f"{i}a.jpg {i}b.jpg {i % 2}\n" for i in range(40))
        names = [f"{i}{letter}.jpg" for i in range(20) for letter in "ab"]
        _, arrays = pairs_among(read_pairs(write(tmp_path, text)), people_of(names, list(range(40))))
        assert arrays.folds.tolist() == [i // 2 for i in range(20)]

    def test_what_remains_must_be_scorable(self):
        pairs = PairArrays(np.array([[0, 1], [2, 3], [0, 2]]), np.array([True, True, False]), np.array([0, 1, 1]))
        kept = np.array([True, False, True, True])
        found = FindingCounter()
        with pytest.raises(UserError, match="1 pairs of one person and 1 of two in 1 folds remain"):
            keep_pairs(pairs, kept, found, "pairs.txt")
        assert found.findings()["pairs left out with their pictures"].examples == ("pair 1",)


class TestSampling:
    @given(st.lists(st.integers(1, 6), min_size=4, max_size=40), st.integers(4, 200), st.integers(0, 5))
    def test_what_is_drawn(self, sizes: list[int], number: int, seed: int):
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
        if sum(size > 1 for size in sizes) < 2:
            with pytest.raises(UserError, match="too few to draw pairs from"):
                sample_pairs(labels, number, seed, "people")
            return
        pairs = sample_pairs(labels, number, seed, "people")
        first, second = pairs.positions.T
        np.testing.assert_array_equal(labels[first] == labels[second], pairs.same)
        assert (first != second).all()
        assert len({frozenset(row) for row in pairs.positions.tolist()}) == len(pairs.same)
        num_folds = len(np.unique(pairs.folds))
        assert len(pairs.same) <= max(number, 2 * num_folds)
        for fold in range(num_folds):
            assert pairs.same[pairs.folds == fold].mean() == 0.5
        fold_of = {
            int(label): fold for row, fold in zip(labels[pairs.positions].tolist(), pairs.folds) for label in row
        }
        for row, fold in zip(labels[pairs.positions].tolist(), pairs.folds):
            assert all(fold_of[label] == fold for label in row)

    def test_draws_depend_on_the_seed_alone(self):
        labels = np.repeat(np.arange(30), 5)
        draws = [sample_pairs(labels, 200, seed, "people") for seed in (1, 1, 2)]
        np.testing.assert_array_equal(draws[0].positions, draws[1].positions)
        assert not np.array_equal(draws[0].positions, draws[2].positions)
        assert len(draws[0].same) == 200
        assert len(np.unique(draws[0].folds)) == 10

    def test_people_with_many_pictures_do_not_take_all_pairs(self):
        labels = np.concatenate([np.zeros(100, np.int64), np.repeat(np.arange(1, 40), 3)])
        pairs = sample_pairs(labels, 120, 0, "people")
        assert np.bincount(labels[pairs.positions[pairs.same, 0]]).max() <= 3

    def test_unknown_people_are_not_used(self):
        labels = np.repeat([-1, 0, 1, 2, 3], 4)
        assert (labels[sample_pairs(labels, 10, 0, "people").positions] >= 0).all()
