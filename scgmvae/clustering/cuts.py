r"""The weakest cut of a neighbour graph into two sides.

A cut of the cells into sides A and B is measured by the weight of the edges across it over the
weight that chance would put there,

.. math:: T = \frac{w(A, B)\, w}{v(A)\, v(B)},

with v the sum of the degrees on a side and w = v(A) + v(B). T is 0 where the sides are apart and
near 1 where the cut means nothing. The cut with the smallest T is hard to find, but the
eigenvectors of the graph's Laplacian come close to it: the cells are put in the order of each of
them, and all cuts of that order are tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh
from sklearn.neighbors import NearestNeighbors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SMALLEST_SIDE", "Cut", "cut_weight", "shared_neighbor_graph", "weakest_cut"]

N_NEIGHBORS = 15
SMALLEST_SIDE = 10
"""Smallest number of cells on a side of a cut, and so of a cluster that is found."""
N_VECTORS = 5
"""Number of eigenvectors whose orders are tried, the constant one among them."""
T_APART = 0.005
"""T up to which both sides of a cut count as apart."""
FEW = 5000
"""Number of cells up to which all distances are computed."""


class Cut(NamedTuple):
    """A cut of cells into two sides."""

    t: float
    """T, edge weight across the cut over that expected by chance."""
    side: NDArray[np.bool_]
    """Which cells are on the smaller side, (n,)."""


def shared_neighbor_graph(
    z: NDArray[np.floating], n_neighbors: int = N_NEIGHBORS
) -> sparse.csr_matrix:
    """Graph of the neighbours that cells share, ``(n, n)``.

    Two cells are joined if one is among the nearest of the other; the weight is the number of
    cells that are near both. It falls off between two populations more steeply than the
    neighbourhood itself does.

    Parameters
    ----------
    z
        Cells, ``(n, L)``.
    n_neighbors
        Number of neighbours of a cell; a quarter of all cells where those are few.
    """
    n = len(z)
    k = min(n_neighbors, max(3, n // 4), n - 1)
    # of one population of a thousand cells a tree takes three times as long as all distances
    algorithm = "brute" if n <= FEW else "auto"
    search = NearestNeighbors(n_neighbors=k, algorithm=algorithm).fit(z)
    nearest = search.kneighbors(return_distance=False)
    rows = np.repeat(np.arange(n), k)
    near = sparse.csr_matrix((np.ones(n * k, np.float32), (rows, nearest.ravel())), shape=(n, n))
    shared = (near @ near.T).multiply((near + near.T) > 0).tocsr()
    shared.setdiag(0)
    shared.eliminate_zeros()
    return shared


def weakest_cut(
    graph: sparse.csr_matrix, z: NDArray[np.floating], smallest: int = SMALLEST_SIDE
) -> Cut | None:
    """Weakest cut of a graph; of those between sides that are apart, the one over the widest gap.

    Parameters
    ----------
    graph
        Symmetric graph of the cells, ``(n, n)``.
    z
        Cells, ``(n, L)``.
    smallest
        Smallest number of cells on a side.

    Returns
    -------
    The cut, or ``None`` where there are too few cells for two sides, or no edges.
    """
    n = graph.shape[0]
    if n < 2 * smallest or graph.nnz == 0:
        return None
    degree = np.asarray(graph.sum(1)).ravel()
    edges = sparse.triu(graph, 1).tocoo()
    found: list[tuple[float, float, NDArray[np.bool_]]] = []
    for values in _orders(graph, degree, z, smallest):
        order = np.argsort(values, kind="stable")
        rank = np.empty(n, np.int64)
        rank[order] = np.arange(n)
        first = np.minimum(rank[edges.row], rank[edges.col])
        last = np.maximum(rank[edges.row], rank[edges.col])
        # an edge crosses every cut from behind its first cell to before its last one
        steps = np.bincount(first, edges.data, n) - np.bincount(last, edges.data, n)
        tried = slice(smallest - 1, n - smallest)
        left, total = np.cumsum(degree[order])[tried], degree.sum()
        t = np.cumsum(steps)[tried] * total / np.maximum(left * (total - left), 1e-12)
        gap = _gaps(z[order])[tried]
        at = int(np.where(t <= t.min() + 1e-9, gap, -1).argmax())
        found.append((max(float(t[at]), 0.0), float(gap[at]), rank < at + smallest))
    weakest = min(t for t, _, _ in found)
    t, _, side = max((f for f in found if f[0] <= max(weakest, T_APART)), key=lambda f: f[1])
    return Cut(t, ~side if side.sum() > n / 2 else side)


def _gaps(z: NDArray[np.floating]) -> NDArray[np.float64]:
    """Variance between both sides of every cut of cells in an order, (n,), times their number."""
    n = len(z)
    left = np.arange(1, n + 1)
    sums = np.cumsum(z - z.mean(0), axis=0)
    return (sums**2).sum(1) * n / (left * np.maximum(n - left, 1))


def cut_weight(graph: sparse.csr_matrix, side: NDArray[np.bool_]) -> float:
    """T of a given cut, NaN where a side has no edge.

    Parameters
    ----------
    graph
        Symmetric graph of the cells, ``(n, n)``.
    side
        Which cells are on one side, ``(n,)``.
    """
    degree = np.asarray(graph.sum(1)).ravel()
    right = degree[side].sum()
    left = degree.sum() - right
    if min(left, right) == 0:
        return np.nan
    return float(graph[side][:, ~side].sum() * (left + right) / (left * right))


def _orders(
    graph: sparse.csr_matrix,
    degree: NDArray[np.floating],
    z: NDArray[np.floating],
    smallest: int,
) -> list[NDArray[np.floating]]:
    """Values by which the cells are put in order, each (n,)."""
    n_parts, part = connected_components(graph, directed=False)
    sizes = np.bincount(part)
    if n_parts > 1 and (np.sort(sizes)[:-1].sum() >= smallest):
        return [_island_rank(z, part)[part].astype(float)]
    # cells beside the largest part are too few to be a side, and would only add eigenvectors
    main = np.flatnonzero(part == sizes.argmax())
    if len(main) < 3:
        return [np.zeros(len(degree))]
    scale = 1 / np.sqrt(degree[main])
    normalized = sparse.diags(scale) @ graph[main][:, main].astype(float) @ sparse.diags(scale)
    start = np.random.default_rng(0).standard_normal(len(main))
    n_vectors = min(N_VECTORS, len(main) - 1)
    try:
        _, vectors = eigsh(normalized, n_vectors, which="LA", tol=1e-3, v0=start)
    except ArpackNoConvergence as error:
        vectors = error.eigenvectors
    except ArpackError:  # cells that are all alike have no direction
        return [np.zeros(len(degree))]
    values = np.zeros((vectors.shape[1], len(degree)))
    values[:, main] = (vectors * scale[:, None]).T
    return list(values)


def _island_rank(z: NDArray[np.floating], part: NDArray[np.integer]) -> NDArray[np.int64]:
    """Rank of each island in an order in which those that are close are beside each other."""
    n_parts = int(part.max()) + 1
    means = np.zeros((n_parts, z.shape[1]))
    np.add.at(means, part, z)
    means /= np.bincount(part)[:, None]
    return np.argsort(leaves_list(linkage(means, "average")))
