"""Pictures: valid PNGs of the right make-up that show the place of interest, equal bytes for equal input."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from maskmend import draw


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def near(png: bytes, colour: str, within: int = 40) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels(png) - wanted).max(-1) < within).sum())


def square(shape=(40, 50), value: int = 1) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(10, 25) for _ in shape)] = value
    return label


IMAGE = np.random.default_rng(0).normal(100, 20, (40, 50)).astype(np.float32)


def test_contour_colour_appears_only_when_asked() -> None:
    plain = draw.grid([[draw.panel(IMAGE)]])
    outlined = draw.grid([[draw.panel(IMAGE, [(square(), draw.GIVEN, "-")])]])
    assert near(plain, draw.GIVEN) == 0
    assert near(outlined, draw.GIVEN) > 50


def test_heat_is_transparent_at_zero() -> None:
    plain = pixels(draw.grid([[draw.panel(IMAGE)]]))
    zero = pixels(draw.grid([[draw.panel(IMAGE, heat=np.zeros((40, 50)))]]))
    hot = pixels(draw.grid([[draw.panel(IMAGE, heat=square().astype(float))]]))
    np.testing.assert_array_equal(plain, zero)
    assert (plain != hot).any()


def test_volumes_show_the_slice_of_interest() -> None:
    volume = np.zeros((9, 40, 50), np.float32)
    heat = np.zeros(volume.shape)
    volume[6], heat[6] = IMAGE, 0.5
    assert draw.slice_of_interest(heat) == 6
    assert draw.slice_of_interest(np.zeros((9, 4, 4))) == 4
    np.testing.assert_array_equal(draw.panel(volume, heat=heat).image, IMAGE)
    label = np.zeros(volume.shape, np.uint8)
    label[3] = 1
    assert draw.panel(volume, [(label, draw.TRUTH, "-")]).contours[0][0].all()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_channels(channels) -> None:
    shown = draw.panel(np.stack([IMAGE] * channels), [(square(), draw.GIVEN, "-")])
    assert shown.image.shape == ((3, 40, 50) if channels == 3 else (40, 50))
    draw.grid([[shown]])


def test_anisotropic_pixels_get_their_shape() -> None:
    flat = pixels(draw.grid([[draw.panel(IMAGE, spacing_mm=(1, 1))]]))
    tall = pixels(draw.grid([[draw.panel(IMAGE, spacing_mm=(3, 1))]]))
    assert tall.shape[0] > 2 * flat.shape[0]


@pytest.mark.parametrize("shape", [(40, 50), (12, 40, 50)])
def test_noise_rows_and_sheet(shape) -> None:
    image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    label[..., 10:20, 10:20] = 1
    label[..., 20:30, 10:20] = 2
    row = ("a_case", image, label, label, label / 2.0)
    one, two = draw.noise_rows([row]), draw.noise_rows([row, row])
    assert pixels(two).shape[0] > 1.5 * pixels(one).shape[0]
    assert one == draw.noise_rows([row])
    if len(shape) == 2:
        png = draw.sheet([("x", image[None], label)] * 8)
        assert near(png, draw.GIVEN) > 50
        assert near(png, draw.TRUTH) > 50


def test_constant_nan_and_empty_images_do_not_fail() -> None:
    for image in (np.zeros((40, 50)), np.full((40, 50), np.nan), IMAGE.astype(np.int16)):
        png = draw.grid([[draw.panel(image, [(np.zeros((40, 50), np.uint8), draw.GIVEN, "-")])]])
        assert png.startswith(b"\x89PNG")


def test_curves_and_intervals_draw_every_series() -> None:
    png = draw.curves({"a": ([0, 1, 2], [1, 2, 3]), "b": ([0, 1, 2], [3, 2, 1])}, x_name="x", y_name="y")
    assert near(png, draw.PALETTE[0]) > 50
    assert near(png, draw.PALETTE[1]) > 50
    png = draw.intervals([("a", 0.5, 0.4, 0.6), ("b", 0.7, float("nan"), float("nan"))], x_name="dice")
    assert near(png, draw.PALETTE[1]) > 20


def test_palette_differs_in_brightness_for_grey_printing() -> None:
    light = [
        np.dot([int(c[i : i + 2], 16) for i in (1, 3, 5)], (0.299, 0.587, 0.114)) for c in draw.PALETTE[:2]
    ]
    assert abs(light[0] - light[1]) > 15
