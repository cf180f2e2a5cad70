"""Functions that turn raw outputs of networks into scales and concentrations within bounds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributions import Normal

__all__ = [
    "LOG_CONCENTRATION_BOUND",
    "LOG_SCALE_BOUND",
    "bounded",
    "bounded_exp",
    "full",
    "inverse_bounded_exp",
]

LOG_SCALE_BOUND = 5.0
"""Log standard deviations of latents stay within ±5."""

LOG_CONCENTRATION_BOUND = 7.0
"""Log concentrations of q(d|z,c) stay within ±7."""


def bounded(raw: Tensor, bound: float) -> Tensor:
    """``raw`` squeezed smoothly into (−bound, bound); near 0 it is the identity."""
    return bound * torch.tanh(raw / bound)


def bounded_exp(raw: Tensor, bound: float) -> Tensor:
    """``exp`` of ``raw`` squeezed smoothly into (−bound, bound).

    Unbounded log-scales overflow in the first steps of training; a hard clamp would leave them
    without a gradient.

    Examples
    --------
    >>> bounded_exp(torch.tensor([0.0, 1e9]), bound=1.0)
    tensor([1.0000, 2.7183])
    """
    return _BoundedExp.apply(raw, bound)


class _BoundedExp(torch.autograd.Function):
    """Gradient in one step, where autograd takes four that cost more than their arithmetic."""

    @staticmethod
    def forward(ctx: FunctionCtx, raw: Tensor, bound: float) -> Tensor:
        ratio = torch.tanh(raw / bound)
        value = torch.exp(bound * ratio)
        ctx.save_for_backward(ratio, value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        ratio, value = ctx.saved_tensors
        return grad * value * (1 - ratio.square()), None


def inverse_bounded_exp(value: Tensor, bound: float) -> Tensor:
    """The ``raw`` that :func:`bounded_exp` turns into ``value``.

    Values out of its reach get the nearest raw value that still has a gradient.
    """
    ratio = (torch.log(value) / bound).clamp(-0.99, 0.99)
    return bound * torch.atanh(ratio)


def _normal(loc: Tensor, raw_scale: Tensor) -> Normal:
    scale = bounded_exp(full(raw_scale), LOG_SCALE_BOUND)
    return Normal(full(loc), scale, validate_args=False)


def full(output: Tensor) -> Tensor:
    """Output in single precision, also if mixed precision has computed it in half.

    Divergences and likelihoods are sums over many values, and bfloat16 has three digits.
    """
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
