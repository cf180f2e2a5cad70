"""What a GPU makes of it: a million cells from counts to tested clusters, and the speed of steps.

    python benchmarks/gpu.py [--tasks million steps parts predict] [--cells 1000000]

Needs torch, what scgmvae itself needs, and no data: the cells are simulated on the GPU, and kept
in the memory of the host as those of a user are. It has not been run on a GPU yet; without one it
runs on the CPU, where ``--short`` shows that it works. ``--cells 100000`` makes it shorter.

million  simulated cells of 20 types in 5 batches, 2,000 genes of which 8 % have a count: seconds
         from the AnnData to clusters whose number is found, peak memory, agreement with the types
steps    cells per second of SCVI, of pretraining and of joint training, by size of minibatches,
         and with bfloat16. SCVI has its own loader of minibatches (``load_sparse_tensor``)
parts    milliseconds of each part of a joint step
predict  cells per second of ``predict``
"""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from common import peak_memory, set_threads, threads_kept, write
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from speed import NETWORK, QUIET, epochs_of, parts_of

import scgmvae

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
N_GENES, DENSITY = 2000, 0.08
AT_A_TIME = 20_000
"""Number of cells that are drawn at once."""


@torch.inference_mode()
def simulated(n_cells: int, n_genes: int, seed: int = 0) -> ad.AnnData:
    """Negative-binomial counts of 20 types in 5 batches, drawn on the device."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, generator=generator)

    differs = torch.rand(20, n_genes, device=DEVICE, generator=generator) < 0.1
    logits = 1.5 * normal(n_genes) + 1.2 * normal(20, n_genes) * differs
    shares = (logits.unsqueeze(1) + 0.2 * normal(5, n_genes)).softmax(-1)  # (types, batches, G)
    depth = depth_of(shares.flatten(0, 1))
    parts, types, batches = [], [], []
    for first in range(0, n_cells, AT_A_TIME):
        n = min(AT_A_TIME, n_cells - first)
        kind, batch = (torch.randint(k, (n,), device=DEVICE, generator=generator) for k in (20, 5))
        mean = shares[kind, batch] * depth * torch.exp(0.3 * normal(n, 1))
        # a gamma of shape 4 is a sum of four exponentials, which a generator can draw
        noise = -torch.rand(4, n, n_genes, device=DEVICE, generator=generator).log().sum(0) / 4
        x = torch.poisson(mean * noise, generator=generator)
        x[x.sum(1) == 0, 0] = 1
        csr = x.to_sparse_csr()
        arrays = (csr.values(), csr.col_indices().int(), csr.crow_indices().int())
        parts.append(sparse.csr_matrix(tuple(a.cpu().numpy() for a in arrays), shape=x.shape))
        types.append(kind.cpu().numpy())
        batches.append(batch.cpu().numpy())
    adata = ad.AnnData(sparse.vstack(parts, format="csr"))
    adata.obs["type"] = pd.Categorical(np.concatenate(types).astype(str))
    adata.obs["batch"] = pd.Categorical(np.concatenate(batches).astype(str))
    return adata


def depth_of(shares: torch.Tensor) -> float:
    """Counts per cell at which a share of ``DENSITY`` of the values is not 0, by bisection."""
    low, high = 1.0, 1e6
    for _ in range(40):
        depth = (low * high) ** 0.5
        is_dense = (1 - (1 + shares * depth / 4) ** -4).mean().item() > DENSITY
        low, high = (low, depth) if is_dense else (depth, high)
    return low


def million(n_cells: int, short: bool) -> list[dict[str, object]]:
    adata = simulated(n_cells, 100 if short else N_GENES)
    scgmvae.SCGMVAE(adata[:300].copy()).train(1, 1, **QUIET)  # numba and CUDA compile
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with peak_memory() as peak, threads_kept():
        start = time.perf_counter()
        scgmvae.SCGMVAE.setup_anndata(adata, batch_key="batch")
        model = scgmvae.SCGMVAE(adata)
        model.train(**(QUIET | ({"max_epochs": 2, "pretrain_epochs": 2} if short else {})))
        seconds = time.perf_counter() - start
    on_gpu = torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else np.nan
    return [
        {
            "cells": n_cells,
            "seconds": seconds,
            "GPU GB": on_gpu,
            "host GB": peak.mb / 1e3,
            "clusters": len(model.cluster_names),
            "ARI": float(adjusted_rand_score(adata.obs["type"], adata.obs["scgmvae"])),
        }
    ]


def steps(n_cells: int, short: bool) -> list[dict[str, object]]:
    rows = []
    for batch_size in (64,) if short else (128, 1024, 4096, 8192):
        n = min(n_cells, 40 * batch_size, 131_072)
        adata = simulated(n, 100 if short else N_GENES)
        for precision in ("32-true", "bf16-mixed"):
            rows += steps_of(adata, batch_size, precision)
            print(
                pd.DataFrame(rows[-3:]).round(1).to_string(index=False, header=False), flush=True
            )
    return rows


def steps_of(adata: ad.AnnData, batch_size: int, precision: str) -> list[dict[str, object]]:
    """Cells per second of SCVI, of pretraining and of joint training."""
    how = {"batch_size": batch_size, "precision": precision}
    peer_data = ad.AnnData(adata.X)
    scvi.model.SCVI.setup_anndata(peer_data)
    peer = scvi.model.SCVI(peer_data, gene_likelihood="nb", **NETWORK)
    model = scgmvae.SCGMVAE(ad.AnnData(adata.X), n_components=10, **NETWORK)
    # the first epoch of a training makes room in memory, and that of the joint stage starts it
    peer_seconds = epochs_of(
        lambda **kw: peer.train(3, train_size=1.0, load_sparse_tensor=True, **how, **kw)
    )[1:]
    pretraining = epochs_of(lambda **kw: model.train(1, 4, start="kmeans", **how, **kw))[1:-1]
    joint = epochs_of(lambda **kw: model.train(4, start="kmeans", **how, **kw))[1:]
    names = {"SCVI": peer_seconds, "scgmvae, pretraining": pretraining, "scgmvae, joint": joint}
    speed = {name: adata.n_obs / np.median(seconds) for name, seconds in names.items()}
    return [
        how | {"model": name, "cells_per_s": value, "to_SCVI": value / speed["SCVI"]}
        for name, value in speed.items()
    ]


def parts(n_cells: int, short: bool) -> list[dict[str, object]]:
    sizes = (64,) if short else (128, 1024, 4096)
    return [row for size in sizes for row in parts_of(size, short).to_dict("records")]


def predict(n_cells: int, short: bool) -> list[dict[str, object]]:
    adata = simulated(min(n_cells, 200_000), 100 if short else N_GENES)
    model = scgmvae.SCGMVAE(adata, n_components=10, **NETWORK)
    model.train(1, 1, start="kmeans", batch_size=1024, **QUIET)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.predict()
        seconds.append(time.perf_counter() - start)
    return [{"cells": adata.n_obs, "cells_per_s": adata.n_obs / np.median(seconds)}]


TASKS = {f.__name__: f for f in (million, steps, parts, predict)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    for task in args.tasks:
        start = time.perf_counter()
        n_cells = 600 if args.short else args.cells
        rows = pd.DataFrame(TASKS[task](n_cells, args.short))
        print(f"\n{task}, {time.perf_counter() - start:.0f} s")
        print(rows.round(3).to_string(index=False))
        write(args.out / f"gpu-{task}.json", rows, script="gpu.py", short=args.short)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
