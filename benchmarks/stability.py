"""Do other seeds find the same clusters? Mean adjusted Rand index between the seeds' partitions.

    SCGMVAE_DATA_DIR=... python benchmarks/peers.py --partitions DIR
    python benchmarks/stability.py DIR

reads the clusters that ``peers.py`` wrote. 1 where all seeds agree; the labels play no part. Rows
of methods that are not in DIR stay as they were.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from common import merge
from sklearn.metrics import adjusted_rand_score


def agreement(folder: Path) -> pd.DataFrame:
    """Mean agreement of each two seeds, a row per data set and method."""
    partitions = defaultdict(list)
    for path in sorted(folder.glob("*.npy")):
        data, method, told, _ = path.stem.split("~")
        partitions[data, method, told].append(np.load(path))
    rows = []
    for (data, method, told), found in partitions.items():
        scores = [adjusted_rand_score(a, b) for a, b in combinations(found, 2)]
        mean = float(np.mean(scores)) if scores else None
        row = {"data": data, "method": method, "K": told, "n_seeds": len(found), "ARI": mean}
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    table = agreement(args.folder)
    if table.empty:
        parser.error(f"{args.folder} holds no partitions; peers.py --partitions writes them.")
    keys = ["data", "method", "K"]
    rows = table.to_dict("records")
    table = merge(args.out / "stability.json", rows, keys, script="stability.py")
    table["method"] += " (" + table["K"] + ")"
    wide = table.pivot(index="method", columns="data", values="ARI")
    print(wide.assign(mean=wide.mean(axis=1)).round(3).to_string())


if __name__ == "__main__":
    main()
