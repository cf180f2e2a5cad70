"""Tests of data.conditions: the place of a condition in a minibatch, and its columns in obs."""

import numpy as np
import pandas as pd
import pytest

from scgmvae.data.conditions import Condition, columns_of, resolved

CELLS = pd.Index(["a", "b", "c"])


@pytest.fixture(scope="module")
def setup(counts, make_model):
    """Two conditions of each kind beside the batch."""
    adata = counts.copy()
    adata.obs["donor"] = np.where(np.arange(300) % 2, "d1", "d0")
    adata.obs["site"] = np.arange(300) % 3 * 5  # 0, 5, 10
    adata.obs["age"], adata.obs["dose"] = np.linspace(0, 1, 300), np.linspace(2, 3, 300)
    model = make_model(
        adata,
        {
            "batch_key": "batch",
            "categorical_covariate_keys": ["donor", "site"],
            "continuous_covariate_keys": ["age", "dose"],
        },
    )
    return model._setup


CONDITIONS = [
    pytest.param("batch", "batch_1", "batch", 0, 1, ["batch_0", "batch_1"], id="batch"),
    pytest.param("donor", "d0", "extra_categorical_covs", 0, 0, ["d0", "d1"], id="first"),
    pytest.param("site", 10, "extra_categorical_covs", 1, 2, [0, 5, 10], id="second"),
    pytest.param("site", "5", "extra_categorical_covs", 1, 1, [0, 5, 10], id="by_its_text"),
    pytest.param("age", 7, "extra_continuous_covs", 0, 7.0, None, id="first_number"),
    pytest.param("dose", "0.5", "extra_continuous_covs", 1, 0.5, None, id="second_number"),
    pytest.param("dose", True, "extra_continuous_covs", 1, 1.0, None, id="true"),
]


@pytest.mark.parametrize(("column", "value", "key", "position", "code", "categories"), CONDITIONS)
def test_a_condition_has_its_place_and_code(setup, column, value, key, position, code, categories):
    (found,) = resolved({column: value}, setup)
    assert found[:4] == (column, key, position, code)
    assert categories is None if found.categories is None else list(found.categories) == categories


def test_conditions_are_found_in_the_order_in_which_they_are_given(setup):
    found = resolved({"dose": 1, "site": 0, "batch": "batch_0"}, setup)
    assert [condition.column for condition in found] == ["dose", "site", "batch"]
    assert [condition.position for condition in found] == [1, 1, 0]


def test_columns_have_the_value_in_every_row_and_all_categories():
    conditions = [
        Condition("site", "extra_categorical_covs", 1, 2, [0, 5, 10]),
        Condition("dose", "extra_continuous_covs", 1, 0.5, None),
    ]
    columns = columns_of(conditions, CELLS)
    assert list(columns) == ["site", "dose"]
    assert columns["site"].tolist() == [10, 10, 10]
    assert columns["site"].cat.categories.tolist() == [0, 5, 10]
    assert columns["dose"].tolist() == [0.5, 0.5, 0.5]
    assert all(column.index.equals(CELLS) for column in columns.values())
