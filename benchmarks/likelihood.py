"""Log likelihood of held-out cells, by importance sampling, beside SCVI's.

    SCGMVAE_DATA_DIR=... python benchmarks/likelihood.py [--tasks pbmc4k ...] [--seeds 0 1 2]

Both models have a negative binomial likelihood, 10 latent dimensions and one hidden layer of 128,
see the same genes, and train on the same nine tenths of the cells: scgmvae as long as it does by
default, SCVI for as many epochs (*matched*), and for 100. log p(x | library size, batch) of the
other cells, in nats per cell, is estimated with 100 samples from the approximate posterior.
*difference* is scgmvae less SCVI on the same cells, *se* its standard error over the cells.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import tools
from common import load_counts, run_tasks

import scgmvae

SETS = ("pbmc3k", "pbmc4k", "mouse_bladder", "sc_mixology", "paul15")
N_SAMPLES = 100
SCVI_EPOCHS = {"matched": None, "100 epochs": 100}


def held_out(seed: int, short: bool, *, name: str) -> list[dict[str, object]]:
    adata, batch_key = load_counts("simulated" if short else name)
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    test, train = np.split(order, [adata.n_obs // 10])
    train, test = adata[np.sort(train)].copy(), adata[np.sort(test)].copy()
    n_samples = 5 if short else N_SAMPLES
    scgmvae.SCGMVAE.setup_anndata(train, batch_key=batch_key)
    model = scgmvae.SCGMVAE(train)
    model.train(
        seed=seed,
        enable_progress_bar=False,
        **({"max_epochs": 2, "pretrain_epochs": 2} if short else {}),
    )
    n_epochs = model.trainer.max_epochs
    ours = model.get_marginal_ll(test, n_mc_samples=n_samples, return_mean=False)
    ours = np.asarray(ours, dtype=float)
    rows = []
    for told, epochs in SCVI_EPOCHS.items():
        if short and epochs:
            continue
        peer = tools.scvi_latent(
            train, seed, batch_key, max_epochs=epochs or n_epochs, train_size=1.0
        )
        assert len(peer.train_indices) == len(model.train_indices) == train.n_obs
        theirs = peer.get_marginal_ll(test, n_mc_samples=n_samples, return_mean=False)
        theirs = np.asarray(theirs, dtype=float)
        difference = ours - theirs
        rows.append(
            {
                "SCVI": told,
                "seed": seed,
                "n_cells": len(ours),
                "scgmvae_nats": ours.mean(),
                "SCVI_nats": theirs.mean(),
                "difference": difference.mean(),
                "se": difference.std(ddof=1) / np.sqrt(len(difference)),
            }
        )
    return rows


if __name__ == "__main__":
    tasks = {name: (partial(held_out, name=name), ["SCVI"]) for name in SETS}
    run_tasks("likelihood", __doc__.splitlines()[0], tasks)
