"""Unusual data that a model takes: other forms of numbers, and the smallest data."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from small import QUICK


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda x: np.where(np.arange(x.shape[1]) == 5, 0, x), id="gene_without_counts"
        ),
        pytest.param(lambda x: x.astype(np.int64), id="integers"),
        pytest.param(lambda x: x.astype(np.float64), id="float64"),
        pytest.param(lambda x: x.astype(np.uint64), id="uint64"),
        pytest.param(lambda x: x.astype(">f4"), id="big_endian"),
        pytest.param(lambda x: x.clip(max=2000).astype(np.float16), id="float16"),
        pytest.param(lambda x: (x > 0) | (x.sum(1, keepdims=True) == 0), id="boolean"),
        pytest.param(np.asfortranarray, id="by_columns"),
        pytest.param(np.ma.asarray, id="nothing_masked"),
        pytest.param(sparse.csr_array, id="csr_array"),
        pytest.param(lambda x: np.where(x == x.max(), 2.0**24 + 1, x), id="above_2^24"),
        pytest.param(
            sparse.csc_matrix,
            id="csc",
            # scvi-tools' advice
            marks=pytest.mark.filterwarnings("ignore:Training will be faster:UserWarning"),
        ),
    ],
)
def test_counts_of_other_forms_are_fine(counts, change, make_model, train):
    adata = counts.copy()
    adata.X = change(adata.X.toarray())
    model = train(make_model(adata), **QUICK)
    assert np.isfinite(adata.obsm["X_scgmvae"]).all()
    assert torch.isfinite(model.get_elbo())


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("size_factor_key", ["1.5", "2"]),
        ("size_factor_key", pd.Categorical([1.5, 2])),
        ("size_factor_key", pd.array([1.5, 2], dtype="Float64")),
        ("continuous_covariate_keys", ["1.5", "2"]),
        ("continuous_covariate_keys", pd.Categorical([1.5, 2])),
        ("continuous_covariate_keys", [True, False]),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{pd.Series(value).dtype}",
)
def test_numbers_are_numbers_in_any_form(counts, make_model, train, key, values):
    expected = np.array(values, dtype=float)
    results = []
    for column in (values, expected):
        adata = counts.copy()
        adata.obs["number"] = pd.Series(column).take([0, 1] * 150).set_axis(adata.obs_names)
        setup = {key: ["number"] if key.endswith("s") else "number"}
        train(make_model(adata, setup), **QUICK)
        results.append(adata.obsm["X_scgmvae"])
    np.testing.assert_array_equal(*results)


@pytest.mark.filterwarnings("ignore:Category 0 in adata.obs:UserWarning")
@pytest.mark.parametrize(
    "part",
    [lambda adata: adata[:2].copy(), lambda adata: adata[:, :1].copy()],
    ids=["two_cells", "one_gene"],
)
def test_the_smallest_data_train(counts, part, make_model, train):
    adata = part(counts)
    adata.X = adata.X + sparse.csr_matrix(np.ones(adata.shape, dtype=np.float32))
    train(make_model(adata, n_components=1), max_epochs=1, pretrain_epochs=1)
    assert np.isfinite(adata.obsm["X_scgmvae"]).all()
    assert adata.obs["scgmvae"].tolist() == ["0"] * adata.n_obs
