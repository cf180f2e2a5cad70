"""Counts divided in two that are independent."""

import numpy as np
import pytest
from scipy import sparse

from scgmvae.data.thinning import halves

N = 20_000


def negative_binomial(mean, theta, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(theta, mean / theta, (N, 2))).astype(np.float32)


def test_the_halves_sum_to_the_counts_and_keep_zeros_out():
    counts = sparse.random(50, 30, 0.3, format="csr", random_state=0)
    counts.data = np.ceil(10 * counts.data).astype(np.float32)
    first, second = halves(counts, np.full(30, 2.0), np.random.default_rng(0))
    assert ((first + second) != counts).nnz == 0
    assert first.data.min() > 0 and first.dtype == np.float32
    again, _ = halves(counts, np.full(30, 2.0), np.random.default_rng(0))
    assert (again != first).nnz == 0


@pytest.mark.parametrize("of_values", [False, True], ids=["by_gene", "by_value"])
def test_the_halves_of_a_negative_binomial_are_two_that_are_independent(of_values):
    theta = np.array([0.7, 5.0])
    counts = sparse.csr_matrix(negative_binomial(6.0, theta))
    given = np.broadcast_to(theta, (N, 2)) if of_values else theta
    first, second = (h.toarray() for h in halves(counts, given, np.random.default_rng(1)))
    for gene in range(2):
        mean, shape = 3.0, theta[gene] / 2
        for half in (first, second):
            assert half[:, gene].mean() == pytest.approx(mean, rel=0.05)
            assert half[:, gene].var() == pytest.approx(mean + mean**2 / shape, rel=0.1)
        assert abs(np.corrcoef(first[:, gene], second[:, gene])[0, 1]) < 0.03


def test_binomial_halves_of_overdispersed_counts_would_not_be_independent():
    counts = sparse.csr_matrix(negative_binomial(6.0, np.array([0.7, 5.0])))
    rng = np.random.default_rng(1)
    first, second = (h.toarray() for h in halves(counts, np.full(2, np.inf), rng))
    assert np.corrcoef(first[:, 0], second[:, 0])[0, 1] > 0.3


def test_poisson_counts_have_an_infinite_inverse_dispersion():
    x = np.random.default_rng(0).poisson(6.0, (N, 1)).astype(np.float32)
    first, second = (
        h.toarray().ravel()
        for h in halves(sparse.csr_matrix(x), np.array([np.inf]), np.random.default_rng(1))
    )
    assert first.var() == pytest.approx(3, rel=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
