"""Arithmetic of the duel of exported files, and the cut graphs; nothing is timed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.duel import Contestant, Sample, contest, raw
from benchmarks.exported_duel import EAGER, PARTS, part_name, ratio_rows, split_table, times_table
from benchmarks.exported_files import PRECISIONS, mult_adds
from benchmarks.exported_sides import timed_calls
from mnvision.latency.contest import Block


def test_a_contestant_may_tell_the_time_of_every_call() -> None:
    (sample,) = contest([Contestant("a", "tests.builders_contestant:three_calls")], 1)["a"]
    assert (sample.units, list(sample.times_ms)) == (3, [1.0, 2.0, 4.0])
    assert sample.cpu_ms >= 0
    assert raw({"a": [sample]})["a"][0]["times_ms"] == [1.0, 2.0, 4.0]
    assert set(raw({"a": [Sample(1.0, 2)]})["a"][0]) == {"seconds", "units", "foreign_cores"}


def test_the_first_call_of_a_round_is_not_timed() -> None:
    calls: list[int] = []
    times = timed_calls(lambda: calls.append(1), 0.0)()
    assert (len(calls), len(times)) == (2, 1)


def blocks(**rounds: list[list[float]]) -> dict[str, list[Block]]:
    return {
        name: [Block(tuple(times), sum(times) / len(times), 0.5) for times in found] for name, found in rounds.items()
    }


def test_times_are_over_all_calls_of_all_rounds(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(bytes(2_000_000))
    table = times_table("t", blocks(ours=[[1, 2, 3], [10, 20]]), {"ours": tmp_path / "a.xml"})
    assert list(table.rows) == [["ours", "3.00", "1.40", "16.00", "8.50", "2.00", "-", "0.50"]]


def test_ratios_are_within_rounds_and_of_ours_to_every_peer_that_ran() -> None:
    found = blocks(peer=[[4, 4], [9, 9]], **{"ours, a": [[2, 2], [3, 3]]})
    table = ratio_rows("t", found, ["peer", "absent", EAGER])
    assert list(table.rows) == [["ours, a / peer", "2.50 (2.00-3.00)", "2.50"]]


def test_the_split_is_what_each_part_adds() -> None:
    found = {
        part_name(precision, part): [Block((ms, ms), ms), Block((2 * ms, 2 * ms), ms)]
        for precision in PRECISIONS
        for part, ms in zip(PARTS, (4.0, 5.0, 5.5, 6.5), strict=True)
    }
    rows = list(split_table("t", found).rows)[: len(PARTS)]
    assert [row[0] for row in rows] == [f"onnx fp32: {part}" for part in PARTS]
    assert [row[1] for row in rows] == ["6.00 (4.00-8.00)", "1.50 (1.00-2.00)", "0.75 (0.50-1.00)", "1.50 (1.00-2.00)"]
    assert [row[2] for row in rows] == ["4.00", "1.00", "0.50", "1.00"]


def convolutions(int8: bool) -> Any:
    """An 8 x 8 picture through a 3 x 3 convolution to 5 maps, ReLU6, then a depthwise one of stride 2."""
    onnx = pytest.importorskip("onnx")
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    constants = {
        "w": np.ones((5, 3, 3, 3), np.float32),
        "d": np.ones((5, 1, 3, 3), np.float32),
        "step": np.asarray(0.05, np.float32),
        "zero": np.asarray(0, np.uint8),
    }
    rounding = [
        make("QuantizeLinear", ["a", "step", "zero"], ["q"]),
        make("DequantizeLinear", ["q", "step", "zero"], ["b"]),
    ]
    nodes = [
        make("Conv", ["images", "w"], ["c"], pads=[1, 1, 1, 1]),
        make("Relu", ["c"], ["a"]),
        *(rounding if int8 else []),
        make("Conv", ["b" if int8 else "a", "d"], ["maps"], pads=[1, 1, 1, 1], strides=[2, 2], group=5),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("images", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [info("maps", onnx.TensorProto.FLOAT, [1, 5, 4, 4])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def test_multiply_adds_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(convolutions(int8=False).SerializeToString())
    by_hand = 8 * 8 * 5 * 3 * 3 * 3 + 4 * 4 * 5 * 3 * 3
    assert mult_adds(tmp_path / "g.onnx") == by_hand / 1e6
    assert mult_adds(tmp_path / "g.xml") is None


@pytest.mark.parametrize("int8", [False, True])
def test_a_cut_graph_ends_in_8_bits_where_the_next_layer_reads_such(int8: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    from benchmarks.exported_files import _cut

    cut = _cut(convolutions(int8), ["a"])
    assert [node.op_type for node in cut.graph.node] == ["Conv", "Relu", *(["QuantizeLinear"] if int8 else [])]
    assert "d" not in {entry.name for entry in cut.graph.initializer}
    session = runtime.InferenceSession(cut.SerializeToString())
    (found,) = session.run(None, {"images": np.full((1, 3, 8, 8), 0.05, np.float32)})
    inside = 27 * 0.05 / (0.05 if int8 else 1)
    assert (found.dtype, found.shape) == (np.uint8 if int8 else np.float32, (1, 5, 8, 8))
    assert found[0, 0, 3, 3] == pytest.approx(inside)


def test_an_untrained_int8_file_is_in_int8_and_says_that_nothing_was_measured(tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnxscript", "nncf"):
        pytest.importorskip(package)
    from mnvision.export.onnx import Onnx
    from mnvision.export.runtime import open_file
    from mnvision.latency.subjects import Candidate
    from mnvision.latency.untrained import untrained_file
    from tests.builders_export import config_of

    path = untrained_file(Candidate("0.25-64", config=config_of("classification", 3, {})), Onnx(), "int8", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] == ["0.25-64_int8.onnx"]
    metadata = open_file(path).session.metadata
    assert (metadata.precision, metadata.quantization["measured"]) == ("int8", "nothing: random weights")
    assert path.stat().st_size < 0.45 * 4 * 218_000  # a quarter of the weights' size, and the graph
