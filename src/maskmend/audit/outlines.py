"""What the images alone say of the outlines: a witness that has seen no model.

A model that was trained on flawed masks, or on few, wavers about as much as a subtle flaw; the image does not. See
`maskmend.appearance`: sound outlines look alike from case to case, a shifted one runs through what looks the same on
both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from maskmend.appearance import FEATURES, PLACES, SCENE, Mender, OutlineModel, outline_looks, scene_looks
from maskmend.audit.looks import read_mask
from maskmend.audit.population import logit, middle_and_spread
from maskmend.audit.shape import ball_radius
from maskmend.boxes import bounding_box
from maskmend.convention import LEAST_CASES, explained
from maskmend.data.case import Case, Dataset
from maskmend.data.images import MAX_VOXELS, read_case
from maskmend.fanout import Mapper, in_turn

DIAMETER = 32  # voxels across, to which objects are scaled: looks are of a voxel or two, flaws are parts of an object
AROUND = 0.25  # of the diameter, kept about the mask
OVERVIEW = 64  # voxels along an axis, at least half of which a whole image is thinned to
MOST_ZOOM = 4.0
MOST_VOXELS = 4_000_000
EXPECTED = 0.75  # spreads by which flawed outlines are the worse explained; more would be believing too much
MOST_EXPECTED = 1.5  # likewise, where models bear it out
KNOWN_BEFORE = 10.0  # cases that EXPECTED counts for beside what models say of it
FOLLOWS = 0.5  # P(the outline follows the convention) below which the images disbelieve it
HARDLY = 0.9  # unexplained share from which on the images explain hardly anything of an outline
RANGE = (-2.0, 4.0)  # spreads beyond which nothing more is believed
CONVENTION = 0.5  # weight of the odds that the outline breaks the convention: they rest on the same looks
CONVENTION_RANGE = (
    -1.0,
    3.0,
)  # log odds; that an outline follows the convention does not speak for what is inside it


@dataclass(frozen=True)
class Scaled:
    """A mask and its surroundings, at a scale that goes by the mask's size.

    Args:
        image: (C, *B) float, of mean 0 and spread 1.
        drawn: (*B) bool, the foreground.
        known: (*B) bool, False where the label is not known.
        voxel_mm: size of a voxel, about the same along all axes.
    """

    image: Tensor
    drawn: Tensor
    known: Tensor
    voxel_mm: float = 1.0

    def looks(self) -> Tensor:
        """`outline_looks` of the foreground."""
        return outline_looks(self.image, self.drawn, self.known)


def scaled(
    image: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float], valid: np.ndarray | None = None
) -> Scaled:
    """The foreground and what is around it, scaled.

    Args:
        image: (C, *S), any numbers.
        label: (*S) class indices.
        spacing_mm: voxel size in the order of the axes.
        valid: (*S) bool, False where the label is not known.
    """
    drawn = label > 0
    known = np.ones(label.shape, bool) if valid is None else valid
    if not drawn.any():
        return Scaled(torch.zeros(len(image), *label.shape), torch.from_numpy(drawn), torch.from_numpy(known))
    spacing = np.asarray(spacing_mm, float)
    volume = float(drawn.sum()) * float(spacing.prod())
    diameter = 2 * ball_radius(volume, drawn.ndim)
    margin = int(np.ceil(AROUND * diameter / spacing.min()))
    box = bounding_box(drawn, margin)
    inside = (slice(None), *box)
    part, drawn, known = image[inside].astype(np.float32), drawn[box], known[box]
    zoom = np.minimum(spacing * DIAMETER / diameter, MOST_ZOOM)
    zoom *= min(1.0, (MOST_VOXELS / (drawn.size * zoom.prod())) ** (1 / drawn.ndim))
    zoom = np.where(np.array(drawn.shape) == 1, 1.0, zoom)
    if np.abs(zoom - 1).max() > 0.05:
        if zoom.min() < 1:
            blur = np.where(zoom < 1, 0.4 / zoom, 0.0)
            part = np.stack([ndimage.gaussian_filter(one, blur) for one in part])
        everywhere = bool(known.all())
        part = _zoomed(part, zoom)
        drawn = _zoomed(drawn[None], zoom)[0] > 0.5
        known = np.ones_like(drawn) if everywhere else _zoomed(known[None], zoom)[0] > 0.5
    return Scaled(
        _standardised(part),
        torch.from_numpy(drawn),
        torch.from_numpy(known),
        float(np.mean((spacing / zoom)[np.array(drawn.shape) > 1])),
    )


def _zoomed(array: np.ndarray, zoom: np.ndarray) -> np.ndarray:
    """(C, *S) at another scale, linearly between voxels, the outermost where they were: float32."""
    size = [max(1, round(n * factor)) for n, factor in zip(array.shape[1:], zoom.tolist(), strict=True)]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    values = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None]
    found: np.ndarray = nn.functional.interpolate(values, size=size, mode=mode, align_corners=True)[0].numpy()
    return found


def scaled_looks(
    image: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float], valid: np.ndarray | None = None
) -> Tensor:
    """`outline_looks` of the foreground, at a scale that goes by its size; arguments as of `scaled`."""
    return scaled(image, label, spacing_mm, valid).looks()


def overview(image: np.ndarray) -> Tensor:
    """`scene_looks` of a whole image (C, *S) of any numbers, made small; no mask has a part in it."""
    steps = [max(1, size // OVERVIEW) for size in image.shape[1:]]
    thin = (slice(None), *(slice(None, None, step) for step in steps))
    part = image[thin].astype(np.float32)
    return scene_looks(_standardised(part))


def _standardised(part: np.ndarray) -> Tensor:
    axes = tuple(range(1, part.ndim))
    part = (part - part.mean(axes, keepdims=True)) / (part.std(axes, keepdims=True) + 1e-6)
    return torch.from_numpy(np.nan_to_num(part, posinf=0.0, neginf=0.0))


@dataclass(frozen=True)
class ImageWitness:
    """What the images say of each case; cases without an outline, and all when they are few, are not in it.

    Args:
        odds: log of how much likelier this outline is a flawed than a sound one, by case.
        unexplained: share of the outline that the looks of others leave unexplained, 0 none, 1 or more all.
        convention: how likely the outline follows the convention that the images explain best, in [0, 1].
        mender: learnt from the outlines of the convention; None when nothing is said.
        numbers: of the cases, as the mender counts them.
        expected: spreads by which flawed outlines are the worse explained.
        scale: middle and spread of the unexplained shares.
    """

    odds: Mapping[str, float] = field(default_factory=dict)
    unexplained: Mapping[str, float] = field(default_factory=dict)
    convention: Mapping[str, float] = field(default_factory=dict)
    mender: Mender | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    expected: float = EXPECTED
    scale: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, looks: Mapping[str, Tensor], scenes: Mapping[str, Tensor] | None = None) -> ImageWitness:
        """Compare all cases.

        Args:
            looks: of `scaled_looks`, by case; too few tell nothing.
            scenes: of `overview`, by case; None: all images are of one kind.
        """
        ids = [case for case, one in looks.items() if bool(one.any())]
        if len(ids) < LEAST_CASES:
            return cls()
        table = torch.stack([looks[case] for case in ids])
        views = None if scenes is None else torch.stack([scenes[case] for case in ids])
        believed = explained(table, views)
        errors = OutlineModel(table).errors(believed, table).numpy()
        (middle,), (spread,) = middle_and_spread(errors[:, None], np.ones(len(errors)))
        scale = float(middle), float(spread)
        odds = _odds(_away(errors, scale), believed.double().numpy(), EXPECTED)
        by_case = [dict(zip(ids, column.tolist(), strict=True)) for column in (odds, errors, believed)]
        numbers = {case: number for number, case in enumerate(ids)}
        return cls(by_case[0], by_case[1], by_case[2], Mender.fit(table, believed), numbers, scale=scale)

    def weighed(self, flawed: Mapping[str, float]) -> ImageWitness:
        """The witness, believed as far as another one who does not know of it bears it out.

        How many spreads worse the outlines are explained that the other calls flawed, in the mean, is what flawed ones
        are expected to be; where the images say little of outlines (cells whose borders nobody sees) that is little.

        Args:
            flawed: probability, by a model that sees no outlines' looks, of cases; others are weighed alike.
        """
        both = np.array([case in flawed for case in self.unexplained], bool)
        if not both.any():
            return self
        told = self._away(self.scale)[both]
        weight = np.array([flawed[case] for case in self.unexplained if case in flawed])
        means = [float(one @ told) / max(float(one.sum()), 1e-6) for one in (weight, 1 - weight)]
        sure = min(weight.sum(), (1 - weight).sum())
        expected = (sure * (means[0] - means[1]) + KNOWN_BEFORE * EXPECTED) / (sure + KNOWN_BEFORE)
        return self.expecting(float(expected))

    def expecting(self, expected: float, scale: tuple[float, float] | None = None) -> ImageWitness:
        """The witness when flawed outlines are by this many spreads the worse explained.

        Args:
            expected: see the class.
            scale: of an earlier witness, whose measure is to be kept; None: its own.
        """
        if not self.odds:
            return self
        scale = scale or self.scale
        convention = np.array(list(self.convention.values()))
        odds = _odds(self._away(scale), convention, float(np.clip(expected, 0, MOST_EXPECTED)))
        by_case = dict(zip(self.unexplained, odds.tolist(), strict=True))
        return replace(self, odds=by_case, scale=scale, expected=expected)

    @property
    def backing(self) -> float:
        """How far the images bear out what models say of masks, in [0, 1]; 1 until these were heard."""
        return float(np.clip(self.expected / EXPECTED, 0, 1)) ** 2

    def _away(self, scale: tuple[float, float]) -> np.ndarray:
        return _away(np.array(list(self.unexplained.values())), scale)

    def __call__(self, case: str) -> float:
        """What to add to the log odds of a case; 0 where nothing is said."""
        return self.odds.get(case, 0.0)

    def knows(self, case: str) -> bool:
        """Whether the images have learnt what to say of a case's outline, or of any other drawn there."""
        return self.mender is not None and case in self.numbers

    def disbelieves(self, case: str) -> bool:
        """Whether the images speak of a case's outline, and against it."""
        return self.convention.get(case, 1.0) < FOLLOWS

    def doubts(self, case: str) -> bool:
        """Whether they speak against it, or explain hardly any of it: a single odd mask breaks no convention."""
        return self.disbelieves(case) or self.unexplained.get(case, 0.0) >= HARDLY


def _away(errors: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """(N,) by how many spreads outlines are worse explained than the middle one, from unexplained shares (N,)."""
    return np.asarray(np.clip((errors - scale[0]) / scale[1], *RANGE))


def _odds(away: np.ndarray, believed: np.ndarray, expected: float) -> np.ndarray:
    """(N,) log odds that outlines are flawed.

    Args:
        away: (N,) spreads by which they are worse explained. believed: (N,) how likely they follow the convention.
        expected: spreads by which flawed ones are.
    """
    odds = expected * away - expected**2 / 2
    if (believed < FOLLOWS).any():  # else all are drawn in one way, which says nothing of any
        odds = odds + CONVENTION * np.clip(-logit(believed), *CONVENTION_RANGE)
    return np.asarray(odds)


@dataclass(frozen=True)
class Outlines:
    """Outlines and their images as the witness compares them, by case.

    Args:
        looks: of `scaled_looks`, (2 * PLACES, F). scenes: of `overview`, (Q, F).
    """

    looks: Mapping[str, Tensor] = field(default_factory=dict)
    scenes: Mapping[str, Tensor] = field(default_factory=dict)

    def witness(self) -> ImageWitness:
        """What they say of one another."""
        return ImageWitness.of(self.looks, self.scenes)

    def with_others(self, others: Outlines) -> Outlines:
        """These and others; of a case that both have, the other."""
        return Outlines({**self.looks, **others.looks}, {**self.scenes, **others.scenes})

    def arrays(self) -> dict[str, np.ndarray]:
        """ "looks" (N, 2 * PLACES, F) and "scenes" (N, Q, F), float32, in the order of the cases."""
        parts = {"looks": self.looks, "scenes": self.scenes}
        return {
            name: torch.stack([part[case] for case in self.looks]).float().numpy()
            for name, part in parts.items()
        }

    @classmethod
    def of(cls, ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Outlines:
        """From `arrays`, whose rows are these cases.

        Raises:
            ValueError: they do not belong together.
        """
        looks, scenes = (torch.from_numpy(arrays[name]).float() for name in ("looks", "scenes"))
        features = looks.shape[-1] if looks.ndim == 3 else 0
        if (
            looks.shape != (len(ids), 2 * PLACES, features)
            or scenes.shape != (len(ids), len(SCENE), features)
            or features % FEATURES
            or not (looks.isfinite().all() and scenes.isfinite().all())
        ):
            raise ValueError(f"outlines have shapes {tuple(looks.shape)} and {tuple(scenes.shape)}")
        return cls(dict(zip(ids, looks, strict=True)), dict(zip(ids, scenes, strict=True)))


def look_at_outlines(
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    max_voxels: int = MAX_VOXELS,
    progress: Callable[[], object],
    over: Mapper = in_turn,
) -> Outlines:
    """Look at the outlines of cases with masks, each process holding one case at a time.

    Args:
        cases: with a label each.
        dataset: names classes, ignore value and spacing.
        max_voxels: larger images are refused, as `data.max_voxels`.
        progress: called after each case.
        over: spreads the cases.
    """
    looks, scenes = {}, {}
    bare = replace(dataset, cases=())
    for case, found in zip(cases, over(partial(_looked_at, bare, max_voxels), cases), strict=True):
        looks[case.id], scenes[case.id] = map(torch.from_numpy, found)
        progress()
    return Outlines(looks, scenes)


def _looked_at(dataset: Dataset, max_voxels: int, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """`scaled_looks` and `overview` of a case; as arrays, which cross to another process without shared memory."""
    _, geometry, label, valid = read_mask(case, dataset)
    image = read_case(case, dataset, max_voxels=max_voxels)[0]
    looks = scaled_looks(image, label, dataset.spacing_mm or geometry.spacing_mm, valid)
    return looks.numpy(), overview(image).numpy()
