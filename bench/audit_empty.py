"""The audit where most masks are empty, as of lesions or in slices: one slice of each hippocampus volume.

    python bench/audit_empty.py train [--seeds 10,11,12,13,14] [--only "empty 0.8"]     # probabilities are kept on disk
    python bench/audit_empty.py score [--seeds ...] [--only ...] [--table ...]
    python bench/audit_empty.py report

Half or four fifths of the 260 slices lie beside the hippocampus. The share of flawed masks changes with the seed as in
`bench/audit.py`: empty masks get the mask of another slice, others what the volumes' slices get there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import audit
import numpy as np
from audit_tables import mean_rows

TABLE = audit.RESULTS / "empty.json"
SHARES = (0.5, 0.8)
ACROSS = 2  # axis of the volumes along which four in ten slices are empty


def scenarios(seeds: Sequence[int]) -> list[tuple[str, audit.Scenario]]:
    """Each with how its name begins: its share of empty slices."""
    audit.DATA["slices"] = replace(
        audit.DATA["hippocampus-2d"], folder="slices", cases=260, gross=("drop", "swap")
    )
    return [
        (f"empty {share:g}", audit.Scenario("slices", "assorted", audit.rate_of(seed), seed))
        for share in SHARES
        for seed in seeds
    ]


def cut(data: Path, folder: Path, start: str, scenario: audit.Scenario) -> None:
    """Write a slice of each volume as a data set, this share of them empty."""
    from PIL import Image

    from maskmend.data.dataset import find_cases
    from maskmend.data.images import read_image, read_label

    rng, share = np.random.default_rng([scenario.seed, 50]), float(start.removeprefix("empty "))
    out = folder / "slices"
    for name in ("images", "labels"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for case in find_cases(data / "msd_hippocampus_3d").cases:
        assert case.label is not None
        volumes = read_label(case.label)[0], read_image(case.images[0])[0][0]
        mask, image = (np.moveaxis(one, ACROSS, 0) for one in volumes)
        there = mask.any(axis=(1, 2))
        chosen = rng.choice(np.flatnonzero(there != (rng.random() < share)))
        grey = np.clip(255 * image[chosen] / np.percentile(image, 99.5), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(out / "images" / f"{case.id}.png")
        Image.fromarray(mask[chosen].astype(np.uint8)).save(out / "labels" / f"{case.id}.png")
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    (out / "maskmend.json").write_text(json.dumps({"labels": labels, "spacing_mm": [1.0, 1.0]}))


def report(table: Path) -> str:
    """Markdown: means over seeds, ± half a 95 % interval."""
    known = json.loads(table.read_text())
    lines = []
    for share in SHARES:
        sets = [rows for name, rows in known.items() if name.startswith(f"empty {share:g}")]
        if not sets:
            continue
        lines += [f"{100 * share:.0f} % empty, {len(sets)} seeds", "", *mean_rows(sets)]
        first = [rows[0] for rows in sets]
        wrong, true = (np.mean([row[key] for row in first]) for key in ("expected_wrong", "true_wrong"))
        lines += ["", f"Expected wrong voxels: {100 * wrong / true:.0f} % of the true number.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    audit.run_made(__doc__, TABLE, scenarios, cut, report)
