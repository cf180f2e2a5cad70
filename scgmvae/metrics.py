r"""Scores of clusterings, of predicted labels and of embeddings, where labels are known.

For a clustering there are the two scores that scikit-learn lacks, the accuracy after the best
one-to-one match of clusters to labels and the purity, and :func:`clustering_scores`, which gathers
both with scikit-learn's NMI and ARI. They see only which cells share a group, never the names of
the groups. For probabilities of labels there is :func:`calibration_error`. For an embedding of
several batches there is :func:`mixing_scores`, which calls ``scib-metrics``.

Notation: :math:`N_{jk}` is the number of cells with label :math:`j` in cluster :math:`k`,
:math:`n = \sum_{jk} N_{jk}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from scgmvae.checks import check_whole

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "calibration_error",
    "clustering_accuracy",
    "clustering_scores",
    "mixing_by_group",
    "mixing_of_cells",
    "mixing_scores",
    "purity",
    "type_recovery",
]


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


def type_recovery(labels: ArrayLike, clusters: ArrayLike) -> pd.DataFrame:
    r"""How well each type is found by the cluster that suits it best.

    .. math:: F_1(j) = \max_k \frac{2 N_{jk}}{N_{j\cdot} + N_{\cdot k}}

    Parameters
    ----------
    labels
        Known type of each cell, shape ``(n,)``, any dtype.
    clusters
        Cluster of each cell, shape ``(n,)``, any dtype.

    Returns
    -------
    DataFrame with a row per type, the smallest first: ``n_cells``, ``cluster`` (its best one) and
    ``F1`` in (0, 1]. A type with F1 of 0.7 or more may be called recovered.

    Raises
    ------
    ValueError
        As for :func:`clustering_accuracy`.

    Examples
    --------
    >>> type_recovery(["B", "T", "T", "T"], ["x", "y", "y", "x"])
          n_cells cluster        F1
    type
    B           1       x  0.666667
    T           3       y  0.800000
    """
    _codes(labels, clusters)  # this checks both
    table = pd.crosstab(np.asarray(labels), np.asarray(clusters))  # (types, clusters)
    n_cells = table.sum(axis=1)
    f1 = 2 * table / np.add.outer(n_cells.to_numpy(), table.sum(axis=0).to_numpy())
    recovery = pd.DataFrame(
        {"n_cells": n_cells, "cluster": f1.idxmax(axis=1), "F1": f1.max(axis=1)}
    )
    return recovery.rename_axis("type").sort_values("n_cells", kind="stable")


def calibration_error(labels: ArrayLike, proba: pd.DataFrame, n_bins: int = 15) -> float:
    r"""Expected calibration error (ECE) of predicted labels.

    .. math::
        \mathrm{ECE} = \sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|

    over bins b of equal width of the largest probability of a cell: how far, on average, the share
    of right predictions is from their confidence.

    Parameters
    ----------
    labels
        Known label of each cell, shape ``(n,)``.
    proba
        Probabilities, cells × names of the labels, ``(n, n_labels)``, as of
        :meth:`scgmvae.SCGMVAE.predict` with ``soft=True``.
    n_bins
        Number of bins.

    Returns
    -------
    ECE in [0, 1]; 0 for perfect calibration.

    Raises
    ------
    ValueError
        If there is not one label per row, or ``proba`` holds no probabilities.

    References
    ----------
    Guo et al. (2017), On calibration of modern neural networks, eq. 3.

    Examples
    --------
    >>> proba = pd.DataFrame({"B": [0.75, 0.75, 0.75, 0.75], "T": [0.25, 0.25, 0.25, 0.25]})
    >>> calibration_error(["B", "B", "B", "T"], proba)  # three of four are right
    0.0
    >>> calibration_error(["B", "B", "T", "T"], proba)
    0.25
    """
    _factorize(labels, "labels")  # this checks them
    check_whole(1, n_bins=n_bins)
    labels = np.asarray(labels)
    if not isinstance(proba, pd.DataFrame):
        raise ValueError(
            "proba must be a DataFrame, cells × names of the labels, as predict(soft=True) gives, "
            f"but it is a {type(proba).__name__}."
        )
    values = proba.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if not ((values >= 0) & (values <= 1 + 1e-6)).all():
        raise ValueError(
            "proba must hold probabilities, from 0 to 1, but it holds others or none: give those "
            "of predict(soft=True)."
        )
    if len(labels) != len(proba):
        raise ValueError(
            "labels and proba must have one entry per cell each, but received "
            f"{len(labels)} labels and {len(proba)} rows; subset both to the same cells."
        )
    confidence = proba.max(axis=1).to_numpy(dtype=float)
    is_right = proba.idxmax(axis=1).to_numpy() == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, weights=confidence - is_right, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(labels))


def mixing_by_group(
    embedding: ArrayLike, levels: ArrayLike, groups: ArrayLike, n_neighbors: int = 30
) -> pd.Series:
    """How well the levels of a condition mix within each group of cells.

    It is the share of a cell's neighbours in its group that are of another level, over the share
    that chance would give: 1 where the condition leaves no trace, 0 where levels are apart.

    Parameters
    ----------
    embedding
        Coordinates of the cells, ``(n, L)``.
    levels
        Level of the condition of each cell, ``(n,)``.
    groups
        Group (type or cluster) of each cell, ``(n,)``.
    n_neighbors
        Number of neighbours within the group; a tenth of the group where that is less.

    Returns
    -------
    Series of values by group; NaN where fewer than two levels have ``n_neighbors`` cells.

    Raises
    ------
    ValueError
        If there is not one level and one group per row.

    Examples
    --------
    >>> z = np.random.default_rng(0).standard_normal((200, 2))
    >>> mixed = mixing_by_group(z, np.tile(["a", "b"], 100), np.full(200, "T"))
    >>> bool(abs(mixed["T"] - 1) < 0.1)
    True
    """
    groups = np.asarray(groups)
    of_cells = pd.Series(mixing_of_cells(embedding, levels, groups, n_neighbors))
    return of_cells.groupby(groups).mean()


def mixing_of_cells(
    embedding: ArrayLike, levels: ArrayLike, groups: ArrayLike, n_neighbors: int = 30
) -> np.ndarray:
    """How well each cell is mixed with those of other levels in its group.

    Parameters
    ----------
    embedding, levels, groups, n_neighbors
        As in :func:`mixing_by_group`, which has the means of the groups.

    Returns
    -------
    Values of the cells, ``(n,)``; NaN where fewer than two levels have ``n_neighbors`` cells in
    the group.

    Raises
    ------
    ValueError
        If there is not one level and one group per row.

    Examples
    --------
    >>> z = np.random.default_rng(0).standard_normal((200, 2))
    >>> mixing_of_cells(z, np.tile(["a", "b"], 100), np.full(200, "T")).shape
    (200,)
    """
    embedding = np.asarray(embedding, dtype=np.float32)
    check_whole(1, n_neighbors=n_neighbors)
    level_codes, groups = _factorize(levels, "levels"), np.asarray(groups)
    _factorize(groups, "groups")
    if embedding.ndim != 2 or not len(embedding) == len(level_codes) == len(groups):
        raise ValueError(
            "embedding, levels and groups must have one entry per cell each, but received "
            f"{embedding.shape}, {len(level_codes)} and {len(groups)}."
        )
    mixing = np.full(len(groups), np.nan)
    for _, rows in pd.Series(np.arange(len(groups))).groupby(groups):
        of_group, z = level_codes[rows], embedding[rows]
        shares = np.bincount(of_group) / len(rows)
        if (shares * len(rows) >= n_neighbors).sum() < 2:
            continue
        k = min(n_neighbors, max(1, len(rows) // 10))
        near = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(return_distance=False)
        is_other = of_group[near] != of_group[:, None]
        mixing[rows] = is_other.mean(1) / (1 - shares[of_group])
    return mixing


def mixing_scores(
    embedding: ArrayLike, batches: ArrayLike, labels: ArrayLike, n_neighbors: int = 90
) -> dict[str, float]:
    """How well an embedding mixes batches and keeps labels apart, by scib-metrics.

    Parameters
    ----------
    embedding
        Coordinates of the cells, ``(n, L)``.
    batches
        Batch (or condition) of each cell, ``(n,)``.
    labels
        Label of each cell, ``(n,)``.
    n_neighbors
        Neighbours that the LISI scores look at, fewer for small data.

    Returns
    -------
    Dictionary with ``"silhouette_label"`` (mean silhouette by label, scaled to [0, 1]),
    ``"silhouette_batch"`` (1 minus the absolute silhouette by batch within a label, mean over
    labels), ``"iLISI"`` (effective number of batches among a cell's neighbours) and ``"cLISI"``
    (the same for labels, reversed), all scaled to [0, 1], where 1 is best.

    Raises
    ------
    ImportError
        If scib-metrics is not installed.
    ValueError
        If there is not one batch and one label per row, or no label has cells of two batches.

    References
    ----------
    Luecken et al. (2022), Benchmarking atlas-level data integration in single-cell genomics;
    Korsunsky et al. (2019), Fast, sensitive and accurate integration with Harmony (LISI).
    """
    try:
        import scib_metrics
        from scib_metrics.nearest_neighbors import pynndescent
    except ImportError as error:
        raise ImportError(
            "mixing_scores needs scib-metrics: pip install 'scgmvae[benchmark]'."
        ) from error
    embedding = np.asarray(embedding, dtype=np.float32)
    if embedding.ndim != 2 or not np.isfinite(embedding).all():
        raise ValueError(
            "embedding must be finite numbers of shape (n, L), but it has shape "
            f"{embedding.shape} and {np.sum(~np.isfinite(embedding))} values that are not finite."
        )
    check_whole(1, n_neighbors=n_neighbors)
    batch_codes, label_codes = _factorize(batches, "batches"), _factorize(labels, "labels")
    if not len(embedding) == len(batch_codes) == len(label_codes):
        raise ValueError(
            "embedding, batches and labels must have one entry per cell each, but received "
            f"{len(embedding)}, {len(batch_codes)} and {len(label_codes)}."
        )
    by_label = pd.Series(batch_codes).groupby(label_codes).agg(["nunique", "size"])
    if not ((by_label["nunique"] > 1) & (by_label["nunique"] < by_label["size"])).any():
        raise ValueError(
            "Mixing is measured within labels, so one at least must have cells of two batches and "
            f"more cells than batches, but none of the {len(by_label)} labels has."
        )
    neighbors = pynndescent(embedding, n_neighbors=min(n_neighbors, len(embedding) - 1))
    scores = {
        "silhouette_label": scib_metrics.silhouette_label(embedding, label_codes),
        "silhouette_batch": scib_metrics.silhouette_batch(embedding, label_codes, batch_codes),
        "iLISI": scib_metrics.ilisi_knn(neighbors, batch_codes),
        "cLISI": scib_metrics.clisi_knn(neighbors, label_codes),
    }
    return {name: float(score) for name, score in scores.items()}


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
        values,
        (
            list,
            tuple,
            pd.Series,
            pd.Index,
            pd.api.extensions.ExtensionArray,
            np.ma.MaskedArray,
        ),
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
