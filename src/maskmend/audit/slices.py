"""Volumes drawn slice by slice: gaps, slices that do not fit, repeated slices, ends that come too soon."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from maskmend.audit.record import StructureFinding
from maskmend.boxes import bounding_box

LEAST_PIXELS = 12  # in a slice
LONGEST_GAP = 4
CONTINUED = 0.3
"""Dice of the slices on both sides from which a gap between them is one object's, not two objects'."""

ODD_BY = 0.08
"""By how much two neighbours may agree better with one another than with the slice between them."""

REPEATED_SHARE = 0.15
LEAST_REPEATED = 4  # the middle of a small ball repeats by symmetry
BLUNT = 0.6
"""Area of the last slice over the largest, from which a structure ends too suddenly."""

LEAST_SLICES = 8


def slice_faults(mask: np.ndarray, unknown: np.ndarray, name: str) -> list[StructureFinding]:
    """Gaps, odd and repeated slices along the axis where there are most of each.

    Args:
        mask: (D, H, W) bool, not empty.
        unknown: (D, H, W) bool, not annotated: slices are compared where both are known.
        name: of the class.
    """
    box = bounding_box(mask)
    found: dict[str, tuple[int, StructureFinding]] = {}
    for axis in range(3):
        stack, hidden = (np.moveaxis(one[box], axis, 0) for one in (mask, unknown))
        start, corner = box[axis].start, tuple(s.start for s in box)
        for check, at, places, severity in _faults(stack, hidden):
            if check in found and found[check][0] >= len(places):
                continue
            shown = ", ".join(str(start + k) for k in places[:8]) + (", ..." if len(places) > 8 else "")
            text = f"{len(places)} {_WORDS[check][len(places) > 1]} along axis {axis}: {shown}"
            inner = np.insert(np.asarray(at[1:]), axis, at[0])
            centre = tuple(int(a + b) for a, b in zip(inner, corner, strict=True))
            found[check] = (len(places), StructureFinding(check, name, text, severity, centre))
    return [finding for _, finding in found.values()]


_WORDS = {
    "gap between slices": ("slice is empty between drawn ones", "slices are empty between drawn ones"),
    "odd slice": ("slice differs from both neighbours", "slices differ from both neighbours"),
    "repeated slices": ("slice repeats its neighbour", "slices repeat their neighbours"),
}

_Fault = tuple[str, tuple[int, int, int], list[int], float]


def _faults(stack: np.ndarray, hidden: np.ndarray) -> list[_Fault]:
    """(check, (slice, row, column) of where to look, slices, severity) for sections (N, H, W) of one axis."""

    def alike(one: int, other: int) -> float:
        return _dice(stack[one] & ~hidden[other], stack[other] & ~hidden[one])

    areas = np.count_nonzero(stack, axis=(1, 2))
    found: list[_Fault] = []
    gaps = _gaps(stack, hidden, areas)
    if gaps:
        found.append(("gap between slices", (gaps[0], *_middle(stack[gaps[0] - 1])), gaps, 0.9))
    between = [alike(k, k + 1) for k in range(len(stack) - 1)]
    odd = [k for k in range(1, len(stack) - 1) if min(areas[k - 1 : k + 2]) >= LEAST_PIXELS
           and alike(k - 1, k + 1) - max(between[k - 1], between[k]) > ODD_BY]  # fmt: skip
    if odd:
        found.append(("odd slice", (odd[0], *_middle(stack[odd[0]])), odd, min(0.9, 0.5 + 0.1 * len(odd))))
    same = [k + 1 for k in range(len(stack) - 1) if areas[k] >= LEAST_PIXELS and between[k] == 1]
    if len(same) >= max(LEAST_REPEATED, REPEATED_SHARE * len(stack)):
        found.append(("repeated slices", (same[0], *_middle(stack[same[0]])), same, 0.6))
    return found


def _gaps(stack: np.ndarray, hidden: np.ndarray, areas: np.ndarray) -> list[int]:
    """Empty slices between two that are one object; all of a longer gap, if annotated."""
    drawn = np.flatnonzero(areas)
    found: list[int] = []
    for below, above in itertools.pairwise(drawn):
        if 1 < above - below <= LONGEST_GAP + 1 and _dice(stack[below], stack[above]) >= CONTINUED:
            object_there = stack[below] & stack[above]
            found += [k for k in range(int(below) + 1, int(above)) if not (object_there & hidden[k]).any()]
    return found


def blunt_ends(
    foreground: np.ndarray, spacing_mm: Sequence[float], unknown: np.ndarray
) -> list[StructureFinding]:
    """A structure whose last slice is nearly as large as its largest: the slice range ends too soon.

    Args:
        foreground: (D, H, W) bool, all classes, so that classes side by side do not end one another.
        spacing_mm: voxel size; an axis with thick slices has blunt ends by nature and is passed over.
        unknown: (D, H, W) bool, not annotated: where such voxels follow, nobody says that the structure ends.
    """
    if not foreground.any():
        return []
    found, drawn = [], bounding_box(foreground)
    for axis in range(3):
        areas = np.count_nonzero(foreground, axis=tuple(a for a in range(3) if a != axis))
        used = drawn[axis]
        if used.stop - used.start < LEAST_SLICES or spacing_mm[axis] > 2 * min(spacing_mm):
            continue
        for last, border, step in ((used.start, 0, -1), (used.stop - 1, foreground.shape[axis] - 1, 1)):
            share, section = areas[last] / areas.max(), np.take(foreground, last, axis)
            if share > BLUNT and last != border and not (section & np.take(unknown, last + step, axis)).any():
                middle = _middle(section)
                centre = tuple(int(i) for i in np.insert(np.asarray(middle), axis, last))
                text = f"ends along axis {axis} at slice {last} with {100 * share:.0f} % of its largest area"
                found.append(StructureFinding("blunt end", "", text, 0.4, centre))
    return found


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else 0.0


def _middle(section: np.ndarray) -> tuple[int, int]:
    at = np.argwhere(section)
    row, column = at[np.square(at - at.mean(0)).sum(1).argmin()]
    return int(row), int(column)
