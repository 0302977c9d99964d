"""Choosing width and resolution: the frontier, budgets, rankings, the user's own runs, and the command."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from mnvision import figures_latency
from mnvision.cost import measure
from mnvision.errors import UserError
from mnvision.latency.choice import Budget, Point, choose, file_megabytes, frontier, shortfall, with_scores
from mnvision.latency.published import published_accuracy
from tests.builders_models import save_classifier
from tools import cli
from tools.choose import main
from tools.cost import build_settled
from tools.grid import alphas_of, counted, resolutions_of

scores = st.one_of(st.none(), st.integers(0, 4).map(float))
tables = st.lists(st.tuples(st.integers(0, 4).map(float), scores), max_size=12)


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(tables)
def test_the_frontier_is_what_nothing_beats(table):
    on = frontier([cost for cost, _ in table], [score for _, score in table])
    best = [row for row, is_on in zip(table, on, strict=True) if is_on]
    known = [row for row in table if row[1] is not None]
    assert all(row in known for row in best)
    assert not any(beats(one, other) for one in known for other in best)
    # Whatever is left out is beaten by something on it.
    assert all(row in best or any(beats(one, row) for one in best) for row in known)
    assert bool(best) == bool(known)


def test_the_frontier_of_a_table():
    assert frontier([1, 2, 3, 3], [5, 4, 6, 7]) == [True, False, False, True]
    assert frontier([1, 1], [5, 5]) == [True, True]
    assert frontier([1, 2], [None, 1]) == [False, True]


def point(alpha: float, ms: float, top1: float | None, madds: int = 100, **more) -> Point:
    return Point(alpha, 128, madds, int(1e6 * alpha), 4 * alpha, latency_ms=ms, published=top1, **more)


TABLE = [point(0.25, 2.0, 0.4, 40), point(0.5, 5.0, 0.55, 90), point(0.75, 6.0, 0.55, 200), point(1.0, 9.0, 0.7, 600)]


@pytest.mark.parametrize(
    ("budget", "alpha"),
    [
        (Budget(latency_ms=100), 1.0),
        (Budget(latency_ms=9), 1.0),
        (Budget(latency_ms=8.9), 0.5),  # 0.75 is as good but slower
        (Budget(latency_ms=8, params=4e5), 0.25),
        (Budget(file_mb=2.0), 0.5),
        (Budget(madds=90), 0.5),
        (Budget(madds=89), 0.25),
        (Budget(latency_ms=1), None),
    ],
)
def test_the_best_within_the_budget(budget: Budget, alpha: float | None):
    choice = choose(TABLE, budget, "latency_ms")
    assert (choice.best.alpha if choice.best else None) == alpha
    assert choice.ranking == "published"


def test_nothing_fits_is_one_line_with_the_nearest():
    budget = Budget(latency_ms=1.0, params=1e5)
    text = shortfall(choose(TABLE, budget, "latency_ms"), budget)
    assert text.startswith(
        "nothing fits: the nearest is alpha 0.25 at 128 px with 2 ms, 2 times budget.latency_ms and "
    )
    assert "0.25 M parameters, 2.5 times budget.params" in text
    assert "\n" not in text


def test_own_scores_come_before_published_ones():
    known = with_scores(TABLE, {(0.25, 128): [0.6, 0.8], (0.5, 128): [0.7], (9.0, 1): [1.0]})
    assert [(p.own, p.runs) for p in known] == [(0.8, 2), (0.7, 1), (None, 0), (None, 0)]
    choice = choose(known, Budget(latency_ms=100), "latency_ms")
    assert (choice.ranking, choice.best.alpha) == ("own", 0.25)
    assert "2 of 4 points" in choice.reason


def test_without_scores_the_most_multiply_adds_are_taken_and_that_is_said():
    unknown = [point(p.alpha, p.latency_ms, None, p.mult_adds) for p in TABLE]
    choice = choose(unknown, Budget(latency_ms=8), "latency_ms")
    assert (choice.ranking, choice.best.alpha) == ("mult_adds", 0.75)
    assert "no score is published for this task" in choice.reason
    mixed = choose([*TABLE[:2], unknown[2]], Budget(latency_ms=8), "latency_ms")
    assert (mixed.ranking, mixed.best.alpha) == ("mult_adds", 0.75)
    assert "1 points have no published score" in mixed.reason


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 1)), min_size=1, max_size=9), st.floats(0.1, 9))
def test_the_choice_lies_on_the_frontier_of_what_fits(rows, limit: float):
    points = [point(1 + i, ms, top1) for i, (ms, top1) in enumerate(rows)]
    budget = Budget(latency_ms=limit)
    choice = choose(points, budget, "latency_ms")
    fits = [p for p in points if p.latency_ms <= limit]
    assert (choice.best is None) == (not fits)
    if fits:
        on = frontier([p.latency_ms for p in fits], [p.published for p in fits])
        assert choice.best in [p for p, is_on in zip(fits, on, strict=True) if is_on]


@pytest.mark.parametrize("value", [0, -8, "fast", True, float("nan"), float("inf")])
def test_a_budget_is_a_number_above_zero(value):
    with pytest.raises(UserError, match=r"budget\.madds=.*: give a number above 0, e\.g\. budget\.madds=150e6"):
        Budget.from_mapping({"madds": value})


def test_an_unknown_budget_is_named():
    with pytest.raises(UserError, match=r"budget\.watts: there is no such budget; known are latency_ms, madds"):
        Budget.from_mapping({"watts": 1})


def test_the_papers_sixteen_models():
    known = published_accuracy()
    assert len(known) == 16
    # Table 6, Table 7, and TF-slim's list.
    assert (known[(1.0, 224)], known[(0.25, 224)], known[(1.0, 128)], known[(0.5, 160)]) == (0.706, 0.506, 0.644, 0.599)


def compose(*words: str):
    return cli.compose_config("choose", [*words, "paths.output_dir=out"])


def test_costs_are_those_of_tools_cost_and_a_file_is_as_large_as_exported():
    (found,) = counted(compose("task=imagenet"), [(1.0, 224)])
    cost = measure(build_settled(cli.compose_config("cost", ["task=imagenet", "paths.output_dir=out"])), 224)
    assert (found.mult_adds, found.params) == (cost.mult_adds, cost.params) == (568740352, 4231976)
    assert found.file_mb == pytest.approx(16.9, abs=0.1)  # ONNX, OpenVINO and LiteRT files of it: 16.9 to 17.0 MB
    assert file_megabytes(cost, "int8") == pytest.approx(4.25, abs=0.05)  # 4.4 to 4.6 MB with their scales
    assert found.published == 0.706
    with pytest.raises(UserError, match="precision=int3"):
        file_megabytes(cost, "int3")


def test_the_grid():
    assert resolutions_of(compose("task=imagenet")) == [128, 160, 192, 224]
    assert resolutions_of(compose("task=ssd_coco")) == [176, 208, 256, 300]
    assert resolutions_of(compose("task=face_embeddings")) == [64, 80, 96, 112]
    assert resolutions_of(compose("task=imagenet", "resolutions=96")) == [96]
    assert alphas_of(compose("alphas=[1,0.5,0.5]")) == [0.5, 1.0]
    for word in ("alphas=[0.5,x]", "alphas=[-1]", "alphas=[]", "alphas=0"):
        with pytest.raises(UserError, match="alphas"):
            alphas_of(compose(word))
    for word in ("resolutions=[1.5]", "resolutions=[0]", "resolutions=[]"):
        with pytest.raises(UserError, match="resolutions"):
            resolutions_of(compose(word))


def test_a_detector_has_no_published_score_and_other_backbones_neither():
    (found,) = counted(compose("task=ssd_coco"), [(0.25, 176)])
    assert found.published is None
    (shallow,) = counted(compose("task=imagenet", "backbone.variant=shallow"), [(1.0, 224)])
    assert shallow.published is None


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tools/choose.py", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_prints_what_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ["task=imagenet", "budget.madds=150e6", f"output={tmp_path}", "trainer.max_epochs=3"]
    assert run(monkeypatch, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == (
        "python tools/train.py task=imagenet trainer.max_epochs=3 backbone.alpha=0.5 backbone.resolution=224"
    )
    cfg = cli.compose_config("config", [*shlex.split(lines[-1])[2:], "paths.output_dir=out"])
    assert (cfg.backbone.alpha, cfg.backbone.resolution, cfg.trainer.max_epochs) == (0.5, 224, 3)
    assert any("ranked by the top-1 on ImageNet" in line for line in lines)
    rows = list(csv.DictReader((tmp_path / "choice.csv").read_text().splitlines()))
    assert len(rows) == 16
    assert [row["alpha"] + row["resolution"] for row in rows if row["chosen"] == "True"] == ["0.5224"]
    assert (tmp_path / "choice.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["budget.params=10"], "nothing fits: the nearest is alpha 0.25 at 128 px"),
        (["budget.latency=3"], "there is no config key 'budget.latency'; did you mean budget.latency_ms"),
        (["budget.madds=-5"], "budget.madds=-5: give a number above 0"),
        ([], "no budget given: e.g. budget.latency_ms=8"),
        (["budget.madds=1e9", "alphas=[a]"], "alphas=a: give a number > 0"),
        (["budget.latency_ms=1", "runtime=tpu"], "runtime=tpu: choose torch or onnx"),
        (["budget.latency_ms=1", "precision=int8"], "runtime=torch is timed in fp32"),
        (["budget.latency_ms=1", "threads=99"], "threads=99: this process may use"),
        (["budget.madds=1e9", "runs=nowhere"], "runs=nowhere: there is no such folder"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    small = [] if any("alphas" in word for word in words) else ["alphas=0.25"]
    code = run(monkeypatch, "task=imagenet", "resolutions=128", *small, f"output={tmp_path}", *words)
    text = capsys.readouterr().err.strip()
    assert (code, text.count("\n")) == (2, 0)
    assert error in text


def make_run(folder: Path, alpha: float, top1: float, root: str = "pets") -> None:
    """A run folder as training leaves it."""
    run_config = {
        "data": {"_target_": "x.Folder", "root": root},
        "seed": 0,
        "trainer": {"max_epochs": 1},
        "backbone": {"pretrained": None},
    }
    (folder / "checkpoints").mkdir(parents=True)
    save_classifier(folder / "checkpoints" / "best.ckpt", run=run_config)
    OmegaConf.save(OmegaConf.create(run_config), folder / "config.yaml")
    row = {"epoch": 0, "val/top1": top1}
    text = json.dumps({"monitor": "val/top1", "mode": "max", "last": row, "best": row})
    (folder / "metrics.json").write_text(text)


def test_own_runs_rank_the_grid_and_join_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for number, top1 in enumerate((0.7, 0.9)):
        make_run(tmp_path / "runs" / str(number), 0.25, top1)
    words = ["task=classification", "head.num_classes=3", "budget.madds=1e9", "alphas=[0.5]", "resolutions=[96]"]
    words += [f"runs={tmp_path / 'runs'}", f"output={tmp_path / 'out'}"]
    assert run(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert "0.9000 (2)" in out
    assert "your scores: top1 on pets" in out
    assert out.splitlines()[-1].endswith("head.num_classes=3 backbone.alpha=0.25 backbone.resolution=96")
    assert run(monkeypatch, "task=ssd_coco", *words[2:]) == 2
    assert "none of the 2 runs is of this task and head; they are: Classifier" in capsys.readouterr().err
    make_run(tmp_path / "runs" / "other", 0.25, 1.0, root="birds")
    assert run(monkeypatch, *words) == 2
    assert "scores of different data do not compare (birds, 3 classes, pets, 3 classes)" in capsys.readouterr().err


def test_every_point_of_the_figure_is_named_and_names_do_not_cover_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept: list[Figure] = []
    monkeypatch.setattr(figures_latency, "save_figure", lambda figure, path: kept.append(figure))
    known = published_accuracy()
    points = [
        Point(a, r, int(568e6 * a * (a + 0.1) * r**2 / 224**2), 1, 1.0, published=top1)
        for (a, r), top1 in known.items()
    ]
    budget = Budget(madds=150e6)
    choice = choose(points, budget, "madds")
    figures_latency.save_choice(points, budget, choice, "madds", "t", "Top-1", tmp_path / "x.png")
    (axes,) = kept[0].axes
    assert sorted(text.get_text() for text in axes.texts) == sorted(p.name for p in points)
    renderer = kept[0].canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i])
