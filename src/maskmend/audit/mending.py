"""Masks drawn wider, tighter or mirrored to where the images explain them: no model of the object, no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from maskmend.appearance import extended, moved_labels, signed_distance
from maskmend.audit.looks import read_mask
from maskmend.audit.outlines import ImageWitness, Scaled, scaled
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.images import label_suffix, read_case, write_label
from maskmend.errors import UsageError

SYMMETRIC = 0.7  # share that a mask has in common with its mirror image, above which it is nearly symmetric
AS_WELL = 0.2  # of what believed outlines are explained by, that a symmetric one may lack; see docs/audit.md


def free_folder(folder: Path) -> Path:
    """The folder, if masks can go there without replacing anything.

    Raises:
        UsageError: something is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("is there already, and masks are not replaced", folder, "name a new folder")
    return folder


@dataclass(frozen=True)
class Mended:
    """A mask where its image explains it.

    Args:
        values: as file values (*S).
        geometry: of the given mask.
        outwards: how far the outline went outwards, in mm (pixels where no spacing is known); 0 if it is mirrored.
        mirrored: how sure it is that the given mask is mirrored, in [0, 1]; 0: it is not.
    """

    values: np.ndarray
    geometry: Geometry
    outwards: float = 0.0
    mirrored: float = 0.0

    def write(self, case: Case, folder: Path) -> None:
        """As CASE with the suffix of the given mask."""
        assert case.label is not None
        write_label(folder / f"{case.id}{label_suffix(case.label)}", self.values, self.geometry)


def mended(
    case: Case, dataset: Dataset, witness: ImageWitness, *, max_voxels: int, move: bool = True
) -> Mended | None:
    """What the image makes of one suspected mask; None where it knows none better.

    Args:
        case: with a mask.
        dataset: names classes, ignore value and spacing.
        witness: what the images say of all masks.
        max_voxels: larger images are refused, as `data.max_voxels`.
        move: whether to look wider and tighter too, or only for a mirrored mask.
    """
    if not witness.knows(case.id):
        return None
    values, geometry, label, valid = read_mask(case, dataset)
    image = read_case(case, dataset, max_voxels=max_voxels)[0]
    given = Outlined(image, label, valid, dataset.spacing_mm or geometry.spacing_mm, witness, case.id)
    known = np.ones(label.shape, bool) if valid is None else valid
    table = np.array(list(dataset.labels.values()), values.dtype)
    if (flipped := given.mirrored()) is not None:
        return Mended(np.where(known, table[flipped[0]], values), geometry, mirrored=flipped[1])
    if move and (found := given.mended()) is not None:
        return Mended(np.where(known, table[found[0]], values), geometry, outwards=found[1])
    return None


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

    @cached_property
    def _part(self) -> Scaled:
        return scaled(self.image, self.label, self.spacing_mm, self.valid)

    @cached_property
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

    def mirrored(self) -> tuple[np.ndarray, float] | None:
        """The label mirrored along an axis, if the images explain it clearly better so (*S), and how sure, in [0, 1].

        As sure as the mirrored outline explains what the given one leaves unexplained, beyond what is usual. A mask
        that nearly is its own mirror image gains by chance too, so the other must be explained about as well as
        believed ones are. Where a part of the label is not known it cannot be mirrored.
        """
        assert self.witness.mender is not None
        if self.valid is not None and not self.valid.all():
            return None
        others = [replace(self, label=np.flip(self.label, axis).copy()) for axis in range(self.label.ndim)]
        given, found = self.unexplained, [other.unexplained for other in others]
        best = int(np.argmin(found))
        if not self.witness.mender.prefers(found[best], given):
            return None
        usual = float(self.witness.mender.plausible[1])
        both = np.count_nonzero((others[best].label > 0) & (self.label > 0))
        symmetric = both > SYMMETRIC * np.count_nonzero(self.label)
        if symmetric and found[best] > usual + AS_WELL * (1 - usual):
            return None
        return others[best].label, float(np.clip((given - found[best]) / max(given - usual, 1e-6), 0, 1))
