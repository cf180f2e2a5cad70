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

*unseen*: one type after the other of four sets is left out of the reference, with a fifth of the
other cells. *other_batch*: a type is left out of the first mouse, or of the plates, and the query
is the second mouse, or the two other batches; it is mapped, but not trained. *AUROC* tells how
well cells of the type and the others of the query are apart, by the novelty, by its distance in z
alone, by the largest probability of the model, by that of a logistic regression on principal
components, and by the distance to the 15th nearest reference cell there. *known* and *new* are the
shares of both whose novelty is above 0.99. Types of fewer than 20 cells stay in the reference.

Rows are merged into a JSON per task after every seed; ``--short`` runs few epochs on simulated
data.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import tools
from anndata import AnnData
from common import load_counts, run_tasks
from numpy.typing import NDArray
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
SETS_OF_UNSEEN = ("pbmc3k", "baron_mouse", "kang", "sc_mixology")
"""Sets of which types are left out; the settings of novelty were chosen on the first two."""


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
    rows.append(row("logistic regression on PCs", regression(adata, ~is_query, seed)[is_query]))
    seen = reference[:, query.var_names].copy()
    scarches = tools.scanvi_query(seen, query, TYPE, UNLABELED, seed, BATCH, 10, max_epochs)
    rows.append(row("SCANVI with scArches", scarches.predict(soft=True)))
    tutorial = {"SCANVI": tools.TUTORIAL}
    peer = tools.scanvi(both, TYPE, UNLABELED, seed, BATCH, 10, max_epochs, tutorial)["SCANVI"]
    rows.append(row("SCANVI, trained on both", peer.predict(soft=True)[is_query]))
    return rows


def regression(adata: AnnData, is_reference: NDArray[np.bool_], seed: int) -> pd.DataFrame:
    """Probabilities of all cells by a logistic regression on principal components."""
    found = tools.on_pcs(adata, adata.obs[TYPE], is_reference, N_PCS, seed=seed)
    return found[tools.REGRESSION]


def with_batches(name: str) -> AnnData:
    """Cells with types and batches, one batch where they have none; of kang the named types."""
    adata, batch_key = load_counts(name)
    types = adata.obs[TYPE].astype(str)
    batch = "one" if name == "pbmc3k" else adata.obs[batch_key or BATCH].astype(str)
    adata.obs = pd.DataFrame({TYPE: types, BATCH: batch}, adata.obs_names)
    return adata[types != UNLABELED].copy()


def unseen(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """One row per type that is left out, method and data set."""
    for name in ["simulated"] if short else SETS_OF_UNSEEN:
        adata = halves(name, short)[0] if short else with_batches(name)
        is_held_out = np.random.default_rng(seed).random(adata.n_obs) < 0.2
        sizes = adata.obs[TYPE].value_counts()
        for kind in sizes.index[sizes >= FEWEST][: 1 if short else None]:
            is_new = (adata.obs[TYPE] == kind).to_numpy()
            yield novelties(name, adata, kind, is_held_out | is_new, seed, short)


def other_batch(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """The same where the query is of another batch."""
    queries = {"second mouse": "baron_mouse", "CEL-seq2, Drop-seq": "sc_mixology"}
    for cells, name in queries.items():
        adata, is_query = halves(name, short)
        sizes = adata.obs[TYPE][is_query].value_counts()
        for kind in sizes.index[sizes >= FEWEST][: 1 if short else None]:
            yield novelties(cells, adata, kind, is_query, seed, short)


def novelties(
    name: str, adata: AnnData, kind: str, is_query: NDArray[np.bool_], seed: int, short: bool
) -> list[dict[str, object]]:
    """AUROC of a type that is left out against the other cells of a query, by method."""
    is_new = (adata.obs[TYPE] == kind).to_numpy()
    is_reference, is_new = ~is_query & ~is_new, is_new[is_query]
    query = adata[is_query].copy()
    query.obs[TYPE] = UNLABELED
    reference = labelled_model(adata[is_reference].copy(), seed, short)
    model = scgmvae.SCGMVAE.load_query_data(query, reference)
    pcs = log_normalized_pcs(adata.X, N_PCS, seed)
    nearest = NearestNeighbors(n_neighbors=15).fit(pcs[is_reference])
    novelty = model.get_novelty()
    scores = {
        "scgmvae, novelty": novelty,
        # of which the rank is 1 for all beyond the last training cell
        "scgmvae, distance in z": model._distance(model._posteriors()),
        "scgmvae, probability": 1 - model.predict(soft=True).max(axis=1),
        "logistic regression on PCs, probability": 1
        - regression(adata, is_reference, seed)[is_query].max(axis=1),
        "distance on PCs": nearest.kneighbors(pcs[is_query])[0][:, -1],
    }
    rows = []
    for method, score in scores.items():
        row = {"method": method, "data": name, "type": kind, "seed": seed}
        row["AUROC"] = float(roc_auc_score(is_new, score))
        if method == "scgmvae, novelty":
            row |= {"known": (novelty[~is_new] > 0.99).mean()}
            row |= {"new": (novelty[is_new] > 0.99).mean()}
        rows.append(row)
    print(name, kind, {row["method"]: round(row["AUROC"], 3) for row in rows}, flush=True)
    return rows


TASKS = {
    "mice": (partial(mapped, "second mouse", "baron_mouse", 1.0), ["query", "method"]),
    "half": (partial(mapped, "half of its genes", "baron_mouse", 0.5), ["query", "method"]),
    "plates": (partial(mapped, "CEL-seq2, Drop-seq", "sc_mixology", 1.0), ["query", "method"]),
    "unseen": (unseen, ["method", "data", "type"]),
    "other_batch": (other_batch, ["method", "data", "type"]),
}

if __name__ == "__main__":
    run_tasks("transfer", __doc__.split("\n")[0], TASKS)
