"""Where the files of an audited case lie, whichever way the record and the data set name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskmend.audit.record import CaseRecord
from maskmend.data.case import Case, Dataset


@dataclass(frozen=True)
class CaseFiles:
    """Absolute paths of one case.

    Args:
        images: one file for all channels or one per channel; empty for masks without an image.
        given, suggested, noise_map: None where not written.
        channels: how many the image has, where the data set says so; without it a file of four axes cannot be read.
        spacing_mm: true voxel size where that of the files is overridden.
    """

    images: tuple[Path, ...]
    given: Path | None = None
    suggested: Path | None = None
    noise_map: Path | None = None
    channels: int | None = None
    spacing_mm: tuple[float, ...] | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file there should be."""
        rest = (self.given, self.suggested, self.noise_map)
        return (*self.images, *(path for path in rest if path is not None))


def case_files(record: CaseRecord, out: Path, dataset: Dataset, cases: Mapping[str, Case]) -> CaseFiles:
    """The files of a record; what it does not name is taken from the data set.

    Args:
        record: of the case.
        out: the audit folder, to which relative paths refer.
        dataset: says how they are read.
        cases: of the data set, by id.
    """

    def placed(name: str | None) -> Path | None:
        return None if name is None else (out / name).absolute()

    case = cases.get(record.case)
    image, label = placed(record.image), placed(record.label)
    several = case is not None and len(case.images) > 1  # a record has room for one channel only
    images = case.images if case and (several or image is None) else (image,) if image else ()
    given = label or (case.label if case else None)
    return CaseFiles(
        tuple(images), given, placed(record.suggested), placed(record.noise_map),
        len(dataset.channels) or None, dataset.spacing_mm,
    )  # fmt: skip


def by_id(dataset: Dataset) -> dict[str, Case]:
    """The cases of a data set by id."""
    return {case.id: case for case in dataset.cases}


@dataclass(frozen=True)
class WorkItem:
    """A case of a work list."""

    record: CaseRecord
    files: CaseFiles

    def label(self) -> np.ndarray | None:
        """What is to be corrected, (*S) file values: the suggested mask, else the given one; None without either."""
        from maskmend.data.images import read_label

        suggested = self.files.suggested
        path = suggested if suggested is not None and suggested.is_file() else self.files.given
        return None if path is None else read_label(path, spacing_mm=self.files.spacing_mm)[0]
