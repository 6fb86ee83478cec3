"""Whether probabilities lie in space where the masks do: what headers say of it, and what agrees with the masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from typing import Any, NamedTuple

import numpy as np

from maskmend.audit.channels import MOST_VOXELS
from maskmend.data.case import Geometry
from maskmend.data.geometry_check import apart_mm, bare

LEAST_AGREED = 0.5  # mean Dice of what lies in another way than it was taken for
GAINED = 0.05  # by which that is more than as it lies
NEARLY_ALL = 0.9  # cases that must gain: wrong masks are the few
FEWEST = 5  # cases; fewer may all be wrong

Axes = tuple[int, ...]
RAS = np.array([[0, 1], [1, 1], [2, 1]])  # nibabel's words for axes (x, y, z) to the right, front and top


class OtherWay(NamedTuple):
    """How probabilities seem to lie.

    Args:
        mirrored: along which axes, as indices of (*S).
        given, agreed: mean Dice with the masks as they were taken, and so.
    """

    mirrored: Axes
    given: float
    agreed: float


def laid(array: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray | None:
    """Probabilities (K, *S) on the target's grid, which must be their own but for order and direction of the axes.

    A header that says nothing is not believed: the voxels are then taken one by one.

    Returns:
        (K, *S), perhaps a view; None where the two grids are different places.
    """
    unknown = source.affine is None or target.affine is None or bare(source.affine)
    if source.shape == target.shape and (unknown or not apart_mm(source, target)):
        return array
    if unknown or source.ndim != 3 or target.ndim != 3:
        return None
    assert source.affine is not None
    assert target.affine is not None
    turn = _turn(_axes(source.affine), _axes(target.affine))
    turned = _turned(array, turn)
    moved = Geometry(
        turned.shape[1:], target.spacing_mm, source.affine @ _nibabel().inv_ornt_aff(turn, source.shape[::-1])
    )
    return turned if moved.shape == target.shape and not apart_mm(moved, target) else None


def runs_ras(affine: np.ndarray) -> bool:
    """Whether the axes (x, y, z) of a volume run to the right, front and top, as far as they do at all."""
    return bool((_axes(affine) == RAS).all())


def from_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A view of (K, *S) that was turned to run RAS, with the axes of a volume that has this affine."""
    return _turned(array, _turn(RAS, _axes(affine)))


def overlaps(seen: np.ndarray, drawn: np.ndarray) -> dict[Axes, float]:
    """Dice of what is seen (*S) with a mask (*S), for all axes along which the former may have to be mirrored."""
    places = np.argwhere(drawn)
    count = len(places)
    places = places[:: max(1, count // MOST_VOXELS) | 1]
    ends, total = np.array(drawn.shape) - 1, float(seen.sum()) + count
    axes = range(drawn.ndim)
    found = {}
    for flipped in chain.from_iterable(combinations(axes, number) for number in range(drawn.ndim + 1)):
        there = places.copy()
        there[:, flipped] = ends[list(flipped)] - there[:, flipped]
        common = count * float(seen[tuple(there.T)].mean()) if count else 0.0
        found[flipped] = 2 * common / total if total else 0.0
    return found


def other_way(found: Sequence[Mapping[Axes, float]]) -> OtherWay | None:
    """Along which axes what is seen must be mirrored to agree with nearly all masks far better; None: along none.

    Args:
        found: `overlaps` of cases.
    """
    if not found:
        return None
    as_it_lies = np.array([one[()] for one in found])
    best, mirrored = max((float(np.mean([one[axes] for one in found])), axes) for axes in found[0])
    so = np.array([one[mirrored] for one in found])
    return OtherWay(mirrored, float(as_it_lies.mean()), best) if better(as_it_lies, so) else None


def better(as_it_lies: np.ndarray, so: np.ndarray) -> bool:
    """Whether nearly all cases agree better so, by Dice, and well."""
    if len(so) < FEWEST:
        return False
    return (
        float(so.mean()) >= LEAST_AGREED
        and float((so - as_it_lies).mean()) > GAINED
        and float((so > as_it_lies).mean()) >= NEARLY_ALL
    )


def _axes(affine: np.ndarray) -> np.ndarray:
    return np.asarray(_nibabel().io_orientation(affine))


def _turn(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.asarray(_nibabel().ornt_transform(source, target))


def _turned(array: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(K, z, y, x): nibabel's orders are of (x, y, z)."""
    return np.asarray(_nibabel().apply_orientation(array.T, turn)).T


def _nibabel() -> Any:
    """What it knows of orientations; untyped."""
    from nibabel import orientations

    return orientations
