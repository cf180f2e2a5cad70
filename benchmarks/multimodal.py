"""Do several modalities say more than one? Beside totalVI, MultiVI and each modality alone.

    SCGMVAE_DATA_DIR=... python benchmarks/multimodal.py [--tasks cite imputation ...]

cite        types of blood cells, of RNA and ten proteins
imputation  proteins of a fifth of these cells, of which RNA alone is known
simulated   RNA and open chromatin; of six types two are told by RNA alone, two by chromatin alone
mosaic      simulated cells, a third with both, a third with RNA, a third with chromatin alone
speed       seconds of an epoch and peak memory; one process for each model, nothing beside it

The peers are trained as they are by default. In *cite*, *simulated* and *mosaic*, K is found by
the clusters of scgmvae itself or by Leiden on an embedding, or given, to scgmvae or to k-means.
``--short`` runs few epochs on small simulated data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
import tools
import torch
from anndata import AnnData
from common import load_counts, peak_memory, run_tasks, set_threads, threads_kept
from mudata import MuData
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.linear_model import RidgeCV
from speed import REPEATS, EpochTimer, counts_of
from tested import leiden_of

import scgmvae
from scgmvae.clustering.partition import log_normalized_pcs
from scgmvae.compat import mudata_contained
from scgmvae.metrics import clustering_scores, mixing_by_group

Row = dict[str, object]
LIKELIHOODS = {"rna": "nb", "protein": "protein", "atac": "bernoulli"}
SHORT = {"max_epochs": 2, "pretrain_epochs": 4}
N_SHORT = 150
"""Cells of the short form."""

# ------------------------------------------------------------------------------------ models


class Fit(NamedTuple):
    """What a method has found of cells."""

    z: NDArray
    seconds: float
    clusters: NDArray | None = None
    """Those of the model itself; ``None`` where an embedding is all that it has."""


Fits = dict[str, Callable[[int | None], Fit]]
"""Name of a method → what fits it, given K or ``None``; peers take no notice of K."""


def model_of(
    mdata: MuData, names: tuple[str, ...], **settings: object
) -> tuple[MuData | AnnData, scgmvae.SCGMVAE]:
    """An untrained model of one modality or of several, and the copy of the data that it is of."""
    if len(names) > 1:
        data = mdata.copy()
        scgmvae.SCGMVAE.setup_mudata(data, modalities={n: LIKELIHOODS[n] for n in names})
    else:
        data = AnnData(mdata[names[0]].X, obs=mdata[names[0]].obs[[]])
        scgmvae.SCGMVAE.setup_anndata(data)
        if names == ("atac",):
            settings |= {"likelihood": "bernoulli"}
    return data, scgmvae.SCGMVAE(data, **settings)


def trained(
    mdata: MuData, names: tuple[str, ...], seed: int, short: bool, **settings: object
) -> tuple[MuData | AnnData, scgmvae.SCGMVAE]:
    """The same, trained as by default, with what was found in the data."""
    with mudata_contained(), threads_kept():
        data, model = model_of(mdata, names, **settings)
        epochs = SHORT if short else {}
        model.train(seed=seed, enable_progress_bar=False, logger=False, **epochs)
    return data, model


def by_scgmvae(
    mdata: MuData, names: tuple[str, ...], seed: int, short: bool
) -> Callable[[int | None], Fit]:
    """What fits scgmvae to one modality or to several."""

    def fit(n_components: int | None) -> Fit:
        begin = time.process_time()
        data, _ = trained(mdata, names, seed, short, n_components=n_components)
        seconds = time.process_time() - begin
        return Fit(data.obsm["X_scgmvae"], seconds, data.obs["scgmvae"].to_numpy().astype(str))

    return fit


def by_embedding(embed: Callable[[], NDArray]) -> Callable[[int | None], Fit]:
    """What fits a method that has no clusters of its own."""

    def fit(n_components: int | None) -> Fit:
        begin = time.process_time()
        with threads_kept():
            z = embed()
        return Fit(np.asarray(z), time.process_time() - begin)

    return fit


def clr(counts: sparse.csr_matrix) -> NDArray:
    """Centred log ratios of the proteins of each cell, of counts (n, P)."""
    logs = np.log1p(counts.toarray())
    return logs - logs.mean(1, keepdims=True)


def side_by_side(*parts: NDArray) -> NDArray:
    """Embeddings of the same cells as one, each of the same variance in total."""
    return np.hstack([part / np.sqrt(part.var(0).sum()) for part in parts])


def rows_of(
    name: str,
    fit: Callable[[int | None], Fit],
    types: NDArray,
    seed: int,
    measured: NDArray | None = None,
) -> list[Row]:
    """Rows of a method, for K found and given, and each way to make clusters.

    Parameters
    ----------
    name, fit
        Of the method.
    types
        Known type of each cell, ``(n,)``.
    seed
        Of the clusters that are made of an embedding.
    measured
        Which modalities each cell has, ``(n,)``; their mixing within types is measured then.
    """
    n_types = len(np.unique(types))
    found = fit(None)
    given = found if found.clusters is None else fit(n_types)
    with threads_kept():
        told_k = KMeans(n_types, n_init=10, random_state=seed).fit_predict(given.z)
    parts = [("given", "k-means", told_k)]
    for resolution, codes in leiden_of(found.z, seed).items():
        parts.append(("found", f"Leiden {resolution}", codes))
    if found.clusters is not None:
        parts = [("found", "own", found.clusters), ("given", "own", given.clusters), *parts]
    of_fits = {"found": found, "given": given}
    mixing = {}
    if measured is not None:
        by_type = {K: mixing_by_group(of_fits[K].z, measured, types) for K in of_fits}
        mixing = {K: {"mixing": m.mean(), "least mixing": m.min()} for K, m in by_type.items()}
    rows = []
    for K, by, codes in parts:
        scores = clustering_scores(types, codes)
        rows.append(
            {
                "method": name,
                "K": K,
                "clusters": by,
                "seed": seed,
                **{score: scores[score] for score in ("ARI", "NMI", "n_clusters")},
                **mixing.get(K, {}),
                "CPU seconds": of_fits[K].seconds,
            }
        )
    print(pd.DataFrame(rows).round(3).to_string(index=False, header=False), flush=True)
    return rows


# -------------------------------------------------------------------------------------- data


def blood(short: bool) -> MuData:
    """RNA and proteins of the same cells, with ``cell_type`` in obs."""
    if not short:
        return scgmvae.datasets.load("cite_small")
    rna = load_counts("simulated")[0][:N_SHORT].copy()
    rng = np.random.default_rng(0)
    mean = rng.lognormal(4, 1, (3, 10))[rna.obs["cell_type"].cat.codes]
    protein = AnnData(
        sparse.csr_matrix(rng.poisson(mean).astype(np.float32)),
        obs=rna.obs[[]],
        var=pd.DataFrame(index=[f"protein_{i}" for i in range(10)]),
    )
    return together({"rna": rna, "protein": protein}, rna.obs[["cell_type"]])


def together(modalities: dict[str, AnnData], obs: pd.DataFrame) -> MuData:
    """Modalities as a MuData, with columns of all cells."""
    with mudata_contained():
        mdata = MuData(modalities)
    mdata.obs = obs.reindex(mdata.obs_names)
    return mdata


def multiome(seed: int, short: bool, **settings: float) -> MuData:
    """Simulated RNA and open chromatin: RNA tells types almost without errors, chromatin less."""
    size = (N_SHORT, 60, 200) if short else (3000, 500, 5000)
    return scgmvae.datasets.synthetic_multiome(*size, seed=seed, **settings)


# ------------------------------------------------------------------------------------- tasks


def cite(seed: int, short: bool) -> list[Row]:
    """Types of blood cells by RNA and proteins."""
    mdata = blood(short)
    rna, protein = (mdata[name].X for name in ("rna", "protein"))
    pcs = partial(log_normalized_pcs, rna, 30, seed)
    fits: Fits = {
        "scgmvae, RNA": by_scgmvae(mdata, ("rna",), seed, short),
        "scgmvae, protein": by_scgmvae(mdata, ("protein",), seed, short),
        "totalVI": by_embedding(
            lambda: tools.totalvi(
                mdata, seed, max_epochs=2 if short else None
            ).get_latent_representation()
        ),
        "PCA of RNA": by_embedding(pcs),
        "CLR of protein": by_embedding(lambda: clr(protein)),
        "both side by side": by_embedding(lambda: side_by_side(pcs(), clr(protein))),
    }
    joint = by_scgmvae(mdata, ("rna", "protein"), seed, short)
    return all_rows({"scgmvae, RNA + protein": joint} | fits, mdata, seed)


def all_rows(fits: Fits, mdata: MuData, seed: int, measured: NDArray | None = None) -> list[Row]:
    """The rows of all methods."""
    types = mdata.obs["cell_type"].astype(str).to_numpy()
    return [row for name, fit in fits.items() for row in rows_of(name, fit, types, seed, measured)]


def imputation(seed: int, short: bool) -> list[Row]:
    """Proteins of a fifth of the cells, which all methods see with their RNA alone."""
    mdata = blood(short)
    order = np.random.default_rng(seed).permutation(mdata.n_obs)
    held, rest = np.split(order, [mdata.n_obs // 5])
    held, rest = (mdata.obs_names[np.sort(rows)] for rows in (held, rest))
    obs = mdata.obs.assign(has=np.where(mdata.obs_names.isin(held), "rna", "both"))
    known = together({"rna": mdata["rna"], "protein": mdata["protein"][rest].copy()}, obs)

    data, model = trained(known, ("rna", "protein"), seed, short)
    made = model.impute("protein", data, given="rna")[held]
    bounds = {"scgmvae": [np.log1p(made.layers[key]) for key in ("lower", "upper")]}
    found = {"scgmvae": np.log1p(np.asarray(made.X))}
    found |= of_ridge(known, held, seed) | of_totalvi(known, held, seed, short)
    truth = np.log1p(mdata["protein"][held].X.toarray())
    return [
        {"method": method, "seed": seed, **agreement(truth, values, bounds.get(method))}
        for method, values in found.items()
    ]


def of_ridge(known: MuData, held: pd.Index, seed: int) -> dict[str, NDArray]:
    """Log(1 + proteins) of held-out cells by ridge regression on principal components of RNA."""
    pcs = pd.DataFrame(log_normalized_pcs(known["rna"].X, 30, seed), known["rna"].obs_names)
    protein = known["protein"]
    ridge = RidgeCV(np.logspace(-3, 3, 13))
    ridge.fit(pcs.loc[protein.obs_names], np.log1p(protein.X.toarray()))
    return {"ridge of PCA": ridge.predict(pcs.loc[held])}


def of_totalvi(known: MuData, held: pd.Index, seed: int, short: bool) -> dict[str, NDArray]:
    """The same by totalVI, for which the held-out cells are a batch without proteins."""
    model = tools.totalvi(known, seed, "has", max_epochs=2 if short else None)
    found = {}
    for name, is_in in (("totalVI", True), ("totalVI, without background", False)):
        _, expected = model.get_normalized_expression(
            indices=known.obs_names.get_indexer(held),
            transform_batch="both",
            n_samples=25,  # as in its tutorials
            include_protein_background=is_in,
            return_numpy=True,
            return_mean=True,
        )
        found[name] = np.log1p(expected)
    return found


def agreement(truth: NDArray, values: NDArray, bounds: list[NDArray] | None) -> Row:
    """Of log(1 + counts), (n, P): correlation over cells, mean of and least over the proteins."""
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(truth.T, values.T, strict=True)]
    within = np.nan if bounds is None else np.mean((truth >= bounds[0]) & (truth <= bounds[1]))
    return {
        "Pearson": float(np.mean(correlations)),
        "least Pearson": float(np.min(correlations)),
        "RMSE": float(np.sqrt(np.mean((truth - values) ** 2))),
        "covered": float(within),
    }


def chromatin_fits(mdata: MuData, seed: int, short: bool, batch_key: str | None = None) -> Fits:
    """What fits RNA and open chromatin together."""
    peer = by_embedding(
        lambda: tools.multivi(
            mdata, seed, batch_key, max_epochs=2 if short else None
        ).get_latent_representation()
    )
    joint = by_scgmvae(mdata, ("rna", "atac"), seed, short)
    return {"scgmvae, RNA + ATAC": joint, "MultiVI": peer}


def simulated(seed: int, short: bool) -> list[Row]:
    """Types of which some are told by one modality alone."""
    mdata = multiome(seed, short)
    fits = chromatin_fits(mdata, seed, short)
    for name, title in (("rna", "RNA"), ("atac", "ATAC")):
        fits[f"scgmvae, {title}"] = by_scgmvae(mdata, (name,), seed, short)
        x = mdata[name].X
        fits[f"PCA of {title}"] = by_embedding(lambda x=x: log_normalized_pcs(x, 30, seed))
    return all_rows(fits, mdata, seed)


def mosaic(seed: int, short: bool) -> list[Row]:
    """Cells of which a third has both modalities; each of them tells all types apart."""
    mdata = multiome(seed, short, n_told_by_one=0, share_unpaired=2 / 3)
    measured = mdata.obs["measured"].astype(str).to_numpy()
    fits = chromatin_fits(mdata, seed, short, "measured")
    return all_rows(fits, mdata, seed, measured)


# ------------------------------------------------------------------------------------- speed

MANY_PEAKS = "scgmvae, RNA + 200,000 peaks"
MODELS = {
    "scgmvae, RNA": ("rna",),
    "scgmvae, RNA + protein": ("rna", "protein"),
    "totalVI": ("rna", "protein"),
    "scgmvae, ATAC": ("atac",),
    "scgmvae, RNA + ATAC": ("rna", "atac"),
    "MultiVI": ("rna", "atac"),
    MANY_PEAKS: ("rna", "atac"),
}
"""Model → its modalities."""
WHOLE = {"train_size": 1.0, "early_stopping": False, "batch_size": 128}
"""Training of a peer on all cells, without a look at held-out ones, in scgmvae's minibatches."""


def speed(seed: int, short: bool) -> list[Row]:
    """An epoch of each model, in a process of its own, which has held nothing else in memory."""
    rows = []
    for name in MODELS:
        if short:
            rows.append(epochs_of_model(name, seed, short, torch.get_num_threads()))
        else:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                threads = torch.get_num_threads()
                rows.append(process.submit(epochs_of_model, name, seed, short, threads).result())
        print(rows[-1], flush=True)
    alone = rows[0]["seconds per epoch"]
    return [row | {"to RNA alone": row["seconds per epoch"] / alone} for row in rows]


def epochs_of_model(name: str, seed: int, short: bool, n_threads: int) -> Row:
    """Median seconds of an epoch of the joint stage, the first one left out, and peak memory."""
    set_threads(n_threads)
    repeats = 2 if short else REPEATS
    timer = EpochTimer()
    with tools.quiet(), peak_memory() as peak:
        n_peaks = 500 if short else 200_000 if name == MANY_PEAKS else 50_000
        mdata = of_many_features(MODELS[name], n_peaks, seed, short)
        training = {"max_epochs": repeats + 1, "callbacks": [timer]}
        if name == "totalVI":
            tools.totalvi(mdata, seed, reduce_lr_on_plateau=False, **training, **WHOLE)
        elif name == "MultiVI":
            tools.multivi(mdata, seed, **training, **WHOLE)
        else:
            _, model = model_of(mdata, MODELS[name], n_components=10)
            model.train(
                pretrain_epochs=1,
                start="kmeans",
                seed=seed,
                enable_progress_bar=False,
                logger=False,
                **training,
            )
    # the first epoch of the joint stage counts the start of the mixture as well
    seconds = float(np.median(timer.seconds[-repeats:]))
    return {
        "model": name,
        "seed": seed,
        "cells": mdata.n_obs,
        "seconds per epoch": seconds,
        "cells per second": mdata.n_obs / seconds,
        "peak MB": peak.mb,
    }


def of_many_features(names: tuple[str, ...], n_peaks: int, seed: int, short: bool) -> MuData:
    """2,000 genes, 100 proteins or peaks of which 2 % are open, without any structure."""
    n_cells, n_genes, n_proteins = (256, 100, 11) if short else (20 * 128, 2000, 100)
    rng = np.random.default_rng(seed)
    made: dict[str, Callable[[], AnnData]] = {
        "rna": lambda: counts_of(n_cells, n_genes, 0.08, seed),
        "protein": lambda: counts_of(n_cells, n_proteins, 0.9, seed),
        "atac": lambda: AnnData(
            sparse.random(
                *(n_cells, n_peaks, 0.02),
                format="csr",
                dtype=np.float32,
                random_state=rng,
                data_rvs=np.ones,
            )
        ),
    }
    modalities = {name: made[name]() for name in names}
    for name, adata in modalities.items():
        adata.var_names = [f"{name}_{i}" for i in range(adata.n_vars)]
    return together(modalities, pd.DataFrame(index=modalities[names[0]].obs_names))


TASKS = {
    "cite": (cite, ["method", "K", "clusters"]),
    "imputation": (imputation, ["method"]),
    "simulated": (simulated, ["method", "K", "clusters"]),
    "mosaic": (mosaic, ["method", "K", "clusters"]),
    "speed": (speed, ["model"]),
}

if __name__ == "__main__":
    sc.settings.verbosity = 0
    run_tasks("multimodal", __doc__.split("\n")[0], TASKS)
