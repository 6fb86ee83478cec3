"""What several raters say of a batch, for the methods that look at each of them."""

from __future__ import annotations

from torch import Tensor

from maskmend.errors import UsageError
from maskmend.methods.base import Batch


def known_votes(batch: Batch) -> tuple[Tensor, Tensor]:
    """The raters' masks and where each of them says something that counts, both (B, R, *S).

    Raises:
        UsageError: the batch holds one label per case only.
    """
    if "raters" not in batch:
        raise UsageError("learns from several raters, and the batch has one label per case", "method.name")
    votes, spatial = batch["raters"], (1,) * (batch["label"].ndim - 1)
    rated = batch["rated"].view(*batch["rated"].shape, *spatial)
    return votes, (votes >= 0) & rated & batch["valid"].unsqueeze(1)


def per_case(flags: Tensor, like: Tensor) -> Tensor:
    """One flag per case (B,), broadcastable to `like` (B, ...)."""
    return flags.view(-1, *[1] * (like.ndim - 1))
