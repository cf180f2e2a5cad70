"""How many neighbours and components does the start need where there are few cells?

    python benchmarks/studies/small_data.py

Types of 8 to 40 cells each, 20 to 150 cells in all, are drawn from simulated counts, and the
starting partition is compared with them. Populations of one type count as well: with few
neighbours or few components they fall apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

from scgmvae.clustering import partition
from scgmvae.datasets import synthetic_counts

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write

DESIGNS = {
    "one type": [[20], [30], [40], [100], [150]],
    "types of 8": [[8] * 3, [8] * 4, [8] * 6, [8] * 12],
    "types of 10 to 12": [[10] * 2, [12] * 2, [10] * 3, [10] * 4, [12] * 12],
    "types of 20 and more": [[20] * 2, [20] * 4, [25] * 4],
    "uneven types": [[12, 8], [60, 8], [30, 20, 10, 8], [80, 10, 10], [90, 10]],
}
VARIANTS = {
    "30 neighbours, 30 PCs": (1.0, 30),
    "n/5 neighbours, 30 PCs": (0.2, 30),
    "n/5 neighbours, 15 PCs": (0.2, 15),
    "n/5 neighbours, 10 PCs": (0.2, 10),
    "n/8 neighbours, 15 PCs": (0.125, 15),
}
"""Name of a variant → largest share of the cells that are neighbours, and fewest components."""


def agreement(sizes: list[int], share: float, fewest_pcs: int, seed: int) -> float:
    """ARI of the starting partition with types of given sizes."""
    adata = synthetic_counts(
        max(3000, 60 * max(sizes)), 500, n_components=len(sizes), component_scale=2.0, seed=seed
    )
    types, rng = adata.obs["component"].cat.codes.to_numpy(), np.random.default_rng(seed)
    rows = [
        rng.choice(np.flatnonzero(types == k), size, replace=False) for k, size in enumerate(sizes)
    ]
    rows = np.concatenate(rows)
    with (
        patch.object(partition, "LARGEST_SHARE_OF_NEIGHBORS", share),
        patch.object(partition, "FEWEST_PCS", fewest_pcs),
    ):
        pcs = partition.log_normalized_pcs(adata.X[rows], seed=seed)
        codes = partition.initial_partition(pcs, seed=seed)
    return float(adjusted_rand_score(types[rows], codes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--short", action="store_true", help="one seed of the first kind")
    args = parser.parse_args()
    kinds = ["one type"] if args.short else list(DESIGNS)
    rows = pd.DataFrame(
        [
            {
                "start": name,
                "cells": kind,
                "sizes": "+".join(map(str, sizes)),
                "seed": seed,
                "ARI": agreement(sizes, *variant, seed),
            }
            for name, variant in VARIANTS.items()
            for kind in kinds
            for sizes in DESIGNS[kind]
            for seed in (args.seeds[:1] if args.short else args.seeds)
        ]
    )
    table = rows.pivot_table("ARI", "start", "cells", sort=False)
    table["all"] = rows.groupby("start")["ARI"].mean()
    print(table.round(3).to_string())
    write(args.out / "small_data.json", rows, script="small_data.py", short=args.short)


if __name__ == "__main__":
    main()
