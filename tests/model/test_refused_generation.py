"""Calls that generate cells and are refused: the model stays as it was."""

import re

import numpy as np
import pytest
from refused import TWICE
from states import unchanged

CONDITIONS = {"batch": "batch_0", "age": 0.5}

each_bad_conditions = pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param("batch", "must map columns to values", id="text"),
        pytest.param(3, "must map columns to values", id="number"),
        pytest.param(
            CONDITIONS | {"tissue": 1}, "'tissue' is no condition.*'batch'", id="unknown_condition"
        ),
        pytest.param(
            CONDITIONS | {"batch": "batch_9"},
            "'batch_9' is no value.*'batch_0'",
            id="unknown_batch",
        ),
        pytest.param(CONDITIONS | {"age": "old"}, "'age'.*finite number.*'old'", id="text_as_age"),
        pytest.param(CONDITIONS | {"age": np.inf}, "'age'.*finite number.*inf", id="infinite_age"),
        pytest.param(CONDITIONS | {"age": 1e300}, "'age'.*finite number", id="large_age"),
        pytest.param(CONDITIONS | {"age": 1j}, "'age'.*finite number", id="complex_age"),
    ],
)


@each_bad_conditions
def test_conditions_to_decode_under_must_be_those_of_the_model(conditioned, bad, message):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                conditioned.decode(np.zeros((1, 5)), bad)


@each_bad_conditions
def test_conditions_of_a_counterfactual_must_be_those_of_the_model(conditioned, bad, message):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                conditioned.predict_counterfactual(conditions=bad)


@each_bad_conditions
def test_conditions_of_a_sample_must_be_those_of_the_model(conditioned, bad, message):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                conditioned.sample(3, conditions=bad)


def test_decoding_wants_a_value_for_every_condition(conditioned):
    message = "every registered condition.*'batch' has none"
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                conditioned.decode(np.zeros((1, 5)), {"age": 1})


def test_a_counterfactual_wants_a_condition(conditioned):
    message = "must name a registered condition.*'batch', 'age'"
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                conditioned.predict_counterfactual()


def test_a_counterfactual_goes_by_a_latent(conditioned):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match="via must be one of"):
                conditioned.predict_counterfactual(conditions=CONDITIONS, via="y")


@pytest.mark.parametrize(
    ("z", "message"),
    [
        pytest.param(np.zeros((3, 4)), r"\(n, 5\).*\(3, 4\)", id="four_columns"),
        pytest.param(np.zeros(5), r"\(n, 5\).*\(5,\)", id="vector"),
        pytest.param(np.full((2, 5), np.nan), "finite.*z holds NaN", id="NaN"),
        pytest.param("abc", "real numbers.*z is of type <U3", id="text"),
        pytest.param(np.zeros((2, 5), complex), "real numbers.*complex", id="complex"),
    ],
)
def test_what_is_no_latent_is_not_decoded(conditioned, z, message):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                conditioned.decode(z, CONDITIONS)


@pytest.mark.parametrize("library_size", [0, -1, np.nan, np.inf, "a", None], ids=repr)
def test_the_library_size_must_be_above_0(conditioned, library_size):
    message = f"library_size must be above 0, but it is {library_size!r}"
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                conditioned.decode(np.zeros((1, 5)), CONDITIONS, library_size)


@pytest.mark.parametrize("n_draws", [0, 1.5], ids=repr)
def test_draws_of_a_component_must_be_an_integer(conditioned, n_draws):
    message = f"n_draws must be an integer.*{re.escape(repr(n_draws))}"
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                conditioned.decode_components(n_draws, CONDITIONS)


@pytest.mark.parametrize("n", [0, -1, 1.5, "3"], ids=repr)
def test_cells_to_sample_must_be_an_integer(roughly_trained, n):
    message = f"n must be an integer.*{re.escape(repr(n))}"
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                roughly_trained.sample(n)


@pytest.mark.parametrize("component", [3, -1, 1.5, "no", True, ["0"]], ids=repr)
def test_a_component_to_sample_from_must_be_there(roughly_trained, component):
    message = f"component must be a cluster.*{re.escape(repr(component))}.*'0', '1', '2'"
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                roughly_trained.sample(3, component)
