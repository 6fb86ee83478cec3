"""HD95, ASD and surface Dice of one pair of masks: maskmend beside MONAI, CPU time in one run.

    OMP_NUM_THREADS=1 python bench/surface_metrics.py [--size 128] [--repeats 5]

MONAI is timed as installed and with distance transforms in place of its search trees, as before 1.6.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import monai
import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from monai.metrics import utils as monai_utils
from scipy import ndimage

from maskmend.evaluate.surface import surface_distances

SPACING_MM = (1.5, 1.0, 0.8)
TOLERANCE_MM = 1.0


def ball(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A compact organ of 60 % of the box and a prediction of it that is off by about a voxel."""
    radius = np.sqrt(sum(np.square(axis) for axis in np.ogrid[[slice(-1, 1, size * 1j)] * 3]))
    wobble, error = (_field(size, seed + i, sigma) for i, sigma in ((0, size / 10), (1, size / 25)))
    ref = radius + 0.08 * wobble < 0.6
    return radius + 0.08 * wobble + 0.025 * error < 0.6, ref


def clutter(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Foreground all over the box with as much surface as real anatomy rarely has; Dice about 0.9."""
    field, error = _field(size, seed, size / 10), _field(size, seed + 1, size / 25)
    return field + 0.25 * error > 0.5, field > 0.5


def speck(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A small prediction in the middle of a large hollow reference: the search tree's worst case."""
    radius = np.sqrt(sum(np.square(axis) for axis in np.ogrid[[slice(-1, 1, size * 1j)] * 3]))
    return radius < 0.3, radius < 0.9


def ours(pred: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """The three metrics from one extraction and one search."""
    distances = surface_distances(pred, ref, SPACING_MM)
    return np.array([distances.hausdorff(95), distances.average(), distances.surface_dice(TOLERANCE_MM)])


def theirs(pred: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """The three metrics from MONAI's three functions."""
    y_pred, y = (torch.from_numpy(mask)[None, None].float() for mask in (pred, ref))
    options = {"include_background": True, "spacing": list(SPACING_MM)}
    return np.array(
        [
            float(compute_hausdorff_distance(y_pred, y, percentile=95, **options)),
            float(compute_average_surface_distance(y_pred, y, symmetric=True, **options)),
            float(compute_surface_dice(y_pred, y, class_thresholds=[TOLERANCE_MM], **options)),
        ]
    )


def cpu_seconds(call: Callable[[], np.ndarray], repeats: int) -> tuple[float, np.ndarray]:
    """The median CPU time of a call over all threads of the process, after one call to warm up."""
    result, times = call(), []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times), result


def main() -> None:
    """Print one line per pair and per MONAI variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    has_tree = getattr(monai_utils, "has_scipy_kdtree", False)
    print(f"MONAI {monai.__version__}, {arguments.size}^3 voxels of {SPACING_MM} mm, CPU seconds (median)")
    for make in (ball, clutter, speck):
        pred, ref = make(arguments.size, seed=0)
        mine, own = cpu_seconds(lambda pred=pred, ref=ref: ours(pred, ref), arguments.repeats)
        for tree in (True, False) if has_tree else (False,):
            monai_utils.has_scipy_kdtree = tree
            yours, other = cpu_seconds(lambda pred=pred, ref=ref: theirs(pred, ref), arguments.repeats)
            name = "as installed" if tree == has_tree else "distance transform"
            print(
                f"{make.__name__:8} maskmend {mine:.4f}  MONAI {name:18} {yours:.4f}"
                f"  ratio {yours / mine:5.1f}"
                f"  largest difference {np.abs(own - other).max():.1e} of {own.max():.3g}"
            )
        monai_utils.has_scipy_kdtree = has_tree


def _field(size: int, seed: int, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((size,) * 3)
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap")
    return smooth / smooth.std()


if __name__ == "__main__":
    main()
