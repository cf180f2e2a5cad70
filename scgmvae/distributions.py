r"""Terms of the bound and likelihoods of x, as pure functions of distributions and tensors.

Nothing here knows of networks, minibatches or scvi-tools. Axes keep one order throughout:
S samples, n cells, G genes, K components, L latent dimensions. All values are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Dirichlet, Normal, kl_divergence

__all__ = [
    "categorical_dirichlet_kl",
    "categorical_kl",
    "conjugate_dirichlet_bound",
    "dirichlet_kl",
    "expected_log_dirichlet",
    "log_beta",
    "mixture_kl",
    "mixture_log_prob",
    "nb_log_prob",
    "negative_entropy",
    "normal_kl",
]


def normal_kl(q: Normal, p: Normal, z: Tensor | None = None) -> Tensor:
    """KL divergence of two diagonal Gaussians, summed over the last axis.

    Parameters
    ----------
    q, p
        Gaussians whose parameters broadcast to ``(..., L)``.
    z
        Samples of q, ``(..., L)``: the divergence is estimated at each by log q(z) − log p(z).
        ``None`` has the closed form.

    Returns
    -------
    Tensor of shape ``(...)``, in nats.

    Examples
    --------
    >>> normal_kl(Normal(torch.ones(3), torch.ones(3)), Normal(torch.zeros(3), torch.ones(3)))
    tensor(1.5000)
    """
    if z is not None:
        return (q.log_prob(z) - p.log_prob(z)).sum(-1)
    return kl_divergence(q, p).sum(-1)


def mixture_kl(q_z: Normal, p_z: Normal, q_y: Tensor, z: Tensor | None = None) -> Tensor:
    r"""Expected KL of q(z|x) to the component that the cell belongs to.

    .. math:: \sum_k q(y=k)\, \mathrm{KL}(q(z|x) \,\|\, p(z|w, y=k))

    y is summed out, never sampled, so that the term has no variance from y.

    Parameters
    ----------
    q_z
        Posterior of z, parameters of shape ``(n, L)``.
    p_z
        Component densities, parameters of shape ``(n, K, L)``.
    q_y
        Component probabilities, ``(n, K)``.
    z
        Samples of q(z|x), ``(..., n, L)``, to estimate the divergences at; ``None`` has their
        closed form.

    Returns
    -------
    Tensor ``(n,)``, or ``(..., n)`` with samples, in nats.

    References
    ----------
    Dilokthanakul et al. 2016, "Deep unsupervised clustering with Gaussian mixture variational
    autoencoders", conditional prior term of eq. 3.
    """
    posterior = Normal(q_z.loc.unsqueeze(-2), q_z.scale.unsqueeze(-2), validate_args=False)
    z = None if z is None else z.unsqueeze(-2)
    return (q_y * normal_kl(posterior, p_z, z)).sum(-1)


def mixture_log_prob(z: Tensor, p_z: Normal, log_weights: Tensor) -> Tensor:
    r"""Log density of a mixture of diagonal Gaussians, log Σ_k π_k N(z; μ_k, σ²_k).

    Parameters
    ----------
    z
        Points, ``(..., L)``.
    p_z
        Component densities, parameters of shape ``(..., K, L)``.
    log_weights
        Log mixture weights, ``(K,)``.

    Returns
    -------
    Tensor ``(...)``, in nats.
    """
    per_component = p_z.log_prob(z.unsqueeze(-2)).sum(-1)  # (..., K)
    return torch.logsumexp(log_weights + per_component, dim=-1)


def log_beta(concentration: Tensor) -> Tensor:
    """Log of the multivariate beta function, the normaliser of a Dirichlet, ``(..., K) -> (...)``.

    Examples
    --------
    >>> log_beta(torch.ones(2))  # B(1, 1) = 1
    tensor(0.)
    """
    return torch.lgamma(concentration).sum(-1) - torch.lgamma(concentration.sum(-1))


def expected_log_dirichlet(concentration: Tensor) -> Tensor:
    r"""E[log d_k] under Dir(a), which is ψ(a_k) − ψ(Σa), of shape ``(..., K)``."""
    return torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True))


def dirichlet_kl(concentration_q: Tensor, concentration_p: Tensor) -> Tensor:
    """KL(Dir(a) ‖ Dir(b)), ``(..., K) -> (...)``, in nats."""
    return kl_divergence(
        Dirichlet(concentration_q, validate_args=False),
        Dirichlet(concentration_p.expand_as(concentration_q), validate_args=False),
    )


def negative_entropy(q_y: Tensor) -> Tensor:
    """Σ_k q_k log q_k, ``(..., K) -> (...)``, in nats.

    Probabilities underflow to 0 in a confident classifier. There the slope log q + 1 is infinite,
    and the softmax behind it would turn 0 · ∞ into NaN, so log q stops at the smallest number.
    """
    return (q_y * torch.log(q_y.clamp(min=torch.finfo(q_y.dtype).tiny))).sum(-1)


def categorical_kl(q_y: Tensor, log_weights: Tensor) -> Tensor:
    """KL(q(y) ‖ Cat(π)), ``(..., K) -> (...)``, in nats."""
    return negative_entropy(q_y) - (q_y * log_weights).sum(-1)


def categorical_dirichlet_kl(q_y: Tensor, concentration: Tensor) -> Tensor:
    r"""Expected KL of q(y) to Cat(d) with d ~ Dir(a), in closed form.

    .. math:: \sum_k q_k \,(\log q_k - \psi(a_k) + \psi(\textstyle\sum a))

    With a one-hot ``q_y`` this is −E[log d_y], the term of a labelled cell.

    Parameters
    ----------
    q_y
        Component probabilities, ``(..., K)``.
    concentration
        Concentration a of q(d), ``(..., K)``.

    Returns
    -------
    Tensor ``(...)``, in nats.
    """
    return categorical_kl(q_y, expected_log_dirichlet(concentration))


def conjugate_dirichlet_bound(q_y: Tensor, alpha: Tensor) -> Tensor:
    r"""Smallest value of the y and d terms together over all q(d).

    The Dirichlet is conjugate to the categorical, so the best q(d) is Dir(α + q(y)), and at it

    .. math::
        \mathbb{E}_{q(d)}[\mathrm{KL}(q(y) \| \mathrm{Cat}(d))]
        + \mathrm{KL}(q(d) \| \mathrm{Dir}(\alpha))
        = -H(q(y)) - \log B(\alpha + q(y)) + \log B(\alpha)

    The module adds the two terms up, because each is logged; this closed form is what they are
    tested against.

    Parameters
    ----------
    q_y
        Component probabilities, ``(..., K)``.
    alpha
        Prior concentration, ``(K,)``.

    Returns
    -------
    Tensor ``(...)``, in nats.
    """
    return negative_entropy(q_y) - log_beta(alpha + q_y) + log_beta(alpha)


def nb_log_prob(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    r"""Negative-binomial log likelihood, summed over genes.

    .. math::
        \sum_g \log\Gamma(x+\theta) - \log\Gamma(\theta) - \log\Gamma(x+1)
        + \theta \log\frac{\theta}{\theta+\mu} + x \log\frac{\mu}{\theta+\mu}

    The first three terms and the last vanish where x is 0, which in single-cell counts is nearly
    everywhere, so they are evaluated at the non-zero counts alone. Nothing is approximated.

    Parameters
    ----------
    x
        Counts, ``(n, G)``.
    mu
        Means, in counts, ``(..., n, G)``, positive.
    theta
        Inverse dispersion, ``(G,)`` or ``(n, G)``, positive; the variance is μ + μ²/θ.

    Returns
    -------
    Tensor ``(..., n)``, in nats.

    Notes
    -----
    log Γ(x+θ) − log Γ(θ) cancels in single precision once θ is large: counts up to 4 have the
    product θ(θ+1)…(θ+x−1) instead, and the terms of larger ones are added in double precision.
    θ log(θ/(θ+μ)) is −θ log1p(μ/θ), which keeps its digits where μ is far below θ.

    Examples
    --------
    >>> x, mu, theta = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(2)
    >>> nb_log_prob(x, mu, theta)  # geometric distributions with means 1 and 2
    tensor([-3.0082])
    """
    return _NegativeBinomialLogProb.apply(x, mu, theta)


class _NegativeBinomialLogProb(torch.autograd.Function):
    """Forward and backward of :func:`nb_log_prob`, dense only where they have to be.

    Leading sample axes of μ are kept as one axis S; cells and genes are flattened, because one
    flat index gathers several times faster than a pair.
    """

    @staticmethod
    def forward(ctx, x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
        n_cells, n_genes = x.shape
        mu = mu.contiguous()
        flat = x.flatten().nonzero().squeeze(-1)  # (nnz,)
        cell = flat // n_genes
        x_nz = x.flatten()[flat]
        theta_nz = theta[flat - cell * n_genes] if theta.dim() == 1 else theta.flatten()[flat]
        log1p_ratio = torch.log1p(mu / theta)  # (..., n, G)
        if theta.dim() == 1:
            value = -(log1p_ratio @ theta)
        else:
            value = -(log1p_ratio * theta).sum(-1)
        mu_nz = mu.view(-1, n_cells * n_genes)[:, flat]  # (S, nnz)
        at_nonzero = _nonzero_terms(x_nz, mu_nz, theta_nz)
        value.view(-1, n_cells).index_add_(1, cell, at_nonzero)
        ctx.save_for_backward(mu, theta, log1p_ratio, x_nz, mu_nz, theta_nz, flat, cell)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        mu, theta, log1p_ratio, x_nz, mu_nz, theta_nz, flat, cell = ctx.saved_tensors
        grad = grad.contiguous()
        grad_nz = grad.view(-1, mu.shape[-2])[:, cell]  # (S, nnz)
        total = theta + mu  # (..., n, G)
        grad_mu = grad_theta = None
        if ctx.needs_input_grad[1]:
            grad_mu = theta / total * -grad.unsqueeze(-1)
            at_nonzero = grad_nz * x_nz * theta_nz / (mu_nz * (theta_nz + mu_nz))
            grad_mu.view(mu_nz.shape[0], -1).index_add_(1, flat, at_nonzero)
        if ctx.needs_input_grad[2]:
            # 1 − θ/(θ+μ) in place of μ/(θ+μ) would leave nothing but rounding for large θ
            dense = mu / total - log1p_ratio
            of_data = _log_rising_factorial_grad(theta_nz, x_nz)
            at_nonzero = (grad_nz * (of_data - x_nz / (theta_nz + mu_nz))).sum(0)  # (nnz,)
            if theta.dim() == 1:
                grad_theta = grad.flatten() @ dense.reshape(-1, theta.shape[0])
                grad_theta.index_add_(0, flat - cell * theta.shape[0], at_nonzero)
            else:
                grad_theta = (dense * grad.unsqueeze(-1)).view(-1, *theta.shape).sum(0)
                grad_theta.view(-1).index_add_(0, flat, at_nonzero)
        return None, grad_mu, grad_theta


SMALL_COUNT = 4
"""Counts up to this one have their rising factorial multiplied out; few are larger."""


def _is_large(x: Tensor) -> Tensor:
    """Which values are no small integers, (nnz,)."""
    return (x > SMALL_COUNT) | (x != torch.floor(x))


def _nonzero_terms(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Everything but θ log(θ/(θ+μ)), where x > 0: ``(nnz,)``, ``(S, nnz)``, ``(nnz,)``.

    Γ(x+θ)/Γ(θ) is θ(θ+1)…(θ+x−1) for small counts. The terms of large ones are large numbers that
    nearly cancel, so they are added up in double precision.
    """
    product = theta
    for j in range(1, SMALL_COUNT):
        product = torch.where(x > j, product * (theta + j), product)
    value = torch.log(product) - torch.lgamma(x + 1) + x * torch.log(mu / (theta + mu))
    large = _is_large(x).nonzero().squeeze(-1)
    x64, theta64, mu64 = x[large].double(), theta[large].double(), mu[:, large].double()
    of_data = torch.lgamma(x64 + theta64) - torch.lgamma(theta64) - torch.lgamma(x64 + 1)
    value[:, large] = (of_data + x64 * torch.log(mu64 / (theta64 + mu64))).to(value.dtype)
    return value


def _log_rising_factorial_grad(theta: Tensor, x: Tensor) -> Tensor:
    """ψ(x+θ) − ψ(θ) for x > 0, as a sum of reciprocals for small counts, (nnz,)."""
    value = 1 / theta
    for j in range(1, SMALL_COUNT):
        value = torch.where(x > j, value + 1 / (theta + j), value)
    large = _is_large(x).nonzero().squeeze(-1)
    theta64, x64 = theta[large].double(), x[large].double()
    value[large] = (torch.digamma(x64 + theta64) - torch.digamma(theta64)).to(value.dtype)
    return value
