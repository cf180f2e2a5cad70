"""What every benchmark shares: threads, machine and versions, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from anndata import AnnData

import scgmvae

PACKAGES = ("scvi-tools", "torch", "scanpy", "anndata", "scikit-learn", "numpy")


def set_threads(n_threads: int, short: bool = False) -> None:
    """Use a fixed number of threads in torch; set OMP_NUM_THREADS for all else before starting.

    Short forms use one, because they run side by side, where two threads wait for one another.
    """
    torch.set_num_threads(1 if short else n_threads)


@contextmanager
def threads_kept() -> Iterator[None]:
    """Restore torch's number of threads: scanpy and scikit-learn hand back all cores."""
    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def machine() -> dict[str, object]:
    """What the figures depend on beside the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "versions": {"scgmvae": scgmvae.__version__} | {name: version(name) for name in PACKAGES},
    }


BATCH_KEYS = {"sc_mixology": "batch", "kang": "condition"}
N_GENES = 2000
"""Genes that are kept of data with many more."""


@threads_kept()
def load_counts(name: str) -> tuple[AnnData, str | None]:
    """Raw counts of a data set, with ``cell_type`` in obs, and its batch column, if any."""
    if name == "simulated":
        adata = scgmvae.datasets.synthetic_counts(300, 60, n_components=3, seed=0)
        adata.obs["cell_type"] = adata.obs["component"]
        return adata, None
    adata = scgmvae.datasets.load(name)
    if adata.n_vars > 1.25 * N_GENES:
        sc.pp.highly_variable_genes(adata, n_top_genes=N_GENES, flavor="seurat_v3", subset=True)
    return adata, BATCH_KEYS.get(name)


@contextmanager
def peak_memory() -> Iterator[SimpleNamespace]:
    """The largest resident size of the process in the block, as ``mb`` once it has ended.

    Linux alone keeps a peak that can be reset; elsewhere it is NaN.
    """
    peak, status = SimpleNamespace(mb=np.nan), Path("/proc/self/status")
    if status.exists():
        Path("/proc/self/clear_refs").write_text("5")
    yield peak
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        peak.mb = int(line.split()[1]) / 1024


def summarise(rows: pd.DataFrame, by: Iterable[str], digits: int = 3) -> pd.DataFrame:
    """Mean ± sd over seeds of every numeric column, one line per group."""

    def mean_sd(values: pd.Series) -> str:
        values = values.dropna()
        if values.empty:
            return ""
        sd = np.std(values, ddof=1) if len(values) > 1 else 0.0
        return f"{np.mean(values):.{digits}f} ± {sd:.{digits}f}"

    numeric = rows.drop(columns=["seed", *by], errors="ignore").select_dtypes("number").columns
    return rows.groupby(list(by), sort=False)[list(numeric)].agg(mean_sd)


def write(path: Path, rows: pd.DataFrame, **notes: object) -> None:
    """Write the rows of a benchmark with the machine that made them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = json.loads(rows.to_json(orient="records", double_precision=6))
    content = {"machine": machine(), **notes, "rows": records}
    path.write_text(json.dumps(content, indent=1) + "\n")


def merge(
    path: Path, rows: Iterable[dict[str, object]], keys: Iterable[str], **notes: object
) -> pd.DataFrame:
    """Write rows into a file that may hold others, and return all that it holds then.

    Rows replace those with the same values of ``keys``. Machine and notes are those of the last
    write.
    """
    keys, rows = list(keys), list(rows)
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    renewed = {tuple(row[key] for key in keys) for row in rows}
    kept = [row for row in old if tuple(row[key] for key in keys) not in renewed]
    merged = pd.DataFrame(kept + rows)
    write(path, merged, **notes)
    return merged


Rows = list[dict[str, object]]
Run = Callable[[int, bool], Rows | Iterator[Rows]]
"""Seed, and whether the short form is asked for → rows, all at once or part by part."""


def run_tasks(script: str, description: str, tasks: dict[str, tuple[Run, list[str]]]) -> None:
    """The command line of a script of several tasks, each of which has a JSON of its own.

    The JSON has the name of the script, followed by that of the task where there are several. Rows
    are merged into it after every seed, or every part of it. A task comes with the columns that,
    beside the seed, tell its rows apart.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--tasks", nargs="+", default=list(tasks))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    for task in args.tasks:
        run, by = tasks[task]
        path = args.out / f"{script}{f'-{task}' if len(tasks) > 1 else ''}.json"
        for seed in [0] if args.short else args.seeds:
            found = run(seed, args.short)
            for rows in [found] if isinstance(found, list) else found:
                table = merge(path, rows, [*by, "seed"], script=f"{script}.py", short=args.short)
                print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)
        print(summarise(table, by).to_string())
        if len(by) > 1:
            print(summarise(table, by[:1]).to_string())
