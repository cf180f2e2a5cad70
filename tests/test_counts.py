"""Tests of scgmvae.counts against fifty digits, scipy, scvi-tools and plain formulas."""

from itertools import product

import mpmath  # comes with torch (through sympy)
import numpy as np
import pytest
import torch
from scipy import stats

from scgmvae.counts import nb_log_prob

F64 = torch.float64


def tensor(values, dtype=F64):
    return torch.as_tensor(np.asarray(values), dtype=dtype)


def assert_close(actual, expected, rtol=1e-9, atol=1e-11):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=rtol, atol=atol)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


THETAS = [1e-4, 1e-2, 0.5, 1.0, 7.3, 1e2, 1e4, 1e6]
MUS = [1e-8, 1e-4, 0.03, 1.0, 12.7, 1e3, 1e6]
COUNTS = [0, 1, 2, 3, 4, 5, 9, 100, 10_000, 1_000_000]


def plain_log_prob(x, mu, theta):
    """The formula as it is written, dense and left to autograd."""
    coefficient = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    total = theta + mu
    return (coefficient + theta * torch.log(theta / total) + x * torch.log(mu / total)).sum(-1)


def nb_grid(dtype):
    """x, mu, theta, each (560, 1), with exact values (560,) from 50 digits."""
    grid = torch.tensor(list(product(COUNTS, MUS, THETAS)), dtype=dtype)
    exact = []
    with mpmath.workdps(50):
        for row in grid.tolist():
            x, mu, theta = (mpmath.mpf(value) for value in row)
            coefficient = mpmath.loggamma(x + theta) - mpmath.loggamma(theta)
            coefficient -= mpmath.loggamma(x + 1)
            total = theta + mu
            value = coefficient + theta * mpmath.log(theta / total) + x * mpmath.log(mu / total)
            exact.append(float(value))
    return [column.contiguous() for column in grid.split(1, dim=1)], np.array(exact)


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [pytest.param(torch.float32, 1e-5, id="float32"), pytest.param(F64, 1e-9, id="float64")],
)
def test_nb_log_prob_equals_fifty_digits_over_a_grid(dtype, rtol):
    (x, mu, theta), exact = nb_grid(dtype)
    actual = nb_log_prob(x, mu, theta).double().numpy()
    # From a hundred counts on, terms of opposite sign can leave a value far smaller than each of
    # them, so the rounding of the largest one has to be let through: 1e-3 nats at 10,000 counts.
    x, mu, theta = (value.double().squeeze(-1) for value in (x, mu, theta))
    summands = [
        torch.lgamma(x + theta) - torch.lgamma(theta),
        torch.lgamma(x + 1),
        x * torch.log(mu),
        x * torch.log(theta),
        x * torch.log1p(mu / theta),
    ]
    largest = torch.stack(summands).abs().amax(0).numpy()
    rounding = np.where(x.numpy() >= 100, 2 * torch.finfo(dtype).eps * largest, 0)
    error = np.abs(actual - exact)
    assert np.all(error <= rtol * np.abs(exact) + rounding)


def test_nb_log_prob_equals_scipy_where_scipy_is_exact():
    (x, mu, theta), _ = nb_grid(F64)
    # scipy is given p = θ/(θ+μ) and forms 1 - p, which loses the digits of small μ/θ
    keep = ((mu / theta > 1e-6) & (x <= 10_000)).squeeze(-1)
    x, mu, theta = x[keep], mu[keep], theta[keep]
    expected = stats.nbinom(theta.numpy(), (theta / (theta + mu)).numpy()).logpmf(x.numpy())
    assert len(expected) > 300
    assert_close(nb_log_prob(x, mu, theta), expected[:, 0], rtol=1e-8)


def test_nb_probabilities_sum_to_one():
    x = torch.arange(2000, dtype=F64).unsqueeze(-1)
    log_prob = nb_log_prob(x, torch.full_like(x, 12.7), tensor([0.8]))
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-10)


def nb_arguments(rng, theta_shape, samples=(), n=5, n_genes=4, x=None):
    """Counts, half of them zero and some large, with means and inverse dispersions."""
    if x is None:
        x = rng.poisson(3, size=(n, n_genes)) * rng.integers(0, 2, size=(n, n_genes))
        x[0, 0] = 60
    mu = rng.uniform(0.1, 9, size=(*samples, n, n_genes))
    theta = rng.uniform(0.2, 5, size=theta_shape)
    return tensor(x), tensor(mu).requires_grad_(), tensor(theta).requires_grad_()


THETA_SHAPES = [pytest.param((4,), id="per_gene"), pytest.param((5, 4), id="per_cell")]
SAMPLES = [
    pytest.param((), id="one_sample"),
    pytest.param((3,), id="sample_axis"),
    pytest.param((2, 3), id="two_sample_axes"),
]
# what x looks like: the sparse code path has none, some or all of the entries to work on
DATA = [
    pytest.param(None, id="sparse"),
    pytest.param(np.zeros((5, 4)), id="all_zero"),
    pytest.param(np.arange(1, 21).reshape(5, 4), id="no_zero"),
    pytest.param(np.linspace(0, 7.7, 20).reshape(5, 4), id="not_integer"),
]


@pytest.mark.parametrize("theta_shape", THETA_SHAPES)
@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("x", DATA)
def test_nb_values_and_gradients_equal_the_plain_formula(rng, theta_shape, samples, x):
    x, mu, theta = nb_arguments(rng, theta_shape, samples, x=x)
    actual, expected = nb_log_prob(x, mu, theta), plain_log_prob(x, mu, theta)
    assert actual.shape == (*samples, 5)
    assert_close(actual, expected.detach())
    # weights of both signs, so that no two errors of cells or samples cancel
    weights = tensor(rng.normal(size=expected.shape))
    of_actual = torch.autograd.grad((weights * actual).sum(), [mu, theta])
    of_expected = torch.autograd.grad((weights * expected).sum(), [mu, theta])
    for ours, plain in zip(of_actual, of_expected, strict=True):
        assert_close(ours, plain)


@pytest.mark.parametrize("theta_shape", THETA_SHAPES)
@pytest.mark.parametrize("samples", SAMPLES[:2])
def test_nb_gradients_equal_finite_differences(rng, theta_shape, samples):
    x, mu, theta = nb_arguments(rng, theta_shape, samples)
    assert torch.autograd.gradcheck(lambda mu, theta: nb_log_prob(x, mu, theta), (mu, theta))


@pytest.mark.parametrize("needs_gradient", ["mu", "theta"])
def test_nb_gradient_of_one_argument_alone(rng, needs_gradient):
    x, mu, theta = nb_arguments(rng, (4,))
    arguments = {"mu": mu.detach(), "theta": theta.detach()}
    arguments[needs_gradient].requires_grad_()
    nb_log_prob(x, **arguments).sum().backward()
    plain = torch.autograd.grad(
        plain_log_prob(x, mu, theta).sum(), {"mu": mu, "theta": theta}[needs_gradient]
    )[0]
    assert_close(arguments[needs_gradient].grad, plain)


def test_nb_gradients_in_single_precision_stay_close_at_extremes():
    (x, mu, theta), _ = nb_grid(torch.float32)
    keep = (x <= 10_000).squeeze(-1)
    x, mu, theta = (value[keep] for value in (x, mu, theta))
    mu.requires_grad_()
    theta.requires_grad_()
    nb_log_prob(x, mu, theta).sum().backward()
    x64, mu64, theta64 = (value.detach().double() for value in (x, mu, theta))
    total = theta64 + mu64
    terms = {
        "mu": (x64 / mu64, -(x64 + theta64) / total),
        "theta": (
            torch.digamma(x64 + theta64) - torch.digamma(theta64),
            -torch.log1p(mu64 / theta64),
            mu64 / total,
            -x64 / total,
        ),
    }
    for gradient, summands in zip((mu.grad, theta.grad), terms.values(), strict=True):
        summands = torch.stack(summands)
        # with mu far below theta the dense part of the gradient of theta is 1 - 1 to all digits
        scale = summands.abs().amax(0).clamp(min=1e-2)
        assert torch.all((gradient.double() - summands.sum(0)).abs() <= 1e-5 * scale)


def test_nb_takes_values_that_are_not_contiguous(rng):
    x, mu, theta = nb_arguments(rng, (4,), samples=(3,))
    crossed = mu.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not crossed.is_contiguous()
    value = nb_log_prob(x.T.contiguous().T, crossed, theta)
    assert_close(value, plain_log_prob(x, mu, theta).detach())
    (gradient,) = torch.autograd.grad(value.sum(), crossed)
    (plain,) = torch.autograd.grad(plain_log_prob(x, mu, theta).sum(), mu)
    assert_close(gradient, plain)


def test_nb_gradients_do_not_depend_on_a_cells_neighbours(rng):
    x, mu, theta = nb_arguments(rng, (4,))
    together = torch.autograd.grad(nb_log_prob(x, mu, theta)[2], mu)[0]
    alone = mu[2:3].detach().requires_grad_()
    nb_log_prob(x[2:3], alone, theta).sum().backward()
    assert_close(together[2], alone.grad[0])
    assert together[[0, 1, 3, 4]].abs().max() == 0
