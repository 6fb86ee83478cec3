"""What is on disk: a case is paths and facts, never pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskmend.errors import DataError


@dataclass(frozen=True)
class Geometry:
    """Where voxels lie in space.

    Arrays are (H, W) or (D, H, W) throughout maskmend: the slowest file axis first, so that `array[0]` of
    a volume is its first slice. A NIfTI array as nibabel gives it, (x, y, z), is transposed when it is read.

    Args:
        shape: spatial shape, (H, W) or (D, H, W).
        affine: (4, 4) voxel (x, y, z) to RAS millimetres, or None when the format knows no space (PNG).
        spacing_mm: voxel size in the order of `shape`; 1.0 for each axis where it is not known.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    affine: np.ndarray | None = field(default=None, compare=False)

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    def corners_mm(self) -> np.ndarray:
        """The outer voxel centres in millimetres, (2^ndim, 3); index space times spacing without an affine."""
        ends = (
            np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(self.ndim, -1).T
        )
        xyz = np.zeros((len(ends), 3))
        xyz[:, : self.ndim] = ends[:, ::-1]
        if self.affine is None:
            spacing = np.ones(3)
            spacing[: self.ndim] = self.spacing_mm[::-1]
            return xyz * spacing
        corners: np.ndarray = xyz @ self.affine[:3, :3].T + self.affine[:3, 3]
        return corners


@dataclass(frozen=True)
class Case:
    """One subject or image: its files, its raters and whether its label is known to be clean.

    Args:
        id: unique in the data set; the stem of its files.
        images: one file for all channels, or one per channel in channel order. A DICOM series is a folder.
        label: the given label, None for a case to predict.
        raters: further labels of the same case by rater name.
        trusted: the label is known to be clean.
        group: patient or subject; cases of one group never fall in two splits. None: the case is its own.
        split: "train" or "test" where the layout says so.
        ignore: a mask file whose non-zero voxels are excluded from learning and scoring.
        site: free text from a CSV column, for tables by site.
        rater: who drew the given label, where that is known.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    raters: Mapping[str, Path] = field(default_factory=dict)
    trusted: bool = False
    group: str | None = None
    split: str = "train"
    ignore: Path | None = None
    site: str | None = None
    rater: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is on disk of it."""
        masks = (self.label, *self.raters.values(), self.ignore)
        return (*self.images, *(mask for mask in masks if mask is not None))


@dataclass(frozen=True)
class Dataset:
    """The cases of one folder and what their label values mean.

    Args:
        root: the folder or manifest as found, absolute.
        layout: "folders", "nnunet", "msd" or "csv".
        cases: sorted by id; training and test cases alike (see `Case.split`).
        labels: class name to file value, background (0) first. Empty until it is known (then `check` infers it).
        channels: channel names, e.g. ("CT",) or ("T1", "T2") or ("R", "G", "B").
        ignore: the file value that means "not annotated", or None.
        spacing_mm: overrides what the files say, array order (D, H, W).
    """

    root: Path
    layout: str
    cases: tuple[Case, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    ignore: int | None = None
    spacing_mm: tuple[float, ...] | None = None

    @property
    def train(self) -> tuple[Case, ...]:
        """The cases of the training split."""
        return tuple(case for case in self.cases if case.split == "train")

    @property
    def test(self) -> tuple[Case, ...]:
        """The cases of the test split."""
        return tuple(case for case in self.cases if case.split == "test")

    def __getitem__(self, case_id: str) -> Case:
        for case in self.cases:
            if case.id == case_id:
                return case
        raise DataError(f"no case {case_id!r}", self.root)
