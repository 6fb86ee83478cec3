"""What a verb prints on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

from maskmend.plain import plain
from maskmend.pseudonyms import clean_paths

_UNBOUNDED = 10_000  # columns, wider than any table


def print_rich(content: Any, *, narrow: Any = None, least: int | None = None, stderr: bool = False) -> None:
    """Show what rich can draw, such as a table.

    Args:
        content: what is shown.
        narrow: what is shown instead where the terminal is too narrow for `content`.
        least: columns from which on it is not; None: as many as it needs to break no line.
        stderr: show it there.
    """
    from rich.console import Console
    from rich.measure import Measurement

    # Without a terminal rich would wrap at 80 columns, which breaks paths in logs and pipes.
    shown = sys.stderr if stderr else sys.stdout
    console = Console(width=None if shown.isatty() else 160, highlight=False, markup=False, stderr=stderr)
    if narrow is not None:
        unbounded = console.options.update(max_width=_UNBOUNDED)
        least = least or Measurement.get(console, unbounded, content).maximum
        content = content if least <= console.width else narrow
    console.print(content)


def print_json(value: Any) -> None:
    """Print `json_text`."""
    print(json_text(value))


def json_text(value: Any) -> str:
    """A value as strict JSON, see `maskmend.plain`.

    Args:
        value: dictionaries, lists, numbers, text and paths; hidden names are hidden here too.
    """
    return clean_paths(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False))
