"""One modality of a MuData: set up, trained, read, annotated, saved, mapped as an AnnData is."""

import warnings

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgmvae import SCGMVAE, DualVAE

ROWS = np.arange(40)


pytestmark = pytest.mark.usefixtures("no_columns_are_pulled")


@pytest.fixture
def mdata(counts):
    """RNA of all 300 cells, of which 250 have proteins; donors are of the cells as such."""
    rna = counts.copy()
    protein = AnnData(
        np.arange(500.0).reshape(250, 2),
        obs=pd.DataFrame(index=rna.obs_names[50:]),
        var=pd.DataFrame(index=["CD3", "CD19"]),
    )
    mdata = mudata.MuData({"prot": protein, "rna": rna})
    donors = pd.Series(np.where(np.arange(300) % 3, "x", "y"), index=rna.obs_names)
    mdata.obs["donor"] = donors.reindex(mdata.obs_names).astype("category")
    return mdata


@pytest.fixture
def make(mdata, make_model):
    """Function that makes a model of the MuData, after setting it up."""

    def make(**setup):
        SCGMVAE.setup_mudata(mdata, **setup)
        return make_model(mdata)

    return make


@pytest.fixture
def of_mdata(make, train):
    """A trained model whose condition is a column of the MuData itself."""
    return train(make(batch_key="donor", labels_key="rna:component"))


def test_a_modality_gives_what_its_anndata_gives(counts, mdata, make_model, train, of_mdata):
    adata = counts.copy()
    adata.obs["donor"] = mdata.obs["donor"]
    setup = {"batch_key": "donor", "labels_key": "component"}
    of_anndata = train(make_model(adata, setup))
    assert of_mdata.adata is mdata["rna"]
    for key, value in adata.obsm.items():
        np.testing.assert_array_equal(mdata["rna"].obsm[key], value)
    pd.testing.assert_series_equal(mdata["rna"].obs["scgmvae"], adata.obs["scgmvae"])
    assert of_mdata.registry["setup_args"] == of_anndata.registry["setup_args"]
    assert not mdata.obsm.keys() & adata.obsm.keys()  # nothing is written beside the modality
    assert list(mdata["prot"].obs.columns) == []


def test_methods_read_a_mudata_as_they_read_its_modality(mdata, of_mdata):
    new = mdata.copy()  # whose RNA is an object of its own, without the donors
    del new["rna"].obs["donor"]
    z = of_mdata.get_latent_representation()
    np.testing.assert_array_equal(of_mdata.get_latent_representation(mdata), z)
    np.testing.assert_allclose(of_mdata.get_latent_representation(new), z, atol=1e-5)
    part = new[new["rna"].obs_names[ROWS]]
    np.testing.assert_allclose(of_mdata.get_latent_representation(part), z[ROWS], atol=1e-5)
    for read in (of_mdata.predict, of_mdata.get_novelty, of_mdata.component_table):
        assert len(read(mdata)) == len(read())
    assert np.isclose(of_mdata.get_elbo(new), of_mdata.get_elbo())
    assert len(of_mdata.get_normalized_expression(new, indices=ROWS)) == 40
    other = of_mdata.predict_counterfactual(new, {"donor": "x"}, indices=ROWS)
    assert (other.obs["donor"] == "x").all()
    assert of_mdata.get_anndata_manager(mdata) is of_mdata.adata_manager
    of_mdata.view_anndata_setup(mdata)
    of_mdata.adata = new
    assert of_mdata.adata is new["rna"]


@pytest.mark.usefixtures("no_window_and_no_new_settings")
def test_the_first_look_is_at_the_modality(of_mdata):
    figure = of_mdata.overview()
    assert "share of the cells by donor" in [axis.get_xlabel() for axis in figure.axes]
    assert "component" in [axis.get_xlabel() for axis in figure.axes]
    assert of_mdata.markers(1)["cluster"].nunique() >= 2


def test_results_are_written_into_the_modality(mdata, of_mdata):
    new = mdata.copy()
    of_mdata.annotate(new, key_added="mine")
    np.testing.assert_allclose(
        new["rna"].obsm["X_mine"], mdata["rna"].obsm["X_scgmvae"], atol=1e-5
    )
    with pytest.raises(ValueError, match="view of another"):
        of_mdata.annotate(new[new.obs_names[:9]])
    new.update()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata 0.3.10 renames columns of a slice
        new.pull_obs(["mine"], mods=["rna"])
    pulled = new.obs.loc[mdata["rna"].obs_names, "rna:mine"]
    assert list(pulled) == list(mdata["rna"].obs["scgmvae"])


@pytest.mark.parametrize("batch_key", ["batch", "rna:batch"])
def test_columns_of_the_modality_go_by_two_names(mdata, make, batch_key):
    model = make(batch_key=batch_key, categorical_covariate_keys=["rna:condition", "donor"])
    assert model.get_setup_arg("batch_key") == "batch"
    assert model.get_setup_arg("categorical_covariate_keys") == ["condition", "donor"]
    np.testing.assert_array_equal(
        mdata["rna"].obs["donor"].astype(str), np.where(np.arange(300) % 3, "x", "y")
    )


def test_a_column_that_is_there_twice_must_be_the_same(mdata, make):
    mdata.obs["batch"] = mdata["rna"].obs["batch"].reindex(mdata.obs_names)
    assert make(batch_key="batch").summary_stats.n_batch == 2
    mdata.obs["batch"] = "elsewhere"
    with pytest.raises(ValueError, match="'batch', but with different values.*'rna:batch'"):
        make(batch_key="batch")
    model = make(batch_key="rna:batch")
    assert list(model.get_state_registry("batch").categorical_mapping) == ["batch_0", "batch_1"]


def test_a_model_that_reads_a_column_that_is_there_twice_says_which(mdata, make, train):
    model = train(make(batch_key="batch"))
    before = model.get_normalized_expression(mdata, n_samples=1)
    mdata.obs["batch"] = "batch_0"
    with pytest.warns(UserWarning, match="'batch', but with different values: that of the mod"):
        after = model.get_normalized_expression(mdata, n_samples=1)
    np.testing.assert_array_equal(before, after)


def test_what_was_not_set_up_is_read_with_defaults(mdata, make_model):
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    assert make_model(mdata).get_setup_arg("layer") == "counts"
    other = mudata.MuData({"gex": mdata["rna"].copy(), "prot": mdata["prot"].copy()})
    with pytest.raises(KeyError, match="'rna'.*'gex', 'prot'.*modality="):
        make_model(other)
    SCGMVAE.setup_mudata(other, "gex", batch_key="gex:batch")
    assert make_model(other).adata is other["gex"]
    assert make_model(other.copy()).summary_stats.n_batch == 2  # copies are set up alike


@pytest.mark.parametrize(
    ("setup", "error", "words"),
    [
        ({"modality": "atac"}, KeyError, "'atac'.*'prot', 'rna'"),
        ({"batch_key": "nowhere"}, KeyError, "'nowhere'"),
        ({"batch_key": "rna:nowhere"}, KeyError, "'nowhere'"),
        ({"batch_key": "donor", "labels_key": ["component"]}, ValueError, "labels_key must be"),
        ({"batch_key": "donor", "layer": "spliced"}, KeyError, "'spliced'"),
        ({"modality": "prot", "batch_key": "rna:batch"}, KeyError, "'rna:batch'"),
    ],
)
def test_what_does_not_suit_leaves_the_data_as_they_were(mdata, make, setup, error, words):
    before = list(mdata["rna"].obs.columns)
    with pytest.raises(error, match=words):
        make(**setup)
    assert list(mdata["rna"].obs.columns) == before
    assert not mdata.uns.keys() | mdata["rna"].uns.keys() & {"_scvi_uuid"}


def test_cells_that_the_mudata_does_not_know_have_no_value(mdata, make):
    mdata.mod["rna"].obs_names = [f"{name}-1" for name in mdata["rna"].obs_names]
    with pytest.raises(ValueError, match="'donor' .batch_key., but 300 have none"):
        make(batch_key="donor")


def test_a_model_is_saved_with_the_name_of_its_modality(mdata, of_mdata, tmp_path):
    of_mdata.save(tmp_path / "model", save_anndata=True)
    z = of_mdata.get_latent_representation()
    new = mudata.MuData({"prot": mdata["prot"], "rna": mdata["rna"].copy()})
    new.obs["donor"] = mdata.obs["donor"]
    del new["rna"].obs["donor"]
    loaded = SCGMVAE.load(tmp_path / "model", new)
    assert loaded.adata is new["rna"]
    for model in (loaded, SCGMVAE.load(tmp_path / "model")):
        np.testing.assert_allclose(model.get_latent_representation(), z, atol=1e-5)
        np.testing.assert_allclose(model.get_latent_representation(mdata), z, atol=1e-5)
    with pytest.raises(KeyError, match="'rna'.*'prot'"):
        loaded.predict(mudata.MuData({"prot": mdata["prot"]}))


def test_a_training_is_resumed(mdata, make, make_model, train, tmp_path):
    model = train(make(batch_key="donor"), checkpoint_dir=tmp_path / "run")
    again = make_model(mdata)
    again.train(resume_from=tmp_path / "run", accelerator="cpu", enable_progress_bar=False)
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )


@pytest.mark.parametrize("reference", ["of_mdata", "trained"])
def test_a_query_is_a_mudata(counts, reference, request):
    reference = request.getfixturevalue(reference)
    query = mudata.MuData({"rna": counts[:50].copy()})
    query.obs["donor"] = "new"
    key = reference.get_setup_arg("batch_key")
    if key == "batch":
        del query["rna"].obs["batch"]
        query.obs["batch"] = "new"
    mapped = SCGMVAE.load_query_data(query, reference)
    assert mapped.adata is query["rna"]
    assert list(mapped.get_state_registry("batch").categorical_mapping)[-1] == "new"
    mapped.train(1, accelerator="cpu", enable_progress_bar=False)
    assert query["rna"].obsm["X_scgmvae"].shape == (50, 5)
    with pytest.raises(ValueError, match=r"mdata\['rna'\]"):
        SCGMVAE.load_query_data(query, reference, inplace_subset_query_vars=True)


def test_the_modality_is_the_models_also_where_another_is_called_rna(mdata, make_model, train):
    def of_cells(rows):
        return mudata.MuData({"gex": mdata["rna"][rows].copy(), "rna": mdata["prot"].copy()})

    SCGMVAE.setup_mudata(known := of_cells(slice(None)), "gex", batch_key="gex:batch")
    model = train(make_model(known))
    new = of_cells(slice(50))
    np.testing.assert_array_equal(model.predict(new), model.predict()[:50])
    query = of_cells(slice(50, 90))
    query["gex"].obs["batch"] = "new"
    mapped = SCGMVAE.load_query_data(query, model)
    assert mapped.adata is query["gex"]
    np.testing.assert_array_equal(mapped.predict(new), model.predict()[:50])


def test_where_a_mudata_is_refused_it_is_said_what_to_pass(mdata, trained):
    for call in (
        SCGMVAE.setup_anndata,
        DualVAE,
        lambda data: SCGMVAE.prepare_query_anndata(data, trained),
    ):
        with pytest.raises(ValueError, match=r"MuData.*mdata\['rna'\].*setup_mudata"):
            call(mdata)
    with pytest.raises(ValueError, match="mdata must be a MuData.*setup_anndata"):
        SCGMVAE.setup_mudata(mdata["rna"])
    with pytest.raises(ValueError, match="view of another"):
        SCGMVAE.setup_mudata(mdata[mdata.obs_names[:9]])


def test_a_file_of_several_modalities_trains_from_disk(mdata, make_model, train, tmp_path):
    mdata.write(tmp_path / "cells.h5mu")
    backed = mudata.read_h5mu(tmp_path / "cells.h5mu", backed=True)
    SCGMVAE.setup_mudata(backed, batch_key="donor")
    model = train(make_model(backed))
    np.testing.assert_allclose(
        model.get_latent_representation(mdata), model.get_latent_representation(), atol=1e-5
    )
    backed.file.close()


def test_a_column_that_was_copied_is_copied_again_when_it_has_changed(mdata, make, train):
    model = train(make(batch_key="donor"))
    mdata.obs["donor"] = np.where(np.arange(mdata.n_obs) % 2, "x", "y")
    with pytest.raises(ValueError, match="obs column 'donor' has other values"):
        model.predict(mdata)
    again = make(batch_key="donor")
    donors = mdata.obs["donor"].reindex(mdata["rna"].obs_names)
    codes = again.adata_manager.get_from_registry("batch").ravel()
    np.testing.assert_array_equal(codes, donors == "y")
