"""Connected parts of masks, each judged by itself: which they are, what belongs to them, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label as connected
from tests.audit.conftest import noise_field

from maskmend.audit.components import Part, components, parts
from maskmend.audit.estimate import Opinion, fit, mask_dice
from maskmend.audit.evidence import gather
from maskmend.audit.kinds import case_kind, class_kinds
from maskmend.audit.look import look_at
from maskmend.audit.record import ClassRecord
from maskmend.audit.selfcheck import Answer, Pairs, SelfCheck

NAMES = ["background", "organ", "lesion"]


def masks(*objects: tuple[int, tuple[slice, ...]], shape: tuple[int, ...] = (60, 70)) -> np.ndarray:
    """A label with boxes."""
    label = np.zeros(shape, np.uint8)
    for index, place in objects:
        label[place] = index
    return label


def box(row: int, column: int, side: int) -> tuple[slice, slice]:
    return slice(row, row + side), slice(column, column + side)


def opinion_of(given: np.ndarray, truth: np.ndarray, odds: float = 3.0, **more: Any) -> Opinion:
    """Of a model that is surely right."""
    probs = np.stack([np.where(truth == k, 0.998, 0.001) for k in range(3)]).astype(np.float32)
    look = look_at("a", probs, given, more.pop("spacing", (1.0,) * given.ndim))
    noise = np.where(look.label != look.decided, 0.99, 0.0).astype(np.float32)
    return Opinion(look, gather(look), odds, 0.0, noise, **more)


def told(opinion: Opinion) -> list[Any]:
    decided, names = opinion.look.decided, NAMES[1:]
    kinds = [kind for kind, _ in class_kinds(opinion, decided)]
    classes = [
        ClassRecord(
            name,
            0,
            0,
            float(dice) if np.isfinite(dice) else None,
            opinion.class_wrong_share(k),
            None,
            kind,
            *((0.01, 0.99) if np.isfinite(dice) else ()),
        )
        for k, (name, dice, kind) in enumerate(zip(names, opinion.dice(decided), kinds, strict=True), 1)
    ]
    return list(
        components(
            opinion, decided, classes, lambda index, dice, apart: (dice - 0.1, dice + index + 10 * apart)
        )
    )


def covered(part: Part, shape: tuple[int, ...]) -> np.ndarray:
    """(*shape) bool: what belongs to a part."""
    out = np.zeros(shape, bool)
    out[part.box] = part.ground
    return out


@pytest.mark.parametrize("shape", [(40, 44), (14, 16, 12)])
def test_they_are_those_that_another_implementation_finds(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    for _ in range(20):
        label = np.where(noise_field(rng, shape, 2) > 1.2, rng.integers(1, 3), 0).astype(np.uint8)
        label[(2,) * len(shape)] = 1
        for index in (1, 2):
            numbered, count = connected(label == index, return_num=True, connectivity=len(shape))
            sizes = sorted(np.bincount(numbered.ravel())[1 : count + 1].tolist(), reverse=True)
            found = list(parts(label, label, index, (1.0,) * len(shape)))
            assert [int(one.here.sum()) for one in found] == [n for n in sizes if n >= min(4, max(sizes))]
            assert all(one.present and not one.apart for one in found)
            for one in found:
                assert (label[one.box][one.here] == index).all()
                assert len(set(numbered[one.box][one.here].tolist())) == 1


def test_each_voxel_belongs_to_the_nearest_part_in_millimetres() -> None:
    label = masks((1, box(10, 10, 8)), (1, box(10, 22, 6)), (1, box(30, 12, 8)), shape=(60, 60))
    spacing = (3.0, 1.0)
    found = list(parts(label, label, 1, spacing))
    apart = [np.where(connected(label == 1) == n, 0, 1) for n in (1, 2, 3)]
    distance = np.stack([ndimage.distance_transform_edt(one, sampling=spacing) for one in apart])
    for one in found:
        ground = covered(one, label.shape)
        own = distance[int(connected(label == 1)[one.box][one.here][0]) - 1]
        assert (own[ground] <= distance.min(axis=0)[ground] + 1e-9).all()
        assert ground[(own <= distance.min(axis=0) - 1e-9) & (own <= 3)].all()  # as far as a radius
    assert sum(covered(one, label.shape).astype(int) for one in found).max() == 1


def test_each_is_judged_as_if_it_were_the_only_one() -> None:
    """Exact, too wide, left out, made up and moved, beside one another: each has its own Dice and kind."""
    exact, tight, wide, lost, made = (
        box(5, 5, 8),
        box(5, 30, 8),
        box(4, 29, 10),
        box(30, 5, 6),
        box(45, 40, 5),
    )
    here, there = box(30, 35, 9), box(33, 37, 9)
    truth = masks((1, exact), (1, tight), (1, lost), (1, there))
    opinion = opinion_of(masks((1, exact), (1, wide), (1, made), (1, here)), truth)
    found = {one.centre: one for one in told(opinion)}
    assert {at: (one.present, one.voxels, one.kind) for at, one in found.items()} == {
        (8, 8): (True, 64, "sound"),
        (8, 33): (True, 100, "over-drawn"),
        (32, 7): (False, 36, "missing object"),
        (47, 42): (True, 25, "invented object"),
        (34, 39): (True, 81, "shifted"),
    }
    pairs = {
        (8, 8): 1.0,
        (8, 33): 2 * 64 / 164,
        (34, 39): float(mask_dice(masks((1, here)), masks((1, there)), 2)[0]),
        (32, 7): 0.01,
        (47, 42): 0.01,
    }
    for at, dice in pairs.items():
        assert found[at].quality == pytest.approx(dice, abs=0.03), at
        assert (found[at].quality_low, found[at].quality_high) == pytest.approx(
            (found[at].quality - 0.1, found[at].quality + (11 if at in ((32, 7), (47, 42)) else 1)), abs=1e-3
        ), "those that one side has alone are right or wrong as a whole"
    assert [one.probability for one in told(opinion)] == [0.99, 0.99, 0, 0, 0]  # the worst first
    assert found[8, 33].wrong_share == pytest.approx(0.36 * 0.99, abs=0.01)
    assert found[8, 8].wrong_share == 0


def test_places_are_of_the_image_and_not_of_the_box_that_is_looked_at() -> None:
    body, spot, other = (
        (slice(15, 36), slice(15, 36)),
        (slice(30, 35), slice(20, 25)),
        (slice(18, 21), slice(28, 31)),
    )
    opinion = opinion_of(masks((1, body), (2, spot)), masks((1, body), (2, other)))
    assert opinion.look.box[0].start > 0
    lesions = [(one.present, one.voxels, one.centre) for one in told(opinion) if one.name == "lesion"]
    assert lesions == [(True, 25, (32, 22)), (False, 9, (19, 29))]


def test_a_part_of_a_sound_mask_is_sound() -> None:
    opinion = opinion_of(masks((1, box(5, 5, 9)), (1, box(30, 30, 9))), masks((1, box(5, 5, 8))), odds=-4.0)
    assert {one.kind for one in told(opinion)} == {"sound"}


def test_of_very_many_the_largest_are_told_and_specks_are_left_out() -> None:
    label = np.zeros((200, 200), np.uint8)
    for number in range(150):
        row, column = divmod(number, 15)
        label[row * 12 : row * 12 + 2 + (number % 5), column * 12 : column * 12 + 2] = 1
    label[199, 199] = 1
    found = list(parts(label, label, 1, (1.0, 1.0)))
    assert len(found) == 100
    assert min(int(one.here.sum()) for one in found) == 6  # 120 of at least 6, 30 of 4 and a speck
    assert [int(one.here.sum()) for one in parts(label[190:, 190:], label[190:, 190:], 1, (1.0, 1.0))] == [1]


def test_nothing_drawn_and_nothing_suggested_has_no_parts() -> None:
    empty = np.zeros((9, 9), np.uint8)
    assert not list(parts(empty, empty, 1, (1.0, 1.0)))
    speck = empty.copy()
    speck[4, 3:6] = 1
    assert not list(parts(empty, speck, 1, (1.0, 1.0)))
    assert [one.present for one in parts(speck, empty, 1, (1.0, 1.0))] == [True]


def test_where_the_label_is_not_known_nothing_is_held_against_a_part() -> None:
    given, truth = (
        masks((1, box(10, 10, 10)), (1, box(40, 40, 10))),
        masks((1, box(10, 10, 10)), (1, box(40, 40, 10))),
    )
    truth[15:20, 10:20] = 0
    valid = np.ones(given.shape, bool)
    valid[15:22, 8:22] = False
    probs = np.stack([np.where(truth == k, 0.998, 0.001) for k in range(3)]).astype(np.float32)
    look = look_at("a", probs, given, (1.0, 1.0), valid)
    noise = np.where(look.label != look.decided, 0.99, 0.0).astype(np.float32)
    found = told(Opinion(look, gather(look), 3.0, 0.0, noise))
    assert [one.quality for one in found] == pytest.approx([1.0, 1.0], abs=0.01)
    assert sorted(one.voxels for one in found) == [50, 100]


def answer(kind: Any, classes: Any = (), quality: float = 0.9, true: float = 0.9) -> Answer:
    return Answer(quality, true, 0.0, kind, kind, 1.0, 0.0, 0, *[tuple(classes)] * 3)


def test_intervals_of_a_class_go_by_its_own_answers_where_there_are_enough() -> None:
    rng = np.random.default_rng(0)
    off = {1: 0.02, 2: 0.2}
    answers = []
    for _ in range(200):
        pairs = [(k, 0.7, 0.7 + rng.uniform(-off[k], off[k])) for k in (1, 2)]
        answers.append(answer("sound", pairs))
    check = SelfCheck(tuple(answers), 0.3)
    for k in (1, 2):
        for low, high in (check.class_interval(k, 0.7), check.part_interval(k, 0.7, False)):
            assert (0.7 - low, high - 0.7) == pytest.approx((off[k], off[k]), rel=0.25)
    few = SelfCheck(tuple(answers[:30]), 0.3)
    assert few.class_interval(1, 0.7) == few.class_interval(2, 0.7)
    assert SelfCheck((), 0.3).class_interval(1, 0.7) == (0.0, 1.0)


def test_the_only_part_of_a_class_has_the_interval_of_its_class() -> None:
    opinion = opinion_of(masks((1, box(5, 5, 9)), (2, box(30, 30, 9))), masks((1, box(5, 5, 8))))
    organ, lesion = sorted(told(opinion), key=lambda one: NAMES.index(one.name))
    assert (organ.quality_low, organ.quality_high) == (0.01, 0.99)
    assert lesion.quality_high == pytest.approx(lesion.quality + 12, abs=1e-3)  # made up, so right or wrong


def test_intervals_of_parts_go_by_answers_of_their_kind_and_few_say_little() -> None:
    joined, apart = (((1, 0.7, 0.7 + off),) for off in (0.1, -0.7))
    sure = Answer(0.9, 0.9, 0.0, "sound", "sound", 1.0, 0.0, 0, (), joined, apart)
    check = SelfCheck((sure,) * 200, 0.3)
    assert check.part_interval(1, 0.7, False) == pytest.approx((0.7, 0.8))
    assert check.part_interval(1, 0.7, True) == pytest.approx((0.0, 0.7))
    few = SelfCheck((sure,) * 5, 0.3)
    assert few.part_interval(1, 0.7, False) == (0.0, 1.0)
    assert few.part_interval(1, 0.99, False)[0] > 0.9, "hardly any of those is thought to be wrong"
    assert SelfCheck((), 0.3).part_interval(1, 0.7, False) == (0.0, 1.0)


def test_intervals_are_wider_where_no_mask_is_exact(make_world: Callable[..., Any]) -> None:
    """Two annotators agree to .85, so each is off by half of the rest; as far as images do not bear out the models."""
    answers = tuple(answer("sound", [(1, 0.7, 0.7)], 0.7, 0.7) for _ in range(50))
    for check in (SelfCheck(answers, 0.3), SelfCheck(answers, 0.3, 0.06)):
        for low, high in (check.interval(0.7), check.class_interval(1, 0.7)):
            assert (0.7 - low, high - 0.7) == pytest.approx((check.inexact, check.inexact))
    assert SelfCheck(answers, 0.3, 0.06).interval(0.98)[1] == 1.0
    world = make_world(12)
    auditor = fit(world.looks, world.ids)
    for backing in (0.2, 1.0):
        found = SelfCheck.of(auditor, world.looks, world.ids, backing=backing).inexact
        assert found == pytest.approx(0.075 * (1 - backing))


def test_intervals_weigh_flawed_and_sound_answers_by_how_common_they_are() -> None:
    """Twice as many flawed as sound ones were made; where few masks are flawed the sound ones decide."""
    sound, flawed = [(0, 0.8, 0.8)] * 13, [(0, 0.8, 0.4)] * 27
    for rate, low in ((0.02, 0.8), (0.5, 0.4)):
        weight = [(1 - rate) / 13] * 13 + [rate / 27] * 27
        assert Pairs.of([*sound, *flawed], weight).interval(0.8)[0] == pytest.approx(low)


ORGAN, HEAD, TAIL = (slice(5, 15), slice(5, 20), slice(5, 20)), slice(5, 10), slice(10, 15)
LESIONS = (slice(8, 11), slice(8, 12), slice(30, 34)), (slice(20, 24), slice(8, 12), slice(30, 34))
VOLUME = (30, 25, 40)


@pytest.mark.parametrize(
    ("given", "truth", "kind"),
    [
        (
            [(1, LESIONS[0])],
            [(1, LESIONS[0]), (1, LESIONS[1])],
            "missing object",
        ),  # it has its slices for itself
        ([(1, LESIONS[0]), (1, LESIONS[1])], [(1, LESIONS[0])], "invented object"),
        ([(1, (HEAD, *ORGAN[1:]))], [(1, ORGAN)], "wrong slice range"),
        ([(1, (HEAD, *ORGAN[1:]))], [(1, (HEAD, *ORGAN[1:])), (2, (TAIL, *ORGAN[1:]))], "missing object"),
        ([(1, (HEAD, *ORGAN[1:])), (2, (TAIL, *ORGAN[1:]))], [(1, (HEAD, *ORGAN[1:]))], "invented object"),
    ],
    ids=["lesion left out", "lesion made up", "slices left out", "class left out", "class made up"],
)
def test_what_lies_in_slices_of_its_own(given: Any, truth: Any, kind: str) -> None:
    opinion = opinion_of(masks(*given, shape=VOLUME), masks(*truth, shape=VOLUME))
    assert case_kind(opinion, opinion.look.decided)[0] == kind


@pytest.mark.parametrize(("thick", "kind"), [(0, "wrong slice range"), (1, "under-drawn")])
def test_thick_slices_tell_along_which_axis_they_were_drawn(thick: int, kind: str) -> None:
    """The other half of an organ left out is in no slices of its own then."""
    spacing_mm = tuple(6.0 if axis == thick else 0.5 for axis in range(3))
    half, organ = masks((1, (HEAD, *ORGAN[1:])), shape=VOLUME), masks((1, ORGAN), shape=VOLUME)
    opinion = opinion_of(half, organ, spacing=spacing_mm)
    assert case_kind(opinion, opinion.look.decided)[0] == kind
