"""Co-teaching and JoCoR: two networks that choose voxels for one another."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from maskmend.losses import cross_entropy
from maskmend.methods._peers import Peers, joint_loss, joint_loss_map, keep_easiest, kept_loss, kept_shares
from maskmend.methods.base import Batch, StepOutput, ramp, within


class CoTeaching(Peers):
    """Train two networks; each ignores the voxels the other finds hardest.

    A network fits right labels before wrong ones, so a voxel whose loss is still large is more likely mislabelled.
    Each network drops the share of voxels with the largest loss *of its peer*: the two start differently and make
    different mistakes, which keeps each from confirming its own. With `jocor` the two choose together, by the sum of
    their losses and of their disagreement, and are also drawn towards one another: two networks that differ on a
    voxel rarely both follow its label.

    What it drops is not always wrong: thin boundaries and small parts are hard, too, and go first.

    Args:
        make_network: builds one network; called twice.
        forget_foreground: share of voxels of each foreground class that are dropped at the end of the ramp, in
            [0, 0.9]: the share of them that is expected to be wrong. None: estimated, as the share of them that
            the networks contradict in the first half of training.
        forget_background: the same for voxels labelled background. It is usually far smaller.
        ramp: share of training over which the dropped part grows from 0, in [0.01, 1].
        jocor: weight of the agreement between the networks, in [0, 0.95]; 0 is co-teaching, above it JoCoR (0.65).
        dice: add Dice over the kept voxels to cross-entropy; without it the networks under-segment (ours).
        ensemble: predict with the mean of both networks instead of the first (as published).
        ema: decay of the averaged weights that predict, in [0, 1); 0 uses the last weights, as published.

    Example:
        >>> method = CoTeaching(toy_network, forget_foreground=0.1, forget_background=0.02)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.5).logs)
        ['kept_background', 'kept_foreground']

    Source: Han et al., NeurIPS 2018, arXiv 1804.06872; Wei et al., CVPR 2020, arXiv 2003.02752 (JoCoR). Ours: each
    class is ranked apart with its own rate, the estimate of the rates, Dice, and the averaged weights; trusted cases
    are kept whole.
    """

    family = "selecting voxels"
    source = "Han et al., NeurIPS 2018; Wei et al., CVPR 2020 (JoCoR)"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        forget_foreground: float | None = None,
        forget_background: float | None = None,
        ramp: float = 0.2,
        jocor: float = 0.0,
        dice: bool = True,
        ensemble: bool = False,
        ema: float = 0.99,
    ) -> None:
        super().__init__(make_network, 2, ema, voters=2 if ensemble else 1)
        self.ramp = within("ramp", ramp, 0.01, 1)
        self.jocor = within("jocor", jocor, 0, 0.95)
        self.dice = dice
        self.expect(forget_background, forget_foreground, key="forget", look_from=self.ramp / 2)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """The sum of both networks' losses over the voxels chosen for them."""
        first, second = (network(batch["image"]) for network in self.networks)
        forget = self.rates(first) * ramp(progress, 0, self.ramp)
        if self.jocor:
            return self._joint_step(first, second, batch, forget)
        easy_for_first, easy_for_second = (
            keep_easiest(cross_entropy(logits.detach(), batch["label"]), batch, forget)
            for logits in (first, second)
        )
        loss = kept_loss(first, batch, easy_for_second, self.dice)
        loss = loss + kept_loss(second, batch, easy_for_first, self.dice)
        return StepOutput(loss, kept_shares(easy_for_first, batch))

    def _joint_step(self, first: Tensor, second: Tensor, batch: Batch, forget: Tensor) -> StepOutput:
        joint = joint_loss_map(first.detach(), second.detach(), batch, self.jocor)
        keep = keep_easiest(joint, batch, forget)
        loss = joint_loss(first, second, batch, keep, self.jocor, self.dice)
        return StepOutput(loss, kept_shares(keep, batch))
