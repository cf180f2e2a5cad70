"""Tests of model.expression: the genes that a user names."""

import numpy as np
import pandas as pd
import pytest

GENES = ["gene_7", "gene_2", "gene_40", "gene_7"]


@pytest.mark.parametrize(
    "genes", [GENES, np.array(GENES), pd.Index(GENES), pd.Series(GENES, list("abcd"))], ids=type
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"return_numpy": True}, {"n_samples": 3, "return_mean": False}, {"n_samples_overall": 4}],
    ids=str,
)
def test_genes_come_in_the_order_asked_for(roughly_trained, genes, settings):
    all_genes = roughly_trained.get_normalized_expression(**settings)
    places = roughly_trained.adata.var_names.get_indexer(GENES)
    found = roughly_trained.get_normalized_expression(gene_list=genes, **settings)
    np.testing.assert_array_equal(found, np.asarray(all_genes)[..., places])
    if isinstance(found, pd.DataFrame):
        assert found.columns.tolist() == GENES


def test_genes_can_be_a_set_or_come_one_by_one(roughly_trained):
    whole = roughly_trained.get_normalized_expression()
    found = roughly_trained.get_normalized_expression(gene_list={"gene_5", "gene_2"})
    assert set(found) == {"gene_5", "gene_2"}
    pd.testing.assert_frame_equal(found, whole[found.columns])
    one_by_one = (name for name in GENES[:3])
    found = roughly_trained.get_normalized_expression(gene_list=one_by_one)
    pd.testing.assert_frame_equal(found, whole[GENES[:3]])


@pytest.mark.parametrize("n_samples", [1, 2])
def test_predictive_samples_have_the_genes_in_the_order_asked_for(roughly_trained, n_samples):
    places = roughly_trained.adata.var_names.get_indexer(GENES)
    settings = {"n_samples": n_samples, "indices": np.arange(20)}
    every = roughly_trained.posterior_predictive_sample(**settings).todense()
    found = roughly_trained.posterior_predictive_sample(gene_list=GENES, **settings).todense()
    np.testing.assert_array_equal(found, every[:, places])
