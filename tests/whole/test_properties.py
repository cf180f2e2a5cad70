"""What holds for any data: set-up, labels, loader, counterfactuals, samples, merging, files."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scvi import REGISTRY_KEYS as KEYS
from small import NETWORK, TRAINING
from states import digest, parts_of

from scgmvae import SCGMVAE
from scgmvae.clustering.merging import levels_of, tree_by_elbo, tree_by_entropy, tree_by_overlap
from scgmvae.data.categories import name_of
from scgmvae.data.minibatches import MinibatchLoader
from scgmvae.data.registry import label_codes
from scgmvae.datasets import synthetic_counts

few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# scvi-tools' advice on small or unusual data
pytestmark = [
    pytest.mark.filterwarnings("ignore:Category .* in adata.obs:UserWarning"),
    pytest.mark.filterwarnings("ignore:Training will be faster:UserWarning"),
]

seeds = st.integers(0, 2**32 - 1)
TYPES = (np.uint8, np.int32, np.int64, np.uint16, np.float32, np.float64, bool)
FORMS = (np.asarray, np.asfortranarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array)


def small_counts():
    adata = synthetic_counts(60, 20, n_components=3, n_batches=3, component_scale=3.0, seed=2)
    adata.obs["age"] = np.linspace(0, 1, 60)
    return adata


@pytest.fixture(scope="module")
def model():
    """A model with two conditions and six components; only to be read."""
    adata = small_counts()
    SCGMVAE.setup_anndata(adata, batch_key="batch", continuous_covariate_keys=["age"])
    model = SCGMVAE(adata, n_components=6, **NETWORK)
    model.train(start="kmeans", **TRAINING)
    return model


@pytest.fixture(scope="module")
def to_merge():
    """Another one, whose components may be merged again and again."""
    adata = small_counts()
    model = SCGMVAE(adata, n_components=8, **NETWORK)
    model.train(start="kmeans", **TRAINING)
    return model


# ---------------------------------------------------------------------------------- set-up


@pytest.mark.filterwarnings("ignore:The obs column 'group' has fewer than 3 cells")
@given(
    seed=seeds,
    dtype=st.sampled_from(TYPES),
    form=st.sampled_from(FORMS),
    layer=st.sampled_from([None, "raw", "counts"]),
    n_obs=st.integers(3, 30),
    n_vars=st.integers(1, 12),
)
@few
def test_any_counts_are_registered_as_they_are(seed, dtype, form, layer, n_obs, n_vars):
    rng = np.random.default_rng(seed)
    x = rng.poisson(0.7, size=(n_obs, n_vars))
    x[:, 0] += 1
    x = x.astype(dtype)
    adata = AnnData(np.zeros(x.shape, np.float32) if layer else form(x))
    adata.obs["group"] = pd.Categorical(np.where(rng.random(n_obs) < 0.5, "a", "b"))
    if layer:
        adata.layers[layer] = form(x)
    before = {name: value for name, value in parts_of(adata).items() if name != "obs"}
    group = adata.obs["group"].copy()
    SCGMVAE.setup_anndata(adata, layer=layer, batch_key="group")
    model = SCGMVAE(adata, n_components=2, **NETWORK)
    after = parts_of(adata)
    assert {name: after[name] for name in before} == before
    pd.testing.assert_series_equal(adata.obs["group"], group)
    loader = model._make_data_loader(adata, batch_size=7)
    read = torch.cat([part[KEYS.X_KEY].to_dense() for part in loader])
    np.testing.assert_array_equal(read, x.astype(np.float32))


# ---------------------------------------------------------------------------------- labels

names = st.one_of(
    st.lists(st.text("abcXYZ .-1", min_size=1, max_size=5), min_size=2, max_size=5, unique=True),
    st.lists(st.integers(-3, 30), min_size=2, max_size=5, unique=True),
    st.just([True, False]),
    st.lists(st.sampled_from([0.5, 1.0, 2.25, -1.0]), min_size=2, max_size=4, unique=True),
)


@given(names=names, seed=seeds, as_categories=st.booleans(), share=st.floats(0.1, 1.0))
@few
def test_labels_of_any_type_and_order_mean_the_same(names, seed, as_categories, share):
    rng = np.random.default_rng(seed)
    adata = small_counts()
    values = np.array(names, dtype=object)[rng.integers(len(names), size=60)]
    is_labelled = rng.random(60) < share
    is_labelled[:2] = True
    column = pd.Series(values, index=adata.obs_names).where(is_labelled, "unknown")
    if as_categories:
        order = rng.permutation(np.array([*names, "unknown", "never"], dtype=object))
        column = column.astype(pd.CategoricalDtype(order))
    adata.obs["label"] = column
    SCGMVAE.setup_anndata(adata, labels_key="label")
    model = SCGMVAE(adata, **NETWORK)
    pd.testing.assert_series_equal(adata.obs["label"], column, check_names=False)
    known = sorted({name_of(value) for value in values[is_labelled]} - {"unknown"})
    assert sorted(model._setup.label_names) == known
    codes = label_codes(model.adata_manager)
    np.testing.assert_array_equal(codes >= 0, is_labelled)
    found = np.array(model._setup.label_names)[codes[is_labelled]]
    assert found.tolist() == [name_of(value) for value in values[is_labelled]]
    # the order does not follow that of the cells
    shuffled = adata[rng.permutation(60)].copy()
    SCGMVAE.setup_anndata(shuffled, labels_key="label")
    assert SCGMVAE(shuffled, **NETWORK)._setup.label_names == model._setup.label_names


# ---------------------------------------------------------------------------------- loader


@given(
    n_obs=st.integers(1, 60),
    batch_size=st.integers(1, 80),
    shuffle=st.booleans(),
    as_mask=st.booleans(),
    seed=seeds,
)
@few
def test_each_cell_comes_up_once_per_pass(model, n_obs, batch_size, shuffle, as_mask, seed):
    rng = np.random.default_rng(seed)
    rows = rng.permutation(60)[:n_obs]
    indices = np.isin(np.arange(60), rows) if as_mask else rows
    loader = MinibatchLoader(
        model.adata_manager, indices=indices, batch_size=batch_size, shuffle=shuffle
    )
    loader.extra["row"] = torch.arange(60)
    x = torch.from_numpy(model.adata.X.toarray())
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for _ in range(2):
            parts = list(loader)
            assert len(parts) == len(loader)
            sizes = [len(part["row"]) for part in parts]
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= max(batch_size, 3 if shuffle else 1)
            assert not shuffle or min(sizes) > 1 or n_obs == 1
            seen = torch.cat([part["row"] for part in parts])
            np.testing.assert_array_equal(np.sort(seen), np.sort(rows))
            for part in parts:
                assert torch.equal(part[KEYS.X_KEY], x[part["row"]])


# ------------------------------------------------------------------------- counterfactuals


@given(
    row=st.integers(0, 59),
    via=st.sampled_from(["z", "w"]),
    n_samples=st.integers(1, 3),
    seed=seeds,
)
@few
def test_conditions_that_a_cell_has_change_nothing(model, row, via, n_samples, seed):
    cell = model.adata.obs.iloc[row]
    own = [{"batch": cell["batch"]}, {"age": cell["age"]}, dict(cell[["batch", "age"]])]
    same, *others = (
        model.predict_counterfactual(
            conditions=conditions, indices=[row], via=via, n_samples=n_samples, seed=seed
        )
        for conditions in own
    )
    assert same.obs["batch"].tolist() == same.obs["batch_from"].tolist() == [cell["batch"]]
    library = model.adata.X[[row]].sum()
    assert same.layers["rate"].sum() == pytest.approx(library, rel=1e-4)
    for other in others:
        np.testing.assert_array_equal(other.layers["rate"], same.layers["rate"])
        np.testing.assert_array_equal(other.X.toarray(), same.X.toarray())
    changed = model.predict_counterfactual(
        conditions={"age": cell["age"] + 1}, indices=[row], via=via, n_samples=n_samples, seed=seed
    )
    assert not np.array_equal(changed.layers["rate"], same.layers["rate"])


@given(row=st.integers(0, 59), seed=seeds, target=st.sampled_from(["batch_0", "batch_1"]))
@few
def test_cells_of_other_conditions_do_not_matter(model, row, seed, target):
    """A cell is predicted from itself alone, whatever data it is in."""
    alone = model.adata[[row]].copy()
    rng = np.random.default_rng(seed)
    company = model.adata[rng.permutation(60)[:20]].copy()
    company = company[company.obs_names != alone.obs_names[0]]
    mixed = anndata.concat([alone, company], merge="same")
    results = [
        model.predict_counterfactual(data, {"batch": target}, indices=[0], seed=seed)
        for data in (alone, mixed.copy())
    ]
    np.testing.assert_array_equal(results[0].layers["rate"], results[1].layers["rate"])
    np.testing.assert_array_equal(results[0].X.toarray(), results[1].X.toarray())


# --------------------------------------------------------------------------------- samples


@given(
    n=st.integers(1, 40),
    batch=st.sampled_from([None, "batch_0", "batch_2"]),
    batch_size=st.integers(1, 50),
    seed=seeds,
)
@few
def test_samples_have_the_number_the_type_and_the_support_asked_for(
    model, n, batch, batch_size, seed
):
    conditions = {} if batch is None else {"batch": batch}
    drawn = model.sample(n, conditions=conditions, batch_size=batch_size, seed=seed)
    assert drawn.shape == (n, 20)
    assert isinstance(drawn.X, sparse.csr_matrix) and drawn.X.dtype == np.float32
    assert drawn.var_names.equals(model.adata.var_names)
    assert drawn.obs_names.is_unique
    assert (drawn.X.data > 0).all() and (drawn.X.data == np.floor(drawn.X.data)).all()
    assert np.isfinite(drawn.layers["rate"]).all() and (drawn.layers["rate"] >= 0).all()
    assert set(drawn.obs["component"]) <= set(model.component_names)
    assert batch is None or set(drawn.obs["batch"]) == {batch}
    assert drawn.obs["age"].isin(model.adata.obs["age"]).all()


# -------------------------------------------------------------------------- write and read


@given(
    key=st.text("abcdefXYZ_ -+.()0123456789äμ", min_size=1, max_size=12).filter(
        lambda key: key.strip() == key and key not in (".", "..")
    ),
    rows=st.lists(st.integers(0, 59), min_size=3, max_size=60, unique=True),
)
@few
def test_annotations_survive_a_file(model, tmp_path, key, rows):
    adata = small_counts()[rows].copy()
    model.annotate(adata, key_added=key)
    path = tmp_path / "annotated.h5ad"
    adata.write_h5ad(path)
    back = anndata.read_h5ad(path)
    assert back.obs.columns.equals(adata.obs.columns)
    for name in (key, f"{key}_confidence", f"{key}_novelty"):
        pd.testing.assert_series_equal(back.obs[name], adata.obs[name])
    for name in (f"X_{key}", f"X_{key}_w", f"{key}_proba"):
        np.testing.assert_array_equal(back.obsm[name], adata.obsm[name])
    proba = back.obsm[f"{key}_proba"]
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert model.cluster_names[proba.argmax(1)].tolist() == back.obs[key].astype(str).tolist()
    assert back.uns[key]["clusters"].tolist() == model.cluster_names.tolist()
    assert back.uns[key]["seed"] == model.seed_
    # and the file can be read by the model, with the same result
    np.testing.assert_array_equal(model.get_latent_representation(back), adata.obsm[f"X_{key}"])


# --------------------------------------------------------------------------------- merging


def assert_nested(levels):
    """Each cut is a partition into its number of clusters, and refines the next coarser one."""
    n = len(levels)
    assert levels.columns.tolist() == list(range(1, n + 1))
    for k in range(1, n + 1):
        assert sorted(levels[k].unique()) == list(range(k))
        if k < n:
            assert (levels.groupby(k + 1)[k].nunique() == 1).all()


@given(n=st.integers(1, 9), seed=seeds, ties=st.booleans())
@few
def test_every_tree_is_cut_into_partitions_each_coarser_than_the_next(n, seed, ties):
    rng = np.random.default_rng(seed)
    proba = rng.dirichlet(np.full(n, 0.3), size=25)
    loc, variance = rng.normal(size=(n, 3)), rng.gamma(2, size=(n, 3))
    overlap = np.exp(-((loc[:, None] - loc) ** 2).sum(-1))
    if ties:
        proba, overlap = np.full((25, n), 1 / n), np.where(np.eye(n), 1.0, 0.5)
        loc, variance = np.zeros((n, 3)), np.ones((n, 3))
    z_loc, z_var = rng.normal(size=(25, 3)), rng.gamma(2, size=(25, 3))
    for tree in (
        tree_by_overlap(overlap),
        tree_by_entropy(proba),
        tree_by_elbo(proba, z_loc, z_var, loc, variance),
    ):
        assert tree.shape == (n - 1, 4)
        assert (np.diff(tree[:, 2]) >= -1e-12).all()
        assert n == 1 or tree[-1, 3] == n
        assert_nested(levels_of(tree, [str(k) for k in range(n)]))


@given(n=st.integers(1, 8), method=st.sampled_from(["overlap", "entropy", "elbo"]))
@few
def test_merging_a_model_keeps_its_probabilities(to_merge, n, method):
    parameters = digest(to_merge.module.state_dict())
    fine = to_merge.predict(soft=True, components=True).to_numpy()
    tree = to_merge.merge_components(n, method=method)
    assert_nested(tree.levels)
    clusters = to_merge.component_clusters_
    assert sorted(set(clusters) - {-1}) == list(range(len(to_merge.cluster_names)))
    assert len(to_merge.cluster_names) <= n
    kept = np.stack(
        [fine[:, clusters == k].sum(1) for k in range(len(to_merge.cluster_names))], axis=1
    )
    found = to_merge.predict(soft=True).to_numpy()
    np.testing.assert_allclose(found, kept / kept.sum(1, keepdims=True), atol=1e-5)
    assert digest(to_merge.module.state_dict()) == parameters
    sizes = np.bincount(clusters[fine.argmax(1)])
    assert (np.diff(sizes) <= 0).all() and sizes.sum() == 60  # the largest cluster comes first
    dropped = pd.Series(to_merge.predict(components=True)).str.startswith("dropped")
    assert not dropped.any()  # only components without cells are
