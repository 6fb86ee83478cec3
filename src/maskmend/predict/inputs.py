"""Which images to predict, and whether they fit the run, decided from headers before any heavy work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from maskmend.data.case import Case
from maskmend.data.formats import MAX_VOXELS, Header
from maskmend.data.images import read_header, stem_of, suffix_of
from maskmend.data.plan import Plan
from maskmend.errors import DataError, UsageError

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def find_inputs(path: Path, plan: Plan) -> list[Case]:
    """The cases behind `path`, sorted by id.

    Args:
        path: one image file, a DICOM folder, a folder of images (`a.png`, or `a_0000.nii.gz`, `a_0001.nii.gz`
            with one file per channel), or a data set: its test cases, or all where it has no test split.
        plan: of the run; its number of channels decides how files are grouped.

    Raises:
        UsageError: nothing there. DataError: a channel file is missing, or two files would get one name.
    """
    path = Path(path)
    if not path.exists():
        remedy = "give an image, a folder of images or a data set"
        raise UsageError(f"no such file or folder ({path.absolute()})", path, remedy)
    if path.is_file() and path.suffix.lower() != ".csv":
        cases = _grouped(_with_siblings(path, plan.in_channels), plan.in_channels)
    elif path.is_dir() and _is_dicom(path):
        cases = [Case(path.name, (path,))]
    elif path.is_dir() and (files := _images_in(path)):
        cases = _grouped(files, plan.in_channels)
    elif path.is_dir() and (series := [p for p in sorted(path.iterdir()) if p.is_dir() and _is_dicom(p)]):
        cases = [Case(p.name, (p,)) for p in series]
    else:
        cases = _from_dataset(path, plan)
    _refuse_clashes(cases, path)
    return sorted(cases, key=lambda case: case.id)


def check_fit(cases: Sequence[Case], plan: Plan, *, max_voxels: int = MAX_VOXELS) -> None:
    """Compare every header with what the run was trained on.

    Raises:
        UsageError: dimensions or channels differ; the first case and the number of others are named.
        ResourceError: a header claims too much. A damaged file is left for its own turn.
    """
    wrong = [(case, fact) for case in cases if (fact := _mismatch(case, plan, max_voxels))]
    if wrong:
        case, fact = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        names = ", ".join(channel.name for channel in plan.channels)
        remedy = f"the run takes {plan.ndim}-D images with {plan.in_channels} channel(s): {names}"
        raise UsageError(f"{fact}{more}", case.id, remedy)


def _mismatch(case: Case, plan: Plan, max_voxels: int) -> str | None:
    channels = plan.in_channels if len(case.images) == 1 else None
    try:
        headers: list[Header] = [
            read_header(path, max_voxels=max_voxels, channels=channels, spacing_mm=plan.input_spacing_mm)
            for path in case.images
        ]
    except DataError:
        return None
    ndim, count = len(headers[0].shape), sum(header.channels for header in headers)
    if ndim != plan.ndim:
        return f"the image is {ndim}-D, the run was trained on {plan.ndim}-D images"
    if count != plan.in_channels:
        return f"the image has {count} channel(s), the run was trained on {plan.in_channels}"
    return None


def _images_in(folder: Path) -> list[Path]:
    if (folder / "dataset.json").exists():
        return []
    return sorted(p for p in folder.iterdir() if p.is_file() and suffix_of(p) and not p.name.startswith("."))


def _is_dicom(folder: Path) -> bool:
    from maskmend.data import dicom

    return dicom.is_series(folder)


def _with_siblings(path: Path, channels: int) -> list[Path]:
    match = _CHANNEL.fullmatch(stem_of(path))
    if channels == 1 or not match:
        return [path]
    names = (f"{match[1]}_{n:04d}{path.name[len(stem_of(path)) :]}" for n in range(channels))
    return sorted({path, *(p for name in names if (p := path.with_name(name)).exists())})


def _grouped(files: Sequence[Path], channels: int) -> list[Case]:
    """One case per file, unless every name ends in a channel number that the run has."""
    matches = [_CHANNEL.fullmatch(stem_of(path)) for path in files]
    if not all(match and int(match[2]) < channels for match in matches):
        return [Case(stem_of(path), (path,)) for path in files]
    groups: dict[str, dict[int, Path]] = {}
    for path, match in zip(files, matches, strict=True):
        assert match is not None
        groups.setdefault(match[1], {})[int(match[2])] = path
    for name, found in groups.items():
        if missing := [f"{name}_{n:04d}" for n in range(channels) if n not in found]:
            raise DataError(
                f"channel file {missing[0]} is missing", name, f"the run takes {channels} channels"
            )
    return [Case(name, tuple(found[n] for n in range(channels))) for name, found in groups.items()]


def _from_dataset(path: Path, plan: Plan) -> list[Case]:
    from maskmend.data.dataset import find_cases

    dataset = find_cases(path, channels=[channel.name for channel in plan.channels], need_labels=False)
    return list(dataset.test or dataset.cases)


def _refuse_clashes(cases: Sequence[Case], path: Path) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        if Path(case.id).name != case.id or case.id.startswith("."):
            raise DataError(f"the case id {case.id!r} cannot be a file name", path)
        other = seen.setdefault(case.id.lower(), case)
        if other is not case:
            fact = f"{other.images[0].name} and {case.images[0].name} would get one output file"
            raise DataError(fact, path, "rename one of them")
