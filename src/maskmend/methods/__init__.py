"""Ways of learning, one file each. The folder is the list: adding a method is adding a file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskmend.errors import UsageError, nearest, unknown

if TYPE_CHECKING:
    from maskmend.methods.base import Method

CONTRACT = "base"


def names() -> list[str]:
    """The methods in this folder, sorted."""
    return sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if p.stem != CONTRACT)


def load(name: str) -> type[Method]:
    """The class of one method; only its own file is imported.

    Args:
        name: one of `names()`, or the path of a Python file that defines one subclass of `Method`.

    Raises:
        UsageError: unknown name (with the nearest), or a file that breaks or holds no method.
    """
    if name.endswith(".py"):
        return _only_method(_import_file(Path(name)), name)
    if name not in names():
        raise unknown("method", name, names(), "method.name")
    return _only_method(importlib.import_module(f"{__name__}.{name}"), name)


def settings(method: type[Method]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a method: its legal settings, with defaults and types."""
    found = inspect.signature(method.__init__).parameters
    return {name: p for name, p in found.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_settings(method: type[Method], given: dict[str, Any]) -> None:
    """Refuse settings that the method does not have; its own `__init__` judges the values."""
    legal = settings(method)
    for key in given:
        if key not in legal:
            guess = nearest(key, legal)
            remedy = (
                f"did you mean method.{guess}?" if guess else f"it has: {', '.join(sorted(legal)) or 'none'}"
            )
            raise UsageError(f"{method.__name__} has no setting {key!r}", f"method.{key}", remedy)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError("no such method file", path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError("not a Python file", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as fault:  # a user's file may break in any way; show their line, not ours
        own = [f for f in traceback.extract_tb(fault.__traceback__) if f.filename == str(path)]
        line = own[-1].lineno if own else getattr(fault, "lineno", None)
        raise UsageError(f"{type(fault).__name__}: {fault}", f"{path}:{line}" if line else path) from fault
    return module


def _only_method(module: Any, name: str) -> type[Method]:
    from maskmend.methods.base import Method

    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise UsageError(f"holds {len(own)} subclasses of Method; one is wanted", name)
    return own[0]
