"""Which files of a folder belong to which case."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from maskmend import pseudonyms
from maskmend.data.dicom import is_series
from maskmend.data.formats import stem_of, suffix_of
from maskmend.errors import DataError

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def image_files(folder: Path, *, series: bool = False) -> dict[str, Path]:
    """Stem to file for the images directly in a folder; hidden and foreign files are passed over.

    Args:
        series: count subfolders with DICOM files as images.

    Raises:
        DataError: two files of one stem, such as a.png and a.jpg.
    """
    found: dict[str, Path] = {}
    names = pseudonyms.active()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not _is_image(path, series):
            continue
        stem = stem_of(path)
        if names:
            names.know([_CHANNEL.sub(r"\1", stem), stem])
        if stem in found:
            fact = f"two files for one case: {found[stem].name} and {path.name}"
            raise DataError(fact, folder, "keep one of them")
        found[stem] = path
    return found


def _is_image(path: Path, series: bool) -> bool:
    if path.is_dir():
        return series and is_series(path)
    return bool(suffix_of(path))


def by_channel(
    files: Mapping[str, Path], labelled: Collection[str], channels: int | None, where: Path
) -> dict[str, tuple[Path, ...]]:
    """Case id to its channel files: `a_0000.png` and `a_0001.png` are the two channels of the case `a`.

    A number at the end is a channel only where labels carry the name without it, or, without labels, where
    every file has one and all cases have the same numbers from 0 on.

    Args:
        files: stem to file.
        labelled: stems of the label files, which are case ids.
        channels: the known number of channels.

    Raises:
        DataError: a channel of a case is missing.
    """
    matches = {stem: _CHANNEL.fullmatch(stem) for stem in files}
    groups: dict[str, dict[int, Path]] = {}
    for stem, match in matches.items():
        if match:
            groups.setdefault(match[1], {})[int(match[2])] = files[stem]
    if labelled:
        numbered = sum(base in labelled for base in groups) > sum(stem in labelled for stem in files)
    else:
        numbered = all(matches.values()) and _uniform(groups, channels)
    if not numbered:
        return {stem: (path,) for stem, path in files.items()}
    count = channels or max(max(group) for group in groups.values()) + 1
    cases = {base: _complete(base, group, count, where) for base, group in groups.items()}
    return cases | {stem: (files[stem],) for stem, match in matches.items() if not match}


def _uniform(groups: Mapping[str, Mapping[int, Path]], channels: int | None) -> bool:
    counts = {tuple(sorted(group)) for group in groups.values()}
    if len(counts) != 1:
        return bool(channels and channels > 1 and all(max(group) < channels for group in groups.values()))
    numbers = counts.pop()
    return numbers == tuple(range(len(numbers))) and (channels is None or len(numbers) == channels)


def _complete(base: str, group: Mapping[int, Path], count: int, where: Path) -> tuple[Path, ...]:
    missing = [f"{base}_{number:04d}" for number in range(count) if number not in group]
    if missing:
        suffix = suffix_of(next(iter(group.values())))
        fact = (
            f"the channel file {missing[0]}{suffix} is missing ({len(group)} of {count} channels are there)"
        )
        raise DataError(fact, where / base)
    return tuple(group[number] for number in range(count))
