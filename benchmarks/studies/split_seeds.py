"""Would longer training or a larger z make the tested splits of two seeds agree more?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/split_seeds.py [--tasks default long wide]

Four sets whose clusters differ between seeds. Each is trained on three times, and the tree of each
training is grown twice with other draws. *same training* is the ARI of the clusters of two trees
of one training, *another training* that of trees of two trainings, *ARI* the agreement with the
known types, *F1 rare* that of the best cluster of each type with at most 2 % of the cells; each
for several strengths from which on a split makes clusters.

default   trainings as they are
long      a pretraining three times as long
wide      z of 20 dimensions

``--short`` runs few epochs on simulated cells.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import combinations, product
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).parents[1]))
import tested
from common import run_tasks
from embedding import labelled

from scgmvae.clustering.split_tree import SplitTree
from scgmvae.model.splits import SplitsMixin
from scgmvae.train.recipe import COUNTS

SETS = ("baron_mouse", "mouse_bladder", "pbmc3k", "pbmc4k")
STRENGTHS = (0.4, 0.5, 0.55, 0.6)
N_TRAININGS, N_DRAWS = 3, 2

Grown = tuple[SplitTree, NDArray[np.integer]]
"""A tree, and the leaf of each cell."""


def grown(
    name: str, seed: int, short: bool, times: int, n_latent: int
) -> tuple[NDArray, list[Grown]]:
    """Known types, and trees of one training with other draws."""
    adata, batch_key = labelled(name, 0)
    trees: list[Grown] = []
    original = SplitsMixin._grown_tree

    def several(self: SplitsMixin, rows: NDArray, z: NDArray, n_leaves: None, _: int) -> Grown:
        trees.extend(original(self, rows, z, n_leaves, draw) for draw in range(N_DRAWS))
        return trees[0]

    epochs = COUNTS.pretraining.epochs(adata.n_obs) * times
    with patch.object(SplitsMixin, "_grown_tree", several):
        length = {"pretrain_epochs": epochs, "max_epochs": 1}
        tested.fitted(adata, batch_key, seed, short, length, n_latent=n_latent)
    return adata.obs["cell_type"].astype(str).to_numpy(), trees


def compared(
    seed: int, short: bool, *, training: str, times: int = 1, n_latent: int = 10
) -> list[dict[str, object]]:
    """A row for every set and strength."""
    rows = []
    for name in ("simulated",) if short else SETS:
        seeds = range(100 * seed, 100 * seed + N_TRAININGS)
        trainings = [grown(name, s, short, times, n_latent) for s in seeds]
        types = trainings[0][0]
        for strength in STRENGTHS:
            codes = [
                [tree.clusters(tree.height >= strength)[leaf] for tree, leaf in trees]
                for _, trees in trainings
            ]
            same = [adjusted_rand_score(*of_one) for of_one in codes]
            other = [
                adjusted_rand_score(*pair)
                for two in combinations(codes, 2)
                for pair in product(*two)
            ]
            every = [clusters for of_one in codes for clusters in of_one]
            rows.append(
                {
                    "training": training,
                    "data": name,
                    "strength": strength,
                    "seed": seed,
                    "same training": np.mean(same),
                    "another training": np.mean(other),
                    "ARI": np.mean([adjusted_rand_score(types, c) for c in every]),
                    "F1 rare": np.mean([tested.best_f1(types, c) for c in every]),
                    "n_clusters": np.mean([len(np.unique(c)) for c in every]),
                }
            )
        print(rows[-len(STRENGTHS) :], flush=True)
    return rows


BY = ["training", "data", "strength"]
LONG = partial(compared, training="pretraining three times as long", times=3)
TASKS = {
    "default": (partial(compared, training="default"), BY),
    "long": (LONG, BY),
    "wide": (partial(compared, training="z of 20 dimensions", n_latent=20), BY),
}

if __name__ == "__main__":
    run_tasks("split_seeds", __doc__.split("\n")[0], TASKS)
