"""What does a prior of the decoder's parameters do to held-out cells, and to the embedding?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/priors.py [--tasks likelihood embeddings]

likelihood  Each set is trained on nine tenths of its cells, once for every prior: of the log
            inverse dispersions of the genes, normal around 0 with a given precision (1 /
            variance), and of the weights of the decoder's last layer, of variance 1 / number of
            its inputs; and for two inverse dispersions from which training starts. *held out* is
            log p(x) of the other cells by importance sampling, *trained on* that of as many
            training cells, in nats per cell; *ARI* is the agreement of the clusters with the
            known types.
embeddings  The scores of ``embedding.py``, and the share of neighbours that are kept when half of
            the cells count as a batch, without and with the prior of the weights. That of the
            dispersions is the default.

``--short`` runs few epochs on simulated cells.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partialmethod
from pathlib import Path
from unittest.mock import patch

import numpy as np
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import tested
from common import run_tasks
from embedding import NULL, by_scgmvae, in_halves, labelled
from embedding import SETS as OF_EMBEDDINGS
from embedding_scores import neighbors_kept, scores_of
from simulators import SIMULATORS

from scgmvae import CGMVAE, SCGMVAE
from scgmvae.distributions.families import FAMILIES
from scgmvae.module.cgmvae import DISPERSION_PRECISION

SETS = ("pbmc3k", "mouse_bladder", "sc_mixology", "baron_mouse", "partly shared")
PRIORS = (
    (10.0, 0.0, "no"), (10.0, 5.0, "no"), (10.0, 24.0, "no"), (10.0, 100.0, "no"),
    (10.0, 24.0, "yes"), (1.0, 0.0, "no"), (1.0, 24.0, "no"),
)  # fmt: skip
"""Start of inverse dispersions, precision of their logarithms, whether weights have a prior."""
N_SAMPLES = 100


def log_prior(module: CGMVAE, of_dispersion: float, of_weights: str) -> Tensor:
    """Log prior of the parameters of a decoder, up to a constant."""
    squares = of_dispersion * module.raw_dispersion.square().sum()
    if of_weights == "yes":
        weights = [head.weight for head in module.decoder.heads]
        squares = squares + sum(len(weight) * weight.square().sum() for weight in weights)
    return -squares / 2


def log_likelihood(model: SCGMVAE, adata: AnnData, n_samples: int) -> float:
    """Mean log p(x) of cells."""
    values = model.get_marginal_ll(adata, n_mc_samples=n_samples, return_mean=False)
    return float(np.asarray(values, dtype=float).mean())


def prior_of(of_dispersion: float, of_weights: str) -> AbstractContextManager[object]:
    """The block in which modules have a prior."""
    prior = partialmethod(log_prior, of_dispersion, of_weights)
    return patch.object(CGMVAE, "log_prior", prior)


def likelihood(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """A row for every set and prior, a set at a time."""
    for name in ("simulated",) if short else SETS:
        adata, batch_key = labelled(name, 0)
        order = np.random.default_rng(seed).permutation(adata.n_obs)
        n = adata.n_obs // 10
        test, train, again = (
            adata[np.sort(part)].copy() for part in (order[:n], order[n:], order[-n:])
        )
        rows = []
        for start, of_dispersion, of_weights in PRIORS[:2] if short else PRIORS:
            counts = {"nb": FAMILIES["nb"]._replace(start_dispersion=start)}
            with patch.dict(FAMILIES, counts), prior_of(of_dispersion, of_weights):
                fit = tested.fitted(train, batch_key, seed, short)
            n_samples = 5 if short else N_SAMPLES
            rows.append(
                {
                    "data": name,
                    "start": start,
                    "precision of dispersions": of_dispersion,
                    "prior of weights": of_weights,
                    "seed": seed,
                    "held out": log_likelihood(fit["model"], test, n_samples),
                    "trained on": log_likelihood(fit["model"], again, n_samples),
                    "ARI": adjusted_rand_score(train.obs["cell_type"], fit["clusters"]),
                    "n_clusters": len(np.unique(fit["clusters"])),
                }
            )
        yield rows


def embeddings(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """A row for every set, without and with a prior of the weights, a set at a time."""
    for name in ("simulated",) if short else (*SIMULATORS, *OF_EMBEDDINGS, "pbmc4k"):
        adata, batch_key = labelled(name, seed)
        types = adata.obs["cell_type"].astype(str).to_numpy()
        batches = None if batch_key is None else adata.obs[batch_key].astype(str).to_numpy()
        rows = []
        for of_weights in ("no", "yes"):
            with prior_of(DISPERSION_PRECISION, of_weights):
                z, own = by_scgmvae(adata.copy(), batch_key, seed, short)
                in_two = None
                if name in NULL:
                    in_two, _ = by_scgmvae(in_halves(adata, seed), "half", seed, short)
            rows.append(
                {
                    "data": name,
                    "prior of weights": of_weights,
                    "seed": seed,
                    **scores_of(z, types, batches, seed),
                    "own ARI": adjusted_rand_score(types, own),
                    "own clusters": len(np.unique(own)),
                    "kept": np.nan if in_two is None else neighbors_kept(z, in_two),
                }
            )
        yield rows


if __name__ == "__main__":
    by = ["data", "start", "precision of dispersions", "prior of weights"]
    tasks = {
        "likelihood": (likelihood, by),
        "embeddings": (embeddings, ["data", "prior of weights"]),
    }
    run_tasks("priors", __doc__.split("\n")[0], tasks)
