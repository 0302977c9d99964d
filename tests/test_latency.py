"""Times: their arithmetic on hand-made blocks, what is called when, and costs beside them; no clock is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnvision.build import build_model
from mnvision.cost import measure
from mnvision.errors import UserError
from mnvision.latency.contest import Block, Key
from mnvision.latency.layers import REST, by_type, join_costs, time_layers
from mnvision.latency.machine import describe_machine, spread_cores, thread_counts
from mnvision.latency.report import Report, aligned, busy_note, number, tables, write_report
from mnvision.latency.subjects import (
    MODEL,
    NETWORK,
    WHOLE,
    Candidate,
    Subject,
    file_megabytes,
    make_picture,
    save_untrained,
)
from mnvision.latency.summary import cpu_ratio, make_cold_rows, make_rows, percentile, round_ratios
from mnvision.latency.worker import time_block, warm_up
from mnvision.runtime import usable_cores
from tests.builders_models import CLASSIFIER, DETECTOR, save_classifier

A, B = Key("a", "model", 4, 1), Key("b", "model", 4, 1)
BLOCKS = {
    A: [Block((10.0, 12.0, 11.0), 8.0, 0.0), Block((30.0, 20.0, 22.0), 8.0, 0.2)],
    B: [Block((5.0, 5.5, 9.0), 4.0, 0.0), Block((20.0, 22.0, 44.0), 2.0, 0.4)],
}


def test_percentiles_interpolate():
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile(range(1, 12), 10) == 2.0
    assert percentile(range(1, 12), 90) == 10.0
    assert percentile([1.0, 2.0], 50) == 1.5


def test_rows_hold_medians_of_calls_and_of_the_ratios_within_rounds():
    first, second = make_rows(BLOCKS, {"a": {"runtime": "torch"}}, "here")
    assert (first.file, first.runtime, first.ratio, first.calls) == ("a", "torch", 1.0, 6)
    assert first.median_ms == 16.0  # of 10 11 12 20 22 30
    assert first.images_per_s == 4 / 16.0 * 1000
    assert first.mean_ms == pytest.approx(105 / 6)
    # 11 / 5.5 in the first round, 22 / 22 in the second.
    assert (second.ratio, second.ratio_low, second.ratio_high) == (1.5, 1.0, 2.0)
    assert second.cpu_ratio == 3.0  # 8 / 4 and 8 / 2
    assert second.foreign_cores == pytest.approx(0.2)


def test_other_batches_and_threads_have_references_of_their_own():
    blocks = {**BLOCKS, Key("b", "model", 1, 1): BLOCKS[B], Key("b", "model", 4, 2): BLOCKS[B]}
    assert [row.ratio for row in make_rows(blocks, {}, "")] == [1.0, 1.5, 1.0, 1.0]


def test_ratios_need_equally_many_rounds():
    with pytest.raises(ValueError, match="zip"):
        round_ratios(BLOCKS[A], BLOCKS[B][:1])
    assert cpu_ratio([Block((1.0,))], [Block((1.0,))]) is None


@given(st.lists(st.tuples(*[st.floats(0.1, 100)] * 3), min_size=1, max_size=8))
def test_a_busy_moment_that_hits_a_whole_round_changes_no_ratio(rounds):
    quiet = [[Block((ms,)) for ms, _, _ in rounds], [Block((ms,)) for _, ms, _ in rounds]]
    busy = [[Block((round_[i] * round_[2],)) for round_ in rounds] for i in (0, 1)]
    assert round_ratios(*busy) == pytest.approx(round_ratios(*quiet))


def test_cold_starts_are_medians():
    starts = [{"import_s": s, "load_s": 1.0, "first_ms": 5.0, "total_s": s + 1} for s in (1.0, 9.0, 2.0)]
    starts = [start | {"base_mb": None, "peak_mb": 100.0} for start in starts]
    (row,) = make_cold_rows({"a": starts, "never": []}, {"a": {"file_mb": 2.5}}, "here", 2)
    assert (row.import_s, row.total_s, row.base_mb, row.peak_mb, row.file_mb) == (2.0, 3.0, None, 100.0, 2.5)


def test_thread_counts():
    assert thread_counts([1, "all", 4, 4], 4) == [1, 4]
    with pytest.raises(UserError, match="threads=5: this process may use 4 cores"):
        thread_counts([5], 4)
    for wrong in (0, -1, 1.5, True, "many"):
        with pytest.raises(UserError, match="give whole numbers from 1 to 4, or all"):
            thread_counts([wrong], 4)
    with pytest.raises(UserError, match="give at least one"):
        thread_counts([], 4)


def test_physical_cores_come_before_their_siblings():
    assert spread_cores([0, 1, 2, 3], {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.get) == [0, 1, 2, 3]
    assert spread_cores([0, 1, 2, 3], {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}.get) == [0, 2, 1, 3]


def test_the_machine_is_described():
    machine = describe_machine()
    assert machine["packages"]["torch"] == torch.__version__.split("+")[0] or machine["packages"]["torch"]
    assert machine["cores"] == len(usable_cores()) >= 1


def test_a_busy_machine_is_said_to_be():
    row = make_rows({A: [Block((1.0,), 1.0, 0.05)]}, {}, "")
    assert busy_note(row, 2) is None
    busy = make_rows({A: [Block((1.0,), 1.0, 0.5)]}, {}, "")
    assert "trust the ratios" in (busy_note(busy, 2) or "")
    full = make_rows({A: [Block((1.0,), 1.0, 1.9)]}, {}, "")
    assert "neither times nor ratios" in (busy_note(full, 2) or "")
    assert busy_note(make_rows({A: [Block((1.0,))]}, {}, ""), 2) is None


def test_numbers_are_shown_without_exponents():
    assert [number(v) for v in (None, 0, 0.000123, 1.23456, 123456.0, 0.5)] == [
        "-",
        "0",
        "0.000123",
        "1.23",
        "123000",
        "0.5",
    ]


def test_blocks_count_every_call_but_the_first():
    calls = []
    found = time_block(lambda: calls.append(1), 0.001)
    assert len(found["times_ms"]) == len(calls) - 1 >= 1
    assert time_block(lambda: calls.append(1), 0.0)["times_ms"]  # a call longer than the block is timed once
    assert warm_up(lambda: None) >= 3


@pytest.fixture(scope="module")
def picture():
    return make_picture(None)


def test_parts_are_what_they_say(tmp_path: Path, picture):
    save_classifier(tmp_path / "c.ckpt")
    subject = Subject(Candidate("c", file=str(tmp_path / "c.ckpt")), "cpu", picture)
    assert subject.parts == (WHOLE, MODEL, NETWORK)
    raw, decoded = subject.call(NETWORK, 2)(), subject.call(MODEL, 2)()
    torch.testing.assert_close(raw.softmax(1), decoded)
    assert decoded.shape == (2, 3)
    results = subject.call(WHOLE, 2)()
    assert len(results) == 2
    np.testing.assert_allclose(results[0].probabilities, subject.predictor.predict(picture).probabilities, rtol=1e-4)
    facts = subject.facts()
    cost = measure(build_model(CLASSIFIER), 96)
    assert (facts["mult_adds"], facts["params"]) == (cost.mult_adds, cost.params)
    assert (facts["kind"], facts["runtime"]) == ("classification", "torch")
    assert facts["file_mb"] == (tmp_path / "c.ckpt").stat().st_size / 1e6
    with pytest.raises(UserError, match="no part 'half'"):
        subject.call("half", 1)


def test_composed_models_are_alike_in_every_process_and_keep_their_activations(picture):
    candidate = Candidate("d", config=DETECTOR, preprocess={"resize": "stretch"})
    one, two = (Subject(Candidate(**candidate.to_dict()), "cpu", picture) for _ in range(2))
    first, second = one.call(NETWORK, 1)(), two.call(NETWORK, 1)()
    torch.testing.assert_close(first["cls_logits"], second["cls_logits"])
    with torch.no_grad():
        features = one.model.features(one.images(1))
    assert all(0.05 < float(level.std()) < 5 for level in features)
    assert not any(module.training for module in one.model.modules())


def test_layers_beside_their_costs(picture):
    subject = Subject(Candidate("d", config=DETECTOR, preprocess={"resize": "stretch"}), "cpu", picture)
    layers = time_layers(subject, 1, 0.0)["layers"]
    cost = measure(subject.model, 96)
    assert sum(layer["mult_adds"] for layer in layers) == cost.mult_adds
    assert sum(layer["params"] for layer in layers) == cost.params
    names = [layer["name"] for layer in layers]
    assert len(set(names)) == len(names)
    assert {"decoder", "backbone.stem.conv", REST} <= set(names)
    assert names.index("backbone.stem.conv") < names.index("decoder")
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_layer_shares_add_up_and_types_are_sums():
    cost = measure(build_model(CLASSIFIER), 96)
    first, second = cost.layers[0].name, cost.layers[2].name
    rows = join_costs({first: 2.0, second: 1.0, "act": 0.5}, {"act": "ReLU6"}, 1.5, cost)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert rows[-1].name == REST
    assert rows[-1].ms == 1.5
    sums = by_type(rows)
    assert sum(row.mult_adds for row in sums) == cost.mult_adds
    assert [row.ms for row in sums] == sorted((row.ms for row in sums), reverse=True)


def test_reports_are_written_whole(tmp_path: Path):
    facts = {"a": {"kind": "detection", "runtime": "torch", "resolution": [96, 96], "file_mb": None, "mult_adds": 5}}
    facts["a"]["params"] = 7
    report = Report(describe_machine(), make_rows(BLOCKS, {}, "here"), facts=facts, notes=["said"])
    write_report(report, BLOCKS, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"latency.csv", "latency.json", "latency.md"}
    text = (tmp_path / "latency.md").read_text()
    assert "| 1.5 (1-2) |" in text
    assert "- said" in text
    lines = aligned(tables(report)[1]).splitlines()
    assert lines[0].startswith("times")
    assert "device" not in lines[0]  # one device needs no column


def test_files_are_weighed_with_the_weights_beside_them(tmp_path: Path):
    for name, size in (("m.xml", 10), ("m.bin", 90), ("n.onnx", 5), ("n.onnx.data", 45)):
        (tmp_path / name).write_bytes(b"0" * size)
    assert file_megabytes(tmp_path / "m.xml") == 100 / 1e6
    assert file_megabytes(tmp_path / "n.onnx") == 50 / 1e6


@pytest.mark.slow
def test_an_exported_file_is_timed_as_one_graph(tmp_path: Path, picture):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from mnvision.export.base import Wish
    from mnvision.export.exporter import export
    from mnvision.export.onnx import Onnx

    candidate = Candidate("c", config=CLASSIFIER, preprocess={"resize": "stretch"})
    save_untrained(candidate, tmp_path / "c.ckpt")
    done = export(tmp_path / "c.ckpt", Onnx(), Wish(precision="fp32", batch=1, nms=True, resize=False), tmp_path)
    file, torch_one = Subject(Candidate("c", file=str(done.path)), "cpu", picture), Subject(candidate, "cpu", picture)
    assert file.parts == (WHOLE, MODEL)
    assert file.runtime == "onnxruntime"
    torch.testing.assert_close(file.call(MODEL, 1)(), torch_one.call(MODEL, 1)(), atol=1e-4, rtol=1e-3)
    known = torch_one.facts()
    assert {key: file.facts()[key] for key in ("mult_adds", "params", "kind")} == {
        key: known[key] for key in ("mult_adds", "params", "kind")
    }
    with pytest.raises(UserError, match="shows nothing of its layers"):
        time_layers(file, 1, 0.0)


def test_a_picture_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "x.jpg").write_text("no picture")
    for name in ("x.jpg", "absent.jpg"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            make_picture(str(tmp_path / name))
