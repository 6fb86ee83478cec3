"""Which state of the code a result comes from: a key says what was run, not what the code made of it."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[1]
ROOMS = ("data", "noise", "predict", "train")
FILES = ("losses.py", "networks.py", "robust_losses.py", "methods/base.py")


def code_state(method: str) -> list[str]:
    """Hashes of the code that decides outcomes: what all methods share, and what the method alone goes by.

    Comments, layout and docstrings do not count. A method of the user's own has none: its key tells.
    """
    own = SOURCES / "methods" / f"{method}.py"
    return [_shared(), _hashed(_with_helpers(own)) if own.is_file() else ""]


def mixed_states(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Who cannot be compared because the code changed between runs: ["all methods"], or names of methods."""
    known = [(row["method"], *row["code"]) for row in rows if row.get("code")]
    if len({shared for _, shared, _ in known}) > 1:
        return ["all methods"]
    states: dict[str, set[str]] = {}
    for method, _, own in known:
        states.setdefault(method, set()).add(own)
    return [method for method, found in states.items() if len(found) > 1]


@functools.cache
def _shared() -> str:
    rooms = [path for room in ROOMS for path in sorted((SOURCES / room).rglob("*.py"))]
    return _hashed(
        [*rooms, *(SOURCES / name for name in FILES), *sorted((SOURCES / "methods").glob("_[a-z]*.py"))]
    )


def _with_helpers(own: Path) -> list[Path]:
    """The method's file and the files directly below the package that it builds on and that are not shared."""
    found, waiting = [own], [own]
    while waiting:
        tree = ast.parse(waiting.pop().read_text(encoding="utf-8"))
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        for file in (SOURCES / f"{name.removeprefix('maskmend.')}.py" for name in sorted(modules)):
            if file.parent == SOURCES and file.is_file() and file.name not in FILES and file not in found:
                found.append(file)
                waiting.append(file)
    return found


def _hashed(files: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for path in files:
        digest.update(path.name.encode() + _bare(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def _bare(text: str) -> str:
    """The code as a tree in one line, without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
