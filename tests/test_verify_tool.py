"""tools/verify.py and what it stands on: predictor, pair files, calibration, report."""

from __future__ import annotations

import csv
import json
import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import mnvision
from mnvision.checkpoints import read_checkpoint, read_metadata, shipped_weights
from mnvision.data.pairs import read_pairs
from mnvision.errors import UserError
from mnvision.metrics.verification import verify
from mnvision.metrics.verification_scores import VerificationScores
from mnvision.prediction.embedding_files import embed_files, load_embedder
from mnvision.prediction.embeddings import EmbeddingPredictor
from mnvision.prediction.pair_files import embed_pairs, find_pair_pictures
from mnvision.prediction.preprocess import Prepared
from tasks.reports_embeddings import verification_report
from tests.builders_embeddings import ALIGNED, DIM, make_people, pair_lines, save_embedder
from tests.builders_models import SIDE, files_below, picture, save_classifier
from tests.builders_tools import refusal
from tools.cli import CONF
from tools.verify import main

LANDMARK_HEADER = "file,leye_x,leye_y,reye_x,reye_y,nose_x,nose_y,lmouth_x,lmouth_y,rmouth_x,rmouth_y"
# The template's points in a picture 80 wide and 90 high, shrunk and shifted.
ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
FACE = ARCFACE * 0.5 + np.array([12, 20])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, pictures of twelve people and a list of pairs; not to be written to."""
    folder = tmp_path_factory.mktemp("verify")
    save_embedder(folder / "plain.ckpt")
    save_embedder(folder / "calibrated.ckpt", calibration={"similarity": 0.8, "pairs": 77, "mirror": False})
    save_embedder(folder / "aligned.ckpt", preprocess=ALIGNED)
    save_classifier(folder / "classifier.ckpt")
    names = make_people(folder / "faces")
    (folder / "pairs.txt").write_text("\n".join(pair_lines(names)) + "\n")
    (folder / "points.csv").write_text("\n".join([LANDMARK_HEADER, *(row(name) for name in names)]) + "\n")
    return folder


def row(name: str, shift: float = 0.0) -> str:
    return ",".join([name, *(f"{value:.3f}" for value in (FACE + shift).ravel())])


@pytest.fixture
def run_tool(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(*words: str, checkpoint: str = "plain") -> None:
        monkeypatch.chdir(tmp_path)
        start = ["verify.py", f"checkpoint={folder / checkpoint}.ckpt", "device=cpu"]
        monkeypatch.setattr(sys, "argv", [*start, *words])
        main()

    return run


def protocol_words(folder: Path, *words: str) -> list[str]:
    return [f"pairs={folder / 'pairs.txt'}", f"root={folder / 'faces'}", *words]


class TestTwoPictures:
    def test_no_decision_without_calibration(self, run_tool, folder: Path, capsys):
        first, second = folder / "faces" / "P0" / "P0_0001.png", folder / "faces" / "P1" / "P1_0001.png"
        run_tool(str(first), str(second))
        model, _ = load_embedder(folder / "plain.ckpt").model, None
        with torch.inference_mode():
            images = [cv2.resize(cv2.imread(str(path))[..., ::-1], (SIDE, SIDE)) for path in (first, second)]
            a, b = model.predict(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).double()
        lines = capsys.readouterr().out.splitlines()
        similarity, distance = (float(lines[0].split()[i].rstrip(",")) for i in (2, 5))
        assert similarity == pytest.approx(float(a @ b), abs=0.01)  # resized by another rule
        assert distance == pytest.approx(2 - 2 * similarity, abs=2e-4)
        assert lines[1:] == [
            "no decision: the checkpoint is not calibrated; calibrate with pairs=FILE root=FOLDER save=calibrated.ckpt"
        ]

    def test_decision_at_the_stored_threshold(self, run_tool, folder: Path, tmp_path: Path, capsys):
        paths = [folder / f"faces/P{person}/P{person}_0001.png" for person in range(4)]
        rows = load_embedder(folder / "plain.ckpt").embed(paths).astype(np.float64)
        similarities = rows[0] @ rows[1:].T
        near, far = (paths[1 + int(choose(similarities))] for choose in (np.argmax, np.argmin))
        threshold = float(similarities.max() + similarities.min()) / 2
        save_embedder(tmp_path / "c.ckpt", calibration={"similarity": threshold, "pairs": 77, "mirror": False})
        run_tool(f"first={paths[0]}", f"second={near}", checkpoint=str(tmp_path / "c"))
        assert f"one person: the threshold is {threshold:.4f}, calibrated on 77 pairs" in capsys.readouterr().out
        run_tool(str(paths[0]), str(far), checkpoint=str(tmp_path / "c"))
        assert f"two people: the threshold is {threshold:.4f}, calibrated on 77 pairs" in capsys.readouterr().out

    def test_a_threshold_holds_for_embeddings_made_alike(self, run_tool, folder: Path, capsys):
        faces = folder / "faces"
        pictures = [str(faces / "P0/P0_0001.png"), str(faces / "P0/P0_0002.png")]
        run_tool(*pictures, "mirror=true", checkpoint="calibrated")
        assert "no decision: it was calibrated with mirror=false" in capsys.readouterr().out

    def test_odd_names_are_taken_literally(self, run_tool, folder: Path, tmp_path: Path, capsys):
        odd = tmp_path / "it's, {a} [b].png"
        odd.write_bytes((folder / "faces/P0/P0_0001.png").read_bytes())
        run_tool(str(odd), odd.name)
        assert "cosine similarity 1.0000, squared distance 0.0000" in capsys.readouterr().out

    def test_landmarks_align_or_their_absence_is_warned_about(self, run_tool, folder: Path, capsys, caplog):
        caplog.set_level(logging.WARNING, "mnvision")
        pictures = [str(folder / "faces/P0/P0_0001.png"), str(folder / "faces/P0/P0_0002.png")]
        run_tool(*pictures, checkpoint="aligned")
        assert [record.getMessage() for record in caplog.records] == [
            "no landmarks given: taken for faces cropped and aligned already; of others the answers are worth little"
        ]
        caplog.clear()
        without = capsys.readouterr().out
        run_tool(*pictures, f"landmarks={folder / 'points.csv'}", checkpoint="aligned")
        assert not caplog.records
        assert capsys.readouterr().out.splitlines()[0] != without.splitlines()[0]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "give two pictures (a.jpg b.jpg), or a list of pairs"),
            (["a.jpg"], "1 pictures given (a.jpg); give two"),
            (["a.jpg", "b.jpg", "c.jpg"], "3 pictures given"),
            (["first=a.jpg"], "give two pictures"),
            (["a.jpg", "b.jpg", "pairs=p.txt"], "give two pictures"),
            (["a.jpg", "b.jpg", "save=c.ckpt"], "calibrated on pairs"),
            (["a.jpg", "b.jpg"], "image file not found: a.jpg"),
            (["a.jpg", "b.jpg", "mirror=often"], "mirror='often'"),
            (["a.jpg", "b.jpg", "landmark=x"], "did you mean landmarks"),
            (["a.jpg", "b.jpg", "landmarks=none.csv"], "none.csv"),
        ],
    )
    def test_bad_words_end_in_one_line(self, run_tool, capsys, words, message):
        assert message in refusal(capsys, run_tool, *words)

    def test_a_picture_that_the_landmarks_lack(self, run_tool, folder: Path, tmp_path: Path, capsys):
        cv2.imwrite(str(tmp_path / "new.png"), picture())
        words = ["new.png", "new.png", f"landmarks={folder / 'points.csv'}"]
        assert "has no landmarks of new.png" in refusal(capsys, run_tool, *words, checkpoint="aligned")
        assert "this checkpoint does not align faces" in refusal(capsys, run_tool, *words)

    def test_bad_checkpoints(self, run_tool, folder: Path, tmp_path: Path, capsys):
        damaged = tmp_path / "damaged"
        damaged.with_suffix(".ckpt").write_bytes((folder / "plain.ckpt").read_bytes()[:5000])
        assert "truncated or corrupt" in refusal(capsys, run_tool, "a", "b", checkpoint=str(damaged))
        assert "does not exist" in refusal(capsys, run_tool, "a", "b", checkpoint="absent")
        error = refusal(capsys, run_tool, "a", "b", checkpoint="classifier")
        assert "classifier.ckpt is a classification checkpoint, which gives no embeddings" in error
        save_embedder(tmp_path / "odd.ckpt", calibration={"similarity": "high"})
        assert "calibration.similarity='high'" in refusal(capsys, run_tool, "a", "b", checkpoint=str(tmp_path / "odd"))


class TestProtocol:
    def test_scores_report_and_calibrated_copy(self, run_tool, folder: Path, tmp_path: Path, capsys):
        run_tool(*protocol_words(folder, "output=report", "save=new/calibrated.ckpt"))
        predictor = load_embedder(folder / "plain.ckpt")
        pairs = read_pairs(folder / "pairs.txt")
        files = list(dict.fromkeys(n for both in zip(pairs.first, pairs.second) for n in both))
        rows = predictor.embed([folder / "faces" / name for name in files])
        positions = [[files.index(a), files.index(b)] for a, b in zip(pairs.first, pairs.second)]
        expected = verify(rows, np.array(positions), pairs.same, pairs.folds)
        assert files_below(tmp_path / "report") == {
            *("metrics.json", "folds.csv", "roc.csv", "figures/roc.png", "figures/similarities.png")
        }
        written = json.loads((tmp_path / "report" / "metrics.json").read_text())
        assert written == {**json.loads(json.dumps(expected.to_dict())), "measured_on": str(folder / "pairs.txt")}
        printed = capsys.readouterr().out
        assert expected.table() in printed
        before, after = (read_checkpoint(p) for p in (folder / "plain.ckpt", tmp_path / "new" / "calibrated.ckpt"))
        metadata = read_metadata("after", after)
        assert metadata.calibration == expected.calibration()
        assert metadata.calibration["similarity"] == expected.similarity
        assert metadata.calibration["pairs"] == len(pairs)
        metadata.calibration = {}
        assert metadata == read_metadata("before", before)
        for name, value in shipped_weights(before).items():
            torch.testing.assert_close(shipped_weights(after)[name], value, rtol=0, atol=0)
        calibrated = mnvision.load(tmp_path / "new" / "calibrated.ckpt")
        assert isinstance(calibrated, EmbeddingPredictor)
        assert calibrated.threshold == expected.similarity
        assert calibrated.identity == predictor.identity
        decisions = [calibrated.compare(rows[a], rows[b]).same for a, b in positions]
        assert np.mean(np.array(decisions) == pairs.same) == expected.threshold_accuracy

    def test_pairs_that_nothing_separates_do_not_calibrate(self, run_tool, folder: Path, tmp_path: Path, capsys):
        lines = (folder / "pairs.txt").read_text().splitlines()
        turned = [f"{line[:-1]}{1 - int(line[-1])}" for line in lines]
        (tmp_path / "turned.txt").write_text("\n".join(turned) + "\n")
        words = [f"pairs={tmp_path / 'turned.txt'}", f"root={folder / 'faces'}", "save=c.ckpt"]
        assert "save=c.ckpt: not written, as pairs of one person are no more alike" in refusal(capsys, run_tool, *words)
        assert not (tmp_path / "c.ckpt").exists()
        assert (tmp_path / "verification" / "metrics.json").is_file()

    def test_calibration_at_a_false_accept_rate_and_with_mirrors(self, run_tool, folder: Path, tmp_path: Path):
        run_tool(*protocol_words(folder, "far=0.25", "mirror=true", "save=c.ckpt", "rates=0.5", "batch_size=5"))
        calibration = read_metadata(tmp_path / "c.ckpt").calibration
        written = json.loads((tmp_path / "verification" / "metrics.json").read_text())
        assert [rate["limit"] for rate in written["tar_at_far"]] == [0.5]
        assert (calibration["false_accept_rate"], calibration["mirror"]) == (0.25, True)
        predictor = load_embedder(tmp_path / "c.ckpt")
        assert predictor.mirror
        pairs = read_pairs(folder / "pairs.txt")
        _, names, positions = find_pair_pictures(pairs, folder / "faces")
        rows = predictor.embed([folder / "faces" / name for name in names])
        same = np.array([predictor.compare(rows[a], rows[b]).same for a, b in positions])
        assert same[~pairs.same].mean() <= 0.25

    def test_report_tables(self, folder: Path, tmp_path: Path):
        predictor = load_embedder(folder / "plain.ckpt")
        pairs = read_pairs(folder / "pairs.txt")
        _, names, positions = find_pair_pictures(pairs, folder / "faces")
        rows, _ = embed_pairs(predictor, folder / "faces", names)
        scores = verify(rows, positions, pairs.same, pairs.folds)
        people = ["Bo", "Al", "Cy", "Di", "Ed", "Flo"]
        lines = verification_report(tmp_path, scores, shared_names=people)
        assert lines[-1] == "6 people in the pairs were trained on, so the scores are too good: Al, Bo, Cy, Di, Ed, ..."
        assert verification_report(tmp_path, scores, [])[-1] == "nobody in the pairs was trained on, by name"
        with (tmp_path / "folds.csv").open() as file:
            folds = list(csv.DictReader(file))
        assert np.mean([float(fold["accuracy"]) for fold in folds]) == pytest.approx(scores.accuracy)
        with (tmp_path / "roc.csv").open() as file:
            curve = list(csv.DictReader(file))
        assert np.trapezoid([float(p["tar"]) for p in curve], [float(p["far"]) for p in curve]) == pytest.approx(
            scores.auc
        )
        for name in ("roc", "similarities"):
            image = cv2.imread(str(tmp_path / "figures" / f"{name}.png"))
            assert image.shape[1] > 500
            assert image.std() > 10

    def test_nothing_scored_leaves_no_figures(self, tmp_path: Path):
        lines = verification_report(tmp_path, VerificationScores.unscored(3))
        assert lines == ["no pairs could be scored; 3 name pictures that were not given"]
        assert files_below(tmp_path) == {"metrics.json"}

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["rates=[0.01]"], "cannot be measured with"),
            (["far=0.001"], "cannot be measured with"),
            (["far=low"], "false accept rate 'low'"),
            (["candidates=fine"], "choose one of grid, exact"),
            (["batch_size=0"], "batch_size must be"),
            (["root=nowhere"], "root=nowhere: there is no such folder"),
            (["pairs=none.txt"], "none.txt"),
            (["landmarks=points.csv"], "this checkpoint does not align faces"),
            (["points=arcface"], "this checkpoint does not align faces"),
        ],
    )
    def test_bad_words_end_in_one_line(self, run_tool, folder: Path, tmp_path: Path, capsys, words, message):
        assert message in refusal(capsys, run_tool, *protocol_words(folder), *words)
        assert files_below(tmp_path) == set()

    def test_pairs_that_name_unknown_pictures(self, run_tool, folder: Path, tmp_path: Path, capsys):
        lines = (folder / "pairs.txt").read_text().replace("P2/P2_0003", "P2/P2_0009")
        (tmp_path / "other.txt").write_text(lines)
        number = 1 + next(i for i, line in enumerate(lines.splitlines()) if "P2_0009" in line)
        error = refusal(capsys, run_tool, *protocol_words(folder), "pairs=other.txt")
        assert "1 of 12 pictures that other.txt names" in error
        assert f"line {number}" in error
        assert "P2/P2_0009.png; give root=FOLDER" in error

    def test_an_unreadable_picture_stops_the_protocol(self, run_tool, folder: Path, tmp_path: Path, capsys):
        names = make_people(tmp_path / "faces")
        (tmp_path / "faces" / names[5]).write_text("no picture")
        error = refusal(capsys, run_tool, *protocol_words(folder), f"root={tmp_path / 'faces'}")
        assert names[5] in error

    def test_every_picture_needs_landmarks_where_they_are_given(self, run_tool, folder: Path, tmp_path: Path, capsys):
        lines = (folder / "points.csv").read_text().splitlines()
        (tmp_path / "points.csv").write_text("\n".join(lines[:-2]) + "\n")
        words = protocol_words(folder, "landmarks=points.csv")
        error = refusal(capsys, run_tool, *words, checkpoint="aligned")
        assert "has no landmarks of 2 of 12 pictures, first P3/P3_000" in error

    def test_a_copy_that_cannot_be_written(self, run_tool, folder: Path, tmp_path: Path, capsys):
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit):
            run_tool(*protocol_words(folder), "save=file/c.ckpt")
        assert "cannot write file/c.ckpt" in capsys.readouterr().err


def test_names_of_lfw_are_found(folder: Path, tmp_path: Path):
    (tmp_path / "pairs.txt").write_text("2\t1\nP0\t1\t2\nP0\t1\tP1\t3\nP2\t1\t3\nP3\t2\tP1\t3\n")
    pairs = read_pairs(tmp_path / "pairs.txt")
    for root in (folder / "faces", folder):
        found, names, positions = find_pair_pictures(pairs, root)
        assert found == folder / "faces"
        wanted = ["P0/P0_0001", "P0/P0_0002", "P1/P1_0003", "P2/P2_0001", "P2/P2_0003", "P3/P3_0002"]
        assert names == [f"{name}.png" for name in wanted]
        assert positions.tolist() == [[0, 1], [0, 2], [3, 4], [5, 2]]


class TestPredictor:
    def test_embeddings_of_files_and_pixels(self, folder: Path):
        predictor = mnvision.load(folder / "plain.ckpt")
        assert isinstance(predictor, EmbeddingPredictor)
        paths = [folder / f"faces/P0/P0_000{number}.png" for number in (1, 2, 3)]
        rows = predictor.embed(paths, batch_size=2)
        assert (rows.shape, rows.dtype) == ((3, DIM), np.float32)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        pixels = [cv2.imread(str(path))[..., ::-1].copy() for path in paths]
        np.testing.assert_allclose(predictor.embed(pixels), rows, atol=1e-5)
        assert predictor.embed([]).shape == (0, DIM)
        result = predictor.predict(paths[0])
        np.testing.assert_allclose(result.embedding, rows[0], atol=1e-5)
        assert result.to_dict()["size"] == [90, 80]
        assert np.float32(result.to_dict()["embedding"]).tolist() == result.embedding.tolist()
        assert "16 numbers" in str(result)

    def test_mirrored_pictures_are_added(self, folder: Path):
        predictor = load_embedder(folder / "plain.ckpt")
        pixels = picture(3)
        plain, mirrored = predictor.embed([pixels, pixels[:, ::-1].copy()])
        expected = (plain + mirrored) / np.linalg.norm(plain + mirrored)
        np.testing.assert_allclose(predictor.embed([pixels], mirror=True)[0], expected, atol=1e-3)

    def test_landmarks_set_the_face_upright(self, folder: Path):
        predictor = load_embedder(folder / "aligned.ckpt")
        upright = picture(1, 200, 200)
        turned = cv2.rotate(upright, cv2.ROTATE_90_CLOCKWISE)
        points = FACE + np.array([40, 30])
        turned_points = np.stack([200 - points[:, 1], points[:, 0]], axis=1)
        seen = [predictor.preprocess(*one).pixels for one in ((upright, points), (turned, turned_points))]
        np.testing.assert_allclose(seen[0].astype(int), seen[1], atol=2)
        rows = predictor.embed([upright, turned], [points, turned_points])
        np.testing.assert_allclose(
            rows, predictor.embed_prepared([Prepared(pixels, (1, 1)) for pixels in seen]), atol=1e-5
        )
        assert np.abs(rows - predictor.embed([upright, turned])).max() > 0.05
        with pytest.raises(UserError, match="2 pictures with 1 landmarks"):
            predictor.embed([upright, turned], [points])

    def test_pictures_laid_out_alike_are_warned_about_in_other_words(self, tmp_path: Path, caplog):
        caplog.set_level(logging.WARNING, "mnvision")
        save_embedder(tmp_path / "c.ckpt", preprocess={**ALIGNED, "points": "arcface"})
        predictor = load_embedder(tmp_path / "c.ckpt")
        pixels = picture(1, 112, 112)
        rows = predictor.embed([pixels, pixels])
        assert [record.getMessage().split(";")[0] for record in caplog.records] == [
            "no landmarks given: taken for pictures laid out as in training"
        ]
        expected = load_embedder(tmp_path / "c.ckpt").model.predict(
            torch.from_numpy(cv2.resize(pixels, (SIDE, SIDE))).permute(2, 0, 1)[None]
        )
        assert rows[0] @ expected[0].detach().numpy() > 0.99

    def test_pictures_laid_out_in_a_known_way_need_no_warning(self, folder: Path, caplog):
        caplog.set_level(logging.WARNING, "mnvision")
        predictor = load_embedder(folder / "aligned.ckpt")
        pixels = picture(1, 120, 120)
        predictor.lay_out("arcface")
        expected = predictor.embed([pixels], [ARCFACE * 120 / 112])
        np.testing.assert_allclose(predictor.embed([pixels]), expected, atol=1e-5)
        assert not caplog.records
        with pytest.raises(UserError, match="does not align faces"):
            load_embedder(folder / "plain.ckpt").lay_out("arcface")
        with pytest.raises(UserError, match="five pairs"):
            predictor.lay_out([[0.1, 0.2]])

    def test_identity_follows_weights_and_preparation_alone(self, folder: Path, tmp_path: Path):
        plain = load_embedder(folder / "plain.ckpt").identity
        assert len(plain) == 16
        assert load_embedder(folder / "calibrated.ckpt").identity == plain
        assert load_embedder(folder / "aligned.ckpt").identity != plain
        content = read_checkpoint(folder / "plain.ckpt")
        content["state_dict"]["model.head.fc.weight"][0, 0] += 1
        torch.save(content, tmp_path / "other.ckpt")
        assert load_embedder(tmp_path / "other.ckpt").identity != plain

    def test_unreadable_files_among_many(self, folder: Path, tmp_path: Path):
        predictor = load_embedder(folder / "plain.ckpt")
        paths = [folder / f"faces/P{person}/P{person}_0001.png" for person in range(4)]
        (tmp_path / "bad.png").write_text("no picture")
        given = [paths[0], tmp_path / "bad.png", *paths[1:], tmp_path / "bad.png"]
        parts = list(embed_files(predictor, given, batch_size=2))
        assert [position for rows, _, _ in parts for position in rows] == [0, 2, 3, 4]
        assert [position for _, _, failed in parts for position, _ in failed] == [1, 5]
        found = np.concatenate([embeddings for _, embeddings, _ in parts])
        np.testing.assert_allclose(found, predictor.embed(paths), atol=1e-5)

    def test_scores_are_for_detectors(self, folder: Path):
        with pytest.raises(UserError, match="score_threshold is for detectors"):
            load_embedder(folder / "plain.ckpt").predict(picture(), score_threshold=0.5)


@pytest.mark.parametrize("name", ["verify", "embed"])
def test_help_fits_a_screen(name: str):
    lines = (CONF / "hydra" / "help" / f"{name}.yaml").read_text().split("template: |-\n")[1].splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 2 + 120
