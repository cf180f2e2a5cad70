"""Probabilistic PCA and factor analysis as linear VAEs, against their closed forms."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.linalg import eigh, subspace_angles
from scvi import REGISTRY_KEYS as KEYS
from sklearn.decomposition import PCA, FactorAnalysis

from scgmvae import SCGMVAE
from scgmvae.datasets import digits, synthetic_counts
from scgmvae.module.cgmvae import CGMVAE
from scgmvae.nn.bounds import inverse_bounded_exp

LINEAR = {"prior": "normal", "n_layers": 0, "likelihood": "gaussian"}
PLAN = {"lr": 1e-2, "lr_decline": 1.0, "weight_decay": 0.0, "n_samples": 4}


def pixels():
    """Digits without their nearly constant pixels, whose variance no factor analysis can fit."""
    x = np.asarray(digits().X)
    return x[:, x.std(0) > 0.05]


def log_counts():
    adata = synthetic_counts(2000, 100, n_components=4, seed=0)
    x = np.asarray(adata.X.todense())
    size = x.sum(1, keepdims=True)
    return np.log1p(x * np.median(size) / size).astype(np.float32)


def closed_form(x, n_latent, kind):
    """Loadings W, (G, L), noise variances, (G,), and the log likelihood, in nats per cell."""
    if kind == "shared":
        best = PCA(n_latent, svd_solver="full").fit(x)
        variance = np.full(x.shape[1], best.noise_variance_)
        scale = np.sqrt(best.explained_variance_ - best.noise_variance_)
    else:
        best = FactorAnalysis(n_latent, svd_method="lapack", tol=1e-6, max_iter=5000).fit(x)
        variance, scale = best.noise_variance_, 1.0
    return best.components_.T * scale, variance, best.score(x)


def posterior(x, mean, loadings, variance):
    """Means, (n, L), and covariance, (L, L), of p(z|x)."""
    weighted = loadings / variance[:, None]
    covariance = np.linalg.inv(np.eye(loadings.shape[1]) + loadings.T @ weighted)
    return (x - mean) @ weighted @ covariance, covariance


def rotated(loadings, variance):
    """The same model with loadings that make the covariance of p(z|x) diagonal."""
    return loadings @ eigh(loadings.T @ (loadings / variance[:, None]))[1]


# with as many dimensions of z as have eigenvalues apart from the next one
DATA = {"digits": (pixels, 5), "log_counts": (log_counts, 3)}


@pytest.mark.parametrize("kind", ["shared", "gene"], ids=["ppca", "factor_analysis"])
@pytest.mark.parametrize("data", DATA)
def test_the_bound_is_tight_where_the_posterior_is_diagonal(data, kind):
    load, n_latent = DATA[data]
    x = load().astype(np.float64)
    loadings, variance, log_p = closed_form(x, n_latent, kind)
    loadings = rotated(loadings, variance)
    loc, covariance = posterior(x, x.mean(0), loadings, variance)
    off_diagonal = covariance - np.diag(covariance.diagonal())
    assert np.abs(off_diagonal).max() < 1e-10

    module = CGMVAE(x.shape[1], **LINEAR, n_latent=n_latent, gaussian_scale=kind).double()
    encoding = np.linalg.lstsq(x - x.mean(0), loc, rcond=None)[0]  # (G, L)
    scale = inverse_bounded_exp(torch.as_tensor(np.sqrt(covariance.diagonal())), 5.0)
    noise = inverse_bounded_exp(torch.as_tensor(variance).sqrt(), 14.0)
    values = {
        "encoder.z_loc.weight": encoding,
        "encoder.z_loc.bias": -x.mean(0) @ encoding,
        "encoder.z_scale.weight": torch.zeros_like(module.encoder.z_scale.weight),
        "encoder.z_scale.bias": scale,
        "decoder.heads.0.weight": loadings.T,
        "decoder.heads.0.bias": x.mean(0),
        "raw_dispersion": noise[: len(module.raw_dispersion)],
    }
    with torch.no_grad():
        for name, value in values.items():
            parameter = dict(module.named_parameters())[name]
            parameter.copy_(torch.as_tensor(value))
    tensors = {KEYS.X_KEY: torch.as_tensor(x), KEYS.BATCH_KEY: torch.zeros(len(x), 1)}
    # with the posterior as proposal, every draw gives the likelihood itself
    each = module.eval().marginal_ll(tensors, n_mc_samples=1)
    centred = x - x.mean(0)
    covariance_x = loadings @ loadings.T + np.diag(variance)
    expected = -0.5 * (
        np.einsum("ng,gh,nh->n", centred, np.linalg.inv(covariance_x), centred)
        + np.linalg.slogdet(2 * np.pi * covariance_x)[1]
    )
    np.testing.assert_allclose(each, expected, atol=1e-6)
    assert each.mean() == pytest.approx(log_p, abs=0.01)


@pytest.mark.parametrize(
    ("data", "kind", "epochs"),
    [
        pytest.param("digits", "shared", 200, id="ppca-digits"),
        pytest.param("log_counts", "shared", 250, id="ppca-log_counts"),
        pytest.param("digits", "gene", 600, id="factor_analysis-digits"),
        pytest.param("log_counts", "gene", 250, id="factor_analysis-log_counts"),
    ],
)
def test_training_finds_the_closed_form(data, kind, epochs):
    load, n_latent = DATA[data]
    x = load()
    model = SCGMVAE(AnnData(x), **LINEAR, n_latent=n_latent, gaussian_scale=kind)
    model.train(
        max_epochs=epochs,
        pretrain_epochs=0,
        seed=0,
        plan_kwargs=PLAN,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    loadings, variance, log_p = closed_form(x, n_latent, kind)
    head = model.module.decoder.heads[0]
    learned, mean = head.weight.detach().numpy().T, head.bias.detach().numpy()
    assert np.degrees(subspace_angles(learned, loadings)).max() < 2
    scale = model.get_reconstruction(return_scale=True)[1][0]
    # noise variances of factors are flat directions of the likelihood, one scale is none
    assert np.abs(scale**2 / variance - 1).mean() < 0.02
    assert np.abs(scale**2 / variance - 1).max() < (0.02 if kind == "shared" else 0.05)
    assert model.get_marginal_ll(n_mc_samples=25) == pytest.approx(log_p, abs=0.05)
    # q(z|x) is the posterior of the learned model, and W has turned so that this is diagonal
    loc, covariance = posterior(x, mean, learned, scale**2)
    sd = np.sqrt(covariance.diagonal())
    assert np.abs(covariance / np.outer(sd, sd) - np.eye(n_latent)).max() < 0.1
    q_loc, q_variance = model.get_latent_representation(return_dist=True)
    assert np.sqrt((((q_loc - loc) / sd) ** 2).mean()) < 0.1
    np.testing.assert_allclose(np.sqrt(q_variance).mean(0), sd, rtol=0.05)
    # and up to that rotation the one of the closed form
    expected = posterior(x, x.mean(0), loadings, variance)[0] @ loadings.T
    error = q_loc @ learned.T - expected
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected)
