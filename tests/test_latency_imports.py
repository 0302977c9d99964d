"""Times from elsewhere: tables in the documented layout, and the output of the runtimes' own tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mnvision.errors import UserError
from mnvision.latency.contest import Block, Key
from mnvision.latency.imports import read_times
from mnvision.latency.report import Report, write_report
from mnvision.latency.summary import make_rows

# As the tools print it: LiteRT's benchmark_model through adb logcat (numbers as in public logs of it), ONNX Runtime's
# and OpenVINO's on a desktop, ExecuTorch's by the format string of its runner.
LITERT = """\
07-14 13:23:08.133 25289 25289 I tflite  : Num threads: [4]
07-14 13:23:08.133 25289 25289 I tflite  : Graph: [/data/local/tmp/mine.tflite]
07-14 13:23:08.133 25289 25289 I tflite  : #threads used for CPU inference: [4]
INFO: count=9 first=87112 curr=51629 min=51629 max=87112 avg=58147.4 std=11478 p5=51629 median=51962 p95=87112

INFO: count=1000 first=52162 curr=49785 min=49088 max=686105 avg=63743.2 std=60716 p5=49620 median=51891 p95=68628

INFO: Inference timings in us: Init: 119515, First inference: 87112, Warmup (avg): 58147.4, Inference (avg): 63743.2
INFO: Memory footprint delta from the start of the tool (MB): init=55.4961 overall=55.4961
"""
OLD_LITERT = """\
count=50 first=104448 curr=87126 min=86737 max=104448 avg=88622.5 std=3079
Inference timings in us: Init: 1829, First inference: 232333, Warmup (avg): 184951, Inference (avg): 88622.5
"""
ORT = """\
Setting intra_op_num_threads to 1
Session creation time cost: 0.217932 s
First inference time cost: 196 ms
Total inference time cost: 0.49481 s
Total inference requests: 5
Average inference time cost: 98.962 ms
Min Latency: 0.0958204 s
P50 Latency: 0.0995086 s
P90 Latency: 0.101519 s
"""
OPENVINO = """\
[Step 5/11] Resizing model to match image sizes and given batch
[ INFO ] Model batch size: 2
[ INFO ]   INFERENCE_NUM_THREADS: 1
[Step 11/11] Dumping statistics report
[ INFO ] Count:            1150 iterations
[ INFO ] Latency:
[ INFO ]    Median:        48.89 us
[ INFO ]    Average:       850.11 us
[ INFO ] Throughput:   1145.97 FPS
"""
EXECUTORCH = """\
I 00:00:00.000512 executorch:executor_runner.cpp:215] Resetting threadpool with num threads = 2
I 00:00:00.001015 executorch:executor_runner.cpp:251] Model file /data/local/tmp/m.pte is loaded.
I 00:00:01.102931 executorch:executor_runner.cpp:420] Model executed successfully 50 time(s) in 612.500000 ms.
"""
LITERT_JSON = {
    "model": "/tmp/m.tflite",
    "num_threads": 1,
    "latency": {"median_ms": 43.0, "avg_ms": 41.5, "num_runs": 5},
}


def read(folder: Path, name: str, text: str):
    (folder / name).write_text(text)
    return read_times(folder / name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LITERT, ("mine.tflite", "litert", 1, 4, 51.891, 63.7432, 1000)),
        (OLD_LITERT, ("phone", "litert", 1, None, None, 88.6225, 50)),
        (ORT, ("phone", "onnxruntime", 1, 1, 99.5086, 98.962, 5)),
        (OPENVINO, ("phone", "openvino", 2, 1, 0.04889, 0.85011, 1150)),
        (EXECUTORCH, ("m.pte", "executorch", 1, 2, None, 12.25, 50)),
    ],
    ids=["litert", "older litert", "onnxruntime", "openvino", "executorch"],
)
def test_logs_of_the_runtimes_own_tools(tmp_path: Path, text: str, expected):
    (row,) = read(tmp_path, "phone.txt", text)
    middle = expected[4] if expected[4] is not None else expected[5]
    assert (row.file, row.runtime, row.batch, row.threads) == expected[:4]
    assert row.median_ms == (None if expected[4] is None else pytest.approx(expected[4]))
    assert (row.mean_ms, row.calls) == (pytest.approx(expected[5]), expected[6])
    assert row.images_per_s == pytest.approx(row.batch / middle * 1000)
    assert (row.device, row.part, row.ratio) == ("phone", "model", None)
    assert row.source.endswith("phone.txt")


def test_the_json_of_litert_benchmark(tmp_path: Path):
    (row,) = read(tmp_path, "pi.json", json.dumps(LITERT_JSON))
    assert (row.file, row.device, row.median_ms, row.threads) == ("m.tflite", "pi", 43.0, 1)
    with pytest.raises(UserError, match="not what litert-benchmark writes"):
        read(tmp_path, "bad.json", json.dumps({"latency": {}}))


def test_older_onnxruntime_prints_words_and_sometimes_no_statistics(tmp_path: Path):
    text = ORT.replace("Latency:", "Latency is")
    assert read(tmp_path, "a.txt", text)[0].p90_ms == pytest.approx(101.519)
    bare = "\n".join(ORT.splitlines()[:6]).replace("cost: 98", "cost total: 98")
    assert read(tmp_path, "b.txt", bare)[0].median_ms is None


def test_tables_in_the_documented_layout(tmp_path: Path):
    text = (
        "device,file,batch,threads,median_ms,p90_ms\nPixel 8,a.tflite,1,4,8.0,9.5\n# rested\nPixel 8,b.tflite,2,,4,\n"
    )
    first, second = read(tmp_path, "phone.csv", text)
    assert (first.device, first.file, first.threads, first.p90_ms) == ("Pixel 8", "a.tflite", 4, 9.5)
    assert (second.threads, second.p90_ms, second.images_per_s) == (None, None, 500.0)
    rows = read(tmp_path, "pi.json", json.dumps({"rows": [{"file": "a", "batch": 1, "mean_ms": 20, "part": "whole"}]}))
    assert (rows[0].device, rows[0].part, rows[0].images_per_s) == ("pi", "whole", 50.0)
    assert read(tmp_path, "list.json", json.dumps([{"file": "a", "batch": 1, "median_ms": 20}]))


def test_what_this_tool_writes_can_be_read_on_another_machine(tmp_path: Path):
    rows = make_rows({Key("a", "model", 1, 2): [Block((4.0, 5.0), 3.0, 0.1)]}, {"a": {"runtime": "torch"}}, "Pi 5")
    write_report(
        Report({"processor": "p", "cores": 1, "system": "s", "flags": [], "python": "3", "packages": {}}, rows),
        {},
        tmp_path,
    )
    for name in ("latency.json", "latency.csv"):
        (row,) = read_times(tmp_path / name)
        assert (row.device, row.file, row.median_ms, row.cpu_ms, row.threads) == ("Pi 5", "a", 4.5, 3.0, 2)
        assert row.ratio is None  # it was against candidates of another table


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.csv", "file,batch,median\nx,1,2\n", "no column 'median'; did you mean 'median_ms'"),
        ("a.csv", "file,median_ms\nx,2\n", "needs file, batch and median_ms"),
        ("a.csv", "file,batch,median_ms\nx,1,fast\n", "row 1: median_ms is 'fast', no number"),
        ("a.csv", "file,batch,median_ms\nx,1,-2\n", "median_ms is -2; it must be above 0"),
        ("a.csv", "file,batch,median_ms\nx,1.5,2\n", "batch is 1.5, no whole number"),
        ("a.csv", "file,batch,median_ms\nx,1\n", "not as many cells as the heading"),
        ("a.csv", "file,batch,median_ms\nx,,2\n", "batch is empty"),
        ("a.csv", "file,batch,median_ms\nx,1,nan\n", "no number"),
        ("a.csv", "file,batch,median_ms\n", "holds no rows"),
        ("a.csv", "", "needs file, batch"),
        ("a.csv", "file,batch,median_ms,part\nx,1,2,half\n", "part 'half' is none of whole, model, network"),
        ("a.json", "{", "not JSON"),
        ("a.json", "3", "give a list of objects"),
        ("a.json", '[{"file": "a", "batch": true, "median_ms": 2}]', "batch is True, no number"),
        ("a.txt", "Inference took a while", "holds no times that are known"),
    ],
)
def test_bad_tables_are_refused_by_row(tmp_path: Path, name: str, text: str, error: str):
    with pytest.raises(UserError) as caught:
        read(tmp_path, name, text)
    assert error in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="there is no such file"):
        read_times(tmp_path / "absent.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        read_times(tmp_path / "b.csv")
