"""The typed configuration: defaults, then a YAML file, then `key=value`; the last one wins.

Every setting lives here with its meaning and range, so that help, schema, reference page and error messages
cannot disagree. The one exception are the settings of a method (`method.*`): those are the keyword-only
arguments of its class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from maskmend.config_text import as_text, put, read, split, to_yaml
from maskmend.errors import UsageError, nearest, unknown

Positive = Annotated[int, Field(gt=0)]
Millimetres = Annotated[float, Field(gt=0)]
SpacingMm = Annotated[list[Millimetres], Field(min_length=2, max_length=3)]
Patch = Annotated[list[Positive], Field(min_length=2, max_length=3)]
Labels = Annotated[dict[str, int], Field(min_length=1)]
AxesOrder = Literal["auto", "zyx", "xyz", "ras"]


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


class Section(BaseModel):
    """One group of settings; unknown names are errors, never ignored."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: Any) -> Any:
        """`train.steps=true` is a slip, though Python would read it as 1."""
        if isinstance(value, bool) and not _mentions(cls.model_fields[info.field_name].annotation, bool):
            raise ValueError("true/false is not a number")
        return value


class DataConfig(Section):
    """What the files mean and how they become tensors."""

    layout: Literal["folders", "nnunet", "msd", "csv"] | None = Field(
        default=None, description="How the data set is laid out; found by looking when not given."
    )
    labels: Labels | None = Field(
        default=None,
        description="Class name to value in the label files, e.g. {organ: 255}; background is 0, named or not.",
    )
    ignore: int | None = Field(
        default=None, description="Value in the label files that means 'not annotated'."
    )
    channels: list[str] | None = Field(
        default=None, description="Channel names in order, e.g. [T1, T2] or [CT]."
    )
    spacing_mm: SpacingMm | None = Field(
        default=None,
        description="Voxel size that overrides the files, slowest axis first, e.g. [5, 0.8, 0.8].",
    )
    normalise: Literal["auto", "zscore", "ct", "rgb", "minmax", "none"] = Field(
        default="auto", description="Intensity normalisation; auto decides by channel name and format."
    )
    target_spacing_mm: SpacingMm | None = Field(
        default=None,
        description="Voxel size to resample to, slowest axis first; the median of the data when not given.",
    )
    shape: Annotated[list[Positive], Field(min_length=2, max_length=3)] | None = Field(
        default=None,
        description="Voxels to resample every image to, whatever its size, slowest axis first: for crops around one"
        " object and for radiographs, whose size says nothing about scale.",
    )
    rater: str | None = Field(default=None, description="Train on the labels of this rater.")
    raters: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None,
        description="Raters, or patterns such as rater*, for methods that learn from several; all when not given.",
    )
    max_voxels: Positive = Field(
        default=2**29, description="Refuse a file that claims more voxels than this."
    )
    allow_missing_classes: bool = Field(
        default=False, description="Go on when a declared class occurs in no training label."
    )
    flips: Literal["auto", "none", "all"] | list[bool] = Field(
        default="auto",
        description="Axes that may be mirrored in augmentation; a list gives each axis, slowest first.",
    )
    cache: Path | None = Field(
        default=None, description="Folder for preprocessed cases; inside the run when not given."
    )

    @field_validator("labels")
    @classmethod
    def _one_name_per_value(cls, labels: dict[str, int] | None) -> dict[str, int] | None:
        if labels and len(set(labels.values())) < len(labels):
            raise ValueError("two classes share one file value")
        return labels

    @field_validator("labels")
    @classmethod
    def _a_class_beside_background(cls, labels: dict[str, int] | None) -> dict[str, int] | None:
        elsewhere = bool(
            labels and labels.get("background")
        )  # refused where classes are named, in clearer words
        named = {name for name, value in (labels or {}).items() if value or elsewhere}
        if labels and not named - {"background", "ignore"}:
            raise ValueError("names no class beside the background")
        return labels

    @model_validator(mode="after")
    def _one_grid(self) -> DataConfig:
        if self.shape and self.target_spacing_mm:
            raise ValueError("data.shape and data.target_spacing_mm exclude one another")
        return self

    @model_validator(mode="after")
    def _ignore_is_no_class(self) -> DataConfig:
        if self.labels and self.ignore is not None and self.ignore in self.labels.values():
            raise ValueError(f"data.ignore={self.ignore} is also the value of a class in data.labels")
        return self


class NetworkConfig(Section):
    """The network that is trained."""

    name: str = Field(
        default="unet", min_length=1, description="Network by name, or a factory of yours as module:function."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments for the network, e.g. {channels: [32, 64, 128]}."
    )


class MethodConfig(Section):
    """The way of learning; further keys are the method's own settings (see `maskmend methods NAME`)."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        default="pint_posterior",
        min_length=1,
        description="Method by name (see `maskmend methods`), or a file of yours.",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings, without its name."""
        return dict(self.model_extra or {})


class TrainConfig(Section):
    """The training loop."""

    steps: int = Field(default=2000, gt=0, description="Optimiser steps.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Decides every random choice of the run.")
    batch: Positive | None = Field(
        default=None, description="Patches per step; from memory and patch size when not given."
    )
    patch: Patch | None = Field(
        default=None, description="Patch size in voxels, slowest axis first; from the data if not given."
    )
    lr: float = Field(
        default=1e-3, gt=0, le=10, description="Largest learning rate (it decays over the run)."
    )
    weight_decay: float = Field(default=1e-4, ge=0, le=10, description="Weight decay of the optimiser.")
    workers: int = Field(
        default=0, ge=0, le=256, description="Processes that prepare batches; 0 prepares them in the loop."
    )
    foreground: float = Field(default=0.33, ge=0, le=1, description="Share of patches centred on foreground.")
    augment: Literal["default", "none", "light", "strong"] = Field(
        default="default", description="Strength of augmentation."
    )
    validation: Literal["none", "noisy", "trusted"] = Field(
        default="none",
        description="Hold out cases to watch: with their given (noisy) labels, trusted cases only, or none.",
    )
    validation_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="Share of cases held out for validation."
    )
    checkpoint_every: Positive = Field(default=250, description="Steps between two checkpoints.")
    picture_every: Positive = Field(default=500, description="Steps between two pictures in the run folder.")
    precision: Annotated[Literal["auto", "32", "bf16", "16"], BeforeValidator(_number_as_text)] = Field(
        default="auto", description="Arithmetic; auto is bf16 where the GPU has it, else 32."
    )
    processes: int = Field(default=1, ge=1, le=1024, description="Training processes (data parallel).")
    threads: Positive | None = Field(
        default=None, description="CPU threads per process; torch decides when not given."
    )
    tensorboard: bool = Field(default=False, description="Write TensorBoard events as well.")


class PredictConfig(Section):
    """Prediction."""

    overlap: float = Field(
        default=0.5, ge=0, le=0.9, description="Share by which neighbouring windows overlap."
    )
    mirror: bool = Field(
        default=False, description="Average over mirrored inputs: slower, often a little better."
    )
    save: list[Literal["labels", "probs", "uncertainty"]] = Field(
        default=["labels"], min_length=1, description="What is written for each case."
    )
    batch: Positive = Field(default=4, description="Windows per forward pass.")


class EvaluateConfig(Section):
    """Evaluation."""

    tolerance_mm: float = Field(
        default=1.0, gt=0, description="Distance within which surface Dice counts a point as right."
    )
    bootstrap: int = Field(
        default=2000, ge=100, le=1_000_000, description="Bootstrap samples for the intervals."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Decides the bootstrap samples.")


class AuditConfig(Section):
    """The audit."""

    folds: int = Field(
        default=5,
        ge=2,
        le=50,
        description="Models that share the cases, so that each judges what it has not seen.",
    )
    axes: AxesOrder = Field(
        default="auto",
        description="How arrays of --probs lie: zyx slowest axis first (nnU-Net), xyz as nibabel and MONAI give them, "
        "ras as nnU-Net's NibabelIOWithReorient turns volumes.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Decides the errors made on purpose.")
    keep_probs: bool = Field(
        default=False, description="Keep the probabilities of all cases in the audit folder."
    )


class Config(Section):
    """Everything that can be set. `Config()` holds the defaults; use `load` for files and `key=value`."""

    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    audit: AuditConfig = AuditConfig()
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="Where to compute; auto takes a GPU when there is one.",
        examples=["auto", "cpu", "cuda", "cuda:0", "mps"],
    )


def load(file: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML `file`, then each `key=value` of `overrides` in order.

    Args:
        file: a YAML file of nested sections, e.g. the `config.yaml` of a run; None for the defaults.
        overrides: e.g. `["train.steps=500", "data.labels={background: 0, organ: 1}"]`; values are YAML.

    Raises:
        UsageError: the file is missing or not YAML, a key is unknown, a value not allowed.
    """
    tree, places = read(Path(file)) if file is not None else ({}, {})
    for text in overrides:
        key, value = split(text)
        put(tree, key, value)
        # The command line is the place of this key and all below it now.
        places = {known: place for known, place in places.items() if not f"{known}.".startswith(f"{key}.")}
    return validate(tree, places)


def validate(tree: Mapping[str, Any], places: Mapping[str, str] | None = None) -> Config:
    """A nested mapping as a `Config`.

    Args:
        tree: sections and their values; `{}` gives the defaults.
        places: dotted key to "file:line", for messages.

    Raises:
        UsageError: names each wrong key, its value and what is allowed.
    """
    # `train:` with nothing below it is an empty section.
    tree = {key: {} if value is None and key != "device" else value for key, value in tree.items()}
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, tree, places or {}) from None


def dump(config: Config) -> str:
    """The configuration as YAML that `load` reads back to an equal one."""
    return to_yaml(config.model_dump(mode="json"))


def schema() -> dict[str, Any]:
    """The JSON schema of `Config`, for editors and the reference page."""
    return Config.model_json_schema()


def keys() -> list[str]:
    """Every dotted key, e.g. "train.steps"."""
    return [key for key, _ in fields()]


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dotted key with its JSON schema (description, default, range), in order."""
    root = schema()
    for name, part in root["properties"].items():
        if "$ref" not in part:
            yield name, part
            continue
        section = root["$defs"][part["$ref"].rsplit("/", 1)[-1]]
        for field, inner in section["properties"].items():
            yield f"{name}.{field}", inner


def allowed(part: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words: "a whole number > 0", "one of: none, light", ..."""
    if "anyOf" in part:
        return " or ".join(allowed(option) for option in part["anyOf"])
    if "enum" in part:
        return "one of: " + ", ".join(map(str, part["enum"]))
    if "examples" in part:
        return ", ".join(map(str, part["examples"][:-1])) + f" or {part['examples'][-1]}"
    kind = part.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(part)
    if kind == "array":
        low, high = part.get("minItems"), part.get("maxItems")
        count = f"{low} or {high} entries, " if low and high else ""
        return f"a list ({count}each {allowed(part.get('items', {}))})"
    if kind == "object":
        return "a mapping {name: value}"
    return {"boolean": "true or false", "null": "null", "string": "text"}.get(str(kind), "any value")


def _range(part: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {part[name]:.10g}" for name, sign in signs.items() if name in part]
    return " " + " and ".join(bounds) if bounds else ""


# --- explaining what is wrong ------------------------------------------------------------------------------


def _explain(error: ValidationError, tree: Mapping[str, Any], places: Mapping[str, str]) -> UsageError:
    parts = dict(fields())
    faults: dict[str, UsageError] = {}
    for item in error.errors():
        key = _key(item["loc"], parts)
        faults.setdefault(key, _fault(item, key, parts, tree, places))
    if len(faults) == 1:
        return next(iter(faults.values()))
    lines = [str(fault).replace("\n", "\n  ") for fault in faults.values()]
    return UsageError(f"{len(faults)} settings are wrong", None, "\n  ".join(lines))


def _key(loc: tuple[int | str, ...], parts: Mapping[str, Any]) -> str:
    """The setting an error is about; pydantic goes on into the branches of a union."""
    names = [str(name) for name in loc]
    for length in (2, 1):
        if ".".join(names[:length]) in parts:
            return ".".join(names[:length])
    return ".".join(names)


def _fault(
    item: Any, key: str, parts: Mapping[str, Any], tree: Mapping[str, Any], places: Mapping[str, str]
) -> UsageError:
    where = places.get(key)
    if item["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown_key(key, parts, where)
    at = f"{where}: {key}" if where else key
    reason = str(item["msg"]).removeprefix("Value error, ")
    part = parts.get(key)
    if part is None:  # a section, or settings that contradict one another
        if item["type"] == "value_error":
            return UsageError(reason, at)
        inner = [name for name in parts if name.startswith(f"{key}.")]
        return UsageError("is a section, not a value", at, f"one of: {', '.join(inner)}")
    value = _get(tree, key)
    what = f"{as_text(value)} is not allowed: {allowed(part)}"
    if item["type"] == "value_error":
        what += f" ({reason})"
    default = f"; default {as_text(part['default'])}" if "default" in part else ""
    return UsageError(what, at, f"{part.get('description', '').removesuffix('.')}{default}".strip("; "))


def _unknown_key(key: str, parts: Mapping[str, Any], where: str | None) -> UsageError:
    section, _, leaf = key.rpartition(".")
    choices = (
        [name for name in parts if name.startswith(f"{section}.")] if section else list(Config.model_fields)
    )
    same = [name for name in parts if name.rpartition(".")[2] == leaf]
    guess = same[0] if same else nearest(key, choices) or nearest(key, parts)
    if guess:
        return UsageError(f"unknown key {key!r}", where, f"did you mean {guess!r}?")
    return unknown("key", key, choices, where)


def _get(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else getattr(tree, name, None)
    return tree


def _mentions(annotation: Any, kind: type) -> bool:
    return annotation in (kind, Any) or any(_mentions(arg, kind) for arg in get_args(annotation))
