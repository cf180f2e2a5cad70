"""A tree of tested splits, from all cells down to groups that one population explains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scgmvae.clustering.cut_tests import TestedCut, tested_cut
from scgmvae.clustering.cuts import SMALLEST_SIDE
from scgmvae.clustering.few_genes import splits_of_few_genes
from scgmvae.clustering.repeated import repeated_splits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scgmvae.clustering.group_sums import GroupSums
    from scgmvae.clustering.one_population import Encoded

__all__ = ["STRENGTH", "SplitTree", "grow"]

STRENGTH = 0.55
"""Strength from which on a split is one between clusters."""
SET_BACK = 0.4
"""Share of its strength for which a split counts that repeats from type to type, or rests on few
genes."""
FROM_BELOW = 0.7
"""Share of its height to which a split raises the one above it: what is far apart is not held
together by a weak split on the way to it."""


@dataclass(frozen=True)
class SplitTree:
    """Splits of the cells, each of which divides a side of an earlier one, and the leaves."""

    children: NDArray[np.int64]
    """Both sides of each split, (S, 2): the number s of the split that divides it further, or
    −1 − m for leaf m. The first split is that of all cells."""
    t: NDArray[np.float64]
    """T of each split, (S,)."""
    null: NDArray[np.float64]
    """Mean T of the weakest cuts of one population, (S,)."""
    p: NDArray[np.float64]
    """Probability of a T as small in one population, (S,)."""
    n_levels: NDArray[np.int64]
    """Number of levels of each condition with cells on both sides, (S, conditions)."""
    t_moved: NDArray[np.float64]
    """T of each split with the levels of a condition moved onto each other, (S, conditions)."""
    is_repeated: NDArray[np.bool_]
    """Whether each split repeats in most of the other types, (S,)."""
    is_of_few_genes: NDArray[np.bool_]
    """Whether each split rests on few genes, (S,)."""

    @classmethod
    def of_arrays(cls, arrays: dict[str, NDArray]) -> SplitTree:
        """The tree that a model keeps; of earlier models no split rests on few genes.

        Parameters
        ----------
        arrays
            Name of a field → its values.
        """
        none = np.zeros(len(arrays["t"]), dtype=bool)
        return cls(**{"is_of_few_genes": none} | arrays)

    @property
    def n_splits(self) -> int:
        """S, number of splits."""
        return len(self.t)

    @property
    def strength(self) -> NDArray[np.float64]:
        """Strength of each split, (S,), between 0 and 1."""
        return np.clip(1 - self.t / self.null, 0.0, 1.0)

    @property
    def height(self) -> NDArray[np.float64]:
        """Strength down to which each split is made, (S,): the least of it and those above.

        A split that repeats from type to type, or rests on few genes, counts less. All but those
        that repeat count for seven tenths of a split directly below them at least.
        """
        is_set_back = self.is_repeated | self.is_of_few_genes
        height = self.strength * np.where(is_set_back, SET_BACK, 1.0)
        below = [children[children >= 0] for children in self.children]
        for split in reversed(range(self.n_splits)):  # a side comes after the whole
            if len(below[split]) and not self.is_repeated[split]:
                height[split] = max(height[split], FROM_BELOW * height[below[split]].max())
        for split in range(self.n_splits):
            height[below[split]] = np.minimum(height[below[split]], height[split])
        return height

    def leaves_of(self, split: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Leaves on both sides of a split.

        Parameters
        ----------
        split
            Number of the split.
        """
        first, second = (self._leaves_below(child) for child in self.children[split])
        return first, second

    def _leaves_below(self, node: int) -> NDArray[np.int64]:
        if node < 0:
            return np.array([-1 - node])
        return np.concatenate([self._leaves_below(child) for child in self.children[node]])

    def leaf_order(self) -> NDArray[np.int64]:
        """Leaves in an order in which each split has its sides beside each other, (S + 1,)."""
        return self._leaves_below(0 if self.n_splits else -1)

    def strongest(self, n_clusters: int) -> NDArray[np.bool_]:
        """The splits that make a number of clusters, (S,), the strongest first.

        Parameters
        ----------
        n_clusters
            Number of clusters.
        """
        made = np.zeros(self.n_splits, dtype=bool)
        made[np.argsort(-self.height, kind="stable")[: n_clusters - 1]] = True
        return made

    def clusters(self, made: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Cluster of each leaf, (S + 1,), where only some splits are made.

        Parameters
        ----------
        made
            Which splits are made, ``(S,)``; with a split all above it are.
        """
        codes = np.zeros(self.n_splits + 1, dtype=np.int64)
        for split in np.flatnonzero(made).tolist():
            codes[self.leaves_of(split)[1]] = split + 1
        return np.unique(codes, return_inverse=True)[1]

    def only(self, made: NDArray[np.bool_]) -> SplitTree:
        """The tree of some of the splits, whose leaves are the clusters that they make.

        Parameters
        ----------
        made
            Which splits are made, ``(S,)``; with a split all above it are.
        """
        clusters = self.clusters(made)
        number = np.cumsum(made) - 1
        children = [
            [
                number[child] if child >= 0 and made[child] else -1 - clusters[leaves[0]]
                for child, leaves in zip(self.children[split], self.leaves_of(split), strict=True)
            ]
            for split in np.flatnonzero(made).tolist()
        ]
        values = {name: values[made] for name, values in vars(self).items()}
        values["children"] = np.array(children, dtype=np.int64).reshape(-1, 2)
        return SplitTree(**values)

    def renumbered(self, number: NDArray[np.integer]) -> SplitTree:
        """The same tree with other numbers of its leaves.

        Parameters
        ----------
        number
            New number of each leaf, ``(S + 1,)``.
        """
        children = self.children.copy()
        is_leaf = children < 0
        children[is_leaf] = -1 - number[-1 - children[is_leaf]]
        return replace(self, children=children)

    @property
    def linkage(self) -> NDArray[np.float64]:
        """The tree as scipy's linkage matrix of the leaves, (S, 4), with strengths as heights."""
        n_leaves = self.n_splits + 1
        node_of = {-1 - leaf: leaf for leaf in range(n_leaves)}
        n_below = dict.fromkeys(node_of, 1)
        order = sorted(range(self.n_splits), key=lambda s: (self.height[s], -s))
        rows = []
        for split in order:
            first, second = self.children[split]
            n_below[split] = n_below[first] + n_below[second]
            row = sorted([node_of[first], node_of[second]])
            rows.append([*row, self.height[split], n_below[split]])
            node_of[split] = n_leaves + len(rows) - 1
        return np.array(rows, dtype=float).reshape(-1, 4)

    def newick(self, names: Sequence[str]) -> str:
        """The tree in Newick format, with the strength of every split as its label.

        Parameters
        ----------
        names
            Name of each leaf, ``(S + 1,)``.
        """

        def written(node: int) -> str:
            if node < 0:
                return "'" + str(names[-1 - node]).replace("'", "''") + "'"
            sides = ",".join(written(child) for child in self.children[node])
            return f"({sides}){self.strength[node]:.3g}"

        return written(0 if self.n_splits else -1) + ";"


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
    The tree, and the leaf of each cell, ``(n,)``, the largest leaf first. There are fewer than K
    leaves where the cells cannot be split into as many.
    """
    smallest = SMALLEST_SIDE
    if n_leaves is not None:  # so many that a leaf may have fewer cells
        smallest = min(smallest, max(2, len(z) // (4 * n_leaves)))
    growing = _Growing(z, encoder_of, levels, seed, smallest)
    growing.split_while(lambda found: found.is_split)
    if n_leaves is not None:
        growing.split_while(lambda _: True, n_leaves)
    tree, leaf = growing.tree(), growing.leaf
    if sums_of is not None and tree.n_splits:
        sides, sums = [tree.leaves_of(split) for split in range(tree.n_splits)], sums_of(leaf)
        tree = replace(
            tree,
            is_repeated=repeated_splits(sides, sums),
            is_of_few_genes=splits_of_few_genes(sides, sums, is_gene),
        )
    if n_leaves is not None and tree.n_splits >= n_leaves:
        made = tree.strongest(n_leaves)
        leaf, tree = tree.clusters(made)[leaf], tree.only(made)
    number = np.argsort(np.argsort(-np.bincount(leaf), kind="stable"))
    return tree.renumbered(number), number[leaf]


class _Growing:
    """A tree while it grows: the leaf of each cell, and the tested cut of each leaf."""

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
        self.leaf = np.zeros(len(z), dtype=np.int64)
        self.children: list[list[int]] = []
        self.splits: list[TestedCut] = []
        self.place = {0: (-1, 0)}  # of each leaf: the split that it is a side of, and which side
        self.found = {0: self._tested(0)}

    def _tested(self, leaf: int) -> TestedCut | None:
        rows = np.flatnonzero(self.leaf == leaf)
        return tested_cut(
            self.z[rows],
            lambda some: self.encoder_of(rows[some]),
            [level[rows] for level in self.levels],
            # by the cells, so that no test moves the draws of another
            np.random.default_rng([self.seed, len(rows), *rows[:1], *rows[-1:]]),
            self.smallest,
        )

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
        n_splits, n_conditions = len(self.splits), len(self.levels)
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
            np.zeros(n_splits, dtype=bool),
            np.zeros(n_splits, dtype=bool),
        )
