"""Groups of cases against posteriors written down with scipy.stats, and against known make-ups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from maskmend.mixture import Groups


def cases(*groups: tuple[float, float, int], seed: int = 0) -> torch.Tensor:
    """(N, 1) features: per group its mean, spread and size."""
    rng = np.random.default_rng(seed)
    return torch.tensor(
        np.concatenate([rng.normal(m, s, n) for m, s, n in groups]), dtype=torch.float32
    ).unsqueeze(1)


def fitted(
    features: torch.Tensor, evidence: Callable[[torch.Tensor], float] | None = None, **settings
) -> Groups:
    groups = Groups(**({"width": 8.0, "least_sd": 0.1} | settings))
    groups.fit(features, evidence)
    return groups


def test_not_fitted_trusts_everyone() -> None:
    groups = Groups(width=8.0, least_sd=0.1)
    assert not groups.fitted
    assert groups.posterior(torch.randn(5, 1)).tolist() == [1.0] * 5


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [12, 60, 300])
def test_one_group_stays_one(seed: int, count: int) -> None:
    features = cases((0.4, 0.5, count), seed=seed)
    groups = fitted(features)
    assert len(groups.mean) == 1
    assert groups.posterior(features).tolist() == [1.0] * count


def test_two_groups_give_the_posteriors_of_bayes() -> None:
    features = cases((0.0, 0.4, 180), (2.4, 0.4, 120))
    groups = fitted(features)
    assert len(groups.mean) == 2
    line = torch.linspace(-2, 5, 57).unsqueeze(1)
    x, extent = line.numpy().ravel(), max(8.0, float(features.max() - features.min()))
    first, second = 0.6 * stats.norm.pdf(x, 0.0, 0.4), 0.4 * stats.norm.pdf(x, 2.4, 0.4)
    uniform = stats.uniform.pdf(x - x.min(), 0, extent)
    share = groups.weight[-1].item()
    assert share < 0.05
    expected = (1 - share) * first / ((1 - share) * (first + second) + share * uniform)
    answer = groups.posterior(line).numpy()
    clear = np.abs(x - 1.2) > 0.3  # near the border a small error of the means moves the posterior a lot
    clear &= (x > -1) & (x < 3.4)  # and far out the small share of the uniform decides
    assert np.abs(answer - expected)[clear].max() < 0.05
    own = groups.posterior(features)
    assert own[:180].mean() > 0.97
    assert own[180:].mean() < 0.03


def test_posterior_is_the_formula_of_the_fitted_mixture() -> None:
    """Exactly, with the parameters that were fitted, in two dimensions."""
    rng = np.random.default_rng(3)
    features = torch.tensor(
        np.concatenate([rng.normal(0, 0.4, (90, 2)), rng.normal((3, 2), 0.4, (60, 2))]), dtype=torch.float32
    )
    groups = fitted(features)
    mean, sd, weight = (t.double().numpy() for t in (groups.mean, groups.sd, groups.weight))
    between = torch.linspace(-1, 2, 61)[:, None] * torch.tensor([3.0, 2.0])  # through both and beyond
    x = between.double().numpy()
    densities = [w * stats.norm.pdf(x, m, sd).prod(1) for w, m in zip(weight[:-1], mean, strict=True)]
    uniform = weight[-1] / groups.extent.double().numpy().prod()
    total = sum(densities) + uniform
    expected = sum(d for d, c in zip(densities, groups.chosen.tolist(), strict=True) if c) / total
    assert weight.sum() == pytest.approx(1, abs=1e-6)
    assert groups.chosen.sum() == 1
    np.testing.assert_allclose(groups.posterior(between).numpy(), expected, atol=1e-5)


def test_the_larger_of_two_alike_is_chosen_on_either_side() -> None:
    for sign in (1, -1):
        groups = fitted(cases((0.0, 0.4, 180), (sign * 2.4, 0.4, 120)))
        chosen = groups.mean[groups.chosen.bool()]
        assert chosen.numel() == 1
        assert abs(chosen.item()) < 0.2


def test_outliers_belong_to_no_group() -> None:
    features = cases((0.0, 0.3, 100), (1.8, 0.3, 60), (7.0, 0.01, 1), (-6.0, 0.01, 1))
    own = fitted(features).posterior(features)
    assert own[:100].mean() > 0.95
    assert own[-2:].max() < 1e-3


def test_lowest_takes_the_smallest_mean() -> None:
    features = cases((0.0, 0.2, 60), (2.0, 0.2, 140))
    usual, lowest = fitted(features), fitted(features, lowest=True, most=2)
    assert usual.posterior(features)[60:].mean() > 0.95
    assert lowest.posterior(features)[:60].mean() > 0.95
    assert lowest.posterior(features)[60:].mean() < 0.05


def test_plain_evidence_overrules_density() -> None:
    features = cases((0.0, 0.3, 90), (2.5, 0.3, 60))
    for lead, larger in ((2.0, False), (0.0, True)):

        def evidence(group: torch.Tensor, lead: float = lead) -> float:
            assert len(group) in range(55, 95)
            return lead * float((group >= 90).float().mean())

        first = fitted(features, evidence).posterior(features)[:90].mean()
        assert bool(first > 0.9) is larger
        assert bool(first < 0.1) is not larger


def test_one_group_asks_for_no_evidence() -> None:
    def evidence(group: torch.Tensor) -> float:
        raise AssertionError

    assert fitted(cases((0.4, 0.5, 60)), evidence).posterior(torch.zeros(1, 1)).tolist() == [1.0]


def test_a_second_group_must_be_worth_it() -> None:
    """Two lumps that overlap: the plain criterion splits some of these sets, the demanded gain none."""
    sets = [cases((0.0, 0.5, 40), (1.5, 0.5, 40), seed=seed) for seed in range(12)]
    plain = [len(fitted(features, gain=0.0).mean) for features in sets]
    wary = [len(fitted(features, gain=10.0).mean) for features in sets]
    assert sum(plain) > sum(wary)
    assert all(a >= b for a, b in zip(plain, wary, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_few_cases_are_one_group(count: int) -> None:
    features = torch.linspace(0, 5, count).unsqueeze(1)
    groups = fitted(features)
    assert groups.posterior(features).tolist() == [1.0] * count


def test_equal_cases_do_not_break_it() -> None:
    features = torch.zeros(40, 2)
    assert fitted(features).posterior(features).tolist() == [1.0] * 40


def test_order_of_the_cases_does_not_matter() -> None:
    features = cases((0.0, 0.4, 60), (2.4, 0.4, 40))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    one, two = fitted(features).posterior(features), fitted(features[order]).posterior(features)
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_state_travels(tmp_path) -> None:
    features = cases((0.0, 0.4, 60), (2.4, 0.4, 40))
    groups = fitted(features)
    copy = Groups(width=8.0, least_sd=0.1)
    for name, tensor in groups.state_dict().items():
        setattr(copy, name, tensor.clone())
    assert torch.equal(copy.posterior(features), groups.posterior(features))
