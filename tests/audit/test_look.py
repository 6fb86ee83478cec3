"""Large volumes: a part of the voxels must say what all of them say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maskmend.audit import calibration, estimate, voxels
from maskmend.audit.evidence import gather, signed_names
from maskmend.audit.look import MANY, Look, look_at
from maskmend.audit.selfcheck import SelfCheck

SPACING = (2.0, 0.8, 0.8)
SHAPE = (60, 150, 150)


def balls(
    wider_mm: float = 0.0, *, moved_mm: float = 0.0, lesion_mm: float = 0.0, shape: tuple[int, ...] = SHAPE
) -> Look:
    """A ball of radius 40 mm, of which the mask is wider and moved, perhaps with a second class inside."""
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)), indexing="ij")
    centre = [(n - 1) * s / 2 for n, s in zip(shape, SPACING, strict=True)]
    away = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
    moved = np.sqrt(
        sum(
            (axis - c - moved_mm * (a == 1)) ** 2
            for a, (axis, c) in enumerate(zip(grid, centre, strict=True))
        )
    )
    label = (moved < 40 + wider_mm).astype(np.uint8)
    likely = 1 / (1 + np.exp(away - 40))
    probs = [1 - likely, likely]
    if lesion_mm:
        label[away < lesion_mm] = 2
        inner = 1 / (1 + np.exp(away - lesion_mm))
        probs = [probs[0], likely * (1 - inner), likely * inner]
    return look_at("ball", np.stack(probs).astype(np.float32), label, SPACING)


def test_finest_radius_is_that_of_the_ball() -> None:
    assert balls()._finest_mm() == pytest.approx(40, rel=0.03)
    assert balls(lesion_mm=12)._finest_mm() == pytest.approx(12, rel=0.06)


def test_voxels_are_left_out_only_where_there_are_many_and_no_class_is_fine() -> None:
    look = balls()
    thin = look.thinned()
    assert look.label.size > MANY
    assert (thin.each, thin.spacing_mm) == (4 * 4 * 4, (8.0, 3.2, 3.2))
    assert thin.thinned() is thin
    assert balls(lesion_mm=4).thinned().each == 1
    assert balls(lesion_mm=14).thinned().each == 4 * 4  # 14 / 4 = 3.5 mm: one slice, four voxels within it
    small = balls(shape=(60, 60, 60))
    assert small.thinned() is small
    nothing = look.with_label(np.zeros_like(look.label))
    assert nothing.thinned() is nothing


@pytest.mark.parametrize(("wider", "moved"), [(0.0, 0.0), (2.0, 0.0), (-2.0, 0.0), (0.0, 4.0), (1.0, -3.0)])
def test_figures_are_those_of_all_voxels(wider: float, moved: float) -> None:
    look = balls(wider, moved_mm=moved)
    full, thin = gather(look), gather(look.thinned())
    names = np.array(signed_names(3))
    mm = np.isin(names, ["offset", "shift"])
    assert np.allclose(full.signed[0, mm], thin.signed[0, mm], atol=0.15)
    assert full.signed[0, 0] == pytest.approx(wider, abs=0.4)
    assert np.allclose(full.signed[0, names == "size"], thin.signed[0, names == "size"], atol=0.01)
    assert np.allclose(full.surprises, thin.surprises, atol=0.25)
    assert np.allclose(full.doubts, thin.doubts, atol=0.15)


def test_figures_of_a_mask_that_the_model_does_not_see() -> None:
    """Nothing but the voxel that keeps quotients finite is left of the model's outline."""
    probs = np.full_like(balls().probs, 0.001)
    probs[0] = 0.999
    look = balls().with_probs(probs)
    full, thin = gather(look), gather(look.thinned())
    assert np.allclose(full.surprises, thin.surprises, atol=0.05)
    assert np.isnan([full.doubts, thin.doubts]).all()  # of an outline that is nowhere


def test_what_is_counted_stands_for_all_voxels() -> None:
    look = balls(2.0)
    thin = look.thinned()
    rng = np.random.default_rng(0)
    weights = [calibration.sample(one, rng)[:, -1].sum() for one in (look, thin)]
    assert weights[0] == look.label.size
    assert weights[1] == pytest.approx(weights[0], rel=0.1)
    doubted = [(one := voxels.sample(each, each.label, rng)).each * len(one.wrong) for each in (look, thin)]
    assert doubted[1] == pytest.approx(doubted[0], rel=0.05)


def test_cases_that_were_fitted_to_are_judged_like_others() -> None:
    rng = np.random.default_rng(1)
    looks = {
        str(i): replace(
            balls(3.0 * (i % 4 == 3) + rng.normal(0, 0.2), moved_mm=rng.normal(0, 0.3)), case=str(i)
        )
        for i in range(16)
    }
    auditor = estimate.fit(lambda ids: (looks[one] for one in ids), list(looks))
    stranger = replace(auditor, seen={})
    odds = np.array([auditor.judge(look).odds for look in looks.values()])
    assert np.allclose(odds, [stranger.judge(look).odds for look in looks.values()])
    flawed = np.arange(16) % 4 == 3
    assert odds[flawed].min() > odds[~flawed].max()
    opinion = auditor.judge(looks["3"])
    assert opinion.noise.shape == looks["3"].label.shape  # the map keeps every voxel
    answers = SelfCheck.of(auditor, lambda ids: (looks[one] for one in ids), list(looks)).answers
    wrong = [one for one in answers if one.true_kind != "sound"]
    assert wrong
    assert all(
        one.wrong > 0 and one.wrong % 64 == 0 for one in wrong
    )  # an exam on thinned looks, in voxels of the image
    assert sum(one.noise for one in wrong) == pytest.approx(sum(one.wrong for one in wrong), rel=0.5)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("slices", [2, 3, 7, 12])
def test_few_slices_are_not_lost(slices: int, axis: int) -> None:
    """A plate in every slice of a short stack, thin slices or thick ones, is still there with about its volume."""
    label = np.zeros((slices, 900, 900), np.uint8)
    label[:, 100:-100, 100:-100] = 1
    spacing = (5.0, 0.5, 0.5)
    label, spacing = np.moveaxis(label, 0, axis), tuple(np.roll(spacing, axis).tolist())
    likely = 0.98 * label + 0.01
    look = look_at("plate", np.stack([1 - likely, likely]), label, spacing)
    thin = look.thinned()
    assert thin.each > 1
    assert thin.each * int(thin.label.sum()) == pytest.approx(int(label.sum()), rel=0.1)
    assert np.isfinite(gather(thin).surprises).all()
