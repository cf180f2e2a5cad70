"""Existing tools that scgmvae is measured against, each as its authors recommend it.

All functions take raw counts in ``X`` and leave the AnnData as it was. ``max_epochs=None`` is the
number of epochs that the tool or its tutorial takes; other numbers are for the short forms.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from anndata import AnnData
from common import threads_kept
from mudata import MuData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scvi.model import MULTIVI, SCANVI, SCVI, TOTALVI
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from scgmvae.clustering.partition import log_normalized_pcs
from scgmvae.compat import mudata_contained

LOGGERS = ("scvi", "lightning", "lightning.pytorch", "lightning.fabric")
SCARCHES = {
    "use_layer_norm": "both",
    "use_batch_norm": "none",
    "encode_covariates": True,
    "dropout_rate": 0.2,
    "n_layers": 2,
}
"""SCVI of a reference that queries are mapped to, as in scvi-tools' tutorial on scArches."""

TUTORIAL = {"max_epochs": 20, "n_samples_per_label": 100}
"""Training of SCANVI on top of SCVI in scvi-tools' tutorials."""

TRAININGS: dict[str, dict[str, int]] = {"SCANVI": {}, "SCANVI (tutorial)": TUTORIAL}
"""Name of a way to train SCANVI → its settings."""


def is_there(package: str) -> bool:
    """Whether a package can be imported; without it its method is left out."""
    try:
        __import__(package)
    except ImportError:
        return False
    return True


@threads_kept()
def scanpy_tests(adata: AnnData, key: str, group: str) -> dict[str, pd.DataFrame]:
    """Tables of scanpy's tests between a group and the others, by gene."""
    cells = AnnData(adata.X.copy(), obs=adata.obs[[key]].astype(str).astype("category"))
    cells.var_names = adata.var_names
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    tables = {}
    for method, name in (("wilcoxon", "Wilcoxon, scanpy"), ("t-test", "t-test, scanpy")):
        sc.tl.rank_genes_groups(cells, key, groups=[group], method=method)
        tables[name] = sc.get.rank_genes_groups_df(cells, group).set_index("names")
    return tables


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log below errors, neither from scvi-tools nor from Lightning."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _train(model: SCVI | SCANVI | TOTALVI, max_epochs: int | None, **settings: object) -> None:
    model.train(max_epochs=max_epochs, enable_progress_bar=False, **settings)


def _scvi(
    adata: AnnData,
    seed: int,
    batch_key: str | None,
    max_epochs: int | None,
    train_size: float = 0.9,
    **settings: object,
) -> SCVI:
    scvi.settings.seed = seed
    adata = adata.copy()
    SCVI.setup_anndata(adata, batch_key=batch_key)
    model = SCVI(adata, **settings)
    _train(model, max_epochs, train_size=train_size)
    return model


@quiet()
def scvi_latent(
    adata: AnnData,
    seed: int,
    batch_key: str | None = None,
    n_latent: int = 10,
    max_epochs: int | None = None,
    train_size: float = 0.9,
) -> SCVI:
    """SCVI with a negative binomial likelihood, otherwise with defaults."""
    return _scvi(
        adata, seed, batch_key, max_epochs, train_size, n_latent=n_latent, gene_likelihood="nb"
    )


@quiet()
def scanvi(
    adata: AnnData,
    labels_key: str,
    unlabeled: str,
    seed: int,
    batch_key: str | None = None,
    n_latent: int = 10,
    max_epochs: int | None = None,
    trainings: Mapping[str, dict[str, int]] = TRAININGS,
) -> dict[str, SCANVI]:
    """SCANVI from one pretrained SCVI (both with defaults), and as the tutorials train it."""
    pretrained = _scvi(adata, seed, batch_key, max_epochs, n_latent=n_latent)
    models = {}
    for name, settings in trainings.items():
        model = SCANVI.from_scvi_model(pretrained, unlabeled, labels_key=labels_key)
        epochs = settings | ({} if max_epochs is None else {"max_epochs": max_epochs})
        _train(model, **{"max_epochs": None} | epochs)
        models[name] = model
    return models


@quiet()
def scanvi_query(
    reference: AnnData,
    query: AnnData,
    labels_key: str,
    unlabeled: str,
    seed: int,
    batch_key: str | None = None,
    n_latent: int = 10,
    max_epochs: int | None = None,
) -> SCANVI:
    """Labels of a reference mapped to a query with scArches, as in scvi-tools' tutorial.

    Parameters
    ----------
    reference
        Cells that the model is made from, with labels.
    query
        Cells with the same genes, and with batches of their own. Their labels are not looked at.
    labels_key, unlabeled
        Column in ``reference.obs`` and the value in it for no label.
    seed, batch_key, n_latent, max_epochs
        As for the other tools; ``max_epochs`` holds for each of the three trainings.

    Returns
    -------
    The model of the query's cells.
    """
    pretrained = _scvi(reference, seed, batch_key, max_epochs, n_latent=n_latent, **SCARCHES)
    model = SCANVI.from_scvi_model(pretrained, unlabeled, labels_key=labels_key)
    _train(model, **TUTORIAL | ({} if max_epochs is None else {"max_epochs": max_epochs}))
    query = query.copy()
    query.obs[labels_key] = unlabeled
    mapped = SCANVI.load_query_data(query, model)
    settings = {"plan_kwargs": {"weight_decay": 0.0}, "check_val_every_n_epoch": 10}
    _train(mapped, max_epochs or 100, **settings)
    return mapped


def padded(mdata: MuData) -> MuData:
    """All cells in every modality, with zeros where one was not measured, as scvi-tools asks."""
    full = {}
    for name, adata in mdata.mod.items():
        rows = adata.obs_names.get_indexer(mdata.obs_names)
        place = sparse.csr_matrix(
            (np.ones(adata.n_obs, np.float32), (np.flatnonzero(rows >= 0), rows[rows >= 0])),
            shape=(mdata.n_obs, adata.n_obs),
        )
        obs = pd.DataFrame(index=mdata.obs_names)
        full[name] = AnnData(place @ sparse.csr_matrix(adata.X), obs=obs, var=adata.var[[]])
    with mudata_contained():
        new = MuData(full)
    new.obs = mdata.obs.copy()
    return new


@quiet()
def totalvi(
    mdata: MuData,
    seed: int,
    batch_key: str | None = None,
    max_epochs: int | None = None,
    **training: object,
) -> TOTALVI:
    """TOTALVI with defaults; it makes log(1 + counts) of raw proteins itself.

    It takes proteins for missing in a batch where all are 0, so cells without proteins need a
    batch of their own.
    """
    scvi.settings.seed = seed
    with mudata_contained():
        mdata = padded(mdata)
        # of more than ten proteins it fits a prior of the background, and only to dense ones
        mdata["protein"].X = mdata["protein"].X.toarray()
        TOTALVI.setup_mudata(
            mdata,
            batch_key=batch_key,
            modalities={"rna_layer": "rna", "protein_layer": "protein"},
        )
        model = TOTALVI(mdata)
        _train(model, max_epochs, **training)
    return model


@quiet()
def multivi(
    mdata: MuData,
    seed: int,
    batch_key: str | None = None,
    max_epochs: int | None = None,
    **training: object,
) -> MULTIVI:
    """MULTIVI with defaults; in its tutorial the batch is what was measured of a cell."""
    scvi.settings.seed = seed
    with mudata_contained():
        mdata = padded(mdata)
        MULTIVI.setup_mudata(
            mdata, batch_key=batch_key, modalities={"rna_layer": "rna", "atac_layer": "atac"}
        )
        model = MULTIVI(mdata)
        # it has a number of its own where others take None for theirs
        training |= {} if max_epochs is None else {"max_epochs": max_epochs}
        model.train(enable_progress_bar=False, **training)
    return model


REGRESSION = "PCA + logistic regression"


def on_pcs(
    adata: AnnData,
    labels: ArrayLike,
    is_labelled: NDArray[np.bool_],
    n_pcs: int = 30,
    k: int = 15,
    seed: int = 0,
) -> dict[str, NDArray | pd.DataFrame]:
    """Labels of all cells by classifiers on principal components, by name of the method.

    A vote of the k nearest labelled cells, shrunk linear discriminant analysis, and a logistic
    regression, of which there are the probabilities.

    Parameters
    ----------
    adata
        Raw counts in ``X``.
    labels
        Labels ``(n,)``; looked at only where ``is_labelled``.
    is_labelled
        Which cells are learned from, ``(n,)``.
    n_pcs, k
        Number of principal components and of votes, fewer where there are not as many.
    seed
        Of the principal components.
    """
    pcs = log_normalized_pcs(adata.X, n_pcs, seed)
    classifiers = {
        "PCA + 15-NN": KNeighborsClassifier(min(k, int(np.sum(is_labelled)))),
        "PCA + LDA": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    }
    known = np.asarray(labels)[is_labelled]
    regression = LogisticRegression(max_iter=2000).fit(pcs[is_labelled], known)
    found = {name: c.fit(pcs[is_labelled], known).predict(pcs) for name, c in classifiers.items()}
    proba = regression.predict_proba(pcs)
    return found | {REGRESSION: pd.DataFrame(proba, adata.obs_names, regression.classes_)}
