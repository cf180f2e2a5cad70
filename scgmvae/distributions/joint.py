"""p(x|z,c) of several modalities: their features side by side, each with a likelihood of its own.

Proteins that antibodies measure have a background: every cell has some counts of each, whether it
carries the protein or not. Their likelihood is a mixture of that background and of a foreground
above it, as in totalVI.

References
----------
Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with totalVI".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from scvi import distributions as scvi_distributions
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus

from scgmvae.distributions.likelihoods import LOG_DISPERSION_BOUND
from scgmvae.nn.bounds import bounded_exp

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Modality",
    "ProteinMixture",
    "SideBySide",
    "inverse_dispersions",
    "make_protein_likelihood",
]

LOG_MEAN_BOUND = 14.0
"""Log mean counts of background and foreground stay within ±14."""


class Modality(NamedTuple):
    """One modality of the data of a joint model."""

    name: str
    """Its name in the MuData."""
    likelihood: str
    """Name of its likelihood, ``"protein"`` among them."""
    n_features: int
    """Number of its genes, proteins or peaks."""


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
        super().__init__(background, foreground, theta, background_logits)
        Distribution.__init__(self, batch_shape=self.mu1.shape, validate_args=False)

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
            mu=mean, theta=self.theta1.expand(shape)
        ).sample()

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


class SideBySide(Distribution):
    """The distributions of several modalities, whose features stand side by side.

    Parameters
    ----------
    parts
        One distribution over ``(..., n, G_m)`` for each modality.
    """

    arg_constraints = {}

    def __init__(self, parts: Sequence[Distribution]):
        self.parts = tuple(parts)
        self.sizes = [part.batch_shape[-1] for part in parts]
        shape = torch.Size((*parts[0].batch_shape[:-1], sum(self.sizes)))
        super().__init__(batch_shape=shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Means, ``(..., n, G)``."""
        return torch.cat([part.mean for part in self.parts], dim=-1)

    @property
    def variance(self) -> Tensor:
        """Variances, ``(..., n, G)``."""
        return torch.cat([part.variance for part in self.parts], dim=-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, ``(*sample_shape, ..., n, G)``."""
        return torch.cat([part.sample(sample_shape) for part in self.parts], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each value, ``(..., n, G)``."""
        values = value.split(self.sizes, dim=-1)
        pairs = zip(self.parts, values, strict=True)
        return torch.cat([part.log_prob(x) for part, x in pairs], dim=-1)

    def get_normalized(self, key: str) -> Tensor:
        """Normalised expression of each modality, ``(..., n, G)``.

        Parameters
        ----------
        key
            As in scvi-tools: ``"scale"`` or ``"mu"``.
        """
        return torch.cat([part.get_normalized(key) for part in self.parts], dim=-1)


def inverse_dispersions(p_x: Distribution) -> Tensor:
    """Inverse dispersion of each value, ``(..., n, G)``; infinite for values without any.

    Parameters
    ----------
    p_x
        p(x|z,c) of one modality or of several.
    """
    if isinstance(p_x, SideBySide):
        return torch.cat([inverse_dispersions(part) for part in p_x.parts], dim=-1)
    theta = getattr(p_x, "theta1" if isinstance(p_x, ProteinMixture) else "theta", None)
    return (
        p_x.mean.new_full((), torch.inf).expand(p_x.batch_shape)
        if theta is None
        else (theta.expand(p_x.batch_shape))
    )
