"""Differences between groups of cells under the model: scvi-tools' test, for any likelihood."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.model.base import RNASeqMixin
from scvi.model.base._de_core import _de_core

from scgmvae.data.groups import groups_to_compare
from scgmvae.data.keys import FEATURE_MODALITY_KEY
from scgmvae.data.matrices import is_on_disk, read_rows
from scgmvae.data.modalities import panels_of
from scgmvae.distributions.families import COUNT_LIKELIHOODS
from scgmvae.model.expression import ExpressionMixin
from scgmvae.model.seeded import seeded

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from scvi.data import AnnDataManager

__all__ = ["DifferencesMixin"]

RAREST = 0.01
"""Counts per cell, at the depth of a typical one, that are added where genes are compared by
ratio: scvi-tools takes a gene with fewer for one that is not expressed."""
PROTEIN_COUNTS = 1.0
"""Counts that are added where the foregrounds of proteins are compared by ratio."""
BLOCK = 16_384
"""Number of cells whose values are read at once."""
LEAST_OPENING = 0.05
"""Difference of the probabilities of being open above which a peak differs, as in PeakVI."""


class Compared(NamedTuple):
    """Neighbouring features of one likelihood that are compared."""

    likelihood: str
    first: int
    end: int


class DifferencesMixin(ExpressionMixin):
    """The method ``differential_expression``."""

    @partial(seeded, original=RNASeqMixin.differential_expression)
    def differential_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: object = None,
        group2: object = None,
        idx1: ArrayLike | str | None = None,
        idx2: ArrayLike | str | None = None,
        modality: str | None = None,
        **kwargs: Any,
    ) -> pd.DataFrame:
        """Differential expression as in scvi-tools, between groups that are known to have cells.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        groupby
            obs column of the groups to compare, for example ``"scgmvae"``.
        group1
            Group, or list of groups, of that column; ``None`` is each group that has cells.
        group2
            Group that each of them is compared with; ``None`` is all other cells.
        idx1, idx2
            Cells to compare in place of groups: their numbers, masks, or queries of obs.
        modality
            Of a model of several modalities: the one to compare; ``None`` is each of them.
        **kwargs
            Further arguments of
            :meth:`scvi.model.base.RNASeqMixin.differential_expression`.

        Returns
        -------
        DataFrame, one row per gene and comparison. Unless ``all_stats`` is off, it has
        ``is_supported`` as well: whether any of the cells has a value of the gene, and the means
        of the data, of counts normalised, differ in the direction that the model says. A gene that
        is not supported is not called (``is_de_fdr_...``). Of several modalities also the
        ``modality`` of each feature; means of raw values are over the cells with the modality.

        Raises
        ------
        KeyError
            If there is no such obs column.
        RuntimeError
            If a modality is named, and the model is not one of several.
        ValueError
            If neither groups nor cells are named, or some have no cells, or there is no such
            modality.

        Notes
        -----
        Cells are the units, and clusters that were found in the same cells differ by necessity:
        :meth:`test_markers` and :meth:`test_condition` are tests that mind this.

        With ``mode="change"`` counts are compared by log2 ratios: frequencies of genes, and of
        proteins the expected counts without the background, one count added. Peaks are compared
        by the difference of their probabilities of being open, with ``delta=0.05``, and other
        values by the difference of their means; the columns are then ``difference_mean`` and so
        on in place of ``lfc_mean``. Cells that lack a modality count with what the others say.
        """
        adata = self._validate_anndata(adata)
        number = None if modality is None else self._modality_number(modality)
        if idx1 is None:
            group1, group2 = groups_to_compare(adata, groupby, group1, group2)
        ends = np.cumsum([size for _, size in self._kinds])
        compared = [
            Compared(kind, end - size, end)
            for (kind, size), end in zip(self._kinds, ends.tolist(), strict=True)
        ]
        groups = (groupby, group1, group2, idx1, idx2)
        tables = []
        for i in range(len(compared)) if number is None else [number]:
            table = self._differences_of(compared[i], adata, groups, **kwargs)
            if self.modalities_ is not None:
                table.insert(0, FEATURE_MODALITY_KEY, list(self.modalities_)[i])
            tables.append(table)
        return pd.concat(tables)

    def _differences_of(
        self,
        compared: Compared,
        adata: AnnData,
        groups: tuple[Any, ...],
        mode: str = "vanilla",
        delta: float | None = None,
        batch_size: int | None = None,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: list[str] | None = None,
        batchid2: list[str] | None = None,
        fdr_target: float = 0.05,
        silent: bool = False,
        weights: str | None = "uniform",
        filter_outlier_cells: bool = False,
        importance_weighting_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> pd.DataFrame:
        """The table of some features; arguments as in scvi-tools, by their likelihood."""
        features = slice(compared.first, compared.end)
        names = adata.var_names[features]
        read = partial(
            self.get_normalized_expression,
            gene_list=None if self.modalities_ is None else names,
            return_numpy=True,
            batch_size=batch_size,
            weights=weights,
            **(importance_weighting_kwargs or {}),
        )
        manager = self.get_anndata_manager(adata, required=True)
        typical = None
        if self.modalities_ is not None or is_on_disk(
            manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        ):
            typical = max(self.module.typical_counts[features].sum().item(), 1.0)
        changes = _changes(compared.likelihood, typical) | kwargs
        if delta is not None:
            changes["delta"] = delta
        table = _de_core(
            manager,
            read,
            self.get_latent_representation if filter_outlier_cells else None,
            *groups,
            all_stats,
            partial(_raw_statistics, compared),
            names,
            mode,
            batchid1,
            batchid2,
            changes.pop("delta", 0.25),
            batch_correction,
            fdr_target,
            silent,
            **changes,
        )
        if all_stats:
            is_normalized = "raw_normalized_mean1" in table
            _mark_supported(table, "raw_normalized_mean" if is_normalized else "raw_mean")
        return _renamed(table, changes)


def _changes(likelihood: str, typical: float | None = None) -> dict[str, Any]:
    """What a change of a feature is: arguments of scvi-tools' test with ``mode="change"``.

    Parameters
    ----------
    likelihood
        Name of the likelihood.
    typical
        Counts of a typical cell; ``None`` leaves scvi-tools to tell what is too rare to compare.
    """
    if likelihood == "protein":
        return {"pseudocounts": PROTEIN_COUNTS}
    if likelihood in COUNT_LIKELIHOODS:
        return {} if typical is None else {"pseudocounts": RAREST / typical}
    changes: dict[str, Any] = {"change_fn": _difference, "pseudocounts": 0.0}
    return changes | ({"delta": LEAST_OPENING} if likelihood == "bernoulli" else {})


def _difference(values: NDArray, others: NDArray, pseudocounts: float) -> NDArray:
    """Difference of the values of pairs of draws; scvi-tools asks for the third argument."""
    return values - others


def _renamed(table: pd.DataFrame, changes: dict[str, Any]) -> pd.DataFrame:
    """The table, in which no difference is called a log fold change."""
    if changes.get("change_fn") is not _difference:
        return table
    is_change = table.columns.str.startswith("lfc_")
    changed = table.columns[is_change]
    return table.rename(columns={name: f"difference_{name[4:]}" for name in changed})


def _raw_statistics(
    compared: Compared,
    manager: AnnDataManager,
    is_first: NDArray[np.bool_],
    is_second: NDArray[np.bool_],
) -> dict[str, NDArray[np.float64]]:
    """Means and shares above zero of two groups, over the cells with the feature, each (G_m,)."""
    x, panels = manager.get_from_registry(REGISTRY_KEYS.X_KEY), panels_of(manager.adata)
    names = ["raw_mean", "non_zeros_proportion", "raw_normalized_mean"]
    if compared.likelihood not in COUNT_LIKELIHOODS:
        names.pop()
    found = {f"{name}{side}": np.empty(0) for name in names for side in (1, 2)}
    for side, is_own in ((1, is_first), (2, is_second)):
        rows = np.flatnonzero(is_own)
        measured = np.full(compared.end - compared.first, len(rows), float)
        if panels is not None:
            code, table = panels
            n_of_panels = np.bincount(code[rows], minlength=len(table))
            measured = (n_of_panels @ table[:, compared.first : compared.end]).astype(float)
        sums = np.zeros((len(names), len(measured)))
        for some in np.split(rows, range(BLOCK, len(rows), BLOCK)):
            part = sparse.csr_matrix(read_rows(x, some), dtype=float)
            part = part[:, compared.first : compared.end]
            sizes = np.asarray(part.sum(1)).ravel()
            normalized = sparse.diags_array(1e4 / np.where(sizes == 0, 1, sizes)) @ part
            parts = (part, part != 0, normalized)[: len(names)]
            sums += [np.asarray(values.sum(0)).ravel() for values in parts]
        with np.errstate(invalid="ignore"):  # a group may have no cell with the feature
            means = sums / measured
        found |= {f"{name}{side}": mean for name, mean in zip(names, means, strict=True)}
    return found


def _mark_supported(table: pd.DataFrame, mean: str) -> None:
    """Say which genes the data support, by these means, and call no other."""
    change = np.sign(table[f"{mean}1"] - table[f"{mean}2"])
    told = table["lfc_median" if "lfc_median" in table else "bayes_factor"]
    has_values = (table["raw_mean1"].abs() > 0) | (table["raw_mean2"].abs() > 0)
    table["is_supported"] = has_values & (np.sign(told) == change)
    for name in table.columns[table.columns.str.startswith("is_de_fdr_")]:
        table[name] &= table["is_supported"]
