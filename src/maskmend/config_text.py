"""Configuration text: YAML files and `key=value`, with the line of each key for error messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from maskmend.errors import UsageError


class Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `no` is text, `1e-3` a number and 2024-01-01 no date."""


_MOST_NODES = 100_000  # a configuration has some hundreds


class Dumper(yaml.SafeDumper):
    """Quotes what `Loader` would not read as text."""


_SCALARS = {
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "null": (r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    "int": (r"^[-+]?[0-9]+$", "-+0123456789"),
    "float": (
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        "-+0123456789.",
    ),
}


def _set_scalars() -> None:
    for kind in (Loader, Dumper):
        kind.yaml_implicit_resolvers = {}
        for tag, (pattern, first) in _SCALARS.items():
            initials: list[Any] = ["" if letter == "\0" else letter for letter in first]
            kind.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), initials)
    # PyYAML alone would read 010 as octal.
    Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_set_scalars()


def read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree of a YAML file, and where each dotted key stands as "file:line"."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"cannot read the configuration: {reason}", file) from None
    tree, node = parse(text, file)
    if not isinstance(tree or {}, dict):
        raise UsageError("a configuration is a mapping of sections", file, "e.g.\n  train:\n    steps: 500")
    return tree or {}, dict(_places(node, "", file))


def parse(text: str, file: Path) -> tuple[Any, Any]:
    """The tree of a YAML text, and the nodes it was made of.

    Raises:
        UsageError: no YAML, nested too deep, or one that grows by references to itself ("billion laughs").
    """
    try:
        node = yaml.compose(text, Loader=Loader)
        if node is not None and _weight(node, {}) > _MOST_NODES:
            raise UsageError("grows to millions of entries by its references", file, "write it out")
        return yaml.load(text, Loader=Loader), node
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise UsageError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where) from None
    except (
        ValueError,
        TypeError,
    ) as error:  # a value that its tag does not allow, a number of thousands of digits
        raise UsageError(f"holds a value that cannot be read: {str(error)[:200]}", file) from None
    except RecursionError:
        raise UsageError("is nested too deep or refers to itself", file) from None


def _weight(node: Any, known: dict[int, float]) -> float:
    """How many nodes a node stands for when its references are followed; infinite when it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        if isinstance(node, yaml.ScalarNode):
            node.value.encode()  # half a character is a ValueError: nothing could write it down
        parts = node.value if not isinstance(node, yaml.ScalarNode) else []
        inner = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_weight(one, known) for one in inner)
    return known[id(node)]


def _places(node: Any, prefix: str, file: Path) -> Iterator[tuple[str, str]]:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name, place = f"{prefix}{key.value}", f"{file}:{key.start_mark.line + 1}"
        if key.tag != "tag:yaml.org,2002:str" and prefix.count(".") < 2:
            raise UsageError(f"unknown key {_plain(key)!r}: a key is a name", place, "e.g. train:")
        if name in seen:
            raise UsageError(f"key {name!r} is given twice", place, "keep one of them")
        seen.add(name)
        yield name, place
        yield from _places(value, f"{name}.", file)


def _plain(node: Any) -> Any:
    """A key's text; what is no scalar has none."""
    return node.value if isinstance(node, yaml.ScalarNode) else node.id


def split(text: str) -> tuple[str, Any]:
    """`key=value` as the dotted key and its YAML value."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise UsageError(f"expected key=value, got {text!r}", None, "e.g. train.steps=500")
    try:
        return key, yaml.load(value, Loader=Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = getattr(error, "problem", None) or "not a YAML value"
        raise UsageError(
            f"cannot read the value {value!r}: {problem}", key, "quote it for the shell"
        ) from None


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested mapping, in place."""
    *path, last = key.split(".")
    for name in path:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[last] = value


def to_yaml(tree: dict[str, Any]) -> str:
    """A nested mapping as YAML in its own order."""
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def as_text(value: Any) -> str:
    """A value as one writes it after `key=`."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()
