"""How large may minibatches be where there are many cells?

    python benchmarks/studies/batch_size.py [--cells 100000]

Simulated cells of 20 types in five batches, 1,000 genes. Every run sees each cell as often, so a
minibatch of eight times the size takes an eighth of the steps. Agreement of the clusters, whose
number is found, with the types; the bound of the last epoch; seconds of the training.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
from sklearn.metrics import adjusted_rand_score

import scgmvae

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import merge, set_threads, threads_kept

SETTINGS = ((128, 1e-3), (512, 1e-3), (512, 2e-3), (1024, 2e-3), (1024, 3e-3))
"""Cells in a minibatch, and the step length of Adam."""


def run(n_cells: int, batch_size: int, lr: float, seed: int, short: bool) -> dict[str, object]:
    """A training of the default length."""
    adata = scgmvae.datasets.synthetic_counts(
        n_cells, 60 if short else 1000, n_components=20, n_batches=5, seed=seed
    )
    scgmvae.SCGMVAE.setup_anndata(adata, batch_key="batch")
    model = scgmvae.SCGMVAE(adata)
    lengths = {"max_epochs": 2, "pretrain_epochs": 2} if short else {}
    start = time.perf_counter()
    with threads_kept():
        model.train(
            batch_size=batch_size,
            plan_kwargs={"lr": lr},
            seed=seed,
            enable_progress_bar=False,
            **lengths,
        )
    return {
        "cells": n_cells,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "ARI": float(adjusted_rand_score(adata.obs["component"], model.predict())),
        "n_clusters": len(model.cluster_names),
        "elbo": -float(model.history["elbo_train"].iloc[-1, 0]),
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads)
    n_cells = 600 if args.short else args.cells
    keys = ["cells", "batch_size", "lr", "seed"]
    for seed in args.seeds:
        for batch_size, lr in SETTINGS:
            row = run(n_cells, batch_size, lr, seed, args.short)
            table = merge(
                args.out / "batch_size.json", [row], keys, script="batch_size.py", short=args.short
            )
            print(pd.DataFrame([row]).round(4).to_string(index=False), flush=True)
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
