"""Tests of train.finite_watch: what is not finite ends training, is named, and does not spread."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback

import scgmvae
from scgmvae.distributions.likelihoods import log_likelihood

STEPS = 5  # of an epoch: 300 cells in minibatches of at most 64


class At(Callback):
    """Calls a function at a step, between gradient and update or after the update."""

    def __init__(self, step, function, hook="on_train_batch_end"):
        self.step = step
        self.function = function
        setattr(self, hook, self.call)

    def call(self, trainer, plan, *args):
        if trainer.global_step == self.step:
            self.function(plan.module)


def spoil_gradient(module):
    next(module.parameters()).grad.view(-1)[0] = torch.nan


def all_finite(model):
    return all(torch.isfinite(value).all() for value in model.module.state_dict().values())


@pytest.fixture
def values(monkeypatch):
    """Values for a Gaussian likelihood, one of which is beyond what that can take."""
    x = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
    x[17, 3] = 1e6

    def limited(p_x, x, observed):
        value = log_likelihood(p_x, x, observed)
        return torch.where((x > 1e5).any(-1), -torch.inf, value)

    monkeypatch.setattr("scgmvae.module.cgmvae.log_likelihood", limited)
    return AnnData(x)


@pytest.fixture
def adata(counts):
    return counts.copy()


def test_a_cell_whose_loss_is_not_finite_is_named(values, make_model, train):
    model = make_model(values, likelihood="gaussian")
    with pytest.raises(FloatingPointError) as raised:
        train(model)
    text = str(raised.value)
    assert "of epoch 1 (pretraining) the loss is inf: reconstruction_loss is not finite" in text
    # the others of its minibatch come after it
    assert "contribute most are 17, " in text
    assert text.count(",") >= 9
    assert "plan_kwargs={'lr': 3e-4}" in text
    assert not model.is_trained_
    assert all_finite(model)
    assert not values.obsm.keys()


def test_after_an_error_the_values_can_be_mended(values, make_model, train):
    model = make_model(values, likelihood="gaussian")
    with pytest.raises(FloatingPointError):
        train(model)
    values.X[17, 3] = 0
    train(model)
    assert model.is_trained_
    assert np.isfinite(values.obsm["X_scgmvae"]).all()
    assert len(model.history["elbo_train"]) == 4


def test_validation_cells_are_watched(values, make_model, train):
    model = make_model(values, likelihood="gaussian")
    others = np.delete(np.arange(300), 17)
    split = {"external_indexing": [others, np.array([17]), np.array([], dtype=int)]}
    with pytest.raises(FloatingPointError, match="of validation cells is inf.* are 17. Look"):
        train(model, datasplitter_kwargs=split, check_val_every_n_epoch=1)


@pytest.mark.parametrize(
    ("step", "place", "epoch_begins"),
    [
        pytest.param(7, "step 3 of epoch 2 \\(pretraining\\)", 5, id="within_an_epoch"),
        pytest.param(14, "step 5 of epoch 3 \\(pretraining\\)", 10, id="last_of_an_epoch"),
        pytest.param(22, "step 3 of epoch 5 \\(joint stage\\)", 20, id="joint"),
        pytest.param(34, "step 5 of epoch 7 \\(joint stage\\)", 30, id="last_of_all"),
    ],
)
def test_a_gradient_that_is_not_finite_ends_training(
    adata, make_model, train, step, place, epoch_begins
):
    model = make_model(adata)
    at_start = []

    def remember(module):
        at_start.append({name: value.clone() for name, value in module.state_dict().items()})

    callbacks = [
        At(step, spoil_gradient, "on_before_optimizer_step"),
        At(epoch_begins, remember, "on_train_batch_start"),
    ]
    with pytest.raises(FloatingPointError, match=f"in {place} the gradient is not finite"):
        train(model, max_epochs=4, pretrain_epochs=3, callbacks=callbacks)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, at_start[0][name]), name
    # what was trained before is kept, and can be read and trained further
    assert model.is_trained_
    assert model.history["elbo_train"].index.tolist() == list(range(epoch_begins // STEPS))
    assert np.isfinite(model.get_latent_representation()).all()
    train(model, max_epochs=1, pretrain_epochs=1)
    assert adata.obs["scgmvae"].nunique() == 3


def test_the_terms_that_are_not_finite_are_named(adata, make_model, train, monkeypatch):
    def broken(q_y, alpha):
        return torch.full(q_y.shape[:-1], torch.nan) + 0 * q_y.sum(-1)

    monkeypatch.setattr("scgmvae.distributions.divergences.conjugate_dirichlet_bound", broken)
    model = make_model(adata)
    with pytest.raises(FloatingPointError, match="epoch 3 .* the loss is nan: kl_d is not finite"):
        train(model)
    assert model.mixture_started_
    assert all_finite(model)


def test_statistics_that_are_not_finite_end_training(adata, make_model, train):
    def spoil(module):
        module.encoder.trunk.norms[0].running_var[0] = torch.inf

    model = make_model(adata)
    with pytest.raises(FloatingPointError, match="by the end of epoch 2 .*running_var are not"):
        train(model, callbacks=[At(10, spoil)])
    assert all_finite(model)


def test_other_callbacks_may_ask_the_model(adata, make_model, train):
    model, seen = train(make_model(adata)), []

    class Ask(Callback):
        def on_train_epoch_start(self, trainer, plan):
            seen.append(float(model.get_elbo()))
            plan.train()

    train(model, callbacks=[Ask()])
    assert len(seen) == 2
    assert np.isfinite(seen).all()


def test_training_leaves_no_hook_behind(adata, make_model, train):
    model = train(make_model(adata))
    assert not model.module._forward_hooks
    with pytest.raises(FloatingPointError):
        train(model, callbacks=[At(3, spoil_gradient, "on_before_optimizer_step")])
    assert not model.module._forward_hooks


def test_the_dual_model_is_watched():
    adata = scgmvae.datasets.two_photon(100, image_shape=(24, 36), seed=0)
    model = scgmvae.DualVAE(adata, n_latent_foreground=4)
    spoil = At(3, spoil_gradient, "on_before_optimizer_step")
    with pytest.raises(FloatingPointError, match="in step 2 of epoch 2 the gradient is not"):
        model.train(max_epochs=3, callbacks=[spoil], enable_progress_bar=False)
    assert all_finite(model)
    assert model.is_trained_
