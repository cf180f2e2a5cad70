"""Columns and matrices of any type that pandas, scipy and anndata have: set up, read, written."""

from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from packaging.version import Version
from scipy import sparse
from small import NETWORK, QUICK

from scgmvae import SCGMVAE

pytestmark = [
    # anndata 0.12: what will be written by default
    pytest.mark.filterwarnings("ignore:.*zarr v[23] .*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
    # scvi-tools: advice for matrices by columns, which are converted here
    pytest.mark.filterwarnings("ignore:Training will be faster when sparse:UserWarning"),
]


def model_of(adata, **setup):
    SCGMVAE.setup_anndata(adata, **setup)
    model = SCGMVAE(adata, n_components=3, **NETWORK)
    model.train(**QUICK)
    return model


@pytest.fixture(scope="module")
def expected(counts):
    """Results with the plainest types: objects, floats and a csr_matrix."""
    adata = counts.copy()
    adata.obs["batch"] = adata.obs["batch"].astype(object)
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    model = model_of(adata, batch_key="batch", continuous_covariate_keys=["age"])
    return model.get_latent_representation()


COLUMNS = {
    "object": lambda names: names.astype(object),
    "category": lambda names: names.astype("category"),
    "default": lambda names: pd.Series(names.tolist(), names.index),
    "string": lambda names: names.astype("string"),
    "category_of_strings": lambda names: names.astype("string").astype("category"),
}
NUMBERS = {
    "float32": "float32",
    "nullable": "Float64",
    "nullable_single": "Float32",
    "text": str,
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in COLUMNS.items()])
def test_a_column_of_names_means_the_same_in_any_type(counts, expected, make):
    adata = counts.copy()
    adata.obs["batch"] = make(adata.obs["batch"].astype(str).astype(object))
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    model = model_of(adata, batch_key="batch", continuous_covariate_keys=["age"])
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    new = counts[:50].copy()
    new.obs["batch"] = pd.Series(new.obs["batch"].tolist(), new.obs_names)
    new.obs["age"] = np.linspace(0, 1, adata.n_obs)[:50]
    np.testing.assert_allclose(model.get_latent_representation(new), expected[:50], atol=1e-5)


@pytest.mark.parametrize(
    "dtype", [pytest.param(dtype, id=name) for name, dtype in NUMBERS.items()]
)
def test_a_column_of_numbers_means_the_same_in_any_type(counts, expected, dtype):
    adata = counts.copy()
    adata.obs["age"] = pd.Series(np.linspace(0, 1, adata.n_obs), adata.obs_names).astype(dtype)
    model = model_of(adata, batch_key="batch", continuous_covariate_keys=["age"])
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["int64", "Int64", "boolean", "bool"])
def test_batches_can_be_numbers_or_truth_values(counts, dtype):
    adata = counts.copy()
    codes = adata.obs["batch"].cat.codes.astype("int64")
    adata.obs["batch"] = codes.astype(dtype)
    model = model_of(adata, batch_key="batch")
    assert model.summary_stats.n_batch == 2
    other = model.predict_counterfactual(conditions={"batch": adata.obs["batch"].iloc[0]})
    assert other.obs["batch"].nunique() == 1


@pytest.mark.parametrize("dtype", ["Float64", "string", object])
def test_missing_values_are_refused_in_any_type(counts, dtype):
    adata = counts.copy()
    column = pd.Series(["1.0"] * adata.n_obs, adata.obs_names).astype(dtype)
    column.iloc[3] = None if dtype is object else pd.NA
    adata.obs["batch"] = column
    with pytest.raises(ValueError, match="'batch'.*1 have none: 'cell_3'"):
        SCGMVAE.setup_anndata(adata, batch_key="batch")


MATRICES = {
    "csr_array": sparse.csr_array,
    "csc_matrix": sparse.csc_matrix,
    "csc_array": sparse.csc_array,
    "dense": lambda x: x.toarray(),
    "uint16": lambda x: x.astype(np.uint16),
    "csr_array_of_int64": lambda x: sparse.csr_array(x.astype(np.int64)),
    "float64": lambda x: x.astype(np.float64),
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in MATRICES.items()])
def test_counts_mean_the_same_in_any_matrix(counts, expected, make):
    adata = counts.copy()
    adata.X = make(adata.X)
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    model = model_of(adata, batch_key="batch", continuous_covariate_keys=["age"])
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-4)
    found = model.get_normalized_expression(gene_list=list(adata.var_names[:3]))
    assert found.shape == (adata.n_obs, 3)


IS_OLD = Version(version("anndata")) < Version("0.12")
needs_zarr = pytest.mark.skipif(IS_OLD, reason="anndata before 0.12 comes without zarr")


@pytest.mark.parametrize("form", ["h5ad", pytest.param("zarr", marks=needs_zarr)])
def test_what_is_written_back_survives_a_file(counts, tmp_path, monkeypatch, form):
    if IS_OLD:  # newer ones write these strings without being asked
        monkeypatch.setattr(ad.settings, "allow_write_nullable_strings", True)
    adata = counts.copy()
    names = np.where(np.arange(300) % 3, "unknown", adata.obs["component"])
    adata.obs["label"] = pd.Series(names, adata.obs_names).astype("string")
    model = model_of(adata, batch_key="batch", labels_key="label")
    path = tmp_path / f"cells.{form}"
    getattr(adata, f"write_{form}")(path)
    read = getattr(ad, f"read_{form}")(path)
    clusters = [data.obs["scgmvae"].astype(str).tolist() for data in (read, adata)]
    assert clusters[0] == clusters[1]
    for key in ("X_scgmvae", "X_scgmvae_w", "scgmvae_proba"):
        np.testing.assert_array_equal(read.obsm[key], adata.obsm[key])
    assert list(read.uns["scgmvae"]["clusters"]) == list(model.cluster_names)
    z = model.get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(read), z, atol=1e-5)
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", read)
    np.testing.assert_allclose(loaded.get_latent_representation(), z, atol=1e-5)
    fresh = model_of(read.copy(), batch_key="batch", labels_key="label")
    np.testing.assert_allclose(fresh.get_latent_representation(), z, atol=1e-4)


@pytest.fixture
def newest_settings():
    """Settings that anndata will have by default: sparse arrays are read, zarr v3 is written."""
    wanted = {"use_sparse_array_on_read": True, "zarr_write_format": 3}
    before = {name: getattr(ad.settings, name) for name in wanted if hasattr(ad.settings, name)}
    for name in before:
        setattr(ad.settings, name, wanted[name])
    yield
    for name, value in before.items():
        setattr(ad.settings, name, value)


@needs_zarr
@pytest.mark.usefixtures("newest_settings")
def test_files_are_read_with_the_settings_of_tomorrow(counts, expected, tmp_path):
    adata = counts.copy()
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    adata.write_zarr(tmp_path / "cells.zarr")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    setup = {"batch_key": "batch", "continuous_covariate_keys": ["age"]}
    for read in (
        ad.read_zarr(tmp_path / "cells.zarr"),
        ad.read_h5ad(tmp_path / "cells.h5ad"),
    ):
        assert isinstance(read.X, sparse.csr_array)
        model = model_of(read, **setup)
        np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-4)
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found = model.get_latent_representation(backed)
    np.testing.assert_allclose(found, model.get_latent_representation(), atol=1e-5)
    backed.file.close()
