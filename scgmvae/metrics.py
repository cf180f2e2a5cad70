r"""Agreement of a clustering with known labels.

Here are the two scores that scikit-learn lacks, the accuracy after the best one-to-one match
of clusters to labels and the purity, and :func:`clustering_scores`, which gathers both with
scikit-learn's NMI and ARI. All of them see only which cells share a group, never the names of
the groups. Scores of an embedding (silhouettes, batch mixing) are left to ``scib-metrics``.

Notation: :math:`N_{jk}` is the number of cells with label :math:`j` in cluster :math:`k`,
:math:`n = \sum_{jk} N_{jk}`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

__all__ = ["clustering_accuracy", "clustering_scores", "purity"]


def clustering_accuracy(labels: ArrayLike, clusters: ArrayLike) -> float:
    r"""Fraction of cells that are right under the best one-to-one match (ACC).

    .. math::
        \mathrm{ACC} = \frac{1}{n} \max_{m} \sum_k N_{m(k), k},

    where :math:`m` runs over the one-to-one matches of clusters to labels. With unequal
    numbers of clusters and labels the surplus groups stay unmatched, and their cells count as
    wrong: splitting a true class costs accuracy, but not :func:`purity`.

    Parameters
    ----------
    labels
        Known label of each cell, shape ``(n,)``, any dtype (strings, integers, categorical).
    clusters
        Cluster of each cell, shape ``(n,)``, any dtype; the names need not be those of the labels.

    Returns
    -------
    float
        The accuracy, in (0, 1]; 1 exactly if the two partitions are the same.

    Raises
    ------
    ValueError
        If the arguments are empty, not one-dimensional, of unequal length, or hold missing
        values.

    References
    ----------
    Kuhn (1955), The Hungarian method for the assignment problem; Xie et al. (2016),
    Unsupervised deep embedding for clustering analysis, eq. 10.

    Examples
    --------
    >>> clustering_accuracy(["B", "B", "T", "T"], [1, 1, 0, 1])
    0.75
    """
    counts = _contingency(*_codes(labels, clusters))  # (n_labels, n_clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / counts.sum())


def purity(labels: ArrayLike, clusters: ArrayLike) -> float:
    r"""Fraction of cells that are right if each cluster takes its majority label.

    .. math:: \mathrm{purity} = \frac{1}{n} \sum_k \max_j N_{jk}

    Parameters
    ----------
    labels
        Known label of each cell, shape ``(n,)``, any dtype.
    clusters
        Cluster of each cell, shape ``(n,)``, any dtype.

    Returns
    -------
    float
        The purity, in (0, 1]; never below :func:`clustering_accuracy`.

    Raises
    ------
    ValueError
        As for :func:`clustering_accuracy`.

    Notes
    -----
    Purity is not symmetric in its arguments and does not penalise splitting: one cluster per
    cell scores 1. Read it beside the number of clusters.

    References
    ----------
    Manning, Raghavan and Schütze (2008), Introduction to Information Retrieval, section 16.3.

    Examples
    --------
    >>> purity(["B", "B", "T", "T"], [0, 1, 2, 3])
    1.0
    >>> purity(["B", "B", "T", "T"], [0, 0, 0, 0])
    0.5
    """
    counts = _contingency(*_codes(labels, clusters))  # (n_labels, n_clusters)
    return float(counts.max(axis=0).sum() / counts.sum())


def clustering_scores(labels: ArrayLike, clusters: ArrayLike) -> dict[str, float]:
    """Return every score of a clustering against known labels in one dictionary.

    Parameters
    ----------
    labels
        Known label of each cell, shape ``(n,)``, any dtype.
    clusters
        Cluster of each cell, shape ``(n,)``, any dtype.

    Returns
    -------
    dict
        ``"ACC"`` (:func:`clustering_accuracy`), ``"purity"`` (:func:`purity`), ``"NMI"``
        (mutual information divided by the arithmetic mean of the entropies, in [0, 1]),
        ``"ARI"`` (Rand index adjusted for chance, at most 1, about 0 for random clusters) and
        ``"n_clusters"`` (int, the clusters that hold at least one cell).

    Raises
    ------
    ValueError
        As for :func:`clustering_accuracy`.

    References
    ----------
    Hubert and Arabie (1985), Comparing partitions, eq. 5 (ARI); Vinh, Epps and Bailey (2010),
    Information theoretic measures for clusterings comparison, table 2 (NMI).

    Examples
    --------
    >>> clustering_scores(["B", "B", "T", "T"], ["c1", "c1", "c0", "c0"])
    {'ACC': 1.0, 'purity': 1.0, 'NMI': 1.0, 'ARI': 1.0, 'n_clusters': 2}
    """
    label_codes, cluster_codes = _codes(labels, clusters)
    return {
        "ACC": clustering_accuracy(label_codes, cluster_codes),
        "purity": purity(label_codes, cluster_codes),
        "NMI": float(normalized_mutual_info_score(label_codes, cluster_codes)),
        "ARI": float(adjusted_rand_score(label_codes, cluster_codes)),
        "n_clusters": int(cluster_codes.max()) + 1,
    }


def _codes(labels: ArrayLike, clusters: ArrayLike) -> tuple[NDArray, NDArray]:
    """Check a pair of partitions and return both as integer codes 0, 1, ..., each ``(n,)``."""
    label_codes = _factorize(labels, "labels")
    cluster_codes = _factorize(clusters, "clusters")
    if len(label_codes) != len(cluster_codes):
        raise ValueError(
            "labels and clusters must have one entry per cell each, but received "
            f"{len(label_codes)} labels and {len(cluster_codes)} clusters; subset both to the "
            "same cells."
        )
    return label_codes, cluster_codes


def _factorize(values: ArrayLike, name: str) -> NDArray:
    """Integer code 0, 1, ... of each entry in order of appearance, shape ``(n,)``."""
    # NumPy would turn the missing value in [nan, "B"] into the string "nan"; pandas keeps it.
    if not isinstance(
        values, (list, tuple, pd.Series, pd.Index, pd.api.extensions.ExtensionArray)
    ):
        values = np.asarray(values)
    if np.ndim(values) != 1:
        raise ValueError(
            f"{name} must be one-dimensional, but received {np.ndim(values)} dimensions; pass one "
            "entry per cell, e.g. the argmax of probabilities."
        )
    if len(values) == 0:
        raise ValueError(f"{name} must hold at least one cell, but received none.")
    codes, _ = pd.factorize(pd.Series(values))
    n_missing = int((codes < 0).sum())
    if n_missing:
        raise ValueError(
            f"{name} must not hold missing values, but received {n_missing} of them among "
            f"{len(codes)}; drop these cells from labels and clusters first."
        )
    return codes


def _contingency(label_codes: NDArray, cluster_codes: NDArray) -> NDArray:
    """Cells per label and cluster, shape ``(n_labels, n_clusters)``."""
    n_labels, n_clusters = label_codes.max() + 1, cluster_codes.max() + 1
    flat = np.bincount(label_codes * n_clusters + cluster_codes, minlength=n_labels * n_clusters)
    return flat.reshape(n_labels, n_clusters)
