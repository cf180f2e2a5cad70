"""A tree of tested splits, from all cells down to groups that one population explains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["STRENGTH", "SplitTree"]

STRENGTH = 0.55
"""Strength from which on a split is one between clusters."""
SET_BACK = 0.4
"""Share of its strength for which a split counts that repeats from type to type, or rests on few
genes."""
OF_ONE_LEVEL = 0.8
"""Share of its strength for which a split counts that one level of a condition alone supports: it
may be a state of its cells."""
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
    """Whether each split repeats from type to type, as one between untold donors, (S,)."""
    is_of_few_genes: NDArray[np.bool_]
    """Whether each split rests on few genes, (S,)."""
    is_of_one_level: NDArray[np.bool_]
    """Whether at most one level of a condition has cells on both sides of each split, though
    several have enough for some, (S,)."""

    @classmethod
    def of_arrays(cls, arrays: dict[str, NDArray]) -> SplitTree:
        """The tree that a model keeps; of earlier models no split is known to rest on little.

        Parameters
        ----------
        arrays
            Name of a field → its values.
        """
        none = np.zeros(len(arrays["t"]), dtype=bool)
        return cls(**{"is_of_few_genes": none, "is_of_one_level": none} | arrays)

    @property
    def n_splits(self) -> int:
        """S, number of splits."""
        return len(self.t)

    @property
    def strength(self) -> NDArray[np.float64]:
        """Strength of each split, (S,), from 0 to 1; 0 where T is 0 in one population as well."""
        ratio = np.divide(self.t, self.null, out=np.ones(self.n_splits), where=self.null > 0)
        return np.clip(1 - ratio, 0.0, 1.0)

    @property
    def height(self) -> NDArray[np.float64]:
        """Strength down to which each split is made, (S,): the least of it and those above.

        A split that repeats from type to type, or rests on few genes or on one level of a
        condition, counts less. All but those that repeat count for seven tenths of a split
        directly below them at least.
        """
        is_set_back = self.is_repeated | self.is_of_few_genes
        height = self.strength * np.where(self.is_of_one_level, OF_ONE_LEVEL, 1.0)
        height[is_set_back] = SET_BACK * self.strength[is_set_back]
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
