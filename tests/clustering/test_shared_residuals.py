"""Residuals that cells share with those like them."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scgmvae.clustering import shared_residuals as module
from scgmvae.clustering.shared_residuals import shared_residuals


def plain(z, residuals, k):
    """The sum over pairs of neighbours in z, as it is written."""
    shared = []
    for point in z:
        near = np.argsort(np.linalg.norm(z - point, axis=1), kind="stable")[:k]
        products = residuals[near] @ residuals[near].T
        shared.append((products.sum() - np.trace(products)) / (k * residuals.shape[1]))
    return np.array(shared)


@pytest.mark.parametrize("k", [2, 5, 15])
def test_it_is_the_sum_over_the_pairs_of_neighbours(k, monkeypatch):
    monkeypatch.setattr(module, "VALUES_AT_A_TIME", 500)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(158, 3))
    residuals = rng.normal(size=(len(z), 7)) + [1, 0, 0, 0, 0, 0, -1]
    found = shared_residuals(z, residuals.astype(np.float32), k, n_directions=0)
    np.testing.assert_allclose(found, plain(z, residuals, k), atol=1e-5)


@pytest.mark.parametrize("n", [100, 1000])
def test_noise_is_not_shared_and_a_common_shift_is(n):
    rng = np.random.default_rng(1)
    z, noise = rng.normal(size=(n, 2)), rng.normal(size=(n, 400))
    assert abs(shared_residuals(z, noise).mean()) < 0.02
    lacking = np.zeros(400)
    lacking[:40] = 1.5
    shared = shared_residuals(z, noise + lacking)
    assert shared.mean() == pytest.approx(14 * np.square(lacking).mean(), rel=0.05)
    assert shared.min() > shared_residuals(z, noise).max()


def test_cells_that_lack_the_same_are_found_among_others():
    rng = np.random.default_rng(3)
    z, residuals = rng.normal(size=(1000, 4)), rng.normal(size=(1000, 400))
    is_new = np.arange(1000) < 60
    residuals[is_new, :30] += 2
    assert roc_auc_score(is_new, shared_residuals(z, residuals)) > 0.99
    assert roc_auc_score(is_new, shared_residuals(z, residuals, n_directions=0)) < 0.9


def test_fewer_cells_than_neighbours_are_all_looked_at():
    rng = np.random.default_rng(2)
    z, residuals = rng.normal(size=(6, 2)), rng.normal(size=(6, 5))
    np.testing.assert_allclose(shared_residuals(z, residuals), plain(z, residuals, 6))
    np.testing.assert_array_equal(shared_residuals(z[:1], residuals[:1]), [0.0])
    assert np.isfinite(shared_residuals(z, residuals[:, :1])).all()
