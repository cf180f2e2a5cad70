"""Tests of model.query: queries mapped into a reference, and cells that fit nowhere."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from small import QUICK

from scgmvae import SCGMVAE
from scgmvae.data.registry import label_codes
from scgmvae.datasets import synthetic_counts

TYPES = ["component_0", "component_1", "component_2"]
SETUP = {
    "batch_key": "batch",
    "labels_key": "label",
    "categorical_covariate_keys": ["donor", "site"],
}


@pytest.fixture(scope="module")
def simulated():
    """800 cells × 60 genes in 4 batches, with a donor of their own in the last two."""
    adata = synthetic_counts(
        800, 60, n_components=3, n_batches=4, component_scale=3.0, batch_scale=0.6, seed=2
    )
    rng = np.random.default_rng(0)
    batch = adata.obs["batch"].astype(str)
    is_new = batch.isin(["batch_2", "batch_3"]).to_numpy()
    adata.obs["batch"] = batch
    adata.obs["donor"] = np.where(
        is_new, rng.choice(["d3", "d1"], 800), rng.choice(["d1", "d2"], 800)
    )
    adata.obs["site"] = rng.choice(["s1", "s2"], 800)
    adata.obs["label"] = adata.obs["component"].astype(str)
    adata.obs["is_new"] = is_new
    return adata


@pytest.fixture(scope="module")
def reference(simulated, make_model, train):
    """Model of the first two batches, all of whose cells have labels; only to be read."""
    model = make_model(simulated[~simulated.obs["is_new"]].copy(), SETUP)
    return train(model, max_epochs=15, pretrain_epochs=15)


@pytest.fixture(scope="module")
def new_cells(simulated):
    """Cells of the last two batches, without a label column; copy before use."""
    adata = simulated[simulated.obs["is_new"]].copy()
    del adata.obs["label"]
    return adata


def test_results_are_written_into_the_data_that_were_given(reference, new_cells, train, tmp_path):
    names = new_cells.var_names[::-1]
    given = new_cells[:, names].copy()
    model = SCGMVAE.load_query_data(given, reference)
    train(model, max_epochs=1)
    assert model.adata is not given
    assert given.var_names.equals(names)
    np.testing.assert_array_equal(given.obsm["X_scgmvae"], model.get_latent_representation())
    assert given.obs["scgmvae"].tolist() == model.adata.obs["scgmvae"].tolist()
    assert given.uns["scgmvae"]["seed"] == 0
    model.save(tmp_path / "model")
    again = new_cells[:, names].copy()
    SCGMVAE.load(tmp_path / "model", again).annotate(key_added="again")
    np.testing.assert_array_equal(again.obsm["X_again"], given.obsm["X_scgmvae"])


@pytest.fixture(scope="module")
def query(reference, new_cells, train):
    """The trained model of the new cells; only to be read."""
    model = SCGMVAE.load_query_data(new_cells.copy(), reference)
    return train(model, max_epochs=15, batch_size=64)


def state_of(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def accuracy(model, adata=None):
    cells = model.adata if adata is None else adata
    return (model.predict(adata) == cells.obs["component"].astype(str)).mean()


def snapshot(adata):
    adata = adata.copy()
    return adata.obs, adata.var, dict(adata.uns), set(adata.obsm), adata.X.toarray()


def assert_same(adata, before):
    obs, var, uns, obsm, x = before
    pd.testing.assert_frame_equal(adata.obs, obs)
    pd.testing.assert_frame_equal(adata.var, var)
    assert dict(adata.uns).keys() == uns.keys()
    assert set(adata.obsm) == obsm
    np.testing.assert_array_equal(adata.X.toarray(), x)


# --------------------------------------------------------------- the reference does not move


@pytest.mark.parametrize("which", ["z", "w"])
def test_the_embedding_of_the_reference_does_not_move_by_a_bit(reference, query, which):
    ask = {"which": which, "return_dist": True}
    for before, after in zip(
        reference.get_latent_representation(**ask),
        query.get_latent_representation(reference.adata, **ask),
        strict=True,
    ):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("rows", [[0], [17], [5, 3], list(range(50))], ids=str)
def test_nor_does_that_of_single_cells(reference, query, rows):
    np.testing.assert_array_equal(
        query.get_latent_representation(reference.adata, indices=rows),
        reference.get_latent_representation(indices=rows),
    )


def test_results_of_the_reference_cells_stay_as_they_were(reference, query):
    pd.testing.assert_frame_equal(
        query.predict(reference.adata, soft=True), reference.predict(soft=True)
    )
    np.testing.assert_array_equal(
        query.get_novelty(reference.adata), reference.adata.obs["scgmvae_novelty"]
    )
    assert query.component_names.tolist() == reference.component_names.tolist()


def test_training_changes_only_the_weights_of_new_categories(reference, new_cells, train):
    model = SCGMVAE.load_query_data(new_cells.copy(), reference)
    assert reference.module.n_categories == (2, 2, 2)
    assert model.module.n_categories == (4, 3, 2)
    of_reference, before = state_of(reference), state_of(model)
    train(model, max_epochs=2, batch_size=64)
    after = state_of(model)
    assert before.keys() == after.keys() == of_reference.keys()
    n_known = {"0": 2, "1": 2, "2": 2}
    changed = 0
    for name, value in after.items():
        layer, _, condition = name.rpartition(".offsets.")
        if not layer:
            assert torch.equal(value, of_reference[name]), name
            continue
        known = n_known[condition]
        assert torch.equal(value[:known], of_reference[name]), name
        if len(value) > known:
            # a new category starts as the mean of those that are known
            mean = of_reference[name].mean(0).expand(len(value) - known, -1)
            assert torch.equal(before[name][known:], mean), name
            changed += int(not torch.equal(value[known:], before[name][known:]))
    # of both conditions that have new categories, in encoder and decoder at the least
    assert changed >= 4
    assert all(
        torch.equal(value, of_reference[name]) for name, value in state_of(reference).items()
    )


def test_weights_of_categories_that_the_query_lacks_are_left_alone(reference, query):
    # the query has no cell of donor d2
    assert "d2" not in set(query.adata.obs["donor"])
    weights = reference.module.encoder.trunk.linears[0].offsets["1"]
    extended = query.module.encoder.trunk.linears[0].offsets["1"]
    assert torch.equal(extended[:2], weights)
    assert not torch.equal(extended[2], weights.mean(0))


# -------------------------------------------------------------------------- what it is for


def test_new_batches_are_classified_before_and_after_training(reference, new_cells, query):
    untrained = SCGMVAE.load_query_data(new_cells.copy(), reference)
    assert accuracy(untrained) > 0.8
    assert accuracy(query) > 0.95
    assert accuracy(query) >= accuracy(untrained)
    # and the data fit better for the weights that were trained
    assert float(query.get_elbo()) > float(untrained.get_elbo())


def test_an_untrained_query_of_known_categories_is_the_reference(reference):
    some = reference.adata[40:90].copy()
    model = SCGMVAE.load_query_data(some, reference)
    assert model.module.n_categories == reference.module.n_categories
    np.testing.assert_array_equal(
        model.get_latent_representation(),
        reference.get_latent_representation(indices=range(40, 90)),
    )
    np.testing.assert_array_equal(model.predict(), reference.predict()[40:90])


def test_a_copy_of_the_reference_data_can_be_a_query(reference):
    copy = reference.adata.copy()
    identity = reference.adata.uns["_scvi_uuid"]
    model = SCGMVAE.load_query_data(copy, reference)
    np.testing.assert_array_equal(
        model.get_latent_representation(), reference.get_latent_representation()
    )
    assert reference.adata.uns["_scvi_uuid"] == identity
    assert copy.uns["_scvi_uuid"] != identity
    np.testing.assert_array_equal(model.predict(), reference.predict())


def test_a_reference_of_one_batch_takes_further_ones(simulated, make_model, train):
    one = simulated[simulated.obs["batch"] == "batch_0"].copy()
    model = make_model(one, {"batch_key": "batch", "labels_key": "label"})
    train(model, max_epochs=15, pretrain_epochs=15)
    assert model.module.n_categories == (1,)
    z = model.get_latent_representation()
    new = simulated[simulated.obs["batch"].isin(["batch_1", "batch_2"])].copy()
    del new.obs["label"]
    query = SCGMVAE.load_query_data(new, model)
    assert query.module.n_categories == (3,)
    # nothing was learned of batches, so that at first a new one is like the known one
    as_known = new.copy()
    as_known.obs["batch"] = "batch_0"
    np.testing.assert_array_equal(
        query.get_latent_representation(), model.get_latent_representation(as_known)
    )
    elbo = float(query.get_elbo())
    train(query, max_epochs=10, batch_size=64)
    np.testing.assert_array_equal(query.get_latent_representation(one), z)
    assert float(query.get_elbo()) > elbo
    assert accuracy(query) > 0.95


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_the_reference_can_be_a_folder(reference, new_cells, tmp_path, kind):
    reference.save(str(tmp_path / "reference"))
    model = SCGMVAE.load_query_data(new_cells.copy(), kind(tmp_path / "reference"))
    expected = SCGMVAE.load_query_data(new_cells.copy(), reference)
    np.testing.assert_array_equal(
        model.get_latent_representation(), expected.get_latent_representation()
    )
    np.testing.assert_array_equal(model.get_novelty(), expected.get_novelty())


@pytest.mark.parametrize("condition_prior", ["standard", "learned"])
def test_a_query_of_a_reference_of_one_batch_can_be_saved(
    simulated, make_model, train, tmp_path, condition_prior
):
    one = simulated[simulated.obs["batch"] == "batch_0"].copy()
    model = make_model(one, {"batch_key": "batch"}, condition_prior=condition_prior)
    train(model, max_epochs=1, pretrain_epochs=1)
    new = simulated[simulated.obs["batch"] == "batch_1"].copy()
    query = train(SCGMVAE.load_query_data(new, model), max_epochs=1, batch_size=64)
    query.save(str(tmp_path / "query"))
    loaded = SCGMVAE.load(str(tmp_path / "query"), new.copy())
    for which in ("z", "w"):
        np.testing.assert_array_equal(
            loaded.get_latent_representation(which=which),
            query.get_latent_representation(which=which),
        )


def test_a_saved_query_stays_frozen(reference, query, train, tmp_path):
    query.save(str(tmp_path / "query"))
    loaded = SCGMVAE.load(str(tmp_path / "query"), query.adata.copy())
    pd.testing.assert_frame_equal(loaded.predict(soft=True), query.predict(soft=True))
    np.testing.assert_array_equal(loaded.get_novelty(), query.get_novelty())
    for (name, one), (_, other) in zip(
        loaded.module.named_parameters(), query.module.named_parameters(), strict=True
    ):
        assert (
            one.requires_grad == other.requires_grad == name.endswith((".offsets.0", ".offsets.1"))
        )
    before = state_of(loaded)
    train(loaded, max_epochs=2, batch_size=64)
    for name, value in state_of(loaded).items():
        known = 2 if ".offsets." in name else None
        value, of_before = (one[:known] if one.dim() else one for one in (value, before[name]))
        assert torch.equal(value, of_before), name
    np.testing.assert_array_equal(
        loaded.get_latent_representation(reference.adata.copy()),
        reference.get_latent_representation(),
    )


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param("new type", id="not_known_to_the_reference"),
        pytest.param("unknown", id="unlabelled"),
        pytest.param(None, id="missing_values"),
    ],
)
def test_cells_without_a_known_label_count_as_unlabelled(reference, new_cells, labels, train):
    adata, without = new_cells[:100].copy(), new_cells[:100].copy()
    adata.obs["label"] = labels
    model, expected = (SCGMVAE.load_query_data(one, reference) for one in (adata, without))
    assert (label_codes(model.adata_manager) == -1).all()
    pd.testing.assert_frame_equal(model.predict(soft=True), expected.predict(soft=True))
    assert model.predict(soft=True).columns.tolist() == TYPES
    # the user's column is as it was, and none was made up
    assert (
        adata.obs["label"].isna().all() if labels is None else (adata.obs["label"] == labels).all()
    )
    assert "label" not in without.obs


def test_labels_of_the_query_are_learned_from(reference, new_cells):
    adata = new_cells.copy()
    adata.obs["label"] = "unknown"
    adata.obs.iloc[:7, adata.obs.columns.get_loc("label")] = "component_1"
    model = SCGMVAE.load_query_data(adata, reference)
    assert label_codes(model.adata_manager).tolist() == [1] * 7 + [-1] * (adata.n_obs - 7)


def test_a_query_has_size_factors_of_its_own_and_the_seed_of_its_reference(
    counts, make_model, train
):
    adata = counts.copy()
    adata.obs["size"] = np.linspace(0.5, 2, adata.n_obs)
    setup = {"batch_key": "batch", "size_factor_key": "size"}
    reference = train(make_model(adata, setup), **QUICK, seed=3)
    new = adata[:50].copy()
    new.obs["batch"], new.obs["size"] = "new", np.linspace(3, 9, 50)
    query = SCGMVAE.load_query_data(new, reference)
    scales = [
        model.get_reconstruction().sum(1) / model.adata.obs["size"] for model in (reference, query)
    ]
    np.testing.assert_allclose(scales[1], scales[0].iloc[0], rtol=1e-4)
    query.annotate()
    assert query.adata.uns["scgmvae"]["seed"] == 3


def test_a_query_may_lack_some_genes(reference, new_cells, train):
    kept = np.setdiff1d(np.arange(60), np.random.default_rng(0).choice(60, 6, replace=False))
    new = new_cells[:, kept].copy()
    before = snapshot(new)
    with pytest.warns(UserWarning, match=r"lacks 6 \(10\.0%\)"):
        model = SCGMVAE.load_query_data(new, reference)
    assert_same(new, before)
    assert model.adata is not new
    assert model.adata.var_names.equals(reference.adata.var_names)
    train(model, max_epochs=10, batch_size=64)
    assert accuracy(model) > 0.9
    np.testing.assert_array_equal(
        model.get_latent_representation(reference.adata), reference.get_latent_representation()
    )


@pytest.mark.parametrize("order", [1, -1], ids=["in_order", "reversed"])
def test_data_that_are_prepared_elsewhere_are_a_copy(reference, new_cells, order):
    adata = new_cells[:50, ::order].copy()
    before = snapshot(adata)
    prepared = SCGMVAE.prepare_query_anndata(adata, reference, inplace=False)
    assert prepared is not adata
    assert prepared.var_names.equals(reference.adata.var_names)
    np.testing.assert_array_equal(prepared.X.toarray(), adata.X.toarray()[:, ::order])
    prepared.obs["batch"] = "changed"
    assert_same(adata, before)


# ---------------------------------------------------------------------------------- errors


def without_donor(adata):
    del adata.obs["donor"]
    return adata


def with_negative(adata):
    adata.X = adata.X.copy()
    adata.X.data[0] = -1
    return adata


def with_missing_batch(adata):
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(adata.n_obs) > 0)
    return adata


BAD_QUERIES = [
    pytest.param(without_donor, KeyError, "'donor'", id="column"),
    pytest.param(with_missing_batch, ValueError, "'batch'.*1 have none", id="missing_value"),
    pytest.param(with_negative, ValueError, "negative", id="negative"),
    pytest.param(
        lambda adata: adata[:, 31:].copy(),
        ValueError,
        r"at least 50%.*lacks 31 \(51\.7%\): 'gene_0'",
        id="genes",
    ),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD_QUERIES)
def test_data_that_do_not_suit_are_refused_and_left_as_they_were(
    reference, new_cells, change, error, words
):
    adata = change(new_cells.copy())
    before = snapshot(adata)
    with pytest.raises(error, match=words):
        SCGMVAE.load_query_data(adata, reference)
    assert_same(adata, before)


def test_a_view_is_refused(reference, new_cells):
    with pytest.raises(ValueError, match="view of another"):
        SCGMVAE.load_query_data(new_cells[:10], reference)


def test_an_untrained_reference_is_refused(simulated, new_cells, make_model):
    model = make_model(simulated[:100].copy(), SETUP)
    adata = new_cells.copy()
    before = snapshot(adata)
    with pytest.raises(RuntimeError, match="train"):
        SCGMVAE.load_query_data(adata, model)
    assert_same(adata, before)


# ------------------------------------------------------------------ cells that fit nowhere


@pytest.fixture(scope="module")
def with_novel(make_model, train):
    """Four types, and a model trained without the last; novelty and confidence of them all."""
    adata = synthetic_counts(500, 200, n_components=4, component_scale=3.0, seed=3)
    is_novel = (adata.obs["component"] == "component_3").to_numpy()
    model = make_model(adata[~is_novel].copy())
    train(model, max_epochs=15, pretrain_epochs=15)
    model.annotate(adata)
    return adata, is_novel, model


def test_an_unknown_type_is_novel_and_gets_low_confidence(with_novel):
    adata, is_novel, _ = with_novel
    novelty, confidence = adata.obs["scgmvae_novelty"], adata.obs["scgmvae_confidence"]
    assert roc_auc_score(is_novel, novelty) > 0.9
    assert roc_auc_score(is_novel, -confidence) > 0.9
    assert confidence[is_novel].mean() < confidence[~is_novel].mean() - 0.2
    assert novelty.between(0, 1).all()


def test_novelty_of_the_training_cells_is_uniform(with_novel):
    _, _, model = with_novel
    novelty = model.get_novelty()
    np.testing.assert_allclose(np.sort(novelty), np.linspace(0, 1, len(novelty)), atol=2e-3)
    np.testing.assert_allclose(novelty, model.adata.obs["scgmvae_novelty"], atol=1e-6)


def test_novelty_is_the_share_of_training_cells_that_are_nearer(with_novel):
    adata, _, model = with_novel
    of_training = distances(model, model.adata)
    for cells in (model.adata, adata):
        expected = (of_training < distances(model, cells)[:, None]).mean(1)
        found = model._novelty(model._posteriors(cells))
        np.testing.assert_allclose(found, expected, atol=5e-3)
    some = model.get_novelty(indices=[4, 2], batch_size=1)
    np.testing.assert_allclose(some, model.get_novelty()[[4, 2]], atol=1e-4)


def test_misfit_adds_to_the_novelty_of_new_cells(with_novel):
    adata, _, model = with_novel
    by_distance = model._novelty(model._posteriors(adata))
    novelty = model.get_novelty(adata)
    assert (novelty >= by_distance - 1e-12).all()
    assert (novelty > by_distance).any()


def distances(model, adata):
    """Mahalanobis distance of z to the training cells of the nearest component, cell by cell."""
    z = model.get_latent_representation(adata).astype(float)
    means, variances = model.get_latent_representation(return_dist=True)
    component = model.predict(model.adata, components=True)
    groups = [component == name for name in np.unique(component)]
    scatters = [
        len(means[own]) * np.cov(means[own].T, bias=True) + np.diag(variances[own].sum(0))
        for own in groups
    ]
    pooled = sum(scatters) / len(means)
    nearest = np.full(len(z), np.inf)
    for own, scatter in zip(groups, scatters, strict=True):
        n = own.sum()
        inverse = np.linalg.inv((scatter + 10 * pooled) / (n + 10) * (1 + 1 / n))
        from_mean = z - means[own].mean(0)
        squares = np.einsum("ij,jk,ik->i", from_mean, inverse, from_mean)
        nearest = np.minimum(nearest, np.sqrt(squares))
    return nearest


def measured_by(model, z, variance, component):
    """A copy of the model whose novelty is measured by other training cells."""
    changed = copy.copy(model)
    log_proba = np.log(np.eye(component.max() + 1)[component] + 1e-6)
    changed._remember_training_cells({"z_loc": z, "z_var": variance, "log_proba": log_proba})
    return lambda new: changed._novelty({"z_loc": new})


def test_a_latent_that_tells_nothing_makes_no_cell_novel(with_novel):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(600, 4)) * [1, 1, 1, 0.003]  # the last one has the prior's variance
    variance = np.broadcast_to([0.01, 0.01, 0.01, 1.0], z.shape)
    novelty = measured_by(with_novel[2], z, variance, np.zeros(600, int))
    moved = rng.normal(size=(600, 4)) * [1, 1, 1, 0.003] + [0, 0, 0, 0.1]
    assert abs(np.median(novelty(moved)) - 0.5) < 0.1
    assert np.median(novelty(moved + [8, 0, 0, 0])) > 0.99


@pytest.mark.parametrize("n_rare", [1, 3, 20])
def test_new_cells_of_a_rare_type_are_no_outliers(with_novel, n_rare):
    rng = np.random.default_rng(1)
    component = np.repeat([0, 1], [800, n_rare])
    centers = np.array([[0.0] * 5, [9.0] * 5])
    z = centers[component] + rng.normal(size=(len(component), 5))
    novelty = measured_by(with_novel[2], z, np.full(z.shape, 0.05), component)
    new = centers[1] + rng.normal(size=(500, 5))
    assert (novelty(new) > 0.99).mean() < (0.3 if n_rare == 1 else 0.12)
    assert (novelty(new - 4.5) > 0.99).mean() > 0.9


def test_confidence_falls_for_the_outermost_hundredth_alone(with_novel):
    adata, _, model = with_novel
    proba = adata.obsm["scgmvae_proba"].max(1)
    # how sure it is that the cluster is one
    proba = proba * model._evidence()[adata.obsm["scgmvae_proba"].argmax(1)]
    novelty = adata.obs["scgmvae_novelty"].to_numpy()
    factor = np.minimum(1, (1 - novelty) / 0.01)
    np.testing.assert_allclose(adata.obs["scgmvae_confidence"], proba * factor, rtol=1e-5)
    assert (novelty < 0.99).sum() > 300
    assert (adata.obs["scgmvae_confidence"].to_numpy() < proba)[novelty > 0.991].all()


def test_a_saved_model_keeps_its_measure_of_novelty(with_novel, tmp_path):
    adata, _, model = with_novel
    model.save(str(tmp_path / "model"))
    loaded = SCGMVAE.load(str(tmp_path / "model"), adata.copy())
    np.testing.assert_array_equal(loaded.get_novelty(), model.get_novelty(adata))


def test_a_model_without_components_knows_no_novelty(trained_normal):
    with pytest.raises(RuntimeError, match="prior is 'normal'"):
        trained_normal.get_novelty()
    assert "scgmvae_novelty" not in trained_normal.adata.obs


def test_a_query_without_anything_new_is_read_but_not_trained(simulated, make_model, train):
    model = make_model(simulated.copy(), {"batch_key": "batch"})
    train(model, max_epochs=1, pretrain_epochs=1)
    query = SCGMVAE.load_query_data(simulated[:50].copy(), model)
    np.testing.assert_array_equal(query.predict(), model.predict()[:50])
    with pytest.raises(ValueError, match="none that the reference does not know"):
        query.train(1)


def test_a_query_of_a_query_can_be_saved(simulated, make_model, train, tmp_path):
    batches = [simulated[simulated.obs["batch"] == f"batch_{i}"].copy() for i in range(3)]
    model = make_model(batches[0], {"batch_key": "batch"}, condition_prior="learned")
    train(model, max_epochs=1, pretrain_epochs=1)
    before = model.get_latent_representation()
    for new in batches[1:]:
        model = train(SCGMVAE.load_query_data(new, model), max_epochs=1, batch_size=64)
    model.save(str(tmp_path / "query"))
    loaded = SCGMVAE.load(str(tmp_path / "query"), batches[2].copy())
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    np.testing.assert_array_equal(loaded.get_latent_representation(batches[0].copy()), before)


def test_a_fixed_scale_of_the_gaussian_likelihood_stays_in_a_query(simulated, make_model, train):
    settings = {"likelihood": "gaussian", "gaussian_scale": 0.5, "dispersion": "gene-batch"}
    known = simulated[simulated.obs["batch"] == "batch_0"].copy()
    model = train(make_model(known, {"batch_key": "batch"}, **settings), max_epochs=1)
    new = simulated[simulated.obs["batch"] == "batch_1"].copy()
    query = train(SCGMVAE.load_query_data(new, model), max_epochs=1, batch_size=64)
    rows = query.module.raw_dispersion.detach().numpy()
    assert rows.shape[0] == 2
    np.testing.assert_array_equal(rows[1], rows[0])


def test_components_without_cells_are_near_to_nothing(make_model, train):
    adata = synthetic_counts(300, 60, n_components=3, component_scale=3.0, seed=1)
    model = train(make_model(adata, n_components=8), max_epochs=5, pretrain_epochs=5)
    used = model.component_table()["n_cells"].to_numpy() > 0
    assert not used.all()
    assert len(model.occupied_means_) == used.sum()
    found = model._distance(model._posteriors())
    np.testing.assert_allclose(found, distances(model, adata), rtol=1e-5)


@pytest.mark.parametrize("arguments", [("model", "data"), ("data", "untrained")])
def test_what_cannot_be_mapped_is_refused(simulated, make_model, reference, arguments):
    things = {
        "model": reference,
        "data": simulated[:20].copy(),
        "untrained": make_model(simulated[:100].copy(), {"batch_key": "batch"}),
    }
    adata, model = (things[name] for name in arguments)
    with pytest.raises((ValueError, RuntimeError), match="reference comes second|train"):
        SCGMVAE.load_query_data(adata, model)
