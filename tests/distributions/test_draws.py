"""Tests of draws of negative-binomial counts against scipy's probabilities."""

import time

import numpy as np
import pytest
import torch
from scipy import stats

from scgmvae.distributions.draws import draw_negative_binomial
from scgmvae.distributions.likelihoods import make_likelihood

N = 200_000


def drawn(mu, theta, n=N, dtype=torch.float32):
    torch.manual_seed(0)
    mu = torch.full((n,), mu, dtype=dtype)
    return draw_negative_binomial(mu, torch.tensor(theta, dtype=dtype)).numpy()


def p_of_chi_square(counts, mu, theta):
    """p value of how often each count came up; all counts that are seldom are one."""
    exact = stats.nbinom(theta, theta / (theta + mu))
    last = int(exact.isf(20 / len(counts)))
    expected = np.append(exact.pmf(np.arange(last)), exact.sf(last - 1)) * len(counts)
    observed = np.bincount(np.minimum(counts.astype(int), last), minlength=last + 1)
    keep = expected > 5
    rest = [values[~keep].sum() for values in (observed, expected)]
    observed, expected = np.append(observed[keep], rest[0]), np.append(expected[keep], rest[1])
    return stats.chisquare(observed, expected).pvalue if rest[1] else 1.0


@pytest.mark.parametrize(
    ("mu", "theta"),
    [
        (0.003, 0.5),
        (0.1, 2.0),
        (1.0, 0.05),  # long-tailed
        (0.4, 0.01),  # most are 0, others in the hundreds
        (2.0, 1e5),  # nearly Poisson
        (4.0, 3.0),
        (30.0, 1.0),
        (30.0, 50.0),  # hardly ever 0
    ],
)
def test_counts_come_up_as_often_as_their_probabilities_say(mu, theta):
    counts = drawn(mu, theta)
    np.testing.assert_array_equal(counts, np.round(counts))
    assert p_of_chi_square(counts, mu, theta) > 1e-3


@pytest.mark.parametrize(("mu", "theta"), [(1e-6, 1.0), (2.5, 0.3), (700.0, 2.0)])
def test_mean_and_variance_are_those_of_the_parameters(mu, theta):
    counts = drawn(mu, theta, n=400_000, dtype=torch.float64)
    variance = mu + mu**2 / theta
    assert abs(counts.mean() - mu) < 5 * np.sqrt(variance / len(counts))
    fourth = stats.nbinom(theta, theta / (theta + mu)).stats("k") + 2
    error = variance * np.sqrt(float(fourth) / len(counts))
    assert abs(counts.var() - variance) < 5 * error


def test_every_cell_and_gene_has_its_own_mean_and_dispersion():
    torch.manual_seed(0)
    mu = torch.tensor([[0.1, 5.0], [50.0, 1e-8]])
    draws = draw_negative_binomial(mu.expand(4000, 2, 2), torch.tensor([1.0, 20.0]))
    assert draws.shape == (4000, 2, 2)
    np.testing.assert_allclose(draws.mean(0), mu, rtol=0.2, atol=1e-3)


def test_the_random_state_decides_the_draws():
    first, again = drawn(3.0, 0.7, n=100), drawn(3.0, 0.7, n=100)
    np.testing.assert_array_equal(first, again)
    other = draw_negative_binomial(torch.full((100,), 3.0), torch.tensor(0.7)).numpy()
    assert (other != first).any()


@pytest.mark.parametrize(("mu", "theta"), [(1e4, 0.003), (1e5, 0.1), (3e4, 0.02), (2.0, 0.1)])
def test_long_tails_take_no_longer(mu, theta):
    start = time.perf_counter()
    counts = drawn(mu, theta, n=2000)
    assert time.perf_counter() - start < 2
    exact = stats.nbinom(theta, theta / (theta + mu))
    for level in (0.5, 0.9, 0.99):
        above = (counts > exact.ppf(level)).mean()
        expected = exact.sf(exact.ppf(level))
        assert abs(above - expected) < 5 * np.sqrt(expected * (1 - expected) / 2000) + 1e-3


@pytest.mark.parametrize(("mu", "theta"), [(2.0, 0.1), (10.0, 0.01), (0.1, 5.0)])
def test_the_largest_random_number_ends_the_search(monkeypatch, mu, theta):
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, 1 - 1e-9))
    counts = drawn(mu, theta, n=5000)
    exact = stats.nbinom(theta, theta / (theta + mu))
    assert 0 < counts.max() <= exact.isf(1e-12)


def test_parameters_without_a_value_give_none():
    nan, inf = float("nan"), float("inf")
    mu = torch.tensor([nan, 1.0, 0.0, 1e30, 5.0]).repeat(100, 1)
    draws = draw_negative_binomial(mu, torch.tensor([1.0, nan, 1.0, 1e9, inf]))
    assert draws[:, :2].isnan().all() and (draws[:, 2] == 0).all()
    assert ((draws[:, 3] / 1e8 - 1).abs() < 0.01).all()  # the largest mean
    assert abs(draws[:, 4].var().item() - 5) < 3.5  # a Poisson


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_draws_have_the_type_of_the_means(dtype):
    draws = draw_negative_binomial(torch.full((1000,), 3.0, dtype=dtype), torch.tensor(2.0))
    assert draws.dtype == dtype and abs(draws.double().mean().item() - 3) < 0.5


def test_no_cells_make_no_draws():
    assert draw_negative_binomial(torch.ones(0, 5), torch.ones(5)).shape == (0, 5)


def test_zero_inflation_takes_its_share_of_the_counts():
    torch.manual_seed(0)
    heads = [torch.zeros(2000, 4), torch.tensor([-20.0, 0.0, 1.0, 20.0]).expand(2000, 4)]
    library = torch.full((2000, 1), np.log(400.0))
    p_x = make_likelihood("zinb", heads, library, torch.full((4,), 5.0), None, 14.0)
    expected = 100 * torch.sigmoid(torch.tensor([20.0, 0.0, -1.0, -20.0]))
    np.testing.assert_allclose(p_x.sample((5,)).mean((0, 1)), expected, atol=2.5)
