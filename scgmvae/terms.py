"""Terms of the bound, cell by cell, of any module whose losses and divergences are named."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from anndata import AnnData

from scgmvae import checks

__all__ = ["TermsMixin"]


class TermsMixin:
    """``get_elbo_terms``."""

    @torch.inference_mode()
    def get_elbo_terms(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
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
        adata = self._validate_anndata(adata)
        rows = checks.rows_of(adata, indices)
        parts = []
        for tensors in self._make_data_loader(adata, indices=rows, batch_size=batch_size):
            _, _, output = self.module(tensors)
            terms = output.reconstruction_loss | output.kl_local
            parts.append(pd.DataFrame({name: term.cpu() for name, term in terms.items()}))
        table = pd.concat(parts, ignore_index=True)
        table.index = adata.obs_names[rows]
        return table
