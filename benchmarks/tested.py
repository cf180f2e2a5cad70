"""Are the clusters that are found real? Tested splits beside Leiden, where the truth is known.

    SCGMVAE_DATA_DIR=... python benchmarks/tested.py [--tasks one power types truth donors cost]

The truth is no clustering: simulated counts, one type of cells alone, cell lines by genotype, two
populations from two experiments, islets by annotation of marker genes.

one      one population of cells: how often more than one cluster is found
power    two populations that differ in some genes by some factor: how often both are found
types    3 to 20 simulated types: how many are found
truth    real data: agreement with the types, and how well rare types are found
donors   types in donors, treatments or batches that are told or not
depth    one or three types, half of the cells ten times deeper
cost     seconds of the tests by number of cells

``--short`` runs the smallest form of each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from common import load_counts, run_tasks, threads_kept
from scipy import sparse
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture

import scgmvae
from scgmvae.clustering.partition import leiden, log_normalized_pcs, neighbor_graph
from scgmvae.clustering.split_tree import STRENGTH, SplitTree
from scgmvae.metrics import calibration_error, mixing_by_group

N_GENES = 500
RESOLUTIONS = (0.3, 0.5, 1.0)
BRIEF = {"max_epochs": 5}
"""Length of the joint stage where the tree of splits is what counts: it is made before."""
N_PCS = 10
"""Number of principal components for scikit-learn's methods."""
RARE = 0.02
"""Largest share of the cells of a rare type."""

Row = dict[str, object]


# --------------------------------------------------------------------------- simulated cells


def profiles(rng: np.random.Generator, changes: Iterable[tuple[int, float]]) -> np.ndarray:
    """Shares of the genes in one population and in others that differ from it, (types, G).

    Parameters
    ----------
    rng
        Source of the draws.
    changes
        For each further population, number of genes that differ, and by what factor, up or down.
    """
    base = np.exp(rng.normal(0, 1, N_GENES))
    types = [base]
    for n_genes, fold in changes:
        other = base.copy()
        chosen = rng.choice(N_GENES, n_genes, replace=False)
        other[chosen] *= float(fold) ** rng.choice([-1, 1], n_genes)
        types.append(other)
    types = np.array(types)
    return types / types.sum(1, keepdims=True)


def counts(rng: np.random.Generator, shares: np.ndarray, depth: np.ndarray) -> AnnData:
    """Negative-binomial counts of inverse dispersion 5, given shares (n, G) and depths (n,)."""
    mean = shares / shares.sum(1, keepdims=True) * depth[:, None]
    x = rng.poisson(rng.gamma(5, mean / 5)).astype(np.float32)
    return AnnData(sparse.csr_matrix(x[x.sum(1) > 0]))


def one_population(kind: str, n: int, seed: int) -> tuple[AnnData, str | None]:
    """Cells of one population, and the column of their batches, if any."""
    rng = np.random.default_rng(seed)
    shares = np.repeat(profiles(rng, []), n, axis=0)
    depth = np.full(n, 3000.0)
    batch = rng.integers(2, size=n)
    if kind == "depth in two halves":
        depth[: n // 2] /= 10
    elif kind == "log-normal depth":
        depth = np.exp(rng.normal(np.log(3000), 0.6, n))
    elif kind == "batch effect":
        shares[batch == 1] *= np.exp(rng.normal(0, 0.3, N_GENES))
    elif kind == "gradient":
        slope = np.zeros(N_GENES)
        slope[rng.choice(N_GENES, 80, replace=False)] = rng.choice([-1.5, 1.5], 80)
        shares *= np.exp(rng.uniform(-1, 1, n)[:, None] * slope)
    adata = counts(rng, shares, depth)
    adata.obs["batch"] = pd.Categorical(batch.astype(str))
    return adata, "batch" if kind == "batch effect" else None


def mixed(
    rng: np.random.Generator, changes: list[tuple[int, float]], sizes: list[float], n: int
) -> AnnData:
    """Cells of several types, with log-normal depths."""
    n_cells = np.maximum(10, np.round(np.array(sizes) * n)).astype(int)
    types = np.repeat(np.arange(len(sizes)), n_cells)
    depth = np.exp(rng.normal(np.log(3000), 0.3, len(types)))
    adata = counts(rng, profiles(rng, changes)[types], depth)
    adata.obs["cell_type"] = pd.Categorical(types.astype(str))
    return adata


# ---------------------------------------------------------------------------------- methods


def fitted(
    adata: AnnData,
    batch_key: str | None,
    seed: int,
    short: bool,
    epochs: dict[str, int] | None = None,
    **settings: int,
) -> Row:
    """A fit with default settings: clusters, seconds, and what K was found."""
    scgmvae.SCGMVAE.setup_anndata(adata, batch_key=batch_key)
    model = scgmvae.SCGMVAE(adata, **settings)
    epochs = {"max_epochs": 2, "pretrain_epochs": 10} if short else epochs or {}
    begin = time.perf_counter()
    with threads_kept():
        model.train(seed=seed, enable_progress_bar=False, logger=False, **epochs)
    seconds = time.perf_counter() - begin
    return {"model": model, "clusters": adata.obs["scgmvae"].to_numpy(), "seconds": seconds}


@threads_kept()
def leiden_of(x: np.ndarray, seed: int) -> dict[float, np.ndarray]:
    """Leiden's partition at each resolution."""
    graph = neighbor_graph(x, seed)
    return {resolution: leiden(graph, resolution, seed) for resolution in RESOLUTIONS}


@threads_kept()
def by_pcs(adata: AnnData, seed: int) -> dict[str, np.ndarray]:
    """Partitions of principal components of log-normalised counts."""
    pcs = log_normalized_pcs(adata.X, seed=seed)
    found = leiden_of(pcs, seed)
    by_leiden = {f"PCA + Leiden {resolution}": codes for resolution, codes in found.items()}
    return by_leiden | by_scikit_learn(pcs[:, :N_PCS], seed)


def by_scikit_learn(pcs: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """What finds a number of clusters in scikit-learn, on the first principal components.

    A Gaussian mixture by BIC, for more and more components until three numbers in a row are no
    better; and HDBSCAN, whose cells outside of all clusters are one more.
    """
    best, best_bic, k, n_worse = None, np.inf, 1, 0
    while n_worse < 3 and k < len(pcs) // 20:
        mixture = GaussianMixture(k, reg_covar=1e-4, random_state=seed).fit(pcs)
        bic = mixture.bic(pcs)
        n_worse = 0 if bic < best_bic else n_worse + 1
        if bic < best_bic:
            best, best_bic = mixture, bic
        k += 1
    return {
        "PCA + Gaussian mixture, BIC": best.predict(pcs),
        "PCA + HDBSCAN": HDBSCAN(min_cluster_size=15, copy=True).fit_predict(pcs),
    }


def methods(
    adata: AnnData, batch_key: str | None, seed: int, short: bool
) -> dict[str, np.ndarray]:
    """Clusters of each method."""
    found = fitted(adata, batch_key, seed, short)
    return {"SCGMVAE": found["clusters"]} | by_pcs(adata, seed)


def best_f1(truth: np.ndarray, clusters: np.ndarray) -> float:
    """F1 of the best cluster of each rare type, averaged over those."""
    shares = pd.Series(truth).value_counts(normalize=True)
    rare = shares.index[shares <= RARE]
    scores = [
        max(f1_score(truth == name, clusters == cluster) for cluster in np.unique(clusters))
        for name in rare
    ]
    return float(np.mean(scores)) if len(scores) else np.nan


def error_of_confidence(adata: AnnData) -> float:
    """Calibration error of the confidence, where the commonest type of a cluster is right."""
    clusters, types = (adata.obs[key].astype(str) for key in ("scgmvae", "cell_type"))
    is_right = clusters.map(pd.crosstab(clusters, types).idxmax(axis=1)) == types
    proba = pd.DataFrame({"right": adata.obs["scgmvae_confidence"]})
    return calibration_error(np.where(is_right, "right", "wrong"), proba)


# ------------------------------------------------------------------------------------ tasks


def one(seed: int, short: bool) -> list[Row]:
    """One population of cells, simulated and real."""
    kinds = ["constant depth", "depth in two halves", "log-normal depth", "batch effect"]
    cells: list[tuple[str, AnnData, str | None]] = [
        (f"{kind}, {n:,} cells", *one_population(kind, n, seed))
        for kind in ([*kinds, "gradient"] if not short else kinds[:1])
        for n in ((500, 2000, *([10_000] if seed < 3 else [])) if not short else (200,))
    ]
    if not short and seed < 5:
        for name, batch_key in (("two_populations", None), ("sc_mixology", "batch")):
            adata, _ = load_counts(name)
            for group in adata.obs["cell_type"].cat.categories:
                part = adata[adata.obs["cell_type"] == group].copy()
                cells.append((f"{name}, {group}", part, batch_key))
        adata, _ = load_counts("kang")
        for group in ("B", "CD4T"):
            cells.append((f"kang, {group}, resampled", resampled(adata, group, seed), None))
    rows = []
    for name, adata, batch_key in cells:
        tree = SplitTree.of_arrays(
            fitted(adata, batch_key, seed, short, BRIEF)["model"].split_tree_
        )
        found = {"SCGMVAE": tree.clusters(tree.height >= STRENGTH)} | by_pcs(adata, seed)
        for method, codes in found.items():
            n_clusters = len(np.unique(codes))
            rows.append(
                {
                    "cells": name,
                    "method": method,
                    "seed": seed,
                    "n_clusters": n_clusters,
                    "is_split": float(n_clusters > 1),
                }
            )
    return rows


def resampled(adata: AnnData, group: str, seed: int) -> AnnData:
    """Cells of the mean profile and the depths of a type, so that they are one population."""
    rng = np.random.default_rng(seed)
    x = adata[adata.obs["cell_type"] == group].X
    depth = np.asarray(x.sum(1)).ravel()
    share = np.asarray(x.sum(0)).ravel() / depth.sum()
    x = rng.poisson(rng.gamma(5, share * depth[:, None] / 5)).astype(np.float32)
    return AnnData(sparse.csr_matrix(x[x.sum(1) > 0]))


SIZES = {"50/50": [0.5, 0.5], "90/10": [0.9, 0.1], "98/2": [0.98, 0.02], "99.5/.5": [0.995, 0.005]}
DIFFERENCES = [(100, 1.5), (40, 2.2), (10, 4.0), (30, 7.0), (5, 8.0), (40, 1.5)]


def power(seed: int, short: bool) -> list[Row]:
    """Two populations: are both found, that is, does the partition agree by an ARI of .9?"""
    rows = []
    for name, sizes in list(SIZES.items())[: 1 if short else None]:
        for n_genes, fold in DIFFERENCES[3:4] if short else DIFFERENCES:
            rng = np.random.default_rng(seed)
            adata = mixed(rng, [(n_genes, fold)], sizes, 300 if short else 2000)
            truth = adata.obs["cell_type"].to_numpy()
            for method, clusters in methods(adata, None, seed, short).items():
                ari = adjusted_rand_score(truth, clusters)
                rows.append(
                    {
                        "sizes": name,
                        "genes": n_genes,
                        "fold": fold,
                        "method": method,
                        "seed": seed,
                        "ARI": ari,
                        "found": float(ari >= 0.9),
                        "n_clusters": len(np.unique(clusters)),
                        "calibration error": (
                            error_of_confidence(adata)
                            if method == "SCGMVAE" and ari >= 0.5
                            else np.nan
                        ),
                    }
                )
    return rows


def types(seed: int, short: bool) -> list[Row]:
    """Several types of uneven sizes."""
    rows = []
    for n_types in (3,) if short else (3, 5, 10, 20):
        rng = np.random.default_rng(seed)
        sizes = rng.dirichlet(np.full(n_types, 3.0)).tolist()
        adata = mixed(rng, [(40, 2.5)] * (n_types - 1), sizes, 300 if short else 4000)
        truth = adata.obs["cell_type"].to_numpy()
        for method, clusters in methods(adata, None, seed, short).items():
            found = len(np.unique(clusters))
            rows.append(
                {
                    "types": n_types,
                    "method": method,
                    "seed": seed,
                    "n_clusters": found,
                    "error": abs(found - n_types) / n_types,
                    "ARI": adjusted_rand_score(truth, clusters),
                    "calibration error": (
                        error_of_confidence(adata) if method == "SCGMVAE" else np.nan
                    ),
                }
            )
    return rows


def truth(seed: int, short: bool) -> Iterator[list[Row]]:
    """Real data, K found and K given; SCVI with Leiden beside them. A set at a time."""
    sets = ["simulated"] if short else [
        "sc_mixology", "baron_mouse", "two_populations", "mouse_bladder", "pbmc3k", "pbmc4k",
        "paul15", "kang",
    ]  # fmt: skip
    for name in sets:
        adata, batch_key = load_counts(name)
        if name == "baron_mouse":
            batch_key = "batch"
        if name == "kang":
            adata = adata[adata.obs["cell_type"] != "unknown"].copy()
        labels = adata.obs["cell_type"].astype(str).to_numpy()
        found = fitted(adata, batch_key, seed, short)
        clusters = {"SCGMVAE, K found": found["clusters"]}
        z = adata.obsm["X_scgmvae"]
        of_own = {
            "least mixing of a type": np.nan
            if batch_key is None
            else mixing_by_group(z, adata.obs[batch_key], labels).min(),
            "seconds": found["seconds"],
        }
        again = fitted(adata.copy(), batch_key, seed + 100, short)["clusters"]
        of_own["ARI of two seeds"] = adjusted_rand_score(found["clusters"], again)
        graph = {f"z + Leiden {r}": codes for r, codes in leiden_of(z, seed).items()}
        n_types = len(np.unique(labels))
        given = fitted(adata, batch_key, seed, short, n_components=n_types)
        clusters |= {"SCGMVAE, K given": given["clusters"]} | graph | by_pcs(adata, seed)
        if not short:
            clusters |= by_scvi(adata, batch_key, seed)
        yield [
            {
                "data": name,
                "method": method,
                "seed": seed,
                "ARI": adjusted_rand_score(labels, codes),
                "F1 rare": best_f1(labels, codes),
                "n_clusters": len(np.unique(codes)),
                **{
                    name: value if method == "SCGMVAE, K found" else np.nan
                    for name, value in of_own.items()
                },
            }
            for method, codes in clusters.items()
        ]


def by_scvi(adata: AnnData, batch_key: str | None, seed: int) -> dict[str, np.ndarray]:
    """Leiden's partitions of the latent of SCVI, trained for at most 100 epochs."""
    import scvi

    scvi.settings.seed = seed
    copy = AnnData(adata.X, obs=adata.obs)
    scvi.model.SCVI.setup_anndata(copy, batch_key=batch_key)
    peer = scvi.model.SCVI(copy, gene_likelihood="nb")
    peer.train(max_epochs=100, enable_progress_bar=False, logger=False)
    found = leiden_of(peer.get_latent_representation(), seed)
    return {f"SCVI + Leiden {resolution}": codes for resolution, codes in found.items()}


def donors(seed: int, short: bool) -> list[Row]:
    """Types in donors, treatments or batches that are told or not."""
    cells = [("simulated", *in_donors(300 if short else 3000, seed), "donor")]
    for name in () if short else ("kang", "sc_mixology"):
        adata, batch_key = load_counts(name)
        adata = adata[adata.obs["cell_type"] != "unknown"].copy()
        cells.append((name, adata, adata.obs["cell_type"].to_numpy(), batch_key))
    rows = []
    for data, adata, truth, key in cells:
        for is_told in (True, False):
            for method, clusters in methods(adata, key if is_told else None, seed, short).items():
                rows.append(
                    {
                        "data": data,
                        "told": "yes" if is_told else "no",
                        "method": method,
                        "seed": seed,
                        "n_clusters": len(np.unique(clusters)),
                        "ARI": adjusted_rand_score(truth, clusters),
                    }
                )
    return rows


def in_donors(n: int, seed: int) -> tuple[AnnData, np.ndarray]:
    """Five types in six donors, whose effect is a third of that of a type, and the types."""
    rng = np.random.default_rng(seed)
    types, donor = rng.integers(5, size=n), rng.integers(6, size=n)
    effects = [rng.normal(0, sd, (k, N_GENES)) for sd, k in ((0.6, 5), (0.2, 6))]
    base = rng.normal(0, 1, N_GENES)
    shares = np.exp(base + effects[0][types] + effects[1][donor])
    adata = counts(rng, shares, np.exp(rng.normal(np.log(3000), 0.3, n)))
    adata.obs["donor"] = pd.Categorical(donor.astype(str))
    return adata, types


def depth(seed: int, short: bool) -> list[Row]:
    """One type or three, half of the cells ten times deeper, with and without batches."""
    rows = []
    for n_types in (1, 3):
        rng = np.random.default_rng(seed)
        n = 300 if short else 2000
        types, is_deep = rng.integers(n_types, size=n), rng.random(n) < 0.5
        shares = profiles(rng, [(50, 2.7)] * (n_types - 1))[types]
        sizes = np.exp(rng.normal(np.log(3000), 0.2, n)) / np.where(is_deep, 1, 10)
        adata = counts(rng, shares, sizes)
        adata.obs["batch"] = pd.Categorical(rng.integers(2, size=n).astype(str))
        log_depth = np.log(np.asarray(adata.X.sum(1)).ravel())
        for batch_key in (None, "batch"):
            clusters = fitted(adata, batch_key, seed, short)["clusters"]
            rows.append(
                {
                    "types": n_types,
                    "batch_key": str(batch_key),
                    "seed": seed,
                    "n_clusters": len(np.unique(clusters)),
                    "ARI": adjusted_rand_score(types, clusters),
                    "NMI with depth": normalized_mutual_info_score(is_deep, clusters),
                    "R2 of depth": explained(adata.obsm["X_scgmvae"], log_depth, types),
                }
            )
    return rows


def explained(z: np.ndarray, values: np.ndarray, types: np.ndarray) -> float:
    """Share of the variance of values within types that z explains, linearly, mean over types."""
    shares = []
    for name in np.unique(types):
        design = np.column_stack([np.ones((types == name).sum()), z[types == name]])
        own = values[types == name]
        fit, *_ = np.linalg.lstsq(design, own, rcond=None)
        shares.append(1 - (own - design @ fit).var() / own.var())
    return float(np.mean(shares))


def cost(seed: int, short: bool) -> list[Row]:
    """Seconds of the tests alone, by the number of cells."""
    rows = []
    for n in (300,) if short else (2_500, 5_000, 10_000, 20_000, 40_000):
        rng = np.random.default_rng(seed)
        adata = mixed(rng, [(40, 2.5)] * 7, [1 / 8] * 8, n)
        model = fitted(adata, None, seed, short, BRIEF)["model"]
        some = np.sort(rng.permutation(adata.n_obs)[:20_000])
        z = adata.obsm["X_scgmvae"][some]
        begin = time.perf_counter()
        tree, _ = model._grown_tree(some, z, None, seed)
        seconds = time.perf_counter() - begin
        rows.append({"n_obs": n, "seed": seed, "splits": tree.n_splits, "seconds": seconds})
    return rows


TASKS = {
    "one": (one, ["cells", "method"]),
    "power": (power, ["sizes", "genes", "fold", "method"]),
    "types": (types, ["types", "method"]),
    "truth": (truth, ["data", "method"]),
    "donors": (donors, ["data", "told", "method"]),
    "depth": (depth, ["types", "batch_key"]),
    "cost": (cost, ["n_obs"]),
}

if __name__ == "__main__":
    sc.settings.verbosity = 0
    run_tasks("tested", __doc__.split("\n")[0], TASKS)
