"""Mend what a machine may mend, in a copy: the data set that was checked is never written to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.data.atomic import atomic_folder, write_text
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.findings import CheckResult, Finding
from maskmend.errors import ResourceError, UsageError

_SIDE_FILES = ("*.json", "*.csv", "*.tsv", "*.txt", "*.md")
_LOST_FOREGROUND = 0.1  # a resampled label may lose this share of its volume, as at a cut border, not more


@dataclass(frozen=True)
class Fixed:
    """What was done to one file, or why nothing was."""

    case: str | None
    file: str | None
    action: str
    detail: str


def fix(result: CheckResult, out: Path | str) -> dict[str, Any]:
    """Write a corrected copy of a checked data set and say what was done in `fixes.json`.

    Mended are labels on another grid than their image (resampled with nearest neighbour; what lies outside
    the label's grid becomes "ignore" where the data set has that value, else background), and NaN and Inf in
    images (the smallest finite value of the channel). All else is copied byte for byte, and listed as not
    fixed where it is at fault.

    Args:
        result: what `check` returned.
        out: a folder that does not exist yet; it appears only once it is complete.

    Returns:
        The content of `fixes.json`: {"source", "fixed": [...], "not_fixed": [...]}.

    Raises:
        UsageError: no data set, files outside its folder, or `out` exists or lies inside the data set.
        ResourceError: not enough disk space.
    """
    dataset, out = result.dataset, Path(out).absolute()
    if dataset is None:
        raise UsageError(
            "there is no data set to fix", None, "mend the errors that `maskmend check` lists first"
        )
    base = dataset.root if dataset.root.is_dir() else dataset.root.parent
    files = _files(dataset, base)
    _refuse(base, out)
    with atomic_folder(out, lambda: _refuse(base, out)) as copy:
        _require_room(files, copy)
        for file in files:
            target = copy / file.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(file, target)
        report = _mend(result, dataset, base, copy)
        write_text(copy / "fixes.json", json.dumps(report, indent=2) + "\n")
    return report


def _files(dataset: Dataset, base: Path) -> list[Path]:
    """Every file of every case, and the small files beside them that say what the cases mean."""
    paths: set[Path] = set()
    for case in dataset.cases:
        for path in (*case.images, case.label, case.ignore, *case.raters.values()):
            if path is not None:
                paths.update(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else paths.add(path)
    outside = sorted(path for path in paths if not path.is_relative_to(base))
    if outside:
        raise UsageError(
            f"{len(outside)} files lie outside {base}",
            outside[0],
            "move the files beside the manifest and name them relative to it",
        )
    for pattern in _SIDE_FILES:
        paths.update(path for path in base.glob(pattern) if path.is_file())
    return sorted(path for path in paths if path.is_file())


def _refuse(base: Path, out: Path) -> None:
    if out.exists():
        raise UsageError("exists already", out, "give a new folder: a fixed copy never overwrites anything")
    if out.resolve().is_relative_to(base.resolve()):
        raise UsageError("lies inside the data set", out, "give a folder outside of it")


def _require_room(files: Iterable[Path], copy: Path) -> None:
    needed, free = sum(file.stat().st_size for file in files), shutil.disk_usage(copy).free
    if needed > free:
        fact = f"the copy needs {needed:,} bytes, {free:,} are free"
        raise ResourceError(fact, copy.parent, "choose another disk")


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(
        source, target
    )  # the content alone: a read-only original must not make the copy read-only


def _mend(result: CheckResult, dataset: Dataset, base: Path, copy: Path) -> dict[str, Any]:
    fixed: list[Fixed] = []
    refused: list[Fixed] = []
    for finding in result.findings:
        if finding.fix is None or finding.case is None:
            if finding.severity == "error":
                refused.append(Fixed(finding.case, finding.file, f"row {finding.row}", finding.text))
            continue
        done = _mend_one(finding, dataset[finding.case], dataset, base, copy)
        (fixed if done.action != "refused" else refused).append(done)
    return {
        "source": base.name,
        "fixed": [vars(one) for one in fixed],
        "not_fixed": [vars(one) for one in refused],
    }


def _mend_one(finding: Finding, case: Case, dataset: Dataset, base: Path, copy: Path) -> Fixed:
    from maskmend.data.images import read_case, read_header, read_image, read_label, write_image, write_label

    if finding.fix == "resample":
        path = _label_path(finding, case)
        spacing_mm = dataset.spacing_mm
        grid = read_header(
            case.images[0], channels=len(dataset.channels) or None, spacing_mm=spacing_mm
        ).geometry
        label, own = read_label(path, spacing_mm=spacing_mm)
        outside = dataset.ignore if dataset.ignore is not None else 0
        moved = resample_label(label, own, grid, outside=0 if path == case.ignore else outside)
        kept = _volume_kept(label, own, moved, grid, outside)
        if abs(kept - 1) > _LOST_FOREGROUND:
            why = (
                f"on the image's grid only {100 * kept:.0f} % of the foreground would be left: wrong header?"
            )
            return Fixed(case.id, finding.file, "refused", why)
        write_label(copy / path.relative_to(base), moved, grid)
        return Fixed(case.id, finding.file, "resample", f"{own.shape} to {grid.shape}, nearest neighbour")
    if finding.fix == "replace_nonfinite" and all(_writable(path) for path in case.images):
        count = 0
        for path in case.images:
            image, grid = read_image(path) if len(case.images) > 1 else read_case(case, dataset)
            clean, bad = replace_nonfinite(image)
            count += bad
            if bad:
                write_image(copy / path.relative_to(base), clean, grid)
        return Fixed(
            case.id, finding.file, "replace_nonfinite", f"{count} voxels set to the smallest finite value"
        )
    return Fixed(case.id, finding.file, "refused", f"{finding.text}; this format is not rewritten")


def _writable(path: Path) -> bool:
    from maskmend.data.images import LABEL_SUFFIXES, suffix_of

    return path.is_file() and suffix_of(path) in LABEL_SUFFIXES


def _label_path(finding: Finding, case: Case) -> Path:
    from maskmend.data.findings import short_name

    paths = [path for path in (case.label, *case.raters.values(), case.ignore) if path is not None]
    return next(path for path in paths if short_name(path) == finding.file)


def resample_label(label: np.ndarray, own: Geometry, grid: Geometry, *, outside: int = 0) -> np.ndarray:
    """A label's values at the voxel centres of another grid, by nearest neighbour in millimetres.

    Args:
        label: file values (*S) on `own`.
        own: where the label's voxels lie; needs an affine.
        grid: where they should lie; needs an affine.
        outside: the value where the label's grid does not reach.

    Returns:
        Integers of `grid.shape`.
    """
    from scipy.ndimage import affine_transform

    if own.affine is None or grid.affine is None:
        raise ValueError("both grids need an affine")
    step = np.linalg.inv(own.affine) @ grid.affine  # grid voxel (x, y, z) to label voxel (x, y, z)
    matrix = step[:3, :3][::-1, ::-1]  # arrays are (z, y, x)
    offset = step[:3, 3][::-1]
    drop = 3 - label.ndim
    padded = label.reshape((1,) * drop + label.shape)
    target = (1,) * (3 - grid.ndim) + grid.shape
    # grid-constant: a border voxel reaches half its size beyond its centre, as any other does
    moved = affine_transform(
        padded, matrix, offset, output_shape=target, order=0, mode="grid-constant", cval=outside
    )
    return np.asarray(moved.reshape(grid.shape))


def replace_nonfinite(image: np.ndarray) -> tuple[np.ndarray, int]:
    """An image (C, *S) with NaN and Inf replaced by each channel's smallest finite value, and how many were.

    A channel without any finite value becomes 0.
    """
    good = np.isfinite(image)
    bad = int(image.size - good.sum())
    if not bad:
        return image, 0
    clean = image.copy()
    for channel, kept in zip(clean, good, strict=True):
        channel[~kept] = channel[kept].min() if kept.any() else 0
    return clean, bad


def _volume_kept(label: np.ndarray, own: Geometry, moved: np.ndarray, grid: Geometry, outside: int) -> float:
    """Foreground volume after over before, 1 when there was none."""
    before = _foreground(label, outside) * float(np.prod(own.spacing_mm))
    after = _foreground(moved, outside) * float(np.prod(grid.spacing_mm))
    return after / before if before else 1.0


def _foreground(label: np.ndarray, outside: int) -> int:
    return int(((label > 0) & (label != outside)).sum()) if outside else int((label > 0).sum())


def fixable(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings that `fix` can do something about."""
    return tuple(finding for finding in findings if finding.fix is not None)
