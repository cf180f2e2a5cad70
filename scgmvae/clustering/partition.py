"""Initial partitions of the cells, made without labels.

The default is Leiden on a kNN graph. If the number of groups K is given, groups are split or
merged on the same graph until there are K. With K given, k-means cuts the large types of uneven
data into pieces of equal size, and so does Leiden at a resolution that gives K groups. Splitting
the group that falls apart most easily, and merging the two groups whose union is best connected,
leaves such types whole. In the end each cell goes to the nearest group mean, once.
``benchmarks/studies/start.py`` has the comparison.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import scanpy as sc
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from sklearn.mixture import GaussianMixture

from scgmvae.compat import neighbors_package, torch_threads_kept
from scgmvae.data.normalization import log_normalized

__all__ = [
    "Start",
    "by_size",
    "check_start",
    "initial_partition",
    "leiden",
    "log_normalized_pcs",
    "merge_groups",
    "nearest_mean",
    "neighbor_graph",
    "split_groups",
    "weights_between",
]

Start = Literal["tested", "leiden", "kmeans", "gmm"]
Codes = NDArray[np.int64]

N_NEIGHBORS = 30
LARGEST_SHARE_OF_NEIGHBORS = 0.2
"""Largest share of the cells that are neighbours of one: more of them would reach other types."""
FEWEST_PCS = 15
"""Number of principal components of few cells; with 30 most would be noise
(``benchmarks/studies/small_data.py``)."""
RESOLUTION = 0.5
RESOLUTION_FOR_K = 1.0
MERGE_RESOLUTION = 0.4
FINEST = 20.0
"""Largest resolution that is tried to get K groups to merge from."""
SMALLEST_GRAPH = 5
"""Smallest number of cells that have a graph; fewer cells are one group."""
SMALLEST_SPLIT = 20
"""Smallest group that is split; each part of it gets at least a quarter of this number."""


def check_start(method: Start, n_groups: int | None) -> None:
    """Raise ``ValueError`` if a method is unknown, or needs a K that is not given."""
    if method not in get_args(Start):
        raise ValueError(f"start must be one of {get_args(Start)}, but it is {method!r}.")
    if method in ("kmeans", "gmm") and n_groups is None:
        raise ValueError(
            f"start={method!r} needs the number of groups: give n_components, or take 'tested' or "
            "'leiden', which find it."
        )


@torch_threads_kept()
def initial_partition(
    x: NDArray[np.floating],
    n_groups: int | None = None,
    method: Start = "leiden",
    seed: int = 0,
    straight: bool = True,
) -> Codes:
    """Partition of the rows of ``x``.

    Parameters
    ----------
    x
        Representation of the cells, ``(n, D)``.
    n_groups
        K, number of groups. ``None``, only for ``"leiden"``, takes those at resolution 0.5.
    method
        ``"leiden"``, ``"kmeans"`` or ``"gmm"`` (diagonal Gaussian mixture).
    seed
        Seed of the method.
    straight
        Whether groups are balls with straight borders. Then, with ``"leiden"`` and K given, each
        row goes to its nearest group mean in the end. Otherwise Leiden runs until its groups are
        stable, and again at a higher resolution while there are fewer than K.

    Returns
    -------
    Codes ``(n,)`` from 0 on, the largest group first. There can be fewer than K groups where the
    cells do not fall into as many.

    Raises
    ------
    ValueError
        If K is missing for a method that needs it, or the method is unknown.
    """
    check_start(method, n_groups)
    if n_groups == 1 or (method == "leiden" and len(x) < SMALLEST_GRAPH):
        return np.zeros(len(x), dtype=np.int64)
    if method == "kmeans":
        codes = KMeans(n_groups, n_init=10, random_state=seed).fit_predict(x)
    elif method == "gmm":
        mixture = GaussianMixture(
            n_groups, covariance_type="diag", reg_covar=1e-3, n_init=3, random_state=seed
        )
        codes = mixture.fit_predict(x)
    else:
        graph = neighbor_graph(x, seed)
        resolution = RESOLUTION if n_groups is None else RESOLUTION_FOR_K
        codes = leiden(graph, resolution, seed, until_stable=not straight)
        while not straight and codes.max() + 1 < (n_groups or 0) and resolution < FINEST:
            resolution *= 1.25
            codes = leiden(graph, resolution, seed, until_stable=True)
        if n_groups is not None:
            codes = merge_groups(graph, codes, n_groups)
            codes = split_groups(graph, codes, n_groups, seed)
        if n_groups is not None and straight:
            codes = nearest_mean(x, codes)
    return by_size(codes)


def nearest_mean(x: NDArray[np.floating], codes: Codes) -> Codes:
    """Assign each row to the group with the nearest mean, which is one step of k-means.

    Groups that were merged and split to a given number have ragged borders, but Gaussian
    components need straight ones.
    """
    means = np.stack([x[codes == k].mean(0) for k in range(codes.max() + 1)])
    return pairwise_distances_argmin(x, means).astype(np.int64)


def by_size(codes: NDArray[np.integer]) -> Codes:
    """Groups numbered from the largest to the smallest."""
    _, codes, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    return rank[codes].astype(np.int64)


@torch_threads_kept()
def neighbor_graph(x: NDArray[np.floating], seed: int = 0) -> sparse.csr_matrix:
    """Connectivities of :func:`scanpy.pp.neighbors`, ``(n, n)``.

    Each cell has 30 neighbours, and a fifth of all cells where those are fewer than 150.
    Where there is a GPU and rapids-singlecell is installed, that computes them.
    """
    adata = AnnData(np.asarray(x, dtype=np.float32))
    n_neighbors = max(2, min(N_NEIGHBORS, int(LARGEST_SHARE_OF_NEIGHBORS * len(x))))
    search = neighbors_package().pp.neighbors
    search(adata, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
    return adata.obsp["connectivities"].tocsr()


def leiden(
    graph: sparse.csr_matrix, resolution: float, seed: int = 0, *, until_stable: bool = False
) -> Codes:
    """Leiden groups of a graph, by modularity.

    Parameters
    ----------
    graph
        kNN graph of the cells, ``(n, n)``.
    resolution
        γ, resolution of the modularity.
    seed
        Seed of the order in which cells are visited.
    until_stable
        Go on until an iteration changes nothing, rather than for two, as scanpy advises. The
        modularity gets a little higher, in two to four times the seconds
        (``benchmarks/studies/image_start.py``).

    Returns
    -------
    Codes ``(n,)``.
    """
    adata = AnnData(np.zeros((graph.shape[0], 0), dtype=np.float32))
    sc.tl.leiden(
        adata,
        resolution,
        adjacency=graph,
        flavor="igraph",
        directed=False,
        n_iterations=-1 if until_stable else 2,
        random_state=seed,
    )
    return adata.obs["leiden"].cat.codes.to_numpy().astype(np.int64)


def weights_between(graph: sparse.csr_matrix, codes: NDArray[np.integer]) -> NDArray[np.floating]:
    """Total edge weight between each two groups, (K, K), as a share of all.

    Parameters
    ----------
    graph
        Graph of the cells, ``(n, n)``.
    codes
        Groups ``(n,)`` from 0 on.
    """
    n_groups = codes.max() + 1
    one_hot = sparse.csr_matrix((np.ones(len(codes)), (np.arange(len(codes)), codes)))
    weights = np.asarray((one_hot.T @ graph @ one_hot).todense(), dtype=float)
    return weights.reshape(n_groups, n_groups) / graph.sum()


def merge_groups(
    graph: sparse.csr_matrix, codes: Codes, n_groups: int, resolution: float = MERGE_RESOLUTION
) -> Codes:
    r"""Merge the pair of groups whose union gains most modularity until K are left.

    The gain of uniting i and j is e_ij − γ d_i d_j, with e the share of edge weight between them,
    d the share that touches each, and γ the resolution. Groups without an edge between them are
    united only when there are no others.

    Parameters
    ----------
    graph
        kNN graph of the cells, ``(n, n)``.
    codes
        Groups ``(n,)`` from 0 on.
    n_groups
        K, number of groups.
    resolution
        γ, resolution of the modularity.

    Returns
    -------
    Codes ``(n,)`` of at most K groups.
    """
    codes = codes.copy()
    weights = weights_between(graph, codes)
    while len(weights) > n_groups:
        degree = weights.sum(1)
        gain = weights - resolution * np.outer(degree, degree)
        if (weights[~np.eye(len(weights), dtype=bool)] > 0).any():
            gain[weights == 0] = -np.inf  # two small groups without an edge would lose least
        gain[np.tri(len(gain), dtype=bool)] = -np.inf
        i, j = np.unravel_index(gain.argmax(), gain.shape)
        codes[codes == j] = i
        codes[codes > j] -= 1
        weights[i] += weights[j]
        weights[:, i] += weights[:, j]
        weights = np.delete(np.delete(weights, j, axis=0), j, axis=1)
    return codes


def split_groups(graph: sparse.csr_matrix, codes: Codes, n_groups: int, seed: int = 0) -> Codes:
    """Split the group whose two halves are least connected until there are K.

    Parameters
    ----------
    graph
        kNN graph of the cells, ``(n, n)``.
    codes
        Groups ``(n,)`` from 0 on.
    n_groups
        K, number of groups.
    seed
        Seed of Leiden within the groups.

    Returns
    -------
    Codes ``(n,)``; fewer than K groups where none can be split any more.
    """
    codes = codes.copy()
    halves = {k: _halves(graph, codes == k, seed) for k in range(codes.max() + 1)}
    while codes.max() + 1 < n_groups:
        weakest = min(halves, key=lambda k: halves[k][0])
        cohesion, part = halves[weakest]
        if cohesion == np.inf:
            break
        new = codes.max() + 1
        codes[part] = new
        for k in (weakest, new):
            halves[k] = _halves(graph, codes == k, seed)
    return codes


def _halves(
    graph: sparse.csr_matrix, members: NDArray[np.bool_], seed: int
) -> tuple[float, NDArray[np.integer]]:
    """Weakest cut of a group by Leiden: its edge weight over that expected, and the smaller side.

    The weight is infinite where the group cannot be split.
    """
    rows = np.flatnonzero(members)
    if len(rows) < SMALLEST_SPLIT:
        return np.inf, rows
    inner = graph[rows][:, rows]
    for resolution in np.geomspace(0.1, 3.0, 12):
        codes = leiden(inner, resolution, seed)
        if codes.max() > 0:
            codes = merge_groups(inner, codes, 2, resolution)
            break
    else:
        return np.inf, rows
    sides = [rows[codes == side] for side in (0, 1)]
    smaller = min(sides, key=len)
    if len(smaller) < SMALLEST_SPLIT // 4:
        return np.inf, rows
    weights = weights_between(inner, codes)
    degree = weights.sum(1)
    return float(weights[0, 1] / (degree[0] * degree[1])), smaller


@torch_threads_kept()
def log_normalized_pcs(
    counts: sparse.csr_matrix | NDArray, n_pcs: int = 30, seed: int = 0
) -> NDArray[np.float32]:
    """Principal components of log(1 + counts per 10,000), of the 2,000 most variable genes.

    Parameters
    ----------
    counts
        Counts, ``(n, G)``.
    n_pcs
        Number of components; of less than ten cells for each there are fewer, down to 15.
    seed
        Seed of the solver.

    Returns
    -------
    Array ``(n, n_pcs)``, or the log-normalised values where there are no more genes than that.
    """
    adata = log_normalized(counts[:, np.asarray(counts.sum(axis=0)).ravel() > 0])
    if adata.n_vars > 2000:
        sc.pp.highly_variable_genes(adata, n_top_genes=2000, subset=True)
    n_pcs = min(n_pcs, max(FEWEST_PCS, adata.n_obs // 10), adata.n_obs - 1)
    if adata.n_vars <= n_pcs:  # nothing to reduce
        return np.asarray(adata.to_df(), dtype=np.float32)
    sc.pp.pca(adata, n_comps=n_pcs, random_state=seed)
    return adata.obsm["X_pca"].astype(np.float32)
