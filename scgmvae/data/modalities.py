"""Modalities of a MuData side by side in one AnnData, with what was measured in which cell.

A joint model reads such an AnnData as any other: x is (n, G) with the features of all modalities.
Cells that lack a modality have zeros there, and so have proteins that no cell of a batch shows.
Which features were measured is kept as *panels*: sets of features, and the panel of each cell.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from scgmvae.checks import listed
from scgmvae.compat import mudata_contained, named_layers
from scgmvae.data import matrix_checks, validation
from scgmvae.data.categories import names_of
from scgmvae.data.genes import SMALLEST_SHARE
from scgmvae.data.keys import FEATURE_MODALITY_KEY, MODALITIES_KEY, PANEL_KEY, PANELS_KEY
from scgmvae.distributions.families import FAMILIES, OF_MODALITIES
from scgmvae.distributions.joint import Modality

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

__all__ = [
    "all_panels_of",
    "check_modalities",
    "joined",
    "modalities_of",
    "panels_of",
    "parted",
    "shown_proteins",
]


def check_modalities(mdata: MuData, modalities: object) -> dict[str, str]:
    """Likelihood of each modality, after checking that the data have them.

    Raises
    ------
    KeyError
        If there is no such modality.
    ValueError
        If it is no dictionary of likelihoods, or features of two modalities have the same name.
    """
    if not isinstance(modalities, dict) or not modalities:
        raise ValueError(
            "modalities must be a dictionary of the likelihood of each modality, such as "
            f"{{'rna': 'nb', 'protein': 'protein'}}, but it is {modalities!r}."
        )
    for name, likelihood in modalities.items():
        if name not in mdata.mod:
            raise KeyError(
                f"modalities names {name!r}, which the MuData does not have. Its modalities are: "
                f"{listed(list(mdata.mod))}."
            )
        if not isinstance(mdata[name], AnnData):
            raise ValueError(
                f"Each modality must be an AnnData, but {name!r} is a "
                f"{type(mdata[name]).__name__}."
            )
        if likelihood not in OF_MODALITIES:
            raise ValueError(
                f"The likelihood of a modality must be one of {OF_MODALITIES}, but that of "
                f"{name!r} is {likelihood!r}."
            )
    names = pd.Index(np.concatenate([mdata[name].var_names.astype(str) for name in modalities]))
    if names.has_duplicates:
        raise ValueError(
            "Every feature needs a name of its own in all modalities, but some occur more than "
            f"once: {listed(names[names.duplicated()].unique())}. Call "
            "mdata.var_names_make_unique() first."
        )
    return dict(modalities)


def joined(
    mdata: MuData,
    modalities: Mapping[str, str],
    *,
    layers: Mapping[str, str | None],
    columns: Iterable[str] = (),
    batch_key: str | None = None,
    features: Mapping[str, Sequence[str]] | None = None,
    panels: Mapping[str, Mapping[str, Sequence[bool]]] | None = None,
) -> AnnData:
    """The modalities side by side, in an AnnData of all cells.

    Parameters
    ----------
    mdata
        Cells × features of several modalities, each cell in at least one of those that are read.
    modalities
        Likelihood of each modality, in the order in which their features will stand.
    layers
        Layer of each modality that holds the data; ``None`` is its ``X``.
    columns
        obs columns to bring along: of the MuData, or of a modality.
    batch_key
        Column of the batches: a protein that no cell of a batch shows was not measured there.
    features
        Names of the features of each modality of a model, in its order, for new data; features
        that they lack were not measured. ``None`` takes those of the data.
    panels
        For new data of a model: name of a modality of proteins → name of a batch → which of its
        proteins were measured there. Batches that are not among them tell it by themselves.

    Raises
    ------
    KeyError
        If a layer or column is missing.
    ValueError
        If values do not suit the likelihood, a column differs between modalities, too few
        features of a model are there, or cells are in none of the modalities.
    """
    validation.check_obs_names(mdata)
    obs_names = mdata.obs_names
    is_read = np.zeros(mdata.n_obs, dtype=bool)
    for name in modalities:
        if name in mdata.mod:
            is_read |= obs_names.isin(mdata[name].obs_names)
    if not is_read.all():
        raise ValueError(
            f"Every cell must be in one of the modalities {listed(list(modalities))}, but "
            f"{int((~is_read).sum())} of {mdata.n_obs} are in none: "
            f"{listed(obs_names[~is_read])}. Drop them first: mdata = mdata[cells].copy()."
        )
    obs = _obs_of(mdata, obs_names, columns)
    batch = pd.Series(WITHOUT_BATCHES, index=obs_names)
    if batch_key in obs:
        validation.check_columns(AnnData(obs=obs), batch_key=batch_key)
        batch = pd.Series(names_of(obs[batch_key]), index=obs_names)
    blocks = [
        _block(
            mdata,
            name,
            likelihood,
            layer=layers.get(name),
            obs_names=obs_names,
            batch=batch,
            wanted=None if features is None else features[name],
            known=(panels or {}).get(name, {}),
        )
        for name, likelihood in modalities.items()
    ]
    sizes = [block.x.shape[1] for block in blocks]
    adata = AnnData(
        sparse.hstack([block.x for block in blocks], format="csr", dtype=np.float32),
        obs=obs,
        var=_var_of(mdata, list(modalities), blocks),
    )
    _keep_panels(adata, blocks)
    adata.uns[MODALITIES_KEY] = {
        "name": np.array(list(modalities), dtype=object),
        "likelihood": np.array(list(modalities.values()), dtype=object),
        "n_features": np.array(sizes),
        "layer": np.array([layers.get(name) or "" for name in modalities], dtype=object),
    }
    return adata


WITHOUT_BATCHES = ""
"""Name of the batch of all cells, where there are none."""


class Block(NamedTuple):
    """One modality of all cells."""

    x: sparse.csr_matrix
    """Its values, (n, G_m), 0 where they were not measured."""
    names: NDArray[np.str_]
    """Names of its features, (G_m,)."""
    panel: NDArray[np.int64]
    """Panel of each cell, (n,)."""
    panels: NDArray[np.bool_]
    """Whether each panel holds each feature, (P_m, G_m)."""


def _block(
    mdata: MuData,
    name: str,
    likelihood: str,
    *,
    layer: str | None,
    obs_names: pd.Index,
    batch: pd.Series,
    wanted: Sequence[str] | None,
    known: Mapping[str, Sequence[bool]],
) -> Block:
    """One modality of all cells, with the wanted features."""
    if name not in mdata.mod or not mdata[name].n_obs:
        if wanted is None:
            raise ValueError(
                f"The modality {name!r} must have cells, but it has none. Leave it out."
            )
        empty = sparse.csr_matrix((len(obs_names), len(wanted)), dtype=np.float32)
        none = np.zeros((1, len(wanted)), dtype=bool)
        return Block(empty, np.asarray(wanted, dtype=str), np.zeros(len(obs_names), int), none)
    adata = mdata[name]
    x = _values(adata, name, likelihood, layer)
    has = obs_names.isin(adata.obs_names)
    rows = adata.obs_names.get_indexer(obs_names[has])
    place = sparse.csr_matrix(
        (np.ones(len(rows), np.float32), (np.flatnonzero(has), rows)),
        shape=(len(obs_names), adata.n_obs),
    )
    x, own = place @ x, adata.var_names.astype(str)
    observed = np.ones(len(own), dtype=bool)
    if wanted is not None and not np.array_equal(own, wanted):
        x, observed = _with_columns(x, own, name, wanted)
        own = pd.Index(wanted)
    codes, batches = np.zeros(len(obs_names), dtype=int), np.ones((1, len(own)), dtype=bool)
    if likelihood == "protein":
        codes, names = pd.factorize(batch)
        batches = _shown_in_batch(x, codes)
        for number, batch_name in enumerate(names):
            if batch_name in known:
                batches[number] = known[batch_name]
    # the last panel is that of cells without the modality
    panels = np.vstack([batches & observed, np.zeros((1, len(own)), dtype=bool)])
    return Block(x, own.to_numpy(dtype=str), np.where(has, codes, len(batches)), panels)


def _with_columns(
    x: sparse.csr_matrix, own: pd.Index, name: str, wanted: Sequence[str]
) -> tuple[sparse.csr_matrix, NDArray[np.bool_]]:
    """X with the features of a model in its order, and which of them the data have, (G_m,)."""
    columns = own.get_indexer(wanted)
    if (columns >= 0).mean() < SMALLEST_SHARE:
        raise ValueError(
            f"The modality {name!r} must have at least {SMALLEST_SHARE:.0%} of the model's "
            f"{len(wanted)} features, but it has {int((columns >= 0).sum())}. Are they named "
            "alike? Leave the modality out to map the cells by the others."
        )
    missing = np.asarray(wanted)[columns < 0]
    if len(missing):
        warnings.warn(
            f"Some features of {name!r} are treated as unobserved, because the data lack "
            f"{len(missing)} of the model's {len(wanted)}: {listed(missing)}.",
            UserWarning,
            stacklevel=6,
        )
    padded = sparse.hstack([x, sparse.csr_matrix((x.shape[0], 1), dtype=np.float32)]).tocsc()
    return padded[:, columns].tocsr(), columns >= 0


def _values(adata: AnnData, name: str, likelihood: str, layer: str | None) -> sparse.csr_matrix:
    """The matrix of a modality, checked to suit its likelihood."""
    validation.check_layer(adata, layer)
    x, place = matrix_checks.matrix_of(adata, layer)
    place = place.replace("adata", f"mdata[{name!r}]", 1)
    matrix_checks.check_numeric(x, place)
    matrix_checks.check_finite(x, place)
    x = sparse.csr_matrix(x[:], dtype=np.float32)
    if likelihood == "bernoulli":
        if x.nnz and x.data.min() < 0:
            matrix_checks.check_unit_interval(x, place)
        if x.nnz and x.data.max() > 1:
            logger.info("%s holds counts, which are read as 1 where they are not 0.", place)
            x.data = (x.data > 0).astype(np.float32)
    elif FAMILIES[likelihood].is_count and not (
        (x.data >= 0).all() and (x.data == np.floor(x.data)).all()
    ):
        raise ValueError(
            f"The likelihood {likelihood!r} of {name!r} is one of counts, but {place} holds "
            "values that are negative or no integers, such as CLR-normalised ones. Name the layer "
            f"of its counts, layer={{{name!r}: ...}}, or give it the likelihood 'gaussian'."
        )
    return x


def shown_proteins(adata: AnnData, batch_key: str | None) -> dict[str, dict[str, list[bool]]]:
    """Name of each modality of proteins → name of a batch → which proteins were measured there.

    Parameters
    ----------
    adata
        Modalities side by side.
    batch_key
        Column of the batches.
    """
    code, table = all_panels_of(adata)
    batch = np.full(adata.n_obs, WITHOUT_BATCHES, dtype=object)
    if batch_key is not None:
        batch = names_of(adata.obs[batch_key])
    first, found = 0, {}
    for modality in modalities_of(adata) or ():
        end = first + modality.n_features
        if modality.likelihood == "protein":
            of_batches = {
                str(name): np.asarray(table[np.unique(code[batch == name]), first:end]).any(axis=0)
                for name in np.unique(batch.astype(str))
            }
            # a batch without the modality does not tell its panel
            found[modality.name] = {
                name: np.asarray(shown).tolist()
                for name, shown in of_batches.items()
                if shown.any()
            }
        first = end
    return found


def _var_of(mdata: MuData, names: Sequence[str], blocks: Sequence[Block]) -> pd.DataFrame:
    """Columns of var of the modalities, and the modality of each feature."""
    parts = []
    for name, block in zip(names, blocks, strict=True):
        var = pd.DataFrame(index=block.names)
        if name in mdata.mod:
            own = mdata[name].var
            var = own.set_axis(own.index.astype(str)).reindex(block.names)
        parts.append(var.drop(columns=FEATURE_MODALITY_KEY, errors="ignore"))
    var = pd.concat(parts)
    sizes = [len(block.names) for block in blocks]
    var[FEATURE_MODALITY_KEY] = pd.Categorical(np.repeat(names, sizes), list(names))
    return var


def _shown_in_batch(x: sparse.csr_matrix, batch: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether any cell of each batch shows each protein, (B, P)."""
    of_batches = sparse.csr_matrix((np.ones(len(batch)), (batch, np.arange(len(batch)))))
    return (of_batches @ (x > 0).astype(float)).toarray() > 0


def _keep_panels(adata: AnnData, blocks: Sequence[Block]) -> None:
    """Keep which features were measured in which cell, if not all were in all."""
    codes = np.column_stack([block.panel for block in blocks])
    of_panels, code = np.unique(codes, axis=0, return_inverse=True)
    table = np.hstack([b.panels[own] for b, own in zip(blocks, of_panels.T, strict=True)])
    is_empty = (table.sum(axis=1) == 0)[code.reshape(-1)]
    if is_empty.any():
        raise ValueError(
            "Every cell must have a feature that was measured, but "
            f"{listed(adata.obs_names[is_empty])} have none: they are in modalities of proteins "
            "alone, of which no cell of their batch shows any. Drop them first."
        )
    if not table.all():
        adata.obs[PANEL_KEY] = code.reshape(-1)
        adata.uns[PANELS_KEY] = table


def panels_of(adata: AnnData) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    """Panel of each cell, (n,), and what each holds, (P, G); ``None`` where all have all."""
    if PANELS_KEY not in adata.uns:
        return None
    code = adata.obs[PANEL_KEY].to_numpy(np.int64, copy=True)  # pandas 3 lends its own, read-only
    return code, np.asarray(adata.uns[PANELS_KEY], dtype=bool)


def all_panels_of(adata: AnnData) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Panel of each cell, (n,), and what each holds, (P, G), where all have all one of all."""
    whole = np.zeros(adata.n_obs, dtype=np.int64), np.ones((1, adata.n_vars), dtype=bool)
    return panels_of(adata) or whole


def modalities_of(adata: AnnData) -> tuple[Modality, ...] | None:
    """The modalities that stand side by side in an AnnData; ``None`` in any other."""
    kept = adata.uns.get(MODALITIES_KEY)
    if kept is None:
        return None
    parts = zip(kept["name"], kept["likelihood"], kept["n_features"], strict=True)
    return tuple(Modality(str(name), str(kind), int(size)) for name, kind, size in parts)


def parted(adata: AnnData) -> MuData:
    """The modalities of an AnnData that holds them side by side, as a MuData.

    Parameters
    ----------
    adata
        Cells × features, with the modality of each feature in ``var["modality"]``.
    """
    modality, obs = adata.var[FEATURE_MODALITY_KEY], adata.obs
    parts = {}
    for name in modality.unique():
        part = adata[:, (modality == name).to_numpy()].copy()
        parts[name] = AnnData(
            part.X,
            obs=part.obs[[]],
            var=part.var.drop(columns=FEATURE_MODALITY_KEY),
            layers=named_layers(part),
        )
    with mudata_contained():
        mdata = MuData(parts)
    mdata.obs = obs.drop(columns=PANEL_KEY, errors="ignore")
    return mdata


def _obs_of(mdata: MuData, obs_names: pd.Index, columns: Iterable[str]) -> pd.DataFrame:
    """Obs of all cells: columns of the MuData, and the wanted ones of its modalities."""
    obs = mdata.obs.loc[obs_names].copy()
    for column in columns:
        if column in obs:
            continue
        values: pd.Series | None = None
        for name, adata in mdata.mod.items():
            in_modality = column.removeprefix(f"{name}:")
            if in_modality not in adata.obs or (":" in column and in_modality == column):
                continue
            own = adata.obs[in_modality].astype(object).reindex(obs_names)
            both = None if values is None else values.notna() & own.notna()
            if both is not None and (values[both] != own[both]).any():
                raise ValueError(
                    f"The obs of several modalities have a column {column!r} with different "
                    f"values. Name one of them, such as {name + ':' + column!r}, after "
                    "mdata.pull_obs(), or give mdata.obs a column of its own."
                )
            values = own if values is None else values.fillna(own)
        if values is not None:
            obs[column] = values.infer_objects()
    return obs
