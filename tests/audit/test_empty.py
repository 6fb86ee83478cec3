"""Data sets in which most masks are empty, as of lesions or of slices: they must not make all others unusual."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from tests.audit.conftest import World, noise_field, signed_distance

from maskmend.audit import estimate, population
from maskmend.audit.estimate import Auditor, Opinion, fit
from maskmend.audit.evidence import Evidence, gather
from maskmend.audit.injection import invented
from maskmend.audit.look import Look, look_at
from maskmend.audit.population import BLANK, Judge, Usual, first_trust, telling
from maskmend.audit.presence import Presence
from maskmend.audit.run import audit
from maskmend.audit.selfcheck import SelfCheck
from maskmend.audit.suggest import suggest
from maskmend.config import load

SIZE = 72


@dataclass
class Lesions(World):
    """Images with no lesion or a few. The model misses some, sees some that are not there, and wavers.

    Args:
        specks: cases in which the model sees a speck where nothing is.
    """

    specks: list[str] = field(default_factory=list)


def lesion(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    grid, radius = np.indices(shape), np.exp(rng.uniform(np.log(4), np.log(9)))
    centre = rng.uniform(12, SIZE - 12, len(shape)) if len(shape) == 2 else np.array(shape) / 2
    far = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
    return far < radius + 0.8 * noise_field(rng, shape, 4)


def lesions(
    cases: int = 150, *, empty: float, rate: float, seed: int = 0, shape: tuple[int, ...] = (SIZE, SIZE)
) -> Lesions:
    world = Lesions(spacing_mm=(1.0,) * len(shape))
    for number in range(cases):
        rng, name = np.random.default_rng([seed, number]), f"case{number:04d}"
        count = 0 if rng.random() < empty else rng.integers(1, 4 if len(shape) == 2 else 2)
        found = [lesion(rng, shape) for _ in range(count)]
        truth = np.any(found, axis=0) if found else np.zeros(shape, bool)
        logit = np.full(shape, -6.0) + 0.5 * noise_field(rng, shape, 4)
        for one in found:
            sure = rng.normal(-1, 1) if rng.random() < 0.05 else 6.0
            waver = 0.6 * noise_field(rng, shape, 4)
            logit = np.maximum(logit, np.minimum(1.5 * (signed_distance(one) + waver), sure))
        if rng.random() < 0.1:
            world.specks.append(name)
            at = tuple(rng.integers(5, n - 5) for n in shape)
            logit[tuple(slice(a, a + 2) for a in at)] = 1.0
        given = truth
        if rng.random() < rate:
            kind = rng.choice(["drop", "dilate", "move"]) if found else "invent"
            world.flawed[name] = str(kind)
            if kind == "drop":
                given = truth & ~found[0]
            elif kind == "invent":
                given = truth | lesion(rng, shape)
            else:
                given = (
                    ndimage.binary_dilation(truth, iterations=2) if kind == "dilate" else np.roll(truth, 3)
                )
        likely = 1 / (1 + np.exp(-logit))
        world.probs[name] = np.stack([1 - likely, likely]).astype(np.float32)
        world.truth[name], world.given[name] = truth.astype(np.uint8), given.astype(np.uint8)
    return world


def judged(world: World) -> tuple[Auditor, dict[str, Opinion]]:
    auditor = fit(world.looks, world.ids)
    return auditor, {case: auditor.judge(world.look(case)) for case in world.ids}


def loss(world: World, case: str) -> float:
    own = np.take_along_axis(world.probs[case], world.given[case][None].astype(int), 0)
    return float(-np.log(own + 1e-3).mean())


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (28, 28, 28)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("rate", [0.1, 0.3])
@pytest.mark.parametrize("empty", [0.0, 0.6, 0.9])
def test_flawed_masks_come_first_however_many_are_empty(
    empty: float, rate: float, shape: tuple[int, ...]
) -> None:
    world = lesions(150 if len(shape) == 2 else 80, empty=empty, rate=rate, shape=shape)
    _, opinions = judged(world)
    wrong = [case in world.flawed for case in world.ids]
    odds = [opinions[case].odds for case in world.ids]
    assert roc_auc_score(wrong, odds) > 0.95
    assert average_precision_score(wrong, odds) > 0.8
    if empty and len(shape) == 2:
        assert roc_auc_score(wrong, odds) > roc_auc_score(wrong, [loss(world, case) for case in world.ids])
    expected = sum(one.flawed for one in opinions.values())
    assert 0.7 * sum(wrong) < expected < sum(wrong) + 0.15 * len(wrong)


def test_blank_cases_are_not_accused() -> None:
    world = lesions(empty=0.7, rate=0.2)
    _, opinions = judged(world)
    blank = [
        case for case in world.ids if not world.given[case].any() and (world.probs[case][1] < 0.45).all()
    ]
    assert 60 < len(blank) < 110
    for case in blank:
        assert opinions[case].evidence.blank
        assert opinions[case].odds == pytest.approx(BLANK, abs=0.5)
        assert opinions[case].noise.sum() < 1


def test_the_exam_asks_of_objects_in_empty_images() -> None:
    world = lesions(empty=0.7, rate=0.2)
    auditor, _ = judged(world)
    exam = SelfCheck.of(auditor, world.looks, world.ids)
    invented = [one for one in exam.answers if one.true_kind == "invented object"]
    assert len(invented) > 40
    assert np.median([one.wrong for one in invented]) == pytest.approx(
        np.median([mask.sum() for mask in world.given.values() if mask.any()]), rel=0.5
    )
    assert np.mean([one.odds > 2 for one in invented]) > 0.9
    assert np.mean([one.kind == "invented object" for one in invented]) > 0.9
    assert np.mean([one.quality for one in invented]) < 0.1
    assert exam.facts()["auroc"] > 0.9


@pytest.mark.parametrize("shape", [(50, 70), (20, 30, 40)])
@pytest.mark.parametrize("seed", range(6))
def test_an_invented_object_is_a_ball_in_the_image(shape: tuple[int, ...], seed: int) -> None:
    probs = np.stack([np.full(shape, 0.99), np.full(shape, 0.006), np.full(shape, 0.004)])
    spacing = (1.0, 2.0, 0.5)[: len(shape)]
    look = look_at("a", probs, np.zeros(shape, np.uint8), spacing)
    rng = np.random.default_rng(seed)
    made = invented(look, 6.0, rng)
    label = made.whole(made.label)
    assert label.shape == shape
    assert len(np.unique(label)) == 2
    at = np.argwhere(label) * spacing
    assert np.ptp(at, axis=0).max() <= 12.0
    volume = len(at) * np.prod(spacing)
    assert volume <= 1.15 * {2: np.pi * 36, 3: np.pi * 288}[len(shape)]
    for other in ("probs", "label"):
        assert getattr(made, other).shape[-len(shape) :] == made.label.shape


def test_specks_are_no_missing_objects() -> None:
    """Of a size that no object has, and seen less surely; a small object, seen more surely than they, is one."""
    world = lesions(empty=0.6, rate=0.1)
    _, opinions = judged(world)
    specks = [case for case in world.specks if not world.truth[case].any() and case not in world.flawed]
    dropped = [case for case, kind in world.flawed.items() if kind == "drop" and not world.given[case].any()]
    assert len(specks) > 3
    assert max(opinions[case].flawed for case in specks) < 0.1
    assert dropped
    assert min(opinions[case].flawed for case in dropped) > 0.6


def test_of_an_object_that_is_not_there_all_voxels_are_wrong() -> None:
    world = lesions(empty=0.7, rate=0.2)
    _, opinions = judged(world)
    invented = [case for case, kind in world.flawed.items() if kind == "invent"]
    assert len(invented) > 10
    for case in invented:
        opinion, drawn = opinions[case], world.given[case] > 0
        if opinion.evidence.seen:  # a speck elsewhere
            continue
        assert opinion.look.whole(opinion.noise)[drawn].min() >= opinion.flawed - 0.01
        assert not suggest(opinion).any()


def test_whether_an_object_is_there_is_no_matter_of_exactness() -> None:
    """Where images do not bear out the models, their doubts count in masks with outlines, and nowhere else."""
    world = lesions(60, empty=0.6, rate=0.3)
    auditor, opinions = judged(world)
    changed = {case: one.backed(0.1) is not one for case, one in opinions.items()}
    both = {case: one.evidence.drawn and one.evidence.seen for case, one in opinions.items()}
    assert changed == both
    assert 10 < sum(both.values()) < 50
    assert set(auditor.flawed_outlines()) == {case for case, has in both.items() if has}


def uniform(drawn: bool, chance: float) -> Evidence:
    """A square that is drawn or not, and seen with this probability by a model that is sure of the rest."""
    square = np.zeros((60, 60), bool)
    square[20:40, 20:40] = True
    likely = np.where(square, chance, 0.0)
    return gather(look_at("a", np.stack([1 - likely, likely]), (square & drawn).astype(np.uint8), (1.0, 1.0)))


@pytest.mark.parametrize("chance", [0.01, 0.1, 0.9, 0.99])
def test_confidence_is_the_mean_log_odds_of_the_object(chance: float) -> None:
    evidence = uniform(drawn=chance < 0.5, chance=chance)
    assert (evidence.drawn, evidence.seen) == (chance < 0.5, chance > 0.5)
    confidence = evidence.confidence if evidence.drawn else evidence.sureness
    assert confidence == pytest.approx(abs(np.log(chance / (1 - chance))), rel=0.15)
    assert uniform(True, chance).sureness == uniform(False, chance).sureness == (chance > 0.5) * confidence


def test_which_cases_are_blank_and_which_tell() -> None:
    blank, drawn, seen, both = (
        uniform(False, 0.4),
        uniform(True, 0.4),
        uniform(False, 0.6),
        uniform(True, 0.6),
    )
    assert [one.blank for one in (blank, drawn, seen, both)] == [True, False, False, False]
    assert np.isnan(blank.surprises).all()
    assert np.isnan(blank.doubts).all() and np.isnan(drawn.doubts).all()  # noqa: PT018
    cases = [blank, drawn, seen, *[both] * 10]
    trusted = np.zeros(13, bool)
    assert telling(cases, trusted).tolist() == [False, False, False, *[True] * 10]
    trusted[:3] = True
    assert telling(cases, trusted).tolist() == [False, True, True, *[True] * 10]
    assert telling(cases[:-1], trusted[:-1] & False).tolist() == [False, True, False, *[True] * 9]


def test_where_no_image_is_empty_an_empty_mask_is_suspect(make_world: Callable[..., Any]) -> None:
    """However little the model sees; and one that it does not see at all is not called invented."""
    world = make_world(60, rate=0.2)
    for case, drawn, chance in (("case0050", False, 0.6), ("case0051", True, 0.4), ("case0052", False, 0.4)):
        likely = np.where(world.truth[case] > 0, chance, 0.01)
        world.probs[case] = np.stack([1 - likely, likely]).astype(np.float32)
        world.given[case] = world.truth[case] * np.uint8(drawn)
    _, opinions = judged(world)
    assert opinions["case0050"].flawed > 0.9
    assert 0.1 < opinions["case0052"].flawed < 0.4  # what mask and model miss both
    assert opinions["case0051"].flawed < 0.5
    empty = lesions(empty=0.7, rate=0.1)
    case = next(case for case in empty.ids if empty.given[case].any() and case not in empty.flawed)
    likely = np.where(empty.given[case] > 0, 0.4, 0.01)
    empty.probs[case] = np.stack([1 - likely, likely]).astype(np.float32)
    assert judged(empty)[1][case].flawed > opinions["case0051"].flawed  # there it may well be


def test_a_class_that_most_masks_lack(make_world: Callable[..., Any]) -> None:
    """The model has it nowhere above a smoke where it is not; masks that have it are not unusual for that."""
    world = make_world(90, classes=3, rate=0.2)
    for number, case in enumerate(world.ids):
        if number % 5:  # the second class becomes the first
            smoke = 0.2 * world.probs[case][2]
            world.probs[case] = np.stack(
                [world.probs[case][0], world.probs[case][1] + world.probs[case][2] - smoke, smoke]
            )
            for masks in (world.truth, world.given):
                masks[case] = np.minimum(masks[case], 1)
    _, opinions = judged(world)
    wrong = [case in world.flawed for case in world.ids]
    assert roc_auc_score(wrong, [opinions[case].odds for case in world.ids]) > 0.97
    sound = [opinions[case].flawed for case in world.ids[::5] if case not in world.flawed]
    assert np.mean(sound) < 0.25


@pytest.mark.parametrize("seen", [0, 3])
def test_all_masks_may_be_empty(tmp_path: Path, seen: int) -> None:
    """Then only what the model sees can be said, and nothing fails."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels", "probs"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(14):
        likely = np.full((40, 40), 0.02)
        if number < seen:
            likely[10:22, 12:25] = 0.97
        grey = np.clip(80 + 90 * likely + rng.normal(0, 6, likely.shape), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "data" / "images" / f"{number:02d}.png")
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "data" / "labels" / f"{number:02d}.png")
        np.savez(
            tmp_path / "data" / "probs" / f"{number:02d}.npz", probabilities=np.stack([1 - likely, likely])
        )
    described = {"labels": {"background": 0, "lesion": 1}}
    (tmp_path / "data" / "maskmend.json").write_text(json.dumps(described))
    config = load(None, ["data.allow_missing_classes=true"])
    answer = audit(tmp_path / "data", tmp_path / "out", config, probs=tmp_path / "data" / "probs")
    flawed = {one["case"]: one["flawed"] for one in answer["records"]}
    assert len(flawed) == 14
    assert {case for case, chance in flawed.items() if chance > 0.5} == {f"{n:02d}" for n in range(seen)}
    assert max([0.0, *(chance for case, chance in flawed.items() if int(case) >= seen)]) < 0.05
    assert [one["kind"] for one in answer["records"][:seen]] == ["missing object"] * seen


# ---- the rules one by one ------------------------------------------------------------------------------


def _sure_squares() -> list[Evidence]:
    return [uniform(True, chance) for chance in np.linspace(0.9, 0.99, 13)]


def knowing(empty: float, seen_in_empty: float = 0.1) -> Judge:
    """A judge of squares of which this share is not there, and which the model sees in this share of these."""
    both = _sure_squares()
    usual = Usual.of(both, np.ones(13))
    presence = Presence.of(both, usual.volumes)
    return Judge(usual, (), None, None, np.ones(13), 0.1, empty, seen_in_empty, presence)


def test_how_common_empty_images_are_counts() -> None:
    seen, drawn, nothing = uniform(False, 0.8), uniform(True, 0.3), uniform(False, 0.3)
    rare, common = (knowing(empty).verdict([seen, drawn, nothing]) for empty in (0.05, 0.8))
    assert rare[0] - common[0] == pytest.approx(np.log(19) + np.log(4), abs=0.1)
    assert common[1] > 1.5
    assert rare[1] == pytest.approx(np.log(1 / 9), abs=0.01)  # as wrong as any
    assert rare[2] > common[2] == BLANK
    lost, _ = (knowing(empty).beforehand([seen, drawn]) for empty in (0.05, 0.8))
    assert lost.tolist() == [0.95, 0.1]


def test_what_is_seen_must_be_as_large_as_objects_are() -> None:
    speck = np.zeros((60, 60))
    speck[5:7, 5:7] = 0.99
    small = gather(look_at("a", np.stack([1 - speck, speck]), np.zeros((60, 60), np.uint8), (1.0, 1.0)))
    assert small.seen_size == pytest.approx(np.log(1 + 4 * 0.99), abs=0.05)
    judge = knowing(0.5)
    assert judge.verdict([uniform(False, 0.99)])[0] > 3
    assert judge.verdict([small])[0] < -3


def test_what_is_seen_is_measured_by_what_is_seen_of_drawn_objects() -> None:
    """By the larger of two distances from their middle, in median deviations; nothing more is won beyond it."""
    judge = knowing(0.5)
    told = np.array([(one.seen_size, one.sureness) for one in _sure_squares()])
    middle = np.median(told, axis=0)
    spread = 1.4826 * np.median(np.abs(told - middle), axis=0) + 1e-3 + 0.02 * np.abs(middle)
    for case in (uniform(False, chance) for chance in (0.55, 0.8, 0.9, 0.97, 0.999)):
        below = ((middle - (case.seen_size, case.sureness)) / spread).max()
        assert judge.verdict([case])[0] == pytest.approx(case.sureness - max(below, 0))
    assert judge.usual.lacking(uniform(False, 0.55)) > 2
    assert judge.usual.lacking(uniform(False, 0.999)) == 0


def test_masks_that_are_not_trusted_and_one_sided_ones_say_nothing_of_what_is_seen() -> None:
    squares = _sure_squares()
    more = [*squares, *[uniform(True, 0.6)] * 10, *[uniform(False, 0.6)] * 40, *[uniform(True, 0.4)] * 40]
    trust = np.array([1.0] * 13 + [0.0] * 10 + [1.0] * 80)
    alone, among = Usual.of(squares, np.ones(13)), Usual.of(more, trust)
    np.testing.assert_allclose(among.seen, alone.seen)
    nothing = Usual.of([uniform(False, 0.6)] * 5, np.ones(5))  # of what is drawn nothing is known
    assert nothing.lacking(uniform(False, 0.6)) == 0


def test_what_the_model_sees_in_most_empty_masks_is_its_habit() -> None:
    seen = [uniform(False, 0.8)]
    once, often, always = (knowing(0.5, share).verdict(seen)[0] for share in (0.1, 0.6, 0.9))
    assert once == often
    assert always == pytest.approx(once - np.log(2), abs=1e-6)  # at most three in nine are wrong
    assert knowing(0.1, 0.1).verdict(seen)[0] == knowing(0.1, 1.0).verdict(seen)[0]  # all may be


def test_where_errors_cannot_be_told_no_more_rounds_lead_astray(make_world: Callable[..., Any]) -> None:
    """Trust stays with the half that agrees best."""
    rounds: list[int] = []
    of = population.Ratios.of

    def counted(*told: Any) -> Any:
        rounds.append(1)
        return of(*told)

    world = make_world(40, rate=0.3)
    for found, count in ((0.8, population.ROUNDS), (0.7, 1)):
        rounds.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(population.Ratios, "of", counted)
            patch.setattr(population, "apart", lambda *told, found=found: found)
            fit(world.looks, world.ids)
        assert len(rounds) == 2 * count


def test_errors_are_set_apart_as_a_count_says() -> None:
    rng = np.random.default_rng(0)
    sound, wrong, weight = rng.integers(0, 5, (40, 2)), rng.integers(0, 6, (30, 2)), rng.random(40)
    ratios = population.Ratios(np.array([[-1.0, 0.5, 2.0]]), np.array([0.1]))
    score = [rows @ [0.5, 2.0] for rows in (sound, wrong)]
    pairs = (score[1] > score[0][:, None]) + 0.5 * (score[1] == score[0][:, None])
    counted = float((weight[:, None] * pairs).sum() / weight.sum() / 30)
    assert population.apart(ratios, sound, weight, wrong) == pytest.approx(counted)


def test_who_is_trusted_at_first() -> None:
    """Not masks of which the model sees nothing, however little it contradicts them, but those that are blank."""
    moved = np.zeros((60, 60), np.uint8)
    moved[26:46, 20:40] = 1
    likely = np.zeros((60, 60))
    likely[20:40, 20:40] = 0.9
    wavering = gather(look_at("a", np.stack([1 - likely, likely]), moved, (1.0, 1.0)))
    drawn, seen, nothing = uniform(True, 0.45), uniform(False, 0.55), uniform(False, 0.2)
    assert max(drawn.surprises[0], seen.surprises[0]) < wavering.surprises[0]
    trust = first_trust([wavering] * 12 + [drawn, seen, nothing], np.zeros(15, bool))
    assert trust.tolist() == [1.0] * 12 + [0.0, 0.0, 1.0]


def test_blank_cases_change_nothing_for_others(make_world: Callable[..., Any]) -> None:
    """With a hundred of them, with smoke of the model in each, all that is learnt is the same."""
    world = make_world(40, rate=0.25)
    alone = fit(world.looks, world.ids)
    for number in range(100):
        rng = np.random.default_rng(number)
        likely = np.clip(0.1 + 0.05 * noise_field(rng, (64, 64), 4), 0.01, 0.4)
        world.probs[f"z{number}"] = np.stack([1 - likely, likely]).astype(np.float32)
        world.given[f"z{number}"] = np.zeros((64, 64), np.uint8)
    among = fit(world.looks, world.ids)
    assert among.calibration.scale == pytest.approx(alone.calibration.scale, rel=1e-6)
    for name in ("surprises", "signed", "doubts"):
        assert np.allclose(getattr(among.population.usual, name), getattr(alone.population.usual, name))
    for ours, theirs in (
        (among.population.by_kind, alone.population.by_kind),
        (among.population.together, alone.population.together),
    ):
        assert ours is not None
        assert theirs is not None
        assert np.allclose(ours.weights, theirs.weights, atol=1e-3)
        assert np.allclose(ours.rates, theirs.rates, atol=1e-3)
    assert np.allclose(among.voxels.weights, alone.voxels.weights, rtol=0.02, atol=0.02)
    assert among.population.empty > 0.6 > 0.1 > alone.population.empty


def test_errors_are_made_where_something_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are cases for, not as if the blank ones took their share."""
    world, made = lesions(empty=0.9, rate=0.1), []
    make = estimate._make

    def counted(look: Look, rng: np.random.Generator) -> Any:
        made.append(look.case)
        return make(look, rng)

    monkeypatch.setattr(estimate, "_make", counted)
    fit(world.looks, world.ids)
    assert not [case for case in made if not world.given[case].any()]
    assert len(made) == 6 * len(set(made)) > 30


@pytest.mark.parametrize("empty", [0.6, 0.9])
def test_wrong_voxels_are_counted(empty: float) -> None:
    world = lesions(empty=empty, rate=0.2)
    _, opinions = judged(world)
    expected = sum(float(one.noise.sum()) for one in opinions.values())
    true = sum(int((world.given[case] != world.truth[case]).sum()) for case in world.ids)
    assert expected == pytest.approx(true, rel=0.3)


def test_of_an_object_that_only_the_model_sees_voxels_are_wrong_as_far_as_it_sees_them() -> None:
    world = lesions(empty=0.5, rate=0.0)
    case = next(case for case in world.ids if world.given[case].any())
    world.given[case] = np.zeros_like(world.given[case])
    opinion = judged(world)[1][case]
    assert opinion.evidence.seen
    assert opinion.flawed > 0.9
    likely, noise = 1 - opinion.look.given, opinion.noise
    share = noise[likely > 0.5] / likely[likely > 0.5]
    assert 0.75 < share.min() <= share.max() < 1.1
