"""The idea of the dual VAE on counts: ambient RNA as background. An experiment, not a method.

    SCGMVAE_DATA_DIR=... python benchmarks/studies/ambient.py [--tasks 10pct 20pct] [--seeds 0 1 2]

Cells of pbmc4k are put into two batches at random, one of which lacks most of one type, and a
share of each cell's counts is replaced by as many drawn from the pool, the mean profile of its
batch. The share varies between cells (Beta, mean 10 % or 20 %). What a cell keeps is the truth.

The background is the profile of the batch, known as the mean over its cells, with a share of each
cell that is decoded from z₂ ~ s(z₂|g(x)); g(x) are the sums of counts over 50 groups of genes that
go together. The foreground is a profile decoded from z₁ ~ q(z₁|x). Both add up to Poisson rates,
of genes and of groups, and the loss is that of the dual VAE. A corrected count is the observed one
times the foreground's part of its rate. The prior of the share is around 10 % in both tasks.

*mse, r*: of log1p counts against the truth, over all entries. *specificity*: of the counts of 10
marker genes of each type (chosen on the truth), the share in cells of that type. *share_r, share*:
correlation of found and true share over cells, and mean of the found one. Beside the correction:
none, and the pool taken off with the true mean share of all cells (*mean share told*).
``--short`` runs on simulated counts for few epochs.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.distributions import Normal, Poisson

from scgmvae.distributions.divergences import normal_kl
from scgmvae.nn.layers import Conditions, ConditionSizes, Trunk
from scgmvae.nn.networks import Decoder, Encoder

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import load_counts, run_tasks

N_GROUPS, N_MARKERS = 50, 10
CONCENTRATION = 20.0
"""Of the cells' shares: with it and a mean of 10 % their standard deviation is 6.5 %."""

C, SIZES = Conditions(), ConditionSizes()


def contaminate(
    counts: NDArray, batch: NDArray, share: float, rng: np.random.Generator
) -> tuple[NDArray, NDArray, NDArray]:
    """Counts with the pool in them, what each cell kept, and the cells' shares."""
    rho = rng.beta(CONCENTRATION * share, CONCENTRATION * (1 - share), size=len(counts))
    kept = rng.binomial(counts.astype(int), 1 - rho[:, None])
    lost = (counts.sum(1) - kept.sum(1)).astype(int)
    pools = pool_profiles(counts, batch)
    added = np.stack([rng.multinomial(n, pools[b]) for n, b in zip(lost, batch, strict=True)])
    return (kept + added).astype(np.float32), kept.astype(np.float32), rho


def pool_profiles(counts: NDArray, batch: NDArray) -> NDArray:
    """Mean profile of each batch, (batches, G), rows that sum to 1."""
    sums = np.stack([counts[batch == b].sum(0) for b in np.unique(batch)]).astype(float)
    return sums / sums.sum(1, keepdims=True)


def gene_groups(counts: NDArray, n_groups: int, seed: int) -> NDArray:
    """Group of each gene, as a one-hot matrix (G, groups): genes that vary together."""
    profiles = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).T
    profiles = profiles - profiles.mean(1, keepdims=True)
    profiles /= np.linalg.norm(profiles, axis=1, keepdims=True) + 1e-8
    left = np.linalg.svd(profiles, full_matrices=False)[0][:, :20]
    labels = KMeans(n_groups, n_init=1, random_state=seed).fit_predict(left)
    return np.eye(n_groups, dtype=np.float32)[labels]


class AmbientModule(nn.Module):
    """Two VAEs whose rates add up: a profile of the cell, and a share of the batch's pool."""

    def __init__(self, n_genes: int, groups: Tensor, share: float):
        super().__init__()
        self.groups = groups  # (G, groups)
        self.start = float(np.log(share / (1 - share)))
        self.q_z1 = Encoder(Trunk(n_genes, SIZES, (128,)), SIZES, 10, 0, 0.0)
        self.q_z2 = Encoder(Trunk(groups.shape[1], SIZES, (64,)), SIZES, 1, 0, 0.0)
        self.profile = Decoder(10, SIZES, n_genes, 1, (128,))

    def forward(self, x: Tensor, sample: bool = True) -> tuple[list[Normal], Tensor, Tensor]:
        """q(z₁|x) and s(z₂|g(x)); the cell's own profile; its share of the pool."""
        posteriors = []
        for network, seen in ((self.q_z1, x), (self.q_z2, x @ self.groups)):
            posteriors.append(network.q_z(network(torch.log1p(seen), C), C))
        z1, z2 = (q.rsample() if sample else q.loc for q in posteriors)
        own = torch.softmax(self.profile(z1, C)[0], dim=-1)
        return posteriors, own, torch.sigmoid(self.start + z2)  # a prior around a usual share

    def loss(self, x: Tensor, pool: Tensor, kl_weight: float) -> Tensor:
        posteriors, own, share = self(x)
        rate = x.sum(1, keepdim=True) * ((1 - share) * own + share * pool) + 1e-8
        nats = -Poisson(rate).log_prob(x).sum(1)
        nats = nats - Poisson(rate @ self.groups + 1e-8).log_prob(x @ self.groups).sum(1)
        prior = Normal(torch.zeros(()), torch.ones(()))
        return (nats + kl_weight * sum(normal_kl(q, prior) for q in posteriors)).mean()


def corrected(
    x: NDArray, pools: NDArray, groups: NDArray, seed: int, n_epochs: int, share: float = 0.1
) -> tuple[NDArray, NDArray]:
    """Counts less the background, and the share of each cell."""
    x, pools = torch.from_numpy(x), torch.from_numpy(pools).float()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        module = AmbientModule(x.shape[1], torch.from_numpy(groups), share)
        profile = x.mean(0) / x.mean(0).sum()
        module.profile.start_at(torch.log(profile + 1e-8))
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        for epoch in range(n_epochs):
            for rows in torch.randperm(len(x)).split(128):
                weight = min(1.0, 3 * epoch / n_epochs)
                loss = module.loss(x[rows], pools[rows], weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    module.eval()
    with torch.inference_mode():
        _, own, found = module(x, sample=False)
    of_cell = (1 - found) * own
    return (x * of_cell / (of_cell + found * pools + 1e-12)).numpy(), found[:, 0].numpy()


def scores(found: NDArray, kept: NDArray, cell_type: NDArray) -> dict[str, float]:
    error = np.log1p(found) - np.log1p(kept)
    r = np.corrcoef(np.log1p(found).ravel(), np.log1p(kept).ravel())[0, 1]
    profile = {t: kept[cell_type == t].mean(0) for t in np.unique(cell_type)}
    shares = []
    for name, mean in profile.items():
        rest = np.max([other for t, other in profile.items() if t != name], axis=0)
        markers = np.argsort(mean - 3 * rest)[-N_MARKERS:]
        counts = found[:, markers].sum(1)
        shares.append(counts[cell_type == name].sum() / counts.sum())
    return {"mse": float((error**2).mean()), "r": float(r), "specificity": float(np.mean(shares))}


def ambient(seed: int, short: bool, *, share: float) -> list[dict[str, object]]:
    adata, _ = load_counts("simulated" if short else "pbmc4k")
    counts = adata.X.toarray() if issparse(adata.X) else np.asarray(adata.X)
    cell_type, rng = adata.obs["cell_type"].astype(str).to_numpy(), np.random.default_rng(seed)
    names, sizes = np.unique(cell_type, return_counts=True)
    batch = rng.integers(2, size=len(counts))
    # one batch has few of a common type, so that the pools differ
    batch[(cell_type == names[sizes.argmax()]) & (rng.random(len(counts)) < 0.8)] = 0
    x, kept, rho = contaminate(counts, batch, share, rng)
    pools = pool_profiles(x, batch)[batch]
    start = time.perf_counter()
    groups = gene_groups(x, min(N_GROUPS, x.shape[1] // 5), seed)
    found, found_share = corrected(x, pools, groups, seed, 2 if short else 40)
    seconds = time.perf_counter() - start
    told = np.maximum(x - rho.mean() * x.sum(1, keepdims=True) * pools, 0)
    of_share = {
        "share_r": float(np.corrcoef(found_share, rho)[0, 1]),
        "share": float(found_share.mean()),
        "seconds": seconds,
    }
    rows = {
        "none": scores(x, kept, cell_type),
        "mean share told": scores(told, kept, cell_type) | {"share": float(rho.mean())},
        "dual": scores(found, kept, cell_type) | of_share,
        "(truth)": scores(kept, kept, cell_type),
    }
    return [{"correction": name, "seed": seed} | row for name, row in rows.items()]


TASKS = {f"{percent}pct": partial(ambient, share=percent / 100) for percent in (10, 20)}

if __name__ == "__main__":
    run_tasks(
        "ambient", __doc__.splitlines()[0], {n: (run, ["correction"]) for n, run in TASKS.items()}
    )
