"""Clicking a polygon instead of following the border: few vertices, none quite in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskmend.noise.base import Annotation, Choice, RegionNoise
from maskmend.noise.draws import at_least, draw_range, draw_seed


@dataclass(frozen=True)
class Polygon(RegionNoise):
    """Replace each outline by a polygon that strays from it by at most a tolerance, then jitter its vertices.

    Volumes are drawn slice by slice (axis 0), as people do, each slice with its own jitter.

    Args:
        tolerance_mm: smallest and largest distance between outline and polygon (Douglas-Peucker).
        jitter_mm: standard deviation of each vertex coordinate.

    Example:
        >>> import numpy as np
        >>> from maskmend.noise.base import Annotation, flaw
        >>> label = np.zeros((40, 40), np.uint8); label[10:30, 10:30] = 1
        >>> truth = Annotation(label, (1.0, 1.0))
        >>> still = Polygon((0, 0), jitter_mm=0).choose(np.random.default_rng(0), truth)
        >>> bool((flaw(truth, still) == label).all())
        True

    Source: boundary noise of COCO-N (Grad et al., "Benchmarking label noise in instance segmentation", 2024).
    """

    name = "polygon"
    tolerance_mm: Sequence[float] = (1.0, 4.0)
    jitter_mm: float = 1.0

    def choose(self, rng: np.random.Generator, annotation: Annotation) -> Choice:
        """Draw the tolerance and the seed of the jitter."""
        jitter = at_least(self.jitter_mm, 0, "jitter_mm")
        tolerance = draw_range(rng, self.tolerance_mm, "tolerance_mm")
        facts = {"tolerance_mm": tolerance, "jitter_mm": jitter}
        return {"transform": self.name, "seed": draw_seed(rng)} | facts

    @classmethod
    def reach_mm(cls, choice: Mapping[str, Any], strength: float, spacing_mm: tuple[float, ...]) -> float:
        """The tolerance and six deviations."""
        return float(strength * (choice["tolerance_mm"] + 6 * choice["jitter_mm"]))

    @classmethod
    def flaw_region(
        cls,
        region: np.ndarray,
        spacing_mm: tuple[float, ...],
        choice: Mapping[str, Any],
        strength: float,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Redraw every slice."""
        slices = region[None] if region.ndim == 2 else region
        result = np.zeros_like(slices)
        for number, drawn in enumerate(slices):
            own = np.random.default_rng(rng.integers(2**32))
            for outline in _outlines(drawn, spacing_mm[-2:], strength * choice["tolerance_mm"]):
                moved = outline + own.normal(0, 1, outline.shape) * strength * choice["jitter_mm"]
                result[number] ^= _filled(moved / spacing_mm[-2:], drawn.shape)  # a hole is drawn twice
        return result[0] if region.ndim == 2 else result


def _outlines(region: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float) -> Iterator[np.ndarray]:
    """Vertices (n, 2) in millimetres of every closed outline (H, W), without the repeated last one.

    An outline too small for the tolerance keeps four corners: someone who clicks has at least a few clicks.
    """
    # Here, for it loads scipy.signal: .3 s that every audit would wait for.
    from skimage.measure import approximate_polygon, find_contours

    for contour in find_contours(np.pad(region, 1).astype(np.float32), 0.5):  # type: ignore[no-untyped-call]
        points = (contour - 1) * spacing_mm
        few = approximate_polygon(points, tolerance_mm) if tolerance_mm > 0 else points  # type: ignore[no-untyped-call]
        if len(few) < 4:
            few = points[np.linspace(0, len(points) - 1, 5).astype(int)]
        yield few[:-1]


def _filled(vertices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    from skimage.draw import polygon as filled_polygon

    inside = np.zeros(shape, bool)
    inside[filled_polygon(vertices[:, 0], vertices[:, 1], shape)] = True  # type: ignore[no-untyped-call]
    return inside
