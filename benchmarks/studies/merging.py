"""How many clusters? Starts of different fineness, and merging by different criteria.

    SCGMVAE_DATA_DIR=... python benchmarks/studies/merging.py [--tasks pbmc4k ...] [--seeds 0 1]

Every model starts from Leiden groups at the given resolution, 0.5 being the default, and is
trained with default settings. Then its components are merged from the same posteriors by each
criterion: until it stops by itself (its default threshold, or the elbow of the entropy), and to
the true K. A row gives the agreement with the labels, the number of clusters, and, in seconds of
the processor, what merging took beside training. The default criterion and its threshold were
chosen on these data sets and on weak simulated data (``simulated``), so the differences between
the criteria are what counts.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

import scgmvae
from scgmvae.clustering import partition

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import load_counts, run_tasks

SETS = ("pbmc3k", "pbmc4k", "mouse_bladder", "sc_mixology", "paul15", "simulated")
RESOLUTIONS = (0.5, 1.0, 2.0)
CRITERIA = ("overlap", "entropy", "elbo")


def load(name: str, seed: int, short: bool) -> tuple[AnnData, str | None]:
    if short or name != "simulated":
        return load_counts("simulated" if short else name)
    adata = scgmvae.datasets.synthetic_counts(2000, 60, n_components=8, seed=seed)
    adata.obs["cell_type"] = adata.obs["component"]
    return adata, None


def fit(name: str, resolution: float, seed: int, short: bool) -> tuple[scgmvae.SCGMVAE, float]:
    """A model that starts from Leiden groups at a resolution, and the seconds of its training."""
    adata, batch_key = load(name, seed, short)
    scgmvae.SCGMVAE.setup_anndata(adata, batch_key=batch_key)
    model = scgmvae.SCGMVAE(adata)
    default, partition.RESOLUTION = partition.RESOLUTION, resolution
    start = time.process_time()
    try:
        model.train(seed=seed, enable_progress_bar=False, **({"max_epochs": 2} if short else {}))
    finally:
        partition.RESOLUTION = default
    return model, time.process_time() - start


def merged(seed: int, short: bool, *, name: str) -> list[dict[str, object]]:
    rows = []
    for resolution in RESOLUTIONS[:1] if short else RESOLUTIONS:
        model, training = fit(name, resolution, seed, short)
        labels = model.adata.obs["cell_type"].to_numpy()
        n_labels, n_components = len(np.unique(labels)), model.n_components_
        merges = [("none", "none", {"n": n_components})]
        for criterion in CRITERIA:
            merges.append((criterion, "by itself", {"method": criterion}))
            if n_labels < n_components:
                merges.append((criterion, "at K", {"method": criterion, "n": n_labels}))
        for criterion, stop, settings in merges:
            start = time.process_time()
            model.merge_components(**settings)
            seconds = time.process_time() - start
            clusters = model.adata.obs["scgmvae"]
            rows.append(
                {
                    "criterion": criterion,
                    "stop": stop,
                    "resolution": resolution,
                    "seed": seed,
                    "n_labels": n_labels,
                    "n_components": n_components,
                    "n_clusters": clusters.nunique(),
                    "ARI": adjusted_rand_score(labels, clusters),
                    "seconds": seconds,
                    "seconds_training": training,
                }
            )
    return rows


if __name__ == "__main__":
    keys = ["criterion", "stop", "resolution"]
    tasks = {name: (partial(merged, name=name), keys) for name in SETS}
    run_tasks("merging", __doc__.splitlines()[0], tasks)
