"""Findings after a fit, in plain words. All of their thresholds are here.

They are rules of thumb: a finding says where to look, not that a fit is wrong, and a fit without
findings can be wrong in ways that need the biology to be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import roc_auc_score

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "cell_findings",
    "component_findings",
    "latent_findings",
    "mixing_findings",
    "quality_findings",
    "split_findings",
    "training_findings",
]

LEAST_KL = 0.05
"""KL in nats per cell below which a latent counts as switched off."""

LEAST_VARIANCE = 0.01
"""Variance over cells of the mean of a dimension of z below which it is unused (Burda et al. 2016,
Importance weighted autoencoders, section 5.1)."""

LARGEST_GAIN = 0.005
"""Share of the ELBO that the last fifth of the joint epochs may gain on the fifth before."""

LEAST_CONFIDENCE, UNSURE_SHARE = 0.5, 0.1
"""Confidence below which a cell counts as unsure, and the share of such cells that is many. In a
single cluster it is half of the cells."""

FEWEST_TOLD = 10
"""Number of unsure cells, or outliers, from which on those of a single cluster are told of."""

LARGEST_NOVELTY, NOVEL_SHARE = 0.99, 0.1
"""Novelty above which a cell counts as an outlier, and the share of such cells that is many. Among
the training cells the share is 0.01, among other cells of the same types a few times as much."""

LARGEST_OVERLAP = 0.5
"""Overlap above which two components of different clusters are hard to tell apart."""

WEAK = 0.6
"""Strength below which a split between clusters is one that another training may not make. Between
trainings the strength of one split varies by about .05."""

LARGEST_AUC = 0.95
"""Probability that a cell of a cluster has more, or fewer, counts than another cell, above which
the cluster may be one of depth."""


def training_findings(history: dict[str, pd.DataFrame] | None) -> list[str]:
    """Findings in the history of a model: whether w is off, and whether the ELBO still rises.

    Parameters
    ----------
    history
        Term → its values by epoch, as :attr:`scgmvae.SCGMVAE.history` has them.
    """
    found = []
    if not history or "kl_w_train" not in history:  # there was no joint stage
        return found
    part = "validation" if "elbo_validation" in history else "train"
    kl_w = float(_curve(history, f"kl_w_{part}")[-1])
    if kl_w < LEAST_KL:
        found.append(
            f"The KL of w is {kl_w:.2f} nats: w is off. Components then have the same "
            "places for all cells; a smaller n_latent_w, or a longer training, may bring it back."
        )
    first = history["kl_w_train"].index[0]
    loss = _curve(history, f"elbo_{part}", first)
    n = max(1, len(loss) // 5)
    if len(loss) >= 2:
        gain = loss[-2 * n : -n].mean() - loss[-n:].mean()
        if gain > LARGEST_GAIN * abs(loss[-n:].mean()):
            name = {"validation": "validation", "train": "training"}[part]
            found.append(
                f"The {name} ELBO was still rising at the end of training, by {gain:.1f} nats per "
                "cell over the last fifth of the joint stage: train() again goes on."
            )
    return found


def _curve(history: dict[str, pd.DataFrame], name: str, first: int = 0) -> np.ndarray:
    values = history[name].iloc[:, 0].astype(float)
    return values[values.index >= first].to_numpy()


def latent_findings(z: np.ndarray) -> list[str]:
    """Findings in the means of z, (n, L): whether no dimension varies between cells."""
    if (z.var(axis=0) >= LEAST_VARIANCE).any():
        return []
    return [
        "No dimension of z varies between the cells: z is off. Check that the data are the raw "
        "counts, or train with a smaller plan_kwargs={'max_kl_weight': ...}."
    ]


def component_findings(table: pd.DataFrame) -> list[str]:
    """Findings in the table of the components: which are empty, which overlap.

    Parameters
    ----------
    table
        Table as :meth:`scgmvae.SCGMVAE.component_table` returns it.
    """
    found = []
    empty = table.index[table["is_empty"]]
    if len(empty):
        verb, them = ("is", "it") if len(empty) == 1 else ("are", "them")
        found.append(
            f"{len(empty)} of {len(table)} components {verb} empty, that is, no cell is assigned "
            f"to {them}: a smaller n_components would do."
        )
    used = table[~table["is_empty"] & (table["overlap"] > LARGEST_OVERLAP)]
    pairs = {frozenset((name, row["nearest"])): row["overlap"] for name, row in used.iterrows()}
    for pair, overlap in pairs.items():
        a, b = sorted(pair)
        if not table.loc[b, "is_empty"] and table.loc[a, "cluster"] != table.loc[b, "cluster"]:
            found.append(
                f"The components {a} and {b} overlap by {overlap:.2f}, so that many of their "
                "cells could be in either: merge_components() makes them one cluster."
            )
    return found


def split_findings(table: pd.DataFrame) -> list[str]:
    """Findings in the tested splits: which are weak, and which rest on few genes.

    Parameters
    ----------
    table
        Table as :meth:`scgmvae.SCGMVAE.split_table` returns it.
    """

    def named(rows: pd.DataFrame) -> str:
        return "; ".join(
            f"{row.left} from {row.right} ({row.strength:.2f})" for row in rows.itertuples()
        )

    found = []
    weak = table[table["is_made"] & (table["height"] < WEAK)]
    if len(weak):
        found.append(
            f"Weak splits between clusters, with their strength: {named(weak)}. Another training "
            f"may not make them. cut(strength={WEAK}) goes without, and split_table() has the "
            "genes that differ."
        )
    is_held_back = table["is_of_few_genes"] & ~table["is_made"]
    narrow = table[is_held_back & (table["strength"] >= WEAK)]
    if len(narrow):
        found.append(
            f"Splits that are deep but rest on three genes or fewer: {named(narrow)}. They make "
            "no clusters, because light chains of antibodies or a stress response divide cells "
            "so; split_table() names the genes."
        )
    return found


def mixing_findings(table: pd.DataFrame) -> list[str]:
    """Findings in how the levels of conditions mix in z.

    Parameters
    ----------
    table
        Table of :meth:`scgmvae.SCGMVAE.integration_table`, by cluster.
    """
    found = []
    for condition, rows in table.groupby("condition", sort=False):
        apart = rows[rows["verdict"] == "apart"]
        if len(apart):
            names = ", ".join(
                f"{row.level} in {row.group} ({row.mixing:.2f})" for row in apart.itertuples()
            )
            found.append(
                f"In z levels of {condition} are apart within a cluster: {names}. Their cells "
                "have fewer neighbours of another level than chance would give (1)."
            )
        divided = rows[rows["verdict"].str.startswith("divided")]
        if len(divided):
            names = ", ".join(f"{row.group} ({row.level})" for row in divided.itertuples())
            found.append(
                f"Clusters have cells of one level of {condition} alone, and so has the cluster "
                f"next to each, of another: {names}. Each may be a part of a type that "
                f"{condition} divides; model.markers() shows whether their types differ."
            )
    return found


def quality_findings(clusters: np.ndarray, values: dict[str, np.ndarray]) -> list[str]:
    """Findings of clusters that a measure of the quality of cells sets apart, such as depth.

    Parameters
    ----------
    clusters
        Cluster of each cell, ``(n,)``.
    values
        Measure → its value for each cell, ``(n,)``.
    """
    found = []
    for measure, of_cells in values.items():
        for cluster in np.unique(clusters):
            inside = clusters == cluster
            if inside.all():
                continue
            auc = roc_auc_score(inside, of_cells)
            if max(auc, 1 - auc) > LARGEST_AUC:
                word = "more" if auc > 0.5 else "less"
                own, rest = (np.median(of_cells[part]) for part in (inside, ~inside))
                found.append(
                    f"Nearly all cells of cluster {cluster} have {word} {measure} than other "
                    f"cells (median {own:,.4g} against {rest:,.4g}). Large cells and doublets "
                    "have more, broken cells less: check whether its markers are its own or those "
                    f"of two other clusters, model.markers(groups=[{str(cluster)!r}])."
                )
    return found


def cell_findings(clusters: pd.Series, confidence: pd.Series, novelty: pd.Series) -> list[str]:
    """Findings in confidence and novelty: whether many cells are unsure, or outliers.

    Parameters
    ----------
    clusters, confidence, novelty
        Values of the cells as :meth:`scgmvae.SCGMVAE.annotate` writes them, the numbers in [0, 1].
    """
    found = []
    is_unsure = confidence < LEAST_CONFIDENCE
    by_cluster = is_unsure.groupby(clusters, observed=True).agg(["mean", "sum"])
    by_cluster = by_cluster.sort_values("mean", ascending=False)
    is_guess = (by_cluster["mean"] > 0.5) & (by_cluster["sum"] >= FEWEST_TOLD)
    if is_unsure.mean() > UNSURE_SHARE or is_guess.any():
        named = by_cluster[by_cluster["mean"] > UNSURE_SHARE]["mean"]
        names = ", ".join(f"{name} ({share:.0%} of its cells)" for name, share in named.items())
        found.append(
            f"{is_unsure.sum():,} cells have a confidence below {LEAST_CONFIDENCE}, so that their "
            f"cluster is a guess. Most concerned are the clusters {names}. "
            f"adata[adata.obs['scgmvae_confidence'] < {LEAST_CONFIDENCE}] has these cells."
        )
    is_novel = novelty > LARGEST_NOVELTY
    by_cluster = is_novel.groupby(clusters, observed=True).agg(["mean", "sum"])
    mostly = by_cluster.index[(by_cluster["mean"] > 0.5) & (by_cluster["sum"] >= FEWEST_TOLD)]
    if is_novel.mean() > NOVEL_SHARE or len(mostly):
        most = f" They are most of the cells of {', '.join(map(str, mostly))}." * bool(len(mostly))
        found.append(
            f"{is_novel.mean():.0%} of the cells have a novelty above {LARGEST_NOVELTY}, as "
            f"{1 - LARGEST_NOVELTY:.0%} of the training cells do: they may be of types, or of a "
            f"quality, that the model was not trained on.{most}"
        )
    return found
