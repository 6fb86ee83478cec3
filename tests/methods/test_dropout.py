"""Monte Carlo dropout: what is drawn has the distribution of torch's own layer, and the network is as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskmend.methods.base import dropout_on


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_dropout_in_evaluation_draws_as_torch_does_in_training(share):
    network, ones = nn.Sequential(nn.Identity(), nn.Dropout(share)).eval(), torch.ones(4, 3, 200, 200)
    torch.manual_seed(0)
    with dropout_on(network):
        found = network(ones)
        again = network(ones)
    wanted = nn.Dropout(share)(ones)
    error = 4 * (share * (1 - share) / ones.numel()) ** 0.5 + 1e-9
    assert (found == 0).float().mean().item() == pytest.approx(share, abs=error)
    assert found.max().item() == pytest.approx(wanted.max().item())
    assert share == 1 or not torch.equal(found, again)


def test_values_are_kept_or_dropped_one_by_one():
    network, values = nn.Dropout(0.25).eval(), torch.randn(2, 3, 50, 60)
    with dropout_on(network):
        found = network(values)
    kept = found != 0
    torch.testing.assert_close(found[kept], values[kept] / 0.75)
    flat = kept.float().flatten(1)
    assert abs(torch.corrcoef(flat)[0, 1].item()) < 0.05  # one image's draw says nothing of the other's


def test_afterwards_the_network_is_deterministic_again():
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5)).eval()
    values = torch.randn(2, 8, 5, 5)
    with dropout_on(network):
        assert not torch.equal(network(values), values)
    with pytest.raises(TypeError), dropout_on(network):
        network("not an image")
    assert not any(layer.training for layer in network)
    assert torch.equal(network(values), values)


def test_whole_channels_are_dropped_where_the_network_does_that():
    network, values = nn.Dropout2d(0.5).eval(), torch.ones(4, 64, 6, 6)
    with dropout_on(network):
        found = network(values)
    shares = (found == 0).float().mean((2, 3))
    assert set(shares.unique().tolist()) == {0.0, 1.0}


def test_a_layer_that_trains_draws_once():
    network, ones = nn.Dropout(0.5).train(), torch.ones(1, 1, 100, 100)
    with dropout_on(network):
        found = network(ones)
    assert (found == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert network.training
