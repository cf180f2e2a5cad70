"""Settings of the training plan that are refused before anything is trained."""

import re

import numpy as np
import pytest
from refused import TWICE
from small import NETWORK, QUICK
from states import unchanged

from scgmvae import SCGMVAE


@pytest.fixture
def model(counts):
    """A model that is not trained."""
    return SCGMVAE(counts.copy(), n_components=3, **NETWORK)


@pytest.mark.parametrize("bad", [-1, np.nan, np.inf, "a"], ids=repr)
def test_the_step_length_must_be_a_number_from_0(model, bad):
    message = f"lr must be at least 0, but it is {bad!r}"
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                model.train(plan_kwargs={"lr": bad}, **QUICK)


def test_the_step_length_of_a_trained_model_is_checked_as_well(conditioned):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match="lr must be at least 0"):
                conditioned.train(plan_kwargs={"lr": -1}, **QUICK)


@pytest.mark.parametrize(
    "name",
    [
        "weight_decay",
        "eps",
        "prior_weight",
        "kl_warmup",
        "pretrain_kl_weight",
        "max_kl_weight",
        "guide_weight",
        "guide_fraction",
        "soft_guide_weight",
        "classification_weight",
        "n_epochs_kl_warmup",
        "distortion",
    ],
)
def test_numbers_below_0_are_refused(model, name):
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=f"{name} must be at least"):
                model.train(plan_kwargs={name: -1}, **QUICK)


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan, "a"], ids=repr)
def test_the_part_with_a_declining_step_length_must_be_a_share(model, bad):
    message = f"lr_decline must be from 0 to 1, but it is {bad!r}"
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                model.train(plan_kwargs={"lr_decline": bad}, **QUICK)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        pytest.param(
            {"n_samples": 0}, ValueError, "n_samples must be an integer", id="no_samples"
        ),
        pytest.param(
            {"distortion": 1.0}, ValueError, "distortion is one of images", id="no_images"
        ),
        pytest.param({"optimizer": "no"}, ValueError, "Optimizer not understood", id="optimizer"),
        pytest.param({"lrr": 1}, TypeError, "nor the loss.*'lrr'", id="misspelt"),
        pytest.param({"joint_epochs": 3}, TypeError, "joint_epochs", id="length_of_a_stage"),
    ],
)
def test_what_the_plan_does_not_take_is_refused(model, settings, error, message):
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(error, match=message):
                model.train(plan_kwargs=settings, **QUICK)
