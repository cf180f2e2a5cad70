"""Marker genes of the clusters."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

COLUMNS = ["cluster", "gene", "lfc", "probability", "fraction", "fraction_rest"]


def test_markers_are_higher_in_their_cluster(trained):
    table = trained.markers(n=3)
    assert table.columns.tolist() == COLUMNS
    assert table["cluster"].tolist() == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    counts = pd.DataFrame(
        trained.adata.X.toarray(), trained.adata.obs_names, trained.adata.var_names
    )
    shares = counts.div(counts.sum(axis=1), axis=0) * 1e4
    for _, row in table.iterrows():
        own = (trained.adata.obs["scgmvae"] == row["cluster"]).to_numpy()
        inside, outside = shares.loc[own, row["gene"]], shares.loc[~own, row["gene"]]
        assert inside.mean() > outside.mean()
        logs = [np.log2(np.expm1(np.log1p(values).mean()) + 1e-2) for values in (inside, outside)]
        assert row["lfc"] == pytest.approx(logs[0] - logs[1], rel=1e-3)
        assert row["fraction"] == pytest.approx((inside > 0).mean())
        assert row["fraction_rest"] == pytest.approx((outside > 0).mean())
        assert 0.5 < row["probability"] <= 1


def test_markers_are_those_of_scanpys_t_test(trained):
    import scanpy as sc

    adata = AnnData(trained.adata.X.copy(), obs=trained.adata.obs, var=trained.adata.var)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.tl.rank_genes_groups(adata, "scgmvae", method="t-test")
    expected = pd.DataFrame(adata.uns["rank_genes_groups"]["names"]).head(5)
    table = trained.markers()
    for cluster, found in table.groupby("cluster"):
        assert found["gene"].tolist() == expected[cluster].tolist()


def test_other_columns_and_some_of_their_groups(trained):
    table = trained.markers(2, groupby="component", groups=["component_2", "component_0"])
    assert table["cluster"].unique().tolist() == ["component_2", "component_0"]
    assert len(table) == 4


def test_probability_is_that_of_pairs_under_the_model(trained):
    row = trained.markers(1).iloc[0]
    own = (trained.adata.obs["scgmvae"] == row["cluster"]).to_numpy()
    expression = trained.get_normalized_expression(gene_list=[row["gene"]]).to_numpy()[:, 0]
    pairs = expression[own][:, None] > expression[~own][None]
    assert row["probability"] == pytest.approx(pairs.mean(), abs=0.02)


def test_data_that_are_no_counts_have_differences_of_means(counts, make_model, train):
    adata = counts.copy()
    adata.X = np.log1p(adata.X.toarray())
    model = train(make_model(adata, {}, likelihood="gaussian"))
    row = model.markers(1).iloc[0]
    own = (adata.obs["scgmvae"] == row["cluster"]).to_numpy()
    values = adata[:, row["gene"]].X[:, 0]
    assert row["lfc"] == pytest.approx(values[own].mean() - values[~own].mean(), rel=1e-3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be"),
        ({"groupby": "missing"}, KeyError, "missing"),
        ({"groupby": "alike"}, ValueError, "all cells of 'alike' are in 'x'.$"),
        ({"groupby": "empty"}, ValueError, "No cell has a value in the obs column 'empty'"),
        ({"groupby": "number"}, ValueError, "'number' has 300 different numbers.*pandas.cut"),
        ({"groups": ["7"]}, ValueError, "'7' is none. They are 0, 1, 2"),
        ({"groups": []}, ValueError, "there are none in the list. They are 0, 1, 2"),
    ],
)
def test_calls_that_have_no_markers_are_refused(trained, monkeypatch, call, error, message):
    columns = {"alike": "x", "empty": np.nan, "number": np.linspace(0, 1, 300)}
    for name, values in columns.items():
        monkeypatch.setitem(trained.adata.obs, name, values)
    with pytest.raises(error, match=message):
        trained.markers(**call)


def test_a_model_without_clusters_says_so(trained_normal):
    with pytest.raises(RuntimeError, match="no components"):
        trained_normal.markers()
    assert len(trained_normal.markers(1, groupby="component")) == 3


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (np.arange(300) % 2 == 0, ["False", "True"]),
        (np.arange(300) % 3, ["0", "1", "2"]),
        (np.where(np.arange(300) % 3 == 0, np.nan, np.arange(300) % 2), ["0", "1"]),
        ([[1, "1", 2][i % 3] for i in range(300)], ["1", "2"]),
    ],
    ids=["bool", "int", "float", "mixed"],
)
def test_groups_of_every_kind_have_names(trained, monkeypatch, values, names):
    monkeypatch.setitem(trained.adata.obs, "kind", values)
    assert trained.markers(1, "kind")["cluster"].unique().tolist() == names
    assert trained.markers(1, "kind", groups=names[:1])["cluster"].tolist() == names[:1]


def test_groups_are_asked_for_by_their_values_and_once(trained, monkeypatch):
    monkeypatch.setitem(trained.adata.obs, "number", np.arange(300) % 3 * 1.0)
    table = trained.markers(1, "number", groups=[2, 0.0, 2])
    assert table["cluster"].tolist() == ["2", "0"]
    assert trained.markers(1, groups="1")["cluster"].tolist() == ["1"]
