"""Which images to predict, and whether they fit the run, decided from headers before any heavy work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from maskmend import pseudonyms
from maskmend.data.case import Case
from maskmend.data.dataset import find_cases, hidden
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
    if path.is_file() and suffix_of(path):
        if hide := pseudonyms.active():
            hide.know_place(path.parent)
        return hidden([_one_file(path, plan.in_channels)])
    names = [channel.name for channel in plan.channels]
    dataset = find_cases(path, channels=names, need_labels=False)
    cases = sorted(dataset.test or dataset.cases, key=lambda case: case.id)
    for case in cases:
        if Path(case.id).name != case.id or case.id.startswith("."):
            raise DataError(f"the case id {case.id!r} cannot be a file name", path)
    return cases


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


def _one_file(path: Path, channels: int) -> Case:
    """`a_0000.png` stands for all channel files of `a` beside it."""
    match = _CHANNEL.fullmatch(stem_of(path))
    if not match or int(match[2]) >= channels:
        return Case(stem_of(path), (path,))
    suffix = path.name[len(stem_of(path)) :]
    files = tuple(path.with_name(f"{match[1]}_{number:04d}{suffix}") for number in range(channels))
    if missing := [file.name for file in files if not file.exists()]:
        raise DataError(f"the channel file {missing[0]} is missing", match[1], f"the run takes {channels}")
    return Case(match[1], files)
