"""Which partition should the mixture start from? No model is trained here.

    SCGMVAE_DATA_DIR=... python benchmarks/studies/start.py

On principal components of log-normalised counts: k-means, a diagonal Gaussian mixture and Leiden
at a resolution searched to give K groups, beside Leiden at one resolution whose groups are merged
and split on the graph until there are K (``scgmvae.clustering.partition``), and Leiden alone,
which finds K. The resolutions were chosen on these same data sets, so read the differences within
a group of rows with care; what carries over is the distance between the groups.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from scgmvae.clustering import partition
from scgmvae.metrics import clustering_scores

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import load_counts, summarise, write

SETS = ("pbmc3k", "pbmc4k", "mouse_bladder", "paul15")
FOR_K = (0.5, 0.7, 1.0)
TO_FIND_K = (0.3, 0.5, 1.0)


def leiden_for_k(graph: sparse.csr_matrix, n_groups: int, seed: int) -> np.ndarray:
    """Leiden at a resolution found by bisection; the last partition where none has K groups."""
    low, high = 0.01, 8.0
    for _ in range(15):
        resolution = float(np.sqrt(low * high))
        codes = partition.leiden(graph, resolution, seed)
        n_found = codes.max() + 1
        if n_found == n_groups:
            break
        low, high = (resolution, high) if n_found < n_groups else (low, resolution)
    return codes


def partitions(name: str, seed: int) -> list[dict[str, object]]:
    adata, _ = load_counts(name)
    labels = adata.obs["cell_type"]
    n_groups = labels.nunique()
    pcs = partition.log_normalized_pcs(adata.X, seed=seed)
    graph = partition.neighbor_graph(pcs, seed)
    found = {
        f"{method}, K": partition.initial_partition(pcs, n_groups, method, seed)
        for method in ("kmeans", "gmm")
    }
    found["leiden searched for K"] = leiden_for_k(graph, n_groups, seed)
    for resolution in FOR_K:
        codes = partition.leiden(graph, resolution, seed)
        codes = partition.merge_groups(graph, codes, n_groups)
        codes = partition.split_groups(graph, codes, n_groups, seed)
        found[f"leiden {resolution}, to K"] = codes
        found[f"leiden {resolution}, to K, nearest mean"] = partition.nearest_mean(pcs, codes)
    for resolution in TO_FIND_K:
        found[f"leiden {resolution}"] = partition.leiden(graph, resolution, seed)
    return [
        {"data": name, "start": start, "seed": seed, **clustering_scores(labels, codes)}
        for start, codes in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--short", action="store_true", help="one seed of simulated data")
    args = parser.parse_args()
    sets, seeds = (["simulated"], [0]) if args.short else (SETS, args.seeds)
    rows = pd.DataFrame([row for name in sets for seed in seeds for row in partitions(name, seed)])
    table = summarise(rows, ["start", "data"])[["ARI", "ACC"]].unstack("data")
    table["mean ARI"] = rows.groupby("start")["ARI"].mean().round(3)
    print(table.to_string())
    write(args.out / "start.json", rows, script="start.py", short=args.short)


if __name__ == "__main__":
    main()
