"""Whether a cut is one between types, or one between the levels of a condition.

A cut between a cell type in one batch and the same type in another is none between types. Once the
levels of the condition are moved onto each other it is gone. A cut between types stays, also where
a type comes in one batch only. Where batches hold other types this can hide it, but then it is
there among the cells of single batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from scgmvae.clustering.cuts import SMALLEST_SIDE, cut_weight, shared_neighbor_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Support",
    "fall_on_their_sides",
    "levels_on_both_sides",
    "support_of",
    "without_level_means",
]

FEWEST_ON_A_SIDE = SMALLEST_SIDE // 2
"""Smallest number of a level's cells on a side for the level to have cells there."""
MOST_OF_THE_WAY = 0.5
"""How far T may come from that of the cut to that of one population as levels are moved."""
STRAYS = 0.5
"""A level holds one side of a cut alone if its smaller side has less than this part of the share
that the smaller side has of all cells."""
N_VOTES = 15
"""Number of neighbours by which a cell is put on a side of a cut."""


class Support(NamedTuple):
    """What the levels of a condition say of a cut."""

    n_levels: int
    """Number of levels that have cells on both sides."""
    t: float
    """T of the cut where the levels are moved onto each other."""
    is_given: bool
    """Whether the cut is still there then, or among the cells of single levels."""
    is_of_one_level: bool = False
    """Whether at most one level has cells on both sides, though several have enough for some."""


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
    n_expected = min(side.mean(), 1 - side.mean()) * (on_side + on_other)
    n_enough = (n_expected >= 2 * FEWEST_ON_A_SIDE).sum()
    return Support(
        n_levels,
        moved,
        is_given=moved <= t + MOST_OF_THE_WAY * (null - t),
        is_of_one_level=bool(n_levels < 2 <= n_enough),
    )


def levels_on_both_sides(
    side: NDArray[np.bool_], level: NDArray[np.integer], most: int
) -> NDArray[np.int64]:
    """The levels that hold both sides of a cut, those with the most cells on a smaller side first.

    A level holds both if its smaller side has enough cells for one, and at least half of the share
    that the smaller side has of all cells. Fewer may be cells that were put on a wrong side.

    Parameters
    ----------
    side
        Which cells are on one side of the cut, ``(n,)``.
    level
        Level of each cell, ``(n,)``.
    most
        Largest number of levels.
    """
    counts = np.bincount(level)
    on_side = np.bincount(level[side], minlength=len(counts))
    smaller = np.minimum(on_side, counts - on_side)
    fewest = STRAYS * min(side.mean(), 1 - side.mean()) * counts
    order = np.argsort(-smaller, kind="stable")
    return order[smaller[order] >= np.maximum(SMALLEST_SIDE, fewest[order])][:most]


def fall_on_their_sides(
    z: NDArray[np.floating], side: NDArray[np.bool_], shows: NDArray[np.bool_]
) -> bool:
    """Whether most cells of either side lie beside the cells of that side that show a cut.

    A cut may have the cells of one level, which the condition has moved, on the side of another
    type. Their neighbours among the cells that show the cut are on the other side then.

    Parameters
    ----------
    z
        Cells, ``(n, L)``.
    side
        Which cells are on one side of the cut, ``(n,)``.
    shows
        Which cells are of levels that show the cut, ``(n,)``, at least one.
    """
    others = ~shows
    if not others.any():
        return True
    votes = KNeighborsClassifier(min(N_VOTES, int(shows.sum()))).fit(z[shows], side[shows])
    is_right = votes.predict(z[others]) == side[others]
    return all(
        is_right[side[others] == which].mean() > 0.5
        for which in (False, True)
        if (side[others] == which).sum() >= SMALLEST_SIDE
    )


def without_level_means(
    z: NDArray[np.floating], level: NDArray[np.integer]
) -> NDArray[np.floating]:
    """Cells moved so that all levels have the same mean, ``(n, L)``."""
    sizes = np.bincount(level)
    means = np.zeros((len(sizes), z.shape[1]))
    np.add.at(means, level, z)
    means /= np.maximum(sizes, 1)[:, None]
    return z - means[level] + z.mean(0)
