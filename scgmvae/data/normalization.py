"""Expression on the scale on which it is compared: log(1 + counts per 10,000)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from scgmvae.compat import torch_threads_kept
from scgmvae.data.validation import check_layer
from scgmvae.distributions.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["log_normalized", "mean_expression", "on_log_scale", "per_ten_thousand", "r_squared"]

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


def on_log_scale(
    x: sparse.csr_matrix | NDArray, kinds: Sequence[tuple[str, int]]
) -> sparse.csr_matrix:
    """Values on the scale on which cells are compared.

    Counts become log(1 + counts per 10,000 of their modality), those of proteins log(1 + counts);
    other values stay as they are.

    Parameters
    ----------
    x
        Values, ``(n, G)``.
    kinds
        Likelihood and number of features of each modality, side by side.
    """
    parts, first = [], 0
    x = sparse.csr_matrix(x)
    for likelihood, size in kinds:
        part = x[:, first : first + size] if len(kinds) > 1 else x
        first += size
        if likelihood == "protein":
            part = part.astype(np.float32).log1p()
        elif FAMILIES[likelihood].is_count:
            with warnings.catch_warnings():  # of cells that lack the modality
                warnings.filterwarnings("ignore", message="Some cells have zero counts")
                part = sparse.csr_matrix(log_normalized(part).X)
        parts.append(part)
    return parts[0] if len(parts) == 1 else sparse.hstack(parts, format="csr")


def per_ten_thousand(
    values: NDArray[np.float64], kinds: Sequence[tuple[str, int]]
) -> NDArray[np.float64]:
    """Expected counts as counts per 10,000 of their modality, ``(n, G)``.

    Those of proteins, and values that are not counts, stay as they are.

    Parameters
    ----------
    values
        Expected values, ``(n, G)``.
    kinds
        Likelihood and number of features of each modality, side by side.
    """
    scaled, first = values.copy(), 0
    for likelihood, size in kinds:
        part = scaled[:, first : first + size]
        first += size
        if FAMILIES[likelihood].is_count and likelihood != "protein":
            part *= TARGET_SUM / np.maximum(part.sum(1, keepdims=True), 1e-12)
    return scaled


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
