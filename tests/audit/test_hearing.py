"""What the images say of models and their suggestions: flawed outlines are moved or mirrored, sound ones kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from tests.audit.conftest import dice

from maskmend.audit import hearing, judging
from maskmend.audit.estimate import Opinion, mask_dice
from maskmend.audit.evidence import gather
from maskmend.audit.hearing import KEPT, MIRRORED, Heard, _of_the_outline, advised, hear, misled
from maskmend.audit.look import Look, look_at
from maskmend.audit.outlines import EXPECTED, ImageWitness, overview, scaled_looks
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.images import read_label

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


def model(label: np.ndarray, classes: int = 2, sure: float = 0.9) -> np.ndarray:
    """Probabilities (K, *S) of a model that is that sure of a label."""
    rest = (1 - sure) / (classes - 1)
    return np.stack([np.where(label == k, sure, rest) for k in range(classes)]).astype(np.float32)


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


def test_a_believed_outline_is_kept_against_a_worse_one(
    witness: ImageWitness, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 0
    for number in (n for n in range(COUNT) if n % 4):
        image, truth = scene(number)
        label, wide = drawn(truth, 0), drawn(truth, 4)
        look = look_of(number, label, model(wide))
        found, remark = advised(look, look.probs.argmax(0).astype(np.uint8), image, witness)
        kept += remark == KEPT
        assert (whole(look, found) == (label if remark else wide)).all()
    assert kept >= 27
    with monkeypatch.context() as patched:  # the same, were these outlines hardly explained by anything
        patched.setattr(hearing, "HARDLY", 0.0)
        assert advised(look, look.probs.argmax(0).astype(np.uint8), image, witness)[1] == ""
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


def test_what_no_outline_shows_is_not_a_matter_of_the_outline() -> None:
    """Parts, or slices of a volume, that only one of two masks has; a rim all around is one."""
    away = np.sqrt(sum((axis - 10) ** 2 for axis in np.ogrid[:20, :24, :24]))
    whole, wide = ((away < radius).astype(np.uint8) for radius in (6, 7.5))
    short, more = whole.copy(), whole.copy()
    short[13:] = 0
    more[2:8, 20:23, 20:23] = 1
    assert _of_the_outline(wide, whole, 2)
    assert not _of_the_outline(short, whole, 2)
    assert not _of_the_outline(whole, short, 2)
    assert not _of_the_outline(whole[6], more[6], 2)
    assert not _of_the_outline(more, whole, 2)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_a_hole_that_is_drawn_over_is_not_a_matter_of_the_outline(axis: int | None) -> None:
    """As of a ring, or of a tube along any axis: the outline around it is as good as before."""
    far = np.hypot(*np.mgrid[-20:21, -20:21])
    ring, disc, wide = (far < 14) & (far > 8), far < 14, (far < 16) & (far > 8)
    if axis is not None:
        ring, disc, wide = (np.stack([one] * 7, axis) for one in (ring, disc, wide))
    ring, disc, wide = (one.astype(np.uint8) for one in (ring, disc, wide))
    assert not _of_the_outline(disc, ring, 2)
    assert not _of_the_outline(ring, disc, 2)
    assert _of_the_outline(wide, ring, 2)


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


def judged(look: Look, doubt: float = 0.0, odds: float = 2.0) -> Opinion:
    """What a model would think of a mask: it doubts every voxel where the two differ."""
    noise = np.where(look.probs.argmax(0) != look.label, 0.9, 0.0).astype(np.float32)
    return Opinion(look, gather(look), odds, 0.0, noise, doubt=doubt, rate=0.2)


def beside(truth: np.ndarray) -> np.ndarray:
    """An outline that nothing in the image explains: the disc moved by twelve voxels."""
    return drawn(np.roll(truth, 12, axis=0), 0)


def test_a_model_is_lost_where_it_doubts_and_the_image_knows_nothing_of_what_it_sees(
    witness: ImageWitness,
) -> None:
    wrong, right = [], []
    for number in range(1, 20, 4):
        image, truth = scene(number)
        good, bad = (
            look_of(number, drawn(truth, 0), model(seen)) for seen in (drawn(truth, 0), beside(truth))
        )
        wrong.append(misled(judged(bad, doubt=3.0), image, witness))
        right += [misled(judged(good, doubt=3.0), image, witness), misled(judged(bad), image, witness)]
        assert misled(judged(bad, doubt=3.0), image, ImageWitness()) == 0
    assert min(wrong) > 0.8
    assert max(right) < 0.1


def test_what_a_lost_model_says_counts_less(witness: ImageWitness) -> None:
    """A sound mask beside a model that sees the disc elsewhere: by the model alone it would be redrawn."""
    image, truth = scene(1)
    look = look_of(1, drawn(truth, 0), model(beside(truth)))
    sure, lost = (hear(judged(look, doubt, odds=4.0), image, witness) for doubt in (0.0, 3.0))
    assert lost.opinion.flawed < sure.opinion.flawed - 0.2
    assert lost.opinion.noise.sum() < 0.3 * sure.opinion.noise.sum()
    assert lost.opinion.dice(lost.suggested)[0] > sure.opinion.dice(sure.suggested)[0] + 0.2
    assert lost.opinion.lost > 0.8
    assert (lost.suggested == look.label).all()


def test_being_lost_mixes_with_what_is_known() -> None:
    """Analytic: the chance of a flaw goes from the model's to the share of flawed cases, the noise likewise."""
    _, truth = scene(3)
    opinion = judged(look_of(3, drawn(truth, 3), model(drawn(truth, 0))))
    half = opinion.lost_by(0.5)
    assert half.flawed == pytest.approx(0.5 * opinion.flawed + 0.5 * 0.2)
    assert half.lost == pytest.approx(0.5)
    assert half.lost_by(0.5).lost == pytest.approx(0.75)
    assert opinion.lost_by(0.0).flawed == pytest.approx(opinion.flawed)
    doubted = opinion.noise > 0
    assert half.noise[doubted] == pytest.approx(0.45 + 0.5 * 0.2 * 0.2 * 0.9, rel=1e-3)
    assert not half.noise[~doubted].any()
    wide = opinion.look.label.copy()
    by_model = 1 - (1 - mask_dice(wide, opinion.look.probs.argmax(0), 2)[0])
    poor = replace(opinion, lost=1.0, odds=14.0)
    assert poor.dice(wide)[0] == pytest.approx(1 - 0.5 * (1 - by_model), abs=0.01)


def test_models_that_no_image_bears_out_are_believed_by_the_voxel(witness: ImageWitness) -> None:
    """Analytic: half of the map is what a model doubts, and the suggestion says nothing of the Dice; it stays."""
    image, truth = scene(4)
    before = judged(look_of(4, drawn(truth, 3), model(drawn(truth, 0), sure=0.7)), odds=-1.0)
    before = replace(before, noise=np.where(before.noise > 0, 0.6, 0.0).astype(np.float32))
    told = before.noise > 0
    for backing, wanted in ((1.0, 0.6), (0.5, 0.625), (0.0, 0.65)):
        noise = before.backed(backing).noise
        assert noise[told] == pytest.approx(np.full(told.sum(), wanted))
        assert not noise[~told].any()
    heard = [hear(before, image, replace(witness, expected=share * EXPECTED)) for share in (1.0, 0.5, 0.0)]
    full, half, none = (one.opinion for one in heard)
    assert [one.backing for one in (full, half, none)] == [1.0, 0.25, 0.0]
    assert all(np.array_equal(one.suggested, heard[0].suggested) for one in heard)
    sure = replace(none, odds=60.0)
    decided = mask_dice(sure.look.label, sure.look.decided, 2)
    for suggested in (sure.look.decided, sure.look.label):
        assert sure.dice(suggested) == pytest.approx((sure.dice_by_model() + decided) / 2)
    lost = replace(sure, lost=1.0)
    # Who is lost suggests nothing: an image did.
    assert lost.dice(lost.look.decided) == pytest.approx(decided)
    assert full.backed(1.0) is full


def test_a_sound_outline_does_not_excuse_its_content(witness: ImageWitness) -> None:
    """The images acquit an outline, but not a mask whose classes are exchanged or of which one is left out."""
    number = next(n for n in range(1, COUNT) if n % 4 and witness(str(n)) < -1)
    image, truth = scene(number)
    right = drawn(truth, 0)
    right[: SIZE // 2] *= 2
    swapped, without = np.array([0, 2, 1], np.uint8)[right], np.minimum(right, 1)
    for label, excused in ((right, True), (swapped, False), (without, False)):
        before = judged(look_of(number, label, model(right, 3)), odds=1.0)
        after = hear(before, image, witness).opinion.odds
        assert after == pytest.approx(1.0 + excused * witness(str(number)))


def off_centre(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `scene`, the disc to the left."""
    image, truth = scene(seed)
    return np.roll(image, -9, axis=2), np.roll(truth, -9, axis=1)


@pytest.fixture(scope="module")
def left() -> ImageWitness:
    """Of forty cases two are drawn on the wrong side."""
    looks, scenes = {}, {}
    for number in range(COUNT):
        image, truth = off_centre(number)
        label = drawn(truth[:, ::-1] if number in (7, 23) else truth, 0)
        looks[str(number)], scenes[str(number)] = scaled_looks(image, label, (1, 1)), overview(image)
    return ImageWitness.of(looks, scenes)


def test_a_mirrored_mask_is_mirrored_back(left: ImageWitness) -> None:
    """Even by a model that sees nothing there: the look is made wider for it."""
    for number in (7, 23):
        image, truth = off_centre(number)
        given = drawn(truth[:, ::-1], 0)
        heard = hear(judged(look_of(number, given, model(given, sure=0.99)), odds=-3.0), image, left)
        assert heard.remark == MIRRORED
        assert heard.mirrored > 0.7
        assert (whole(heard.opinion.look, heard.suggested) == drawn(truth, 0)).all()
        assert heard.opinion.flawed > 0.7
        assert heard.opinion.noise.shape == heard.suggested.shape == heard.opinion.look.label.shape
        changed = heard.suggested != heard.opinion.look.label
        assert heard.opinion.noise[changed].min() > 0.6
        assert whole(heard.opinion.look, heard.opinion.look.label).sum() == given.sum()


def test_other_masks_are_not_mirrored(left: ImageWitness, witness: ImageWitness) -> None:
    for number in (n for n in range(COUNT) if n not in (7, 23)):
        image, truth = off_centre(number)
        look = look_of(number, drawn(truth, 0), model(drawn(truth, 0)))
        assert hear(judged(look), image, left).mirrored == 0
    for number in range(0, COUNT, 4):  # too large, and in the middle: mirrored they are no better
        image, truth = scene(number)
        look = look_of(number, drawn(truth, 3), model(drawn(truth, 3)))
        assert hear(judged(look), image, witness).remark != MIRRORED


def test_a_mask_that_is_partly_unknown_is_not_mirrored(left: ImageWitness) -> None:
    image, truth = off_centre(7)
    valid = np.ones(truth.shape, bool)
    valid[: SIZE // 2] = False
    given = drawn(truth[:, ::-1], 0)
    assert hear(judged(look_of(7, given, model(given), valid)), image, left).mirrored == 0


def test_a_mask_mirrored_into_the_unknown_leaves_its_marks(left: ImageWitness, tmp_path: Path) -> None:
    """What is marked as not annotated, beyond what the model looked at, is no class and stays in the written file."""
    image, truth = off_centre(7)
    given = drawn(truth[:, ::-1], 0)
    heard = hear(judged(look_of(7, given, model(given, sure=0.99))), image, left)
    values = given * 100
    values[truth & (np.arange(SIZE) < 12)] = 255
    assert (values == 255).any()
    geometry = Geometry(values.shape, (1.0, 1.0))
    dataset = Dataset(tmp_path, "folders", (), {"background": 0, "disc": 100}, ignore=255)
    case = Case("7", images=(), label=tmp_path / "7.png")
    files = judging._write(case, heard.opinion, heard.suggested, values, geometry, dataset, tmp_path)
    written = read_label(tmp_path / files["suggested"])[0]
    assert ((written == 255) == (values == 255)).all()
    assert ((written == 100) == (truth & (values != 255))).all()


def test_the_map_hears_the_images(witness: ImageWitness) -> None:
    """What they change is probably wrong though the model is content; what they keep is doubted less."""
    image, truth = scene(0)
    moved = hear(judged(look_of(0, drawn(truth, 3), model(drawn(truth, 1.5)))), image, witness)
    assert "tighter" in moved.remark
    ring = moved.suggested != moved.opinion.look.label
    assert moved.opinion.noise[ring].min() > 0.6
    kept: list[Heard] = []
    for number in range(1, COUNT, 4):
        image, truth = scene(number)
        kept.append(hear(judged(look_of(number, drawn(truth, 0), model(drawn(truth, 4)))), image, witness))
    shares = [one.opinion.noise.max() / 0.9 for one in kept if one.remark == KEPT]
    assert len(shares) >= 6
    assert shares == pytest.approx([0.3] * len(shares), rel=1e-3)
