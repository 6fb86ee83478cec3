"""The whole estimate on worlds whose truth is known."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from tests.audit.conftest import World, dice, noise_field

from maskmend.audit import estimate
from maskmend.audit.estimate import mean_dice, priority
from maskmend.audit.injection import _patches
from maskmend.audit.selfcheck import Answer, SelfCheck
from maskmend.audit.suggest import suggest


def judged(world: Any, **how: Any) -> tuple[estimate.Auditor, dict[str, estimate.Opinion]]:
    auditor = estimate.fit(world.looks, world.ids, **how)
    return auditor, {case: auditor.judge(world.look(case)) for case in world.ids}


@pytest.fixture(scope="module", params=[(2, 2), (2, 3), (3, 2)], ids=["2-D", "2-D three classes", "3-D"])
def known(request: Any, make_world: Callable[..., Any]) -> tuple[Any, estimate.Auditor, dict[str, Any]]:
    ndim, classes = request.param
    world = make_world(60 if ndim == 2 else 30, ndim=ndim, classes=classes)
    return world, *judged(world)


def test_remembered_figures_are_those_of_this_very_mask_and_model(known: Any) -> None:
    """Judged anew without what was remembered, each opinion is the same; with another mask or model it is another."""
    world, auditor, opinions = known
    forgetful = replace(auditor, seen={})
    assert set(auditor.seen) == {world.look(case).fingerprint for case in world.ids}
    for case in world.ids[:5]:
        assert forgetful.judge(world.look(case)).odds == opinions[case].odds
        redrawn = world.look(case).with_label(np.roll(world.look(case).label, 2, axis=0))
        doubtful = world.look(case).with_probs(world.look(case).probs ** 0.5)
        for other in (redrawn, doubtful):
            assert auditor.judge(other).odds == forgetful.judge(other).odds != opinions[case].odds


def test_the_models_alone_say_the_same_of_all_cases_at_once(known: Any) -> None:
    _, auditor, opinions = known
    outlined = {case: one.flawed for case, one in opinions.items() if not one.evidence.lone}
    assert len(outlined) > 20
    told = auditor.flawed_outlines()
    assert set(told) == set(opinions)
    assert {case: told[case] for case in outlined} == pytest.approx(outlined, abs=1e-6)


def test_flawed_masks_rank_above_sound_ones(known: Any) -> None:
    world, _, opinions = known
    wrong = [case in world.flawed for case in world.ids]
    assert roc_auc_score(wrong, [opinions[case].odds for case in world.ids]) > 0.97


def test_the_share_of_flawed_masks_is_estimated(known: Any) -> None:
    world, auditor, opinions = known
    assert sum(one.flawed for one in opinions.values()) == pytest.approx(
        len(world.flawed), abs=0.15 * len(world.ids)
    )
    assert auditor.population.rate == pytest.approx(0.3, abs=0.15)


def test_noise_maps_find_wrong_voxels_better_than_the_model_alone(known: Any) -> None:
    world, _, opinions = known
    wrong = np.concatenate([(world.given[c] != world.truth[c]).ravel() for c in world.ids])
    noise = np.concatenate([opinions[c].look.whole(opinions[c].noise).ravel() for c in world.ids])
    model = np.concatenate(
        [
            1 - np.take_along_axis(world.probs[c], world.given[c][None].astype(int), 0).ravel()
            for c in world.ids
        ]
    )
    assert average_precision_score(wrong, noise) > average_precision_score(wrong, model) + 0.05
    assert noise.sum() == pytest.approx(wrong.sum(), rel=0.35)
    assert np.mean((noise - wrong) ** 2) < np.mean((model - wrong) ** 2)


def test_noise_maps_are_calibrated(known: Any) -> None:
    """Of the voxels called wrong with a probability of about p, about the share p is wrong."""
    world, _, opinions = known
    wrong = np.concatenate([(world.given[c] != world.truth[c]).ravel() for c in world.ids])
    noise = np.concatenate([opinions[c].look.whole(opinions[c].noise).ravel() for c in world.ids])
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        inside = (noise >= low) & (noise <= high)
        assert abs(noise[inside].mean() - wrong[inside].mean()) < 0.2, (low, high)


def test_estimated_dice_follows_the_true_one(known: Any) -> None:
    world, _, opinions = known
    true = [dice(world.given[c], world.truth[c]) for c in world.ids]
    estimated = [mean_dice(opinions[c].dice(suggest(opinions[c]))) for c in world.ids]
    assert np.corrcoef(true, estimated)[0, 1] > 0.85


def test_the_estimated_dice_of_a_flawed_mask_is_half_the_models_and_half_that_to_the_suggestion(
    known: Any,
) -> None:
    world, _, opinions = known
    for case in world.ids:
        opinion, label = replace(opinions[case], odds=60.0, lost=0.0), opinions[case].look.label
        for suggested in (label, suggest(opinion), np.zeros_like(label)):
            found, by_model = opinion.dice(suggested), opinion.dice_by_model()
            for k in range(1, opinion.look.classes):
                views = [by_model[k - 1]]
                for mask in (opinion.look.probs.argmax(0), suggested, suggested):
                    one, other = label == k, mask == k
                    views.append(dice(one, other) if one.any() or other.any() else np.nan)
                assert found[k - 1] == pytest.approx(np.nanmean(views))
            assert priority(opinion.flawed, mean_dice(found)) == pytest.approx(
                opinion.flawed * (1 - mean_dice(found))
            )


def test_where_no_mask_may_be_sound_the_order_goes_by_dice() -> None:
    assert priority(0.2, 0.7) == pytest.approx(0.06)
    assert priority(0.2, 0.7, backing=0.0) == pytest.approx(0.3)
    assert priority(0.2, 0.7, backing=0.5) == pytest.approx(0.18)


@pytest.mark.parametrize(
    ("flawed", "usual_overlap", "share"),
    [
        (1.0, 0.98, 1.0), (0.5, 1.0, 0.5), (0.5, 0.925, 0.625), (0.5, 0.85, 1.0), (0.5, 0.7, 1.0),
        (0.05, 0.8, 0.5), (0.05, 1.0, 0.025), (1e-9, 0.5, 0.0),
    ],
)  # fmt: skip
def test_a_sound_mask_is_forgiven_what_the_models_say_unless_no_mask_is_exact(
    known: Any, flawed: float, usual_overlap: float, share: float
) -> None:
    world, _, opinions = known
    case = next(c for c in world.ids if c in world.flawed)
    sure = replace(opinions[case], odds=60.0)
    odds = np.log(flawed / max(1 - flawed, 1e-12))
    opinion = replace(sure, odds=odds, usual_overlap=usual_overlap)
    assert opinion.held_against == pytest.approx(share, abs=1e-7)
    blank, in_full = np.zeros_like(sure.look.label), replace(sure, usual_overlap=usual_overlap)
    assert opinion.dice(blank) == pytest.approx(1 - share * (1 - in_full.dice(blank)), abs=1e-6)


def test_suggestions_mend_the_flawed_and_spare_the_sound(known: Any) -> None:
    world, _, opinions = known
    gain = {}
    for case in world.ids:
        whole = world.given[case].copy()
        whole[opinions[case].look.box] = suggest(opinions[case])
        gain[case] = dice(whole, world.truth[case]) - dice(world.given[case], world.truth[case])
    assert np.mean([gain[c] for c in world.flawed]) > 0.05
    assert np.mean([gain[c] for c in world.ids if c not in world.flawed]) > -0.01


def test_a_systematic_bias_of_the_model_is_no_error(make_world: Callable[..., Any]) -> None:
    """The model's outline lies two voxels outside all masks; masks as wide as the model are the odd ones."""
    world = make_world(60, bias=2.0, rate=0.2, kinds=("over-drawn",))
    auditor, opinions = judged(world)
    wrong = [case in world.flawed for case in world.ids]
    assert roc_auc_score(wrong, [opinions[case].odds for case in world.ids]) > 0.97
    assert auditor.calibration.bias[1] < -1, "the shift must be taken out"
    sound = [opinions[case].noise.sum() for case in world.ids if case not in world.flawed]
    assert np.median(sound) < 10


def test_sound_data_stay_unaccused(make_world: Callable[..., Any]) -> None:
    world = make_world(60, rate=0.0)
    _, opinions = judged(world)
    assert sum(one.flawed for one in opinions.values()) < 6
    assert sum(int((suggest(one) != one.look.label).sum()) for one in opinions.values()) < 60


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("doubt", [0.0, 0.05])
def test_a_moved_mask_stands_out_among_masks_that_the_models_have_drawn_themselves(
    doubt: float, scale: float
) -> None:
    """All other differences are next to nothing, and so would be what errors are measured by; whatever the unit."""
    rng, world = np.random.default_rng(1), World(spacing_mm=(scale, scale))
    row, column = np.mgrid[0:96, 0:96]
    for number in range(40):
        middle, radius = rng.uniform(35, 60, 2), rng.uniform(12, 20)
        inside = radius - np.hypot(row - middle[0], column - middle[1]) + noise_field(rng, row.shape, 6)
        odds = np.clip(2 * (inside + doubt * noise_field(rng, row.shape, 4)), -12, 12)
        foreground = (1 / (1 + np.exp(-odds))).astype(np.float32)
        case, truth = f"{number:02d}", (inside > 0).astype(np.uint8)
        world.probs[case], world.truth[case] = np.stack([1 - foreground, foreground]), truth
        world.given[case] = np.roll(truth, 8, 1) if number == 7 else truth
    _, opinions = judged(world)
    flawed = {case: one.flawed for case, one in opinions.items()}
    assert flawed.pop("07") > 0.85
    assert max(flawed.values()) < 0.1
    moved = opinions["07"]
    true = dice(world.given["07"], world.truth["07"])
    assert mean_dice(moved.dice(suggest(moved))) == pytest.approx(true, abs=0.1)


def test_voxels_that_are_not_annotated_are_never_wrong(make_world: Callable[..., Any]) -> None:
    world = make_world(40)
    for case in world.ids:
        valid = np.ones(world.given[case].shape, bool)
        valid[:, 32:] = False
        world.valid[case] = valid
        world.given[case] = np.where(
            valid, world.given[case], 1 - world.given[case]
        )  # what they hold is irrelevant
    _, opinions = judged(world)
    for case in world.ids:
        noise = opinions[case].look.whole(opinions[case].noise)
        assert not noise[:, 32:].any()
        assert (suggest(opinions[case]) == opinions[case].look.label)[~_known(opinions[case])].all()
    flawed = [case in world.flawed for case in world.ids]
    assert roc_auc_score(flawed, [opinions[case].odds for case in world.ids]) > 0.9


def _known(opinion: estimate.Opinion) -> np.ndarray:
    look = opinion.look
    return np.ones(look.label.shape, bool) if look.valid is None else look.valid


def test_empty_masks_are_judged(make_world: Callable[..., Any]) -> None:
    """Nothing drawn where the model sees an object, and nothing drawn where there is none."""
    world = make_world(40)
    missed, empty = world.ids[-1], world.ids[-2]
    world.given[missed] = np.zeros_like(world.given[missed])
    world.given[empty] = world.truth[empty] = np.zeros_like(world.given[empty])
    world.probs[empty] = np.stack(
        [np.ones(world.given[empty].shape), np.zeros(world.given[empty].shape)]
    ).astype("f4")
    _, opinions = judged(world)
    assert opinions[missed].flawed > 0.9
    assert opinions[missed].noise.sum() == pytest.approx(world.truth[missed].sum(), rel=0.3)
    assert opinions[empty].noise.sum() < 1
    assert np.isnan(opinions[empty].dice(suggest(opinions[empty]))).all()


def test_a_lost_model_accuses_nobody(make_world: Callable[..., Any]) -> None:
    """On some images the prediction is ragged nonsense: the sound masks there must not come before flawed ones."""
    world = make_world(60)
    lost = world.ids[-4:]
    for number, case in enumerate(lost):
        rng = np.random.default_rng(number)
        speckle = 1 / (1 + np.exp(-3 * np.asarray(rng.standard_normal(world.given[case].shape))))
        world.probs[case] = np.stack([1 - speckle, speckle]).astype(np.float32)
    _, opinions = judged(world)
    assert all(opinions[case].lost > 0.5 for case in lost)
    assert max(opinions[case].odds for case in lost) < np.median(
        [opinions[case].odds for case in world.flawed]
    )


def test_a_weak_model_does_not_make_sound_masks_look_poor(make_world: Callable[..., Any]) -> None:
    """The models agree with no mask well; what all masks share with them is not a mask's fault."""
    world = make_world(24, rate=0.2, waver=8.0)
    auditor, opinions = judged(world)
    assert auditor.usual_overlap < 0.7
    sound = [
        mean_dice(opinions[case].dice(suggest(opinions[case])))
        for case in world.ids
        if case not in world.flawed
    ]
    assert np.mean(sound) > 0.86


def test_trusted_masks_count_as_sound(make_world: Callable[..., Any]) -> None:
    """Half of the masks too wide: which half is right, only the trusted cases can tell."""
    world = make_world(60, rate=0.6, kinds=("over-drawn",))
    trusted = frozenset(case for case in world.ids if case not in world.flawed)
    auditor, opinions = judged(world, trusted=frozenset(sorted(trusted)[:12]))
    assert (auditor.population.trust[[world.ids.index(c) for c in sorted(trusted)[:12]]] == 1).all()
    wrong = [case in world.flawed for case in world.ids]
    assert roc_auc_score(wrong, [opinions[case].odds for case in world.ids]) > 0.95


def test_the_model_decides_for_its_likeliest_class(known: Any) -> None:
    world, _, opinions = known
    for case in world.ids[:3]:
        for look in (world.look(case), opinions[case].look):
            assert np.array_equal(look.decided, look.probs.argmax(axis=0))
    ties = world.look(world.ids[0])
    assert (ties.with_probs(np.full_like(ties.probs, 0.3)).decided == 0).all()


def test_errors_on_a_part_lie_in_patches_of_the_wanted_size() -> None:
    """As where white noise, smoothed in full, is above zero: signs agree less with the distance in the same way."""
    rng, shape, wide = np.random.default_rng(0), (60, 90), (6.0, 11.0)
    patches = np.array([_patches(shape, wide, rng) for _ in range(300)]) * 2.0 - 1
    assert abs(patches.mean()) < 0.05
    for axis, deviation in enumerate(wide, 1):
        for far in (3, 6, 12):
            ahead = np.take(patches, range(far, patches.shape[axis]), axis)
            behind = np.take(patches, range(patches.shape[axis] - far), axis)
            alike = 2 / np.pi * np.arcsin(np.exp(-((far / deviation) ** 2) / 4))  # of a Gaussian field
            assert (ahead * behind).mean() == pytest.approx(alike, abs=0.06)


def test_the_same_seed_gives_the_same_opinion(make_world: Callable[..., Any]) -> None:
    world = make_world(30)
    one, two = judged(world)[1], judged(world)[1]
    assert all(one[case].odds == two[case].odds for case in world.ids)
    assert all(np.array_equal(one[case].noise, two[case].noise) for case in world.ids)


def test_the_exam_agrees_with_what_is_true(known: Any) -> None:
    world, auditor, opinions = known
    check = SelfCheck.of(auditor, world.looks, world.ids)
    facts = check.facts()
    assert facts["auroc"] > 0.9
    assert facts["mended_dice"] > facts["flawed_dice"]
    hits = []
    for case in world.ids:
        low, high = check.interval(mean_dice(opinions[case].dice(suggest(opinions[case]))))
        assert 0 <= low <= high <= 1
        hits.append(low - 0.02 <= dice(world.given[case], world.truth[case]) <= high + 0.02)
    assert np.mean(hits) > 0.75


def test_equal_odds_count_one_half_in_the_exam() -> None:
    """The figure is scikit-learn's, whether odds are tied or not."""
    rng = np.random.default_rng(0)
    for odds in (rng.integers(-2, 3, 60).astype(float), np.zeros(60), rng.normal(size=60)):
        truth = rng.random(60) < 0.4
        answers = tuple(
            Answer(0.5, rng.random(), one, "mixed", "mixed" if wrong else "sound", 0.9, 1.0, 1)
            for one, wrong in zip(odds.tolist(), truth, strict=True)
        )
        found = SelfCheck(answers, 0.5).facts()["auroc"]
        assert found == pytest.approx(roc_auc_score(truth, odds), abs=6e-5)


def test_memory_does_not_grow_with_the_cases(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks are made on demand; what is kept of a case is far smaller than the case."""
    monkeypatch.setattr(estimate, "FIT_ON", 20)
    small = make_world(5, ndim=3, size=40)
    case_bytes = 4 * small.probs[small.ids[0]].size

    def looks(ids: Any) -> Any:
        for case in ids:
            look = small.look(small.ids[int(case) % 5])
            yield replace(look, case=case, probs=look.probs.copy(), memo={})

    def peak(count: int) -> int:
        ids = [str(i) for i in range(count)]
        tracemalloc.start()
        auditor = estimate.fit(looks, ids)
        kept = [auditor.judge(look).odds for look in looks(ids)]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(kept) == count
        return most

    few, many = peak(20), peak(80)
    assert many < few + 2 * case_bytes, f"{few} bytes for 20 cases, {many} for 80 of {case_bytes} each"
