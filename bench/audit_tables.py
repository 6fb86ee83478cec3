"""Tables and a figure of the audit's evidence, from the committed scores.

python bench/audit_tables.py    # writes tables.md and rankings.png beside the scores, prints the table of all seeds
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "audit"
SCORES = {
    "auroc": "AUROC of cases", "ap": "AP of cases", "subtle_auroc": "AUROC, subtle flaws",
    "subtle_ap": "AP, subtle flaws", "voxel_ap": "AP of voxels", "dice_correlation": "correlation of Dice",
    "dice_rank": "rank correlation", "found_early": "found early",
}  # fmt: skip
TITLES = {
    "hippocampus-2d assorted": "Hippocampus slices, assorted flaws", "hc18 assorted": "HC18, assorted flaws",
    "hippocampus-2d dilate": "Hippocampus slices, dilation",
    "hippocampus-3d assorted": "Hippocampus volumes, assorted flaws",
    "bubil crowd": "BU-BIL, masks of a crowd",
}  # fmt: skip
HEAD = """# Scores of all rankings

Means over seeds, ± half a 95 % interval (t), made by `make bench NAME=audit_tables` from scores.json and unseen.json.
What the rankings and scores are, and how all this was done: [how well the audit finds errors](README.md).
"""
COLOURS = {
    "maskmend": "#0b5fa5", "maskmend, probabilities alone": "#56b4e9", "maskmend, images alone": "#a8d5f2",
    "cleanlab": "#d95f02", "cleanlab issues": "#e6ab02", "mean loss": "#7570b3", "1 - soft Dice": "#1b9e77",
    "entropy": "#999999",
}  # fmt: skip


def read(table: Path) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Rows by group (data set and flaws) and seed."""
    groups: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for name, rows in json.loads(table.read_text()).items():
        found = re.fullmatch(r"(.+)-(\w+)-([\d.]+)-\w+-(\d+)", name)
        assert found is not None
        groups.setdefault(f"{found[1]} {found[2]}", {})[int(found[4])] = rows
    return {name: groups[name] for name in TITLES if name in groups}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the 95 % t interval (NaN for one value)."""
    from scipy.stats import t

    count, mean = len(values), float(np.mean(values))
    return mean, float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5) if count > 1 else float(
        "nan"
    )


def by_ranking(seeds: Mapping[int, Sequence[Mapping[str, Any]]], score: str) -> dict[str, list[float]]:
    """Values of a score over the seeds, in their order, by ranking; empty where a ranking has none."""
    found: dict[str, list[float]] = {}
    for seed in sorted(seeds):
        for row in seeds[seed]:
            found.setdefault(str(row["ranking"]), [])
            if isinstance(row.get(score), int | float):
                found[str(row["ranking"])].append(float(row[score]))
    return found


def tables(groups: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> str:
    """One table per group: means with intervals, then what the audit is ahead of its best rival by, seed by seed."""
    lines = []
    for name, seeds in groups.items():
        plural = "seeds" if len(seeds) > 1 else "seed"
        lines += [f"### {TITLES[name]} ({plural} {', '.join(map(str, sorted(seeds)))})", ""]
        rankings = [str(row["ranking"]) for row in next(iter(seeds.values()))]
        values = {score: by_ranking(seeds, score) for score in SCORES}
        shown = [score for score in SCORES if values[score]["maskmend"]]
        lines += [
            "| | " + " | ".join(SCORES[score] for score in shown) + " |",
            "|---" * (len(shown) + 1) + "|",
        ]
        for ranking in rankings:
            lines.append(
                f"| {ranking} | " + " | ".join(_cell(values[score][ranking]) for score in shown) + " |"
            )
        for own in ("maskmend", "maskmend, probabilities alone"):
            cells = [_ahead(values[score], own) for score in shown]
            if any(cells):
                lines.append(f"| *{own}: over the best rival* | " + " | ".join(cells) + " |")
        lines += ["", *_own(seeds), ""]
    return "\n".join(lines)


def together(groups: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> str:
    """One table of all groups: the audit's mean over the best rival's, and the difference seed by seed."""
    titles = [f"{TITLES[name]} ({len(seeds)} seeds)" for name, seeds in groups.items()]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for score, title in SCORES.items():
        cells = []
        for seeds in groups.values():
            values = by_ranking(seeds, score)
            own, best = values["maskmend"], _best_rival(values)
            if not own or not best:
                cells.append("")
                continue
            mean, half = interval(np.subtract(own, values[best]).tolist())
            ahead = f"{mean:+.3f} ± {half:.3f}"
            beyond = f"**{ahead}**" if abs(mean) > half else ahead
            cells.append(f"{np.mean(own):.3f} over {np.mean(values[best]):.3f}: {beyond}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def merged(
    *tables_of: Mapping[str, Mapping[int, list[dict[str, Any]]]],
) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """The same groups with the seeds of all."""
    return {
        name: {seed: rows for one in tables_of for seed, rows in one.get(name, {}).items()} for name in TITLES
    }


BRIEF = {key: SCORES[key] for key in ("auroc", "ap", "found_early", "voxel_ap", "dice_correlation")}
BRIEF_RIVALS = (
    "maskmend",
    "maskmend, probabilities alone",
    "cleanlab",
    "cleanlab issues",
    "mean loss",
    "1 - soft Dice",
)


def mean_rows(sets: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Lines of a Markdown table of some scores: means over sets (seeds), ± half a 95 % interval."""
    lines = ["| ranking | " + " | ".join(BRIEF.values()) + " |", "|---" * (1 + len(BRIEF)) + "|"]
    for ranking in BRIEF_RIVALS:
        each = [
            [row[key] for rows in sets for row in rows if row["ranking"] == ranking and key in row]
            for key in BRIEF
        ]
        lines.append(
            f"| {ranking} | " + " | ".join(_cell(values) if values else "" for values in each) + " |"
        )
    return lines


def _best_rival(values: Mapping[str, Sequence[float]]) -> str:
    """The rival with the best mean; "" for none."""
    rivals = [ranking for ranking in values if not ranking.startswith("maskmend") and values[ranking]]
    return max(rivals, key=lambda ranking: float(np.mean(values[ranking])), default="")


def _ahead(values: Mapping[str, Sequence[float]], own: str) -> str:
    """By how much a ranking is ahead of the rival with the best mean, seed by seed."""
    best = _best_rival(values)
    if not values.get(own) or not best:
        return ""
    return f"{_cell(np.subtract(values[own], values[best]).tolist(), '+.3f')} ({best})"


def _own(seeds: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What only the audit gives, as one line each."""
    rows = [next(row for row in seeds[seed] if row["ranking"] == "maskmend") for seed in sorted(seeds)]

    def mean(key: str) -> str:
        values = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
        return _cell(values) if values else "-"

    lines = [
        f"Suggested masks: flawed ones from Dice {mean('given_dice')} to {mean('mended_dice')}, the others from "
        f"{mean('given_dice_sound')} to {mean('mended_dice_sound')}."
    ]
    if any("kind_accuracy" in row for row in rows):
        lines[0] += f" Kind of error right: {mean('kind_accuracy')}."
    share = [row["expected_wrong"] / row["true_wrong"] for row in rows]
    lines[0] += f" Expected over true number of wrong voxels: {_cell(share)}."
    return lines


def _cell(values: Sequence[float], form: str = ".3f") -> str:
    """Mean, with its interval from three values on: two say nothing of their spread."""
    if not len(values):
        return ""
    mean, half = interval(values)
    return f"{mean:{form}} ± {half:.3f}" if len(values) > 2 else f"{mean:{form}}"


def figure(groups: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]], path: Path) -> None:
    """AUROC and AP of cases and AP of voxels by ranking, a dot for each seed and a bar for the mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = ("auroc", "ap", "voxel_ap")
    _, axes = plt.subplots(
        1, len(shown), figsize=(10, 1.1 + 1.0 * len(groups)), sharey=True, layout="constrained"
    )
    names = list(groups)
    for axis, score in zip(axes, shown, strict=True):
        for row, name in enumerate(names):
            values = by_ranking(groups[name], score)
            for offset, (ranking, ones) in enumerate(values.items()):
                if not ones:
                    continue
                at, colour = row + 0.11 * (offset - 3.5), COLOURS[ranking]
                axis.scatter(ones, [at] * len(ones), s=9, color=colour, alpha=0.5, linewidths=0)
                label = ranking if row == 0 and score == "auroc" else None
                axis.plot([np.mean(ones)] * 2, [at - 0.05, at + 0.05], color=colour, lw=2.5, label=label)
        axis.set_title(SCORES[score], fontsize=10)
        axis.grid(axis="x", color="#dddddd", lw=0.6)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), [TITLES[name] for name in names], fontsize=9)
    axes[0].invert_yaxis()
    axes[0].figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    axes[0].figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="holds scores.json and unseen.json")
    folder = parser.parse_args().folder
    groups, unseen = (read(folder / name) for name in ("scores.json", "unseen.json"))
    told = [HEAD, "## Seeds 10 to 14", "", tables(groups), "## Seeds from 15 on", "", tables(unseen)]
    (folder / "tables.md").write_text("\n".join(told).rstrip() + "\n")
    every = merged(groups, unseen)
    print(together(every))
    figure(every, folder / "rankings.png")


if __name__ == "__main__":
    main()
