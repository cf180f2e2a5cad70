"""What a training costs on paper: a step by its sizes, and an epoch by the number of cells.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --threads 1

A step of the joint stage of B cells with G genes, 8 % of whose counts are not zero, and K
components takes

    a + b B + c G + d B G + e B K   milliseconds.

The coefficients, none below 0, are fitted to measured steps by least squares of relative errors,
and checked at sizes that were not fitted. An epoch of n cells has n / B steps. Its memory is
fitted to what ``speed.py --tasks growth`` measured, without the largest number of cells, at which
it is checked with the seconds of an epoch. More cells are foretold with the minibatches that
trainings of so many have by default.

``--short`` measures steps of few genes once each.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from common import set_threads, write
from scipy.optimize import nnls
from speed import counts_of, epochs_of

import scgmvae
from scgmvae.train.recipe import COUNTS

DENSITY = 0.08
FITTED = list(product((128, 512, 1024), (500, 1000, 2000), (5, 20)))
CHECKED = [(256, 1500, 10), (128, 3000, 10), (1024, 1500, 30)]
"""Cells in a minibatch, genes, components."""
COEFFICIENTS = {
    "a": "a step",
    "b": "a cell",
    "c": "a gene",
    "d": "a cell and gene",
    "e": "a cell and component",
}
BIGGER = (1_000_000, 10_000_000, 100_000_000)
BATCH, GENES, COMPONENTS = 128, 2000, 10
"""Sizes at which epochs are foretold: those of ``speed.py --tasks growth``."""
RESULTS = Path(__file__).parent / "results"


def step_ms(batch_size: int, n_genes: int, n_components: int, short: bool) -> float:
    """Median milliseconds of a joint step."""
    n_steps = 2 if short else 20 if batch_size < 512 else 8
    adata = counts_of(n_steps * batch_size, n_genes, DENSITY)
    scgmvae.SCGMVAE.setup_anndata(adata)
    model = scgmvae.SCGMVAE(adata, n_components=n_components)
    n_epochs = 2 if short else 5
    seconds = epochs_of(
        lambda **kwargs: model.train(
            n_epochs, pretrain_epochs=1, start="kmeans", batch_size=batch_size, **kwargs
        )
    )
    # the first epoch is that of the pretraining, and the next one starts the mixture
    return 1e3 * float(np.median(seconds[2:])) / n_steps


def terms(sizes: np.ndarray) -> np.ndarray:
    """What the coefficients are multiplied by, (sizes, 5)."""
    cells, genes, components = sizes.astype(float).T
    return np.column_stack([np.ones_like(cells), cells, genes, cells * genes, cells * components])


def fitted(sizes: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """Coefficients of a step, (5,)."""
    return nnls(terms(sizes) / ms[:, None], np.ones(len(ms)))[0]


def steps(short: bool) -> tuple[np.ndarray, list[dict[str, object]]]:
    """Coefficients, and measured and foretold steps."""
    grids = ([(64, 50, 3), (128, 50, 3), (64, 100, 3), (128, 100, 6), (64, 100, 6)], [(96, 80, 4)])
    is_fitted = {True: grids[0] if short else FITTED, False: grids[1] if short else CHECKED}
    sizes = [(*size, known) for known, some in is_fitted.items() for size in some]
    ms = np.array([step_ms(*size, short) for *size, _ in sizes])
    numbers, known = np.array([size[:3] for size in sizes]), np.array([s[3] for s in sizes])
    coefficients = fitted(numbers[known], ms[known])
    foretold = terms(numbers) @ coefficients
    rows = [
        {
            "what": "step, ms",
            "sizes": f"{cells:,} cells, {genes:,} genes, {components} components",
            "used": "fitted" if is_known else "checked",
            "measured": measured,
            "foretold": value,
            "error": abs(value / measured - 1),
        }
        for (cells, genes, components, is_known), measured, value in zip(
            sizes, ms, foretold, strict=True
        )
    ]
    return coefficients, rows


def seconds_of(n: int, coefficients: np.ndarray) -> float:
    """Seconds of an epoch of n cells; of numbers that were not measured in default minibatches."""
    batch_size = COUNTS.minibatch(n) if n in BIGGER else BATCH
    ms = terms(np.array([[batch_size, GENES, COMPONENTS]])) @ coefficients
    return float(n / batch_size * ms[0] / 1e3)


def epochs(coefficients: np.ndarray) -> list[dict[str, object]]:
    """Seconds and memory of an epoch, measured and foretold, and of more cells foretold."""
    measured = pd.DataFrame(json.loads((RESULTS / "speed-growth.json").read_text())["rows"])
    rows = []
    for where, part in measured.groupby("x_in"):
        part = part.sort_values("cells")
        slope, base = np.polyfit(part["cells"][:-1], part["peak_mb"][:-1], 1)
        n_most = int(part["cells"].iloc[-1])
        for n in (*part["cells"].astype(int), *BIGGER):
            known = part[part["cells"] == n]
            for what, value, column in (
                ("epoch, s", seconds_of(n, coefficients), "s_per_epoch"),
                ("peak, MB", base + slope * n, "peak_mb"),
            ):
                true = float(known[column].iloc[0]) if len(known) else np.nan
                is_fitted = what == "peak, MB" and n < n_most
                used = "foretold" if n > n_most else "fitted" if is_fitted else "checked"
                rows.append(
                    {
                        "what": what,
                        "sizes": f"{n:,} cells, {where}",
                        "used": used,
                        "measured": true,
                        "foretold": value,
                        "error": abs(value / true - 1),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    coefficients, rows = steps(args.short)
    rows += [
        {"what": "coefficient, µs", "sizes": sizes, "used": name, "foretold": 1e3 * value}
        for (name, sizes), value in zip(COEFFICIENTS.items(), coefficients, strict=True)
    ]
    table = pd.DataFrame(rows + epochs(coefficients))
    write(args.out / "growth.json", table, script="growth.py", short=args.short)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
