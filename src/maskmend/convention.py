"""Which outlines follow the convention that the images explain best: a search, without any network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskmend.appearance import FOLDS, INDEPENDENT, OutlineModel
from maskmend.mixture import Groups

LEAST_CASES = 20  # with fewer outlines nothing is told apart
GUESSES = 6
TRIMS = (1.0, 0.7)  # share of the explained outlines that is learnt from
ROUNDS = 6
RELATED = 0.97  # share of an outline that may stay unexplained if it is related to the believed ones
SOFTNESS = 0.03
UNRELATED = 1.1  # least mean share of the others (measured: sound masks in images of one kind stay below)
LEAST_RELATED, MOST_RELATED = 0.1, 0.9  # share of the outlines; a few that nothing explains are no flaws
# Of what another end believes, the share that the best one must believe too (measured: 0.2, or above 0.65).
AGREED = 0.5
FORETOLD = (
    0.75  # AUROC from which on suspicion goes with the kind of image (measured: flaws .3 to .6, kinds .9)
)
SPLITS = 3  # kinds of images are told apart at most so deep


def explained(looks: Tensor, scenes: Tensor | None = None) -> Tensor:
    """P(the outline belongs to the convention that the images explain best), (N,); 1 for all if there is one.

    No network is needed: the looks of sound outlines, learnt from some masks, return in other sound ones; those of an
    outline drawn beside the boundary do not. What is learnt from depends on what is believed and the other way round,
    so it is a search: from several first guesses (all masks, and what is most alike to single ones), believe what is
    explained and learn from the best of it, until it stays; of these ends take the one whose outlines are many and
    explained best. So even a minority of sound masks can win over flaws that all go one way. Where that end holds one
    group only, the search is repeated for what is explained at all (`Related`), as flaws of many sizes need it.

    A flaw is of the mask. Where the image alone foretells which outlines are not explained, there are several kinds
    of images (two stains, two scanners), and each kind is judged by itself.

    Args:
        looks: (N, 2 * PLACES, F) of `outline_looks`. Cases without an outline (all zeros) get 1, as do all when fewer
            than LEAST_CASES have one.
        scenes: (N, len(SCENE), F) of `scene_looks`; None: all images are of one kind.
    """
    found = torch.ones(len(looks), device=looks.device)
    rows = torch.nonzero(looks.flatten(1).any(1))[:, 0]
    found[rows] = _by_kind(looks[rows], None if scenes is None else scenes[rows].flatten(1), SPLITS)
    return found


def _by_kind(looks: Tensor, scenes: Tensor | None, splits: int) -> Tensor:
    if len(looks) < LEAST_CASES:
        return torch.ones(len(looks), device=looks.device)
    model = OutlineModel(looks)
    guesses = _first_guesses(model)
    best, _ = _search(model, guesses, _like_groups)
    found = best.posterior(model, looks)
    kind = None if scenes is None else _foretold(scenes, found < 0.5)
    if kind is None or scenes is None:
        if best.groups.several or splits < SPLITS:
            return found
        return _last_resort(model, guesses, looks, scenes)
    found = torch.ones_like(found)
    if splits:
        for part in (kind, ~kind):
            found[part] = _by_kind(looks[part], scenes[part], splits - 1)
    return found


def _last_resort(
    model: OutlineModel, guesses: Sequence[Tensor], looks: Tensor, scenes: Tensor | None
) -> Tensor:
    """`explained` where no group stands out: what is explained at all; 1 for all where that cannot be decided.

    Outlines in another kind of image are unrelated too; and a flaw that follows an edge of its own is as good a way of
    drawing as the sound one: then another end believes what this one does not. (Measured: without these rules, cells
    in several stains lost up to half of the sound masks, and in volumes the eroded half was believed.)
    """
    best, ends = _search(model, guesses, Related)
    found = best.posterior(model, looks)
    rivals = [end.right for end in ends if end.groups.several]
    agreed = min((float((right * best.right).sum() / right.sum()) for right in rivals), default=1.0)
    mixed = scenes is not None and _foretold(scenes, found < 0.5) is not None
    return torch.ones_like(found) if mixed or agreed < AGREED else found


def _foretold(scenes: Tensor, suspected: Tensor) -> Tensor | None:
    """The kind of each image by which suspicion goes, (N,) bool; None where the images do not foretell it.

    Ridge regression on (N, F) scenes; each case is foretold by the others.
    """
    count = int(suspected.sum())
    if not 2 * FOLDS <= count <= len(suspected) - 2 * FOLDS:
        return None
    flat = ((scenes - scenes.mean(0)) / scenes.std(0).clamp_min(1e-6)).clamp(-3, 3).double()
    flat = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)
    aim = 2 * suspected.double() - 1
    fold = torch.arange(len(flat), device=flat.device) % FOLDS
    ridge = 2 * FOLDS * torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
    foretold = torch.empty_like(aim)
    for k in range(FOLDS):
        used = flat[fold != k]
        foretold[fold == k] = flat[fold == k] @ torch.linalg.solve(
            used.T @ used + ridge, used.T @ aim[fold != k]
        )
    above = foretold[suspected, None] > foretold[~suspected]
    return foretold > 0 if float(above.double().mean()) > FORETOLD else None


class Related:
    """Outlines that the believed ones explain at all, and others: for flaws of many sizes, which form no group.

    What looks like the believed outlines leaves less than 1 unexplained; what has nothing to do with them leaves 1, and
    more the better these explain one another, as does what is drawn the other way round. Only if the others are of that
    kind there are two.
    """

    several = False

    def fit(self, errors: Tensor) -> None:
        """Judge whether there are two kinds, from the unexplained shares (N, 1)."""
        share = self._share(errors)
        others = float(((1 - share) * errors.flatten()).sum() / (1 - share).sum().clamp_min(1e-6))
        self.several = LEAST_RELATED < float(share.mean()) < MOST_RELATED and others > UNRELATED

    def posterior(self, errors: Tensor) -> Tensor:
        """P(the outline is related), (N,) for (N, 1); 1 for all when there is one kind."""
        share = self._share(errors)
        return share if self.several else torch.ones_like(share)

    def _share(self, errors: Tensor) -> Tensor:
        return torch.sigmoid((RELATED - errors.flatten()) / SOFTNESS)


@dataclass(frozen=True)
class End:
    """Where believing and learning end.

    Args:
        support: log, for these outlines as the right ones.
        believed: how far each outline is learnt from, (rows,).
        right: P(right) of each, (rows,), learnt from or not.
        groups: of the unexplained shares.
    """

    support: float
    believed: Tensor
    right: Tensor
    groups: Groups | Related

    def posterior(self, model: OutlineModel, looks: Tensor) -> Tensor:
        """P(right) of all outlines (N, 2 * PLACES, F) of the model: (N,)."""
        everyone = torch.zeros(len(looks), dtype=self.believed.dtype, device=looks.device)
        everyone[model.rows] = self.believed
        return self.groups.posterior(model.errors(everyone, looks)[:, None].float()).to(looks)


def _search(
    model: OutlineModel, guesses: Sequence[Tensor], grouping: Callable[[], Groups | Related]
) -> tuple[End, list[End]]:
    """The best supported end, and all of them."""
    ends = [_settled(model, start, trim, grouping()) for start in guesses for trim in TRIMS]
    return max(ends, key=lambda end: end.support), ends


def _settled(model: OutlineModel, believed: Tensor, trim: float, groups: Groups | Related) -> End:
    everyone = torch.zeros(len(model.fold), dtype=believed.dtype, device=believed.device)
    for _ in range(ROUNDS):
        everyone[model.rows] = believed
        errors = model.errors(everyone)
        groups.fit(errors[:, None])
        share = groups.posterior(errors[:, None].float()).to(errors)
        # What is hardly explained would draw the fit towards what is not: learn from the better part.
        best = errors[share > 0.5].quantile(trim) if bool((share > 0.5).any()) else errors.max()
        before, believed = believed, share * (errors <= best)
        if bool((believed - before).abs().max() < 0.02):
            break
    mean_error = float((share * errors).sum() / share.sum().clamp_min(1e-6))
    support = math.log(max(float(share.mean()), 1e-3)) - 0.5 * INDEPENDENT * math.log(max(mean_error, 1e-3))
    return End(support, believed, share, groups)


def _first_guesses(model: OutlineModel) -> list[Tensor]:
    """Believed cases to start from, each (rows,) of 0 and 1: all, and those most alike to one case."""
    alike, near = model.alone().topk(max(2 * FOLDS, len(model.rows) // 5), dim=1, largest=False)
    guesses = [torch.ones_like(alike[:, 0])]
    for first in alike.mean(1).argsort().tolist():
        if len(guesses) > GUESSES:
            break
        if not any(bool(guess[first]) for guess in guesses[1:]):
            guesses.append(torch.zeros_like(alike[:, 0]).index_fill_(0, near[first], 1))
    return guesses


def _like_groups() -> Groups:
    return Groups(width=3.0, least_sd=0.1, most=2, lowest=True)
