"""How well the image explains an outline: which voxels beside it are inside, judged from their looks alone.

Two conventions of drawing can be equally consistent, and then the masks alone cannot tell which is right. The image
can: at a boundary that is really there, the two sides look different in the same way from case to case; an
outline drawn a few voxels off runs through tissue that looks the same on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

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
MOST = 400  # outlines that are learnt from
SCENE = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles that describe an image
SCENE_VOXELS = 20_000  # more tell nothing new
REACH = 5.0  # voxels that an outline is moved at most
STEP = 0.5
PLAUSIBLE = (
    0.9  # a moved outline must be explained this well, relative to the worst but a tenth of the believed ones
)
NEARLY = 0.1  # of what the given outline leaves unexplained, beyond the believed ones: enough in any case
LEAST_MEND = 0.1  # share of an outline that the moved one must explain better
CHUNK = 100_000  # voxels whose looks are judged at a time


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
    solid = mask[box]
    outside = _grown(solid) & ~solid & valid[box]
    inside = _grown(~solid) & solid & valid[box]
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


def scene_looks(image: Tensor) -> Tensor:
    """What the whole image looks like, whatever is drawn on it: quantiles of its looks, (len(SCENE), C * FEATURES).

    Args:
        image: (C, *S), normalised.
    """
    flat = _looks(image).flatten(1)
    return _quantiles(flat[:, :: max(1, flat.shape[1] // SCENE_VOXELS)])


def _quantiles(flat: Tensor) -> Tensor:
    """The quantiles SCENE of each row of (F, N), (len(SCENE), F).

    As `torch.quantile` to the last bit; NumPy sorts four to five times as fast on a CPU.
    """
    levels = torch.tensor(SCENE, dtype=flat.dtype, device=flat.device)
    if flat.device.type != "cpu":
        return torch.quantile(flat, levels, dim=1)
    ordered = torch.from_numpy(np.sort(flat.numpy(), axis=1))
    rank = levels * (flat.shape[1] - 1)
    below = rank.long()
    return ordered[:, below].lerp(ordered[:, rank.ceil().long()], rank - below).T


class OutlineModel:
    """Tells inside from outside by looks: ridge regression on random Fourier features, fitted on believed outlines.

    Every case is judged by the fit on other folds. Closed form: a fit on 100 cases takes some 3 ms.

    Args:
        looks: (N, 2 * PLACES, F) of `outline_looks`, N at least FOLDS.
    """

    def __init__(self, looks: Tensor) -> None:
        flat = looks.flatten(0, 1)
        self.centre, self.spread = flat.mean(0), flat.std(0).clamp_min(1e-6)
        count, places = looks.shape[:2]
        self.fold = torch.arange(count, device=looks.device) % FOLDS
        # More cases than these tell nothing new.
        self.rows = torch.linspace(0, count - 1, min(count, MOST), device=looks.device).round().long()
        self.waves = self._waves(looks[self.rows])
        self.side = torch.ones(places, dtype=self.waves.dtype, device=looks.device)
        self.side[places // 2 :] = -1
        self.gram = self.waves.transpose(1, 2) @ self.waves
        self.moment = (self.waves * self.side[:, None]).sum(1)
        self.ridge = RIDGE * torch.eye(self.gram.shape[1], dtype=self.gram.dtype, device=looks.device)

    def errors(self, believed: Tensor, looks: Tensor | None = None) -> Tensor:
        """Share of each outline that the looks of the believed ones leave unexplained: 0 none, 1 (or more) all.

        Args:
            believed: how far each case's outline takes part in the fit, (N,) in [0, 1].
            looks: of other outlines of the same cases, (N, 2 * PLACES, F); None: those of the fit (`rows` of them).

        Returns:
            Mean squared error of telling inside (+1) from outside (-1), (N,) or (rows,), double.
        """
        weights = self.weights(believed)
        if looks is None:
            return self._mean_square(self.waves, weights[self.fold[self.rows]])
        found = []
        for part, fold in zip(looks.split(MOST), self.fold.split(MOST), strict=True):
            found.append(self._mean_square(self._waves(part), weights[fold]))
        return torch.cat(found)

    def alone(self) -> Tensor:
        """As `errors`, when one outline alone is believed: (rows, rows), the believed one first."""
        weights = torch.linalg.solve(self.gram + self.ridge, self.moment)
        return torch.stack(
            [self._mean_square(self.waves, one.expand(len(self.waves), -1)) for one in weights]
        )

    def weights(self, believed: Tensor) -> Tensor:
        """What tells inside from outside, fitted without each fold: (FOLDS, W), double; case n is of fold n % FOLDS."""
        believed, fold = believed[self.rows].to(self.gram), self.fold[self.rows]
        gram, moment = [], []
        for k in range(FOLDS):
            used = believed * (fold != k)
            gram.append(torch.einsum("n,nij->ij", used, self.gram) + self.ridge)
            moment.append(used @ self.moment)
        return torch.linalg.solve(torch.stack(gram), torch.stack(moment))

    def _mean_square(self, waves: Tensor, weights: Tensor) -> Tensor:
        return ((waves @ weights[:, :, None])[:, :, 0] - self.side).square().mean(1)

    def _waves(self, looks: Tensor) -> Tensor:
        flat = ((looks.flatten(0, 1) - self.centre) / self.spread).clamp(-4, 4)
        return _fourier(flat).view(*looks.shape[:2], -1)


def unexplained(looks: Tensor) -> Tensor:
    """Share of each outline that the looks of the *other* cases do not explain, (N,): 0 all explained, 1 none.

    Args:
        looks: (N, 2 * PLACES, F) of `outline_looks`, N at least FOLDS.
    """
    return OutlineModel(looks).errors(torch.ones(len(looks), device=looks.device), looks)


class Mender:
    """Moves an outline inwards or outwards as a whole to where the images explain it, without any network.

    Args:
        scale: centre and spread of the looks, (2, F).
        weights: (FOLDS, W) of an `OutlineModel` fitted on believed outlines.
        plausible: share of an outline that may stay unexplained, and that stays so in the mean of believed ones, (2,).
    """

    def __init__(self, scale: Tensor, weights: Tensor, plausible: Tensor) -> None:
        self.scale, self.weights, self.plausible = scale, weights, plausible

    @classmethod
    def fit(cls, looks: Tensor, believed: Tensor) -> Mender:
        """From the believed outlines (N, 2 * PLACES, F); plausible is what most of them nearly reach."""
        model = OutlineModel(looks)
        errors = model.errors(believed, looks)
        sound = errors[(believed > 0.5) & looks.flatten(1).any(1)]
        if not len(sound):
            sound = errors.new_zeros(1)
        plausible = torch.stack([1 - PLAUSIBLE * (1 - sound.quantile(0.9)), sound.mean()])
        return cls(torch.stack([model.centre, model.spread]), model.weights(believed), plausible)

    def offset(
        self, image: Tensor, mask: Tensor, valid: Tensor, index: int
    ) -> tuple[float, np.ndarray] | None:
        """How far inwards the outline belongs, in voxels (negative: outwards), and its signed distances (*S).

        None where no place is explained clearly better than the given one and as well as the believed outlines.

        Args:
            image: (C, *S), normalised.
            mask: (*S) bool.
            valid: (*S) bool; voxels outside it are not judged.
            index: number of the case, which is judged by the fit without its fold.
        """
        offsets = torch.arange(-REACH, REACH + STEP / 2, STEP).tolist()
        found = self._errors(image, mask, valid, index, offsets)
        if found is None:
            return None
        errors, distance = found
        best = min(range(len(offsets)), key=errors.__getitem__)
        given = errors[offsets.index(0.0)]
        at_the_end = best in (0, len(offsets) - 1)
        return None if at_the_end or not self.prefers(errors[best], given) else (offsets[best], distance)

    def prefers(self, other: float, given: float) -> bool:
        """Whether another outline is explained clearly better than the given one, and about as well as believed ones.

        Args:
            other, given: shares that stay unexplained.
        """
        most, mean = self.plausible.tolist()
        # Where believed outlines are explained almost fully, a moved one, never quite the true one, is not.
        most = max(most, mean + NEARLY * (given - mean))
        return bool(other <= min(given - LEAST_MEND, most))

    def unexplained(self, image: Tensor, mask: Tensor, valid: Tensor, index: int) -> float:
        """Share of any outline of a case that the images leave unexplained; infinite without an outline.

        What `offset` finds for the outline where it is, without distances to it.

        Args: as of `offset`.
        """
        if not _told(mask, valid):
            return math.inf
        drawn = extended(mask.cpu().numpy(), valid.cpu().numpy())
        beside = ndimage.generate_binary_structure(drawn.ndim, 2)  # up to the root of two away
        sides = [part & ndimage.binary_dilation(~part, beside) for part in (drawn, ~drawn)]
        places = [
            torch.nonzero((torch.from_numpy(side).to(valid.device) & valid).flatten())[:, 0] for side in sides
        ]
        if min(map(len, places)) < FEATURES:
            return math.inf
        looks = _looks(image).flatten(1)
        return _of_both([self._sides(looks, some, index) for some in places])

    def _errors(
        self, image: Tensor, mask: Tensor, valid: Tensor, index: int, offsets: Sequence[float]
    ) -> tuple[list[float], np.ndarray] | None:
        """Unexplained share of the outline at each offset, and its signed distances; None where there is no outline."""
        if not _told(mask, valid):
            return None
        distance = signed_distance(extended(mask.cpu().numpy(), valid.cpu().numpy()))
        near = (torch.from_numpy(distance).to(mask.device).abs() <= max(map(abs, offsets)) + 1.5) & valid
        places = torch.nonzero(near.flatten())[:, 0]
        if not len(places):
            return None
        looks = _looks(image).flatten(1)
        side = self._sides(looks, places, index)
        depth = torch.from_numpy(distance).to(side).flatten()[places]
        return [_unexplained_at(depth - offset, side) for offset in offsets], distance

    def _sides(self, looks: Tensor, places: Tensor, index: int) -> Tensor:
        """`_side` of these flat places (M,) of an image with looks (F, V)."""
        return torch.cat([self._side(looks[:, some].T, index) for some in places.split(CHUNK)])

    def _side(self, looks: Tensor, index: int) -> Tensor:
        """+1 inside, -1 outside, by the looks (M, F) alone: (M,)."""
        centre, spread = self.scale
        return _fourier(((looks - centre) / spread).clamp(-4, 4)) @ self.weights[index % FOLDS]


def signed_distance(mask: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Distance of voxel centres to the boundary of a mask (*S) that is neither empty nor all; inside > 0.

    Args:
        mask: bool.
        spacing: voxel size, for a distance in its unit; None: in voxels.
    """
    half = 0.5 if spacing is None else float(np.mean(spacing)) / 2
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    return np.where(mask, inside - half, half - ndimage.distance_transform_edt(~mask, sampling=spacing))


def extended(label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The label map (*S) with the nearest known value where it is not valid, so that it has no outline there."""
    if valid.all() or not valid.any():
        return label
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    found: np.ndarray = label[tuple(nearest)]
    return found


def moved_labels(
    label: np.ndarray, distance: np.ndarray, offset: float, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """The label map (*S) with the outline of its foreground moved; voxels gained take the nearest class.

    Args:
        label: classes, 0 is background.
        distance: `signed_distance` of its foreground.
        offset: how far inwards, in the unit of the distance; negative outwards.
        spacing: as for the distance.
    """
    nearest = ndimage.distance_transform_edt(
        label == 0, sampling=spacing, return_distances=False, return_indices=True
    )
    return np.where(distance > offset, label[tuple(nearest)], 0)


def _unexplained_at(depth: Tensor, side: Tensor) -> float:
    """Share of an outline that the sides (M,) leave unexplained, by the signed distances (M,) from it."""
    inside, outside = (depth > 0) & (depth < 1.01), (depth <= 0) & (depth > -1.01)
    if int(inside.sum()) < FEATURES or int(outside.sum()) < FEATURES:
        return math.inf
    return _of_both([side[inside], side[outside]])


def _of_both(sides: Sequence[Tensor]) -> float:
    """Share unexplained of what was judged inside and outside: both count the same, as they do in the fit."""
    inside, outside = sides
    return float((inside - 1).square().mean() + (outside + 1).square().mean()) / 2


def _told(mask: Tensor, valid: Tensor) -> bool:
    """Whether both inside and outside are known somewhere."""
    return bool((mask & valid).any()) and bool((~mask & valid).any())


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


def _grown(mask: Tensor) -> Tensor:
    """(*S) bool with all neighbours, diagonal ones too."""
    for axis, size in enumerate(mask.shape):
        wide = mask.clone()
        wide.narrow(axis, 0, size - 1).logical_or_(mask.narrow(axis, 1, size - 1))
        wide.narrow(axis, 1, size - 1).logical_or_(mask.narrow(axis, 0, size - 1))
        mask = wide
    return mask


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
    """Gaussian smoothing of (C, *S), borders continued.

    Shifted copies are added up: on a CPU two to three times as fast as a convolution of single channels.
    """
    reach = max(1, round(2.5 * scale))
    kernel = torch.softmax(-0.5 * (torch.arange(reach + 1.0) / scale) ** 2, dim=0)
    kernel /= 2 * kernel.sum() - kernel[0]
    first, *others = kernel.tolist()
    for axis in range(1, image.ndim):
        size = image.shape[axis]
        at = torch.arange(-reach, size + reach, device=image.device).clamp(0, size - 1)
        padded = image.index_select(axis, at)
        image = image * first
        for step, weight in enumerate(others, 1):
            image.add_(padded.narrow(axis, reach - step, size), alpha=weight)
            image.add_(padded.narrow(axis, reach + step, size), alpha=weight)
    return image
