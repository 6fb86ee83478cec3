"""What it costs the audit to look at a part of the voxels only, on the probabilities of `bench/audit.py train`.

    python bench/audit_thinned.py [--seeds 10 11 12 13 14] [--cache runs/audit] [--data ../shared/data] [--workers 1]

No image of these sets has so many voxels that the audit leaves some out. So HC18 and the crowd's masks are judged with
a lower limit (and their images), and hippocampus volumes (by the models alone) are enlarged three times along each
axis: probabilities and masks linearly between voxels. Every set is judged with all voxels, then thinned.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import audit
import audit_score
import numpy as np

TABLE = Path(__file__).parents[1] / "docs" / "results" / "audit" / "thinned.json"
NO_LIMIT, LOWER_LIMIT, LIMIT = 10**12, 10_000, 500_000
ENLARGED = 3
COLUMNS = {
    "auroc": "AUROC",
    "subtle_ap": "AP, subtle",
    "dice_correlation": "estimated Dice",
    "fit_seconds": "fit, s",
}


def judged(cache: Path, data: Path, scenario: audit.Scenario) -> list[dict[str, Any]]:
    """A row with all voxels and one thinned; none where the probabilities are missing."""
    from maskmend.audit import look
    from maskmend.audit.folds import PROBS
    from maskmend.audit.store import Store

    folder, limit, rows = cache / scenario.name, look.MANY, []
    store = Store(folder / PROBS)
    given = audit.prepare(scenario, folder, data)
    if not all(store.has(case.id) for case in given.dataset.cases):
        return []
    probs = {case.id: store.read(case.id) for case in given.dataset.cases}
    truth, label = audit_score.indices(given)
    ids, classes = sorted(label), len(given.dataset.labels)
    subtle = np.array([bool(given.facts.get(i, {}).get("subtle")) for i in ids])
    crowd, volumes = scenario.noise == "crowd", scenario.data == "hippocampus-3d"
    dice, flawed = audit_score.flaws(label, truth, ids, classes, crowd)
    for many in (NO_LIMIT, LIMIT if volumes else LOWER_LIMIT):
        look.MANY = many
        if volumes:
            cases, quality, seconds = enlarged(probs, label, ids)
        else:
            cases, _, more = audit_score.maskmend(given, probs, label)
            quality, seconds = more["quality"], more["fit_seconds"]
        scores = -quality if crowd else cases
        some = subtle | ~flawed
        row = {
            "set": f"{scenario.data} {scenario.noise}", "seed": scenario.seed, "thinned": many != NO_LIMIT,
            "auroc": audit_score.auroc(scores, flawed),
            "subtle_ap": audit_score.precision(scores[some], flawed[some]) if subtle.any() else None,
            "dice_correlation": float(np.corrcoef(quality, dice)[0, 1]), "fit_seconds": seconds,
        }  # fmt: skip
        rows.append(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        )
    look.MANY = limit
    return rows


def enlarged(
    probs: dict[str, np.ndarray], label: dict[str, np.ndarray], ids: list[str]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Log odds and estimated Dice of enlarged volumes, and CPU seconds of the fit."""
    import torch

    from maskmend.audit.estimate import fit, mean_dice
    from maskmend.audit.look import Look, look_at
    from maskmend.audit.suggest import suggest

    def larger(maps: np.ndarray) -> np.ndarray:
        found: np.ndarray = torch.nn.functional.interpolate(
            torch.from_numpy(maps)[None], scale_factor=ENLARGED, mode="trilinear"
        )[0].numpy()
        return found

    def look(case: str) -> Look:
        drawn = np.stack([label[case] == k for k in range(len(probs[case]))]).astype(np.float32)
        mask = larger(drawn).argmax(axis=0).astype(np.uint8)
        return look_at(case, larger(probs[case]), mask, (1 / ENLARGED,) * 3)

    began = time.process_time()
    auditor = fit(lambda names: map(look, names), ids)
    seconds = round(time.process_time() - began, 1)
    opinions = [(one.odds, mean_dice(one.dice(suggest(one)))) for one in map(auditor.judge, map(look, ids))]
    odds, quality = np.array(opinions).T
    return odds, quality, seconds


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown: each figure with all voxels and thinned, by seed for the AUROC, else the mean."""
    lines = ["| | seeds | " + " | ".join(f"{name}, all voxels | thinned" for name in COLUMNS.values()) + " |"]
    lines.append("|---" * (2 + 2 * len(COLUMNS)) + "|")
    for name in dict.fromkeys(row["set"] for row in rows):
        pair = [
            [row for row in rows if row["set"] == name and row["thinned"] == thin] for thin in (False, True)
        ]
        cells = []
        for key in COLUMNS:
            for some in pair:
                values = [row[key] for row in some if row[key] is not None]
                each = f" ({' '.join(f'{value:.3f}' for value in values)})" if key == "auroc" else ""
                cells.append(f"{np.mean(values):.3f}{each}" if values else "")
        lines.append(f"| {name} | {len(pair[0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--cache", type=Path, default=Path("runs/audit"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    sets = [one for one in audit.scenarios(given.seeds) if one.data in ("hippocampus-3d", "hc18", "bubil")]
    sets.sort(key=lambda one: one.data, reverse=True)  # the slowest first
    with ProcessPoolExecutor(given.workers) as pool:
        rows = [row for part in pool.map(partial(judged, given.cache, given.data), sets) for row in part]
    TABLE.write_text(json.dumps(rows, indent=1) + "\n")
    print(report(rows))


if __name__ == "__main__":
    main()
