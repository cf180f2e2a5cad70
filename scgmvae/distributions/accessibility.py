r"""Log likelihood of open chromatin, exact and fast where few peaks are open.

With logits :math:`a` the Bernoulli is

.. math::
    \log p(x) = x\,a - \log(1 + e^a),

whose first term is 0 where a peak is closed, so that it is evaluated at the open ones alone, and
no dense copy of x is made.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import softplus

from scgmvae.nn.sparse import NonZero, sums_by_row

__all__ = ["bernoulli_log_prob"]


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Bernoulli log likelihood, summed over peaks.

    Parameters
    ----------
    x
        Zeros and ones, ``(n, G)``, dense or CSR.
    logits
        Log odds of a one, ``(..., n, G)``.

    Returns
    -------
    Tensor ``(..., n)``, in nats.

    Examples
    --------
    >>> bernoulli_log_prob(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    tensor([-1.3863])
    """
    at = NonZero.of(x)
    # of half precision sums would lose digits
    whole = logits.to(torch.promote_types(logits.dtype, torch.float))
    samples = whole.reshape(-1, *logits.shape[-2:])
    values = [_BernoulliLogProb.apply(*at, sample) for sample in samples]
    return torch.stack(values).view(logits.shape[:-1])


class _BernoulliLogProb(torch.autograd.Function):
    """Forward and backward pass for the logits of one sample, (n, G)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        cell: Tensor,
        gene: Tensor,
        flat: Tensor,
        offsets: Tensor,
        logits: Tensor,
    ) -> Tensor:
        logits = logits.contiguous()
        ctx.save_for_backward(x, cell, flat, logits)
        value = softplus(logits).sum(-1).neg_()
        return value.add_(sums_by_row(logits.view(-1).index_select(0, flat).mul_(x), offsets))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, cell, flat, logits = ctx.saved_tensors
        grad_logits = logits.sigmoid().mul_(-grad.unsqueeze(-1))
        grad_logits.view(-1).index_add_(0, flat, grad.index_select(0, cell).mul_(x))
        return None, None, None, None, None, grad_logits
