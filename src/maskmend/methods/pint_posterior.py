"""PINT with a noise posterior: find the convention most masks share, and judge images and pixels by it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskmend.appearance import (
    INDEPENDENT,
    PLACES,
    SCENE,
    Mender,
    OutlineModel,
    image_support,
    moved_labels,
    outline_looks,
    scene_looks,
)
from maskmend.convention import LEAST_CASES, explained
from maskmend.losses import ce_dice, one_hot
from maskmend.methods.base import (
    Batch,
    EmaMethod,
    StepOutput,
    entropy,
    given_class_probability,
    ramp,
    within,
)
from maskmend.mixture import Groups

SAMPLED = 128  # voxels per case on which the teacher is calibrated
CALIBRATED_ON = 8000  # voxels of all cases together
TINY = 1e-4
LEAST_ACCUSED = 0.05  # P(flawed) from which on the teacher's outline is compared with the given one
UNTRIED, IN_VAIN, MENDED = 0.0, -1.0, 1.0
LEAST_GAIN = 0.1  # share of an outline that the teacher's must explain better to take the given one's place


class PintPosterior(EmaMethod):
    """Believe the masks whose outlines the images explain; move the others there, or learn from the teacher instead.

    Uncertainty alone fails twice: a clean boundary is unsure too, and a teacher trained on masks that are
    half of them drawn too large predicts a boundary in between, equally far from the good and the bad. Two things
    do separate them. The looks of the image beside a sound outline return beside other sound outlines, those beside
    a flawed one do not; this needs no teacher. And the *signed* distance between a mask's boundary and the teacher's:
    good masks agree on it to a fraction of a voxel whatever the teacher's own bias, flawed ones scatter. So

    1. the teacher looks at every whole case once per epoch; its predictions are averaged over the epochs
       (temporal ensembling: K passes for the price of one forward pass per image and epoch);
    2. at the first look, every image gets the posterior `q` that its outline is one the images explain (see
       `maskmend.convention.explained`); at the second, a mask that is not believed is drawn wider or tighter, if that
       makes its outline as well explained as the believed ones are (`Mender`), and is learnt like any other;
    3. where the images tell no two conventions apart, the teacher does: per case and class, the signed offset (mean
       thickness between the two boundaries, in voxels) and the disagreement that remains once volumes are matched
       are measured; cases fall into groups of like offset (see `Groups`), the shared convention is the one that
       is dense and whose outlines the images explain, within it those with much left disagreement are set apart,
       and `q` is the posterior of being neither, unless the image sides with the mask;
    4. the teacher is calibrated to the convention: `softmax(a log p + b)` fitted on the cases that follow it;
    5. each voxel learns `w y + (1 - w) p`, `w = 1 - (1 - q) r`: the given label unless the image does not follow the
       convention and the teacher can do better (`r`: its outline is explained better than the given one, and it is
       sure of its own Dice). Images that do not follow the convention, and are not mended, weigh `pseudo_weight`.

    When all masks follow one convention there is one group, and when no group stands out none is chosen: `q` is
    then 1 and the image level does nothing.

    The assumption, to be known by every user: sound masks repeat one convention that the images explain, and flaws
    scatter or cut through tissue that looks the same on both sides. A flaw that most masks repeat and that follows
    edges of its own (a rim drawn one voxel too far inside) is learnt.

    Args:
        make_network: builds one network.
        ema: decay of the teacher, in [0, 1).
        warmup: share of training on plain labels, in [0, 1).
        memory: how much of the previous average is kept at each look, in [0, 1).
        image_level: weigh images by `q`.
        pixel_level: weigh voxels by the noise posterior.
        calibrate: set the teacher to the shared convention before it is used as pseudo label.
        appearance: let the images speak, not only masks and teacher; without it step 2 is left out.
        mend: draw masks wider or tighter where the images say so.
        pseudo_weight: weight of an image that is learnt from its pseudo label, relative to one learnt from its given
            label, in [0, 1]; 0 leaves flawed images out.
        range_voxels: width of the uniform that takes masks of no group, > 0; wider is more forgiving.
        strength: how far targets move from the given label at the end of the ramp, in [0, 1].

    Example:
        >>> method = PintPosterior(toy_network)
        >>> sorted(method.training_step(toy_batch(ndim=2), progress=0.1).logs)
        []

    Source: ours; the parts it keeps (noise per pixel, original and pseudo labels together, an image-level
    complement) are those of Shi and Wu, MICCAI 2021, arXiv 2106.11099. Temporal ensembling: Laine and Aila,
    ICLR 2017, arXiv 1610.02242.
    """

    family = "pixel and image weighting"
    source = "maskmend (after Shi and Wu, MICCAI 2021)"

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        *,
        ema: float = 0.99,
        warmup: float = 0.2,
        memory: float = 0.7,
        image_level: bool = True,
        pixel_level: bool = False,
        calibrate: bool = True,
        appearance: bool = True,
        mend: bool = True,
        pseudo_weight: float = 0.3,
        range_voxels: float = 8.0,
        strength: float = 1.0,
    ) -> None:
        super().__init__(make_network, ema)
        self.warmup = within("warmup", warmup, 0, 0.99)
        self.memory = within("memory", memory, 0, 0.999)
        self.image_level, self.pixel_level, self.calibrate = image_level, pixel_level, calibrate
        self.appearance, self.mend = appearance, mend
        self.pseudo_weight = within("pseudo_weight", pseudo_weight, 0, 1)
        self.range_voxels = within("range_voxels", range_voxels, 1e-3, 1e6)
        self.strength = within("strength", strength, 0, 1)
        self.offsets = Groups(width=self.range_voxels, least_sd=0.1)
        self.residuals = Groups(width=3.0, least_sd=0.15, most=2, lowest=True)
        for name in ("explained", "accused", "image_posterior", "replaceable", "scale", "bias"):
            self.register_buffer(name, torch.zeros(0))
        for name in ("mended", "look_scale", "side_weights", "plausible"):
            self.register_buffer(name, torch.zeros(0))
        self.explained: Tensor
        self.accused: Tensor
        self.image_posterior: Tensor
        self.replaceable: Tensor
        self.mended: Tensor
        self.look_scale: Tensor
        self.side_weights: Tensor
        self.plausible: Tensor
        self.register_buffer("classes", torch.zeros((), dtype=torch.long))
        self.classes: Tensor
        self.scale: Tensor
        self.bias: Tensor

    def training_step(self, batch: Batch, progress: float) -> StepOutput:
        """CE + Dice on plain labels until every case was looked at, then on the posterior's target."""
        logits = self.student(batch["image"])
        given, valid = one_hot(batch["label"], logits.shape[1]), batch["valid"]
        if "memory" not in batch or not len(self.image_posterior):
            return StepOutput(ce_dice(logits, given, valid))
        mended = self.mended[batch["index"]].view(-1, *[1] * valid.ndim)
        # A mended mask is a label: there is no teacher in it to be calibrated.
        probs = torch.where(mended > 0, batch["memory"], self._calibrated(batch["memory"]))
        image_trust, image_weight = self._image_trust(probs, batch["index"], batch["trusted"])
        trust = image_trust.view(-1, *[1] * (valid.ndim - 1)) * self._pixel_trust(probs, batch["label"])
        moved = self.strength * ramp(progress, self.warmup, self.warmup + 0.1)
        keep = 1 - moved * (1 - trust)
        target = torch.lerp(probs, given, keep.unsqueeze(1))
        weight = valid * (1 - moved * (1 - image_weight.view(-1, *[1] * (valid.ndim - 1))))
        logs: dict[str, Tensor | float] = {"image_trust": image_trust.mean()}
        if self.pixel_level:
            logs["voxel_trust"] = (trust * valid).sum() / valid.sum().clamp_min(1)
        return StepOutput(ce_dice(logits, target, weight), logs)

    def wants_revision(self, progress: float) -> bool:
        """From half the warm-up on, so that the average is a few looks old when it is first used."""
        return progress >= self.warmup / 2

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
        """Average the looks, or mend the mask; keep what sets this case's mask apart from the average."""
        drawn = (label > 0) & valid
        self.classes.fill_(len(probs))
        if memory is None:  # image and label stay as they are: looked at once
            looks, scene = outline_looks(image, drawn, valid).flatten(), scene_looks(image).flatten()
            state = looks.new_full((1,), UNTRIED)
        else:
            kept = self.case_state[index].to(probs).split(self._sizes(len(probs)))
            state, looks, scene = kept[:3]
        accused = float(self.accused[index]) if len(self.accused) else 0.0
        averaged = probs if memory is None else torch.lerp(probs, memory, self.memory)
        if state == UNTRIED and accused > 0.5 and len(self.side_weights):
            mended = self._mended(index, image, label, valid, len(probs))
            state = state.new_full((1,), IN_VAIN if mended is None else MENDED)
            averaged = averaged if mended is None else mended.to(averaged)
        elif state == MENDED and memory is not None:
            averaged = memory
        own = torch.zeros_like(looks)
        if accused > LEAST_ACCUSED and state != MENDED:  # else it is not asked for
            fitted = self._calibrated(averaged[None])[0]
            own = outline_looks(image, (fitted[1:].amax(0) > fitted[0]) & valid, valid).flatten()
        given = one_hot(label[None], len(probs))[0]
        features = mask_features(averaged * valid, given * valid)
        sample = _calibration_sample(averaged, label, valid)
        self.keep(index, torch.cat([state, looks, scene, own, features.flatten(), sample.flatten()]))
        return averaged

    @torch.no_grad()
    def after_revision(self, progress: float) -> None:
        """Fit the shared convention over all cases, then the teacher's calibration to it."""
        classes = int(self.classes)
        state, looks, scene, own, features, sample = self.case_state.split(self._sizes(classes), dim=1)
        looks, own = looks.unflatten(1, (2 * PLACES, -1)), own.unflatten(1, (2 * PLACES, -1))
        if not len(self.explained):  # images and masks stay: once is enough
            self._ask_images(looks, scene.unflatten(1, (len(SCENE), -1)))
        self.mended = (state[:, 0] == MENDED).to(looks)
        self.offsets.fit(features[:, : classes - 1], self._evidence(looks) if self.appearance else None)
        alike = self.offsets.posterior(features[:, : classes - 1])
        rest = features[:, classes - 1 :].mean(1, keepdim=True)
        self.residuals.fit(rest[alike > 0.5])
        image_speaks = bool((self.explained < 0.5).any())
        believed = self.explained.clone() if image_speaks else self._posterior(features)
        self.accused = 1 - believed
        self.replaceable = self._better_explained(looks, own, believed)
        # Where only the teacher accuses, the image may still side with the mask.
        self.image_posterior = believed if image_speaks else 1 - self.accused * self.replaceable
        self.scale, self.bias = _fit_calibration(sample.view(-1, SAMPLED, classes + 2), self.image_posterior)

    def _ask_images(self, looks: Tensor, scenes: Tensor) -> None:
        """Which outlines the images explain, and what mends the others."""
        self.explained = explained(looks, scenes) if self.appearance else torch.ones_like(looks[:, 0, 0])
        if self.mend and bool((self.explained < 0.5).any()):
            mender = Mender.fit(looks, self.explained)
            self.look_scale, self.side_weights = mender.scale, mender.weights
            self.plausible = mender.plausible

    def _mended(self, index: int, image: Tensor, label: Tensor, valid: Tensor, classes: int) -> Tensor | None:
        """One-hot (K, *S) of the mask, drawn as much wider or tighter as the image says; None if it does not."""
        mender = Mender(self.look_scale, self.side_weights, self.plausible)
        found = mender.offset(image, (label > 0) & valid, valid, index)
        if found is None:
            return None
        offset, distance = found
        moved = torch.from_numpy(moved_labels(label.cpu().numpy(), distance, offset)).to(label)
        return one_hot(torch.where(valid, moved, label)[None], classes)[0]

    def noise(self, probs: Tensor, label: Tensor) -> Tensor:
        """P(label wrong): the voxel posterior where the image follows the convention, `1 - p_y` where it does not."""
        if not len(self.image_posterior):
            return 1 - given_class_probability(probs, label)
        given = one_hot(label, probs.shape[1])
        features = torch.stack([mask_features(p, g).flatten() for p, g in zip(probs, given, strict=True)])
        calibrated = self._calibrated(probs)
        q = self._posterior(features).view(-1, *[1] * (label.ndim - 1))
        right = q * _voxel_posterior(calibrated, label) + (1 - q) * given_class_probability(calibrated, label)
        return (1 - right).clamp(0, 1)

    def _posterior(self, features: Tensor) -> Tensor:
        half = features.shape[1] // 2
        rest = features[:, half:].mean(1, keepdim=True)
        return self.offsets.posterior(features[:, :half]) * self.residuals.posterior(rest)

    def _sizes(self, classes: int) -> list[int]:
        """Of the parts of a row of `case_state`: state, looks, scene, the teacher's looks, features, sample."""
        rest = [2 * (classes - 1), SAMPLED * (classes + 2)]
        wide = (self.case_state.shape[1] - 1 - sum(rest)) // (4 * PLACES + len(SCENE))
        return [1, 2 * PLACES * wide, len(SCENE) * wide, 2 * PLACES * wide, *rest]

    def _evidence(self, looks: Tensor) -> Callable[[Tensor], float]:
        """Of the image for a group of cases: how well their outlines are explained, by one another and by all."""

        def evidence(group: Tensor) -> float:
            believed = self.explained[group].mean().clamp_min(1e-3).log().item()
            return image_support(looks[group]) + 0.5 * INDEPENDENT * believed

        return evidence

    def _calibrated(self, probs: Tensor) -> Tensor:
        if not self.calibrate or not len(self.bias):
            return probs
        shape = (1, -1, *[1] * (probs.ndim - 2))
        return (self.scale * probs.clamp_min(TINY).log() + self.bias.view(shape)).softmax(dim=1)

    def _image_trust(self, probs: Tensor, index: Tensor, trusted: Tensor) -> tuple[Tensor, Tensor]:
        """How far each given label is kept, and the weight of each image, (B,) and (B,) in [0, 1]."""
        if not self.image_level:
            ones = torch.ones_like(index, dtype=torch.float)
            return ones, ones
        flawed = torch.where(trusted, 0.0, 1 - self.image_posterior[index])
        mended = self.mended[index]
        replaced = flawed * torch.maximum(mended, self.replaceable[index] * teacher_trust(probs))
        return 1 - replaced, 1 - (1 - self.pseudo_weight) * flawed * (1 - mended)

    def _better_explained(self, looks: Tensor, own: Tensor, believed: Tensor) -> Tensor:
        """P(the image explains the teacher's outline better than the given one), (N,); 1 where nobody can tell.

        Args:
            looks: of the given outlines, (N, 2 * PLACES, F).
            own: of the teacher's; zeros where it has none, or was not asked.
            believed: how far each given outline is taken to be right, (N,).
        """
        if not self.appearance or len(looks) < LEAST_CASES:
            return torch.ones_like(believed)
        there = own.flatten(1).any(1)
        if not bool(there.any()):
            return torch.zeros_like(believed)
        model = OutlineModel(looks)
        given, teacher = model.errors(believed, looks), model.errors(believed, own)
        noise = (believed * given).sum() / believed.sum().clamp_min(1e-6)
        odds = 0.5 * INDEPENDENT * (given - teacher - LEAST_GAIN) / noise.clamp_min(1e-3)
        return torch.where(there, odds.sigmoid().to(believed), 0.0)

    def _pixel_trust(self, probs: Tensor, label: Tensor) -> Tensor:
        return _voxel_posterior(probs, label) if self.pixel_level else torch.ones_like(probs[:, 0])


def teacher_trust(probs: Tensor, low: float = 0.5, high: float = 0.8) -> Tensor:
    """How far a (calibrated) prediction (B, K, *S) may replace a label: (B,) in [0, 1].

    The Dice that the prediction itself expects of its own decision, 0 below `low`, 1 above `high`.
    """
    flat = probs.flatten(2)[:, 1:]
    decided = (
        probs.argmax(1).flatten(1).unsqueeze(1)
        == torch.arange(1, probs.shape[1], device=probs.device)[:, None]
    )
    overlap = (flat * decided).sum(2)
    expected = (2 * overlap + 1e-3) / (flat.sum(2) + decided.sum(2) + 1e-3)
    return ((expected.mean(1) - low) / (high - low)).clamp(0, 1)


def mask_features(probs: Tensor, given: Tensor) -> Tensor:
    """How a mask differs from a soft prediction, per foreground class: (2, K - 1), in voxels.

    Row 0 is the signed offset: volume difference over boundary area, positive where the mask is larger.
    Row 1 is the log of the disagreement left when the prediction is cut at the mask's own volume, over the
    boundary area: what shifting the threshold cannot explain (moved, rotated, cut or invented parts).

    Args:
        probs: (K, *S), zero where not valid.
        given: one-hot (K, *S), zero where not valid.
    """
    rows = []
    for soft, mask in zip(probs[1:], given[1:], strict=True):
        volume = mask.sum()
        area = (_boundary_area(mask) + _boundary_area(soft)) / 2 + 1
        count = int(volume.item())
        if count:
            cut = soft.flatten().topk(count).values[-1]
            matched = (soft >= cut).to(mask.dtype)
            rest = (matched - mask).abs().sum() / area
        else:
            rest = soft.sum() / area
        rows.append(torch.stack([(volume - soft.sum()) / area, torch.log(rest + 0.05)]))
    return torch.stack(rows, dim=1)


def _boundary_area(mask: Tensor) -> Tensor:
    """Total variation of (*S): boundary length in 2-D, area in 3-D, in voxels; also of soft masks."""
    squares = torch.zeros_like(mask)
    for axis in range(mask.ndim):
        step = mask.diff(dim=axis)
        squares.narrow(axis, 0, step.shape[axis]).add_(step.square())
    return squares.sqrt().sum()


def _calibration_sample(probs: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Voxels to calibrate on, (SAMPLED, K + 2): log p, the given class, how many voxels one stands for.

    Three quarters are drawn where the teacher doubts the label, the rest where it does not: the few doubtful
    voxels decide the fit, but without the many sure ones it would learn to doubt everything.
    """
    classes = len(probs)
    flat, given = probs.flatten(1), label.flatten()
    doubtful = flat.gather(0, given.clamp(0, classes - 1)[None])[0] < 0.98
    rows = [torch.zeros(0, classes + 2)]
    for stratum, size in ((doubtful, 3 * SAMPLED // 4), (~doubtful, SAMPLED // 4)):
        places = torch.nonzero(valid.flatten() & stratum)[:, 0]
        if len(places):
            chosen = places[torch.randint(len(places), (size,))]
            row = [flat[:, chosen].clamp_min(TINY).log().T, given[chosen].float()[:, None]]
            rows.append(torch.cat([*row, torch.full((size, 1), len(places) / size)], dim=1))
    sample = torch.cat(rows)
    return torch.cat([sample, torch.zeros(SAMPLED - len(sample), classes + 2)])


def _voxel_posterior(probs: Tensor, label: Tensor) -> Tensor:
    """P(label right) at each voxel: low only where the teacher is sure and says something else."""
    return 1 - (1 - entropy(probs)) * (1 - given_class_probability(probs, label))


def _fit_calibration(sample: Tensor, posterior: Tensor) -> tuple[Tensor, Tensor]:
    """`a` and `b` of softmax(a log p + b) that best explain the given labels of the cases that are believed."""
    classes = sample.shape[2] - 2
    # Every case keeps its share of the voxels: those taken stand for those left out.
    step = max(1, sample.shape[0] * sample.shape[1] // CALIBRATED_ON)
    sample = sample.flatten(0, 1)[::step]
    weight = sample[:, classes + 1] * posterior.repeat_interleave(SAMPLED)[::step]
    used = weight > 1e-3
    logs, given, weight = sample[used, :classes], sample[used, classes].long(), weight[used]
    scale = torch.ones(1, device=sample.device, requires_grad=True)
    bias = torch.zeros(classes - 1, device=sample.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, bias], max_iter=10, max_eval=20, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = scale * logs + torch.cat([bias.new_zeros(1), bias])
        loss = nn.functional.cross_entropy(logits, given, reduction="none")
        # Mild priors: without contradicting voxels nothing pulls the teacher away from itself.
        total = (loss * weight).sum() / weight.sum() + 1e-3 * ((scale - 1) ** 2 + bias.square().sum())
        total.backward()
        return total.detach()

    if len(given):
        with torch.enable_grad():
            optimizer.step(objective)
    full = torch.cat([bias.new_zeros(1), bias]).detach()
    ok = bool(torch.isfinite(full).all()) and 0.2 < scale.item() < 5
    return (scale.detach(), full) if ok else (torch.ones_like(scale.detach()), torch.zeros_like(full))
