"""Models of several modalities of a MuData: set up, trained, read, imputed, saved, mapped."""

import copy
import logging
import pickle
import re

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from multimodal import KINDS, make_mdata
from scipy import sparse
from scipy.stats import false_discovery_control, ttest_ind
from sklearn.metrics import adjusted_rand_score
from small import NETWORK, TRAINING

from scgmvae import SCGMVAE
from scgmvae.data.normalization import log_normalized
from scgmvae.model import marker_tests

FEW = {"rna": "nb", "protein": "protein"}


pytestmark = pytest.mark.usefixtures("no_columns_are_pulled")


def trained(mdata, modalities=KINDS, setup=None, training=TRAINING, **settings):
    SCGMVAE.setup_mudata(mdata, modalities=modalities, **(setup or {}))
    model = SCGMVAE(mdata, **(NETWORK | {"n_components": 3} | settings))
    model.train(**training)
    return model


@pytest.fixture(scope="module")
def unpaired():
    """A trained model of cells that lack modalities, and its data; nobody writes to them."""
    mdata = make_mdata(unpaired=True)
    setup = {"batch_key": "batch"}
    long = TRAINING | {"max_epochs": 40, "pretrain_epochs": 80}
    return trained(mdata, setup=setup, training=long), mdata


# ------------------------------------------------------------------------------- results


def test_results_are_written_into_the_mudata(unpaired):
    model, mdata = unpaired
    assert mdata.obsm["X_scgmvae"].shape == (240, 5)
    assert mdata.obs["scgmvae"].dtype == "category"
    np.testing.assert_array_equal(mdata.obsm["X_scgmvae"], model.get_latent_representation(mdata))
    np.testing.assert_array_equal(mdata.obs["scgmvae"].astype(str), model.predict())
    assert model.adata.var["modality"].value_counts().to_dict() == {
        "rna": 60,
        "protein": 6,
        "atac": 80,
    }
    assert list(model.adata.obs_names) == list(mdata.obs_names)
    assert "modalities rna, protein, atac" in model._repr_html_()


def test_types_are_found_from_all_modalities_together(unpaired):
    model, mdata = unpaired
    assert adjusted_rand_score(mdata.obs["cell_type"], model.predict()) > 0.9


def test_one_modality_gives_what_its_anndata_gives_bit_for_bit():
    mdata = make_mdata()
    adata = mdata["rna"].copy()
    adata.obs["batch"] = mdata.obs["batch"]
    joint = trained(mdata, {"rna": "nb"}, {"batch_key": "batch"})
    SCGMVAE.setup_anndata(adata, batch_key="batch")
    alone = SCGMVAE(adata, **NETWORK, n_components=3)
    alone.train(**TRAINING)
    np.testing.assert_array_equal(mdata.obsm["X_scgmvae"], adata.obsm["X_scgmvae"])
    assert joint.history["elbo_train"].equals(alone.history["elbo_train"])


def test_z_by_one_modality_is_missing_where_that_is(unpaired):
    model, mdata = unpaired
    z = model.get_latent_representation(modality="protein")
    lacks = ~mdata.obs_names.isin(mdata["protein"].obs_names)
    assert np.isnan(z[lacks]).all()
    assert np.isfinite(z[~lacks]).all()
    whole = model.get_latent_representation()
    assert np.isfinite(whole).all()
    has_rna_and_atac = model.get_latent_representation(modality=["rna", "atac"])
    np.testing.assert_allclose(has_rna_and_atac[lacks], whole[lacks], rtol=1e-5, atol=1e-6)


def test_each_modality_tells_the_types(unpaired):
    model, mdata = unpaired
    entropy = model.get_modality_entropy()
    assert list(entropy) == ["all", "without rna", "without protein", "without atac"]
    assert (entropy.min() >= 0).all()
    assert entropy["without rna"].mean() > entropy["all"].mean()
    only_rna = ~mdata.obs_names.isin(mdata["protein"].obs_names)
    only_rna &= ~mdata.obs_names.isin(mdata["atac"].obs_names)
    assert entropy["without rna"].isna().to_numpy().tolist() == only_rna.tolist()


# ----------------------------------------------------------------------------- imputation


def test_proteins_are_imputed_from_rna(unpaired):
    model, mdata = unpaired
    cells = mdata["protein"].obs_names
    imputed = model.impute("protein", given="rna")[cells]
    truth = mdata["protein"].X.toarray()
    of_types = mdata.obs["cell_type"].loc[cells]
    means = pd.DataFrame(truth, index=cells).groupby(of_types, observed=True).mean().to_numpy()
    found = pd.DataFrame(imputed.X, index=cells).groupby(of_types, observed=True).mean()
    assert np.corrcoef(np.log1p(means).ravel(), np.log1p(found.to_numpy()).ravel())[0, 1] > 0.95
    inside = (imputed.layers["lower"] <= truth) & (truth <= imputed.layers["upper"])
    assert inside.mean() > 0.8
    assert (imputed.layers["foreground"] <= imputed.X + 1e-4).all()
    foreground = model.get_protein_foreground_probability(indices=np.arange(20))
    assert foreground.shape == (20, 6)
    assert foreground.to_numpy().min() >= 0
    assert foreground.to_numpy().max() <= 1
    assert list(foreground.columns) == list(mdata["protein"].var_names)


@pytest.mark.filterwarnings("ignore:Most types are divided")  # by chance, after few epochs
def test_cells_that_lack_rna_get_some_of_typical_depth():
    mdata = make_mdata()
    rna = mdata["rna"][:150].copy()
    mdata = mudata.MuData({"rna": rna, "protein": mdata["protein"].copy()})
    model = trained(mdata, FEW)
    imputed = model.impute("rna", indices=model.adata.obs_names.get_indexer(mdata.obs_names))
    lacks = ~imputed.obs_names.isin(rna.obs_names)
    typical = rna.X.sum() / rna.n_obs
    np.testing.assert_allclose(model.module.typical_counts[:60].sum(), typical, rtol=1e-4)
    np.testing.assert_allclose(imputed.X[lacks].sum(1), typical, rtol=1e-3)


def test_imputed_values_are_the_same_for_the_same_seed(unpaired):
    model, _ = unpaired
    first, again, other = (
        model.impute("atac", given="rna", n_samples=3, seed=seed).X for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert 0 <= first.min() <= first.max() <= 1


# ------------------------------------------------------------------- everything of a model


def test_generated_cells_are_a_mudata(unpaired):
    model, _ = unpaired
    drawn = model.sample(30, conditions={"batch": "x"})
    assert isinstance(drawn, mudata.MuData)
    assert {name: part.shape for name, part in drawn.mod.items()} == {
        "rna": (30, 60),
        "protein": (30, 6),
        "atac": (30, 80),
    }
    assert set(np.unique(drawn["atac"].X.toarray())) <= {0, 1}
    assert (drawn.obs["batch"] == "x").all()
    other = model.predict_counterfactual(conditions={"batch": "y"}, indices=[0, 1])
    assert other["rna"].layers["rate"].shape == (2, 60)
    assert other.obs["batch"].tolist() == ["y", "y"]


def test_what_reads_an_anndata_reads_the_modalities(unpaired):
    model, _ = unpaired
    table = model.markers(n=3)
    assert set(table["modality"]) == {"rna", "protein", "atac"}
    assert (table["modality"] == table["gene"].str.split("_").str[0]).all()
    assert (table["lfc"] > 0).all()
    assert len(model.split_table()) == 2
    expression = model.get_normalized_expression(n_samples=2)
    assert expression.shape == (240, 146)
    shares = expression.iloc[:, :60].sum(axis=1)
    np.testing.assert_allclose(shares, 1, rtol=1e-4)
    assert np.isfinite(float(model.get_marginal_ll(n_mc_samples=3, return_mean=True)))
    effects = model.effect_table("batch", "x", "y")
    assert np.isfinite(effects["lfc"]).all()
    found = model.differential_expression(groupby="scgmvae", group1="0")
    assert len(found) == 146


def test_a_report_and_an_overview_can_be_made(unpaired, tmp_path):
    model, _ = unpaired
    model.report(tmp_path / "report.html", "cell_type")
    text = (tmp_path / "report.html").read_text()
    assert "modalities" in text
    assert "protein_" in text
    rows = re.findall(r"modality: (\w+)</th><td>(.*?)</td>", text)
    assert rows == [
        ("rna", "60 features of X, likelihood nb, in 240 cells"),
        ("protein", "6 features of X, likelihood protein, in 180 cells"),
        ("atac", "80 features of X, likelihood bernoulli, in 180 cells"),
    ]


def test_labels_and_conditions_are_columns_of_the_mudata_or_of_a_modality():
    mdata = make_mdata()
    mdata["rna"].obs["donor"] = np.where(np.arange(240) % 2, "p", "q")
    mdata["protein"].obs["site"] = "s"
    setup = {
        "batch_key": "donor",
        "labels_key": "cell_type",
        "unlabeled_category": "c",
        "categorical_covariate_keys": ["protein:site"],
    }
    model = trained(mdata, setup=setup)
    assert model.predict(soft=True).columns.tolist() == ["a", "b"]
    assert model.summary_stats.n_batch == 2
    assert model.adata.obs["protein:site"].tolist() == ["s"] * 240


# ----------------------------------------------------------------------- files and queries


@pytest.mark.parametrize("with_data", [False, True])
def test_a_saved_model_is_the_same(unpaired, tmp_path, with_data):
    model, mdata = unpaired
    model.save(tmp_path / "model", save_anndata=with_data)
    again = SCGMVAE.load(tmp_path / "model", None if with_data else mdata.copy())
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )
    assert again.modalities_ == model.modalities_
    bare = SCGMVAE.load(tmp_path / "model", False)
    np.testing.assert_array_equal(bare.predict(mdata), model.predict())


def test_a_mudata_that_was_set_up_keeps_it_in_its_file(tmp_path):
    mdata = make_mdata()
    SCGMVAE.setup_mudata(mdata, modalities=FEW, batch_key="batch")
    mdata.write(tmp_path / "cells.h5mu")
    again = mudata.read(tmp_path / "cells.h5mu")
    model = SCGMVAE(again, **NETWORK, n_components=3)
    assert model.summary_stats.n_batch == 2
    assert list(model.modalities_) == ["rna", "protein"]


@pytest.mark.parametrize("lacks", ["rna", "protein", "atac"])
def test_a_query_may_lack_a_modality(unpaired, lacks):
    model, _ = unpaired
    new = make_mdata(seed=1, n=90)
    types = make_mdata(seed=0).obs["cell_type"]
    new = mudata.MuData({name: part for name, part in make_mdata().mod.items() if name != lacks})
    new.obs["batch"] = "new"
    mapped = SCGMVAE.load_query_data(new, model)
    mapped.train(max_epochs=3, enable_progress_bar=False)
    truth = types.loc[new.obs_names]
    assert adjusted_rand_score(truth, mapped.predict()) > 0.8
    assert new.obsm["X_scgmvae"].shape == (240, 5)


def test_a_query_may_lack_features_and_have_them_in_another_order(unpaired):
    model, mdata = unpaired
    new = make_mdata()
    new.mod["protein"] = new["protein"][:, ["protein_4", "protein_0", "protein_2"]].copy()
    new.mod["rna"] = new["rna"][:, ::-1].copy()
    new = mudata.MuData(dict(new.mod))
    new.obs["batch"] = make_mdata().obs["batch"]
    with pytest.warns(UserWarning, match="'protein' are treated as unobserved"):
        z = model.get_latent_representation(new)
    assert np.isfinite(z).all()
    assert np.corrcoef(z[100], model.get_latent_representation()[100])[0, 1] > 0.9


def test_annotating_another_mudata_writes_into_it(unpaired):
    model, mdata = unpaired
    new = make_mdata(n=50, seed=2)
    model.annotate(new, "mine")
    np.testing.assert_array_equal(new.obs["mine"].astype(str), model.predict(new))
    assert new.obsm["X_mine"].shape == (50, 5)
    assert "mine" not in mdata.obs


def test_changed_data_are_read_anew(unpaired):
    model, _ = unpaired
    new = make_mdata(seed=3)
    first = model.get_latent_representation(new)
    np.testing.assert_array_equal(model.get_latent_representation(new), first)
    x = new["rna"].X.copy()
    x.data[:] = x.data[::-1]
    new["rna"].X = x
    assert (model.get_latent_representation(new) != first).any()
    new.obs["batch"] = new.obs["batch"].cat.rename_categories({"x": "y", "y": "x"})
    assert (model.get_latent_representation(new) != first).any()


# --------------------------------------------------------------------- panels of proteins


def test_proteins_that_a_batch_does_not_show_were_not_measured_there():
    mdata = make_mdata()
    x = mdata["protein"].X.tolil()
    x[(mdata.obs["batch"] == "x").to_numpy(), 2] = 0
    mdata["protein"].X = x.tocsr()
    model = trained(mdata, FEW, {"batch_key": "batch"})
    table = model.adata.uns["_scgmvae_panels"]
    of_cells = table[model.adata.obs["_scgmvae_panel"]]
    expected = np.ones((240, 66), dtype=bool)
    expected[(mdata.obs["batch"] == "x").to_numpy(), 62] = False
    np.testing.assert_array_equal(of_cells, expected)
    imputed = model.impute("protein")
    lacks = (mdata.obs["batch"] == "x").to_numpy()
    assert imputed.X[lacks, 2].mean() > 1


def test_without_batches_a_protein_that_no_cell_shows_was_not_measured():
    mdata = make_mdata()
    x = mdata["protein"].X.tolil()
    x[:, 1] = 0
    mdata["protein"].X = x.tocsr()
    model = trained(mdata, FEW)
    assert model.adata.uns["_scgmvae_panels"].sum() == 65
    assert np.isfinite(model.get_latent_representation()).all()


def test_the_panel_of_a_known_batch_is_that_of_training(unpaired):
    model, mdata = unpaired
    z = model.get_latent_representation()
    for i in (5, 100, 200):  # a cell that shows few proteins was measured in all
        alone = model.get_latent_representation(mdata[[i]].copy())
        np.testing.assert_allclose(alone[0], z[i], rtol=1e-4, atol=1e-5)


def half_measured():
    """Proteins of 150 of 240 cells, whose column ``has`` says of which."""
    mdata = make_mdata()
    has = np.random.default_rng(5).permutation(240) < 150
    mdata = mudata.MuData({"rna": mdata["rna"], "protein": mdata["protein"][has].copy()})
    mdata.obs["has"] = np.where(mdata.obs_names.isin(mdata["protein"].obs_names), "yes", "no")
    mdata.obs["batch"] = mdata.obs["has"]
    return mdata


def test_what_was_not_measured_is_no_zero_in_tables_of_genes():
    mdata = half_measured()
    model = trained(mdata, FEW, {"batch_key": "batch"})
    table = model.markers(5, "has").set_index("gene")
    assert (table.filter(like="protein", axis=0)["lfc"].abs() < 1).all()
    effects = model.effect_table("batch", "yes", "no", groupby="has").set_index("gene")
    assert effects.filter(like="protein", axis=0)["measured"].isna().all()
    x, cells = mdata["protein"].X.toarray(), mdata["protein"].obs_names
    groups = model.adata.obs["scgmvae"].loc[cells].astype(str).to_numpy()
    shares = model.markers(6)
    for row in shares[shares["modality"] == "protein"].itertuples():
        gene = mdata["protein"].var_names.get_loc(row.gene)
        own = groups == row.cluster
        expected = (x[own, gene] > 0).mean() if own.any() else 0
        assert row.fraction == pytest.approx(expected)
        assert row.fraction_rest == pytest.approx((x[~own, gene] > 0).mean())


# ------------------------------------------------------------------- changed and copied data


def test_setting_up_again_reads_what_was_changed_in_place():
    mdata = make_mdata()
    SCGMVAE.setup_mudata(mdata, modalities={"rna": "nb", "protein": "gaussian"})
    mdata["protein"].X.data = np.log1p(mdata["protein"].X.data)
    mdata["rna"].var_names = [f"new_{i}" for i in range(60)]
    mdata.update()
    SCGMVAE.setup_mudata(mdata, modalities={"rna": "nb", "protein": "gaussian"})
    adata = SCGMVAE(mdata, **NETWORK).adata
    np.testing.assert_allclose(adata.X[:, 60:].toarray(), mdata["protein"].X.toarray())
    assert adata.var_names[0] == "new_0"


def test_the_model_knows_its_own_mudata_and_its_new_columns():
    mdata = make_mdata()
    model = trained(mdata)
    assert model._anndata_of(mdata, vars(model)) is model.adata
    mdata.obs["group"] = np.where(np.arange(240) < 100, "p", "q")
    assert set(model.differential_expression(mdata, groupby="group")["group1"]) == {"p", "q"}
    mdata.obs["group"] = np.array(["u", "v", "w"])[np.arange(240) % 3]
    assert model.test_partition("group").index.tolist() == ["u", "v", "w"]


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_model_can_be_copied(unpaired, way):
    model, _ = unpaired
    copied = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.predict(), model.predict())


def test_columns_of_features_are_kept():
    mdata = make_mdata()
    mdata["rna"].var["symbol"] = [f"S{i}" for i in range(60)]
    model = trained(mdata)
    assert model.impute("rna").var["symbol"].tolist() == mdata["rna"].var["symbol"].tolist()


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "gaussian"])
def test_every_likelihood_trains_beside_another(likelihood):
    mdata = make_mdata(n=90)
    trained(mdata, {"rna": likelihood, "atac": "bernoulli"})
    assert np.isfinite(mdata.obsm["X_scgmvae"]).all()


# ------------------------------------------------------------------------------ bad input


def test_counts_of_peaks_are_read_as_open_with_a_line_of_log(caplog):
    mdata = make_mdata()
    mdata["atac"].X = mdata["atac"].X * 2
    with caplog.at_level(logging.INFO, logger="scgmvae"):
        SCGMVAE.setup_mudata(mdata, modalities=KINDS)
    assert "mdata['atac'].X holds counts, which are read as 1" in caplog.text
    assert SCGMVAE(mdata, **NETWORK).adata.X.max() > 1  # RNA stays as it is
    assert mdata["atac"].X.max() == 2


def clr(mdata):
    mdata["protein"].X = np.log1p(mdata["protein"].X.toarray())


def twice(mdata):
    mdata["protein"].var_names = ["rna_3", *mdata["protein"].var_names[1:]]


def lost(mdata):
    del mdata.mod["rna"]


def unlabelled(mdata):
    mdata.obs["batch"] = mdata.obs["batch"].cat.remove_categories("x")


def empty(mdata):
    mdata.mod["atac"] = mdata["atac"][:0].copy()


@pytest.mark.parametrize(
    ("change", "setup", "error", "message"),
    [
        (clr, {}, ValueError, r"'protein' of 'protein' is one of counts.*CLR.*'gaussian'"),
        (twice, {}, ValueError, r"occur more than once: 'rna_3'.*var_names_make_unique"),
        (empty, {}, ValueError, r"'atac' must have cells, but it has none"),
        (None, {"modalities": {"adt": "nb"}}, KeyError, r"names 'adt'.*modalities are: 'rna'"),
        (None, {"modalities": {"rna": "nbx"}}, ValueError, r"that of 'rna' is 'nbx'"),
        (None, {"modalities": {}}, ValueError, "must be a dictionary of the likelihood"),
        (None, {"modalities": ["rna"]}, ValueError, "must be a dictionary of the likelihood"),
        (None, {"modality": "atac"}, ValueError, "but not both"),
        (unlabelled, {"batch_key": "batch"}, ValueError, "Every cell needs a value in the obs"),
        (None, {"batch_key": "no"}, KeyError, "obs column 'no'"),
        (None, {"size_factor_key": "batch"}, ValueError, "size_factor_key is for one modality"),
        (None, {"layer": {"rn": "x"}}, ValueError, "it names one of 'rn'"),
        (None, {"layer": {"rna": "x"}}, KeyError, "'x'"),
    ],
)
def test_what_does_not_fit_is_refused_and_loses_nothing(change, setup, error, message):
    mdata = make_mdata()
    if change is not None:
        change(mdata)
    before = mdata.obs.copy(), dict(mdata.uns)
    with pytest.raises(error, match=message):
        SCGMVAE.setup_mudata(mdata, **({"modalities": KINDS} | setup))
    pd.testing.assert_frame_equal(mdata.obs, before[0])
    assert dict(mdata.uns) == before[1]


def test_cells_without_any_of_the_modalities_are_refused():
    mdata = make_mdata(unpaired=True)
    mdata = mudata.MuData(
        {
            "rna": mdata["rna"][:200].copy(),
            "atac": mdata["atac"].copy(),
            "protein": mdata["protein"].copy(),
        }
    )
    with pytest.raises(ValueError, match="40 of 240 are in none"):
        SCGMVAE.setup_mudata(mdata, modalities={"rna": "nb"})


def test_cells_of_which_nothing_was_measured_are_named():
    mdata = make_mdata()
    x = mdata["protein"].X.tolil()
    x[:2] = 0
    mdata["protein"].X = x.tocsr()
    parts = {"rna": mdata["rna"][2:].copy(), "protein": mdata["protein"].copy()}
    mdata = mudata.MuData(parts)
    mdata.obs["batch"] = np.where(mdata.obs_names.isin(parts["rna"].obs_names), "p", "q")
    with pytest.raises(ValueError, match="must have a feature that was measured, but 'cell_0'"):
        SCGMVAE.setup_mudata(mdata, modalities=FEW, batch_key="batch")


def test_a_failed_set_up_of_one_modality_leaves_that_of_several():
    mdata = make_mdata()
    SCGMVAE.setup_mudata(mdata, modalities=KINDS)
    with pytest.raises(KeyError):
        SCGMVAE.setup_mudata(mdata, modality="nope")
    assert list(SCGMVAE(mdata, **NETWORK).modalities_) == ["rna", "protein", "atac"]


def test_settings_of_several_modalities_are_refused_for_one(counts):
    with pytest.raises(ValueError, match="hidden_share is for several modalities"):
        SCGMVAE(counts.copy(), hidden_share=0.1)


def test_what_a_joint_model_does_not_have_is_said(unpaired):
    model, _ = unpaired
    with pytest.raises(NotImplementedError, match="'joint'"):
        model.get_feature_correlation_matrix()
    with pytest.raises(NotImplementedError, match="'joint'"):
        model.differential_expression(groupby="batch", weights="importance")
    with pytest.raises(ValueError, match="library_size is one of counts"):
        model.get_normalized_expression(library_size=1e4)
    with pytest.raises(ValueError, match="the list is empty"):
        model.impute("rna", given=[])
    with pytest.raises(ValueError, match="via='x' changes the counts of one modality"):
        model.predict_counterfactual(conditions={"batch": "x"}, via="x")


def test_errors_speak_of_a_mudata(unpaired):
    model, mdata = unpaired
    with pytest.raises(KeyError, match="'no', which mdata.obs does not have") as error:
        model.markers(groupby="no")
    assert "_scgmvae" not in str(error.value)
    assert "_scvi" not in str(error.value)
    for read in (model.predict, lambda adata: SCGMVAE.load_query_data(adata, model)):
        with pytest.raises(ValueError, match=r"mudata\.MuData\(\{'rna': adata\}\)"):
            read(mdata["rna"].copy())
    alone = mudata.MuData({"rna": mdata["rna"].copy()})
    alone.obs["batch"] = mdata.obs["batch"].loc[alone.obs_names]
    assert len(model.predict(alone)) == 240


def test_columns_of_two_modalities_that_differ_are_refused():
    mdata = make_mdata()
    mdata["rna"].obs["donor"], mdata["protein"].obs["donor"] = "p", "q"
    with pytest.raises(ValueError, match="column 'donor' with different values"):
        SCGMVAE.setup_mudata(mdata, modalities=KINDS, batch_key="donor")


def test_a_likelihood_beside_those_of_the_modalities_is_refused():
    mdata = make_mdata()
    SCGMVAE.setup_mudata(mdata, modalities=KINDS)
    with pytest.raises(ValueError, match="Each modality has the likelihood that setup_mudata"):
        SCGMVAE(mdata, likelihood="nb")


def test_methods_of_several_modalities_say_that_there_is_one(counts, make_model, train):
    model = train(make_model(counts.copy()))
    for call in (
        lambda: model.impute("rna"),
        lambda: model.get_modality_entropy(),
        lambda: model.get_latent_representation(modality="rna"),
    ):
        with pytest.raises(RuntimeError, match="modalities="):
            call()


def test_unknown_modalities_are_named(unpaired):
    model, _ = unpaired
    with pytest.raises(ValueError, match="'prot' is none of them"):
        model.impute("prot")
    with pytest.raises(ValueError, match="'x' is none of them"):
        model.get_latent_representation(modality=["rna", "x"])


def test_a_joint_model_does_not_read_an_anndata_of_rna(unpaired):
    model, mdata = unpaired
    rna = AnnData(mdata["rna"].X, obs=mdata["rna"].obs, var=mdata["rna"].var)
    with pytest.raises((ValueError, KeyError)):
        model.predict(rna)


def test_clr_normalised_proteins_are_gaussian():
    mdata = make_mdata()
    clr(mdata)
    model = trained(mdata, {"rna": "nb", "protein": "gaussian"})
    assert np.isfinite(mdata.obsm["X_scgmvae"]).all()
    assert model.impute("protein", given="rna").X.shape == (240, 6)
    assert isinstance(model.sample(3), mudata.MuData)


def test_nine_of_ten_further_draws_lie_between_the_bounds_of_an_imputed_value(unpaired):
    model, _ = unpaired
    bounds = model.impute("protein", given="rna", n_samples=25, seed=0)
    # the bounds of a single draw are the draw
    further = [
        model.impute("protein", given="rna", n_samples=1, seed=seed).layers["lower"]
        for seed in range(1, 9)
    ]
    inside = [
        (bounds.layers["lower"] <= draw) & (draw <= bounds.layers["upper"]) for draw in further
    ]
    # of counts a bound is often one of several draws, so that there are some more
    assert 0.9 < np.nanmean(inside) < 0.95


def test_counts_of_several_modalities_are_tested_where_they_were_measured(unpaired):
    model, mdata = unpaired
    table = model.test_markers("cell_type")
    assert set(table["modality"]) == {"rna", "protein"}
    rna = mdata["rna"]
    is_own = (mdata.obs.loc[rna.obs_names, "cell_type"] == "a").to_numpy()
    x = log_normalized(rna.X).X.toarray().astype(float)
    expected = ttest_ind(x[is_own], x[~is_own], equal_var=False).pvalue
    found = table[(table["cluster"] == "a") & (table["modality"] == "rna")].set_index("gene")
    is_tested = (rna.X > 0).sum(0).A1 >= 10
    np.testing.assert_allclose(
        found.loc[rna.var_names, "p"][is_tested], expected[is_tested], rtol=1e-3
    )
    protein = mdata["protein"]  # which sixty cells lack
    is_own = (mdata.obs.loc[protein.obs_names, "cell_type"] == "a").to_numpy()
    x = np.log1p(protein.X.toarray().astype(float))
    expected = ttest_ind(x[is_own], x[~is_own], equal_var=False).pvalue
    found = table[(table["cluster"] == "a") & (table["modality"] == "protein")].set_index("gene")
    found = found.loc[protein.var_names]
    np.testing.assert_allclose(found["p"], expected, rtol=1e-3)
    np.testing.assert_allclose(found["q"], false_discovery_control(expected), rtol=1e-3)
    np.testing.assert_allclose(found["fraction"], (protein.X[is_own] > 0).mean(0).A1)


def test_clusters_of_several_modalities_are_tested_on_the_other_half_of_the_counts(unpaired):
    model, mdata = unpaired
    before = mdata.obs.copy()
    theta = model._inverse_dispersions()
    assert theta.shape == (66,) and np.isfinite(theta).all()  # peaks are not divided
    table = model.test_markers()
    assert set(table["cluster"]) == set(model.cluster_names)
    assert (table["overlap"] > 0.9).all()
    assert table.groupby("modality")["p"].min().max() < 1e-10
    assert mdata.obs.equals(before)


def test_a_cluster_that_lacks_a_modality_has_no_p_there(unpaired):
    model, mdata = unpaired
    has = mdata.obs_names.isin(mdata["protein"].obs_names)
    model.adata.obs["whole"] = np.where(has, "whole", "part")
    table = model.test_markers("whole")
    del model.adata.obs["whole"]
    of_proteins = table["modality"] == "protein"
    assert table.loc[of_proteins, ["lfc", "p", "q"]].isna().all().all()
    assert table.loc[~of_proteins, "p"].notna().any()


def test_clusters_of_one_population_have_no_features_on_the_other_half(monkeypatch):
    monkeypatch.setattr(marker_tests, "AGAIN", 0.0)
    rng = np.random.default_rng(0)
    rna = np.exp(rng.normal(0, 1, 80)) * rng.lognormal(0, 0.3, (300, 1))
    levels = {"rna": rna, "protein": np.full((300, 6), 10.0)}
    parts = {}
    for name, mean in levels.items():
        x = rng.poisson(rng.gamma(5, mean / 5)).astype(np.float32)
        var = pd.DataFrame(index=[f"{name}_{i}" for i in range(x.shape[1])])
        parts[name] = AnnData(sparse.csr_matrix(x), var=var)
    mdata = mudata.MuData(parts)
    # halves of counts are independent where their dispersions are known, which takes some epochs
    long = TRAINING | {"max_epochs": 60, "pretrain_epochs": 60}
    model = trained(mdata, FEW, training=long, n_components=2)
    table, naive = model.test_markers(), model.test_markers("scgmvae")
    assert (naive["q"] < 0.05).sum() >= 8
    assert (table["q"] < 0.05).sum() <= 1
