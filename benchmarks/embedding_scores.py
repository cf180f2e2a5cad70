"""Scores of an embedding by types and batches that are known, as the field uses them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scib_metrics
from common import threads_kept
from numpy.typing import NDArray
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from scgmvae.clustering.partition import leiden, neighbor_graph
from scgmvae.metrics import mixing_by_group

__all__ = ["neighbors_kept", "scores_of"]

RESOLUTIONS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
RARE = 0.02
"""Largest share of the cells of a rare type."""
N_NEIGHBORS, N_LISI = 30, 90
FEWEST = 30
"""Cells of a type, and of a batch within it, from which on mixing in it is measured."""


def nearest(z: NDArray, k: int) -> NeighborsResults:
    """The k nearest other cells of each cell, exact."""
    k = min(k, len(z) - 1)
    distances, indices = NearestNeighbors(n_neighbors=k).fit(z).kneighbors()
    return NeighborsResults(indices=indices, distances=distances)


@threads_kept()
def scores_of(z: NDArray, types: NDArray, batches: NDArray | None, seed: int) -> dict[str, float]:
    """Scores of an embedding, each of which is better the higher it is.

    Parameters
    ----------
    z
        Embedding, ``(n, L)``.
    types, batches
        Type and batch of each cell, ``(n,)``; ``None`` where there is one batch.
    seed
        Of the partitions.

    Returns
    -------
    ``CiLISI``: effective number of batches among neighbours of the same type, scaled to [0, 1];
    ``least mixing``: share of neighbours of another batch over that by chance in the type where
    it is lowest; ``kBET``: accepted neighbourhoods within types; ``cLISI``: purity of
    neighbourhoods; ``connectivity``: share of a type that its graph holds together; ``purity``:
    share of 30 neighbours of the same type; ``best ARI`` and ``best NMI``: the best of Leiden's
    partitions at eight resolutions; ``k-means ARI``: told the number of types; ``isolated F1``:
    of the best cluster of each type that the fewest batches hold; ``rare F1``: the same of types
    of at most 2 % of the cells. What cannot be measured is NaN.
    """
    z = np.asarray(z, dtype=np.float32)
    codes = pd.Categorical(types).codes
    near = nearest(z, N_LISI)
    graph = neighbor_graph(z, seed)
    partitions = [leiden(graph, resolution, seed) for resolution in RESOLUTIONS]
    shares = pd.Series(types).value_counts(normalize=True)
    told_k = KMeans(len(shares), n_init=10, random_state=seed).fit_predict(z)
    few = near.indices[:, :N_NEIGHBORS]
    scores = {
        "cLISI": float(scib_metrics.clisi_knn(near, codes)),
        "connectivity": float(scib_metrics.graph_connectivity(nearest(z, 15), codes)),
        "purity": float((codes[few] == codes[:, None]).mean()),
        "best ARI": max(adjusted_rand_score(types, found) for found in partitions),
        "best NMI": max(normalized_mutual_info_score(types, found) for found in partitions),
        "k-means ARI": adjusted_rand_score(types, told_k),
        "rare F1": mean_best_f1(types, partitions, shares.index[shares <= RARE]),
    }
    if batches is not None:
        held_by = pd.Series(batches).groupby(types).nunique()
        isolated = held_by.index[held_by == held_by.min()]
        if held_by.min() == held_by.max():  # none is more isolated than another
            isolated = isolated[:0]
        scores |= {
            "isolated F1": mean_best_f1(types, partitions, isolated),
            **mixing_within(z, types, batches),
        }
    return scores


def mean_best_f1(types: NDArray, partitions: list[NDArray], chosen: pd.Index) -> float:
    """F1 of the best cluster of any partition for each of some types, averaged over those."""
    scores = [
        max(
            f1_score(types == name, partition == cluster)
            for partition in partitions
            for cluster in np.unique(partition[types == name])
        )
        for name in chosen
    ]
    return float(np.mean(scores)) if scores else np.nan


def mixing_within(z: NDArray, types: NDArray, batches: NDArray) -> dict[str, float]:
    """Mixing of the batches within the types that several of them hold."""
    lisi, kbet, n_cells = [], [], []
    for name in np.unique(types):
        rows = np.flatnonzero(types == name)
        counts = pd.Series(batches[rows]).value_counts()
        rows = rows[np.isin(batches[rows], counts.index[counts >= FEWEST])]
        held = pd.Categorical(batches[rows])
        if len(held.categories) < 2:
            continue
        near = nearest(z[rows], min(N_LISI, len(rows) // 3))
        codes = held.codes.astype(int)
        lisi.append(float(scib_metrics.ilisi_knn(near, codes)))
        kbet.append(float(scib_metrics.kbet(near, codes)[0]))
        n_cells.append(len(rows))
    if not lisi:
        return dict.fromkeys(("CiLISI", "kBET", "least mixing"), np.nan)
    return {
        "CiLISI": float(np.average(lisi, weights=n_cells)),
        "kBET": float(np.average(kbet, weights=n_cells)),
        "least mixing": float(mixing_by_group(z, batches, types).min()),
    }


def neighbors_kept(before: NDArray, after: NDArray) -> float:
    """Share of the 30 nearest neighbours that a cell keeps from one embedding to another."""
    first, second = (nearest(np.asarray(z), N_NEIGHBORS).indices for z in (before, after))
    kept = [np.isin(a, b).mean() for a, b in zip(first, second, strict=True)]
    return float(np.mean(kept))
