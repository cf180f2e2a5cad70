"""Cells per second, memory and growth, beside SCVI of scvi-tools in the same process.

    OMP_NUM_THREADS=2 python benchmarks/speed.py [--tasks steps parts ...]

Every task writes a JSON of its own. Ratios are of medians that were measured in alternation, since
machines differ and are seldom idle; nothing else should run meanwhile. On a machine with a GPU the
models train there.

steps       SCVI, pretraining and joint training by batch size, density and number of genes
parts       a joint step in parts, beside its matrix products alone
likelihood  the negative binomial forward and backward, against that of scvi-tools
draws       counts of it, against draws of scvi-tools
predict     cells per second of ``predict``, and seconds of the start of the mixture
growth      seconds per epoch and peak memory by number of cells, in memory and from disk
fit         a whole fit of pbmc4k, against SCVI's with neighbours and Leiden
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from common import load_counts, peak_memory, set_threads, write
from lightning.pytorch import Callback
from scipy import optimize, sparse
from scvi.distributions import NegativeBinomial as ScviNegativeBinomial

import scgmvae
from scgmvae.distributions.counts import nb_log_prob, softmax_nb_log_prob
from scgmvae.distributions.likelihoods import NegativeBinomial
from scgmvae.nn.sparse import linear

NETWORK = {"n_hidden": 128, "n_layers": 2}
QUIET = {"enable_progress_bar": False}
REPEATS = 5


def counts_of(n_cells: int, n_genes: int, density: float, seed: int = 0) -> ad.AnnData:
    """Negative-binomial counts of log-normal gene means, a share of which is not zero."""
    rng = np.random.default_rng(seed)
    mean, shape = rng.lognormal(0, 1.5, n_genes), 2.0

    def excess(log_scale: float) -> float:
        return (1 - (1 + np.exp(log_scale) * mean / shape) ** -shape).mean() - density

    mean *= np.exp(optimize.brentq(excess, -20, 20))
    parts = []
    for first in range(0, n_cells, 5000):
        size = (min(5000, n_cells - first), n_genes)
        dense = rng.negative_binomial(shape, shape / (shape + mean), size=size)
        dense[dense.sum(1) == 0, 0] = 1
        parts.append(sparse.csr_matrix(dense.astype(np.float32)))
    return ad.AnnData(sparse.vstack(parts, format="csr"))


class EpochTimer(Callback):
    """Seconds of every epoch; the model is in training mode, also in a second training."""

    def __init__(self):
        self.seconds = []

    def on_train_start(self, trainer, pl_module):
        # SCVI of scvi-tools 1.4.2 stays in evaluation mode otherwise, without its dropout
        pl_module.train()

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def epochs_of(train: Callable[..., None]) -> list[float]:
    timer = EpochTimer()
    train(callbacks=[timer], **QUIET)
    return timer.seconds


def steps(short: bool) -> pd.DataFrame:
    grid = product((128, 1024), (0.03, 0.08, 0.14), (1000, 2000, 4000))
    if short:
        grid = [(128, 0.08, 100)]
    return pd.DataFrame([row for setting in grid for row in steps_of(*setting, short)])


def steps_of(batch_size: int, density: float, n_genes: int, short: bool) -> list[dict]:
    n_cells = 256 if short else 20 * batch_size if batch_size < 1024 else 6 * batch_size
    repeats = 2 if short else REPEATS
    adata = counts_of(n_cells, n_genes, density)
    peer_data = adata.copy()
    scvi.model.SCVI.setup_anndata(peer_data)
    scgmvae.SCGMVAE.setup_anndata(adata)
    peer = scvi.model.SCVI(peer_data, gene_likelihood="nb", **NETWORK)
    model = scgmvae.SCGMVAE(adata, n_components=10, **NETWORK)

    def train(max_epochs: int, **kwargs: object) -> None:
        model.train(max_epochs, start="kmeans", batch_size=batch_size, **kwargs)

    def train_peer(max_epochs: int, **kwargs: object) -> None:
        peer.train(max_epochs, train_size=1.0, batch_size=batch_size, **kwargs)

    # the first epoch of a training makes room in memory, and is left out
    pretraining = epochs_of(lambda **kw: train(1, pretrain_epochs=repeats + 1, **kw))
    seconds = {"scgmvae, pretraining": pretraining[1:-1], "SCVI": [], "scgmvae, joint": []}
    for _ in range(repeats):
        seconds["SCVI"].append(epochs_of(lambda **kw: train_peer(2, **kw))[1])
        seconds["scgmvae, joint"].append(epochs_of(lambda **kw: train(2, **kw))[1])
    speed = {name: n_cells / np.median(values) for name, values in seconds.items()}
    rows = [
        {
            "batch_size": batch_size,
            "density": density,
            "genes": n_genes,
            "model": name,
            "cells_per_s": value,
            "to_SCVI": value / speed["SCVI"],
        }
        for name, value in speed.items()
    ]
    print(pd.DataFrame(rows).round(2).to_string(index=False, header=False), flush=True)
    return rows


def median_ms(work: Callable[[], object], repeats: int = 30) -> float:
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds[2:]))


def parts(short: bool) -> pd.DataFrame:
    return pd.concat([parts_of(n, short) for n in ((64,) if short else (128, 1024))])


def parts_of(batch_size: int, short: bool) -> pd.DataFrame:
    n_genes = 100 if short else 2000
    adata = counts_of(6 * batch_size, n_genes, 0.08)
    scgmvae.SCGMVAE.setup_anndata(adata)
    model = scgmvae.SCGMVAE(adata, n_components=10, **NETWORK)
    model.train(1, 1, start="kmeans", **QUIET)
    module, data = model.module, model.adata_manager
    module.train()
    loader = model._data_loader_cls(
        data, batch_size=batch_size, shuffle=True, sparse=module.takes_sparse
    )
    loader.move_to(model.device)
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    seconds: dict[str, list[float]] = {}
    for _ in range(2 if short else 10):
        minibatches = iter(loader)
        for _ in range(len(loader)):
            times = [time.perf_counter()]

            def done(times: list[float] = times) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times.append(time.perf_counter())

            tensors = next(minibatches)
            done()
            q = module.inference(**module._get_inference_input(tensors))
            done()
            p = module.generative(**module._get_generative_input(tensors, q))
            done()
            loss = module.loss(tensors, q, p).loss
            done()
            optimizer.zero_grad()
            loss.backward()
            done()
            optimizer.step()
            done()
            names = ("minibatch", "inference", "generative", "loss", "backward", "optimiser")
            for name, value in zip(names, np.diff(times), strict=True):
                seconds.setdefault(name, []).append(value)
    rows = [{"part": name, "ms": 1e3 * np.median(values)} for name, values in seconds.items()]
    rows.append({"part": "all", "ms": sum(row["ms"] for row in rows)})
    rows.append({"part": "its matrix products alone", "ms": matrix_products(tensors, model)})
    return pd.DataFrame(rows).assign(batch_size=batch_size)


def matrix_products(tensors: dict[str, torch.Tensor], model: scgmvae.SCGMVAE) -> float:
    """Milliseconds of the products of a joint step, forward and backward."""
    module, x = model.module, tensors["X"].to(model.device)
    n, width, n_genes = x.shape[0], NETWORK["n_hidden"], x.shape[1]
    n_placed = 2 * module.n_components * module.n_latent
    shapes = [(width, width)] * 2 + [(width, module.n_latent)] * 4  # encoder
    shapes += [(module.n_latent, width), (width, width), (width, n_genes)]  # decoder
    shapes += [(module.n_latent, width), (width, module.n_components)]  # classifier
    shapes += [(module.n_latent_w, width), (width, n_placed)]  # components
    inputs = [torch.randn(n, n_in, device=model.device, requires_grad=True) for n_in, _ in shapes]
    weights = [torch.randn(*shape, device=model.device, requires_grad=True) for shape in shapes]
    first = torch.randn(n_genes, width, device=model.device, requires_grad=True)
    bias = torch.zeros(width, device=model.device)

    def products() -> None:
        total = linear(x, first, bias).sum()
        for one, other in zip(inputs, weights, strict=True):
            total = total + (one @ other).sum()
        total.backward()

    return median_ms(products)


def likelihood(short: bool) -> pd.DataFrame:
    grid = product((128, 1024), (0.03, 0.08, 0.14))
    return pd.DataFrame([row for setting in grid for row in likelihood_of(*setting, short)])


def likelihood_of(n_cells: int, density: float, short: bool) -> list[dict[str, object]]:
    n_genes = 50 if short else 2000
    x = torch.from_numpy(counts_of(n_cells, n_genes, density).X.toarray())
    csr, size = x.to_sparse_csr(), x.sum(-1, keepdim=True)
    logits, theta = torch.randn_like(x), torch.rand(n_genes) * 3 + 0.5
    mu = logits.softmax(-1) * size

    def gradients(log_prob: Callable[..., torch.Tensor], mean: torch.Tensor) -> None:
        parameters = [value.detach().requires_grad_() for value in (mean, theta)]
        torch.autograd.grad(log_prob(*parameters).sum(), parameters)

    def peer(mu: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return ScviNegativeBinomial(mu=mu, theta=theta, validate_args=False).log_prob(x)

    works = {
        "scvi-tools": lambda: gradients(peer, mu),
        "scgmvae, dense x": lambda: gradients(partial(nb_log_prob, x), mu),
        "scgmvae, CSR x": lambda: gradients(partial(nb_log_prob, csr), mu),
        "scgmvae, CSR x, with the softmax": lambda: gradients(
            lambda logits, theta: softmax_nb_log_prob(csr, logits, theta, size), logits
        ),
    }
    rounds = [{name: median_ms(work, 10) for name, work in works.items()} for _ in range(REPEATS)]
    medians = pd.DataFrame(rounds).median()
    return [
        {
            "cells": n_cells,
            "density": density,
            "likelihood": name,
            "ms": ms,
            "times_faster": medians["scvi-tools"] / ms,
        }
        for name, ms in medians.items()
    ]


def draws(short: bool) -> pd.DataFrame:
    """Draws of counts of log-normal means, most of which are 0."""
    rng = np.random.default_rng(0)
    n_cells, n_genes = (50, 50) if short else (2000, 2000)
    logits = torch.from_numpy(rng.normal(0, 1.5, (n_cells, n_genes))).float()
    theta = torch.from_numpy(rng.lognormal(0, 1, n_genes)).float()
    ours = NegativeBinomial(logits, theta, torch.full((n_cells, 1), 0.25 * n_genes))
    peer = ScviNegativeBinomial(mu=ours.mu, theta=theta, validate_args=False)
    works = {"scvi-tools": peer.sample, "scgmvae": ours.sample}
    rounds = [{name: median_ms(work, 3) for name, work in works.items()} for _ in range(REPEATS)]
    medians = pd.DataFrame(rounds).median()
    return pd.DataFrame(
        [
            {
                "draws": name,
                "cells": n_cells,
                "genes": n_genes,
                "not_zero": float((works[name]() > 0).float().mean()),
                "ms": ms,
                "times_faster": medians["scvi-tools"] / ms,
            }
            for name, ms in medians.items()
        ]
    )


def predict(short: bool) -> pd.DataFrame:
    n_cells, n_genes = (500, 100) if short else (50_000, 2000)
    adata = counts_of(n_cells, n_genes, 0.08)
    scgmvae.SCGMVAE.setup_anndata(adata)
    model = scgmvae.SCGMVAE(adata, n_components=10)
    found = []
    start_mixture = model._start_mixture

    def timed(*args: object) -> np.ndarray:
        start = time.perf_counter()
        codes = start_mixture(*args)
        found.append(time.perf_counter() - start)
        return codes

    # numba compiles what makes the graph when it is first called
    small = counts_of(300, 50, 0.3)
    scgmvae.SCGMVAE(small).train(1, 1, **QUIET)
    model._start_mixture = timed
    model.train(1, 1, batch_size=1024, **QUIET)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        model.predict()
        seconds.append(time.perf_counter() - start)
    return pd.DataFrame(
        [
            {"what": "predict", "cells": n_cells, "seconds": np.median(seconds)},
            {"what": "start of the mixture", "cells": n_cells, "seconds": found[0]},
        ]
    ).assign(cells_per_s=lambda rows: rows["cells"] / rows["seconds"])


def growth(short: bool) -> pd.DataFrame:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n_cells in (300, 600) if short else (5_000, 20_000, 80_000, 320_000):
            path = Path(folder) / f"{n_cells}.h5ad"
            counts_of(n_cells, 100 if short else 2000, 0.08).write_h5ad(path)
            for where in ("memory", "disk"):
                rows.append(train_one(where, path) if short else train_alone(where, path))
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    exponents = {
        where: np.polyfit(np.log(part["cells"]), np.log(part["s_per_epoch"]), 1)[0]
        for where, part in table.groupby("x_in")
    }
    return table.assign(exponent=table["x_in"].map(exponents))


def train_alone(where: str, path: Path) -> dict[str, object]:
    """:func:`train_one` in a process of its own, which has held nothing else in memory."""
    command = [sys.executable, __file__, "--child", where, str(path)]
    command += ["--threads", str(torch.get_num_threads())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def train_one(where: str, path: Path) -> dict[str, object]:
    timer = EpochTimer()
    with peak_memory() as peak:
        adata = ad.read_h5ad(path, backed="r" if where == "disk" else None)
        scgmvae.SCGMVAE.setup_anndata(adata)
        model = scgmvae.SCGMVAE(adata, n_components=10)
        model.train(2, 1, batch_size=128, callbacks=[timer], **QUIET)
    return {
        "cells": adata.n_obs,
        "x_in": where,
        "s_per_epoch": timer.seconds[2],
        "s_start": timer.seconds[1] - timer.seconds[2],
        "peak_mb": peak.mb,
    }


def fit(short: bool) -> pd.DataFrame:
    adata, _ = load_counts("simulated" if short else "pbmc4k")
    peer_data = adata.copy()
    start = time.perf_counter()
    scgmvae.SCGMVAE.setup_anndata(adata)
    model = scgmvae.SCGMVAE(adata)
    model.train(*((1, 1) if short else ()), **QUIET)
    rows = [{"method": "scgmvae", "seconds": time.perf_counter() - start}]
    scvi.settings.seed = 0
    start = time.perf_counter()
    scvi.model.SCVI.setup_anndata(peer_data)
    peer = scvi.model.SCVI(peer_data)
    peer.train(1 if short else None, **QUIET)
    peer_data.obsm["X_scVI"] = peer.get_latent_representation()
    sc.pp.neighbors(peer_data, use_rep="X_scVI")
    sc.tl.leiden(peer_data, flavor="igraph", n_iterations=2, directed=False)
    rows.append({"method": "SCVI, neighbours, Leiden", "seconds": time.perf_counter() - start})
    for row, clusters in zip(rows, (adata.obs["scgmvae"], peer_data.obs["leiden"]), strict=True):
        row["ARI"] = scgmvae.metrics.clustering_scores(adata.obs["cell_type"], clusters)["ARI"]
    return pd.DataFrame(rows)


TASKS = {f.__name__: f for f in (steps, parts, likelihood, draws, predict, growth, fit)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    if args.child:
        print(json.dumps(train_one(args.child[0], Path(args.child[1]))))
        return
    for task in args.tasks:
        table = TASKS[task](args.short)
        write(args.out / f"speed-{task}.json", table, script="speed.py", short=args.short)
        print(table.round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
