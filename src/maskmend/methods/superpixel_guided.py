"""Superpixel-guided learning: choose and relabel whole superpixels, not single voxels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor, nn

from maskmend.losses import one_hot
from maskmend.methods._noise_rates import contradictions
from maskmend.methods._peers import Peers, joint_loss, joint_loss_map, keep_easiest, kept_shares
from maskmend.methods.base import Batch, StepOutput, ramp, within

BINS = 100  # of the histogram from which the limit for relabelling is read
TINY = 1e-6


class SuperpixelGuided(Peers):
    """Two networks that choose superpixels together, then relabel those that stay doubtful.

    Flaws of masks are patches, not single voxels, and true boundaries follow the image. So JoCoR's choice is made by
    superpixel: the loss is averaged over each before ranking, which takes out most of the chance in it, and a
    superpixel goes or stays as a whole. From `relabel_from` on the masks themselves are mended, `relabels` times: in
    the share of superpixels in which the given labels are least believed over all cases, every voxel takes the class
    that the networks predict for the superpixel. Original labels are never touched; the mended ones are the method's
    memory of a case.

    It is as good as the superpixels: where the boundary that matters has no edge in the image, they cross it and
    relabelling blurs it.

    Superpixels (SLIC) are made anew for every patch, on the CPU, since augmentation moves the voxels: about 4 ms for
    48 x 64, 25 ms for 128 x 128, 0.2 s for 48 x 64 x 48 and 2.5 s for 96 x 96 x 96 voxels on one core. With 3-D patches
    that is most of a step; smaller patches or 2-D training are the remedy.

    Args:
        make_network: builds one network; called twice.
        voxels: size of a superpixel, in [4, 100000].
        compactness: how much being near counts against looking alike in SLIC, on images scaled to 0..1, > 0.
        forget_foreground: share of superpixels of each foreground class (counted by voxels) that are dropped at the
            end of the ramp, and later relabelled, in [0, 0.9]. None: estimated, as the share of foreground voxels that
            the networks contradict in the first half of training and at each relabelling.
        forget_background: the same for superpixels that are mostly background.
        agreement: weight of the agreement between the networks, in [0, 0.95].
        ramp: share of training over which the dropped part grows from 0, in [0.01, 1].
        relabels: how often masks are mended, >= 0.
        relabel_from: share of training before the first time, in [0, 1]; further times are spread evenly.
        dice: add Dice over the kept voxels to cross-entropy (ours).
        ensemble: predict with the mean of both networks instead of the first.
        ema: decay of the averaged weights that predict, in [0, 1); 0 uses the last weights, as published.

    Example:
        >>> method = SuperpixelGuided(toy_network, voxels=9, forget_foreground=0.1, forget_background=0.05)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['kept_background', 'kept_foreground']

    Source: Li, Gao and He, MICCAI 2021, arXiv 2107.10100; its text is not available to us beyond the abstract. The
    authors take the shares from clean labels; here they are given or estimated. Ours: the superpixels' size, the times
    of relabelling, one limit for all cases instead of one for each, Dice, the averaged weights; trusted cases are
    kept whole and are not relabelled.
    """

    family = "selecting voxels"
    source = "Li, Gao and He, MICCAI 2021"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        voxels: int = 32,
        compactness: float = 0.1,
        forget_foreground: float | None = None,
        forget_background: float | None = None,
        agreement: float = 0.65,
        ramp: float = 0.2,
        relabels: int = 2,
        relabel_from: float = 0.4,
        dice: bool = True,
        ensemble: bool = False,
        ema: float = 0.99,
    ) -> None:
        super().__init__(make_network, 2, ema, voters=2 if ensemble else 1)
        self.voxels = int(within("voxels", voxels, 4, 100_000))
        self.compactness = within("compactness", compactness, 1e-6, 1e6)
        self.agreement = within("agreement", agreement, 0, 0.95)
        self.ramp = within("ramp", ramp, 0.01, 1)
        self.relabels = int(within("relabels", relabels, 0, 1000))
        self.relabel_from = within("relabel_from", relabel_from, 0, 1)
        self.dice = dice
        self.expect(forget_background, forget_foreground, key="forget", look_from=self.ramp / 2)
        self.looks: Tensor
        self.register_buffer("looks", torch.zeros((), dtype=torch.long))
        self.limits: Tensor
        self.register_buffer("limits", torch.zeros(0))

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """JoCoR's loss over the superpixels with the smallest mean loss."""
        if "memory" in batch:
            batch = {**batch, "label": batch["memory"].argmax(dim=1)}
        first, second = (network(batch["image"]) for network in self.networks)
        forget = self.rates(first) * ramp(progress, 0, self.ramp)
        keep = batch["valid"]
        if forget.any():
            segments = superpixels(batch["image"], self.voxels, self.compactness)
            joint = joint_loss_map(first.detach(), second.detach(), batch, self.agreement)
            joint = mean_within(joint[None], segments, keep)[0]
            mostly = majority(batch["label"], first.shape[1], segments, keep)
            keep = keep_easiest(joint, batch, forget, groups=mostly)
        loss = joint_loss(first, second, batch, keep, self.agreement, self.dice)
        return StepOutput(loss, kept_shares(keep, batch))

    def wants_revision(self, progress: float) -> bool:
        """To estimate the noise rate, and in two epochs for each relabelling: one to measure, one to relabel."""
        return self._relabelling_is_due(progress) or super().wants_revision(progress)

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
        """Relabel doubtful superpixels if the limits are fresh; measure how much every superpixel is believed."""
        current = label if memory is None else memory.argmax(dim=0)
        if not self._relabelling_is_due(progress):
            super().revise(index, probs, current, valid, memory, progress, image)
            return memory
        segments = superpixels(image[None], self.voxels, self.compactness)[0]
        belief, mostly = self._belief(probs, current, valid, segments)
        if self.looks % 2 == 1 and index not in self.trusted_cases:
            doubtful = belief < self.limits.to(belief)[mostly]
            decided = mean_within(probs, segments, valid).argmax(dim=0)
            current = torch.where(doubtful & valid, decided, current)
            memory = one_hot(current[None], len(probs))[0]
            belief, mostly = self._belief(probs, current, valid, segments)
        cells = mostly * BINS + (belief * BINS).long().clamp_max(BINS - 1)
        histogram = torch.bincount(cells[valid], minlength=len(probs) * BINS)
        self.keep(index, torch.cat([contradictions(probs, current, valid).flatten(), histogram.float()]))
        return memory

    def after_revision(self, progress: float) -> None:
        """The estimate of the noise rates, and below which belief a superpixel is doubtful."""
        if not self._relabelling_is_due(progress):
            return super().after_revision(progress)
        state = self.case_state
        classes = state.shape[1] // (2 + BINS)
        self.learn_rates(state[:, : 2 * classes], progress)
        histograms = state[:, 2 * classes :].double().sum(dim=0).view(classes, BINS)
        self.limits = _quantiles(histograms, self.rates(histograms[None]))
        self.looks += 1

    def _belief(self, probs: Tensor, label: Tensor, valid: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Of each voxel's superpixel: the geometric mean of the probabilities of its labels, and its main class."""
        logs = probs.clamp_min(TINY).log().gather(0, label.clamp(0, len(probs) - 1)[None])
        belief = mean_within(logs, segments, valid)[0].exp()
        return belief, majority(label, len(probs), segments, valid)

    def _relabelling_is_due(self, progress: float) -> bool:
        done = int(self.looks.item())
        times = max(self.relabels, 1)
        due = self.relabel_from + (1 - self.relabel_from) * (done // 2) / times
        return done < 2 * self.relabels and progress >= due


def superpixels(image: Tensor, voxels: int, compactness: float) -> Tensor:
    """SLIC superpixels of every image, numbered through the batch: (B, *S) long.

    Args:
        image: (B, C, *S).
        voxels: wanted size of one.
        compactness: see `skimage.segmentation.slic`.
    """
    found, first = [], 0
    for one in image.detach().float().cpu().numpy():
        pieces = max(1, round(one[0].size / voxels))
        segments = slic(
            np.moveaxis(one, 0, -1),
            n_segments=pieces,
            compactness=compactness,
            max_num_iter=5,
            channel_axis=-1,
            convert2lab=False,
            start_label=0,
        )
        found.append(torch.from_numpy(segments) + first)
        first += int(segments.max()) + 1
    return torch.stack(found).long().to(image.device)


def mean_within(values: Tensor, segments: Tensor, valid: Tensor) -> Tensor:
    """Maps (M, ...) replaced by their means over the valid voxels of each segment; 0 where none is valid.

    Args:
        values: (M, ...) float.
        segments: (...) long, from 0.
        valid: (...) bool.
    """
    numbers, weight = segments.flatten(), valid.flatten().to(values.dtype)
    count = int(numbers.max().item()) + 1
    kept = torch.where(valid, values, torch.zeros_like(values)).flatten(1)
    sums = values.new_zeros(len(values), count).index_add_(1, numbers, kept)
    sizes = values.new_zeros(count).index_add_(0, numbers, weight)
    return (sums / sizes.clamp_min(1))[:, numbers].view_as(values)


def majority(label: Tensor, classes: int, segments: Tensor, valid: Tensor) -> Tensor:
    """The commonest class among the valid voxels of each voxel's segment, (...) long; ties to the lower."""
    hot = torch.stack([label == number for number in range(classes)]).float()
    return mean_within(hot, segments, valid).argmax(dim=0)


def _quantiles(histograms: Tensor, shares: Tensor) -> Tensor:
    """Upper edges (K,) in [0, 1] below which about `shares` of each histogram (K, BINS) lie; never more."""
    below = histograms.cumsum(dim=1) / histograms.sum(dim=1, keepdim=True).clamp_min(1)
    return ((below <= shares[:, None] + TINY).sum(dim=1) / BINS).float()
