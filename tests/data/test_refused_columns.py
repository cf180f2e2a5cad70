"""Obs columns and layers that data cannot be set up with are refused, and data left alone."""

import re

import numpy as np
import pandas as pd
import pytest
from refused import TWICE, with_column, with_one_entry
from states import unchanged

from scgmvae import SCGMVAE


@pytest.mark.parametrize("key", ["batch_key", "labels_key", "size_factor_key"])
def test_columns_that_are_not_there_are_refused(counts, key):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(KeyError, match=f"{key}.*'no'.*'library_size'"):
                SCGMVAE.setup_anndata(adata, **{key: "no"})


@pytest.mark.parametrize("key", ["categorical_covariate_keys", "continuous_covariate_keys"])
def test_covariates_that_are_not_there_are_refused(counts, key):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(KeyError, match=f"{key}.*'no'"):
                SCGMVAE.setup_anndata(adata, **{key: ["batch", "no"]})


def test_a_column_is_one_condition(counts):
    adata = counts.copy()
    message = "'batch' is both batch_key and one of the categorical_covariate_keys"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE.setup_anndata(
                    adata, batch_key="batch", categorical_covariate_keys=["batch"]
                )


@pytest.mark.parametrize("bad", [["batch"], 3], ids=repr)
@pytest.mark.parametrize("key", ["batch_key", "labels_key", "size_factor_key"])
def test_what_is_no_name_of_a_column_is_refused(counts, key, bad):
    adata = counts.copy()
    message = f"{key} must be the name of an obs column, but it is {bad!r}"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                SCGMVAE.setup_anndata(adata, **{key: bad})


@pytest.mark.parametrize("bad", ["batch", ("batch",), ["batch", "batch"], [3]], ids=repr)
@pytest.mark.parametrize("key", ["categorical_covariate_keys", "continuous_covariate_keys"])
def test_what_is_no_list_of_columns_is_refused(counts, key, bad):
    adata = counts.copy()
    message = f"{key} must be a list of different obs columns, but it is {bad!r}"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                SCGMVAE.setup_anndata(adata, **{key: bad})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_key", "batch"),
        ("categorical_covariate_keys", ["batch"]),
    ],
    ids=str,
)
def test_columns_with_missing_values_are_refused(counts, key, value):
    adata = with_one_entry(counts.copy(), "batch", 3, np.nan)
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=f"'batch'.*{key}.*'cell_3'"):
                SCGMVAE.setup_anndata(adata, **{key: value})


@pytest.mark.parametrize("bad", [0, -1.5, np.inf, "large", 1e-300, 1e300], ids=repr)
def test_size_factors_must_be_positive_in_single_precision(counts, bad):
    adata = with_one_entry(counts.copy(), "library_size", 3, bad)
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="positive.*'library_size'.*'cell_3'"):
                SCGMVAE.setup_anndata(adata, size_factor_key="library_size")


@pytest.mark.parametrize("bad", ["old", np.inf, 1e300, 1j, pd.Timestamp("2020-01-01")], ids=repr)
def test_continuous_covariates_must_be_finite_numbers(counts, bad):
    adata = with_column(counts.copy(), "age", bad)
    message = "finite numbers.*'age'.*categorical_covariate_keys"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE.setup_anndata(adata, continuous_covariate_keys=["age"])


@pytest.mark.parametrize(
    ("category", "settings"),
    [
        pytest.param("unknown", {}, id="by_default"),
        pytest.param("?", {"unlabeled_category": "?"}, id="under_another_name"),
    ],
)
def test_labels_of_no_cell_are_refused(counts, category, settings):
    adata = with_column(counts.copy(), "label", category)
    message = f"one cell needs a label.*'label'.*{re.escape(repr(category))}"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE.setup_anndata(adata, labels_key="label", **settings)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        pytest.param("raw", "'raw' names no layer.*It has no layers", id="name"),
        pytest.param(["raw"], r"\['raw'\] names no layer.*It has no layers", id="list"),
    ],
)
def test_layers_are_refused_where_there_are_none(counts, layer, message):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(KeyError, match=message):
                SCGMVAE.setup_anndata(adata, layer=layer)


def test_a_misspelt_layer_is_refused_with_the_names_of_all(counts):
    adata = counts.copy()
    adata.layers["log"] = adata.X.log1p()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(KeyError, match="'raw'.*'log'"):
                SCGMVAE.setup_anndata(adata, layer="raw")


def test_an_argument_that_set_up_does_not_take_is_refused(counts):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(TypeError, match="batchkey"):
                SCGMVAE.setup_anndata(adata, batchkey="batch")
