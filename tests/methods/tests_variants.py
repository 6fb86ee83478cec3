"""The contract's tests for a method with other than its default settings."""

from __future__ import annotations

from functools import partial

import pytest
import test_contract

from maskmend import methods


def keeps_the_contract(monkeypatch: pytest.MonkeyPatch, name: str, **settings: object) -> None:
    """Gradients in 2-D and 3-D, ignored voxels, an all-ignored batch, save and load."""
    kind = methods.load(name)
    monkeypatch.setattr(methods, "load", lambda _: partial(kind, **settings))
    for ndim in (2, 3):
        test_contract.test_finite_loss_and_a_gradient_on_every_trainable_parameter(name, ndim)
    test_contract.test_ignored_voxels_change_neither_loss_nor_gradient(name)
    test_contract.test_an_all_ignored_batch_costs_nothing(name)
    test_contract.test_predictions_are_probabilities_and_repeat(name)
    test_contract.test_a_saved_and_loaded_method_goes_on_as_the_original(name)
