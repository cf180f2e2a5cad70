r"""Terms of the bound, as pure functions of distributions and tensors.

Nothing here knows of networks, minibatches or scvi-tools. Axes keep one order throughout:
S samples, n cells, G genes, K components, L latent dimensions. All values are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
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
        ``None`` takes the closed form.

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
    return _NormalKL.apply(q.loc, q.scale, p.loc, p.scale)


class _NormalKL(torch.autograd.Function):
    r"""Σ ½ (r² + t² − 1) − log r with r = σ_q/σ_p and t = (μ_q − μ_p)/σ_p, and its gradient.

    The divergences of a minibatch are small tensors. Autograd would take some twenty steps forward
    and backward, several times as long as their arithmetic.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, loc_q: Tensor, scale_q: Tensor, loc_p: Tensor, scale_p: Tensor
    ) -> Tensor:
        inverse = scale_p.reciprocal()
        r, t = scale_q * inverse, (loc_q - loc_p) * inverse
        ctx.save_for_backward(r, t, inverse)
        ctx.shapes = [value.shape for value in (loc_q, scale_q, loc_p, scale_p)]
        value = torch.addcmul(r.square(), t, t).sub_(1).mul_(0.5).sub_(r.log())
        return value.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        r, t, inverse = ctx.saved_tensors
        grad = grad.unsqueeze(-1) * inverse
        grads: list[Tensor | None] = [None] * 4
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            shift_grad = grad * t
            grads[0], grads[2] = shift_grad, -shift_grad
        if ctx.needs_input_grad[1]:
            grads[1] = grad * (r - r.reciprocal())
        if ctx.needs_input_grad[3]:
            grads[3] = grad * (1 - torch.addcmul(r.square(), t, t))
        return tuple(
            value.sum_to_size(shape) if needed else None
            for value, shape, needed in zip(grads, ctx.shapes, ctx.needs_input_grad, strict=True)
        )


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
        Samples of q(z|x), ``(..., n, L)``, to estimate the divergences at; ``None`` takes their
        closed form.

    Returns
    -------
    Tensor ``(n,)``, or ``(..., n)`` with samples, in nats.

    References
    ----------
    Dilokthanakul et al. 2016, "Deep unsupervised clustering with Gaussian mixture variational
    autoencoders", conditional prior term of eq. 3.

    Examples
    --------
    >>> q_z = Normal(torch.zeros(1, 2), torch.ones(1, 2))
    >>> means = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])  # (n, K, L)
    >>> mixture_kl(q_z, Normal(means, torch.ones(1, 2, 2)), torch.tensor([[0.5, 0.5]]))
    tensor([1.])
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

    Examples
    --------
    >>> p_z = Normal(torch.zeros(2, 1), torch.ones(2, 1))  # twice the same component
    >>> mixture_log_prob(torch.zeros(1), p_z, torch.tensor([0.5, 0.5]).log())
    tensor(-0.9189)
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
    r"""E[log d_k] under Dir(a), which is ψ(a_k) − ψ(Σa), of shape ``(..., K)``.

    Examples
    --------
    >>> expected_log_dirichlet(torch.ones(2))
    tensor([-1.0000, -1.0000])
    """
    return torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True))


def dirichlet_kl(concentration_q: Tensor, concentration_p: Tensor) -> Tensor:
    """KL(Dir(a) ‖ Dir(b)), ``(..., K) -> (...)``, in nats.

    Examples
    --------
    >>> dirichlet_kl(torch.ones(2), torch.ones(2))
    tensor(0.)
    """
    q, p = _precise(concentration_q), _precise(concentration_p).expand_as(concentration_q)
    divergence = kl_divergence(
        Dirichlet(q, validate_args=False), Dirichlet(p, validate_args=False)
    )
    return divergence.to(concentration_q.dtype)


def negative_entropy(q_y: Tensor) -> Tensor:
    """Σ_k q_k log q_k, ``(..., K) -> (...)``, in nats.

    Probabilities underflow to 0 in a confident classifier. There the slope log q + 1 is infinite,
    and the softmax behind it would turn 0 · ∞ into NaN, so log q stops at the smallest number.

    Examples
    --------
    >>> negative_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([-0.6931,  0.0000])
    """
    return (q_y * _log(q_y)).sum(-1)


def _log(q_y: Tensor) -> Tensor:
    """Log of probabilities, of which some may be 0."""
    return torch.log(q_y.clamp(min=torch.finfo(q_y.dtype).tiny))


def categorical_kl(q_y: Tensor, log_weights: Tensor) -> Tensor:
    """KL(q(y) ‖ Cat(π)), ``(..., K) -> (...)``, in nats.

    Examples
    --------
    >>> categorical_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]).log())
    tensor(0.6931)
    """
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

    Examples
    --------
    >>> categorical_dirichlet_kl(torch.tensor([1.0, 0.0]), torch.ones(2))
    tensor(1.0000)
    """
    return categorical_kl(q_y, expected_log_dirichlet(concentration))


def conjugate_dirichlet_bound(q_y: Tensor, alpha: Tensor) -> Tensor:
    r"""Smallest sum of the terms of y and d over all q(d).

    The Dirichlet is conjugate to the categorical, so the best q(d) is Dir(α + q(y)), and at it

    .. math::
        \mathbb{E}_{q(d)}[\mathrm{KL}(q(y) \| \mathrm{Cat}(d))]
        + \mathrm{KL}(q(d) \| \mathrm{Dir}(\alpha))
        = -H(q(y)) - \log B(\alpha + q(y)) + \log B(\alpha)

    Parameters
    ----------
    q_y
        Component probabilities, ``(..., K)``.
    alpha
        Prior concentration, ``(K,)``.

    Returns
    -------
    Tensor ``(...)``, in nats.

    Examples
    --------
    >>> conjugate_dirichlet_bound(torch.tensor([1.0, 0.0]), torch.ones(2))  # −log 1/2
    tensor(0.6931)
    """
    return _ConjugateDirichletBound.apply(q_y, alpha)


class _ConjugateDirichletBound(torch.autograd.Function):
    """The bound and its gradient, which is mostly E[log d] of both Dirichlets.

    With a large α both log B, and both E[log d], are far larger than what they differ by, so they
    are subtracted in double precision.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q_y: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(q_y, alpha)
        prior = _precise(alpha)
        difference = log_beta(prior) - log_beta(prior + _precise(q_y))
        return negative_entropy(q_y) + difference.to(torch.result_type(q_y, alpha))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        q_y, alpha = ctx.saved_tensors
        prior, grad = _precise(alpha), _precise(grad.unsqueeze(-1))
        expected = expected_log_dirichlet(prior + _precise(q_y))
        grad_q, grad_alpha = None, None
        if ctx.needs_input_grad[0]:
            grad_q = (grad * (_log(q_y) + 1 - expected)).to(q_y.dtype)
        if ctx.needs_input_grad[1]:
            change = expected_log_dirichlet(prior) - expected
            grad_alpha = (grad * change).sum_to_size(alpha.shape).to(alpha.dtype)
        return grad_q, grad_alpha


def _precise(values: Tensor) -> Tensor:
    """The values in double precision, or as they are on Apple's GPUs, which have none."""
    return values if values.device.type == "mps" else values.double()
