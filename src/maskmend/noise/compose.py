"""Flaws put together: one after another, one of several, another one for each class, in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from maskmend.errors import UsageError, nearest
from maskmend.noise.base import Annotation, Choice, Combined, LabelNoise, flaw, limited
from maskmend.noise.draws import at_least


@dataclass(frozen=True)
class Nothing(LabelNoise):
    """No flaw: the careful annotator among `OneOf`."""

    name = "nothing"

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Nothing to draw."""
        return {"transform": self.name}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """The label as it was."""
        return np.array(annotation.label)


@dataclass(frozen=True)
class Compose(Combined):
    """Flaws one after another, each on what the one before left.

    Args:
        steps: the flaws in order.

    Example:
        >>> from maskmend.noise.boundary import Dilate
        >>> from maskmend.noise.affine import Move
        >>> Compose((Dilate((1, 2)), Move((1, 2)))).describe()["steps"][1]["noise"]
        'move'
    """

    name = "compose"
    steps: Sequence[LabelNoise]

    @property
    def parts(self) -> Sequence[LabelNoise]:
        """The flaws within."""
        return self.steps

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Choose for each step. Steps see the label as it was given, not what the steps before will make of it."""
        return {"transform": self.name, "steps": [step.choose(rng, annotation) for step in self.steps]}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Every step at the same strength."""
        for step in choice["steps"]:
            annotation = replace(annotation, label=flaw(annotation, step, strength))
        return annotation.label


@dataclass(frozen=True)
class OneOf(Combined):
    """One of several flaws, drawn for each case.

    Args:
        options: what to draw from.
        weights: relative chances; empty: equal.
    """

    name = "one_of"
    options: Sequence[LabelNoise]
    weights: Sequence[float] = ()

    @property
    def parts(self) -> Sequence[LabelNoise]:
        """The flaws within."""
        return self.options

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw the option; the record is that option's own."""
        if not self.options:
            raise UsageError("needs at least one option", "one_of")
        if not self.weights:
            return self.options[int(rng.integers(len(self.options)))].choose(rng, annotation)
        weights = np.asarray(self.weights, float)
        if len(weights) != len(self.options) or (weights < 0).any() or weights.sum() <= 0:
            raise UsageError(f"{list(self.weights)}: one weight >= 0 for each option, not all 0", "weights")
        picked = int(rng.choice(len(weights), p=weights / weights.sum()))
        return self.options[picked].choose(rng, annotation)

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Never recorded: the option that was drawn is."""
        raise UsageError("is drawn from, not applied", "one_of", "replay the recorded choice")


@dataclass(frozen=True)
class PerClass(Combined):
    """Each class on its own, with its own draw: what one does leaves the others where they are.

    Args:
        classes: flaw by class name (or value as text). A name that is no class's is taken for a part of one:
            "lung" means "left lung" and "right lung".
        rest: the flaw of every other class; None: none.

    Unlike flaws of all classes at once, this opens gaps between classes that lie side by side.
    """

    name = "per_class"
    classes: Mapping[str, LabelNoise] = field(default_factory=dict)
    rest: LabelNoise | None = None

    @property
    def parts(self) -> Sequence[LabelNoise]:
        """The flaws within."""
        return [*self.classes.values(), *([self.rest] if self.rest else [])]

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Choose for each class that is there, by ascending value."""
        wanted = _by_value(self.classes, annotation)
        chosen = {}
        for value in annotation.classes:
            noise = wanted.get(value, self.rest)
            if noise is not None:
                chosen[str(value)] = noise.choose(rng, annotation)
        return {"transform": self.name, "classes": chosen}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Class by class, by ascending value."""
        for value, inner in choice["classes"].items():
            if (annotation.label == int(value)).any():
                label = limited(annotation, inner, strength, [int(value)])
                annotation = replace(annotation, label=label)
        return annotation.label


def _by_value(classes: Mapping[str, LabelNoise], annotation: Annotation) -> dict[int, LabelNoise]:
    names = {name.lower(): value for name, value in annotation.names.items() if value > 0}
    found: dict[int, LabelNoise] = {}
    for wanted, noise in classes.items():
        key = str(wanted).lower()
        values = [names[key]] if key in names else [v for name, v in names.items() if key in name]
        if not values and key.isdigit() and (not names or int(key) in names.values()):
            values = [int(key)]
        if not values:
            known = ", ".join(f"{name}: {value}" for name, value in names.items()) or "none"
            guess = nearest(key, names)
            remedy = (
                f"did you mean {guess!r}?"
                if guess
                else "name the classes in maskmend.json, or describe a noise for yours in a YAML file"
            )
            raise UsageError(f"no class {wanted!r} (named classes: {known})", "noise", remedy)
        found |= dict.fromkeys(values, noise)
    return found


@dataclass(frozen=True)
class InPixels(Combined):
    """Lengths in pixels of a standard image instead of millimetres, for recipes that were published so.

    Args:
        inner: the flaw; its millimetres now mean pixels.
        width: the standard image is this wide (its longer side within a slice); None: the image as it is.
        area: or: each label is as large as this many pixels (in 3-D: of its largest slice).

    Example:
        >>> import numpy as np
        >>> from maskmend.noise.base import Annotation, flaw
        >>> from maskmend.noise.boundary import Dilate
        >>> label = np.zeros((64, 64), np.uint8); label[20:40, 20:40] = 1
        >>> truth = Annotation(label, (0.3, 0.3))
        >>> eight_of_256 = InPixels(Dilate((8, 8)), width=256)
        >>> choice = eight_of_256.choose(np.random.default_rng(0), truth)
        >>> flaw(truth, choice).any(1).sum() - label.any(1).sum()  # 2 of 64 to either side
        np.int64(4)
    """

    name = "in_pixels"
    inner: LabelNoise
    width: int | None = None
    area: float | None = None

    @property
    def parts(self) -> Sequence[LabelNoise]:
        """The flaw within."""
        return (self.inner,)

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Record how many pixels a voxel is."""
        pixels = 1.0
        if self.area is not None:
            drawn = annotation.label > 0
            largest = int(drawn.reshape(-1, *drawn.shape[-2:]).sum((1, 2)).max())
            pixels = float(np.sqrt(at_least(self.area, 1, "area") / max(largest, 1)))
        elif self.width is not None:
            pixels = at_least(self.width, 1, "width") / max(annotation.label.shape[-2:])
        inner = self.inner.choose(rng, replace(annotation, spacing_mm=(pixels,) * annotation.ndim))
        return {"transform": self.name, "pixels": pixels, "choice": inner}

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """The flaw on voxels of that size."""
        spacing = (float(choice["pixels"]),) * annotation.ndim
        return flaw(replace(annotation, spacing_mm=spacing), choice["choice"], strength)
