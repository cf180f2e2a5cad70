"""Do genes that come first in a ranking come first on other cells of the same types?

    SCGMVAE_DATA_DIR=... python benchmarks/concordance.py [--seeds 0 1 2 3 4]

The cells of every type of kang and condition are divided into halves. On one half methods rank the
genes by how they change with the condition, type by type. The reference is DESeq2's ranking of
sums of counts of the *other* half. Sums of the *same* cells have the chance differences of these
cells in them, so agreement with them is higher and says less. *AUCC* is the area under the curve
of concordance: of the first k genes of either ranking, the share that is in both, averaged over k
up to 100 with weight k; 1 is the same genes in the same order. Two rankings that know nothing of
the condition say what chance gives: a random one, and that by mean expression.

The data at hand do not tell the donors of kang, so sums are of three groups of cells drawn at
random: they have the noise of cells alone, and say nothing of what a test on donors would find.
For ``differential_expression`` models are not told the condition; SCVI is trained for 100 epochs,
scgmvae as it is by default. Genes of the same evidence are ranked by their change.

``--short`` runs few epochs on simulated cells.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scvi
import tools
from anndata import AnnData
from common import run_tasks, threads_kept
from counterfactual import CONDITION, CONTROL, STIMULATED, TYPE, UNKNOWN
from numpy.typing import NDArray
from pydeseq2.dds import DeseqDataSet
from pydeseq2.default_inference import DefaultInference
from pydeseq2.ds import DeseqStats
from scvi.model import SCVI
from simulators import stimulated_types

import scgmvae

Row = dict[str, object]
Ranking = pd.Series
"""Gene → how much speaks for its change, more for those that come first."""
FEWEST = 50
"""Number of cells of a type under either condition."""
N_TOP = 100
N_SUMS = 3
"""Groups of cells of a type and condition whose counts are summed."""
SAMPLE = "group of cells"
SHORT = {"max_epochs": 2, "pretrain_epochs": 2}


def concordance(first: Ranking, second: Ranking) -> float:
    """Area under the curve of concordance of two rankings of the same genes."""
    a, b = (r.sort_values(ascending=False, kind="stable").index for r in (first, second))
    n = min(N_TOP, len(a))
    place = np.maximum(pd.Series(range(len(a)), a).loc[b], range(len(b))).to_numpy()
    n_shared = np.bincount(place, minlength=n)[:n].cumsum()
    return float(n_shared.sum() / (n * (n + 1) / 2))


def ranked(evidence: pd.Series, change: pd.Series) -> Ranking:
    """Ranking by evidence, and by the size of the change where that is the same."""
    order = np.lexsort((change.abs().fillna(0), evidence.fillna(-np.inf)))
    return pd.Series(np.argsort(order), evidence.index)


# ------------------------------------------------------------------------------------- data


def halves(seed: int, short: bool) -> list[AnnData]:
    """Both halves of the cells of known types, with a group of each cell for sums."""
    rng = np.random.default_rng(seed)
    if short:
        adata = stimulated_types(rng, 60, 61)
        adata = adata[adata.obs[TYPE].isin(["type 0", "type 3"])].copy()
    else:
        adata = scgmvae.datasets.load("kang")
        adata = adata[adata.obs[TYPE] != UNKNOWN].copy()
    order = pd.Series(rng.permutation(adata.n_obs), adata.obs_names)
    of_cells = order.groupby([adata.obs[TYPE], adata.obs[CONDITION]], observed=True)
    place = of_cells.rank().astype(int)
    # groups of both conditions are no pairs
    adata.obs[SAMPLE] = adata.obs[CONDITION].astype(str) + (place // 2 % N_SUMS).astype(str)
    return [adata[(place % 2 == half).to_numpy()].copy() for half in (0, 1)]


@threads_kept()
def deseq2_of_sums(adata: AnnData) -> tuple[Ranking, pd.Index]:
    """DESeq2's ranking of sums of counts, and the genes that it tests."""
    keys = [adata.obs[CONDITION].astype(str), adata.obs[SAMPLE]]
    sums = adata.to_df().groupby(keys).sum()
    metadata = sums.index.to_frame(index=False).set_index("u" + sums.index.map("".join))
    counts = sums.set_index(metadata.index).astype(int)
    counts = counts.loc[:, counts.sum() >= 10]
    settings = {"quiet": True, "inference": DefaultInference(n_cpus=1)}
    with tools.quiet():
        data = DeseqDataSet(counts=counts, metadata=metadata, design=f"~{CONDITION}", **settings)
        data.deseq2()
        stats = DeseqStats(data, contrast=[CONDITION, STIMULATED, CONTROL], **settings)
        stats.summary()
    found = stats.results_df.dropna(subset="pvalue")
    return ranked(-found["pvalue"], found["stat"]), found.index


# ---------------------------------------------------------------------------------- methods


def bayesian(model: SCVI | scgmvae.SCGMVAE, is_type: NDArray[np.bool_]) -> dict[str, Ranking]:
    """Rankings of scvi-tools' test of a type in both modes."""
    obs = model.adata.obs
    two = {
        f"idx{n}": np.flatnonzero(is_type & (obs[CONDITION] == level).to_numpy())
        for n, level in ((1, STIMULATED), (2, CONTROL))
    }
    change = model.differential_expression(mode="change", silent=True, **two)
    vanilla = model.differential_expression(mode="vanilla", silent=True, **two)
    return {
        "change": ranked(change["proba_de"], change["lfc_mean"]),
        "vanilla": ranked(
            vanilla["bayes_factor"].abs(), np.log(vanilla["scale1"] / vanilla["scale2"])
        ),
    }


def fitted(adata: AnnData, seed: int, short: bool, **setup: object) -> scgmvae.SCGMVAE:
    """A model of the cells, with the conditions that it is told."""
    cells = adata.copy()
    scgmvae.SCGMVAE.setup_anndata(cells, **setup)
    model = scgmvae.SCGMVAE(cells)
    with threads_kept():
        model.train(seed=seed, enable_progress_bar=False, logger=False, **(SHORT if short else {}))
    return model


@tools.quiet()
def kang(seed: int, short: bool) -> list[Row]:
    """Rankings of one half of the cells, beside DESeq2's of both."""
    here, there = halves(seed, short)
    scvi.settings.seed = seed
    cells = here.copy()
    SCVI.setup_anndata(cells)
    peer = SCVI(cells, gene_likelihood="nb")
    peer.train(max_epochs=2 if short else 100, enable_progress_bar=False, logger=False)
    told = fitted(here, seed, short, categorical_covariate_keys=[CONDITION])
    untold = fitted(here, seed, short)
    effects = told.effect_table(CONDITION, STIMULATED, CONTROL, groupby=TYPE, seed=seed)
    tests = told.test_condition(
        CONDITION, STIMULATED, CONTROL, sample_key=SAMPLE, groupby=TYPE, min_cells=3
    )
    sizes = pd.crosstab(here.obs[TYPE], here.obs[CONDITION]).min(axis=1)
    rows: list[Row] = []
    for name in sizes.index[sizes >= FEWEST // 2].astype(str):
        is_type = (here.obs[TYPE] == name).to_numpy()
        same, genes = deseq2_of_sums(here[is_type])
        other, genes_there = deseq2_of_sums(there[(there.obs[TYPE] == name).to_numpy()])
        genes = genes.intersection(genes_there)
        test = tests[tests["cluster"] == name].set_index("gene")
        effect = effects[effects["group"] == name].set_index("gene")
        rankings = {
            "test_condition": ranked(-test["p"], test["lfc"]),
            "effect_table": effect["lfc"].abs(),
        }
        of_models = {"differential_expression": untold, "SCVI": peer}
        for model_name, model in of_models.items():
            for mode, ranking in bayesian(model, is_type).items():
                rankings[f"{model_name}, {mode}"] = ranking
        for test_name, table in tools.scanpy_tests(here[is_type], CONDITION, STIMULATED).items():
            rankings[test_name] = table["scores"].abs()
        rankings["DESeq2 on sums"] = same
        rng = np.random.default_rng(seed)
        rankings["mean expression"] = pd.Series(here[is_type].X.mean(0).A1, here.var_names)
        rankings["random"] = pd.Series(rng.random(here.n_vars), here.var_names)
        for method, ranking in rankings.items():
            row: Row = {"method": method, "type": name, "seed": seed}
            row["AUCC"] = concordance(ranking.loc[genes], other.loc[genes])
            if method not in ("test_condition", "DESeq2 on sums"):  # these are sums of same cells
                row["AUCC, same cells"] = concordance(ranking.loc[genes], same.loc[genes])
            rows.append(row)
    return rows


if __name__ == "__main__":
    run_tasks("concordance", __doc__.split("\n")[0], {"kang": (kang, ["method", "type"])})
