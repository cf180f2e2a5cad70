r"""Draws of counts from negative binomials, most of which are 0.

A negative binomial is a Poisson distribution whose rate has a gamma distribution. To draw the rate
of every count takes longer than all else that is done with a cell, and for most counts the result
is 0. So it is drawn first which counts are 0, with probability
:math:`p(0) = (1 + \mu/\theta)^{-\theta}`, and the others alone are drawn from what remains.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw_negative_binomial"]

SELDOM_ZERO = 0.05
"""Probability of 0 below which a count is drawn by way of its rate, again if it is 0. Other counts
are small or long-tailed, and sums of their probabilities are searched."""

WIDEST = 256
"""Largest number of counts that are searched at once."""


def draw_negative_binomial(mu: Tensor, theta: Tensor) -> Tensor:
    """Draw counts; the source of chance is torch's random state.

    Parameters
    ----------
    mu
        Means, ``(..., n, G)``, positive.
    theta
        Inverse dispersions that broadcast to them, positive; the variance is μ + μ²/θ.

    Returns
    -------
    Tensor ``(..., n, G)`` of whole numbers, without a gradient.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> draws = draw_negative_binomial(torch.full((10_000,), 0.1), torch.tensor(2.0))
    >>> round(draws.mean().item(), 1), round(draws.var().item(), 1)
    (0.1, 0.1)
    """
    mu, theta = mu.detach(), theta.detach().expand_as(mu)
    if mu.device.type == "cuda":  # which draws all rates at once, but waits for a list of places
        return torch.poisson(_rates(mu, theta))
    return _drawn(mu.cpu(), theta.cpu()).to(mu.device)  # Apple's GPUs draw no such numbers


def _rates(mu: Tensor, theta: Tensor) -> Tensor:
    """Rates of Poisson distributions, of the shape of μ."""
    return torch.distributions.Gamma(theta, theta / mu, validate_args=False).sample()


def _drawn(mu: Tensor, theta: Tensor) -> Tensor:
    """Counts of the shape of μ."""
    log_zero = torch.div(mu, theta).log1p_().mul_(theta).neg_()
    # numpy draws uniform numbers in half of torch's time
    source = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
    dtype = log_zero.numpy().dtype
    is_counted = source.random(mu.shape, dtype=dtype) >= log_zero.exp().numpy()
    place = torch.from_numpy(np.flatnonzero(is_counted))
    x = torch.zeros_like(mu, memory_format=torch.contiguous_format)
    x.view(-1).index_copy_(0, place, _positive(mu, theta, log_zero, place).to(x.dtype))
    return x


def _positive(mu: Tensor, theta: Tensor, log_zero: Tensor, place: Tensor) -> Tensor:
    """Draws of the counts at some places, (m,), given that they are not 0."""
    mu, theta, log_zero = (
        values.reshape(-1).index_select(0, place).double() for values in (mu, theta, log_zero)
    )
    zero = log_zero.exp_()
    x = torch.empty_like(mu)
    is_seldom_zero = zero < SELDOM_ZERO
    for rows, draw in (
        (is_seldom_zero.nonzero().squeeze(-1), _drawn_until_positive),
        ((~is_seldom_zero).nonzero().squeeze(-1), _searched),
    ):
        x.index_copy_(0, rows, draw(*(values[rows] for values in (mu, theta, zero))))
    return x


def _drawn_until_positive(mu: Tensor, theta: Tensor, zero: Tensor) -> Tensor:
    """Positive counts (m,) by their rates; those that come out as 0 are drawn again."""
    x = torch.zeros_like(mu)
    left = torch.arange(len(x))
    while len(left):
        x[left] = torch.poisson(_rates(mu[left], theta[left]))
        left = left[x[left] == 0]
    return x


def _searched(mu: Tensor, theta: Tensor, zero: Tensor) -> Tensor:
    """Positive counts (m,), the first at which the sum of probabilities passes a random number.

    p(x) follows from p(x − 1). Few counts are large, so that twice as many probabilities are
    computed at once for those that are left each time.
    """
    x = torch.empty_like(mu)
    rows, p, q = torch.arange(len(x)), zero, mu / (mu + theta)
    to_pass = torch.rand_like(mu) * (1 - zero)
    first, width = 0, 1
    while len(rows):
        below = torch.arange(first, first + width, dtype=mu.dtype)
        factors = (theta.unsqueeze(1) + below) * (q.unsqueeze(1) / (below + 1))
        p_x = factors.cumprod_(1).mul_(p.unsqueeze(1))  # (m, width)
        total = p_x.cumsum(1)
        n_passed = (total < to_pass.unsqueeze(1)).sum(1)
        x[rows] = (first + 1 + n_passed).to(x.dtype)
        # rounding can leave a number that no sum passes; then p(x) has become 0
        left = ((n_passed == width) & (p_x[:, -1] > 0)).nonzero().squeeze(1)
        to_pass, p = (to_pass - total[:, -1])[left], p_x[:, -1][left]
        rows, theta, q = rows[left], theta[left], q[left]
        first, width = first + width, min(2 * width, WIDEST)
    return x
