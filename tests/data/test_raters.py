"""Several raters: who counts, what the cache keeps of them, and that their masks stay with the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskmend.data.augment import Choice, apply
from maskmend.data.cache import Cache, content_key
from maskmend.data.case import Case, Geometry
from maskmend.data.dataset import find_cases, with_raters
from maskmend.data.images import write_image, write_label
from maskmend.data.plan import ChannelPlan, Plan
from maskmend.data.preprocess import IGNORED
from maskmend.data.raters import Raters, combinations, fused, majority
from maskmend.data.sampling import collate, draw
from maskmend.errors import UsageError

IGNORE_VALUE = 9
SHAPES = {2: (14, 17), 3: (6, 9, 11)}


def plan_of(ndim: int) -> Plan:
    return Plan(
        ndim=ndim,
        spacing_mm=(1.0,) * ndim,
        channels=(ChannelPlan(name="x", scheme="none"),),
        classes={"background": 0, "organ": 1, "spot": 2},
        ignore=IGNORE_VALUE,
        patch=(8,) * ndim,
        batch=2,
        depth=1,
        flips=(False,) * ndim,
    )


def make_cases(folder: Path, ndim: int = 2) -> tuple[list[Case], np.ndarray]:
    """Three cases of random masks: the first drawn by all of a, b, c, the second without b, the third trusted."""
    rng, geometry = np.random.default_rng(0), Geometry(SHAPES[ndim], (1.0,) * ndim)
    masks = rng.choice([0, 1, 2, IGNORE_VALUE], (3, 4, *SHAPES[ndim]), p=[0.4, 0.3, 0.2, 0.1])
    cases = []
    for number in range(3):
        paths = [folder / f"{number}_{name}.nii.gz" for name in ("image", "gold", "a", "b", "c")]
        write_image(paths[0], masks[number, :1].astype(np.float32), geometry)
        for path, mask in zip(paths[1:], masks[number], strict=True):
            write_label(path, mask.astype(np.int32), geometry)
        raters = dict(zip("abc", paths[2:], strict=True))
        if number == 1:
            del raters["b"]
        cases.append(Case(f"c{number}", (paths[0],), paths[1], raters, trusted=number == 2))
    return cases, masks


def as_classes(masks: np.ndarray) -> np.ndarray:
    return np.where(masks == IGNORE_VALUE, IGNORED, masks)


def voted(masks: np.ndarray) -> np.ndarray:
    """Majority by counting, lower class first; IGNORED where nobody votes."""
    counts = np.stack([(masks == k).sum(0) for k in range(3)])
    return np.where(counts.sum(0) > 0, counts.argmax(0), IGNORED)


def test_combinations_are_those_that_numpy_finds():
    rng = np.random.default_rng(1)
    votes = rng.choice([0, 1, 2, IGNORED], (5, 20, 30)).astype(np.uint8)
    rows, counts, which = combinations(votes, 3)
    expected, numbers = np.unique(votes.reshape(5, -1).T, axis=0, return_counts=True)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(counts, numbers)
    np.testing.assert_array_equal(np.moveaxis(rows[which], -1, 0), votes)


def test_many_raters_do_not_overflow():
    votes = np.random.default_rng(0).integers(0, 6, (60, 50)).astype(np.uint8)
    rows, counts, which = combinations(votes, 6)
    np.testing.assert_array_equal(rows[which].T, votes)
    assert counts.sum() == 50


def test_a_vote_where_nobody_votes_is_ignored():
    votes = np.array([[0, 1, IGNORED, 2], [0, 2, IGNORED, 2], [1, IGNORED, IGNORED, 0]], np.uint8)
    assert fused(votes, 3, majority).tolist() == [0, 1, IGNORED, 2]


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_cache_keeps_every_rater_and_their_vote(tmp_path, ndim, on_disk):
    cases, masks = make_cases(tmp_path, ndim)
    for _ in range(2):  # made, then found
        cache = Cache.open(
            cases, plan_of(ndim), tmp_path / "cache" if on_disk else None, raters=Raters(("a", "b", "c"))
        )
        assert [cache.rows(i) for i in range(3)] == [(0, 1, 2), (0, 2), (0, 1, 2)]
        np.testing.assert_array_equal(cache[0].raters, as_classes(masks[0, 1:]))
        np.testing.assert_array_equal(cache[1].raters, as_classes(masks[1, [1, 3]]))
        for number, drawn in ((0, [1, 2, 3]), (1, [1, 3])):
            expected = voted(as_classes(masks[number, drawn]))
            np.testing.assert_array_equal(
                cache[number].label[expected != IGNORED], expected[expected != IGNORED]
            )
            valid = cache[number].valid
            np.testing.assert_array_equal(True if valid is None else valid, expected != IGNORED)
        own = as_classes(masks[2, 0])  # a trusted case keeps its own label
        np.testing.assert_array_equal(cache[2].label, np.where(own == IGNORED, 0, own))


def test_raters_change_the_key_only_where_they_are_learnt_from(tmp_path):
    cases, _ = make_cases(tmp_path)
    case, plan = cases[0], plan_of(2)
    plain = content_key(case, case.label, plan)
    assert plain == content_key(replace(case, raters={}), case.label, plan)
    keys = {
        plain,
        content_key(case, None, plan, Raters(("a", "b", "c"))),
        content_key(case, None, plan, Raters(("a", "b"))),
        content_key(case, None, plan, Raters(("a", "b", "c"), key="another rule")),
        content_key(
            replace(case, raters={**case.raters, "a": cases[1].raters["a"]}),
            None,
            plan,
            Raters(("a", "b", "c")),
        ),
    }
    assert len(keys) == 5


def test_an_entry_without_its_raters_is_made_again(tmp_path):
    cases, masks = make_cases(tmp_path)
    raters = Raters(("a", "b", "c"))
    Cache.open(cases[:1], plan_of(2), tmp_path / "cache", raters=raters)
    next((tmp_path / "cache").glob("*/raters.npy")).unlink()
    again = Cache.open(cases[:1], plan_of(2), tmp_path / "cache", raters=raters)
    np.testing.assert_array_equal(again[0].raters, as_classes(masks[0, 1:]))


@pytest.mark.parametrize("ndim", [2, 3])
def test_raters_are_cut_out_with_the_image(tmp_path, ndim):
    cases, masks = make_cases(tmp_path, ndim)
    cache = Cache.open(cases, plan_of(ndim), None, raters=Raters(("a", "b", "c")))
    drawn = {0: [0, 1, 2], 1: [0, 2], 2: [0, 1, 2]}
    patch = (10,) * ndim  # larger than some axes
    samples = [
        draw(cache, seed=0, epoch=e, index=i, patch=patch, foreground=0.5) for e in range(3) for i in range(3)
    ]
    batch = collate(samples)
    assert batch["raters"].dtype == torch.long
    assert batch["raters"].shape == (9, 3, *patch)
    for row, sample in enumerate(samples):
        assert np.flatnonzero(batch["rated"][row]).tolist() == drawn[sample.index]
        everything = as_classes(masks[sample.index, 1:]).astype(int)
        padded = np.pad(
            everything, [(0, 0)] + [(10, 10)] * ndim, constant_values=IGNORED
        )  # beyond the case nobody votes
        part = padded[(slice(None), *(slice(s + 10, s + 20) for s in sample.start))]
        part = np.where(part == IGNORED, -1, part)
        part[[r for r in range(3) if r not in drawn[sample.index]]] = -1
        np.testing.assert_array_equal(batch["raters"][row], part)


def test_one_label_per_case_has_no_raters(tmp_path):
    cases, _ = make_cases(tmp_path)
    cache = Cache.open(cases, plan_of(2), None)
    assert cache[0].raters is None
    batch = collate([draw(cache, seed=0, epoch=0, index=0, patch=(8, 8), foreground=0.5)])
    assert "raters" not in batch
    assert "rated" not in batch


@pytest.mark.parametrize("ndim", [2, 3])
def test_raters_move_with_the_label(ndim):
    generator = torch.Generator().manual_seed(0)
    shape = (3, *[12] * ndim)
    label = torch.randint(0, 3, shape, generator=generator)
    valid = torch.rand(shape, generator=generator) > 0.2
    votes = torch.stack([label.masked_fill(~valid, -1), torch.full_like(label, -1)], dim=1)
    batch = {
        "image": label.unsqueeze(1).float(), "label": label, "valid": valid, "case": ["a", "b", "c"],
        "trusted": torch.zeros(3, dtype=torch.bool), "index": torch.arange(3), "raters": votes,
        "rated": torch.tensor([[True, False]] * 3),
    }  # fmt: skip
    bent = Choice(ndim, degrees=(20.0,) * (1 if ndim == 2 else 3), scale=1.1, bend=0.05, bend_seed=3)
    moved = apply(batch, [bent, Choice(ndim), Choice(ndim, shift=(0.3,) * ndim)])
    plain = apply(
        {k: v for k, v in batch.items() if k not in ("raters", "rated")},
        [bent, Choice(ndim), Choice(ndim, shift=(0.3,) * ndim)],
    )
    assert torch.equal(moved["label"], plain["label"])
    assert torch.equal(moved["valid"], plain["valid"])
    assert not torch.equal(moved["label"], label)
    assert torch.equal(moved["raters"][:, 0], moved["label"].masked_fill(~moved["valid"], -1))
    assert (moved["raters"][:, 1] == -1).all()
    assert torch.equal(batch["raters"], votes)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four cases with a reference in labels/; x and y drew them, y only two; "d" is a test case nobody else drew."""
    geometry = Geometry((8, 8), (1.0, 1.0))
    for name in ("a", "b", "c", "d"):
        for part, present in (
            ("images", True), ("labels", True), ("labels_x1", name != "d"), ("labels_y", name in "ab"),
        ):  # fmt: skip
            (tmp_path / part).mkdir(exist_ok=True)
            if present and part == "images":
                write_image(tmp_path / part / f"{name}.png", np.zeros((1, 8, 8), np.float32), geometry)
            elif present:
                write_label(tmp_path / part / f"{name}.png", np.eye(8, dtype=np.int32), geometry)
    (tmp_path / "maskmend.json").write_text('{"test": ["d"], "trusted": ["c"]}')
    return tmp_path


def test_the_reference_takes_no_part_in_training(folder):
    dataset = find_cases(folder, raters=["*"])
    assert [sorted(case.raters) for case in dataset.cases] == [["x1", "y"], ["x1", "y"], ["x1"], []]
    named = [case.label.parent.name for case in dataset.cases if case.label]
    assert named == ["labels_x1", "labels_x1", "labels", "labels"]  # c is trusted, d a test case
    assert with_raters(find_cases(folder), ["x*", "y"]) == dataset


def test_cases_that_no_chosen_rater_drew_are_left_out(folder):
    (folder / "maskmend.json").write_text('{"test": ["d"], "raters": {"z": "labels_y"}}')
    assert [case.id for case in find_cases(folder, raters=["y", "z"]).train] == ["a", "b"]


def test_raters_alone_are_enough(folder):
    for path in (folder / "labels").iterdir():
        path.unlink()
    (folder / "labels").rmdir()
    assert len(find_cases(folder, raters=["*"]).train) == 3
    with pytest.raises(UsageError, match="or a method that learns from several raters"):
        find_cases(folder)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (["y"], r"1 rater\(s\) \(y\)"),
        (["anna"], "unknown rater 'anna'"),
        (["x2", "y"], "did you mean 'x1'"),
    ],
)
def test_a_wrong_choice_of_raters_is_explained(folder, wanted, text):
    with pytest.raises(UsageError, match=text):
        find_cases(folder, raters=wanted)


def test_one_rater_and_several_exclude_each_other(folder):
    with pytest.raises(UsageError, match="one rater and several"):
        find_cases(folder, rater="y", raters=["*"])
