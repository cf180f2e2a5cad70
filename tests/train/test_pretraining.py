"""Tests of the second pretraining, in whose z splits are tested as well."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgmvae import SCGMVAE
from scgmvae.model.splits import SplitsMixin
from scgmvae.model.training import TrainingMixin
from scgmvae.train import cells
from scgmvae.train.pretraining import another_seed
from scgmvae.train.recipe import COUNTS


@pytest.fixture
def twins(monkeypatch):
    """Every twin that is made, with the plan and the number of cells of its pretraining."""
    made = []
    original, of_plan = TrainingMixin._twin, TrainingMixin._plan

    def recorded_plan(self, training, n_obs):
        plan = of_plan(self, training, n_obs)
        made.append({"plan": plan, "n_obs": n_obs, "model": self})
        return plan

    def recorded(self, training, n_obs, pretrain_epochs, rows):
        before, state = torch.get_rng_state(), self.module.state_dict()
        weights = {name: value.clone() for name, value in state.items()}
        twin = original(self, training, n_obs, pretrain_epochs, rows)
        # what is trained by itself changes neither the model nor its random numbers
        torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
        for name, value in self.module.state_dict().items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
        made[-1]["twin"] = twin
        return twin

    monkeypatch.setattr(TrainingMixin, "_plan", recorded_plan)
    monkeypatch.setattr(TrainingMixin, "_twin", recorded)
    return made


def test_a_second_model_is_pretrained_as_long_with_other_random_numbers(
    counts, make_model, train, twins
):
    model = make_model(counts.copy(), {"batch_key": "batch"}, n_components=None)
    train(model, max_epochs=2, pretrain_epochs=7, batch_size=60, plan_kwargs={"lr": 2e-3})
    first, second = twins
    assert second["n_obs"] == 300
    assert second["plan"].pretrain_epochs == 7
    assert second["plan"].lr == 2e-3
    own, other = (one["plan"].module.state_dict() for one in (first, second))
    assert not second["twin"].module.training
    name = next(name for name in own if name.endswith("weight"))
    assert not torch.equal(own[name], other[name])
    # batch normalisation counts its minibatches: 7 epochs of 5
    counted = [v.item() for k, v in other.items() if k.endswith("num_batches_tracked")]
    assert max(counted) == 35


def test_the_same_seed_makes_the_same_twin(counts, make_model, train, twins):
    for _ in range(2):
        model = make_model(counts.copy(), {"batch_key": "batch"}, n_components=None)
        train(model, seed=4)
    first, second = (one["twin"].module.state_dict() for one in twins if "twin" in one)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)
    assert another_seed(4) == another_seed(4)
    assert len({another_seed(seed) for seed in range(1000)} | set(range(1000))) == 2000


@pytest.mark.parametrize(("n_steps", "epochs"), [(2000, 12), (5, 5)])
def test_a_sample_of_the_cells_has_as_many_steps_up_to_a_bound(
    counts, make_model, train, twins, monkeypatch, n_steps, epochs
):
    recipe = replace(COUNTS, pretraining=replace(COUNTS.pretraining, n_steps=n_steps))
    monkeypatch.setattr(cells, "LARGEST_TREE", 100)
    monkeypatch.setattr(TrainingMixin, "_recipe", recipe)
    model = make_model(counts.copy(), {}, n_components=None)
    train(model, max_epochs=1, pretrain_epochs=4, batch_size=100)
    assert twins[-1]["n_obs"] == 100
    assert twins[-1]["plan"].pretrain_epochs == epochs


def test_labelled_cells_that_the_sample_has_more_of_come_up_as_others_do(
    counts, make_model, train, twins, monkeypatch
):
    adata = counts.copy()
    adata.obs["label"] = adata.obs["component"].astype(str).where(np.arange(300) < 12, "unknown")
    monkeypatch.setattr(cells, "LARGEST_TREE", 100)
    setup = {"labels_key": "label", "unlabeled_category": "unknown"}
    model = make_model(adata, setup, n_components=None)
    train(model, max_epochs=1, pretrain_epochs=2, batch_size=25)
    state = twins[-1]["plan"].module.state_dict()
    counted = [v.item() for k, v in state.items() if k.endswith("num_batches_tracked")]
    assert max(counted) == 4 * twins[-1]["plan"].pretrain_epochs


def test_settings_of_a_step_are_those_of_the_first_pretraining(counts, make_model, train, twins):
    model = make_model(counts.copy(), {}, n_components=None)
    train(model, max_epochs=1, pretrain_epochs=3, batch_size=25, limit_train_batches=2)
    state = twins[-1]["plan"].module.state_dict()
    counted = [v.item() for k, v in state.items() if k.endswith("num_batches_tracked")]
    assert max(counted) == 6


def test_there_is_no_twin_without_a_pretraining(counts, make_model, train, twins):
    train(make_model(counts.copy(), {}, n_components=None), max_epochs=1, pretrain_epochs=0)
    assert twins[-1]["twin"] is None


@pytest.mark.parametrize("start", ["leiden", "kmeans"])
def test_no_twin_is_made_where_no_split_is_tested(counts, make_model, train, twins, start):
    train(make_model(counts.copy(), {}), start=start)
    assert not any("twin" in one for one in twins)


def test_splits_are_tested_in_the_z_of_both(counts, make_model, train, monkeypatch):
    seen = []
    original = SplitsMixin._grown_tree

    def recorded(self, rows, z, n_leaves, seed, twin):
        encoded = self._encoder_of(rows, twin)
        both = np.hstack([z, twin._posteriors(indices=rows)["z_loc"]])
        seen.append((z, both, *(encoded(both, np.random.default_rng(0)) for _ in range(2))))
        return original(self, rows, z, n_leaves, seed, twin)

    monkeypatch.setattr(SplitsMixin, "_grown_tree", recorded)
    model = make_model(counts.copy(), {"batch_key": "batch"}, n_components=None)
    train(model, max_epochs=2, pretrain_epochs=30)
    ((z, both, again, repeated),) = seen
    assert both.shape == (300, 2 * z.shape[1])
    assert again.shape == both.shape
    # cells that are drawn at the z of others and encoded again come out near them
    for part in np.split(np.arange(both.shape[1]), 2):
        spread = both[:, part].std(0)
        strongest = spread.argmax()
        assert np.corrcoef(both[:, part[strongest]], again[:, part[strongest]])[0, 1] > 0.7
    np.testing.assert_array_equal(again, repeated)


def test_a_model_that_is_its_own_twin_encodes_the_same_cells_twice(trained):
    rows = np.arange(50)
    z = trained.get_latent_representation()[rows]
    again = trained._encoder_of(rows, trained)(np.hstack([z, z]), np.random.default_rng(0))
    one, other = np.hsplit(again, 2)
    np.testing.assert_array_equal(one, other)
    assert np.corrcoef(z[:, 0], one[:, 0])[0, 1] > 0.5


def test_a_loss_that_is_not_finite_there_ends_the_training(counts, make_model, train, monkeypatch):
    def broken(module):
        with torch.no_grad():
            next(module.parameters()).fill_(torch.nan)
        return module

    original = SCGMVAE._make_module
    model = make_model(counts.copy(), {}, n_components=None)
    # the copy that is pretrained by itself shares all but the module with the model
    monkeypatch.setattr(
        SCGMVAE,
        "_make_module",
        lambda self: original(self) if self is model else broken(original(self)),
    )
    with pytest.raises(FloatingPointError):
        train(model)
    assert model.is_trained_
    assert np.isfinite(model.get_latent_representation()).all()
