"""Masks judged like those of an earlier audit: nothing is trained or fitted, and one mask is enough."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from tests.test_fanout import discs

from maskmend.audit import run as verb
from maskmend.audit.estimate import fit
from maskmend.audit.learnt import LEARNT, Learnt, fold_numbers
from maskmend.audit.outlines import ImageWitness, Outlines
from maskmend.audit.run import audit
from maskmend.audit.selfcheck import SelfCheck
from maskmend.config import load
from maskmend.data.case import Case
from maskmend.data.phantom import make_phantom
from maskmend.errors import DataError, UsageError
from maskmend.pseudonyms import pseudonyms
from maskmend.train.run import train

QUICK = load(None, ["device=cpu", "train.steps=4", "train.batch=2", "network.options={base: 4, limit: 8}"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return discs(tmp_path_factory.mktemp("discs") / "data")


@pytest.fixture(scope="module")
def first(source: Path) -> dict[str, Any]:
    return audit(source, source.parent / "first", probs=source / "probs")


@pytest.fixture(scope="module")
def learnt(first: dict[str, Any], source: Path) -> Path:
    return source.parent / "first"


def by_case(answer: dict[str, Any], key: str) -> dict[str, Any]:
    return {one["case"]: one[key] for one in answer["records"]}


def test_the_same_masks_are_judged_the_same(
    source: Path, first: dict[str, Any], learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit, and without anything being fitted."""
    monkeypatch.setattr(verb.estimate, "fit", None)
    monkeypatch.setattr(verb.SelfCheck, "of", None)
    again = audit(source, tmp_path / "again", probs=source / "probs", like=learnt)
    assert again["records"] == first["records"]
    assert again["facts"]["like"] == str(learnt)
    for key in ("check", "model_bias_mm", "images_bear_out", "warning", "flawed", "confusion"):
        assert again["facts"][key] == first["facts"][key]


def test_new_masks_are_judged_one_by_one(learnt: Path, tmp_path: Path) -> None:
    """By measures of another batch: whether the one mask is drawn too large, which alone it could not tell."""
    batch = discs(tmp_path / "batch", seed=5, count=12)
    found = {}
    for number in range(12):
        name = f"{number:02d}"
        alone = tmp_path / name
        for folder, suffix in (("images", "png"), ("labels", "png"), ("probs", "npz")):
            (alone / folder).mkdir(parents=True)
            shutil.copy(batch / folder / f"{name}.{suffix}", alone / folder)
        with pytest.raises(DataError, match="1 cases with a mask"):
            audit(alone, tmp_path / f"{name}-alone", probs=alone / "probs")
        out = tmp_path / f"{name}-like"
        (record,) = audit(alone, out, probs=alone / "probs", like=learnt)["records"]
        assert (out / record["noise_map"]).is_file()
        assert (out / "report.html").is_file()
        assert not (out / LEARNT).exists()
        found[name] = record["flawed"]
    large = {"00", "05", "10"}
    assert {name for name, flawed in found.items() if flawed > 0.5} == large
    assert max(flawed for name, flawed in found.items() if name not in large) < 0.2


def test_a_mended_mask_is_believed(source: Path, first: dict[str, Any], learnt: Path, tmp_path: Path) -> None:
    mended = shutil.copytree(source, tmp_path / "mended")
    assert by_case(first, "flawed")["00"] > 0.9
    shutil.copy(learnt / by_case(first, "suggested")["00"], mended / "labels" / "00.png")
    after = audit(mended, tmp_path / "after", probs=mended / "probs", like=learnt)
    assert by_case(after, "flawed")["00"] < 0.2
    for case, flawed in by_case(first, "flawed").items():
        if case != "00" and abs(flawed - 0.5) > 0.4:  # the images have learnt from the mended outline too
            assert by_case(after, "flawed")[case] == pytest.approx(flawed, abs=0.02)


def test_outlines_of_before_are_still_heard(
    learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch too small for the images to speak by itself is compared with the outlines of then."""
    batch = discs(tmp_path / "batch", seed=6, count=3)
    heard: list[ImageWitness] = []
    witness = Learnt.witness
    monkeypatch.setattr(Learnt, "witness", lambda *told: heard.append(witness(*told)) or heard[0])
    audit(batch, tmp_path / "out", probs=batch / "probs", like=learnt)
    assert len(heard[0].odds) == 26  # 23 of before, and these in place of three of the same names
    kept = Learnt.read(learnt / LEARNT)
    assert (heard[0].expected, heard[0].scale) == (kept.expected, kept.scale)
    assert heard[0]("00") > heard[0]("01")


def test_images_that_were_too_few_to_speak_have_no_measure_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the outlines that come later they may be enough: then they go by their own."""
    few, more = (discs(tmp_path / f"data{seed}", seed=seed, count=14) for seed in (0, 1))
    for folder in ("images", "labels", "probs"):
        for file in sorted((more / folder).iterdir()):
            file.rename(file.with_name(f"later{file.name}"))
    audit(few, tmp_path / "first", probs=few / "probs")
    kept = Learnt.read(tmp_path / "first" / LEARNT)
    assert kept.scale is None
    heard: list[ImageWitness] = []
    witness = Learnt.witness
    monkeypatch.setattr(Learnt, "witness", lambda *told: heard.append(witness(*told)) or heard[0])
    audit(more, tmp_path / "out", probs=more / "probs", like=tmp_path / "first")
    assert len(heard[0].odds) == 28
    shares = np.array(list(heard[0].unexplained.values()))
    assert heard[0].scale[0] == pytest.approx(np.median(shares), abs=0.05)


def test_volumes_are_compared_with_those_of_before(learnt: Path, tmp_path: Path) -> None:
    batch = discs(tmp_path / "batch", seed=7, count=2)
    large = np.asarray(Image.open(batch / "labels" / "01.png")).copy()
    large[2:46, 2:46] = 1
    Image.fromarray(large).save(batch / "labels" / "01.png")
    answer = audit(batch, tmp_path / "out", probs=batch / "probs", like=learnt)
    checks = {one["case"]: {found["check"] for found in one["structure"]} for one in answer["records"]}
    assert "implausible volume" in checks["01"]
    assert "implausible volume" not in checks["00"]


# ---- the file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ndim", "classes", "cases"), [(2, 2, 30), (2, 3, 30), (3, 2, 12)])
def test_what_was_learnt_is_read_as_it_was_written(
    make_world: Callable[..., Any], tmp_path: Path, ndim: int, classes: int, cases: int
) -> None:
    world = make_world(cases, ndim=ndim, classes=classes)
    rng = np.random.default_rng(0)
    auditor = fit(world.looks, world.ids)
    habit, common = rng.uniform(0, 3, (2, classes - 1)), rng.uniform(0, 3, classes - 1)
    presence = replace(auditor.population.presence, habit=habit, common=common)
    auditor = replace(auditor, population=replace(auditor.population, presence=presence))
    check = SelfCheck.of(auditor, world.looks, world.ids)
    ids = world.ids[:5]
    shapes = {"looks": (5, 64, 8), "scenes": (5, 5, 8)}
    outlines = Outlines.of(ids, {key: rng.normal(size=shape).astype("f4") for key, shape in shapes.items()})
    folds = {"case a": 1, "group Müller": 0}
    labels = {"background": 0, **{f"class {k}": 10 * k for k in range(1, classes)}}
    before = Learnt(
        "folds",
        None,
        "f00d",
        True,
        "ras",
        False,
        True,
        labels,
        ndim,
        folds,
        auditor,
        check,
        outlines,
        0.4,
        (0.6, 0.2),
        {"a": {"class 1": 3.5}},
    )
    before.write(tmp_path / "file")
    after = Learnt.read(tmp_path / "file")
    for key in (
        "source",
        "place",
        "model",
        "turned",
        "in_sample",
        "labels",
        "ndim",
        "folds",
        "expected",
        "scale",
        "volumes_mm3",
    ):
        assert getattr(after, key) == getattr(before, key)
    for key in ("habit", "volumes", "common"):
        assert np.array_equal(getattr(after.auditor.population.presence, key), getattr(presence, key))
    for key in ("surprises", "signed", "doubts", "seen"):
        ours, theirs = (getattr(one.auditor.population.usual, key) for one in (before, after))
        assert np.array_equal(ours, theirs)
    assert after.check.facts() == check.facts()
    assert after.check.interval(0.8) == check.interval(0.8)
    assert all(np.array_equal(after.outlines.arrays()[key], outlines.arrays()[key]) for key in shapes)
    for look in world.looks(world.ids[:6]):
        one, two = auditor.judge(look), after.auditor.judge(look)
        assert (one.odds, one.lost, one.doubt) == (two.odds, two.lost, two.doubt)
        assert np.array_equal(one.noise, two.noise)
        assert np.array_equal(one.dice(look.decided), two.dice(look.decided))


def spoilt(learnt: Path, to: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A copy of an audit whose learnt file was changed by hand."""
    shutil.copytree(learnt, to)
    with safe_open(to / LEARNT, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        story = json.loads(file.metadata()["maskmend"])
    change(story, arrays)
    save_file(arrays, to / LEARNT, {"maskmend": json.dumps(story)})
    return to


CHANGES: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "another version": (lambda story, arrays: story.update(format="maskmend learnt 99"), "has format"),
    "a key too many": (lambda story, arrays: story.update(more=1), "is not what an audit has learnt"),
    "a key too few": (lambda story, arrays: story.pop("rate"), r"learnt \(rate: Field required\)"),
    "an array too few": (lambda story, arrays: arrays.pop("signed"), "is not what an audit has learnt"),
    "a class too many": (lambda story, arrays: story["labels"].update(more=9), "has shape"),
    "outlines too few": (lambda story, arrays: story["outlines"].pop(), "outlines have shapes"),
    "no numbers": (lambda story, arrays: arrays["voxels"].fill(np.nan), "no numbers"),
    "no answers": (lambda story, arrays: story["answers"].append({"quality": 1}), "is not what an audit"),
    "no folds": (lambda story, arrays: story.update(source="folds"), "names no folds"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_spoilt_file_is_refused(learnt: Path, tmp_path: Path, name: str) -> None:
    change, told = CHANGES[name]
    place = spoilt(learnt, tmp_path / "spoilt", change)
    with pytest.raises(UsageError, match=told):
        Learnt.read(place / LEARNT)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8, (10**12).to_bytes(8, "little") + b"{}"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEARNT).write_bytes(content)
    with pytest.raises(UsageError, match="is not what an audit has learnt"):
        Learnt.read(tmp_path / LEARNT)


def test_a_cut_file_is_refused(learnt: Path, tmp_path: Path) -> None:
    content = (learnt / LEARNT).read_bytes()
    for part in (0.01, 0.5, 0.999):
        (tmp_path / LEARNT).write_bytes(content[: int(part * len(content))])
        with pytest.raises(UsageError, match="is not what an audit has learnt"):
            Learnt.read(tmp_path / LEARNT)


# ---- what does not go together -------------------------------------------------------------------------


def test_what_cannot_judge_says_why(source: Path, learnt: Path, tmp_path: Path) -> None:
    probs = source / "probs"

    def refused(told: str, like: Path, data: Path = source, **how: Any) -> None:
        with pytest.raises(UsageError, match=told):
            audit(data, tmp_path / "out", like=like, **how)
        assert not (tmp_path / "out" / "audit.json").exists()

    refused("is no audit", tmp_path, probs=probs)
    refused("is no audit", tmp_path / "nowhere", probs=probs)
    refused("probabilities of another program", learnt)
    refused("was not made with a run", learnt, probs=probs, run=tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is the earlier audit itself"):
            audit(source, learnt, like=learnt, probs=probs, overwrite=overwrite)
    audit(source, tmp_path / "second", probs=probs, like=learnt)
    refused(f"--like {learnt}", tmp_path / "second", probs=probs)
    copied = shutil.copytree(learnt, tmp_path / "copied")
    for how in ({}, {"like": copied}):  # a folder holds one audit, judged in one way
        with pytest.raises(UsageError, match="an audit with another source"):
            audit(source, tmp_path / "second", probs=probs, **how)
    unfinished = shutil.copytree(learnt, tmp_path / "unfinished")
    (unfinished / LEARNT).unlink()
    refused("earlier maskmend", unfinished, probs=probs)
    (unfinished / "audit.json").unlink()
    refused("is not finished", unfinished, probs=probs)
    other = spoilt(
        learnt, tmp_path / "other", lambda story, _: story.update(labels={"nothing": 0, "disc": 1})
    )
    (tmp_path / "named").mkdir()
    for folder in ("images", "labels"):
        shutil.copytree(source / folder, tmp_path / "named" / folder)
    (tmp_path / "named" / "maskmend.json").write_text('{"labels": {"background": 0, "cell": 1}}')
    refused(
        "its classes are background, cell, those of .* are nothing, disc",
        other,
        tmp_path / "named",
        probs=probs,
    )
    ball = np.zeros((24, 24, 24), np.uint8)
    ball[8:16, 8:16, 8:16] = 1
    for folder in ("images", "labels"):
        (tmp_path / "solid" / folder).mkdir(parents=True)
        nib.save(nib.Nifti1Image(ball, np.eye(4)), tmp_path / "solid" / folder / "a.nii.gz")
    refused("3 axes, .* was of images with 2", learnt, tmp_path / "solid", probs=probs)


def test_cases_must_go_by_the_names_of_then(source: Path, learnt: Path, tmp_path: Path) -> None:
    """Else a model might judge what it has learnt."""
    told = {"probs": source / "probs"}
    with pseudonyms(tmp_path / "names.json"):
        hidden = audit(source, tmp_path / "hidden", **told)
        with pytest.raises(UsageError, match="other names of cases"):
            audit(source, tmp_path / "out", like=learnt, **told)
        again = audit(source, tmp_path / "again", like=tmp_path / "hidden", **told)
    assert again["records"] == hidden["records"]
    for like, names in (("hidden", None), ("hidden", "others.json")):
        context = pseudonyms(tmp_path / names) if names else nullcontext()
        with context, pytest.raises(UsageError, match="other names of cases"):
            audit(source, tmp_path / "out", like=tmp_path / like, **told)
    with pseudonyms(tmp_path / "names.json"):
        after_all = audit(source, tmp_path / "once more", like=tmp_path / "hidden", **told)
    assert after_all["records"] == hidden["records"]
    content = (tmp_path / "hidden" / LEARNT).read_bytes()
    assert str(source).encode() not in content
    assert b'"07"' not in content


def test_images_with_other_channels_are_refused(learnt: Path, tmp_path: Path) -> None:
    batch = discs(tmp_path / "batch", seed=5, count=3)
    for file in (batch / "images").iterdir():
        Image.open(file).convert("RGB").save(file)
    with pytest.raises(DataError, match=r"3 channel\(s\), the earlier audit's had 1"):
        audit(batch, tmp_path / "out", probs=batch / "probs", like=learnt)


def test_classes_that_a_few_masks_do_not_show_are_named_as_before(
    source: Path, learnt: Path, tmp_path: Path
) -> None:
    """An empty mask alone has no class to be found in it."""
    batch = discs(tmp_path / "batch", seed=5, count=1)
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(batch / "labels" / "00.png")
    (record,) = audit(batch, tmp_path / "out", probs=batch / "probs", like=learnt)["records"]
    assert record["flawed"] > 0.9
    assert record["kind"] == "missing object"


def test_probabilities_lie_as_before(
    source: Path, first: dict[str, Any], learnt: Path, tmp_path: Path
) -> None:
    """One mask that lies across the diagonal must not turn its square probabilities round to fit it."""
    assert Learnt.read(learnt / LEARNT).turned is False
    rows, columns = np.mgrid[:48, :48]
    far = np.hypot(rows - 14, columns - 33) - 9
    likely = 1 / (1 + np.exp(2 * far))
    grey = np.clip(60 + 120 * (far < 0) + np.random.default_rng(0).normal(0, 6, far.shape), 0, 255)
    found = {}
    for name, mask in (("right", far < 0), ("turned", (far < 0).T)):
        data = tmp_path / name
        for folder in ("images", "labels", "probs"):
            (data / folder).mkdir(parents=True)
        Image.fromarray(grey.astype(np.uint8)).save(data / "images" / "a.png")
        Image.fromarray(mask.astype(np.uint8)).save(data / "labels" / "a.png")
        np.savez(data / "probs" / "a.npz", probabilities=np.stack([1 - likely, likely]))
        (record,) = audit(data, tmp_path / f"{name}-out", probs=data / "probs", like=learnt)["records"]
        found[name] = record["quality"]
    assert found["right"] > 0.95
    assert found["turned"] < 0.7


# ---- models --------------------------------------------------------------------------------------------


def test_a_case_is_judged_by_the_fold_that_has_not_seen_it_or_its_patient(learnt: Path) -> None:
    def case(name: str, group: str | None = None) -> Case:
        return Case(name, (), group=group)

    parts = [[case("a"), case("b", "Ann")], [case("c"), case("d", "Bob")], [case("e")]]
    told = {**vars(Learnt.read(learnt / LEARNT)), "source": "folds", "folds": fold_numbers(parts)}
    kept = Learnt(**told)
    assert [kept.fold_of(case(name)) for name in "ace"] == [0, 1, 2]
    assert [kept.fold_of(case(name, "Ann")) for name in ("b", "new", "e")] == [0, 0, 2]
    assert kept.fold_of(case("new", "Bob")) == 1
    new = [kept.fold_of(case(f"new {number}")) for number in range(60)]
    assert set(new) == {0, 1, 2}
    assert new == [kept.fold_of(case(f"new {number}")) for number in range(60)]
    assert len({kept.fold_of(case(f"new {number}", "Cid")) for number in range(9)}) == 1


def test_a_run_has_learnt_the_masks_it_was_trained_on_as_they_were() -> None:
    """Not those redrawn since, nor others of the same name; and of a trusted one it excuses nothing."""
    values = np.array([[0, 0, 2], [0, 2, 2]])
    told: list[Any] = [None] * 6
    work = verb.CaseWork(*told, {"a": {0: 3, 2: 3}})
    assert work._seen(Case("a", ()), values)
    assert not work._seen(Case("a", (), trusted=True), values)
    assert not work._seen(Case("b", ()), values)
    assert not work._seen(Case("a", ()), np.where(values == 2, 1, 0))
    assert not work._seen(Case("a", ()), np.array([[0, 2, 2], [0, 2, 2]]))


@pytest.mark.slow
def test_folds_and_runs_judge_new_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case by a model that has not seen it; one that has learnt the masks cannot say how others look to it."""
    data = make_phantom(tmp_path / "data", train=10, test=0, shape=(32, 32))
    more = make_phantom(tmp_path / "more", train=12, test=0, seed=1, shape=(32, 32))
    audit(data, tmp_path / "first", QUICK.model_copy(update={"audit": load(None, ["audit.folds=2"]).audit}))
    seen: dict[str, str] = {}
    predict = verb.predict_cases

    def noted(run: Any, cases: Any, *rest: Any) -> None:
        seen.update({case.id: run.folder.name for case in cases})
        predict(run, cases, *rest)

    monkeypatch.setattr(verb, "predict_cases", noted)
    again = audit(data, tmp_path / "again", QUICK, like=tmp_path / "first")
    kept = Learnt.read(tmp_path / "first" / LEARNT)
    assert seen == {key.removeprefix("case "): str(fold) for key, fold in kept.folds.items()}
    assert set(seen.values()) == {"0", "1"}
    first = json.loads((tmp_path / "first" / "audit.json").read_text())
    assert json.loads(json.dumps(again["records"])) == first["records"]
    with pytest.raises(UsageError, match="judges by its own models"):
        audit(data, tmp_path / "out", QUICK, like=tmp_path / "first", probs=tmp_path)
    shutil.rmtree(tmp_path / "first" / "folds" / "1")
    with pytest.raises(UsageError, match="model of its fold is gone"):
        audit(data, tmp_path / "out", QUICK, like=tmp_path / "first")

    run = train(data, tmp_path / "run", QUICK).folder
    own = audit(run, tmp_path / "own", QUICK)
    assert own["facts"]["in_sample"]
    with pytest.raises(UsageError, match="had learnt"):
        audit(more, tmp_path / "out2", QUICK, like=tmp_path / "own")
    other = audit(more, tmp_path / "other", QUICK, run=run)
    assert not other["facts"]["in_sample"]
    assert not any(one["in_sample"] for one in other["records"])
    unnamed = shutil.copytree(more, tmp_path / "unnamed")
    (unnamed / "maskmend.json").unlink()  # values say which class of the run is meant
    nameless = audit(unnamed, tmp_path / "nameless", QUICK, run=run)
    assert by_case(nameless, "flawed") == by_case(other, "flawed")
    twice = audit(more, tmp_path / "twice", QUICK, like=tmp_path / "other")
    assert twice["records"] == other["records"]
    run.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="its run is not at"):
        audit(more, tmp_path / "lost", QUICK, like=tmp_path / "other")
    thrice = audit(more, tmp_path / "thrice", QUICK, like=tmp_path / "other", run=tmp_path / "moved")
    assert thrice["records"] == other["records"]
    seeded = QUICK.train.model_copy(update={"seed": 1})
    again = train(data, tmp_path / "trained", QUICK.model_copy(update={"train": seeded})).folder
    with pytest.raises(UsageError, match="another model than"):
        audit(more, tmp_path / "misled", QUICK, like=tmp_path / "other", run=again)


def test_how_arrays_lay_is_remembered(learnt: Path, tmp_path: Path) -> None:
    """One new case cannot tell."""
    told = replace(Learnt.read(learnt / LEARNT), axes="xyz")
    earlier = tmp_path / "earlier"
    shutil.copytree(learnt, earlier)
    told.write(earlier / LEARNT)
    batch = discs(tmp_path / "batch", seed=5, count=12)
    for file in (batch / "probs").iterdir():
        array = np.load(file)["probabilities"]
        np.savez(file, probabilities=array.transpose(0, 2, 1))
    straight = audit(batch, tmp_path / "straight", probs=batch / "probs", like=earlier)
    turned = audit(
        batch, tmp_path / "zyx", load(None, ["audit.axes=zyx"]), probs=batch / "probs", like=earlier
    )
    quality = [np.mean([one["quality"] for one in answer["records"]]) for answer in (straight, turned)]
    assert quality[0] > quality[1] + 0.02
