"""A copy of a data set whose training masks are flawed: the true test masks stay, every flaw is recorded."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.data.atomic import atomic_folder, write_text
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.dataset import find_cases, infer_labels
from maskmend.data.formats import suffix_of
from maskmend.data.images import read_case, read_label, write_label
from maskmend.errors import DataError, UsageError, unknown
from maskmend.noise.base import Annotation, LabelNoise
from maskmend.noise.cases import Recipe, choose_cases, corrupt_case, corrupt_cases
from maskmend.noise.presets import make_noise
from maskmend.progress import message

RECORD = "noise.json"
Progress = Callable[[int, int], None]


def corrupt_dataset(
    dataset: Dataset | Path | str,
    out: Path | str,
    *,
    rate: float,
    kind: str | Mapping[str, Any] | LabelNoise = "mixed",
    radius_mm: Sequence[float] | None = None,
    seed: int = 0,
    classes: Iterable[str | int] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **how: Any,
) -> Path:
    """Write a two-folder copy of a data set and flaw a share of its training masks.

    Trusted cases and test cases keep their masks. Images are hard links where the disk allows it, else
    copies. Beside `images/`, `labels/` and `maskmend.json` lie, for the flawed cases, `noise.json` (settings
    and what was done), `noise_maps/` (1 where the mask differs from the true one) and `true_labels/`. Labels
    of further raters are left out, for they would give the truth away.

    Args:
        dataset: a folder in any layout, or cases found before.
        out: the folder to write; must be empty or missing.
        rate: share of the training cases, in [0, 1].
        kind: a key of `maskmend.noise.presets.PRESETS`, a description, or a noise.
        radius_mm: smallest and largest radius, for "dilate", "erode", "move" and "mixed" only.
        seed: any integer >= 0.
        classes: names or values of the classes to change; None: all.
        overwrite: replace an earlier flawed copy in `out`.
        progress: called with (cases done, all cases).
        **how: target_dice, each, keep, layered: see `maskmend.noise.cases.Recipe`.

    Returns:
        The folder.

    Raises:
        UsageError: `out` holds something, a setting is out of range, or the target Dice is out of reach.
        DataError: a label cannot be read, or holds values that cannot be taken for classes without asking.
        Nothing is written then.
    """
    found, out = dataset if isinstance(dataset, Dataset) else find_cases(dataset), Path(out)
    values = None if classes is None else [class_value(name, found) for name in classes]
    if isinstance(target := how.get("target_dice"), Mapping) and not found.labels:
        how["target_dice"] = {class_value(name, found): dice for name, dice in target.items()}
    recipe = Recipe(make_noise(kind, radius_mm), rate, seed, classes=values, ignore=found.ignore, **how)
    chosen = set(choose_cases((case.id for case in found.train if _may_change(case)), rate, seed))
    _claim(found, out, overwrite)
    infer_labels(
        found
    )  # values that may mean anything are refused; what they mean is not written into the copy
    _tell_left_out(found)
    cases = [case for case in found.cases if case.id in chosen]
    flawed, reached = _flawed(cases, found, recipe)
    with atomic_folder(out, lambda: _claim(found, out, overwrite)) as folder:
        records, ways = {}, Counter[str]()
        for number, case in enumerate(found.cases):
            ways.update(_link_images(case, folder))
            if case.id in chosen:
                records[case.id] = _write_case(case, folder, *next(flawed))
            elif case.label is not None:
                _link(case.label, folder / "labels" / f"{case.id}{suffix_of(case.label)}")
            if progress is not None:
                progress(number + 1, len(found.cases))
        _write_json(folder / "maskmend.json", _side_file(found, folder))
        named = {"kind": kind} if isinstance(kind, str) else {}
        _tell_effect(records, values)
        record = {"settings": named | recipe.settings(), "summary": _summary(found, records, ways)}
        _write_json(folder / RECORD, record | reached | {"cases": records})
    return out


def class_value(name: str | int, dataset: Dataset) -> int:
    """The value of a class that a user named; "class_2" or "2" where the data set names none.

    Raises:
        UsageError: no such class, or the background, which is what flaws move and not what they change.
    """
    text = str(name)
    number = text.removeprefix("class_") if not dataset.labels else ""
    if text not in dataset.labels and not number.isdigit():
        classes = [known for known, value in dataset.labels.items() if value]
        if classes:
            raise unknown("class", text, classes, dataset.root)
        remedy = "give values, e.g. 1, or name the classes under `labels` in maskmend.json"
        raise UsageError(f"no class {text!r}: the data set names none", dataset.root, remedy)
    value = dataset.labels.get(text, int(number or 0))
    if value == 0:
        raise UsageError(f"{text!r} is the background, no class to flaw", dataset.root)
    return value


def _may_change(case: Case) -> bool:
    return case.label is not None and not case.trusted


def _claim(dataset: Dataset, out: Path, overwrite: bool) -> None:
    target = out.resolve()
    if target == dataset.root or target in dataset.root.parents:
        raise UsageError("holds the data set itself", out, "give an empty or new folder")
    if dataset.root in target.parents:
        raise UsageError("lies inside the data set", out, "give a folder elsewhere")
    if out.exists() and not out.is_dir():
        raise UsageError("is a file", out, "give an empty or new folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / RECORD).is_file():
        raise UsageError("holds something already", out, "give an empty or new folder")
    if not overwrite:
        raise UsageError("holds a flawed data set already", out, "give another folder or --overwrite")


Written = tuple[np.ndarray, np.ndarray, Geometry, dict[str, Any]]
"""True file values, flawed file values, geometry, record."""


def _flawed(
    cases: Sequence[Case], dataset: Dataset, recipe: Recipe
) -> tuple[Iterator[Written], dict[str, Any]]:
    """The flawed cases in order, and what calibration reached. One at a time without a target, else all at once."""
    if recipe.target_dice is None:
        return (_flaw(case, dataset, recipe) for case in cases), {}
    read = [_read(case, dataset, recipe) for case in cases]
    done, reached = corrupt_cases([truth for truth, _ in read], recipe)
    _tell_missed(reached)
    calibrated = (
        (truth.label, done[truth.case][0], geometry, done[truth.case][1]) for truth, geometry in read
    )
    return calibrated, {"calibration": reached}


def _flaw(case: Case, dataset: Dataset, recipe: Recipe) -> Written:
    truth, geometry = _read(case, dataset, recipe)
    label, record = corrupt_case(truth, recipe)
    return truth.label, label, geometry, record


def _tell_missed(reached: Mapping[str, Any]) -> None:
    if missed := reached.get("missed"):
        first = ", ".join(
            f"{case} ({', '.join(f'class {v}: {d:.3f}' for v, d in dice.items())})"
            for case, dice in sorted(missed.items())[:5]
        )
        more = ", ..." if len(missed) > 5 else ""
        message(f"target Dice out of reach, the nearest is used, in cases: {len(missed)}: {first}{more}")


def _tell_left_out(dataset: Dataset) -> None:
    if raters := sorted({name for case in dataset.cases for name in case.raters}):
        message(f"not copied, for they tell the truth: labels of the raters {', '.join(raters)}")


def _tell_effect(records: Mapping[str, Any], classes: Sequence[int] | None) -> None:
    """Stop where none of the classes asked for is there, and say where nothing changed."""
    held = {value for record in records.values() for value in record["dice"]}
    if records and classes and not held & set(classes):
        known = f"they hold the values {', '.join(map(str, sorted(held)))}" if held else "they are empty"
        raise UsageError("no flawed case holds any of the classes", ", ".join(map(str, classes)), known)
    if records and not any(record["changed"] for record in records.values()):
        message("no voxel changed: this noise does nothing to these labels")


def _read(case: Case, dataset: Dataset, recipe: Recipe) -> tuple[Annotation, Geometry]:
    assert case.label is not None
    values, geometry = read_label(case.label)
    image = read_case(case, dataset)[0] if recipe.noise.needs_image else None
    if image is not None and image.shape[1:] != values.shape:
        raise DataError(f"image {image.shape[1:]} and label {values.shape} differ in shape", case.id)
    spacing = dataset.spacing_mm or geometry.spacing_mm
    return Annotation(values, tuple(spacing), image, recipe.layered, dict(dataset.labels), case.id), geometry


def _write_case(
    case: Case, out: Path, values: np.ndarray, flawed: np.ndarray, geometry: Geometry, record: dict[str, Any]
) -> dict[str, Any]:
    assert case.label is not None
    name = f"{case.id}{suffix_of(case.label)}"
    write_label(out / "labels" / name, flawed, geometry)
    write_label(out / "noise_maps" / name, (flawed != values).astype(np.uint8), geometry)
    _link(case.label, out / "true_labels" / name)
    return record


def _summary(dataset: Dataset, records: Mapping[str, Any], ways: Counter[str]) -> dict[str, Any]:
    """The figures that one wants first."""
    called = {value: name for name, value in dataset.labels.items()}
    dice: dict[str, list[float]] = {}
    for record in records.values():
        for value, score in record["dice"].items():
            dice.setdefault(called.get(value, f"class_{value}"), []).append(score)
    return {
        "training_cases": len(dataset.train),
        "flawed_cases": len(records),
        "dice": {name: float(np.mean(scores)) for name, scores in sorted(dice.items())},
        "images": dict(sorted(ways.items())),
    }


def _link_images(case: Case, out: Path) -> Iterator[str]:
    several = len(case.images) > 1
    for channel, image in enumerate(case.images):
        name = f"{case.id}_{channel:04d}" if several else case.id
        yield _link(image, out / "images" / f"{name}{suffix_of(image) if image.is_file() else ''}")


def _link(source: Path, target: Path) -> str:
    """A hard link, or a copy where links are not possible (another disk, a folder of DICOM slices)."""
    source = source.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        return "copied"
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        return "copied"
    return "linked"


def _side_file(dataset: Dataset, out: Path) -> dict[str, Any]:
    cases = dataset.cases
    side: dict[str, Any] = {
        "labels": dict(dataset.labels),
        "ignore": dataset.ignore,
        "channels": list(dataset.channels),
        "spacing_mm": list(dataset.spacing_mm) if dataset.spacing_mm else None,
        "trusted": [case.id for case in cases if case.trusted],
        "groups": {case.id: case.group for case in cases if case.group},
        "ignore_masks": {case.id: _copied_mask(case, out) for case in cases if case.ignore},
        "test": [case.id for case in cases if case.split == "test"],
        "sites": {case.id: case.site for case in cases if case.site},
        "drawn_by": {case.id: case.rater for case in cases if case.rater},
    }
    return {key: value for key, value in side.items() if value not in (None, [], {})}


def _copied_mask(case: Case, out: Path) -> str:
    assert case.ignore is not None
    target = out / "ignore_masks" / f"{case.id}{suffix_of(case.ignore)}"
    target.parent.mkdir(exist_ok=True)
    _link(case.ignore, target)
    return str(target.relative_to(out))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
