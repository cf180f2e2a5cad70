"""Tests of distributions.likelihoods against scipy."""

from typing import get_args

import numpy as np
import pytest
import torch
from scipy import special, stats
from scvi import distributions as scvi_distributions
from scvi.distributions._utils import DistributionConcatenator, subset_distribution

from scgmvae.distributions.counts import MEAN_FLOOR
from scgmvae.distributions.families import COUNT_LIKELIHOODS, Likelihood
from scgmvae.distributions.likelihoods import (
    LOG_DISPERSION_BOUND,
    LOG_NETWORK_SCALE_BOUND,
    at_library_size,
    log_likelihood,
    make_likelihood,
)

KINDS = get_args(Likelihood)
N, G = 5, 4


def make(kind, rng, samples=(), dispersion_shape=(G,), size=None):
    """p(x|z,c) of random decoder outputs, with these outputs as numpy arrays."""
    n_heads = 2 if kind == "zinb" else 1
    heads = rng.normal(size=(n_heads, *samples, N, G))
    size = rng.uniform(5, 500, size=(N, 1)) if size is None else size
    raw_dispersion = (
        None if kind in ("poisson", "bernoulli") else rng.normal(size=dispersion_shape)
    )
    p_x = make_likelihood(
        kind,
        list(torch.as_tensor(heads)),
        torch.as_tensor(np.log(size)),
        None if raw_dispersion is None else torch.as_tensor(raw_dispersion),
    )
    parameters = {"size": size, "head": heads[0], "mu": size * special.softmax(heads[0], axis=-1)}
    if raw_dispersion is not None:
        squeezed = LOG_DISPERSION_BOUND * np.tanh(raw_dispersion / LOG_DISPERSION_BOUND)
        parameters["dispersion"] = np.exp(squeezed)
    if kind == "zinb":
        parameters["zero_probability"] = special.expit(heads[1])
    return p_x, parameters


def draw_x(kind, rng):
    if kind == "bernoulli":
        return rng.integers(0, 2, size=(N, G)).astype(float)
    if kind == "gaussian":
        return rng.normal(size=(N, G))
    return rng.poisson(30, size=(N, G)) * rng.integers(0, 2, size=(N, G)).astype(float)


def scipy_log_prob(kind, x, p):
    """log p(x) of every entry, by scipy."""
    if kind == "bernoulli":
        return stats.bernoulli(special.expit(p["head"])).logpmf(x)
    if kind == "gaussian":
        return stats.norm(p["head"], p["dispersion"]).logpdf(x)
    if kind == "poisson":
        return stats.poisson(p["mu"]).logpmf(x)
    theta = p["dispersion"]
    log_nb = stats.nbinom(theta, theta / (theta + p["mu"])).logpmf(x)
    if kind == "nb":
        return log_nb
    pi = p["zero_probability"]
    return np.log((1 - pi) * np.exp(log_nb) + pi * (x == 0))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson", "gaussian"])
def test_cells_of_another_library_size_have_means_in_proportion(kind, rng):
    p_x, parameters = make(kind, rng)
    size = torch.as_tensor(rng.uniform(50, 5000, size=(N, 1)))
    other = at_library_size(p_x, size)
    x = draw_x(kind, rng)
    if kind != "gaussian":
        parameters["mu"] = size.numpy() * special.softmax(parameters["head"], axis=-1)
    expected = scipy_log_prob(kind, x, parameters)
    found = other.log_prob(torch.as_tensor(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [(), (3,)], ids=["one_sample", "sample_axis"])
@pytest.mark.parametrize("shape", [(G,), (N, G)], ids=["per_gene", "per_cell"])
def test_log_likelihood_equals_scipy(kind, samples, shape, rng):
    p_x, parameters = make(kind, rng, samples, shape)
    x = draw_x(kind, rng)
    expected = scipy_log_prob(kind, x, parameters).sum(-1)
    actual = log_likelihood(p_x, torch.as_tensor(x)).numpy()
    assert actual.shape == (*samples, N)
    # the mean floor, and what scvi-tools adds to the parameters of zinb, are 1e-8 of a count
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_normalized_expression_is_the_mean_and_its_share(kind, rng):
    p_x, p = make(kind, rng)
    mu, scale = (p_x.get_normalized(key).numpy() for key in ("mu", "scale"))
    if kind in COUNT_LIKELIHOODS:
        np.testing.assert_allclose(mu, p["mu"], rtol=1e-7)
        np.testing.assert_allclose(scale, p["mu"] / p["size"], rtol=1e-12)
        np.testing.assert_allclose(scale.sum(-1), 1, rtol=1e-12)
    else:
        expected = special.expit(p["head"]) if kind == "bernoulli" else p["head"]
        np.testing.assert_allclose(mu, expected, rtol=1e-12)
        np.testing.assert_array_equal(scale, mu)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_mean_and_variance_of_the_likelihood(kind, rng):
    p_x, p = make(kind, rng, size=np.full((N, 1), 40.0))
    torch.manual_seed(0)
    draws = p_x.sample((20_000,)).numpy()
    if kind == "bernoulli":
        mean = special.expit(p["head"])
        variance = mean * (1 - mean)
    elif kind == "gaussian":
        mean, variance = p["head"], np.broadcast_to(p["dispersion"] ** 2, (N, G))
    elif kind == "poisson":
        mean = variance = p["mu"]
    else:
        mean, keep = p["mu"], 1.0
        second = mean + mean**2 / p["dispersion"] + mean**2
        if kind == "zinb":
            keep = 1 - p["zero_probability"]
        mean = keep * mean
        variance = keep * second - mean**2
    error = np.sqrt(variance / len(draws))
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * error)
    # the counts' fourth moments are large: 20 % is five errors of the worst of the genes
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.2)


@pytest.mark.parametrize("kind", COUNT_LIKELIHOODS)
def test_mean_floor_keeps_an_underflowing_softmax_finite(kind):
    # exp(-200) is 0 in single precision, and a count of 3 is impossible under a mean of 0
    head = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    heads = [head, torch.zeros(1, G)][: 2 if kind == "zinb" else 1]
    raw_dispersion = None if kind == "poisson" else torch.zeros(G, requires_grad=True)
    p_x = make_likelihood(kind, heads, torch.full((1, 1), 7.0), raw_dispersion)
    assert torch.equal(p_x.get_normalized("scale"), torch.tensor([[1.0, 0, 0, 0]]))
    np.testing.assert_allclose(p_x.get_normalized("mu")[0, 1:].detach(), MEAN_FLOOR, rtol=1e-6)
    value = log_likelihood(p_x, torch.tensor([[1000.0, 3.0, 0.0, 0.0]]))
    assert torch.isfinite(value).all()
    # three counts where 1e-8 are expected: 3 log 1e-8 is -55
    assert -1000 < value.item() < -50
    value.sum().backward()
    assert torch.isfinite(head.grad).all()


@pytest.mark.parametrize("kind", COUNT_LIKELIHOODS)
def test_mean_counts_are_proportional_to_the_library(kind):
    sizes = np.array([[1.0], [10.0], [1e3], [1e5], [0.5]])
    # the same decoder outputs twice
    once, _ = make(kind, np.random.default_rng(1), size=sizes)
    thrice, _ = make(kind, np.random.default_rng(1), size=3 * sizes)
    mu = once.get_normalized("mu").numpy()
    np.testing.assert_allclose(mu.sum(-1), sizes[:, 0], rtol=1e-6)
    np.testing.assert_allclose(thrice.get_normalized("mu").numpy(), 3 * mu, rtol=1e-6)
    np.testing.assert_array_equal(thrice.get_normalized("scale"), once.get_normalized("scale"))


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_library_does_not_act_on_likelihoods_without_counts(kind):
    small, _ = make(kind, np.random.default_rng(1), size=np.full((N, 1), 2.0))
    large, _ = make(kind, np.random.default_rng(1), size=np.full((N, 1), 2000.0))
    x = torch.as_tensor(draw_x(kind, np.random.default_rng(2)))
    assert torch.equal(log_likelihood(small, x), log_likelihood(large, x))
    assert torch.equal(small.get_normalized("mu"), large.get_normalized("mu"))


@pytest.mark.parametrize("kind", ["nb", "zinb", "gaussian"])
@pytest.mark.parametrize("raw", [-1e6, 1e6], ids=["smallest", "largest"])
def test_dispersion_is_bounded(kind, raw):
    heads = [torch.zeros(1, G), torch.zeros(1, G)][: 2 if kind == "zinb" else 1]
    p_x = make_likelihood(kind, heads, torch.zeros(1, 1), torch.full((G,), raw))
    dispersion = p_x.scale if kind == "gaussian" else p_x.theta
    expected = np.exp(np.sign(raw) * LOG_DISPERSION_BOUND)
    np.testing.assert_allclose(dispersion.expand(1, G), np.full((1, G), expected), rtol=1e-5)
    assert torch.isfinite(log_likelihood(p_x, torch.ones(1, G))).all()


@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_a_large_inverse_dispersion_gives_poisson_counts(kind, rng):
    head = rng.normal(size=(N, G))
    x = draw_x("poisson", rng)
    size = rng.uniform(5, 50, size=(N, 1))
    heads = [torch.as_tensor(head), torch.full((N, G), -50.0, dtype=torch.float64)]
    raw = torch.full((G,), 1e6, dtype=torch.float64)
    p_x = make_likelihood(
        kind, heads[: 2 if kind == "zinb" else 1], torch.as_tensor(np.log(size)), raw
    )
    expected = stats.poisson(size * special.softmax(head, axis=-1)).logpmf(x).sum(-1)
    # theta is 1.2e6, so what is left of the overdispersion is of the order x^2 / theta
    np.testing.assert_allclose(
        log_likelihood(p_x, torch.as_tensor(x)).numpy(), expected, rtol=1e-4
    )


# ------------------------------------------------------- means that are made where asked for


@pytest.fixture(params=[(), (3,)], ids=["one_sample", "sample_axis"])
def ours_and_theirs(request, rng):
    """The negative binomial of logits, and that of scvi-tools at the same means."""
    ours, parameters = make("nb", rng, request.param)
    mu, theta = (torch.as_tensor(parameters[name]) for name in ("mu", "dispersion"))
    scale = mu / torch.as_tensor(parameters["size"])
    return ours, scvi_distributions.NegativeBinomial(mu=mu + MEAN_FLOOR, theta=theta, scale=scale)


def test_nb_of_logits_has_the_parameters_of_that_of_means(ours_and_theirs):
    ours, theirs = ours_and_theirs
    for name in ("mu", "scale", "mean", "variance"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(ours.theta, theirs.theta.expand_as(theirs.mu))


def test_nb_of_logits_draws_as_that_of_means(ours_and_theirs):
    torch.manual_seed(0)
    ours, theirs = (distribution.sample((4000,)) for distribution in ours_and_theirs)
    assert ours.shape == (4000, *ours_and_theirs[0].batch_shape)
    error = (theirs.var(0) / 2000).sqrt()  # of the difference of two means
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error + 1e-3).all()


def test_nb_of_logits_gives_counts_the_probability_of_that_of_means(ours_and_theirs, rng):
    x = torch.as_tensor(draw_x("nb", rng))
    ours, theirs = (distribution.log_prob(x) for distribution in ours_and_theirs)
    # scvi-tools' formula adds 1e-8 to what it takes logarithms of
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_nb_of_logits_is_put_together_and_cut_by_scvi_tools(rng):
    store = DistributionConcatenator()
    parts = [make("nb", rng)[0] for _ in range(2)]
    for part in parts:
        store.store_distribution(part)
    together = store.get_concatenated_distributions()
    assert together.batch_shape == (2 * N, G)
    second = subset_distribution(together, torch.arange(N, 2 * N))
    for name in ("mu", "scale", "theta"):
        expected = [getattr(part, name) for part in parts]
        torch.testing.assert_close(getattr(together, name), torch.cat(expected))
        torch.testing.assert_close(getattr(second, name), expected[1])


@pytest.mark.parametrize("kind", COUNT_LIKELIHOODS)
def test_log_likelihood_takes_csr_and_leaves_out_genes_that_were_not_measured(kind, rng):
    p_x, parameters = make(kind, rng, (3,))
    x = draw_x(kind, rng)
    csr = torch.as_tensor(x).to_sparse_csr()
    expected = scipy_log_prob(kind, x, parameters)
    np.testing.assert_allclose(log_likelihood(p_x, csr), expected.sum(-1), rtol=1e-6)
    observed = np.array([True, False, True, True])
    value = log_likelihood(p_x, csr, torch.as_tensor(observed))
    np.testing.assert_allclose(value, expected[..., observed].sum(-1), rtol=1e-6)


def test_log_likelihood_is_as_precise_under_autocast(rng):
    p_x, _ = make("nb", rng)
    x = torch.as_tensor(draw_x("nb", rng))
    with torch.autocast("cpu", torch.bfloat16):
        value = log_likelihood(p_x, x)
    assert value.dtype == torch.float64
    assert torch.equal(value, log_likelihood(p_x, x))


def test_a_gaussian_of_two_outputs_is_that_of_torch_with_its_gradients(rng):
    x = torch.as_tensor(rng.normal(size=(N, G)))
    outputs = [torch.as_tensor(rng.normal(size=(3, N, G))).requires_grad_() for _ in range(2)]
    p_x = make_likelihood(
        "gaussian", outputs[:1], torch.zeros(N, 1), outputs[1], None, LOG_NETWORK_SCALE_BOUND
    )
    value = log_likelihood(p_x, x)
    assert value.shape == (3, N)
    found = torch.autograd.grad(value.sum(), outputs)
    scale = torch.exp(5 * torch.tanh(outputs[1] / 5))
    expected = torch.distributions.Normal(outputs[0], scale).log_prob(x).sum(-1)
    torch.testing.assert_close(value, expected)
    for one, other in zip(found, torch.autograd.grad(expected.sum(), outputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("raw", [-1e9, -20.0, 20.0, 1e9])
def test_the_scale_of_a_network_stays_within_its_bound(raw):
    raw = torch.full((N, G), raw, requires_grad=True)
    mean = torch.zeros(N, G, requires_grad=True)
    library = torch.zeros(N, 1)
    p_x = make_likelihood("gaussian", [mean], library, raw, None, LOG_NETWORK_SCALE_BOUND)
    assert (p_x.scale >= np.exp(-5) * (1 - 1e-6)).all()
    assert (p_x.scale <= np.exp(5) * (1 + 1e-6)).all()
    # a value that is met exactly adds no more than at the smallest scale
    value = log_likelihood(p_x, torch.zeros(N, G))
    assert (value <= G * (5 - 0.5 * np.log(2 * np.pi)) + 1e-4).all()
    for gradient in torch.autograd.grad(value.sum(), [mean, raw]):
        assert torch.isfinite(gradient).all()
