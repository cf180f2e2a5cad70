"""Control and stimulated cells: labels of new cells, generated cells.

    SCGMVAE_DATA_DIR=... python benchmarks/kang.py [--tasks supervised] [--seeds 0 1 2]

*supervised*: a half of the labelled cells trains, the other is predicted; beside it classifiers on
principal components and on all genes.
*generation*: a random forest that learned from real cells names label and condition of generated
ones, and another tells real from generated cells.

Rows are merged into a JSON per task after every fit; ``--short`` runs few epochs on simulated
data.
"""

from __future__ import annotations

import numpy as np
import tools
from anndata import AnnData, concat
from common import run_tasks
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

import scgmvae
from scgmvae.data import normalization

TYPES = ("CD4T", "B", "CD14+Mono", "NK")
TYPE, CONDITION, UNKNOWN = "cell_type", "condition", "unknown"
CONTROL, STIMULATED = "control", "stimulated"
SHORT = {"max_epochs": 2, "pretrain_epochs": 2}


def load(short: bool) -> AnnData:
    if not short:
        return scgmvae.datasets.load("kang")
    adata = scgmvae.datasets.synthetic_counts(600, 150, n_components=4, n_conditions=2)
    names = dict(zip(adata.obs["component"].cat.categories, TYPES, strict=True))
    adata.obs[TYPE] = adata.obs["component"].map(names)
    conditions = {"condition_0": CONTROL, "condition_1": STIMULATED}
    adata.obs[CONDITION] = adata.obs[CONDITION].map(conditions)
    return adata


def fit(adata: AnnData, seed: int, short: bool) -> scgmvae.SCGMVAE:
    scgmvae.SCGMVAE.setup_anndata(
        adata,
        labels_key=TYPE,
        unlabeled_category=UNKNOWN,
        categorical_covariate_keys=[CONDITION],
    )
    model = scgmvae.SCGMVAE(adata)
    model.train(seed=seed, enable_progress_bar=False, **(SHORT if short else {}))
    return model


def log_normalized(adata: AnnData) -> AnnData:
    """Cells × genes, log(1 + counts per 10,000); obs are kept."""
    logs = normalization.log_normalized(sparse.csr_matrix(adata.X))
    logs.obs, logs.var = adata.obs.copy(), adata.var[[]].copy()
    return logs


# ------------------------------------------------------------------------------ supervised


def supervised(seed: int, short: bool) -> list[dict[str, object]]:
    adata = load(short)
    adata = adata[adata.obs[TYPE] != UNKNOWN]
    train, test = train_test_split(
        np.arange(adata.n_obs), test_size=0.5, stratify=adata.obs[TYPE], random_state=seed
    )
    model = fit(adata[train].copy(), seed, short)
    predicted = {"scgmvae": model.predict(adata[test].copy())}
    # what the labels allow: classifiers that need no model
    types, logs = adata.obs[TYPE].to_numpy(), log_normalized(adata).X
    is_train = np.isin(np.arange(adata.n_obs), train)
    on_pcs = tools.on_pcs(adata, types, is_train, seed=seed)
    predicted["PCA + LDA"] = on_pcs["PCA + LDA"][test]
    classifiers = {
        "logistic regression on genes": LogisticRegression(C=0.01, max_iter=300),
        "random forest on genes": RandomForestClassifier(200, n_jobs=1, random_state=seed),
    }
    for name, classifier in classifiers.items():
        predicted[name] = classifier.fit(logs[train], types[train]).predict(logs[test])
    return [
        {"method": name, "seed": seed, "ACC": float((names == types[test]).mean())}
        for name, names in predicted.items()
    ]


# ------------------------------------------------------------------------------ generation


def generation(seed: int, short: bool) -> list[dict[str, object]]:
    adata = load(short)
    real = adata[adata.obs[TYPE] != UNKNOWN].copy()
    model = fit(adata, seed, short)
    pairs = real.obs.groupby([TYPE, CONDITION], observed=True).size()
    parts = []
    for i, ((name, condition), n) in enumerate(pairs.items()):
        part = model.sample(n, name, {CONDITION: condition}, seed=1000 * seed + i)
        part.obs[TYPE] = name
        parts.append(part)
    drawn = {"scgmvae": concat(parts, index_unique="-")}
    scvi_model = tools.scvi_latent(adata, seed, CONDITION, max_epochs=2 if short else 100)
    counts = scvi_model.posterior_predictive_sample()
    known = (adata.obs[TYPE] != UNKNOWN).to_numpy()
    counts = sparse.csr_matrix(counts.to_scipy_sparse())[known]
    counts.indices, counts.indptr = counts.indices.astype(np.int32), counts.indptr.astype(np.int32)
    drawn["SCVI posterior predictive"] = AnnData(counts, obs=real.obs, var=real.var)
    truth, rows = log_normalized(real), []
    train, test = train_test_split(np.arange(real.n_obs), test_size=0.5, random_state=seed)

    def forest(x, y):
        return RandomForestClassifier(200, n_jobs=1, random_state=seed).fit(x, y)

    forests = {
        key: forest(truth.X[train], truth.obs[key].iloc[train]) for key in (TYPE, CONDITION)
    }
    drawn["real cells, held out"] = real[test]
    for method, cells in drawn.items():
        cells = log_normalized(cells)
        row = {"method": method, "seed": seed}
        for key, by in forests.items():
            row[f"ACC_{key}"] = float((by.predict(cells.X) == cells.obs[key].astype(str)).mean())
        row["AUC_real"] = np.nan
        if cells.n_obs == real.n_obs:
            own_train, own_test = train_test_split(
                np.arange(cells.n_obs), test_size=0.5, random_state=seed
            )
            judge = forest(
                sparse.vstack([truth.X[train], cells.X[own_train]]),
                np.repeat([1, 0], [len(train), len(own_train)]),
            )
            chance = judge.predict_proba(sparse.vstack([truth.X[test], cells.X[own_test]]))[:, 1]
            is_real = np.repeat([1, 0], [len(test), len(own_test)])
            row["AUC_real"] = float(roc_auc_score(is_real, chance))
        rows.append(row)
    return rows


TASKS = {
    "supervised": (supervised, ["method"]),
    "generation": (generation, ["method"]),
}


if __name__ == "__main__":
    run_tasks("kang", __doc__.split("\n")[0], TASKS)
