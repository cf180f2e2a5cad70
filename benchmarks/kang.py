"""Control and stimulated cells: counterfactuals, labels of new cells, generated cells.

    SCGMVAE_DATA_DIR=... python benchmarks/kang.py [--tasks counterfactual] [--seeds 0 1 2]

*counterfactual*: the stimulated cells of one type are left out of training, and its control cells
are predicted as stimulated. R² is the squared correlation over genes of the mean log-normalised
expression of predicted and real stimulated cells, over all genes and over the 100 that differ most
between the two real groups. Predicted are counts drawn at each cell's own library size, which are
log-normalised as the real ones are. For B cells also: of the ten genes that mark the real
stimulated cells best, how many are among the ten of the predicted ones.
*supervised*: a half of the labelled cells trains, the other is predicted; beside it classifiers on
principal components and on all genes.
*generation*: a random forest that learned from real cells names label and condition of generated
ones, and another tells real from generated cells.

Rows are merged into a JSON per task after every fit; ``--short`` runs few epochs on simulated
data.
"""

from __future__ import annotations

import numpy as np
import scanpy as sc
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
from scgmvae.data.normalization import r_squared

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


def mean_of_genes(adata: AnnData) -> np.ndarray:
    return normalization.mean_expression(adata).to_numpy()


# ------------------------------------------------------------------------- counterfactuals


def mean_shift(adata: AnnData, held_out: str) -> np.ndarray:
    """Control cells of a type plus the mean change of the other types, in log space, cut at 0."""
    logs = log_normalized(adata)
    of = {
        (name, condition): logs[(logs.obs[TYPE] == name) & (logs.obs[CONDITION] == condition)].X
        for name in logs.obs[TYPE].unique()
        for condition in (CONTROL, STIMULATED)
    }
    shifts = [
        of[name, STIMULATED].mean(axis=0) - of[name, CONTROL].mean(axis=0)
        for name in logs.obs[TYPE].unique()
        if name not in (held_out, UNKNOWN)
    ]
    shifted = of[held_out, CONTROL].toarray() + np.asarray(np.mean(shifts, axis=0))
    return shifted.clip(min=0).mean(axis=0)


def markers(control: AnnData, stimulated: AnnData, n: int = 10) -> set[str]:
    """Genes that are highest in stimulated against control cells, by t-test."""
    both = log_normalized(concat({CONTROL: control, STIMULATED: stimulated}, label="group"))
    both.obs["group"] = both.obs["group"].astype("category")
    sc.tl.rank_genes_groups(both, "group", groups=[STIMULATED], reference=CONTROL)
    return set(both.uns["rank_genes_groups"]["names"][STIMULATED][:n])


def counterfactual(seed: int, short: bool) -> list[dict[str, object]]:
    adata = load(short)
    rows = []
    for name in TYPES:
        is_type = adata.obs[TYPE] == name
        is_stimulated = adata.obs[CONDITION] == STIMULATED
        control = adata[is_type & ~is_stimulated].copy()
        real = adata[is_type & is_stimulated].copy()
        kept = adata[~(is_type & is_stimulated)].copy()
        model = fit(kept, seed, short)
        target = {CONDITION: STIMULATED}
        predicted = {
            f"scgmvae via {via}": model.predict_counterfactual(control, target, via=via, seed=seed)
            for via in ("z", "w")
        }
        means = {method: mean_of_genes(cells) for method, cells in predicted.items()}
        means |= {"no change": mean_of_genes(control), "mean shift": mean_shift(kept, name)}
        truth = mean_of_genes(real)
        top = np.argsort(-np.abs(truth - means["no change"]))[:100]
        for method, mean in means.items():
            row = {
                "method": method,
                "held_out": name,
                "seed": seed,
                "R2": r_squared(mean, truth),
                "R2_top100": r_squared(mean[top], truth[top]),
                "markers": np.nan,
            }
            if name == "B" and method in predicted:
                found = markers(control, real) & markers(control, predicted[method])
                row["markers"] = float(len(found))
            rows.append(row)
    return rows


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
    "counterfactual": (counterfactual, ["method", "held_out"]),
    "supervised": (supervised, ["method"]),
    "generation": (generation, ["method"]),
}


if __name__ == "__main__":
    run_tasks("kang", __doc__.split("\n")[0], TASKS)
