r"""Log likelihoods of counts, exact and fast where most counts are 0.

With :math:`L = \log(1 + \mu/\theta)` the negative binomial is

.. math::
    \log p(x) = -\theta L
    + \Big[\sum_{i<x} \log\big(1 + \tfrac{i}{\theta}\big) - \log x! + x\,(\log\mu - L)\Big],

where the bracket is 0 at x = 0, so that it is evaluated at the other counts alone. In this form,
in place of the one with log Γ, no large numbers cancel as θ grows. Sums over i are read from a
table, which has a row for each small count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import softplus

from scgmvae.nn.sparse import NonZero, sums_by_row

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MEAN_FLOOR",
    "nb_log_prob",
    "poisson_log_prob",
    "softmax_means",
    "softmax_nb_log_prob",
    "zinb_log_prob",
]

MEAN_FLOOR = 1e-8
"""Added to every mean count: a softmax output underflows to 0, where log μ has no value."""

TABLE_SIZE = 8
"""Largest count whose terms are read from a table; few counts are larger."""


def nb_log_prob(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Negative-binomial log likelihood, summed over genes.

    Parameters
    ----------
    x
        Counts, ``(n, G)``, dense or CSR.
    mu
        Means, in counts, ``(..., n, G)``, positive.
    theta
        Inverse dispersion, ``(G,)`` or ``(n, G)``, positive; the variance is μ + μ²/θ.

    Returns
    -------
    Tensor ``(..., n)``, in nats.

    Examples
    --------
    >>> x, mu, theta = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(2)
    >>> nb_log_prob(x, mu, theta)  # geometric distributions with means 1 and 2
    tensor([-3.0082])
    """
    return _nb_log_prob(x, mu, theta, None)


def softmax_nb_log_prob(x: Tensor, logits: Tensor, theta: Tensor, size: Tensor) -> Tensor:
    """:func:`nb_log_prob` at the means :func:`softmax_means` of ``logits`` and ``size``.

    The gradient of the logits is computed in the same passes, without a gradient of the means.

    Parameters
    ----------
    x, theta
        As in :func:`nb_log_prob`.
    logits, size
        As in :func:`softmax_means`; ``size`` gets no gradient.

    Returns
    -------
    Tensor ``(..., n)``, in nats.
    """
    return _nb_log_prob(x, logits, theta, size)


def softmax_means(logits: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the genes in a cell's counts, which sum to 1, and mean counts.

    Parameters
    ----------
    logits
        Log shares up to a constant, ``(..., n, G)``.
    size
        Counts of a cell, ``(n, 1)``.

    Returns
    -------
    Two tensors ``(..., n, G)``.
    """
    scale = torch.softmax(logits, dim=-1)
    return scale, torch.mul(scale, size).add_(MEAN_FLOOR)


def _nb_log_prob(x: Tensor, means: Tensor, theta: Tensor, size: Tensor | None) -> Tensor:
    """Log likelihood at means or, if there is a size, at logits of the means, (..., n, G)."""
    at = NonZero.of(x)
    if means.dim() == 2:
        return _NegativeBinomialLogProb.apply(*at, means, theta, size)
    # one sample after the other: what a CPU's cache does not hold takes twice the time
    samples = means.reshape(-1, *means.shape[-2:])
    thetas, sizes = _of_samples(theta, len(samples)), _of_samples(size, len(samples))
    values = [
        _NegativeBinomialLogProb.apply(*at, *parameters)
        for parameters in zip(samples, thetas, sizes, strict=True)
    ]
    return torch.stack(values).view(means.shape[:-1])


def _of_samples(values: Tensor | None, n_samples: int) -> Sequence[Tensor | None]:
    """A parameter of each sample: one for all, or one for each, ``(..., n, any)``."""
    if values is None or values.dim() < 3:
        return [values] * n_samples
    return list(values.reshape(-1, *values.shape[-2:]))


class _NegativeBinomialLogProb(torch.autograd.Function):
    """Forward and backward pass of the negative binomial, at means or at logits of the means.

    Every pass over all cells and genes costs as much as a product of matrices, so none is made
    twice: the means and log(1 + μ/θ), the most expensive ones, are kept for the gradient.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        cell: Tensor,
        gene: Tensor,
        flat: Tensor,
        offsets: Tensor,
        means: Tensor,
        theta: Tensor,
        size: Tensor | None,
    ) -> Tensor:
        scale, mu = None, means.contiguous()  # (n, G)
        if size is not None:
            scale, mu = softmax_means(mu, size)
        log_ratio = torch.div(mu, theta).log1p_()  # L
        if theta.dim() == 1:
            value = -(log_ratio @ theta)
        else:
            value = -(log_ratio * theta).sum(-1)
        terms = _RisingFactorial.of(x, theta, gene, flat)
        mu_nz = _at(mu, flat)
        bracket = mu_nz.log().sub_(_at(log_ratio, flat)).mul_(terms.small).add_(terms.value())
        value += sums_by_row(bracket, offsets)
        if len(terms.large):
            value.index_add_(0, cell[terms.large], terms.large_values(mu_nz))
        ctx.save_for_backward(cell, flat, scale, mu, log_ratio, mu_nz, theta, size, *terms)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        cell, flat, scale, mu, log_ratio, mu_nz, theta, size, *terms = ctx.saved_tensors
        terms = _RisingFactorial(*terms)
        wants_means, wants_theta = ctx.needs_input_grad[5:7]
        grad_means, grad_theta = None, None
        grad_nz = grad.index_select(0, cell)  # (nnz,)
        total = mu + theta
        if wants_theta:
            # μ/(θ+μ) keeps its digits where θ is large; 1 − θ/(θ+μ) does not
            share = mu / total
            if theta.dim() == 1:
                grad_theta = grad @ share - grad @ log_ratio
            else:
                grad_theta = (share - log_ratio) * grad.unsqueeze(-1)
            nz_grad = _at(share, flat).mul_(terms.small).add_(terms.slope()).mul_(grad_nz)
            by_column = torch.zeros_like(terms.theta).index_add_(0, terms.column, nz_grad)
            by_column.div_(terms.theta)
            if len(terms.large):
                large_grad = grad_nz[terms.large] * terms.large_slopes(mu_nz)
                by_column.index_add_(0, terms.column[terms.large], large_grad)
            if theta.dim() == 1:
                grad_theta += by_column
            else:
                grad_theta.view(-1).index_add_(0, flat, by_column)
        if wants_means:
            grad_means = torch.div(
                theta, total, out=total
            )  # θ/(θ+μ), minus the slope at a count of 0
            nz_grad = _at(grad_means, flat).mul_(terms.x).div_(mu_nz)
            grad_means.view(-1).index_add_(0, flat, nz_grad, alpha=-1)
            factor = -grad.unsqueeze(-1)
            if size is None:
                grad_means.mul_(factor)
            else:  # through the softmax
                grad_means.mul_(scale).mul_(factor * size)
                grad_means.addcmul_(scale, grad_means.sum(-1, keepdim=True), value=-1)
        return None, None, None, None, None, grad_means, grad_theta, None


def _at(values: Tensor, flat: Tensor) -> Tensor:
    """Values (n, G) at places in the flattened matrix, (nnz,)."""
    return values.reshape(-1).index_select(0, flat)


class _RisingFactorial(NamedTuple):
    r"""log Γ(x+θ)/Γ(θ) − x log θ − log x! of the non-zero counts, and its gradient.

    For whole numbers it is Σ_{i<x} log(1 + i/θ) − log x!, which small counts read from a table.
    For the few others log Γ is computed in double precision, as its values are large and nearly
    cancel.
    """

    x: Tensor
    """Counts, (nnz,)."""
    small: Tensor
    """Counts, (nnz,), 0 in place of the large ones."""
    theta: Tensor
    """Inverse dispersions of the columns of the table, (G,) or (nnz,)."""
    column: Tensor
    """Column of the table that each count reads, (nnz,)."""
    place: Tensor
    """Place in the flattened table that each count reads, (nnz,)."""
    large: Tensor
    """Numbers of the counts that have no row in the table."""

    @classmethod
    def of(cls, x: Tensor, theta: Tensor, gene: Tensor, flat: Tensor) -> _RisingFactorial:
        """Terms of the non-zero counts x, with inverse dispersions (G,) or (n, G)."""
        if theta.dim() == 1:
            column = gene
        else:
            theta, column = theta.flatten()[flat], torch.arange(len(x), device=x.device)
        count = x.clamp(1, TABLE_SIZE).to(column.dtype)
        large = (x != count).nonzero().squeeze(-1)  # not whole, or beyond the last row
        place = torch.add(column, count - 1, alpha=len(theta))
        return cls(x, x.index_fill(0, large, 0), theta, column, place, large)

    def _read(self, table: Tensor) -> Tensor:
        """Values of a table (TABLE_SIZE, any), (nnz,), 0 in place of the large ones."""
        return table.flatten().index_select(0, self.place).index_fill_(0, self.large, 0)

    @property
    def _i(self) -> Tensor:
        """0 to TABLE_SIZE − 1, a column."""
        i = torch.arange(TABLE_SIZE, dtype=self.theta.dtype, device=self.theta.device)
        return i.unsqueeze(-1)

    def value(self) -> Tensor:
        """Values, (nnz,), 0 in place of the large ones."""
        i = self._i
        return self._read((i / self.theta).log1p_().cumsum(0).sub_(torch.lgamma(i + 2)))

    def slope(self) -> Tensor:
        """Derivatives of the values in log θ, (nnz,), 0 in place of the large ones."""
        i = self._i
        return self._read((i / (self.theta + i)).cumsum(0).neg_())

    def large_values(self, mu_nz: Tensor) -> Tensor:
        """The whole bracket of the log likelihood of large counts at means (nnz,)."""
        x, theta, mu = (v.double() for v in (*self._large(), mu_nz[self.large]))
        data_terms = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        return (data_terms + x * torch.log(mu / (theta + mu))).to(mu_nz.dtype)

    def large_slopes(self, mu_nz: Tensor) -> Tensor:
        """Derivatives in θ of what :meth:`large_values` gives, (n_large,)."""
        x, theta, mu = (v.double() for v in (*self._large(), mu_nz[self.large]))
        data_terms = torch.digamma(x + theta) - torch.digamma(theta)
        return (data_terms - x / (theta + mu)).to(mu_nz.dtype)

    def _large(self) -> tuple[Tensor, Tensor]:
        """Large counts and their inverse dispersions."""
        return self.x[self.large], self.theta[self.column[self.large]]


def zinb_log_prob(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor) -> Tensor:
    r"""Zero-inflated negative-binomial log likelihood, summed over genes.

    .. math::
        p(0) = \sigma(\pi) + \sigma(-\pi)\, \mathrm{NB}(0), \quad
        p(x) = \sigma(-\pi)\, \mathrm{NB}(x) \text{ for } x > 0

    Parameters
    ----------
    x, mu, theta
        As in :func:`nb_log_prob`.
    zi_logits
        π, log odds of a zero that the negative binomial does not make, ``(..., n, G)``.

    Returns
    -------
    Tensor ``(..., n)``, in nats.
    """
    at = NonZero.of(x)
    no_inflation = -softplus(zi_logits)
    nb_zero = no_inflation - theta * torch.log1p(mu / theta)
    zero = torch.logaddexp(no_inflation + zi_logits, nb_zero)  # (..., n, G)
    theta_nz = theta[at.gene] if theta.dim() == 1 else _at_nonzero(theta.expand_as(mu), at)
    counts, theta_nz, mu_nz = at.values.double(), theta_nz.double(), _at_nonzero(mu, at).double()
    bracket = (
        torch.lgamma(counts + theta_nz)
        - torch.lgamma(theta_nz)
        - torch.lgamma(counts + 1)
        + counts * torch.log(mu_nz / (theta_nz + mu_nz))
    )
    other = _at_nonzero(nb_zero, at) + bracket.to(mu.dtype) - _at_nonzero(zero, at)
    other = torch.where(at.values > 0, other, 0)  # a CSR matrix may store zeros as well
    return _add_to_cells(zero.sum(-1), at, other)


def poisson_log_prob(x: Tensor, mu: Tensor) -> Tensor:
    """Poisson log likelihood, summed over genes, for arguments as in :func:`nb_log_prob`."""
    at = NonZero.of(x)
    counts = at.values.double()
    other = counts * torch.log(_at_nonzero(mu, at).double()) - torch.lgamma(counts + 1)
    return _add_to_cells(-mu.sum(-1), at, other.to(mu.dtype))


def _at_nonzero(values: Tensor, at: NonZero) -> Tensor:
    """Values (..., n, G) at the non-zero counts, (S, nnz)."""
    return values.reshape(-1, values.shape[-2] * values.shape[-1]).index_select(1, at.flat)


def _add_to_cells(value: Tensor, at: NonZero, other: Tensor) -> Tensor:
    """Values of the cells, (..., n), with those of their non-zero counts, (S, nnz), added."""
    return value + sums_by_row(other, at.offsets).view(value.shape)
