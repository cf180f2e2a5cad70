"""Counts of proteins, which antibodies measure, and which have a background.

Every cell has some counts of each protein, whether it carries it or not. Their likelihood is a
mixture of that background and of a foreground above it, as in totalVI.

References
----------
Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with totalVI".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi import distributions as scvi_distributions
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution
from torch.nn.functional import softplus

from scgmvae.distributions.counts import MEAN_FLOOR
from scgmvae.distributions.likelihoods import LOG_DISPERSION_BOUND
from scgmvae.nn.bounds import bounded_exp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.autograd.function import FunctionCtx

__all__ = ["ProteinMixture", "make_protein_likelihood"]

LOG_MEAN_BOUND = 14.0
"""Log mean counts of background and foreground stay within ±14."""


class ProteinMixture(scvi_distributions.NegativeBinomialMixture):
    """Counts of proteins, which are of the background or of the foreground.

    Parameters
    ----------
    background, foreground
        Means of the two, ``(..., n, P)``.
    theta
        Inverse dispersions, ``(P,)``, ``(n, P)`` or ``(..., n, P)``.
    background_logits
        Log odds that a count is of the background, ``(..., n, P)``.
    """

    def __init__(
        self, background: Tensor, foreground: Tensor, theta: Tensor, background_logits: Tensor
    ):
        # scvi-tools would broadcast each of them first, which takes longer than their arithmetic
        Distribution.__init__(self, batch_shape=background.shape, validate_args=False)
        self.mu1, self.mu2, self.mixture_logits = background, foreground, background_logits
        self.dispersion, self.theta2 = theta, None
        self.on_mps = background.device.type == "mps"

    @property
    def theta1(self) -> Tensor:
        """Inverse dispersions, ``(..., n, P)``."""
        return self.dispersion.expand(self.batch_shape)

    @property
    def foreground_probs(self) -> Tensor:
        """Probability that a count is of the foreground, before it is seen, ``(..., n, P)``."""
        return torch.sigmoid(-self.mixture_logits)

    @property
    def foreground(self) -> Tensor:
        """Mean counts without the background, ``(..., n, P)``."""
        return self.foreground_probs * self.mu2

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, ``(*sample_shape, ..., n, P)``; scvi-tools' share the component over draws."""
        shape = (*sample_shape, *self.batch_shape)
        is_background = torch.rand(shape, device=self.mu1.device) < self.mixture_probs
        mean = torch.where(is_background, self.mu1, self.mu2)
        return scvi_distributions.NegativeBinomial(
            mu=mean, theta=self.dispersion.expand(shape)
        ).sample()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of each count, ``(..., n, P)``."""
        parameters = (self.mu1, self.mu2, self.dispersion, self.mixture_logits)
        return _MixtureLogProb.apply(value, *parameters)

    @property
    def variance(self) -> Tensor:
        """Variances, ``(..., n, P)``."""
        p = self.foreground_probs
        within = (1 - p) * (self.mu1 + self.mu1**2 / self.theta1)
        within = within + p * (self.mu2 + self.mu2**2 / self.theta1)
        return within + p * (1 - p) * (self.mu2 - self.mu1) ** 2

    def get_normalized(self, key: str) -> Tensor:
        """Mean counts, ``(..., n, P)``, for the key ``"scale"`` without the background."""
        return self.foreground if key == "scale" else self.mean


class _MixtureLogProb(torch.autograd.Function):
    """Log probability of a mixture of two negative binomials of one dispersion.

    Autograd would take a hundred operations on values so few that each costs more than its
    arithmetic.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        background: Tensor,
        foreground: Tensor,
        theta: Tensor,
        logits: Tensor,
    ) -> Tensor:
        total = x + theta
        means = background, foreground
        log_ratios = [torch.log1p(mu / theta) for mu in means]
        values = [
            x * (mu + MEAN_FLOOR).log() - total * log_ratio
            for mu, log_ratio in zip(means, log_ratios, strict=True)
        ]
        log_odds = values[0] - values[1] + logits  # that a count is of the background
        of_both = torch.lgamma(total) - torch.lgamma(theta)
        of_both -= torch.lgamma(x + 1) + x * theta.log()
        ctx.save_for_backward(x, *means, theta, logits, total, *log_ratios, log_odds)
        return of_both + values[1] + softplus(log_odds) - softplus(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, background, foreground, theta, logits, total, *log_ratios, log_odds = ctx.saved_tensors
        share = log_odds.sigmoid()
        of_theta = torch.digamma(total) - torch.digamma(theta) - x / theta
        of_means = []
        parts = (background, share), (foreground, 1 - share)
        for (mu, part), log_ratio in zip(parts, log_ratios, strict=True):
            rate = total / (theta + mu)
            of_means.append(grad * part * (x / (mu + MEAN_FLOOR) - rate))
            of_theta = of_theta - part * (log_ratio - rate * mu / theta)
        of_theta = (grad * of_theta).sum_to_size(theta.shape)
        return None, *of_means, of_theta, grad * (share - logits.sigmoid())


def make_protein_likelihood(heads: Sequence[Tensor], raw_dispersion: Tensor) -> ProteinMixture:
    """Mixture of background and foreground from the decoder's outputs.

    Parameters
    ----------
    heads
        Log mean of the background, what the log mean of the foreground has above it before
        softplus, and log odds of the background, each ``(..., n, P)``.
    raw_dispersion
        Log inverse dispersions, ``(P,)`` or ``(n, P)``.
    """
    raw_background, raw_increment, background_logits = heads
    background, foreground = (
        bounded_exp(raw, LOG_MEAN_BOUND)
        for raw in (raw_background, raw_background + softplus(raw_increment))
    )
    theta = bounded_exp(raw_dispersion, LOG_DISPERSION_BOUND)
    return ProteinMixture(background, foreground, theta, background_logits)
