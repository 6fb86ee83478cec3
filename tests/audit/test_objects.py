"""Objects that only the mask or only the model has: found, judged by themselves, kept out of the outlines' figures."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label as connected
from sklearn.metrics import roc_auc_score
from tests.audit.conftest import noise_field, signed_distance

from maskmend.audit import estimate
from maskmend.audit.estimate import Auditor, Opinion, fit, mask_dice, mean_dice
from maskmend.audit.evidence import Evidence, gather
from maskmend.audit.kinds import Nested, case_kind, class_kinds
from maskmend.audit.look import LEAST, Look, look_at
from maskmend.audit.objects import MOST, Lone, Objects
from maskmend.audit.presence import DENIED, MOST_INVENTED, SEEN, Presence, lowered
from maskmend.audit.suggest import suggest

ORGAN, LESION = 1, 2


def drawn_look(label: np.ndarray, decided: np.ndarray, sure: float = 0.9, classes: int = 3) -> Look:
    """A look at a model that is as sure everywhere of the classes that it decides for."""
    probs = np.full((classes, *label.shape), (1 - sure) / (classes - 1), np.float32)
    np.put_along_axis(probs, decided[None].astype(int), sure, 0)
    return look_at("a", probs, label, (1.0,) * label.ndim)


def squares(*places: tuple[int, int, int, int], shape: tuple[int, int] = (60, 60)) -> np.ndarray:
    """A label with squares: row, column, side and class of each."""
    label = np.zeros(shape, np.uint8)
    for row, column, side, index in places:
        label[row : row + side, column : column + side] = index
    return label


# ---- which they are ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 44), (14, 16, 12)])
def test_they_are_those_that_another_implementation_finds(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    for _ in range(20):
        label, decided = (
            np.where(noise_field(rng, shape, 2) > 1.2, rng.integers(1, 4), 0).astype(np.uint8)
            for _ in range(2)
        )
        label[noise_field(rng, shape, 2) > 1.4], decided[noise_field(rng, shape, 2) > 1.4] = 2, 2
        look = drawn_look(label, decided, classes=4)
        objects = Objects.of(look)
        own, seen = (look.whole(one) for one in (look.label, look.decided))
        wanted = set()
        for index in (1, 2, 3):
            for drawn, mask, other in (
                (True, own == index, seen == index),
                (False, seen == index, own == index),
            ):
                numbers = connected(mask, connectivity=len(shape))
                if drawn:
                    assert objects.drawn[index - 1] == numbers.max()
                for part in range(1, numbers.max() + 1):
                    here = numbers == part
                    if not (here & other).any():
                        wanted.add((index, drawn, tuple(np.flatnonzero(here[look.box]))))
        assert {(one.index, one.drawn, tuple(where)) for one, where in objects.lone} == wanted
        for one, where in objects.lone:
            assert one.volume == len(where)
            odds = np.log(look.probs.max(0).ravel()[where] / look.given.ravel()[where])
            assert one.confidence == pytest.approx(odds.mean(), rel=1e-5)


def test_a_model_that_sees_specks_everywhere_costs_no_more() -> None:
    """Thousands of them: the largest are judged, all are settled, and the time is that of one pass."""
    rng = np.random.default_rng(0)
    label = np.zeros((80, 80, 80), np.uint8)
    label[20:60, 20:60, 20:60] = 1
    specks = np.zeros_like(label, bool)
    specks[rng.random(label.shape) < 0.03] = True
    specks[2:5, 2:5, 2:5] = True
    decided = np.where(ndimage.binary_dilation(label > 0, iterations=2), label, specks).astype(np.uint8)
    look = drawn_look(label, decided, classes=2)
    began = time.perf_counter()
    evidence, objects = gather(look), Objects.of(look)
    assert time.perf_counter() - began < 5
    assert len(objects.rest) > 1000
    assert len(objects.lone) == len(evidence.lone) == MOST
    assert min(one.volume for one, _ in objects.lone) >= max(len(where) for where in objects.rest)
    assert np.array_equal(objects.settled(look).label > 0, (look.decided > 0) | (look.label > 0))
    assert objects.share(look.decided != look.label) == 1


def test_their_volume_is_in_millimetres() -> None:
    look = replace(drawn_look(squares((20, 20, 4, 1)), squares((40, 40, 4, 1))), spacing_mm=(2.0, 0.5))
    assert [one.volume for one, _ in Objects.of(look).lone] == [16.0, 16.0]
    assert [one.confidence for one, _ in Objects.of(look).lone] == pytest.approx([np.log(0.9 / 0.05)] * 2)


def test_settled_is_the_mask_with_them_as_the_model_has_them() -> None:
    organ = (10, 10, 30, ORGAN)
    given = squares(
        organ, (15, 15, 6, LESION), (50, 50, 4, ORGAN)
    )  # a lesion and a part that the model denies
    seen = squares((11, 10, 30, ORGAN), (30, 30, 6, LESION))
    look = drawn_look(given, seen)
    settled = look.whole(Objects.of(look).settled(look).label)
    assert np.array_equal(settled, squares(organ, (30, 30, 6, LESION)))


def test_a_mask_with_nothing_in_common_with_the_model_stays_as_it_is() -> None:
    look = drawn_look(squares((5, 5, 9, 1)), squares((30, 30, 9, 1)))
    objects = Objects.of(look)
    assert len(objects.lone) == 2
    assert objects.settled(look) is look


def test_the_share_of_an_error_that_they_hold() -> None:
    organ = (10, 10, 30, ORGAN)
    before, after = squares(organ), squares(organ, (20, 20, 6, LESION), (40, 10, 4, ORGAN))
    look = drawn_look(after, before)
    changed = (after != before)[look.box]
    assert Objects.of(look).share(changed) == pytest.approx(
        36 / (36 + 16)
    )  # the other part is joined to the organ
    assert Objects.of(look).share(np.zeros_like(changed)) == 0


def test_they_do_not_speak_in_the_figures_of_the_outlines() -> None:
    seen = squares((10, 10, 30, ORGAN), (30, 30, 6, LESION))
    without, plain = (
        gather(drawn_look(squares((11, 10, 30, ORGAN), *more), seen))
        for more in ([(15, 15, 6, LESION)], [(30, 30, 6, LESION)])
    )
    assert np.allclose(without.surprises, plain.surprises)
    assert np.allclose(without.signed, plain.signed)
    assert without.disagreement > plain.disagreement + 0.5  # but in how well mask and model agree
    assert (len(without.lone), len(plain.lone)) == (2, 0)


# ---- whether they are there ----------------------------------------------------------------------------


def presence(volume: float = 100.0) -> Presence:
    return Presence(np.array([volume, volume]), np.zeros((2, 2)), np.zeros(2))


def test_surer_and_larger_ones_are_likelier_errors() -> None:
    def odds(drawn: bool, volume: float, confidence: float) -> float:
        return presence().odds(Lone(1, drawn, volume, confidence))

    large = 1e6
    assert odds(True, large, DENIED) == pytest.approx(0, abs=1e-3)
    assert odds(False, large, SEEN) == pytest.approx(0, abs=1e-3)
    assert odds(True, 100, 6) > odds(True, 100, 5) > odds(True, 10, 5) > odds(True, 1, 5)
    assert odds(True, 20, 5) - odds(True, large, 5) == pytest.approx(
        -np.log(2), abs=1e-3
    )  # at a fifth of the usual


def test_a_mask_is_sound_if_its_outlines_and_objects_are() -> None:
    def chance(odds: float) -> float:
        return float(1 / (1 + np.exp(-odds)))

    judge = presence()
    denied, weaker, seen = Lone(1, True, 90, 4.5), Lone(2, True, 90, 3.0), Lone(2, False, 40, 1.8)
    found = judge.joined(-1.0, [weaker, denied, seen])
    sound = (1 - chance(-1.0)) * (1 - chance(judge.odds(denied))) * (1 - chance(judge.odds(seen)))
    assert chance(found) == pytest.approx(1 - sound)
    assert judge.joined(40.0, [seen]) == pytest.approx(40 + np.log1p(np.exp(judge.odds(seen))))
    assert judge.joined(-40.0, []) == pytest.approx(-40.0)


@pytest.mark.parametrize("most", [0.5, 3.0, 19.0])
def test_odds_are_lowered_until_their_probabilities_sum_to_as_much(most: float) -> None:
    odds = np.random.default_rng(0).normal(4, 2, 20)
    lower = lowered(odds, most)
    assert (1 / (1 + np.exp(lower - odds))).sum() == pytest.approx(most, rel=1e-4) or lower == 0
    assert (lower == 0) == ((1 / (1 + np.exp(-odds))).sum() <= most)
    assert lowered(np.zeros(0), most) == 0


def test_a_model_that_denies_many_objects_is_not_believed_each_time() -> None:
    """What it denies for sure now and then is wrong; what it denies as surely all the time is its habit."""

    def denying(some: int) -> Presence:
        seen = squares((10, 10, 30, ORGAN))
        masks = [squares((10, 10, 30, ORGAN), *[(20, 20, 6, LESION)] * (n < some)) for n in range(40)]
        cases = [gather(drawn_look(mask, seen, sure=0.999)) for mask in masks]
        return Presence.of(cases, np.array([900.0, 36.0]))

    few, many = denying(1), denying(30)
    lone = Lone(LESION, True, 36.0, -np.log(LEAST))
    assert few.habit[0, 1] > 0  # even one of one is more than a part
    assert few.habit[:, 0].tolist() == [0, 0]
    assert many.habit[1].tolist() == [0, 0]
    chance = 1 / (1 + np.exp(-many.odds(lone)))
    assert chance == pytest.approx(MOST_INVENTED, abs=0.01)


def test_a_mask_without_a_class_that_nearly_all_have_is_suspect() -> None:
    full, lacks = squares((10, 10, 30, ORGAN), (20, 20, 6, LESION)), squares((10, 10, 30, ORGAN))
    for masks, empty, common in ((39, 0, np.log(20)), (39, 300, np.log(20)), (8, 0, 0.0)):
        cases = [gather(drawn_look(full, full))] * masks + [gather(drawn_look(lacks, full))]
        blank = [gather(drawn_look(squares(), squares()))] * empty
        judge = Presence.of([*cases, *blank], np.array([900.0, 36.0]))
        assert judge.common[LESION - 1] == pytest.approx(common, abs=1e-6)
        (lone,) = cases[-1].lone
        assert lone.first
        assert judge.odds(lone) - judge.odds(replace(lone, first=False)) == pytest.approx(judge.common[1])
    more = squares((10, 10, 30, ORGAN), (20, 20, 6, LESION), (30, 30, 6, LESION))
    (second,) = gather(drawn_look(full, more)).lone
    (drawn,) = gather(drawn_look(full, lacks)).lone
    assert not second.first
    assert not drawn.first


# ---- in an audit ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Organs, lesions in four of ten of them; the model misses a tenth of these, and sees some that are not there."""

    truth: dict[str, np.ndarray]
    given: dict[str, np.ndarray]
    probs: dict[str, np.ndarray]
    flaw: dict[str, str]

    def looks(self, names: Any) -> Any:
        return (look_at(n, self.probs[n], self.given[n], (1.0,) * self.given[n].ndim) for n in names)


def _ball(shape: tuple[int, ...], centre: Any, radius: float, rng: np.random.Generator) -> np.ndarray:
    places = np.ogrid[tuple(slice(0, n) for n in shape)]
    far = np.sqrt(sum((at - c) ** 2 for at, c in zip(places, centre, strict=True)))
    return np.asarray(far < radius + 0.6 * noise_field(rng, shape, 4))


def world(count: int, shape: tuple[int, ...], rate: float, seed: int = 0) -> World:
    made = World({}, {}, {}, {})
    for number in range(count):
        rng, name = np.random.default_rng([seed, number]), f"{number:03d}"
        wide = min(shape)
        organ = _ball(
            shape, np.array(shape) / 2 + rng.normal(0, 1, len(shape)), rng.uniform(0.28, 0.36) * wide, rng
        )
        inner = np.argwhere(ndimage.binary_erosion(organ, iterations=4))

        taken = np.zeros(shape, bool)

        def lesion(inner: Any = inner, rng: Any = rng, organ: Any = organ, taken: Any = taken) -> np.ndarray:
            """Beside all others."""
            for _ in range(50):
                spot = _ball(shape, rng.choice(inner), rng.uniform(2.2, 4), rng) & organ
                if not (spot & taken).any():
                    break
            taken |= ndimage.binary_dilation(spot, iterations=2)
            return spot

        lesions = [lesion()] if rng.random() < 0.4 else []
        odds = -7 + 0.5 * noise_field(rng, shape, 3)
        seen = [spot for spot in lesions if rng.random() > 0.1]
        for spot, most in [*((one, 6.0) for one in seen), *([(lesion(), 0.8)] if rng.random() < 0.1 else [])]:
            near = 2 * (signed_distance(spot) + 0.4 * noise_field(rng, shape, 3))
            odds = np.maximum(odds, np.minimum(near, most))
        near = 2 * (signed_distance(organ) + 0.5 * noise_field(rng, shape, 3))
        inside, spotted = (1 / (1 + np.exp(-np.clip(one, -7, 7))) for one in (near, odds))
        probs = np.stack([1 - inside, inside * (1 - spotted), inside * spotted]).astype(np.float32)
        truth = organ.astype(np.uint8)
        for spot in lesions:
            truth[spot] = LESION
        given, kinds = truth.copy(), ["invent", "wide", *["drop"] * 2 * len(lesions)]
        if rng.random() < rate:
            kind = str(rng.choice(kinds))
            if kind == "drop":
                given[given == LESION] = ORGAN
            elif kind == "invent":
                given[lesion()] = LESION
            else:
                given[ndimage.binary_dilation(organ, iterations=2) & ~organ] = ORGAN
            made.flaw[name] = kind
        made.truth[name], made.given[name], made.probs[name] = truth, given, probs
    return made


@pytest.fixture(scope="module", params=[(64, 64), (26, 28, 24)], ids=["2-D", "3-D"])
def judged(request: Any) -> tuple[World, Auditor, dict[str, Opinion]]:
    made = world(90 if len(request.param) == 2 else 50, request.param, 0.3)
    auditor = fit(made.looks, sorted(made.given))
    return made, auditor, {look.case: auditor.judge(look) for look in made.looks(sorted(made.given))}


def test_lesions_left_out_or_made_up_within_an_organ_are_found(judged: Any) -> None:
    made, _, opinions = judged
    sound = [name for name in opinions if name not in made.flaw]
    for kind in ("drop", "invent", "wide"):
        some = [name for name, what in made.flaw.items() if what == kind]
        assert some
        odds = [opinions[name].odds for name in [*sound, *some]]
        assert roc_auc_score([0] * len(sound) + [1] * len(some), odds) > 0.96
    flawed = sum(opinion.flawed for opinion in opinions.values())
    assert 0.6 * len(made.flaw) < flawed < 1.5 * len(made.flaw)


def test_they_are_named_and_suggested_away(judged: Any) -> None:
    made, _, opinions = judged
    named = {"drop": "missing object", "invent": "invented object"}
    kinds, before, after = [], [], []
    for name, what in made.flaw.items():
        opinion = opinions[name]
        better = suggest(opinion)
        if what in named and opinion.flawed > 0.5:
            kinds.append(case_kind(opinion, better)[0] == named[what])
        if what in named:
            before.append(mean_dice(mask_dice(made.given[name], made.truth[name], 3)))
            after.append(mean_dice(mask_dice(opinion.look.whole(better), made.truth[name], 3)))
    assert np.mean(kinds) > 0.8
    assert np.mean(after) > np.mean(before) + 0.1
    sound = [name for name in opinions if name not in made.flaw]
    kept = [
        mean_dice(mask_dice(opinions[n].look.whole(suggest(opinions[n])), made.truth[n], 3)) for n in sound
    ]
    assert np.mean(kept) > 0.97


def test_the_map_doubts_the_object_and_not_the_rest(judged: Any) -> None:
    made, _, opinions = judged
    inside, outside = [], []
    for name, what in made.flaw.items():
        wrong = made.given[name] != made.truth[name]
        if what == "invent" and opinions[name].flawed > 0.5:
            noise = opinions[name].look.whole(opinions[name].noise)
            inside.append(noise[wrong].mean())
            outside.append(noise[~wrong].mean())
    assert np.mean(inside) > 0.6
    assert np.mean(outside) < 0.02


def test_the_images_are_asked_of_outlines_only(judged: Any) -> None:
    """Whether images bear out the models is told by the outlines that these call flawed, not by objects in them."""
    made, auditor, _ = judged
    told = auditor.flawed_outlines()
    assert set(told) == set(made.given)
    of = {
        kind: [told[n] for n, what in made.flaw.items() if what == kind]
        for kind in ("drop", "invent", "wide")
    }
    assert min(of["wide"]) > 0.5
    assert np.mean([*of["drop"], *of["invent"]]) < 0.2


def test_what_the_model_misses_is_no_flaw(judged: Any) -> None:
    """Sound masks with an object that the model denies are doubted less than those with one made up."""
    made, _, opinions = judged
    denied = {name: [one for one in o.evidence.lone if one.drawn] for name, o in opinions.items()}
    sound = [opinions[name].flawed for name, some in denied.items() if some and name not in made.flaw]
    wrong = [opinions[name].flawed for name, what in made.flaw.items() if what == "invent"]
    assert np.mean(wrong) > 0.5
    assert not sound or np.mean(sound) < np.mean(wrong)


def test_a_class_that_nobody_draws_has_no_dice() -> None:
    """However unsure the model is of its absence; what it may have seen rightly counts as missed."""
    label = squares((10, 10, 30, ORGAN))
    for seen, doubt, wanted in ((0.3, 0.3, np.nan), (0.6, 0.05, np.nan), (0.6, 0.3, 0.5)):
        probs = np.full((3, 60, 60), 0.001)
        probs[0], probs[ORGAN][label > 0] = np.where(label > 0, 0.001, 0.998), 0.998
        probs[LESION, 20:26, 20:26], probs[ORGAN, 20:26, 20:26] = seen, 0.999 - seen
        look = look_at("a", probs, label, (1.0, 1.0))
        noise = np.where(look.probs[LESION] > 0.1, doubt, 0).astype(np.float32)
        opinion = Opinion(look, gather(look), 20.0, 0.0, noise)
        organ, lesion = opinion.dice(look.label)
        assert organ > 0.95
        assert lesion == pytest.approx(wanted, abs=0.01, nan_ok=True)
        assert np.isnan(opinion.dice(look.decided)[1]) == (
            seen < 0.5
        )  # suggested: missed, whatever the doubt
    nothing = look.with_label(np.zeros_like(look.label))
    empty = replace(opinion, look=nothing, evidence=gather(nothing))
    assert empty.dice(empty.look.label)[1] == pytest.approx(0, abs=1e-6)


def test_where_only_one_side_has_a_class_its_dice_is_how_likely_the_mask_is_right() -> None:
    """Analytic. A class that both have is compared as ever."""
    organ = squares((10, 10, 30, ORGAN))
    lesions = squares((10, 10, 30, ORGAN), (14, 14, 4, LESION), (25, 25, 8, LESION))
    for label, model in ((lesions, organ), (organ, lesions)):
        probs = np.full((3, 60, 60), 0.01)
        np.put_along_axis(probs, model[None].astype(int), 0.98, 0)
        look = look_at("a", probs, label, (1.0, 1.0))
        chance = np.where(look.whole(look.label) != model, 0.4, 0)[look.box]
        chance[14 - look.box[0].start :][:4, 14 - look.box[1].start :][:, :4] = 0.1  # of the smaller lesion
        noise = (chance * (1 - look.given)).astype(np.float32)
        _, lesion = Opinion(look, gather(look), 20.0, 0.0, noise).dice(look.label)
        if label is lesions:  # by how much is drawn of each
            assert lesion == pytest.approx(1 - 0.99 * (64 * 0.4 + 16 * 0.1) / 80, abs=1e-3)
        else:  # one that is there makes the Dice 0
            assert lesion == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("flawed", [0.2, 0.9])
def test_the_dice_of_masks_that_share_nothing_with_the_model(flawed: float) -> None:
    for label, model in ((0, LESION), (LESION, 0)):
        mask, seen = (squares((20, 20, 12, one)) if one else squares() for one in (label, model))
        look = drawn_look(mask, seen)
        noise = np.where(look.label != look.decided, flawed, 0).astype(np.float32)
        dice = Opinion(look, gather(look), float(np.log(flawed / (1 - flawed))), 0.0, noise).dice(look.label)
        assert dice[LESION - 1] == pytest.approx(1 - flawed, abs=1e-6)


def test_errors_made_on_purpose_are_errors_in_outlines(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world(12, (64, 64), 0.0)
    shares = []

    def gathered(look: Look, objects: Objects | None = None) -> Evidence:
        if objects is not None:
            truth = made.truth[look.case][look.box]
            shares.append(objects.share(look.label != truth))
        return gather(look, objects)

    monkeypatch.setattr(estimate, "gather", gathered)
    fit(made.looks, sorted(made.given))
    assert len(shares) > 30
    assert max(shares) <= 0.9


def test_probabilities_at_the_floor_give_finite_confidence() -> None:
    look = drawn_look(squares((10, 10, 20, 1)), squares((32, 10, 20, 1)), sure=1.0)
    assert [one.confidence for one, _ in Objects.of(look).lone] == pytest.approx([-np.log(LEAST)] * 2)


def _masks(*objects: tuple[int, tuple[slice, slice]]) -> np.ndarray:
    found = np.zeros((40, 40), np.uint8)
    for index, place in objects:
        found[place] = index
    return found


IN_ORGAN, BESIDE = (slice(12, 18), slice(12, 18)), (slice(2, 8), slice(30, 36))
BODY = (ORGAN, (slice(5, 28), slice(5, 28)))


@pytest.mark.parametrize(
    ("given", "truth", "kinds"),
    [
        ([BODY], [BODY, (LESION, IN_ORGAN)], ("missing object", "sound", "missing object")),
        ([BODY, (LESION, IN_ORGAN)], [BODY], ("invented object", "sound", "invented object")),
        (
            [BODY, (LESION, BESIDE)],
            [BODY, (ORGAN, BESIDE)],
            ("swapped class", "swapped class", "swapped class"),
        ),
        ([BODY], [(LESION, BODY[1])], ("swapped class", "swapped class", "swapped class")),
    ],
    ids=["lesion left out", "lesion made up", "other name", "all of it"],
)
def test_an_object_within_another_class_is_no_swap_of_classes(
    given: Any, truth: Any, kinds: tuple[str, ...]
) -> None:
    label, true = _masks(*given), _masks(*truth)
    probs = np.stack([np.where(true == k, 0.98, 0.01) for k in range(3)]).astype(np.float32)
    look = look_at("a", probs, label, (1.0, 1.0))
    noise = np.where(look.label != look.decided, 0.95, 0.0).astype(np.float32)
    opinion = Opinion(look, gather(look), 3.0, 0.0, noise)
    assert case_kind(opinion, look.decided)[0] == kinds[0]
    assert [kind for kind, _ in class_kinds(opinion, look.decided)] == list(kinds[1:])


def test_nested_objects_are_told_by_class_and_where_they_lie() -> None:
    other = (slice(20, 26), slice(6, 12))
    given, target = _masks(BODY, (3, IN_ORGAN), (3, BESIDE)), _masks(BODY, (LESION, other))
    nested = Nested.of(given, target, 4)
    assert np.array_equal(nested.given, _masks((3, IN_ORGAN)))  # what lies beside the body is not in a class
    assert np.array_equal(nested.target, _masks((LESION, other)))
    assert np.array_equal(nested.around, _masks((ORGAN, IN_ORGAN), (ORGAN, other)))
    noise = np.ones(given.shape)
    assert nested.about(ORGAN, noise) == 72
    assert nested.kind(noise, 36, LESION) == ("missing object", 1.0)
    assert nested.kind(noise, 36, 3) == ("invented object", 1.0)
    assert nested.kind(noise, 36, ORGAN) is None
    assert nested.kind(noise, 71) == ("invented object", 36 / 71)  # the first of two that are as likely
    assert nested.kind(noise, 73) is None
