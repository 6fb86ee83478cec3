"""Distances between the surfaces of two masks: one extraction and one search serve every surface metric.

The surface of a mask is the set of its voxels with a face neighbour outside the mask; what lies beyond the
image counts as outside. This is MONAI's voxel definition, so figures compare with those of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskmend.boxes import bounding_box

LEAF = 32
"""Points per leaf of the search tree: larger than SciPy's 16, because each tree answers a single call."""


@dataclass(frozen=True)
class SurfaceDistances:
    """How far each surface voxel of one mask is from the nearest surface voxel of the other.

    Args:
        pred_to_ref: (P,) float64 millimetres, one per surface voxel of the prediction.
        ref_to_pred: (R,) float64 millimetres, one per surface voxel of the reference.

    Where only one mask has a surface its distances are infinite; where neither has, both arrays are empty.
    """

    pred_to_ref: np.ndarray
    ref_to_pred: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """(P + R,) the distances of both surfaces, which the symmetric metrics are taken over."""
        return np.concatenate([self.pred_to_ref, self.ref_to_pred])

    def hausdorff(self, percentile: float = 95) -> float:
        """The larger of the two directed percentiles, in mm; inf with one surface, NaN with none."""
        if not len(self.pred_to_ref) or not len(self.ref_to_pred):
            return float("inf") if len(self.both) else float("nan")
        return max(_percentile(d, percentile) for d in (self.pred_to_ref, self.ref_to_pred))

    def average(self) -> float:
        """The average symmetric surface distance in mm; inf with one surface, NaN with none."""
        return float(self.both.mean()) if len(self.both) else float("nan")

    def surface_dice(self, tolerance_mm: float) -> float:
        """The share of all surface voxels within `tolerance_mm` of the other surface (NSD); NaN with none.

        Compared in single precision, so that three voxels of 0.1 mm lie within 0.3 mm.
        """
        both = self.both.astype(np.float32)
        return float((both <= np.float32(tolerance_mm)).mean()) if len(both) else float("nan")


def surface_distances(
    pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[float], *, valid: np.ndarray | None = None
) -> SurfaceDistances:
    """Measure both masks' surface distances, exactly.

    Args:
        pred: (*S) bool, 2-D or 3-D.
        ref: (*S) bool.
        spacing_mm: voxel size in the order of the axes; may differ between axes.
        valid: (*S) bool, False where the truth is unknown; those voxels count for nothing, and a face towards
            one is no surface, since nobody knows whether the object ends there. None: all is known.
    """
    if valid is not None:
        pred, ref = pred & valid, ref & valid
    box = bounding_box(pred | ref, 1)  # neighbours decide surfaces
    known = None if valid is None else valid[box]
    return _distances(surface(pred[box], known), surface(ref[box], known), np.asarray(spacing_mm, np.float64))


def surface(mask: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """(*S) bool: the voxels of a mask with a face neighbour that is (known to be) outside it.

    Args:
        mask: (*S) bool, False wherever `valid` is.
        valid: as in `surface_distances`.
    """
    solid = np.pad(mask if valid is None else mask | ~valid, 1)
    interior = mask.copy()
    for axis in range(mask.ndim):
        for start in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(start, start + mask.shape[axis])
            interior &= solid[tuple(window)]
    edge: np.ndarray = mask & ~interior
    return edge


def _percentile(values: np.ndarray, percentile: float) -> float:
    """The interpolated percentile, its rank in single precision as `torch.quantile` (so MONAI) takes it.

    The exact rank would differ from MONAI's figure by up to 1e-5 of it, which is nothing but not equal.
    """
    rank = float(np.float32(percentile / 100) * np.float32(len(values) - 1))
    below = min(int(rank), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    ordered = np.partition(values, (below, above))
    return float(ordered[below] + (rank - below) * (ordered[above] - ordered[below]))


def _distances(pred: np.ndarray, ref: np.ndarray, spacing_mm: np.ndarray) -> SurfaceDistances:
    at_pred, at_ref = np.flatnonzero(pred), np.flatnonzero(ref)
    if not len(at_pred) or not len(at_ref):
        return SurfaceDistances(np.full(len(at_pred), np.inf), np.full(len(at_ref), np.inf))
    to_ref, to_pred = np.zeros(len(at_pred)), np.zeros(len(at_ref))
    # A voxel on both surfaces is at distance 0, and a good prediction shares most: only the rest is searched.
    off_ref, off_pred = ~ref.ravel()[at_pred], ~pred.ravel()[at_ref]
    points_pred, points_ref = (_points(at, pred.shape, spacing_mm) for at in (at_pred, at_ref))
    to_ref[off_ref] = _nearest(points_pred[off_ref], points_ref)
    to_pred[off_pred] = _nearest(points_ref[off_pred], points_pred)
    return SurfaceDistances(to_ref, to_pred)


def _points(flat: np.ndarray, shape: tuple[int, ...], spacing_mm: np.ndarray) -> np.ndarray:
    points: np.ndarray = np.stack(np.unravel_index(flat, shape), axis=1) * spacing_mm
    return points


def _nearest(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) distance of each point to its nearest target.

    A tree over surface points beats a distance transform of the volume even where its pruning is poor
    (concentric spheres, slabs apart): time and memory follow the surface rather than the volume.
    """
    from scipy.spatial import cKDTree

    if not len(points):
        return np.empty(0)
    return np.asarray(cKDTree(targets, leafsize=LEAF, balanced_tree=False).query(points)[0])
