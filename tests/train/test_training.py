"""Tests of model.training: stages, schedules, continuation, interruption, seeds, learning."""

import logging
import random
import signal

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.model_selection import cross_val_score

from scgmvae import SCGMVAE
from scgmvae.datasets import blobs, synthetic_counts
from scgmvae.train.recipe import Length

KL_TERMS = ["kl_z", "kl_w", "kl_y", "kl_d"]


@pytest.fixture
def adata(counts):
    return counts.copy()


def column(model, name):
    """A term of the history as numbers."""
    return model.history[name].iloc[:, 0].to_numpy(dtype=float)


def epochs(model, name):
    return model.history[name].index.tolist()


def state_of(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class At(Callback):
    """Calls a function at the end of one minibatch, counted over the whole training."""

    def __init__(self, step, function):
        self.step = step
        self.function = function

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            self.function(pl_module)


# -------------------------------------------------------------------- stages and schedules


def test_the_history_has_every_term_in_its_stage(adata, make_model, train):
    model = train(
        make_model(adata),
        max_epochs=4,
        pretrain_epochs=3,
        train_size=0.8,
        check_val_every_n_epoch=1,
    )
    always = ["elbo", "reconstruction_loss", "kl_local", "kl_z"]
    for part in ("train", "validation"):
        for name in always:
            assert epochs(model, f"{name}_{part}") == list(range(7))
        for name in KL_TERMS[1:]:
            assert epochs(model, f"{name}_{part}") == [3, 4, 5, 6]
    assert epochs(model, "guide_train") == [3, 4, 5, 6]
    for name in ("train_loss", "validation_loss", "kl_weight", "guide_weight"):
        assert epochs(model, name) == list(range(7))
    assert all(np.isfinite(column(model, name)).all() for name in model.history)


def test_terms_of_the_history_add_up(adata, make_model, train):
    model = train(make_model(adata), max_epochs=4, pretrain_epochs=3)
    kl = column(model, "kl_z_train").copy()
    for name in KL_TERMS[1:]:
        kl[3:] += column(model, f"{name}_train")
    np.testing.assert_allclose(kl, column(model, "kl_local_train"), rtol=1e-4)
    bound = column(model, "reconstruction_loss_train") + kl
    np.testing.assert_allclose(bound, column(model, "elbo_train"), rtol=1e-4)
    # once the guide is gone, the loss is the bound; before, the guide comes on top
    assert column(model, "guide_weight")[-2:].tolist() == [0, 0]
    np.testing.assert_allclose(column(model, "train_loss")[-1], bound[-1], rtol=1e-4)
    assert column(model, "train_loss")[3] > bound[3]


def test_the_history_has_means_per_cell(trained):
    # with dropout, and with the weights of each step, so not the same
    last = trained.history["elbo_train"].iloc[-1, 0]
    assert last == pytest.approx(-float(trained.get_elbo()), rel=0.5)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        pytest.param(0.5, [0.5, 1, 1, 1, 1, 1], id="half_of_pretraining"),
        pytest.param(1.0, [0.25, 0.5, 0.75, 1, 1, 1], id="all_of_pretraining"),
        pytest.param(0.0, [1, 1, 1, 1, 1, 1], id="none"),
    ],
)
def test_the_kl_weight_rises_over_a_fraction_of_pretraining(
    adata, make_model, train, warmup, expected
):
    model = train(
        make_model(adata), max_epochs=2, pretrain_epochs=4, plan_kwargs={"kl_warmup": warmup}
    )
    np.testing.assert_allclose(column(model, "kl_weight"), expected)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        pytest.param(4, [3, 3, 3, 3], id="some_have_labels"),
        pytest.param(1, [6.25, 2.5, 0, 0], id="all_have_labels"),
    ],
)
def test_the_guide_stays_where_labels_are_spread(adata, train, every, expected):
    has_label = np.arange(adata.n_obs) % every == 0
    adata.obs["label"] = np.where(has_label, adata.obs["component"], None)
    SCGMVAE.setup_anndata(adata, labels_key="label", unlabeled_category="unknown")
    model = train(SCGMVAE(adata), max_epochs=4, pretrain_epochs=2)
    # at the ends of the epochs: without other cells it falls over two thirds of them
    np.testing.assert_allclose(column(model, "guide_weight")[2:], expected, atol=0.05)
    assert (column(model, "guide_train")[2:] > 0).all()


def test_a_guide_by_codes_falls_also_where_some_have_labels(adata, train):
    # one labelled cell of each type says nothing of how sure it is of the others
    types = adata.obs["component"].astype(str)
    adata.obs["label"] = types.where(~types.duplicated(), "none")
    SCGMVAE.setup_anndata(adata, labels_key="label", unlabeled_category="none")
    model = train(SCGMVAE(adata), max_epochs=4, pretrain_epochs=2)
    np.testing.assert_allclose(column(model, "guide_weight")[2:], [6.25, 2.5, 0, 0], atol=0.05)


def test_the_weight_of_a_guide_by_labels_can_be_chosen(adata, train):
    adata.obs["label"] = np.where(np.arange(adata.n_obs) % 4, "none", adata.obs["component"])
    SCGMVAE.setup_anndata(adata, labels_key="label", unlabeled_category="none")
    model = train(SCGMVAE(adata), max_epochs=3, pretrain_epochs=2, guide_weight=0.5)
    np.testing.assert_array_equal(column(model, "guide_weight")[2:], 0.5)


def test_the_guide_weight_falls_to_zero_over_a_fraction_of_the_joint_stage(
    adata, make_model, train
):
    model = train(
        make_model(adata),
        max_epochs=4,
        pretrain_epochs=2,
        guide_weight=8.0,
        plan_kwargs={"guide_fraction": 0.5},
    )
    # at the ends of the epochs; pretraining has no guide, so what it logs says nothing
    np.testing.assert_allclose(column(model, "guide_weight")[2:], [4, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, [1, 1, 1, 1, 1, 1, 1, 1], id="constant_by_default"),
        pytest.param({"lr_decline": 0.5}, [1, 1, 1, 1, 1, 1, 1, 0.5], id="half"),
        pytest.param({"lr_decline": 1.0}, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25], id="whole_stage"),
    ],
)
def test_the_step_length_falls_over_the_last_part_of_the_joint_stage(
    adata, make_model, train, settings, expected
):
    lengths = []

    class Lengths(Callback):
        def on_train_batch_start(self, trainer, *args):
            lengths.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = make_model(adata)
    settings = {"lr": 2e-3, **settings}
    how = {"batch_size": 150, "plan_kwargs": settings, "callbacks": [Lengths()]}
    train(model, max_epochs=2, pretrain_epochs=2, **how)
    np.testing.assert_allclose(np.array(lengths) / 2e-3, expected)
    lengths.clear()
    train(model, max_epochs=2, **how)  # which is another joint stage
    np.testing.assert_allclose(np.array(lengths) / 2e-3, expected[4:])


@pytest.mark.parametrize(
    ("given", "batch_size", "lr"),
    [
        pytest.param({}, 256, 1e-3 * 2**0.5, id="by_the_number_of_cells"),
        pytest.param({"batch_size": 128}, 128, 1e-3, id="given"),
        pytest.param({"plan_kwargs": {"lr": 3e-4}}, 256, 3e-4, id="steps_of_a_given_length"),
    ],
)
def test_minibatches_of_many_cells_are_larger_and_their_steps_longer(
    adata, make_model, monkeypatch, given, batch_size, lr
):
    monkeypatch.setattr("scgmvae.train.recipe.CELLS_OF_SMALLEST", len(adata) / 2.5)
    model = make_model(adata)
    model.train(1, 1, enable_progress_bar=False, **given)
    assert model.trainer.datamodule.data_loader_kwargs["batch_size"] == batch_size
    assert model.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(lr)


def test_minibatches_of_few_cells_have_the_size_of_the_settings(adata, make_model, monkeypatch):
    model = make_model(adata)
    model.train(1, 1, enable_progress_bar=False)
    assert model.trainer.datamodule.data_loader_kwargs["batch_size"] == 128
    monkeypatch.setattr(scvi.settings, "batch_size", 90)
    monkeypatch.setattr("scgmvae.train.recipe.CELLS_OF_SMALLEST", len(adata) / 4)
    model = make_model(adata)
    model.train(1, 1, enable_progress_bar=False)
    assert model.trainer.datamodule.data_loader_kwargs["batch_size"] == 90
    assert model.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize("callbacks", [[], [LearningRateMonitor()]], ids=["", "own_monitor"])
def test_a_plateau_rules_the_step_length_alone(adata, make_model, train, callbacks):
    plateau = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e9}
    settings = {"plan_kwargs": plateau | {"lr_decline": 1.0}, "callbacks": callbacks}
    model = train(make_model(adata), max_epochs=3, **settings)
    lengths = model.history["lr-Adam"]["lr-Adam"].astype(float)
    assert lengths.iloc[-1] == pytest.approx(1e-3 * 0.6)


@pytest.mark.parametrize(
    ("n_obs", "expected"),
    [
        pytest.param(10, 100, id="few_cells_are_seen_no_more_often_than_this"),
        pytest.param(2_000, 64, id="1000_minibatches"),
        pytest.param(4_000, 32, id="1000_minibatches_of_more_cells"),
        pytest.param(1_000_000, 20, id="many_cells_are_seen_no_less_often_than_this"),
    ],
)
def test_more_cells_take_fewer_epochs(n_obs, expected):
    assert Length(n_steps=1000, shortest=20, longest=100).epochs(n_obs) == expected


def test_a_model_without_components_has_no_joint_terms(trained_normal):
    assert epochs(trained_normal, "kl_z_train") == [0, 1, 2, 3]
    absent = {"kl_w_train", "kl_y_train", "kl_d_train", "guide_train"}
    assert not absent & set(trained_normal.history)


def test_pretraining_can_be_left_out(adata, make_model, train):
    model = train(make_model(adata), max_epochs=2, pretrain_epochs=0)
    assert epochs(model, "kl_y_train") == [0, 1]
    np.testing.assert_allclose(column(model, "kl_weight"), [1, 1])


# ---------------------------------------------------------------------------- continuation


@pytest.mark.parametrize("n_components", [3, None], ids=["K_given", "K_found"])
def test_a_second_training_goes_on_with_the_components(adata, make_model, train, n_components):
    model = train(make_model(adata, n_components=n_components), max_epochs=6, pretrain_epochs=5)
    before = state_of(model)
    clusters, names = model.predict(), model.component_names.tolist()
    first = {name: table.copy() for name, table in model.history.items()}
    train(model, max_epochs=3, pretrain_epochs=7)
    # no second pretraining, and no second start
    assert model.component_names.tolist() == names
    assert model.n_components_ == len(names)
    assert epochs(model, "elbo_train") == list(range(14))
    assert epochs(model, "kl_y_train") == list(range(5, 14))
    for name, table in first.items():
        pd.testing.assert_frame_equal(model.history[name].iloc[: len(table)], table)
    assert adjusted_rand_score(model.predict(), clusters) > 0.8
    assert (model.predict() == clusters).mean() > 0.8
    assert any(not torch.equal(before[name], value) for name, value in state_of(model).items())
    np.testing.assert_array_equal(adata.obsm["X_scgmvae"], model.get_latent_representation())


# -------------------------------------------------------------------------- early stopping


def test_early_stopping_waits_for_the_joint_stage(adata, make_model, train):
    # No rise of the ELBO is enough: training stops as soon as it may. The joint stage's first
    # epoch sets the mark, and two more are waited for.
    model = train(
        make_model(adata),
        max_epochs=30,
        pretrain_epochs=5,
        early_stopping=True,
        early_stopping_patience=2,
        early_stopping_min_delta=1e6,
    )
    assert epochs(model, "elbo_validation") == list(range(8))
    assert len(model.validation_indices) == 30
    assert len(model.train_indices) == 270
    assert len(adata.obs["scgmvae"]) == 300


def test_early_stopping_lets_an_improving_model_go_on(adata, make_model, train):
    model = train(
        make_model(adata),
        max_epochs=4,
        pretrain_epochs=2,
        early_stopping=True,
        early_stopping_patience=4,
    )
    assert epochs(model, "elbo_validation") == list(range(6))


# ---------------------------------------------------------------------------- interruption


def interrupted(model, train, step, **settings):
    """Train until Ctrl-C at a step; the state of the module at that moment."""
    states = []

    def interrupt(plan):
        states.append(state_of(model))
        raise KeyboardInterrupt

    train(model, callbacks=[At(step, interrupt)], **settings)
    assert len(states) == 1
    return states[0]


@pytest.fixture
def own_handler():
    """A SIGINT handler of our own, which training has to leave in place."""

    def handler(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    yield handler
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_pretraining_keeps_what_was_learned(
    adata, make_model, train, own_handler, caplog
):
    model = make_model(adata)
    # 300 cells in minibatches of at most 64 are 5 steps an epoch: step 12 is in the third
    with caplog.at_level(logging.WARNING, logger="scgmvae.train.plan"):
        at_interruption = interrupted(model, train, 12, max_epochs=4, pretrain_epochs=6)
    assert "interrupted in epoch 3 of 10" in caplog.text
    assert signal.getsignal(signal.SIGINT) is own_handler
    assert_equal_states(state_of(model), at_interruption)
    assert model.is_trained_
    assert epochs(model, "elbo_train") == [0, 1]
    np.testing.assert_array_equal(adata.obsm["X_scgmvae"], model.get_latent_representation())
    assert "scgmvae" not in adata.obs
    with pytest.raises(RuntimeError, match="ended before they were started; call train"):
        model.predict()

    train(model, max_epochs=3, pretrain_epochs=1)
    assert epochs(model, "elbo_train") == list(range(6))
    assert epochs(model, "kl_y_train") == [3, 4, 5]
    assert adata.obs["scgmvae"].nunique() == 3


def test_an_interrupted_joint_stage_keeps_what_was_learned(
    adata, make_model, train, own_handler, caplog
):
    model = make_model(adata, n_components=None)
    with caplog.at_level(logging.WARNING, logger="scgmvae.train.plan"):
        at_interruption = interrupted(model, train, 23, max_epochs=6, pretrain_epochs=3)
    assert "interrupted in epoch 5 of 9" in caplog.text
    assert signal.getsignal(signal.SIGINT) is own_handler
    assert_equal_states(state_of(model), at_interruption)
    assert epochs(model, "kl_y_train") == [3]
    names = model.component_names.tolist()
    assert adata.obs["scgmvae"].tolist() == model.predict().tolist()

    train(model, max_epochs=2)
    assert model.component_names.tolist() == names
    assert epochs(model, "kl_y_train") == [3, 4, 5]


@pytest.mark.parametrize("error", [SystemExit, ZeroDivisionError])
def test_other_ends_of_training_are_no_interruption(adata, make_model, train, error):
    def fail(plan):
        raise error("stop here")

    with pytest.raises(error, match="stop here"):
        train(make_model(adata), callbacks=[At(3, fail)])
    assert "X_scgmvae" not in adata.obsm


# ----------------------------------------------------------------------------------- seeds


def result(counts, make_model, train, **settings):
    """All that a training leaves, from AnnData and history."""
    adata = counts.copy()
    model = train(make_model(adata), **settings)
    arrays = {name: adata.obsm[name] for name in ("X_scgmvae", "X_scgmvae_w", "scgmvae_proba")}
    return arrays | {name: column(model, name) for name in model.history}


@pytest.mark.parametrize("start", ["leiden", "kmeans", "gmm"])
def test_results_follow_bit_for_bit_from_the_seed(counts, make_model, train, start):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    first = result(counts, make_model, train, start=start, seed=7)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    random.seed(2)
    again = result(counts, make_model, train, start=start, seed=7)
    other = result(counts, make_model, train, start=start, seed=8)
    assert first.keys() == again.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], again[name], err_msg=name)
    assert not np.array_equal(first["X_scgmvae"], other["X_scgmvae"])


def test_no_seed_is_seed_0(counts, make_model, train):
    without, zero = (result(counts, make_model, train, seed=seed) for seed in (None, 0))
    np.testing.assert_array_equal(without["X_scgmvae"], zero["X_scgmvae"])


@pytest.mark.parametrize("start", ["leiden", "kmeans", "gmm"])
def test_training_leaves_global_states_alone(adata, make_model, train, start):
    model = make_model(adata)
    torch.set_num_threads(1)
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    python_state = random.getstate()
    train(model, start=start)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state
    assert torch.get_num_threads() == 1
    assert torch.get_default_dtype() == torch.float32


# --------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("start", ["tested", "leiden", "kmeans", "gmm"])
def test_every_start_leads_to_the_known_components(adata, make_model, train, start):
    model = train(make_model(adata), start=start, max_epochs=8, pretrain_epochs=8)
    assert model.n_components_ == 3
    assert adjusted_rand_score(adata.obs["component"], adata.obs["scgmvae"]) > 0.9


@pytest.mark.parametrize("n_components", [None, 3, 5], ids=["K_found", "K_equal", "K_larger"])
def test_a_column_can_be_the_start(adata, make_model, train, n_components):
    adata.obs["mine"] = adata.obs["component"].astype(str)
    model = make_model(adata, n_components=n_components)
    train(model, guide_key="mine", max_epochs=25, pretrain_epochs=4)
    assert model.n_components_ == (n_components or 3)
    assert adjusted_rand_score(adata.obs["component"], adata.obs["scgmvae"]) > 0.9


# -------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("n_components", [4, None], ids=["K_given", "K_found"])
@pytest.mark.parametrize("prior", ["dirichlet", "mixture"])
def test_known_components_of_counts_are_found(make_model, train, n_components, prior):
    # measured: ARI 1.0
    adata = synthetic_counts(400, 100, n_components=4, seed=0)
    model = make_model(adata, n_components=n_components, prior=prior)
    train(model, max_epochs=15, pretrain_epochs=15)
    assert adjusted_rand_score(adata.obs["component"], adata.obs["scgmvae"]) > 0.9
    table = model.component_table()
    assert len(table) == 4
    assert not table["is_empty"].any()


def test_blobs_are_found_across_conditions(make_model, train):
    adata = blobs(60, n_classes=3, n_conditions=2)
    setup = {"categorical_covariate_keys": ["condition"]}
    model = make_model(adata, setup, likelihood="gaussian")
    train(model, max_epochs=30, pretrain_epochs=30)
    assert adjusted_rand_score(adata.obs["class"], adata.obs["scgmvae"]) == 1.0


def test_the_latent_tells_no_batches_apart(counts, trained):
    # the counts themselves do
    z, batch = trained.get_latent_representation(), counts.obs["batch"].to_numpy()
    log_counts = np.log1p(counts.X.toarray())
    classifier = LogisticRegression(max_iter=1000)
    assert cross_val_score(classifier, log_counts, batch, cv=5).mean() > 0.8
    assert cross_val_score(classifier, z, batch, cv=5).mean() < 0.65
    assert silhouette_score(z, batch) < 0.1
    assert adjusted_rand_score(counts.obs["component"], trained.predict()) > 0.9


@pytest.mark.parametrize("fraction", [0.2, 1.0], ids=["a_fifth_has_labels", "all_have_labels"])
@pytest.mark.parametrize("n_components", [3, 5, None], ids=["K=3", "K=5", "K_found"])
def test_labels_are_carried_to_cells_without(counts, make_model, train, fraction, n_components):
    adata = counts.copy()
    # names whose order is not that of the components' sizes
    names = np.array(["m", "z", "a"])[adata.obs["component"].cat.codes]
    has_label = np.random.default_rng(0).random(adata.n_obs) < fraction
    adata.obs["label"] = np.where(has_label, names, "unknown")
    model = make_model(adata, {"labels_key": "label"}, n_components=n_components)
    train(model, max_epochs=15, pretrain_epochs=15)
    assert model.component_names[:3].tolist() == ["a", "m", "z"]
    assert (model.predict() == names).mean() > 0.9
    assert {"classification_train"} <= set(model.history)


def test_one_cluster_is_said_so(make_model, train):
    model = make_model(synthetic_counts(60, 40, n_components=1, seed=0), n_components=None)
    with pytest.warns(UserWarning, match=r"One cluster was found: the 60 cells.*n_components="):
        train(model)
    asked = make_model(synthetic_counts(60, 40, n_components=1, seed=0), n_components=1)
    train(asked)  # nobody is surprised
