"""Optional selection of the weights on held-out cases; off unless the user asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric

from maskmend.methods.base import Method
from maskmend.predict.sliding import predict_many
from maskmend.train.revision import given_label

if TYPE_CHECKING:
    from maskmend.train.loop import Job


class Validation:
    """Dice on held-out cases against the labels a user has: given ("noisy") or trusted ones.

    The weights with the best score so far are kept and become the model. Without held-out cases nothing is
    selected and the averaged weights of the last step are the model: selecting on labels that share the
    training noise can select for that noise.
    """

    def __init__(self, job: Job, fabric: Fabric) -> None:
        self.job, self.fabric = job, fabric
        self.best: float = -1.0
        self.weights: dict[str, Any] | None = None

    def after(self, method: Method, step: int) -> float | None:
        """Score the method now; None when nothing is held out."""
        if self.job.held_out is None:
            return None
        score = dice_on(method, self.job, self.fabric.device)
        if score > self.best:
            self.best = score
            self.weights = {k: v.detach().cpu().clone() for k, v in method.state_dict().items()}
        method.train()
        return score

    def state(self) -> dict[str, Any] | None:
        """What a resume needs."""
        return None if self.weights is None else {"best": self.best, "weights": self.weights}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take over from a stored training state."""
        if state and state["validation"]:
            self.best, self.weights = state["validation"]["best"], state["validation"]["weights"]


@torch.no_grad()
def dice_on(method: Method, job: Job, device: torch.device) -> float:
    """Mean foreground Dice over the held-out cases; classes absent from both masks do not count."""
    cases = job.held_out
    assert cases is not None
    method.eval()
    predicted = predict_many(
        method.predict,
        (cases[i].image for i in range(len(cases))),
        patch=job.plan.patch,
        classes=job.plan.num_classes,
        overlap=0.25,
        batch=16 if job.plan.ndim == 2 else 4,
        device=device,
    )
    scores: list[float] = []
    for index, probs in enumerate(predicted):
        label, answer = given_label(cases[index]), probs.argmax(dim=0)
        for value in range(1, job.plan.num_classes):
            a, b = answer == value, label == value
            if total := int(a.sum() + b.sum()):
                scores.append(2 * int((a & b).sum()) / total)
    return sum(scores) / max(len(scores), 1)
