"""Machine labels on images whose right answer is known, and labels between two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maskmend.data.case import Geometry
from maskmend.data.images import write_label
from maskmend.errors import DataError, UsageError
from maskmend.noise import Annotation, Compose, EachSlice, Predictions, RegionGrow, Scribbles, build, flaw
from maskmend.noise.automatic import morph


def drawn(noise, truth, seed=0):
    return noise.choose(np.random.default_rng(seed), truth)


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def two_tone(ball, ndim: int, noise: float = 0.0) -> Annotation:
    """A bright ball (1) on dark ground."""
    spacing = (1.0, 0.8, 0.8)[3 - ndim :]
    label = ball(9.0, 30.0, spacing)
    image = label + np.random.default_rng(0).normal(0, noise, label.shape)
    return Annotation(label, spacing, image[None].astype(np.float32))


@pytest.mark.parametrize("ndim", [2, 3])
def test_region_growing_finds_what_is_bright_and_joined(ball, ndim) -> None:
    truth = two_tone(ball, ndim, noise=0.05)
    noise = RegionGrow((5.0, 5.0), limit_mm=6.0, smooth_voxels=0.0)
    grown = flaw(truth, drawn(noise, truth))
    assert dice(grown > 0, truth.label > 0) > 0.995
    apart = truth.image.copy()
    apart[0, ..., :3] = 1.0  # as bright, but not joined
    assert not flaw(replace(truth, image=apart), drawn(noise, truth))[..., :3].any()


def test_region_growing_leaks_into_what_is_alike_up_to_the_limit(ball) -> None:
    truth = two_tone(ball, 2, noise=0.05)
    middle = truth.label.shape[0] // 2
    image = truth.image.copy()
    image[0, middle - 2 : middle + 2, :] = 1.0  # a bright bridge across the image
    noise = RegionGrow((5.0, 5.0), limit_mm=3.0, smooth_voxels=0.0)
    grown = flaw(replace(truth, image=image), drawn(noise, truth))
    columns = np.flatnonzero(grown[middle])
    true = np.flatnonzero(truth.label[middle])
    assert (true[0] - columns[0]) * 0.8 == pytest.approx(3.0, abs=0.8)
    assert (columns[-1] - true[-1]) * 0.8 == pytest.approx(3.0, abs=0.8)


@pytest.mark.parametrize("ndim", [2, 3])
def test_scribbles_separate_what_is_separable_and_err_where_it_is_not(ball, ndim) -> None:
    easy, hard = two_tone(ball, ndim, noise=0.05), two_tone(ball, ndim, noise=1.5)
    found = [dice(flaw(t, drawn(Scribbles(), t)) > 0, t.label > 0) for t in (easy, hard)]
    assert found[0] > 0.9
    assert found[1] < found[0] - 0.05


def test_scribbles_are_few(organ) -> None:
    truth, rng = organ(), np.random.default_rng(0)
    counts = [Scribbles((3, 6)).choose(rng, truth)["voxels"] for _ in range(100)]
    assert set(counts) == {3, 4, 5, 6}


@pytest.mark.parametrize("noise", [RegionGrow(limit_mm=2.0), Scribbles(limit_mm=2.0)])
def test_nothing_is_labelled_beyond_the_limit(organ, ball, noise) -> None:
    truth = organ()
    flawed = flaw(truth, drawn(noise, truth))
    inside = np.argwhere(truth.label > 0) * truth.spacing_mm
    for place in np.argwhere((flawed > 0) & (truth.label == 0)) * truth.spacing_mm:
        assert np.linalg.norm(inside - place, axis=1).min() <= 2.0 + 1e-6


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.0)])
def test_a_label_between_two_discs_is_a_disc_between(ball, spacing) -> None:
    small, large = ball(10.0, 60.0, spacing), ball(20.0, 60.0, spacing)
    for share in (0.25, 0.5, 0.75):
        between = morph(small, large, share, spacing)
        assert dice(between > 0, ball(10 + 10 * share, 60.0, spacing) > 0) > 0.97
    np.testing.assert_array_equal(morph(small, large, 0.0, spacing), small)
    np.testing.assert_array_equal(morph(small, large, 1.0, spacing), large)


def test_strength_goes_from_the_truth_to_the_machine(organ) -> None:
    truth = organ()
    choice = drawn(Scribbles(), truth)
    off = [(flaw(truth, choice, s) != truth.label).sum() for s in (0.0, 0.3, 0.6, 1.0)]
    assert off[0] == 0
    assert off == sorted(off)


def test_an_image_is_asked_for(organ) -> None:
    truth = replace(organ(), image=None)
    for noise in (RegionGrow(), Scribbles()):
        assert Compose((noise,)).needs_image
        assert EachSlice(noise).needs_image
        with pytest.raises(UsageError, match="image"):
            drawn(noise, truth)


def test_bad_settings(organ) -> None:
    for noise in (RegionGrow(tolerance=(2, 1)), RegionGrow(limit_mm=-1), Scribbles(voxels=(1, 5))):
        with pytest.raises(UsageError, match=r"tolerance|limit_mm|voxels"):
            drawn(noise, organ())


def test_predictions_come_from_files(tmp_path, organ) -> None:
    truth = organ(3)
    predicted = np.roll(truth.label, 2, 1)
    geometry = Geometry(truth.label.shape, truth.spacing_mm)
    write_label(tmp_path / "case0.nii.gz", predicted, geometry)
    noise = build({"noise": "predictions", "folder": str(tmp_path)})
    assert isinstance(noise, Predictions)
    np.testing.assert_array_equal(flaw(truth, drawn(noise, truth)), predicted)
    with pytest.raises(DataError, match="case7"):
        drawn(noise, replace(truth, case="case7"))
    cut = replace(truth, label=truth.label[1:])
    with pytest.raises(DataError, match="shape"):
        flaw(cut, drawn(noise, cut))
