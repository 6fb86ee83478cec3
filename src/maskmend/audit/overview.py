"""The worst cases as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def worst_table(records: Sequence[Mapping[str, Any]], counted: bool = True, shown: int = 10) -> Table:
    """The first `shown` records (plain values, worst first); `counted`: how many are flawed can be said."""
    from rich.table import Table

    flawed = sum(float(record["flawed"]) for record in records)
    told = (
        f"about {flawed:.0f} of them with an error worth mending"
        if counted
        else "the likeliest to be flawed first"
    )
    title = f"{len(records)} masks, {told}"
    table = Table(title=title, title_justify="left")
    table.add_column("case", overflow="fold")
    for name in ("flawed", "est. Dice", "90 % interval", "wrong voxels"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("kind of error", overflow="fold")
    table.add_column("where", overflow="fold")
    for record in records[:shown]:
        table.add_row(
            str(record["case"]),
            f"{record['flawed']:.0%}",
            f"{record['quality']:.2f}",
            f"{record['quality_low']:.2f} to {record['quality_high']:.2f}",
            f"{record['wrong_voxels']:,.0f}",
            str(record["kind"]),
            ", ".join(map(str, record["worst"] or ())),
        )
    return table
