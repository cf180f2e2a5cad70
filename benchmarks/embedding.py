"""Is the embedding true on data that it was not tuned to? Beside PCA, Harmony, SCVI, SCANVI, DRVI.

    SCGMVAE_DATA_DIR=... python benchmarks/embedding.py [--tasks real simulated null settings]
    python benchmarks/embedding.py --add atlas.h5ad --labels cell_type --batch donor

real       real cells; methods with labels know those of a tenth of the cells
simulated  four designs with known types (``simulators.py``)
null       a batch that is none: half of the cells at random
settings   scgmvae with one default changed at a time, on all of these sets

Peers are trained as they are by default, for as many epochs; DRVI with its 32 dimensions. A set
that is added is run as *real* is, and its rows are written beside them. ``--short`` runs few
epochs on simulated cells.

A default is changed only if the change also wins on sets that were not used to find it
(``leave_one_out.py``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import tools
from anndata import AnnData
from common import load_counts, peak_memory, run_tasks, threads_kept
from embedding_scores import neighbors_kept, scores_of
from labels import draw_labelled
from numpy.typing import NDArray
from simulators import SIMULATORS
from sklearn.metrics import adjusted_rand_score

import scgmvae
from scgmvae.clustering.partition import log_normalized_pcs

Row = dict[str, object]
SETS = ("sc_mixology", "baron_mouse", "kang", "pbmc3k", "mouse_bladder", "paul15")
NULL = ("pbmc3k", "mouse_bladder", "paul15")
"""Sets of which half of the cells count as a batch."""
UNKNOWN = "unknown"
SHORT = {"max_epochs": 2, "pretrain_epochs": 4}

SETTINGS: dict[str, tuple[Row, Row]] = {
    "default": ({}, {}),
    "encoder without c": ({"encode_covariates": False}, {}),
    "joint stage twice as long": ({}, {"joint": 2}),
    "pretraining twice as long": ({}, {"pretraining": 2}),
    "20 dimensions": ({"n_latent": 20}, {}),
    "30 dimensions": ({"n_latent": 30}, {}),
    "two layers": ({"n_layers": 2}, {}),
    "no dropout": ({"dropout_rate": 0.0}, {}),
    "KL half": ({}, {"plan_kwargs": {"max_kl_weight": 0.5}}),
    "encoder without c, KL half": (
        {"encode_covariates": False},
        {"plan_kwargs": {"max_kl_weight": 0.5}},
    ),
}
"""Change → settings of the model and of its training; stages are multiples of their length."""

# ---------------------------------------------------------------------------------- methods


def by_scgmvae(
    adata: AnnData,
    batch_key: str | None,
    seed: int,
    short: bool,
    labels_key: str | None = None,
    setting: str = "default",
) -> tuple[NDArray, NDArray]:
    """Embedding and clusters of a fit."""
    init, stages = SETTINGS[setting]
    scgmvae.SCGMVAE.setup_anndata(
        adata, batch_key=batch_key, labels_key=labels_key, unlabeled_category=UNKNOWN
    )
    model = scgmvae.SCGMVAE(adata, **init)
    epochs = dict(SHORT) if short else {}
    recipe = scgmvae.train.recipe.COUNTS
    for argument, stage in (("max_epochs", "joint"), ("pretrain_epochs", "pretraining")):
        if stage in stages and not short:
            length = getattr(recipe, stage).epochs(adata.n_obs)
            epochs[argument] = int(length * stages[stage])
    with threads_kept():
        model.train(
            **epochs,
            seed=seed,
            plan_kwargs=stages.get("plan_kwargs"),
            enable_progress_bar=False,
            logger=False,
        )
    return adata.obsm["X_scgmvae"], adata.obs["scgmvae"].to_numpy().astype(str)


def by_harmony(adata: AnnData, batch_key: str | None, seed: int) -> NDArray:
    """Principal components, moved by Harmony."""
    import harmonypy

    pcs = log_normalized_pcs(adata.X, 30, seed)
    moved = harmonypy.run_harmony(
        pcs, adata.obs, [batch_key], verbose=False, random_state=seed, ncores=1
    ).Z_corr
    return moved if moved.shape == pcs.shape else moved.T


@tools.quiet()
def by_drvi(adata: AnnData, batch_key: str | None, seed: int, short: bool) -> NDArray:
    """Embedding of DRVI, as its authors' tutorial trains it."""
    import scvi
    from drvi.model import DRVI

    scvi.settings.seed = seed
    copy = AnnData(adata.X, obs=adata.obs)
    DRVI.setup_anndata(
        copy, is_count_data=True, categorical_covariate_keys=[batch_key] if batch_key else None
    )
    model = DRVI(copy, n_latent=32)
    epochs = 2 if short else 400
    model.train(
        max_epochs=epochs,
        enable_progress_bar=False,
        plan_kwargs={"n_epochs_kl_warmup": epochs},
    )
    return model.get_latent_representation()


def methods(
    batch_key: str | None, labels_key: str | None, seed: int, short: bool
) -> dict[str, Callable[[AnnData], NDArray | tuple[NDArray, NDArray]]]:
    """Name → what makes an embedding of an AnnData, with clusters where it has its own."""
    epochs = 2 if short else None

    def by_scvi(adata: AnnData) -> NDArray:
        model = tools.scvi_latent(adata, seed, batch_key, max_epochs=epochs)
        return model.get_latent_representation()

    def by_scanvi(adata: AnnData) -> NDArray:
        found = tools.scanvi(
            adata,
            labels_key,
            UNKNOWN,
            seed,
            batch_key,
            max_epochs=epochs,
            trainings={"SCANVI": {}},
        )
        return found["SCANVI"].get_latent_representation()

    made: dict[str, Callable] = {
        "scgmvae": lambda adata: by_scgmvae(adata, batch_key, seed, short),
        "PCA": lambda adata: log_normalized_pcs(adata.X, 30, seed),
        "SCVI": by_scvi,
    }
    if batch_key is not None and tools.is_there("harmonypy"):
        made["Harmony"] = lambda adata: by_harmony(adata, batch_key, seed)
    if tools.is_there("drvi"):
        made["DRVI"] = lambda adata: by_drvi(adata, batch_key, seed, short)
    if labels_key is not None:
        made["scgmvae, labels"] = lambda adata: by_scgmvae(
            adata, batch_key, seed, short, labels_key
        )
        made["SCANVI, labels"] = by_scanvi
    return made


# ------------------------------------------------------------------------------------ data


def labelled(name: str, seed: int) -> tuple[AnnData, str | None]:
    """Cells whose type is known, by name of a set or a design, and the column of batches."""
    if name in SIMULATORS:
        return SIMULATORS[name](np.random.default_rng(seed)), "batch"
    adata, batch_key = load_counts(name)
    if name == "baron_mouse":
        batch_key = "batch"
    adata = adata[adata.obs["cell_type"] != UNKNOWN].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    return adata, batch_key


def in_halves(adata: AnnData, seed: int) -> AnnData:
    """The same cells, at random in two parts that obs names."""
    adata = adata.copy()
    half = np.random.default_rng(seed).permutation(adata.n_obs) % 2
    adata.obs["half"] = pd.Categorical(half.astype(str))
    return adata


def small(adata: AnnData) -> AnnData:
    """As many cells as the short form needs."""
    return adata[:300].copy()


# ------------------------------------------------------------------------------------ tasks


def rows_of(data: str, adata: AnnData, batch_key: str | None, seed: int, short: bool) -> list[Row]:
    """A row for every method."""
    types = adata.obs["cell_type"].astype(str)
    adata.obs["given"] = types.where(draw_labelled(types, 0.1, seed), UNKNOWN)
    batches = None if batch_key is None else adata.obs[batch_key].astype(str).to_numpy()
    rows = []
    for name, embed in methods(batch_key, "given", seed, short).items():
        with peak_memory() as peak, threads_kept():
            begin = time.process_time()
            found = embed(adata.copy())
            seconds = time.process_time() - begin
        z, own = found if isinstance(found, tuple) else (found, None)
        rows.append(
            {
                "data": data,
                "method": name,
                "seed": seed,
                **scores_of(z, types.to_numpy(), batches, seed),
                "own ARI": np.nan if own is None else adjusted_rand_score(types, own),
                "CPU seconds": seconds,
                "peak MB": peak.mb,
            }
        )
        print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=False), flush=True)
    return rows


def real(seed: int, short: bool) -> Iterator[list[Row]]:
    """Real cells, a set at a time."""
    for name in ("simulated",) if short else SETS:
        yield rows_of(name, *labelled(name, seed), seed, short)


def simulated(seed: int, short: bool) -> Iterator[list[Row]]:
    """Four designs with known types, one at a time."""
    for name in list(SIMULATORS)[: 1 if short else None]:
        adata, batch_key = labelled(name, seed)
        yield rows_of(name, small(adata) if short else adata, batch_key, seed, short)


def null(seed: int, short: bool) -> Iterator[list[Row]]:
    """A batch that is none: what of the neighbours without correction is kept with it."""
    for name in ("simulated",) if short else NULL:
        adata, _ = labelled(name, seed)
        adata = in_halves(adata, seed)
        without = methods(None, None, seed, short)
        again = methods(None, None, seed + 100, short)
        plain = {"Harmony": "PCA"}
        rows = []
        for method, embed in methods("half", None, seed, short).items():
            if method == "PCA":
                continue
            of_none, of_half, of_seed = (
                found[0] if isinstance(found, tuple) else found
                for found in (
                    make(adata.copy())
                    for make in (
                        without[plain.get(method, method)],
                        embed,
                        again[plain.get(method, method)],
                    )
                )
            )
            rows.append(
                {
                    "data": name,
                    "method": method,
                    "seed": seed,
                    "kept": neighbors_kept(of_none, of_half),
                    "kept by another seed": neighbors_kept(of_none, of_seed),
                }
            )
        yield rows


def settings(seed: int, short: bool) -> Iterator[list[Row]]:
    """scgmvae with one default changed at a time, a set at a time."""
    sets = [*SIMULATORS, *SETS]
    for data in ("simulated",) if short else sets:
        adata, batch_key = labelled(data, seed)
        types = adata.obs["cell_type"].astype(str).to_numpy()
        batches = None if batch_key is None else adata.obs[batch_key].astype(str).to_numpy()
        rows = []
        for setting in list(SETTINGS)[: 2 if short else None]:
            z, own = by_scgmvae(adata.copy(), batch_key, seed, short, setting=setting)
            rows.append(
                {
                    "data": data,
                    "setting": setting,
                    "seed": seed,
                    **scores_of(z, types, batches, seed),
                    "own ARI": adjusted_rand_score(types, own),
                    "own clusters": len(np.unique(own)),
                }
            )
            print(
                pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=False), flush=True
            )
        yield rows


TASKS = {
    "real": (real, ["data", "method"]),
    "simulated": (simulated, ["data", "method"]),
    "null": (null, ["data", "method"]),
    "settings": (settings, ["data", "setting"]),
}


def main() -> None:
    if "--add" not in sys.argv:
        run_tasks("embedding", __doc__.split("\n")[0], TASKS)
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--add", type=Path, required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--batch")
    added, rest = parser.parse_known_args()
    sys.argv[1:] = rest

    def run(seed: int, short: bool) -> list[Row]:
        adata = anndata.read_h5ad(added.add)
        labels = adata.obs[added.labels]
        adata = adata[labels.notna() & (labels.astype(str) != UNKNOWN)].copy()
        adata.obs["cell_type"] = adata.obs[added.labels].astype(str)
        return rows_of(added.add.stem, adata, added.batch, seed, short)

    run_tasks("embedding-real", __doc__.split("\n")[0], {"added": (run, ["data", "method"])})


if __name__ == "__main__":
    main()
