"""Where the levels of a condition mix in z, and where they do not, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgmvae import checks
from scgmvae.data.validation import check_columns
from scgmvae.metrics import mixing_of_cells
from scgmvae.model.populations import PopulationsMixin

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ALONE", "APART", "MIXED", "IntegrationMixin"]

MIXED = 0.7
"""Mixing from which on levels count as mixed."""
APART = 0.4
"""Mixing below which levels count as apart."""
ALONE = 0.95
"""Share of the cells of a group from which on it is of one level alone."""
HARDLY = 0.2
"""Share of cells, over that by chance, below which a group has hardly a cell of a level."""
N_NEIGHBORS = 30
FEWEST = 10
"""Smallest number of cells of a level in a group of which anything is said."""


class IntegrationMixin(PopulationsMixin):
    """The method ``integration_table``."""

    def integration_table(
        self, labels_key: str | None = None, n_neighbors: int = N_NEIGHBORS
    ) -> pd.DataFrame:
        """How the levels of each condition mix in z within each type of cells, with a verdict.

        Mixing is the share of a cell's neighbours in its group that are of another level, over
        the share that chance would give (:func:`~scgmvae.metrics.mixing_by_group`).

        Parameters
        ----------
        labels_key
            obs column of cell types to group by; cells without a label are left out. ``None``
            takes the column of labels that the model was set up with, or else the clusters.
        n_neighbors
            Number of neighbours within the group; a tenth of the group where that is less. Two
            levels must have as many cells in a group for their mixing to be told.

        Returns
        -------
        DataFrame with a row for each condition, group and level that has cells: ``condition``,
        ``group``, ``level``; ``n_cells``; ``share`` of the level in the group, and ``expected``,
        its share of all cells; ``mixing``, 1 by chance and 0 where the level is apart; and
        ``verdict``:

        =====================  ==============================================================
        ``mixed``              mixing is at least 0.7
        ``partly mixed``       it is at least 0.4
        ``apart``              it is below: the type is there in several levels, but not in
                               the same place
        ``this level alone``   95 % of the group are of this level, and of others less than a
                               fifth of what chance would give: a type that only this level has,
                               if the condition has not divided one
        ``divided from <g>``   the same, and the nearest cluster in z, <g>, has hardly a cell of
                               this level: perhaps one type, divided by the condition
        ``too few cells``      fewer than 10 cells are of this level
        ``nothing beside it``  fewer than two levels have ``n_neighbors`` cells in the group
        =====================  ==============================================================

        Raises
        ------
        KeyError
            If there is no such obs column.
        RuntimeError
            If the model is not trained or has no data, or has neither labels nor clusters.
        ValueError
            If the model was set up without batches and categorical covariates, no cell has a
            label, or ``n_neighbors`` is below 1.

        Examples
        --------
        >>> table = model.integration_table("component")
        >>> table.columns.tolist()[:6]
        ['condition', 'group', 'level', 'n_cells', 'share', 'expected']
        """
        self._check_if_trained(warn=False)
        checks.check_whole(1, n_neighbors=n_neighbors)
        adata = self._validate_anndata()
        check_columns(adata, is_whole=False, labels_key=labels_key)
        labels_key = labels_key or self._labels_key_of(adata)
        if not self._setup.categories:
            raise ValueError(
                "The table is of batches and other categorical conditions, but the model was set "
                "up without any. Name them in setup_anndata: batch_key=... or "
                "categorical_covariate_keys=[...]."
            )
        if labels_key is None:
            self._check_mixture()
            groups = pd.Series(self.predict().astype(str))
        else:
            groups = self._known_labels(adata, labels_key).astype(object).reset_index(drop=True)
        if groups.isna().all():
            raise ValueError(
                f"Mixing is told by cell type, but in the obs column {labels_key!r} no cell has "
                "one. Name another column with labels_key=..."
            )
        return self._integration_of(groups, labels_key is None, n_neighbors)

    def _integration_of(
        self, groups: pd.Series, are_clusters: bool, n_neighbors: int = N_NEIGHBORS
    ) -> pd.DataFrame:
        """The table, given the group of each cell, (n,), missing where it has none."""
        rows = np.flatnonzero(groups.notna())
        of_cells = groups.to_numpy()[rows].astype(str)
        z = np.asarray(self.get_latent_representation(indices=rows))
        parts = []
        for condition, codes in self._levels().items():
            names = np.asarray(self._setup.categories[condition]).astype(str)
            levels = names[codes[rows]]
            mixing = mixing_of_cells(z, levels, of_cells, n_neighbors)
            table = _table_of(of_cells, levels, mixing)
            nearest = _nearest(z, of_cells) if are_clusters else {}
            table["verdict"] = _verdicts(table, nearest)
            table.insert(0, "condition", condition)
            parts.append(table)
        return pd.concat(parts, ignore_index=True)


def _table_of(
    groups: NDArray[np.str_], levels: NDArray[np.str_], mixing: NDArray[np.floating]
) -> pd.DataFrame:
    """Cells, shares and mixing of each level in each group."""
    cells = pd.DataFrame({"group": groups, "level": levels, "mixing": mixing})
    by_both = cells.groupby(["group", "level"], sort=True)["mixing"]
    table = by_both.agg(n_cells="size", mixing="mean").reset_index()
    of_group = table.groupby("group")["n_cells"].transform("sum")
    table.insert(3, "share", table["n_cells"] / of_group)
    table.insert(4, "expected", table["level"].map(cells["level"].value_counts(normalize=True)))
    return table


def _nearest(z: NDArray[np.floating], groups: NDArray[np.str_]) -> dict[str, str]:
    """The group whose mean of z is nearest to that of each group, where there are two."""
    means = pd.DataFrame(z).groupby(groups).mean()
    if len(means) < 2:
        return {}
    distance = ((means.to_numpy()[:, None] - means.to_numpy()) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return dict(zip(means.index, means.index[distance.argmin(1)], strict=True))


def _verdicts(table: pd.DataFrame, nearest: dict[str, str]) -> list[str]:
    """A verdict for each row of a condition's table."""
    shares = table.set_index(["group", "level"])["share"]
    verdicts = []
    for row in table.itertuples():
        others_by_chance = 1 - row.expected
        if row.n_cells < FEWEST:
            verdicts.append("too few cells")
        elif row.share >= ALONE and 1 - row.share < HARDLY * others_by_chance:
            near = nearest.get(row.group)
            share_there = shares.get((near, row.level), 0.0)
            is_divided = near is not None and share_there < HARDLY * row.expected
            verdicts.append(f"divided from {near}" if is_divided else "this level alone")
        elif np.isnan(row.mixing):
            verdicts.append("nothing beside it")
        elif row.mixing >= MIXED:
            verdicts.append("mixed")
        else:
            verdicts.append("partly mixed" if row.mixing >= APART else "apart")
    return verdicts
