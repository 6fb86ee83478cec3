"""What a benchmark leaves: tidy files, Markdown, a self-contained HTML page, LaTeX tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maskmend.benchmark import plots, table, tidy
from maskmend.benchmark.code_state import mixed_states
from maskmend.benchmark.compare import Comparison, Condition, compare
from maskmend.benchmark.grid import Grid
from maskmend.benchmark.settings import Benchmark, dump
from maskmend.data.atomic import atomic_write, write_text
from maskmend.plain import plain
from maskmend.progress import clock, message
from maskmend.report import Picture, Section, Table, write_report

PICTURES = {
    "dice_against_rate.png": (
        "Test Dice against the share of flawed masks",
        "Means over seeds with 95 % bootstrap intervals; the baseline and the best methods in colour.",
    ),
    "critical_differences.png": (
        "Mean ranks",
        "Ranks over all conditions with flawed masks; a bar joins methods that these do not tell apart (Nemenyi, 5 %).",
    ),
    "learning_curves.png": (
        "When memorisation starts",
        "Above: Dice on test cases along training, a diagnostic by which nothing was selected. Below: share of wrong"
        " labels that the prediction repeats. Dotted: where the baseline's test Dice is best.",
    ),
}

NOT_IN_PRINT = ("seeds", "better / worse", "image rank", "seconds")
CLEAN_TEXT = "What it costs, or brings, to use a method where no mask is flawed."


def write_all(
    plan: Benchmark,
    trials: Grid,
    results: Mapping[str, Mapping[str, Any]],
    out: Path,
    spent: Mapping[str, Any],
) -> dict[str, Any]:
    """Write everything and return the summary."""
    rows = tidy.rows(trials, results)
    compared = compare(rows, plan.baseline)
    tidy.write_tidy(rows, compared, out)
    pictures = _draw(rows, compared, out)
    title = plan.title or "Benchmark"
    summary = _summary(rows, trials, compared, spent)
    lead = _lead(summary, compared)
    sections = _sections(plan, trials, rows, compared, pictures, summary)
    write_text(out / "README.md", _markdown(title, lead, sections))
    write_text(out / "tables.tex", _latex(compared))
    page = write_report(out / "report.html", title, lead, sections)
    for line in lead:
        message(line)
    message(f"report: {page}")
    return summary | {"report": str(page)}


def _draw(rows: Sequence[Mapping[str, Any]], compared: Comparison, out: Path) -> dict[str, bytes]:
    drawn = {
        "dice_against_rate.png": plots.dice_against_rate(compared),
        "critical_differences.png": plots.critical_differences(compared),
        "learning_curves.png": plots.learning_curves(rows, compared),
    }
    pictures = {}
    for name, png in drawn.items():
        (out / name).unlink(missing_ok=True)
        if png is not None:
            pictures[name] = png
            atomic_write(out / name, lambda path, png=png: path.write_bytes(png) and None)  # type: ignore[misc]
    return pictures


def _summary(
    rows: Sequence[Mapping[str, Any]], trials: Grid, compared: Comparison, spent: Mapping[str, Any]
) -> dict[str, Any]:
    done = [row for row in rows if row["status"] == "done"]
    hours = sum(row["total_seconds"] for row in rows) / 3600
    rate = 3600 * spent["runs"] / spent["seconds"] if spent.get("seconds") else None
    facts: dict[str, Any] = {
        "maskmend": version("maskmend"),
        "versions": sorted({str(row["maskmend"]) for row in rows}),
        "runs": len(trials.trials),
        "done": len(done),
        "failed": sum(row["status"] == "failed" for row in rows),
        "missing": len(trials.trials) - len(rows),
        "code_changed_for": mixed_states(rows),
        "left_out": list(trials.skipped),
        "computing_hours": round(hours, 3),
        "machines": sorted({str(row["machine"]) for row in rows}),
        "last_call": dict(spent) | {"runs_per_hour": None if rate is None else round(rate, 1)},
        "baseline": compared.baseline,
        "conditions": compared.ranked,
        "friedman_p": compared.friedman_p,
        "critical_difference": compared.critical,
        "methods": [
            {
                "method": one.method, "rank": one.rank, "dice": one.dice, "recovered": one.recovered, "p_holm": one.p,
                "image_auroc": one.auroc, "image_rank": one.image_rank, "time_relative": one.cost,
                "better": one.better, "worse": one.worse, "failed": one.failed,
                "gain": None if one.test is None else one.test.difference,
            }
            for one in compared.totals
        ],
    }  # fmt: skip
    return plain(facts)


def _lead(summary: Mapping[str, Any], compared: Comparison) -> list[str]:
    ranks = compared.mean_ranks
    lead = []
    if len(ranks) > 1 and compared.ranked:
        best = next(iter(ranks))
        over = table.counted(compared.ranked, "condition")
        told = f"Best mean rank: {best}, {ranks[best]:.2f} of {len(ranks)} methods over {over}"
        same = [name for name in ranks if name != best and ranks[name] - ranks[best] <= compared.critical]
        if same and compared.critical == compared.critical:
            told += f"; not told apart from {len(same)} of the others at the 5 % level"
        lead += [f"{told}.", _against_baseline(compared)]
    if summary["failed"] or summary["missing"]:
        failed = table.counted(summary["failed"], "failed run")
        lead.append(f"{failed} and {summary['missing']} missing of {summary['runs']}.")
    if changed := summary["code_changed_for"]:
        lead.append(
            f"maskmend's code changed between runs of {', '.join(changed)}: they may not be comparable; a new output"
            " folder does all runs again."
        )
    return lead or [f"{summary['done']} of {table.counted(summary['runs'], 'run')} are done."]


def _against_baseline(compared: Comparison) -> str:
    """Which methods differ from the baseline over all conditions, or why none can be said to."""
    told = [one for one in compared.totals if one.test and one.p < 0.05]
    parts = []
    for word, sign in (("better", 1), ("worse", -1)):
        if names := [one.method for one in told if one.test and sign * one.test.difference > 0]:
            parts.append(f"{word} than {compared.baseline}: {', '.join(names)}")
    if parts:
        text = "; ".join(parts)
        return f"{text[0].upper()}{text[1:]} (p < 0.05 over all conditions, corrected)."
    tests = sum(one.test is not None for one in compared.totals)
    least = min(1.0, tests * 2.0 ** (1 - compared.ranked))
    few = (
        f", nor could one with {table.counted(compared.ranked, 'condition')}: p cannot fall below {least:.2g}"
    )
    return f"No method differs from {compared.baseline} at the 5 % level{few if least >= 0.05 else ''}."


def _sections(
    plan: Benchmark,
    trials: Grid,
    rows: Sequence[Mapping[str, Any]],
    compared: Comparison,
    pictures: Mapping[str, bytes],
    summary: Mapping[str, Any],
) -> list[Section]:
    def shown(name: str) -> list[Picture]:
        heading, caption = PICTURES[name]
        return [Picture(pictures[name], caption, heading)] if name in pictures else []

    ranked = shown("critical_differences.png")
    sections = [Section("All conditions", table=table.overall_table(compared), pictures=ranked)]
    if clean := table.clean_table(compared):
        sections.append(Section("On true masks", [CLEAN_TEXT], table=clean))
    for name in ("dice_against_rate.png", "learning_curves.png"):
        if found := shown(name):
            sections.append(Section(PICTURES[name][0], pictures=found))
    for condition in compared.lines:
        heading = f"{condition.data}: {condition.title}"
        text = [_given_text(rows, condition)]
        sections.append(Section(heading, text, table=table.condition_table(compared, condition)))
    sections += _failures(rows)
    sections.append(Section("How it was run", _how(summary), code=dump(plan), folded="the benchmark's file"))
    if trials.skipped:
        sections.append(Section("Left out", list(trials.skipped)))
    return sections


def _given_text(rows: Sequence[Mapping[str, Any]], condition: Condition) -> str:
    own = [row for row in rows if Condition(row["data"], row["noise"], row["rate"]) == condition]
    done = [row for row in own if row["status"] == "done"]
    if not done:
        return "No run has finished."
    label = sum(row["label_dice"] for row in done) / len(done)
    steps = sorted({row["steps"] for row in done})
    counts = done[0]["train_cases"], done[0]["test_cases"]
    return (
        f"Dice of the masks given to training: {label:.3f}. {counts[0]} training and {counts[1]} test cases, "
        f"{' or '.join(map(str, steps))} steps of {done[0]['batch']} patches."
    )


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    failed = [row for row in rows if row["status"] == "failed"]
    if not failed:
        return []
    names = ("data", "noise", "rate", "method", "seed")
    listed = [[*(str(row[name]) for name in names), str(row["error"])] for row in failed]
    code = "\n\n".join(f"{row['key']}\n{row['traceback']}" for row in failed)
    text = ["The same command tries these again."]
    found = Table((*names, "error"), listed)
    return [Section("Failed runs", text, table=found, code=code, folded="tracebacks")]


def _how(summary: Mapping[str, Any]) -> list[str]:
    last = summary["last_call"]
    texts = [
        f"{table.counted(summary['done'], 'run')}, {summary['computing_hours']:.2f} hours of computing, "
        f"maskmend {', '.join(summary['versions']) or summary['maskmend']}; {'; '.join(summary['machines'])}.",
        "Every method gets the same cases, masks, network, steps and schedule; seeds decide the division of the cases,"
        " the flaws, the initial weights and the order of patches. Scores are those of the last step: nothing is"
        " selected on test cases.",
    ]
    if last["runs_per_hour"]:
        texts.append(
            f"The last call did {table.counted(last['runs'], 'run')} in {clock(last['seconds'])} with "
            f"{table.counted(last['workers'], 'worker')}: {last['runs_per_hour']:g} runs per hour."
        )
    return texts


def _markdown(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    parts = [f"# {title}", *lead]
    names = {heading: name for name, (heading, _) in PICTURES.items()}
    for section in sections:
        parts += [f"## {section.heading}", *section.text]
        if section.table:
            parts.append(table.markdown(section.table).strip())
        for picture in section.pictures:
            parts += [f"![{picture.alt}]({names[picture.alt]})", picture.caption]
        if section.code:
            parts.append(f"```text\n{section.code.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _latex(compared: Comparison) -> str:
    over = (
        f"Means over {table.counted(compared.ranked, 'condition')} with flawed masks. p: Wilcoxon's signed-rank test"
        " over conditions, Holm-corrected. Recovered: share of the gap to training on true masks. Time: of training,"
        " relative."
    )
    within = (
        f"Mean test Dice over seeds with its 95 % bootstrap interval, and gain over {compared.baseline} on the same"
        " seeds. p: Wilcoxon's signed-rank test, Holm-corrected."
    )
    tables = [table.latex(table.overall_table(compared), over, "all", NOT_IN_PRINT)]
    if clean := table.clean_table(compared):
        tables.append(table.latex(clean, "Training on true masks.", "true-masks"))
    for condition in compared.lines:
        heading, found = f"{condition.data}, {condition.title}", table.condition_table(compared, condition)
        tables.append(table.latex(found, f"{heading}. {within}", heading, NOT_IN_PRINT))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(tables)
