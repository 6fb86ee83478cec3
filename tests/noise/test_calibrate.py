"""Calibration reaches the wanted Dice for every structure, on real and synthetic masks, or says why not."""

from __future__ import annotations

import numpy as np
import pytest

from maskmend.data.images import read_label
from maskmend.errors import UsageError
from maskmend.noise import (
    Blank,
    Dilate,
    DropComponents,
    Elastic,
    Erode,
    Fracture,
    MarkovWalk,
    Move,
    OneOf,
    Polygon,
    SkipSlices,
    ToChange,
    flaw,
)
from maskmend.noise.base import KINDS
from maskmend.noise.calibrate import bisect
from maskmend.noise.corrupt import between
from maskmend.noise.presets import corrupt_labels


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.logical_and(first, second).sum() / (first.sum() + second.sum())


def means(truth, flawed, value) -> float:
    return float(
        np.mean([dice(truth[c] == value, flawed[c] == value) for c in truth if (truth[c] == value).any()])
    )


@pytest.fixture(scope="module")
def hippocampi(real_data) -> dict[str, np.ndarray]:
    files = sorted((real_data / "tiny_unit_test" / "multiclass_2d" / "labels").iterdir())[:12]
    return {file.stem: read_label(file)[0] for file in files}


@pytest.fixture
def timid():
    """A dilation that never goes beyond one voxel; a kind as long as the test runs."""

    class Timid(Dilate):
        name = "timid"

        @classmethod
        def flaw(cls, annotation, choice, strength):
            return Dilate.flaw(annotation, {**choice, "radius_mm": 1.0}, min(strength, 1.0))

    yield Timid()
    del KINDS["timid"]


OUTLINES = {
    "dilate": Dilate(), "erode": Erode(), "move": Move(), "elastic": Elastic(), "polygon": Polygon(),
    "markov": MarkovWalk(60.0), "mixed": OneOf((Dilate(), Erode(), Move())),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTLINES)
def test_target_is_reached_in_each_structure_of_real_masks(hippocampi, name) -> None:
    targets = {1: 0.85, 2: 0.7}
    flawed, record = corrupt_labels(hippocampi, 1.0, OUTLINES[name], target_dice=targets)
    for value, target in targets.items():
        assert means(hippocampi, flawed, value) == pytest.approx(target, abs=0.01)
        assert record["calibration"]["reached"][value] == pytest.approx(means(hippocampi, flawed, value))


@pytest.mark.parametrize("noise", [Dilate(), Elastic(), Polygon(), Fracture((2, 4))])
@pytest.mark.parametrize("layered", [False, True])
def test_target_is_reached_in_volumes(organ, noise, layered) -> None:
    truth = {f"c{i}": organ(3, i).label for i in range(3)}
    how = {"spacing_mm": (2.4, 0.8, 1.0), "target_dice": 0.8, "layered": layered}
    flawed, _ = corrupt_labels(truth, 1.0, noise, **how)
    for value in (1, 2):
        assert means(truth, flawed, value) == pytest.approx(0.8, abs=0.01)


def test_every_single_case_is_as_bad(hippocampi) -> None:
    flawed, record = corrupt_labels(hippocampi, 1.0, Dilate(), target_dice=0.75, each=True)
    assert record["calibration"]["missed"] == {}
    for case, label in hippocampi.items():
        for value in (1, 2):
            assert dice(label == value, flawed[case] == value) == pytest.approx(0.75, abs=0.01)


def test_the_mean_leaves_cases_as_different_as_they_were_drawn(hippocampi) -> None:
    flawed, record = corrupt_labels(hippocampi, 1.0, Dilate((1, 6)), target_dice=0.75)
    assert record["calibration"]["reached"][1] == pytest.approx(0.75, abs=0.01)
    assert np.std([dice(hippocampi[c] == 1, flawed[c] == 1) for c in hippocampi]) > 0.05


def test_a_class_without_a_target_keeps_the_drawn_strength(hippocampi) -> None:
    flawed, record = corrupt_labels(hippocampi, 1.0, Dilate(), target_dice={2: 0.9})
    plain, _ = corrupt_labels(hippocampi, 1.0, Dilate())
    assert means(hippocampi, flawed, 2) == pytest.approx(0.9, abs=0.01)
    assert all(facts["strength"][1] == 1.0 for facts in record["cases"].values())
    assert means(hippocampi, flawed, 1) == pytest.approx(means(hippocampi, plain, 1), abs=0.1)


def test_structures_that_may_not_vanish_do_not(hippocampi) -> None:
    flawed, _ = corrupt_labels(hippocampi, 1.0, Erode(), target_dice=0.5, keep=0.2)
    for case, label in hippocampi.items():
        for value in (1, 2):
            assert (flawed[case] == value).sum() >= 0.2 * (label == value).sum()


def test_pieces_are_dropped_until_the_mean_is_right() -> None:
    label = np.zeros((60, 60), np.uint8)
    for i in range(10):
        label[6 * i : 6 * i + 3, ::6] = label[6 * i : 6 * i + 3, 1::6] = 1
    flawed, _ = corrupt_labels({"a": label}, 1.0, DropComponents(0.1), target_dice=0.6)
    assert dice(label > 0, flawed["a"] > 0) == pytest.approx(0.6, abs=0.01)


def test_a_target_out_of_reach_is_an_error_that_says_why(hippocampi, organ, timid) -> None:
    with pytest.raises(UsageError, match="cannot do more damage") as error:
        corrupt_labels(hippocampi, 1.0, timid, target_dice=0.2)
    assert "class 1: 0.2 wanted" in str(error.value)
    with pytest.raises(UsageError, match="leaves 20% of each structure"):
        corrupt_labels(hippocampi, 1.0, Erode(), target_dice=0.2, keep=0.2)
    with pytest.raises(UsageError, match="whole pieces"):
        corrupt_labels(hippocampi, 1.0, Blank(), target_dice=0.97)
    volume = {"a": organ(3).label}
    with pytest.raises(UsageError, match=r"whole pieces.*"):
        corrupt_labels(volume, 1.0, SkipSlices((2, 2), "empty"), target_dice=0.9)
    for wrong, match in ((1.5, "1.5"), (0.0, "0"), ({"liver": 0.5}, "liver"), ({3: 0.5}, "3")):
        with pytest.raises(UsageError, match=match):
            corrupt_labels(hippocampi, 1.0, Dilate(), target_dice=wrong)


def test_cases_that_cannot_be_as_bad_are_listed(hippocampi, timid) -> None:
    _, record = corrupt_labels(hippocampi, 1.0, timid, target_dice=0.3, each=True)
    assert set(record["calibration"]["missed"]) == set(hippocampi)
    assert all(
        d > 0.31 for dice_by_class in record["calibration"]["missed"].values() for d in dice_by_class.values()
    )


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_share_of_the_foreground_changes(organ, ndim, share) -> None:
    for seed in range(3):
        truth = organ(ndim, seed)
        for inner in (Dilate((2, 5)), Erode((2, 5)), Move((2, 5), degrees=30.0)):
            choice = ToChange(inner, share).choose(np.random.default_rng(seed), truth)
            changed = (flaw(truth, choice) != truth.label).sum() / (truth.label > 0).sum()
            assert changed == pytest.approx(share, abs=0.011)


def test_between_takes_a_share_of_the_voxels_that_differ(organ) -> None:
    truth = organ()
    strong = flaw(truth, Dilate((3, 3)).choose(np.random.default_rng(0), truth))
    differ = (strong != truth.label).sum()
    for share in (0.0, 0.25, 0.5, 1.0):
        part = between(truth.label, strong, share)
        assert (part != truth.label).sum() == round(share * differ)
        assert ((part == truth.label) | (part == strong)).all()
    half = between(truth.label, strong, 0.5) != truth.label  # in patches, not as salt and pepper
    neighbours = half[1:] & half[:-1]
    assert neighbours.sum() > 0.5 * half.sum()


def test_bisection_finds_a_falling_figure() -> None:
    asked = []

    def figure(level):
        asked.append(level)
        return float(np.exp(-level)) if isinstance(level, float) else 0.0

    found = bisect(figure, 0.1, 32.0)
    assert np.exp(-found.level) == pytest.approx(0.1, abs=0.0025)
    assert len(asked) < 16
    assert bisect(figure, 0.5, 0.1).level == 0.1  # as strong as it gets


def test_ignored_voxels_are_not_counted(organ) -> None:
    truth = {"a": organ(2, ignored=True).label}
    flawed, record = corrupt_labels(truth, 1.0, Dilate(), target_dice=0.8, ignore=9)
    assert set(record["calibration"]["reached"]) == {1, 2}
    np.testing.assert_array_equal(flawed["a"] == 9, truth["a"] == 9)
