"""Labels that no one drew: grown from seeds, learnt from scribbles, or predicted by a model.

Machines err where the image is ambiguous, in the same way in every case; that is the kind of noise a robust
method finds hardest. Strengths below 1 lie between the true outline and the machine's (signed distances are
averaged); above 1 there is nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from maskmend.errors import DataError, UsageError
from maskmend.noise.base import Annotation, Choice, LabelNoise
from maskmend.noise.draws import at_least, draw_count, draw_range, draw_seed
from maskmend.noise.morphology import distance_mm, signed_distance_mm


class AutomaticLabel(LabelNoise):
    """A flaw whose full strength is a machine's label."""

    max_strength = 1.0
    may_erase = True

    @classmethod
    @abstractmethod
    def label(cls, annotation: Annotation, choice: Mapping[str, Any]) -> np.ndarray:
        """What the machine says, (*S)."""

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """The machine's label, or one on the way to it."""
        machine = cls.label(annotation, choice).astype(annotation.label.dtype)
        return machine if strength >= 1 else morph(annotation.label, machine, strength, annotation.spacing_mm)


def morph(first: np.ndarray, second: np.ndarray, share: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """A label between two: each class where the mean of its signed distances is above 0; the deepest wins.

    Args:
        first, second: (*S) integers.
        share: 0 gives the first, 1 the second.
        spacing_mm: voxel size in the order of the axes.
    """
    result, best = np.zeros_like(first), np.zeros(first.shape)
    for value in np.unique(np.concatenate([first[first > 0], second[second > 0]])):
        depths = [_depth(label == value, spacing_mm) for label in (first, second)]
        guess = (1 - share) * depths[0] + share * depths[1]
        wins = guess > best
        result[wins], best[wins] = value, guess[wins]
    return result


def _depth(region: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Signed distance that is finite for a class that is nowhere, or everywhere."""
    reach = float(np.linalg.norm(np.multiply(region.shape, spacing_mm)))
    return np.clip(signed_distance_mm(region, spacing_mm), -reach, reach)


@dataclass(frozen=True)
class RegionGrow(AutomaticLabel):
    """Threshold around the brightness of the structure's core, and keep what hangs together with it.

    Args:
        tolerance: smallest and largest accepted deviation from the core's mean, in its standard deviations.
        limit_mm: nothing farther than this from the true structure, as the box that a person draws for the tool.
        smooth_voxels: deviation of the Gaussian that the image is smoothed with.

    Source: ours, after the thresholding and region-growing tools of annotation programs.
    """

    name = "region_grow"
    needs_image = True
    tolerance: Sequence[float] = (2.0, 3.5)
    limit_mm: float = 8.0
    smooth_voxels: float = 1.0

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw the tolerance."""
        _need_image(annotation, self.name)
        tolerance = draw_range(rng, self.tolerance, "tolerance")
        facts = {key: at_least(getattr(self, key), 0, key) for key in ("limit_mm", "smooth_voxels")}
        return {"transform": self.name, "tolerance": tolerance} | facts

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """The limit, and what smoothing sees."""
        return float(choice["limit_mm"] + 4 * choice["smooth_voxels"] * max(spacing_mm))

    @classmethod
    def label(cls, annotation: Annotation, choice: Mapping[str, Any]) -> np.ndarray:
        """Grow every class; where two claim a voxel, the one whose core is more like it has it."""
        label, spacing = annotation.label, annotation.spacing_mm
        image = _smoothed(_image(annotation), choice["smooth_voxels"])
        result, best = np.zeros_like(label), np.full(label.shape, float(choice["tolerance"]))
        for value in annotation.classes:
            region = label == value
            depth = distance_mm(~region, spacing)
            core = depth >= depth[region].max() / 2 if np.isfinite(depth).all() else region
            unlike = _unlikeness(image, core & region)
            near = distance_mm(region, spacing) <= choice["limit_mm"]
            joined, _ = ndimage.label(near & (unlike <= choice["tolerance"]))
            grown = np.isin(joined, np.unique(joined[core & region & (joined > 0)]))
            grown = ndimage.binary_fill_holes(grown) & (unlike.clip(max=choice["tolerance"]) <= best)
            result[grown], best[grown] = value, unlike[grown]
        return result


def _unlikeness(image: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Deviation (*S) from the core's mean in standard deviations, over all channels."""
    total = np.zeros(core.shape)
    for channel in image:
        inside = channel[core]
        total += ((channel - inside.mean()) / max(float(inside.std()), 1e-6)) ** 2
    return np.sqrt(total / len(image))


@dataclass(frozen=True)
class Scribbles(AutomaticLabel):
    """A weak model: a voxel classifier fitted to a few scribbled voxels of the very case.

    Each class is a Gaussian over smoothed brightness (three scales) and place; a voxel goes to the likeliest.

    Args:
        voxels: smallest and largest number of scribbled voxels per class, background included.
        limit_mm: nothing farther than this from the true foreground.

    Source: ours; it stands for interactive segmentation from scribbles (quadratic discriminant analysis).
    """

    name = "scribbles"
    needs_image = True
    voxels: Sequence[int] = (30, 120)
    limit_mm: float = 10.0

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw how many voxels, and the seed of their places."""
        _need_image(annotation, self.name)
        count, limit = draw_count(rng, self.voxels, "voxels", least=2), at_least(self.limit_mm, 0, "limit_mm")
        return {"transform": self.name, "seed": draw_seed(rng), "voxels": count, "limit_mm": limit}

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """The limit, and what smoothing sees."""
        return float(choice["limit_mm"] + 8 * max(spacing_mm))

    @classmethod
    def label(cls, annotation: Annotation, choice: Mapping[str, Any]) -> np.ndarray:
        """Fit, classify, and let the neighbours of each voxel vote."""
        label, spacing = annotation.label, annotation.spacing_mm
        near = distance_mm(label > 0, spacing) <= choice["limit_mm"]
        features, places = _features(_image(annotation), spacing), np.argwhere(near)
        seen, given = features[:, near].T, label[near]
        values = [0, *annotation.classes]
        scores = np.full((len(values), len(places)), -np.inf)
        for number, value in enumerate(values):
            rng, own = np.random.default_rng([choice["seed"], value]), np.flatnonzero(given == value)
            if own.size:
                scribble = rng.choice(own, min(choice["voxels"], own.size), replace=False)
                scores[number] = _log_likelihood(seen[scribble], seen)
        result = np.zeros_like(label)
        result[near] = np.asarray(values)[scores.argmax(0)]
        return np.where(near, _modes(result), 0)


def _features(image: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """(F, *S): every channel at three scales, and the place, each with mean 0 and deviation 1."""
    place = np.indices(image.shape[1:]) * np.reshape(spacing_mm, (-1, *[1] * (image.ndim - 1)))
    maps = [_smoothed(image, sigma) for sigma in (0.5, 1.0, 2.0)]
    stacked = np.concatenate([*maps, place])
    axes = tuple(range(1, stacked.ndim))
    deviation = np.maximum(stacked.std(axes, keepdims=True), 1e-6)
    normalised: np.ndarray = (stacked - stacked.mean(axes, keepdims=True)) / deviation
    return normalised


def _log_likelihood(scribble: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Of voxels (N, F) under the Gaussian of the scribbled ones, shrunk so that few voxels do."""
    spread = np.atleast_2d(np.cov(scribble.T)) if len(scribble) > 1 else np.eye(scribble.shape[1])
    spread = 0.8 * spread + 0.2 * np.diag(np.diag(spread)) + 0.02 * np.eye(len(spread))
    away = seen - scribble.mean(0)
    distance = np.einsum("nf,fg,ng->n", away, np.linalg.inv(spread), away)
    likelihood: np.ndarray = -0.5 * (distance + np.linalg.slogdet(spread)[1])
    return likelihood


def _modes(label: np.ndarray) -> np.ndarray:
    """The most frequent class of each 3 x 3 (x 3) neighbourhood."""
    values = np.unique(label)
    shares = [ndimage.uniform_filter((label == value).astype(np.float32), 3) for value in values]
    modes: np.ndarray = values[np.argmax(shares, axis=0)]
    return modes


@dataclass(frozen=True)
class Predictions(AutomaticLabel):
    """Labels from files, as a weak or foreign model predicted them (`maskmend predict`, a foundation model).

    Args:
        folder: one label per case, named like the case, with the data set's values.
    """

    name = "predictions"
    folder: str = ""

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Find the case's file."""
        from maskmend.data.listing import image_files

        files = image_files(Path(self.folder)) if Path(self.folder).is_dir() else {}
        if annotation.case not in files:
            raise DataError(f"no prediction of the case {annotation.case!r}", self.folder or "folder")
        return {"transform": self.name, "file": str(files[annotation.case])}

    @classmethod
    def label(cls, annotation: Annotation, choice: Mapping[str, Any]) -> np.ndarray:
        """Read it."""
        from maskmend.data.images import read_label

        values = read_label(Path(choice["file"]))[0]
        if values.shape != annotation.label.shape:
            fact = f"has the shape {values.shape}, the label {annotation.label.shape}"
            raise DataError(fact, choice["file"], "predict on the images of this data set")
        return values


def _need_image(annotation: Annotation, name: str) -> None:
    if annotation.image is None:
        raise UsageError("follows the image, and none was given", name, "pass image= beside the label")


def _image(annotation: Annotation) -> np.ndarray:
    assert annotation.image is not None
    return np.nan_to_num(np.asarray(annotation.image, np.float32))


def _smoothed(image: np.ndarray, sigma: float) -> np.ndarray:
    if sigma <= 0:
        return image
    smooth: np.ndarray = ndimage.gaussian_filter(image, (0, *[sigma] * (image.ndim - 1)))
    return smooth
