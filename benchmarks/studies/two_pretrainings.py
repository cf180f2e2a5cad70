"""Do clusters of two seeds agree more if splits are tested in z of two pretrainings?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/two_pretrainings.py [--seeds 0 1 2]

Sets whose clusters differ between seeds are fitted by default, and with the z of one pretraining
alone, each with three seeds, and the tree is cut at several strengths. *agreement* is the ARI of
the clusters of two seeds, *ARI* the agreement with the known types, *F1 rare* that of the best
cluster of each type with at most 2 % of the cells, and *CPU seconds* those of a fit.

Rows are merged into a JSON after every seed; ``--short`` runs few epochs on simulated cells.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).parents[1]))
import tested
from common import run_tasks
from embedding import labelled

from scgmvae.model.training import TrainingMixin

SETS = ("baron_mouse", "kang", "mouse_bladder", "pbmc3k", "pbmc4k")
STRENGTHS = (0.55, 0.6, 0.65, 0.7)
N_FITS = 3

Clusters = dict[float, NDArray]
"""Clusters of the cells by the strength at which the tree is cut."""


def fit(name: str, seed: int, short: bool) -> tuple[NDArray, Clusters, float]:
    """Known types, clusters, and processor seconds of a fit."""
    adata, batch_key = labelled(name, 0)
    begin = time.process_time()
    model = tested.fitted(adata, batch_key, seed, short)["model"]
    seconds = time.process_time() - begin
    clusters = {}
    for strength in STRENGTHS:
        model.cut(strength)
        clusters[strength] = adata.obs["scgmvae"].to_numpy()
    return adata.obs["cell_type"].astype(str).to_numpy(), clusters, seconds


def compared(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """Rows for every set, a set at a time."""
    for name in ("simulated",) if short else SETS:
        rows = []
        for pretrainings in (1, 2):
            original = TrainingMixin._twin
            twin = original if pretrainings == 2 else lambda *_: None
            with patch.object(TrainingMixin, "_twin", twin):
                fits = [fit(name, 100 * seed + number, short) for number in range(N_FITS)]
            for strength in STRENGTHS:
                every = [clusters[strength] for _, clusters, _ in fits]
                rows.append(
                    {
                        "data": name,
                        "pretrainings": pretrainings,
                        "strength": strength,
                        "seed": seed,
                        "CPU seconds": np.mean([seconds for *_, seconds in fits]),
                        **scores(fits[0][0], every),
                    }
                )
                print(rows[-1], flush=True)
        yield rows


def scores(types: NDArray, every: list[NDArray]) -> dict[str, float]:
    """Agreement of the clusters of several fits with each other, and with the types."""
    pairs = [adjusted_rand_score(*pair) for pair in combinations(every, 2)]
    return {
        "agreement": np.mean(pairs),
        "ARI": np.mean([adjusted_rand_score(types, clusters) for clusters in every]),
        "F1 rare": np.mean([tested.best_f1(types, clusters) for clusters in every]),
        "n_clusters": np.mean([len(np.unique(clusters)) for clusters in every]),
    }


TASKS = {"two_pretrainings": (compared, ["data", "pretrainings", "strength"])}

if __name__ == "__main__":
    run_tasks("two_pretrainings", __doc__.split("\n")[0], TASKS)
