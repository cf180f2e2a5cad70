"""Tests of distributions.divergences against scipy, quadrature, Monte Carlo and plain formulas."""

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import Normal, kl_divergence

from scgmvae.distributions import divergences as dist

F64 = torch.float64

# Monte Carlo means lie within this many standard errors: a seeded run either always passes or
# never does, and a wrong formula is off by hundreds.
N_ERRORS = 5


def tensor(values, dtype=F64):
    return torch.as_tensor(np.asarray(values), dtype=dtype)


def normal(rng, *shape):
    return Normal(tensor(rng.normal(size=shape)), tensor(rng.uniform(0.2, 3, size=shape)))


def assert_close(actual, expected, rtol=1e-9, atol=1e-11):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=rtol, atol=atol)


def assert_mean(draws, expected):
    """The mean of the draws is the expected value, to within its Monte Carlo error."""
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - expected) < N_ERRORS * error)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------- Gaussians


@pytest.mark.parametrize(
    ("q", "p"),
    [
        pytest.param((0.0, 1.0), (0.0, 1.0), id="equal"),
        pytest.param((1.3, 1.0), (-0.4, 1.0), id="means_differ"),
        pytest.param((0.0, 0.3), (0.0, 2.5), id="q_narrow"),
        pytest.param((0.5, 2.5), (1.0, 0.3), id="q_wide"),
    ],
)
def test_normal_kl_equals_quadrature(q, p):
    q_density, p_density = stats.norm(*q), stats.norm(*p)
    expected, _ = integrate.quad(
        lambda z: q_density.pdf(z) * (q_density.logpdf(z) - p_density.logpdf(z)),
        q[0] - 12 * q[1],
        q[0] + 12 * q[1],
        epsabs=1e-13,
    )
    actual = dist.normal_kl(
        Normal(tensor([q[0]]), tensor([q[1]])), Normal(tensor([p[0]]), tensor([p[1]]))
    )
    assert_close(actual, expected)


def test_normal_kl_sums_the_last_axis_only(rng):
    q, p = normal(rng, 5, 4, 3), normal(rng, 4, 3)  # p broadcasts
    v_q, v_p = q.scale.numpy() ** 2, p.scale.numpy() ** 2
    terms = np.log(v_p / v_q) + (v_q + (q.loc - p.loc).numpy() ** 2) / v_p - 1
    assert_close(dist.normal_kl(q, p), 0.5 * terms.sum(-1))


def test_normal_kl_of_equals_is_zero_and_of_others_positive(rng):
    q, p = normal(rng, 100, 3), normal(rng, 100, 3)
    assert_close(dist.normal_kl(q, q), np.zeros(100))
    assert dist.normal_kl(q, p).min() > 0


def test_mixture_kl_equals_double_loop(rng):
    n, n_components = 4, 3
    q_z, p_z = normal(rng, n, 2), normal(rng, n, n_components, 2)
    q_y = tensor(rng.dirichlet(np.ones(n_components), size=n))
    expected = np.zeros(n)
    for i in range(n):
        for k in range(n_components):
            q = Normal(q_z.loc[i], q_z.scale[i])
            p = Normal(p_z.loc[i, k], p_z.scale[i, k])
            expected[i] += q_y[i, k] * torch.distributions.kl_divergence(q, p).sum()
    assert_close(dist.mixture_kl(q_z, p_z, q_y), expected)


def test_mixture_kl_with_a_sample_axis_equals_one_sample_at_a_time(rng):
    q_z, p_z = normal(rng, 4, 2), normal(rng, 5, 4, 3, 2)
    q_y = tensor(rng.dirichlet(np.ones(3), size=(5, 4)))
    expected = [
        dist.mixture_kl(q_z, Normal(p_z.loc[s], p_z.scale[s]), q_y[s]).numpy() for s in range(5)
    ]
    assert_close(dist.mixture_kl(q_z, p_z, q_y), np.stack(expected))


@pytest.mark.parametrize(
    ("of_q", "of_p"),
    [
        pytest.param((5, 3), (5, 3), id="same_shape"),
        pytest.param((5, 1, 3), (5, 4, 3), id="components"),
        pytest.param((5, 1, 3), (2, 5, 4, 3), id="samples_and_components"),
        pytest.param((2, 5, 3), (3,), id="one_prior"),
    ],
)
def test_gradients_of_the_normal_kl_equal_those_of_torchs_own(rng, of_q, of_p):
    leaves = [
        value.requires_grad_()
        for density in (normal(rng, *of_q), normal(rng, *of_p))
        for value in (density.loc, density.scale)
    ]
    q, p = Normal(*leaves[:2]), Normal(*leaves[2:])
    actual, expected = dist.normal_kl(q, p), kl_divergence(q, p).sum(-1)
    assert_close(actual, expected.detach())
    weights = tensor(rng.normal(size=expected.shape))
    of_actual = torch.autograd.grad((weights * actual).sum(), leaves)
    of_expected = torch.autograd.grad((weights * expected).sum(), leaves)
    for ours, plain in zip(of_actual, of_expected, strict=True):
        assert_close(ours, plain)


def test_the_normal_kl_gives_gradients_to_those_who_ask_alone(rng):
    q, p = normal(rng, 5, 3), normal(rng, 5, 3)
    q.scale.requires_grad_()
    (gradient,) = torch.autograd.grad(dist.normal_kl(q, p).sum(), q.scale)
    assert_close(gradient, q.scale.detach() / p.scale**2 - 1 / q.scale.detach())


@pytest.mark.parametrize("k", range(3))
def test_mixture_kl_with_one_hot_weights_picks_one_component(rng, k):
    q_z, p_z = normal(rng, 4, 2), normal(rng, 4, 3, 2)
    q_y = torch.eye(3, dtype=F64)[k].expand(4, 3)
    component = Normal(p_z.loc[:, k], p_z.scale[:, k])
    assert_close(dist.mixture_kl(q_z, p_z, q_y), dist.normal_kl(q_z, component).numpy())


def test_mixture_log_prob_equals_scipy(rng):
    z, p_z = tensor(rng.normal(size=(6, 4, 2))), normal(rng, 4, 3, 2)
    weights = rng.dirichlet(np.ones(3))
    expected = np.empty((6, 4))
    for s, i in np.ndindex(6, 4):
        densities = [
            stats.multivariate_normal(p_z.loc[i, k], np.diag(p_z.scale[i, k] ** 2)).pdf(z[s, i])
            for k in range(3)
        ]
        expected[s, i] = np.log(weights @ densities)
    assert_close(dist.mixture_log_prob(z, p_z, tensor(np.log(weights))), expected)


def test_mixture_log_prob_far_from_every_component_stays_finite():
    p_z = Normal(torch.zeros(2, 1, dtype=F64), torch.full((2, 1), 0.1, dtype=F64))
    # every density underflows to 0 there, even in double precision
    value = dist.mixture_log_prob(tensor([100.0]), p_z, tensor(np.log([0.5, 0.5])))
    assert_close(value, stats.norm(0, 0.1).logpdf(100.0))


# ------------------------------------------------------------------------------- Dirichlets

CONCENTRATIONS = [
    pytest.param([1.0, 1.0, 1.0, 1.0], id="flat"),
    pytest.param([0.3, 0.5, 0.2, 0.7], id="sparse"),
    pytest.param([5.0, 0.5, 2.0, 20.0], id="uneven"),
]
OTHER = [0.8, 1.5, 3.0, 0.6]


@pytest.fixture(scope="module", params=CONCENTRATIONS)
def dirichlet(request):
    """A concentration and draws of its Dirichlet, (200000, 4)."""
    a = np.array(request.param)
    d = np.random.default_rng(1).dirichlet(a, size=200_000)
    # draws near a corner underflow to exact zeros, which have no logarithm
    return a, np.clip(d, 1e-300, None)


def beta_expectation(a, b, function):
    """E[function(d, 1 - d)] under Beta(a, b), by quadrature in the log odds of d."""

    def integrand(logit):
        log_d, log_rest = special.log_expit(logit), special.log_expit(-logit)
        density = np.exp(a * log_d + b * log_rest - special.betaln(a, b))
        return density * function(log_d, log_rest)

    return integrate.quad(integrand, -400, 400, limit=2000, points=[0], epsabs=1e-12)[0]


BETAS = [
    pytest.param(1.0, 1.0, id="flat"),
    pytest.param(0.3, 0.6, id="sparse"),
    pytest.param(4.0, 11.0, id="peaked"),
]


def test_log_beta_equals_products_of_beta_functions(rng):
    a = rng.gamma(1.0, size=(5, 4))
    # B(a, b, c, d) = B(a, b) B(a+b, c) B(a+b+c, d)
    partial = a.cumsum(-1)
    expected = special.betaln(partial[:, :-1], a[:, 1:]).sum(-1)
    assert_close(dist.log_beta(tensor(a)), expected)


@pytest.mark.parametrize(("a", "b"), BETAS)
def test_expected_log_dirichlet_equals_quadrature(a, b):
    expected = [
        beta_expectation(a, b, lambda log_d, _: log_d),
        beta_expectation(a, b, lambda _, log_rest: log_rest),
    ]
    assert_close(dist.expected_log_dirichlet(tensor([a, b])), expected, rtol=1e-7)


def test_expected_log_dirichlet_equals_mean_of_draws(dirichlet):
    a, d = dirichlet
    assert_mean(np.log(d), dist.expected_log_dirichlet(tensor(a)).numpy())


@pytest.mark.parametrize(("a", "b"), BETAS)
def test_dirichlet_kl_equals_quadrature(a, b):
    other = np.array([0.8, 2.0])
    log_ratio = special.betaln(*other) - special.betaln(a, b)

    def integrand(log_d, log_rest):
        return log_ratio + (a - other[0]) * log_d + (b - other[1]) * log_rest

    expected = beta_expectation(a, b, integrand)
    actual = dist.dirichlet_kl(tensor([a, b]), tensor(other))
    assert_close(actual, expected, rtol=1e-7, atol=1e-9)


def test_dirichlet_kl_equals_mean_of_draws(dirichlet):
    a, d = dirichlet
    # scipy refuses draws that touch the border, so the densities are written out
    log_q = ((a - 1) * np.log(d)).sum(-1) - special.gammaln(a).sum() + special.gammaln(a.sum())
    b = np.array(OTHER)
    log_p = ((b - 1) * np.log(d)).sum(-1) - special.gammaln(b).sum() + special.gammaln(b.sum())
    assert_mean(log_q - log_p, dist.dirichlet_kl(tensor(a), tensor(b)).item())


def test_dirichlet_kl_of_equals_is_zero_and_of_others_positive(rng):
    a, b = tensor(rng.gamma(1.0, size=(100, 4))), tensor(rng.gamma(1.0, size=4))
    assert_close(dist.dirichlet_kl(a, a), np.zeros(100), atol=1e-8)
    assert dist.dirichlet_kl(a, b).min() > 0


def test_categorical_dirichlet_kl_equals_mean_of_draws(dirichlet, rng):
    a, d = dirichlet
    q_y = rng.dirichlet(np.ones(4))
    draws = (q_y * (np.log(q_y) - np.log(d))).sum(-1)
    assert draws.min() > -1e-12  # each is a KL divergence
    assert_mean(draws, dist.categorical_dirichlet_kl(tensor(q_y), tensor(a)).item())


def test_categorical_dirichlet_kl_of_one_hot_is_minus_expected_log(rng):
    a = tensor(rng.gamma(1.0, size=3))
    expected = special.digamma(a.sum().item()) - special.digamma(a.numpy())
    assert_close(dist.categorical_dirichlet_kl(torch.eye(3, dtype=F64), a), expected)


def test_categorical_dirichlet_kl_vanishes_where_d_is_certain_to_be_q_y(rng):
    q_y = tensor(rng.dirichlet(np.ones(4), size=3))
    # the variance of d falls as 1 / total concentration, and with it E[KL(q_y || d)]
    assert_close(dist.categorical_dirichlet_kl(q_y, 1e8 * q_y), np.zeros(3), atol=1e-6)


def y_and_d_terms(q_y, concentration, alpha):
    return dist.categorical_dirichlet_kl(q_y, concentration) + dist.dirichlet_kl(
        concentration, alpha
    )


@pytest.fixture
def y_and_alpha(rng):
    """200 random q(y) and a prior concentration, over four components."""
    return tensor(rng.dirichlet(np.ones(4), size=200)), tensor([0.4, 1.0, 2.5, 0.1])


def test_conjugate_bound_is_the_sum_of_its_terms_at_the_optimum(y_and_alpha):
    q_y, alpha = y_and_alpha
    expected = y_and_d_terms(q_y, alpha + q_y, alpha).numpy()
    assert_close(dist.conjugate_dirichlet_bound(q_y, alpha), expected)


def test_conjugate_bound_equals_its_formula_in_scipy(y_and_alpha):
    q_y, alpha = (value.numpy() for value in y_and_alpha)

    def log_beta(a):
        return special.gammaln(a).sum(-1) - special.gammaln(a.sum(-1))

    expected = -stats.entropy(q_y, axis=-1) - log_beta(alpha + q_y) + log_beta(alpha)
    assert_close(dist.conjugate_dirichlet_bound(*y_and_alpha), expected)


def test_gradients_of_the_conjugate_bound_equal_those_of_its_terms(y_and_alpha, rng):
    q_y, alpha = (value.clone().requires_grad_() for value in y_and_alpha)
    plain = dist.categorical_dirichlet_kl(q_y, alpha + q_y)
    plain = plain + dist.dirichlet_kl(alpha + q_y, alpha)
    weights = tensor(rng.normal(size=plain.shape))
    bound = dist.conjugate_dirichlet_bound(q_y, alpha)
    of_bound = torch.autograd.grad((weights * bound).sum(), [q_y, alpha])
    of_terms = torch.autograd.grad((weights * plain).sum(), [q_y, alpha])
    for ours, expected in zip(of_bound, of_terms, strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("spread", [1e-2, 0.3, 3.0], ids=["near", "around", "anywhere"])
def test_no_other_posterior_of_d_beats_the_conjugate_bound(y_and_alpha, rng, spread):
    q_y, alpha = y_and_alpha
    factor = tensor(np.exp(spread * rng.normal(size=q_y.shape)))
    at_optimum = dist.conjugate_dirichlet_bound(q_y, alpha)
    assert (y_and_d_terms(q_y, factor * (alpha + q_y), alpha) - at_optimum).min() > 0


def test_conjugate_bound_of_a_certain_component_is_minus_its_log_prior_weight():
    # with q(y) one-hot the bound is tight: p(y) = E[d_y] = α_y / Σα
    alpha = tensor([0.4, 1.0, 2.5, 0.1])
    expected = -np.log((alpha / alpha.sum()).numpy())
    assert_close(dist.conjugate_dirichlet_bound(torch.eye(4, dtype=F64), alpha), expected)


def exact_conjugate_bound(q_y, alpha):
    """The bound from ratios Γ(a + q) / Γ(a), which scipy has without a difference of logs."""
    total = special.poch(alpha.sum(), q_y.sum(-1))
    return -stats.entropy(q_y, axis=-1) + np.log(total) - np.log(special.poch(alpha, q_y)).sum(-1)


def exact_digamma_change(a, step):
    """ψ(a + step) − ψ(a), by quadrature of the derivative of ψ."""
    return integrate.quad(lambda t: special.polygamma(1, a + t), 0, step, epsabs=0)[0]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("concentration", 10.0 ** np.arange(-2, 9))
def test_the_conjugate_bound_keeps_its_digits_at_any_concentration(rng, dtype, concentration):
    q_y = torch.as_tensor(rng.dirichlet(np.ones(10), size=4), dtype=dtype).requires_grad_()
    shares = rng.uniform(0.5, 1.5, size=10)
    alpha = torch.as_tensor(concentration * shares, dtype=dtype).requires_grad_()
    q, a = (value.detach().double().numpy() for value in (q_y, alpha))
    weights = np.array([1.0, -2.0, 0.5, 3.0])

    bound = dist.conjugate_dirichlet_bound(q_y, alpha)
    assert bound.dtype == dtype
    # doubles hold 16 digits, and log B has ten before the point at a concentration of 1e8
    assert_close(bound, exact_conjugate_bound(q, a), rtol=2e-5)

    of_q, of_alpha = torch.autograd.grad(
        bound @ torch.as_tensor(weights, dtype=dtype), [q_y, alpha]
    )
    assert of_q.dtype == of_alpha.dtype == dtype
    log_d = special.digamma(a + q) - special.digamma(a.sum() + q.sum(-1, keepdims=True))
    assert_close(of_q, weights[:, None] * (np.log(q) + 1 - log_d), rtol=1e-5, atol=1e-5)
    changes = [
        [
            exact_digamma_change(a.sum(), step.sum()) - exact_digamma_change(*pair)
            for pair in zip(a, step, strict=True)
        ]
        for step in q
    ]
    expected = weights @ np.array(changes)
    assert_close(of_alpha, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("concentration", [1e-2, 1.0, 1e2, 1e4, 1e6])
def test_the_divergence_of_dirichlets_keeps_its_digits(rng, concentration):
    a = torch.as_tensor(concentration * rng.uniform(0.5, 1.5, size=10), dtype=F64)
    b = a + torch.as_tensor(rng.dirichlet(np.ones(10)), dtype=F64)
    # the divergence of Dir(b) from Dir(a) in the limit of small steps is half the Fisher norm
    exact = torch.distributions.kl_divergence(
        torch.distributions.Dirichlet(b), torch.distributions.Dirichlet(a)
    )
    single = dist.dirichlet_kl(b.float(), a.float())
    assert single.dtype == torch.float32
    again = dist.dirichlet_kl(b.float().double(), a.float().double())
    assert_close(single, again, rtol=1e-6, atol=1e-12)
    if concentration <= 1e2:  # above, rounding the concentrations themselves changes it more
        assert_close(single, exact, rtol=1e-2)


def test_devices_without_double_precision_keep_the_one_they_have():
    class OnMPS:
        device = torch.device("mps")

        def double(self):
            raise TypeError("MPS has no float64")

    values = OnMPS()
    assert dist._precise(values) is values
    assert dist._precise(torch.ones(2)).dtype == F64


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("logit", [-50.0, 0.0, 50.0])
def test_terms_and_gradients_stay_finite_at_extremes(dtype, alpha, logit):
    logits = torch.tensor([[logit, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    prior = torch.full((3,), alpha, dtype=dtype, requires_grad=True)
    q_y = logits.softmax(-1)
    values = {
        "expected_log": dist.expected_log_dirichlet(prior).sum(),
        "y": dist.categorical_dirichlet_kl(q_y, prior + q_y),
        "d": dist.dirichlet_kl(prior + q_y, prior),
        "bound": dist.conjugate_dirichlet_bound(q_y, prior),
        "d_of_network": dist.dirichlet_kl(torch.full((1, 3), 1e3, dtype=dtype), prior),
        "log_beta": dist.log_beta(prior),
    }
    assert all(torch.isfinite(value).all() for value in values.values())
    tolerance = 1e-9 if dtype == F64 else 1e-3 * max(1, alpha / 100)
    assert (values["y"] + values["d"] - values["bound"]).abs().item() < tolerance
    assert values["d"].item() > -tolerance
    for gradient in torch.autograd.grad(values["y"] + values["d"], [logits, prior]):
        assert torch.isfinite(gradient).all()
