"""Marker genes of the clusters, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scvi import REGISTRY_KEYS

from scgmvae import checks
from scgmvae.data.categories import name_of
from scgmvae.data.groups import groups_of
from scgmvae.data.keys import FEATURE_MODALITY_KEY
from scgmvae.data.matrices import read_rows
from scgmvae.model.differences import DifferencesMixin
from scgmvae.model.splits import BLOCK, SplitsMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgmvae.clustering.group_sums import GroupSums

__all__ = ["MarkersMixin", "log2_means"]

N_CELLS = 500
"""Largest number of cells of a cluster, and of others, whose expression is compared."""


def log2_means(mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of log(1 + counts per 10,000) as log2 of counts per 10,000, with 0.01 added."""
    return np.log2(np.expm1(mean) + 1e-2)


class MarkersMixin(SplitsMixin, DifferencesMixin):
    """The method ``markers``."""

    def markers(
        self, n: int = 5, groupby: str = "scgmvae", groups: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Genes that are higher in a cluster than in all other cells.

        They are ordered by Welch's t of log(1 + counts per 10,000), as in :meth:`split_table`.
        :meth:`differential_expression` has every gene, and tests.

        Parameters
        ----------
        n
            Number of genes of each cluster, and of features of each modality where there are
            several. There are fewer where fewer are higher.
        groupby
            obs column of the clusters; cells without one are left out.
        groups
            Clusters of that column, in the order of the table; ``None`` is all of them.

        Returns
        -------
        DataFrame with a row per cluster and gene: ``cluster``, ``gene``; ``lfc``, the log2 fold
        change against all other cells, as in scanpy of means of log(1 + counts per 10,000) that
        are turned back into counts per 10,000, with 0.01 added; ``probability`` that a cell of
        the cluster has more of the gene than a cell outside of it, under the model and without
        the noise of counting; ``fraction`` and ``fraction_rest``, the shares of the cells with
        any count of the gene. For data that are no counts, ``lfc`` is the difference of the means.
        Of several modalities also the ``modality`` of each feature; counts of proteins are
        compared as they are, and not per 10,000.

        Raises
        ------
        KeyError
            If there is no such obs column.
        RuntimeError
            If the model is not trained, has no clusters, or has no data.
        ValueError
            If ``n`` is below 1, there are fewer than two clusters, or no such cluster, or
            ``groupby`` holds measurements.

        Examples
        --------
        >>> table = model.markers(n=2)
        >>> table.columns.tolist()
        ['cluster', 'gene', 'lfc', 'probability', 'fraction', 'fraction_rest']
        """
        self._check_if_trained(warn=False)
        checks.check_whole(1, n=n)
        source = self._validate_anndata()
        if groupby == "scgmvae":
            self._check_mixture()
        column = groups_of(source, groupby=groupby)
        codes, names = column.cat.codes.to_numpy(), column.cat.categories
        if len(names) < 2:
            finer = " model.cut(strength=...) makes finer ones." if groupby == "scgmvae" else ""
            raise ValueError(
                f"Markers tell a cluster from other cells, but all cells of {groupby!r} are in "
                f"{names[0]!r}.{finer}"
            )
        if isinstance(groups, str):
            groups = [groups]
        chosen = names if groups is None else pd.unique(np.array([*map(name_of, groups)], object))
        unknown = [name for name in chosen if name not in names]
        if unknown or not len(chosen):
            what = f"{unknown[0]!r} is none" if unknown else "there are none in the list"
            raise ValueError(
                f"groups must be clusters of {groupby!r}, but {what}. They are {', '.join(names)}."
            )
        rows = np.flatnonzero(codes >= 0)
        sums = self._sums_by_group(rows, codes[rows], len(names))
        clusters = names.get_indexer(chosen)
        genes = [self._markers_of(cluster, sums, n) for cluster in clusters]
        shown, place = np.unique(np.concatenate(genes), return_inverse=True)
        places = np.split(place, np.cumsum([len(own) for own in genes])[:-1])
        positive = self._positive_by_group(rows, codes[rows], shown, len(names))
        share = self._measured_share(rows, codes[rows], len(names))
        measured = np.repeat(sums.n_cells[:, None].astype(float), len(shown), axis=1)
        if share is not None:
            measured = measured * share[:, shown]
        parts = [
            self._rows_of(
                cluster,
                names[cluster],
                own,
                sums,
                codes,
                positive[:, columns],
                measured[:, columns],
            )
            for cluster, own, columns in zip(clusters, genes, places, strict=True)
        ]
        return pd.concat(parts, ignore_index=True)

    def _markers_of(self, cluster: int, sums: GroupSums, n: int) -> NDArray[np.int64]:
        """Numbers of the genes that are highest in a group beside all others."""
        others = np.delete(np.arange(len(sums.n_cells)), cluster)
        return self._highest_genes(np.array([cluster]), others, sums, n)

    def _rows_of(
        self,
        cluster: int,
        name: str,
        genes: NDArray[np.integer],
        sums: GroupSums,
        codes: NDArray[np.integer],
        positive: NDArray[np.float64],
        measured: NDArray[np.float64],
    ) -> pd.DataFrame:
        """The rows of one cluster, given the cells with any count of its genes, (K, genes).

        ``measured`` is the number of cells of each cluster in which these were measured.
        """
        is_own = np.arange(len(sums.n_cells)) == cluster

        def means(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
            return [values[side].sum(0) / sums.n_cells[side].sum() for side in (is_own, ~is_own)]

        own, rest = means(sums.x[:, genes])
        if self.module.is_count:
            own, rest = (log2_means(mean) for mean in (own, rest))
        fraction, fraction_rest = (
            positive[side].sum(0) / np.maximum(measured[side].sum(0), 1)
            for side in (is_own, ~is_own)
        )
        is_other = (codes != cluster) & (codes >= 0)
        modality = {}
        if self.modalities_ is not None:
            modality["modality"] = self.adata.var[FEATURE_MODALITY_KEY].astype(str).array[genes]
        return pd.DataFrame(
            {
                "cluster": name,
                "gene": self._setup.gene_names[genes],
                **modality,
                "lfc": own - rest,
                "probability": self._share_of_higher(codes == cluster, is_other, genes),
                "fraction": fraction,
                "fraction_rest": fraction_rest,
            }
        )

    def _share_of_higher(
        self, own: NDArray[np.bool_], other: NDArray[np.bool_], genes: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """Share of pairs of a cell and another one in which the first has more, (genes,)."""
        rng = np.random.default_rng(0)
        values = []
        for cells in (own, other):
            rows = np.sort(rng.permutation(np.flatnonzero(cells))[:N_CELLS])
            expression = self.get_normalized_expression(indices=rows, return_numpy=True)
            values.append(np.sort(expression[:, genes], axis=0))
        # the number of others below each cell, gene by gene
        below = [np.searchsorted(b, a) for a, b in zip(values[0].T, values[1].T, strict=True)]
        return np.array([places.mean() for places in below]) / len(values[1])

    def _positive_by_group(
        self,
        rows: NDArray[np.integer],
        group: NDArray[np.integer],
        genes: NDArray[np.integer],
        n_groups: int,
    ) -> NDArray[np.float64]:
        """Number of cells of each group with any count of some genes, (K, genes)."""
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        n_positive = np.zeros((n_groups, len(genes)))
        for some in np.split(np.arange(len(rows)), range(BLOCK, len(rows), BLOCK)):
            is_positive = sparse.csr_matrix(read_rows(x, rows[some])[:, genes] > 0, dtype=float)
            member = (np.ones(len(some)), (group[some], np.arange(len(some))))
            of_groups = sparse.csr_matrix(member, shape=(n_groups, len(some)))
            n_positive += (of_groups @ is_positive).toarray()
        return n_positive
