r"""Trees of components: which pair to merge next, by three criteria.

A tree is a linkage matrix as in :func:`scipy.cluster.hierarchy.linkage`, ``(K − 1, 4)``: a row per
merge, with the two clusters, a height that never falls, and the number of components in their
union. ``benchmarks/studies/merging.py`` compares the criteria.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from scipy.special import rel_entr, xlogy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ComponentTree",
    "Criterion",
    "bhattacharyya",
    "entropy_elbow",
    "levels_of",
    "tree_by_elbo",
    "tree_by_entropy",
    "tree_by_overlap",
]

Criterion = Literal["overlap", "entropy", "elbo"]
Item = TypeVar("Item")

SMALLEST = 1e-300
"""Smallest overlap whose logarithm is taken; smaller ones are raised to it."""


class ComponentTree(NamedTuple):
    """How components merge, step by step."""

    linkage: NDArray[np.float64]
    """Merges as scipy has them, ``(K − 1, 4)``; empty for a single component."""
    levels: pd.DataFrame
    """Cluster of each component (rows) where there are 1, …, K clusters (columns)."""


def bhattacharyya(loc: NDArray[np.floating], scale: NDArray[np.floating]) -> NDArray[np.float64]:
    r"""Overlap of Gaussians with diagonal covariance, averaged over draws.

    .. math::
        \int \sqrt{p_i(z) p_j(z)}\, dz = \prod_l \sqrt{\frac{2 \sigma_{il} \sigma_{jl}}
        {\sigma_{il}^2 + \sigma_{jl}^2}}
        \exp\left(-\frac{(\mu_{il} - \mu_{jl})^2}{4 (\sigma_{il}^2 + \sigma_{jl}^2)}\right)

    Parameters
    ----------
    loc, scale
        Means and standard deviations, ``(S, K, L)``.

    Returns
    -------
    Symmetric matrix ``(K, K)`` of values in [0, 1], with ones on the diagonal.

    References
    ----------
    Bhattacharyya (1943), On a measure of divergence between two statistical populations.
    """
    loc, scale = np.asarray(loc, dtype=float), np.asarray(scale, dtype=float)
    overlap = np.eye(loc.shape[1])
    for i, j in combinations(range(loc.shape[1]), 2):
        variances = scale[:, i] ** 2 + scale[:, j] ** 2  # (S, L)
        log_overlap = 0.5 * np.log(2 * scale[:, i] * scale[:, j] / variances)
        log_overlap = log_overlap - (loc[:, i] - loc[:, j]) ** 2 / (4 * variances)
        # rounding can put equal ones above 1
        overlap[i, j] = overlap[j, i] = min(1.0, np.exp(log_overlap.sum(-1)).mean())
    return overlap


def tree_by_overlap(overlap: NDArray[np.floating]) -> NDArray[np.float64]:
    """Average linkage of −log overlap.

    Parameters
    ----------
    overlap
        Overlap of each two components, ``(K, K)``.
    """
    if len(overlap) == 1:
        return np.zeros((0, 4))
    distance = -np.log(np.maximum(overlap, SMALLEST))
    np.fill_diagonal(distance, 0)
    return linkage(squareform(distance, checks=False), "average")


def tree_by_entropy(proba: NDArray[np.floating]) -> NDArray[np.float64]:
    r"""Merge the pair between which the posterior is least certain.

    .. math:: 1 - \frac{\sum_n h(\tau_{ni}) + h(\tau_{nj}) - h(\tau_{ni} + \tau_{nj})}
        {\log 2 \sum_n \tau_{ni} + \tau_{nj}}, \qquad h(\tau) = -\tau \log \tau

    is the height: 1 if each cell of either is surely in one of the two, 0 if all are equally
    likely in both. Baudry et al. merge by the numerator, which they do not divide by the number of
    cells.

    Parameters
    ----------
    proba
        τ, probabilities of the components, ``(n, K)``.

    References
    ----------
    Baudry et al. (2010), Combining mixture components for clustering, eq. 4.
    """

    def height(a: NDArray, b: NDArray) -> float:
        gain = (xlogy(a + b, a + b) - xlogy(a, a) - xlogy(b, b)).sum()
        return 1 - gain / (np.log(2) * max((a + b).sum(), SMALLEST))

    return _agglomerate(list(np.asarray(proba, dtype=float).T), height, np.add)


class _Shared(NamedTuple):
    """A Gaussian that some components share."""

    weight: float
    loc: NDArray  # (L,)
    variance: NDArray  # (L,)
    proba: NDArray  # (n,), of the cells
    cost: float  # part of the negative ELBO, nats per cell


def tree_by_elbo(
    proba: NDArray[np.floating],
    z_loc: NDArray[np.floating],
    z_var: NDArray[np.floating],
    loc: NDArray[np.floating],
    variance: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Merge the pair that costs least of the ELBO when one Gaussian takes the place of two.

    That Gaussian has the mean and variance of the two together. The height is about what the ELBO
    of a cell falls by on average, in nats, in the terms of z and y: w is averaged out of the
    components, their weights are their shares of the cells, and a height below that of an earlier
    merge, or below 0, is raised to it.

    Parameters
    ----------
    proba
        Probabilities of the components, ``(n, K)``, of cells not used in training, if there are.
    z_loc, z_var
        Mean and variance of q(z|x,c) of these cells, ``(n, L)``.
    loc, variance
        Mean and variance of z in the components, w averaged out, ``(K, L)``.
    """
    proba, z_loc, z_var = (np.asarray(values, dtype=float) for values in (proba, z_loc, z_var))

    def shared(weight: float, loc: NDArray, variance: NDArray, proba: NDArray) -> _Shared:
        kl_z = np.log(variance / z_var) + (z_var + (z_loc - loc) ** 2) / variance - 1
        kl_y = rel_entr(proba, np.full_like(proba, weight))
        return _Shared(
            weight, loc, variance, proba, float(np.mean(0.5 * proba * kl_z.sum(1) + kl_y))
        )

    def union(a: _Shared, b: _Shared) -> _Shared:
        weight = a.weight + b.weight
        share_a, share_b = a.weight / weight, b.weight / weight
        loc = share_a * a.loc + share_b * b.loc
        spread = share_a * (a.loc - loc) ** 2 + share_b * (b.loc - loc) ** 2
        variance = share_a * a.variance + share_b * b.variance + spread
        return shared(weight, loc, variance, a.proba + b.proba)

    weights = np.maximum(proba.mean(0), 1e-9)  # an empty component has almost no weight
    items = [shared(*component) for component in zip(weights, loc, variance, proba.T, strict=True)]
    return _agglomerate(items, lambda a, b: union(a, b).cost - a.cost - b.cost, union)


def _agglomerate(
    items: Sequence[Item],
    height: Callable[[Item, Item], float],
    union: Callable[[Item, Item], Item],
) -> NDArray[np.float64]:
    """Linkage by merging, again and again, the pair of the least height."""
    clusters = dict(enumerate(items))
    sizes = dict.fromkeys(clusters, 1)
    heights = {(i, j): height(items[i], items[j]) for i, j in combinations(clusters, 2)}
    rows, top = [], 0.0
    for new in range(len(items), 2 * len(items) - 1):
        i, j = min(heights, key=heights.get)
        top = max(top, heights[i, j])  # a union can be nearer to others than its parts were
        sizes[new] = sizes[i] + sizes[j]
        rows.append((i, j, top, sizes[new]))
        united = union(clusters.pop(i), clusters.pop(j))
        heights = {pair: h for pair, h in heights.items() if not {i, j} & set(pair)}
        heights |= {(k, new): height(cluster, united) for k, cluster in clusters.items()}
        clusters[new] = united
    return np.array(rows, dtype=float).reshape(-1, 4)


def levels_of(tree: NDArray[np.floating], names: Sequence[str] | NDArray[np.str_]) -> pd.DataFrame:
    """Cluster of each component where there are 1, …, K clusters.

    Parameters
    ----------
    tree
        Linkage, ``(K − 1, 4)``.
    names
        Names of the K components.

    Examples
    --------
    >>> levels_of(np.array([[0.0, 2.0, 0.1, 2.0], [1.0, 3.0, 0.5, 3.0]]), ["a", "b", "c"])
       1  2  3
    a  0  0  0
    b  0  1  1
    c  0  0  2
    """
    n = len(names)
    cluster = np.arange(n)  # cluster of each component, by its number in the tree
    levels = {n: cluster.copy()} if n else {}
    # scipy's cut_tree takes merges of equal height in an order of its own
    for step, (i, j) in enumerate(tree[:, :2].astype(int)):
        cluster[(cluster == i) | (cluster == j)] = n + step
        order = pd.unique(cluster)
        levels[n - 1 - step] = pd.Index(order).get_indexer(cluster)
    return pd.DataFrame(levels, index=list(names))[sorted(levels)]


def entropy_elbow(proba: NDArray[np.floating], levels: pd.DataFrame) -> int:
    """Number of clusters at the elbow of the entropy of the posterior.

    The entropy is drawn against the number of cells that merges have concerned so far. Two
    straight lines are fitted to it, and where they meet with the least squares is the elbow.

    Parameters
    ----------
    proba
        Probabilities of the components, ``(n, K)``.
    levels
        Levels of a tree, as :func:`levels_of` returns them.

    Returns
    -------
    Number of clusters, 1 to K; K where there are fewer than four components.

    References
    ----------
    Baudry et al. (2010), section 4.
    """
    n_components = len(levels)
    if n_components < 4:  # two lines go through any three points
        return n_components
    entropies, concerned = [], []
    for n_clusters in range(n_components, 0, -1):
        codes = levels[n_clusters].to_numpy()
        merged = np.stack([proba[:, codes == k].sum(1) for k in range(n_clusters)], axis=1)
        entropies.append(-xlogy(merged, merged).sum())
        if n_clusters < n_components:
            before = levels[n_clusters + 1].to_numpy()
            united = next(k for k in range(n_clusters) if len(set(before[codes == k])) > 1)
            concerned.append(merged[:, united].sum())
    at = np.concatenate([[0.0], np.cumsum(concerned)])
    values = np.array(entropies)

    def misfit(elbow: int) -> float:
        parts = [slice(0, elbow + 1), slice(elbow, n_components)]
        fits = [np.polyfit(at[part], values[part], 1, full=True)[1] for part in parts]
        return float(sum(residual.sum() for residual in fits))

    return n_components - min(range(1, n_components - 1), key=misfit)
