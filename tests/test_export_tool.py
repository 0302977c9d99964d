"""The command line of exports, and exported files where a checkpoint is evaluated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mnvision.errors import UserError
from mnvision.export.base import Format, Wish
from mnvision.export.exporter import export
from mnvision.export.pt2 import Pt2
from tests.builders import make_image_folder, make_tiny_coco
from tests.builders_export import SIDE, save
from tests.builders_faces import make_tiny_celeba
from tools import cli
from tools.export import batch_of, build_format, wish_of
from tools.run import build_data, evaluate

ROOT = Path(__file__).parents[1]
SETS = {
    "classification": ("classification", "image_folder", make_image_folder),
    "face_attributes": ("face_attributes", "celeba", make_tiny_celeba),
    "detection": ("ssd_coco", "coco", make_tiny_coco),
}


def words_for(kind: str, folder: Path) -> list[str]:
    task, data, make = SETS[kind]
    make(folder / "data")
    return [
        *(f"task={task}", f"data={data}", f"data.root={folder / 'data'}", f"backbone.resolution={SIDE}"),
        *("data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu"),
    ]


def scores(file: Path, words: list[str], folder: Path) -> dict[str, float]:
    given = [*words, f"checkpoint={cli.quoted(file)}", f"paths.output_dir={cli.quoted(folder / f'of {file.name}')}"]
    return evaluate(cli.compose_config("evaluate", given), given)


@pytest.mark.parametrize("kind", SETS)
def test_a_file_scores_as_its_checkpoint_does(kind: str, tmp_path: Path):
    form: Format = Pt2()
    if kind == "detection":
        pytest.importorskip("onnxscript")
        from mnvision.export.onnx import Onnx

        form = Onnx()
    words = words_for(kind, tmp_path)
    data = build_data(cli.compose_config("evaluate", [*words, "paths.output_dir=out"]), "validate")
    names = list(data.class_names)
    fields = {"overrides": words, "preprocess": data.preprocess, "class_names": names}
    if kind == "detection":
        fields["category_ids"] = list(data.category_ids)
    if kind == "face_attributes":
        fields["calibration"] = {}
    save(tmp_path / "a.ckpt", kind, classes=len(names), **fields)
    file = export(tmp_path / "a.ckpt", form, Wish()).path
    expected, found = scores(tmp_path / "a.ckpt", words, tmp_path), scores(file, words, tmp_path)
    if kind == "detection":
        assert {name for name in expected if "loss" in name} == set(expected) - set(found)
        expected = {name: value for name, value in expected.items() if "loss" not in name}
    assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert (tmp_path / f"of {file.name}" / "metrics.json").is_file()
    with pytest.raises(UserError, match="is finished: resolution and decoding"):
        scores(file, [*words, f"backbone.resolution={2 * SIDE}"], tmp_path)


def compose(*words: str):
    return cli.compose_config("export", words)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "format=None: choose one of onnx, openvino, pt2, litert, executorch"),
        (["format=onxx"], "format=onxx: choose one of onnx"),
        (["format=pt2", "batch=0"], "batch=0: give dynamic, or a whole number"),
        (["format=pt2", "batch=two"], "batch=two: give dynamic"),
        (["format=pt2", "nms=maybe"], "nms=maybe: give true or false"),
        (["format=onnx", "opset=9"], "opset=9: choose 18 to 23"),
    ],
)
def test_wrong_words_end_in_one_line(words: list[str], text: str):
    cfg = compose(*words)
    with pytest.raises(Exception, match=text.split("=")[0]) as caught:
        wish_of(cfg, build_format(cfg))
    assert text in str(cli.message_for_user(caught.value))


def test_defaults_follow_the_format():
    wishes = {
        name: wish_of(compose(f"format={name}"), build_format(compose(f"format={name}"))) for name in ("pt2", "litert")
    }
    assert wishes["pt2"] == Wish(batch=None, nms=True)
    assert wishes["litert"] == Wish(batch=1, nms=False)
    assert batch_of("dynamic", Pt2()) is None


def test_the_tool_says_in_one_line_what_is_wrong_and_writes_nothing(tmp_path: Path):
    (tmp_path / "no.ckpt").write_text("nothing")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "export.py"), "checkpoint=no.ckpt", "format=pt2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no.ckpt: refused, for it is corrupt")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["no.ckpt"]
