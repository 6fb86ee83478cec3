"""Flaws put together are what one gets by doing them one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from maskmend.errors import UsageError
from maskmend.noise import (
    Annotation,
    Compose,
    Dilate,
    DropComponents,
    Erode,
    InPixels,
    Move,
    Nothing,
    OneOf,
    PerClass,
    Polygon,
    Scribbles,
    flaw,
)


def drawn(noise, truth, seed=0):
    return noise.choose(np.random.default_rng(seed), truth)


@pytest.mark.parametrize("ndim", [2, 3])
def test_steps_follow_one_another(organ, ndim) -> None:
    truth = organ(ndim)
    choice = drawn(Compose((Dilate((2, 2)), Move((3, 3)), Erode((1, 1)))), truth)
    label = truth.label
    for step in choice["steps"]:
        label = flaw(replace(truth, label=label), step)
    np.testing.assert_array_equal(flaw(truth, choice), label)
    other = flaw(truth, {"transform": "compose", "steps": choice["steps"][::-1]})
    assert (other != label).any()


def test_one_of_draws_by_weight_and_records_the_option_alone(organ) -> None:
    truth, rng = organ(), np.random.default_rng(0)
    noise = OneOf((Dilate(), Erode(), Nothing()), (5, 3, 0))
    names = [noise.choose(rng, truth)["transform"] for _ in range(800)]
    assert 440 < names.count("dilate") < 560  # 500, four deviations are 55
    assert set(names) == {"dilate", "erode"}


def test_nothing_is_nothing(organ) -> None:
    truth = organ()
    np.testing.assert_array_equal(flaw(truth, drawn(Nothing(), truth)), truth.label)


def test_each_class_has_its_own_flaw(organ) -> None:
    truth = replace(organ(), names={"background": 0, "left lung": 1, "right lung": 2})
    grown = flaw(truth, drawn(PerClass({"right lung": Dilate((2, 2))}), truth))
    np.testing.assert_array_equal(grown == 1, truth.label == 1)
    alone = flaw(replace(truth, label=np.where(truth.label == 2, 2, 0)), drawn(Dilate((2, 2)), truth))
    np.testing.assert_array_equal(grown == 2, (alone == 2) & (truth.label != 1))
    both = drawn(PerClass({"lung": Dilate((1, 3))}), truth)
    assert set(both["classes"]) == {"1", "2"}
    assert both["classes"]["1"]["radius_mm"] != both["classes"]["2"]["radius_mm"]
    rest = drawn(PerClass({"left lung": Erode()}, rest=Dilate()), truth)
    assert [inner["transform"] for inner in rest["classes"].values()] == ["erode", "dilate"]


def test_shrinking_one_class_opens_a_gap_to_its_neighbour() -> None:
    label = np.zeros((30, 30), np.uint8)
    label[5:25, 5:15], label[5:25, 15:25] = 1, 2
    truth = Annotation(label, (1.0, 1.0))
    gap = flaw(truth, drawn(PerClass({"1": Erode((2, 2))}), truth))
    np.testing.assert_array_equal(gap == 1, ndimage.binary_erosion(label == 1, ndimage.iterate_structure(
        ndimage.generate_binary_structure(2, 1), 2)))  # fmt: skip
    np.testing.assert_array_equal(gap == 2, label == 2)


def test_unknown_classes_are_named_with_what_there_is(organ) -> None:
    with pytest.raises(UsageError, match="did you mean 'core'"):
        drawn(PerClass({"cores": Dilate()}), organ())
    with pytest.raises(UsageError, match="named classes: none"):
        drawn(PerClass({"core": Dilate()}), replace(organ(), names={}))


@pytest.mark.parametrize("size", [64, 128])
def test_pixels_of_a_standard_image(size) -> None:
    """8 of 256 pixels are 2 of 64 and 4 of 128, whatever a pixel is in millimetres."""
    label = np.zeros((size // 2, size), np.uint8)
    label[size // 8 : size // 4, size // 4 : size // 2] = 1
    truth = Annotation(label, (0.3, 0.7))
    wide = flaw(truth, drawn(InPixels(Dilate((8, 8)), width=256), truth))
    rows, columns = (np.flatnonzero(wide.any(axis)) for axis in (1, 0))
    assert len(rows) == size // 8 + 2 * size // 32
    assert len(columns) == size // 4 + 2 * size // 32


def test_pixels_of_a_label_of_a_standard_area() -> None:
    label = np.zeros((3, 90, 90), np.uint8)
    label[1, 20:60, 20:60], label[2, 30:40, 30:40] = (
        1,
        1,
    )  # 1600 in the largest slice: 1 voxel is 2.5 of 10000
    truth = Annotation(label, (5.0, 0.5, 0.5))
    choice = drawn(InPixels(Dilate((5, 5)), area=10_000), truth)
    assert choice["pixels"] == pytest.approx(2.5)
    assert flaw(truth, choice)[1, 40].sum() == 40 + 2 * 2


def test_what_is_made_of_others_needs_and_may_what_they_do() -> None:
    for make in (
        lambda n: Compose((Dilate(), n)),
        lambda n: OneOf((n, Dilate())),
        lambda n: PerClass({"a": n}),
        InPixels,
    ):
        assert make(Scribbles()).needs_image
        assert not make(Dilate()).needs_image
        assert make(DropComponents()).may_erase
        assert not make(DropComponents()).smooth
        assert make(Polygon()).smooth
        assert not make(Polygon()).may_erase


def test_bad_settings(organ) -> None:
    for noise, match in (
        (OneOf(()), "at least one"),
        (OneOf((Dilate(),), (1, 2)), "weight"),
        (OneOf((Dilate(), Erode()), (0, 0)), "weight"),
        (InPixels(Dilate(), width=0), "width"),
        (InPixels(Dilate(), area=0.0), "area"),
    ):
        with pytest.raises(UsageError, match=match):
            drawn(noise, organ())
