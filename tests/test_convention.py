"""Which outlines are believed: known make-ups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_outlines import looked, outlines, scenes

from maskmend.appearance import FEATURES, PLACES, SCENE, OutlineModel, scene_looks
from maskmend.convention import SPLITS, Related, _by_kind, _first_guesses, _last_resort, explained


@pytest.mark.parametrize("sound", [60, 40, 20])
def test_the_convention_that_images_explain_is_found_even_when_most_masks_are_wrong(sound: int) -> None:
    flawed = 80 - sound
    looks = torch.cat([outlines(0, count=sound), outlines(3, count=flawed, seed=1)])
    mixed = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    share = explained(looks[mixed])[torch.argsort(mixed)]
    assert share[:sound].mean() > 0.9
    assert share[sound:].mean() < 0.1


def told(strength: np.ndarray, seed: int) -> torch.Tensor:
    """Looks of outlines whose sides one feature tells apart, by a strength of their own; below 0 the wrong way."""
    looks = torch.randn(len(strength), 2 * PLACES, FEATURES, generator=torch.Generator().manual_seed(seed))
    by = torch.tensor(strength, dtype=torch.float32)[:, None]
    looks[:, :PLACES, 0] += 2 * by
    looks[:, PLACES:, 0] -= 2 * by
    return looks


@pytest.mark.parametrize("seed", range(4))
def test_flaws_of_many_sizes_are_told_from_sound_masks(seed: int) -> None:
    """Three quarters of the outlines are drawn off the boundary by more or less: they form no group."""
    rng = np.random.default_rng(seed)
    strength = rng.permutation(np.r_[rng.normal(1, 0.05, 25), rng.uniform(-1, 0.6, 75)])
    share = explained(told(strength, seed)).numpy()
    assert share[strength > 0.8].mean() > 0.95
    assert share[strength < 0.1].mean() < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_images_of_several_kinds_are_not_asked_what_is_explained_at_all(seed: int) -> None:
    """The same outlines; now those off the boundary are all in images of their own kind."""
    rng = np.random.default_rng(seed)
    strength = rng.permutation(np.r_[rng.normal(1, 0.05, 25), rng.uniform(-1, 0.6, 75)])
    looks = told(strength, seed)
    views = torch.tensor(rng.normal(0, 0.3, (100, len(SCENE), FEATURES)), dtype=torch.float32)
    assert explained(looks, views).min() < 0.05
    assert _by_kind(looks, views.flatten(1), SPLITS - 1).min() == 1, "a part of images of several kinds"
    views[strength < 0.1] += 1
    assert explained(looks, views).min() == 1


@pytest.mark.parametrize(("against", "decided"), [((-1.0, 0.6), True), ((-1.4, -0.6), False)])
def test_two_ways_of_drawing_that_explain_themselves_are_not_decided_between(
    against: tuple[float, float], decided: bool
) -> None:
    """Half of the outlines follow one edge; the others scatter about it, or all follow the opposite one."""
    rng = np.random.default_rng(0)
    strength = rng.permutation(np.r_[rng.uniform(0.6, 1.4, 50), rng.uniform(*against, 50)])
    looks = told(strength, 0)
    model = OutlineModel(looks)
    share = _last_resort(model, _first_guesses(model), looks, None)
    assert (share.min().item() < 0.05) == decided
    assert share[strength > 0.7].min() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_boundaries_that_are_more_or_less_faint_are_sound(seed: int) -> None:
    strength = np.random.default_rng(seed).uniform(0.15, 0.6, 100)
    assert explained(told(strength, seed)).min() == 1


@pytest.mark.parametrize(
    ("errors", "two"),
    [
        (np.r_[np.full(40, 0.5), np.linspace(1, 1.5, 60)], True),
        (np.linspace(0.4, 0.96, 100), False),  # one kind, explained more or less
        (np.r_[np.full(95, 0.5), np.full(5, 1.4)], False),  # a few that nothing explains
        (np.r_[np.full(5, 0.5), np.full(95, 1.4)], False),  # too few to be the right ones
        (np.r_[np.full(60, 0.9), np.full(40, 1.05)], False),  # hardly anything is explained
    ],
)
def test_what_the_believed_outlines_explain_at_all(errors: np.ndarray, two: bool) -> None:
    shares = torch.tensor(errors)[:, None]
    judge = Related()
    judge.fit(shares)
    assert judge.several == two
    expected = 1 / (1 + np.exp((errors - 0.97) / 0.03)) if two else np.ones(len(errors))
    np.testing.assert_allclose(judge.posterior(shares).numpy(), expected, atol=1e-6)


def test_one_convention_is_one_convention() -> None:
    assert explained(outlines(0, count=60)).min() == 1
    assert explained(outlines(0, count=19)).tolist() == [1] * 19  # too few to tell
    looks = torch.cat([outlines(0, count=40), torch.zeros(5, 2 * PLACES, FEATURES)])
    assert explained(looks).tolist() == [1] * 45  # without an outline nothing is said of it


def test_a_kind_of_image_is_not_a_flaw() -> None:
    """Bright balls on a dark ground and dark ones on a bright ground; in each kind some drawn too large."""
    made = []
    for contrast, seed in ((1.5, 0), (-1.5, 10)):
        made += scenes(0, count=45, seed=seed, contrast=contrast)
        made += scenes(3, count=20, seed=seed + 1, contrast=contrast)
    order = np.random.default_rng(0).permutation(len(made))
    made = [made[i] for i in order]
    sound = torch.tensor([bool(torch.equal(given, truth)) for _, given, truth in made])
    views = torch.stack(
        [scene_looks(image + (2.0 if i >= 65 else 0)) for i, (image, *_) in zip(order, made, strict=True)]
    )
    blind, told = explained(looked(made)), explained(looked(made), views)
    assert told[sound].mean() > 0.9
    assert told[~sound].mean() < 0.15
    assert blind[sound].mean() < 0.8


def test_a_scene_that_foretells_nothing_changes_nothing() -> None:
    made = scenes(0, count=50) + scenes(3, count=30, seed=1)
    views = torch.randn(80, len(SCENE), FEATURES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(explained(looked(made), views), explained(looked(made)))


def test_more_cases_than_are_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = torch.cat([outlines(0, count=60), outlines(3, count=40, seed=1)])
    whole = explained(looks)
    monkeypatch.setattr("maskmend.appearance.MOST", 50)
    part = explained(looks)
    assert ((part > 0.5) == (whole > 0.5)).float().mean() > 0.97
