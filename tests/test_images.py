from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mnvision.data.images import IMAGE_SUFFIXES, image_size, min_decode_size, read_image, reduction
from mnvision.errors import UserError
from mnvision.transforms.resize import as_resolution, resize_image

ORIENTATION = 0x0112


@pytest.fixture
def picture() -> Image.Image:
    """90 x 60, smooth, different in every corner and channel."""
    y, x = np.mgrid[0:60, 0:90]
    pixels = np.stack([x * 2.8, y * 4.2, 255 - x - y], axis=2).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(picture, tmp_path: Path, suffix: str, orientation: int):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a.{suffix}"
    picture.save(path, exif=exif)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
    decoded = read_image(path)
    assert decoded.pixels.shape == expected.shape
    assert np.abs(decoded.pixels - expected).mean() < 1.5
    assert image_size(path) == decoded.size == expected.shape[:2]


def test_modes_become_rgb(picture, tmp_path: Path):
    for mode, suffix, tolerance in [
        ("L", "jpg", 1), ("L", "png", 0), ("1", "png", 0), ("P", "png", 0), ("P", "gif", 0), ("LA", "png", 0),
        ("RGBA", "png", 0), ("CMYK", "jpg", 3), ("CMYK", "tiff", 3), ("RGB", "bmp", 0), ("RGB", "webp", 3),
    ]:  # fmt: skip
        path = tmp_path / f"{mode}.{suffix}"
        picture.convert(mode).save(path)
        with Image.open(path) as opened:
            expected = np.asarray(opened.convert("RGB")).astype(int)
        got = read_image(path).pixels
        assert got.dtype == np.uint8, path
        assert got.shape == (60, 90, 3), path
        assert np.abs(got - expected).mean() <= tolerance, path
        assert image_size(path) == (60, 90)


def test_sixteen_bit_keeps_high_byte(tmp_path: Path):
    values = (np.arange(60 * 90) * 12).reshape(60, 90).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, np.repeat((values >> 8)[..., None], 3, 2))


def test_first_frame_of_an_animation(picture, tmp_path: Path):
    turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(tmp_path / "a.gif", save_all=True, append_images=[turned])
    with Image.open(tmp_path / "a.gif") as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif").pixels, expected)


def noisy_jpeg(size: tuple[int, int] = (240, 320), **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_truncated_jpeg_is_refused_by_name(tmp_path: Path, kept: float, progressive: bool):
    thumbnail = noisy_jpeg((16, 16))
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail  # its end marker must not count
    data = noisy_jpeg(exif=exif, progressive=progressive)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    assert read_image(path).size == (240, 320)
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=r"truncated.*photo\.jpg"):
        read_image(path)
    path.write_bytes(data[: int(len(data) * kept)] + bytes(1000))
    with pytest.raises(UserError, match=r"truncated.*photo\.jpg"):
        read_image(path)


def test_bytes_after_the_end_marker_are_legal(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(noisy_jpeg() + b"appended by a phone")
    assert read_image(tmp_path / "a.jpg").size == (240, 320)


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff"])
def test_other_truncated_files_are_refused_by_name(tmp_path: Path, suffix: str):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), np.uint8)).save(path)
    data = path.read_bytes()
    assert read_image(path).size == (80, 60)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"photo\.{suffix}"):
        read_image(path)


def test_unreadable_files_are_refused_by_name(tmp_path: Path):
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    for name in ("text.jpg", "empty.jpg", "folder.jpg", "absent.jpg"):
        with pytest.raises(UserError, match=name) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match=name):
            image_size(tmp_path / name)


@pytest.mark.parametrize(("min_size", "factor"), [((30, 30), 8), ((31, 30), 4), ((100, 90), 2), ((121, 2), 1)])
def test_reduced_decoding_keeps_the_asked_size(tmp_path: Path, min_size: tuple[int, int], factor: int):
    y, x = np.mgrid[0:241, 0:321]
    pixels = np.stack([x * 0.7, y, 255 - x * 0.3 - y * 0.4], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    decoded = read_image(tmp_path / "a.jpg", min_size)
    assert decoded.size == (241, 321)
    assert decoded.pixels.shape == (-(-241 // factor), -(-321 // factor), 3)
    assert decoded.pixels.shape[0] >= min_size[0]
    assert reduction((241, 321), min_size) == factor
    shrunk = resize_image(pixels, (60, 80)).astype(int)
    assert np.abs(resize_image(decoded.pixels, (60, 80)) - shrunk).mean() < 4


def test_reduced_decoding_turns_by_exif_too(tmp_path: Path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (tmp_path / "a.jpg").write_bytes(noisy_jpeg((200, 400), exif=exif))
    decoded = read_image(tmp_path / "a.jpg", (100, 50))
    assert decoded.size == (400, 200)
    assert decoded.pixels.shape == (100, 50, 3)


def test_min_decode_size_counts_the_part_used():
    assert min_decode_size((400, 600), (400, 600), (300, 300)) == (300, 300)
    assert min_decode_size((400, 600), (100, 300), (300, 300)) == (1200, 600)
    assert min_decode_size((400, 600), (1600, 2400), (300, 300)) == (75, 75)


def test_real_photos_decode_like_pillow(shared_data: Path):
    paths = sorted((shared_data / "coco" / "val2017").glob("*.jpg"))[:10]
    paths += [p for p in sorted((shared_data / "geo" / "images").rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES][:10]
    assert len(paths) > 10
    for path in paths:
        with Image.open(path) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
        decoded = read_image(path)
        assert image_size(path) == decoded.size == expected.shape[:2]
        assert np.abs(decoded.pixels - expected).mean() < 1


def test_resize_averages_when_it_halves_and_interpolates_otherwise():
    checkers = np.kron(np.indices((20, 20)).sum(0) % 2 * 255, np.ones((2, 2))).astype(np.uint8)[..., None].repeat(3, 2)
    np.testing.assert_array_equal(np.unique(resize_image(checkers, (20, 20))), [0, 255])
    stripes = np.tile(np.array([0, 255], np.uint8), (40, 20))[..., None].repeat(3, 2)
    assert set(np.unique(resize_image(stripes, (20, 20)))) <= {127, 128}
    assert resize_image(stripes, (40, 40)) is stripes


@pytest.mark.parametrize("value", [0, -3, 2.5, "300", (300,), (300, 0), True, None])
def test_bad_resolution_is_refused(value):
    with pytest.raises(UserError, match="resolution"):
        as_resolution(value)


def test_resolution_from_side_or_pair():
    assert as_resolution(300) == (300, 300)
    assert as_resolution([200, 320]) == (200, 320)
