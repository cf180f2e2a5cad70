"""p(x|z,c) of several modalities: features side by side, with a likelihood for each modality."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Modality", "SideBySide", "inverse_dispersions"]


class Modality(NamedTuple):
    """One modality of the data of a joint model."""

    name: str
    """Its name in the MuData."""
    likelihood: str
    """Name of its likelihood, ``"protein"`` among them."""
    n_features: int
    """Number of its genes, proteins or peaks."""


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
    theta = getattr(p_x, "dispersion", None)
    if theta is None:
        theta = p_x.mean.new_full((), torch.inf)
    return theta.expand(p_x.batch_shape)
