"""Arguments of train() that are refused before anything is trained, and what stays after that."""

import re

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.callbacks import LambdaCallback
from refused import TWICE, with_column
from small import NETWORK, QUICK
from states import unchanged

from scgmvae import SCGMVAE

SMALL = NETWORK | {"n_components": 3}


@pytest.fixture
def model(counts):
    """A model that is not trained."""
    return SCGMVAE(counts.copy(), **SMALL)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("max_epochs", 0),
        ("max_epochs", -1),
        ("max_epochs", 1.5),
        ("max_epochs", "3"),
        ("max_epochs", True),
        ("pretrain_epochs", -1),
        ("pretrain_epochs", 0.5),
        ("pretrain_epochs", np.nan),
        ("batch_size", 0),
        ("batch_size", -1),
        ("batch_size", 1.5),
        ("batch_size", "64"),
    ],
    ids=repr,
)
def test_lengths_and_sizes_must_be_integers(model, name, bad):
    message = f"{name} must be an integer.*{re.escape(repr(bad))}"
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                model.train(**(QUICK | {name: bad}))


@pytest.mark.parametrize("bad", [-1, 1.5, "a", 2**32, True], ids=repr)
def test_a_seed_must_be_one_of_numpy(model, bad):
    message = f"seed must be an integer from 0 to 4294967295, but it is {bad!r}"
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                model.train(seed=bad, **QUICK)


@pytest.mark.parametrize("bad", [0, -0.1, 1.5, np.nan, "a"], ids=repr)
def test_cells_to_train_on_must_be_a_share(model, bad):
    message = f"train_size must be a share above 0.*{re.escape(repr(bad))}"
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                model.train(train_size=bad, **QUICK)


@pytest.mark.parametrize("bad", [-0.1, 1, np.nan], ids=repr)
def test_validation_cells_must_be_a_share(model, bad):
    message = f"validation_size must be at least 0 and below 1, but it is {bad!r}"
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                model.train(validation_size=bad, **QUICK)


def test_shares_of_more_than_all_cells_are_refused(model):
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=r"train_size \+ validation_size"):
                model.train(train_size=0.8, validation_size=0.5, **QUICK)


def test_early_stopping_without_validation_cells_is_refused(model):
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match="validation cells.*train_size below 1"):
                model.train(early_stopping=True, train_size=1.0, **QUICK)


@pytest.mark.filterwarnings("ignore:Category 0 in adata.obs:UserWarning")  # scvi-tools' advice
def test_a_single_cell_cannot_be_trained_on(counts):
    model = SCGMVAE(counts[:1].copy(), n_components=1, **NETWORK)
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match="two cells or more.*of 1 cells there are 1"):
                model.train(**QUICK)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        pytest.param(
            [np.arange(299)], "299 different numbers in 299.*300 rows", id="one_row_missing"
        ),
        pytest.param(
            [np.arange(300), np.array([3])], "300 different numbers in 301", id="one_row_twice"
        ),
        pytest.param([np.arange(1, 301)], "300 different numbers in 300", id="one_row_beyond"),
    ],
)
def test_parts_must_have_every_row_once(model, parts, message):
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=f"every row.*{message}"):
                model.train(datasplitter_kwargs={"external_indexing": parts}, **QUICK)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        pytest.param(
            {"cell_in_memory": 9}, TypeError, "do not exist: 'cell_in_memory'", id="misspelt"
        ),
        pytest.param(
            {"cells_in_memory": 0},
            ValueError,
            "cells_in_memory must be an integer of at least 1",
            id="cells_in_memory=0",
        ),
    ],
)
def test_settings_of_the_data_splitter_are_checked(model, settings, error, message):
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(error, match=message):
                model.train(datasplitter_kwargs=settings, **QUICK)


# ------------------------------------------------------------------ where components start


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        pytest.param({"start": "louvain"}, ValueError, "'leiden'.*'louvain'", id="start"),
        pytest.param({"guide_key": "no"}, KeyError, "guide_key.*'no'", id="no_such_guide"),
        pytest.param(
            {"guide_key": ["batch"]}, ValueError, "guide_key.*name of", id="guide_in_a_list"
        ),
        pytest.param({"balance_key": "no"}, KeyError, "balance_key.*'no'", id="no_such_balance"),
        pytest.param(
            {"balance_key": 3}, ValueError, "balance_key.*name of", id="balance_is_a_number"
        ),
    ],
)
def test_unknown_starts_and_columns_are_refused(model, argument, error, message):
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(error, match=message):
                model.train(**(QUICK | argument))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        pytest.param(
            pd.Categorical(["a", None, "b"] * 100),
            "'guide'.*guide_key.*100 have none.*'cell_1'",
            id="missing_values",
        ),
        pytest.param(
            np.arange(300) % 5, "guide.*5 groups.*n_components=3", id="more_groups_than_components"
        ),
    ],
)
def test_columns_that_cannot_guide_are_refused(counts, guide, message):
    model = SCGMVAE(with_column(counts.copy(), "guide", guide), **SMALL)
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                model.train(guide_key="guide", **QUICK)


def test_a_model_without_components_takes_no_guide(counts):
    model = SCGMVAE(counts.copy(), prior="normal", **NETWORK)
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match="prior='normal' has none"):
                model.train(guide_key="batch", **QUICK)


def test_a_trained_model_takes_no_guide(conditioned):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match="go on"):
                conditioned.train(guide_key="batch", **QUICK)


@pytest.mark.parametrize("bad", [-1, np.nan, np.inf, "a"], ids=repr)
def test_the_weight_of_the_guide_must_be_a_number_from_0(model, bad):
    message = f"guide_weight must be at least 0, but it is {bad!r}"
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                model.train(guide_weight=bad, **QUICK)


# ---------------------------------------------------------------------- where it is trained


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        pytest.param({"accelerator": "tpux"}, ValueError, "'tpux'", id="accelerator"),
        pytest.param({"strategy": "ddp_spawn"}, ValueError, "would be lost", id="strategy"),
        pytest.param({"epochs": 3}, TypeError, "epochs", id="no_such_argument"),
    ],
)
def test_what_the_trainer_does_not_take_is_refused(model, argument, error, message):
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(error, match=message):
                model.train(**(QUICK | argument))


# ------------------------------------------------------------------------------- afterwards


def test_a_refused_training_leaves_no_trace_in_the_next(counts, make_model, train):
    models = [make_model(counts.copy()) for _ in range(2)]
    for settings in ({"plan_kwargs": {"lr": -1}}, {"accelerator": "tpux"}, {"seed": -1}):
        with pytest.raises(ValueError):
            train(models[0], **(settings | {"max_epochs": 3}))
    for model in models:
        train(model, max_epochs=1, pretrain_epochs=1, start="kmeans")
    latents = [model.adata.obsm["X_scgmvae"] for model in models]
    np.testing.assert_array_equal(*latents)


def test_a_failure_in_training_leaves_the_model_untrained_as_it_was(model, train):
    def fail(*_):
        raise RuntimeError("on purpose")

    with unchanged(model), pytest.raises(RuntimeError, match="on purpose"):
        train(model, callbacks=[LambdaCallback(on_train_epoch_end=fail)], start="kmeans")


def test_a_misspelt_start_is_refused_before_the_pretraining(model, train):
    epochs = []
    callback = LambdaCallback(on_train_epoch_end=lambda *_: epochs.append(1))
    with pytest.raises(ValueError, match="'louvain'"):
        train(model, start="louvain", callbacks=[callback])
    assert epochs == []
