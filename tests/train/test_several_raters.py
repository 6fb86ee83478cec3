"""Training with several raters from files to a model, on real crowd masks and on phantoms."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskmend.config import load
from maskmend.data.dataset import find_cases
from maskmend.data.images import read_label, write_label
from maskmend.errors import Interrupted, UsageError
from maskmend.predict.run import predict
from maskmend.train.run_folder import Run

Train = Callable[..., Run]
METHODS = ["random_rater", "majority", "staple", "simple", "annotator_confusion"]
CROWD = "data.raters=[rater*]"


@pytest.fixture(scope="module")
def crowd(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The eight smallest BU-BIL cases with all their raters; two are for testing."""
    source, folder = real_data / "bubil_cells_crowd_vs_expert", tmp_path_factory.mktemp("crowd")
    if not source.is_dir():
        pytest.skip(f"no BU-BIL cells at {source}")
    cases = find_cases(source, labels={"background": 0, "cell": 1}).cases
    small = sorted(cases, key=lambda case: (case.images[0].stat().st_size, case.id))[:8]
    for case in small:
        for path in (*case.images, case.label, *case.raters.values()):
            assert path is not None
            (folder / path.parent.name).mkdir(exist_ok=True)
            shutil.copy(path, folder / path.parent.name)
    side = {"labels": {"background": 0, "cell": 1}, "test": [case.id for case in small[:2]]}
    (folder / "maskmend.json").write_text(json.dumps(side))
    return folder


def same_weights(one: Run, two: Run) -> bool:
    a, b = (load_file(run.folder / "model.safetensors") for run in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("method", METHODS)
def test_a_crowd_trains_a_model_that_predicts(crowd, small_train: Train, tmp_path, method):
    run = small_train(tmp_path / "run", f"method.name={method}", CROWD, "train.steps=6", data=crowd)
    assert run.facts["raters"] == [f"rater{i}" for i in range(1, 8)]
    assert run.facts["cases"] == 6
    predict(run.folder, crowd, tmp_path / "out", config=load(None, ["device=cpu"]))
    assert len(list((tmp_path / "out").glob("*.png"))) == 2  # the test cases


def test_the_reference_and_other_raters_are_not_learnt_from(crowd, small_train: Train, tmp_path):
    """Spoiling labels/ and the experts changes nothing; spoiling one crowd rater does."""
    settings = ("method.name=majority", "method.soft=true", CROWD, "train.steps=4")
    clean = small_train(tmp_path / "clean", *settings, data=crowd)

    def spoilt(name: str, *folders: str) -> Run:
        copy = Path(shutil.copytree(crowd, tmp_path / f"data_{name}"))
        for path in (path for folder in folders for path in (copy / folder).iterdir()):
            mask, geometry = read_label(path)
            write_label(path, np.fliplr(1 - mask), geometry)
        return small_train(tmp_path / name, *settings, data=copy)

    assert same_weights(clean, spoilt("reference", "labels", "labels_expert1", "labels_expert2"))
    assert not same_weights(clean, spoilt("rater", "labels_rater3"))


@pytest.mark.parametrize("method", ["random_rater", "annotator_confusion"])
def test_stop_and_resume_equal_a_straight_run(crowd, small_train: Train, tmp_path, at_step, method):
    settings = (f"method.name={method}", CROWD, "train.steps=6", "train.validation=noisy")
    straight = small_train(tmp_path / "straight", *settings, data=crowd)
    at_step(4, send_sigterm)
    with pytest.raises(Interrupted):
        small_train(tmp_path / "stopped", *settings, data=crowd)
    assert same_weights(straight, small_train(tmp_path / "stopped", *settings, data=crowd, resume=True))


def test_a_found_data_set_trains_as_its_folder(crowd, small_train: Train, tmp_path):
    settings = ("method.name=simple", CROWD, "train.steps=3")
    assert same_weights(
        small_train(tmp_path / "folder", *settings, data=crowd),
        small_train(tmp_path / "found", *settings, data=find_cases(crowd)),
    )


def test_another_rule_does_not_use_the_labels_of_the_first(crowd, small_train: Train, tmp_path):
    shared = f"data.cache={tmp_path / 'cache'}"
    keys = set()
    for name, settings in (
        ("a", ("method.name=staple",)),
        ("b", ("method.name=staple", "method.consensus=false")),
        ("c", ("method.name=majority",)),
        ("d", ("method.name=random_rater",)),
    ):
        run = small_train(tmp_path / name, *settings, CROWD, shared, "train.steps=1", data=crowd)
        keys.add(run.facts["data"])
    assert len(keys) == 3  # the last two both vote
    assert len(list((tmp_path / "cache").iterdir())) == 18


def test_data_with_one_label_per_case_is_explained(small_train: Train, tmp_path):
    with pytest.raises(UsageError, match="several are needed") as fault:
        small_train(tmp_path / "run", "method.name=staple")
    assert "labels_NAME/" in str(fault.value)


def test_one_chosen_rater_is_explained(crowd, small_train: Train, tmp_path):
    with pytest.raises(UsageError, match=r"data\.rater chooses one"):
        small_train(tmp_path / "run", "method.name=staple", "data.rater=rater1", data=crowd)


def test_a_method_of_one_label_learns_the_given_one(crowd, small_train: Train, tmp_path):
    settings = ("method.name=supervised", "train.steps=2")
    plain = small_train(tmp_path / "plain", *settings, data=crowd)
    asked = small_train(tmp_path / "asked", *settings, CROWD, data=crowd)
    assert same_weights(plain, asked)
    assert "raters" not in asked.facts


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random_rater", "annotator_confusion"])
def test_two_processes(crowd, small_train: Train, tmp_path, method):
    run = small_train(
        tmp_path / "run", f"method.name={method}", CROWD, "train.processes=2", "train.steps=4", data=crowd
    )
    assert all(torch.isfinite(tensor).all() for tensor in run.method().state_dict().values())
