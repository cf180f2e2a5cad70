"""Genes of new data, brought into the order of a model's genes; missing ones are marked."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scgmvae.checks import listed
from scgmvae.compat import named_layers
from scgmvae.data.keys import OBSERVED_KEY

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

logger = logging.getLogger(__name__)

__all__ = ["match_genes", "observed_genes"]


SMALLEST_SHARE = 0.5
"""Smallest share of a model's genes that data must have to be mapped."""


def match_genes(adata: AnnData, var_names: ArrayLike) -> AnnData:
    """The data with the model's genes in the model's order; ``adata`` itself if it has them so.

    Genes that the data lacks get columns of zeros and ``False`` in the var column
    ``"_scgmvae_observed"``. The model treats them as unobserved: the encoder sees what the model
    expects of them by the other genes, and the likelihood leaves them out.

    Raises
    ------
    ValueError
        If less than half of the genes are there, or one of them occurs more than once.

    Warns
    -----
    UserWarning
        If genes are missing.
    """
    if np.array_equal(adata.var_names.astype(str), var_names):
        return adata
    wanted = pd.Index(var_names)
    duplicated = adata.var_names[adata.var_names.duplicated()].intersection(wanted)
    if len(duplicated):
        raise ValueError(
            f"Genes of the model occur more than once in the data: {listed(duplicated)}. Call "
            "adata.var_names_make_unique() first."
        )
    observed = wanted.isin(adata.var_names)
    if observed.all():
        logger.info("Genes of the new data are put into the order of the model's.")
        return adata[:, adata.var_names.get_indexer_for(wanted)].copy()
    missing = wanted[~observed]
    state = (
        f"of the {len(wanted)} genes of the model the data lacks {len(missing)} "
        f"({len(missing) / len(wanted):.1%}): {listed(missing)}"
    )
    if observed.mean() < SMALLEST_SHARE:
        raise ValueError(
            f"The data must have at least {SMALLEST_SHARE:.0%} of the model's genes, but {state}. "
            + _other_names(adata, wanted)
        )
    warnings.warn(
        f"Some genes are treated as unobserved: {state}. Results are less certain than with all.",
        UserWarning,
        stacklevel=3,
    )
    return _padded(adata, wanted, observed)


def _other_names(adata: AnnData, wanted: pd.Index) -> str:
    """Sentence that says under which other names the data have the wanted genes, if any."""
    names = adata.var_names.to_series().astype(str)
    others = {
        f"adata.var[{column!r}]": adata.var[column].astype(str)
        for column in adata.var.columns
        if adata.var[column].dtype.kind not in "biuf"
    }
    others |= {
        'adata.var_names.str.split(".").str[0]': names.str.split(".").str[0],
        "adata.var_names.str.upper()": names.str.upper(),
        "adata.var_names.str.capitalize()": names.str.capitalize(),
    }
    shares = {name: wanted.isin(values).mean() for name, values in others.items()}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] < SMALLEST_SHARE:
        return "Are the genes named alike (symbols or Ensembl IDs, with or without versions)?"
    return f"{shares[best]:.0%} of them are in {best}: adata.var_names = {best}."


def _padded(adata: AnnData, wanted: pd.Index, observed: NDArray[np.bool_]) -> AnnData:
    """Copy of the data with the wanted genes; genes that are not observed get zeros."""
    present = adata[:, adata.var_names.get_indexer_for(wanted[observed])]
    varm = list(present.varm.items())
    columns = np.flatnonzero(observed)
    place = sparse.csr_matrix(
        (np.ones(len(columns)), (np.arange(len(columns)), columns)),
        shape=(len(columns), len(wanted)),
    )

    def pad(matrix: NDArray | sparse.spmatrix) -> NDArray | sparse.csr_matrix:
        padded = matrix @ place.astype(matrix.dtype)  # bytes stay bytes
        return padded.tocsr() if sparse.issparse(padded) else np.asarray(padded)

    return AnnData(
        X=None if present.X is None else pad(present.X),
        layers={name: pad(layer) for name, layer in named_layers(present).items()},
        obs=adata.obs.copy(),
        obsm=dict(adata.obsm),
        var=present.var.reindex(wanted).assign(**{OBSERVED_KEY: observed}),
        obsp=dict(adata.obsp),
        varm={name: _with_rows(values, present.var_names, wanted) for name, values in varm},
        uns=dict(adata.uns),
        raw=adata.raw,
    )


def _with_rows(values: ArrayLike, genes: pd.Index, wanted: pd.Index) -> NDArray | pd.DataFrame:
    """Values of the wanted genes, in rows that are NaN where a gene is missing."""
    rows = pd.DataFrame(values, index=genes).reindex(wanted)
    return rows if isinstance(values, pd.DataFrame) else rows.to_numpy()


def observed_genes(adata: AnnData) -> NDArray[np.bool_] | None:
    """Mask of the genes that were measured, (G,); ``None`` if all were."""
    column = adata.var.get(OBSERVED_KEY)
    return None if column is None else column.to_numpy(dtype=bool)
