"""Tests of distributions.counts against fifty digits, scipy, scvi-tools and plain formulas."""

from itertools import product

import mpmath  # comes with torch (through sympy)
import numpy as np
import pytest
import torch
from scipy import stats

from scgmvae.distributions.counts import (
    MEAN_FLOOR,
    nb_log_prob,
    poisson_log_prob,
    softmax_means,
    softmax_nb_log_prob,
    zinb_log_prob,
)
from scgmvae.nn.sparse import csr_tensor

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


def exact_nb(x, mu, theta):
    """Values (n,) from 50 digits, of tensors (n, 1)."""
    exact = []
    with mpmath.workdps(50):
        for row in torch.cat([x, mu, theta], dim=1).tolist():
            x, mu, theta = (mpmath.mpf(value) for value in row)
            coefficient = mpmath.loggamma(x + theta) - mpmath.loggamma(theta)
            coefficient -= mpmath.loggamma(x + 1)
            total = theta + mu
            value = coefficient + theta * mpmath.log(theta / total) + x * mpmath.log(mu / total)
            exact.append(float(value))
    return np.array(exact)


def nb_grid(dtype):
    """x, mu, theta, each (560, 1), with exact values (560,)."""
    grid = torch.tensor(list(product(COUNTS, MUS, THETAS)), dtype=dtype)
    columns = [column.contiguous() for column in grid.split(1, dim=1)]
    return columns, exact_nb(*columns)


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


# ------------------------------------------------------------------ all likelihoods of counts

FORMS = [pytest.param(False, id="dense"), pytest.param(True, id="csr")]


def zi_arguments(rng, shape):
    return tensor(rng.normal(scale=2, size=shape)).requires_grad_()


def call(kind, x, mu, theta, zi_logits):
    """One of the likelihoods, ``mu`` being the logits of softmax_nb, whose cells have 100."""
    if kind == "softmax_nb":
        return softmax_nb_log_prob(x, mu, theta, torch.full((len(x), 1), 100.0).to(mu))
    if kind == "poisson":
        return poisson_log_prob(x, mu)
    return nb_log_prob(x, mu, theta) if kind == "nb" else zinb_log_prob(x, mu, theta, zi_logits)


def plain(kind, x, mu, theta, zi_logits):
    """What :func:`call` has to give, as it is written in books, dense and left to autograd."""
    if kind == "softmax_nb":
        return plain_log_prob(x, 100 * torch.softmax(mu, -1) + MEAN_FLOOR, theta)
    if kind == "poisson":
        return (x * torch.log(mu) - mu - torch.lgamma(x + 1)).sum(-1)
    if kind == "nb":
        return plain_log_prob(x, mu, theta)
    log_nb = plain_log_prob(*(v.unsqueeze(-1) for v in (x.expand_as(mu), mu, theta.expand_as(mu))))
    inflated = torch.sigmoid(zi_logits)
    return torch.log((1 - inflated) * log_nb.exp() + inflated * (x == 0)).sum(-1)


@pytest.mark.parametrize("as_csr", FORMS)
@pytest.mark.parametrize("theta_shape", THETA_SHAPES)
@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("kind", ["nb", "softmax_nb", "zinb", "poisson"])
def test_values_and_gradients_equal_the_plain_formula(rng, kind, samples, theta_shape, as_csr):
    x, mu, theta = nb_arguments(rng, theta_shape, samples)
    zi_logits = zi_arguments(rng, (*samples, 5, 4))
    expected = plain(kind, x, mu, theta, zi_logits)
    actual = call(kind, x.to_sparse_csr() if as_csr else x, mu, theta, zi_logits)
    assert actual.shape == (*samples, 5)
    assert_close(actual, expected.detach())
    weights = tensor(rng.normal(size=expected.shape))
    used = {"zinb": [mu, theta, zi_logits], "poisson": [mu]}.get(kind, [mu, theta])
    of_actual = torch.autograd.grad((weights * actual).sum(), used)
    of_expected = torch.autograd.grad((weights * expected).sum(), used)
    for ours, plainly in zip(of_actual, of_expected, strict=True):
        assert_close(ours, plainly)


@pytest.mark.parametrize("kind", ["softmax_nb", "zinb", "poisson"])
@pytest.mark.parametrize("theta_shape", THETA_SHAPES)
def test_gradients_equal_finite_differences(rng, kind, theta_shape):
    x, mu, theta = nb_arguments(rng, theta_shape, (2,))
    arguments = (mu, theta, zi_arguments(rng, (2, 5, 4)))
    assert torch.autograd.gradcheck(
        lambda *given: call(kind, x.to_sparse_csr(), *given), arguments
    )


@pytest.mark.parametrize("x", DATA[1:])
@pytest.mark.parametrize("kind", ["softmax_nb", "zinb", "poisson"])
def test_no_zeros_only_zeros_and_fractions(rng, kind, x):
    x, mu, theta = nb_arguments(rng, (4,), x=x)
    zi_logits = zi_arguments(rng, (5, 4))
    expected = plain(kind, x, mu, theta, zi_logits).detach()
    assert_close(call(kind, x, mu, theta, zi_logits), expected)
    assert_close(call(kind, x.to_sparse_csr(), mu, theta, zi_logits), expected)


@pytest.mark.parametrize("kind", ["nb", "softmax_nb", "zinb", "poisson"])
def test_zeros_that_a_csr_matrix_stores_count_as_zeros(rng, kind):
    x, mu, theta = nb_arguments(rng, (4,))
    every = torch.ones_like(x).to_sparse_csr()
    stored = csr_tensor(every.crow_indices(), every.col_indices(), x.flatten(), 4)
    weights, zi_logits = tensor(rng.normal(size=5)), zi_arguments(rng, (5, 4))
    values = [call(kind, form, mu, theta, zi_logits) for form in (x, stored)]
    assert_close(values[1], values[0].detach())
    gradients = [torch.autograd.grad((weights * value).sum(), mu)[0] for value in values]
    assert_close(*gradients)


def test_a_cell_without_counts_is_a_row_of_zeros(rng):
    x, mu, theta = nb_arguments(rng, (4,), (3,))
    x[2] = x[4] = 0  # one within, and the last
    expected = plain_log_prob(x, mu, theta)
    for form in (x, x.to_sparse_csr()):
        actual = nb_log_prob(form, mu, theta)
        assert_close(actual, expected.detach())
        gradients = [
            torch.autograd.grad(v.sum(), mu, retain_graph=True)[0] for v in (actual, expected)
        ]
        assert_close(*gradients)


@pytest.mark.parametrize("theta_shape", THETA_SHAPES)
def test_logits_get_the_gradient_that_their_means_would_pass_on(rng, theta_shape):
    x, logits, theta = nb_arguments(rng, theta_shape, (3,))
    size = tensor(rng.uniform(1, 1e4, size=(5, 1)))
    weights = tensor(rng.normal(size=(3, 5)))
    fused = softmax_nb_log_prob(x, logits, theta, size)
    apart = nb_log_prob(x, softmax_means(logits, size)[1], theta)
    assert_close(fused, apart.detach())
    gradients = [torch.autograd.grad((weights * v).sum(), [logits, theta]) for v in (fused, apart)]
    for of_fused, of_apart in zip(*gradients, strict=True):
        assert_close(of_fused, of_apart)


def test_means_are_the_cells_counts_shared_out(rng):
    logits, size = tensor(rng.normal(size=(3, 5, 4))), tensor(rng.uniform(1, 100, size=(5, 1)))
    scale, mu = softmax_means(logits, size)
    assert_close(scale.sum(-1), np.ones((3, 5)))
    assert_close(mu, (size * scale + MEAN_FLOOR).numpy())


@pytest.mark.parametrize("as_csr", FORMS)
def test_softmax_nb_in_single_precision_equals_fifty_digits_over_a_grid(as_csr):
    # two genes, so that every mean is the share of one of them in the counts of the cell
    (x, mu, theta), _ = nb_grid(F64)
    keep = ((mu / theta > 1e-6) & (x <= 10_000)).squeeze(-1)
    x, mu, theta = (v[keep].float() for v in (x, mu, theta))
    logits = torch.zeros(len(x), 2)
    pair = torch.cat([x, torch.zeros_like(x)], dim=1)
    pair = pair.to_sparse_csr() if as_csr else pair
    actual = softmax_nb_log_prob(pair, logits, theta.expand(-1, 2).contiguous(), 2 * mu)
    x, mu, theta = x.double(), mu.double() + MEAN_FLOOR, theta.double()
    expected = exact_nb(x, mu, theta) + exact_nb(torch.zeros_like(x), mu, theta)
    # Counts of a hundred and more have terms of opposite sign, each of them rounded
    largest = (x * torch.log1p(theta / mu)).abs().squeeze(-1).numpy()
    rounding = np.where(x.squeeze(-1).numpy() >= 100, 2e-7 * largest, 0)
    error = np.abs(actual.double().numpy() - expected)
    assert np.all(error <= 1e-5 * np.abs(expected) + rounding)


@pytest.mark.parametrize("as_csr", FORMS)
@pytest.mark.parametrize("zi_logit", [-60.0, -10.0, 0.0, 10.0, 60.0])
def test_zinb_in_single_precision_equals_fifty_digits_over_a_grid(zi_logit, as_csr):
    (x, mu, theta), log_nb = nb_grid(torch.float32)
    pi = torch.full_like(mu, zi_logit)
    actual = zinb_log_prob(x.to_sparse_csr() if as_csr else x, mu, theta, pi)
    keep = -np.logaddexp(0, zi_logit)  # log σ(−π)
    zero = np.logaddexp(keep + zi_logit, keep + log_nb)
    expected = np.where(x.squeeze(-1) == 0, zero, keep + log_nb)
    x, mu, theta = (v.double().squeeze(-1) for v in (x, mu, theta))
    parts = [x * torch.log1p(theta / mu), torch.lgamma(x + 1), theta * torch.log1p(mu / theta)]
    largest = torch.stack(parts).abs().amax(0).numpy() + abs(zi_logit)
    # a sum of two shares that is nearly 1 has a logarithm as precise as the 1 is
    rounding = np.where(x.numpy() > 0, 2e-7 * largest, 1e-6)
    error = np.abs(actual.double().numpy() - expected)
    assert np.all(error <= 1e-5 * np.abs(expected) + rounding)


@pytest.mark.parametrize("zi_logit", [-1e4, -100.0, 100.0, 1e4])
def test_extreme_zero_inflation_has_finite_values_and_gradients(zi_logit):
    x = torch.tensor([[0.0, 3.0, 0.0, 1e6]])
    mu = torch.tensor([[1e-8, 1e6, 1e6, 1e-8]], requires_grad=True)
    theta = torch.tensor([1e-4, 1e6, 1e6, 1e-4], requires_grad=True)
    pi = torch.full((1, 4), zi_logit, requires_grad=True)
    value = zinb_log_prob(x, mu, theta, pi)
    assert torch.isfinite(value).all()
    for gradient in torch.autograd.grad(value.sum(), [mu, theta, pi]):
        assert torch.isfinite(gradient).all()


def test_poisson_in_single_precision_equals_scipy_over_a_grid():
    (x, mu, _), _ = nb_grid(torch.float32)
    expected = stats.poisson(mu.double().numpy()).logpmf(x.double().numpy())[:, 0]
    largest = torch.maximum(x * mu.log().abs(), torch.lgamma(x + 1)).squeeze(-1).numpy()
    for form in (x, x.to_sparse_csr()):
        error = np.abs(poisson_log_prob(form, mu).double().numpy() - expected)
        assert np.all(error <= 1e-5 * np.abs(expected) + 2e-7 * largest)


def test_gradients_of_single_and_double_precision_agree_for_large_counts(rng):
    x = tensor([[1e6, 1e5, 1e4, 0], [0, 300, 9, 8]])
    logits, theta = tensor(rng.normal(size=(2, 4))), tensor([1e-4, 1.0, 1e4, 1e6])
    size = x.sum(1, keepdim=True)
    gradients = []
    for dtype in (torch.float32, F64):
        leaves = [logits.to(dtype).requires_grad_(), theta.to(dtype).requires_grad_()]
        value = softmax_nb_log_prob(x.to(dtype), *leaves, size.to(dtype)).sum()
        gradients.append(torch.autograd.grad(value, leaves))
    for single, double in zip(*gradients, strict=True):
        scale = double.abs().amax().item()
        assert_close(single.double(), double.numpy(), rtol=1e-4, atol=1e-6 * scale)
