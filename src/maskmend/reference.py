"""The reference pages, made from schema and docstrings so that they cannot drift from the code."""

from __future__ import annotations

import inspect
from typing import Any

from maskmend import config, methods
from maskmend.config_text import as_text


def method_facts(name: str) -> dict[str, Any]:
    """One method as JSON-ready facts: name, summary, settings with type and default."""
    method = methods.load(name)
    settings = {
        key: {"type": _annotation(setting), **({} if _required(setting) else {"default": setting.default})}
        for key, setting in methods.settings(method).items()
    }
    summary = (inspect.getdoc(method) or "").split("\n")[0]
    return {"name": name, "class": method.__name__, "summary": summary, "settings": settings}


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
