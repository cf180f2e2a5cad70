"""What labels cost in training, and how fast new cells are labelled.

    python benchmarks/cost.py [--threads 2]

Seconds per epoch of the joint stage with labels on 5 % of the cells (which are oversampled)
against none, in one run, and the whole of ``predict`` on cells that the model has not seen:
checks, encoder, classifier. Simulated counts, 2,000 genes. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import set_threads, write

import scgmvae


def timed_training(n_cells: int, n_genes: int, epochs: int) -> list[dict[str, object]]:
    """Median seconds per epoch with and without labels, in alternation."""
    truth = scgmvae.datasets.synthetic_counts(n_cells, n_genes, n_components=8, seed=0)
    is_labelled = np.random.default_rng(0).random(n_cells) < 0.05
    models = {}
    for name in ("unsupervised", "semi-supervised"):
        adata = truth.copy()
        setup = {}
        if name == "semi-supervised":
            labels = adata.obs["component"].astype(str)
            adata.obs["label"] = labels.where(is_labelled, "unknown")
            setup = {"labels_key": "label"}
        scgmvae.SCGMVAE.setup_anndata(adata, **setup)
        models[name] = scgmvae.SCGMVAE(adata, n_components=8)
        models[name].train(1, 1, enable_progress_bar=False)
    seconds = {name: [] for name in models}
    for _ in range(5):
        for name, model in models.items():
            start = time.perf_counter()
            model.train(epochs, enable_progress_bar=False)
            seconds[name].append((time.perf_counter() - start) / epochs)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    ratio = medians["semi-supervised"] / medians["unsupervised"]
    return [
        {"what": f"epoch, {name}", "cells": n_cells, "seconds": value, "ratio": ratio}
        for name, value in medians.items()
    ]


def timed_prediction(n_cells: int, n_genes: int) -> dict[str, object]:
    adata = scgmvae.datasets.synthetic_counts(1000, n_genes, n_components=8, seed=0)
    model = scgmvae.SCGMVAE(adata, n_components=8)
    model.train(2, 2, enable_progress_bar=False)
    new = scgmvae.datasets.synthetic_counts(n_cells, n_genes, n_components=8, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    model.predict(new)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"what": "predict", "cells": n_cells, "seconds": seconds, "peak_grown_mb": grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    n_train, n_new, n_genes, epochs = (
        (400, 1000, 100, 1) if args.short else (4000, 100_000, 2000, 3)
    )
    rows = [*timed_training(n_train, n_genes, epochs), timed_prediction(n_new, n_genes)]
    table = pd.DataFrame(rows)
    write(args.out / "cost.json", table, script="cost.py", short=args.short)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
