"""Find every fault of a data set in one pass over its files: nothing stops at the first.

Reading raises for one file; here each refusal becomes a `Finding`, and what only shows between the files of a
case, or between cases, is added.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmend.data.across_cases import copied_raters, flips, judge_cases, judge_classes, judge_labels, leaks
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.findings import CaseFacts, CheckResult, Finding, Intensity, ordered, short_name
from maskmend.data.fix import fix as fix
from maskmend.data.geometry_check import (
    apart_mm,
    lost_header,
    position_maps,
    same_space,
    shape_hint,
)
from maskmend.data.label_values import count_values
from maskmend.errors import UsageError, UserError

if TYPE_CHECKING:
    from maskmend.config import DataConfig

NONFINITE_SHARE = 0.001  # more NaN or Inf than this is no rounding accident but a broken file
_NONFINITE_REMEDY = "export it again, or let `maskmend check --fix OUT` put the smallest finite value there"
_SAMPLE = 1_000_000  # voxels that suffice for percentiles

Progress = Callable[[int, int], None]


def check(
    dataset: Dataset | Path | str,
    *,
    data: DataConfig | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> CheckResult:
    """Look at every file of a data set once and report all faults.

    Args:
        dataset: a data set, or the path of one.
        data: layout, labels and limits that override what the files say.
        quick: read images' headers only; label files are still read in full. For use before a training,
            where the images are read anyway.
        progress: called with (cases done, cases in all).
        threads: files read at a time; memory holds that many cases.

    Raises:
        UsageError: the data set is missing or empty.
    """
    found, findings = _find(dataset, data)
    if found is None:
        return CheckResult(None, ordered(findings))
    limits = _Limits.of(found, data, quick)
    facts = tuple(_read_all(found.cases, limits, progress, threads or min(2, os.cpu_count() or 1)))
    findings += [finding for one in facts for finding in one.findings]
    found, value_findings = judge_labels(found, facts)
    findings += value_findings
    findings += judge_cases(found, facts)
    findings += judge_classes(found, facts, bool(getattr(data, "allow_missing_classes", False)))
    findings += leaks(found, facts) + flips(found, facts) + copied_raters(facts)
    return CheckResult(found, ordered(findings), facts)


@dataclass(frozen=True)
class _Limits:
    """What reading one case needs to know of the data set."""

    reader: Mapping[str, Any]  # keyword arguments of the readers
    channels: int | None
    quick: bool

    @property
    def by_voxels(self) -> bool:
        """The voxel size is given by hand, so what the headers say of space does not count."""
        return "spacing_mm" in self.reader

    @classmethod
    def of(cls, dataset: Dataset, data: DataConfig | None, quick: bool) -> _Limits:
        reader: dict[str, Any] = {} if data is None else {"max_voxels": data.max_voxels}
        if dataset.spacing_mm:
            reader["spacing_mm"] = dataset.spacing_mm
        return cls(reader, len(dataset.channels) or None, quick)


def find_options(data: DataConfig) -> dict[str, Any]:
    """What settings say to `find_cases`."""
    keys = ("layout", "labels", "ignore", "channels", "spacing_mm", "rater", "raters")
    return {key: getattr(data, key) for key in keys if getattr(data, key) is not None}


def _find(source: Dataset | Path | str, data: DataConfig | None) -> tuple[Dataset | None, list[Finding]]:
    """The data set, and what finding its cases complained of; unlabelled cases do not hide the others."""
    if isinstance(source, Dataset):
        return source, []
    from maskmend.data.dataset import find_cases

    options = find_options(data) if data else {}
    try:
        return find_cases(Path(source), **options), []
    except UsageError:
        raise
    except UserError as error:
        findings = [finding_of(error, None, None)]
    try:
        return find_cases(Path(source), need_labels=False, **options), findings
    except UserError:
        return None, findings


def _read_all(
    cases: Sequence[Case], limits: _Limits, progress: Progress | None, threads: int
) -> Iterator[CaseFacts]:
    """Facts in case order; decompression and hashing release the GIL, so threads do help."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[CaseFacts]] = [pool.submit(look_at, case, limits) for case in cases]
        try:
            for done, future in enumerate(waiting, 1):
                yield future.result()
                if progress:
                    progress(done, len(cases))
        finally:  # Ctrl-C should not wait for the rest of the data set
            pool.shutdown(wait=False, cancel_futures=True)


def look_at(case: Case, limits: _Limits) -> CaseFacts:
    """Read one case's files and note what training must know; every refusal becomes a finding."""
    findings: list[Finding] = []
    facts: dict[str, Any] = {"id": case.id, "split": case.split, "counts": {}, "label_digests": {}}
    image, geometry = _attempt(partial(_read_image, case, limits), case, None, findings) or (None, None)
    if geometry is not None:
        facts |= {"shape": geometry.shape, "spacing_mm": geometry.spacing_mm}
        facts["in_mm"] = geometry.affine is not None or limits.by_voxels
    if image is not None:
        facts["intensity"], facts["digest"] = _look_at_image(case, image, findings)
        del image  # the labels' turn: hold one array at a time
    for name, path in _label_files(case):
        found = _attempt(partial(_read_label, path, limits), case, path, findings)
        if found is None:
            continue
        label, grid = found
        if geometry is not None:
            findings += _compare(case, path, geometry, grid, limits)
        if path == case.ignore:
            facts["ignored"] = float((label != 0).mean())
            continue
        facts["counts"][name] = counts = count_values(label)
        facts["label_digests"][name] = _digest(label)
        if path == case.label:
            foreground = {value: count for value, count in counts.items() if value > 0}
            facts["position"] = position_maps(label, foreground, grid.affine)
    return CaseFacts(**facts, findings=tuple(findings))


def _label_files(case: Case) -> list[tuple[str, Path]]:
    """The given label under "", the raters' by name, the ignore mask; a file that serves twice once."""
    files = [("", case.label), *case.raters.items(), ("ignore mask", case.ignore)]
    seen: set[Path] = set()
    return [(n, p) for n, p in files if p is not None and not (p in seen or seen.add(p))]  # type: ignore[func-returns-value]


def _read_image(case: Case, limits: _Limits) -> tuple[np.ndarray | None, Geometry]:
    from maskmend.data import images

    if not limits.quick:
        return images.read_image(case.images, channels=limits.channels, **limits.reader)
    channels = limits.channels if len(case.images) == 1 else None
    headers = [images.read_header(path, channels=channels, **limits.reader) for path in case.images]
    images.require_one_grid(case.images, headers, by_voxels=limits.by_voxels)
    return None, headers[0].geometry


def _read_label(path: Path, limits: _Limits) -> tuple[np.ndarray, Geometry]:
    from maskmend.data import images

    return images.read_label(path, **limits.reader)


def _attempt(read: Callable[[], Any], case: Case, file: Path | None, findings: list[Finding]) -> Any:
    """The answer of `read`, or None and a finding."""
    try:
        return read()
    except UserError as error:
        findings.append(finding_of(error, case.id, file))
    except MemoryError:
        text, name = "does not fit into memory", short_name(file)
        findings.append(Finding(case.id, "error", 8, text, None, name, exit_code=4))
    return None


# Readers raise plain errors; the phrases tell which fault of the list it was; tests make each one.
_PHRASES = (
    (4, ("empty file",)),
    (5, ("ends early",)),
    (6, ("checksum",)),
    (26, ("letter case",)),
    (25, ("leak",)),
    (12, ("differ in shape", "differ in size")),
    (13, ("mm apart",)),
    (3, ("channel", "slice is missing")),
    (2, ("no label", "no image", "without a label", "without an image", "no such file", "does not exist")),
    (19, ("interpolation", "jpeg")),
    (14, ("affine", "spacing")),
    (16, (" axes", "4-d")),
    (18, ("0 and 255", "0/255")),
    (20, ("negative", "label values", "intensity scale")),
    (17, ("outside the declared",)),
)


def _path(error: UserError) -> Path | None:
    """The file an error names; not the data set's own folder, which needs no naming."""
    path = Path(error.where) if error.where else None
    return None if path is None or path.is_dir() else path


def finding_of(error: UserError, case: str | None, file: Path | None) -> Finding:
    """The finding that says what a reader's refusal said."""
    text = error.what.lower()
    if "colour" in text:
        return Finding(case, "error", 21, error.what, error.remedy, short_name(file or _path(error)))
    row = next((row for row, phrases in _PHRASES if any(phrase in text for phrase in phrases)), 7)
    if error.exit_code == 4:
        row = 9 if "tile" in (error.remedy or "") else 8
    where = short_name(file or _path(error))
    return Finding(case, "error", row, error.what, error.remedy, where, exit_code=error.exit_code)


def _look_at_image(
    case: Case, image: np.ndarray, findings: list[Finding]
) -> tuple[tuple[Intensity, ...], str | None]:
    """Intensities by channel and the hash of the pixels (none for constant images: those are all alike)."""
    name = short_name(case.images[0])
    bad = image.size - int(np.isfinite(image).sum())
    if bad:
        findings.append(_nonfinite(case, name, bad, image.size))
    intensity = tuple(_intensity(channel) for channel in image)
    for number, one in enumerate(intensity):
        if one.minimum == one.maximum:
            channel = f"channel {number} " if len(intensity) > 1 else "the image "
            text = f"{channel}is constant ({one.minimum:g} everywhere)"
            remedy = "it carries no information; is it the right file?"
            findings.append(Finding(case.id, "warning", 11, text, remedy, name))
    if all(one.minimum == one.maximum for one in intensity):
        return intensity, None
    return intensity, _digest(image)


def _digest(array: np.ndarray) -> str:
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _nonfinite(case: Case, name: str | None, bad: int, size: int) -> Finding:
    share = bad / size
    text = f"{bad} of {size} voxels are NaN or Inf ({100 * share:.2g} %)"
    if share > NONFINITE_SHARE:
        return Finding(case.id, "error", 10, text, _NONFINITE_REMEDY, name, "replace_nonfinite")
    return Finding(
        case.id, "warning", 10, f"{text}: replaced by the background value", None, name, "replace_nonfinite"
    )


def _intensity(channel: np.ndarray) -> Intensity:
    values = channel.ravel()
    finite = np.isfinite(values)
    if not finite.all():
        values = values[finite]
    if not values.size:
        return Intensity(*[0.0] * 6)
    low, high = np.percentile(values[:: max(1, values.size // _SAMPLE)], (0.5, 99.5))
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return Intensity(float(values.min()), float(low), mean, std, float(high), float(values.max()))


def _compare(case: Case, path: Path, image: Geometry, label: Geometry, limits: _Limits) -> list[Finding]:
    """Rows 12 and 13: do the label's voxels lie where the image's do?"""
    name = short_name(path)
    if image.shape != label.shape:
        text = f"label shape {label.shape}, image shape {image.shape}"
        if same_space(image, label):
            return [
                Finding(
                    case.id,
                    "error",
                    12,
                    f"{text}, but both fill the same box in space",
                    "`maskmend check --fix OUT` resamples the label into a copy",
                    name,
                    "resample",
                )
            ]
        return [Finding(case.id, "error", 12, text, shape_hint(image.shape, label.shape), name)]
    error = 0.0 if limits.by_voxels else apart_mm(image, label)
    if not error:
        return []
    text = f"label and image lie {error:.3g} mm apart at the corners (spacing, origin or direction differ)"
    if lost_header(image, label):
        remedy = "it seems to have lost its header: copy the image's affine into it, or set data.spacing_mm="
        return [Finding(case.id, "error", 13, f"{text}; the label's header is a bare default", remedy, name)]
    remedy = "`maskmend check --fix OUT` resamples the label onto the image's grid in a copy"
    return [Finding(case.id, "error", 13, text, remedy, name, "resample")]
