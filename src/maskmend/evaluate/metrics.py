"""How well one predicted label agrees with its reference, class by class.

Empty masks, one policy for every metric:

- Neither mask has the class: all metrics are NaN, left out of means and counted as `absent`. A reward of 1
  would let classes that are seldom there lift the mean.
- Only the reference has it (`missed`) or only the prediction (`spurious`): Dice, IoU and surface Dice are 0;
  HD95 and ASD are the image's diagonal in mm, the worst that could be. Leaving such cases out would
  reward a model for predicting nothing. (The same where ignored voxels hide the whole surface of one.)
- Relative volume difference is NaN without a reference volume, since there is nothing to relate it to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskmend.errors import UsageError
from maskmend.evaluate.surface import surface_distances

METRICS = (
    "dice",
    "iou",
    "hd95_mm",
    "asd_mm",
    "surface_dice",
    "volume_difference",
    "volume_difference_relative",
)
"""The figures of one class in one case, in the order of tables."""


@dataclass(frozen=True)
class ClassMetrics:
    """One class in one case.

    Args:
        dice: 2|P and R| / (|P| + |R|), in [0, 1].
        iou: |P and R| / |P or R|, in [0, 1].
        hd95_mm: 95th percentile Hausdorff distance: the larger of both directions.
        asd_mm: average symmetric surface distance.
        surface_dice: share of both surfaces within the tolerance of the other (NSD), in [0, 1].
        volume_difference: prediction minus reference, in ml for volumes and cm2 for 2-D images.
        volume_difference_relative: the same divided by the reference's; 0.1 is 10 % too large.
        state: "both" masks have the class, "absent", "missed" or "spurious" (see the module's policy).
    """

    dice: float
    iou: float
    hd95_mm: float
    asd_mm: float
    surface_dice: float
    volume_difference: float
    volume_difference_relative: float
    state: str


_NAN = float("nan")
ABSENT = ClassMetrics(_NAN, _NAN, _NAN, _NAN, _NAN, _NAN, _NAN, "absent")
"""What a class scores that neither mask has."""


def case_metrics(
    pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[float], classes: Mapping[str, int], *,
    ignore: int | None = None, ignore_mask: np.ndarray | None = None, tolerance_mm: float = 1.0,
) -> dict[str, ClassMetrics]:  # fmt: skip
    """Score one case.

    Args:
        pred: (*S) integers.
        ref: (*S) integers in the same values.
        spacing_mm: voxel size in the order of the axes.
        classes: name to value of the classes to score, as a rule without background.
        ignore: the value in `ref` of voxels that count neither for nor against.
        ignore_mask: (*S), non-zero at further such voxels.
        tolerance_mm: for the surface Dice.

    Raises:
        UsageError: shapes, spacing or mask do not belong together.
    """
    shapes = [pred.shape, ref.shape] + ([] if ignore_mask is None else [ignore_mask.shape])
    if len(set(shapes)) > 1 or len(spacing_mm) != ref.ndim:
        raise UsageError(f"label shapes {shapes} with {len(spacing_mm)} spacings do not belong together")
    if min(spacing_mm) <= 0 or tolerance_mm < 0:
        raise UsageError(f"spacing {tuple(spacing_mm)} and tolerance {tolerance_mm} must be positive")
    valid = _valid(ref, ignore, ignore_mask)
    return {
        name: mask_metrics(pred == value, ref == value, spacing_mm, valid=valid, tolerance_mm=tolerance_mm)
        for name, value in classes.items()
    }


def mask_metrics(
    pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[float], *,
    valid: np.ndarray | None = None, tolerance_mm: float = 1.0,
) -> ClassMetrics:  # fmt: skip
    """Score one pair of masks: (*S) bool each; `valid` (*S) bool is False at voxels that do not count."""
    if valid is not None:
        pred, ref = pred & valid, ref & valid
    n_pred, n_ref, n_both = (int(np.count_nonzero(mask)) for mask in (pred, ref, pred & ref))
    if not n_pred and not n_ref:
        return ABSENT
    # ml = 1000 mm3, cm2 = 100 mm2
    unit = float(np.prod(spacing_mm)) / (1000 if ref.ndim == 3 else 100)
    distances = surface_distances(pred, ref, spacing_mm, valid=valid)
    worst = float(np.linalg.norm(np.multiply(ref.shape, spacing_mm)))
    return ClassMetrics(
        dice=2 * n_both / (n_pred + n_ref),
        iou=n_both / (n_pred + n_ref - n_both),
        hd95_mm=float(np.minimum(distances.hausdorff(95), worst)),
        asd_mm=float(np.minimum(distances.average(), worst)),
        surface_dice=distances.surface_dice(tolerance_mm),
        volume_difference=(n_pred - n_ref) * unit,
        volume_difference_relative=(n_pred - n_ref) / n_ref if n_ref else float("nan"),
        state="both" if n_pred and n_ref else "missed" if n_ref else "spurious",
    )


def _valid(ref: np.ndarray, ignore: int | None, ignore_mask: np.ndarray | None) -> np.ndarray | None:
    valid = None if ignore is None else ref != ignore
    if ignore_mask is not None:
        valid = ignore_mask == 0 if valid is None else valid & (ignore_mask == 0)
    return None if valid is None or valid.all() else valid
