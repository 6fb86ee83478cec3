"""What the images say of suggestions: flawed outlines are moved, sound ones kept, and what they do not see is left."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from tests.audit.conftest import dice

from maskmend.audit.look import Look, look_at
from maskmend.audit.outlines import ImageWitness, overview, scaled_looks
from maskmend.audit.suggest import KEPT, advised

COUNT, SIZE = 40, 48


def drawn(truth: np.ndarray, by: float) -> np.ndarray:
    """The mask drawn `by` voxels too large (*S) uint8."""
    away = ndimage.distance_transform_edt(~truth) - ndimage.distance_transform_edt(truth)
    return (away <= by).astype(np.uint8)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (1, *S) of a disc on a blotchy ground, and where the disc is."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[:SIZE, :SIZE]
    far = np.sqrt(sum((axis - SIZE / 2 - rng.uniform(-2, 2)) ** 2 for axis in axes))
    truth = far <= rng.uniform(10, 13)
    image = 1.5 * ndimage.gaussian_filter(truth.astype(float), 0.7) + rng.normal(0, 0.2, truth.shape)
    image += 3 * ndimage.gaussian_filter(rng.normal(size=truth.shape), 2)
    return image[None], truth


def model(label: np.ndarray, classes: int = 2) -> np.ndarray:
    """Probabilities (K, *S) of a model that is fairly sure of a label."""
    return np.stack([np.where(label == k, 0.9, 0.1 / (classes - 1)) for k in range(classes)]).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def witness() -> ImageWitness:
    """Of forty cases, every fourth drawn three voxels too large."""
    looks, scenes = {}, {}
    for number in range(COUNT):
        image, truth = scene(number)
        label = drawn(truth, 3 if number % 4 == 0 else 0)
        looks[str(number)], scenes[str(number)] = scaled_looks(image, label, (1, 1)), overview(image)
    return ImageWitness.of(looks, scenes)


def look_of(number: int, label: np.ndarray, probs: np.ndarray, valid: np.ndarray | None = None) -> Look:
    return look_at(str(number), probs, label, (1.0, 1.0), valid)


def whole(look: Look, part: np.ndarray) -> np.ndarray:
    return np.asarray(look.whole(part))


def test_a_disbelieved_outline_is_moved_further_than_a_model_that_learnt_the_flaw_would(
    witness: ImageWitness,
) -> None:
    mended = 0
    for number in range(0, COUNT, 4):
        image, truth = scene(number)
        look = look_of(number, drawn(truth, 3), model(drawn(truth, 1.5)))
        suggested = look.probs.argmax(0).astype(np.uint8)
        found, remark = advised(look, suggested, image, witness)
        if remark:
            mended += 1
            assert "tighter" in remark
            assert dice(whole(look, found), truth) > dice(whole(look, suggested), truth) + 0.02
        else:
            assert found is suggested
    assert mended >= 8


def test_a_believed_outline_is_kept_against_a_worse_one(witness: ImageWitness) -> None:
    kept = 0
    for number in (n for n in range(COUNT) if n % 4):
        image, truth = scene(number)
        label, wide = drawn(truth, 0), drawn(truth, 4)
        look = look_of(number, label, model(wide))
        found, remark = advised(look, look.probs.argmax(0).astype(np.uint8), image, witness)
        kept += remark == KEPT
        assert (whole(look, found) == (label if remark else wide)).all()
    assert kept >= 27
    same, remark = advised(look, look.label, image, witness)
    assert same is look.label
    assert not remark


def test_a_move_that_the_model_contradicts_is_not_made(witness: ImageWitness) -> None:
    for number in range(0, COUNT, 4):
        image, truth = scene(number)
        look = look_of(number, drawn(truth, 3), model(drawn(truth, 4)))
        suggested = look.label
        assert advised(look, suggested, image, witness) == (suggested, "")


def test_a_suggestion_that_the_images_explain_better_stays(witness: ImageWitness) -> None:
    """The model is right: neither is a disbelieved outline moved instead, nor another one kept."""
    for number in range(COUNT):
        image, truth = scene(number)
        look = look_of(number, drawn(truth, 3), model(drawn(truth, 0)))
        suggested = look.probs.argmax(0).astype(np.uint8)
        assert advised(look, suggested, image, witness) == (suggested, "")


def test_a_missing_class_is_not_a_matter_of_the_outline(witness: ImageWitness) -> None:
    """The outline is right, but half of what it holds is of another class: the images cannot tell."""
    image, truth = scene(1)
    right = drawn(truth, 0)
    right[: len(right) // 2] *= 2
    given = drawn(truth, 0)
    look = look_of(1, given, model(right, 3))
    suggested = look.probs.argmax(0).astype(np.uint8)
    suggested[0, 0] = 1  # makes its outline the worse one
    assert advised(look, suggested, image, witness) == (suggested, "")


def test_what_is_not_known_stays(witness: ImageWitness) -> None:
    image, truth = scene(12)
    valid = np.ones(truth.shape, bool)
    valid[:, : SIZE // 2 - 8] = False
    look = look_of(12, drawn(truth, 3), model(drawn(truth, 1.5)), valid)
    found, remark = advised(look, look.probs.argmax(0).astype(np.uint8), image, witness)
    assert remark
    assert look.valid is not None
    assert (found[~look.valid] == look.label[~look.valid]).all()
    assert (
        dice(whole(look, found)[valid], truth[valid]) > 0.96
    )  # the border of what is known is no outline to move


def test_nothing_is_said_without_a_witness(witness: ImageWitness) -> None:
    image, truth = scene(0)
    look = look_of(0, drawn(truth, 3), model(drawn(truth, 1.5)))
    suggested = look.probs.argmax(0).astype(np.uint8)
    assert advised(look, suggested, image, ImageWitness()) == (suggested, "")
    stranger = look_at("stranger", model(drawn(truth, 1.5)), drawn(truth, 3), (1.0, 1.0))
    assert advised(stranger, suggested, image, witness) == (suggested, "")
