"""Sums over groups of cells, from which means and variances of genes follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GroupSums"]


class GroupSums(NamedTuple):
    """Sums over the cells of each of K groups."""

    x: NDArray[np.float64]
    """Sums of x, (K, G)."""
    squares: NDArray[np.float64]
    """Sums of the squares of x, (K, G)."""
    n_cells: NDArray[np.int64]
    """Number of cells, (K,)."""
