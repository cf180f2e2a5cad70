"""Tests of distributions.changed_counts: counts as they would be at other means."""

import pytest
import torch
from scvi.distributions import Poisson

from scgmvae.distributions.changed_counts import ChangedCounts, carried_over
from scgmvae.distributions.likelihoods import make_likelihood

N = 40_000
N_ERRORS = 5
BEFORE, AFTER = torch.tensor([0.2, 3.0, 8.0, 2.0]), torch.tensor([4.0, 1.0, 12.0, 2.0])
THETA = torch.tensor([1.0, 2.0, 0.5, 5.0])


def negative_binomial(mean, theta, n):
    """The same distribution for n cells."""
    logits, library = mean.log().expand(n, -1), mean.sum().log().expand(n, 1)
    return make_likelihood("nb", [logits], library, theta.log())


@pytest.fixture(autouse=True)
def draws_of_a_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_counts_that_follow_the_model_follow_it_after_the_change():
    before = negative_binomial(BEFORE, THETA, N)
    changed = ChangedCounts(before.sample(), before, AFTER.expand(N, -1))
    found = changed.sample()
    variance = AFTER + AFTER**2 / THETA
    error = (variance / N).sqrt()
    assert ((found.mean(0) - AFTER).abs() < N_ERRORS * error).all()
    assert ((changed.mean.mean(0) - AFTER).abs() < N_ERRORS * error).all()
    fourth = ((found - AFTER) ** 4).mean(0)
    assert ((found.var(0) - variance).abs() < N_ERRORS * ((fourth - variance**2) / N).sqrt()).all()


@pytest.mark.parametrize("kind", ["nb", "poisson"])
def test_the_mean_is_that_of_the_draws_of_a_cell(kind):
    if kind == "nb":
        before = negative_binomial(BEFORE, THETA, N)
    else:
        before = Poisson(rate=BEFORE.expand(N, -1), validate_args=False)
    x = torch.tensor([[0.0, 7.0, 20.0, 3.0]])
    changed = ChangedCounts(x.expand(N, -1), before, AFTER.expand(N, -1))
    found = changed.sample()
    error = found.std(0) / N**0.5
    assert ((found.mean(0) - changed.mean[0]).abs() <= N_ERRORS * error + 1e-5).all()
    assert (found[:, 3] == 3).float().mean() > 0.999  # a mean that changes by rounding alone
    assert (found[:, 1] <= 7).all() and (found[:, 2] >= 20).all()


def test_of_a_cell_with_many_counts_more_are_expected_where_the_mean_rises():
    before = negative_binomial(BEFORE, THETA, 3)
    x = torch.tensor([0.0, 8.0, 16.0])[:, None].expand(3, 4)
    rises = (ChangedCounts(x, before, AFTER.expand(3, -1)).mean - x)[:, 2]
    # 4 more are expected of the mean; g of the cells is (0.5 + x) / (0.5 + 8)
    expected = 4 * (0.5 + torch.tensor([0.0, 8.0, 16.0])) / 8.5
    torch.testing.assert_close(rises, expected, rtol=1e-3, atol=0)  # dispersions are squeezed


def test_genes_that_were_not_measured_follow_the_model():
    before = negative_binomial(BEFORE, THETA, N)
    x = torch.zeros(N, 4)
    observed = torch.tensor([True, True, False, False])
    changed = ChangedCounts(x, before, AFTER.expand(N, -1), observed)
    torch.testing.assert_close(changed.mean[:, 2:], AFTER[2:].expand(N, -1))
    found = changed.sample()
    error = ((AFTER + AFTER**2 / THETA) / N).sqrt()
    assert ((found.mean(0) - AFTER).abs() < N_ERRORS * error)[2:].all()
    assert not found[:, 1].any()  # measured as 0, and falling


def test_nothing_is_carried_over_from_cells_that_do_not_change():
    mean, others = torch.rand(5, 7), torch.rand(5, 7)
    assert torch.equal(carried_over(mean, others, others), mean)


def test_genes_that_others_hardly_express_are_left_alone():
    mean = torch.tensor([[5000.0, 5000.0]])
    here, there = torch.tensor([[9999.9, 0.1]]), torch.tensor([[9999.99, 0.01]])
    found = carried_over(mean, here, there)
    # by its ratio the second gene would fall to a tenth; on the scale of log(1 + x) by 1/12
    torch.testing.assert_close(
        found[0, 1] / found[0, 0], torch.tensor(1.01 / 1.1), rtol=1e-3, atol=0
    )
    assert found.sum() == pytest.approx(10_000)
