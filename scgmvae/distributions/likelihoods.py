"""p(x|z,c): from decoder outputs to distributions that scvi-tools' methods understand.

scvi-tools reads ``mu``, ``scale`` and ``theta`` from p(x|z,c) and calls ``get_normalized`` on it;
the classes here add what the ones of :mod:`scvi.distributions` lack.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from scvi import distributions as scvi_distributions
from scvi.distributions import NegativeBinomialMixture, Poisson
from torch import Tensor
from torch.distributions import Distribution, constraints

from scgmvae.distributions.accessibility import bernoulli_log_prob
from scgmvae.distributions.counts import (
    MEAN_FLOOR,
    nb_log_prob,
    poisson_log_prob,
    softmax_means,
    softmax_nb_log_prob,
    zinb_log_prob,
)
from scgmvae.distributions.draws import draw_negative_binomial
from scgmvae.distributions.families import LIKELIHOODS, Likelihood
from scgmvae.nn.bounds import bounded_exp
from scgmvae.nn.sparse import dense, is_sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "at_library_size",
    "log_likelihood",
    "make_likelihood",
]

LOG_DISPERSION_BOUND = 14.0
"""Log inverse dispersions of counts and log scales of Gaussians stay within ±14."""

LOG_NETWORK_SCALE_BOUND = 5.0
"""Log scales of Gaussians that a network gives to each value stay within ±5.

The log density of a Gaussian has no upper bound: at a value that the mean meets, as it does at
pixels that are the same in all images, it grows without end as σ falls to 0 (Mattei and Frellsen
2018). A σ for each value can collapse so wherever the network finds one such value, and the other
values then count for nothing. Above exp(−5), about 0.007, a value adds at most 4.1 nats. That is
two steps of grey of an image with values in [0, 1]."""


class NegativeBinomial(scvi_distributions.NegativeBinomial):
    """scvi-tools' negative binomial, which computes its means from logits when they are read.

    Training does not read them: the fast likelihood takes the logits, and sums over cells if each
    gene has one dispersion.
    """

    arg_constraints = {
        "logits": constraints.real,
        "theta": constraints.positive,
        "size": constraints.positive,
    }

    def __init__(self, logits: Tensor, theta: Tensor, size: Tensor):
        Distribution.__init__(self, batch_shape=logits.shape, validate_args=False)
        self.logits, self.dispersion, self.size_of_cells = logits, theta, size
        # scvi-tools reads these when it draws (_device from 1.5 on) and in its own log_prob
        self._device, self.on_mps = logits.device, logits.device.type == "mps"
        self._eps = MEAN_FLOOR

    @cached_property
    def _scale_and_mu(self) -> tuple[Tensor, Tensor]:
        return softmax_means(self.logits, self.size)

    @property
    def size(self) -> Tensor:
        """Counts of the cells, ``(..., n, 1)``."""
        return self.size_of_cells.expand(*self.batch_shape[:-1], 1)

    @property
    def scale(self) -> Tensor:
        """Shares of the genes, ``(..., n, G)``."""
        return self._scale_and_mu[0]

    @property
    def mu(self) -> Tensor:
        """Mean counts, ``(..., n, G)``."""
        return self._scale_and_mu[1]

    @property
    def theta(self) -> Tensor:
        """Inverse dispersions, ``(..., n, G)``."""
        return self.dispersion.expand(self.batch_shape)

    def sample(self, sample_shape: Sequence[int] | None = None) -> Tensor:
        """Counts, ``(*sample_shape, ..., n, G)``, in a part of the time that scvi-tools takes."""
        shape = self._extended_shape(torch.Size(sample_shape or ()))
        return draw_negative_binomial(self.mu.expand(shape), self.dispersion)


class ZeroInflatedNegativeBinomial(scvi_distributions.ZeroInflatedNegativeBinomial):
    """scvi-tools' zero-inflated negative binomial, which keeps its dispersion as it was given."""

    def __init__(self, mu: Tensor, theta: Tensor, zi_logits: Tensor, scale: Tensor):
        super().__init__(mu=mu, theta=theta, zi_logits=zi_logits, scale=scale, validate_args=False)
        Distribution.__init__(self, batch_shape=self.mu.shape, validate_args=False)
        self.dispersion = theta

    def sample(self, sample_shape: Sequence[int] | None = None) -> Tensor:
        """Counts, ``(*sample_shape, ..., n, G)``, in a part of the time that scvi-tools takes."""
        shape = self._extended_shape(torch.Size(sample_shape or ()))
        counts = draw_negative_binomial(self.mu.expand(shape), self.dispersion)
        is_inflated = torch.rand_like(counts) < self.zi_logits.detach().sigmoid()
        return counts.masked_fill_(is_inflated, 0)


class Bernoulli(torch.distributions.Bernoulli):
    """Bernoulli on logits; its normalised expression is the probability of a 1."""

    typical_logits: Tensor | None = None
    """Logits in a cell of typical depth, where they depend on the depth."""

    def get_normalized(self, key: str) -> Tensor:
        """Probabilities, ``(..., n, G)``, for the key ``"scale"`` in a cell of typical depth."""
        if key == "scale" and self.typical_logits is not None:
            return self.typical_logits.sigmoid()
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
    log_bound: float = LOG_DISPERSION_BOUND,
) -> Distribution:
    """p(x|z,c) from the decoder's outputs.

    Parameters
    ----------
    kind
        Name of the likelihood.
    heads
        Decoder outputs, each ``(..., n, G)``.
    library
        Log library sizes or log size factors, ``(n, 1)`` or, for latent ones, ``(..., n, 1)``.
        Count likelihoods only.
    raw_dispersion
        Log inverse dispersion (nb, zinb) or log standard deviation (gaussian), ``(G,)``,
        ``(n, G)`` or ``(..., n, G)``; or ``(1,)`` for all genes.
    observed
        Which genes the library sizes sum over, ``(G,)``; ``None`` for all.
    log_bound
        Bound within which ``raw_dispersion`` is squeezed.

    Returns
    -------
    Distribution over ``(..., n, G)``.
    """
    if kind == "bernoulli":
        return Bernoulli(logits=heads[0], validate_args=False)
    dispersion = None
    if raw_dispersion is not None:
        dispersion = bounded_exp(raw_dispersion, log_bound)
    if kind == "gaussian":
        return Gaussian(heads[0], dispersion)
    size = library.exp()
    if observed is not None:  # the whole cell has more counts than its measured genes show
        size = size / torch.softmax(heads[0], dim=-1)[..., observed].sum(-1, keepdim=True)
    if kind == "nb":
        return NegativeBinomial(heads[0], dispersion, size)
    scale, mu = softmax_means(heads[0], size)
    if kind == "poisson":
        return Poisson(rate=mu, scale=scale, validate_args=False)
    if kind == "zinb":
        return ZeroInflatedNegativeBinomial(mu, dispersion, heads[1], scale)
    raise ValueError(f"likelihood must be one of {LIKELIHOODS}, but it is {kind!r}.")


def at_library_size(
    p_x: Distribution, size: Tensor, observed: Tensor | None = None
) -> Distribution:
    """The same p(x|z,c) for cells of another library size; unchanged if x are not counts.

    Parameters
    ----------
    p_x
        Distribution over ``(..., n, G)``.
    size
        Counts of the cells, ``(n, 1)``, or ``(1, 1)`` for all.
    observed
        Which genes the library sizes sum over, ``(G,)``; ``None`` for all.
    """
    if not isinstance(p_x, NegativeBinomial | ZeroInflatedNegativeBinomial | Poisson):
        return p_x
    # scvi-tools joins distributions without the scale of a Poisson
    shares = p_x.rate if isinstance(p_x, Poisson) else p_x.scale
    shares = shares / shares.sum(-1, keepdim=True)
    if observed is not None:
        size = size / shares[..., observed].sum(-1, keepdim=True)
    if isinstance(p_x, NegativeBinomial):
        return NegativeBinomial(p_x.logits, p_x.theta, size)
    if isinstance(p_x, ZeroInflatedNegativeBinomial):
        return ZeroInflatedNegativeBinomial(shares * size, p_x.theta, p_x.zi_logits, shares)
    return Poisson(rate=shares * size, scale=shares, validate_args=False)


def log_likelihood(p_x: Distribution, x: Tensor, observed: Tensor | None = None) -> Tensor:
    """Log p(x|z,c) summed over the observed genes, ``(..., n)``, in nats.

    Parameters
    ----------
    p_x
        Distribution over ``(..., n, G)``.
    x
        Data, ``(n, G)``; counts dense or CSR.
    observed
        Which genes were measured, ``(G,)``; ``None`` where all were.
    """
    with torch.autocast(x.device.type, enabled=False):  # sums need single precision
        return _log_likelihood(p_x, x, observed)


def _log_likelihood(p_x: Distribution, x: Tensor, observed: Tensor | None) -> Tensor:
    genes = slice(None) if observed is None else observed
    is_fast = isinstance(p_x, NegativeBinomial) and not p_x.size_of_cells.requires_grad
    if observed is None and is_fast:
        return softmax_nb_log_prob(x, p_x.logits, p_x.dispersion, p_x.size_of_cells)
    if observed is None and isinstance(p_x, Bernoulli) and is_sparse(x):
        return bernoulli_log_prob(x, p_x.logits)
    if isinstance(p_x, Bernoulli | Gaussian | NegativeBinomialMixture):
        return p_x.log_prob(dense(x))[..., genes].sum(-1)
    if observed is not None:
        x = dense(x)[:, observed]
    if isinstance(p_x, Poisson):
        return poisson_log_prob(x, p_x.rate[..., genes])
    mu, theta = p_x.mu[..., genes], p_x.dispersion[..., genes]
    if isinstance(p_x, ZeroInflatedNegativeBinomial):
        return zinb_log_prob(x, mu, theta, p_x.zi_logits[..., genes])
    return nb_log_prob(x, mu, theta)
