"""A copy of a data set whose training masks are flawed: the true test masks stay, every flaw is recorded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.data.atomic import write_text
from maskmend.data.case import Case, Dataset
from maskmend.data.dataset import find_cases
from maskmend.data.formats import suffix_of
from maskmend.data.images import read_label, write_label
from maskmend.errors import UsageError
from maskmend.noise.corrupt import corrupt_label
from maskmend.noise.presets import case_rng, choose_cases, settings


def corrupt_dataset(
    dataset: Dataset | Path | str,
    out: Path | str,
    *,
    rate: float,
    kind: str = "mixed",
    radius_mm: Sequence[float] = (2.0, 5.0),
    seed: int = 0,
    **params: Any,
) -> Path:
    """Write a two-folder copy of a data set and flaw a share of its training masks.

    Trusted cases and test cases keep their masks. Images are hard links where the disk allows it. Beside
    `images/`, `labels/` and `maskmend.json` lie `noise.json` (settings and what was done to each case) and
    `noise_maps/` (1 where the mask of a flawed case differs from the original).

    Args:
        dataset: a folder in any layout, or cases found before.
        out: the folder to write; must be empty or missing.
        rate: share of the training cases, in [0, 1].
        kind, radius_mm, seed: see `maskmend.noise.presets.corrupt_labels`.
        **params: see `maskmend.noise.corrupt.corrupt_label`.

    Returns:
        The folder.

    Raises:
        UsageError: `out` holds something, or a setting is out of range. DataError: a label cannot be read.
    """
    found, out = dataset if isinstance(dataset, Dataset) else find_cases(dataset), Path(out)
    if out.exists() and any(out.iterdir()):
        raise UsageError("holds something already", out, "give an empty or new folder")
    chosen = set(choose_cases((case.id for case in found.train if _may_change(case)), rate, seed))
    for folder in ("images", "labels", "noise_maps"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    records = {}
    for case in found.cases:
        _link_images(case, out)
        if case.id in chosen:
            rng = case_rng(case.id, seed)
            records[case.id] = _flaw(case, found, out, kind, rng, radius_mm=radius_mm, **params)
        elif case.label is not None:
            _link(case.label, out / "labels" / f"{case.id}{suffix_of(case.label)}")
    _write_json(out / "maskmend.json", _side_file(found, out))
    record = {"settings": settings(rate, kind, radius_mm, seed, params), "cases": records}
    _write_json(out / "noise.json", record)
    return out


def _may_change(case: Case) -> bool:
    return case.label is not None and not case.trusted


def _flaw(
    case: Case, dataset: Dataset, out: Path, kind: str, rng: np.random.Generator, **params: Any
) -> dict[str, Any]:
    assert case.label is not None
    values, geometry = read_label(case.label)
    background = next(iter(dataset.labels.values()), 0)
    label = np.where(values == background, 0, np.where(values == 0, background, values))
    spacing = dataset.spacing_mm or geometry.spacing_mm
    flawed, record = corrupt_label(label, spacing, kind, rng, ignore=dataset.ignore, **params)
    restored = np.where(flawed == 0, background, np.where(flawed == background, 0, flawed))
    name = f"{case.id}{suffix_of(case.label)}"
    write_label(out / "labels" / name, restored, geometry)
    write_label(out / "noise_maps" / name, (restored != values).astype(np.uint8), geometry)
    return record


def _link_images(case: Case, out: Path) -> None:
    several = len(case.images) > 1
    for channel, image in enumerate(case.images):
        name = f"{case.id}_{channel:04d}" if several else case.id
        _link(image, out / "images" / f"{name}{suffix_of(image) if image.is_file() else ''}")


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where links are not possible (another disk, a folder of DICOM slices)."""
    source = source.resolve()
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


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
