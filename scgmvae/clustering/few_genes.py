"""Splits that rest on few genes, as those of B cells by their light chain do.

A gene that is either on or off divides cells as deeply as a type does: the two light chains of
antibodies, or a stress response of a handful of genes. Types differ in many genes. Without the few
in which they differ most, they are still apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgmvae.clustering.group_sums import GroupSums

__all__ = ["splits_of_few_genes"]

N_FEW = 3
"""Number of genes that a split must not rest on."""
APART = 3.5
"""Distance of the sides by all other genes, in standard deviations, from which on a split does
not rest on the few. Sides that far apart would overlap in 4 % of their cells."""
FEWEST_GENES = 100
"""Number of genes from which on a split can be asked for more than a few."""


def splits_of_few_genes(
    sides: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]],
    sums: GroupSums,
    is_gene: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Which splits rest on the few genes that differ most between their sides.

    Parameters
    ----------
    sides
        Leaves on both sides of each of S splits.
    sums
        Sums over the cells of each leaf.
    is_gene
        Which features are genes, ``(G,)``; ``None`` for all. Proteins and peaks beside them are
        never among the few.

    Returns
    -------
    Whether each split does, ``(S,)``; none of data with fewer than a hundred genes.
    """
    if is_gene is None:
        is_gene = np.ones(sums.x.shape[1], dtype=bool)
    if is_gene.sum() < FEWEST_GENES:
        return np.zeros(len(sides), dtype=bool)
    without = [_squared_distance_without_few(sums, *both, is_gene) for both in sides]
    return np.array(without, dtype=float) < APART**2


def _squared_distance_without_few(
    sums: GroupSums,
    left: NDArray[np.integer],
    right: NDArray[np.integer],
    is_gene: NDArray[np.bool_],
) -> float:
    """Squared distance between the sides in standard deviations, without the few genes.

    Genes count as independent. The part of the distance that noise in the means adds is taken off.
    """
    n = np.array([max(sums.n_cells[side].sum(), 1) for side in (left, right)])
    means = np.array([sums.x[side].sum(0) for side in (left, right)]) / n[:, None]
    squares = sum(sums.squares[side].sum(0) for side in (left, right))
    variance = (squares - n @ means**2) / n.sum()
    varies = variance > 1e-6
    squared = (means[0] - means[1])[varies] ** 2 / variance[varies]
    few = np.sort(squared[is_gene[varies]])[-N_FEW:]
    return float(squared.sum() - few.sum() - varies.sum() * (1 / n).sum())
