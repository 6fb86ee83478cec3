"""What one run is given: which cases to train and test on, and the masks it must learn from."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskmend import pseudonyms
from maskmend.benchmark.grid import Trial
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.dataset import find_cases, infer_labels, split
from maskmend.data.images import label_suffix, read_case, read_label, write_label
from maskmend.data.owner import sweep, temporary_name
from maskmend.data.phantom import make_phantom
from maskmend.data.plan import Plan
from maskmend.data.preprocess import Prepared, prepare
from maskmend.errors import DataError
from maskmend.noise.presets import case_rng, choose_cases, corrupt_labels, make_noise

TEST_SHARE = 0.3  # held out where neither the file nor the data set says how many cases test


@dataclass(frozen=True)
class Given:
    """What a run gets.

    Args:
        dataset: the training cases with their given, perhaps flawed, masks.
        test: cases with true masks, never trained on.
        truth: true mask (*S) of each training case.
        given: the mask it is trained with.
    """

    dataset: Dataset
    test: tuple[Case, ...]
    truth: Mapping[str, np.ndarray]
    given: Mapping[str, np.ndarray]

    @property
    def flawed(self) -> dict[str, bool]:
        """Whether a training case's mask differs from the true one at all."""
        return {name: not np.array_equal(self.truth[name], self.given[name]) for name in self.truth}


def open_dataset(folder: str) -> Dataset:
    """A data set with its classes named; kept, for every run of a worker asks again."""
    return _opened(folder, pseudonyms.active())


@functools.lru_cache(8)
def _opened(folder: str, names: pseudonyms.Pseudonyms | None) -> Dataset:
    """Kept apart by the names in use: cases found under their ids must not be given out under pseudonyms."""
    return infer_labels(find_cases(Path(folder)))


def prepare_cases(trial: Trial, folder: Path, *, raters: bool = False) -> Given:
    """Divide the cases, flaw the training masks and write them below `folder`; a pure function of the recipe.

    Args:
        trial: which run.
        folder: an empty folder for the flawed masks.
        raters: also hand over all masks of the raters, to methods that learn from several.

    Raises:
        DataError: too few cases with masks.
    """
    recipe, names = trial.recipe, trial.extras.get("names")
    if names and pseudonyms.active() is None:  # in a worker, which does nothing but runs of this benchmark
        pseudonyms.start(Path(names))
    dataset = open_dataset(trial.source) if trial.source else _phantoms(recipe["data"]["phantom"])
    train, test = divide(dataset, recipe["train"], recipe["test"], trial.seed)
    trusted = set(choose_cases((case.id for case in train), recipe["trusted"], trial.seed))
    read = {case.id: read_label(true_label(case), spacing_mm=dataset.spacing_mm) for case in train}
    truth = {name: label for name, (label, _) in read.items()}
    doubtful = [case for case in train if case.id not in trusted]
    flawed = _flaw(
        doubtful, {n: read[n] for n in truth if n not in trusted}, dataset, recipe["noise"], trial.seed
    )
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for case in train:
        trust = case.id in trusted
        path = true_label(case)
        if case.id in flawed:
            path = folder / f"{case.id}{label_suffix(path)}"
            write_label(path, flawed[case.id], read[case.id][1])
        shown = _shown_raters(case, recipe["noise"]) if raters and not trust else {}
        cases.append(replace(case, label=path, split="train", trusted=trust, raters=shown))
    return Given(replace(dataset, cases=tuple(cases)), test, truth, truth | flawed)


def divide(
    dataset: Dataset, train: int | None, test: int | None, seed: int
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Training and test cases by patient, another division for every seed; marked test cases stay test cases."""
    labelled = [case for case in dataset.cases if case.label is not None]
    marked = [case for case in labelled if case.split == "test"]
    if marked:
        pool = [case for case in labelled if case.split == "train"]
        held = _some(marked, test, seed)
    else:
        share = TEST_SHARE if test is None else min(1.0, test / max(len(labelled), 1))
        pool, held = (list(part) for part in split(labelled, share, seed))
    chosen = _some(pool, train, seed)
    if len(chosen) < 2 or not held:
        fact = f"{len(chosen)} training and {len(held)} test cases of {len(labelled)} with a mask"
        raise DataError(fact, dataset.root, "ask for fewer with train and test")
    return tuple(chosen), tuple(held)


def prepare_all(
    cases: Sequence[Case], dataset: Dataset, plan: Plan, labels: Mapping[str, np.ndarray] | None = None
) -> list[Prepared]:
    """Images and masks on the grid of training; `labels` (file values) in place of the cases' own."""
    ready = []
    for case in cases:
        image, geometry = read_case(case, dataset)
        label = labels[case.id] if labels else read_label(true_label(case), spacing_mm=dataset.spacing_mm)[0]
        ready.append(prepare(image, label, geometry, plan, where=case.id))
    return ready


def true_label(case: Case) -> Path:
    """The label file of a case that has one: `divide` takes no others."""
    assert case.label is not None
    return case.label


def _some(cases: Sequence[Case], wanted: int | None, seed: int) -> list[Case]:
    if wanted is None or wanted >= len(cases):
        return sorted(cases, key=lambda case: case.id)
    return list(split(cases, wanted / len(cases), seed)[1])


def _flaw(
    cases: Sequence[Case],
    read: Mapping[str, tuple[np.ndarray, Geometry]],
    dataset: Dataset,
    noise: Mapping[str, Any] | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Only the masks that change."""
    if noise is None:
        return {}
    if "raters" in noise:
        return {case.id: _one_rater(case, noise["raters"], seed, dataset) for case in cases}
    masks = {name: label for name, (label, _) in read.items()}
    spacing = {name: dataset.spacing_mm or geometry.spacing_mm for name, (_, geometry) in read.items()}
    parameters = {key: value for key, value in noise.items() if key not in ("kind", "rate")}
    if dataset.ignore is not None:
        parameters["ignore"] = dataset.ignore
    if make_noise(noise["kind"]).needs_image:
        parameters["images"] = {case.id: read_case(case, dataset)[0] for case in cases}
    flawed, record = corrupt_labels(
        masks, noise["rate"], noise["kind"], seed=seed, spacing_mm=spacing, names=dict(dataset.labels),
        **parameters,
    )  # fmt: skip
    return {name: flawed[name] for name in record["cases"]}


def _one_rater(case: Case, raters: Sequence[str], seed: int, dataset: Dataset) -> np.ndarray:
    """The mask of one rater, drawn for this image alone."""
    there = [name for name in raters if name in case.raters]
    if not there:
        raise DataError(f"has no mask of {', '.join(raters)}", case.id)
    name = there[int(case_rng(case.id, seed).integers(len(there)))]
    return read_label(case.raters[name], spacing_mm=dataset.spacing_mm)[0]


def _shown_raters(case: Case, noise: Mapping[str, Any] | None) -> dict[str, Path]:
    chosen = set((noise or {}).get("raters", ()))
    return {name: path for name, path in case.raters.items() if name in chosen}


def _phantoms(facts: Mapping[str, Any]) -> Dataset:
    """The synthetic data set of these parameters, made once per machine and user."""
    name = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
    home = Path(tempfile.gettempdir()) / f"maskmend-phantoms-{os.getuid() if hasattr(os, 'getuid') else ''}"
    folder = home / name
    if not (folder / "maskmend.json").exists():
        home.mkdir(mode=0o700, exist_ok=True)
        sweep(home)
        made = home / temporary_name(name)
        make_phantom(
            made, ndim=facts["ndim"], train=facts["cases"], test=0, seed=facts["seed"], shape=facts["shape"]
        )
        try:
            os.rename(made, folder)
        except OSError:  # another process was faster
            shutil.rmtree(made, ignore_errors=True)
    return open_dataset(str(folder))
