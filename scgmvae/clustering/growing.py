"""The tree of tested splits of some cells, grown from all of them downwards.

Where a condition such as the donor was not told, cells of one type are split by it, and the types
that lie closer to each other than the donors do would be found within each donor only. So splits
that repeat from type to type are put below those between types: the two sides are moved onto each
other, as the levels of a told condition are, and the group is divided by the weakest cut that is
left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scgmvae.clustering.cut_tests import TestedCut, tested_cut
from scgmvae.clustering.cuts import SMALLEST_SIDE
from scgmvae.clustering.few_genes import splits_of_few_genes
from scgmvae.clustering.repeated import repeated_splits
from scgmvae.clustering.split_tree import SplitTree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scgmvae.clustering.group_sums import GroupSums
    from scgmvae.clustering.one_population import Encoded

__all__ = ["grow"]

MOST_LEVELS = 8
"""Largest number of levels that were not told, as of donors, that are moved onto each other."""
LEAST_SHARE = 0.25
"""Least share of a level's cells on either side of a cut between types, as a part of the share of
all cells on the smaller side."""
SMALL = 0.05
"""Largest share of the cells in levels that a cut between types need not divide."""
BETWEEN_LEVELS = 0.7
"""Correlation with the levels that were moved from which on a split is one between them."""


def grow(
    z: NDArray[np.floating],
    encoder_of: Callable[[NDArray[np.integer]], Encoded],
    levels: Sequence[NDArray[np.integer]] = (),
    *,
    sums_of: Callable[[NDArray[np.integer]], GroupSums] | None = None,
    is_gene: NDArray[np.bool_] | None = None,
    n_leaves: int | None = None,
    seed: int = 0,
) -> tuple[SplitTree, NDArray[np.int64]]:
    """Split cells in two, again and again, where one population does not explain them.

    Parameters
    ----------
    z
        Cells, ``(n, L)``.
    encoder_of
        Function that takes rows of the cells and returns how points in z are decoded and encoded
        again under the conditions and at the depths of these cells.
    levels
        Level of each cell, ``(n,)``, for each categorical condition.
    sums_of
        Function that takes the leaf of each cell, ``(n,)``, and returns sums of x over the leaves,
        by which splits are known that repeat from type to type, or rest on few genes. ``None``
        looks for none.
    is_gene
        Which features of these sums are genes, ``(G,)``, of which a split needs more than a few;
        ``None`` for all. A few proteins make types.
    n_leaves
        K, number of leaves: the strongest splits of the tree, or further ones that the test does
        not support, the strongest first. ``None`` keeps the tree.
    seed
        Seed of the draws.

    Returns
    -------
    The tree, and the leaf of each cell, ``(n,)``, the largest leaf first. Splits that repeat are
    below those between types where these are found. There are fewer than K leaves where the cells
    cannot be split into as many.
    """
    smallest = SMALLEST_SIDE
    if n_leaves is not None:  # so many that a leaf may have fewer cells
        smallest = min(smallest, max(2, len(z) // (4 * n_leaves)))
    cuts = _Cuts(z, encoder_of, levels, seed, smallest)
    tree, leaf, n_tested = _grown(cuts, n_leaves)
    while sums_of is not None and tree.n_splits:
        sides, sums = [tree.leaves_of(split) for split in range(tree.n_splits)], sums_of(leaf)
        is_repeated = np.zeros(tree.n_splits, dtype=bool)
        is_repeated[:n_tested] = repeated_splits(sides[:n_tested], sums)
        tree = replace(
            tree,
            is_repeated=cuts.that_repeat(tree, leaf, is_repeated),
            is_of_few_genes=splits_of_few_genes(sides, sums, is_gene),
        )
        if not cuts.put_below_types(tree, leaf):
            break
        tree, leaf, n_tested = _grown(cuts, n_leaves)
    if n_leaves is not None and tree.n_splits >= n_leaves:
        made = tree.strongest(n_leaves)
        leaf, tree = tree.clusters(made)[leaf], tree.only(made)
    number = np.argsort(np.argsort(-np.bincount(leaf), kind="stable"))
    return tree.renumbered(number), number[leaf]


class _Cuts:
    """The tested cut of every group of cells, each made once."""

    def __init__(
        self,
        z: NDArray[np.floating],
        encoder_of: Callable[[NDArray[np.integer]], Encoded],
        levels: Sequence[NDArray[np.integer]],
        seed: int,
        smallest: int,
    ):
        self.z, self.encoder_of, self.levels = z, encoder_of, levels
        self.seed, self.smallest = seed, smallest
        self.found: dict[bytes, TestedCut | None] = {}
        self.repeated: set[bytes] = set()
        """Groups and sides of the splits that repeat."""
        self.moved: dict[bytes, NDArray[np.int64]] = {}
        """Group → levels that were not told and were moved onto each other in it, of each cell,
        (n,), −1 for cells outside of the group."""
        self.tried: set[bytes] = set()
        """Groups in which a split between types was looked for."""

    def of(self, rows: NDArray[np.int64]) -> TestedCut | None:
        """The tested cut of a group, by the rows of its cells; ``None`` if they are too few."""
        key = rows.tobytes()
        if key not in self.found:
            self.found[key] = self._tested(rows)
        return self.found[key]

    def _tested(
        self, rows: NDArray[np.int64], level: NDArray[np.integer] | None = None
    ) -> TestedCut | None:
        """The weakest cut of a group, tested, with levels that were not told moved, if any."""
        z, levels = self.z[rows], [level[rows] for level in self.levels]

        def encoder_of(some: NDArray[np.integer]) -> Encoded:
            return self.encoder_of(rows[some])

        # by the cells, so that no test moves the draws of another
        rng = np.random.default_rng([self.seed, len(rows), *rows[:1], *rows[-1:]])
        untold = [] if level is None else [level]
        return tested_cut(z, encoder_of, levels, rng, self.smallest, untold)

    def that_repeat(
        self, tree: SplitTree, leaf: NDArray[np.integer], is_repeated: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Which splits repeat, (S,): those that do now, that did before, or were put below."""
        found = is_repeated.copy()
        for split in range(tree.n_splits):
            rows, side = _cells_of(tree, leaf, split)
            key = _key_of(rows, side)
            if found[split]:
                self.repeated.add(key)
            found[split] = key in self.repeated or any(
                _is_between(level[rows], side)
                for level in self.moved.values()
                if (level[rows] >= 0).all()
            )
        return found

    def put_below_types(self, tree: SplitTree, leaf: NDArray[np.integer]) -> bool:
        """Put one split that repeats, and is below no other, below a split between types.

        The first for which there is such a split; returns whether there is one.
        """
        is_out = np.zeros(tree.n_splits, dtype=bool)
        for split, children in enumerate(tree.children):
            is_out[children[children >= 0]] = tree.is_repeated[split] or is_out[split]
            is_first = tree.is_repeated[split] and not is_out[split]
            if is_first and self._put_below(*_cells_of(tree, leaf, split)):
                return True
        return False

    def _put_below(self, rows: NDArray[np.int64], side: NDArray[np.bool_]) -> bool:
        """Cut a group between types in place of between levels that were not told, if it can be.

        Sides are moved onto each other until a cut divides each of the levels so far, as one
        between types does. A cut that does not is between further levels.
        """
        key, level = rows.tobytes(), side.astype(np.int64)
        if key in self.tried:
            return False
        self.tried.add(key)
        while level.max() < MOST_LEVELS:
            found = self._tested(rows, level)
            if found is None or not (found.is_split and found.is_supported):
                return False
            if _divides_each(level, found.cut.side):
                self.found[key], self.moved[key] = found, np.full(len(self.z), -1)
                self.moved[key][rows] = level
                return True
            finer = np.unique(2 * level + found.cut.side, return_inverse=True)[1]
            if finer.max() == level.max():  # a cut between the levels is left, as of two shapes
                return False
            level = finer
        return False


def _cells_of(
    tree: SplitTree, leaf: NDArray[np.integer], split: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of the cells that a split divides, and which of them are on its second side."""
    left, right = tree.leaves_of(split)
    rows = np.flatnonzero(np.isin(leaf, np.concatenate([left, right])))
    return rows, np.isin(leaf[rows], right)


def _key_of(rows: NDArray[np.int64], side: NDArray[np.bool_]) -> bytes:
    return rows.tobytes() + np.packbits(side).tobytes()


def _divides_each(level: NDArray[np.integer], side: NDArray[np.bool_]) -> bool:
    """Whether a cut divides every level, (n,), and none of them by far less evenly than all.

    Levels of a few cells, as a rare type that was cut off before, need not be divided.
    """
    n = np.bincount(level)
    share = np.bincount(level, side) / n
    is_divided = np.minimum(share, 1 - share) >= LEAST_SHARE * min(side.mean(), 1 - side.mean())
    return bool(is_divided.sum() >= 2 and n[~is_divided].sum() <= SMALL * n.sum())


def _is_between(level: NDArray[np.integer], side: NDArray[np.bool_]) -> bool:
    """Whether a split of cells is one between their levels, each (n,)."""
    counts = np.zeros((level.max() + 1, 2))
    np.add.at(counts, (level, side.astype(int)), 1)
    by_level = counts.argmax(1)[level]
    if by_level.min() == by_level.max():
        return False
    return bool(np.corrcoef(by_level, side)[0, 1] >= BETWEEN_LEVELS)


def _grown(cuts: _Cuts, n_leaves: int | None) -> tuple[SplitTree, NDArray[np.int64], int]:
    """Tree of tested splits, or of K leaves if it has fewer, and the leaf of each cell.

    The number of tested splits comes with them, which are the first. Chance draws further ones, so
    these repeat nothing.
    """
    growing = _Growing(cuts)
    growing.split_while(lambda found: found.is_split)
    n_tested = len(growing.splits)
    if n_leaves is not None:
        growing.split_while(lambda _: True, n_leaves)
    return growing.tree(), growing.leaf, n_tested


class _Growing:
    """A tree while it grows: the leaf of each cell, and the tested cut of each leaf."""

    def __init__(self, cuts: _Cuts):
        self.cuts = cuts
        self.leaf = np.zeros(len(cuts.z), dtype=np.int64)
        self.children: list[list[int]] = []
        self.splits: list[TestedCut] = []
        self.place = {0: (-1, 0)}  # of each leaf: the split that it is a side of, and which side
        self.found = {0: self._tested(0)}

    def _tested(self, leaf: int) -> TestedCut | None:
        return self.cuts.of(np.flatnonzero(self.leaf == leaf))

    def split_while(
        self, is_split: Callable[[TestedCut], bool], n_leaves: int | None = None
    ) -> None:
        """Split the leaf with the strongest cut that counts, while there is one."""
        while n_leaves is None or len(self.found) < n_leaves:
            strengths = {
                leaf: found.evidence.strength
                for leaf, found in self.found.items()
                if found is not None and is_split(found)
            }
            if not strengths:
                return
            self._split(max(strengths, key=lambda leaf: (strengths[leaf], -leaf)))

    def _split(self, leaf: int) -> None:
        split, new = len(self.splits), len(self.found)
        found = self.found[leaf]
        above, which = self.place[leaf]
        if above >= 0:
            self.children[above][which] = split
        self.children.append([-1 - leaf, -1 - new])
        self.splits.append(found)
        rows = np.flatnonzero(self.leaf == leaf)
        self.leaf[rows[found.cut.side]] = new
        for which, part in enumerate((leaf, new)):
            self.place[part] = (split, which)
            self.found[part] = self._tested(part)

    def tree(self) -> SplitTree:
        """The tree so far."""
        n_splits, n_conditions = len(self.splits), len(self.cuts.levels)
        n_levels = np.zeros((n_splits, n_conditions), dtype=np.int64)
        t_moved = np.full((n_splits, n_conditions), np.nan)
        for number, split in enumerate(self.splits):
            for condition, support in enumerate(split.supports):
                n_levels[number, condition] = support.n_levels
                t_moved[number, condition] = support.t
        evidence = [split.evidence for split in self.splits]
        return SplitTree(
            np.array(self.children, dtype=np.int64).reshape(-1, 2),
            np.array([e.t for e in evidence], dtype=float),
            np.array([e.null for e in evidence], dtype=float),
            np.array([e.p for e in evidence], dtype=float),
            n_levels,
            t_moved,
            is_repeated=np.zeros(n_splits, dtype=bool),
            is_of_few_genes=np.zeros(n_splits, dtype=bool),
            is_of_one_level=np.array(
                [any(s.is_of_one_level for s in split.supports) for split in self.splits],
                dtype=bool,
            ),
        )
