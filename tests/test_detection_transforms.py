from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnvision.errors import UserError
from mnvision.transforms.colour import PhotometricDistort, colour_matrix
from mnvision.transforms.detection import DetectionAugment, make_augment
from mnvision.transforms.windows import (
    MEAN_COLOUR,
    Window,
    centres_inside,
    crop_by_iou,
    place_boxes,
    render,
    whole_picture,
    zoom_out,
)


def rectangle(box: tuple[int, int, int, int], size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """A red rectangle on blue."""
    image = np.full((*size, 3), (0, 0, 255), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = (255, 0, 0)
    return image


def find_red(image: np.ndarray) -> np.ndarray:
    """The box around red pixels, xyxy with exclusive ends."""
    y, x = np.nonzero((image[..., 0] > 127) & (image[..., 2] < 128))
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("window", "resolution"),
    [
        ((0, 0, 320, 240), (240, 320)),  # as it is
        ((0, 0, 320, 240), (150, 150)),  # stretched
        ((40, 30, 290, 200), (170, 250)),  # cropped, pixel for pixel
        ((-100, -60, 380, 300), (360, 480)),  # zoomed out, pixel for pixel
        ((-320, -10, 640, 470), (120, 240)),  # zoomed out and shrunk
        ((60, 50, 220, 170), (240, 320)),  # enlarged
        ((100, -50, 500, 130), (180, 400)),  # a crop that reaches over two edges
    ],
)
def test_box_follows_the_pixels(window, resolution, flip: bool):
    box = (120, 70, 180, 125)
    image, placement = render(rectangle(box), (240, 320), Window(*window, flip), resolution)
    placed = place_boxes(np.array([box], np.float32), placement)[0]
    scale = max(resolution[0] / (window[3] - window[1]), resolution[1] / (window[2] - window[0]))
    exact = scale == 1.0
    assert image.shape == (*resolution, 3)
    np.testing.assert_allclose(find_red(image), placed, atol=0.0 if exact else max(1.0, scale))


@given(
    st.floats(-200, 200),
    st.floats(-150, 150),
    st.floats(150, 600),
    st.floats(150, 500),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_box_follows_the_pixels_of_any_window(x: float, y: float, width: float, height: float, flip, reduced):
    box = (120, 70, 200, 150)
    full = rectangle(box)
    decoded = cv2.resize(full, (160, 120), interpolation=cv2.INTER_AREA) if reduced else full
    window = Window(x, y, x + width, y + height, flip)
    centre_x, centre_y = 160, 110
    if not (x + 10 < centre_x < x + width - 10 and y + 10 < centre_y < y + height - 10):
        return
    image, placement = render(decoded, (240, 320), window, (128, 160))
    placed = place_boxes(np.array([box], np.float32), placement)[0]
    scale = max(160 / width, 128 / height) * (2 if reduced else 1)
    np.testing.assert_allclose(find_red(image), placed, atol=1.0 + scale)


def test_outside_gets_the_mean_colour():
    image, _ = render(np.zeros((100, 100, 3), np.uint8), (100, 100), Window(-100, -100, 100, 100), (50, 50))
    assert (image[:25] == MEAN_COLOUR).all()
    assert (image[:, :25] == MEAN_COLOUR).all()
    assert (image[25:, 25:] == 0).all()


def test_source_is_not_modified():
    source = rectangle((10, 10, 50, 50))
    before = source.copy()
    image, _ = render(source, (240, 320), whole_picture((240, 320)), (240, 320))
    DetectionAugment().distort(np.random.default_rng(0), image)
    np.testing.assert_array_equal(source, before)


def test_zoom_out_holds_the_old_window_and_keeps_its_shape():
    rng, ratios = np.random.default_rng(0), []
    for _ in range(200):
        x0, y0, x1, y1, _ = zoom_out(rng, whole_picture((100, 200)), 4.0)
        assert x0 <= 0
        assert y0 <= 0
        assert x1 >= 200
        assert y1 >= 100
        assert (x1 - x0) / (y1 - y0) == pytest.approx(2.0)
        ratios.append((x1 - x0) / 200)
    assert min(ratios) < 1.1
    assert max(ratios) > 3.9


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Slow reference."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("min_iou", [0.0, 0.1, 0.5, 0.9])
def test_crop_shows_an_object_as_well_as_asked(min_iou: float):
    rng = np.random.default_rng(1)
    boxes = np.array([[20, 20, 280, 220], [100, 50, 130, 80]], np.float32)
    cropped = 0
    for _ in range(100):
        window = crop_by_iou(rng, whole_picture((240, 320)), boxes, [min_iou], (0.3, 1.0), (0.5, 2.0))
        if window == whole_picture((240, 320)):
            continue
        cropped += 1
        kept = centres_inside(boxes, window)
        assert max(iou(np.array(window[:4]), box) for box in boxes[kept]) >= min_iou
        width, height = (window.x1 - window.x0) / 320, (window.y1 - window.y0) / 240
        assert 0 < width <= 1.0001
        assert 0.3 - 1e-6 <= (width * height) ** 0.5 <= 1.0001
        assert 0.499 <= width / height <= 2.001
        assert window.x0 >= 0
        assert window.y1 <= 240
    assert cropped > 5


def test_crop_without_objects_and_crop_that_cannot_be():
    rng, whole = np.random.default_rng(0), whole_picture((240, 320))
    nothing = np.zeros((0, 4), np.float32)
    assert crop_by_iou(rng, whole, nothing, [0.9], (0.3, 1.0), (0.5, 2.0)) != whole
    speck = np.array([[5, 5, 7, 7]], np.float32)
    assert crop_by_iou(rng, whole, speck, [0.9], (0.3, 1.0), (0.5, 2.0)) == whole


def test_centres_inside():
    boxes = np.array([[0, 0, 20, 20], [0, 0, 19, 19], [30, 30, 60, 60]], np.float32)
    np.testing.assert_array_equal(centres_inside(boxes, Window(10, 10, 44, 50)), [False, False, False])
    np.testing.assert_array_equal(centres_inside(boxes, Window(9.9, 9.9, 45.1, 50)), [True, False, True])


def test_same_stream_same_result():
    boxes = np.array([[100, 60, 200, 160]], np.float32)
    image = rectangle((100, 60, 200, 160), (64, 64))
    augment = DetectionAugment()

    def draw(seed: int) -> tuple[Window, bytes]:
        rng = np.random.default_rng(seed)
        return augment.window(rng, (240, 320), boxes), augment.distort(rng, image).tobytes()

    assert [draw(s) for s in range(8)] == [draw(s) for s in range(8)]
    assert len({draw(s) for s in range(8)}) == 8


def test_probabilities_switch_everything_off():
    augment = DetectionAugment(flip=0, zoom_out=0, crop=0, brightness=0, contrast=0, saturation=0, hue=0)
    rng, image = np.random.default_rng(0), rectangle((1, 1, 30, 30), (40, 40))
    for _ in range(5):
        assert augment.window(rng, (240, 320), np.zeros((0, 4), np.float32)) == whole_picture((240, 320))
        np.testing.assert_array_equal(augment.distort(rng, image), image)
    flips = [DetectionAugment(zoom_out=0, crop=0).window(rng, (9, 9), np.zeros((0, 4))).flip for _ in range(200)]
    assert 60 < sum(flips) < 140


def test_colour_matrix_against_hand_worked_colours():
    def colour(rgb, *args):
        return colour_matrix(*args) @ np.array([*rgb, 1.0])

    np.testing.assert_allclose(colour((10, 20, 30), 5, 1, 1, 0), [15, 25, 35])
    np.testing.assert_allclose(colour((10, 20, 30), 5, 2, 1, 0), [25, 45, 65])
    grey = 0.299 * 100 + 0.587 * 50 + 0.114 * 200
    np.testing.assert_allclose(colour((100, 50, 200), 0, 1, 0, 0), [grey] * 3)
    np.testing.assert_allclose(colour((100, 50, 200), 0, 1, 0.5, 0), (np.array([100, 50, 200]) + grey) / 2)
    np.testing.assert_allclose(colour((80, 80, 80), 0, 1, 1, 33), [80] * 3, atol=0.1)  # grey has no hue
    turned = colour((150, 100, 90), 0, 1, 1, 18)
    assert np.abs(turned - (150, 100, 90)).max() > 5
    np.testing.assert_allclose(
        colour_matrix(0, 1, 1, 18)[:, :3] @ colour_matrix(0, 1, 1, -18)[:, :3], np.eye(3), atol=1e-9
    )


def test_photometric_distortion_clips_and_keeps_shape():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    distort = PhotometricDistort(brightness=255, contrast=1, saturation=1, hue=180)
    distort.set_random_seed(0)
    seen = [distort(image=image)["image"] for _ in range(20)]
    assert all(out.shape == image.shape and out.dtype == np.uint8 for out in seen)
    assert len({out.tobytes() for out in seen}) > 10


def test_augment_argument():
    assert make_augment(False) is None
    assert isinstance(make_augment(True), DetectionAugment)
    augment = make_augment({"flip": 0.0, "mosaic": 0.3})
    assert augment is not None
    assert (augment.flip, augment.mosaic) == (0.0, 0.3)


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1.5}, {"mosaic": -0.1}, {"max_zoom_out": 0.5}, {"crop_scale": (0.5, 2.0)},
        {"crop_scale": (1, 0.5)}, {"crop_aspect": (1.5, 2.0)}, {"crop_min_ious": ()},
        {"crop_min_ious": (1.5,)}, {"hue": 400}, {"flipp": 1}, {"crop": "yes"}, {"brightness": float("nan")},
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options: dict):
    with pytest.raises(UserError, match=next(iter(options))):
        make_augment(options)
