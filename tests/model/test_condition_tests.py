"""Tests between conditions, with samples as units."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from multimodal import KINDS, make_mdata
from scipy import sparse

import scgmvae

pytest.importorskip("pydeseq2")

N_GENES, CHANGED = 80, 10


def cells_of_donors(n_donors, is_paired, effect=1.2, donor_sd=0.3, seed=0, odd_donor=0.0):
    """Cells of donors under two levels; the first ten genes change, a last one in one donor."""
    rng = np.random.default_rng(seed)
    base = rng.normal(1, 1, N_GENES)
    own = rng.normal(0, donor_sd, (n_donors, N_GENES))
    parts, rows = [], []
    for donor in range(n_donors):
        for level in ("control", "treated"):
            if not is_paired and (donor % 2 == 0) != (level == "control"):
                continue
            log_mean = base + own[donor]
            if level == "treated":
                log_mean = log_mean + effect * (np.arange(N_GENES) < CHANGED)
                log_mean[-1] += odd_donor * (donor == n_donors - 1)
            parts.append(rng.poisson(rng.gamma(4, np.exp(log_mean) / 4, (40, N_GENES))))
            rows += [(f"donor {donor}", level)] * 40
    obs = pd.DataFrame(rows, columns=["donor", "level"], index=map(str, range(len(rows))))
    obs["type"] = np.where(np.arange(len(obs)) % 2, "T", "B")
    return AnnData(sparse.csr_matrix(np.concatenate(parts).astype(np.float32)), obs=obs)


@pytest.fixture
def model_of(make_model, train):
    def made(adata):
        return train(make_model(adata, {}, n_components=2), max_epochs=1, pretrain_epochs=1)

    return made


@pytest.mark.parametrize("is_paired", [True, False], ids=["paired", "unpaired"])
def test_genes_that_change_in_the_donors_are_found(model_of, is_paired):
    model = model_of(cells_of_donors(6, is_paired))
    table = model.test_condition("level", "treated", "control", sample_key="donor", groupby="type")
    assert table["cluster"].unique().tolist() == ["B", "T"]
    n = 6 if is_paired else 3
    assert (table[["n_samples", "n_samples_other"]] == n).all(axis=None)
    for _, rows in table.groupby("cluster"):
        found = rows.set_index("gene").reindex(model.adata.var_names)
        changed = found.index[:CHANGED]
        assert (found.loc[changed, "q"] < 0.05).mean() >= (0.9 if is_paired else 0.6)
        assert (found.loc[found.index[CHANGED:], "q"] < 0.05).sum() <= 4
        fold = found.loc[changed, "lfc"] - found.loc[found.index[CHANGED:], "lfc"].median()
        assert fold.mean() == pytest.approx(1.2 / np.log(2), abs=0.3)
        assert (found.loc[changed, "agreement"] > 0.6).all()
        assert ((found["low"] < found["lfc"]) & (found["lfc"] < found["high"]))[changed].all()
        assert rows["p"].is_monotonic_increasing or rows["p"].isna().any()


def test_donors_that_differ_make_no_difference_between_groups_of_them(model_of):
    called = 0
    for seed in range(3):
        adata = cells_of_donors(6, False, effect=0.0, donor_sd=0.6, seed=seed)
        table = model_of(adata).test_condition(
            "level", "treated", sample_key="donor", groupby="type"
        )
        called += int((table["q"] < 0.05).sum())
    assert called <= 0.05 * 3 * 2 * N_GENES


def test_what_one_donor_makes_is_not_called(model_of):
    adata = cells_of_donors(8, True, odd_donor=4.0)
    table = model_of(adata).test_condition("level", "treated", sample_key="donor", groupby="type")
    last = table[table["gene"] == adata.var_names[-1]]
    assert not (last["q"] < 0.05).any()


def test_pairs_are_compared_with_themselves_where_some_donors_have_one_level(model_of):
    adata = cells_of_donors(4, True)
    keep = ~((adata.obs["donor"] == "donor 3") & (adata.obs["level"] == "control"))
    table = model_of(adata[keep].copy()).test_condition(
        "level", "treated", sample_key="donor", groupby="type"
    )
    assert (table[["n_samples", "n_samples_other"]] == 3).all(axis=None)


def test_a_few_pairs_among_many_donors_do_not_leave_the_others_out(model_of):
    adata = cells_of_donors(8, True)
    is_single = ~adata.obs["donor"].isin(["donor 0", "donor 1"])
    is_odd = adata.obs["donor"].str[-1].astype(int) % 2 == 1
    keep = ~(is_single & (is_odd == (adata.obs["level"] == "control")))
    table = model_of(adata[keep].copy()).test_condition(
        "level", "treated", sample_key="donor", groupby="type"
    )
    assert (table[["n_samples", "n_samples_other"]] == 5).all(axis=None)


def test_genes_with_few_counts_have_a_row_without_a_p(model_of):
    adata = cells_of_donors(4, True)
    x = adata.X.toarray()
    x[:, 7] = 0
    x[3, 7] = 1
    adata.X = sparse.csr_matrix(x)
    table = model_of(adata).test_condition("level", "treated", sample_key="donor", groupby="type")
    assert len(table) == 2 * N_GENES
    rare = table[table["gene"] == adata.var_names[7]]
    assert rare["p"].isna().all() and rare["lfc"].isna().all()
    assert (rare["n_samples"] == 4).all()


def test_clusters_without_replicates_are_left_out_with_a_warning(model_of):
    adata = cells_of_donors(4, True)
    few = (adata.obs["type"] == "T") & (adata.obs["donor"] != "donor 0")
    adata = adata[~few].copy()
    model = model_of(adata)
    with pytest.warns(UserWarning, match="two samples of each level have 10 cells.*'T'"):
        table = model.test_condition("level", "treated", sample_key="donor", groupby="type")
    assert table["cluster"].unique().tolist() == ["B"]
    with pytest.raises(ValueError, match="Without replicates.*'donor'.*1000 cells"):
        model.test_condition(
            "level", "treated", sample_key="donor", groupby="type", min_cells=1000
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("level", "no"), "group must be a level of 'level'.*'no'", id="group"),
        pytest.param(("level", "treated", "no"), "other must be a level", id="other"),
        pytest.param(("level", "treated", "treated"), "both are 'treated'", id="same"),
        pytest.param(("donor", "donor 0"), "'donor' has 3 levels.*other='donor 1'", id="three"),
    ],
)
def test_levels_that_are_not_there_are_refused(model_of, arguments, message):
    model = model_of(cells_of_donors(3, True))
    with pytest.raises(ValueError, match=message):
        model.test_condition(*arguments, sample_key="donor", groupby="type")
    with pytest.raises(KeyError, match="sample_key names the obs column 'patient'"):
        model.test_condition("level", "treated", sample_key="patient", groupby="type")


def test_values_that_are_no_counts_are_refused(make_model, train):
    adata = scgmvae.datasets.blobs(20)
    model = train(make_model(adata, {}, likelihood="gaussian", n_components=2))
    with pytest.raises(ValueError, match="but the likelihood is 'gaussian'"):
        model.test_condition("condition", "condition_0", sample_key="class", groupby="class")


BRIEF = {"max_epochs": 1, "pretrain_epochs": 1, "enable_progress_bar": False}


@pytest.fixture(scope="module")
def joint():
    """A model of RNA, proteins and peaks, where 60 cells lack RNA; and its data."""
    mdata = make_mdata()
    mdata.mod["rna"] = mdata["rna"][60:].copy()
    mdata.update()
    numbers = mdata.obs_names.str.removeprefix("cell_").astype(int)
    mdata.obs["donor"] = [f"donor {i % 4}" for i in numbers]
    mdata.obs["level"] = np.where(numbers // 4 % 2, "treated", "control")
    scgmvae.SCGMVAE.setup_mudata(mdata, modalities=KINDS)
    model = scgmvae.SCGMVAE(mdata, n_components=2)
    model.train(**BRIEF)
    return model, mdata


def test_the_counts_of_one_of_several_modalities_are_tested(joint):
    model, mdata = joint
    rna = mdata["rna"].copy()
    rna.obs = mdata.obs.loc[rna.obs_names, ["donor", "level", "cell_type"]].copy()
    scgmvae.SCGMVAE.setup_anndata(rna)
    alone = scgmvae.SCGMVAE(rna, n_components=2)
    alone.train(**BRIEF)
    question = {"sample_key": "donor", "groupby": "cell_type", "min_cells": 5}
    expected = alone.test_condition("level", "treated", **question)
    assert len(expected) == 3 * rna.n_vars
    pd.testing.assert_frame_equal(model.test_condition("level", "treated", **question), expected)
    named = model.test_condition("level", "treated", **question, modality="rna")
    pd.testing.assert_frame_equal(named, expected)


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        ("protein", "counts of RNA or fragments.*'protein'"),
        ("nope", "'nope' is none of them"),
        (["rna"], "is none of them"),
    ],
)
def test_modalities_without_counts_of_genes_are_refused(joint, modality, message):
    with pytest.raises(ValueError, match=message):
        joint[0].test_condition(
            "level", "treated", sample_key="donor", groupby="cell_type", modality=modality
        )


def test_one_of_several_modalities_of_counts_must_be_named(joint):
    mdata = joint[1].copy()
    scgmvae.SCGMVAE.setup_mudata(mdata, modalities=KINDS | {"atac": "poisson"})
    model = scgmvae.SCGMVAE(mdata, n_components=2)
    model.train(**BRIEF)
    question = {"sample_key": "donor", "groupby": "cell_type", "min_cells": 5}
    with pytest.raises(ValueError, match="'rna', 'atac'.*modality='rna'"):
        model.test_condition("level", "treated", **question)
    table = model.test_condition("level", "treated", **question, modality="atac")
    assert set(table["gene"]) == set(mdata["atac"].var_names)


def test_a_modality_is_not_named_where_there_is_one(model_of):
    model = model_of(cells_of_donors(3, True))
    with pytest.raises(RuntimeError, match="reads one modality"):
        model.test_condition("level", "treated", sample_key="donor", modality="rna")
