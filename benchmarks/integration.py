"""Cells of several batches or conditions: mixing, learned p(w|c).

    SCGMVAE_DATA_DIR=... python benchmarks/integration.py [--tasks mixing] [--seeds 0 1 2]

*mixing*: sc_mixology, five batches. Cell-line ARI of the clusters, told K or not, and how well the
embedding mixes batches (iLISI) and keeps lines apart (cLISI). SCVI and SCANVI get k-means, told K;
SCANVI gets labels of a tenth of the cells. One row of scgmvae is trained as SCVI is by default:
for 400 epochs, and with an encoder that does not see the batch.
*conditions*: the conditional toy, unsupervised, with standard and learned p(w|c).

Rows are merged into a JSON per task after every fit; ``--short`` runs few epochs on simulated
data.
"""

from __future__ import annotations

import tools
from anndata import AnnData
from common import run_tasks
from labels import draw_labelled
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

import scgmvae
from scgmvae.metrics import clustering_scores, mixing_scores

TYPE, BATCH, KEY, UNLABELED = "cell_type", "batch", "label", "unknown"
SHORT = {"max_epochs": 2, "pretrain_epochs": 2}


def load(short: bool) -> AnnData:
    if not short:
        return scgmvae.datasets.load("sc_mixology")
    adata = scgmvae.datasets.synthetic_counts(300, 80, n_components=3, n_batches=3)
    adata.obs[TYPE] = adata.obs["component"].astype(str)
    return adata


def train(
    model: scgmvae.SCGMVAE, seed: int, short: bool, **train_kwargs: object
) -> scgmvae.SCGMVAE:
    model.train(seed=seed, enable_progress_bar=False, **train_kwargs | (SHORT if short else {}))
    return model


# ---------------------------------------------------------------------------------- mixing


def mixing(seed: int, short: bool) -> list[dict[str, object]]:
    adata = load(short)
    types, batches = adata.obs[TYPE].astype(str), adata.obs[BATCH].astype(str)
    n_types = types.nunique()

    def row(method: str, latent: NDArray, clusters: NDArray | None = None) -> dict[str, object]:
        if clusters is None:
            clusters = KMeans(n_types, n_init=10, random_state=seed).fit_predict(latent)
        scores = clustering_scores(types, clusters) | mixing_scores(latent, batches, types)
        return {"method": method, "seed": seed, **scores}

    rows = []
    for name, (init, train_kwargs) in {
        "scgmvae, K given": ({"n_components": n_types}, {}),
        "scgmvae, K found": ({}, {}),
        "scgmvae, K given, trained as SCVI": (
            {"n_components": n_types, "encode_covariates": False},
            {"max_epochs": 400},
        ),
    }.items():
        data = adata.copy()
        scgmvae.SCGMVAE.setup_anndata(data, batch_key=BATCH)
        model = train(scgmvae.SCGMVAE(data, **init), seed, short, **train_kwargs)
        rows.append(row(name, model.get_latent_representation(), model.predict()))
    max_epochs = 2 if short else None
    model = tools.scvi_latent(adata, seed, BATCH, max_epochs=max_epochs)
    rows.append(row("SCVI", model.get_latent_representation()))
    is_labelled = draw_labelled(types, 0.1, seed)
    adata.obs[KEY] = types.where(is_labelled, UNLABELED)
    for name, model in tools.scanvi(adata, KEY, UNLABELED, seed, BATCH, 10, max_epochs).items():
        rows.append(row(name, model.get_latent_representation()))
    return rows


# ------------------------------------------------------------------------------ conditions


def conditions(seed: int, short: bool) -> list[dict[str, object]]:
    rows = []
    for condition_prior in ("standard", "learned"):
        adata = scgmvae.datasets.blobs(20 if short else 200, seed=seed)
        scgmvae.SCGMVAE.setup_anndata(adata, categorical_covariate_keys=["condition"])
        model = scgmvae.SCGMVAE(
            adata, n_components=5, likelihood="gaussian", condition_prior=condition_prior
        )
        train(model, seed, short)
        by = adata.obs["condition"]
        rows.append(
            {
                "method": f"p(w|c) {condition_prior}",
                "seed": seed,
                "ACC": clustering_scores(adata.obs["class"], model.predict())["ACC"],
                "silhouette_w": float(silhouette_score(adata.obsm["X_scgmvae_w"], by)),
                "silhouette_z": float(silhouette_score(adata.obsm["X_scgmvae"], by)),
            }
        )
    return rows


TASKS = {
    "mixing": (mixing, ["method"]),
    "conditions": (conditions, ["method"]),
}


if __name__ == "__main__":
    run_tasks("integration", __doc__.split("\n")[0], TASKS)
