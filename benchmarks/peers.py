"""Clusters by scgmvae and by existing tools, on every file of real counts, in one run.

    SCGMVAE_DATA_DIR=... python benchmarks/peers.py [--tasks pbmc4k ...] [--seeds 0 1 2 3 4]

A row is a method on a data set with a seed. *given* are methods that are told K, the number of
labels; *found* those that are not. The settings of a method are the same for all data sets, and
all see the same genes; scgmvae and SCVI are told the batches of sc_mixology and the condition of
kang, which PCA cannot make use of. SCVI trains for 100 epochs: its default of 400 for few cells
takes four times as long. It keeps a tenth of the cells for validation, its default, while scgmvae
trains on all. Labels serve the scores alone; cells whose label is ``unknown`` are
clustered but not scored.

*seconds* are those of the processor, which other work on the machine lengthens less, for the whole
way from counts to clusters, so the training of SCVI is counted in each of its rows. *peak_mb* is
the largest resident size of the process while it makes the representation or finds the clusters,
packages, data and what earlier methods left included. *smallest* is the
number of cells of the smallest type that is recovered: its best cluster has F1 ≥ 0.7 for it.

``--partitions`` names the folder that gets the clusters of every run, for ``stability.py``. With
``--short`` simulated data and two epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import tools
from anndata import AnnData
from common import load_counts, merge, peak_memory, set_threads, summarise
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.mixture import BayesianGaussianMixture

import scgmvae
from scgmvae.clustering.partition import log_normalized_pcs
from scgmvae.metrics import clustering_scores, type_recovery

SETS = ("pbmc3k", "pbmc4k", "mouse_bladder", "sc_mixology", "paul15", "kang")
RESOLUTIONS = (0.3, 0.5, 1.0)
N_PCS, N_PCS_MODEL = 50, 30
LARGEST_K = 30
UNKNOWN = "unknown"
SCVI_EPOCHS = 100


@dataclass
class Run:
    """Clusters that a method found, and what they cost."""

    method: str
    told: str
    clusters: NDArray
    seconds: float
    peak_mb: float


def timed(compute: Callable[[], object]) -> tuple[object, float, float]:
    """What a computation returns, its seconds and the process's peak memory in MB."""
    with peak_memory() as peak:
        start = time.process_time()
        result = compute()
        seconds = time.process_time() - start
    return result, seconds, peak.mb


def leiden(x: NDArray[np.floating], seed: int) -> Iterator[tuple[float, NDArray, float]]:
    """Resolution, clusters and seconds of scanpy's Leiden on its graph of 15 neighbours."""
    start = time.process_time()
    adata = AnnData(x)
    sc.pp.neighbors(adata, use_rep="X", random_state=seed)
    of_graph = time.process_time() - start
    for resolution in RESOLUTIONS:
        start = time.process_time()
        sc.tl.leiden(
            adata, resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed
        )
        seconds = of_graph + time.process_time() - start
        yield resolution, adata.obs["leiden"].to_numpy(), seconds


def on_representation(
    name: str, x: NDArray[np.floating], n_labels: int, seed: int, before: float, mb: float
) -> Iterator[Run]:
    """k-means, told K, and a Bayesian mixture, on what took ``before`` seconds to make."""
    for method, told, model in (
        ("k-means", "given", KMeans(n_labels, n_init=10, random_state=seed)),
        (
            "Bayesian mixture",
            "found",
            BayesianGaussianMixture(n_components=LARGEST_K, max_iter=300, random_state=seed),
        ),
    ):
        clusters, seconds, peak = timed(lambda model=model: model.fit_predict(x))
        yield Run(f"{name} + {method}", told, clusters, before + seconds, max(mb, peak))


def compile_graphs() -> None:
    """Let numba compile what graphs need, which no method should be charged for."""
    for n_cells in (300, 5000):  # exact and approximate neighbours
        noise = np.random.default_rng(0).standard_normal((n_cells, 5)).astype(np.float32)
        sc.pp.neighbors(AnnData(noise), use_rep="X")


def by_pca(adata: AnnData, n_labels: int, seed: int) -> Iterator[Run]:
    pcs, before, mb = timed(lambda: log_normalized_pcs(adata.X, N_PCS, seed))
    for resolution, clusters, seconds in leiden(pcs, seed):
        yield Run(f"PCA + Leiden {resolution}", "found", clusters, before + seconds, mb)
    few = pcs[:, :N_PCS_MODEL]
    yield from on_representation("PCA", few, n_labels, seed, before, mb)


def by_scvi(
    adata: AnnData, n_labels: int, seed: int, batch_key: str | None, max_epochs: int
) -> Iterator[Run]:
    def fit() -> NDArray[np.floating]:
        model = tools.scvi_latent(adata, seed, batch_key, max_epochs=max_epochs)
        return model.get_latent_representation()

    latent, before, mb = timed(fit)
    for resolution, clusters, seconds in leiden(latent, seed):
        yield Run(f"SCVI + Leiden {resolution}", "found", clusters, before + seconds, mb)
    yield from on_representation("SCVI", latent, n_labels, seed, before, mb)


def by_scgmvae(
    adata: AnnData, n_labels: int, seed: int, batch_key: str | None, max_epochs: int | None
) -> Iterator[Run]:
    epochs = {} if max_epochs is None else dict.fromkeys(("max_epochs", "pretrain_epochs"), 2)
    for told, n_components in (("given", n_labels), ("found", None)):

        def fit(n_components: int | None = n_components) -> NDArray:
            data = adata.copy()
            scgmvae.SCGMVAE.setup_anndata(data, batch_key=batch_key)
            model = scgmvae.SCGMVAE(data, n_components=n_components)
            model.train(seed=seed, enable_progress_bar=False, **epochs)
            return data.obs["scgmvae"].to_numpy()

        yield Run("scgmvae", told, *timed(fit))


def rows(
    name: str, seed: int, only: str | None, short: bool, folder: Path | None
) -> Iterator[dict[str, object]]:
    """The rows of a data set and seed, one by one; partitions are written beside."""
    adata, batch_key = load_counts("simulated" if short else name)
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    is_known = labels != UNKNOWN
    n_labels = len(np.unique(labels[is_known]))
    model_args = (adata, n_labels, seed, batch_key)
    sources = {
        "PCA": lambda: by_pca(adata, n_labels, seed),
        "SCVI": lambda: by_scvi(*model_args, 2 if short else SCVI_EPOCHS),
        "scgmvae": lambda: by_scgmvae(*model_args, 2 if short else None),
    }
    for source, runs in sources.items():
        if only not in (None, source):
            continue
        for run in runs():
            known = labels[is_known], run.clusters[is_known]
            types = type_recovery(*known)
            recovered = types[types["F1"] >= 0.7]
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                codes = pd.factorize(run.clusters)[0].astype(np.int16)
                np.save(folder / f"{name}~{run.method}~{run.told}~{seed}.npy", codes)
            yield {
                "method": run.method,
                "K": run.told,
                "seed": seed,
                **clustering_scores(*known),
                "n_labels": n_labels,
                "smallest": int(recovered["n_cells"].min()) if len(recovered) else None,
                "n_recovered": len(recovered),
                "seconds": run.seconds,
                "peak_mb": run.peak_mb,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--only", choices=("PCA", "SCVI", "scgmvae"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--partitions", type=Path)
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    compile_graphs()
    for name in ["simulated"] if args.short else args.tasks:
        path = args.out / f"peers-{name}.json"
        for seed in [0] if args.short else args.seeds:
            found = rows(name, seed, args.only, args.short, args.partitions)
            keys, notes = ["method", "K", "seed"], {"script": "peers.py", "short": args.short}
            for row in found:
                table = merge(path, [row], keys, **notes)
                print(name, pd.DataFrame([row]).round(3).to_string(header=False), flush=True)
        print(name)
        print(summarise(table.drop(columns="n_labels"), ["method", "K"]).to_string())


if __name__ == "__main__":
    main()
