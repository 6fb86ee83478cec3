"""What a benchmark file may say, typed; unknown keys are errors with the nearest name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from maskmend.config import Section
from maskmend.config_text import as_text, put, read, split, to_yaml
from maskmend.errors import UsageError, nearest, unknown

PRESETS = Path(__file__).parent / "presets"
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
OURS = ("train.seed", "method", "data.cache", "train.processes", "data.rater")
"""Settings that the grid itself decides."""


class Phantoms(Section):
    """Synthetic cases in place of files."""

    ndim: Literal[2, 3] = 2
    cases: Count = 80
    seed: Seed = 0
    shape: list[Count] | None = None


class Data(Section):
    """One data set.

    `path` is looked up below `--data`. Cases are divided anew for every seed, patients kept whole, unless the data set
    marks test cases. `noise` names the noises of the file that this data set gets, with its own parameters where the
    same severity needs others (null: none); without it, it gets all of them. `trusted` stands over that of the file.
    """

    path: str | None = None
    phantom: Phantoms | None = None
    train: Count | None = None
    test: Count | None = None
    noise: dict[str, dict[str, Any] | None] | None = None
    trusted: Share | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.path is None) == (self.phantom is None):
            raise ValueError("give either path or phantom")
        return self


class Noise(Section):
    """How training masks are flawed: a kind or preset of `maskmend corrupt` with its parameters, or given masks.

    `raters` takes, for each image, the mask of one rater drawn at random among these ("rater*" is a pattern); that is
    real noise, so its only rate is 1. All further keys go to the noise itself.
    """

    model_config = ConfigDict(extra="allow")

    kind: str | dict[str, Any] | None = None
    raters: list[str] | None = None
    rates: list[Share] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Noise:
        if (self.kind is None) == (self.raters is None):
            raise ValueError("give either kind or raters")
        if self.raters is not None and (self.rates or self.parameters):
            raise ValueError("raters has neither rates nor parameters")
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """What goes to the noise function."""
        return dict(self.model_extra or {})


class Entry(Section):
    """One row of the comparison: a method and its own settings; budget, network and data are everyone's."""

    model_config = ConfigDict(extra="allow")
    name: str = Field(min_length=1)

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})


class Benchmark(Section):
    """A whole benchmark file."""

    title: str = ""
    data: dict[str, Data] = Field(min_length=1)
    noise: dict[str, Noise] = Field(default_factory=dict)
    rates: list[Share] = Field(default_factory=lambda: [0.5])
    methods: dict[str, Entry] = Field(min_length=1)
    seeds: list[Seed] = Field(min_length=1)
    baseline: str = "supervised"
    clean: Literal["none", "baseline", "all"] = "baseline"
    trusted: Share = 0.0
    settings: dict[str, Any] = Field(default_factory=dict)
    curve_points: Annotated[int, Field(ge=0, le=200)] = 10
    curve_cases: Count = 32
    threads: Count = 1
    runs_per_gpu: Count = 4

    @field_validator("methods", mode="before")
    @classmethod
    def _short_methods(cls, value: Any) -> Any:
        """`[supervised, pint]` and `{pint: null}` stand for entries of the same name."""
        if isinstance(value, list):
            value = {str(name): None for name in value}
        if not isinstance(value, Mapping):
            return value
        return {
            name: ({"name": name, **entry} if isinstance(entry, Mapping) else entry or {"name": name})
            for name, entry in value.items()
        }

    @field_validator("seeds", mode="before")
    @classmethod
    def _number_of_seeds(cls, value: Any) -> Any:
        """`5` stands for 0, 1, 2, 3, 4."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return list(range(value)) if whole else value


def presets() -> list[str]:
    """The benchmarks that come with maskmend."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load(file: Path | str, overrides: Sequence[str] = ()) -> Benchmark:
    """A benchmark from a YAML file or preset name and `key=value`.

    Raises:
        UsageError: no such file or preset, unknown keys (with the nearest), values that are not allowed.
    """
    path = Path(file)
    if path.suffix.lower() not in (".yaml", ".yml") and not path.is_file():
        if str(file) not in presets():
            raise unknown("preset", str(file), presets(), "benchmark")
        path = PRESETS / f"{file}.yaml"
    tree, places = read(path)
    for text in overrides:
        key, value = split(text)
        put(tree, key, value)
        places = {known: place for known, place in places.items() if not f"{known}.".startswith(f"{key}.")}
    return validate(tree, places)


def validate(tree: dict[str, Any], places: Mapping[str, str] | None = None) -> Benchmark:
    """A nested mapping as a `Benchmark`, with every name in it checked."""
    if tree.get("methods") == "all":
        tree = tree | {"methods": independent_methods()}
    for part in ("data", "noise"):  # `data.NAME=null` leaves one out
        if isinstance(found := tree.get(part), Mapping):
            tree = tree | {part: {name: value for name, value in found.items() if value is not None}}
    try:
        plan = Benchmark.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, places or {}) from None
    _check_names(plan)
    return plan


def dump(plan: Benchmark) -> str:
    """What was said of the benchmark, as YAML that `load` reads back to an equal one."""
    return to_yaml(plan.model_dump(mode="json", exclude_unset=True))


def independent_methods() -> list[str]:
    """The methods that need nothing but images and masks, the baseline first."""
    from maskmend import methods

    free = [name for name in methods.names() if not extra_needs(name)]
    return sorted(free, key=lambda name: (name != "supervised", name))


def extra_needs(method: str) -> set[str]:
    """What a method needs beside images and one mask each: "trusted" cases, several "raters"."""
    from maskmend import methods

    said = " ".join(methods.load(method).needs)
    return {word for word, part in (("trusted", "trusted"), ("raters", "rater")) if part in said}


def merged(noise: Noise, own: Mapping[str, Any] | None) -> Noise:
    """A noise with a data set's own parameters."""
    return Noise.model_validate(noise.model_dump(exclude_none=True) | dict(own)) if own else noise


def overrides_of(plan: Benchmark, data: str) -> dict[str, Any]:
    """The settings of a data set's runs as dotted keys, those of the data set over those of the file."""
    return _flat(plan.settings) | _flat(plan.data[data].settings)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        deeper = isinstance(value, Mapping) and f"{prefix}{key}" not in ("data.labels", "network.options")
        flat |= _flat(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return flat


def _check_names(plan: Benchmark) -> None:
    """Names that point at something else in the file, or at a method, must exist."""
    from maskmend import config, methods

    for name, one in plan.noise.items():
        _check_noise(one, f"noise.{name}")
    if plan.baseline not in plan.methods:
        raise unknown("method", plan.baseline, plan.methods, "baseline")
    for name, data in plan.data.items():
        for noise, own in (data.noise or {}).items():
            if noise not in plan.noise:
                raise unknown("noise", noise, plan.noise, f"data.{name}.noise")
            _check_noise(merged(plan.noise[noise], own), f"data.{name}.noise.{noise}")
        keys = overrides_of(plan, name)
        if ours := [key for key in keys if f"{key}.".startswith(tuple(f"{own}." for own in OURS))]:
            remedy = "leave it out; a method's own settings stand below methods"
            raise UsageError("is decided by the grid", f"settings.{ours[0]}", remedy)
        tree: dict[str, Any] = {}
        for key, value in keys.items():
            put(tree, key, value)
        config.validate(tree)
    for label, entry in plan.methods.items():
        try:
            methods.check_settings(methods.load(entry.name), entry.settings)
        except UsageError as fault:
            raise UsageError(fault.what, f"methods.{label}", fault.remedy) from None


def _check_noise(noise: Noise, where: str) -> None:
    """Its name and the names of its parameters; the noise itself judges the values."""
    from dataclasses import fields

    from maskmend.noise.cases import Recipe
    from maskmend.noise.presets import make_noise

    if noise.kind is None:
        return
    legal = {"radius_mm", "degrees", *(one.name for one in fields(Recipe))} - {
        "noise",
        "rate",
        "seed",
        "ignore",
    }
    for key in noise.parameters:
        if key not in legal:
            raise unknown("parameter", key, legal, where)
    try:
        make_noise(noise.kind, noise.parameters.get("radius_mm"), noise.parameters.get("degrees"))
    except UsageError as fault:
        raise UsageError(str(fault.what), f"{where}: {fault.where}", fault.remedy) from None


def _explained(error: ValidationError, places: Mapping[str, str]) -> UsageError:
    faults: dict[str, UsageError] = {}
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        where = next((places[k] for k in _outwards(key) if k in places), None)
        faults.setdefault(key, _fault(item, key, f"{where}: {key}" if where else key))
    if len(faults) == 1:
        return next(iter(faults.values()))
    lines = [str(fault).replace("\n", "\n  ") for fault in faults.values()]
    return UsageError(f"{len(faults)} settings are wrong", None, "\n  ".join(lines))


def _fault(item: Any, key: str, where: str) -> UsageError:
    reason = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        return UsageError("is missing", where)
    if item["type"] != "extra_forbidden":
        value = item["input"]
        shown = f"{as_text(value)}: " if isinstance(value, str | int | float | bool) else ""
        return UsageError(f"{shown}{reason}", where)
    leaf, known = key.rpartition(".")[2], list(_model_at(item["loc"][:-1]).model_fields)
    guess = nearest(leaf, known)
    return UsageError(
        f"unknown key {leaf!r}", where, f"did you mean {guess!r}?" if guess else f"one of: {', '.join(known)}"
    )


def _model_at(loc: Sequence[int | str]) -> type[BaseModel]:
    """The model that the keys at this place belong to."""
    model: type[BaseModel] = Benchmark
    for part in loc:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        found = [kind for kind in _types(inner) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = found[0] if found else model
    return model


def _types(annotation: Any) -> list[Any]:
    return [annotation, *(kind for inner in get_args(annotation) for kind in _types(inner))]


def _outwards(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
