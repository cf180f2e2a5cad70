"""The mixture of background and foreground, and distributions side by side."""

import numpy as np
import pytest
import torch
from scipy import stats
from scvi.distributions import NegativeBinomialMixture

from scgmvae.distributions.joint import SideBySide, inverse_dispersions
from scgmvae.distributions.likelihoods import Bernoulli, log_likelihood, make_likelihood
from scgmvae.distributions.proteins import ProteinMixture, make_protein_likelihood

N, P = 4, 3


def log_nb(x, mu, theta):
    return stats.nbinom.logpmf(x, theta, theta / (theta + mu))


@pytest.fixture
def mixture():
    rng = np.random.default_rng(0)
    background = rng.uniform(1, 5, size=(N, P))
    foreground = background * rng.uniform(2, 9, size=(N, P))
    theta, logits = rng.uniform(1, 20, size=P), rng.normal(size=(N, P))
    return ProteinMixture(*(torch.tensor(v) for v in (background, foreground, theta, logits)))


def test_the_likelihood_of_proteins_is_a_mixture_of_two_negative_binomials(mixture):
    x = np.random.default_rng(1).poisson(10, size=(N, P))
    p = 1 / (1 + np.exp(-mixture.mixture_logits.numpy()))
    low, high = (
        np.exp(log_nb(x, mu.numpy(), mixture.theta1.numpy())) for mu in (mixture.mu1, mixture.mu2)
    )
    expected = np.log(p * low + (1 - p) * high)
    np.testing.assert_allclose(mixture.log_prob(torch.tensor(x)), expected, rtol=1e-4)
    np.testing.assert_allclose(
        log_likelihood(mixture, torch.tensor(x, dtype=torch.float64)), expected.sum(1), rtol=1e-4
    )


@pytest.mark.parametrize("n_samples", [(), (2,)], ids=["one sample", "two samples"])
@pytest.mark.parametrize("shape", [(P,), (N, P)], ids=["gene", "cell"])
def test_the_likelihood_of_proteins_and_its_gradients_are_those_of_scvi_tools(shape, n_samples):
    rng = np.random.default_rng(2)
    background = torch.tensor(rng.uniform(0.1, 5, size=(*n_samples, N, P)))
    parameters = [
        background,
        background * torch.tensor(rng.uniform(1, 9, size=background.shape)),
        torch.tensor(rng.uniform(0.1, 50, size=shape)),
        torch.tensor(rng.normal(size=background.shape) * 3),
    ]
    x = torch.tensor(rng.poisson(6, size=(N, P)).astype(float))
    found = []
    for log_prob in (ProteinMixture.log_prob, NegativeBinomialMixture.log_prob):
        leaves = [value.clone().requires_grad_() for value in parameters]
        value = log_prob(ProteinMixture(*leaves), x)
        (value * torch.arange(value.numel()).view_as(value)).sum().backward()
        found.append([value, *(leaf.grad for leaf in leaves)])
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-6)


def test_inverse_dispersions_are_those_of_each_likelihood(mixture):
    library, logits = torch.full((N, 1), 3.0), torch.randn(N, 2)
    nb = make_likelihood("nb", [logits], library, torch.tensor([0.0, 1.0]))
    peaks = Bernoulli(logits=logits, validate_args=False)
    theta = inverse_dispersions(SideBySide([nb, mixture, peaks]))
    assert theta.shape == (N, 7)
    torch.testing.assert_close(theta[:, :2], nb.theta.double())
    torch.testing.assert_close(theta[:, 2:5], mixture.dispersion.expand(N, P))
    assert theta[:, 5:].isinf().all()


def test_mean_and_variance_are_those_of_draws(mixture):
    torch.manual_seed(0)
    draws = mixture.sample(torch.Size([40_000])).double()
    torch.testing.assert_close(draws.mean(0), mixture.mean, rtol=0.05, atol=0.05)
    torch.testing.assert_close(draws.var(0), mixture.variance, rtol=0.12, atol=0.1)
    torch.testing.assert_close(
        mixture.foreground, mixture.foreground_probs * mixture.mu2, rtol=1e-6, atol=0
    )


def test_the_foreground_lies_above_the_background_for_any_outputs():
    heads = [torch.randn(50, P) * 30 for _ in range(3)]
    p_x = make_protein_likelihood(heads, torch.randn(P) * 50)
    assert (p_x.mu2 >= p_x.mu1).all()
    assert p_x.log_prob(torch.ones(50, P)).isfinite().all()


def test_side_by_side_is_what_each_is_alone(mixture):
    logits = torch.randn(N, 5, dtype=torch.float64)
    library = torch.full((N, 1), 3.0, dtype=torch.float64)
    nb = make_likelihood("nb", [logits], library, torch.zeros(5, dtype=torch.float64))
    peaks = Bernoulli(logits=logits[:, :2], validate_args=False)
    both = SideBySide([nb, mixture, peaks])
    assert both.batch_shape == (N, 10)
    torch.testing.assert_close(both.mean, torch.cat([nb.mean, mixture.mean, peaks.probs], dim=1))
    x = both.sample()
    assert x.shape == (N, 10)
    log_prob = both.log_prob(x)
    torch.testing.assert_close(log_prob[:, 5:8], mixture.log_prob(x[:, 5:8]))
    torch.testing.assert_close(log_prob[:, 8:], peaks.log_prob(x[:, 8:]))
    assert both.variance.shape == both.get_normalized("scale").shape == (N, 10)
