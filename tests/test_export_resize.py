"""Files that stretch pictures inside: the numbers of torch's antialiased resize, in every format and for every user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import mnvision
from mnvision.errors import UserError
from mnvision.export.base import Format, Pixels, Wish
from mnvision.export.calibration import Calibration
from mnvision.export.exporter import export
from mnvision.export.graph import GraphOptions, build_graph
from mnvision.export.litert import LiteRT
from mnvision.export.metadata import weights_digest
from mnvision.export.onnx import Onnx
from mnvision.export.pt2 import Pt2, Pt2Session
from mnvision.export.runtime import open_file
from mnvision.export.stretch import AtSize, Stretch, stretched, triangle_weights
from tests.builders import make_image_folder
from tests.builders_export import SIDE, build, executorch_form, litert_form, save
from tests.builders_models import picture
from tests.builders_multitask import save_joint
from tests.builders_tinted import onnx_form, settle, tinted, write_pictures
from tools import cli
from tools.export import build_format, wish_of
from tools.prove import shown_alike
from tools.run import build_data, evaluate

SIZE = (90, 130)


def frames(count: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """``(N, 3, H, W)`` uint8."""
    images = np.stack([picture(seed, *size) for seed in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def by_torch(images: torch.Tensor, resolution: tuple[int, int]) -> torch.Tensor:
    """In float64, where torch's weights are exact; in float32 they are off by up to 0.005 of 255."""
    return F.interpolate(images.double(), resolution, mode="bilinear", antialias=True)


SIZES = [(480, 640), (50, 40), (SIDE, SIDE), (SIDE, 200), (1, 1), (97, 3), (640, 480), (65, 63)]


@pytest.mark.parametrize("size", SIZES)
def test_matrices_give_the_antialiased_resize_of_torch(size: tuple[int, int]):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    found = Stretch(size, (SIDE, SIDE))(images)
    torch.testing.assert_close(found.double(), by_torch(images, (SIDE, SIDE)), atol=2e-4, rtol=0)
    torch.testing.assert_close(found, stretched(images, (SIDE, SIDE)), atol=6e-3, rtol=0)


# From 2 on: of pictures one pixel wide torch 2.15 itself makes zeros.
@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(2, 300), st.integers(2, 300)), st.tuples(st.integers(2, 120), st.integers(2, 120)))
def test_matrices_of_any_two_sizes(size: tuple[int, int], resolution: tuple[int, int]):
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    found = Stretch(size, resolution)(images)
    torch.testing.assert_close(found.double(), by_torch(images, resolution), atol=2e-4, rtol=0)


def test_weights_by_hand():
    """Halved, a pixel of the result reaches two pixels to each side of its centre: 3/4, 3/4, 1/4, over their sum."""
    torch.testing.assert_close(triangle_weights(4, 2)[0], torch.tensor([3 / 7, 3 / 7, 1 / 7, 0.0]))
    assert torch.equal(triangle_weights(5, 5), torch.eye(5))
    torch.testing.assert_close(triangle_weights(2, 4)[1], torch.tensor([0.75, 0.25]))


def test_the_axis_that_shrinks_more_goes_first_and_an_equal_one_not_at_all():
    assert Stretch((480, 640), (224, 224)).order == [1, 0]
    assert Stretch((640, 480), (224, 224)).order == [0, 1]
    assert Stretch((480, 224), (224, 224)).order == [0]
    assert Stretch((224, 224), (224, 224)).order == []


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_graph_of_one_size_answers_in_pixels_of_the_picture(layout: Any):
    model, images = build("detection"), frames(2)
    graph = build_graph(model, GraphOptions(layout, resize=SIZE))
    found = graph(images if layout == "nchw" else images.permute(0, 2, 3, 1))
    plain = build_graph(model, GraphOptions())(by_torch(images, (SIDE, SIDE)).float())
    scale = torch.tensor([SIZE[1], SIZE[0]] * 2) / SIDE
    torch.testing.assert_close(found[0], plain[0] * scale, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1], plain[1], atol=2e-5, rtol=0)
    assert graph.example(3).shape[1:] == ((3, *SIZE) if layout == "nchw" else (*SIZE, 3))


def openvino_form() -> Format:
    pytest.importorskip("openvino")
    from mnvision.export.openvino import OpenVino

    return OpenVino()


@pytest.mark.parametrize("make", [onnx_form, openvino_form, Pt2, executorch_form, litert_form])
def test_files_of_one_size_answer_as_torch_does(make: Any, tmp_path: Path):
    form = make()
    model = save(tmp_path / "d.ckpt", "detection")
    done = export(tmp_path / "d.ckpt", form, Wish(batch=1, nms=False, resize=SIZE))
    assert "uint8 RGB 90 x 130" in done.lines[0]
    assert "stretched to 64 x 64 inside" in done.lines[0]
    file, images = open_file(done.path), frames(3)
    assert (file.resolution, file.network, file.backbone.resolution) == (SIZE, (SIDE, SIDE), SIDE)
    assert file.metadata.input["any_size"] is False
    found, expected = file.predict(images), AtSize(model, SIZE).predict(images)
    assert torch.equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=5e-3)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=2e-5)
    with pytest.raises(UserError, match=r"takes uint8 images \(B, 3, 90, 130\)"):
        file.predict(frames(1, (SIDE, SIDE)))


def test_openvino_takes_pictures_of_any_size(tmp_path: Path):
    """Its converter leaves antialiasing out: shrunk to a third, answers would be another picture's."""
    form = openvino_form()
    model = save(tmp_path / "a.ckpt", "face_attributes")
    done = export(tmp_path / "a.ckpt", form, Wish(resize=True))
    assert "and at another size" in done.lines[1]
    session = open_file(done.path).session
    for size in ((192, 201), (20, 30)):
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        expected = model.predict(by_torch(images, (SIDE, SIDE)).float())
        np.testing.assert_allclose(session.run(images.numpy())["probabilities"], expected, atol=1e-5)


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that was evaluated on the centre of pictures, ``c.ckpt``, and its file ``c.pt2`` of one size."""
    folder = tmp_path_factory.mktemp("cropped")
    save(folder / "c.ckpt", "classification")
    done = export(folder / "c.ckpt", Pt2(), Wish(resize=SIZE))
    assert "the checkpoint was evaluated on pictures laid out by center_crop" in done.lines[1]
    return folder


def test_a_predictor_shows_a_file_what_its_checkpoint_was_shown(cropped: Path):
    """A smooth picture: being drawn at two sizes on the way then costs next to nothing."""
    y, x = np.mgrid[:300, :500]
    photo = np.stack([x / 2, y / 2, (x + y) / 4], axis=2).astype(np.uint8)
    photo[:, :100] = photo[:, 400:] = 0  # beyond the square in the middle
    file, checkpoint = mnvision.load(cropped / "c.pt2"), mnvision.load(cropped / "c.ckpt")
    shown = file.preprocess(photo).pixels
    assert shown.shape == (*SIZE, 3)
    assert shown.min(axis=(0, 1))[0] > 40
    expected = cv2.resize(checkpoint.preprocess(photo).pixels, SIZE[::-1])
    assert np.abs(shown.astype(int) - expected).max() <= 4
    found, wanted = file.predict(photo), checkpoint.predict(photo)
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=0.02)


def test_a_proof_shows_the_checkpoint_what_its_file_is_shown(cropped: Path):
    file, checkpoint = mnvision.load(cropped / "c.pt2"), mnvision.load(cropped / "c.ckpt")
    alike, photo = shown_alike(checkpoint, [file]), picture(7, 300, 500)
    prepared = alike.preprocess(photo)
    assert np.array_equal(prepared.pixels, file.preprocess(photo).pixels)
    one, other = (predictor.predict_prepared([prepared])[0] for predictor in (alike, file))
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
    assert weights_digest(alike.model.state_dict()) == file.model.metadata.training["weights"]
    assert shown_alike(checkpoint, [checkpoint]) is checkpoint
    with pytest.raises(UserError, match="they take pictures of different sizes"):
        shown_alike(checkpoint, [file, checkpoint])


def test_a_detector_is_shown_frames_as_they_are_and_answers_in_pixels_of_the_picture(tmp_path: Path):
    save(tmp_path / "d.ckpt", "detection")
    file = mnvision.load(export(tmp_path / "d.ckpt", Pt2(), Wish(resize=SIZE)).path)
    frame = picture(4, *SIZE)
    assert np.array_equal(file.preprocess(frame).pixels, frame)
    large = cv2.resize(frame, (2 * SIZE[1], 2 * SIZE[0]), interpolation=cv2.INTER_NEAREST)
    one, two = file.predict(frame, score_threshold=0.05), file.predict(large, score_threshold=0.05)
    assert len(one) == len(two) > 3
    for first, second in zip(one.detections, two.detections):
        np.testing.assert_allclose(2 * np.array(first.box), second.box, atol=1e-2)


def test_evaluation_shows_a_file_what_its_predictor_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_image_folder(tmp_path / "data")
    words = [
        "task=classification",
        "data=image_folder",
        f"data.root={tmp_path / 'data'}",
        f"backbone.resolution={SIDE}",
    ]
    words += ["data.num_workers=0", "data.batch_size=4", "trainer.accelerator=cpu"]
    data = build_data(cli.compose_config("evaluate", [*words, "paths.output_dir=out"]), "validate")
    save(tmp_path / "a.ckpt", "classification", len(data.class_names), class_names=data.class_names, overrides=words)
    file = export(tmp_path / "a.ckpt", Pt2(), Wish(resize=SIZE)).path
    given = [*words, f"checkpoint={cli.quoted(file)}", f"paths.output_dir={cli.quoted(tmp_path / 'report')}"]
    seen: list[Pixels] = []
    run = Pt2Session.run

    def watched(session: Pt2Session, images: Pixels) -> Any:
        seen.extend(images)
        return run(session, images)

    monkeypatch.setattr(Pt2Session, "run", watched)
    scores = evaluate(cli.compose_config("evaluate", given), given)
    assert 0 <= scores["val/top1"] <= 1
    prepare = mnvision.load(file).preprocess
    listed = data.eval_dataset("val", None)
    assert len(seen) == len(listed)
    for position, pixels in enumerate(seen):
        assert np.array_equal(pixels.transpose(1, 2, 0), prepare(listed.path(position)).pixels)


def test_heads_share_one_stretch(tmp_path: Path):
    model = save_joint(tmp_path / "j.ckpt", "ssd", "attributes")
    file = open_file(export(tmp_path / "j.ckpt", onnx_form(), Wish(resize=SIZE)).path)
    images = frames(2)
    found = file.predict(images)
    with torch.inference_mode():
        expected = AtSize(model, SIZE).predict(images)
    np.testing.assert_allclose(found["attributes"], expected["attributes"], atol=1e-4)
    assert file.part("ssd").resolution == SIZE
    assert len(mnvision.load(file.session.path).predict(picture(2, 200, 300)).parts) == 2


@pytest.mark.parametrize(
    "make",
    [
        onnx_form,
        pytest.param(executorch_form, marks=pytest.mark.slow),
        pytest.param(litert_form, marks=pytest.mark.slow),
    ],
)
def test_int8_leaves_the_matrices_in_float(make: Any, tmp_path: Path):
    form = make()
    write_pictures(tmp_path / "scenes", tinted(32, 96))
    save(tmp_path / "c.ckpt", "classification", preprocess={"resize": "stretch"})
    settle(tmp_path / "c.ckpt")
    asked = Calibration(16, 16, report=True)
    wish = Wish("int8", batch=1, nms=False, resize=SIZE)
    done = export(tmp_path / "c.ckpt", form, wish, pictures=tmp_path / "scenes", calibration=asked)
    layers = (tmp_path / "c_int8_layers.csv").read_text()
    assert "backbone.stem" in layers
    assert "stretch" not in layers
    images = tinted(48, 96)[32:]
    whole, small = mnvision.load(tmp_path / "c.ckpt"), mnvision.load(done.path)
    pairs = zip(whole.predict(list(images)), small.predict(list(images)))
    same = [one.probabilities.argmax() == other.probabilities.argmax() for one, other in pairs]
    assert np.mean(same) >= 0.9


def compose(*words: str) -> Any:
    return cli.compose_config("export", ["checkpoint=a.ckpt", *words])


@pytest.mark.parametrize(
    "value", ["480", "[480]", "[480,640,3]", "[0,640]", "[480,8193]", "[480,64.5]", "[true,1]", "big"]
)
def test_what_is_no_size_is_refused(value: str):
    cfg = compose("format=pt2", f"resize={value}")
    with pytest.raises(
        UserError, match=r"give true, false, or height and width .*such as resize=\[480,640\]"
    ) as caught:
        wish_of(cfg, build_format(cfg))
    assert "\n" not in str(caught.value)


def test_sizes_as_the_user_writes_them():
    for value, expected in (("[480,640]", (480, 640)), ("true", True), ("false", False), ("null", False)):
        cfg = compose("format=pt2", f"resize={value}")
        assert wish_of(cfg, build_format(cfg)).resize == expected


def test_formats_of_one_size_say_so(tmp_path: Path):
    with pytest.raises(UserError, match=r"format=litert takes pictures of one size only: .*resize=\[480,640\]"):
        export(tmp_path / "no.ckpt", LiteRT("python"), Wish(batch=1, resize=True))
    with pytest.raises(UserError, match=r"leave resize=true out, or give resize=\[HEIGHT,WIDTH\]"):
        export(tmp_path / "no.ckpt", Onnx(), Wish("int8", resize=True), pictures=tmp_path)
