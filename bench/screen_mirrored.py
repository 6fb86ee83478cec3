"""Which masks mirrored on purpose `maskmend screen` finds, and which sound ones it calls mirrored.

    python bench/screen_mirrored.py [--data ../shared/data] [--draws 5]

A few masks of a data set are mirrored from left to right, drawn anew for every seed: five among 260 cases of each of
four data sets, and three that are far from symmetric among 80 hippocampus slices.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SETS = ("msd_hippocampus_2d", "hc18_fetal_head_2d", "msd_hippocampus_3d", "bubil_cells_crowd_vs_expert")
AMONG, MIRRORED = 260, 5
FEW, OF_FEW, FAR = 80, 3, 0.4  # Dice to the mirror image below which a mask is far from symmetric


def mirror(label: np.ndarray) -> np.ndarray:
    """From left to right: the last axis of a picture, the first of a volume, which is the slowest of the file."""
    return np.ascontiguousarray(label[::-1] if label.ndim == 3 else label[:, ::-1])


def symmetry(label: np.ndarray) -> float:
    """Dice of the foreground to its mirror image."""
    drawn, other = label > 0, mirror(label) > 0
    return float(2 * (drawn & other).sum() / max(drawn.sum() + other.sum(), 1))


def screened(cases: Sequence[Any], wrong: set[str]) -> str:
    """Mirror the masks of `wrong`, screen all, and say what came out."""
    import maskmend
    from maskmend.data.images import read_label, write_label

    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "images").mkdir()
        for case in cases:
            label, geometry = read_label(case.label)
            write_label(
                Path(place) / "labels" / case.label.name,
                mirror(label) if case.id in wrong else label,
                geometry,
            )
            for image in case.images:
                shutil.copy(image, Path(place) / "images")
        found = {one.case for one in maskmend.screen(place).cases if one.mirrored > 0}
    return (
        f"{len(cases)} masks, {len(wrong)} mirrored: {len(found & wrong)} found, {len(found - wrong)} others"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("MASKMEND_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=(ROOT / default).resolve())
    parser.add_argument("--draws", type=int, default=5)
    given = parser.parse_args()
    from maskmend.data.dataset import find_cases, infer_labels
    from maskmend.data.images import read_label

    for name in SETS:
        cases = [case for case in infer_labels(find_cases(given.data / name)).cases if case.label]
        for seed in range(given.draws):
            drawn = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))[:AMONG]]
            wrong = {case.id for case in drawn[:MIRRORED]}
            print(f"{name}, seed {seed}: {screened(drawn, wrong)}", flush=True)
    cases = list(infer_labels(find_cases(given.data / SETS[0])).cases)
    for seed in range(given.draws):
        drawn = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))[:FEW]]
        far = [case.id for case in drawn if 0 < symmetry(read_label(case.label)[0]) < FAR]
        print(f"{SETS[0]}, seed {seed}: {screened(drawn, set(far[:OF_FEW]))}", flush=True)


if __name__ == "__main__":
    main()
