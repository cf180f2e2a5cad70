"""How should the weights of conditions start, so that a batch that is none changes little?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/condition_start.py [--tasks null embeddings]

null        Half of the cells at random are said to be another batch. *kept* is the share of the
            30 nearest neighbours that a training of the same seed without this batch has as well;
            *ARI of clusters* is the agreement of the clusters of both.
embeddings  The scores of ``embedding.py`` on sets with batches: does z lose them as well?

``--short`` runs few epochs on simulated cells.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partialmethod
from pathlib import Path
from unittest.mock import patch

import numpy as np
from sklearn.metrics import adjusted_rand_score
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import run_tasks
from embedding import NULL, by_scgmvae, in_halves, labelled
from embedding_scores import neighbors_kept, scores_of

from scgmvae.nn.layers import ConditionedLinear, ConditionSizes

WITH_BATCHES = ("sc_mixology", "baron_mouse", "kang", "partly shared", "rare in one")
STARTS = ("apart", "among the others", "0")
"""Weights of conditions are drawn at random from numbers of their own (the default), from those
that all weights are drawn from, or not at all."""
START_APART = ConditionedLinear.__init__


def start_as(
    layer: ConditionedLinear, n_in: int, n_out: int, sizes: ConditionSizes, *, start: str
) -> None:
    """Make a layer whose weights of conditions start as the name says."""
    START_APART(layer, n_in, n_out, sizes)
    of_conditions = [*layer.offsets.values(), *([] if layer.slopes is None else [layer.slopes])]
    bound = 1 / math.sqrt(max(1, n_in + sum(len(weights) for weights in of_conditions)))
    for weights in of_conditions:
        if start == "0" and n_in:
            nn.init.zeros_(weights)
        else:
            nn.init.uniform_(weights, -bound, bound)


def starting(start: str) -> AbstractContextManager[object]:
    """The block in which the weights of conditions start so."""
    if start == "apart":
        return nullcontext()
    return patch.object(ConditionedLinear, "__init__", partialmethod(start_as, start=start))


def null(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """A row for every set and start, a set at a time."""
    for name in ("simulated",) if short else NULL:
        adata, _ = labelled(name, seed)
        z, clusters = by_scgmvae(adata.copy(), None, seed, short)
        rows = []
        for start in STARTS:
            with starting(start):
                of_two, in_two = by_scgmvae(in_halves(adata, seed), "half", seed, short)
            rows.append(
                {
                    "data": name,
                    "start": start,
                    "seed": seed,
                    "kept": neighbors_kept(z, of_two),
                    "ARI of clusters": adjusted_rand_score(clusters, in_two),
                }
            )
        yield rows


def embeddings(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """A row for every set and start, a set at a time."""
    for name in ("simulated",) if short else WITH_BATCHES:
        adata, batch_key = labelled(name, seed)
        types = adata.obs["cell_type"].astype(str).to_numpy()
        batches = None if batch_key is None else adata.obs[batch_key].astype(str).to_numpy()
        rows = []
        for start in STARTS:
            with starting(start):
                z, own = by_scgmvae(adata.copy(), batch_key, seed, short)
            rows.append(
                {
                    "data": name,
                    "start": start,
                    "seed": seed,
                    **scores_of(z, types, batches, seed),
                    "own ARI": adjusted_rand_score(types, own),
                    "own clusters": len(np.unique(own)),
                }
            )
        yield rows


if __name__ == "__main__":
    by = ["data", "start"]
    tasks = {"null": (null, by), "embeddings": (embeddings, by)}
    run_tasks("condition_start", __doc__.split("\n")[0], tasks)
