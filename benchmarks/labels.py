"""A few labelled cells: how well do they label the rest, and are the probabilities right?

    SCGMVAE_DATA_DIR=... python benchmarks/labels.py [--tasks pbmc3k-5%] [--methods SCANVI ...]

The labelled cells are drawn from each type at random, by the seed, the same ones for all methods.
Scores are on all other cells. *rare* asks of more components than labels how many of the 16 types
of mouse_bladder, some of a dozen cells, have a component whose majority they are, with and without
balancing. Rows are merged into a JSON per task after every fit, so methods can
be run one at a time; with ``--short`` two epochs on simulated data, to show that the script runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import tools
import torch
from anndata import AnnData
from common import load_counts, merge, set_threads, summarise
from numpy.typing import NDArray
from sklearn.metrics import f1_score

import scgmvae
from scgmvae.metrics import calibration_error

FRACTIONS = {
    "pbmc3k-5%": ("pbmc3k", 0.05),
    "pbmc3k-10%": ("pbmc3k", 0.10),
    "pbmc4k-10": ("pbmc4k", 10),
    "simulated": ("simulated", 5),
}
"""Data, and how much of each type is labelled: a fraction, or a number of cells."""
TYPE, KEY, UNLABELED = "cell_type", "label", "unknown"
SHORT = {"max_epochs": 2, "pretrain_epochs": 2}


def draw_labelled(
    types: pd.Series, amount: float, seed: int, at_least: int = 1
) -> NDArray[np.bool_]:
    """Which cells are labelled: of each type a fraction, or a number, as far as there are any."""
    rng = np.random.default_rng(seed)
    is_labelled = np.zeros(len(types), dtype=bool)
    for name in sorted(types.unique()):
        cells = np.flatnonzero(types == name)
        n = max(at_least, round(amount * len(cells))) if amount < 1 else int(amount)
        is_labelled[rng.choice(cells, min(n, len(cells)), replace=False)] = True
    return is_labelled


# Each gets an AnnData without other labels, and returns by method the labels of all cells, or
# their probabilities.


def run_scgmvae(adata: AnnData, seed: int, short: bool) -> dict[str, pd.DataFrame]:
    scgmvae.SCGMVAE.setup_anndata(adata, labels_key=KEY, unlabeled_category=UNLABELED)
    model = scgmvae.SCGMVAE(adata)
    model.train(seed=seed, enable_progress_bar=False, **(SHORT if short else {}))
    return {"scgmvae": model.predict(soft=True)}


def run_scanvi(adata: AnnData, seed: int, short: bool) -> dict[str, pd.DataFrame]:
    models = tools.scanvi(adata, KEY, UNLABELED, seed, max_epochs=2 if short else None)
    return {name: model.predict(soft=True) for name, model in models.items()}


def run_on_pcs(adata: AnnData, seed: int, short: bool) -> dict[str, NDArray | pd.DataFrame]:
    labels = adata.obs[KEY]
    return tools.on_pcs(adata, labels, (labels != UNLABELED).to_numpy(), seed=seed)


METHODS = {"scgmvae": run_scgmvae, "SCANVI": run_scanvi, "PCA": run_on_pcs}


def fit(task: str, method: str, seed: int, short: bool) -> list[dict[str, object]]:
    name, amount = FRACTIONS[task]
    adata, _ = load_counts(name)
    types = adata.obs[TYPE].astype(str)
    is_labelled = draw_labelled(types, amount, seed)
    adata.obs = pd.DataFrame({KEY: types.where(is_labelled, UNLABELED)})
    start = time.perf_counter()
    results = METHODS[method](adata, seed, short)
    seconds = time.perf_counter() - start
    return [
        {
            "task": task,
            "method": name,
            "seed": seed,
            "n_labelled": int(is_labelled.sum()),
            "n_scored": int((~is_labelled).sum()),
            **scores(result, types.to_numpy(), ~is_labelled),
            "seconds": seconds,
            "threads": torch.get_num_threads(),
        }
        for name, result in results.items()
    ]


def scores(
    result: pd.DataFrame | NDArray, types: NDArray, is_scored: NDArray[np.bool_]
) -> dict[str, float]:
    """Accuracy and macro F1, and of probabilities also how far they can be trusted."""
    has_proba = isinstance(result, pd.DataFrame)
    predicted = result.idxmax(axis=1).to_numpy() if has_proba else result
    truth, predicted = types[is_scored], predicted[is_scored]
    is_right = truth == predicted
    confidence = result.max(axis=1).to_numpy(dtype=float)[is_scored] if has_proba else None
    return {
        "ACC": float(is_right.mean()),
        "macro_F1": f1_score(truth, predicted, labels=np.unique(truth), average="macro"),
        "ECE": calibration_error(truth, result[is_scored]) if has_proba else np.nan,
        "confidence": float(confidence.mean()) if has_proba else np.nan,
    }


def rare(seed: int, short: bool) -> list[dict[str, object]]:
    """Types that are the majority of a component, with and without balancing."""
    rows = []
    for balance_key in (None, KEY):
        adata, _ = load_counts("simulated" if short else "mouse_bladder")
        types = adata.obs[TYPE].astype(str)
        is_labelled = draw_labelled(types, 0.05, seed, at_least=3)
        adata.obs = pd.DataFrame({KEY: types.where(is_labelled, UNLABELED)})
        scgmvae.SCGMVAE.setup_anndata(adata, labels_key=KEY, unlabeled_category=UNLABELED)
        model = scgmvae.SCGMVAE(adata, n_components=24)
        model.train(
            seed=seed,
            balance_key=balance_key,
            enable_progress_bar=False,
            **(SHORT if short else {}),
        )
        components = pd.Series(model.predict(components=True), index=types.index)
        majority = types.groupby(components).agg(lambda names: names.mode()[0])
        smallest = types.value_counts().index[-1]
        of_smallest = components[components.map(majority) == smallest]
        found = (types[of_smallest.index] == smallest).sum()
        accuracy = (model.predict() == types)[~is_labelled].mean()
        rows.append(
            {
                "task": "rare",
                "method": "scgmvae" if balance_key is None else "scgmvae, balance_key",
                "seed": seed,
                "types": types.nunique(),
                "types_found": majority.nunique(),
                "components_used": components.nunique(),
                "recall_smallest": float(found / (types == smallest).sum()),
                "ACC": float(accuracy),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument(
        "--tasks", nargs="+", default=["pbmc3k-5%", "pbmc3k-10%", "pbmc4k-10", "rare"]
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    if args.short:
        args.tasks, args.seeds = ["simulated", "rare"], [0]
    tables = {}
    for task in args.tasks:
        path = args.out / f"labels-{task.replace('%', 'pct')}.json"
        for seed in args.seeds:
            for method in ["scgmvae"] if task == "rare" else args.methods:
                rows = (
                    rare(seed, args.short)
                    if task == "rare"
                    else fit(task, method, seed, args.short)
                )
                keys = ["method", "seed"]
                tables[task] = merge(path, rows, keys, script="labels.py", short=args.short)
                print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)
    table = pd.concat(tables.values()).sort_values(["task", "method", "seed"])
    table = table.drop(columns=["n_labelled", "n_scored", "threads"], errors="ignore")
    print(summarise(table, ["task", "method"]).to_string())


if __name__ == "__main__":
    main()
