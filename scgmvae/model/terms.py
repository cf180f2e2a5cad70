"""Terms of the bound, cell by cell, of any module whose losses and divergences are named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd
import torch
from anndata import AnnData
from scvi.model.base import VAEMixin
from torch import Tensor

from scgmvae import checks
from scgmvae.model.seeded import drawing_from, reading

__all__ = ["TermsMixin"]


class TermsMixin:
    """``get_elbo_terms`` and ``get_marginal_ll``."""

    @partial(reading, original=VAEMixin.get_marginal_ll)
    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Importance-sampled log likelihood of the cells, in nats.

        Parameters
        ----------
        adata, indices, n_mc_samples, batch_size, dataloader, **kwargs
            As in :meth:`scvi.model.base.VAEMixin.get_marginal_ll`.
        return_mean
            The mean over the cells, or one value for each. scvi-tools takes the mean over the
            minibatches, whatever their sizes.

        Returns
        -------
        Tensor ``()`` or ``(n,)``.
        """
        of_cells = VAEMixin.get_marginal_ll(
            self, adata, indices, n_mc_samples, batch_size, False, dataloader, **kwargs
        )
        return of_cells.mean() if return_mean else of_cells

    @torch.inference_mode()
    def get_elbo_terms(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        *,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Terms of the negative ELBO of each cell.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        indices
            Rows to use.
        batch_size
            Cells at a time.
        seed
            Of the samples.

        Returns
        -------
        DataFrame, cells × terms, in nats; the ELBO of a cell is minus the sum of its row. The
        terms are estimated with one sample of the latents.

        Examples
        --------
        >>> model.get_elbo_terms().columns.tolist()
        ['reconstruction_loss', 'kl_z', 'kl_w', 'kl_y', 'kl_d']
        """
        self._check_if_trained(warn=False)
        checks.check_seed(seed)
        adata = self._validate_anndata(adata)
        rows = checks.rows_of(adata, indices)
        parts = []
        self.module.eval()
        with drawing_from(seed):
            for tensors in self._make_data_loader(adata, indices=rows, batch_size=batch_size):
                _, _, output = self.module(tensors)
                terms = output.reconstruction_loss | output.kl_local
                parts.append(pd.DataFrame({name: term.cpu() for name, term in terms.items()}))
        table = pd.concat(parts, ignore_index=True)
        table.index = adata.obs_names[rows]
        return table
