"""Tests of model.differences: groups, and what a change is for each likelihood."""

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from multimodal import KINDS, make_mdata
from small import NETWORK, TRAINING

from scgmvae import SCGMVAE


@pytest.fixture(scope="module")
def grouped(roughly_trained):
    """Data with groups as numbers, booleans, text, and with a category that no cell has."""
    adata = roughly_trained.adata.copy()
    codes = adata.obs["component"].cat.codes.to_numpy()
    adata.obs["number"] = codes.astype(int)
    adata.obs["flag"] = codes == 0
    adata.obs["empty"] = pd.Categorical(codes.astype(str), categories=["9", "0", "1", "2"])
    adata.obs["same"] = "a"
    return adata


@pytest.mark.parametrize(
    ("groups", "compared"),
    [
        ({"groupby": "number", "group1": 1}, ["1 vs Rest"]),
        ({"groupby": "number", "group1": "1"}, ["1 vs Rest"]),
        ({"groupby": "number", "group1": 1.0, "group2": "2"}, ["1 vs 2"]),
        ({"groupby": "number", "group1": np.array([2, 0])}, ["2 vs Rest", "0 vs Rest"]),
        ({"groupby": "flag", "group1": True}, ["True vs Rest"]),
        ({"groupby": "flag", "group1": ["True"], "group2": False}, ["True vs False"]),
        ({"groupby": "number", "group1": {1}}, ["1 vs Rest"]),
        ({"groupby": "flag"}, ["False vs Rest", "True vs Rest"]),
        ({"groupby": "empty"}, ["0 vs Rest", "1 vs Rest", "2 vs Rest"]),
        ({"groupby": "component", "group1": "component_1"}, ["component_1 vs Rest"]),
    ],
    ids=str,
)
def test_groups_are_taken_as_they_are_written(roughly_trained, grouped, groups, compared):
    settings = {"silent": True, "n_samples_overall": 20, "m_permutation": 20}
    table = roughly_trained.differential_expression(grouped, **groups, **settings)
    assert table["comparison"].unique().tolist() == compared
    assert len(table) == len(compared) * grouped.n_vars
    means = grouped.to_df().groupby(grouped.obs[groups["groupby"]].astype(str)).mean()
    for comparison, rows in table.groupby("comparison"):
        expected = means.loc[comparison.split(" vs ")[0], rows.index]
        np.testing.assert_allclose(rows["raw_mean1"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({}, ValueError, r"groupby=.*idx1"),
        ({"group1": "a"}, ValueError, r"groupby=.*idx1"),
        ({"groupby": "none"}, KeyError, "obs column 'none'"),
        ({"groupby": "same"}, ValueError, "all cells are in the group 'a'"),
        ({"groupby": "number", "group1": 7}, ValueError, r"group1.*'7' has no cells.*'0', '1'"),
        ({"groupby": "empty", "group1": ["1", "9"]}, ValueError, r"group1.*'9' has no cells"),
        ({"groupby": "number", "group1": []}, ValueError, "group1.*the list is empty"),
        ({"groupby": "number", "group1": 1, "group2": 7}, ValueError, "group2.*'7' has no cells"),
        ({"groupby": "number", "group1": 1, "group2": [0, 2]}, ValueError, "group2 must be one"),
    ],
    ids=str,
)
def test_groups_without_cells_are_refused_at_once(
    roughly_trained, grouped, monkeypatch, groups, error, message
):
    def compute(*args, **kwargs):
        raise AssertionError("samples were drawn")

    monkeypatch.setattr(type(roughly_trained), "_get_denoised_samples", compute)
    monkeypatch.setattr(type(roughly_trained), "get_normalized_expression", compute)
    with pytest.raises(error, match=message):
        roughly_trained.differential_expression(grouped, **groups)


def test_cells_without_a_group_are_among_the_rest(roughly_trained, grouped):
    adata = grouped.copy()
    adata.obs["part"] = adata.obs["number"].astype(object).where(adata.obs["number"] < 2, None)
    settings = {"silent": True, "n_samples_overall": 5, "m_permutation": 5}
    table = roughly_trained.differential_expression(adata, groupby="part", **settings)
    assert table["comparison"].unique().tolist() == ["0 vs Rest", "1 vs Rest"]
    rest = adata.to_df()[grouped.obs["number"] != 0].mean()
    found = table[table["group1"] == 0]["raw_mean2"]
    np.testing.assert_allclose(found, rest[found.index], rtol=1e-5)


# --------------------------------------------------------------------- by likelihood

CHANGE = {"groupby": "cell_type", "mode": "change", "silent": True}


@pytest.fixture(scope="module")
def joint():
    """A model of cells that lack modalities, and their MuData."""
    mdata = make_mdata(unpaired=True)
    SCGMVAE.setup_mudata(mdata, modalities=KINDS)
    model = SCGMVAE(mdata, **NETWORK, n_components=3)
    model.train(**TRAINING | {"max_epochs": 40, "pretrain_epochs": 80})
    return model, mdata


def measured_means(mdata, modality, transform=lambda x: x):
    """Means of each type and of the rest over the cells that have a modality, features × types."""
    part = mdata[modality]
    kinds = mdata.obs["cell_type"].loc[part.obs_names].to_numpy()
    x = pd.DataFrame(transform(part.X.toarray()), columns=part.var_names)
    own = x.groupby(kinds).mean().T
    return own, pd.DataFrame({kind: x[kinds != kind].mean() for kind in own})


def test_modalities_are_compared_one_by_one_over_the_cells_that_have_them(joint):
    model, mdata = joint
    whole = model.differential_expression(**CHANGE)
    assert whole["modality"].value_counts().to_dict() == {"rna": 180, "protein": 18, "atac": 240}
    for name in KINDS:
        alone = model.differential_expression(**CHANGE, modality=name)
        part = whole[whole["modality"] == name].dropna(axis=1, how="all")
        assert set(alone.index) == set(mdata[name].var_names)
        # draws go on from one modality to the next
        raw = alone.columns[alone.columns.str.startswith(("raw_", "non_zeros_"))]
        keys = ["group1", "modality"]
        pd.testing.assert_frame_equal(
            alone.set_index(keys, append=True)[raw].sort_index(),
            part.set_index(keys, append=True)[raw].sort_index(),
        )
        own, rest = measured_means(mdata, name)
        for kind, rows in alone.groupby("group1"):
            np.testing.assert_allclose(rows["raw_mean1"], own.loc[rows.index, kind], rtol=1e-5)
            np.testing.assert_allclose(rows["raw_mean2"], rest.loc[rows.index, kind], rtol=1e-5)
    share, _ = measured_means(mdata, "protein", lambda x: x > 0)
    rows = whole[(whole["modality"] == "protein") & (whole["group1"] == "a")]
    np.testing.assert_allclose(rows["non_zeros_proportion1"], share.loc[rows.index, "a"])


def test_peaks_are_compared_by_differences_of_their_probabilities(joint):
    model, mdata = joint
    pair = CHANGE | {"group1": "a", "group2": "b", "modality": "atac"}
    table = model.differential_expression(**pair)
    assert "lfc_mean" not in table
    assert (table["delta"] == 0.05).all()
    own, _ = measured_means(mdata, "atac")
    truth = (own["a"] - own["b"])[table.index]
    assert np.corrcoef(table["difference_mean"], truth)[0, 1] > 0.95
    assert table["difference_mean"].abs().max() < 1
    assert table.loc[truth.abs() > 0.25, "is_de_fdr_0.05"].mean() > 0.9
    assert table.loc[truth.abs() < 0.05, "is_de_fdr_0.05"].mean() < 0.1
    given = model.differential_expression(**pair, delta=0.3)
    assert (given["delta"] == 0.3).all()
    assert given["is_de_fdr_0.05"].sum() < table["is_de_fdr_0.05"].sum()


def test_depth_alone_makes_no_peak_differ():
    rng = np.random.default_rng(0)
    mdata = make_mdata(400, n_peaks=200)
    is_shallow = rng.permutation(400) < 200
    x = mdata["atac"].X
    is_kept = rng.random(x.nnz) < np.repeat(np.where(is_shallow, 0.4, 1.0), np.diff(x.indptr))
    x.data *= is_kept
    x.eliminate_zeros()
    mdata.obs["depth"] = np.where(is_shallow, "shallow", "deep")
    SCGMVAE.setup_mudata(mdata, modalities=KINDS)
    model = SCGMVAE(mdata, **NETWORK, n_components=3)
    model.train(**TRAINING | {"max_epochs": 40, "pretrain_epochs": 80})
    settings = CHANGE | {"groupby": "depth", "group1": "deep", "modality": "atac"}
    table = model.differential_expression(**settings)
    assert (table["raw_mean1"] > 1.5 * table["raw_mean2"]).mean() > 0.9
    assert abs(np.log(table["scale1"] / table["scale2"])).median() < 0.1
    assert 0.2 < table["is_supported"].mean() < 0.8
    assert table["is_de_fdr_0.05"].sum() == 0
    shares = model.get_normalized_expression().filter(like="atac").mean(axis=1)
    assert abs(np.log(shares[is_shallow].mean() / shares[~is_shallow].mean())) < 0.1


def test_proteins_are_compared_without_their_background(joint):
    model, mdata = joint
    table = model.differential_expression(**CHANGE, modality="protein")
    foreground = model.impute("protein", n_samples=50).to_df(layer="foreground")
    kinds = mdata.obs["cell_type"].astype(str)
    for kind, rows in table.groupby("group1"):
        expected = foreground[kinds == kind].mean()[rows.index]
        np.testing.assert_allclose(rows["scale1"], expected, rtol=0.1, atol=0.3)
        # a log ratio to which one count is added is bounded by the counts
        largest = foreground[rows.index].max()
        assert (rows["lfc_mean"].abs() <= np.log2(largest + 1) + 0.5).all()
    own, rest = measured_means(mdata, "protein")
    carried = ((own > 30) & (rest < 20)).to_numpy()
    called = table.set_index("group1", append=True)["is_de_fdr_0.05"].unstack()
    assert carried.any()
    assert called[own.columns].loc[own.index].to_numpy()[carried].all()


def test_genes_of_a_joint_model_are_compared_by_ratios(joint):
    model, mdata = joint
    table = model.differential_expression(**CHANGE, modality="rna")
    sizes = mdata["rna"].X.sum(1)
    own, rest = measured_means(mdata, "rna", lambda x: 1e4 * x / np.asarray(sizes))
    for kind, rows in table.groupby("group1"):
        ratio = np.log2((own[kind] / rest[kind])[rows.index])
        assert np.corrcoef(ratio, rows["lfc_mean"])[0, 1] > 0.9
        np.testing.assert_allclose(
            rows["raw_normalized_mean1"], own.loc[rows.index, kind], rtol=1e-5
        )
    typical = sizes.mean()
    np.testing.assert_allclose(table["pseudocounts"], 0.01 / typical, rtol=0.01)


def test_what_a_group_was_not_measured_for_is_not_called():
    mdata = make_mdata()
    has = np.arange(240) < 150
    mdata = mudata.MuData({"rna": mdata["rna"], "protein": mdata["protein"][has].copy()})
    mdata.obs["has"] = np.where(mdata.obs_names.isin(mdata["protein"].obs_names), "yes", "no")
    SCGMVAE.setup_mudata(mdata, modalities={"rna": "nb", "protein": "protein"})
    model = SCGMVAE(mdata, **NETWORK, n_components=3)
    model.train(**TRAINING)
    settings = {"group1": "yes", "group2": "no", "modality": "protein", "delta": 0.0}
    table = model.differential_expression(**CHANGE | {"groupby": "has"}, **settings)
    assert table["raw_mean2"].isna().all()
    assert not table["is_supported"].any()
    assert not table["is_de_fdr_0.05"].any()


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_values_that_are_no_counts_are_compared_by_differences(likelihood):
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 100)
    x = rng.normal(-1, 0.5, size=(200, 20))
    x[group == 1, :5] += 2
    if likelihood == "bernoulli":
        x = (x > -1).astype(float)
    adata = AnnData(x.astype(np.float32))
    adata.obs["group"] = np.array(["p", "q"])[group]
    SCGMVAE.setup_anndata(adata)
    model = SCGMVAE(adata, **NETWORK, n_components=2, likelihood=likelihood)
    model.train(**TRAINING | {"max_epochs": 40, "pretrain_epochs": 80})
    table = model.differential_expression(
        groupby="group", group1="q", mode="change", silent=True
    ).loc[adata.var_names]
    truth = x[group == 1].mean(0) - x[group == 0].mean(0)
    assert "lfc_mean" not in table
    np.testing.assert_allclose(table["difference_mean"], truth, atol=0.35)
    assert table["proba_de"].iloc[:5].min() > 0.8
    if likelihood == "gaussian":
        assert table["is_de_fdr_0.05"].tolist() == [True] * 5 + [False] * 15


@pytest.mark.parametrize(
    ("given", "delta", "called"),
    [
        ({"delta": None}, None, "difference_mean"),  # scvi-tools estimates it
        ({"change_fn": None}, 0.05, "difference_mean"),
        ({"change_fn": lambda a, b, c: 2 * (b - a)}, 0.25, "lfc_mean"),
        ({"change_fn": "log-fold", "pseudocounts": None}, 0.25, "lfc_mean"),
    ],
    ids=["delta", "None", "own", "log-fold"],
)
def test_what_is_given_goes_before_the_defaults_of_a_modality(joint, given, delta, called):
    model, _ = joint
    pair = CHANGE | {"group1": "a", "group2": "b", "modality": "atac"}
    table = model.differential_expression(**pair, **given)
    assert called in table
    assert np.isfinite(table[called]).all()
    if delta is None:
        assert not table["delta"].isin([0.05, 0.25]).any()
    else:
        assert (table["delta"] == delta).all()
    assert table["is_supported"].mean() > 0.5  # also of a change that counts the other way round


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"idx1": []}, "at least one cell"),
        ({"idx1": np.ones(240, bool)}, "idx2 leaves none"),
        ({"idx1": [1, 2], "idx2": "cell_type == 'none'"}, "idx2 leaves none"),
        ({"idx1": [1, 500]}, "numbers below"),
    ],
    ids=str,
)
def test_sides_without_cells_are_refused(joint, given, message):
    model, _ = joint
    with pytest.raises(ValueError, match=message):
        model.differential_expression(**given, modality="rna")
    assert not model.adata.obs.columns.str.startswith("_scvi_temp").any()


def test_cells_are_compared_by_numbers_masks_and_queries(joint):
    model, _ = joint
    is_a = (model.adata.obs["cell_type"] == "a").to_numpy()
    settings = {"modality": "protein", "silent": True}
    found = [
        model.differential_expression(idx1=idx1, idx2=idx2, **settings)
        for idx1, idx2 in (
            (np.flatnonzero(is_a), None),
            (is_a, ~is_a),
            ("cell_type == 'a'", "cell_type != 'a'"),
        )
    ]
    pd.testing.assert_frame_equal(found[0], found[1])
    pd.testing.assert_frame_equal(found[0], found[2])


def test_modalities_that_are_not_there_are_refused(joint, roughly_trained):
    model, _ = joint
    with pytest.raises(ValueError, match="'peaks' is none of them"):
        model.differential_expression(groupby="cell_type", modality="peaks")
    with pytest.raises(RuntimeError, match="reads one modality"):
        roughly_trained.differential_expression(groupby="component", modality="rna")


def test_data_on_disk_are_compared_as_those_in_memory(roughly_trained, tmp_path):
    adata = roughly_trained.adata
    AnnData(adata.X, adata.obs[["component", "batch"]], adata.var).write_h5ad(tmp_path / "x.h5ad")
    backed = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    settings = {"groupby": "component", "mode": "change", "silent": True, "pseudocounts": 1e-5}
    on_disk = roughly_trained.differential_expression(backed, **settings)
    pd.testing.assert_frame_equal(on_disk, roughly_trained.differential_expression(**settings))
    del settings["pseudocounts"]  # which scvi-tools would estimate from all cells in memory
    found = roughly_trained.differential_expression(backed, **settings)["pseudocounts"].unique()
    np.testing.assert_allclose(found, 0.01 / adata.X.sum(1).mean(), rtol=1e-4)
