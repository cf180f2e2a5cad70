"""Tests of model.expression: the genes and the groups that a user names."""

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
