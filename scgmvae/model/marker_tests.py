"""Tests of the genes of clusters, on counts that did not make the clusters."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.stats import false_discovery_control
from scvi import REGISTRY_KEYS

from scgmvae import checks
from scgmvae.clustering.group_sums import GroupSums, sums_by_group, welch_test
from scgmvae.data.groups import groups_of
from scgmvae.data.keys import FEATURE_MODALITY_KEY, MODALITIES_KEY, PANELS_KEY
from scgmvae.data.matrices import read_rows
from scgmvae.data.modalities import all_panels_of
from scgmvae.data.normalization import on_log_scale
from scgmvae.data.thinning import halves
from scgmvae.distributions.joint import inverse_dispersions
from scgmvae.model.markers import log2_means
from scgmvae.model.splits import BLOCK
from scgmvae.model.training import TrainingMixin

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MarkerTestsMixin"]

DIVISIBLE = ("nb", "poisson", "protein")
"""Likelihoods of counts that are the sum of two independent ones; of proteins, given whether they
are of the background or of the foreground."""
FEWEST_POSITIVE = 10
"""Number of cells with any count of a gene from which on it is tested."""
AGAIN = 0.5
"""Of the cells in a cluster or its counterpart, the share in both from which on the cluster was
found again."""


class MarkerTestsMixin(TrainingMixin):
    """The method ``test_markers``."""

    def test_markers(self, groupby: str | None = None, *, seed: int = 0) -> pd.DataFrame:
        r"""Test every gene between each cluster and all other cells.

        Clusters differ in the very counts that made them, also where the cells are of one
        population. So by default every count is divided at random in two that are independent of
        each other, a model with the settings of this one is trained on the first half, for as long
        and otherwise with the defaults of :meth:`train`, and its clusters are compared by the
        second half. This takes as long as training did, and half of the counts tell fewer genes.
        Labels that the model was set up with are known to both, so they must not come from a
        clustering of the same counts. Of several modalities those with the likelihoods ``"nb"``,
        ``"poisson"`` and ``"protein"`` are divided and tested; the others are the same for both
        models, and are not in the table. The halves of a protein's counts are independent given
        whether the cell carries it, so a protein that some cells of a population carry, and others
        do not, is a difference between them.

        Parameters
        ----------
        groupby
            obs column of groups that these counts did not make, such as sorted cells, to compare
            on all counts; cells without a group are left out. ``None`` is the model's own
            clusters, by halves of the counts. ``"scgmvae"`` compares these as if they had been
            known: the p are then far too small.
        seed
            Seed of the division of the counts.

        Returns
        -------
        DataFrame with a row per cluster and gene, most significant first: ``cluster``, ``gene``;
        of several modalities the ``modality``; ``lfc``, the log2 fold change against all other
        cells as in :meth:`markers`; ``fraction`` and ``fraction_rest``, the shares of the cells
        with any count of the gene; ``p`` of Welch's t of log(1 + counts per 10,000), of proteins
        of log(1 + counts); ``q``, the false discovery rate within the cluster, and of several
        modalities within each (Benjamini and Hochberg); ``overlap``, of the cells that are in the
        cluster or in its counterpart among the new ones the share that are in both, 1 with
        ``groupby``. The p is missing of genes that fewer than ten of the cells show, and where
        fewer than two cells on a side have the modality; so is the rest where none has. Cells in
        which a feature was not measured, or of which no count of the genes is left, do not count.

        Raises
        ------
        KeyError
            If there is no such obs column.
        NotImplementedError
            If the model has no counts of these likelihoods.
        RuntimeError
            If the model has no trained components, or no data.
        ValueError
            If there are fewer than two clusters.

        Notes
        -----
        Cells are the units. Between conditions, or where few donors gave the cells, donors are the
        units, see :meth:`test_condition`.

        References
        ----------
        Neufeld et al. 2024, Data thinning for convolution-closed distributions, JMLR 25.

        Examples
        --------
        >>> table = model.test_markers("component")
        >>> table.columns.tolist()
        ['cluster', 'gene', 'lfc', 'fraction', 'fraction_rest', 'p', 'q', 'overlap']
        """
        checks.check_seed(seed)
        adata = self._validate_anndata()
        is_divisible = self._is_divisible
        if not is_divisible.any():
            raise NotImplementedError(
                "Genes are tested by counts of the likelihoods 'nb', 'poisson' and 'protein', but "
                f"this model has {checks.listed([name for name, _ in self._kinds])}."
            )
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        counts = sparse.csr_matrix(read_rows(x, np.arange(adata.n_obs)))
        divisible = counts[:, is_divisible]
        if groupby is not None:
            self._check_if_trained(warn=False)
            groups = groups_of(adata, groupby=groupby).dropna()
            rows, names = adata.obs_names.get_indexer(groups.index), groups.cat.categories
            _check_several(len(names))
            return self._tests(divisible[rows], rows, groups.cat.codes.to_numpy(), names)
        self._check_mixture()
        _check_several(len(self.cluster_names))
        first, second = halves(divisible, self._inverse_dispersions(), np.random.default_rng(seed))
        place = sparse.identity(adata.n_vars, np.float32, format="csr")[is_divisible]
        first = (first @ place + counts.multiply(~is_divisible)).tocsr()
        rows = np.flatnonzero(first.getnnz(1))  # a cell of few counts may have none in this half
        again = self._trained_on(first[rows], rows)
        codes, overlap = self._matched(again, rows)
        found = overlap >= AGAIN
        if not found.all():
            lost = ", ".join(self.cluster_names[~found])
            warnings.warn(
                f"On half of the counts these clusters were not found again, so they are not in "
                f"the table: {lost}. What sets them apart may be noise, or need all counts.",
                UserWarning,
                stacklevel=2,
            )
        table = self._tests(second, np.arange(len(codes)), codes, self.cluster_names, overlap)
        return table[table["cluster"].isin(self.cluster_names[found])].reset_index(drop=True)

    @property
    def _is_divisible(self) -> NDArray[np.bool_]:
        """Which features are counts that can be divided, (G,)."""
        return np.concatenate(
            [np.full(size, likelihood in DIVISIBLE) for likelihood, size in self._kinds]
        )

    def _inverse_dispersions(self) -> NDArray[np.floating]:
        """Inverse dispersion of each divisible feature, (G',), or of each value, (n, G')."""
        n_obs = 1 if self.module.dispersion == "gene" else self.adata.n_obs  # all are alike
        loader = self._make_data_loader(self.adata, np.arange(n_obs), batch_size=BLOCK)
        parts = []
        with torch.inference_mode():
            for tensors in loader:
                given = self._as_given(tensors)[1]
                p_x = self.module.generative(**given, only_x=True)["px"]
                parts.append(inverse_dispersions(p_x).cpu().numpy()[:, self._is_divisible])
        return parts[0][0] if n_obs == 1 else np.concatenate(parts)

    def _trained_on(
        self, counts: sparse.csr_matrix, rows: NDArray[np.integer]
    ) -> MarkerTestsMixin:
        """A model of the same settings, trained as long on other counts of some of the cells."""
        adata = AnnData(counts, obs=self.adata.obs.iloc[rows].copy())
        adata.var_names = self._setup.gene_names
        if self.modalities_ is not None:
            adata.var[FEATURE_MODALITY_KEY] = self.adata.var[FEATURE_MODALITY_KEY].array
            for key in (MODALITIES_KEY, PANELS_KEY):
                if key in self.adata.uns:
                    adata.uns[key] = self.adata.uns[key]
        arguments = self._setup.arguments | {"layer": None}
        type(self).setup_anndata(adata, **arguments)
        changed = {"adata": adata, "n_components": len(self.cluster_names)}
        model = type(self)(**self._arguments | changed)
        length: dict[str, Any] = {}
        if self.history:  # which a training without a logger does not have
            n_joint = len(self.history["kl_y_train"])
            n_pretrained = len(self.history["elbo_train"]) - n_joint
            length = {"max_epochs": n_joint, "pretrain_epochs": n_pretrained}
        with warnings.catch_warnings():  # what is to be said of splits was said of this model
            warnings.simplefilter("ignore", UserWarning)
            model.train(seed=self.seed_, enable_progress_bar=False, logger=False, **length)
        return model

    def _matched(
        self, again: MarkerTestsMixin, rows: NDArray[np.integer]
    ) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """Clusters of another model of some cells, numbered as those that they overlap most.

        Returns
        -------
        Cluster of each cell, ``(n,)``, −1 where it has no counterpart, and the share of the cells
        of each cluster and its counterpart that are in both, ``(K,)``.
        """
        own, theirs = self._cluster_codes()[rows], again._cluster_codes()
        both = np.zeros((len(self.cluster_names), len(again.cluster_names)))
        np.add.at(both, (own, theirs), 1)
        either = both.sum(1, keepdims=True) + both.sum(0) - both
        overlap = both / np.maximum(either, 1)
        clusters, columns = linear_sum_assignment(overlap, maximize=True)
        number = np.full(len(again.cluster_names), -1)
        number[columns] = clusters
        shares = np.zeros(len(self.cluster_names))
        shares[clusters] = overlap[clusters, columns]
        codes = np.full(self.adata.n_obs, -1)
        codes[rows] = number[theirs]
        return codes, shares

    def _cluster_codes(self) -> NDArray[np.integer]:
        """Number of the cluster of each cell, (n,), also of clusters without a label."""
        return self._clustering.log_proba(self._posteriors()["log_proba"]).argmax(1)

    def _tests(
        self,
        counts: sparse.csr_matrix,
        rows: NDArray[np.integer],
        codes: NDArray[np.integer],
        names: pd.Index | NDArray[np.str_],
        overlap: NDArray[np.float64] | None = None,
    ) -> pd.DataFrame:
        """The table of all genes between each group and the others, as which cells at −1 count.

        ``counts`` of the divisible features, (n, G'), and ``codes``, (n,), are those of the cells
        in ``rows``.
        """
        n_groups = len(names)
        kinds = [kind for kind in self._kinds if kind[0] in DIVISIBLE]
        codes = np.where(codes < 0, n_groups, codes)
        n_measured = self._n_measured(counts, rows, codes, n_groups + 1)

        def sums_of(is_shown: bool) -> GroupSums:
            blocks = np.split(np.arange(len(codes)), range(BLOCK, len(codes), BLOCK))
            parts = (
                (some, sparse.csr_matrix(counts[some] > 0, dtype=float))
                if is_shown
                else (some, on_log_scale(counts[some], kinds))
                for some in blocks
            )
            sums = sums_by_group(parts, codes, n_groups + 1, counts.shape[1])
            return sums._replace(n_cells=n_measured)

        sums, shown = sums_of(False), sums_of(True)
        shares = np.ones(n_groups) if overlap is None else overlap
        tables = []
        for group in np.flatnonzero(np.bincount(codes, minlength=n_groups)[:n_groups]).tolist():
            table = self._tests_of(group, sums, shown).assign(overlap=shares[group])
            table.insert(0, "cluster", names[group])
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def _tests_of(self, group: int, sums: GroupSums, shown: GroupSums) -> pd.DataFrame:
        """The rows of one group, given sums of values and of which cells show any, (K + 1, G')."""
        sides = np.array([group]), np.delete(np.arange(len(sums.x)), group)
        n = np.array([sums.n_cells[side].sum(0) for side in sides])
        n[n == 0] = np.nan  # where a modality is missing there is no mean
        means, shares = (
            np.array([of.x[side].sum(0) for side in sides]) / n for of in (sums, shown)
        )
        p = welch_test(sums, *sides)[1]
        p[(shown.x.sum(0) < FEWEST_POSITIVE) | ~(n > 1).all(0)] = np.nan
        own, rest = log2_means(means)
        table = pd.DataFrame(
            {
                "gene": self._setup.gene_names[self._is_divisible],
                "lfc": own - rest,
                "fraction": shares[0],
                "fraction_rest": shares[1],
                "p": p,
                "q": np.nan,
            }
        )
        modality = pd.Series(0, table.index)
        if self.modalities_ is not None:
            names = self.adata.var[FEATURE_MODALITY_KEY].astype(str).to_numpy()
            modality = pd.Series(names[self._is_divisible], table.index)
            table.insert(1, "modality", modality)
        for _, p_values in table["p"].dropna().groupby(modality):
            table.loc[p_values.index, "q"] = false_discovery_control(p_values)
        return table.sort_values("p", kind="stable")

    def _n_measured(
        self,
        counts: sparse.csr_matrix,
        rows: NDArray[np.integer],
        codes: NDArray[np.integer],
        n_groups: int,
    ) -> NDArray[np.float64]:
        """Number of cells of each group in which each divisible feature was measured, (K, G').

        A cell of which no count is left has no depth, and does not count for genes.
        """
        code, table = all_panels_of(self.adata)
        table = table[:, self._is_divisible]
        parts, first = [], 0
        for likelihood, size in self._kinds:
            if likelihood not in DIVISIBLE:
                continue
            has, end = np.ones(len(rows), dtype=bool), first + size
            if likelihood != "protein":
                has = counts[:, first:end].getnnz(1) > 0
            n = np.zeros((n_groups, len(table)))
            np.add.at(n, (codes[has], code[rows[has]]), 1)
            parts.append(n @ table[:, first:end])
            first = end
        return np.hstack(parts)


def _check_several(n_clusters: int) -> None:
    if n_clusters < 2:
        raise ValueError(
            "Genes are tested between a cluster and all other cells, but there is one cluster "
            "alone."
        )
