"""Merging of components that the data do not tell apart into clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
from scgmvae.data import validation
from scgmvae.model.components import ComponentsMixin

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MergingMixin"]

THRESHOLDS = {"overlap": 0.3, "elbo": 0.05}
"""Default thresholds: overlap from which on clusters are merged; nats per cell of a merge."""


class MergingMixin(ComponentsMixin):
    """The method ``merge_components``."""

    def merge_components(
        self,
        n: int | None = None,
        *,
        threshold: float | None = None,
        method: Criterion = "overlap",
    ) -> ComponentTree:
        """Merge components that the data do not tell apart into clusters, and write the clusters.

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
            Threshold at which to stop, in place of ``n``. For ``"overlap"`` the least overlap, in
            (0, 1], that is merged, 0.3 by default; for ``"elbo"`` the most nats per cell that a
            merge may cost, 0.05 by default; for ``"entropy"`` the height, in (0, 1], the default
            being the elbow of the entropy.
        method
            ``"overlap"``: average linkage of −log overlap of p(z|w,y,c)
            (:meth:`component_similarity`), the safest where the number of clusters is open.
            ``"entropy"``: the pair between which the cells' posteriors are least certain.
            ``"elbo"``: the pair that costs least of the ELBO when one Gaussian takes the place of
            two, on held-out cells if there are any. With ``n`` given it agreed best with the
            labels on two of four data sets, with one seed (``benchmarks/studies/merging.py``).

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
        validation.check_key_added(self._setup.arguments)
        posteriors = self._posteriors_to_judge()
        tree = self._merge(posteriors, n, threshold, method)
        self._write_to_own_data(posteriors)
        return tree

    def _merge(
        self,
        posteriors: dict[str, NDArray],
        n: int | None = None,
        threshold: float | None = None,
        method: Criterion = "overlap",
    ) -> ComponentTree:
        """Merge components, given the posteriors of the model's own cells."""
        n_components, n_labels = self.module.n_components, len(self._setup.label_names)
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
        levels = levels_of(linkage, self._clustering.numbered(n_components)[free])
        if n is not None:
            n_left = min(n - n_labels, len(free))
        elif method == "entropy" and threshold is None:
            n_left = entropy_elbow(np.exp(posteriors["log_proba"])[:, free], levels)
        else:
            highest = THRESHOLDS[method] if threshold is None else threshold
            if method == "overlap":
                highest = -np.log(highest)
            n_left = len(free) - int((linkage[:, 2] <= highest).sum())
        clusters = np.arange(n_components)
        if n_left:
            clusters[free] = n_labels + levels[n_left].to_numpy()
        self._set_clusters(clusters, n_cells)
        return ComponentTree(linkage, levels.set_axis(self.component_names[free], axis=0))

    def _set_clusters(self, clusters: NDArray[np.integer], n_cells: NDArray[np.integer]) -> None:
        """Number the clusters anew: those of labels first, then by size; drop empty components.

        Parameters
        ----------
        clusters
            Any code of the cluster of each component, ``(K,)``. Components of labels stay apart.
        n_cells
            Number of cells of each component, ``(K,)``.
        """
        n_labels = len(self._setup.label_names)
        numbered = np.full(len(clusters), -1)
        numbered[:n_labels] = np.arange(n_labels)
        free = np.flatnonzero(n_cells > 0)
        free = free[free >= n_labels]
        if len(free):
            _, codes = np.unique(clusters[free], return_inverse=True)
            sizes = np.bincount(codes, weights=n_cells[free])
            rank = np.argsort(np.argsort(-sizes, kind="stable"))
            numbered[free] = n_labels + rank[codes]
        self.component_clusters_ = numbered
        self._model_summary_string = self._summary()

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
        if self.trainer is None:  # loaded, perhaps with other data
            return slice(None)
        parts = (self.train_indices, self.validation_indices, self.test_indices)
        sizes = [0 if rows is None else len(rows) for rows in parts]
        is_trained_on = sum(sizes) == self.adata.n_obs
        return self.validation_indices if is_trained_on and sizes[1] else slice(None)
