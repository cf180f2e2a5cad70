"""Tests of model.registration and data.fingerprint: data that are changed in place."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from scgmvae import SCGMVAE, DualVAE
from scgmvae.data.fingerprint import change_of
from scgmvae.datasets import synthetic_counts

ORDER = np.random.default_rng(1).permutation(60)
CELLS = np.random.default_rng(2).permutation(300)


def normalized(adata):
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)


def with_another_batch(adata):
    column = adata.obs["batch"].astype(str)
    column.iloc[:5] = np.where(column.iloc[:5] == "batch_0", "batch_1", "batch_0")
    adata.obs["batch"] = column


def swap_batches(adata):
    names = {"batch_0": "batch_1", "batch_1": "batch_0"}
    adata.obs["batch"] = adata.obs["batch"].astype(str).map(names)


# How data are changed in place, and what the error says of it.
CHANGES = {
    "normalised": (normalized, r"adata\.X has other values.*layer='counts'"),
    "scaled": (lambda a: setattr(a, "X", a.X * 2), r"adata\.X has other values"),
    "without X": (lambda a: setattr(a, "X", None), r"its X is gone"),
    "genes filtered": (
        lambda a: a._inplace_subset_var(np.arange(50)),
        r"it has 50 genes, and 10 of the 60 that the model reads are gone",
    ),
    "genes renamed": (
        lambda a: setattr(a, "var_names", [f"g{i}" for i in range(60)]),
        r"its genes have other names, for example 'g0' in place of 'gene_0'",
    ),
    "cells filtered": (
        lambda a: a._inplace_subset_obs(np.arange(200)),
        r"it has 200 cells in place of 300.*adata\.copy\(\)",
    ),
    "cells sorted": (lambda a: a._inplace_subset_obs(CELLS), r"its cells are in another order"),
    "batches edited": (
        with_another_batch,
        r"obs column 'batch' has other values for 5 cells.*'batch_\d' in place of 'batch_\d'",
    ),
    "batches swapped": (swap_batches, r"obs column 'batch' has other values for 300 cells"),
    "batches dropped": (
        lambda a: setattr(a, "obs", a.obs.drop(columns="batch")),
        r"its obs column 'batch' is gone",
    ),
    "batches missing": (
        lambda a: setattr(
            a, "obs", a.obs.assign(batch=a.obs["batch"].where(a.obs_names != a.obs_names[0]))
        ),
        r"obs column 'batch' has other values for 1 cells",
    ),
}
# Changes that leave what the model reads as it is.
HARMLESS = {
    "cells renamed": lambda a: setattr(a, "obs_names", [f"c{i}" for i in range(300)]),
    "another layout": lambda a: setattr(a, "X", sparse.csc_matrix(a.X)),
    "dense": lambda a: setattr(a, "X", a.X.toarray().astype(np.float64)),
    "integers": lambda a: setattr(a, "X", a.X.astype(np.int32)),
    "batches as text": lambda a: setattr(a, "obs", a.obs.assign(batch=a.obs["batch"].astype(str))),
    "batches renamed": lambda a: setattr(
        a, "obs", a.obs.assign(batch=a.obs["batch"].cat.rename_categories(["A", "batch_1"]))
    ),
    "a new column": lambda a: setattr(a, "obs", a.obs.assign(new=1)),
    "a new layer": lambda a: a.layers.__setitem__("log", a.X.log1p()),
    "other columns dropped": lambda a: setattr(a, "obs", a.obs[["batch"]].copy()),
    "uns emptied": lambda a: setattr(a, "uns", {}),
}
CALLS = {
    "predict": lambda m, folder: m.predict(),
    "latent": lambda m, folder: m.get_latent_representation(),
    "annotate": lambda m, folder: m.annotate(),
    "merge": lambda m, folder: m.merge_components(2),
    "table": lambda m, folder: m.component_table(),
    "similarity": lambda m, folder: m.component_similarity(),
    "sample": lambda m, folder: m.sample(3),
    "counterfactual": lambda m, folder: m.predict_counterfactual(None, {"batch": "batch_0"}),
    "expression": lambda m, folder: m.get_normalized_expression(),
    "differences": lambda m, folder: m.differential_expression(groupby="component"),
    "elbo": lambda m, folder: m.get_elbo(),
    "novelty": lambda m, folder: m.get_novelty(),
    "train": lambda m, folder: m.train(max_epochs=1, enable_progress_bar=False),
    "report": lambda m, folder: m.report(folder / "report.html"),
    "save": lambda m, folder: m.save(folder / "model", save_anndata=True),
}


@pytest.fixture
def model(roughly_trained):
    """A copy of a trained model, with data of its own."""
    made = copy.deepcopy(roughly_trained)
    assert change_of(made.adata_manager) is None
    made.adata.X.data.flags.writeable = True
    return made


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("call", ["predict", "train", "save"])
def test_a_change_is_an_error_that_says_what_changed(model, tmp_path, change, call):
    make_change, message = CHANGES[change]
    make_change(model.adata)
    before = {name: values.clone() for name, values in model.module.state_dict().items()}
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"changed after it was set up: .*{message}"):
            CALLS[call](model, tmp_path)
    assert all((values == before[k]).all() for k, values in model.module.state_dict().items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", CALLS)
def test_every_method_that_reads_the_data_looks_at_them(model, tmp_path, call):
    normalized(model.adata)
    with pytest.raises(ValueError, match="adata.X has other values"):
        CALLS[call](model, tmp_path)


def test_a_model_can_be_saved_without_its_changed_data(model, tmp_path):
    expected = model.predict()
    original = model.adata.copy()
    normalized(model.adata)
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", original)
    np.testing.assert_array_equal(loaded.predict(), expected)


@pytest.mark.filterwarnings("ignore:Training will be faster when sparse matrix")
@pytest.mark.parametrize("change", HARMLESS)
def test_what_the_model_does_not_read_can_be_changed(model, change):
    expected = model.get_latent_representation()
    HARMLESS[change](model.adata)
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-5)
    model.train(max_epochs=1, enable_progress_bar=False)


def test_a_layer_of_counts_lets_x_be_normalised(counts, make_model, train):
    adata = counts.copy()
    adata.X = adata.X.copy()
    adata.layers["counts"] = adata.X.copy()
    model = train(make_model(adata, {"layer": "counts"}), max_epochs=1, pretrain_epochs=1)
    expected = model.predict()
    normalized(adata)
    np.testing.assert_array_equal(model.predict(), expected)
    del adata.layers["counts"]
    with pytest.raises(ValueError, match=r"its layers\['counts'\] is gone"):
        model.predict()


def test_genes_in_another_order_are_put_right(model):
    expected = model.get_latent_representation()
    given = model.adata
    given._inplace_subset_var(ORDER)
    names = given.var_names.copy()
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    model.annotate(key_added="again")
    assert given.var_names.equals(names)
    np.testing.assert_array_equal(given.obsm["X_again"], expected)
    np.testing.assert_array_equal(model.adata.obsm["X_again"], expected)
    model.train(max_epochs=1, enable_progress_bar=False)
    np.testing.assert_array_equal(given.obsm["X_scgmvae"], model.get_latent_representation())


def test_genes_in_another_order_and_other_values_are_an_error(model):
    normalized(model.adata)
    model.adata._inplace_subset_var(ORDER)
    with pytest.raises(ValueError, match="genes are in another order, and have other values"):
        model.predict()


def test_results_are_written_into_given_data_cell_by_cell(model):
    given = model.adata
    given._inplace_subset_var(ORDER)
    model.predict()
    given._inplace_subset_obs(CELLS[:50])
    model.annotate(key_added="again")
    np.testing.assert_array_equal(given.obsm["X_again"], model.adata.obsm["X_again"][CELLS[:50]])
    given.obs_names = [f"other_{i}" for i in range(50)]
    with pytest.warns(UserWarning, match="has cells of other names by now"):
        model.annotate(key_added="third")
    assert "third" in model.adata.obs
    assert "third" not in given.obs


def test_columns_that_are_added_to_given_data_are_read(model):
    given = model.adata
    given._inplace_subset_var(ORDER)
    model.predict()
    given.obs["side"] = np.where(np.arange(300) % 2, "left", "right")
    table = model.differential_expression(
        groupby="side", group1="left", silent=True, n_samples_overall=5, m_permutation=5
    )
    expected = model.adata.to_df()[given.obs["side"].to_numpy() == "left"].mean()
    np.testing.assert_allclose(table["raw_mean1"], expected[table.index], rtol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_model_know_what_its_data_were_like(model, copied):
    expected = model.get_latent_representation()
    model.adata._inplace_subset_var(ORDER)
    np.testing.assert_array_equal(copied(model).get_latent_representation(), expected)
    normalized(model.adata)
    with pytest.raises(ValueError, match="changed after it was set up"):
        copied(model).predict()


def test_labels_count_in_training_alone(counts, make_model, train):
    adata = counts.copy()
    adata.obs["type"] = np.where(np.arange(300) % 3, adata.obs["component"], "unknown")
    model = train(make_model(adata, {"labels_key": "type"}), max_epochs=1, pretrain_epochs=1)
    expected = model.get_latent_representation()
    adata.obs["type"] = model.predict()
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    model.annotate()
    with pytest.raises(ValueError, match=r"obs column 'type' has other values for \d+ cells"):
        model.train(max_epochs=1)


def test_numbers_may_lose_the_digits_that_no_model_reads(counts, make_model):
    adata = counts.copy()
    adata.obs["size"] = np.linspace(0.1, 3, 300)
    adata.obs["age"] = np.linspace(0, 1, 300)
    setup = {"size_factor_key": "size", "continuous_covariate_keys": ["age"]}
    model = make_model(adata, setup)
    adata.obs = adata.obs.astype({"size": np.float32, "age": np.float32})
    assert change_of(model.adata_manager) is None
    adata.obs["age"] += 1e-3
    assert "'age' has other values for 300 cells" in change_of(model.adata_manager).what


def test_the_layer_that_holds_the_counts_is_named_and_the_remedy_helps(model):
    expected = model.predict()
    model.adata.layers["umi"] = model.adata.X.copy()
    normalized(model.adata)
    with pytest.raises(ValueError, match=r"adata\.X = adata\.layers\['umi'\]\.copy\(\)"):
        model.predict()
    model.adata.X = model.adata.layers["umi"].copy()
    np.testing.assert_array_equal(model.predict(), expected)


@pytest.mark.parametrize("change", ["cast", "no shape"])
def test_bytes_of_images_must_stay_bytes_of_images(train, change):
    x = np.random.default_rng(0).integers(0, 256, (60, 64)).astype(np.uint8)
    adata = AnnData(x, uns={"image_shape": (8, 8)})
    model = SCGMVAE(adata, n_components=2, n_hidden=16)
    if change == "cast":
        adata.X = adata.X.astype(np.float32)
    else:
        del adata.uns["image_shape"]
    with pytest.raises(ValueError, match=r"bytes of images stand for values from 0 to 1"):
        model.train(max_epochs=1)


def test_other_data_are_read_as_they_are_now(model):
    adata = model.adata.copy()
    expected = model.get_latent_representation(adata)
    adata._inplace_subset_var(ORDER)
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)
    adata._inplace_subset_obs(np.arange(100))
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected[:100])
    before = model.get_latent_representation(adata)
    with_another_batch(adata)
    after = model.get_latent_representation(adata)
    np.testing.assert_array_equal(model.get_latent_representation(adata.copy()), after)
    assert (before[:5] != after[:5]).any()
    np.testing.assert_array_equal(before[5:], after[5:])
    normalized(adata)
    with pytest.raises(ValueError, match="no integers"):
        model.get_latent_representation(adata)


@pytest.mark.parametrize("change", ["cells filtered", "cells sorted", "batches edited"])
def test_the_advice_of_a_copy_can_be_followed(model, change):
    CHANGES[change][0](model.adata)
    assert model.predict(model.adata.copy()).shape == (model.adata.n_obs,)


@pytest.mark.parametrize("change", ["genes filtered", "cells filtered", "batches edited"])
def test_data_changed_between_set_up_and_model_are_set_up_anew(counts, train, change):
    adata = counts.copy()
    SCGMVAE.setup_anndata(adata, batch_key="batch")
    CHANGES[change][0](adata)
    model = train(SCGMVAE(adata, n_components=3), max_epochs=1, pretrain_epochs=1)
    assert model.module.n_input == adata.n_vars
    assert model.predict().shape == (adata.n_obs,)
    codes = adata.obs["batch"].astype(str).str[-1].astype(int)
    np.testing.assert_array_equal(model.adata_manager.get_from_registry("batch").ravel(), codes)


def test_data_changed_before_the_first_training_are_an_error(counts, make_model):
    adata = counts.copy()
    model = make_model(adata)
    adata._inplace_subset_var(np.arange(50))
    with pytest.raises(ValueError, match="make a new model of the data as they are now"):
        model.train(max_epochs=1)


def test_a_model_of_images_looks_at_them_too():
    adata = synthetic_counts(40, 64, seed=0)
    adata.X = adata.X.toarray().astype(np.float32)
    adata.uns["image_shape"] = (8, 8)
    model = DualVAE(adata)
    adata.X = adata.X * 2
    with pytest.raises(ValueError, match="adata.X has other values"):
        model.train(max_epochs=1)


def test_columns_of_several_types_are_compared_by_name(counts, make_model):
    adata = counts.copy()
    adata.obs["batch"] = adata.obs["batch"].cat.codes.astype(int)
    model = make_model(adata, setup={"batch_key": "batch"})
    adata.obs["batch"] = pd.Categorical(adata.obs["batch"].astype(str))
    assert change_of(model.adata_manager) is None


def test_data_in_a_file_are_looked_at(counts, make_model, tmp_path):
    import anndata

    counts.write_h5ad(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    model = make_model(adata)
    assert change_of(model.adata_manager) is None
    adata.file["X/data"][:] = adata.file["X/data"][:] * 2
    assert "has other values" in change_of(model.adata_manager).what
