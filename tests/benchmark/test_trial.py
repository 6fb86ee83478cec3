"""One run: its scores against other libraries, its faults, its repeatability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn

from maskmend.benchmark import trial as trial_module
from maskmend.benchmark.cases import prepare_cases
from maskmend.benchmark.trial import auroc, configured, judge, mask_dice, run_trial, score
from maskmend.data.fingerprint import fingerprint
from maskmend.data.plan import make_plan
from maskmend.errors import DataError, Interrupted
from maskmend.methods.base import Method

BROKEN = """
from maskmend.methods.supervised import Supervised


class Broken(Supervised):
    '''Fails.'''

    def training_step(self, batch, progress):
        {fault}
"""


class Fixed(Method):
    """Says the same everywhere: class 1, wherever the image is brighter than a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.threshold = threshold

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        organ = (image[:, 0] > self.threshold).long()
        return nn.functional.one_hot(organ, 3).movedim(-1, 1).float()


class FakeRun:
    """What `score` and `judge` ask of a run."""

    def __init__(self, trial, given) -> None:
        dataset = given.dataset
        self.plan = make_plan(dataset, fingerprint(dataset), configured(trial))
        self.labels = dict(dataset.labels)


@pytest.fixture(scope="module")
def done(trials_of):
    """A whole run and its result."""
    trial = trials_of().trials[-1]
    return trial, run_trial(trial)


def test_a_run_says_what_it_was(done) -> None:
    trial, result = done
    assert result["status"] == "done", result.get("traceback")
    assert (result["steps"], result["batch"], result["train_cases"], result["test_cases"]) == (6, 2, 8, 4)
    assert 0 < result["seconds"] < result["total_seconds"]
    assert result["cpu_seconds"] > 0
    assert [point[0] for point in result["curve"]] == [3, 6]
    assert len(result["dice_by_case"]) == 4
    assert result["dice"] == pytest.approx(np.mean(list(result["dice_by_case"].values())), abs=1e-4)
    assert result["dice"] == pytest.approx(np.mean(list(result["dice_by_class"].values())), abs=1e-4)
    assert 0 < result["label_dice"] < 1
    assert result["key"] == trial.key


def test_the_same_recipe_gives_the_same_result(done) -> None:
    trial, first = done
    times = ("seconds", "cpu_seconds", "total_seconds")
    again = run_trial(trial)
    assert {k: v for k, v in again.items() if k not in times} == {
        k: v for k, v in first.items() if k not in times
    }


def test_watching_the_curve_changes_nothing(done, trials_of) -> None:
    unwatched = run_trial(trials_of(curve_points=0).trials[-1])
    assert unwatched["curve"] == []
    assert unwatched["dice_by_case"] == done[1]["dice_by_case"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("raise RuntimeError('out of cheese\\nand crackers')", "RuntimeError: out of cheese"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("return batch['image'].missing", "AttributeError"),
    ],
)
def test_a_fault_is_a_result(tmp_path, trials_of, fault: str, error: str) -> None:
    (tmp_path / "broken.py").write_text(BROKEN.format(fault=fault))
    plan = trials_of(methods={"supervised": None, "broken": {"name": str(tmp_path / "broken.py")}})
    result = run_trial(plan.trials[-1])
    assert result["status"] == "failed"
    assert result["error"].startswith(error)
    assert "training_step" in result["traceback"]
    assert result["total_seconds"] > 0
    assert "dice" not in result


def test_a_wish_to_stop_is_no_fault(monkeypatch: pytest.MonkeyPatch, trials_of) -> None:
    for stop in (KeyboardInterrupt(), Interrupted("stopped")):

        def stopping(*_: object, stop: BaseException = stop) -> None:
            raise stop

        monkeypatch.setattr(trial_module, "_measured", stopping)
        with pytest.raises(type(stop)):
            run_trial(trials_of().trials[0])


def test_errors_of_ours_are_told_without_their_class(monkeypatch: pytest.MonkeyPatch, trials_of) -> None:
    def faulty(*_: object) -> None:
        raise DataError("is torn", "case7", "mend it")

    monkeypatch.setattr(trial_module, "_measured", faulty)
    assert run_trial(trials_of().trials[0])["error"] == "case7: is torn"


def test_dice_of_a_known_answer(folder, trials_of, tmp_path) -> None:
    """Calling everything brighter than average "organ" scores what scikit-learn says of the files."""
    trial = trials_of(data={"toy": {"path": str(folder), "train": 8, "test": 4}}).trials[-1]
    given = prepare_cases(trial, tmp_path / "labels")
    run = FakeRun(trial, given)
    found = score(run, Fixed(0.5), given, "cpu")
    organ = []
    for case in given.test:
        image = np.asarray(Image.open(case.images[0])).astype(float)
        truth = np.asarray(Image.open(case.label))
        answer = (image - image.mean()) / image.std() > 0.5
        organ.append(f1_score((truth == 1).ravel(), answer.ravel()))
    assert found["dice_by_class"]["organ"] == pytest.approx(np.mean(organ), abs=0.01)
    assert found["dice_by_class"]["core"] == 0  # never called
    assert list(found["dice_by_case"].values()) == pytest.approx([d / 2 for d in organ], abs=0.01)


def test_the_noise_map_ranks_masks(folder, trials_of, tmp_path, monkeypatch) -> None:
    """With the truth as the network, dilated masks must look worse than sound ones, and by how much they are."""
    trial = trials_of(data={"toy": {"path": str(folder), "train": 8, "test": 4}}).trials[-1]
    given = prepare_cases(trial, tmp_path / "labels")
    run, method = FakeRun(trial, given), Fixed(0.0)

    def true_answers(method, ready, plan, device):
        for case in given.dataset.cases:
            label = torch.from_numpy(given.truth[case.id].astype(np.int64))
            yield nn.functional.one_hot(label, 3).movedim(-1, 0).float()

    monkeypatch.setattr(trial_module, "predict_all", true_answers)
    found = judge(run, method, given, "cpu")
    assert found["image_auroc"] == 1
    assert found["image_rank"] > 0.9


def test_nothing_to_judge_without_flaws(folder, trials_of, tmp_path) -> None:
    trial = trials_of(data={"toy": {"path": str(folder), "train": 8, "test": 4}}).trials[0]
    given = prepare_cases(trial, tmp_path / "labels")
    assert judge(FakeRun(trial, given), Fixed(0.0), given, "cpu") == {"image_auroc": None, "image_rank": None}


def test_auroc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, flawed = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4  # with ties
    assert auroc(scores, flawed) == pytest.approx(roc_auc_score(flawed, scores))


def test_mask_dice_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 3, (2, 9, 9))
    by_class = f1_score(first.ravel(), second.ravel(), labels=[1, 2], average=None)
    assert mask_dice(first, second, [1, 2]) == pytest.approx(by_class.mean())
    assert mask_dice(first, second, [1, 2, 9]) == pytest.approx(by_class.mean())  # class 9 occurs in neither
    assert mask_dice(np.zeros((2, 2)), np.zeros((2, 2)), [1]) == 1


def test_what_a_run_is_configured_with(trials_of) -> None:
    trial = trials_of(
        seeds=[4], methods={"supervised": None, "soft": {"name": "pint", "warmup": 0.4}}
    ).trials[-1]
    config = configured(trial)
    assert (config.train.seed, config.train.steps, config.device) == (4, 6, "cpu")
    assert config.method.settings == {"warmup": 0.4}
    assert configured(trial, steps=2).train.steps == 2
