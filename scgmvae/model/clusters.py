"""Components and what becomes of them: their use, their overlap, and merging to clusters."""

from __future__ import annotations

from itertools import count, islice

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from scvi.data import _constants as scvi_constants

from scgmvae import checks
from scgmvae.clustering.merging import (
    ComponentTree,
    Criterion,
    bhattacharyya,
    entropy_elbow,
    levels_of,
    tree_by_elbo,
    tree_by_entropy,
    tree_by_overlap,
)

__all__ = ["ComponentsMixin"]

N_DRAWS = 256
"""Draws of w over which the overlap of components is averaged."""

THRESHOLDS = {"overlap": 0.3, "elbo": 0.05}
"""Overlap from which on two clusters are one; nats per cell that a merge may cost."""


class ComponentsMixin:
    """Names of components and clusters, their table, and merging."""

    component_clusters_: NDArray[np.int64] | None
    """Cluster of each component (K,), −1 where it is dropped; None before any merging."""

    @property
    def component_names(self) -> NDArray[np.str_]:
        """Names of the K components: label names where they carry labels, else numbers.

        Components that were merged have their cluster's name and a number in it: cluster ``"3"``
        is of ``"3.0"`` and ``"3.1"``. Those that were dropped are ``"dropped.0"`` and so on.
        Numbers that are themselves labels, or that a label starts with as a part's name would,
        are left out.
        """
        if self.component_clusters_ is None:
            return self._names_of_clusters(self.n_components_ or 0)
        clusters = pd.Series(self.component_clusters_)
        dropped = "dropped"
        while any(label.startswith(f"{dropped}.") for label in self._label_names):
            dropped += "_"
        of_cluster = pd.Series([*self.cluster_names, dropped])  # the last one is at −1
        names = of_cluster.to_numpy()[clusters]
        rank, size = clusters.groupby(clusters).cumcount(), clusters.map(clusters.value_counts())
        is_part = (size > 1) | (clusters < 0)
        return np.array(
            [
                f"{name}.{r}" if part else name
                for name, r, part in zip(names, rank, is_part, strict=True)
            ]
        )

    @property
    def cluster_names(self) -> NDArray[np.str_]:
        """Names of the clusters: labels first, then numbers, the largest cluster first.

        Without any merging clusters are the components.
        """
        if self.component_clusters_ is None:
            return self.component_names
        return self._names_of_clusters(int(self.component_clusters_.max()) + 1)

    def _names_of_clusters(self, n: int) -> NDArray[np.str_]:
        labels = self._label_names
        taken = set(labels) | {label.split(".")[0] for label in labels}  # "3.1" looks like a part
        numbers = (str(k) for k in count(len(labels)) if str(k) not in taken)
        return np.array([*labels, *islice(numbers, max(0, n - len(labels)))])

    def _of_clusters(self, log_proba: NDArray[np.floating]) -> NDArray[np.floating]:
        """Log probabilities of the clusters, (n, M), from those of the components, (n, K)."""
        clusters = self.component_clusters_
        if clusters is None:
            return log_proba
        summed = [
            logsumexp(log_proba[:, clusters == m], axis=1) for m in range(clusters.max() + 1)
        ]
        return log_softmax(np.stack(summed, axis=1), axis=1)  # of what is left

    # -------------------------------------------------------------------------- similarity

    def component_similarity(self) -> pd.DataFrame:
        r"""Overlap of each two components in z.

        The Bhattacharyya coefficient of p(z|w,y=i,c) and p(z|w,y=j,c), averaged over 256 draws of
        c from the data and of w from p(w|c): 1 for components that are the same, 0 for such that
        have nothing in common.

        Returns
        -------
        DataFrame, components × components.

        Raises
        ------
        RuntimeError
            If the model has no trained components, or no data to draw conditions from.

        Examples
        --------
        >>> model.component_similarity().shape
        (3, 3)
        """
        self._check_mixture()
        names = self.component_names
        return pd.DataFrame(bhattacharyya(*self._drawn_components()), index=names, columns=names)

    @torch.inference_mode()
    def _drawn_components(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Means and standard deviations of the components at draws of w and c, (S, K, L)."""
        if self.adata is None:
            raise RuntimeError("The model has no data to draw conditions from: load it with some.")
        self.module.eval()
        rows = np.sort(np.random.default_rng(0).integers(self.adata.n_obs, size=N_DRAWS))
        (tensors,) = self._make_data_loader(self.adata, indices=rows, batch_size=N_DRAWS)
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(0)
            p_z = self.module.prior_components(tensors)
        return p_z.loc.cpu().numpy(), p_z.scale.cpu().numpy()

    def component_table(
        self, adata: AnnData | None = None, labels_key: str | None = None
    ) -> pd.DataFrame:
        r"""How the components are used, and how they lie to each other.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        labels_key
            obs column with the labels to compare to; ``None`` takes the one that the model was set
            up with, if any.

        Returns
        -------
        DataFrame with a row per component: ``cluster`` that it belongs to (missing where it is
        dropped), ``n_cells`` assigned, their ``share``, the model's ``weight`` π,
        ``mean_confidence`` (probability of the component in its cells), ``entropy`` −s log s of
        the share in nats, whose sum is the entropy of use (log K where all are used alike),
        ``is_empty``, the ``nearest`` other component, its ``overlap``
        (:meth:`component_similarity`) and ``distance`` (of the means, in their pooled standard
        deviations, averaged over w). Where there are labels, ``label``, the commonest of its
        cells, and ``label_share`` among those of its cells that have one.

        Raises
        ------
        KeyError
            If there is no such obs column.
        RuntimeError
            If the model has no trained components.
        ValueError
            If no cell has a label in it.

        Examples
        --------
        >>> table = model.component_table(labels_key="component")
        >>> int(table["n_cells"].sum())
        300
        """
        self._check_mixture()
        source = self._validate_anndata(adata)
        checks.check_columns(source, labels_key=labels_key)
        proba = np.exp(self._posteriors(source)["log_proba"])
        n_components = proba.shape[1]
        component = proba.argmax(1)
        n_cells = np.bincount(component, minlength=n_components)
        share = n_cells / len(proba)
        confidence = pd.Series(proba.max(1)).groupby(component).mean()
        clusters = self.component_clusters_
        if clusters is None:
            clusters = np.arange(n_components)
        names = self.component_names
        table = pd.DataFrame(
            {
                "cluster": np.array([*self.cluster_names, None], dtype=object)[clusters],
                "n_cells": n_cells,
                "share": share,
                "weight": self.module.log_weights.detach().exp().cpu().numpy(),
                "mean_confidence": confidence.reindex(range(n_components)).to_numpy(),
                "entropy": -share * np.log(np.where(share > 0, share, 1.0)),
                "is_empty": n_cells == 0,
                **self._nearest(names),
            },
            index=pd.Index(names, name="component"),
        )
        if labels_key is None:
            labels_key = self._labels_key_of(source)
        if labels_key is not None:
            shares = self._label_shares(component, source, labels_key)
            largest = shares.max(axis=1).to_numpy()
            label = np.where(np.isnan(largest), None, shares.fillna(0).idxmax(axis=1).to_numpy())
            table = table.assign(label=label, label_share=largest)
        return table

    def _label_shares(
        self, component: NDArray[np.integer], adata: AnnData, labels_key: str
    ) -> pd.DataFrame:
        """Share of each label among the labelled cells of each component, NaN without any."""
        labels = self._known_labels(adata, labels_key)
        if labels.isna().all():
            raise ValueError(
                "Components are compared with the labels of cells, but in the obs column "
                f"{labels_key!r} no cell has one. Name another column with labels_key=..."
            )
        counts = pd.crosstab(component, labels.to_numpy())
        counts = counts.reindex(range(self.module.n_components), fill_value=0)
        return counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)

    def _known_labels(self, adata: AnnData, labels_key: str) -> pd.Series:
        """Label of each cell as a string, None where it has none."""
        labels = adata.obs[labels_key].astype(object)
        labels = labels.where(labels.isna(), labels.astype(str))
        setup = self.registry_[scvi_constants._SETUP_ARGS_KEY]
        if labels_key == setup["labels_key"]:
            labels = labels.where(labels != str(setup["unlabeled_category"]), None)
        return labels

    def _labels_key_of(self, adata: AnnData) -> str | None:
        """The obs column of labels of the setup, where the data have it and any label in it."""
        if not self._label_names:
            return None
        key = self.registry_[scvi_constants._SETUP_ARGS_KEY]["labels_key"]
        is_given = key in adata.obs and self._known_labels(adata, key).notna().any()
        return key if is_given else None

    def _nearest(self, names: NDArray[np.str_]) -> dict[str, NDArray]:
        """Of each component the other that overlaps it most, and how much."""
        loc, scale = self._drawn_components()
        overlap = bhattacharyya(loc, scale)
        if len(names) == 1:
            return {"nearest": [None], "overlap": [np.nan], "distance": [np.nan]}
        np.fill_diagonal(overlap, -1)
        nearest = overlap.argmax(1)
        pooled = (scale**2 + scale[:, nearest] ** 2) / 2  # (S, K, L)
        distance = np.sqrt(((loc - loc[:, nearest]) ** 2 / pooled).sum(-1)).mean(0)
        return {"nearest": names[nearest], "overlap": overlap.max(1), "distance": distance}

    # ----------------------------------------------------------------------------- merging

    def merge_components(
        self,
        n: int | None = None,
        *,
        threshold: float | None = None,
        method: Criterion = "overlap",
    ) -> ComponentTree:
        """Merge components that the data do not tell apart to clusters, and write them back.

        Afterwards :meth:`predict` and ``obs["scgmvae"]`` have the clusters,
        ``predict(components=True)`` and ``obs["scgmvae_fine"]`` the components. The model itself
        stays as it is, so merging can be done again with another number; ``n=K`` makes each
        component a cluster. Components without cells are dropped. Those that carry labels stay
        apart. The numbers of clusters, and with them the names of components, are given anew.

        Parameters
        ----------
        n
            Number of clusters, labels among them; there are fewer where fewer components have
            cells.
        threshold
            In place of ``n``, where to stop. For ``"overlap"`` the least overlap, in (0, 1], that
            is merged, 0.3 by default; for ``"elbo"`` the most nats per cell that a merge may
            cost, 0.05 by default; for ``"entropy"`` the height, in (0, 1], the default being the
            elbow of the entropy.
        method
            ``"overlap"``: average linkage of −log overlap of p(z|w,y,c)
            (:meth:`component_similarity`), the safest where the number of clusters is open.
            ``"entropy"``: the pair between which the cells' posteriors are least decided.
            ``"elbo"``: the pair that costs least of the ELBO when one Gaussian takes the place of
            two, on held-out cells if there are any; the best where ``n`` is given
            (``benchmarks/studies/merging.py``).

        Returns
        -------
        Tree of the components, ``linkage`` as scipy has it and ``levels``, the partition of the
        components for each number of clusters; without those that carry labels or have no cells.

        Raises
        ------
        RuntimeError
            If the model has no trained components, or no data.
        ValueError
            If both ``n`` and ``threshold`` are given, or one is out of range.

        References
        ----------
        Hennig (2010), Methods for merging Gaussian mixture components; Baudry et al. (2010),
        Combining mixture components for clustering.

        Examples
        --------
        >>> tree = model.merge_components(2)
        >>> model.predict(soft=True).columns.tolist()
        ['0', '1']
        >>> tree = model.merge_components(3)  # each component is a cluster again
        """
        self._check_mixture()
        checks.check_choices(method=(method, ("overlap", "entropy", "elbo")))
        if n is not None and threshold is not None:
            raise ValueError(
                f"Give n or threshold, not both; received n={n} and threshold={threshold}."
            )
        if threshold is not None:
            checks.check_at_least(0, threshold=threshold)
            if method != "elbo" and not 0 < threshold <= 1:
                raise ValueError(
                    f"threshold of method={method!r} must be in (0, 1], but it is {threshold}."
                )
        if self.adata is None:
            raise RuntimeError("The model has no data to merge components by: load it with some.")
        if n is not None:
            checks.check_whole(1, n=n)
        checks.check_key_added(self.registry_[scvi_constants._SETUP_ARGS_KEY])
        posteriors = self._posteriors()
        tree = self._merge(posteriors, n, threshold, method)
        self._write(self.adata, posteriors)
        return tree

    def _merge(
        self,
        posteriors: dict[str, NDArray],
        n: int | None = None,
        threshold: float | None = None,
        method: Criterion = "overlap",
    ) -> ComponentTree:
        """Merge components, given the posteriors of the model's own cells."""
        n_components, n_labels = self.module.n_components, len(self._label_names)
        n_cells = np.bincount(posteriors["log_proba"].argmax(1), minlength=n_components)
        used = np.flatnonzero(n_cells > 0)
        free = used[used >= n_labels]
        if n is not None and not (1 if n_labels == 0 else n_labels + (len(free) > 0)) <= n:
            raise ValueError(
                f"n must be at least {n_labels + (len(free) > 0)}, because the {n_labels} "
                f"components that carry labels stay apart; received {n}."
            )
        if n is not None and n > n_components:
            raise ValueError(f"n must be at most K, {n_components}, but it is {n}.")
        linkage = self._tree(posteriors, free, method)
        levels = levels_of(linkage, self._names_of_clusters(n_components)[free])
        if n is not None:
            n_left = min(n - n_labels, len(free))
        elif method == "entropy" and threshold is None:
            n_left = entropy_elbow(np.exp(posteriors["log_proba"])[:, free], levels)
        else:
            highest = THRESHOLDS[method] if threshold is None else threshold
            if method == "overlap":
                highest = -np.log(highest)
            n_left = len(free) - int((linkage[:, 2] <= highest).sum())
        clusters = np.full(n_components, -1)
        clusters[:n_labels] = np.arange(n_labels)
        if n_left:
            codes = levels[n_left].to_numpy()
            sizes = np.bincount(codes, weights=n_cells[free])
            rank = np.argsort(np.argsort(-sizes, kind="stable"))
            clusters[free] = n_labels + rank[codes]
        self.component_clusters_ = clusters
        self._model_summary_string = self._summary()
        return ComponentTree(linkage, levels.set_axis(self.component_names[free], axis=0))

    def _tree(
        self, posteriors: dict[str, NDArray], which: NDArray[np.integer], method: Criterion
    ) -> NDArray[np.float64]:
        if len(which) < 2:
            return np.zeros((0, 4))
        if method == "entropy":
            return tree_by_entropy(np.exp(posteriors["log_proba"])[:, which])
        loc, scale = self._drawn_components()
        if method == "overlap":
            return tree_by_overlap(bhattacharyya(loc, scale)[np.ix_(which, which)])
        cells = self._held_out_cells()
        proba = np.exp(posteriors["log_proba"][cells][:, which])
        variance = (scale.astype(float) ** 2).mean(0) + loc.var(0)
        z_loc, z_var = posteriors["z_loc"][cells], posteriors["z_var"][cells]
        return tree_by_elbo(proba, z_loc, z_var, loc.mean(0)[which], variance[which])

    def _held_out_cells(self) -> NDArray[np.integer] | slice:
        """Rows of the data that were not trained on, or all where there are none."""
        if getattr(self, "trainer", None) is None:  # loaded, perhaps with other data
            return slice(None)
        parts = (self.train_indices, self.validation_indices, self.test_indices)
        sizes = [0 if rows is None else len(rows) for rows in parts]
        is_trained_on = sum(sizes) == self.adata.n_obs
        return self.validation_indices if is_trained_on and sizes[1] else slice(None)
