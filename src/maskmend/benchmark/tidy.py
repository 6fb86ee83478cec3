"""Results as tidy files, CSV and Parquet: every figure unrounded, one fact per line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskmend.benchmark.compare import Comparison
from maskmend.benchmark.grid import Grid
from maskmend.data.atomic import atomic_write, write_text

PLACE = ("key", "data", "noise", "rate", "method", "seed")
RUNS = (
    *PLACE, "status", "dice", "hd95_mm", "label_dice", "image_auroc", "image_rank", "steps", "batch", "seconds",
    "cpu_seconds", "total_seconds", "device", "train_cases", "test_cases", "maskmend", "machine", "error", "traceback",
)  # fmt: skip
COMPARISON = (
    "data", "noise", "rate", "method", "seeds", "failed", "dice", "dice_low", "dice_high", "rank", "gain", "gain_low",
    "gain_high", "p", "p_holm", "recovered", "image_auroc", "image_rank", "seconds",
)  # fmt: skip
_WHOLE = {"seed", "steps", "step", "batch", "train_cases", "test_cases", "seeds", "failed"}
_TEXT = {
    "key", "data", "noise", "method", "status", "device", "class", "case", "maskmend", "machine", "error", "traceback",
}  # fmt: skip
Row = dict[str, Any]


def rows(trials: Grid, results: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """One row per run of the grid that has a result, in the grid's order; `RUNS` and the nested figures."""
    found = []
    for trial in trials.trials:
        if trial.key in results:
            result = results[trial.key]
            found.append({name: result.get(name) for name in RUNS} | dict(result) | trial.place)
    return found


def write_tidy(found: Sequence[Row], compared: Comparison, out: Path) -> list[Path]:
    """`runs`, `classes`, `cases`, `curves` and `comparison`, as CSV and where pyarrow is installed as Parquet.

    Args:
        found: from `rows`.
        compared: what they say.
        out: the folder.

    Returns:
        The files.
    """
    points = [
        {p: row[p] for p in PLACE} | {"step": step, "test_dice": dice, "memorised": memorised}
        for row in found
        for step, dice, memorised in row.get("curve") or []
    ]
    tables: dict[str, tuple[Sequence[str], list[Row]]] = {
        "runs": (RUNS, [{name: row.get(name) for name in RUNS} for row in found]),
        "classes": ((*PLACE, "class", "dice"), list(_nested(found, "class"))),
        "cases": ((*PLACE, "case", "dice"), list(_nested(found, "case"))),
        "curves": ((*PLACE, "step", "test_dice", "memorised"), points),
        "comparison": (COMPARISON, list(_compared(compared))),
    }
    written = []
    for name, (columns, lines) in tables.items():
        written.append(_write_csv(out / f"{name}.csv", columns, lines))
        written += _write_parquet(out / f"{name}.parquet", columns, lines)
    return written


def _nested(found: Sequence[Row], unit: str) -> Iterator[Row]:
    for row in found:
        for which, value in (row.get(f"dice_by_{unit}") or {}).items():
            yield {p: row[p] for p in PLACE} | {unit: which, "dice": value}


def _compared(compared: Comparison) -> Iterator[Row]:
    """The lines of all conditions; unknown figures are None."""
    for condition, lines in compared.lines.items():
        for line in lines:
            dice, test = line.dice, line.test
            figures = {
                "dice": dice.estimate, "dice_low": dice.low, "dice_high": dice.high, "rank": line.rank,
                "p_holm": line.p, "recovered": line.recovered, "image_auroc": line.auroc, "image_rank": line.image_rank,
                "seconds": line.seconds,
            }  # fmt: skip
            if test:
                figures |= {
                    "gain": test.difference,
                    "gain_low": test.low,
                    "gain_high": test.high,
                    "p": test.p,
                }
            known = {name: figures.get(name, math.nan) for name in COMPARISON[6:]}
            counts = {"method": line.method, "seeds": dice.n, "failed": line.failed}
            yield condition._asdict() | counts | {k: None if math.isnan(v) else v for k, v in known.items()}


def _write_csv(path: Path, columns: Sequence[str], lines: Sequence[Row]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())
    return path


def _write_parquet(path: Path, columns: Sequence[str], lines: Sequence[Row]) -> list[Path]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        path.unlink(missing_ok=True)  # one from another environment would be out of date
        return []

    def kind(name: str) -> Any:
        """Told, for a column without a value would get a type that the same column elsewhere has not."""
        return pyarrow.int64() if name in _WHOLE else pyarrow.string() if name in _TEXT else pyarrow.float64()

    table = pyarrow.table({name: pyarrow.array([x[name] for x in lines], kind(name)) for name in columns})
    atomic_write(path, lambda temporary: pyarrow.parquet.write_table(table, temporary))
    return [path]
