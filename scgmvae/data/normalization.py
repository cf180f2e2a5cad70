"""Expression on the scale on which it is compared: log(1 + counts per 10,000)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from scgmvae.compat import torch_threads_kept
from scgmvae.data.validation import check_layer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["log_normalized", "mean_expression", "r_squared"]

TARGET_SUM = 1e4
"""Counts per cell after normalisation."""


@torch_threads_kept()
def log_normalized(counts: sparse.spmatrix | NDArray) -> AnnData:
    """Log(1 + counts per 10,000), in a new AnnData.

    Parameters
    ----------
    counts
        Counts, ``(n, G)``.
    """
    if sparse.issparse(counts):
        counts = sparse.csr_matrix(counts)  # scanpy 1.11 cannot normalise a csr_array
    adata = AnnData(counts.astype(np.float32))
    sc.pp.normalize_total(adata, target_sum=TARGET_SUM)
    sc.pp.log1p(adata)
    return adata


def mean_expression(adata: AnnData, layer: str | None = None) -> pd.Series:
    """Mean log(1 + counts per 10,000) of each gene.

    Parameters
    ----------
    adata
        Cells × genes.
    layer
        Layer with the counts; ``None`` is ``X``.

    Returns
    -------
    Series of G values, by gene.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        If there are no cells.
    """
    check_layer(adata, layer)
    counts = adata.X if layer is None else adata.layers[layer]
    mean = np.asarray(log_normalized(counts).X.mean(axis=0)).ravel()
    return pd.Series(mean, adata.var_names)


def r_squared(a: ArrayLike, b: ArrayLike) -> float:
    """Squared correlation of two vectors.

    Examples
    --------
    >>> r_squared([1.0, 2.0, 3.0], [4.0, 2.0, 0.0])
    1.0
    """
    return float(np.corrcoef(np.asarray(a), np.asarray(b))[0, 1] ** 2)
