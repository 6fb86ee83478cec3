"""ADELE: notice for each class when memorisation begins, and correct its labels then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskmend.losses import ce_dice, masked_mean, one_hot
from maskmend.methods.base import Batch, EmaMethod, StepOutput, within

LEAST_LOOKS = 4  # the curve has three parameters
LARGEST_UNIT = 64  # no network here halves its input more than six times


class Adele(EmaMethod):
    """Relabel a class once the network stops learning what its labels share and starts on their flaws.

    The overlap between prediction and given labels grows fast while shared structure is learnt and slowly while
    flaws are. `a (1 - exp(-t^b / c))` is fitted to each class's training IoU over the looks t; when the slope has
    fallen by the share `fall` since the first look, voxels that are confidently predicted as that class get it as
    their label, once. Classes differ in when that happens, so each has its own curve. To make predictions worth
    that trust, they must agree over scales: the Jensen-Shannon divergence between them is part of the loss.

    Args:
        make_network: builds one network; it must take inputs of other sizes than the patch.
        ema: decay of the running average that predicts at the end, in [0, 1).
        fall: relative fall of the slope that triggers the correction, in (0, 1).
        confidence: probability above which a prediction replaces the label, in [0, 1].
        scales: further scales beside 1 at which the image is seen; each costs its share of voxels. Empty switches
            the divergence off.
        consistency: weight of the divergence, >= 0.

    Example:
        >>> method = Adele(toy_network, scales=(0.7,))
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['divergence']

    Source: Liu et al., CVPR 2022, arXiv 2110.03740. Ours: CE + Dice at scale 1 as the supervised part; the divergence
    counts at every valid voxel; classes need four looks before they can be corrected; scaled images are padded with
    zeros to a size that the network takes; trusted cases keep their labels.
    """

    family = "label correction"
    source = "Liu et al., CVPR 2022"

    overlap: Tensor
    due: Tensor
    done: Tensor

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        fall: float = 0.9,
        confidence: float = 0.7,
        scales: Sequence[float] = (0.7, 1.5),
        consistency: float = 1.0,
    ) -> None:
        super().__init__(make_network, ema)
        self.fall = within("fall", fall, 0.01, 0.999)
        self.confidence = within("confidence", confidence, 0, 1)
        self.scales = tuple(within("scales", scale, 0.25, 4) for scale in scales)
        self.consistency = within("consistency", consistency, 0, 1000)
        self.register_buffer("overlap", torch.zeros(0, 0))
        self.register_buffer("due", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("done", torch.zeros(0, dtype=torch.bool))

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on the labels as corrected so far, and the divergence between scales."""
        maps = self._over_scales(batch["image"])
        target = batch.get("memory", batch["label"])
        loss = ce_dice(maps[0], target, batch["valid"])
        if not self.scales:
            return StepOutput(loss)
        divergence = masked_mean(jensen_shannon([m.softmax(dim=1) for m in maps]), batch["valid"])
        return StepOutput(loss + self.consistency * divergence, {"divergence": divergence.detach()})

    def wants_revision(self, progress: float) -> bool:
        """Every epoch after the first: the curve needs all of training."""
        return progress > 0

    @torch.no_grad()
    def observe(self, image: Tensor) -> Tensor:
        """The student's mean probabilities over the scales; its average would show memorisation too late."""
        return torch.stack([m.float().softmax(dim=1) for m in self._over_scales(image)]).mean(dim=0)

    def revise(
        self,
        index: int,
        probs: Tensor,
        label: Tensor,
        valid: Tensor,
        memory: Tensor | None,
        progress: float,
        image: Tensor,
    ) -> Tensor | None:
        """The label as it stands, corrected for the classes that are due; counts for the IoU of all."""
        classes = len(probs)
        given, answer = one_hot(label[None], classes)[0] * valid, one_hot(probs.argmax(0)[None], classes)[0]
        both, either = given * answer, (given + answer * valid).clamp(max=1)
        self.keep(index, torch.cat([both.flatten(1).sum(1), either.flatten(1).sum(1)]))
        current = label.clamp(0, classes - 1) if memory is None else memory.argmax(dim=0)
        if self.due.any() and index not in self.trusted_cases:
            current = corrected(current, probs, self.due.to(probs.device), self.confidence)
        return one_hot(current[None], classes)[0]

    @torch.no_grad()
    def after_revision(self, progress: float) -> None:
        """Extend the curves; classes whose slope has fallen are corrected at the next look."""
        both, either = self.case_state.sum(dim=0).chunk(2)
        row = torch.where(either > 0, both / either.clamp_min(1), -1.0)[None]
        self.overlap = torch.cat([self.overlap.to(row).reshape(-1, row.shape[1]), row])
        done = self.done | self.due if len(self.due) else torch.zeros_like(both, dtype=torch.bool)
        flattened = [slope_has_fallen(curve, self.fall) for curve in self.overlap.T.cpu().numpy()]
        self.due = torch.tensor(flattened, device=done.device) & ~done
        self.done = done

    def _over_scales(self, image: Tensor) -> list[Tensor]:
        """Logits of the image's own size, at scale 1 first."""
        return [self.student(image), *(seen_at_scale(self.student, image, s) for s in self.scales)]


def seen_at_scale(network: nn.Module, image: Tensor, scale: float) -> Tensor:
    """What a network says about an image that was resized, brought back to its own size, (B, K, *S)."""
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    sizes = list(image.shape[2:])
    scaled = [max(1, round(n * scale)) for n in sizes]
    small = functional.interpolate(image, size=scaled, mode=mode)
    # The powers of two in the patch are what the network's strides need.
    gaps = [-s % min(n & -n, LARGEST_UNIT) for s, n in zip(scaled, sizes, strict=True)]
    padding = [amount for gap in reversed(gaps) for amount in (0, gap)]
    logits: Tensor = network(functional.pad(small, padding))
    inside = [slice(None)] * 2 + [slice(0, n) for n in scaled]
    return functional.interpolate(logits[tuple(inside)], size=sizes, mode=mode)


def jensen_shannon(probs: Sequence[Tensor]) -> Tensor:
    """Entropy of the mean minus mean of the entropies, in nats, of maps (B, K, *S): (B, *S) >= 0."""
    stacked = torch.stack(list(probs)).clamp_min(1e-8)

    def nats(p: Tensor, classes: int) -> Tensor:
        return -(p * p.log()).sum(dim=classes)

    return nats(stacked.mean(dim=0), 1) - nats(stacked, 2).mean(dim=0)


def corrected(label: Tensor, probs: Tensor, due: Tensor, confidence: float) -> Tensor:
    """Class indices (*S) with confident predictions of the classes that are due written over them.

    Args:
        label: (*S) long.
        probs: (K, *S).
        due: (K,) bool.
        confidence: smallest probability that convinces.
    """
    best, answer = probs.max(dim=0)
    return torch.where((best > confidence) & due[answer], answer, label)


def slope_has_fallen(overlap: np.ndarray, fall: float) -> bool:
    """Whether the slope of the curve fitted to IoU at looks 1, 2, ... has fallen by the share `fall` since look 1."""
    if len(overlap) < LEAST_LOOKS or (overlap < 0).any():  # -1: neither given nor predicted
        return False
    slopes = fitted_slopes(overlap)
    return slopes is not None and bool(slopes[0] > 0 and 1 - slopes[-1] / slopes[0] > fall)


def fitted_slopes(overlap: np.ndarray) -> np.ndarray | None:
    """Derivative at looks 1..n of `a (1 - exp(-t^b / c))` fitted to (n,); None where no curve fits."""
    from scipy.optimize import curve_fit

    looks = np.arange(1, len(overlap) + 1, dtype=float)
    start = (min(max(float(overlap.max()), 0.05), 0.99), 1.0, 2.0)
    try:
        (a, b, c), _ = curve_fit(
            _curve, looks, overlap.astype(float), p0=start, bounds=([0, 0.05, 1e-3], [1, 10, 1e6])
        )
    except RuntimeError:  # it did not converge: nothing can be said
        return None
    slopes: np.ndarray = a * b / c * looks ** (b - 1) * np.exp(-(looks**b) / c)
    return slopes


def _curve(t: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    values: np.ndarray = a * (1 - np.exp(-(t**b) / c))
    return values
