"""Figures: what is drawn, not only that a file appears; names that trip matplotlib; whole files."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from mnvision import figures
from mnvision.errors import UserError
from mnvision.figures import save_confusion_matrix, save_pr_curves, save_training_curves
from mnvision.metrics.coco_accumulate import CocoTables
from mnvision.metrics.coco_scores import summarise

ODD_NAMES = ["$x$", "_hidden", "人", "a name that is far too long to be drawn", "line\nbreak"]
COUNTS = dict.fromkeys(
    ("num_images", "num_detections", "num_repeated", "num_foreign_detections", "num_ignored_annotations"), 0
)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    saved: list[Figure] = []
    original = Figure.savefig

    def savefig(self, *args, **kwargs):
        saved.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def is_picture(path, smallest=300):
    picture = cv2.imread(str(path))
    return min(picture.shape[:2]) >= smallest and picture.std() > 5


def scores_of(names, missing=()):
    curves = np.linspace(1, 0, 101)[:, None] * np.linspace(1, 0.1, len(names))
    precision = np.broadcast_to(curves[None, :, :, None], (10, 101, len(names), 4)).copy()
    precision[:, :, list(missing)] = -1
    return summarise(CocoTables(precision, np.zeros((10, len(names), 4, 3))), tuple(names), COUNTS)


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_few_classes_are_all_named(tmp_path, drawn):
    save_pr_curves(scores_of(["ant", "bee", "cat"], missing=[1]), tmp_path / "pr.png")
    assert is_picture(tmp_path / "pr.png")
    assert legend_of(drawn[0]) == ["ant  0.500", "cat  0.050", "mean of 2  0.275"]
    mean = drawn[0].axes[0].get_lines()[-1]
    assert mean.get_ydata()[0] == pytest.approx((1 + 0.1) / 2)


def test_of_many_classes_the_best_and_worst_are_named(tmp_path, drawn):
    names = [f"class {index}" for index in range(80)]
    save_pr_curves(scores_of(names), tmp_path / "pr.png")
    legend = legend_of(drawn[0])
    assert len(legend) == 11
    assert [line.split("  ")[0] for line in legend[:5]] == names[:5]
    assert [line.split("  ")[0] for line in legend[5:10]] == names[-5:]
    assert len(drawn[0].axes[0].get_lines()) == 81


def test_no_class_has_annotations(tmp_path):
    save_pr_curves(scores_of(["ant", "bee"], missing=[0, 1]), tmp_path / "pr.png")
    assert (tmp_path / "pr.png").is_file()


def test_small_confusion_matrix_shows_counts(tmp_path, drawn):
    matrix = np.array([[8, 2, 0], [0, 5, 5], [3, 0, 0]])
    save_confusion_matrix(matrix, ["ant", "bee"], tmp_path / "cm.png", "At score 0.5")
    assert is_picture(tmp_path / "cm.png")
    axes = drawn[0].axes[0]
    assert axes.get_title() == "At score 0.5"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ant", "bee", "background"]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "8", (1, 0): "2", (1, 1): "5", (2, 1): "5", (0, 2): "3"}
    assert axes.get_images()[0].get_array().tolist() == [[0.8, 0.2, 0], [0, 0.5, 0.5], [1, 0, 0]]


def test_large_confusion_matrix_has_a_label_per_class(tmp_path, drawn):
    save_confusion_matrix(np.eye(80, dtype=np.int64), [str(i) for i in range(80)], tmp_path / "cm.png")
    assert is_picture(tmp_path / "cm.png", 1500)
    assert len(drawn[0].axes[0].get_xticklabels()) == 80
    assert not drawn[0].axes[0].texts


def test_empty_confusion_matrix(tmp_path):
    save_confusion_matrix(np.zeros((2, 2), np.int64), ["ant", "bee"], tmp_path / "cm.png")
    assert is_picture(tmp_path / "cm.png")


def test_odd_names_are_drawn_without_a_warning(tmp_path, drawn):
    save_pr_curves(scores_of(ODD_NAMES), tmp_path / "pr.png")
    save_confusion_matrix(np.eye(5, dtype=np.int64), ODD_NAMES, tmp_path / "cm.png")
    assert len(legend_of(drawn[0])) == 6
    labels = [text.get_text() for text in drawn[1].axes[0].get_yticklabels()]
    assert labels[0] == r"\$x\$"
    assert labels[2] == "?"
    assert labels[3] == "a name that is far to…"
    assert "\n" not in labels[4]


def test_matrix_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not fit 3 class names"):
        save_confusion_matrix(np.eye(2, dtype=np.int64), ["a", "b", "c"], tmp_path / "cm.png")
    assert not list(tmp_path.iterdir())


METRICS = """epoch,step,seconds,images_per_second,lr,train/loss,val/loss,val/AP
0,10,1.5,80,0.1,4.0,,
1,20,1.5,80,0.01,2.0,3.0,0.25
2,30,1.5,80,0.001,1.0,nan,0.5
"""


def test_training_curves(tmp_path, drawn):
    (tmp_path / "metrics.csv").write_text(METRICS)
    save_training_curves(tmp_path / "metrics.csv", tmp_path / "figures" / "curves.png")
    assert is_picture(tmp_path / "figures" / "curves.png")
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert list(panels) == ["lr", "loss", "AP"]
    assert panels["lr"].get_yscale() == "log"
    curves = {line.get_label(): line.get_xydata().tolist() for line in panels["loss"].get_lines()}
    assert curves == {"train": [[0, 4], [1, 2], [2, 1]], "val": [[1, 3]]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        ("", "no epochs"),
        ("epoch,lr\n", "no epochs"),
        ("epoch,step\n0,1\n", "nothing to draw"),
        ("epoch,lr\n0,fast\n", "column 'lr'"),
    ],
)
def test_bad_tables_are_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match=words):
        save_training_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_a_failed_writer_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "cm.png"
    path.write_bytes(b"old")

    def fail(self, file, **kwargs):
        file.write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        save_confusion_matrix(np.eye(2, dtype=np.int64), ["a", "b"], path)
    assert [file.name for file in tmp_path.iterdir()] == ["cm.png"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_confusion_matrix(np.eye(2, dtype=np.int64), ["a", "b"], tmp_path / "file" / "cm.png")


def test_no_global_figures_remain():
    assert not hasattr(figures, "plt")
