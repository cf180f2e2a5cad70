"""Which splits of the tree should make clusters by default?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/default_cut.py [--seeds 0 1]

Each set is trained on twice for every seed, and every rule cuts the same two trees: one whose
tests have at most 1,000 cells, and one whose tests have as many as by default. A rule has the
strength from which on a split is one between clusters; the distance that the sides must have
without the three genes that differ most (``few_genes.APART``; 0 asks for none); and the share of
its strength to which a split raises those above it (``split_tree.FROM_BELOW``; 0 raises none).
Clusters are those of the tree, before the joint stage.

*ARI* is the agreement with the known types, *of two seeds* that of the clusters of both trainings.
``--short`` runs few epochs on simulated cells.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).parents[1]))
import tested
from common import run_tasks
from embedding import labelled

from scgmvae.clustering import cut_tests, few_genes, split_tree
from scgmvae.clustering.group_sums import GroupSums
from scgmvae.model.splits import SplitsMixin

SETS = (
    "sc_mixology", "baron_mouse", "two_populations", "mouse_bladder", "pbmc3k", "pbmc4k", "paul15",
    "kang", "partly shared",
)  # fmt: skip
CELLS = (1000, cut_tests.CELLS_IN_TEST)
"""Largest numbers of cells in a test."""
COLUMNS = ("strength", "apart", "from below")
RULES = (
    (split_tree.STRENGTH, few_genes.APART, split_tree.FROM_BELOW),
    (0.45, 3.5, 0.7), (0.5, 3.5, 0.7), (0.6, 3.5, 0.7), (0.7, 3.5, 0.7),
    (0.5, 0.0, 0.0), (0.5, 3.5, 0.0), (0.5, 5.0, 0.0), (0.5, 3.5, 1.0),
)  # fmt: skip
"""Strength, distance without the three genes, share from below; the first are the defaults."""


class Grown(NamedTuple):
    """A tree, and the cells at its leaves."""

    tree: split_tree.SplitTree
    component: NDArray[np.integer]
    """Leaf of each cell, (n,)."""
    sums: GroupSums
    """Sums over the cells of each leaf."""

    def clusters(self, strength: float, apart: float, from_below: float) -> NDArray[np.integer]:
        """Cluster of each cell by a rule, (n,)."""
        sides = [self.tree.leaves_of(split) for split in range(self.tree.n_splits)]
        with (
            patch.object(few_genes, "APART", apart),
            patch.object(split_tree, "FROM_BELOW", from_below),
        ):
            few = few_genes.splits_of_few_genes(sides, self.sums) & (apart > 0)
            tree = replace(self.tree, is_of_few_genes=few)
            return tree.clusters(tree.height >= strength)[self.component]


def grown(name: str, seed: int, short: bool) -> tuple[pd.Series, dict[int, Grown]]:
    """Known types, and the trees of a training by the number of cells in a test."""
    adata, batch_key = labelled(name, 0)
    trees: dict[int, Grown] = {}
    original = SplitsMixin._grown_tree

    def several(self: SplitsMixin, rows: NDArray, *args: object) -> tuple[object, NDArray]:
        for n_cells in CELLS:
            every = {"CELLS_IN_TEST": n_cells, "WORTH_A_FIRST_TEST": self.adata.n_obs}
            with patch.multiple(cut_tests, **every):
                tree, leaf = original(self, rows, *args)
            trees[n_cells] = Grown(tree, leaf, self._sums_by_group(rows, leaf))
        return tree, leaf

    with patch.object(SplitsMixin, "_grown_tree", several):
        tested.fitted(adata, batch_key, seed, short, tested.BRIEF)
    return adata.obs["cell_type"], trees


def cut(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """A row for every set and rule, a set at a time."""
    for name in ("simulated",) if short else SETS:
        (types, first), (_, second) = (grown(name, s, short) for s in (seed, seed + 100))
        rows = []
        for n_cells, rule in product(CELLS, RULES):
            codes, again = (trees[n_cells].clusters(*rule) for trees in (first, second))
            rows.append(
                {
                    "data": name,
                    "cells": n_cells,
                    **dict(zip(COLUMNS, rule, strict=True)),
                    "seed": seed,
                    "ARI": adjusted_rand_score(types, codes),
                    "ARI of two seeds": adjusted_rand_score(codes, again),
                    "n_clusters": len(np.unique(codes)),
                }
            )
        yield rows


if __name__ == "__main__":
    run_tasks("default_cut", __doc__.split("\n")[0], {"cut": (cut, ["data", "cells", *COLUMNS])})
