"""Evidence for the audit: errors are injected, models judge masks they have not seen, and every ranking is scored.

    python bench/audit.py train [--only hippocampus-2d] [--seeds 0,1,2]     # probabilities are kept on disk
    python bench/audit.py score [--only ...] [--seeds ...]                  # no training: minutes become seconds
    python bench/audit.py report                                            # the table of all scored scenarios

Half of the flawed masks are subtle (Dice 0.85 to 0.95 to the truth), half gross. The seed decides cases, errors, folds
and weights. The audit was developed on seeds 0 to 7; seeds from 10 on are the evidence.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "audit"
FOLDS = 4
SHOWN = (
    "auroc",
    "ap",
    "subtle_auroc",
    "subtle_ap",
    "dice_correlation",
    "dice_rank",
    "found_early",
    "voxel_ap",
    "brier",
)
EXTRA = (
    "rate", "images_bear_out", "expected_wrong", "true_wrong", "given_dice", "mended_dice", "given_dice_sound",
    "mended_dice_sound", "kind_accuracy", "kind_table", "cpu_seconds", "fit_seconds", "check_auroc", "check_kinds",
)  # fmt: skip
OUTLINES = ("dilate", "erode", "move", "elastic", "edge-circles", "polygon", "markov-grow", "markov-shrink")


@dataclass(frozen=True)
class Data:
    """A data set and how it is trained in seconds.

    Args:
        folder: below the data root.
        cases: how many take part.
        settings: of every fold.
        gross: errors that are never subtle.
    """

    folder: str
    cases: int
    settings: tuple[str, ...]
    gross: tuple[str, ...]


FAST = (
    "train.picture_every=100000",
    "train.threads=1",
    "network.options={base: 8}",
    "train.checkpoint_every=1000",
)
DATA = {
    "hippocampus-2d": Data(
        "msd_hippocampus_2d", 200, (*FAST, "train.steps=250", "train.batch=8", "train.lr=0.005"),
        ("drop", "swap", "flip", "wrong file", "invent"),
    ),
    "hc18": Data(
        "hc18_fetal_head_2d", 150,
        (*FAST, "train.steps=200", "train.batch=8", "train.lr=0.005", "data.target_spacing_mm=[4,4]"),
        ("flip", "wrong file", "invent"),
    ),
    "bubil": Data(
        "bubil_cells_crowd_vs_expert", 150,
        (*FAST, "train.steps=250", "train.batch=8", "train.lr=0.005", "data.shape=[96,96]"), (),
    ),
    "hippocampus-3d": Data(
        "msd_hippocampus_3d", 60, (*FAST, "train.steps=150", "train.batch=2", "train.lr=0.005"),
        ("drop", "swap", "flip", "wrong file", "cut slices"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """One data set with one kind of errors.

    Args:
        data: key of `DATA`.
        noise: "assorted" (each flawed case draws its own error), a preset's name, or "crowd" (real raters).
        rate: share of flawed cases.
        seed: decides everything random.
        method: that trains the folds.
    """

    data: str
    noise: str
    rate: float
    seed: int
    method: str = "pint_posterior"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.data}-{self.noise}-{self.rate:g}-{self.method}-{self.seed}"


def rate_of(seed: int) -> float:
    """Share of flawed cases."""
    return (0.35, 0.2, 0.5)[seed % 3]


def scenarios(seeds: Sequence[int]) -> list[Scenario]:
    """The most telling first; the rate changes with the seed."""
    found = []
    for seed in seeds:
        rate = rate_of(seed)
        found += [
            Scenario("hippocampus-2d", "assorted", rate, seed),
            Scenario("hc18", "assorted", rate, seed),
            Scenario("hippocampus-2d", "dilate", 0.4, seed),
            Scenario("bubil", "crowd", 1.0, seed),
            Scenario("hippocampus-3d", "assorted", 0.35, seed),
        ]
    return found


@dataclass(frozen=True)
class Given:
    """The cases of a scenario on disk, with what is known of them."""

    dataset: Any
    truth: Mapping[str, np.ndarray]
    given: Mapping[str, np.ndarray]
    facts: Mapping[str, Mapping[str, Any]]


def prepare(scenario: Scenario, folder: Path, data_root: Path) -> Given:
    """Flaw the masks and write them; read back when they are there."""
    from maskmend.data.dataset import find_cases, infer_labels
    from maskmend.data.images import label_suffix, read_label, write_label

    data = DATA[scenario.data]
    dataset = infer_labels(find_cases(data_root / data.folder))
    order = np.random.default_rng(1000 + scenario.seed).permutation(len(dataset.cases))
    cases = [dataset.cases[i] for i in sorted(order[: data.cases])]
    read = {case.id: read_label(case.label) for case in cases}
    truth = {name: label for name, (label, _) in read.items()}
    record = folder / "errors.json"
    if not record.exists():
        flawed, facts = _flaw(scenario, cases, read)
        for case in cases:
            write_label(
                folder / "labels" / f"{case.id}{label_suffix(case.label)}", flawed[case.id], read[case.id][1]
            )
        record.write_text(json.dumps(facts))
    facts = json.loads(record.read_text())
    paths = {case.id: folder / "labels" / f"{case.id}{label_suffix(case.label)}" for case in cases}
    cases = [replace(case, label=paths[case.id], raters={}, split="train") for case in cases]
    given = {case.id: read_label(case.label)[0] for case in cases}
    return Given(replace(dataset, cases=tuple(cases)), truth, given, facts)


def _flaw(
    scenario: Scenario, cases: Sequence[Any], read: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from maskmend.data.images import read_label
    from maskmend.noise.presets import choose_cases

    truth = {name: label for name, (label, _) in read.items()}
    if scenario.noise == "crowd":
        rng = np.random.default_rng([scenario.seed, 7])
        chosen = {case.id: f"rater{rng.integers(1, 8)}" for case in cases}
        masks = {case.id: read_label(case.raters[chosen[case.id]])[0] for case in cases}
        return masks, {name: {"kind": rater} for name, rater in chosen.items()}
    flawed, facts = dict(truth), {}
    for number, name in enumerate(choose_cases(truth, scenario.rate, scenario.seed)):
        rng = np.random.default_rng([scenario.seed, 3, number])
        if not truth[name].any():
            other = str(rng.choice([one for one, label in truth.items() if label.any()]))
            flawed[name] = _fitted(truth[other], truth[name].shape)
            facts[name] = {"kind": "wrong file", "subtle": False}
            continue
        subtle = bool(rng.random() < 0.5)
        kinds = OUTLINES if subtle or rng.random() < 0.5 else (*DATA[scenario.data].gross, *OUTLINES[:3])
        kind = str(rng.choice(kinds)) if scenario.noise == "assorted" else scenario.noise
        target = float(rng.uniform(0.85, 0.95) if subtle else rng.uniform(0.5, 0.85))
        flawed[name] = _one(kind, name, truth, read[name][1].spacing_mm, target, rng)
        facts[name] = {"kind": kind, "subtle": subtle}
    return flawed, facts


def _one(
    kind: str, name: str, truth: Mapping[str, np.ndarray], spacing: Sequence[float], target: float, rng: Any
) -> np.ndarray:
    from maskmend.noise.presets import corrupt_labels

    label = truth[name]
    if kind == "flip":
        return label[..., ::-1].copy()
    if kind == "wrong file":
        return _fitted(truth[str(rng.choice([other for other in truth if other != name]))], label.shape)
    if kind == "cut slices":
        used = np.flatnonzero(label.any((1, 2)))
        cut = label.copy()
        cut[used[: max(2, int(rng.uniform(0.15, 0.4) * len(used)))]] = 0
        return cut
    if kind in ("drop", "swap", "invent"):
        what = {"drop": {"noise": "drop", "probability": 0.6}, "swap": {"noise": "swap", "probability": 0.6}, "invent":
                {"noise": "invent", "radius_mm": [3.0, 6.0], "gap_mm": 8.0}}[kind]  # fmt: skip
        for seed in range(20):  # until something happens
            flawed, _ = corrupt_labels(
                {name: label}, 1.0, what, seed=1000 * seed + 1, spacing_mm=spacing, keep=0
            )
            if not np.array_equal(flawed[name], label):
                break
        return flawed[name]
    flawed, _ = corrupt_labels(
        {name: label},
        1.0,
        kind,
        seed=int(rng.integers(1 << 30)),
        spacing_mm=spacing,
        target_dice=target,
        each=True,
    )
    return flawed[name]


def _fitted(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cut or padded at the far ends, as a mask that was saved over a wrong image of another size is by hand."""
    out = np.zeros(shape, label.dtype)
    part = tuple(slice(0, min(a, b)) for a, b in zip(label.shape, shape, strict=True))
    out[part] = label[part]
    return out


def configuration(scenario: Scenario, *more: str) -> Any:
    """Of every fold's run, with further settings."""
    from maskmend.config import load

    own = [f"method.name={scenario.method}", f"train.seed={scenario.seed}"]
    return load(None, ["device=cpu", "predict.overlap=0.25", *DATA[scenario.data].settings, *own, *more])


def train(scenario: Scenario, folder: Path, data_root: Path) -> None:
    """Probabilities of every case from a model that has not seen it."""
    import torch

    from maskmend.audit.folds import judge_by_folds

    torch.set_num_threads(1)
    given = prepare(scenario, folder, data_root)
    config = configuration(scenario)
    began = time.process_time()
    judge_by_folds(given.dataset, folder, config, FOLDS)
    print(f"{scenario.name}: {time.process_time() - began:.0f} CPU s", flush=True)


def score(scenario: Scenario, folder: Path, data_root: Path, table: Path, name: str = "") -> None:
    """Score all rankings on the kept probabilities, and add them to the table; by the scenario's name or another."""
    import audit_score

    from maskmend.audit.folds import PROBS
    from maskmend.audit.store import Store

    given, store = prepare(scenario, folder, data_root), Store(folder / PROBS)
    rows = audit_score.score(
        given, {case.id: store.read(case.id) for case in given.dataset.cases}, scenario.noise == "crowd"
    )
    known = json.loads(table.read_text()) if table.exists() else {}
    name = name or scenario.name
    known[name] = rows
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps(known, indent=1) + "\n")
    print(report(table, [name]), flush=True)


def report(table: Path, names: Sequence[str]) -> str:
    """The scores of these scenarios as text."""
    known = json.loads(table.read_text())
    lines = []
    for name in (name for name in names if name in known):
        lines.append(name)
        for row in known[name]:
            shown = "  ".join(f"{key} {row[key]:.3f}" for key in SHOWN if isinstance(row.get(key), float))
            lines.append(f"  {row['ranking']:<14}{shown}")
        first = known[name][0]
        lines.append("    " + ", ".join(f"{key} {first[key]}" for key in EXTRA if key in first))
    return "\n".join(lines)


def arguments(what: str | None, actions: Sequence[str], table: Path) -> argparse.ArgumentParser:
    """What the benches on these scenarios are told."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=actions)
    parser.add_argument("--only", default="", help="only scenarios whose name contains this text")
    parser.add_argument("--seeds", default="10,11,12,13,14")
    default = os.environ.get("MASKMEND_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=(ROOT / default).resolve())
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "runs" / "audit", help="where probabilities are kept"
    )
    parser.add_argument("--table", type=Path, default=table, help="where results go")
    return parser


def run_made(
    what: str | None,
    table: Path,
    scenarios: Callable[[Sequence[int]], Sequence[tuple[str, Scenario]]],
    make: Callable[[Path, Path, str, Scenario], None],
    report: Callable[[Path], str],
) -> None:
    """Command line of a bench on data sets that are made for it.

    Args:
        what: its description. table: where results go.
        scenarios: by seeds, each with the beginning of its name.
        make: the data set of one, from the data root, in this folder.
        report: of the table.
    """
    given = arguments(what, ["train", "score", "report"], table).parse_args()
    for start, scenario in scenarios([int(seed) for seed in given.seeds.split(",")]):
        name = f"{start} {scenario.name}"
        if given.only not in name or given.action == "report":
            continue
        folder = given.cache / name.replace(" ", "-")
        if not (folder / DATA[scenario.data].folder / "maskmend.json").exists():
            make(given.data, folder, start, scenario)
        if given.action == "train":
            train(scenario, folder, folder)
        else:
            score(scenario, folder, folder, given.table, name)
    if given.action == "report":
        print(report(given.table))


def main() -> None:
    """Command line."""
    parser = arguments(__doc__, ["train", "score", "report"], RESULTS / "scores.json")
    given = parser.parse_args()
    chosen = [s for s in scenarios([int(x) for x in given.seeds.split(",")]) if given.only in s.name]
    for scenario in chosen:
        folder = given.cache / scenario.name
        folder.mkdir(parents=True, exist_ok=True)
        if given.action == "train":
            train(scenario, folder, given.data)
        elif given.action == "score":
            score(scenario, folder, given.data, given.table)
    if given.action == "report":
        print(report(given.table, [scenario.name for scenario in chosen]))


if __name__ == "__main__":
    main()
