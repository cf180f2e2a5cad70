"""The likelihoods p(x|z,c) that there are, by name, and what a module has to know of each.

This module imports nothing, so that the command line can name them at once.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

__all__ = [
    "COUNT_LIKELIHOODS",
    "FAMILIES",
    "JOINT",
    "LIKELIHOODS",
    "OF_MODALITIES",
    "Family",
    "Likelihood",
]

Likelihood = Literal["nb", "zinb", "poisson", "bernoulli", "gaussian"]
LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)

OF_MODALITIES = (*LIKELIHOODS, "protein")
"""Likelihoods of the modalities of a joint model."""

JOINT = "joint"
"""Name of the likelihood of a joint model, which has one for each modality."""


class Family(NamedTuple):
    """What a module has to know of a likelihood."""

    is_count: bool
    """Whether x are counts."""
    n_heads: int
    """Number of outputs of the decoder for each gene."""
    start_dispersion: float | None
    """Inverse dispersion, or standard deviation, before training; ``None`` if there is none."""


# Most genes are close to Poisson, and at Adam's step length it would take long to get there from a
# smaller inverse dispersion.
FAMILIES: dict[str, Family] = {
    "nb": Family(is_count=True, n_heads=1, start_dispersion=10.0),
    "zinb": Family(is_count=True, n_heads=2, start_dispersion=10.0),
    "poisson": Family(is_count=True, n_heads=1, start_dispersion=None),
    "bernoulli": Family(is_count=False, n_heads=1, start_dispersion=None),
    "gaussian": Family(is_count=False, n_heads=1, start_dispersion=1.0),
    "protein": Family(is_count=True, n_heads=3, start_dispersion=10.0),
}
COUNT_LIKELIHOODS = tuple(name for name in LIKELIHOODS if FAMILIES[name].is_count)
