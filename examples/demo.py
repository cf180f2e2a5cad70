"""The whole way once, on real counts that need no download.

Trains on 700 PBMCs with default settings and leaves in the output folder: ``annotated.h5ad``;
``umap.png``, clusters beside the known labels; ``training.png``, each term of the loss by epoch;
``report.txt``, agreement with the labels beside PCA + Leiden and PCA + k-means, each with the
number of clusters found and, a second fit, told.

    python examples/demo.py [output folder]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.cluster import KMeans

import scgmvae

SEED = 0
LABELS = "bulk_labels"


def peers(adata: AnnData, n_clusters: int) -> dict[str, pd.Series]:
    """Clusters of the usual workflows: PCA + Leiden, PCA + k-means told the number of clusters."""
    pcs = AnnData(adata.X.copy(), obs=adata.obs[[]].copy(), var=adata.var.copy())
    sc.pp.normalize_total(pcs)
    sc.pp.log1p(pcs)
    sc.pp.pca(pcs, n_comps=30, random_state=SEED)
    sc.pp.neighbors(pcs, random_state=SEED)
    sc.tl.leiden(pcs, flavor="igraph", n_iterations=2, directed=False, random_state=SEED)
    kmeans = KMeans(n_clusters, n_init=10, random_state=SEED).fit_predict(pcs.obsm["X_pca"])
    return {"PCA + Leiden 1.0": pcs.obs["leiden"], f"PCA + k-means({n_clusters})": kmeans}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    adata = scgmvae.datasets.pbmc68k_reduced()
    n_labels = adata.obs[LABELS].nunique()

    start = time.perf_counter()
    model = scgmvae.SCGMVAE(adata)
    model.train(seed=SEED)
    seconds = time.perf_counter() - start
    told = scgmvae.datasets.pbmc68k_reduced()
    scgmvae.SCGMVAE(told, n_components=n_labels).train(seed=SEED)

    sc.pp.neighbors(adata, use_rep="X_scgmvae", random_state=SEED)
    sc.tl.umap(adata, random_state=SEED)
    adata.write_h5ad(folder / "annotated.h5ad")

    figure = scgmvae.pl.embedding(adata, color=["scgmvae", LABELS])
    figure.savefig(folder / "umap.png", dpi=120, bbox_inches="tight")
    figure = scgmvae.pl.training(model)
    figure.savefig(folder / "training.png", dpi=120, bbox_inches="tight")
    plt.close("all")

    clusters = {
        "scgmvae, K found": adata.obs["scgmvae"],
        f"scgmvae, K = {n_labels}": told.obs["scgmvae"],
    } | peers(adata, n_labels)
    table = pd.DataFrame(
        {
            name: scgmvae.metrics.clustering_scores(adata.obs[LABELS], found)
            for name, found in clusters.items()
        }
    ).T
    report = "\n".join(
        [
            f"{adata.n_obs} PBMCs, {adata.n_vars} genes, {n_labels} labels ({LABELS})",
            f"training: {seconds:.1f} s",
            "",
            table.to_string(float_format="{:.3f}".format),
            "",
            model.component_table().to_string(float_format="{:.3f}".format),
            "",
        ]
    )
    (folder / "report.txt").write_text(report)
    print(report)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output"))
