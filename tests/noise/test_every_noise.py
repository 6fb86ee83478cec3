"""What holds for every kind of flaw and every preset, in 2-D and 3-D: the contract of `maskmend.noise.base`."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
from dataclasses import replace

import numpy as np
import pytest

import maskmend.noise
from maskmend.errors import UsageError
from maskmend.noise import Annotation, build
from maskmend.noise.base import KINDS
from maskmend.noise.cases import Recipe, corrupt_case
from maskmend.noise.corrupt import apply_to
from maskmend.noise.presets import PRESETS

CHEST = {"background": 0, "lung": 1, "heart": 2, "clavicle": 3}
VOLUMES_ONLY = [name for name in PRESETS if name.startswith("slices")]
MODULES = [module.name for module in pkgutil.iter_modules(maskmend.noise.__path__)]


def cases_of(name: str) -> list[tuple[int, bool]]:
    """Dimension, and whether classes are layers."""
    return [(n, layered) for n in (2, 3) for layered in (False, True) if n == 3 or name not in VOLUMES_ONLY]


BY_BOX = {
    "markov",
    "polygon",
    "scribbles",
}  # random numbers by place in the box, or features scaled within it


def kinds_within(choice) -> list[str]:
    inner = choice.values() if isinstance(choice, dict) else choice if isinstance(choice, list) else []
    own = [choice["transform"]] if isinstance(choice, dict) and "transform" in choice else []
    return own + [name for part in inner for name in kinds_within(part)]


def given(organ, name: str, ndim: int, layered: bool, **how) -> Annotation:
    truth = organ(ndim, **how)
    names = CHEST if name.startswith("chest") else truth.names
    return replace(truth, layered=layered, names=names)


@pytest.mark.parametrize("name", PRESETS)
def test_flaw_is_a_function_of_seed_and_case_and_its_record_replays_it(organ, name) -> None:
    for ndim, layered in cases_of(name):
        replays(organ, name, ndim, layered)


def replays(organ, name, ndim, layered) -> None:
    truth = given(organ, name, ndim, layered, ignored=True)
    recipe = Recipe(PRESETS[name].noise, 1.0, 4, layered=layered, ignore=9)
    before = truth.label.copy()
    flawed, record = corrupt_case(truth, recipe)
    np.testing.assert_array_equal(truth.label, before)  # the input is never written to
    assert (flawed.dtype, flawed.shape) == (before.dtype, before.shape)
    assert set(np.unique(flawed)) <= {0, 1, 2, 3, 9}
    np.testing.assert_array_equal(flawed == 9, before == 9)  # what nobody annotated stays so
    assert record["changed"] == np.count_nonzero(flawed != before)
    again, same = corrupt_case(truth, recipe)
    np.testing.assert_array_equal(again, flawed)
    assert same == record
    stored = json.loads(json.dumps(record))
    replayed = apply_to(truth, stored, stored["strength"], ignore=9)
    np.testing.assert_array_equal(replayed, flawed)


@pytest.mark.parametrize("name", PRESETS)
def test_seed_and_case_make_a_difference(organ, name) -> None:
    truth = given(organ, name, 3, False)
    if name in ("annotator-blank", "drop", "swap"):
        pytest.skip("few outcomes: several seeds may do the same")
    noise = PRESETS[name].noise
    choices = [
        corrupt_case(replace(truth, case=case), Recipe(noise, 1.0, seed))[1]
        for case, seed in (("a", 0), ("a", 1), ("b", 0), ("c", 0), ("d", 0))
    ]
    assert len({json.dumps(choice) for choice in choices}) > 1


@pytest.mark.parametrize("name", PRESETS)
def test_only_the_classes_asked_for_change(organ, name) -> None:
    for ndim, layered in cases_of(name):
        leaves_the_organ(organ, name, ndim, layered)


def leaves_the_organ(organ, name, ndim, layered) -> None:
    truth = given(organ, name, ndim, layered)
    changed = 0
    for seed in range(8):
        recipe = Recipe(PRESETS[name].noise, 1.0, seed, classes=[2], layered=layered)
        flawed, record = corrupt_case(truth, recipe)
        assert (flawed[truth.label == 1] == 1).all(), "the other class lost voxels"
        gained = (flawed == 1) & (truth.label != 1)
        assert not gained.any() or (truth.label[gained] == 2).all(), "the other class grew over background"
        changed += record["changed"]
        if changed:
            return
    # published pixels are less than a voxel of this small volume; a 5 x 5 x 5 mean would wipe out the small core
    unable = [(3, name) for name in ("adele", "coco-n-low", "markov-shrink")]
    assert (ndim, name) in unable, "nothing happened with any seed"


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"chest-xray-large", "chest-xray-small"}))
def test_empty_labels_survive(name) -> None:
    for ndim, layered in cases_of(name):
        shape = (20, 22, 24)[3 - ndim :]
        empty, image = np.zeros(shape, np.int16), np.zeros((1, *shape), np.float32)
        truth = Annotation(empty, (1.0,) * ndim, image, layered)
        flawed, record = corrupt_case(truth, Recipe(PRESETS[name].noise, 1.0, layered=layered))
        assert not flawed.any()
        assert (record["dice"], record["changed"]) == ({}, 0)


@pytest.mark.parametrize("name", PRESETS)
def test_strength_0_is_no_flaw_and_a_structure_at_the_edge_is_no_trouble(organ, name) -> None:
    truth = given(organ, name, 3, False)
    edge = replace(
        truth, label=np.ascontiguousarray(truth.label[8:, 10:, 12:]), image=truth.image[:, 8:, 10:, 12:]
    )
    choice = PRESETS[name].noise.choose(np.random.default_rng(0), edge)
    np.testing.assert_array_equal(apply_to(edge, choice, 0.0), edge.label)
    assert apply_to(edge, choice, 1.0).shape == edge.label.shape


@pytest.mark.parametrize("name", PRESETS)
def test_description_builds_the_same_noise(name) -> None:
    noise = PRESETS[name].noise
    assert build(json.loads(json.dumps(noise.describe()))) == noise


@pytest.mark.parametrize("name", PRESETS)
def test_work_is_spared_only_where_nothing_can_happen(organ, name, monkeypatch) -> None:
    """A flaw on its own box equals the flaw on the whole image: no reach is too short."""
    truth = given(organ, name, 3, False)
    truth = replace(truth, label=np.pad(truth.label, 6), image=np.pad(truth.image, ((0, 0), *[(6, 6)] * 3)))
    choice = PRESETS[name].noise.choose(np.random.default_rng(3), truth)
    if BY_BOX & set(kinds_within(choice)):
        pytest.skip("its random numbers are those of the box: see the tests of its kind")
    cropped = apply_to(truth, choice, 1.0)
    monkeypatch.setattr(
        "maskmend.noise.base._box", lambda annotation, reach: (slice(None),) * annotation.ndim
    )
    np.testing.assert_array_equal(cropped, apply_to(truth, choice, 1.0))


def test_every_kind_is_in_a_preset_or_tested_by_itself() -> None:
    text = json.dumps([one.noise.describe() for one in PRESETS.values()])
    assert {kind for kind in KINDS if f'"{kind}"' not in text} == {
        "predictions"
    }  # needs files: test_automatic


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module) -> None:
    found = importlib.import_module(f"maskmend.noise.{module}")
    assert doctest.testmod(found).failed == 0


def test_a_kind_of_ones_own(organ) -> None:
    """A subclass is known by name at once, and gone with the test."""

    class Shout(KINDS["dilate"]):  # type: ignore[misc, name-defined]
        name = "shout"

    try:
        noise = build({"noise": "shout", "radius_mm": [1, 1]})
        record = corrupt_case(organ(), Recipe(noise, 1.0))[1]
        assert record["transform"] == "shout"
        assert record["changed"] > 0
    finally:
        del KINDS["shout"]
    with pytest.raises(UsageError, match="shout"):
        build("shout")
