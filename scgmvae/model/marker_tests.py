"""Tests of the genes of clusters, on counts that did not make the clusters."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.stats import false_discovery_control
from scvi import REGISTRY_KEYS

from scgmvae import checks
from scgmvae.clustering.group_sums import GroupSums, sums_by_group, welch_test
from scgmvae.data.groups import groups_of
from scgmvae.data.matrices import read_rows
from scgmvae.data.normalization import log_normalized
from scgmvae.data.thinning import halves
from scgmvae.model.markers import log2_means
from scgmvae.model.splits import BLOCK
from scgmvae.model.training import TrainingMixin

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MarkerTestsMixin"]

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
        clustering of the same counts.

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
        ``lfc``, the log2 fold change against all other cells as in :meth:`markers`; ``fraction``
        and ``fraction_rest``, the shares of the cells with any count of the gene; ``p`` of
        Welch's t of log(1 + counts per 10,000); ``q``, the false discovery rate within the
        cluster (Benjamini and Hochberg); ``overlap``, of the cells that are in the cluster or in
        its counterpart among the new ones the share that are in both, 1 with ``groupby``. Genes
        that fewer than ten of the cells show are not tested: their p is missing.

        Raises
        ------
        KeyError
            If there is no such obs column.
        NotImplementedError
            If the likelihood is neither ``"nb"`` nor ``"poisson"``.
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
        if self._module_kwargs["likelihood"] not in ("nb", "poisson"):
            raise NotImplementedError(
                "Genes are tested by counts of the likelihoods 'nb' and 'poisson', but this model "
                f"has {self._module_kwargs['likelihood']!r}."
            )
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        counts = sparse.csr_matrix(read_rows(x, np.arange(adata.n_obs)))
        if groupby is not None:
            self._check_if_trained(warn=False)
            groups = groups_of(adata, groupby=groupby).dropna()
            rows, names = adata.obs_names.get_indexer(groups.index), groups.cat.categories
            _check_several(len(names))
            codes = groups.cat.codes.to_numpy()
            return _tests(counts[rows], codes, names, self._setup.gene_names, None)
        self._check_mixture()
        _check_several(len(self.cluster_names))
        first, second = halves(counts, self._inverse_dispersions(), np.random.default_rng(seed))
        rows = np.flatnonzero(first.sum(1))  # a cell of few counts may have none in this half
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
        table = _tests(second, codes, self.cluster_names, self._setup.gene_names, overlap)
        return table[table["cluster"].isin(self.cluster_names[found])].reset_index(drop=True)

    def _inverse_dispersions(self) -> NDArray[np.floating]:
        """Inverse dispersion of each gene, (G,), or of each value, (n, G)."""
        if self._module_kwargs["likelihood"] == "poisson":
            return np.full(self.module.n_input, np.inf)
        n_obs = 1 if self.module.dispersion == "gene" else self.adata.n_obs  # all are alike
        parts = [
            self.get_likelihood_parameters(indices=some)["dispersions"].reshape(len(some), -1)
            for some in np.split(np.arange(n_obs), range(BLOCK, n_obs, BLOCK))
        ]
        return parts[0][0] if n_obs == 1 else np.concatenate(parts)

    def _trained_on(
        self, counts: sparse.csr_matrix, rows: NDArray[np.integer]
    ) -> MarkerTestsMixin:
        """A model of the same settings, trained as long on other counts of some of the cells."""
        adata = AnnData(counts, obs=self.adata.obs.iloc[rows].copy())
        adata.var_names = self._setup.gene_names
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


def _check_several(n_clusters: int) -> None:
    if n_clusters < 2:
        raise ValueError(
            "Genes are tested between a cluster and all other cells, but there is one cluster "
            "alone."
        )


def _tests(
    counts: sparse.csr_matrix,
    codes: NDArray[np.integer],
    names: pd.Index | NDArray[np.str_],
    genes: NDArray[np.str_],
    overlap: NDArray[np.float64] | None,
) -> pd.DataFrame:
    """The table of all genes between each group and the others, as which cells at −1 count."""
    n_groups, n_genes = len(names), counts.shape[1]
    has_counts = np.flatnonzero(counts.sum(1))  # half of few counts may be none
    counts, codes = counts[has_counts], codes[has_counts]
    codes = np.where(codes < 0, n_groups, codes)

    def sums_of(is_shown: bool) -> GroupSums:
        blocks = np.split(np.arange(len(codes)), range(BLOCK, len(codes), BLOCK))
        parts = (
            (some, sparse.csr_matrix(counts[some] > 0, dtype=float))
            if is_shown
            else (some, log_normalized(counts[some]).X)
            for some in blocks
        )
        return sums_by_group(parts, codes, n_groups + 1, n_genes)

    sums, shown = sums_of(False), sums_of(True)
    is_tested = shown.x.sum(0) >= FEWEST_POSITIVE
    tables = []
    for group in np.flatnonzero(sums.n_cells[:n_groups]).tolist():
        side, rest = np.array([group]), np.delete(np.arange(n_groups + 1), group)
        _, p = welch_test(sums, side, rest)
        p[~is_tested] = np.nan
        q = np.full(n_genes, np.nan)
        q[is_tested] = false_discovery_control(p[is_tested])
        n = [sums.n_cells[part].sum() for part in (side, rest)]
        own, others = (
            log2_means(sums.x[part].sum(0) / m) for part, m in zip((side, rest), n, strict=True)
        )
        table = pd.DataFrame(
            {
                "cluster": names[group],
                "gene": genes,
                "lfc": own - others,
                "fraction": shown.x[side].sum(0) / n[0],
                "fraction_rest": shown.x[rest].sum(0) / n[1],
                "p": p,
                "q": q,
                "overlap": 1.0 if overlap is None else overlap[group],
            }
        )
        tables.append(table.sort_values("p", kind="stable"))
    return pd.concat(tables, ignore_index=True)
