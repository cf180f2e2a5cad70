"""Base of modules: categories that are added while the rest is frozen; importance sampling."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, EmbeddingModuleMixin
from scvi.nn import Embedding
from torch import Tensor, nn

from scgmvae.nn.layers import ConditionedLinear, ConditionSizes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ExtendableModule", "importance_sampled"]


class ExtendableModule(EmbeddingModuleMixin, BaseModuleClass):
    """A module to which categories of conditions can be added, while all else stays as it is."""

    n_categories: tuple[int, ...]
    """Number of batches, and of categories of each further categorical condition."""
    sizes: ConditionSizes
    """Sizes of all conditions."""
    n_continuous: int
    """Number of continuous conditions."""
    embeds_batches: bool
    """Whether batches are points of an embedding, rather than weights in every layer."""
    dispersion: str
    """Whether genes have one dispersion, or one for each batch, label or cell."""
    raw_dispersion: nn.Parameter | None
    """Log inverse dispersion, or log standard deviation, (G,) or (rows, G)."""
    n_known_categories: tuple[int, ...] | None = None
    """Number of frozen categories of each condition; ``None`` if nothing is frozen."""

    def extend_categories(self, n_categories: tuple[int, ...]) -> None:
        """Add categories of conditions, and freeze all other weights.

        Parameters
        ----------
        n_categories
            Categories of the batch and of each further categorical condition from now on, none
            fewer than now. A new category starts as the mean of the known ones.

        References
        ----------
        Lotfollahi et al. 2022, "Mapping single-cell data to reference atlases by transfer
        learning" (scArches).
        """
        known, known_in_layers = self.n_categories, self.sizes.n_cat_list
        self.n_categories = n_categories
        if self.embeds_batches:
            self._extend_embedding(n_categories[0] - known[0])
        self.sizes = self._condition_sizes()
        for layer in self._conditioned_layers():
            layer.extend(self.sizes.n_cat_list, known_in_layers)
        if self.dispersion == "gene-batch" and self.raw_dispersion is not None:
            old = self.raw_dispersion.detach()
            added = old.mean(0).expand(n_categories[0] - known[0], -1)
            is_learned = self.raw_dispersion.requires_grad
            self.raw_dispersion = nn.Parameter(torch.cat([old, added]), requires_grad=is_learned)
        self.freeze_known(known)

    def freeze_known(self, n_known: tuple[int, ...]) -> None:
        """Let training change the weights of categories beyond the first ``n_known`` alone.

        Batch normalisation keeps its statistics as well, see :meth:`train`.
        """
        self.n_known_categories = n_known
        by_batch = self.dispersion == "gene-batch" and self.raw_dispersion is not None
        learns_dispersion = by_batch and self.raw_dispersion.requires_grad
        self.requires_grad_(False)
        is_new = [n > known for n, known in zip(self.n_categories, n_known, strict=True)]
        in_layers = [new and not (self.embeds_batches and i == 0) for i, new in enumerate(is_new)]
        by_category = [
            (layer.offsets[str(i)], n_known[i])
            for layer in self._conditioned_layers()
            for i in np.flatnonzero(in_layers)
        ]
        if self.embeds_batches and is_new[0]:
            by_category.append((self.get_embedding(REGISTRY_KEYS.BATCH_KEY).weight, n_known[0]))
        if learns_dispersion and is_new[0]:
            by_category.append((self.raw_dispersion, n_known[0]))
        for parameter, n_frozen in by_category:
            parameter.requires_grad_(True)
            parameter.register_hook(partial(_without_rows, n_rows=n_frozen))

    def _condition_sizes(self) -> ConditionSizes:
        """Sizes of the conditions as layers see them: embedded batches are continuous."""
        if not self.embeds_batches:
            return ConditionSizes(self.n_categories, self.n_continuous)
        n_dims = self.get_embedding(REGISTRY_KEYS.BATCH_KEY).embedding_dim
        return ConditionSizes((1, *self.n_categories[1:]), self.n_continuous + n_dims)

    def _extend_embedding(self, n_new: int) -> None:
        """Add batches to the embedding, each of which starts at the mean of the known ones."""
        known = self.get_embedding(REGISTRY_KEYS.BATCH_KEY).weight.detach()
        weight = torch.cat([known, known.mean(0).expand(n_new, -1)])
        embedding = Embedding(*weight.shape, _weight=weight)
        self.add_embedding(REGISTRY_KEYS.BATCH_KEY, embedding, overwrite=True)

    def _conditioned_layers(self) -> list[ConditionedLinear]:
        layers = [layer for layer in self.modules() if isinstance(layer, ConditionedLinear)]
        return [layer for layer in layers if layer.takes_categories]

    def train(self, mode: bool = True) -> Self:
        """Set the mode as in torch; a frozen module keeps the reference's batch statistics."""
        super().train(mode)
        if self.n_known_categories is not None:
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    layer.eval()
        return self


def _without_rows(gradient: Tensor, n_rows: int) -> Tensor:
    """The gradient with the first rows set to 0."""
    return torch.cat([torch.zeros_like(gradient[:n_rows]), gradient[n_rows:]])


def importance_sampled(
    log_ratio: Callable[[int], Tensor], n_mc_samples: int, n_mc_samples_per_pass: int
) -> Tensor:
    r"""Log likelihood of each cell from samples of its latents.

    .. math::
        \log p(x) \approx \log \tfrac{1}{S} \sum_s \frac{p(x|z_s)\, p(z_s)}{q(z_s|x)}

    Parameters
    ----------
    log_ratio
        Function that draws the given number of samples, and returns the logarithm of the ratio,
        ``(S, n)`` or, for one sample, ``(n,)``.
    n_mc_samples
        S, the number of samples.
    n_mc_samples_per_pass
        Number of samples held in memory at once.

    Returns
    -------
    Tensor ``(n,)`` in nats.
    """
    ratios = []
    for first in range(0, n_mc_samples, n_mc_samples_per_pass):
        n_samples = min(n_mc_samples_per_pass, n_mc_samples - first)
        ratios.append(log_ratio(n_samples).reshape(n_samples, -1))
    return torch.logsumexp(torch.cat(ratios), dim=0) - math.log(n_mc_samples)
