"""Small pictures: what lies where, the right way up (against nibabel), and outlines where the mask ends."""

from __future__ import annotations

import io
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from maskmend.overlay import (
    GROUND,
    Section,
    _draw_outlines,
    displayed,
    ground_of,
    mosaic,
    pictured,
    region,
    sections,
    tile,
    to_jpeg,
)

ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for flips in product((0, 1), repeat=3)
]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_volumes_are_upright_whatever_their_orientation(codes):
    rng = np.random.default_rng(0)
    ras = nibabel.Nifti1Image(rng.integers(0, 255, (6, 7, 8)).astype(np.uint8), np.diag([2.0, 3.0, 4.0, 1.0]))
    wanted = nibabel.orientations.axcodes2ornt(tuple(codes))
    turned = ras.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(ras.affine), wanted)
    )
    array = np.asarray(turned.dataobj).T  # as maskmend reads it
    spacing = tuple(float(s) for s in turned.header.get_zooms()[::-1])
    voxel = np.linalg.inv(turned.affine) @ [2 * 1.0, 3 * 5.0, 4 * 2.0, 1]  # RAS index (1, 5, 2)
    place = [round(i) for i in voxel[:3]][::-1]
    found = {one.name: one for one in sections(array, {"m": array}, None, place, spacing, turned.affine)}
    data = np.asarray(ras.dataobj)
    expected = {  # rows down to P or I, columns to the right to L or P
        "axial": data[::-1, ::-1, 2].T, "coronal": data[::-1, 5, ::-1].T, "sagittal": data[1, ::-1, ::-1].T,
    }  # fmt: skip
    aspects = {"axial": 3 / 2, "coronal": 4 / 2, "sagittal": 4 / 3}
    for name, picture in expected.items():
        np.testing.assert_array_equal(found[name].image, picture)
        np.testing.assert_array_equal(found[name].masks["m"], picture)
        assert found[name].aspect == pytest.approx(aspects[name])
        assert picture[found[name].place] == data[1, 5, 2]


def test_without_an_affine_planes_stay_as_they_are():
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    found = sections(array, {}, None, (1, 2, 3), (3.0, 1.0, 1.0))
    np.testing.assert_array_equal(found[0].image, array[1])
    np.testing.assert_array_equal(found[1].image, array[:, 2])
    np.testing.assert_array_equal(found[2].image, array[:, :, 3])
    assert [one.aspect for one in found] == [1, 3, 3]
    assert [one.name for one in found] == ["across axis 0", "across axis 1", "across axis 2"]


def test_the_region_holds_what_is_drawn_and_doubted():
    mask, heat = np.zeros((200, 300), int), np.zeros((200, 300))
    mask[50:60, 40:60], heat[80:90, 70:75] = 1, 0.9
    heat[190, 290] = 0.1  # hardly doubted
    top, bottom, left, right = region(Section(mask.astype(np.uint8), masks={"given": mask}, heat=heat))
    assert top <= 44
    assert bottom >= 96
    assert left <= 34
    assert right >= 81
    assert bottom - top < 90
    assert right - left < 90
    assert abs((bottom - top) - (right - left)) <= 1
    empty = Section(np.zeros((20, 30), np.uint8), masks={"given": np.zeros((20, 30), int)})
    assert region(empty) == (0, 20, 0, 30)


def test_outlines_lie_just_inside_the_mask_and_heat_on_the_doubt():
    image, mask, heat = np.full((50, 50), 128, np.uint8), np.zeros((50, 50), int), np.zeros((50, 50))
    mask[10:40, 20:30], heat[:5, :5] = 7, 1.0
    section = Section(image, masks={"given": mask}, heat=heat)
    drawn = tile(section, (0, 50, 0, 50), 100, mask="given", colours={7: "#FF0000"})
    red = (drawn == (255, 0, 0)).all(-1)
    assert red[20:80, 40:60].any()
    inner = np.zeros_like(red)
    inner[20:80, 40:60] = True
    assert not red[~inner].any()
    assert red[20, 40:60].all()
    assert red[20:80, 59].all()
    assert not red[25:75, 45:55].any()
    assert (drawn[90:, 90:] == 128).all()
    warm = tile(section, (0, 50, 0, 50), 100, heat=True)
    assert warm[2, 2].tolist() != [128] * 3
    assert (warm[50:, 50:] == 128).all()


@pytest.mark.parametrize("place", [(20, 30), (0, 0), (70, 80), (0, 80)])
def test_outlines_are_those_of_the_whole_picture(place):
    """Against scipy on the whole tile, also where a class leaves the picture."""
    mask = np.zeros((90, 100), int)
    ball = np.add.outer(np.linspace(-1, 1, 25) ** 2, np.linspace(-1, 1, 25) ** 2) < 1
    corner = tuple(slice(a, min(a + 25, n)) for a, n in zip(place, mask.shape, strict=True))
    part = ball[tuple(slice(0, one.stop - one.start) for one in corner)]
    mask[corner][part] = 1
    mask[corner][part & (np.arange(part.shape[1]) > 12)] = 2
    picture = np.random.default_rng(0).uniform(0, 255, (*mask.shape, 3)).astype(np.float32)
    expected, rim = picture.copy(), np.zeros(mask.shape, bool)
    lines = {
        k: (mask == k) & ~ndimage.binary_erosion(mask == k, iterations=2, border_value=1) for k in (1, 2)
    }
    rim = ndimage.binary_dilation(lines[1] | lines[2], np.ones((3, 3))) & ~(lines[1] | lines[2])
    expected[rim] *= 0.45
    expected[lines[1]], expected[lines[2]] = (255, 0, 0), (0, 255, 0)
    _draw_outlines(picture, mask, {1: "#FF0000", 2: "#00FF00"}, 150)
    np.testing.assert_array_equal(picture, expected)


def test_planes_are_shown_as_the_whole_volume_would_be():
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        image = rng.normal(100, 30, (channels, 6, 7, 8)).astype(np.float32)
        image[0, 1, 2, 3] = np.nan
        shown, shades = pictured(image)
        planes = sections(shown, {}, None, (1, 2, 3), (3.0, 1.0, 1.0), shades=shades)
        whole = sections(displayed(image), {}, None, (1, 2, 3), (3.0, 1.0, 1.0))
        for plane, expected in zip(planes, whole, strict=True):
            assert plane.image.dtype == np.uint8
            np.testing.assert_array_equal(plane.image, expected.image)


def test_tiles_that_share_their_ground_are_as_by_themselves():
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 60), int)
    mask[10:30, 20:40] = 1
    image = rng.integers(0, 255, (40, 60, 3)).astype(np.uint8)
    section, box = Section(image, 1.3, {"given": mask}, 0.5 * mask), (5, 35, 10, 50)
    ground = ground_of(section, box, 80)
    before = ground.copy()
    for how in ({"mask": "given"}, {"heat": True}, {"inset": True, "caption": "axial"}):
        shared = tile(section, box, 80, ground=ground, **how)
        np.testing.assert_array_equal(shared, tile(section, box, 80, **how))
    np.testing.assert_array_equal(ground, before)


def test_an_image_that_is_not_square_keeps_its_shape():
    section = Section(np.full((20, 40), 200, np.uint8), aspect=1.0)
    drawn = tile(section, (0, 20, 0, 40), 80)
    assert (drawn[:20] == GROUND).all()
    assert (drawn[20:60] == 200).all()
    tall = tile(Section(np.full((20, 40), 200, np.uint8), aspect=4.0), (0, 20, 0, 40), 80)
    assert (tall[:, :20] == GROUND).all()
    assert (tall[:, 20:60] == 200).all()


def test_a_small_part_is_shown_in_its_place():
    section = Section(np.full((100, 100), 90, np.uint8))
    drawn = tile(section, (40, 60, 10, 30), 100, inset=True)
    frame = np.argwhere((drawn == (255, 225, 77)).all(-1))
    middle = (frame.mean(0) - (100 - 29)) / 28  # the inset fills the last 28 pixels
    np.testing.assert_allclose(middle, (0.5, 0.2), atol=0.06)
    assert not (tile(section, (0, 100, 0, 100), 100, inset=True) == (255, 225, 77)).all(-1).any()


def test_the_display_is_cut_at_outliers_and_bears_nan():
    image = np.linspace(0, 100, 10_000).reshape(1, 100, 100)
    image[0, 0, 0], image[0, 0, 1] = 1e9, np.nan
    shown = displayed(image)
    assert shown.dtype == np.uint8
    assert shown[50, 50] == pytest.approx(255 * (50.5 - 0.5) / 99, abs=3)
    assert displayed(np.stack([image[0]] * 3)).shape == (100, 100, 3)
    assert displayed(np.stack([image[0]] * 2)).shape == (100, 100)


def test_jpeg_is_of_the_size_asked_for():
    rng = np.random.default_rng(0)
    picture = mosaic([[rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)] * 4] * 3)
    assert picture.shape == (3 * 66 - 2, 4 * 66 - 2, 3)
    full, small = to_jpeg(picture), to_jpeg(picture, 40_000)
    assert len(small) <= 40_000 < len(full)
    assert Image.open(io.BytesIO(small)).size == (262, 196)


def test_numbers_are_written_on_classes():
    image, mask = np.full((50, 50), 128, np.uint8), np.zeros((50, 50), int)
    mask[10:40, 10:40] = 2
    section = Section(image, masks={"given": mask})
    plain = tile(section, (0, 50, 0, 50), 100, mask="given")
    written = tile(section, (0, 50, 0, 50), 100, mask="given", numbers={2: 1})
    differs = np.argwhere((plain != written).any(-1))
    assert len(differs) > 10
    assert (np.abs(differs - 50) < 12).all()
