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
    nearest = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(return_distance=False)
    rows = np.repeat(np.arange(n), k)
    near = sparse.csr_matrix((np.ones(n * k, np.float32), (rows, nearest.ravel())), shape=(n, n))
    shared = (near @ near.T).multiply((near + near.T) > 0).tocsr()
    shared.setdiag(0)
    shared.eliminate_zeros()
    return shared


def weakest_cut(graph: sparse.csr_matrix, smallest: int = SMALLEST_SIDE) -> Cut | None:
    """Weakest cut of a graph.

    Parameters
    ----------
    graph
        Symmetric graph of the cells, ``(n, n)``.
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
    best_t, best_side = np.inf, None
    for values in _orders(graph, degree, smallest):
        order = np.argsort(values, kind="stable")
        rank = np.empty(n, np.int64)
        rank[order] = np.arange(n)
        first = np.minimum(rank[edges.row], rank[edges.col])
        last = np.maximum(rank[edges.row], rank[edges.col])
        # an edge crosses every cut from behind its first cell to before its last one
        steps = np.bincount(first, edges.data, n) - np.bincount(last, edges.data, n)
        across = np.cumsum(steps)[smallest - 1 : n - smallest]
        volume = np.cumsum(degree[order])
        left, total = volume[smallest - 1 : n - smallest], volume[-1]
        t = across * total / np.maximum(left * (total - left), 1e-12)
        at = int(t.argmin())
        if t[at] < best_t:
            best_t, best_side = float(t[at]), rank < at + smallest
    if best_side.sum() > n / 2:
        best_side = ~best_side
    return Cut(max(best_t, 0.0), best_side)


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
    graph: sparse.csr_matrix, degree: NDArray[np.floating], smallest: int
) -> list[NDArray[np.floating]]:
    """Values by which the cells are put in order, each (n,)."""
    n_parts, part = connected_components(graph, directed=False)
    sizes = np.bincount(part)
    if n_parts > 1 and (np.sort(sizes)[:-1].sum() >= smallest):
        # islands: the largest first, then the others by size, so that no cut goes through one
        rank = np.argsort(np.argsort(-sizes, kind="stable"))
        return [rank[part].astype(float)]
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
