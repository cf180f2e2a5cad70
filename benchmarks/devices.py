"""How much faster do two processes train one model than one, each on a thread of its own?

    OMP_NUM_THREADS=1 python benchmarks/devices.py

Cells per second of the joint stage, of 2,000 genes and 1,024 cells in the minibatch of each
process, which exchange gradients by gloo. Medians of epochs in scripts of one process and of two,
one after the other; a seed is a repeat with the same data. It needs two idle cores. ``--short``
has few cells and genes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import merge, set_threads
from speed import EpochTimer, counts_of

import scgmvae

REPEATS = 5
PER_DEVICE = 1024


def trained(n_devices: int, short: bool, out: Path) -> None:
    """Train as one of the processes; the first writes what it took."""
    set_threads(1)
    n_cells, n_genes, batch_size = (256, 100, 32) if short else (12 * PER_DEVICE, 2000, PER_DEVICE)
    adata = counts_of(n_cells, n_genes, 0.08)
    scgmvae.SCGMVAE.setup_anndata(adata)
    model = scgmvae.SCGMVAE(adata, n_components=10)
    timer = EpochTimer()
    parallel = {"devices": n_devices, "strategy": "ddp"} if n_devices > 1 else {}
    model.train(
        REPEATS + 1,
        1,
        start="kmeans",
        batch_size=batch_size,
        accelerator="cpu",
        callbacks=[timer],
        enable_progress_bar=False,
        logger=False,
        **parallel,
    )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        # the first epoch of the joint stage has the start of the mixture in it
        seconds = float(np.median(timer.seconds[-REPEATS:]))
        row = {"processes": n_devices, "cells per second": n_cells / seconds}
        out.write_text(json.dumps(row))


def measured(n_devices: int, short: bool) -> dict[str, float]:
    """Cells per second of a script of so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--devices", str(n_devices), "--out", str(out)]
        subprocess.run(command + ["--short"] * short, check=True)
        return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, help="train as one of so many processes")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(3)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    if args.devices is not None:
        trained(args.devices, args.short, args.out)
        return
    set_threads(1)
    rows = []
    for repeat in [0] if args.short else args.seeds:
        pair = [measured(n, args.short) for n in (1, 2)]
        alone = pair[0]["cells per second"]
        rows += [
            row | {"seed": repeat, "times one": row["cells per second"] / alone} for row in pair
        ]
        print(pd.DataFrame(rows[-2:]).round(2).to_string(index=False), flush=True)
    path = args.out / "devices.json"
    merge(path, rows, ["processes", "seed"], script="devices.py", short=args.short)


if __name__ == "__main__":
    main()
