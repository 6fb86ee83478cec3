"""How well the image explains an outline: which voxels beside it are inside, judged from their looks alone.

Two conventions of drawing can be equally consistent, and then the masks alone cannot tell which is right. The image
can: at a boundary that is really there, the two sides look different in the same way from case to case; an
outline drawn a few voxels off runs through tissue that looks the same on both sides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Voxels. Fine ones only: what is seen from afar also tells how far the true boundary is, and then an outline
# drawn beside it is explained too (measured: with 2.8 the two came near one another on clean images).
SCALE, COARSE = 0.7, 1.4
FEATURES = 4  # per channel
PLACES = 32  # sampled on each side of one outline
MARGIN = 5  # voxels around the outline that the coarser scale needs
WAVES = 64  # random Fourier features: enough for bends, few enough to fit on twenty cases
PITCH = 2.0
RIDGE = 30.0
FOLDS = 5
INDEPENDENT = 20.0  # neighbouring samples of one outline tell the same: about a third of them count


def outline_looks(image: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
    """Local appearance just inside and just outside an outline: (2 * PLACES, C * FEATURES); zeros where there is none.

    Args:
        image: (C, *S), normalised.
        mask: (*S) bool.
        valid: (*S) bool; voxels outside it are not sampled.
    """
    box = _box(mask)
    empty = image.new_zeros(2 * PLACES, len(image) * FEATURES)
    if box is None:
        return empty
    solid = mask[box][None, None].to(image.dtype)
    pool = nn.functional.max_pool2d if mask.ndim == 2 else nn.functional.max_pool3d
    outside = (pool(solid, 3, stride=1, padding=1)[0, 0] > 0) & ~mask[box] & valid[box]
    inside = (pool(1 - solid, 3, stride=1, padding=1)[0, 0] > 0) & mask[box] & valid[box]
    around = (slice(None), *box)
    looks = _looks(image[around]).flatten(1)
    rows = []
    for side in (inside, outside):
        places = torch.nonzero(side.flatten())[:, 0]
        if not len(places):
            return empty
        # Evenly along the raster: the same voxels every time, and no random state to keep.
        chosen = torch.linspace(0, len(places) - 1, PLACES, device=places.device).round().long()
        rows.append(looks[:, places[chosen]].T)
    return torch.cat(rows)


def unexplained(looks: Tensor) -> Tensor:
    """Share of each outline that the looks of the *other* cases do not explain, (N,): 0 all explained, 1 none.

    The mean squared error of telling inside (+1) from outside (-1) by ridge regression on random Fourier features,
    fitted on the other folds. Closed form: some 20 ms for 100 cases.

    Args:
        looks: (N, 2 * PLACES, F) of `outline_looks`, N at least FOLDS.
    """
    count, places = looks.shape[:2]
    flat = looks.flatten(0, 1)
    flat = ((flat - flat.mean(0)) / flat.std(0).clamp_min(1e-6)).clamp(-4, 4)
    waves = _fourier(flat).view(count, places, -1)
    side = torch.ones(places, dtype=waves.dtype, device=waves.device)
    side[places // 2 :] = -1
    fold = torch.arange(count, device=looks.device) % FOLDS
    parts = [waves[fold == k].flatten(0, 1) for k in range(FOLDS)]
    gram = torch.stack([part.T @ part for part in parts])
    moment = torch.stack([part.T @ side.repeat(len(part) // places) for part in parts])
    ridge = RIDGE * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram.sum(0) - gram + ridge, moment.sum(0) - moment)
    error = waves.new_zeros(count)
    for k in range(FOLDS):
        error[fold == k] = (waves[fold == k] @ weights[k] - side).square().mean(1)
    return error


def image_support(looks: Tensor) -> float:
    """Log likelihood per case that the image holds for these outlines as one convention, up to a constant.

    Gaussian residuals of `unexplained`, INDEPENDENT of them per outline. Outlines that nothing explains, or that
    are too few to tell, get 0.

    Args:
        looks: (N, 2 * PLACES, F); cases without an outline (all zeros) do not count.
    """
    seen = looks.flatten(1).any(1)
    if int(seen.sum()) < 2 * FOLDS:
        return 0.0
    return -0.5 * INDEPENDENT * math.log(max(unexplained(looks[seen]).mean().item(), 1e-3))


def _fourier(flat: Tensor) -> Tensor:
    """Bounded smooth features of (M, F), the same for everyone: (M, 1 + F + WAVES), double."""
    draw = torch.Generator().manual_seed(0)
    width = flat.shape[1]
    directions = torch.randn(width, WAVES, generator=draw) * PITCH / math.sqrt(width)
    phases = torch.rand(WAVES, generator=draw) * 2 * math.pi
    waves = torch.cos(flat @ directions.to(flat) + phases.to(flat))
    return torch.cat([torch.ones_like(flat[:, :1]), flat, waves], dim=1).double()


def _box(mask: Tensor) -> tuple[slice, ...] | None:
    """Where the mask is, with MARGIN voxels around it."""
    places = torch.nonzero(mask)
    if not len(places):
        return None
    low, high = places.amin(0).tolist(), places.amax(0).tolist()
    return tuple(slice(max(0, a - MARGIN), b + MARGIN + 1) for a, b in zip(low, high, strict=True))


def _looks(image: Tensor) -> Tensor:
    """Brightness, edge strength, blob strength and local contrast, whatever the rotation: (C * FEATURES, *S)."""
    fine, coarse = _blur(image, SCALE), _blur(image, COARSE)
    # A side of one voxel has no slope.
    axes = [axis for axis in range(1, image.ndim) if image.shape[axis] > 1]
    slopes = torch.gradient(fine, dim=axes) if axes else (torch.zeros_like(fine),)
    edge = torch.stack([slope.square() for slope in slopes]).sum(0).sqrt()
    contrast = (_blur(image.square(), SCALE) - fine.square()).clamp_min(0).sqrt()
    return torch.cat([fine, edge, coarse - fine, contrast])


def _blur(image: Tensor, scale: float) -> Tensor:
    """Gaussian smoothing of (C, *S), borders continued."""
    reach = max(1, round(2.5 * scale))
    steps = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.softmax(-0.5 * (steps / scale) ** 2, dim=0).view(1, 1, -1)
    for axis in range(1, image.ndim):
        lines = image.movedim(axis, -1)
        padded = nn.functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate")
        image = nn.functional.conv1d(padded, kernel).view(lines.shape).movedim(-1, axis)
    return image
