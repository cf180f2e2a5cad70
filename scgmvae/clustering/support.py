"""Whether a cut is one between types, or one between the levels of a condition.

A cut between a cell type in one batch and the same type in another is none between types. Once the
levels of the condition are moved onto each other it is gone. A cut between types stays, also where
a type comes in one batch only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scgmvae.clustering.cuts import SMALLEST_SIDE, cut_weight, shared_neighbor_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Support", "support_of", "without_level_means"]

FEWEST_ON_A_SIDE = SMALLEST_SIDE // 2
"""Smallest number of a level's cells on a side for the level to have cells there."""
MOST_OF_THE_WAY = 0.5
"""How far T may come from that of the cut to that of one population as levels are moved."""


class Support(NamedTuple):
    """What the levels of a condition say of a cut."""

    n_levels: int
    """Number of levels that have cells on both sides."""
    t: float
    """T of the cut where the levels are moved onto each other."""
    is_given: bool
    """Whether the cut is still there then."""


def support_of(
    z: NDArray[np.floating],
    side: NDArray[np.bool_],
    level: NDArray[np.integer],
    t: float,
    null: float,
) -> Support:
    """What the levels of a condition say of a cut.

    Parameters
    ----------
    z
        Cells, ``(n, L)``.
    side
        Which cells are on one side of the cut, ``(n,)``.
    level
        Level of the condition of each cell, ``(n,)``.
    t, null
        T of the cut and that of one population.
    """
    on_side, on_other = (np.bincount(level[s], minlength=level.max() + 1) for s in (side, ~side))
    n_levels = int((np.minimum(on_side, on_other) >= FEWEST_ON_A_SIDE).sum())
    if (on_side + on_other > 0).sum() < 2:
        return Support(n_levels, t, is_given=True)
    moved = cut_weight(shared_neighbor_graph(without_level_means(z, level)), side)
    return Support(n_levels, moved, moved <= t + MOST_OF_THE_WAY * (null - t))


def without_level_means(
    z: NDArray[np.floating], level: NDArray[np.integer]
) -> NDArray[np.floating]:
    """Cells moved so that all levels have the same mean, ``(n, L)``."""
    sizes = np.bincount(level)
    means = np.zeros((len(sizes), z.shape[1]))
    np.add.at(means, level, z)
    means /= np.maximum(sizes, 1)[:, None]
    return z - means[level] + z.mean(0)
