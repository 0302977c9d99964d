"""The benchmarks import, and their arithmetic and tables are right; nothing is timed here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.all import NAMES, command
from benchmarks.cuda_step import OTHER, kind_of, shares
from benchmarks.duel import Contestant, Sample, contest, interleave, rate_table, ratio_table, ratios, raw
from benchmarks.mining import check_equal, make_batch
from benchmarks.report import Result, Table, finish, spread
from benchmarks.steps import make_targets
from benchmarks.torchvision_ssd import as_list, make_peer


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m benchmarks.{name}" in text
    assert "--output DIR" in text


SAMPLES = {"ours": [Sample(1.0, 30), Sample(2.0, 30)], "peer": [Sample(2.0, 30, 0.5), Sample(2.0, 30, 0.7)]}


def test_ratios_are_formed_within_each_round() -> None:
    assert ratios(SAMPLES, "ours", "peer") == [2.0, 1.0]
    assert ratios(SAMPLES, "peer", "ours") == [0.5, 1.0]


def test_ratios_need_equally_many_rounds() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios({"ours": [Sample(1.0, 1)], "peer": []}, "ours", "peer")


def test_spread_is_median_and_range() -> None:
    assert spread([3.0, 1.0, 10.0]) == "3.00 (1.00-10.00)"
    assert spread([2.0, 1.0], 1) == "1.5 (1.0-2.0)"


def test_tables_of_rates_and_ratios() -> None:
    rates = rate_table("Speed", "images", SAMPLES)
    assert rates.rows == [["ours", "22.5 (15.0-30.0)", "?"], ["peer", "15.0 (15.0-15.0)", "0.60"]]
    ratio = ratio_table("Ratio", SAMPLES, [("ours", "peer")])
    assert ratio.rows == [["ours / peer", "1.50 (1.00-2.00)"]]


def test_markdown_is_aligned() -> None:
    text = Table("Speed", ["who", "images/s"], [["ours", "22.5"], ["a peer", "9"]]).markdown()
    assert text.splitlines() == [
        "**Speed**",
        "",
        "| who    | images/s |",
        "| ------ | -------: |",
        "| ours   |     22.5 |",
        "| a peer |        9 |",
    ]


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Table("Speed", ["who", "images/s"], [["ours"]]).markdown()


def test_results_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = rate_table("Speed", "images", SAMPLES)
    result = Result("demo", {"rounds": 2}, [table], ["A note."], raw(SAMPLES), {"processor": "any"})
    finish(result, tmp_path / "new")
    printed = capsys.readouterr().out
    assert "## demo" in printed
    assert "- A note." in printed
    assert (tmp_path / "new" / "demo.md").read_text() == printed.removesuffix("\n")
    stored = json.loads((tmp_path / "new" / "demo.json").read_text())
    assert stored["samples"]["peer"][0] == {"seconds": 2.0, "units": 30, "foreign_cores": 0.5}
    assert stored["tables"][0]["columns"] == ["contestant", "images/s", "cores busy elsewhere"]


def test_interleaved_tasks_take_turns() -> None:
    order: list[str] = []

    def task(name: str) -> int:
        order.append(name)
        return 5

    samples = interleave({"a": lambda: task("a"), "b": lambda: task("b")}, 2)
    assert order == ["a", "b", "a", "b"]
    assert [sample.units for sample in samples["a"]] == [5, 5]


def test_contestants_are_processes_that_answer() -> None:
    target = "tests.builders_contestant:countdown"
    samples = contest([Contestant("a", target, {"units": 3}), Contestant("b", target, {"units": 4})], 2)
    assert {name: [sample.units for sample in found] for name, found in samples.items()} == {
        "a": [3, 3],
        "b": [4, 4],
    }


def test_a_contestant_that_fails_is_named() -> None:
    with pytest.raises(RuntimeError, match="'broken' ended with exit code 1"):
        contest([Contestant("broken", "tests.builders_contestant:absent")], 1)


def test_the_command_of_a_benchmark(tmp_path: Path) -> None:
    words = command("memory", True, tmp_path)
    assert words[1:] == ["-m", "benchmarks.memory", "--quick", "--output", str(tmp_path.resolve())]


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::cudnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::native_batch_norm_backward", "batch norm"),
        ("aten::_foreach_add_", "optimizer"),
        ("aten::topk", "sorting, selection"),
        ("aten::copy_", "copies, casts"),
        ("aten::addmm", "matrix product"),
        ("aten::hardtanh_", OTHER),
    ],
)
def test_kinds_of_operations(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


def test_shares_add_up_to_the_step() -> None:
    found = shares([("aten::copy_", 1.0), ("aten::cudnn_convolution", 4.0), ("aten::to", 1.0)], 10.0)
    assert found == pytest.approx({"convolution": 0.4, "copies, casts": 0.2, "device idle": 0.4})
    assert list(found) == ["convolution", "copies, casts", "device idle"]


def test_both_sides_get_the_same_objects() -> None:
    padded = make_targets(4, 300)
    listed = as_list(padded)
    assert [len(target["boxes"]) for target in listed] == (padded["labels"] >= 0).sum(dim=1).tolist()
    assert torch.equal(listed[1]["labels"], padded["labels"][1][: len(listed[1]["labels"])] + 1)
    sides = torch.cat([target["boxes"][:, 2:] - target["boxes"][:, :2] for target in listed])
    assert float(sides.min()) > 0
    assert np.isclose(make_targets(13, 300)["labels"].ge(0).sum() / 13, 7.0)


def test_both_sides_choose_the_same_triplets() -> None:
    embeddings, labels = make_batch(5, 3, 8)
    assert check_equal("batch_hard", embeddings, labels) == (15, 15)
    ours, peers = check_equal("semi_hard", embeddings, labels)
    assert ours == 30
    assert peers > 10


def test_the_peer_has_our_boxes_or_torchvisions() -> None:
    images = [torch.zeros(3, 300, 300)] * 2
    targets = as_list(make_targets(2, 300))
    for same_network, boxes in ((True, 1917), (False, 2278)):
        peer = make_peer(300, same_network).train()
        seen: list[torch.Size] = []
        peer.head.register_forward_hook(lambda *call, seen=seen: seen.append(call[2]["cls_logits"].shape))
        assert all(torch.isfinite(loss) for loss in peer(images, targets).values())
        assert seen == [torch.Size([2, boxes, 81])]
