"""The contract that every way of learning keeps, and the averaged (EMA) network most of them share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypedDict, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from maskmend.data.raters import majority
from maskmend.errors import UsageError


class _Always(TypedDict):
    image: Tensor
    label: Tensor
    valid: Tensor
    trusted: Tensor
    case: list[str]
    index: Tensor


class Batch(_Always, total=False):
    """What a training step sees; the same keys in 2-D (*S is H, W) and 3-D (*S is D, H, W).

    image: (B, C, *S) float, normalised. label: (B, *S) long, the given class indices.
    valid: (B, *S) bool, False where the label says "ignore" or the patch leaves the image.
    trusted: (B,) bool. case: ids. index: (B,) long, the number of each case in the training set.
    memory: (B, K, *S) float, what the method last remembered of the case, cropped and augmented with it;
    absent until the first revision.
    raters: (B, R, *S) long, for methods that need raters: what each of them drew, moved with the label; -1 outside the
    case, where a rater says "ignore", and in cases that a rater did not draw. rated: (B, R) bool, who drew the case.
    The label is then what `fuse` made of the raters' masks, or a trusted case's own.
    """

    memory: Tensor
    raters: Tensor
    rated: Tensor


@dataclass
class StepOutput:
    """A scalar loss and the figures worth logging."""

    loss: Tensor
    logs: dict[str, Tensor | float] = field(default_factory=dict)


class Method(nn.Module):
    """A rule for learning from labels that may be wrong. It owns its networks; it knows no device, file or loop.

    A subclass takes `make_network` first and its settings as keyword-only arguments; those are the legal
    `method.*` keys. `training_step` must be pure apart from the loss it returns: state moves in
    `after_step` and between epochs in `revise` and `after_revision`.

    Whole cases come back between epochs when `wants_revision` says so: the loop calls `observe` (or
    `observe_case`) on the un-augmented case, hands the result to `revise`, keeps what that returns as the case's
    memory (an overlay in the run folder; original labels are never touched) and serves it as `batch["memory"]`.

    Class attributes: `needs` names what the data must have beyond labels ("trusted" cases, "raters", "noise
    rate"); `trusted_share` is the share of every batch that is drawn from the trusted cases, at least one and never
    all; 0 leaves them to turn up like any other case.
    """

    family: ClassVar[str] = "other"
    needs: ClassVar[tuple[str, ...]] = ()
    trusted_share: ClassVar[float] = 0.0
    source: ClassVar[str] = ""
    case_state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("case_state", torch.zeros(0, 0))
        self.trusted_cases: frozenset[int] = frozenset()

    def begin(self, cases: int, trusted: Collection[int] = ()) -> None:
        """Called once before training with the number of training cases N and the numbers of the trusted ones."""
        self.trusted_cases = frozenset(trusted)
        self.case_state = torch.zeros(cases, 0, device=self.case_state.device)

    def begin_raters(self, raters: int, classes: int) -> None:
        """Called once before training, and before a state is loaded, when several raters are learnt from."""

    def fuse(self, votes: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
        """The label that the raters' votes on a case amount to; called once per case, before training.

        Args:
            votes: the combinations of votes that occur in the case, (Q, R) class indices, 255 for no vote.
            counts: on how many voxels each of them occurs, (Q,).
            classes: K.

        Returns:
            The class index of each combination, (Q,).
        """
        return majority(votes, counts, classes)

    def keep(self, index: int, figures: Tensor) -> None:
        """Store figures (F,) about one case in row `index` of `case_state` (N, F); F is the same for all cases."""
        if self.case_state.shape[1] != len(figures):
            self.case_state = torch.zeros(len(self.case_state), len(figures), device=self.case_state.device)
        self.case_state[index] = figures.to(self.case_state)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch does, after making room in buffers that grow with the data."""
        for path, buffer in list(self.named_buffers()):
            stored = state_dict.get(path)
            if stored is not None and stored.shape != buffer.shape:
                owner, _, name = path.rpartition(".")
                setattr(self.get_submodule(owner), name, torch.zeros_like(stored, device=buffer.device))
        return super().load_state_dict(state_dict, strict, assign)

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """The loss of one batch; `progress` runs from 0 to 1 over training."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step."""

    def predict(self, image: Tensor) -> Tensor:
        """Class probabilities (B, K, *S) for images (B, C, *S), deterministic."""
        raise NotImplementedError

    def wants_revision(self, progress: float) -> bool:
        """Whether to look at every whole case before the epoch that starts at `progress`."""
        return False

    def observe(self, image: Tensor) -> Tensor:
        """One look at whole cases for `revise`, (B, C, *S) to (B, K, *S); may be stochastic."""
        return self.predict(image)

    def observe_case(self, image: Tensor, index: Tensor) -> Tensor:
        """As `observe`, for methods that look at different cases with different networks.

        Args:
            image: windows of whole cases, (B, C, *S).
            index: the number of the case that each window was cut from, (B,) long.
        """
        return self.observe(image)

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
        """The new memory of one case, or None to keep none.

        Args:
            index: number of the case in the training set, for `case_state`.
            probs: what `observe` gave, (K, *S).
            label: given class indices (*S).
            valid: (*S) bool.
            memory: what was remembered before, (K, *S), or None at the first look.
            progress: in [0, 1].
            image: (C, *S), un-augmented.
        """
        return None

    def after_revision(self, progress: float) -> None:
        """Called when every case was looked at; `case_state` then holds all cases on every process."""

    def noise(self, probs: Tensor, label: Tensor) -> Tensor:
        """How wrong each voxel's given label looks, in [0, 1].

        Args:
            probs: (B, K, *S).
            label: class indices (B, *S).
        """
        return 1 - given_class_probability(probs, label)


class EmaMethod(Method):
    """A student network and its running average, which predicts and judges the labels.

    The average changes slowly, so it lags behind the student's memorisation of wrong labels.

    Args:
        make_network: builds one network from (B, C, *S) to logits (B, K, *S).
        ema: decay of the average, in [0, 1), once ten times its horizon is trained; see `decay_at`.
    """

    steps_seen: Tensor

    def __init__(self, make_network: Callable[[], nn.Module], ema: float) -> None:
        if not 0 <= ema < 1:
            raise UsageError(f"is {ema}, must lie in [0, 1)", "method.ema")
        super().__init__()
        self.ema = ema
        self.student = make_network()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.long))

    def train(self, mode: bool = True) -> EmaMethod:
        """The teacher stays in evaluation mode whatever the student does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def after_step(self, progress: float) -> None:
        """Move the average towards the student."""
        self.steps_seen += 1
        follow(self.teacher, self.student, decay_at(int(self.steps_seen), self.ema))

    def predict(self, image: Tensor) -> Tensor:
        """Probabilities of the averaged network."""
        probs: Tensor = self.teacher(image).float().softmax(dim=1)
        return probs


def decay_at(step: int, most: float) -> float:
    """Decay of a running average after `step` steps: it looks back over about the last tenth of training.

    The usual `1 - 1/(step + 1)` averages over everything so far until the decay reaches `most`; in a run of a few
    hundred steps the average is then old even at the end. Over 300 steps with most = 0.99: Dice +.005 to +.012.
    """
    return min(1 - 10 / (step + 10), most)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the running average of a network towards it; buffers such as batch-norm statistics are copied."""
    averaged: list[Tensor] = list(average.parameters())
    current: list[Tensor] = list(network.parameters())
    torch._foreach_lerp_(averaged, current, 1 - decay)
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        old.copy_(new)


def given_class_probability(probs: Tensor, label: Tensor) -> Tensor:
    """The probability that `probs` (B, K, *S) gives to the given label (B, *S), as (B, *S)."""
    return probs.gather(1, label.clamp(0, probs.shape[1] - 1).unsqueeze(1)).squeeze(1)


def entropy(probs: Tensor) -> Tensor:
    """Entropy of (B, K, *S) over its classes, divided by log K: (B, *S) in [0, 1]."""
    return (torch.special.entr(probs.clamp(0, 1)).sum(dim=1) / math.log(probs.shape[1])).clamp(0, 1)


def ramp(progress: float, start: float, end: float) -> float:
    """0 before `start`, 1 after `end`, a cosine between."""
    if progress >= end:
        return 1.0
    if progress <= start:
        return 0.0
    return 0.5 - 0.5 * math.cos(math.pi * (progress - start) / (end - start))


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Dropout draws inside the block although the network is in evaluation mode (Monte Carlo dropout)."""
    layers = [m for m in network.modules() if isinstance(m, _DropoutNd) and not m.training]
    hooks = [layer.register_forward_hook(_drawn) for layer in layers if type(layer) is nn.Dropout]
    others = [layer for layer in layers if type(layer) is not nn.Dropout]
    for layer in others:
        layer.training = True
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in others:
            layer.training = False


def _drawn(layer: nn.Module, _: object, output: Tensor) -> Tensor:
    """What nn.Dropout would make of its input in training: on the CPU torch's own takes 3x the time (measured)."""
    share = float(cast(nn.Dropout, layer).p)
    if output.device.type != "cpu" or share >= 1:
        return nn.functional.dropout(output, share)
    return torch.rand_like(output).ge_(share).mul_(1 / (1 - share)).mul_(output)


def within(key: str, value: float, low: float, high: float) -> float:
    """The value, or a UsageError that names the setting and its range."""
    if not low <= value <= high:
        raise UsageError(f"is {value}, must lie in [{low:g}, {high:g}]", f"method.{key}")
    return value


def one_of(key: str, value: str, choices: Mapping[str, object] | tuple[str, ...]) -> str:
    """The value, or a UsageError that lists the choices."""
    if value not in choices:
        raise UsageError(f"is {value!r}, must be one of {', '.join(choices)}", f"method.{key}")
    return value
