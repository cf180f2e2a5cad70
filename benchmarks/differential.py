"""Are genes called that do not differ, and are those found that do?

    python benchmarks/differential.py [--tasks clusters donors power] [--seeds 0 1 2 3 4]

clusters   cells of one population in two clusters that were made of the same counts: every gene
           that is called is a false discovery. Clusters are tested however little of them is found
           again on half of the counts, while ``test_markers`` leaves out what is not found again
donors     two groups of four donors, who differ from each other but not by group: again none
power      donors whose cells change in 40 of 300 genes under a treatment

*called* is the share of the genes with a false discovery rate of 5 % at most, *any* whether there
is one, which under a null may happen in 5 % of the runs. *false* is the share of the called genes
that do not differ. SCVI calls by its own ``is_de_fdr_0.05`` (``mode="change"``), or a Bayes factor
above 3 (``mode="vanilla"``), trained for 100 epochs. scanpy's tests are those of
``rank_genes_groups`` with its adjusted p. ``--short`` runs few epochs on few cells.
"""

from __future__ import annotations

import warnings
from unittest.mock import patch

import numpy as np
import pandas as pd
import tools
from anndata import AnnData
from common import run_tasks, threads_kept
from scipy import sparse
from tested import one_population

import scgmvae
from scgmvae.model import marker_tests

Row = dict[str, object]
LEVEL = 0.05
N_GENES, N_CHANGED = 300, 40
VANILLA = 3.0
"""Bayes factor from which on scvi-tools' tutorials call a gene."""
SHORT = {"max_epochs": 2, "pretrain_epochs": 4}


def called_by_scanpy(adata: AnnData, key: str, group: str) -> dict[str, pd.Series]:
    """Which genes scanpy's tests call between a group and the others."""
    tables = tools.scanpy_tests(adata, key, group)
    return {
        name: table["pvals_adj"].reindex(adata.var_names) <= LEVEL
        for name, table in tables.items()
    }


@tools.quiet()
def by_scvi(adata: AnnData, key: str, group: str, seed: int, short: bool) -> dict[str, pd.Series]:
    """Which genes SCVI calls between a group and the others."""
    import scvi

    scvi.settings.seed = seed
    cells = AnnData(adata.X.copy(), obs=adata.obs[[key]].astype(str))
    cells.var_names = adata.var_names
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells, gene_likelihood="nb")
    model.train(max_epochs=2 if short else 100, enable_progress_bar=False, logger=False)
    settings = {"groupby": key, "group1": group, "silent": True}
    change = model.differential_expression(mode="change", fdr_target=LEVEL, **settings)
    vanilla = model.differential_expression(mode="vanilla", **settings)
    return {
        "SCVI, change": change[f"is_de_fdr_{LEVEL}"].reindex(adata.var_names),
        "SCVI, vanilla": (vanilla["bayes_factor"].abs() > VANILLA).reindex(adata.var_names),
    }


def rows_of(called: dict[str, pd.Series], is_true: np.ndarray, seed: int) -> list[Row]:
    """A row for each method."""
    rows = []
    for method, genes in called.items():
        is_called = genes.fillna(False).to_numpy(bool)
        n = is_called.sum()
        rows.append(
            {
                "method": method,
                "seed": seed,
                "called": float(is_called.mean()),
                "any": float(n > 0),
                "false": float(is_called[~is_true].sum() / max(n, 1)),
                "found": float(is_called[is_true].mean()) if is_true.any() else np.nan,
            }
        )
    return rows


# ------------------------------------------------------------------------------------ tasks


def clusters(seed: int, short: bool) -> list[Row]:
    """One population in two clusters, made by the model."""
    adata, _ = one_population("log-normal depth", 200 if short else 1000, seed)
    scgmvae.SCGMVAE.setup_anndata(adata)
    model = scgmvae.SCGMVAE(adata, n_components=2)
    with threads_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(seed=seed, enable_progress_bar=False, logger=False, **(SHORT if short else {}))
        # clusters that are noise are seldom found again, and would not be tested at all
        with patch.object(marker_tests, "AGAIN", 0.0):
            crossed = model.test_markers(seed=seed)
        tables = {
            "test_markers()": crossed,
            'test_markers("scgmvae"), the same counts': model.test_markers("scgmvae"),
        }
    group = str(adata.obs["scgmvae"].cat.categories[0])
    called = {}
    for name, table in tables.items():
        of_first = table[table["cluster"] == table["cluster"].iloc[0]].set_index("gene")
        called[name] = of_first["q"].reindex(adata.var_names) <= LEVEL
    called |= called_by_scanpy(adata, "scgmvae", group)
    called |= by_scvi(adata, "scgmvae", group, seed, short)
    return rows_of(called, np.zeros(adata.n_vars, dtype=bool), seed)


def cells_of_donors(seed: int, n_cells: int, effect: float) -> AnnData:
    """Eight donors, four of them treated, who differ from one another in every gene."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(8), n_cells)
    is_treated = donor % 2 == 1
    log_mean = rng.normal(0, 1, N_GENES) + rng.normal(0, 0.25, (8, N_GENES))[donor]
    log_mean[:, :N_CHANGED] += effect * is_treated[:, None] * rng.choice([-1, 1], N_CHANGED)
    mean = np.exp(log_mean) * rng.lognormal(0, 0.3, (len(donor), 1))
    counts = rng.poisson(rng.gamma(4, mean / 4)).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(counts))
    adata.obs["donor"] = pd.Categorical([f"donor {d}" for d in donor])
    adata.obs["treatment"] = pd.Categorical(np.where(is_treated, "treated", "control"))
    adata.obs["type"] = "one"
    return adata


def of_donors(seed: int, short: bool, effect: float) -> list[Row]:
    """Rows for cells of donors whose treatment has an effect, or none."""
    adata = cells_of_donors(seed, 30 if short else 150, effect)
    scgmvae.SCGMVAE.setup_anndata(adata, batch_key="donor")
    model = scgmvae.SCGMVAE(adata, n_components=2)
    with threads_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(1, 1, seed=seed, enable_progress_bar=False, logger=False)
        table = model.test_condition(
            "treatment", "treated", sample_key="donor", groupby="type"
        ).set_index("gene")
    called = {"test_condition": table["q"].reindex(adata.var_names) <= LEVEL}
    called |= called_by_scanpy(adata, "treatment", "treated")
    called |= by_scvi(adata, "treatment", "treated", seed, short)
    return rows_of(called, (np.arange(N_GENES) < N_CHANGED) & (effect > 0), seed)


def donors(seed: int, short: bool) -> list[Row]:
    """Donors who differ, but not by treatment."""
    return of_donors(seed, short, 0.0)


def power(seed: int, short: bool) -> list[Row]:
    """Donors whose cells change under the treatment."""
    return of_donors(seed, short, 0.8)


TASKS = {
    "clusters": (clusters, ["method"]),
    "donors": (donors, ["method"]),
    "power": (power, ["method"]),
}


if __name__ == "__main__":
    run_tasks("differential", __doc__.split("\n")[0], TASKS)
