"""Labels of a reference for cells that come later: are they right, sure, and are new types seen?

    SCGMVAE_DATA_DIR=... python benchmarks/transfer.py [--tasks mice] [--seeds 0 1 2]

*mice*: baron_mouse, the first mouse is the reference, with labels, the second the query. *plates*:
sc_mixology, three CEL-seq2 plates are the reference, CEL-seq2 and Drop-seq the query, of two
batches. *half*: the second mouse again, with half of the genes missing, drawn by the seed. Scores
are of the cells of the query whose type the reference has: accuracy, macro F1 over types, and the
calibration error of the probabilities. scgmvae maps the query as it is, after training what is new
in it, and trained on both at once; SCANVI by scArches and on both at once; and a logistic
regression on principal components of all cells. Where genes are missing, all others see what is
left of both.

*unseen*: one type after the other of pbmc3k and baron_mouse is left out of the reference, with a
fifth of the other cells. *AUROC* tells how well these two are apart, by novelty, by the largest
probability of the model, by that of a logistic regression on principal components, and by the
distance to the 15th nearest reference cell there. Types of fewer than 20 cells stay in the
reference.

Rows are merged into a JSON per task after every seed; ``--short`` runs few epochs on simulated
data.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import tools
from anndata import AnnData
from common import load_counts, run_tasks
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

import scgmvae
from scgmvae.clustering.partition import log_normalized_pcs
from scgmvae.metrics import calibration_error

TYPE, BATCH, UNLABELED = "cell_type", "batch", "unknown"
SHORT = {"max_epochs": 2, "pretrain_epochs": 2}
N_PCS = 30
FEWEST = 20
"""Number of cells from which on a type is left out."""


def train(model: scgmvae.SCGMVAE, seed: int, short: bool) -> scgmvae.SCGMVAE:
    settings = {"max_epochs": 2} | ({} if model.is_trained_ else SHORT) if short else {}
    model.train(seed=seed, enable_progress_bar=False, **settings)
    return model


def labelled_model(adata: AnnData, seed: int, short: bool) -> scgmvae.SCGMVAE:
    """A model of cells with labels and batches, of which a query may have others."""
    scgmvae.SCGMVAE.setup_anndata(
        adata, batch_key=BATCH, labels_key=TYPE, unlabeled_category=UNLABELED
    )
    return train(scgmvae.SCGMVAE(adata), seed, short)


def halves(name: str, short: bool) -> tuple[AnnData, NDArray[np.bool_]]:
    """Cells with types and batches, and which of them are the query."""
    if short:
        adata = scgmvae.datasets.synthetic_counts(240, 80, n_components=3, n_batches=2)
        adata.obs[TYPE] = adata.obs["component"]
        queries = adata.obs[BATCH].unique()[-1:]
    else:
        adata = load_counts(name)[0]
        queries = {
            "baron_mouse": sorted(adata.obs[BATCH].astype(str).unique())[1:],
            "sc_mixology": ["sc_celseq2", "sc_dropseq"],
        }[name]
    adata.obs = adata.obs[[TYPE, BATCH]].astype(str)
    return adata, adata.obs[BATCH].isin(list(queries)).to_numpy()


def mapped(cells: str, name: str, share: float, seed: int, short: bool) -> list[dict[str, object]]:
    """One row per method; the query has a share of the genes."""
    adata, is_query = halves(name, short)
    reference, query = adata[~is_query].copy(), adata[is_query].copy()
    if share < 1:
        n_kept = int(share * adata.n_vars)
        kept = np.sort(np.random.default_rng(seed).permutation(adata.n_vars)[:n_kept])
        query, adata = query[:, kept].copy(), adata[:, kept].copy()
    truth = query.obs[TYPE].to_numpy()
    is_known = np.isin(truth, reference.obs[TYPE].unique())
    query.obs[TYPE] = UNLABELED

    def row(method: str, proba: pd.DataFrame) -> dict[str, object]:
        known, proba = truth[is_known], proba[is_known]
        predicted = proba.idxmax(axis=1).to_numpy()
        return {
            "query": cells,
            "method": method,
            "seed": seed,
            "ACC": float((predicted == known).mean()),
            "macro_F1": f1_score(known, predicted, labels=np.unique(known), average="macro"),
            "ECE": calibration_error(known, proba),
        }

    model = labelled_model(reference, seed, short)
    new = scgmvae.SCGMVAE.load_query_data(query.copy(), model)
    rows = [row("scgmvae, query not trained", new.predict(soft=True))]
    rows.append(row("scgmvae", train(new, seed, short).predict(soft=True)))
    both = adata.copy()
    both.obs[TYPE] = both.obs[TYPE].where(~is_query, UNLABELED)
    on_both = labelled_model(both, seed, short)
    rows.append(row("scgmvae, trained on both", on_both.predict(soft=True)[is_query]))
    max_epochs = 2 if short else None
    rows.append(row("logistic regression on PCs", on_pcs(adata, ~is_query, seed)[is_query]))
    seen = reference[:, query.var_names].copy()
    scarches = tools.scanvi_query(seen, query, TYPE, UNLABELED, seed, BATCH, 10, max_epochs)
    rows.append(row("SCANVI with scArches", scarches.predict(soft=True)))
    tutorial = {"SCANVI": tools.TUTORIAL}
    peer = tools.scanvi(both, TYPE, UNLABELED, seed, BATCH, 10, max_epochs, tutorial)["SCANVI"]
    rows.append(row("SCANVI, trained on both", peer.predict(soft=True)[is_query]))
    return rows


def on_pcs(adata: AnnData, is_reference: NDArray[np.bool_], seed: int) -> pd.DataFrame:
    """Probabilities of all cells by a logistic regression on principal components."""
    pcs = log_normalized_pcs(adata.X, N_PCS, seed)
    regression = LogisticRegression(max_iter=2000)
    regression.fit(pcs[is_reference], adata.obs[TYPE].to_numpy()[is_reference])
    return pd.DataFrame(regression.predict_proba(pcs), adata.obs_names, regression.classes_)


def unseen(seed: int, short: bool) -> list[dict[str, object]]:
    """One row per type that is left out, method and data set."""
    rows = []
    for name in ["simulated"] if short else ["pbmc3k", "baron_mouse"]:
        adata, _ = load_counts(name)
        sizes = adata.obs[TYPE].astype(str).value_counts()
        left_out = sizes.index[sizes >= FEWEST][: 1 if short else None]
        rng = np.random.default_rng(seed)
        is_held_out = rng.random(adata.n_obs) < 0.2
        obs = pd.DataFrame({TYPE: adata.obs[TYPE].astype(str), BATCH: "one"})
        obs[BATCH] = adata.obs[BATCH].astype(str) if BATCH in adata.obs else "one"
        adata.obs = obs
        for kind in left_out:
            scores = novelties(adata, kind, is_held_out, seed, short)
            rows += [
                {"method": method, "data": name, "type": kind, "seed": seed, "AUROC": value}
                for method, value in scores.items()
            ]
            print(name, kind, {method: round(value, 3) for method, value in scores.items()})
    return rows


def novelties(
    adata: AnnData, kind: str, is_held_out: NDArray[np.bool_], seed: int, short: bool
) -> dict[str, float]:
    """AUROC of a type that is left out against other cells that were held out, by method."""
    is_new = (adata.obs[TYPE] == kind).to_numpy()
    is_reference, is_query = ~is_new & ~is_held_out, is_new | is_held_out
    model = labelled_model(adata[is_reference].copy(), seed, short)
    query = adata[is_query].copy()
    query.obs[TYPE] = UNLABELED
    pcs = log_normalized_pcs(adata.X, N_PCS, seed)
    nearest = NearestNeighbors(n_neighbors=15).fit(pcs[is_reference])
    scores = {
        # of which the novelty is the rank, 1 for all beyond the last training cell
        "scgmvae, novelty": model._distance(model._posteriors(query)),
        "scgmvae, probability": 1 - model.predict(query, soft=True).max(axis=1),
        "logistic regression on PCs, probability": 1
        - on_pcs(adata, is_reference, seed)[is_query].max(axis=1),
        "distance on PCs": nearest.kneighbors(pcs[is_query])[0][:, -1],
    }
    return {
        method: float(roc_auc_score(is_new[is_query], score)) for method, score in scores.items()
    }


TASKS = {
    "mice": (partial(mapped, "second mouse", "baron_mouse", 1.0), ["query", "method"]),
    "half": (partial(mapped, "half of its genes", "baron_mouse", 0.5), ["query", "method"]),
    "plates": (partial(mapped, "CEL-seq2, Drop-seq", "sc_mixology", 1.0), ["query", "method"]),
    "unseen": (unseen, ["method", "data", "type"]),
}

if __name__ == "__main__":
    run_tasks("transfer", __doc__.split("\n")[0], TASKS)
