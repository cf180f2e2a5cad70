"""The weakest cut of some cells, and what one population and the conditions say of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scgmvae.clustering.cuts import (
    SMALLEST_SIDE,
    Cut,
    cut_weight,
    shared_neighbor_graph,
    weakest_cut,
)
from scgmvae.clustering.one_population import CLEAR_P, Evidence, evidence_of
from scgmvae.clustering.split_tree import STRENGTH
from scgmvae.clustering.support import (
    Support,
    fall_on_their_sides,
    levels_on_both_sides,
    support_of,
    without_level_means,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scgmvae.clustering.one_population import Encoded

__all__ = ["FINEST", "LARGEST_P", "TestedCut", "evidence_of_cut", "of_rows", "tested_cut"]

LARGEST_P = 0.01
FINEST = 0.3
"""Strength from which on a split is in the tree."""
APART = 0.95
"""Strength from which on a split needs no support by the levels of a condition."""
CELLS_IN_FIRST_TEST, CELLS_IN_TEST = 1000, 2500
"""Numbers of cells in a test: in the first, and in one of a cut that this leaves open. The smaller
side is there as a whole where few of its cells would be in a sample, so there may be some more."""
WORTH_A_FIRST_TEST = 2 * CELLS_IN_FIRST_TEST
"""Number of cells beyond which a first test with a part of them saves time."""
OPEN = (0.15, 0.85)
"""Strengths between which a first test leaves open whether and where a split is in the tree.
Outside of them more cells hardly change that (``docs/decisions.md``)."""
FEWEST_IN_SAMPLE = 30
"""Smallest number of cells of the smaller side in a sample of all cells."""
HOPELESS = 0.8
"""T from which on a cut is not tested."""
MOST_LEVELS = 4
"""Largest number of levels of a condition in which a cut is tested by itself."""


class TestedCut(NamedTuple):
    """The weakest cut of some cells, and what speaks for it."""

    cut: Cut
    evidence: Evidence
    supports: tuple[Support, ...]
    """What each condition says."""

    @property
    def is_supported(self) -> bool:
        """Whether no condition speaks against it."""
        return all(support.is_given for support in self.supports)

    @property
    def is_split(self) -> bool:
        """Whether it belongs into the tree."""
        return _belongs_in_tree(self.evidence) and (
            self.is_supported or self.evidence.strength >= APART
        )


def tested_cut(
    z: NDArray[np.floating],
    encoder_of: Callable[[NDArray[np.integer]], Encoded],
    levels: Sequence[NDArray[np.integer]],
    rng: np.random.Generator,
    smallest: int = SMALLEST_SIDE,
    untold: Sequence[NDArray[np.integer]] = (),
) -> TestedCut | None:
    """The weakest cut of some cells, tested.

    Where the levels of a condition speak against the cut, the cut is one between levels. Then the
    levels are moved onto each other, and the weakest cut of what results is tested.

    Parameters
    ----------
    z
        Cells, ``(n, L)``.
    encoder_of
        Function that takes rows of these cells and returns how points in z are decoded and
        encoded again under their conditions.
    levels
        Level of each cell, ``(n,)``, for each condition.
    rng
        Source of draws.
    smallest
        Smallest number of cells on a side.
    untold
        Level of each cell, ``(n,)``, for conditions that were not told, whose levels are moved
        onto each other in any case.

    Returns
    -------
    The cut and what speaks for it, or ``None`` where there are too few cells.
    """
    if len(z) < 2 * smallest:
        return None
    best = _tested(z, encoder_of, levels, rng, smallest, untold)
    if best is None or best.is_supported:
        return best
    against = [
        level for level, support in zip(levels, best.supports, strict=True) if not support.is_given
    ]
    moved = _tested(z, encoder_of, levels, rng, smallest, [*untold, *against])
    if moved is not None and moved.is_split and not best.is_split:
        return moved
    return best


def _tested(
    z: NDArray[np.floating],
    encoder_of: Callable[[NDArray[np.integer]], Encoded],
    levels: Sequence[NDArray[np.integer]],
    rng: np.random.Generator,
    smallest: int,
    moved_by: Sequence[NDArray[np.integer]],
) -> TestedCut | None:
    """The weakest cut of cells of which some conditions' levels were moved onto each other."""
    seen = _moved(z, moved_by)
    cut = weakest_cut(shared_neighbor_graph(seen), seen, smallest)
    if cut is None:
        return None

    def moved_encoder_of(rows: NDArray[np.integer]) -> Encoded:
        encode, moved_rows = encoder_of(rows), [level[rows] for level in moved_by]
        return lambda u, source: _moved(encode(u, source), moved_rows)

    evidence = evidence_of_cut(seen, cut.side, moved_encoder_of, rng, cut.t)
    supports: tuple[Support, ...] = ()
    if evidence.strength >= FINEST:
        supports = tuple(
            _support(seen, cut, evidence, level, moved_encoder_of, rng) for level in levels
        )
    return TestedCut(cut, evidence, supports)


def _support(
    z: NDArray[np.floating],
    cut: Cut,
    evidence: Evidence,
    level: NDArray[np.integer],
    encoder_of: Callable[[NDArray[np.integer]], Encoded],
    rng: np.random.Generator,
) -> Support:
    """What a condition says of a cut, by its levels moved onto each other, or by single levels."""
    support = support_of(z, cut.side, level, cut.t, evidence.null)
    if support.is_given or not _belongs_in_tree(evidence):
        return support
    return support._replace(is_given=_is_seen_within(z, cut.side, level, encoder_of, rng))


def _belongs_in_tree(evidence: Evidence) -> bool:
    """Whether a cut is deep enough for the tree, whatever conditions say of it."""
    return evidence.p <= LARGEST_P and evidence.strength >= FINEST


def _is_seen_within(
    z: NDArray[np.floating],
    side: NDArray[np.bool_],
    level: NDArray[np.integer],
    encoder_of: Callable[[NDArray[np.integer]], Encoded],
    rng: np.random.Generator,
) -> bool:
    """Whether levels that hold both sides of a cut show it, and the others lie on its sides.

    Where levels hold different types, their means differ by those, and moving them onto each other
    hides a cut between types. But no condition divides the cells of one of its levels. All of the
    levels that are asked, up to four, must show it.
    """
    shows = np.zeros(len(z), dtype=bool)
    strengths, n_smaller = [], []
    for one in levels_on_both_sides(side, level, MOST_LEVELS):
        rows = np.flatnonzero(level == one)
        own = side[rows] if side[rows].mean() <= 0.5 else ~side[rows]
        evidence = evidence_of_cut(z[rows], own, partial(of_rows, encoder_of, rows), rng)
        if not _belongs_in_tree(evidence):
            return False
        shows[rows] = True
        strengths.append(evidence.strength)
        n_smaller.append(own.sum())
    if not strengths or np.average(strengths, weights=n_smaller) < STRENGTH:
        return False
    return fall_on_their_sides(z, side, shows)


def of_rows(
    encoder_of: Callable[[NDArray[np.integer]], Encoded],
    rows: NDArray[np.integer],
    some: NDArray[np.integer],
) -> Encoded:
    """How points in z are decoded and encoded again under the conditions of some of these rows.

    Parameters
    ----------
    encoder_of
        As in :func:`tested_cut`.
    rows
        Rows of the cells that it takes.
    some
        Which of them.
    """
    return encoder_of(rows[some])


def _moved(
    z: NDArray[np.floating], moved_by: Sequence[NDArray[np.integer]]
) -> NDArray[np.floating]:
    for level in moved_by:
        z = without_level_means(z, level)
    return z


def evidence_of_cut(
    z: NDArray[np.floating],
    side: NDArray[np.bool_],
    encoder_of: Callable[[NDArray[np.integer]], Encoded],
    rng: np.random.Generator,
    t: float | None = None,
    weakest: float = FINEST,
) -> Evidence:
    """Compare a cut with the weakest cuts of one population, by as many cells as that takes.

    Most cuts of many cells are plain already in about a thousand of them.

    Parameters
    ----------
    z
        The cells that are cut, ``(n, L)``.
    side
        Which cells are on the smaller side, ``(n,)``.
    encoder_of
        As in :func:`tested_cut`.
    rng
        Source of draws.
    t
        T of the cut of all these cells, where it is known.
    weakest
        Strength below which it does not matter how weak the cut is.

    Returns
    -------
    The evidence. A cut whose T is near 1 is not compared: it has the strength 0 and p = 1.
    """
    sizes = (CELLS_IN_FIRST_TEST, CELLS_IN_TEST)
    for n_cells in sizes if len(z) > WORTH_A_FIRST_TEST else sizes[1:]:
        rows = _cells_in_test(z, side, n_cells, rng)
        if t is None or len(rows) < len(z):
            of_rows = cut_weight(shared_neighbor_graph(z[rows]), side[rows])
        else:
            of_rows = t
        if of_rows >= HOPELESS:
            return Evidence(of_rows, of_rows, 1.0)
        evidence = evidence_of(of_rows, z[rows], encoder_of(rows), rng, weakest)
        is_plain = evidence.strength > OPEN[1] and evidence.p <= CLEAR_P
        if is_plain or evidence.strength < min(OPEN[0], weakest / 2):
            break
    return evidence


def _cells_in_test(
    z: NDArray[np.floating], side: NDArray[np.bool_], most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of the cells of a test: a sample of all, or the smaller side and what is near it.

    A sample of all would hold too few cells of a rare group.
    """
    n = len(z)
    if n <= most:
        return np.arange(n)
    if side.sum() * most / n >= FEWEST_IN_SAMPLE:
        return np.sort(rng.permutation(n)[:most])
    small, others = np.flatnonzero(side), np.flatnonzero(~side)
    distance = np.linalg.norm(z[others] - z[small].mean(0), axis=1)
    return np.sort(np.concatenate([small, others[np.argsort(distance)[: most // 2]]]))
