"""Sums over groups of cells, from which means, variances and tests of genes follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse
from scipy.stats import ttest_ind_from_stats

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["GroupSums", "sums_by_group", "welch_test"]


class GroupSums(NamedTuple):
    """Sums over the cells of each of K groups."""

    x: NDArray[np.float64]
    """Sums of x, (K, G)."""
    squares: NDArray[np.float64]
    """Sums of the squares of x, (K, G)."""
    n_cells: NDArray[np.int64] | NDArray[np.float64]
    """Number of cells, (K,), or of those in which each feature was measured, (K, G)."""

    def of_measured(self, share: NDArray[np.float64]) -> GroupSums:
        """Sums that have the means of the cells in which each feature was measured.

        A group in which no cell was has the mean of all others. ``n_cells`` is of all cells.

        Parameters
        ----------
        share
            Share of the cells of each group in which each feature was measured, ``(K, G)``.

        Examples
        --------
        >>> sums = GroupSums(np.array([[6.0], [0.0]]), np.array([[18.0], [0.0]]), np.array([4, 5]))
        >>> sums.of_measured(np.array([[0.5], [0.0]])).x.ravel().tolist()
        [12.0, 15.0]
        """
        n_measured = np.maximum((share * self.n_cells[:, None]).sum(0), 1)
        x, squares = (
            np.where(
                share > 0,
                values / np.where(share > 0, share, 1),
                self.n_cells[:, None] * values.sum(0) / n_measured,
            )
            for values in (self.x, self.squares)
        )
        return GroupSums(x, squares, self.n_cells)


def sums_by_group(
    blocks: Iterable[tuple[NDArray[np.integer], sparse.csr_matrix]],
    group: NDArray[np.integer],
    n_groups: int,
    n_genes: int,
) -> GroupSums:
    """Sums over groups of cells that come in blocks.

    Parameters
    ----------
    blocks
        Places in ``group`` and x of the cells there.
    group
        Group of each cell, ``(n,)``.
    n_groups, n_genes
        K and G.
    """
    sums, squares = np.zeros((2, n_groups, n_genes))
    for some, part in blocks:
        member = (np.ones(len(some)), (group[some], np.arange(len(some))))
        of_groups = sparse.csr_matrix(member, shape=(n_groups, len(some)))
        sums += (of_groups @ part).toarray()
        squares += (of_groups @ part.multiply(part)).toarray()
    return GroupSums(sums, squares, np.bincount(group, minlength=n_groups))


def welch_test(
    sums: GroupSums, side: NDArray[np.integer], other: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Welch's t of each gene between some groups and others, and its two-sided p.

    Parameters
    ----------
    sums
        Sums over the groups.
    side, other
        Numbers of the groups on either side.

    Returns
    -------
    t and p, each ``(G,)``; 0 and 1 where a gene has no variance on either side.
    """
    of_sides: list[NDArray[np.float64] | int] = []
    for groups in (side, other):
        total, squares, n = (values[groups].sum(0) for values in sums)
        mean = total / np.maximum(n, 1)
        variance = (squares - n * mean**2).clip(min=0) / np.maximum(n - 1, 1)
        of_sides += [mean, np.sqrt(variance), np.maximum(n, 2)]
    with np.errstate(divide="ignore", invalid="ignore"):  # a gene that neither side shows
        found = ttest_ind_from_stats(*of_sides, equal_var=False)
    return np.nan_to_num(found.statistic), np.nan_to_num(found.pvalue, nan=1.0)
