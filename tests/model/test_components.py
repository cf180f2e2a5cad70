"""Tests of components and clusters: overlap, table, merging, what it writes, and its figure."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, fcluster, is_valid_linkage, linkage
from scipy.spatial.distance import squareform

from scgmvae import SCGMVAE, pl
from scgmvae.clustering.merging import bhattacharyya, entropy_elbow, tree_by_elbo, tree_by_entropy

METHODS = ["overlap", "entropy", "elbo"]
LONGER = {"max_epochs": 25, "pretrain_epochs": 25, "start": "kmeans"}


@pytest.fixture(scope="module")
def split(counts, make_model, train):
    """Six components for three true ones, and 30 cells held out; ``model`` is to be used."""
    model = make_model(counts.copy(), {"batch_key": "batch"}, n_components=6)
    return train(model, train_size=0.9, **LONGER)


@pytest.fixture(scope="module")
def split_by_labels(counts, make_model, train):
    """Six components, of which two carry labels; ``labelled`` is to be used."""
    adata = counts.copy()
    is_known = adata.obs["component"].isin(["component_0", "component_1"])
    adata.obs["label"] = np.where(is_known, adata.obs["component"].astype(str), "unknown")
    return train(make_model(adata, {"labels_key": "label"}, n_components=6), **LONGER)


@pytest.fixture(scope="module")
def of_one(counts, make_model, train):
    """A model of one component; ``single`` is to be used."""
    return train(make_model(counts.copy(), n_components=1), max_epochs=1, pretrain_epochs=1)


@pytest.fixture(scope="module")
def found(counts, make_model, train):
    """A model that finds the number of its components; only to be read."""
    return train(make_model(counts.copy(), n_components=None), max_epochs=15, pretrain_epochs=15)


def restored(model):
    """Leave a model as it came out of training."""
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    yield model
    model.module.load_state_dict(state)
    model.component_clusters_ = None
    model._model_summary_string = model._summary()
    model.annotate()


@pytest.fixture
def model(split):
    yield from restored(split)


@pytest.fixture
def labelled(split_by_labels):
    yield from restored(split_by_labels)


@pytest.fixture
def single(of_one):
    yield from restored(of_one)


def soft(model, **settings):
    return model.predict(soft=True, components=True, **settings).to_numpy(float)


def avoid(model, component, by):
    """Make a component less likely for every cell."""
    with torch.no_grad():
        model.module.classifier.logits.bias[component] -= by


def partition_of(codes):
    return {frozenset(np.flatnonzero(np.asarray(codes) == k)) for k in np.unique(codes)}


def off_diagonal(table):
    values = table.to_numpy(copy=True)
    np.fill_diagonal(values, -1)
    return values


# ------------------------------------------------------------------------------- similarity


def test_the_similarity_is_the_overlap_averaged_over_w_and_c(model):
    found = model.component_similarity()
    assert found.index.tolist() == found.columns.tolist() == model.component_names.tolist()
    (tensors,) = model._make_data_loader(model.adata, batch_size=300)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        draws = [
            model.module.component_density(torch.randn(300, 4, generator=generator), tensors)
            for _ in range(5)
        ]
    loc, scale = (np.concatenate([getattr(p, part) for p in draws]) for part in ("loc", "scale"))
    each = np.stack([bhattacharyya(loc[[s]], scale[[s]]) for s in range(len(loc))])
    error = each.std(0) * np.sqrt(1 / 256 + 1 / len(each))  # of both averages
    assert (abs(found - each.mean(0)) <= 5 * error + 1e-12).to_numpy().all()
    assert found.to_numpy().min() < 0.2  # so that the bound says something
    assert off_diagonal(found).max() > 0.5


def test_the_similarity_leaves_random_states_alone(model):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    pd.testing.assert_frame_equal(model.component_similarity(), model.component_similarity())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_table_names_the_component_that_overlaps_most(model):
    table, overlap = model.component_table(), off_diagonal(model.component_similarity())
    nearest = overlap.argmax(1)
    assert table["nearest"].tolist() == model.component_names[nearest].tolist()
    np.testing.assert_allclose(table["overlap"], overlap.max(1), rtol=1e-12)
    loc, scale = (values.astype(float) for values in model._drawn_components())
    for k, other in enumerate(nearest):
        pooled = 0.5 * (scale[:, k] ** 2 + scale[:, other] ** 2)
        squares = ((loc[:, k] - loc[:, other]) ** 2 / pooled).sum(axis=1)
        assert table["distance"].iloc[k] == pytest.approx(np.sqrt(squares).mean(), rel=1e-5)


def test_the_table_has_the_commonest_label_of_the_cells_of_each_component(model):
    avoid(model, 5, by=1e4)
    truth = model.adata.obs["component"].astype(str)
    # half of the labels are another, so that shares differ from 1
    model.adata.obs["kind"] = np.where(np.arange(300) % 3, truth, "other")
    table = model.component_table(labels_key="kind")
    cells = model.predict(components=True)
    for name, row in table.iloc[:5].iterrows():
        shares = model.adata.obs["kind"][cells == name].value_counts(normalize=True)
        assert row["label"] == shares.index[0]
        assert row["label_share"] == pytest.approx(shares.iloc[0])
        assert shares.iloc[0] < 1
    assert table["label"].iloc[5] is None
    assert np.isnan(table["label_share"].iloc[5])
    del model.adata.obs["kind"]
    assert "label" not in model.component_table()
    with pytest.raises(KeyError, match="labels_key.*'kind'"):
        model.component_table(labels_key="kind")


def test_the_table_takes_the_labels_of_the_setup(labelled):
    table = labelled.component_table()
    pd.testing.assert_frame_equal(table, labelled.component_table(labels_key="label"))
    assert table["label"].iloc[:2].tolist() == ["component_0", "component_1"]
    assert (table["label_share"].iloc[:2] > 0.9).all()


def test_the_table_has_the_cluster_of_each_component(model):
    assert model.component_table()["cluster"].tolist() == model.component_names.tolist()
    avoid(model, 5, by=1e4)
    model.merge_components(3)
    table = model.component_table()
    assert table.index.tolist() == model.component_names.tolist()
    assert table["cluster"].iloc[5] is None
    clusters = model.predict(soft=True)
    for cluster, names in table.groupby("cluster").groups.items():
        expected = soft(model)[:, table.index.isin(names)].sum(1)
        np.testing.assert_allclose(clusters[cluster], expected, rtol=1e-4)


def test_one_component_is_like_itself_and_near_to_none(single):
    assert single.component_similarity().to_dict() == {"0": {"0": 1.0}}
    (row,) = single.component_table().itertuples()
    assert row.nearest is None
    assert np.isnan([row.overlap, row.distance]).all()
    assert (row.cluster, row.n_cells, row.weight) == ("0", 300, pytest.approx(1))


def test_one_component_merges_with_none(single):
    for settings in ({}, {"n": 1}, {"method": "entropy"}, {"method": "elbo"}):
        tree = single.merge_components(**settings)
        assert tree.linkage.shape == (0, 4)
        assert tree.levels.to_dict() == {1: {"0": 0}}
        assert set(single.predict()) == {"0"}


# ----------------------------------------------------------------------------------- merging


def expected_tree(model, method):
    """Linkage of the components, from what the model says of them."""
    if method == "overlap":
        distance = -np.log(model.component_similarity().to_numpy())
        return linkage(squareform(distance, checks=False), "average")
    if method == "entropy":
        return tree_by_entropy(soft(model))
    rows = model.validation_indices
    loc, scale = (values.astype(float) for values in model._drawn_components())
    z_loc, z_var = model.get_latent_representation(indices=rows, return_dist=True)
    variance = loc.var(0) + (scale**2).mean(0)  # of a mixture over w
    return tree_by_elbo(soft(model, indices=rows), z_loc, z_var, loc.mean(0), variance)


@pytest.mark.parametrize("method", METHODS)
def test_the_tree_is_a_linkage_of_all_components_and_their_levels(model, method):
    expected = expected_tree(model, method)
    tree = model.merge_components(3, method=method)
    np.testing.assert_allclose(tree.linkage, expected, rtol=1e-3, atol=1e-5)
    assert is_valid_linkage(tree.linkage)
    assert sorted(dendrogram(tree.linkage, no_plot=True)["leaves"]) == list(range(6))
    assert tree.levels.index.tolist() == model.component_names.tolist()
    assert partition_of(tree.levels[3]) == partition_of(model.component_clusters_)
    for n in range(1, 7):
        model.merge_components(n, method=method)
        assert len(model.cluster_names) == n
        assert partition_of(model.component_clusters_) == partition_of(tree.levels[n])


@pytest.mark.parametrize("method", METHODS)
def test_each_number_of_clusters_is_made_by_the_first_merges_of_the_tree(model, method):
    for n in range(1, 7):
        tree = model.merge_components(n, method=method).linkage
        members = {k: {k} for k in range(6)}
        for new, (i, j, *_) in enumerate(tree[: 6 - n], start=6):
            members[new] = members.pop(int(i)) | members.pop(int(j))
        assert partition_of(model.component_clusters_) == set(map(frozenset, members.values()))


def height_of(method, threshold):
    return -np.log(threshold) if method == "overlap" else threshold


@pytest.mark.parametrize(
    ("method", "threshold"),
    [
        *(("overlap", threshold) for threshold in (1.0, 0.7, 0.5, 0.1, 1e-9)),
        *(("entropy", threshold) for threshold in (1e-9, 0.3, 0.6, 1.0)),
        *(("elbo", threshold) for threshold in (0, 0.3, 100)),
    ],
)
def test_the_threshold_cuts_the_tree_at_a_height(model, method, threshold):
    tree = model.merge_components(threshold=threshold, method=method)
    cut = fcluster(tree.linkage, height_of(method, threshold), "distance")
    assert partition_of(model.component_clusters_) == partition_of(cut)


@pytest.mark.parametrize(("method", "threshold"), [("overlap", 0.3), ("elbo", 0.05)])
def test_without_n_a_threshold_is_taken(model, method, threshold):
    tree = model.merge_components(method=method)
    cut = fcluster(tree.linkage, height_of(method, threshold), "distance")
    assert 1 < len(set(cut)) < 6
    assert partition_of(model.component_clusters_) == partition_of(cut)


def test_without_n_the_entropy_is_cut_at_its_elbow(model):
    tree = model.merge_components(method="entropy")
    elbow = entropy_elbow(soft(model), tree.levels)
    assert 1 < elbow < 6
    assert partition_of(model.component_clusters_) == partition_of(tree.levels[elbow])


@pytest.mark.parametrize("method", METHODS)
def test_clusters_are_the_true_components_that_were_split(model, method):
    model.merge_components(3, method=method)
    counted = pd.crosstab(model.predict(), model.adata.obs["component"].to_numpy())
    assert counted.shape == (3, 3)
    assert counted.to_numpy().max(axis=1).sum() > 290


def test_probabilities_of_a_cluster_are_the_sum_over_its_components(model):
    before, novelty = model.predict(soft=True), model.get_novelty()
    model.merge_components(3)
    after = model.predict(soft=True)
    assert after.columns.tolist() == ["0", "1", "2"]
    assert after.index.equals(model.adata.obs_names)
    np.testing.assert_allclose(after.sum(axis=1), 1, rtol=1e-6)
    for m, name in enumerate(after):
        members = before.to_numpy()[:, model.component_clusters_ == m]
        np.testing.assert_allclose(after[name], members.sum(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(model.predict(), after.columns[after.to_numpy().argmax(1)])
    # components are what they were, but for their names, and so is the novelty
    in_cluster = model.component_clusters_ == after.to_numpy().argmax(1)[:, None]
    component = np.where(in_cluster, before.to_numpy(), 0).argmax(1)
    np.testing.assert_array_equal(soft(model), before.to_numpy(float))
    np.testing.assert_array_equal(model.predict(components=True), model.component_names[component])
    np.testing.assert_array_equal(model.get_novelty(), novelty)


def test_clusters_are_numbered_by_their_cells_and_components_within_them(model):
    component = soft(model).argmax(1)
    model.merge_components(3)
    clusters = model.component_clusters_
    sizes = np.bincount(clusters[component], minlength=3)
    assert (np.diff(sizes) <= 0).all()
    assert model.cluster_names.tolist() == ["0", "1", "2"]
    for m in range(3):
        names = model.component_names[clusters == m].tolist()
        parts = [f"{m}{letter}" for letter in "abcdef"[: len(names)]]
        assert names == ([str(m)] if len(names) == 1 else parts)
    assert max(np.bincount(clusters)) > 1
    assert "n_components: 6 in 3 clusters" in str(model._model_summary_string)


@pytest.mark.parametrize("n", [3, 6])
def test_the_first_cluster_is_the_largest_whatever_the_order_of_its_components(model, n):
    while (n_cells := np.bincount(soft(model).argmax(1), minlength=6))[0] > min(10, n_cells.min()):
        avoid(model, 0, by=0.25)
    component = soft(model).argmax(1)
    model.merge_components(n)
    sizes = np.bincount(model.component_clusters_[component], minlength=n)
    assert sizes.tolist() == sorted(sizes, reverse=True)
    assert n < 6 or sizes[model.component_clusters_[0]] == sizes[-1]


def test_as_many_clusters_as_components_undo_a_merge(model):
    before = model.predict(soft=True)
    model.merge_components(2)
    model.merge_components(np.int64(6))
    assert sorted(model.component_names) == sorted(before.columns)
    assert model.component_names.tolist() == [str(m) for m in model.component_clusters_]
    after = model.predict(soft=True)
    np.testing.assert_allclose(after[model.component_names], before, rtol=1e-5, atol=1e-7)
    cells = model.adata.obs[["scgmvae", "scgmvae_fine"]].astype(str)
    assert (cells["scgmvae"] == cells["scgmvae_fine"]).all()


def test_components_without_cells_are_dropped(model):
    while 2 in soft(model).argmax(1):
        avoid(model, 2, by=1)
    proba = soft(model)
    assert proba[:, 2].max() > 1e-3  # and yet it has some probability
    tree = model.merge_components(3)
    assert model.component_clusters_[2] == -1
    assert model.component_names[2] == "dropped_a"
    left = np.delete(model.component_names, 2)
    assert tree.levels.index.tolist() == left.tolist()
    assert tree.linkage[-1, 3] == 5
    after = model.predict(soft=True)
    np.testing.assert_allclose(after.sum(axis=1), 1, rtol=1e-6)
    kept = np.delete(proba, 2, axis=1)
    for m, name in enumerate(after):
        members = kept[:, np.delete(model.component_clusters_, 2) == m].sum(1)
        np.testing.assert_allclose(after[name], members / kept.sum(1), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(soft(model), proba)
    assert "dropped_a" not in model.adata.obs["scgmvae_fine"].cat.categories
    # no more clusters than components with cells
    model.merge_components(6)
    assert model.cluster_names.tolist() == ["0", "1", "2", "3", "4"]


# --------------------------------------------------------------------------------- written


def test_clusters_and_components_are_written(model, tmp_path):
    adata = model.adata
    embedding = adata.obsm["X_scgmvae"].copy()
    assert "scgmvae_fine" not in adata.obs
    adata.uns["scgmvae_colors"] = adata.uns["scgmvae_fine_colors"] = ["#000000"]
    model.merge_components(3)
    assert not {"scgmvae_colors", "scgmvae_fine_colors"} & set(adata.uns)
    np.testing.assert_array_equal(adata.obs["scgmvae"], model.predict())
    np.testing.assert_array_equal(adata.obs["scgmvae_fine"], model.predict(components=True))
    assert adata.obs["scgmvae"].cat.categories.tolist() == ["0", "1", "2"]
    np.testing.assert_allclose(adata.obsm["scgmvae_proba"], model.predict(soft=True), rtol=1e-5)
    inside = adata.obs["scgmvae_novelty"].to_numpy() < 0.99
    largest = model.predict(soft=True).max(axis=1)
    np.testing.assert_allclose(adata.obs["scgmvae_confidence"][inside], largest[inside], rtol=1e-5)
    np.testing.assert_array_equal(adata.obsm["X_scgmvae"], embedding)
    settings = adata.uns["scgmvae"]
    assert settings["clusters"].tolist() == ["0", "1", "2"]
    assert settings["components"].tolist() == model.component_names.tolist()
    assert settings["n_components"] == 6

    adata.write_h5ad(tmp_path / "data.h5ad")
    read = anndata.read_h5ad(tmp_path / "data.h5ad")
    pd.testing.assert_frame_equal(read.obs, adata.obs)
    np.testing.assert_array_equal(read.obsm["scgmvae_proba"], adata.obsm["scgmvae_proba"])
    for name in ("clusters", "components"):
        assert list(read.uns["scgmvae"][name]) == list(settings[name])


def test_clusters_without_cells_are_no_categories(model):
    avoid(model, 5, by=1e4)
    model.annotate()
    assert model.adata.obs["scgmvae"].cat.categories.tolist() == sorted(set(model.predict()))
    assert "5" not in model.adata.obs["scgmvae"].cat.categories
    assert model.adata.obsm["scgmvae_proba"].shape == (300, 6)


def test_a_model_without_merging_drops_the_components_that_another_wrote(model):
    adata = model.adata
    model.merge_components(3)
    model.annotate(key_added="other")
    assert adata.obs["other"].nunique() == 3
    model.component_clusters_ = None
    model.annotate()
    assert "scgmvae_fine" not in adata.obs
    assert "other_fine" in adata.obs  # of another name: not its own
    np.testing.assert_array_equal(adata.obs["scgmvae"], model.predict(components=True))
    assert adata.uns["scgmvae"]["clusters"].tolist() == model.component_names.tolist()
    adata.obs = adata.obs[[name for name in adata.obs if not name.startswith("other")]]


def test_new_data_get_clusters(model, counts):
    model.merge_components(3)
    new, rows = counts[100:160, ::-1].copy(), np.arange(100, 160)
    np.testing.assert_array_equal(model.predict(new), model.predict()[rows])
    expected = model.predict(soft=True, indices=rows)
    np.testing.assert_allclose(model.predict(new, soft=True), expected, rtol=1e-3, atol=1e-6)
    model.annotate(new)
    np.testing.assert_array_equal(new.obs["scgmvae"], model.predict()[rows])
    np.testing.assert_array_equal(new.obs["scgmvae_fine"], model.predict(components=True)[rows])


def test_samples_of_a_cluster_are_of_its_components(model):
    model.merge_components(3)
    clusters = model.component_clusters_
    m = int(np.bincount(clusters).argmax())
    members = model.component_names[clusters == m]
    assert len(members) > 1
    drawn = model.sample(400, str(m)).obs["component"].astype(str)
    assert set(drawn) == set(members)
    cells = pd.Series(model.predict(components=True)).value_counts()[members]
    share = cells / cells.sum()  # as often as among the cells
    error = np.sqrt(share * (1 - share) / 400)
    assert (abs(drawn.value_counts(normalize=True)[members] - share) < 5 * error).all()
    assert set(model.sample(20, members[1]).obs["component"]) == {members[1]}
    with pytest.raises(ValueError, match=f"'none'. Its names are: .*'{m}', .*'{m}a'"):
        model.sample(5, "none")


# ------------------------------------------------------------------------------------ labels


def test_components_that_carry_labels_stay_apart(labelled):
    labels = ["component_0", "component_1"]
    proba = soft(labelled)
    n_cells = np.bincount(proba.argmax(1), minlength=6)
    free = 2 + np.flatnonzero(n_cells[2:])
    assert len(free) > 1
    tree = labelled.merge_components(3)
    assert labelled.cluster_names.tolist() == [*labels, "2"]
    assert labelled.component_clusters_.tolist()[:2] == [0, 1]
    assert (labelled.component_clusters_[free] == 2).all()
    assert tree.linkage.shape == (len(free) - 1, 4)
    assert tree.levels.index.tolist() == [f"2{i}" for i in "abcdef"[: len(free)]]
    # labels are predicted among themselves, clusters are written
    expected = proba[:, :2] / proba[:, :2].sum(1, keepdims=True)
    assert labelled.predict(soft=True).columns.tolist() == labels
    np.testing.assert_allclose(labelled.predict(soft=True), expected, rtol=1e-4, atol=1e-7)
    of_clusters = np.column_stack([proba[:, :2], proba[:, free].sum(1)])
    of_clusters /= of_clusters.sum(1, keepdims=True)
    np.testing.assert_allclose(
        labelled.adata.obsm["scgmvae_proba"], of_clusters, rtol=1e-4, atol=1e-7
    )
    np.testing.assert_array_equal(
        labelled.adata.obs["scgmvae"], labelled.cluster_names[of_clusters.argmax(1)]
    )


@pytest.mark.parametrize("method", METHODS)
def test_labels_alone_have_nothing_to_merge(labelled, method):
    avoid(labelled, slice(2, 6), by=1e4)
    tree = labelled.merge_components(method=method)
    assert tree.linkage.shape == (0, 4)
    assert labelled.component_clusters_.tolist() == [0, 1, -1, -1, -1, -1]
    assert labelled.cluster_names.tolist() == ["component_0", "component_1"]


def test_a_label_like_the_name_of_a_part_keeps_names_apart(counts, make_model, train):
    adata = counts.copy()
    names = {"component_0": "2a", "component_1": "2b", "component_2": "unknown"}
    adata.obs["label"] = adata.obs["component"].astype(str).map(names)
    model = make_model(adata, {"labels_key": "label"}, n_components=5)
    train(model, **LONGER)
    model.merge_components(3)
    assert max(np.bincount(model.component_clusters_[model.component_clusters_ >= 0])) > 1
    assert len(set(model.component_names)) == 5


# -------------------------------------------------------------------------------- other models


def test_a_saved_model_keeps_its_clusters(model, counts, tmp_path):
    model.merge_components(3)
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=counts.copy(), accelerator="cpu")
    assert loaded.component_names.tolist() == model.component_names.tolist()
    assert str(loaded._model_summary_string) == str(model._model_summary_string)
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    without = SCGMVAE.load(tmp_path / "model", adata=False, accelerator="cpu")
    for ask in ("merge_components", "component_similarity"):
        with pytest.raises(RuntimeError, match="no data"):
            getattr(without, ask)()
    np.testing.assert_array_equal(without.predict(counts.copy()), model.predict())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_loaded_with_other_cells_merges_by_these(model, counts, tmp_path, method):
    assert model.validation_indices.max() >= 150
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=counts[:150].copy(), accelerator="cpu")
    loaded.merge_components(2, method=method)
    counted = loaded.adata.obs["scgmvae"].value_counts()
    assert counted.index.tolist() == ["0", "1"]
    assert counted.sum() == 150


def test_a_trained_model_that_is_given_other_cells_merges_by_all_of_these(model, counts, tmp_path):
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=counts[:150].copy(), accelerator="cpu")
    expected = loaded.merge_components(2, method="elbo").linkage
    own = model.adata
    model.adata = counts[:150].copy()
    try:
        found = model.merge_components(2, method="elbo").linkage
    finally:
        model.adata = own
    np.testing.assert_allclose(found, expected)


def test_training_again_keeps_clusters(model, counts, train, tmp_path):
    model.merge_components(3)
    model.save(tmp_path / "model")
    again = SCGMVAE.load(tmp_path / "model", adata=counts.copy(), accelerator="cpu")
    train(again, max_epochs=1)
    np.testing.assert_array_equal(again.component_clusters_, model.component_clusters_)
    assert not np.array_equal(again.predict(soft=True), model.predict(soft=True))
    np.testing.assert_array_equal(again.adata.obs["scgmvae"], again.predict())
    np.testing.assert_array_equal(again.adata.obs["scgmvae_fine"], again.predict(components=True))


def test_a_query_has_the_clusters_of_its_reference(model, counts):
    model.merge_components(3)
    query = SCGMVAE.load_query_data(counts[200:].copy(), model)
    assert query.component_names.tolist() == model.component_names.tolist()
    assert query.cluster_names.tolist() == ["0", "1", "2"]
    assert str(query._model_summary_string) == str(model._model_summary_string)
    np.testing.assert_array_equal(query.predict(), model.predict()[200:])
    query.annotate()
    np.testing.assert_array_equal(
        query.adata.obs["scgmvae_fine"], model.adata.obs["scgmvae_fine"][200:]
    )
    query.merge_components(2)
    assert len(model.cluster_names) == 3  # merging one leaves the other


def test_a_model_that_finds_its_number_merges_after_training(found, split):
    overlap = found.component_similarity().to_numpy()
    clusters = found.component_clusters_
    assert len(clusters) == found.n_components_ > 1
    used = clusters >= 0
    distance = -np.log(overlap[np.ix_(used, used)])
    cut = fcluster(
        linkage(squareform(distance, checks=False), "average"), -np.log(0.3), "distance"
    )
    assert partition_of(clusters[used]) == partition_of(cut)
    np.testing.assert_array_equal(found.adata.obs["scgmvae"], found.predict())
    np.testing.assert_array_equal(found.adata.obs["scgmvae_fine"], found.predict(components=True))
    # one that was given a number keeps it
    assert split.component_clusters_ is None
    assert "scgmvae_fine" not in split.adata.obs
    assert split.adata.obs["scgmvae"].nunique() == 6


def test_training_it_again_does_not_merge_anew(found, counts, train, tmp_path):
    found.save(tmp_path / "model")
    again = SCGMVAE.load(tmp_path / "model", adata=counts.copy(), accelerator="cpu")
    again.merge_components(1)
    assert len(found.cluster_names) > len(again.cluster_names)
    train(again, max_epochs=1)
    assert set(again.predict()) == {"0"}
    assert again.adata.obs["scgmvae"].cat.categories.tolist() == ["0"]


def test_groups_that_were_given_are_not_merged(counts, make_model, train):
    adata = counts.copy()
    adata.obs["half"] = np.arange(300) % 2  # two groups of the same cells overlap wholly
    model = make_model(adata, n_components=None)
    train(model, guide_key="half", max_epochs=1, pretrain_epochs=1)
    assert model.component_similarity().iloc[0, 1] > 0.9
    assert model.component_clusters_ is None
    assert model.cluster_names.tolist() == ["0", "1"]
    assert "scgmvae_fine" not in adata.obs


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"n": 7}, "at most K, 6.*7", id="n_above_K"),
        pytest.param({"n": 0}, "n must be an integer of at least 1.*0", id="n_0"),
        pytest.param({"n": -1}, "at least 1.*-1", id="n_negative"),
        pytest.param({"n": 2.0}, "integer.*2.0", id="n_float"),
        pytest.param({"n": True}, "integer.*True", id="n_bool"),
        pytest.param({"n": 2, "threshold": 0.5}, "not both.*n=2.*threshold=0.5", id="both"),
        pytest.param({"threshold": 0}, r"'overlap'.*\(0, 1\].*0", id="overlap_0"),
        pytest.param({"threshold": 1.1}, r"'overlap'.*\(0, 1\].*1.1", id="overlap_above_1"),
        pytest.param({"threshold": np.nan}, "threshold.*nan", id="overlap_nan"),
        pytest.param(
            {"threshold": 2, "method": "entropy"}, r"'entropy'.*\(0, 1\].*2", id="entropy_above_1"
        ),
        pytest.param(
            {"threshold": -0.1, "method": "elbo"}, "at least 0.*-0.1", id="elbo_negative"
        ),
        pytest.param({"threshold": np.nan, "method": "elbo"}, "threshold.*nan", id="elbo_nan"),
        pytest.param({"method": "ward"}, "method.*'overlap'.*'ward'", id="method"),
    ],
)
def test_bad_arguments_change_neither_model_nor_data(model, settings, words):
    model.merge_components(4)
    clusters, obs = model.component_clusters_.copy(), model.adata.obs.copy()
    proba, summary = model.adata.obsm["scgmvae_proba"].copy(), model._model_summary_string
    with pytest.raises(ValueError, match=words):
        model.merge_components(**settings)
    np.testing.assert_array_equal(model.component_clusters_, clusters)
    pd.testing.assert_frame_equal(model.adata.obs, obs)
    np.testing.assert_array_equal(model.adata.obsm["scgmvae_proba"], proba)
    assert model._model_summary_string == summary


@pytest.mark.parametrize("n", [1, 2])
def test_there_are_more_clusters_than_labels(labelled, n):
    obs = labelled.adata.obs.copy()
    with pytest.raises(
        ValueError, match=f"n must be at least 3, because the 2 components.*received {n}"
    ):
        labelled.merge_components(n)
    assert labelled.component_clusters_ is None
    pd.testing.assert_frame_equal(labelled.adata.obs, obs)


@pytest.mark.parametrize("ask", ["merge_components", "component_similarity"])
def test_without_trained_components_there_is_nothing_to_merge(
    counts, make_model, trained_normal, ask
):
    with pytest.raises(RuntimeError, match="train"):
        getattr(make_model(counts.copy()), ask)()
    with pytest.raises(RuntimeError, match="no components.*'normal'"):
        getattr(trained_normal, ask)()
    assert "scgmvae_fine" not in trained_normal.adata.obs


# ------------------------------------------------------------------------------------ figure


def heat_maps(figure):
    """Values of each heat map by its title, with the labels of its ticks."""
    assert isinstance(figure, Figure)
    found = {}
    for axis in figure.axes:
        if axis.get_title():
            (image,) = axis.images
            assert image.get_clim() == (0, 1)
            labels = ([t.get_text() for t in axis.get_yticklabels()], axis.get_xticklabels())
            rows, columns = labels[0], [t.get_text() for t in labels[1]]
            found[axis.get_title()] = pd.DataFrame(image.get_array(), rows, columns)
    return found


def order_of(model):
    """Names of the components along the tree by overlap."""
    tree = expected_tree(model, "overlap")
    return model.component_names[dendrogram(tree, no_plot=True)["leaves"]].tolist()


@pytest.mark.usefixtures("no_window_and_no_new_settings")
@pytest.mark.parametrize("merged", [False, True])
def test_the_figure_shows_overlaps_in_the_order_of_their_tree(model, merged):
    if merged:
        model.merge_components(3)
    figure = pl.components(model)
    maps, order = heat_maps(figure), order_of(model)
    assert list(maps) == ["overlap"]
    expected = model.component_similarity().loc[order, order]
    pd.testing.assert_frame_equal(maps["overlap"], expected)
    # a leaf of the tree stands over its column, at a height of 0
    branches = figure.axes[0].lines
    assert len(branches) == 5
    feet = {x for line in branches for x, y in zip(*line.get_data(), strict=True) if y == 0}
    assert feet == set(range(6))
    heights = sorted(max(line.get_ydata()) for line in branches)
    np.testing.assert_allclose(heights, expected_tree(model, "overlap")[:, 2])
    assert figure.axes[0].get_xlim() == (-0.5, 5.5) == figure.axes[1].get_xlim()


@pytest.mark.usefixtures("no_window_and_no_new_settings")
def test_the_figure_shows_which_labels_the_cells_of_each_component_have(model):
    shares = heat_maps(pl.components(model, "component"))[
        "share of the component's labelled cells"
    ]
    assert shares.index.tolist() == order_of(model)
    assert shares.columns.tolist() == ["component_0", "component_1", "component_2"]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    cells, truth = model.predict(components=True), model.adata.obs["component"]
    for name, label in ((name, label) for name in shares.index for label in shares):
        assert shares.loc[name, label] == pytest.approx((truth[cells == name] == label).mean())
    with pytest.raises(KeyError, match="labels_key.*'kind'"):
        pl.components(model, "kind")


@pytest.mark.usefixtures("no_window_and_no_new_settings")
def test_the_figure_takes_the_labels_of_the_setup_and_shows_what_is_empty(labelled):
    avoid(labelled, 5, by=1e4)
    labelled.merge_components(3)
    maps = heat_maps(pl.components(labelled))
    assert list(maps) == ["overlap", "share of the component's labelled cells"]
    shares = maps["share of the component's labelled cells"]
    assert shares.columns.tolist() == ["component_0", "component_1"]
    assert shares.index.tolist() == maps["overlap"].index.tolist()
    has_label = (labelled.adata.obs["label"] != "unknown").to_numpy()
    named = set(labelled.predict(components=True)[has_label])
    assert 2 <= len(named) < len(shares)
    expected = [float(name in named) for name in shares.index]
    np.testing.assert_allclose(shares.sum(axis=1), expected)


def test_the_table_leaves_out_cells_without_a_label(labelled):
    table = labelled.component_table()
    component = labelled.predict(components=True)
    labels = labelled.adata.obs["label"].to_numpy()
    for name, row in table.iterrows():
        own = pd.Series(labels[(component == name) & (labels != "unknown")])
        if own.empty:
            assert row["label"] is None
            assert np.isnan(row["label_share"])
        else:
            shares = own.value_counts(normalize=True)
            assert row["label"] == shares.index[0]
            assert row["label_share"] == pytest.approx(shares.iloc[0])


def test_a_column_of_the_setup_is_not_overwritten(counts, make_model, train):
    adata = counts.copy()
    adata.obs["scgmvae_fine"] = adata.obs["component"]
    model = make_model(adata, {"labels_key": "scgmvae_fine"})
    before = adata.obs.copy()
    with pytest.raises(ValueError, match="overwrite the obs column 'scgmvae_fine'"):
        train(model)
    pd.testing.assert_frame_equal(adata.obs, before)


def test_labels_like_the_name_of_what_is_dropped_keep_names_apart(counts, make_model, train):
    adata = counts.copy()
    names = {"component_0": "dropped_a", "component_1": "b", "component_2": "unknown"}
    adata.obs["label"] = adata.obs["component"].astype(str).map(names)
    model = train(make_model(adata, {"labels_key": "label"}, n_components=5), **LONGER)
    avoid(model, 4, by=1e4)
    model.merge_components(5)
    assert "dropped__a" in model.component_names
    assert len(set(model.component_names)) == 5


@pytest.mark.usefixtures("no_window_and_no_new_settings")
def test_the_figure_of_one_component_has_no_tree(single):
    figure = pl.components(single, "batch")
    maps = heat_maps(figure)
    assert maps["overlap"].to_dict() == {"0": {"0": 1.0}}
    expected = single.adata.obs["batch"].value_counts(normalize=True)
    (row,) = maps["share of the component's labelled cells"].to_dict("records")
    assert row == pytest.approx(expected.to_dict())
    assert not figure.axes[0].lines
