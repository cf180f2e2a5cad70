"""Which partition should a mixture of images start from? No mixture is trained here.

    SCGMVAE_DATA_DIR=... python benchmarks/studies/image_start.py [--tasks fashion] [--seeds 0 1 2]

Leiden groups of a VAE's latent, after two iterations or when they are stable, merged to K = 10 at
three resolutions, from four runs each: how well they agree with the classes of the training images
(ACC, one to one), their modularity, by which they could be told apart without labels, the entropy
of their sizes over log K, which is 1 for equal ones, and the seconds that Leiden took. A seed is
one of the VAE's.

*fashion, mnist*: all training images. *mnist-uneven*: of the digits all, 77 %, 60 % ... 10 %, in
an order that the seed draws.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import igraph as ig
import numpy as np
from anndata import AnnData
from scipy import stats

import scgmvae
from scgmvae.clustering import partition
from scgmvae.metrics import clustering_scores
from scgmvae.module.cgmvae import INPUT_DROPOUT_RATE
from scgmvae.train.recipe import IMAGES

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import run_tasks
from images import FAST, LABEL, load

RESOLUTIONS = (0.4, 0.7, 1.0)
N_RUNS = 4
K = 10


def pretrained(train: AnnData, seed: int, short: bool) -> scgmvae.SCGMVAE:
    """What pretraining makes of images, but for w."""
    model = scgmvae.SCGMVAE(train, prior="normal", input_dropout_rate=INPUT_DROPOUT_RATE)
    n_epochs = 2 if short else IMAGES.pretraining.epochs(train.n_obs)
    plan_kwargs = {
        "max_kl_weight": IMAGES.plan["pretrain_kl_weight"],
        "n_epochs_kl_warmup": max(1, round(n_epochs / 3)),
    }
    model.train(n_epochs, seed=seed, plan_kwargs=plan_kwargs, **FAST)
    return model


def starts(
    seed: int, short: bool, *, name: str, is_uneven: bool = False
) -> list[dict[str, object]]:
    train, _ = load(name, short)
    if is_uneven:
        rng = np.random.default_rng(seed)
        codes = train.obs[LABEL].astype("category").cat.codes.to_numpy()
        share = rng.permutation(np.geomspace(1, 0.1, codes.max() + 1))[codes]
        train = train[rng.random(train.n_obs) < share].copy()
    model = pretrained(train, seed, short)
    graph = partition.neighbor_graph(model.get_latent_representation(), seed)
    as_igraph = ig.Graph.Weighted_Adjacency(graph, mode="max", loops=False)
    rows = []
    for run, is_stable in product(range(N_RUNS), (False, True)):
        start = time.perf_counter()
        groups = partition.leiden(graph, partition.RESOLUTION_FOR_K, run, until_stable=is_stable)
        seconds = time.perf_counter() - start
        for resolution in RESOLUTIONS:
            codes = partition.merge_groups(graph, groups, K, resolution)
            rows.append(
                {
                    "leiden": "stable" if is_stable else "two iterations",
                    "resolution": resolution,
                    "seed": seed,
                    "run": run,
                    "ACC": clustering_scores(train.obs[LABEL], codes)["ACC"],
                    "modularity": as_igraph.modularity(codes, weights="weight"),
                    "evenness": stats.entropy(np.bincount(codes)) / np.log(K),
                    "seconds": seconds,
                }
            )
    return rows


TASKS = {
    "fashion": partial(starts, name="fashion_mnist"),
    "mnist": partial(starts, name="mnist"),
    "mnist-uneven": partial(starts, name="mnist", is_uneven=True),
}

if __name__ == "__main__":
    tasks = {task: (run, ["leiden", "resolution"]) for task, run in TASKS.items()}
    run_tasks("image_start", __doc__.splitlines()[0], tasks)
