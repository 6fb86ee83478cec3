"""A noise from its description, as it stands in a YAML file or in `noise.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from maskmend.errors import UsageError, unknown
from maskmend.noise.base import KINDS, LabelNoise

_FORM = "e.g. {noise: dilate, radius_mm: [2, 5]}"

Spec = str | Mapping[str, Any] | LabelNoise


def build(spec: Spec, named: Mapping[str, LabelNoise] | None = None) -> LabelNoise:
    """A noise from its description, e.g. {"noise": "dilate", "radius_mm": [2, 5]}; the inverse of `describe`.

    Args:
        spec: a mapping with the key "noise" and the settings of that kind, a kind or name alone, or a noise.
        named: noises that a description may name as if they were kinds without settings.

    Raises:
        UsageError: an unknown kind or setting, a setting that is missing or of the wrong type.
    """
    if isinstance(spec, LabelNoise):
        return spec
    if not isinstance(spec, str | Mapping) or (isinstance(spec, Mapping) and "noise" not in spec):
        raise UsageError(f"{spec!r} describes no noise", "noise", _FORM)
    given, named = {"noise": spec} if isinstance(spec, str) else dict(spec), named or {}
    name = str(given.pop("noise"))
    if name not in KINDS and name in named:
        if given:
            raise UsageError(
                f"{name!r} is a preset and has no settings", "noise", f"leave out {', '.join(given)}"
            )
        return named[name]
    if name not in KINDS:
        raise unknown("kind of noise", name, [*KINDS, *named])
    return _of_kind(name, given, named)


def _of_kind(name: str, given: Mapping[str, Any], named: Mapping[str, LabelNoise]) -> LabelNoise:
    kind: Any = KINDS[name]
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    hints, settings = get_type_hints(kind), {}
    for key, value in given.items():
        if key not in known:
            raise unknown(f"setting of {name}", str(key), known)
        settings[key] = _built(value, "LabelNoise" in str(hints[key]), named)
        _check_type(settings[key], hints[key], f"{name}: {key}")
    for key, field in known.items():
        if key not in settings and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{name} needs the setting {key!r}", "noise")
    return kind(**settings)


def _built(value: Any, is_noise: bool, named: Mapping[str, LabelNoise]) -> Any:
    """Lists as tuples; where a noise belongs, its description or name as that noise."""
    if isinstance(value, list | tuple):
        return tuple(_built(inner, is_noise, named) for inner in value)
    if is_noise and (isinstance(value, str) or (isinstance(value, Mapping) and "noise" in value)):
        return build(value, named)
    if isinstance(value, Mapping):
        return {str(key): _built(inner, is_noise, named) for key, inner in value.items()}
    return value


def _check_type(value: Any, hint: Any, where: str) -> None:
    """Compare with the field's annotation; the value itself is kept as it was written."""
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError as error:
        wanted = (
            error.errors()[0]["msg"]
            .removeprefix("Input should be ")
            .replace("an instance of Sequence", "a list")
        )
        raise UsageError(f"{value!r} is not {wanted}", where) from None


def read_noise(spec: str) -> str | dict[str, Any]:
    """What `--noise` means: a preset's name, or the description in a YAML file or an earlier `noise.json`.

    Raises:
        UsageError: the file is missing, or describes no noise.
    """
    path = Path(spec)
    if path.suffix not in (".yaml", ".yml", ".json"):
        return spec
    content = _content(path)
    if "cases" in content:  # a noise.json
        content = content.get("settings")
    if isinstance(content, dict) and isinstance(content.get("noise"), dict):
        content = content["noise"]
    if not isinstance(content, dict) or "noise" not in content:
        raise UsageError("describes no noise", path, _FORM)
    return content


def _content(path: Path) -> Any:
    from maskmend.config_text import parse

    try:
        content = parse(path.read_text(encoding="utf-8"), path)[0]
    except FileNotFoundError:
        remedy = "give a file, or a preset of `maskmend corrupt --list`"
        raise UsageError("does not exist", path, remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", path, f"it holds a noise, {_FORM}") from None
    return content if isinstance(content, dict) else {}
