"""Weights of samples of z by how well they explain the cells of a population."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor
from torch.distributions import Normal

from scgmvae.data.keys import OBSERVED_KEY
from scgmvae.distributions.likelihoods import at_library_size
from scgmvae.model.posteriors import PosteriorsMixin
from scgmvae.nn.sparse import dense

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from torch.distributions import Distribution

__all__ = ["ImportanceMixin"]

N_DRAWS = 128
"""Draws of w and c over which the prior density of z is averaged."""

N_AT_ONCE = 512
"""Samples of z whose prior density is computed at once."""


class ImportanceMixin(PosteriorsMixin):
    """``get_importance_weights``, for ``differential_expression(weights="importance")``."""

    @torch.inference_mode()
    def get_importance_weights(
        self,
        adata: AnnData | None,
        indices: NDArray[np.integer],
        qz: Normal,
        px: Distribution,
        zs: Tensor,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        **data_loader_kwargs: Any,
    ) -> NDArray[np.float32]:
        r"""Weights of samples of z, which sum to 1.

        .. math::
            \omega(z) \propto \sum_a \frac{p(z)\, p(x_a|z)}{p(x_a) \sum_b q(z|x_b)}

        with a and b the cells of the population. scvi-tools has N(0, I) for p(z), which here is
        the mixture: a sample is worth more where the model expects cells to be. Where library
        sizes are latent, p(x|z) is taken at the mean of q(l|x).

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        indices
            Rows of the population, (n,).
        qz
            Posteriors of these cells, ``(n, L)``.
        px
            Densities of x at the samples, ``(..., n, G)``.
        zs
            Samples of z, ``(..., n, L)``.
        max_cells
            Largest number of cells over which the sums go; of more, a sample is drawn.
        truncation
            Whether weights below the mean are raised to it, as Ionides (2008) does, for less
            variance.
        n_mc_samples, n_mc_samples_per_pass
            Samples for p(x) of each cell, and how many are in memory at once.
        **data_loader_kwargs
            Further arguments of the data loader.

        Returns
        -------
        Array ``(n_samples * n,)``.

        References
        ----------
        Boyeau et al. 2023, "An empirical Bayes method for differential expression analysis of
        single cells with deep generative models".
        """
        chosen = np.arange(len(indices))
        if len(indices) > max_cells:
            chosen = torch.randperm(len(indices))[:max_cells].numpy()
        rows = np.asarray(indices)[chosen]
        log_px = self.get_marginal_ll(
            adata,
            indices=rows,
            return_mean=False,
            n_mc_samples=n_mc_samples,
            n_mc_samples_per_pass=n_mc_samples_per_pass,
        ).cpu()
        samples = zs.reshape(-1, zs.shape[-1]).cpu()
        loc, scale = qz.loc[chosen].cpu(), qz.scale[chosen].cpu()
        log_qz = Normal(loc, scale).log_prob(samples.unsqueeze(-2)).sum(-1)  # (m, anchors)
        loader = self._make_data_loader(adata, indices=rows, batch_size=1, **data_loader_kwargs)
        log_px_z = torch.stack([self._log_px_z(px, t) for t in loader], dim=-1)  # (m, anchors)
        log_pz = self._log_prior(samples, adata, rows).unsqueeze(-1)
        spread = torch.logsumexp(log_qz, dim=1, keepdim=True)
        log_weights = torch.logsumexp(log_pz + log_px_z - log_px - spread, dim=1)
        if truncation:
            mean = torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
            log_weights = log_weights.clamp(min=mean)
        return log_weights.softmax(0).numpy()

    def _log_px_z(self, px: Distribution, tensors: dict[str, Tensor]) -> Tensor:
        """Log p(x|z) of the one cell of a minibatch at every sample, (m,)."""
        x, observed = tensors[REGISTRY_KEYS.X_KEY], tensors.get(OBSERVED_KEY)
        log_size, is_sum = self.module.library_of(tensors)
        p_x = at_library_size(px, log_size.exp().to(x.device), observed if is_sum else None)
        log_prob = p_x.log_prob(dense(x))  # scvi-tools' own, as one x meets all samples
        if observed is not None:
            log_prob = log_prob[..., observed]
        return log_prob.sum(-1).reshape(-1).cpu()

    def _log_prior(self, z: Tensor, adata: AnnData | None, rows: NDArray[np.integer]) -> Tensor:
        """Log density of the prior of z at samples, (m,), averaged over w and these cells' c."""
        drawn = np.resize(rows, N_DRAWS)
        (tensors,) = self._make_data_loader(adata, indices=drawn, batch_size=N_DRAWS)
        parts = []
        for part in z.to(self.device).split(N_AT_ONCE):
            log_prob = self.module.prior_log_prob(part, tensors)  # (m, draws)
            parts.append(torch.logsumexp(log_prob, dim=1) - math.log(N_DRAWS))
        return torch.cat(parts).cpu()
