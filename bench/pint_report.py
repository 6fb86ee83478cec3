"""Turn the rows of `bench/pint.py` into a page with tables and a figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskmend import draw
from maskmend.evaluate.statistics import bootstrap_interval, holm, paired_test

MAIN = ("supervised", "pint", "pint_posterior")
Scores = dict[tuple[str, str, str], dict[str, dict[int, dict[str, str]]]]


def write_report(rows: Sequence[dict[str, str]], folder: Path) -> None:
    """Write `README.md` and `recovered.png` into `folder`."""
    scores = _grouped(rows)
    parts = [_HEAD, *_sections(scores), _machine(rows)]
    (folder / "README.md").write_text("\n".join(parts))
    (folder / "dice.png").write_bytes(_figure(scores))


def _grouped(rows: Sequence[dict[str, str]]) -> Scores:
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        scores[row["data"], row["noise"], row["rate"]][row["method"]][int(row["seed"])] = row
    return scores


def _sections(scores: Scores) -> list[str]:
    parts = []
    for data in sorted({key[0] for key in scores}):
        conditions = [key for key in scores if key[0] == data]
        conditions.sort(key=lambda key: (key[1] != "clean", key[2], key[1]))
        parts += [f"\n## {data}\n", _TABLE_HEAD]
        tests = {
            (key, method): _against_supervised(scores[key], method)
            for key in conditions
            for method in scores[key]
            if method != "supervised"
        }
        adjusted = holm({name: test.p for name, test in tests.items()})
        for key in conditions:
            clean = scores.get((data, "clean", "0.0"), {}).get("supervised", {})
            parts += [
                _line(key, method, scores[key], clean, tests.get((key, method)), adjusted.get((key, method)))
                for method in _ordered(scores[key])
            ]
    return parts


def _ordered(found: dict[str, Any]) -> list[str]:
    return [m for m in MAIN if m in found] + sorted(m for m in found if m not in MAIN)


def _line(
    key: tuple[str, str, str],
    method: str,
    found: Any,
    clean: dict[int, dict[str, str]],
    test: Any,
    p: float | None,
) -> str:
    runs = found[method]
    values = [float(r["dice"]) for r in runs.values()]
    interval = bootstrap_interval(values)
    aurocs = [float(r["image_auroc"]) for r in runs.values() if r["image_auroc"]]
    label = np.mean([float(r["label_dice"]) for r in runs.values()])
    gain = "" if test is None else f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"
    shown_p = "" if p is None or test is None else f"{test.p:.3f} / {p:.2f}"
    cells = [
        f"{key[1]} {float(key[2]):.0%}" if key[1] != "clean" else "clean", f"{label:.3f}", method,
        f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]", str(len(values)), gain, shown_p,
        _recovered(key, runs, found.get("supervised", {}), clean), f"{np.mean(aurocs):.2f}" if aurocs else "",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _against_supervised(found: Any, method: str) -> Any:
    plain, own = found.get("supervised", {}), found[method]
    seeds = sorted(set(plain) & set(own))
    return paired_test([float(own[s]["dice"]) for s in seeds], [float(plain[s]["dice"]) for s in seeds])


def _recovered(key: tuple[str, str, str], own: Any, plain: Any, clean: Any) -> str:
    """Share of the distance from plain-on-flawed to plain-on-clean, of means over common seeds."""
    seeds = sorted(set(own) & set(plain) & set(clean))
    if key[1] == "clean" or not seeds or own is plain:
        return ""
    mine, low, high = (np.mean([float(r[s]["dice"]) for s in seeds]) for r in (own, plain, clean))
    return f"{(mine - low) / (high - low):+.0%}" if high - low > 0.002 else "no gap"


def _figure(scores: Scores) -> bytes:
    lines = []
    for (data, noise, rate), found in sorted(scores.items()):
        if rate == "0.75" or rate == "0.25":
            continue
        for method in MAIN:
            if method in found:
                interval = bootstrap_interval([float(r["dice"]) for r in found[method].values()])
                share = "" if noise == "clean" else f" {float(rate):.0%}"
                lines.append(
                    (f"{data}, {noise}{share}: {method}", interval.estimate, interval.low, interval.high)
                )
    return draw.intervals(
        lines,
        x_name="test Dice, mean and 95 % bootstrap interval over seeds",
        size=(8.2, 0.7 + 0.32 * len(lines)),
    )


def _machine(rows: Sequence[dict[str, str]]) -> str:
    hours = sum(float(r["seconds"]) for r in rows) / 3600
    machines = ", ".join(sorted({r["machine"] for r in rows}))
    return f"\n{len(rows)} runs, {hours:.1f} core hours ({machines}; the machine was shared).\n"


_HEAD = """# PINT on real images with simulated flaws

`make bench NAME=pint ARGS="run --workers 2"` makes `runs.csv` (one line per run, resumable), `make bench NAME=pint
ARGS=report` this page. Seeds decide the split, the flaws, the initial weights and the order of patches. Masks are
flawed by dilation only, erosion only (biased) or a mix of dilation, erosion and moves; test masks are true. Dice is
the mean over foreground classes and test cases of the averaged weights of the last step; nothing was selected.

The gain is the mean paired difference to `supervised` on the same flawed masks with its bootstrap interval; p is
Wilcoxon's, as it is / after Holm's correction over the table. **With five seeds p cannot fall below 0.0625, with
three not below 0.25**: read the intervals, and even those are too short at so few seeds. Recovered is the share of
the distance between `supervised` on flawed and on true masks. AUROC says how well the method's own noise map ranks
flawed masks above sound ones.

`pint_posterior` was designed on other seeds (0 to 3, 7 and 8): other splits, flaws and weights, though of the same
images. On those, four rules for choosing the convention of drawing were tried and dropped, because each chose the
flawed group on some seed (test Dice down to .69 on dilation, .78 on erosion); the present rule lets the image decide.
The seeds of this page were run once, with the final rule. The runs are short (250-500 steps), which favours methods
that act early.
"""
_TABLE_HEAD = (
    "| flaws | Dice of given masks | method | test Dice | seeds | gain | p | recovered | AUROC |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
