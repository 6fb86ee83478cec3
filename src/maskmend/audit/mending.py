"""Masks drawn wider or tighter to where the images explain them, and what the images say of a model's suggestion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from maskmend.appearance import extended, moved_labels, signed_distance
from maskmend.audit.estimate import joint_dice
from maskmend.audit.look import Look, read_mask
from maskmend.audit.outlines import ImageWitness, Scaled, scaled
from maskmend.audit.selfcheck import counts, mean_dice
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.images import label_suffix, read_case, write_label
from maskmend.errors import UsageError

BELIEVED = 0.5  # P(the outline follows the convention) from which on it is the images' own
SAME = 0.5
KEPT = "the images explain the given outline better than the model's, so it was kept"


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


def advised(
    look: Look, suggested: np.ndarray, image: np.ndarray, witness: ImageWitness
) -> tuple[np.ndarray, str]:
    """What the images say of a suggestion that rests on a model: the mask (*B) to suggest, and a remark on it.

    - An outline that the images believe is not exchanged for one that they explain worse. They see outlines only:
      where a class is missing, or drawn as another, they are not asked.
    - An outline that they disbelieve is drawn wider or tighter instead, as `mended` does, if that is explained better
      than the suggestion and brings the mask nearer to the model: two witnesses who do not know of one another.

    Measured on assorted flaws of hippocampus slices and of HC18, two seeds each; see docs/results/audit.

    Args:
        look: of the case.
        suggested: (*B) class indices.
        image: (C, *S), any numbers.
        witness: what the images say of all masks.
    """
    if witness.mender is None or look.case not in witness.numbers:
        return suggested, ""
    valid = None if look.valid is None else look.whole(look.valid, fill=True)

    def outlined(label: np.ndarray) -> Outlined:
        return Outlined(image, look.whole(label), valid, look.spacing_mm, witness, look.case)

    given = outlined(look.label)
    if witness.convention[look.case] >= BELIEVED:
        if (
            not _of_the_outline(look.label, suggested, look.classes)
            or outlined(suggested).unexplained <= given.unexplained
        ):
            return suggested, ""
        return look.label.copy(), KEPT
    found = given.mended()
    if found is None:
        return suggested, ""
    moved, outwards = found[0][look.box].astype(np.uint8), found[1]
    if look.valid is not None:
        moved = np.where(look.valid, moved, look.label)
    model = look.probs.argmax(axis=0)
    before, after = (mean_dice(joint_dice(counts(one, model, look.classes))) for one in (look.label, moved))
    if after <= before or outlined(moved).unexplained >= outlined(suggested).unexplained:
        return suggested, ""
    way = "wider" if outwards > 0 else "tighter"
    return moved, f"suggested is the given outline {abs(outwards):.1f} mm {way}, where the images explain it"


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


def _of_the_outline(given: np.ndarray, suggested: np.ndarray, classes: int) -> bool:
    """Whether two masks differ by the outline of the foreground, and not by what is drawn or as what."""
    changed = int((given != suggested).sum())
    outside = int(((given > 0) != (suggested > 0)).sum())
    return outside > SAME * changed and float(np.nanmin(joint_dice(counts(given, suggested, classes)))) > SAME
