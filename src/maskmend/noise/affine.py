"""Turn, scale and shift a mask in millimetres: the annotator who drew the right shape in the wrong place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from maskmend.noise.base import Annotation, Choice, LabelNoise
from maskmend.noise.draws import at_least, draw_range


def move(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    shift_mm: Sequence[float] | None = None,
    degrees: float | Sequence[float] = 0.0,
    scale: float = 1.0,
) -> np.ndarray:
    """Move the whole label rigidly (and scale it) about the centre of its foreground.

    Args:
        label: (*S) integers; what leaves the image is lost, what enters is background.
        spacing_mm: voxel size in the order of the axes.
        shift_mm: displacement along every axis; None: none.
        degrees: 2-D: one angle, from axis 0 towards axis 1; 3-D: one about axis 0 (within the slices), or
            three, about the axes 0, 1, 2 in this order.
        scale: size factor, > 0.

    Returns:
        A new array (*S) of the same type, nearest-neighbour sampled: no class is invented.
    """
    where = np.nonzero(label)
    if not where[0].size:
        return np.array(label)
    spacing = np.asarray(spacing_mm, float)
    centre = np.array([axis.mean() for axis in where])
    shift = np.zeros(label.ndim) if shift_mm is None else np.asarray(shift_mm, float)
    # output voxel o comes from: centre + inverse(scale * turn) applied to its millimetre offset
    inverse = rotation(label.ndim, degrees).T / scale
    voxel = inverse * spacing / spacing[:, None]
    offset = centre - voxel @ (centre + shift / spacing)
    moved: np.ndarray = ndimage.affine_transform(label, voxel, offset, order=0, mode="constant", cval=0)
    return moved


def rotation(ndim: int, degrees: float | Sequence[float]) -> np.ndarray:
    """Rotation matrix (ndim, ndim) for the angles that `move` takes."""
    angles = np.radians(np.atleast_1d(np.asarray(degrees, float)))
    planes = [(0, 1)] if ndim == 2 else [(1, 2), (2, 0), (0, 1)]
    matrix = np.eye(ndim)
    for angle, (first, second) in zip(angles, planes, strict=False):
        turn = np.eye(ndim)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


@dataclass(frozen=True)
class Move(LabelNoise):
    """The right shape in the wrong place: shifted, turned, scaled, all classes together.

    Args:
        radius_mm: smallest and largest shift, in a random direction.
        degrees: turn by up to this much to either side (in 3-D about axis 0, within the slices).
        scale: smallest and largest size factor.

    Example:
        >>> import numpy as np
        >>> from maskmend.noise.base import Annotation, flaw
        >>> label = np.zeros((40, 40), np.uint8); label[10:30, 10:30] = 1
        >>> truth = Annotation(label, (1.0, 1.0))
        >>> choice = Move((3, 3), degrees=0).choose(np.random.default_rng(0), truth)
        >>> int(flaw(truth, choice).sum()) == int(label.sum())
        True
    """

    name = "move"
    radius_mm: Sequence[float] = (2.0, 5.0)
    degrees: float = 20.0
    scale: Sequence[float] = (1.0, 1.0)

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw length, direction, angle and, where it is a range, scale."""
        radius = draw_range(rng, self.radius_mm, "radius_mm")
        direction = rng.standard_normal(annotation.ndim)
        shift = radius * direction / np.linalg.norm(direction)
        limit = at_least(self.degrees, 0, "degrees")
        degrees = float(rng.uniform(-limit, limit))
        choice = {"transform": self.name, "shift_mm": shift.tolist(), "degrees": degrees}
        if tuple(self.scale) != (1.0, 1.0):
            choice["scale"] = draw_range(rng, self.scale, "scale", 1e-3)
        return choice

    @classmethod
    def flaw(cls, annotation: Annotation, choice: Mapping[str, Any], strength: float) -> np.ndarray:
        """Move the whole label; layers move together."""
        shift = [strength * length for length in choice["shift_mm"]]
        degrees, scale = strength * choice["degrees"], choice.get("scale", 1.0) ** strength
        return move(annotation.label, annotation.spacing_mm, shift_mm=shift, degrees=degrees, scale=scale)
