"""How large may minibatches be where there are many cells?

    python benchmarks/studies/batch_size.py [--cells 50000] [--seeds 0 1]

Simulated cells of 20 types in five lineages and five batches, 1,000 genes (``simulators.py``).
Every run sees each cell as often, so a minibatch of four times the size takes a quarter of the
steps. *ARI* compares the clusters, whose number is found, with the types; *elbo* is the mean bound
of 2,000 cells that were held out, nats for each cell; *minutes* are processor time of the
training. Of 50,000 cells the default has minibatches of 256, of 100,000 of 512.

``--short`` has 600 cells and few epochs.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

import scgmvae

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import merge, set_threads, threads_kept
from simulators import BATCH_SD, N_GENES, drawn, log_profiles

SETTINGS = {
    "128": {"batch_size": 128},
    "256, lr 1.4e-3": {"batch_size": 256, "plan_kwargs": {"lr": 1.4e-3}},
    "512, lr 2e-3": {"batch_size": 512, "plan_kwargs": {"lr": 2e-3}},
    "1024, lr 2e-3": {"batch_size": 1024, "plan_kwargs": {"lr": 2e-3}},
}
"""Cells in a minibatch, and the step length of Adam where it is not 1e-3."""

LINEAGES = (4, 4, 4, 4, 4)
DEPTHS = (2000, 3000, 1500, 5000, 2500)
"""Types of each lineage, and median counts of the cells of each batch."""


def cells(n_cells: int, seed: int) -> AnnData:
    """Cells of all types in all batches, about as many of each."""
    rng = np.random.default_rng(seed)
    profiles = log_profiles(rng, LINEAGES)
    effects = rng.normal(0, BATCH_SD, (len(DEPTHS), N_GENES))
    n_each = rng.multinomial(n_cells, np.full(len(DEPTHS) * len(profiles), 1 / 100))
    return drawn(rng, profiles, n_each.reshape(len(DEPTHS), -1), effects, np.array(DEPTHS))


def run(train: AnnData, test: AnnData, setting: str, seed: int, short: bool) -> dict[str, object]:
    """A training of the default length."""
    scgmvae.SCGMVAE.setup_anndata(train, batch_key="batch")
    model = scgmvae.SCGMVAE(train)
    lengths = {"max_epochs": 2, "pretrain_epochs": 2} if short else {}
    start = time.process_time()
    with threads_kept():
        model.train(seed=seed, enable_progress_bar=False, **SETTINGS[setting] | lengths)
    minutes = (time.process_time() - start) / 60
    return {
        "cells": train.n_obs,
        "minibatch": setting,
        "seed": seed,
        "ARI": float(adjusted_rand_score(train.obs["cell_type"], model.predict())),
        "n_clusters": len(model.cluster_names),
        "elbo": float(model.get_elbo(test)),
        "minutes": minutes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    n_cells = 600 if args.short else args.cells
    keys = ["cells", "minibatch", "seed"]
    for seed in args.seeds:
        adata = cells(n_cells + (100 if args.short else 2000), seed)
        train, test = adata[:n_cells].copy(), adata[n_cells:].copy()
        for setting in args.settings:
            row = run(train.copy(), test.copy(), setting, seed, args.short)
            table = merge(
                args.out / "batch_size.json", [row], keys, script="batch_size.py", short=args.short
            )
            print(pd.DataFrame([row]).round(4).to_string(index=False), flush=True)
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
