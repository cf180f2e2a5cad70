"""Tests of the genes of clusters."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.stats import false_discovery_control, ttest_ind

import scgmvae
from scgmvae.data.normalization import log_normalized
from scgmvae.model import marker_tests

LENGTH = {"max_epochs": 10, "pretrain_epochs": 30}


def cells_of_one_population(seed, n=400, n_genes=120):
    rng = np.random.default_rng(seed)
    mean = np.exp(rng.normal(0, 1, n_genes)) * rng.lognormal(0, 0.3, (n, 1))
    return AnnData(sparse.csr_matrix(rng.poisson(rng.gamma(5, mean / 5)).astype(np.float32)))


def test_groups_that_the_counts_did_not_make_are_compared_by_welchs_t(trained):
    table = trained.test_markers("component")
    adata = trained.adata
    x = log_normalized(adata.X).X.toarray().astype(float)
    is_own = (adata.obs["component"] == "component_1").to_numpy()
    expected = ttest_ind(x[is_own], x[~is_own], equal_var=False)
    found = table[table["cluster"] == "component_1"].set_index("gene").loc[adata.var_names]
    is_tested = (adata.X > 0).sum(0).A1 >= 10
    assert found["p"].notna().tolist() == is_tested.tolist()
    np.testing.assert_allclose(found["p"][is_tested], expected.pvalue[is_tested], rtol=1e-3)
    q = false_discovery_control(expected.pvalue[is_tested])
    np.testing.assert_allclose(found["q"][is_tested], q, rtol=1e-3)
    np.testing.assert_allclose(found["fraction"], (adata.X[is_own] > 0).mean(0).A1)
    assert (
        np.sign(found["lfc"][found["p"] < 1e-6]).tolist()
        == np.sign(expected.statistic[found["p"] < 1e-6]).tolist()
    )
    assert (table["overlap"] == 1).all()
    assert table.groupby("cluster", sort=False)["p"].first().notna().all()


def test_clusters_of_one_population_have_no_markers_on_the_other_half_of_the_counts(monkeypatch):
    # such clusters are hardly found again, and would not be tested at all
    monkeypatch.setattr(marker_tests, "AGAIN", 0.0)
    n_crossed = n_naive = 0
    for seed in range(2):
        adata = cells_of_one_population(seed)
        scgmvae.SCGMVAE.setup_anndata(adata)
        model = scgmvae.SCGMVAE(adata, n_components=2)
        model.train(**LENGTH, seed=seed, enable_progress_bar=False)
        crossed = model.test_markers(seed=seed)
        assert len(crossed) == 2 * 120
        n_crossed += int((crossed["q"] < 0.05).sum())
        n_naive += int((model.test_markers("scgmvae")["q"] < 0.05).sum())
    assert n_naive >= 20
    assert n_crossed <= 2


def test_types_have_their_genes_on_the_other_half_as_well(counts, make_model, train):
    model = train(make_model(counts.copy(), n_components=3), **LENGTH)
    given = model.adata.obs.copy()
    before = model.get_latent_representation()
    table = model.test_markers()
    assert set(table["cluster"]) == set(model.cluster_names)
    assert (table["overlap"] > 0.9).all()
    truth = model.test_markers("component")
    called = table[table["q"] < 0.05].groupby("cluster")["gene"].agg(set)
    match = {
        name: model.adata.obs.loc[model.adata.obs["scgmvae"] == name, "component"].mode()[0]
        for name in model.cluster_names
    }
    for name, genes in called.items():
        of_type = truth[(truth["cluster"] == match[name]) & (truth["q"] < 0.05)]
        assert len(genes) > 0.5 * len(of_type)
        assert len(genes & set(of_type["gene"])) > 0.8 * len(genes)
    # the model and its data stay as they were
    assert model.adata.obs.equals(given)
    np.testing.assert_array_equal(model.get_latent_representation(), before)


def test_clusters_that_are_not_found_again_are_left_out_with_a_warning():
    adata = cells_of_one_population(0)
    scgmvae.SCGMVAE.setup_anndata(adata)
    model = scgmvae.SCGMVAE(adata, n_components=2)
    model.train(**LENGTH, enable_progress_bar=False)
    with pytest.warns(UserWarning, match="not found again"):
        table = model.test_markers()
    assert (table["overlap"] >= marker_tests.AGAIN).all()
    assert table["cluster"].nunique() < 2


def test_components_without_a_label_are_clusters_of_their_own():
    adata = scgmvae.datasets.synthetic_counts(
        300, 80, n_components=4, component_scale=2.5, weights=[0.25] * 4, seed=1
    )
    names = adata.obs["component"].cat.categories
    is_known = adata.obs["component"].isin(names[:2]) & (np.arange(300) % 3 == 0)
    adata.obs["label"] = adata.obs["component"].astype(str).where(is_known, "unknown")
    scgmvae.SCGMVAE.setup_anndata(adata, labels_key="label")
    model = scgmvae.SCGMVAE(adata, n_components=4)
    model.train(20, 30, enable_progress_bar=False)
    table = model.test_markers()
    sizes = adata.obs["scgmvae"].value_counts()
    assert set(table["cluster"]) == set(sizes.index) and len(sizes) == 4
    assert (table["overlap"] > 0.8).all()


def test_cells_without_counts_in_the_first_half_are_left_out(counts, make_model, train):
    adata = counts.copy()
    x = adata.X.toarray()
    x[:3] = 0
    x[:3, 5] = 1
    adata.X = sparse.csr_matrix(x)
    model = train(make_model(adata, n_components=3), **LENGTH)
    assert model.test_markers()["p"].min() < 1e-10


def test_cells_without_a_group_are_left_out(trained):
    adata = trained.adata
    adata.obs["part"] = adata.obs["component"].astype(object)
    adata.obs.loc[adata.obs["part"] == "component_2", "part"] = None
    table, ranked = trained.test_markers("part"), trained.markers(3, "part")
    del adata.obs["part"]
    found = table.set_index(["cluster", "gene"])
    for row in ranked.itertuples():
        own = found.loc[(row.cluster, row.gene)]
        assert own["lfc"] == pytest.approx(row.lfc, abs=1e-4)
        assert own["fraction_rest"] == pytest.approx(row.fraction_rest)


@pytest.mark.parametrize("dispersion", ["gene-batch", "gene-cell"])
def test_dispersions_of_batches_and_cells_are_used(counts, make_model, train, dispersion):
    setup = {"batch_key": "batch"}
    model = train(
        make_model(counts.copy(), setup, n_components=3, dispersion=dispersion), **LENGTH
    )
    theta = model._inverse_dispersions()
    assert theta.shape == (300, 60) and (theta > 0).all()
    assert model.test_markers()["p"].min() < 1e-10


def test_other_likelihoods_and_single_clusters_are_refused(counts, make_model, train):
    model = train(make_model(counts.copy(), n_components=1), **LENGTH)
    with pytest.raises(ValueError, match="there is one cluster alone"):
        model.test_markers()
    model = train(make_model(counts.copy(), n_components=2, likelihood="zinb"), **LENGTH)
    with pytest.raises(NotImplementedError, match="'nb', 'poisson' and 'protein'.*'zinb'"):
        model.test_markers()
