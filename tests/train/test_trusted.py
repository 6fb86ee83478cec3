"""Trusted cases reach every batch of a method that asks for them; a method that needs them says so."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from maskmend.config import load
from maskmend.data.phantom import make_phantom
from maskmend.data.sampling import trusted_case, trusted_places
from maskmend.errors import UsageError
from maskmend.train.loop import Job
from maskmend.train.memory import Memory
from maskmend.train.run_folder import Run
from maskmend.train.stream import Stream

Train = Callable[..., Run]

METHOD = """
from maskmend.methods.supervised import Supervised as Base
class NeedsTrusted(Base):
    needs = ("trusted",)
    trusted_share = 0.25
    def __init__(self, make_network):
        super().__init__(make_network)
    def training_step(self, batch, progress):
        assert batch["trusted"].tolist()[:1] == [True], batch["trusted"]
        assert self.trusted_cases == {0, 3}
        return super().training_step(batch, progress)
"""


@pytest.fixture
def needing(tmp_path: Path) -> str:
    path = tmp_path / "needing.py"
    path.write_text(METHOD)
    return f"method.name={path}"


@pytest.fixture
def with_trusted(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms with the first and the fourth case trusted."""
    data = shutil.copytree(phantoms, tmp_path / "data")
    side = data / "maskmend.json"
    content = json.loads(side.read_text()) if side.exists() else {}
    ids = sorted(p.stem for p in (data / "images").iterdir())
    side.write_text(json.dumps(content | {"trusted": [ids[0], ids[3]]}))
    return data


def test_training_without_trusted_cases_is_refused(small_train: Train, tmp_path: Path, needing: str) -> None:
    with pytest.raises(UsageError, match=r"needs trusted cases and there are none\n.*maskmend\.json"):
        small_train(tmp_path / "run", needing)


def test_holding_all_of_them_out_is_named(
    small_train: Train, with_trusted: Path, tmp_path: Path, needing: str
) -> None:
    with pytest.raises(UsageError, match=r"train\.validation=trusted holds them out"):
        small_train(tmp_path / "run", needing, "train.validation=trusted", data=with_trusted)


def test_a_batch_that_cannot_be_mixed_is_refused(
    small_train: Train, with_trusted: Path, tmp_path: Path, needing: str
) -> None:
    with pytest.raises(UsageError, match=r"train\.batch=2 or more"):
        small_train(tmp_path / "run", needing, "train.batch=1", data=with_trusted)


def test_every_batch_begins_with_trusted_cases(
    small_train: Train, with_trusted: Path, tmp_path: Path, needing: str
) -> None:
    small_train(tmp_path / "run", needing, "train.batch=4", data=with_trusted)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    from dataclasses import replace

    from maskmend.data.cache import Cache
    from maskmend.data.check import check
    from maskmend.data.fingerprint import fingerprint
    from maskmend.data.plan import make_plan

    root = make_phantom(tmp_path_factory.mktemp("stream"), train=6, test=0, shape=(32, 32))
    config = load(None, ["train.batch=8", "train.patch=[32, 32]"])
    dataset = check(root, data=config.data, quick=True).dataset
    assert dataset is not None
    cases = [replace(case, trusted=i in (1, 4)) for i, case in enumerate(dataset.train)]
    plan = make_plan(dataset, fingerprint(dataset), config)
    return Job(root, config, plan, Cache.open(cases, plan, None), lambda: None)  # type: ignore[arg-type,return-value]


def stream(job: Job, rank: int = 0, world: int = 1, share: float = 0.25) -> Stream:
    return Stream(job, Memory(job.folder / "m"), rank, world, trusted=[1, 4], trusted_share=share)


def test_the_share_holds_on_every_process_and_all_trusted_cases_come_alike(job: Job) -> None:
    for world, each in ((1, 2), (2, 1)):
        seen: Counter[int] = Counter()
        for step in range(12):
            for rank in range(world):
                batch = stream(job, rank, world)[step][0]
                assert batch["trusted"][:each].all()
                seen.update(batch["index"][:each].tolist())
        assert seen == {1: 12, 4: 12}


def test_the_other_places_and_other_methods_see_what_they_saw_before(job: Job) -> None:
    for step in range(5):
        mixed, plain = stream(job)[step][0], Stream(job, Memory(job.folder / "m"), 0, 1)[step][0]
        assert mixed["index"][2:].equal(plain["index"][2:])
        assert mixed["image"][2:].equal(plain["image"][2:])


def test_places_are_at_least_one_and_never_all() -> None:
    assert [trusted_places(n, 0.25) for n in (2, 4, 8, 16)] == [1, 1, 2, 4]
    assert trusted_places(2, 0.9) == 1
    assert trusted_places(8, 0.0) == 0
    turns = [trusted_case([5, 7, 9], seed=0, place=p) for p in range(9)]
    assert [sorted(turns[i : i + 3]) for i in (0, 3, 6)] == [[5, 7, 9]] * 3
