r"""Draws of counts from negative binomials, most of which are 0.

A negative binomial is a Poisson distribution whose rate has a gamma distribution. To draw the rate
of every count takes longer than all else that is done with a cell, and for most counts the result
is 0. So it is drawn first which counts are 0, with probability
:math:`p(0) = (1 + \mu/\theta)^{-\theta}`, and the others alone are drawn from what remains.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

__all__ = ["draw_negative_binomial"]

LARGEST = 1e8
"""Largest mean, as in scvi-tools, and the largest inverse dispersion that differs from none."""

N_SEARCHED = 8
"""Number of times that twice as many counts are searched: up to 255. Few counts are larger."""

LONG_SEARCH = 8.0
"""Mean from which on drawing a rate, twice on average at most, is faster than a search."""


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
    given, dtype = mu, mu.dtype if mu.dtype == torch.double else torch.float32
    mu, theta = (v.detach().to(dtype).clamp(max=LARGEST) for v in (mu, theta))
    theta = theta.expand_as(mu)
    if mu.device.type == "cuda":  # which draws all rates at once, but waits for a list of places
        return torch.poisson(_rates(mu, theta)).to(given.dtype)
    return _drawn(mu.cpu(), theta.cpu()).to(given)  # Apple's GPUs draw no such numbers


def _rates(mu: Tensor, theta: Tensor) -> Tensor:
    """Rates of Poisson distributions, of the shape of μ."""
    return torch.distributions.Gamma(theta, theta / mu, validate_args=False).sample()


def _drawn(mu: Tensor, theta: Tensor) -> Tensor:
    """Counts of the shape of μ."""
    log_zero = torch.div(mu, theta).log1p_().mul_(theta).neg_()
    # numpy draws uniform numbers in half of torch's time
    source = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
    zero = log_zero.exp_().numpy()
    is_zero = source.random(mu.shape, dtype=zero.dtype) < zero  # not where it is NaN
    place = torch.from_numpy(np.flatnonzero(~is_zero))
    x = torch.zeros_like(mu, memory_format=torch.contiguous_format)
    mu, theta = (values.reshape(-1).index_select(0, place).double() for values in (mu, theta))
    x.view(-1).index_copy_(0, place, _positive(mu, theta).to(x.dtype))
    return x


def _positive(mu: Tensor, theta: Tensor) -> Tensor:
    """Draws (m,) of counts that are not 0, NaN where a parameter is."""
    zero = torch.exp(-theta * torch.log1p(mu / theta))
    x = torch.full_like(mu, torch.nan)
    # a rate is drawn where few of the counts would be 0, or the search would be long
    by_rate = (zero < 0.05) | ((zero < 0.5) & (mu > LONG_SEARCH))
    for chosen, draw in ((by_rate, _by_rate), (~by_rate & (zero <= 1), _searched)):
        rows = chosen.nonzero().squeeze(-1)
        x.index_copy_(0, rows, draw(*(values[rows] for values in (mu, theta, zero))))
    return x


def _by_rate(mu: Tensor, theta: Tensor, zero: Tensor) -> Tensor:
    """Positive counts (m,) by their rates; those that come out as 0 are drawn again."""
    x = torch.zeros_like(mu)
    left = torch.arange(len(x))
    while len(left):
        x[left] = torch.poisson(_rates(mu[left], theta[left]))
        left = left[x[left] == 0]
    return x


def _searched(mu: Tensor, theta: Tensor, zero: Tensor) -> Tensor:
    """Positive counts (m,), the first at which the sum of probabilities passes a random number.

    p(x) follows from p(x − 1). Twice as many probabilities are computed at once for those that
    are left each time, and the few counts that are left at last are quantiles.
    """
    x = torch.empty_like(mu)
    to_pass = zero + torch.rand_like(mu) * (1 - zero)
    rows, p, total = torch.arange(len(x)), zero, zero
    for first in 2 ** torch.arange(N_SEARCHED) - 1:
        below = first + torch.arange(first + 1, dtype=mu.dtype)  # counts before those searched
        odds = (mu[rows] / (mu[rows] + theta[rows])).unsqueeze(1)
        factors = (theta[rows].unsqueeze(1) + below) * (odds / (below + 1))
        p_x = factors.cumprod_(1).mul_(p.unsqueeze(1))  # (m, first + 1)
        sums = p_x.cumsum(1).add_(total.unsqueeze(1))
        n_passed = (sums < to_pass[rows].unsqueeze(1)).sum(1)
        x[rows] = (first + 1 + n_passed).to(x.dtype)
        left = (n_passed > first).nonzero().squeeze(1)
        rows, p, total = rows[left], p_x[left, -1], sums[left, -1]
    if len(rows):
        share = to_pass[rows].clamp(max=1 - 1e-15)
        p_of_success = theta[rows] / (theta[rows] + mu[rows])
        values = stats.nbinom.ppf(share.numpy(), theta[rows].numpy(), p_of_success.numpy())
        x[rows] = torch.from_numpy(np.asarray(values)).to(x.dtype).clamp(min=2.0**N_SEARCHED)
    return x
