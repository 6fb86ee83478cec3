"""Masks drawn wider or tighter to where the images explain them: no model of the object, no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskmend.appearance import extended, moved_labels, signed_distance
from maskmend.audit.look import read_mask
from maskmend.audit.outlines import ImageWitness, Scaled, scaled
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.images import label_suffix, read_case, write_label
from maskmend.errors import UsageError


def free_folder(folder: Path) -> Path:
    """The folder, if masks can go there without replacing anything.

    Raises:
        UsageError: something is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("is there already, and masks are not replaced", folder, "name a new folder")
    return folder


def mend_masks(
    cases: Sequence[Case],
    dataset: Dataset,
    witness: ImageWitness,
    folder: Path,
    *,
    max_voxels: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Write the mended masks that the images ask for, one case in memory at a time.

    Args:
        cases: with masks that are suspected.
        dataset: names classes, ignore value and spacing.
        witness: what the images say of all masks.
        folder: gets CASE with the suffix, the values and the grid of the given mask.
        max_voxels: larger images are refused, as `data.max_voxels`.
        progress: called after each case.

    Returns:
        By case that was mended, how far its outline went outwards, in mm (pixels where no spacing is known).
    """
    moved = {}
    for case in cases:
        found = mended(case, dataset, witness, max_voxels)
        if found is not None:
            values, geometry, outwards = found
            assert case.label is not None
            write_label(folder / f"{case.id}{label_suffix(case.label)}", values, geometry)
            moved[case.id] = round(outwards, 3)
        progress()
    return moved


def mended(
    case: Case, dataset: Dataset, witness: ImageWitness, max_voxels: int
) -> tuple[np.ndarray, Geometry, float] | None:
    """One mask: its values (*S), its geometry and how far outwards it went in mm; None where the image is content."""
    if witness.mender is None or case.id not in witness.numbers:
        return None
    values, geometry, label, valid = read_mask(case, dataset)
    image = read_case(case, dataset, max_voxels=max_voxels)[0]
    given = Outlined(image, label, valid, dataset.spacing_mm or geometry.spacing_mm, witness, case.id)
    found = given.mended()
    if found is None:
        return None
    moved, outwards = found
    known = np.ones(label.shape, bool) if valid is None else valid
    table = np.array(list(dataset.labels.values()), values.dtype)
    return np.where(known, table[moved], values), geometry, outwards


@dataclass(frozen=True)
class Outlined:
    """A mask on its image, before the witness.

    Args:
        image: (C, *S), any numbers.
        label: (*S) class indices.
        valid: (*S) bool, False where the label is not known; None: known everywhere.
        spacing_mm: voxel size in the order of the axes.
        witness: with a mender.
        case: id, known to the witness.
    """

    image: np.ndarray
    label: np.ndarray
    valid: np.ndarray | None
    spacing_mm: Sequence[float]
    witness: ImageWitness
    case: str

    @property
    def _part(self) -> Scaled:
        return scaled(self.image, self.label, self.spacing_mm, self.valid)

    @property
    def unexplained(self) -> float:
        """Share of the outline that the looks of others leave unexplained; infinite without an outline."""
        assert self.witness.mender is not None
        part, number = self._part, self.witness.numbers[self.case]
        return self.witness.mender.unexplained(part.image, part.drawn, part.known, number)

    def mended(self) -> tuple[np.ndarray, float] | None:
        """The label moved to where the images explain it (*S), and how far outwards in mm; None: it stays."""
        assert self.witness.mender is not None
        part, number = self._part, self.witness.numbers[self.case]
        found = self.witness.mender.offset(part.image, part.drawn, part.known, number)
        if found is None:
            return None
        inwards = found[0] * part.voxel_mm
        label = self.label if self.valid is None else extended(self.label, self.valid)
        distance = signed_distance(label > 0, self.spacing_mm)
        return moved_labels(label, distance, inwards, self.spacing_mm), -inwards
