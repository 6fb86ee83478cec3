"""Close the loop: replace the masks that look worst, train again, and see what it is worth.

    python bench/audit_loop.py run [--only hippocampus-2d] [--seeds 10,11,12,13,14] [--shares 0.2,0.1,0.4]
    python bench/audit_loop.py report

Works on the probabilities that `bench/audit.py train` has kept. The worst cases by the audit's own order, by
1 - soft Dice, by cleanlab's label quality and by chance are replaced by their true masks (a perfect annotator) or by
the audit's suggestions (no annotator); then a plain network is trained, with the same seed for all choices, and scored
on cases whose masks are true and which took no part before. Finished runs are not done again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import audit as bench
import audit_score
import audit_tables
import numpy as np

TABLE = bench.RESULTS / "loop.json"
TESTED = 100  # cases at most
CHOICES = ("audit", "random", "1 - soft Dice", "cleanlab")
SETTINGS = {
    ("hippocampus-2d", "assorted"): (),
    ("hc18", "assorted"): ("data.target_spacing_mm=[6,6]",),
    ("hippocampus-2d", "dilate"): (),
    ("hippocampus-3d", "assorted"): ("train.batch=2",),
}
TRAINING = ("method.name=supervised", "device=cpu", "train.steps=200", "train.batch=8", "train.lr=0.01")


@dataclass(frozen=True)
class Repair:
    """Which masks are replaced, and by what.

    Args:
        choice: one of `CHOICES`; "none" and "all" for the ends.
        by: "truth" or "suggestion".
        share: of the cases.
    """

    choice: str
    by: str
    share: float

    @property
    def name(self) -> str:
        """Its key in the table."""
        return self.choice if self.choice in ("none", "all") else f"{self.choice}, {self.by}, {self.share:g}"


def repairs(shares: Sequence[float]) -> list[Repair]:
    """The most telling first."""
    found = [Repair("none", "truth", 0.0), Repair("all", "truth", 1.0)]
    for share in shares:
        found += [Repair(choice, "truth", share) for choice in CHOICES]
        found.append(Repair("audit", "suggestion", share))
    return found + [Repair(choice, "suggestion", share) for share in shares for choice in CHOICES[1:]]


class Loop:
    """One scenario with its rankings and suggestions.

    Args:
        scenario: whose probabilities are there.
        folder: of these.
        data_root: where the data sets lie.
    """

    def __init__(self, scenario: bench.Scenario, folder: Path, data_root: Path) -> None:
        from maskmend.audit.folds import PROBS
        from maskmend.audit.store import Store
        from maskmend.data.dataset import find_cases, infer_labels

        self.scenario, store = scenario, Store(folder / PROBS)
        self.given = bench.prepare(scenario, folder, data_root)
        whole = infer_labels(find_cases(data_root / bench.DATA[scenario.data].folder))
        used = {case.id for case in self.given.dataset.cases}
        rest = [case for case in whole.cases if case.id not in used]
        order = np.random.default_rng([scenario.seed, 30]).permutation(len(rest))[:TESTED]
        self.test = tuple(replace(rest[i], split="test") for i in sorted(order))
        kept = folder / "loop.npz"
        if not kept.exists():
            _rank(self.given, {case.id: store.read(case.id) for case in self.given.dataset.cases}, kept)
        with np.load(kept, allow_pickle=False) as file:
            self.ids = [str(i) for i in file["ids"]]
            self.scores = {choice: file[choice] for choice in CHOICES if choice != "random"}
            self.suggested = {i: file[f"suggested {i}"] for i in self.ids}

    def labels(self, repair: Repair) -> dict[str, np.ndarray]:
        """The masks to train on, as file values."""
        values = np.array(list(self.given.dataset.labels.values()))
        masks = dict(self.given.given)
        for case in self.chosen(repair):
            if repair.by == "truth":
                masks[case] = self.given.truth[case]
            else:
                masks[case] = values[self.suggested[case]].astype(masks[case].dtype)
        return masks

    def chosen(self, repair: Repair) -> list[str]:
        """The cases whose masks are replaced."""
        if repair.choice in ("none", "all"):
            return self.ids if repair.choice == "all" else []
        count = round(repair.share * len(self.ids))
        if repair.choice == "random":
            order = np.random.default_rng([self.scenario.seed, 31]).permutation(len(self.ids))
        else:
            order = np.argsort(-self.scores[repair.choice], kind="stable")
        return [self.ids[i] for i in order[:count]]

    def run(self, repair: Repair) -> dict[str, Any]:
        """Train and score."""
        from maskmend.benchmark import trial
        from maskmend.benchmark.cases import Given
        from maskmend.config import load
        from maskmend.data.images import label_suffix, read_label, write_label
        from maskmend.train.run import train

        masks, cases = self.labels(repair), []
        with tempfile.TemporaryDirectory() as place:
            for case in self.given.dataset.cases:
                path = Path(place) / "labels" / f"{case.id}{label_suffix(case.label)}"
                write_label(path, masks[case.id], read_label(case.label)[1])
                cases.append(replace(case, label=path))
            dataset = replace(self.given.dataset, cases=tuple(cases))
            seed = f"train.seed={self.scenario.seed}"
            own = SETTINGS[self.scenario.data, self.scenario.noise]
            settings = [*bench.FAST, *TRAINING, *own, "train.validation=none", seed]
            began = time.process_time()
            run = train(dataset, Path(place) / "run", load(None, settings), command=[])
            seconds = time.process_time() - began
            given = Given(dataset, self.test, self.given.truth, masks)
            found = trial.score(run, run.method(), given, "cpu")
        wrong = [
            case for case in self.ids if not np.array_equal(self.given.given[case], self.given.truth[case])
        ]
        chosen = set(self.chosen(repair))
        return {
            "dice": found["dice"],
            "hd95_mm": found["hd95_mm"],
            "label_dice": self._label_dice(masks),
            "flawed_found": len(chosen & set(wrong)),
            "flawed": len(wrong),
            "replaced": len(chosen),
            "cases": len(self.ids),
            "tested": len(self.test),
            "cpu_seconds": round(seconds, 1),
        }

    def _label_dice(self, masks: Mapping[str, np.ndarray]) -> float:
        from maskmend.benchmark.trial import mask_dice

        values = list(self.given.dataset.labels.values())[1:]
        return round(float(np.mean([mask_dice(masks[i], self.given.truth[i], values) for i in self.ids])), 5)


def _judged(folder: Path) -> bool:
    """Whether every case of a scenario has its probabilities."""
    from maskmend.audit.folds import PROBS
    from maskmend.audit.store import Store
    from maskmend.data.images import label_suffix

    masks, store = folder / "labels", Store(folder / PROBS)
    return masks.is_dir() and all(
        store.has(path.name.removesuffix(label_suffix(path))) for path in masks.iterdir()
    )


def _rank(given: Any, probs: Mapping[str, np.ndarray], kept: Path) -> None:
    _, label = audit_score.indices(given)
    _, _, more = audit_score.maskmend(given, probs, label)
    ids = sorted(label)
    arrays = {f"suggested {i}": more["suggested"][i] for i in ids}
    orders = {
        "audit": more["priority"],
        "1 - soft Dice": np.array([audit_score.soft_dice_loss(probs[i], label[i]) for i in ids]),
        "cleanlab": -audit_score.cleanlab_quality(probs, label, ids),
    }
    with kept.with_suffix(".part").open("wb") as file:
        np.savez_compressed(file, ids=np.array(ids), **orders, **arrays)
    shutil.move(kept.with_suffix(".part"), kept)


def report(table: Path) -> str:
    """Mean gain over the flawed masks with its 95 % interval over seeds, and what the audit has over the others."""
    known = json.loads(table.read_text())
    lines = []
    for data in dict.fromkeys(row["data"] for row in known):
        rows = {(row["seed"], row["repair"]): row["dice"] for row in known if row["data"] == data}
        names = list(dict.fromkeys(row["repair"] for row in known if row["data"] == data))
        lines += [
            f"## {data}",
            "",
            "| masks | seeds | test Dice | gain over given masks | audit against it |",
            "|---|---|---|---|---|",
        ]
        for name in names:
            seeds = [seed for seed, repair in rows if repair == name and (seed, "none") in rows]
            dice = [rows[seed, name] for seed in seeds]
            gain = [rows[seed, name] - rows[seed, "none"] for seed in seeds]
            ours = name.replace(name.split(",")[0], "audit", 1)
            pairs = [rows[seed, ours] - rows[seed, name] for seed in seeds if (seed, ours) in rows]
            ahead = interval(pairs) if name not in ("none", "all", ours) else ""
            over_given = "" if name == "none" else interval(gain)
            lines.append(f"| {name} | {len(seeds)} | {np.mean(dice):.4f} | {over_given} | {ahead} |")
        lines.append("")
    return "\n".join(lines)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % t interval as text."""
    if len(values) < 2:
        return f"{np.mean(values):+.4f}" if values else ""
    mean, wide = audit_tables.interval(values)
    return f"{mean:+.4f} ({mean - wide:+.4f} to {mean + wide:+.4f})"


def main() -> None:
    """Command line."""
    parser = bench.arguments(__doc__, ["run", "report"], TABLE)
    parser.add_argument(
        "--shares", default="0.2,0.1,0.4", help="of the cases that are replaced; the first comes first"
    )
    parser.add_argument("--most", type=int, default=0, help="only the first so many repairs; 0: all")
    given = parser.parse_args()
    if given.action == "report":
        print(report(given.table))
        return
    import torch

    torch.set_num_threads(1)
    wanted = repairs([float(share) for share in given.shares.split(",")])[: given.most or None]
    chosen = [
        s
        for s in bench.scenarios([int(x) for x in given.seeds.split(",")])
        if (s.data, s.noise) in SETTINGS and given.only in s.name and _judged(given.cache / s.name)
    ]
    loops: dict[str, Loop] = {}
    for repair in wanted:
        for scenario in chosen:
            rows = json.loads(given.table.read_text()) if given.table.exists() else []
            data = scenario.data if scenario.noise == "assorted" else f"{scenario.data}, {scenario.noise}"
            place = {"data": data, "seed": scenario.seed, "repair": repair.name}
            if any(place.items() <= row.items() for row in rows):
                continue
            if scenario.name not in loops:
                loops[scenario.name] = Loop(scenario, given.cache / scenario.name, given.data)
            row = place | {"rate": scenario.rate} | loops[scenario.name].run(repair)
            given.table.parent.mkdir(parents=True, exist_ok=True)
            given.table.write_text(json.dumps([*rows, row], indent=1) + "\n")
            print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
