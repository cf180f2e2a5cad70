"""Calls for components and their tables that are refused: model and data stay as they were."""

import re

import pytest
from refused import TWICE
from states import unchanged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"n": 0}, "n must be an integer", id="n=0"),
        pytest.param({"n": 4}, "at most K, 3.*4", id="n_above_K"),
        pytest.param({"n": 2, "threshold": 0.3}, "n or threshold, not both", id="two_rules"),
        pytest.param({"threshold": 0}, r"\(0, 1\]", id="threshold=0"),
        pytest.param({"threshold": 1.5}, r"\(0, 1\]", id="threshold=1.5"),
        pytest.param({"threshold": "a"}, "threshold must be at least 0", id="threshold='a'"),
        pytest.param(
            {"threshold": -1, "method": "elbo"},
            "threshold must be at least 0",
            id="threshold=-1_of_the_elbo",
        ),
        pytest.param({"method": "no"}, "method must be one of", id="method"),
    ],
)
def test_components_are_merged_by_one_sound_rule(roughly_trained, arguments, message):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                roughly_trained.merge_components(**arguments)


@pytest.mark.parametrize("key", ["", 3, None, ["a"], "a/b", "_scvi_batch"], ids=repr)
def test_results_are_written_under_a_name(roughly_trained, key):
    message = f"key_added must be a name.*{re.escape(repr(key))}"
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                roughly_trained.annotate(key_added=key)


def test_columns_that_the_model_reads_are_not_overwritten(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match="overwrite"):
                roughly_trained.annotate(key_added="batch")


def test_labels_of_the_table_must_be_in_a_column(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(KeyError, match="'no'"):
                roughly_trained.component_table(labels_key="no")


def test_labels_of_the_table_must_be_in_one_column(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match="labels_key must be the name"):
                roughly_trained.component_table(labels_key=["batch"])
