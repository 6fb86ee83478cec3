"""The worst cases as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def worst_table(
    records: Sequence[Mapping[str, Any]], counted: bool = True, shown: int = 10, *, brief: bool = False
) -> Table:
    """The worst cases.

    Args:
        records: plain values, worst first.
        counted: how many are flawed can be said.
        shown: how many cases.
        brief: without what a narrow terminal has no room for.
    """
    from rich.table import Table

    flawed = sum(float(record["flawed"]) for record in records)
    told = (
        f"about {flawed:.0f} of them with an error worth mending"
        if counted
        else "the likeliest to be flawed first"
    )
    table = Table(title=f"{len(records)} masks, {told}", title_justify="left")
    table.add_column("case", overflow="fold")
    numbers = ("flawed", "est. Dice") if brief else ("flawed", "est. Dice", "90 % interval", "wrong voxels")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kind of error", no_wrap=True)
    table.add_column("where", no_wrap=True)
    for record in records[:shown]:
        interval = f"{record['quality_low']:.2f} to {record['quality_high']:.2f}"
        table.add_row(
            str(record["case"]),
            f"{record['flawed']:.0%}",
            f"{record['quality']:.2f}",
            *(() if brief else (interval, f"{record['wrong_voxels']:,.0f}")),
            str(record["kind"]),
            ", ".join(map(str, record["worst"] or ())),
        )
    return table
