"""The contract of every flaw: choose its parameters, apply them, and nothing is left to chance in between.

`choose` draws numbers, `flaw` is a pure function of a label and those numbers. So a recorded flaw can be
replayed, weakened or strengthened (`strength` scales every length, angle and probability), and calibrated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
from scipy import ndimage

from maskmend.boxes import bounding_box
from maskmend.errors import unknown

Choice = dict[str, Any]
"""What was drawn, ready for JSON; "transform" names the kind."""

KINDS: dict[str, type[LabelNoise]] = {}
"""Every kind of flaw by name; a subclass enters itself, a user's too."""


@dataclass(frozen=True)
class Annotation:
    """A label, and what a flaw may need to know about it.

    Args:
        label: (*S) integers, 0 is background.
        spacing_mm: voxel size in the order of the axes.
        image: (C, *S) float, for flaws that follow the image (automatic labels).
        layered: False: classes lie side by side and only their border with the background is flawed. True: a
            higher class lies on top of the lower ones (a tumour in a liver) and all of its border is flawed.
        names: class name to value.
        case: id, for labels that come from files.
    """

    label: np.ndarray
    spacing_mm: tuple[float, ...]
    image: np.ndarray | None = None
    layered: bool = False
    names: Mapping[str, int] = field(default_factory=dict)
    case: str = ""

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return self.label.ndim

    @property
    def classes(self) -> list[int]:
        """The values that occur, without background."""
        return [int(value) for value in np.unique(self.label) if value > 0]

    def part(self, where: tuple[slice, ...]) -> Annotation:
        """The annotation of a box; only label and image are cut."""
        index: tuple[slice, ...] = (slice(None), *where)
        image = None if self.image is None else self.image[index]
        return replace(self, label=self.label[where], image=image)


class LabelNoise(ABC):
    """A way in which labels go wrong. Subclasses are frozen dataclasses whose fields are the ranges drawn from."""

    name: ClassVar[str]
    needs_image: bool = False
    may_erase: bool = False
    """Structures may vanish on purpose (a blank or missed label)."""
    smooth: bool = True
    """Severity grows steadily with strength; False for flaws that happen or do not (a missed component)."""
    max_strength: ClassVar[float] = 32.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            KINDS[cls.name] = cls

    @abstractmethod
    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw the parameters; `rng` is the only source of chance."""

    @classmethod
    @abstractmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """The flawed label (*S) of the same type, a pure function of the arguments."""

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """How far from the foreground the flaw can act; the rest of the image is spared the work."""
        return math.inf

    def describe(self) -> dict[str, Any]:
        """The settings, ready for JSON and for `maskmend.noise.description.build`."""
        return {"noise": self.name, **{f.name: _plain(getattr(self, f.name)) for f in fields(self)}}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, LabelNoise):
        return value.describe()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


class Combined(LabelNoise):
    """A flaw made of others: what they need it needs, and what they may do it may."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[LabelNoise]:
        """The flaws within."""

    @property
    def needs_image(self) -> bool:  # type: ignore[override]
        """If any part does."""
        return any(part.needs_image for part in self.parts)

    @property
    def may_erase(self) -> bool:  # type: ignore[override]
        """If any part may."""
        return any(part.may_erase for part in self.parts)

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """If all parts are."""
        return all(part.smooth for part in self.parts)


def flaw(annotation: Annotation, choice: Mapping[str, Any], strength: float = 1.0) -> np.ndarray:
    """Do what was chosen, on the part of the image that it can reach.

    Args:
        annotation: the label and what is known about it.
        choice: what `LabelNoise.choose` drew.
        strength: scales every length, angle and probability; 0 changes nothing.

    Returns:
        A new array (*S) of the label's type.
    """
    kind = KINDS.get(choice["transform"])
    if kind is None:
        raise unknown("kind of noise", choice["transform"], KINDS)
    if strength <= 0 or not annotation.label.any():
        return np.array(annotation.label)
    where = _box(annotation, kind.reach_mm(choice, strength, annotation.spacing_mm))
    result = np.zeros_like(annotation.label)
    result[where] = kind.flaw(annotation.part(where), choice, strength)
    return result


def _box(annotation: Annotation, reach_mm: float) -> tuple[slice, ...]:
    """The foreground's bounding box and the reach around it, with one voxel of true background."""
    if not math.isfinite(reach_mm):
        return (slice(None),) * annotation.ndim
    box = bounding_box(annotation.label > 0)
    wider = [math.ceil(reach_mm / size) + 2 for size in annotation.spacing_mm]
    return tuple(slice(max(0, s.start - w), s.stop + w) for s, w in zip(box, wider, strict=True))


def limited(
    annotation: Annotation, choice: Mapping[str, Any], strength: float, classes: Iterable[int]
) -> np.ndarray:
    """Flaw some classes only: the others stay where they are, and lie above what the flawed ones claim."""
    label = annotation.label
    subject = np.where(np.isin(label, list(classes)), label, np.zeros((), label.dtype))
    changed = flaw(replace(annotation, label=subject), choice, strength)
    return np.where((label != 0) & (subject == 0), label, changed)


class RegionNoise(LabelNoise):
    """A flaw of an outline: what it does to one region says what it does to classes side by side or layered."""

    @classmethod
    @abstractmethod
    def flaw_region(
        cls,
        region: np.ndarray,
        spacing_mm: tuple[float, ...],
        choice: Mapping[str, Any],
        strength: float,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """The flawed region (*S) bool; `rng` is seeded by the choice and the region's number."""

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Flaw the union of the classes, or layer by layer from the lowest."""
        label, spacing, seed = annotation.label, annotation.spacing_mm, choice.get("seed", 0)
        if annotation.layered:
            result = np.zeros_like(label)
            for value in annotation.classes:
                rng = np.random.default_rng([seed, value])
                result[cls.flaw_region(label >= value, spacing, choice, strength, rng)] = value
            return result
        region = cls.flaw_region(label > 0, spacing, choice, strength, np.random.default_rng([seed, 0]))
        return np.where(region, spread(label, region, spacing), np.zeros((), label.dtype))


def spread(label: np.ndarray, region: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """The label (*S) with every background voxel of `region` given the nearest class."""
    gained = region & (label == 0)
    values = np.unique(label[label > 0])
    if not gained.any() or not values.size:
        return label
    if values.size == 1:
        return np.where(gained, values[0], label)
    nearest = ndimage.distance_transform_edt(
        label == 0, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    return np.where(gained, label[tuple(nearest)], label)
