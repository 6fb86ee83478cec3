"""Augmentation in two steps: `choose` draws the parameters of one sample, `apply` works on a whole batch.

Parameters chosen apart from their use can be recorded and replayed. All spatial changes of a sample are one
map from output to input positions, so that images, labels and remembered maps move together and are
interpolated once. 2-D and 3-D share every line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskmend.errors import unknown

if TYPE_CHECKING:
    from maskmend.methods.base import Batch

_CONTROL = 6  # points per axis of the elastic grid: three spline intervals across the patch
_COARSE = 2.5  # an axis with voxels this much larger than the finest is not rotated into the others
_BLUR_RADIUS = 3


@dataclass(frozen=True)
class Strength:
    """Ranges from which `choose` draws; each kind of change happens with its own probability.

    Args:
        spatial: probability of rotation, scaling, shear and translation (drawn together).
        degrees: largest rotation about each axis.
        scale: largest factor of magnification or reduction.
        shear: largest shear.
        shift: largest translation as a share of the patch.
        elastic: probability of an elastic deformation.
        bend: its standard deviation at the control points as a share of the patch.
        intensity: probability of each of brightness, contrast and gamma.
        brightness: largest offset, in standard deviations of the normalised image.
        contrast: largest factor.
        gamma: largest exponent.
        degrade: probability of each of noise and blur.
        noise: largest standard deviation.
        blur: largest standard deviation in voxels.
    """

    spatial: float
    degrees: float
    scale: float
    shear: float
    shift: float
    elastic: float
    bend: float
    intensity: float
    brightness: float
    contrast: float
    gamma: float
    degrade: float
    noise: float
    blur: float


STRENGTHS: dict[str, Strength | None] = {
    "none": None,
    "light": Strength(0.5, 10, 1.1, 0.0, 0.05, 0.0, 0.0, 0.15, 0.1, 1.1, 1.2, 0.1, 0.1, 0.7),
    "default": Strength(0.6, 20, 1.2, 0.05, 0.05, 0.2, 0.02, 0.25, 0.25, 1.3, 1.5, 0.15, 0.2, 1.0),
    "strong": Strength(0.8, 45, 1.4, 0.1, 0.1, 0.4, 0.035, 0.4, 0.4, 1.6, 2.0, 0.25, 0.35, 1.3),
}


@dataclass(frozen=True)
class Choice:
    """What happens to one sample; the default is nothing. Axes are in array order, (H, W) or (D, H, W).

    Args:
        ndim: 2 or 3.
        degrees: rotation; one angle in 2-D (counter-clockwise, as `torch.rot90`), in 3-D one per axis,
            about that axis, in the sense of `torch.rot90` over the two other axes.
        scale: magnification, > 1 enlarges.
        shear: along the last axis per unit of the first.
        shift: translation per axis as a share of the patch.
        flip: axes that are mirrored.
        bend: standard deviation of the elastic displacement as a share of the patch, 0 for none.
        bend_seed: decides the displacement.
        brightness: added to the image.
        contrast: factor about the channel's mean.
        gamma: exponent on the channel's range.
        noise: standard deviation of added Gaussian noise, 0 for none.
        noise_seed: decides the noise.
        blur: standard deviation in voxels, 0 for none.
        voxel_mm: voxel size, so that rotating keeps shapes where voxels are not cubes; () for cubes.
    """

    ndim: int
    degrees: tuple[float, ...] = ()
    scale: float = 1.0
    shear: float = 0.0
    shift: tuple[float, ...] = ()
    flip: tuple[bool, ...] = ()
    bend: float = 0.0
    bend_seed: int = 0
    brightness: float = 0.0
    contrast: float = 1.0
    gamma: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0
    blur: float = 0.0
    voxel_mm: tuple[float, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether anything spatial happens."""
        still = self.scale == 1 and self.shear == 0 and self.bend == 0
        return not still or any(self.degrees) or any(self.shift) or any(self.flip)


def choose(
    rng: np.random.Generator,
    ndim: int,
    strength: str,
    flips: Sequence[bool],
    *,
    voxel_mm: Sequence[float] = (),
) -> Choice:
    """Draw the parameters of one sample.

    Args:
        rng: the same state gives the same choice.
        ndim: 2 or 3.
        strength: "none", "light", "default" or "strong".
        flips: for each axis, whether it may be mirrored (with probability 1/2).
        voxel_mm: voxel size of the patches; a much coarser axis is then not rotated into the others.

    Raises:
        UsageError: unknown strength.
    """
    if strength not in STRENGTHS:
        raise unknown("augmentation strength", strength, STRENGTHS, "train.augment")
    most = STRENGTHS[strength]
    if most is None:
        return Choice(ndim)
    flip = tuple(bool(allowed and hit) for allowed, hit in zip(flips, rng.random(ndim) < 0.5, strict=True))
    parts: dict[str, Any] = {"flip": flip, "voxel_mm": tuple(float(v) for v in voxel_mm)}
    spatial, elastic, bright, contrast, gamma, noise, blur = rng.random(7)
    if spatial < most.spatial:
        parts |= _choose_affine(rng, ndim, most, voxel_mm)
    if elastic < most.elastic:
        parts |= {"bend": float(rng.uniform(0.3, 1)) * most.bend, "bend_seed": _seed(rng)}
    if bright < most.intensity:
        parts["brightness"] = float(rng.uniform(-most.brightness, most.brightness))
    if contrast < most.intensity:
        parts["contrast"] = _factor(rng, most.contrast)
    if gamma < most.intensity:
        parts["gamma"] = _factor(rng, most.gamma)
    if noise < most.degrade:
        parts |= {"noise": float(rng.uniform(0, most.noise)), "noise_seed": _seed(rng)}
    if blur < most.degrade:
        parts["blur"] = float(rng.uniform(0.4, most.blur))
    return Choice(ndim, **parts)


def apply(batch: Batch, choices: Sequence[Choice]) -> Batch:
    """Carry out one choice per sample, on the device of the batch; samples that do not move stay bit for bit.

    Images and `memory` are interpolated linearly, labels, `valid` and `raters` by nearest voxel. What comes
    from outside the patch has image 0, label 0, valid False, background as memory and -1 for every rater.

    Args:
        batch: left as it is; tensors that do not change are shared with the result.
        choices: in the order of the batch.
    """
    if len(choices) != len(batch["image"]):
        raise ValueError(f"{len(choices)} choices for {len(batch['image'])} samples")
    result: Batch = {**batch}
    moving = [i for i, choice in enumerate(choices) if choice.moves]
    if moving:
        _move(result, moving, [choices[i] for i in moving])
    result["image"] = _intensities(result["image"], choices)
    return result


# --- choosing ---------------------------------------------------------------------------------------------


def _choose_affine(
    rng: np.random.Generator, ndim: int, most: Strength, voxel_mm: Sequence[float]
) -> dict[str, Any]:
    angles = rng.uniform(-most.degrees, most.degrees, 1 if ndim == 2 else 3)
    if ndim == 3:
        # About three axes at once the angles add up; a slab of thick slices must stay a slab.
        angles = angles * _may_rotate(voxel_mm)
    return {
        "degrees": tuple(float(a) for a in angles),
        "scale": _factor(rng, most.scale),
        "shear": float(rng.uniform(-most.shear, most.shear)),
        "shift": tuple(float(s) for s in rng.uniform(-most.shift, most.shift, ndim)),
    }


def _may_rotate(voxel_mm: Sequence[float]) -> np.ndarray:
    """For each axis, 1 if rotating about it mixes only axes of similar voxel size."""
    if not voxel_mm:
        return np.ones(3)
    size = np.asarray(voxel_mm, float)
    coarse = size > _COARSE * size.min()
    return np.array([float(not np.delete(coarse, axis).any()) for axis in range(3)])


def _factor(rng: np.random.Generator, most: float) -> float:
    """A factor between 1/most and most, as often below 1 as above."""
    return float(math.exp(rng.uniform(-1, 1) * math.log(most)))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


# --- moving -----------------------------------------------------------------------------------------------


def _move(batch: Batch, moving: list[int], choices: list[Choice]) -> None:
    """Replace the moving samples of `batch`, in place of its entries (the tensors are new)."""
    every = len(moving) == len(batch["image"])
    rows = torch.tensor(moving, device=batch["image"].device)
    image, label, valid = (batch[k] if every else batch[k][rows] for k in ("image", "label", "valid"))
    grid = _grid(choices, tuple(image.shape[2:]), image.device).to(image.dtype)
    channels = image.shape[1]
    memory = batch.get("memory")
    if memory is not None:
        image = torch.cat([image, memory if every else memory[rows]], dim=1)
    smooth = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Label and valid travel as one map: 0 is "not valid", which is also what lies outside.
    code = ((label + 1) * valid).unsqueeze(1)
    raters = batch.get("raters")
    if raters is not None:
        code = torch.cat([code, (raters if every else raters[rows]) + 1], dim=1)
    code = F.grid_sample(
        code.to(image.dtype), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    code = code.round().long()
    moved = {"image": smooth[:, :channels], "label": (code[:, 0] - 1).clamp_(min=0), "valid": code[:, 0] > 0}
    if raters is not None:
        moved["raters"] = code[:, 1:] - 1
    if memory is not None:
        moved["memory"] = _as_probabilities(smooth[:, channels:])
    for name, values in moved.items():
        if not every:
            values = batch[name].index_copy(0, rows, values)  # type: ignore[literal-required]
        batch[name] = values  # type: ignore[literal-required]


def _as_probabilities(maps: Tensor) -> Tensor:
    """What interpolation took from outside the patch counts as background."""
    missing = 1 - maps.sum(dim=1, keepdim=True)
    return torch.cat([maps[:, :1] + missing.clamp(min=0), maps[:, 1:]], dim=1)


def _grid(choices: list[Choice], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Input positions for every output voxel, (B, *S, ndim) in the last-axis-first order of `grid_sample`."""
    ndim = len(shape)
    matrices = np.stack([_matrix(choice, shape) for choice in choices])
    # Reversed rows and columns turn array order into grid_sample's (x, y, z).
    matrices[:, :, :ndim] = matrices[:, ::-1, ndim - 1 :: -1]
    matrices[:, :, ndim] = matrices[:, ::-1, ndim].copy()
    theta = torch.from_numpy(matrices.astype(np.float32)).to(device)
    grid = F.affine_grid(theta, [len(choices), 1, *shape], align_corners=False)
    bent = [i for i, choice in enumerate(choices) if choice.bend]
    if bent:
        rows = torch.tensor(bent, device=device)
        grid = grid.index_add(0, rows, _displacement([choices[i] for i in bent], shape, device))
    return grid


def _matrix(choice: Choice, shape: tuple[int, ...]) -> np.ndarray:
    """(ndim, ndim + 1) map from output to input positions in array order, both in [-1, 1] over the patch."""
    ndim = choice.ndim
    # Rotation and shear happen in millimetres; half the patch is one unit of the grid.
    half = np.array(shape) * np.array(choice.voxel_mm or (1.0,) * ndim) / 2
    turn = np.eye(ndim)
    axes = ((0, 1),) if ndim == 2 else ((1, 2), (0, 2), (0, 1))
    for (first, second), angle in zip(axes, choice.degrees, strict=False):
        turn = turn @ _rotation(ndim, first, second, math.radians(angle))
    slant = np.eye(ndim)
    slant[-1, 0] = choice.shear
    mirror = np.diag([-1.0 if hit else 1.0 for hit in choice.flip or (False,) * ndim])
    linear = mirror @ slant @ turn / choice.scale
    shift = np.array(choice.shift or (0.0,) * ndim) * 2
    linear = linear * half[None, :] / half[:, None]
    return np.concatenate([linear, (-linear @ shift)[:, None]], axis=1)


def _rotation(ndim: int, first: int, second: int, angle: float) -> np.ndarray:
    matrix = np.eye(ndim)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = math.sin(angle), -math.sin(angle)
    return matrix


def _displacement(choices: list[Choice], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A smooth random displacement per sample, (B, *S, ndim) in grid units: a cubic spline on few points."""
    ndim = len(shape)
    points = []
    for choice in choices:
        rng = np.random.Generator(np.random.Philox(key=choice.bend_seed))
        points.append(rng.standard_normal((ndim, *[_CONTROL] * ndim), np.float32) * (2 * choice.bend))
    field = torch.from_numpy(np.stack(points)).to(device)
    for size in reversed(
        shape
    ):  # each product consumes the last axis and puts its dense version behind B, ndim
        dense = field @ _spline(size).to(device).T
        field = dense.movedim(-1, 2)
    return field.movedim(1, -1)


def _spline(size: int) -> Tensor:
    """(size, control points) weights of a uniform cubic B-spline whose inner part spans the axis."""
    place = (np.arange(size) + 0.5) / size * (_CONTROL - 3) + 1
    t = np.abs(place[:, None] - np.arange(_CONTROL))
    near, far = 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6
    return torch.from_numpy(np.where(t < 1, near, far).astype(np.float32))


# --- intensities ------------------------------------------------------------------------------------------


def _intensities(image: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Gamma, contrast, brightness, blur and noise, each on the samples that have it."""
    image = _where(image, choices, "gamma", 1.0, _gamma)
    image = _where(image, choices, "contrast", 1.0, _contrast)
    image = _where(image, choices, "brightness", 0.0, lambda part, value: part + value)
    image = _where(image, choices, "blur", 0.0, _blur)
    noisy = [i for i, choice in enumerate(choices) if choice.noise]
    if noisy:
        rows = torch.tensor(noisy, device=image.device)
        noise = torch.stack([_noise(choices[i], image[i]) for i in noisy])
        image = image.index_add(0, rows, noise)
    return image


def _where(image: Tensor, choices: Sequence[Choice], name: str, nothing: float, change: Any) -> Tensor:
    """Apply `change(samples, values)` to the samples whose parameter is not `nothing`."""
    values = [float(getattr(choice, name)) for choice in choices]
    rows = [i for i, value in enumerate(values) if value != nothing]
    if not rows:
        return image
    index = torch.tensor(rows, device=image.device)
    amount = torch.tensor([values[i] for i in rows], device=image.device, dtype=image.dtype)
    amount = amount.view(-1, *[1] * (image.ndim - 1))
    return image.index_copy(0, index, change(image[index], amount))


def _gamma(image: Tensor, value: Tensor) -> Tensor:
    """The exponent acts on the channel's own range, which stays."""
    space = tuple(range(2, image.ndim))
    low, high = image.amin(space, keepdim=True), image.amax(space, keepdim=True)
    width = high - low
    return ((image - low) / width.clamp(min=1e-6)).pow(value) * width + low


def _contrast(image: Tensor, value: Tensor) -> Tensor:
    mean = image.mean(tuple(range(2, image.ndim)), keepdim=True)
    return (image - mean) * value + mean


def _blur(image: Tensor, value: Tensor) -> Tensor:
    """Gaussian along one axis after the other; a sum of shifted images, so that widths may differ."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=image.device, dtype=image.dtype)
    weight = torch.exp(-0.5 * (offsets / value.view(-1, 1)) ** 2)
    weight = weight / weight.sum(dim=1, keepdim=True)
    for axis in range(2, image.ndim):
        size = image.shape[axis]
        places = torch.arange(size, device=image.device)
        total = torch.zeros_like(image)
        for k in range(2 * _BLUR_RADIUS + 1):
            shifted = image.index_select(axis, (places + k - _BLUR_RADIUS).clamp(0, size - 1))
            total.addcmul_(shifted, weight[:, k].view(-1, *[1] * (image.ndim - 1)))
        image = total
    return image


def _noise(choice: Choice, like: Tensor) -> Tensor:
    source = torch.Generator(device=like.device).manual_seed(choice.noise_seed)
    drawn = torch.randn(like.shape, generator=source, device=like.device, dtype=like.dtype)
    return drawn * choice.noise
