"""Which splits are told to repeat from type to type, where donors are not told?

    python benchmarks/studies/repeated_splits.py

Five types in six donors. The true groups are given, so that the rule alone is measured: which of
the splits between donors it finds, and which of those between types it takes for such. Part of a
donor's effect can be another one in every type (*own*), cells can be few and shallow, the effect
small, large, or in few genes. A type can come from some donors more than from others, and have
doublets with another type, which are then divided from it first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scgmvae.clustering.group_sums import GroupSums
from scgmvae.clustering.repeated import repeated_splits

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import summarise, write

N_TYPES, N_DONORS = 5, 6
DESIGNS: dict[str, dict[str, float]] = {
    "3,000 cells, 500 genes, depth 3,000": {},
    "30 % of the effect own to a type": {"own": 0.3},
    "50 % of the effect own to a type": {"own": 0.5},
    "70 % of the effect own to a type": {"own": 0.7},
    "all of the effect own to a type": {"own": 1.0},
    "no effect": {"scale": 0.0},
    "half the effect": {"scale": 0.1},
    "three times the effect, as large as that of types": {"scale": 0.6},
    "effect in 2 % of the genes": {"affected": 0.02},
    "shares of the donors vary between types": {"evenness": 3},
    "no effect, 2 % doublets": {"scale": 0.0, "doublets": 0.02},
    "2 % doublets": {"doublets": 0.02},
    "5 % doublets": {"doublets": 0.05},
    "2,000 genes, depth 500": {"n_genes": 2000, "depth": 500},
    "1,000 cells, 2,000 genes, depth 1,000": {"n": 1000, "n_genes": 2000, "depth": 1000},
}


def group_sums(
    seed: int,
    own: float = 0.0,
    scale: float = 0.2,
    affected: float = 1.0,
    n: int = 3000,
    n_genes: int = 500,
    depth: float = 3000,
    evenness: float = np.inf,
    doublets: float = 0.0,
) -> GroupSums:
    """Sums of log-normalised counts over the cells of each type and donor."""
    rng = np.random.default_rng(seed)
    types, donor = rng.integers(N_TYPES, size=n), rng.integers(N_DONORS, size=n)
    if np.isfinite(evenness):
        shares = rng.dirichlet(np.full(N_DONORS, evenness), N_TYPES)
        donor = (shares.cumsum(1)[types] < rng.random((n, 1))).sum(1).clip(max=N_DONORS - 1)

    def effects(*size: int) -> NDArray[np.float64]:
        hit = rng.random(n_genes) < affected
        return hit * rng.normal(0, scale / np.sqrt(affected), (*size, n_genes))

    of_donor = np.sqrt(1 - own) * effects(N_DONORS) + np.sqrt(own) * effects(N_TYPES, N_DONORS)
    of_type = rng.normal(0, 0.6, (N_TYPES, n_genes))
    base = rng.normal(0, 1, n_genes)
    share = np.exp(base + of_type[types] + of_donor[types, donor])
    if doublets:  # the first group of a type in place of its first donor
        is_double = rng.random(n) < doublets
        share[is_double] += np.exp(base + of_type[(types[is_double] + 1) % N_TYPES])
        donor = np.where(is_double, 0, 1 + donor % (N_DONORS - 1))
    depths = np.exp(rng.normal(np.log(depth), 0.3, n))
    x = rng.poisson(rng.gamma(5, share / share.sum(1, keepdims=True) * depths[:, None] / 5))
    x = np.log1p(x / np.maximum(x.sum(1, keepdims=True), 1) * 1e4)
    member = np.eye(N_TYPES * N_DONORS)[types * N_DONORS + donor]
    return GroupSums(member.T @ x, member.T @ x**2, member.sum(0).astype(np.int64))


def splits(doublets: bool = False) -> tuple[list, NDArray[np.bool_]]:
    """The splits of a tree that has types above donors, and which of them are between donors.

    With doublets these are divided from every type first, by splits that are left out of both.
    """
    leaves = np.arange(N_TYPES * N_DONORS).reshape(N_TYPES, N_DONORS)
    by_type = [
        (leaves[:2].ravel(), leaves[2:].ravel()),
        (leaves[0], leaves[1]),
        (leaves[2], leaves[3:].ravel()),
        (leaves[3], leaves[4]),
    ]
    # another order in every type, as a tree has it
    turned = [np.roll(own, shift) for shift, own in enumerate(leaves)]
    by_donor = [(own[:2], own[2:]) for own in turned]
    if doublets:
        by_donor = [(own[1:3], own[3:]) for own in leaves]
        by_donor += [(own[:1], own[1:]) for own in leaves]
    return by_type + by_donor, np.repeat([False, True], [len(by_type), len(by_donor)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--short", action="store_true", help="one seed of the first two kinds")
    args = parser.parse_args()
    rows = []
    for name, design in list(DESIGNS.items())[: 2 if args.short else None]:
        sides, is_by_donor = splits("doublets" in design)
        for seed in args.seeds[:1] if args.short else args.seeds:
            found = repeated_splits(sides, group_sums(seed, **design))
            rows.append(
                {
                    "design": name,
                    "seed": seed,
                    "between donors": float(found[is_by_donor][:N_TYPES].mean()),
                    "between types": float(found[~is_by_donor].mean()),
                }
            )
    table = pd.DataFrame(rows)
    print(summarise(table, ["design"], 2).to_string())
    write(args.out / "repeated_splits.json", table, script="repeated_splits.py", short=args.short)


if __name__ == "__main__":
    main()
