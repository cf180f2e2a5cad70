r"""Log likelihoods of counts, exact and fast where most counts are 0.

With :math:`L = \log(1 + \mu/\theta)` the negative binomial is

.. math::
    \log p(x) = -\theta L
    + \Big[\sum_{i<x} \log\big(1 + \tfrac{i}{\theta}\big) - \log x! + x\,(\log\mu - L)\Big],

where the bracket is 0 at x = 0, so that it is evaluated at the other counts alone. In this form,
in place of the one with log Γ, no large numbers cancel as θ grows. Sums over i are read from a
table, which has a column for each small count.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, starmap
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from scgmvae.sparse import NonZero

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

BLOCK = 2**18
"""Values of x that a CPU takes at a time: a megabyte, which its cache holds."""

TABLE_SIZE = 8
"""Counts up to this one are read from a table; few are larger."""


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
    return _NegativeBinomialLogProb.apply(*NonZero.of(x), mu, theta, None)


def softmax_nb_log_prob(x: Tensor, logits: Tensor, theta: Tensor, size: Tensor) -> Tensor:
    """:func:`nb_log_prob` at the means :func:`softmax_means` of ``logits`` and ``size``.

    The same value takes half of the time where the means themselves are not asked for.

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
    return _NegativeBinomialLogProb.apply(*NonZero.of(x), logits, theta, size)


def softmax_means(logits: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the genes in a cell's counts, which sum to 1, and mean counts.

    Parameters
    ----------
    logits
        Log shares but for a constant, ``(..., n, G)``.
    size
        Counts of a cell, ``(n, 1)``.

    Returns
    -------
    Two tensors ``(..., n, G)``.
    """
    scale = torch.softmax(logits, dim=-1)
    floor = torch.full((), MEAN_FLOOR, dtype=scale.dtype, device=scale.device)
    return scale, torch.addcmul(floor, size, scale)


class _NegativeBinomialLogProb(torch.autograd.Function):
    """Forward and backward of the negative binomial, of means or of what they are the softmax of.

    Memory is slower than arithmetic: a pass over all cells and genes costs more than what it
    computes. So a CPU takes a few cells at a time from input to values, and from the gradients of
    values to those of the input.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        cell: Tensor,
        gene: Tensor,
        flat: Tensor,
        means: Tensor,
        theta: Tensor,
        size: Tensor | None,
    ) -> Tensor:
        n_cells, n_genes = means.shape[-2:]
        ctx.shape = means.shape
        means = means.contiguous().view(-1, n_cells, n_genes)
        scale = means if size is None else torch.empty_like(means)
        value = means.new_empty(means.shape[:-1])
        terms = _RisingFactorial.of(x, theta, gene, flat)
        of_data, small = terms.value(), terms.small
        mu_nz = means.new_empty(len(means), len(x))
        for s in range(len(means)):
            for rows, nonzero, place in _blocks(cell, flat, n_cells, n_genes):
                mu = means[s, rows]
                if size is not None:
                    torch.softmax(mu, -1, out=scale[s, rows])
                    mu = scale[s, rows] * size[rows] + MEAN_FLOOR
                of_genes = theta if theta.dim() == 1 else theta[rows]
                log_ratio = torch.div(mu, of_genes).log1p_()  # L, (block, G)
                if theta.dim() == 1:
                    value[s, rows] = -(log_ratio @ theta)
                else:
                    value[s, rows] = -(log_ratio * of_genes).sum(-1)
                mu_nz[s, nonzero] = at = _at(mu, place)
                at_nonzero = at.log().sub_(_at(log_ratio, place)).mul_(small[nonzero])
                value[s].index_add_(0, cell[nonzero], at_nonzero.add_(of_data[nonzero]))
        if len(terms.large):
            value.index_add_(1, cell[terms.large], terms.of_large(mu_nz))
        ctx.save_for_backward(cell, flat, scale, theta, size, mu_nz, *terms)
        return value.view(ctx.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        cell, flat, scale, theta, size, mu_nz, *terms = ctx.saved_tensors
        terms = _RisingFactorial(*terms)
        x, small = terms.x, terms.small
        n_samples, n_cells, n_genes = scale.shape
        grad = grad.reshape(n_samples, n_cells)
        wants_means, wants_theta = ctx.needs_input_grad[4:6]
        grad_means = torch.empty_like(scale) if wants_means else None
        grad_theta = torch.zeros_like(theta) if wants_theta else None
        of_mean, weight = torch.zeros_like(x), torch.zeros_like(x)  # sums over samples, (nnz,)
        for s in range(n_samples):
            for rows, nonzero, place in _blocks(cell, flat, n_cells, n_genes):
                by_cell = grad[s, rows]
                grad_nz = grad[s].index_select(0, cell[nonzero])
                grad_x = grad_nz * x[nonzero]
                mu = scale[s, rows]
                if size is not None:
                    mu = mu * size[rows] + MEAN_FLOOR
                of_genes = theta if theta.dim() == 1 else theta[rows]
                total = mu + of_genes
                if wants_theta:
                    # μ/(θ+μ) keeps its digits where θ is large; 1 − θ/(θ+μ) does not
                    share = mu / total
                    log_ratio = torch.div(mu, of_genes).log1p_()
                    if theta.dim() == 1:
                        grad_theta += by_cell @ share - by_cell @ log_ratio
                    else:
                        grad_theta[rows] += (share - log_ratio) * by_cell.unsqueeze(-1)
                    weight[nonzero] += grad_nz
                    of_mean[nonzero] += _at(share, place).mul_(grad_nz).mul_(small[nonzero])
                if wants_means:
                    out = grad_means[s, rows]
                    torch.div(of_genes, total, out=out)  # θ/(θ+μ)
                    at_nonzero = _at(out, place).mul_(grad_x).div_(mu_nz[s, nonzero])
                    out.mul_(-by_cell.unsqueeze(-1))
                    out.view(-1).index_add_(0, place, at_nonzero)
                    if size is not None:  # through the softmax
                        out.mul_(scale[s, rows]).mul_(size[rows])
                        out.addcmul_(scale[s, rows], out.sum(-1, keepdim=True), value=-1)
        if wants_theta:
            of_table = terms.grad(weight)
            if len(terms.large):
                at_large = grad[:, cell[terms.large]] * terms.grad_of_large(mu_nz)
                of_table.index_add_(0, terms.row[terms.large], at_large.sum(0))
            if theta.dim() == 1:
                grad_theta += torch.zeros_like(theta).index_add_(0, terms.row, of_mean) / theta
                grad_theta += of_table
            else:
                of_table += of_mean / theta.flatten()[flat]
                grad_theta.view(-1).index_add_(0, flat, of_table)
        if wants_means:
            grad_means = grad_means.view(ctx.shape)
        return None, None, None, None, grad_means, grad_theta, None


def _at(values: Tensor, place: Tensor) -> Tensor:
    """Values of a block at places in it."""
    return values.view(-1).index_select(0, place)


def _blocks(
    cell: Tensor, flat: Tensor, n_cells: int, n_genes: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of cells that a CPU's cache holds.

    Each is its rows, its non-zero counts, and their places in the flattened block.
    """
    if cell.device.type != "cpu":
        yield slice(0, n_cells), slice(0, len(cell)), flat
        return
    n_rows = max(1, BLOCK // n_genes)
    firsts = range(0, n_cells, n_rows)
    bounds = torch.searchsorted(cell, torch.tensor([*firsts, n_cells])).tolist()
    for first, nonzero in zip(firsts, starmap(slice, pairwise(bounds)), strict=True):
        rows = slice(first, min(first + n_rows, n_cells))
        yield rows, nonzero, flat[nonzero] - first * n_genes


class _RisingFactorial(NamedTuple):
    r"""log Γ(x+θ)/Γ(θ) − x log θ − log x! of the non-zero counts, and its gradient.

    That is Σ_{i<x} log(1 + i/θ) − log x! for whole numbers, which small counts read from a table.
    The others, few, have log Γ in double precision: its values are large and nearly cancel.
    """

    x: Tensor
    """Counts, (nnz,)."""
    theta: Tensor
    """Inverse dispersions of the rows of the table, (G,) or (nnz,)."""
    row: Tensor
    """Which row each count reads, (nnz,)."""
    place: Tensor
    """Which place in the flattened table each count reads, (nnz,)."""
    large: Tensor
    """Which counts have no column in the table."""

    @classmethod
    def of(cls, x: Tensor, theta: Tensor, gene: Tensor, flat: Tensor) -> _RisingFactorial:
        if theta.dim() == 1:
            row = gene
        else:
            theta, row = theta.flatten()[flat], torch.arange(len(x), device=x.device)
        column = x.clamp(1, TABLE_SIZE).to(row.dtype)
        large = (x != column).nonzero().squeeze(-1)  # not whole, or beyond the last column
        return cls(x, theta, row, row * TABLE_SIZE + (column - 1), large)

    @property
    def small(self) -> Tensor:
        """Counts, (nnz,), 0 in place of the large ones."""
        return self.x.index_fill(0, self.large, 0)

    def value(self) -> Tensor:
        """Values, (nnz,), 0 in place of the large ones."""
        i = torch.arange(TABLE_SIZE, dtype=self.theta.dtype, device=self.theta.device)
        table = torch.log1p(i / self.theta.unsqueeze(-1)).cumsum(-1) - torch.lgamma(i + 2)
        return table.flatten()[self.place].index_fill_(0, self.large, 0)

    def of_large(self, mu_nz: Tensor) -> Tensor:
        """The whole bracket of the log likelihood of large counts at means (S, nnz)."""
        x, theta, mu = (v.double() for v in (*self._large(), mu_nz[:, self.large]))
        of_data = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        return (of_data + x * torch.log(mu / (theta + mu))).to(mu_nz.dtype)

    def grad(self, weight: Tensor) -> Tensor:
        """Gradient in ``theta`` of the weighted sum of the values."""
        theta = self.theta
        i = torch.arange(TABLE_SIZE, dtype=theta.dtype, device=theta.device)
        slopes = (-i / (theta.unsqueeze(-1) + i)).cumsum(-1)
        small = weight.index_fill(0, self.large, 0)
        weights = torch.zeros_like(slopes).view(-1).index_add_(0, self.place, small)
        grad = (weights.view_as(slopes) * slopes).sum(-1) / theta
        return grad

    def grad_of_large(self, mu_nz: Tensor) -> Tensor:
        """Derivatives in θ of what :meth:`of_large` gives, (S, n_large)."""
        x, theta, mu = (v.double() for v in (*self._large(), mu_nz[:, self.large]))
        of_data = torch.digamma(x + theta) - torch.digamma(theta)
        return (of_data - x / (theta + mu)).to(mu_nz.dtype)

    def _large(self) -> tuple[Tensor, Tensor]:
        """Large counts and their inverse dispersions."""
        return self.x[self.large], self.theta[self.row[self.large]]


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
        π, log odds of a zero that is not of the negative binomial, ``(..., n, G)``.

    Returns
    -------
    Tensor ``(..., n)``, in nats.
    """
    at = NonZero.of(x)
    no_inflation = -softplus(zi_logits)
    nb_zero = no_inflation - theta * torch.log1p(mu / theta)
    zero = torch.logaddexp(no_inflation + zi_logits, nb_zero)  # (..., n, G)
    theta_nz = theta[at.gene] if theta.dim() == 1 else theta.flatten()[at.flat]
    counts, theta_nz, mu_nz = at.values.double(), theta_nz.double(), _of_nonzero(mu, at).double()
    bracket = (
        torch.lgamma(counts + theta_nz)
        - torch.lgamma(theta_nz)
        - torch.lgamma(counts + 1)
        + counts * torch.log(mu_nz / (theta_nz + mu_nz))
    )
    other = _of_nonzero(nb_zero, at) + bracket.to(mu.dtype) - _of_nonzero(zero, at)
    other = torch.where(at.values > 0, other, 0)  # a CSR matrix may store zeros as well
    return _add_to_cells(zero.sum(-1), at, other)


def poisson_log_prob(x: Tensor, mu: Tensor) -> Tensor:
    """Poisson log likelihood, summed over genes, of arguments as in :func:`nb_log_prob`."""
    at = NonZero.of(x)
    counts = at.values.double()
    other = counts * torch.log(_of_nonzero(mu, at).double()) - torch.lgamma(counts + 1)
    return _add_to_cells(-mu.sum(-1), at, other.to(mu.dtype))


def _of_nonzero(values: Tensor, at: NonZero) -> Tensor:
    """Values (..., n, G) at the non-zero counts, (S, nnz)."""
    return values.reshape(-1, values.shape[-2] * values.shape[-1]).index_select(1, at.flat)


def _add_to_cells(value: Tensor, at: NonZero, other: Tensor) -> Tensor:
    """Values of the cells, (..., n), with those of their non-zero counts, (S, nnz), added."""
    flat = value.reshape(-1, value.shape[-1])
    return flat.index_add(1, at.cell, other).view(value.shape)
