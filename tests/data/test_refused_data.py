"""Data that no model can be made of: they are refused, and are left as they were."""

import re

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from refused import (
    TWICE,
    with_matrix,
    with_two_cells_of_one_name,
    with_two_genes_of_one_name,
    with_value,
    without_counts,
)
from scipy import sparse
from small import NETWORK
from states import unchanged

from scgmvae import SCGMVAE

SMALL = NETWORK | {"n_components": 3}
REMEDY = "layer=.*likelihood='gaussian'"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("x.h5ad", "an AnnData.*str.*read", id="name_of_a_file"),
        pytest.param(np.ones((3, 3)), "AnnData.*ndarray", id="array"),
    ],
)
def test_what_is_no_anndata_is_refused(value, message):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE(value)


def test_what_is_no_anndata_is_not_set_up():
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="AnnData.*DataFrame"):
                SCGMVAE.setup_anndata(pd.DataFrame())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        pytest.param(lambda adata: adata[:0].copy(), "0 cells and 60 genes", id="no_cells"),
        pytest.param(lambda adata: adata[:, :0].copy(), "300 cells and 0 genes", id="no_genes"),
        pytest.param(
            lambda adata: AnnData(obs=adata.obs, var=adata.var), "no X.*layer", id="no_X"
        ),
        pytest.param(lambda adata: adata[:50], r"view.*adata\.copy\(\)", id="view"),
    ],
)
def test_empty_data_and_views_are_refused(counts, part, message):
    adata = part(counts.copy())
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE(adata, **SMALL)


def test_a_view_is_not_set_up(counts):
    view = counts.copy()[:50]
    with unchanged(view):
        for _ in TWICE:
            with pytest.raises(ValueError, match=r"view.*adata\.copy\(\)"):
                SCGMVAE.setup_anndata(view)


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda adata: with_value(adata, -2), f"negative.*-2.*{REMEDY}", id="negative"
        ),
        pytest.param(
            lambda adata: with_matrix(adata, with_value(adata, -2).X.toarray()),
            f"negative.*{REMEDY}",
            id="negative_in_a_dense_matrix",
        ),
        pytest.param(
            lambda adata: with_value(adata, 0.5), rf"no integers.*0\.5.*{REMEDY}", id="fraction"
        ),
        pytest.param(lambda adata: with_value(adata, np.nan), "NaN or infinite", id="NaN"),
        pytest.param(lambda adata: with_value(adata, np.inf), "NaN or infinite", id="infinite"),
        pytest.param(
            lambda adata: with_value(adata, -np.inf), "NaN or infinite", id="minus_infinite"
        ),
        pytest.param(
            lambda adata: with_matrix(adata, np.ma.masked_greater(adata.X.toarray(), 5)),
            "masked.*filled",
            id="masked",
        ),
        pytest.param(without_counts, "at least one count.*'cell_7'", id="cell_without_counts"),
        pytest.param(with_two_cells_of_one_name, "cell needs.*'twice'", id="cell_twice"),
        pytest.param(with_two_genes_of_one_name, "gene needs.*'twice'", id="gene_twice"),
    ],
)
def test_data_that_are_no_counts_are_refused(counts, change, message):
    adata = change(counts.copy())
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE(adata, **SMALL)


def test_counts_are_refused_where_values_from_0_to_1_are_modelled(counts):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=r"\[0, 1\].*from"):
                SCGMVAE(adata, likelihood="bernoulli", **SMALL)


def test_missing_values_are_refused_by_every_likelihood(counts):
    adata = with_value(counts.copy(), np.nan)
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="NaN or infinite"):
                SCGMVAE(adata, likelihood="gaussian", **SMALL)


@pytest.mark.parametrize("likelihood", ["nb", "gaussian"])
def test_values_too_large_for_single_precision_are_refused(counts, likelihood):
    adata = counts.copy()
    x = adata.X.toarray().astype(np.float64)
    x[3, 4] = 1e300
    adata.X = x
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=r"within ±1e\+18.*single precision.*1e\+300"):
                SCGMVAE(adata, likelihood=likelihood, **SMALL)


@pytest.mark.parametrize("kind", ["complex64", "object", "str", "datetime64[s]", "longdouble"])
def test_values_other_than_real_numbers_are_refused(counts, kind):
    adata = counts.copy()
    adata.X = adata.X.toarray().astype(kind)
    message = f"real numbers of at most 64 bits, but adata.X is of type {adata.X.dtype}"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                SCGMVAE(adata, likelihood="gaussian", **SMALL)


def test_a_layer_that_holds_no_counts_is_refused_by_its_name(counts):
    adata = counts.copy()
    adata.layers["log"] = adata.X.log1p()
    SCGMVAE.setup_anndata(adata, layer="log")
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=rf"layers\['log'\].*no integers.*{REMEDY}"):
                SCGMVAE(adata, **SMALL)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array, np.asarray], ids=str)
def test_estimated_counts_are_told_and_can_be_rounded(counts, kind):
    adata = counts.copy()
    x = adata.X.toarray()
    x[:10, 0] = 2.25
    adata.X = kind(x)
    n_values = f"{np.count_nonzero(x):,}"
    message = rf"10 of {n_values} that are not 0, up to 0.25 from the next.*RSEM.*np\.rint"
    with pytest.raises(ValueError, match=message):
        SCGMVAE(adata, **SMALL)
    adata.X = np.rint(adata.X)
    SCGMVAE(adata, **SMALL)


def test_counts_in_other_places_are_found(counts):
    adata = counts.copy()
    adata.raw = adata.copy()
    adata.layers["umi"] = adata.X.copy()
    adata.X = adata.X.log1p()
    with pytest.raises(ValueError, match=r"Whole numbers are in layer='umi'") as caught:
        SCGMVAE(adata, **SMALL)
    assert "adata.layers['counts'] = adata.raw[:, adata.var_names].X." in str(caught.value)
    adata.layers["counts"] = adata.raw[:, adata.var_names].X
    SCGMVAE(adata, **SMALL)


def test_what_was_found_in_place_of_counts_is_named_and_the_remedy_helps(counts):
    adata = counts.copy()
    adata.X = adata.X.log1p()
    with pytest.raises(ValueError, match=r"adata\.X holds values that are no integers") as caught:
        SCGMVAE(adata)
    largest = f"{adata.X.max():.4g}"
    assert largest in str(caught.value)
    SCGMVAE(adata, likelihood="gaussian")  # the remedy that the message names


@pytest.mark.parametrize(
    "shape", ["3x2", (6,), (np.nan, 6), (-2, -3), (3, 2, 1, 1), (1.5, 4)], ids=repr
)
def test_shapes_of_no_image_are_refused(shape):
    adata = AnnData(np.ones((3, 6)), uns={"image_shape": shape})
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=f"height, width.*{re.escape(repr(shape))}"):
                SCGMVAE(adata)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        pytest.param((7, 7), "49 values.*60 columns", id="of_other_images"),
        pytest.param((6, 10), r"\[0, 1\]", id="of_counts"),
    ],
)
def test_shapes_that_do_not_suit_the_data_are_refused(counts, shape, message):
    adata = counts.copy()
    adata.uns["image_shape"] = shape
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE(adata, **SMALL)
