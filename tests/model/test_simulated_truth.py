"""Expression under another batch, and correlations of genes, against a known simulation."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scgmvae

N, N_GENES, N_TYPES = 1500, 100, 3


@pytest.fixture(scope="module")
def simulated():
    """A model of three types in two batches, and shares of the genes, (types, batches, G)."""
    rng = np.random.default_rng(0)
    log_share = np.tile(rng.normal(0, 0.7, N_GENES), (N_TYPES, 2, 1))
    for kind in range(N_TYPES):
        log_share[kind, :, 10 * kind : 10 * (kind + 1)] += 1.5  # the genes of the type
    log_share[:, 1, 30:60] += rng.choice([-0.8, 0.8], 30)  # the effect of the second batch
    share = np.exp(log_share)
    share /= share.sum(-1, keepdims=True)
    kind, batch = rng.integers(N_TYPES, size=N), rng.integers(2, size=N)
    mean = share[kind, batch] * rng.lognormal(np.log(1500), 0.3, (N, 1))
    counts = rng.poisson(rng.gamma(5.0, mean / 5.0)).astype(np.float32)
    obs = pd.DataFrame({"type": kind, "batch": batch.astype(str)}).set_axis(map(str, range(N)))
    adata = AnnData(sparse.csr_matrix(counts), obs=obs)
    scgmvae.SCGMVAE.setup_anndata(adata, batch_key="batch")
    model = scgmvae.SCGMVAE(adata, n_components=N_TYPES)
    model.train(30, 40, seed=0, enable_progress_bar=False)
    return model, share


def test_expression_under_the_other_batch_is_that_of_the_type_there(simulated):
    model, share = simulated
    obs = model.adata.obs
    for here, there in ((0, 1), (1, 0)):
        for kind in range(N_TYPES):
            rows = np.flatnonzero((obs["type"] == kind) & (obs["batch"] == str(here)))
            found = model.get_normalized_expression(
                indices=rows, transform_batch=str(there), n_samples=5, return_numpy=True
            ).mean(0)
            error = np.log(found / share[kind, there])
            unchanged = np.log(share[kind, here] / share[kind, there])
            assert np.sqrt((error**2).mean()) < 0.2 < 0.4 < np.sqrt((unchanged**2).mean())
            # and the change itself is neither weaker nor stronger than it is
            own = model.get_normalized_expression(
                indices=rows, n_samples=5, return_numpy=True
            ).mean(0)
            slope = np.polyfit(-unchanged, np.log(found / own), 1)[0]
            assert 0.85 < slope < 1.15


def test_genes_of_one_type_correlate_and_those_of_two_exclude_each_other(simulated):
    model, share = simulated
    found = model.get_feature_correlation_matrix(
        n_samples=10, correlation_type="pearson", transform_batch=["0"], rna_size_factor=1500
    ).to_numpy()
    of_cells = 1500 * share[model.adata.obs["type"], 0]
    # draws of the model vary as negative binomials do, about means that vary between the types
    between = np.cov(of_cells.T)
    noise = np.diag((of_cells**2).mean(0) / 5)
    total = between + noise
    scale = np.sqrt(np.diag(total))
    true = total / np.outer(scale, scale)
    upper = np.triu_indices(N_GENES, k=1)
    assert np.corrcoef(found[upper], true[upper])[0, 1] > 0.9
    within, across = found[:10, :10][np.triu_indices(10, k=1)], found[:10, 10:20].ravel()
    assert within.min() > 0.2 > -0.1 > across.mean()
    assert np.abs(found[60:, 60:][np.triu_indices(40, k=1)]).mean() < 0.05
