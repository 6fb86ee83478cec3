"""What every file in methods/ must hold to, without naming any of them."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest
import torch
from tests_toys import toy_batch, toy_network

from maskmend import methods
from maskmend.errors import UsageError

NAMES = methods.names()


def make(name: str, ndim: int = 2):
    torch.manual_seed(0)
    method = methods.load(name)(lambda: toy_network(ndim))
    method.begin(4, [0, 2] if "trusted" in method.needs else [])
    method.begin_raters(3, 3)
    return method


def trust_half(method, batch):
    if "trusted" in method.needs:
        batch["trusted"][::2] = True


def revised(name: str, ndim: int = 2):
    """A method after its first look at every case, and the batch with what it remembers."""
    method, batch = make(name, ndim), toy_batch(ndim, raters=True)
    trust_half(method, batch)
    for step in range(12):  # a teacher that has seen something
        train_once(method, batch, 0.01 * step)
    method.eval()
    if method.wants_revision(0.6):
        looks = method.observe_case(batch["image"], batch["index"])
        maps = [
            method.revise(i, looks[i], batch["label"][i], batch["valid"][i], None, 0.6, batch["image"][i])
            for i in range(len(looks))
        ]
        method.after_revision(0.6)
        if maps[0] is not None:  # a method may look without remembering
            batch["memory"] = torch.stack(maps).detach()
    method.train()
    return method, batch


def train_once(method, batch, progress, optimizer=None):
    optimizer = optimizer or torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    torch.manual_seed(1)
    output = method.training_step(batch, progress)
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    method.after_step(progress)
    return output


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_finite_loss_and_a_gradient_on_every_trainable_parameter(name, ndim):
    method, batch = revised(name, ndim)
    for progress in (0.0, 0.6, 1.0):
        method.zero_grad()
        output = method.training_step(batch, progress)
        assert output.loss.ndim == 0
        assert torch.isfinite(output.loss)
        output.loss.backward()
        missing = [
            n
            for n, p in method.named_parameters()
            if p.requires_grad and (p.grad is None or not p.grad.abs().sum())
        ]
        assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_ignored_voxels_change_neither_loss_nor_gradient(name):
    method, batch = revised(name)
    before = outcome(method, batch)
    batch["label"] = torch.where(batch["valid"], batch["label"], 250)
    batch["raters"] = torch.where(batch["valid"].unsqueeze(1), batch["raters"], 250)
    after = outcome(method, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def outcome(method, batch):
    method.zero_grad()
    torch.manual_seed(3)
    loss = method.training_step(batch, 0.7).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in method.parameters() if p.requires_grad)]


@pytest.mark.parametrize("name", NAMES)
def test_an_all_ignored_batch_costs_nothing(name):
    method, batch = revised(name)
    batch["valid"] = torch.zeros_like(batch["valid"])
    loss, *gradients = outcome(method, batch)
    assert loss.item() == 0
    assert all(torch.isfinite(g).all() and g.abs().sum() == 0 for g in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_over_fits_one_clean_batch(name):
    method, batch = make(name), toy_batch(raters=True)
    # Clean: all raters are right.
    batch["raters"] = torch.where(batch["raters"] < 0, -1, batch["label"].unsqueeze(1))
    trust_half(method, batch)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.03)
    for _ in range(120):
        train_once(method, batch, 0.0, optimizer)
    method.eval()
    answer = method.predict(batch["image"]).argmax(1)
    assert (answer == batch["label"])[batch["valid"]].float().mean() > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_probabilities_and_repeat(name):
    method, batch = revised(name)
    method.eval()
    first, second = method.predict(batch["image"]), method.predict(batch["image"])
    assert torch.equal(first, second)
    torch.testing.assert_close(first.sum(1), torch.ones_like(first[:, 0]))
    noise = method.noise(first, batch["label"])
    assert noise.shape == batch["label"].shape
    assert noise.min() >= 0
    assert noise.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_and_loaded_method_goes_on_as_the_original(name):
    method, batch = revised(name)
    twin = make(name)
    twin.load_state_dict(method.state_dict())
    twin.train()
    for step in range(3):
        one, two = train_once(method, batch, 0.6 + step / 100), train_once(twin, batch, 0.6 + step / 100)
        assert torch.equal(one.loss, two.loss)
    assert all(
        torch.equal(a, b)
        for a, b in zip(method.state_dict().values(), twin.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_where_it_comes_from_and_its_example_runs(name):
    kind = methods.load(name)
    assert "Source:" in kind.__doc__
    assert kind.source
    module = importlib.import_module(kind.__module__)
    found = [t for t in doctest.DocTestFinder().find(kind, kind.__name__, module) if t.examples]
    assert found
    for test in found:
        test.globs |= {"toy_network": toy_network, "toy_batch": toy_batch}
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_documented_and_keyword_only(name):
    kind = methods.load(name)
    positional = [p for p in inspect.signature(kind).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == ["make_network"]
    for setting in methods.settings(kind):
        assert f"{setting}:" in kind.__doc__


def test_a_typo_is_told_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'supervised'"):
        methods.load("supervized")
    with pytest.raises(UsageError, match=r"did you mean method\.ema"):
        methods.check_settings(methods.load("pint"), {"emaa": 0.9})


def test_a_file_of_the_users_own_is_a_method(tmp_path):
    good = tmp_path / "mine.py"
    good.write_text("from maskmend.methods.base import EmaMethod\nclass Mine(EmaMethod):\n    pass\n")
    assert methods.load(str(good)).__name__ == "Mine"
    bad = tmp_path / "bad.py"
    bad.write_text("x = 1\ny = 1 / 0\n")
    with pytest.raises(UsageError, match=r"bad\.py:2.*ZeroDivisionError"):
        methods.load(str(bad))
    with pytest.raises(UsageError, match="no such method file"):
        methods.load(str(tmp_path / "none.py"))
