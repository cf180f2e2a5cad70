"""Tested splits of a trained model: their table, tree and cuts, and tests of given clusters."""

import json

import numpy as np
import pandas as pd
import pytest
from anndata import read_h5ad
from scipy import sparse
from scipy.cluster.hierarchy import is_valid_linkage
from sklearn.metrics import adjusted_rand_score

from scgmvae import SCGMVAE
from scgmvae.clustering.cuts import shared_neighbor_graph
from scgmvae.clustering.split_tree import STRENGTH
from scgmvae.datasets import synthetic_counts

LENGTH = {"max_epochs": 20, "pretrain_epochs": 30}


@pytest.fixture(scope="module")
def fit(make_model, train):
    """A model of 600 cells of 4 components in 2 batches, with K found; only to be read."""
    adata = synthetic_counts(
        600, 80, n_components=4, n_batches=2, component_scale=3.0, batch_scale=0.3, seed=1
    )
    return train(make_model(adata, {"batch_key": "batch"}, n_components=None), **LENGTH)


@pytest.fixture
def model(fit, tmp_path):
    """A copy of ``fit`` that may be changed."""
    fit.save(tmp_path / "fit")
    return SCGMVAE.load(tmp_path / "fit", fit.adata.copy())


# ---------------------------------------------------------------------------- what is found


def test_the_types_are_found_without_k(fit):
    truth = fit.adata.obs["component"]
    assert adjusted_rand_score(truth, fit.adata.obs["scgmvae"]) > 0.95
    assert len(fit.cluster_names) == 4


def test_one_population_is_one_cluster_and_the_warning_says_so(make_model, train):
    rng = np.random.default_rng(0)
    share = np.exp(rng.normal(0, 1, 60))
    depth = np.exp(rng.normal(7, 0.8, 400))
    x = rng.poisson(share / share.sum() * depth[:, None]).astype(np.float32)
    adata = synthetic_counts(400, 60, n_components=2, seed=0)
    adata.X = sparse.csr_matrix(x)
    model = make_model(adata, {}, n_components=None)
    with pytest.warns(UserWarning, match="One cluster was found: the 400 cells"):
        train(model, **LENGTH)
    assert model.n_components_ == 1
    assert len(model.split_table()) == 0
    assert model.split_tree().newick == "'0';"
    assert adata.obs["scgmvae"].nunique() == 1


def test_no_cluster_is_two_islands(fit):
    z, clusters = fit.adata.obsm["X_scgmvae"], fit.adata.obs["scgmvae"]
    for cluster in clusters.cat.categories:
        graph = shared_neighbor_graph(z[clusters == cluster])
        _, part = sparse.csgraph.connected_components(graph)
        assert np.sort(np.bincount(part))[:-1].max(initial=0) < 10


def test_a_given_k_cuts_or_splits_the_same_tree(make_model, train, fit):
    for k in (3, 6):
        adata = fit.adata.copy()
        model = train(make_model(adata, {"batch_key": "batch"}, n_components=k), **LENGTH)
        table = model.split_table(0)
        assert model.n_components_ == k
        assert len(table) == k - 1
        strongest = fit.split_table(0)
        assert table.loc[0, "t"] == pytest.approx(strongest.loc[0, "t"], abs=0.05)
    assert model.component_clusters_ is None  # nothing is merged where K is given


def test_the_same_seed_gives_the_same_tree(make_model, train):
    trees = []
    for _ in range(2):
        adata = synthetic_counts(300, 60, n_components=3, component_scale=3.0, seed=0)
        model = train(make_model(adata, {}, n_components=None), **LENGTH)
        trees.append(model.split_table())
    pd.testing.assert_frame_equal(*trees)


def test_donors_that_are_not_told_make_no_clusters_and_a_warning_says_so(make_model, train):
    rng = np.random.default_rng(0)
    types, donor = rng.integers(3, size=600), rng.integers(2, size=600)
    effects = [rng.normal(0, scale, (k, 200)) for scale, k in ((0.8, 3), (0.35, 2))]
    share = np.exp(rng.normal(0, 1, 200) + effects[0][types] + effects[1][donor])
    adata = synthetic_counts(600, 200, n_components=2, seed=0)
    adata.X = sparse.csr_matrix(
        rng.poisson(share / share.sum(1, keepdims=True) * 2000).astype(np.float32)
    )
    adata.obs["donor"] = donor.astype(str)
    model = make_model(adata, {}, n_components=None)
    with pytest.warns(UserWarning, match="3 of the . splits repeat so .*batch_key"):
        train(model, **LENGTH)
    table = model.split_table(0)
    assert table["is_repeated"].sum() == 3
    assert not table.loc[table["is_repeated"], "is_made"].any()
    assert adjusted_rand_score(types, adata.obs["scgmvae"]) > 0.98
    assert adjusted_rand_score(2 * types + donor, adata.obs["scgmvae_fine"]) > 0.9
    told = make_model(adata.copy(), {"batch_key": "donor"}, n_components=None)
    train(told, max_epochs=20, pretrain_epochs=120)
    assert adjusted_rand_score(types, told.adata.obs["scgmvae"]) > 0.98
    assert not told.split_table(0)["is_repeated"].any()


# ------------------------------------------------------------------------------- the table


def test_the_table_has_every_split(fit):
    table = fit.split_table(n_genes=3)
    assert table.index.name == "split"
    assert len(table) == fit.n_components_ - 1
    assert table.loc[0, ["n_left", "n_right"]].sum() == 600
    assert table.loc[0, "above"] == -1
    assert (table["above"] < table.index).all()
    np.testing.assert_allclose(table["strength"], 1 - table["t"] / table["null"])
    assert (table["p"] <= 0.01).all()
    assert (table.loc[table["is_made"], "strength"] >= STRENGTH).all()
    assert (table["batch_levels"] == 2).all()
    assert (table["t_without_batch"] < table["null"]).all()
    for split, row in table.iterrows():
        for side in ("left", "right"):
            below = table[table["above"] == split]
            names = set(row[side].split(", "))
            inside = below[
                below["left"].str.split(", ").map(lambda n, names=names: set(n) <= names)
            ]
            if len(inside):
                assert inside[["n_left", "n_right"]].sum().sum() == row[f"n_{side}"]


def test_genes_are_those_that_are_higher_on_a_side(fit):
    row = fit.split_table(n_genes=2).iloc[0]
    component = pd.Series(fit.predict(components=True))
    counts = fit.adata.X.toarray()
    shares = counts / counts.sum(1, keepdims=True)
    left = component.isin(row["left"].split(", ")).to_numpy()
    for side, other, genes in ((left, ~left, "genes_left"), (~left, left, "genes_right")):
        names = row[genes].split(", ")
        assert len(names) == 2
        columns = fit.adata.var_names.get_indexer(names)
        assert (shares[side][:, columns].mean(0) > shares[other][:, columns].mean(0)).all()


def test_the_tree_is_one_of_scipy_and_of_newick(fit):
    tree = fit.split_tree()
    assert is_valid_linkage(tree.linkage)
    assert list(tree.names) == list(fit.component_names)
    assert tree.newick.count("'") == 2 * fit.n_components_
    assert tree.newick.endswith(";")
    assert fit.adata.uns["scgmvae"]["newick"] == tree.newick


# -------------------------------------------------------------------------------- cutting


def test_a_cut_makes_coarser_and_finer_clusters_and_is_undone(model):
    before = model.predict().tolist()
    model.cut(n=2)
    assert model.adata.obs["scgmvae"].nunique() == 2
    assert set(model.predict()) == {"0", "1"}
    assert model.split_table(0)["is_made"].tolist() == [True] + [False] * (model.n_components_ - 2)
    np.testing.assert_allclose(model.predict(soft=True).sum(axis=1), 1, rtol=1e-5)
    model.cut(strength=1e-9)
    assert len(model.cluster_names) == model.n_components_
    model.cut()
    assert model.predict().tolist() == before


def test_a_saved_tree_is_the_same(model, fit, tmp_path):
    pd.testing.assert_frame_equal(model.split_table(), fit.split_table())
    model.cut(n=3)
    model.save(tmp_path / "cut")
    loaded = SCGMVAE.load(tmp_path / "cut", model.adata)
    assert len(loaded.cluster_names) == 3
    json.dumps({name: values.tolist() for name, values in loaded.split_tree_.items()})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"strength": 0.5, "n": 2}, "Give strength or n, not both"),
        ({"strength": 0.0}, r"strength must be in \(0, 1\], but it is 0.0"),
        ({"strength": 1.5}, r"strength must be in \(0, 1\], but it is 1.5"),
        ({"n": 0}, "n must be .* at least 1"),
        ({"n": 99}, "n must be at most .*, the number of components, but it is 99"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused_and_changes_nothing(model, call, message):
    before = model.component_clusters_.copy()
    with pytest.raises(ValueError, match=message):
        model.cut(**call)
    np.testing.assert_array_equal(model.component_clusters_, before)


def test_models_without_tested_splits_say_so(roughly_trained, trained_normal):
    for call in (roughly_trained.cut, roughly_trained.split_table, roughly_trained.split_tree):
        with pytest.raises(RuntimeError, match="no tested splits: .*test_partition"):
            call()
    with pytest.raises(RuntimeError, match="no components"):
        trained_normal.split_table()


# ------------------------------------------------------------------------- given clusters


def test_own_clusters_stay_as_they_are(model):
    table = model.test_partition("scgmvae", key_added="again")
    assert not table["hides_more"].any()
    assert table["merged"].tolist() == table.index.tolist()
    assert model.adata.obs["again"].astype(str).tolist() == (
        model.adata.obs["scgmvae"].astype(str).tolist()
    )


def test_groups_that_are_wrong_are_told(model):
    truth = model.adata.obs["component"].cat.codes.to_numpy()
    rng = np.random.default_rng(0)
    given = np.where(truth == 1, 0, truth).astype(object)  # two types in one
    given[(truth == 2) & (rng.random(600) < 0.5)] = "2b"  # one type in two
    given[0] = None
    model.adata.obs["given"] = pd.Categorical([None if g is None else str(g) for g in given])
    table = model.test_partition("given", key_added="merged")
    assert table["hides_more"].tolist() == [True, False, False, False]
    assert table.loc["2", "merged"] == table.loc["2b", "merged"] == "2+2b"
    assert table.loc["2", "nearest"] == "2b"
    assert table.loc["2", "border_strength"] < 0.5
    assert table["n_cells"].sum() == 599
    assert model.adata.obs["merged"].isna().sum() == 1
    assert set(model.adata.obs["merged"].dropna()) == {"0", "2+2b", "3"}


def test_a_partition_can_be_tested_without_a_mixture(trained_normal):
    table = trained_normal.test_partition("component")
    assert table["merged"].nunique() == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"key": "missing"}, KeyError, "missing"),
        ({"key": "component", "strength": 2}, ValueError, r"strength must be in \(0, 1\]"),
        ({"key": "empty"}, ValueError, "no cell of .empty. has one"),
        ({"key": "component", "key_added": "batch"}, ValueError, "batch"),
    ],
)
def test_partitions_that_cannot_be_tested_are_refused(model, call, error, message):
    model.adata.obs["empty"] = pd.Categorical([None] * 600)
    with pytest.raises(error, match=message):
        model.test_partition(**call)


# ------------------------------------------------------------------------------- confidence


def test_a_rare_type_has_the_confidence_of_any_other(make_model, train):
    adata = synthetic_counts(1500, 80, n_components=3, component_scale=3.0, seed=2)
    codes = adata.obs["component"].cat.codes.to_numpy()
    keep = np.flatnonzero((codes != 2) | (np.cumsum(codes == 2) <= 15))
    adata = adata[keep].copy()
    train(make_model(adata, {}, n_components=None), max_epochs=30, pretrain_epochs=40)
    rare = (adata.obs["component"] == adata.obs["component"].cat.categories[2]).to_numpy()
    clusters = adata.obs["scgmvae"].to_numpy()
    own = pd.Series(clusters[rare]).mode()[0]
    assert (clusters[rare] == own).mean() > 0.9
    assert (clusters[~rare] == own).mean() < 0.01
    confidence = adata.obs["scgmvae_confidence"].to_numpy()
    assert np.median(confidence[rare]) > 0.9
    assert np.median(confidence[~rare]) > 0.9


def test_more_components_than_the_tree_has_leaves(make_model, train):
    adata = synthetic_counts(40, 30, n_components=2, seed=0)
    model = train(make_model(adata, {}, n_components=30))
    tree = model.split_tree()
    assert len(tree.linkage) == len(tree.names) - 1 < 29
    model.cut(n=2)
    assert model.predict(soft=True).shape[1] <= 2


def test_a_tree_of_data_in_a_file(fit, tmp_path):
    fit.adata.write_h5ad(tmp_path / "counts.h5ad")
    fit.save(tmp_path / "fit")
    backed = read_h5ad(tmp_path / "counts.h5ad", backed="r")
    loaded = SCGMVAE.load(tmp_path / "fit", backed)
    pd.testing.assert_frame_equal(loaded.split_table(), fit.split_table())
    pd.testing.assert_frame_equal(loaded.markers(2), fit.markers(2))
    backed.file.close()


def test_a_query_names_the_conditions_of_the_tree_rightly(make_model, train):
    adata = synthetic_counts(400, 60, n_components=3, n_batches=2, component_scale=3.0, seed=0)
    adata.obs["assay"] = "v2"
    adata.obs["side"] = np.where(np.arange(400) % 2 == 0, "a", "b")
    setup = {"batch_key": "assay", "categorical_covariate_keys": ["side"]}
    reference = train(make_model(adata, setup, n_components=None), **LENGTH)
    new = adata[:100].copy()
    new.obs["assay"] = "v3"
    for model in (reference, SCGMVAE.load_query_data(new, reference)):
        table = model.split_table(0)
        assert (table["side_levels"] == 2).all()
        assert (table["assay_levels"] == 1).all()
        assert (table["t_without_side"] < table["null"]).all()


def test_a_short_joint_stage_keeps_what_was_found(make_model, train):
    rng = np.random.default_rng(0)
    shares = np.exp(rng.normal(0, 1, (2, 200)))
    shares[1] = shares[0]
    shares[1, :12] *= 7.0
    types = np.repeat([0, 1], [900, 100])
    mean = (shares / shares.sum(1, keepdims=True))[types] * 1500
    adata = synthetic_counts(1000, 200, n_components=2, seed=0)
    adata.X = sparse.csr_matrix(rng.poisson(rng.gamma(5, mean / 5)).astype(np.float32))
    train(make_model(adata, {}, n_components=None), max_epochs=3, pretrain_epochs=40)
    assert adjusted_rand_score(types, adata.obs["scgmvae"]) > 0.98
