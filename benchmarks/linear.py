"""Linear VAEs with a Gaussian likelihood, beside the closed forms that they have.

    python benchmarks/linear.py [--seeds 0 1 2]

Probabilistic PCA (``gaussian_scale="shared"``) and factor analysis (``"gene"``) are trained from
random weights; the references are scikit-learn's ``PCA`` and ``FactorAnalysis``. The data are the
pixels of the digits and log-normalised counts of the 200 most variable genes of pbmc68k_reduced,
without features that hardly vary.

*angle*: largest angle between the subspaces of both loadings, in degrees; *noise*: mean relative
difference of the noise variances, in %; *nats*: log likelihood per cell by importance sampling,
beside ``score`` of scikit-learn; *posterior*: root mean square difference of the mean of q(z|x)
from the mean of p(z|x) of the learned model, in its standard deviations.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from common import set_threads, summarise, threads_kept, write
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA, FactorAnalysis

import scgmvae

N_LATENT = 5
EPOCHS = {"digits": 600, "pbmc68k_reduced": 1500}
"""About as many steps for each."""
PLAN = {"lr": 1e-2, "lr_decline": 1.0, "weight_decay": 0.0, "n_samples": 4}
SCALES = {"probabilistic PCA": "shared", "factor analysis": "gene"}


@threads_kept()
def features(name: str) -> np.ndarray:
    """Data of a set, ``(n, G)``."""
    if name == "digits":
        x = np.asarray(scgmvae.datasets.digits().X)
    else:
        adata = scgmvae.datasets.pbmc68k_reduced()
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        x = adata.X.toarray().astype(np.float32)
        x = x[:, np.sort(np.argsort(x.std(0))[-200:])]
    return x[:, x.std(0) > 0.05]


@threads_kept()
def closed_form(x: np.ndarray, model: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Loadings (G, L), noise variances (G,), and nats per cell."""
    if model == "factor analysis":
        best = FactorAnalysis(N_LATENT, svd_method="lapack", tol=1e-6, max_iter=20_000).fit(x)
    else:
        best = PCA(N_LATENT, svd_solver="full").fit(x)
    variance = np.broadcast_to(best.noise_variance_, x.shape[1])
    return best.components_.T, variance, best.score(x)


def trained(x: np.ndarray, model: str, epochs: int, seed: int) -> scgmvae.SCGMVAE:
    fitted = scgmvae.SCGMVAE(
        AnnData(x),
        prior="normal",
        n_layers=0,
        n_latent=N_LATENT,
        likelihood="gaussian",
        gaussian_scale=SCALES[model],
    )
    fitted.train(
        max_epochs=epochs,
        pretrain_epochs=0,
        plan_kwargs=PLAN,
        seed=seed,
        enable_progress_bar=False,
    )
    return fitted


def learned(model: scgmvae.SCGMVAE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loadings (G, L), mean (G,) and noise variances (G,) of a trained model."""
    head = model.module.decoder.heads[0]
    loadings, mean = (part.detach().cpu().numpy() for part in (head.weight.T, head.bias))
    return loadings, mean, model.get_reconstruction(return_scale=True)[1][0] ** 2


def row(name: str, kind: str, seed: int, short: bool) -> dict[str, object]:
    x = features("digits" if short else name)
    start = time.perf_counter()
    model = trained(x, kind, 2 if short else EPOCHS[name], seed)
    seconds = time.perf_counter() - start
    loadings, mean, variance = learned(model)
    components, best_variance, best = closed_form(x, kind)
    weighted = loadings / variance[:, None]
    covariance = np.linalg.inv(np.eye(N_LATENT) + loadings.T @ weighted)
    error = model.get_latent_representation() - (x - mean) @ weighted @ covariance
    return {
        "data": name,
        "model": kind,
        "seed": seed,
        "angle": float(np.degrees(subspace_angles(loadings, components)).max()),
        "noise": 100 * float(np.abs(variance / best_variance - 1).mean()),
        "nats": float(model.get_marginal_ll(n_mc_samples=50)),
        "closed_nats": float(best),
        "posterior": float(np.sqrt((error**2 / covariance.diagonal()).mean())),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    rows = []
    for name in ["digits"] if args.short else EPOCHS:
        for kind in SCALES:
            for seed in [0] if args.short else args.seeds:
                rows.append(row(name, kind, seed, args.short))
                print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
                notes = {"script": "linear.py", "short": args.short}
                write(args.out / "linear.json", pd.DataFrame(rows), **notes)
    print(summarise(pd.DataFrame(rows), ["data", "model"]).to_string())


if __name__ == "__main__":
    main()
