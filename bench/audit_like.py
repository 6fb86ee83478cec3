"""New masks judged like an earlier audit (`audit --like`), beside what the whole audit says of them and what ten tell.

    python bench/audit_like.py run [--seeds 10,11,12,13,14] [--only crowd] [--cache runs/audit] [--data ../shared/data]
    python bench/audit_like.py report

The cases of `bench/audit.py` are parted: three fifths are audited, by four models trained on them; the rest comes later
and is judged like these, by their models and measures (like). Beside it, for the same later masks: the audit of all
cases together (whole), whose probabilities `bench/audit.py train` must have left in the cache; and audits of ten later
masks at a time, with the probabilities of the earlier models, that learn what is usual from these ten (tens).
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import audit
import audit_score
import audit_tables
import numpy as np

TABLE = audit.RESULTS / "like.json"
EARLIER = 0.6
BATCH = 10
SHOWN = {
    key: audit_tables.SCORES[key] for key in ("auroc", "ap", "voxel_ap", "dice_correlation", "found_early")
}
NAMES = {"like": "like the earlier audit", "whole": "all cases audited together", "tens": "ten at a time"}


def judged(scenario: audit.Scenario, cache: Path, data: Path, desk: Path) -> dict[str, Any]:
    """Scores of the later masks by way of judging them."""
    from maskmend.audit.folds import PROBS
    from maskmend.audit.run import audit as run_audit

    given = audit.prepare(scenario, cache / scenario.name, data)
    more = (f"audit.folds={audit.FOLDS}", "audit.keep_probs=true", "data.allow_missing_classes=true")
    config = audit.configuration(scenario, *more)
    order = np.random.default_rng([scenario.seed, 40]).permutation(len(given.dataset.cases)).tolist()
    first = round(EARLIER * len(order))
    cases = {
        name: [given.dataset.cases[i] for i in sorted(part)]
        for name, part in (("all", order), ("earlier", order[:first]), ("later", order[first:]))
    }
    where = {name: manifest(desk / name, given.dataset, some) for name, some in cases.items()}
    shutil.copytree(cache / scenario.name / PROBS, desk / "whole" / PROBS)
    run_audit(where["all"], desk / "whole", config)
    run_audit(where["earlier"], desk / "first", config)
    began = time.process_time()
    run_audit(where["later"], desk / "like", config, like=desk / "first")
    seconds = time.process_time() - began
    tens(given, cases["later"], desk, config)
    found = {
        "like": read([desk / "like"]),
        "whole": read([desk / "whole"]),
        "tens": read(sorted(desk.glob("ten-*-audit"))),
    }
    ids = sorted(case.id for case in cases["later"])
    rows = {name: scores(given, ids, one, scenario.noise == "crowd") for name, one in found.items()}
    return rows | {"later": len(ids), "like_cpu_seconds": round(seconds, 1)}


def manifest(folder: Path, dataset: Any, cases: Sequence[Any]) -> Path:
    """A data set of these cases, whose files stay where they are."""
    folder.mkdir(parents=True)
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "label"])
        writer.writerows([case.id, case.images[0].resolve(), case.label.resolve()] for case in cases)
    told: dict[str, Any] = {"labels": dict(dataset.labels)}
    if dataset.spacing_mm:
        told["spacing_mm"] = list(dataset.spacing_mm)
    (folder / "maskmend.json").write_text(json.dumps(told))
    return folder / "cases.csv"


def tens(given: Any, later: Sequence[Any], desk: Path, config: Any) -> None:
    """Audits of ten later masks at a time (a last, smaller part joins the one before)."""
    from maskmend.audit.folds import PROBS
    from maskmend.audit.run import audit as run_audit
    from maskmend.audit.store import Store

    store, probs = Store(desk / "like" / PROBS), desk / "probs"
    probs.mkdir()
    for case in later:
        np.save(probs / f"{case.id}.npy", store.read(case.id))
    order = np.random.default_rng([len(later), 41]).permutation(len(later))
    for number, part in enumerate(np.array_split(order, len(later) // BATCH)):
        source = manifest(desk / f"ten-{number}", given.dataset, [later[i] for i in sorted(part)])
        run_audit(source, desk / f"ten-{number}-audit", config, probs=probs)


def read(audits: Sequence[Path]) -> dict[str, Any]:
    """Records by case, each with its map."""
    from maskmend.data.images import read_image

    found = {}
    for folder in audits:
        for record in json.loads((folder / "audit.json").read_text())["records"]:
            found[record["case"]] = record | {"noise": read_image(folder / record["noise_map"])[0][0] / 255}
    return found


def scores(given: Any, ids: Sequence[str], found: Mapping[str, Any], crowd: bool) -> dict[str, float | None]:
    """Of these cases, as `bench/audit.py` scores them."""
    truth, label = audit_score.indices(given)
    classes = len(given.dataset.labels)
    dice, flawed = audit_score.flaws(label, truth, ids, classes, crowd)
    quality, priority, odds = (
        np.array([found[i][key] for i in ids]) for key in ("quality", "priority", "flawed")
    )
    cases = -quality if crowd else odds
    wrong = np.concatenate([(label[i] != truth[i]).ravel() for i in ids])
    noise = np.concatenate([found[i]["noise"].ravel() for i in ids])
    row = {
        "auroc": audit_score.auroc(cases, flawed),
        "ap": audit_score.precision(cases, flawed),
        "voxel_ap": audit_score.precision(noise, wrong),
        "dice_correlation": float(np.corrcoef(quality, dice)[0, 1]),
        "found_early": audit_score.early(priority, label, truth, ids),
        "expected_wrong": float(noise.sum()),
        "true_wrong": int(wrong.sum()),
        "expected_flawed": float(odds.sum()),
        "true_flawed": int(flawed.sum()),
    }
    return {key: round(float(value), 4) for key, value in row.items()}


def report(table: Path) -> str:
    """Means over seeds, and how much `like` is ahead with half a 95 % interval, bold where that does not hold 0.

    First the table of the page of results, then all scores, then voxels and seconds.
    """
    groups = {name: list(seeds.values()) for name, seeds in audit_tables.read(table).items()}

    def mean(rows: Sequence[Any], way: str, key: str) -> str:
        return f"{np.mean([row[way][key] for row in rows]):.3f}"

    def ahead(rows: Sequence[Any], rival: str, key: str) -> str:
        found, half = audit_tables.interval([row["like"][key] - row[rival][key] for row in rows])
        text = f"{found:+.3f} ± {half:.3f}"
        return f"**{text}**" if abs(found) > half else text

    together, ten = "ahead of all together", "ahead of ten at a time"
    first = ["AUROC of cases: like the earlier audit", together, ten]
    first += [one for key in ("voxel_ap", "dice_correlation") for one in (SHOWN[key], together)]
    lines = _head(["", *first])
    for group, rows in groups.items():
        cells = [audit_tables.TITLES[group], mean(rows, "like", "auroc")]
        cells += [ahead(rows, rival, "auroc") for rival in ("whole", "tens")]
        for key in ("voxel_ap", "dice_correlation"):
            cells += [mean(rows, "like", key), ahead(rows, "whole", key)]
        lines.append(_row(cells))
    for key, title in SHOWN.items():
        lines += ["", title, "", *_head(["", "seeds", *NAMES.values(), together, ten])]
        for group, rows in groups.items():
            cells = [audit_tables.TITLES[group], str(len(rows)), *(mean(rows, way, key) for way in NAMES)]
            lines.append(_row([*cells, *(ahead(rows, rival, key) for rival in ("whole", "tens"))]))
    lines.append("")
    for group, rows in groups.items():
        wrong = [np.sum([row["like"][f"{one}_wrong"] for row in rows]) for one in ("expected", "true")]
        seconds = np.mean([row["like_cpu_seconds"] / row["later"] for row in rows])
        lines.append(
            f"{audit_tables.TITLES[group]}: wrong voxels expected, of the true number: {wrong[0] / wrong[1]:.2f}; "
            f"{seconds:.2f} s of CPU time per later mask, prediction included"
        )
    return "\n".join(lines)


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Command line."""
    told = audit.arguments(__doc__, ["run", "report"], TABLE).parse_args()
    if told.action == "report":
        print(report(told.table))
        return
    import torch

    torch.set_num_threads(1)
    for scenario in audit.scenarios([int(x) for x in told.seeds.split(",")]):
        if told.only not in scenario.name:
            continue
        with TemporaryDirectory() as desk:
            row = judged(scenario, told.cache, told.data, Path(desk))
        known = json.loads(told.table.read_text()) if told.table.exists() else {}
        known[scenario.name] = row
        told.table.write_text(json.dumps(known, indent=1) + "\n")
        print(scenario.name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
