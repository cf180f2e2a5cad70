"""Tests of the genes that differ between conditions, with donors or other samples as the units."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scvi import REGISTRY_KEYS

from scgmvae import checks
from scgmvae.checks import listed, listed_like
from scgmvae.clustering.group_sums import sums_by_group
from scgmvae.compat import torch_threads_kept
from scgmvae.data.categories import name_of
from scgmvae.data.groups import groups_of
from scgmvae.data.matrices import read_rows
from scgmvae.data.modalities import panels_of
from scgmvae.distributions.families import FAMILIES
from scgmvae.model.splits import BLOCK, SplitsMixin

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["ConditionTestsMixin"]

FEWEST_SAMPLES = 2
"""Samples of either side from which on a cluster is tested."""
FEWEST_COUNTS = 10
"""Counts of a gene over all samples from which on it is tested."""
QUANTILE = 1.96
"""Of the normal distribution, for an interval of 95 %."""
COLUMNS = (
    "cluster", "gene", "lfc", "low", "high", "p", "q", "agreement", "mean", "n_samples",
    "n_samples_other",
)  # fmt: skip


class ConditionTestsMixin(SplitsMixin):
    """The method ``test_condition``."""

    @torch_threads_kept()
    def test_condition(
        self,
        condition: str,
        group: object,
        other: object = None,
        *,
        sample_key: str,
        groupby: str = "scgmvae",
        min_cells: int = 10,
        modality: str | None = None,
    ) -> pd.DataFrame:
        """Test, cluster by cluster, which genes differ between two levels of a condition.

        Cells of one donor are alike for reasons of their own, so they are no replicates: the
        counts of each sample are summed within a cluster, and DESeq2 tests the sums. Where half of
        the samples or more have cells under both levels, as donors have whose cells were divided
        before treatment, each is compared with itself, and samples with one level are left out.

        Parameters
        ----------
        condition
            obs column of the condition, registered with the model or not.
        group, other
            Level that is compared, and the one that it is compared with. ``other`` may be left
            out where there are two.
        sample_key
            obs column of the samples that are the units, such as donors.
        groupby
            obs column of the clusters or types within which levels are compared.
        min_cells
            Number of cells from which on a sample counts, within a cluster and level.
        modality
            Name of the modality whose counts are tested, of a model of several: RNA, or fragments
            under the likelihood ``"poisson"``. ``None`` is the only one of them. Cells that lack
            it are left out.

        Returns
        -------
        DataFrame with a row per cluster and gene, most significant first: ``cluster``, ``gene``;
        ``lfc``, the log2 fold change of ``group`` against ``other``, with ``low`` and ``high``,
        its interval of 95 %; ``p`` of DESeq2, missing of outliers and of genes with fewer than ten
        counts; ``q``, the false discovery rate within the cluster, missing also of those that
        DESeq2 takes for too few; ``agreement``, the share of the samples that change in the
        direction of the fold change: compared with themselves, or else with the median of the
        samples of ``other``; ``mean``, the mean of the counts that DESeq2 has normalised;
        ``n_samples`` and ``n_samples_other``.

        Raises
        ------
        ImportError
            If pydeseq2 is not installed.
        KeyError
            If there is no such obs column.
        RuntimeError
            If the model has no data, or a modality is named where there is one.
        ValueError
            If a level or replicates are missing: two samples of each level at least, in one
            cluster at least; or the data are no counts, or those of several modalities are and
            none is named.

        References
        ----------
        Love et al. 2014, Moderated estimation of fold change and dispersion for RNA-seq data with
        DESeq2; Squair et al. 2021, Confronting false discoveries in single-cell differential
        expression.

        Examples
        --------
        >>> model.adata.obs["person"] = [f"person_{i % 4}" for i in range(300)]
        >>> model.adata.obs["treated"] = [i % 8 < 4 for i in range(300)]
        >>> table = model.test_condition(
        ...     "treated", True, sample_key="person", groupby="component", min_cells=3
        ... )
        >>> table["n_samples"].unique().tolist()
        [4]
        """
        adata = self._validate_anndata()
        checks.check_whole(1, min_cells=min_cells)
        is_tested = self._tested_features(modality)
        if groupby == "scgmvae":
            self._check_mixture()
        levels = groups_of(adata, condition=condition)
        first, second = _two_levels(levels, condition, group, other)
        samples, clusters = (
            groups_of(adata, **key) for key in ({"sample_key": sample_key}, {"groupby": groupby})
        )
        units = pd.DataFrame(
            {"cluster": clusters, "sample": samples, "is_first": levels == first}
        )[levels.isin([first, second]) & _has_any(adata, is_tested)].dropna()
        rows = adata.obs_names.get_indexer(units.index)
        sizes = units.groupby(["cluster", "sample", "is_first"], observed=True).size()
        sizes = sizes[sizes >= min_cells]
        genes = self._setup.gene_names[is_tested]
        tables, without = [], []
        for cluster in clusters.cat.categories:
            of_cluster = sizes[sizes.index.get_level_values("cluster") == cluster]
            design = _design(of_cluster.reset_index())
            if design is None:
                without.append(cluster)
                continue
            member = pd.MultiIndex.from_frame(design[["cluster", "sample", "is_first"]])
            unit = member.get_indexer(pd.MultiIndex.from_frame(units))
            sums = self._summed_counts(adata, rows[unit >= 0], unit[unit >= 0], len(design))
            sums = sums[:, is_tested]
            if (sums.sum(0) < FEWEST_COUNTS).all():
                without.append(cluster)
                continue
            tables.append(_tested(sums, design, genes).assign(cluster=cluster))
        of_modality = "" if self.modalities_ is None else " that have the tested modality"
        if not tables:
            raise ValueError(
                f"Without replicates nothing can be tested: in no cluster have two of the samples "
                f"of {sample_key!r} at least {min_cells} cells{of_modality} under each of "
                f"{first!r} and {second!r}, and a gene {FEWEST_COUNTS} counts in them."
            )
        if without:
            warnings.warn(
                f"Fewer than two samples of each level have {min_cells} cells{of_modality} in "
                f"these clusters, or no gene has {FEWEST_COUNTS} counts, so they are not in the "
                f"table: {listed(without)}.",
                UserWarning,
                stacklevel=2,
            )
        return pd.concat(tables, ignore_index=True)[list(COLUMNS)]

    def _tested_features(self, modality: str | None) -> NDArray[np.bool_]:
        """Features whose counts are tested, (G,)."""
        if modality is not None:
            self._modality_number(modality)  # raises an error where there is none
        kinds = dict(zip(self.modalities_ or ["the data"], self._kinds, strict=True))
        # totals of a panel of proteins are no depth, by which DESeq2 would take them
        of_counts = [
            name
            for name, (kind, _) in kinds.items()
            if kind != "protein" and FAMILIES[kind].is_count
        ]
        if modality is not None:
            of_counts = [name for name in of_counts if name == modality]
        if not of_counts:
            found = [kind for name, (kind, _) in kinds.items() if modality in (None, name)]
            raise ValueError(
                "Sums over samples are tested as counts of RNA or fragments, but the likelihood "
                f"is {listed(found)}."
            )
        if len(of_counts) > 1:
            raise ValueError(
                f"Several modalities are of counts: {listed(of_counts)}. Name the one to test, as "
                f"in modality={of_counts[0]!r}."
            )
        sizes = [size for _, size in kinds.values()]
        return np.repeat([name == of_counts[0] for name in kinds], sizes)

    def _summed_counts(
        self, adata: AnnData, rows: NDArray[np.integer], unit: NDArray[np.integer], n_units: int
    ) -> NDArray[np.int64]:
        """Counts summed over the cells of each unit, (units, G); ``rows`` are ascending."""
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        blocks = (
            (some, sparse.csr_matrix(read_rows(x, rows[some])))
            for some in np.split(np.arange(len(rows)), range(BLOCK, len(rows), BLOCK))
        )
        return np.rint(sums_by_group(blocks, unit, n_units, adata.n_vars).x).astype(np.int64)


def _has_any(adata: AnnData, features: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which cells were measured for any of the features, (n,)."""
    panels = panels_of(adata)
    if panels is None:
        return np.ones(adata.n_obs, dtype=bool)
    code, table = panels
    return np.asarray(table[:, features].any(axis=1))[code]


def _two_levels(
    levels: pd.Series, condition: str, group: object, other: object
) -> tuple[str, str]:
    """Names of the levels that are compared."""
    names = list(levels.cat.categories)
    first = _level("group", group, condition, names)
    if other is None:
        others = [name for name in names if name != first]
        if len(others) != 1:
            raise ValueError(
                f"{condition!r} has {len(names)} levels: name the one to compare with, as in "
                f"other={others[0]!r}."
                if others
                else f"{condition!r} has one level alone, so there is nothing to compare."
            )
        other = others[0]
    second = _level("other", other, condition, names)
    if first == second:
        raise ValueError(f"Two levels of {condition!r} are compared, but both are {first!r}.")
    return first, second


def _level(argument: str, value: object, condition: str, names: list[str]) -> str:
    """Name of a level of a condition."""
    name = name_of(value, names)
    if name not in names:
        raise ValueError(
            f"{argument} must be a level of {condition!r}, but it is {name!r}. Its levels are: "
            f"{listed_like(name, names)}."
        )
    return name


def _design(units: pd.DataFrame) -> pd.DataFrame | None:
    """The samples that are compared, or ``None`` where there are too few.

    Where at least half of them have both levels, these alone: each is compared with itself.
    """
    n_levels = units.groupby("sample", observed=True)["is_first"].transform("nunique")
    n_paired, n_single = int((n_levels == 2).sum()) // 2, int((n_levels == 1).sum())
    if n_paired >= max(FEWEST_SAMPLES, n_single):
        return units[n_levels == 2].assign(is_paired=True)
    if (
        units.groupby("is_first").size().reindex([False, True], fill_value=0).min()
        < FEWEST_SAMPLES
    ):
        return None
    return units.assign(is_paired=False)


def _tested(
    sums: NDArray[np.int64], design: pd.DataFrame, genes: NDArray[np.str_]
) -> pd.DataFrame:
    """The table of one cluster."""
    is_first = design["is_first"].to_numpy()
    metadata = pd.DataFrame(
        {
            "level": np.where(is_first, "b", "a"),
            "sample": [f"s{code}" for code in pd.factorize(design["sample"])[0]],
        },
        index=[f"u{unit}" for unit in range(len(design))],
    )
    is_paired = bool(design["is_paired"].iloc[0])
    kept = np.flatnonzero(sums.sum(0) >= FEWEST_COUNTS)
    counts = pd.DataFrame(sums[:, kept], index=metadata.index, columns=[f"g{g}" for g in kept])
    found = _deseq2(counts, metadata, "~sample + level" if is_paired else "~level")
    lfc, error = found["log2FoldChange"].to_numpy(), found["lfcSE"].to_numpy()
    depth = sums.sum(1, keepdims=True).clip(min=1)
    shares = np.log2(sums[:, kept] / depth * 1e6 + 1)
    if is_paired:
        order = np.argsort(metadata["sample"].to_numpy(), kind="stable")
        first, second = (order[is_first[order] == side] for side in (True, False))
        change = shares[first] - shares[second]
    else:
        change = shares[is_first] - np.median(shares[~is_first], axis=0)
    table = pd.DataFrame(
        {
            "gene": kept,
            "lfc": lfc,
            "low": lfc - QUANTILE * error,
            "high": lfc + QUANTILE * error,
            "p": found["pvalue"].to_numpy(),
            "q": found["padj"].to_numpy(),
            "agreement": (change * np.sign(lfc) > 0).mean(0),
            "mean": found["baseMean"].to_numpy(),
        }
    )
    table = table.set_index("gene").reindex(range(len(genes))).assign(gene=genes)
    table["n_samples"], table["n_samples_other"] = int(is_first.sum()), int((~is_first).sum())
    return table.sort_values("p", kind="stable")


def _deseq2(counts: pd.DataFrame, metadata: pd.DataFrame, design: str) -> pd.DataFrame:
    """Results of DESeq2 for level b against a."""
    try:
        from pydeseq2.dds import DeseqDataSet
        from pydeseq2.default_inference import DefaultInference
        from pydeseq2.ds import DeseqStats
    except ImportError as error:
        raise ImportError(
            "test_condition needs pydeseq2: pip install 'scgmvae[differences]'."
        ) from error
    settings: dict[str, Any] = {"quiet": True, "inference": DefaultInference(n_cpus=1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of its own iterations
        data = DeseqDataSet(counts=counts, metadata=metadata, design=design, **settings)
        data.deseq2()
        stats = DeseqStats(data, contrast=["level", "b", "a"], **settings)
        stats.summary()
    return stats.results_df
