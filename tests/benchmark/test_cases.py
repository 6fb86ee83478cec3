"""Who trains, who tests, and which masks training sees."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmend.benchmark.cases import divide, open_dataset, prepare_cases
from maskmend.errors import DataError


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def on_disk(folder: Path, trials_of, **changes):
    data = {"toy": {"path": str(folder), "train": 8, "test": 4}}
    return trials_of(**({"data": data} | changes)).trials


def test_patients_fall_on_one_side(folder: Path) -> None:
    dataset = open_dataset(str(folder))
    divisions = set()
    for seed in range(8):
        train, test = divide(dataset, 8, 4, seed)
        assert {case.group for case in train}.isdisjoint(case.group for case in test)
        assert (len(train), len(test)) == (8, 4)
        divisions.add(tuple(case.id for case in test))
        assert divide(dataset, 8, 4, seed) == (train, test)
    assert len(divisions) > 3


def test_marked_test_cases_stay_test_cases(folder: Path) -> None:
    side = json.loads((folder / "maskmend.json").read_text())
    marked = sorted(path.stem for path in (folder / "labels").iterdir())[:4]
    (folder / "maskmend.json").write_text(json.dumps(side | {"test": marked}))
    dataset = open_dataset(str(folder))
    for seed in range(3):
        train, test = divide(dataset, 6, None, seed)
        assert [case.id for case in test] == marked
        assert len(train) == 6
        assert not {case.id for case in train} & set(marked)


def test_too_few_cases(folder: Path) -> None:
    with pytest.raises(DataError, match=r"0 training and 12 test cases of 12"):
        divide(open_dataset(str(folder)), 8, 12, 0)


def test_as_many_masks_are_flawed_as_was_asked(folder: Path, trials_of, tmp_path: Path) -> None:
    trial = on_disk(folder, trials_of, rates=[0.25])[-1]
    given = prepare_cases(trial, tmp_path / "labels")
    assert sum(given.flawed.values()) == 2
    for case in given.dataset.cases:
        truth = pixels(folder / "labels" / f"{case.id}.png")
        assert np.array_equal(given.truth[case.id], truth)
        assert np.array_equal(given.given[case.id], pixels(case.label))  # what is told is what is trained on
        if given.flawed[case.id]:
            assert case.label.parent == tmp_path / "labels"
            assert ((given.given[case.id] > 0) >= (truth > 0)).all()  # dilated
        else:
            assert case.label.parent == folder / "labels"


def test_flaws_are_the_recipes(folder: Path, trials_of, tmp_path: Path) -> None:
    """The same for every method and every time, others for another seed."""
    one, two = on_disk(folder, trials_of)[-2:]
    assert (one.method, two.method) == ("supervised", "pint")
    first, again = prepare_cases(one, tmp_path / "1"), prepare_cases(two, tmp_path / "2")
    assert first.given.keys() == again.given.keys()
    assert all(np.array_equal(first.given[name], again.given[name]) for name in first.given)
    other = prepare_cases(replace(one, seed=1), tmp_path / "3")
    assert other.flawed != first.flawed


def test_test_masks_are_true_and_nothing_is_overwritten(folder: Path, trials_of, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "labels").iterdir()}
    given = prepare_cases(on_disk(folder, trials_of, rates=[1.0])[-1], tmp_path / "labels")
    assert all(given.flawed.values())
    assert {case.label.parent for case in given.test} == {folder / "labels"}
    assert not {case.id for case in given.test} & set(given.given)
    assert {path.name: path.read_bytes() for path in (folder / "labels").iterdir()} == before


def test_trusted_masks_are_true(folder: Path, trials_of, tmp_path: Path) -> None:
    trial = on_disk(folder, trials_of, rates=[1.0], trusted=0.25)[-1]
    given = prepare_cases(trial, tmp_path / "labels")
    trusted = {case.id for case in given.dataset.cases if case.trusted}
    assert len(trusted) == 2
    assert {name for name, flawed in given.flawed.items() if not flawed} == trusted


def test_one_rater_at_random_for_each_image(folder: Path, trials_of, tmp_path: Path) -> None:
    for rater, value in (("ann", 1), ("bob", 2)):  # each rater leaves a mark in the corner
        shutil.copytree(folder / "labels", folder / f"labels_{rater}")
        for path in (folder / f"labels_{rater}").iterdir():
            label = pixels(path).copy()
            label[0, 0] = value
            Image.fromarray(label).save(path)
    noise = {"people": {"raters": ["*"]}}
    trials = on_disk(folder, trials_of, noise=noise, methods=["supervised", "majority"], seeds=3)
    drawn = set()
    for trial in (trial for trial in trials if trial.method == "supervised" and trial.noise == "people"):
        given = prepare_cases(trial, tmp_path / str(trial.seed))
        marks = {name: int(label[0, 0]) for name, label in given.given.items()}
        assert set(marks.values()) == {1, 2}
        assert not any(case.raters for case in given.dataset.cases)  # the method sees one mask
        drawn.add(tuple(marks.values()))
        again = prepare_cases(trial, tmp_path / f"{trial.seed} again")
        assert {name: int(label[0, 0]) for name, label in again.given.items()} == marks
    assert len(drawn) > 1
    several = prepare_cases(trials[-1], tmp_path / "several", raters=True)
    assert all(set(case.raters) == {"ann", "bob"} for case in several.dataset.cases)
    assert all(not case.raters.get("labels") for case in several.test)
