"""Tests of model.generation: cells under other conditions, and new ones."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from small import QUICK

from scgmvae import SCGMVAE
from scgmvae.datasets import blobs, synthetic_counts
from scgmvae.distributions.likelihoods import LOG_DISPERSION_BOUND
from scgmvae.nn.bounds import bounded_exp
from scgmvae.nn.layers import Conditions

# A Monte Carlo mean lies within this many standard errors of what it estimates.
N_ERRORS = 5

TYPES = [f"component_{k}" for k in range(5)]
CATEGORICAL = {"batch": ["batch_0", "batch_1"], "condition": ["condition_0", "condition_1"]}
SETUP = {
    "batch_key": "batch",
    "labels_key": "label",
    "categorical_covariate_keys": ["condition"],
    "continuous_covariate_keys": ["age"],
}


@pytest.fixture(scope="module")
def simulated():
    """900 cells × 60 genes: 5 types under 2 conditions in 2 batches, a fifth of them labelled."""
    adata = synthetic_counts(
        900,
        60,
        n_components=5,
        n_batches=2,
        n_conditions=2,
        component_scale=3.0,
        condition_scale=1.5,
        program_fraction=0.2,
        inverse_dispersion=5.0,
        seed=1,
    )
    rng = np.random.default_rng(0)
    adata.obs["age"] = rng.normal(size=900)
    has_label = rng.random(900) < 0.2
    adata.obs["label"] = np.where(has_label, adata.obs["component"].astype(str), "unknown")
    return adata


@pytest.fixture(scope="module")
def is_unseen(simulated):
    """Cells of the type and condition that the model is not trained on."""
    obs = simulated.obs
    return ((obs["component"] == "component_4") & (obs["condition"] == "condition_1")).to_numpy()


@pytest.fixture(scope="module")
def model(simulated, is_unseen, make_model, train):
    """Model of all but the unseen cells, with a sixth component that no cell needs."""
    model = make_model(simulated[~is_unseen].copy(), SETUP, n_components=6)
    return train(model, max_epochs=30, pretrain_epochs=15)


def minibatch(model, adata, rows):
    """The rows of the data as one minibatch."""
    return next(iter(model._make_data_loader(adata, indices=rows, batch_size=len(rows))))


def conditions_of(obs):
    """c of the cells, from the columns themselves."""
    one_hots = tuple(
        torch.as_tensor(pd.get_dummies(pd.Categorical(obs[column], names)).to_numpy(np.float32))
        for column, names in CATEGORICAL.items()
    )
    age = torch.as_tensor(obs["age"].to_numpy(float)[:, None], dtype=torch.float32)
    return Conditions(one_hots, age)


def decoded(model, z, c, totals):
    """Expected counts at z and c, with the decoder's outputs made to sum to the totals."""
    with torch.no_grad():
        shares = model.module.decoder(z, c)[0].softmax(-1)
    return shares.numpy() * totals


def posterior_draws(model, adata, rows, seed, n_samples=1):
    """Outputs of inference at the draws of a seed."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        inputs = model.module._get_inference_input(minibatch(model, adata, rows))
        draws = [model.module.inference(**inputs) for _ in range(n_samples)]
    if n_samples == 1:
        return draws[0]
    return {name: torch.stack([draw[name] for draw in draws]) for name in ("z", "w")}


def totals_of(adata):
    return np.asarray(adata.X.sum(axis=1))


def log_normalised(x):
    x = x.toarray() if sparse.issparse(x) else np.asarray(x)
    return np.log1p(1e3 * x / x.sum(axis=1, keepdims=True))


# -------------------------------------------------------------------------- counterfactuals

CHANGES = [
    pytest.param({"batch": "batch_1"}, id="batch"),
    pytest.param({"condition": "condition_1"}, id="categorical"),
    pytest.param({"age": 1.5}, id="continuous"),
    pytest.param({"age": -1, "batch": "batch_0", "condition": "condition_0"}, id="all_at_once"),
]
ROWS = np.array([5, 2, 300, 41, 77])


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("n_samples", [1, 4])
def test_via_z_decodes_the_cells_own_z_under_the_new_conditions(model, changes, n_samples):
    adata = model.adata
    found = model.predict_counterfactual(
        conditions=changes, indices=ROWS, via="z", n_samples=n_samples, seed=3
    )
    z = posterior_draws(model, adata, ROWS, seed=3, n_samples=n_samples)["z"]
    c = conditions_of(adata.obs.iloc[ROWS].assign(**changes))
    expected = decoded(model, z, c, totals_of(adata[ROWS]))
    if n_samples > 1:
        expected = expected.mean(0)
    np.testing.assert_allclose(found.layers["rate"], expected, rtol=1e-4, atol=1e-6)
    assert found.obs_names.tolist() == adata.obs_names[ROWS].tolist()
    assert found.var_names.equals(adata.var_names)


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("n_samples", [1, 4])
def test_via_w_places_the_component_under_the_new_conditions(model, changes, n_samples):
    adata = model.adata
    found = model.predict_counterfactual(
        conditions=changes, indices=ROWS, via="w", n_samples=n_samples, seed=3
    )
    w = posterior_draws(model, adata, ROWS, seed=3, n_samples=n_samples)["w"]
    c = conditions_of(adata.obs.iloc[ROWS].assign(**changes))
    component = torch.tensor(adata.obs["component"].iloc[ROWS].cat.codes.tolist())
    with torch.no_grad():
        loc = model.module.component_prior(w, c).loc  # (..., n, K, L)
    z = loc[..., torch.arange(len(ROWS)), component, :]
    expected = decoded(model, z, c, totals_of(adata[ROWS]))
    if n_samples > 1:
        expected = expected.mean(0)
    np.testing.assert_allclose(found.layers["rate"], expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def with_learned_prior(simulated, make_model, train):
    """A model whose p(w|c) and p(z|w,y,c) depend on the conditions; only to be read."""
    model = make_model(simulated.copy(), SETUP, n_components=6, condition_prior="learned")
    return train(model, **QUICK)


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("n_samples", [1, 4])
def test_via_w_a_learned_prior_and_the_decoder_take_the_new_conditions(
    with_learned_prior, changes, n_samples
):
    model, obs = with_learned_prior, with_learned_prior.adata.obs.iloc[ROWS]
    found = model.predict_counterfactual(
        conditions=changes, indices=ROWS, via="w", n_samples=n_samples, seed=3
    ).layers["rate"]
    # w and the component are those of the cells as they are
    w = posterior_draws(model, model.adata, ROWS, seed=3, n_samples=n_samples)["w"]
    former, new = conditions_of(obs), conditions_of(obs.assign(**changes))
    z_mean = torch.as_tensor(model.get_latent_representation(indices=ROWS))
    with torch.no_grad():
        predicted = model.component_names[model.module.classifier(z_mean, former).argmax(-1)]
    name = obs["label"].where(obs["label"] != "unknown", predicted)
    component = torch.tensor([model.component_names.tolist().index(one) for one in name])

    def expected(of_prior, of_decoder):
        with torch.no_grad():
            loc = model.module.component_prior(w, of_prior).loc  # (..., n, K, L)
        z = loc[..., torch.arange(len(ROWS)), component, :]
        rates = decoded(model, z, of_decoder, totals_of(model.adata[ROWS]))
        return rates.mean(0) if n_samples > 1 else rates

    np.testing.assert_allclose(found, expected(new, new), rtol=1e-4, atol=1e-6)
    for other in (expected(former, new), expected(new, former)):
        assert np.abs(np.log(found / other)).max() > 1e-3


def test_under_its_own_condition_a_cell_keeps_its_expected_counts(model):
    adata = model.adata
    own = np.flatnonzero(adata.obs["condition"] == "condition_1")[:40]
    found = model.predict_counterfactual(
        conditions={"condition": "condition_1"}, indices=own, via="z", seed=11
    )
    tensors = minibatch(model, adata, own)
    outputs = posterior_draws(model, adata, own, seed=11)
    with torch.no_grad():
        inputs = model.module._get_generative_input(tensors, outputs)
        mean = model.module.generative(**inputs)["px"].mean
    np.testing.assert_array_equal(found.layers["rate"], mean.numpy())


def test_another_condition_changes_what_is_expected_of_every_cell(model):
    rates = [
        model.predict_counterfactual(conditions={"condition": name}, via="z").layers["rate"]
        for name in CATEGORICAL["condition"]
    ]
    change = np.abs(np.log(rates[1] / rates[0])).max(axis=1)
    assert change.min() > 0.3  # fold changes of 4.5 were simulated


def test_counts_are_drawn_at_the_cells_own_library_sizes(model):
    found = model.predict_counterfactual(conditions={"batch": "batch_1"}, via="z", batch_size=100)
    assert sparse.issparse(found.X) and found.X.format == "csr"
    x = found.X.toarray()
    np.testing.assert_array_equal(x, np.round(x))
    assert x.min() == 0
    totals = totals_of(model.adata)[:, 0]
    np.testing.assert_allclose(found.layers["rate"].sum(1), totals, rtol=1e-4)
    ratio = x.sum(1) / totals
    assert abs(ratio.mean() - 1) < N_ERRORS * ratio.std() / np.sqrt(len(ratio))
    # and each gene has the mean that the rates say
    error = x.std(0) / np.sqrt(len(x))
    assert (np.abs(x.mean(0) - found.layers["rate"].mean(0)) < N_ERRORS * error + 0.05).all()


def test_obs_tell_the_new_conditions_and_the_former(model):
    adata = model.adata
    before = adata.copy()
    changes = {"age": 2, "batch": "batch_1", "condition": "condition_1"}
    found = model.predict_counterfactual(conditions=changes)
    assert list(found.obs) == [
        *(name for name in before.obs if not name.startswith("_scvi")),
        *(f"{name}_from" for name in changes),
    ]
    assert (found.obs["age"] == 2).all()
    for name, categories in CATEGORICAL.items():
        assert (found.obs[name] == changes[name]).all()
        assert found.obs[name].cat.categories.tolist() == categories
    for name in changes:
        pd.testing.assert_series_equal(
            found.obs[f"{name}_from"], before.obs[name], check_names=False
        )
    kept = ["component", "label", "library_size", "scgmvae"]
    pd.testing.assert_frame_equal(found.obs[kept], before.obs[kept])
    pd.testing.assert_frame_equal(found.var, before.var)
    # the data that were asked about are as they were
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    assert set(adata.layers) == set(before.layers)


def test_columns_that_are_not_named_keep_each_cells_value(model):
    found = model.predict_counterfactual(conditions={"age": 0.0})
    for name in CATEGORICAL:
        pd.testing.assert_series_equal(found.obs[name], model.adata.obs[name])
    assert "batch_from" not in found.obs


def test_new_data_have_counterfactuals_without_a_label_column(model, simulated, is_unseen):
    new = simulated[is_unseen].copy()
    del new.obs["label"]
    names = set(new.obs)
    found = model.predict_counterfactual(new, {"condition": "condition_0"}, via="w")
    assert (found.obs["condition"] == "condition_0").all()
    assert (found.obs["condition_from"] == "condition_1").all()
    assert {name for name in new.obs if not name.startswith("_scvi")} == names
    np.testing.assert_allclose(found.layers["rate"].sum(1), totals_of(new)[:, 0], rtol=1e-4)


def test_via_w_takes_a_known_label_and_predicts_the_others(model):
    other = {"component_0": "component_1", "component_1": "component_2"}  # wrong on purpose
    rows = np.flatnonzero(model.adata.obs["component"].isin(list(other)))[:30]
    truth = model.adata.obs["component"].iloc[rows].astype(str).to_numpy()
    named = np.array([other[name] for name in truth])
    rates = {}
    for label in ("unknown", *np.unique(named), "wrong"):
        new = model.adata[rows].copy()
        new.obs["label"] = named if label == "wrong" else label
        found = model.predict_counterfactual(new, {"condition": "condition_1"}, via="w", seed=2)
        rates[label] = found.layers["rate"]
    for i, (name, wrong) in enumerate(zip(truth, named, strict=True)):
        np.testing.assert_allclose(rates["wrong"][i], rates[wrong][i], rtol=1e-5)
        if name in rates:
            np.testing.assert_allclose(rates["unknown"][i], rates[name][i], rtol=1e-5)
        assert np.abs(np.log(rates["wrong"][i] / rates["unknown"][i])).max() > 1


@pytest.mark.parametrize("via", ["x", "z", "w"])
def test_a_type_never_seen_under_a_condition_shifts_as_the_others_do(
    model, simulated, is_unseen, via
):
    assert is_unseen.sum() > 50
    of_type = np.flatnonzero(model.adata.obs["component"] == "component_4")
    found = model.predict_counterfactual(
        conditions={"condition": "condition_1"}, indices=of_type, via=via
    )
    truth = log_normalised(simulated[is_unseen].X).mean(0)
    no_change = log_normalised(model.adata[of_type].X).mean(0)
    predicted = log_normalised(found.X).mean(0)
    # squared distance as a share of what no change leaves; measured: 0.06 via x, 0.25 via z,
    # 0.28 via w
    left = ((predicted - truth) ** 2).sum() / ((no_change - truth) ** 2).sum()
    assert left < 0.6
    assert np.corrcoef(predicted - no_change, truth - no_change)[0, 1] > 0.7


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(
            lambda model, seed: model.predict_counterfactual(
                conditions={"condition": "condition_1"}, via="x", seed=seed
            ),
            id="via_x",
        ),
        pytest.param(
            lambda model, seed: model.predict_counterfactual(
                conditions={"condition": "condition_1"}, via="z", seed=seed
            ),
            id="via_z",
        ),
        pytest.param(
            lambda model, seed: model.predict_counterfactual(
                conditions={"condition": "condition_1"}, via="w", seed=seed
            ),
            id="via_w",
        ),
        pytest.param(lambda model, seed: model.sample(200, seed=seed), id="sample"),
    ],
)
def test_draws_follow_from_the_seed_and_leave_global_states_alone(model, ask):
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = ask(model, 5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    torch.rand(3)
    again, other = ask(model, 5), ask(model, 6)
    np.testing.assert_array_equal(first.X.toarray(), again.X.toarray())
    np.testing.assert_array_equal(first.layers["rate"], again.layers["rate"])
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert not np.array_equal(first.X.toarray(), other.X.toarray())
    assert not np.array_equal(first.layers["rate"], other.layers["rate"])


def test_values_that_are_no_counts_come_dense(make_model, train):
    adata = blobs(40, n_classes=3, n_conditions=2)
    setup = {"categorical_covariate_keys": ["condition"]}
    model = make_model(adata, setup, likelihood="gaussian", gaussian_scale=0.5)
    train(model, max_epochs=5, pretrain_epochs=10)
    found = model.predict_counterfactual(conditions={"condition": "condition_1"})
    generated = model.sample(600)
    for one in (found, generated):
        assert isinstance(one.X, np.ndarray)
        # the noise of the likelihood around its mean
        assert (one.X - one.layers["rate"]).std() == pytest.approx(0.5, rel=0.05)
    assert generated.shape == (600, 16)


# ------------------------------------------------------------------- counts of cells, changed


def expected_via_x(model, rows, changes, z, z_nearest):
    """Expected counts of cells, from their draw of z and the place where the effect is read."""
    adata = model.adata
    x, obs = adata.X[rows].toarray(), adata.obs.iloc[rows]
    own, new = conditions_of(obs), conditions_of(obs.assign(**changes))
    before = decoded(model, z, own, totals_of(adata[rows]))
    here, there = (decoded(model, z_nearest, c, totals_of(adata[rows])) for c in (own, new))
    added = totals_of(adata[rows]) / 1e4
    after = ((before + added) * (there + added) / (here + added) - added).clip(min=0)
    after *= totals_of(adata[rows]) / after.sum(1, keepdims=True)
    raw_dispersion = model.module._dispersion_of(own, None).detach()
    theta = bounded_exp(raw_dispersion, LOG_DISPERSION_BOUND).numpy()
    rises = np.maximum(after - before, 0)
    return x * np.minimum(after / before, 1) + rises * (theta + x) / (theta + before)


@pytest.mark.parametrize("changes", CHANGES)
def test_via_x_changes_counts_by_the_effect_at_the_nearest_measured_cells(model, changes):
    found = model.predict_counterfactual(conditions=changes, indices=ROWS, via="x", seed=3)
    means = model.get_latent_representation()
    names = {name: value for name, value in changes.items() if name != "age"}
    measured = means[(model.adata.obs[list(names)] == list(names.values())).all(axis=1)]
    nearest = np.linalg.norm(means[ROWS][:, None] - measured, axis=2).argsort(1)[:, :15]
    moved = torch.as_tensor(measured[nearest].mean(1) - means[ROWS])
    z = posterior_draws(model, model.adata, ROWS, seed=3)["z"]
    expected = expected_via_x(model, ROWS, changes, z, z + moved)
    np.testing.assert_allclose(found.layers["rate"], expected, rtol=2e-3, atol=1e-3)


def test_where_no_cell_was_measured_via_x_reads_the_effect_at_the_cells_own_z(
    simulated, make_model, train
):
    obs = simulated.obs
    never = (obs["batch"] == "batch_1") & (obs["condition"] == "condition_1")
    model = train(make_model(simulated[~never].copy(), SETUP, n_components=6), **QUICK)
    changes = {"batch": "batch_1", "condition": "condition_1"}
    found = model.predict_counterfactual(conditions=changes, indices=ROWS, seed=3)
    z = posterior_draws(model, model.adata, ROWS, seed=3)["z"]
    expected = expected_via_x(model, ROWS, changes, z, z)
    np.testing.assert_allclose(found.layers["rate"], expected, rtol=2e-3, atol=1e-3)


def test_under_its_own_condition_a_cell_keeps_its_counts(model):
    own = np.flatnonzero(model.adata.obs["condition"] == "condition_1")
    found = model.predict_counterfactual(
        conditions={"condition": "condition_1"}, indices=own, n_samples=3
    )
    counts = model.adata.X[own].toarray()
    np.testing.assert_array_equal(found.X.toarray(), counts)
    np.testing.assert_array_equal(found.layers["rate"], counts)
    assert not found.layers["rate_sd"].any()


def test_via_x_counts_have_the_mean_that_the_rates_say(model):
    found = model.predict_counterfactual(conditions={"condition": "condition_1"})
    x = found.X.toarray()
    assert found.X.format == "csr" and x.min() == 0
    np.testing.assert_array_equal(x, np.round(x))
    difference = x - found.layers["rate"]
    error = difference.std(0) / np.sqrt(len(x))
    assert (np.abs(difference.mean(0)) < N_ERRORS * error + 1e-6).all()


def test_via_x_a_type_that_was_never_seen_is_nearer_to_the_truth(model, simulated, is_unseen):
    of_type = np.flatnonzero(model.adata.obs["component"] == "component_4")
    truth = log_normalised(simulated[is_unseen].X).mean(0)
    errors = {}
    for via in ("x", "z"):
        found = model.predict_counterfactual(
            conditions={"condition": "condition_1"}, indices=of_type, via=via
        )
        errors[via] = ((log_normalised(found.X).mean(0) - truth) ** 2).sum()
    assert errors["x"] < 0.5 * errors["z"]  # measured: a quarter


def test_via_x_is_what_counts_get_by_default_and_other_values_via_z(model, make_model, train):
    question = {"conditions": {"condition": "condition_1"}, "indices": ROWS[:2]}
    by_default = model.predict_counterfactual(**question)
    via_x = model.predict_counterfactual(**question, via="x")
    np.testing.assert_array_equal(by_default.layers["rate"], via_x.layers["rate"])
    adata = blobs(40, n_classes=3, n_conditions=2)
    setup = {"categorical_covariate_keys": ["condition"]}
    of_blobs = train(make_model(adata, setup, likelihood="gaussian"), **QUICK)
    by_default, via_z = (
        of_blobs.predict_counterfactual(**question, **via) for via in ({}, {"via": "z"})
    )
    np.testing.assert_array_equal(by_default.layers["rate"], via_z.layers["rate"])
    with pytest.raises(ValueError, match="via='x' changes the counts.*'gaussian'.*via='z'"):
        of_blobs.predict_counterfactual(**question, via="x")


@pytest.mark.parametrize("likelihood", ["poisson", "zinb"])
def test_via_x_changes_counts_of_every_likelihood_of_counts(
    simulated, make_model, train, likelihood
):
    model = make_model(simulated.copy(), SETUP, likelihood=likelihood, n_components=6)
    train(model, **QUICK)
    own = (simulated.obs["condition"] == "condition_1").to_numpy()
    found = model.predict_counterfactual(conditions={"condition": "condition_1"})
    counts = simulated.X.toarray()
    np.testing.assert_array_equal(found.X.toarray()[own], counts[own])
    assert (found.X.toarray()[~own] != counts[~own]).any(axis=1).all()
    assert np.isfinite(found.layers["rate"]).all() and found.layers["rate"].min() >= 0


# --------------------------------------------------------------------------- uncertainty


def test_the_standard_deviation_is_that_over_the_draws(model):
    changes = {"condition": "condition_1"}
    found = model.predict_counterfactual(
        conditions=changes, indices=ROWS, via="z", n_samples=4, seed=3
    )
    z = posterior_draws(model, model.adata, ROWS, seed=3, n_samples=4)["z"]
    c = conditions_of(model.adata.obs.iloc[ROWS].assign(**changes))
    draws = decoded(model, z, c, totals_of(model.adata[ROWS]))
    np.testing.assert_allclose(found.layers["rate_sd"], draws.std(0, ddof=1), rtol=1e-2, atol=1e-5)
    one = model.predict_counterfactual(conditions=changes, indices=ROWS)
    assert list(one.layers) == ["rate"]


def test_cells_with_few_counts_are_less_certain(make_model, train):
    adata = synthetic_counts(600, 100, n_components=3, n_conditions=2, component_scale=1.0, seed=1)
    is_shallow = np.arange(600) < 300
    x = adata.X.toarray().astype(int)
    x[is_shallow] = np.random.default_rng(0).binomial(x[is_shallow], 0.1)
    adata.X = sparse.csr_matrix(x.astype(np.float32))
    model = make_model(adata, {"categorical_covariate_keys": ["condition"]})
    train(model, max_epochs=20, pretrain_epochs=10)
    for via in ("x", "z"):
        found = model.predict_counterfactual(
            conditions={"condition": "condition_1"}, via=via, n_samples=20
        )
        share = (found.layers["rate_sd"] / x.sum(1, keepdims=True)).sum(1)
        share = share[adata.obs["condition"] == "condition_0"]
        few = is_shallow[adata.obs["condition"] == "condition_0"]
        assert share[few].mean() > 1.2 * share[~few].mean()  # measured: 1.4 and 1.5


@pytest.mark.parametrize("via", ["x", "z"])
def test_a_point_posterior_leaves_no_uncertainty(counts, make_model, train, via):
    model = train(make_model(counts.copy(), {"batch_key": "batch"}, prior="none"), **QUICK)
    found = model.predict_counterfactual(conditions={"batch": "batch_1"}, via=via, n_samples=3)
    assert found.layers["rate"].min() >= 0
    assert not found.layers["rate_sd"].any()


# --------------------------------------------------------------------------------- samples


def test_components_come_up_as_often_as_in_the_training_data(model):
    n = 4000
    generated = model.sample(n, seed=1)
    expected = model.predict(components=True)
    labels = model.adata.obs["label"].to_numpy()
    expected = np.where(labels == "unknown", expected, labels)
    assert set(expected) == set(TYPES)
    assert generated.obs["component"].cat.categories.tolist() == model.component_names.tolist()
    for name in model.component_names:
        share = (expected == name).mean()
        error = np.sqrt(share * (1 - share) / n)
        found = (generated.obs["component"] == name).mean()
        assert abs(found - share) <= N_ERRORS * error


def test_conditions_come_up_as_often_as_in_the_training_data(model):
    n = 4000
    generated = model.sample(n, seed=2)
    assert list(generated.obs) == ["component", "batch", "condition", "age"]
    assert generated.obs_names[[0, -1]].tolist() == ["generated_0", "generated_3999"]
    for column, names in CATEGORICAL.items():
        for name in names:
            share = (model.adata.obs[column] == name).mean()
            found = (generated.obs[column] == name).mean()
            assert abs(found - share) < N_ERRORS * np.sqrt(share * (1 - share) / n)
    assert set(generated.obs["age"]) <= set(model.adata.obs["age"])
    # of each type those that it was seen under
    seen = generated.obs.groupby("component", observed=True)["condition"].unique()
    assert seen["component_4"].tolist() == ["condition_0"]
    assert set(seen["component_0"]) == {"condition_0", "condition_1"}


def test_generated_cells_look_like_the_real_ones_of_their_component(model):
    adata, generated = model.adata, model.sample(3000, seed=3)
    assert sparse.issparse(generated.X) and generated.X.format == "csr"
    x = generated.X.toarray()
    np.testing.assert_array_equal(x, np.round(x))
    for name in CATEGORICAL["condition"]:
        for component in TYPES[:4]:
            real, new = (
                log_normalised(
                    data.X[
                        (
                            (data.obs["component"] == component) & (data.obs["condition"] == name)
                        ).to_numpy()
                    ]
                )
                for data in (adata, generated)
            )
            assert np.corrcoef(real.mean(0), new.mean(0))[0, 1] > 0.95
    # library sizes are those of real cells
    sizes = np.sort(totals_of(adata)[:, 0])
    rates = generated.layers["rate"].sum(1)
    nearest = sizes[np.searchsorted(sizes, rates - 0.5).clip(max=len(sizes) - 1)]
    np.testing.assert_allclose(rates, nearest, rtol=1e-3)
    spread = x.sum(1).std() / sizes.std()
    assert 0.9 < spread < 1.3


@pytest.mark.parametrize(
    "component",
    [
        pytest.param("component_1", id="label"),
        pytest.param(np.str_("component_1"), id="numpy"),
    ],
)
def test_a_component_can_be_asked_for(model, component):
    generated = model.sample(100, component, seed=4)
    assert (generated.obs["component"] == "component_1").all()
    np.testing.assert_array_equal(
        generated.X.toarray(), model.sample(100, "component_1", seed=4).X.toarray()
    )
    adata = model.adata
    profile = log_normalised(generated.X).mean(0)
    fit = [
        np.corrcoef(profile, log_normalised(adata[adata.obs["component"] == name].X).mean(0))[0, 1]
        for name in TYPES
    ]
    assert np.argmax(fit) == 1
    assert fit[1] > 0.95


def test_numbers_name_the_components_of_a_model_without_labels(trained):
    by_name = trained.sample(50, "2")
    assert (by_name.obs["component"] == "2").all()
    for number in (2, np.int64(2), 2.0):
        by_number = trained.sample(50, number)
        np.testing.assert_array_equal(by_name.X.toarray(), by_number.X.toarray())


def test_conditions_can_be_asked_for(model):
    changes = {"condition": "condition_1", "batch": "batch_0", "age": 0.5}
    generated = model.sample(200, conditions=changes)
    for name, value in changes.items():
        assert (generated.obs[name] == value).all()
    adata = model.adata
    has_both = (adata.obs[["condition", "batch"]] == ["condition_1", "batch_0"]).all(axis=1)
    sizes = totals_of(adata[has_both])[:, 0]
    rates = generated.layers["rate"].sum(1)
    # only cells with these conditions lend their library sizes and components
    assert np.abs(np.subtract.outer(rates, sizes)).min(axis=1).max() < 0.5
    assert not (generated.obs["component"] == "component_4").any()


def test_a_component_can_be_generated_under_a_condition_it_was_never_seen_in(
    model, simulated, is_unseen
):
    generated = model.sample(300, "component_4", {"condition": "condition_1"})
    assert (generated.obs["component"] == "component_4").all()
    assert (generated.obs["condition"] == "condition_1").all()
    profile = log_normalised(generated.X).mean(0)
    obs = simulated.obs
    distances = {
        (component, condition): (
            (
                profile
                - log_normalised(
                    simulated[(obs["component"] == component) & (obs["condition"] == condition)].X
                ).mean(0)
            )
            ** 2
        ).sum()
        for component in obs["component"].cat.categories
        for condition in obs["condition"].cat.categories
    }
    assert min(distances, key=distances.get) == ("component_4", "condition_1")


def test_a_model_without_components_generates_from_the_standard_normal(trained_normal, counts):
    generated = trained_normal.sample(500)
    assert list(generated.obs) == []
    x = generated.X.toarray()
    np.testing.assert_array_equal(x, np.round(x))
    profile, real = log_normalised(x).mean(0), log_normalised(counts.X).mean(0)
    assert np.corrcoef(profile, real)[0, 1] > 0.95
    sizes = totals_of(counts)[:, 0]
    rates = generated.layers["rate"].sum(1)
    assert np.abs(np.subtract.outer(rates, sizes)).min(axis=1).max() < 0.5


@pytest.mark.parametrize("batch_size", [7, 200])
def test_every_generated_cell_has_its_own_component_in_any_minibatch(model, batch_size):
    generated = model.sample(200, seed=5, batch_size=batch_size)
    log = np.log1p(generated.layers["rate"] / generated.layers["rate"].sum(1, keepdims=True) * 1e3)
    adata = model.adata
    means = np.stack(
        [log_normalised(adata[adata.obs["component"] == name].X).mean(0) for name in TYPES]
    )
    nearest = ((log[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (generated.obs["component"].cat.codes.to_numpy() == nearest).mean() > 0.95


# ---------------------------------------------------------------------------------- errors

BAD_CONDITIONS = [
    pytest.param(
        {"cell_type": "B"},
        ValueError,
        "'cell_type' is no condition.*Registered are: 'batch', 'condition', 'age'",
        id="no_condition",
    ),
    pytest.param(
        {"label": "component_1"}, ValueError, "'label' is no condition", id="labels_are_none"
    ),
    pytest.param(
        {"condition": "stimulated"},
        ValueError,
        "'stimulated' is no value.*'condition'.*'condition_0', 'condition_1'",
        id="unknown_value",
    ),
    pytest.param(
        {"batch": "batch_0", "condition": 7},
        ValueError,
        "7 is no value.*'condition'",
        id="one_of_several",
    ),
    *(
        pytest.param({"age": value}, ValueError, f"'age'.*finite number.*{value!r}", id=f"{value}")
        for value in ("old", np.inf, float("nan"), None)
    ),
]


@pytest.mark.parametrize("ask", ["predict_counterfactual", "sample"])
@pytest.mark.parametrize(("conditions", "error", "words"), BAD_CONDITIONS)
def test_conditions_that_the_model_does_not_know_are_refused(model, ask, conditions, error, words):
    settings = {"n": 3} if ask == "sample" else {}
    before = model.adata.copy()
    with pytest.raises(error, match=words):
        getattr(model, ask)(conditions=conditions, **settings)
    pd.testing.assert_frame_equal(model.adata.obs, before.obs)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({}, "must name a registered condition.*'age'", id="no_conditions"),
        pytest.param({"conditions": {}}, "must name a registered", id="empty_conditions"),
        pytest.param(
            {"conditions": {"age": 1}, "via": "y"},
            "via must be one of.*'x', 'z', 'w'.*'y'",
            id="via",
        ),
        pytest.param(
            {"conditions": {"age": 1}, "n_samples": 0},
            "n_samples must be an integer of at least 1",
            id="S=0",
        ),
    ],
)
def test_other_questions_are_refused(model, settings, words):
    with pytest.raises(ValueError, match=words):
        model.predict_counterfactual(**settings)


@pytest.mark.parametrize(
    ("component", "words"),
    [
        *(
            pytest.param(
                value,
                f"cluster or component of the model, but it is {value!r}.*'component_0', ",
                id=f"{value}",
            )
            for value in (6, -1, True, 1.0, "component_9")
        ),
        pytest.param(
            5,
            "'5' is empty.*with cells are: 'component_0', .*'component_4'",
            id="empty_number",
        ),
        pytest.param("5", "'5' is empty", id="empty_name"),
    ],
)
def test_components_that_are_not_there_are_refused(model, component, words):
    assert model.component_table()["n_cells"]["5"] == 0
    with pytest.raises(ValueError, match=words):
        model.sample(5, component)


def test_no_cells_cannot_be_sampled(model):
    with pytest.raises(ValueError, match="n must be an integer of at least 1"):
        model.sample(0)


def test_a_model_without_conditions_has_no_counterfactuals(trained_normal):
    with pytest.raises(ValueError, match="'batch' is no condition.*None is registered"):
        trained_normal.predict_counterfactual(conditions={"batch": "batch_1"})


def test_a_model_without_components_has_none_to_go_by(trained_normal):
    with pytest.raises(RuntimeError, match="prior is 'normal'"):
        trained_normal.sample(3, component=0)
    with pytest.raises(RuntimeError, match="prior is 'normal'"):
        trained_normal.predict_counterfactual(conditions={"batch": "batch_1"}, via="w")


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(
            lambda model: model.predict_counterfactual(conditions={"batch": "batch_1"}),
            id="counterfactual",
        ),
        pytest.param(lambda model: model.sample(3), id="sample"),
    ],
)
def test_an_untrained_model_generates_nothing(counts, make_model, ask):
    model = make_model(counts.copy(), {"batch_key": "batch"})
    with pytest.raises(RuntimeError, match="train"):
        ask(model)


def test_size_factors_of_any_unit_give_counts_of_the_cells_own_size(counts, make_model, train):
    adata = counts.copy()
    totals = np.asarray(adata.X.sum(1)).ravel()
    adata.obs["factor"] = totals / totals.mean()
    model = make_model(adata, {"size_factor_key": "factor", "batch_key": "batch"})
    train(model, max_epochs=5, pretrain_epochs=5)
    found = model.predict_counterfactual(conditions={"batch": "batch_1"}, via="z")
    np.testing.assert_allclose(found.layers["rate"].sum(1), totals, rtol=1e-3)
    generated = model.sample(200)
    assert abs(np.asarray(generated.X.sum(1)).mean() / totals.mean() - 1) < 0.1


def test_conditions_that_no_cell_combines_are_drawn_in_the_order_given(make_model, train):
    adata = synthetic_counts(200, 30, n_components=2, n_batches=2, n_conditions=2, seed=0)
    for column in ("batch", "condition"):  # every cell of batch_1 is of condition_0
        adata.obs[column] = adata.obs[column].astype(str)
    adata.obs.loc[adata.obs["batch"] == "batch_1", "condition"] = "condition_0"
    adata.obs["age"] = np.where(adata.obs["batch"] == "batch_1", 1.0, 2.0)
    model = make_model(
        adata,
        {
            "batch_key": "batch",
            "categorical_covariate_keys": ["condition"],
            "continuous_covariate_keys": ["age"],
        },
    )
    train(model)
    pairs = [("batch", "batch_1"), ("condition", "condition_1")]
    ages = [
        set(model.sample(50, conditions=dict(order)).obs["age"]) for order in (pairs, pairs[::-1])
    ]
    assert ages == [{1.0}, {2.0}]  # those of the cells that have the first


def test_a_model_without_data_asks_for_it(model, tmp_path):
    model.save(str(tmp_path / "model"))
    loaded = SCGMVAE.load(str(tmp_path / "model"), adata=False)
    with pytest.raises(RuntimeError, match="load it with some"):
        loaded.sample(3)
    with pytest.raises(RuntimeError, match="loaded without data"):
        loaded.predict()
    new = model.adata[:5].copy()
    with pytest.raises(RuntimeError, match="has no data. Load it with some, or use via='z'"):
        loaded.predict_counterfactual(new, {"age": 1})
    found = loaded.predict_counterfactual(new, {"age": 1}, via="z")
    assert found.shape == new.shape


@pytest.mark.parametrize(
    "indices",
    [
        pytest.param([], id="none"),
        pytest.param([True, False], id="short_mask"),
        pytest.param([10_000], id="too_large"),
        pytest.param(["cell_1"], id="names"),
    ],
)
def test_rows_that_are_not_there_are_refused(model, indices):
    for read in (
        lambda: model.predict(indices=indices),
        lambda: model.get_elbo_terms(indices=indices),
        lambda: model.predict_counterfactual(None, {"age": 1}, indices=indices),
    ):
        with pytest.raises(ValueError, match="indices must select at least one cell"):
            read()


def test_conditions_must_be_a_mapping(model):
    for read in (model.predict_counterfactual, model.sample):
        with pytest.raises(ValueError, match="must map columns to values.*'stimulated'"):
            read(3 if read == model.sample else None, conditions="stimulated")
