"""The reference pages, made from schema and docstrings so that they cannot drift from the code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maskmend import config, methods
from maskmend.config_text import as_text

if TYPE_CHECKING:
    from rich.table import Table

    from maskmend.methods.base import Method

COLUMNS = ("name", "family", "networks", "cost", "needs", "what it does", "source")
WIDE = 120
"""Columns of a terminal from which on `COLUMNS` can be read."""
NARROW = ("name", "cost", "needs", "what it does")
"""What narrower ones show."""


def method_facts(name: str, costs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One method as JSON-ready facts: what it is and needs, what it costs, settings with type and default.

    Args:
        name: of the method.
        costs: as `maskmend.benchmark.cost.measure` gives them; None: the stored ones.
    """
    from maskmend.benchmark.cost import stored

    method, measured = methods.load(name), costs or stored()
    settings = {
        key: {"type": _annotation(setting), **({} if _required(setting) else {"default": setting.default})}
        for key, setting in methods.settings(method).items()
    }
    return {
        "name": name,
        "class": method.__name__,
        "summary": (inspect.getdoc(method) or "").split("\n")[0],
        "family": method.family,
        "networks": networks_held(method),
        "needs": list(method.needs),
        "cost": measured["costs"].get(name),
        "cost_source": measured["source"],
        "source": method.source,
        "settings": settings,
    }


def networks_held(method: type[Method]) -> int:
    """How many networks a method keeps with its default settings, averages included; counted, not declared."""
    from torch import nn

    class Probe(nn.Sequential):
        """The least network that has an encoder and a decoder, and can be told from others."""

    make: Any = method
    built = make(lambda: Probe(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)))
    return sum(isinstance(module, Probe) for module in built.modules())


def methods_table(facts: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> Table:
    """The list that `maskmend methods` prints.

    Args:
        facts: of each method.
        columns: those shown.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in ("networks", "cost")
        table.add_column(
            column, justify="right" if right else "left", no_wrap=right or column == "name", overflow="fold"
        )
    for one in facts:
        cost = "" if one["cost"] is None else f"{one['cost']:.2f}"
        cells = {"cost": cost, "needs": ", ".join(one["needs"]), "what it does": one["summary"]}
        table.add_row(*(str({**one, **cells}[column]) for column in columns))
    table.caption = f"cost: of a step, relative to supervised ({facts[0]['cost_source']})"
    if len(columns) < len(COLUMNS):
        table.caption += "; the rest of each: maskmend methods NAME, or --json"
    table.caption_justify = "left"
    return table


def describe_method(name: str) -> str:
    """One method's own documentation and the `key=value` of each setting's default."""
    facts = method_facts(name)
    lines = [
        f"method.{key}={as_text(one.get('default'))}  ({one['type']})"
        for key, one in facts["settings"].items()
    ]
    head = inspect.getdoc(methods.load(name)) or ""
    return "\n".join([f"method.name={name}", "", head, "", "Settings:", *(f"  {line}" for line in lines)])


def config_page() -> str:
    """docs/reference/config.md: every key with type, default and meaning."""
    parts = [
        "# Configuration",
        "",
        "Made from `src/maskmend/config.py` by `make docs`. A key is set as `key=value` on the command line, or",
        "in a YAML file given with `--config`; values are YAML and the last one wins.",
    ]
    section = None
    for key, part in config.fields():
        if (head := key.rpartition(".")[0]) != section:
            section = head
            parts += [
                "",
                f"## {section or 'top level'}",
                "",
                "| key | allowed | default | meaning |",
                "|---|---|---|---|",
            ]
        default = f"`{as_text(part['default'])}`" if "default" in part else "`{}`"
        row = (f"`{key}`", config.allowed(part), default, part.get("description", ""))
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(parts) + "\n"


def methods_page() -> str:
    """docs/reference/methods.md: every method's documentation and settings."""
    parts = [
        "# Methods",
        "",
        "Made from `src/maskmend/methods/` by `make docs`; the same as `maskmend methods NAME`.",
    ]
    for name in methods.names():
        parts += ["", f"## {name}", "", "```text", describe_method(name), "```"]
    return "\n".join(parts) + "\n"


def _required(setting: inspect.Parameter) -> bool:
    return setting.default is inspect.Parameter.empty


def _annotation(setting: inspect.Parameter) -> str:
    kind = setting.annotation
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
