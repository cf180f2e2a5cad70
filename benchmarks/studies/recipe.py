"""What each part of the training recipe does: the default, and one change at a time.

    SCGMVAE_DATA_DIR=... python benchmarks/studies/recipe.py
    SCGMVAE_DATA_DIR=... python benchmarks/studies/recipe.py --found --sets pbmc4k

ARI and ACC at the start and after training, with K given or, by ``--found``, not, and the bound.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

import scgmvae
from scgmvae.clustering import partition
from scgmvae.metrics import clustering_scores

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import load_counts, set_threads, summarise, write

SETS = ("pbmc4k", "mouse_bladder", "pbmc3k")
NEEDS_K = "k-means start"
VARIANTS = {
    "default": ({}, {}),
    "no input dropout": ({"input_dropout_rate": 0.0}, {}),
    "long pretraining (60 epochs)": ({}, {"pretrain_epochs": 60}),
    "no guide": ({}, {"plan_kwargs": {"guide_weight": 0.0}}),
    "weak guide (2)": ({}, {"plan_kwargs": {"guide_weight": 2.0}}),
    "guide fades by .3": ({}, {"plan_kwargs": {"guide_fraction": 0.3}}),
    "guide to the end": ({}, {"plan_kwargs": {"guide_fraction": 1.0}}),
    "steps get shorter": ({}, {"plan_kwargs": {"lr_decline": 1.0}}),
    "20 latent dimensions": ({"n_latent": 20}, {}),
    "uniform weights": ({"component_weights": "uniform"}, {}),
    "network q(d)": ({"dirichlet_posterior": "network"}, {}),
    "no d (GMVAE)": ({"prior": "mixture"}, {}),
    "concentration .3": ({"concentration": 0.3}, {}),
    "concentration 3": ({"concentration": 3.0}, {}),
    "one dimension of w": ({"n_latent_w": 1}, {}),
    NEEDS_K: ({}, {"start": "kmeans"}),
}


def fit(
    name: str, variant: str, seed: int, epochs: dict[str, int], is_told: bool
) -> dict[str, object]:
    module_settings, train_settings = VARIANTS[variant]
    adata, _ = load_counts(name)
    labels = adata.obs["cell_type"]
    n_components = labels.nunique() if is_told else None
    model = scgmvae.SCGMVAE(adata, n_components=n_components, **module_settings)
    model.train(seed=seed, enable_progress_bar=False, **epochs | train_settings)
    pcs = partition.log_normalized_pcs(adata.X, seed=seed)
    method = train_settings.get("start", "leiden")
    start = partition.initial_partition(pcs, n_components, method, seed)
    at_start = clustering_scores(labels, start)
    at_end = clustering_scores(labels, adata.obs["scgmvae"])
    return {
        "data": name,
        "variant": variant,
        "seed": seed,
        "ARI start": at_start["ARI"],
        "ARI": at_end["ARI"],
        "ACC start": at_start["ACC"],
        "ACC": at_end["ACC"],
        "n_clusters": adata.obs["scgmvae"].nunique(),
        "elbo": -float(model.history["elbo_train"].iloc[-1, 0]),
        "kl_w": float(model.history["kl_w_train"].iloc[-1, 0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--found", action="store_true", help="do not tell K")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--short", action="store_true", help="two epochs of simulated data")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    variants, epochs = list(VARIANTS), {}
    if args.short:
        args.sets, args.seeds, variants = ["simulated"], [0], ["default", "k-means start"]
        epochs = {"max_epochs": 2, "pretrain_epochs": 2}
    if args.found:
        variants = [variant for variant in variants if variant != NEEDS_K]
    path = args.out / ("recipe-found.json" if args.found else "recipe.json")
    rows = []
    for name in args.sets:
        for variant in variants:
            for seed in args.seeds:
                rows.append(fit(name, variant, seed, epochs, not args.found))
            print(pd.DataFrame(rows[-len(args.seeds) :]).round(3).to_string(), flush=True)
            # written as it grows: a long run that is broken off is not lost
            write(path, pd.DataFrame(rows), script="recipe.py", short=args.short)
    print(summarise(pd.DataFrame(rows), ["data", "variant"]).to_string())


if __name__ == "__main__":
    main()
