"""Synthetic cases with a known truth, for the demo, the tests and studies of label noise.

Real masks are never certain, so claims about flawed labels need images whose truth is known. A phantom is a
body with an organ, a core in or on the organ, and look-alikes elsewhere; partial volume, texture, a bias
field, speckle and Rician noise make it about as hard as a real scan: a small UNet trained on the true masks
reaches a Dice of about 0.9, not 0.99.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from maskmend.data.case import Geometry
from maskmend.data.images import atomic_write, write_image, write_label
from maskmend.errors import UsageError

LABELS = {"background": 0, "organ": 1, "core": 2}
SHAPES = {2: (96, 96), 3: (40, 48, 48)}
SPACING_MM = {2: (1.0, 1.0), 3: (1.2, 1.0, 1.0)}
COUNTS = {2: (120, 40), 3: (40, 12)}  # training and test cases


def phantom_case(
    rng: np.random.Generator, ndim: int = 2, shape: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One image and its true mask, a pure function of the generator's state.

    Args:
        rng: the only source of chance.
        ndim: 2 or 3.
        shape: (H, W) or (D, H, W), each at least 24; None: 96 x 96 or 40 x 48 x 48.

    Returns:
        image (1, *S) float32 in [0, 1] and label (*S) uint8: 0 background, 1 organ, 2 core. Both are present.

    Raises:
        UsageError: `ndim` is not 2 or 3, or the shape is too small or of another dimension.
    """
    size = _shape(ndim, shape)
    body = _blob(rng, size, rng.uniform(-0.05, 0.05, ndim), rng.uniform(0.85, 0.95, ndim), warp=0.05) < 1
    label = _anatomy(rng, size)
    signal = _signal(rng, body | (label > 0), label)
    image = _acquire(rng, signal)
    return image[None].astype(np.float32), label


def make_phantom(
    out: str | Path,
    *,
    ndim: int = 2,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    shape: Sequence[int] | None = None,
) -> Path:
    """Write a data set of phantoms with true masks in the two-folder layout.

    Files: `images/`, `labels/` (PNG in 2-D, NIfTI in 3-D) and `maskmend.json` with the class names and the
    test cases. Case i depends on (seed, split, i) alone, so a larger set begins with the smaller one.

    Args:
        out: the folder to write; created when missing.
        ndim: 2 or 3.
        train: training cases; None: 120 in 2-D, 40 in 3-D.
        test: test cases; None: 40 in 2-D, 12 in 3-D.
        seed: any integer >= 0.
        shape: spatial shape of every case; None: that of `phantom_case`.

    Returns:
        The folder.
    """
    size, out = _shape(ndim, shape), Path(out)
    counts = [COUNTS[ndim][i] if given is None else given for i, given in enumerate((train, test))]
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    geometry = _geometry(size)
    names: list[list[str]] = [[], []]
    for split, count in enumerate(counts):
        for number in range(count):
            name = f"{('train', 'test')[split]}_{number:03d}"
            image, label = phantom_case(np.random.default_rng([seed, ndim, split, number]), ndim, size)
            _write_case(out, name, image, label, geometry)
            names[split].append(name)
    side = {"labels": LABELS, "channels": ["phantom"], "test": names[1]}
    atomic_write(out / "maskmend.json", lambda path: path.write_text(json.dumps(side, indent=1) + "\n"))
    return out


def _shape(ndim: int, shape: Sequence[int] | None) -> tuple[int, ...]:
    if ndim not in SHAPES:
        raise UsageError(f"a phantom has 2 or 3 dimensions, not {ndim}", "ndim")
    size = tuple(int(n) for n in shape) if shape is not None else SHAPES[ndim]
    if len(size) != ndim or min(size) < 24:
        raise UsageError(f"shape {size} needs {ndim} sizes of at least 24", "shape")
    return size


def _geometry(size: tuple[int, ...]) -> Geometry:
    spacing = SPACING_MM[len(size)]
    affine = np.diag([*spacing[::-1], 1.0]) if len(size) == 3 else None
    return Geometry(size, spacing, affine)


def _write_case(out: Path, name: str, image: np.ndarray, label: np.ndarray, geometry: Geometry) -> None:
    suffix = ".png" if geometry.ndim == 2 else ".nii.gz"
    write_image(out / "images" / f"{name}{suffix}", np.round(image * 255).astype(np.uint8), geometry)
    write_label(out / "labels" / f"{name}{suffix}", label, geometry)


# --- anatomy: coordinates run from -1 to 1 along every axis ------------------------------------------------


def _blob(
    rng: np.random.Generator,
    size: tuple[int, ...],
    centre: np.ndarray,
    radii: np.ndarray,
    *,
    warp: float = 0.08,
) -> np.ndarray:
    """Level map (*S) of a rotated, warped super-ellipsoid: below 1 inside."""
    ndim = len(size)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))
    grid = grid + warp * np.stack([_smooth(rng, size, nodes=5) for _ in range(ndim)])
    turn, _ = np.linalg.qr(np.eye(ndim) + 0.35 * rng.standard_normal((ndim, ndim)))
    local = np.tensordot(turn.T, grid - centre.reshape(-1, *[1] * ndim), 1)
    power = rng.uniform(1.8, 3.0)
    level: np.ndarray = (np.abs(local / radii.reshape(-1, *[1] * ndim)) ** power).sum(0)
    return level


def _anatomy(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Label (*S): the organ lies off-centre towards the start of the last axis, the core in or on it."""
    ndim = len(size)
    centre = rng.uniform(-0.15, 0.15, ndim)
    centre[-1] -= 0.25
    radii = rng.uniform(0.28, 0.46, ndim)
    direction = rng.standard_normal(ndim)
    direction /= np.linalg.norm(direction)
    offset = direction * radii * rng.uniform(0.3, 0.9)
    label = np.zeros(size, np.uint8)
    label[_blob(rng, size, centre, radii) < 1] = 1
    label[_blob(rng, size, centre + offset, radii * rng.uniform(0.42, 0.62), warp=0.04) < 1] = 2
    return label


def _signal(rng: np.random.Generator, body: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Noise-free brightness (*S): tissue, organ, core, and look-alikes of organ and core that are neither."""
    size = body.shape
    tissue = rng.uniform(0.3, 0.4)
    organ = tissue + rng.uniform(0.16, 0.26)
    core = organ + rng.uniform(0.15, 0.25)
    clear = body & ~ndimage.binary_dilation(label > 0, iterations=3)  # else no one could tell
    signal: np.ndarray = np.where(body, tissue, 0.04) + 0.03 * _smooth(rng, size, nodes=12) * body
    for _ in range(rng.integers(2, 5)):
        centre = rng.uniform(-0.7, 0.7, len(size))
        level = _blob(rng, size, centre, rng.uniform(0.1, 0.28, len(size)))
        signal[(level < 1) & clear] = rng.choice([organ, core]) + rng.normal(0, 0.03)
    for value, brightness, nodes in ((1, organ, 16), (2, core, 24)):
        inside = label == value
        signal[inside] = brightness + 0.025 * _smooth(rng, size, nodes=nodes)[inside]
    return signal


def _acquire(rng: np.random.Generator, signal: np.ndarray) -> np.ndarray:
    """What a scanner makes of it: partial volume, bias field, speckle, Rician noise; (*S) in [0, 1]."""
    size = signal.shape
    image = ndimage.gaussian_filter(signal, rng.uniform(0.6, 1.1))
    image = image * np.exp(0.15 * _smooth(rng, size, nodes=3))
    image = image * (1 + 0.06 * _unit(ndimage.gaussian_filter(rng.standard_normal(size), 0.6)))
    sigma = rng.uniform(0.03, 0.055)
    real, imaginary = rng.normal(0, sigma, (2, *size))
    magnitude: np.ndarray = np.clip(np.hypot(image + real, imaginary), 0, 1)
    return magnitude


def _smooth(rng: np.random.Generator, size: tuple[int, ...], *, nodes: int) -> np.ndarray:
    """A smooth random field (*S), mean 0, deviation 1: `nodes` random heights per axis, spline between."""
    field = rng.standard_normal([min(nodes, n) for n in size])
    for axis, n in enumerate(size):  # the spline is separable: one small matrix per axis
        field = np.moveaxis(np.tensordot(_spline(field.shape[axis], n), field, (1, axis)), 0, axis)
    return _unit(field)


@functools.cache
def _spline(nodes: int, n: int) -> np.ndarray:
    """Matrix (n, nodes) that interpolates `nodes` heights to n samples with a cubic spline."""
    matrix: np.ndarray = ndimage.zoom(np.eye(nodes), (n / nodes, 1), order=3, mode="nearest", grid_mode=True)
    return matrix


def _unit(field: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (field - field.mean()) / field.std()
    return scaled
