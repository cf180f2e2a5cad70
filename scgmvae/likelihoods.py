"""p(x|z,c): from decoder outputs to distributions that scvi-tools' methods understand.

scvi-tools reads ``mu``, ``scale`` and ``theta`` off p(x|z,c) and calls ``get_normalized`` on it;
the classes here add what the ones of :mod:`scvi.distributions` lack.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from scvi import distributions as scvi_distributions
from scvi.distributions import Poisson, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.distributions import Distribution

from scgmvae.distributions import nb_log_prob
from scgmvae.networks import bounded_exp

__all__ = [
    "COUNT_LIKELIHOODS",
    "LIKELIHOODS",
    "Likelihood",
    "log_likelihood",
    "make_likelihood",
]

Likelihood = Literal["nb", "zinb", "poisson", "bernoulli", "gaussian"]
LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)
COUNT_LIKELIHOODS = ("nb", "zinb", "poisson")

MEAN_FLOOR = 1e-8
"""Added to every mean count: a softmax output underflows to 0, where log μ has no value."""

LOG_DISPERSION_BOUND = 14.0
"""Log inverse dispersions of counts and log scales of Gaussians stay within ±14."""


class NegativeBinomial(scvi_distributions.NegativeBinomial):
    """scvi-tools' negative binomial that remembers its dispersion before broadcasting.

    The fast likelihood sums over cells where the dispersion is one per gene.
    """

    def __init__(self, mu: Tensor, theta: Tensor, scale: Tensor):
        super().__init__(mu=mu, theta=theta, scale=scale, validate_args=False)
        self.dispersion = theta


class Bernoulli(torch.distributions.Bernoulli):
    """Bernoulli on logits; its normalised expression is the probability of a 1."""

    def get_normalized(self, key: str) -> Tensor:
        """Probabilities, ``(..., n, G)``, for every ``key``."""
        return self.probs


class Gaussian(scvi_distributions.Normal):
    """Normal whose normalised expression is its mean."""

    def __init__(self, loc: Tensor, scale: Tensor):
        super().__init__(mu=loc, scale=scale, normal_mu=loc, validate_args=False)


def make_likelihood(
    kind: Likelihood,
    heads: list[Tensor],
    library: Tensor,
    raw_dispersion: Tensor | None,
    observed: Tensor | None = None,
) -> Distribution:
    """p(x|z,c) from the decoder's outputs.

    Parameters
    ----------
    kind
        The likelihood's name.
    heads
        Decoder outputs, each ``(..., n, G)``.
    library
        Log library sizes or log size factors, ``(n, 1)``. Count likelihoods only.
    raw_dispersion
        Log inverse dispersion (nb, zinb) or log standard deviation (gaussian), ``(G,)`` or
        ``(n, G)``.
    observed
        Which genes the library sizes sum over, ``(G,)``; ``None`` for all.

    Returns
    -------
    Distribution over ``(..., n, G)``.
    """
    if kind == "bernoulli":
        return Bernoulli(logits=heads[0], validate_args=False)
    dispersion = None
    if raw_dispersion is not None:
        dispersion = bounded_exp(raw_dispersion, LOG_DISPERSION_BOUND)
    if kind == "gaussian":
        return Gaussian(heads[0], dispersion)
    scale = torch.softmax(heads[0], dim=-1)
    floor = torch.full((), MEAN_FLOOR, dtype=scale.dtype, device=scale.device)
    size = library.exp()
    if observed is not None:  # the whole cell has more counts than its measured genes show
        size = size / scale[..., observed].sum(-1, keepdim=True)
    mu = torch.addcmul(floor, size, scale)
    if kind == "poisson":
        return Poisson(rate=mu, scale=scale, validate_args=False)
    if kind == "zinb":
        return ZeroInflatedNegativeBinomial(
            mu=mu, theta=dispersion, zi_logits=heads[1], scale=scale, validate_args=False
        )
    if kind == "nb":
        return NegativeBinomial(mu, dispersion, scale)
    raise ValueError(f"likelihood must be one of {LIKELIHOODS}, but it is {kind!r}.")


def log_likelihood(p_x: Distribution, x: Tensor, observed: Tensor | None = None) -> Tensor:
    """Log p(x|z,c) summed over the observed genes, ``(..., n)``, in nats.

    Parameters
    ----------
    p_x
        Distribution over ``(..., n, G)``.
    x
        Data, ``(n, G)``.
    observed
        Which genes were measured, ``(G,)``; ``None`` where all were.
    """
    genes = slice(None) if observed is None else observed
    if isinstance(p_x, NegativeBinomial):
        return nb_log_prob(x[:, genes], p_x.mu[..., genes], p_x.dispersion[..., genes])
    return p_x.log_prob(x)[..., genes].sum(-1)
