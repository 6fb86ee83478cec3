"""Balls in blotchy images, drawn right or not, and what their outlines look like."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from maskmend.appearance import outline_looks

SIZE = 48


def ball(radius: float, centre: tuple[float, ...]) -> torch.Tensor:
    """(SIZE, SIZE) or (24, 24, 24), bool."""
    axes = torch.meshgrid(*[torch.arange(SIZE if len(centre) == 2 else 24)] * len(centre), indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2


def scenes(
    grow: float, ndim: int = 2, count: int = 30, seed: int = 0, contrast: float = 1.5
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Image, given and true mask: balls a little brighter than a blotchy background, drawn `grow` voxels too large."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        size = SIZE if ndim == 2 else 24
        radius = rng.uniform(10, 13) if ndim == 2 else rng.uniform(6, 7)
        centre = tuple(rng.uniform(size / 2 - 2, size / 2 + 2, ndim))
        truth, given = ball(radius, centre), ball(radius + grow, centre)
        blotches = ndimage.gaussian_filter(rng.normal(size=truth.shape), 2) * 3
        image = contrast * ndimage.gaussian_filter(truth.numpy().astype(float), 0.7) + blotches
        tensor = torch.tensor(image + rng.normal(0, 0.2, truth.shape), dtype=torch.float32)[None]
        made.append((tensor, given, truth))
    return made


def looked(made: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Looks of the given masks of `scenes`."""
    return torch.stack([outline_looks(image, given, torch.ones_like(given)) for image, given, _ in made])


def outlines(grow: float, ndim: int = 2, count: int = 30, seed: int = 0) -> torch.Tensor:
    """Looks of balls drawn `grow` voxels too large."""
    return looked(scenes(grow, ndim, count, seed))
