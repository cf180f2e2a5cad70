"""Checks of an AnnData. Each error names the rule, what was found and what to do."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data import _constants as scvi_constants

from scgmvae.checks import listed, listed_like
from scgmvae.compat import named_layers
from scgmvae.data.categories import name_of, names_of
from scgmvae.data.keys import MODALITIES_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

logger = logging.getLogger(__name__)

__all__ = [
    "check_anndata",
    "check_columns",
    "check_continuous",
    "check_guide",
    "check_key_added",
    "check_labels",
    "check_layer",
    "check_n_components",
    "check_not_view",
    "check_obs_names",
    "check_size_factors",
    "check_var_names",
    "columns_of_user",
    "default_layer",
    "refuse_minified",
    "rows_of",
    "unchanged_on_error",
]

NO_LABEL = ("", "na", "nan", "none", "unassigned", "unknown", "unlabeled", "unlabelled")
"""Usual names, in small letters, of cells without a label."""


@contextmanager
def unchanged_on_error(adata: AnnData) -> Iterator[None]:
    """Undo what registration wrote into ``adata`` if the block raises."""
    if adata.is_view:  # a view cannot be registered, and writing to it would make it a copy
        yield
        return
    obs, uns = adata.obs.copy(), dict(adata.uns)
    obsm = dict(adata.obsm)
    try:
        yield
    except BaseException:
        adata.obs = obs
        for mapping, before in ((adata.uns, uns), (adata.obsm, obsm)):
            for key in set(mapping) - set(before):
                del mapping[key]
            for key, value in before.items():
                if mapping.get(key) is not value:
                    mapping[key] = value
        raise


def check_anndata(adata: object) -> None:
    """Raise if data are no AnnData (``ValueError``) or minified (``NotImplementedError``)."""
    if not isinstance(adata, AnnData):
        raise ValueError(
            f"adata must be an AnnData, but it is a {type(adata).__name__}. Read a file with "
            "anndata.read_h5ad, put a matrix into one by anndata.AnnData(x), and of a MuData pass "
            "one modality, for example mdata['rna'], or set it up with SCGMVAE.setup_mudata."
        )
    if adata.uns.get(scvi_constants._ADATA_MINIFY_TYPE_UNS_KEY) is not None:
        refuse_minified()


def refuse_minified() -> None:
    """Raise ``NotImplementedError``: minified data do not keep enough for this model."""
    raise NotImplementedError(
        "Minified data keep posteriors of z in place of counts, but w and the components are "
        "inferred from the counts as well. Use the data with their counts; backed AnnData take "
        "no memory."
    )


def check_not_view(adata: AnnData) -> None:
    """Raise ``ValueError`` for a view, which nothing can be written to."""
    check_anndata(adata)
    if adata.is_view:
        raise ValueError(
            "The model writes into its AnnData, but this one is a view of another. Make it data "
            "of its own first: adata = adata.copy()."
        )


def check_obs_names(adata: AnnData) -> None:
    """Raise ``ValueError`` where two cells have the same name."""
    if not adata.obs_names.is_unique:
        names = adata.obs_names[adata.obs_names.duplicated()].unique()
        raise ValueError(
            f"Every cell needs a name of its own, but {len(names)} obs names occur more than "
            f"once: {listed(names)}. Call adata.obs_names_make_unique() first."
        )


def check_var_names(adata: AnnData) -> None:
    """Raise ``ValueError`` where two genes have the same name."""
    if not adata.var_names.is_unique:
        names = adata.var_names[adata.var_names.duplicated()].unique()
        raise ValueError(
            "Every gene needs a name of its own, by which new data are matched to the model, but "
            f"{len(names)} var names occur more than once: {listed(names)}. Call "
            "adata.var_names_make_unique() first."
        )


def columns_of_user(obs: pd.DataFrame) -> list[Any]:
    """Names of the columns, but for those that registration has made."""
    return [name for name in obs.columns if not str(name).startswith(("_scvi", "_scgmvae"))]


def check_columns(
    adata: AnnData,
    *,
    is_whole: bool = True,
    of_model: bool = False,
    **keys: str | Sequence[str] | None,
) -> None:
    """Raise where a named obs column is missing (``KeyError``) or incomplete (``ValueError``).

    Parameters
    ----------
    adata
        The data.
    is_whole
        Whether every cell needs a value.
    of_model
        Whether a model reads the columns, rather than a user naming them now.
    **keys
        Argument name → obs column or, where it ends in ``_keys``, list of different obs columns;
        ``None`` is skipped.
    """
    for argument, value in keys.items():
        if value is None:
            continue
        is_list = argument.endswith("_keys")
        columns = value if is_list else [value]
        is_sound = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
        if not (is_sound and len(set(columns)) == len(columns)):
            wanted = "a list of different obs columns" if is_list else "the name of an obs column"
            raise ValueError(f"{argument} must be {wanted}, but it is {value!r}.")
        for column in columns:
            if column not in adata.obs:
                reader = "The model reads" if of_model else f"{argument} names"
                place = "mdata" if MODALITIES_KEY in adata.uns else "adata"
                known = listed_like(column, columns_of_user(adata.obs))
                raise KeyError(
                    f"{reader} the obs column {column!r}, which {place}.obs does not have. "
                    f"Its columns are: {known}."
                )
            missing = adata.obs_names[adata.obs[column].isna()]
            if is_whole and len(missing):
                raise ValueError(
                    f"Every cell needs a value in the obs column {column!r} ({argument}), but "
                    f"{len(missing)} have none: {listed(missing)}. Fill them in, or drop the "
                    "cells."
                )


def check_layer(adata: AnnData, layer: str | None, of_model: bool = False) -> None:
    """Raise where a named layer is missing (``KeyError``) or there is no data (``ValueError``).

    Parameters
    ----------
    adata
        The data.
    layer
        Name of the layer; ``None`` is X.
    of_model
        Whether a model reads that layer, rather than a user naming it now.
    """
    check_anndata(adata)
    if 0 in adata.shape or (layer is None and adata.X is None):
        what = "no X" if adata.X is None else f"{adata.n_obs} cells and {adata.n_vars} genes"
        raise ValueError(
            f"The data must have cells, genes and a matrix of values, but it has {what}. "
            + ("The model reads X." if of_model else "Values in a layer are named by layer=...")
        )
    layers = list(named_layers(adata))
    if layer is None or layer in layers:
        return
    there = f"Its layers are: {listed_like(layer, layers)}." if layers else "It has no layers."
    if of_model:
        raise KeyError(
            f"The model reads the layer {layer!r}, which the data does not have. {there} Put the "
            f"values there: adata.layers[{layer!r}] = ..."
        )
    raise KeyError(
        f"layer={layer!r} names no layer of the data. {there} Without layer=... X is taken."
    )


def check_labels(adata: AnnData, labels_key: str, unlabeled_category: str) -> None:
    """Raise ``ValueError`` where no cell has a label; warn where none seems to be without."""
    column, unlabeled = adata.obs[labels_key], name_of(unlabeled_category)
    names = set(names_of(column.dropna()))
    if not names - {unlabeled}:
        raise ValueError(
            f"At least one cell needs a label, but all in the obs column {labels_key!r} are "
            f"{unlabeled_category!r} or missing. Leave out labels_key=... to train without labels."
        )
    if unlabeled in names:
        return
    like = [name for name in names if name.lower().strip() in {*NO_LABEL, unlabeled.lower()}]
    if like or (unlabeled != "unknown" and not column.isna().any()):
        what = f"{listed(sorted(like))} looks like it" if like else "all cells count as labelled"
        warnings.warn(
            f"No cell has the unlabeled_category={unlabeled!r} in the obs column {labels_key!r}, "
            f"where {what}. Name the value of cells without a label, as they are read for labels "
            "of a type otherwise.",
            UserWarning,
            stacklevel=3,
        )


def check_size_factors(adata: AnnData, size_factor_key: str | None) -> None:
    """Raise ``ValueError`` where a size factor is not a positive finite number."""
    if size_factor_key is None:
        return
    values = _single_precision(adata.obs[size_factor_key])
    bad = adata.obs_names[~(np.isfinite(values) & (values > 0))]
    if len(bad):
        raise ValueError(
            f"Size factors must be positive numbers, but {len(bad)} cells have another value in "
            f"the obs column {size_factor_key!r}: {listed(bad)}."
        )


def check_continuous(adata: AnnData, continuous_covariate_keys: Sequence[str] | None) -> None:
    """Raise ``ValueError`` where a continuous covariate is not a finite number."""
    for column in continuous_covariate_keys or ():
        values = _single_precision(adata.obs[column])
        bad = adata.obs_names[~np.isfinite(values)]
        if len(bad):
            raise ValueError(
                f"Continuous covariates must be finite numbers, but {len(bad)} cells have another "
                f"value in the obs column {column!r}: {listed(bad)}. Register a column of names "
                "under categorical_covariate_keys instead."
            )


def _single_precision(column: pd.Series) -> NDArray[np.float32]:
    """Column in the precision of a model; NaN or infinite for values that are no such number."""
    if column.dtype.kind in "cmM":  # complex numbers, dates and times pass for numbers in pandas
        return np.full(len(column), np.nan, dtype=np.float32)
    values = pd.to_numeric(column, errors="coerce").to_numpy(float)
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32)


def check_n_components(n_components: int | None, n_obs: int, n_labels: int = 0) -> None:
    """Raise ``ValueError`` unless K is ``None`` or between 1 (or the labels) and the cells."""
    if n_components is None:
        return
    is_integer = isinstance(n_components, int | np.integer) and not isinstance(n_components, bool)
    if not is_integer or not 1 <= n_components <= n_obs:
        raise ValueError(
            f"n_components must be an integer from 1 to the number of cells ({n_obs}), or None, "
            f"which finds it from the data, but it is {n_components!r}."
        )
    if n_components < n_labels:
        raise ValueError(
            f"Every label needs a component of its own: there are {n_labels} labels but only "
            f"n_components={n_components}. Give at least {n_labels}, or None."
        )


def check_key_added(setup: dict[str, Any], key_added: str = "scgmvae") -> None:
    """Raise ``ValueError`` if the key is not a name, or would overwrite a column that is read."""
    is_name = isinstance(key_added, str) and key_added and not key_added.startswith("_scvi")
    if not is_name or "/" in key_added:
        raise ValueError(
            "key_added must be a name for an obs column, without '/' and not one of scvi-tools' "
            f"own ('_scvi...'), but it is {key_added!r}."
        )
    registered = [value for name, value in setup.items() if name.endswith("_key") and value]
    for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
        registered += setup[name] or []
    for written in (key_added, *(f"{key_added}_{n}" for n in ("fine", "confidence", "novelty"))):
        if written in registered:
            raise ValueError(
                f"key_added={key_added!r} would overwrite the obs column {written!r}, which the "
                "model was set up with. Choose another key; train() writes under 'scgmvae', so "
                "give the column another name before that."
            )


def check_guide(adata: AnnData, guide_key: str | None, n_components: int | None) -> None:
    """Raise ``ValueError`` where a starting partition has more groups than components."""
    if guide_key is None or n_components is None:
        return
    n_groups = adata.obs[guide_key].nunique()
    if n_groups > n_components:
        raise ValueError(
            "Every group of the starting partition needs a component of its own: the obs column "
            f"{guide_key!r} has {n_groups} groups but n_components={n_components}. Make a model "
            f"with at least {n_groups}, or with n_components=None."
        )


def rows_of(adata: AnnData, indices: ArrayLike | None) -> NDArray[np.int64]:
    """Row numbers that ``indices`` select: numbers, or a mask of all cells; ``None`` is all.

    Raises
    ------
    ValueError
        If they select no cell, or a cell that does not exist.
    """
    if indices is None:
        return np.arange(adata.n_obs)
    rows = np.asarray(indices)
    if rows.dtype == bool and rows.shape == (adata.n_obs,):
        rows = np.flatnonzero(rows)
    is_integer = np.issubdtype(rows.dtype, np.integer) and rows.ndim == 1
    if (
        not is_integer
        or not len(rows)
        or not np.isin(rows, np.arange(-adata.n_obs, adata.n_obs)).all()
    ):
        raise ValueError(
            "indices must select at least one cell, by numbers below the number of cells "
            f"({adata.n_obs}) or by a mask of that length, but they are {rows!r:.100}."
        )
    return rows.astype(np.int64) % adata.n_obs


def default_layer(adata: AnnData) -> str | None:
    """The layer that an AnnData without set-up is registered with: ``counts`` or X."""
    layer = "counts" if "counts" in adata.layers else None
    logger.info(
        "The AnnData was not set up; using %s without batches, labels or covariates.",
        "layers['counts']" if layer else "X",
    )
    return layer
