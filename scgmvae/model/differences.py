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

from scgmvae.data import validation
from scgmvae.data.groups import groups_to_compare
from scgmvae.data.keys import FEATURE_MODALITY_KEY
from scgmvae.data.matrices import is_on_disk, read_rows
from scgmvae.data.modalities import panels_of
from scgmvae.distributions.families import COUNT_LIKELIHOODS
from scgmvae.model.expression import ExpressionMixin
from scgmvae.model.seeded import seeded
from scgmvae.model.splits import BLOCK

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from scvi.data import AnnDataManager

__all__ = ["DifferencesMixin"]

RAREST = 0.01
"""Pseudocount in counts per typical cell: scvi-tools takes a gene with fewer for one that is not
expressed."""
TYPICAL_COUNTS = 1e4
"""Counts of a typical cell where a model does not know them."""
LEAST_OPENING = 0.05
"""Difference of the probabilities of being open above which a peak differs, as in PeakVI."""


class Compared(NamedTuple):
    """Neighbouring features of one likelihood that are compared."""

    likelihood: str
    first: int
    end: int
    has_depth: bool
    """Whether their raw values grow with the depth of a cell."""


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
        *,
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
        ``is_supported`` as well: whether any of the cells has a value other than 0, and the means
        of the data, for the same depth where there is one, differ in the direction that the model
        says. A gene that is not supported is not called (``is_de_fdr_...``). Of several modalities
        it has the ``modality`` of each feature as well; false discovery rates are of each
        modality, and means of raw values are over the cells in which a feature was measured.

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

        With ``mode="change"`` genes are compared by log2 ratios of their frequencies, and proteins
        by those of expected counts without the background, to which one is added. Peaks are
        compared by the difference of the probabilities that they are open in a cell of typical
        depth, with ``delta=0.05``, and other values by that of their means, with 0.25 in their
        unit; the columns are then ``difference_mean`` and so on in place of ``lfc_mean``. For data
        on disk, and for several modalities, the pseudocounts of genes are 0.01 counts in a typical
        cell; for others scvi-tools estimates them.

        The values of cells that lack a modality are predicted from their other modalities. Memory
        grows with draws × features: of 100,000 peaks take ``n_samples_overall=1000`` and
        ``m_permutation=2000``.
        """
        adata = self._validate_anndata(adata)
        number = None if modality is None else self._modality_number(modality)
        if idx1 is None:
            group1, group2 = groups_to_compare(adata, groupby, group1, group2)
        else:
            idx1, idx2 = _masks(adata, idx1, idx2)
        groups = {
            "groupby": groupby,
            "group1": group1,
            "group2": group2,
            "idx1": idx1,
            "idx2": idx2,
        }
        # more peaks are open in a deeper cell; ones and zeros of one modality have no depth
        deep = COUNT_LIKELIHOODS if self.modalities_ is None else (*COUNT_LIKELIHOODS, "bernoulli")
        ends = np.cumsum([size for _, size in self._kinds])
        compared = [
            Compared(kind, end - size, end, kind in deep)
            for (kind, size), end in zip(self._kinds, ends.tolist(), strict=True)
        ]
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
        groups: dict[str, Any],
        mode: str = "vanilla",
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
        x, typical = manager.get_from_registry(REGISTRY_KEYS.X_KEY), None
        if self.modalities_ is not None or is_on_disk(x):
            typical = self.module.typical_counts[features].sum().item() or TYPICAL_COUNTS
        changes = _changes(compared.likelihood, typical, kwargs)
        table = _de_core(
            adata_manager=manager,
            model_fn=read,
            representation_fn=self.get_latent_representation if filter_outlier_cells else None,
            **groups,
            all_stats=all_stats,
            all_stats_fn=partial(_raw_statistics, compared),
            col_names=names,
            mode=mode,
            batchid1=batchid1,
            batchid2=batchid2,
            batch_correction=batch_correction,
            fdr=fdr_target,
            silent=silent,
            **changes,
        )
        if all_stats:
            is_own = kwargs.get("change_fn") not in (None, "log-fold")
            _mark_supported(table, compared, is_own)
        return _renamed(table, changes)


def _masks(
    adata: AnnData, idx1: ArrayLike | str, idx2: ArrayLike | str | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which cells are of the one side and of the other; ``None`` is all that are left."""

    def mask(chosen: ArrayLike | str) -> NDArray[np.bool_]:
        if isinstance(chosen, str):
            return adata.obs_names.isin(adata.obs.query(chosen).index)
        is_chosen = np.zeros(adata.n_obs, dtype=bool)
        is_chosen[validation.rows_of(adata, chosen)] = True
        return is_chosen

    first = mask(idx1)
    sides = first, ~first if idx2 is None else mask(idx2)
    for name, side in zip(("idx1", "idx2"), sides, strict=True):
        if not side.any():
            raise ValueError(
                f"Both sides of a comparison need cells, but {name} leaves none. "
                f"idx1 is {idx1!r:.100}, idx2 is {idx2!r:.100}."
            )
    return sides


def _changes(likelihood: str, typical: float | None, given: dict[str, Any]) -> dict[str, Any]:
    """What a change of a feature is: arguments of scvi-tools' test with ``mode="change"``.

    Parameters
    ----------
    likelihood
        Name of the likelihood.
    typical
        Counts of a typical cell; ``None`` leaves scvi-tools to tell what is too rare to compare.
    given
        Arguments of the user, before which these stand back.
    """
    given = {
        name: value
        for name, value in given.items()
        if value is not None or name not in ("change_fn", "pseudocounts")
    }
    defaults: dict[str, Any] = {"delta": 0.25}
    if typical is not None:
        defaults["pseudocounts"] = RAREST / typical
    if "change_fn" in given or likelihood in COUNT_LIKELIHOODS:
        return defaults | given
    if likelihood == "protein":
        return defaults | {"change_fn": _log_ratio_of_counts} | given
    defaults |= {"change_fn": _difference, "pseudocounts": 0.0}
    if likelihood == "bernoulli":
        defaults["delta"] = LEAST_OPENING
    return defaults | given


def _log_ratio_of_counts(values: NDArray, others: NDArray, pseudocounts: float) -> NDArray:
    """Log2 ratio of pairs of draws, to which one count is added."""
    return np.log2(values + 1) - np.log2(others + 1)


def _difference(values: NDArray, others: NDArray, pseudocounts: float) -> NDArray:
    """Difference of pairs of draws."""
    return values - others


def _renamed(table: pd.DataFrame, changes: dict[str, Any]) -> pd.DataFrame:
    """The table, in which no difference is called a log fold change."""
    if changes.get("change_fn") is not _difference:
        return table
    changed = table.columns[table.columns.str.startswith("lfc_")]
    return table.rename(columns={name: f"difference_{name[4:]}" for name in changed})


def _raw_statistics(
    compared: Compared,
    manager: AnnDataManager,
    is_first: NDArray[np.bool_],
    is_second: NDArray[np.bool_],
) -> dict[str, NDArray[np.float64]]:
    """Means, and shares of values other than 0, of the cells with the feature, each (G_m,)."""
    x, panels = manager.get_from_registry(REGISTRY_KEYS.X_KEY), panels_of(manager.adata)
    names = ["raw_mean", "non_zeros_proportion", "raw_normalized_mean"]
    if not compared.has_depth:
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
            part = sparse.csr_matrix(
                read_rows(x, some)[:, compared.first : compared.end], dtype=float
            )
            sizes = np.asarray(part.sum(1)).ravel()
            normalized = sparse.diags_array(1e4 / np.where(sizes == 0, 1, sizes)) @ part
            parts = (part, part != 0, normalized)[: len(names)]
            sums += [np.asarray(values.sum(0)).ravel() for values in parts]
        with np.errstate(invalid="ignore"):  # a group may have no cell with the feature
            means = sums / measured
        found |= {f"{name}{side}": mean for name, mean in zip(names, means, strict=True)}
    return found


def _mark_supported(table: pd.DataFrame, compared: Compared, is_own: bool) -> None:
    """Say which features the data support, and call no other.

    The direction of a change that a user has defined (``is_own``) is that of the model's means.
    """
    mean = "raw_normalized_mean" if compared.has_depth else "raw_mean"
    change = np.sign(table[f"{mean}1"] - table[f"{mean}2"])
    told = table["scale1"] - table["scale2"]
    if not is_own:
        told = table["lfc_median" if "lfc_median" in table else "bayes_factor"]
    has_values = (table["non_zeros_proportion1"] > 0) | (table["non_zeros_proportion2"] > 0)
    table["is_supported"] = has_values & (np.sign(told) == change)
    for name in table.columns[table.columns.str.startswith("is_de_fdr_")]:
        table[name] &= table["is_supported"]
