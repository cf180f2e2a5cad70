"""Tests of data.label_field: codes of the cells that have a label, and of those that have none."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgmvae import SCGMVAE
from scgmvae.data.label_field import LabelsField
from scgmvae.data.registry import label_codes

COLUMNS = [
    pytest.param(["b", "?", "a", "b"], "?", ["a", "b"], [1, 2, 0, 1], id="strings"),
    pytest.param([10, -1, 5, 10], -1, ["5", "10"], [1, 2, 0, 1], id="numbers_in_their_order"),
    pytest.param([10, -1, 5, 10], "-1", ["5", "10"], [1, 2, 0, 1], id="unlabelled_as_a_string"),
    pytest.param(["1", "0", "2", "1"], 0, ["1", "2"], [0, 2, 1, 0], id="unlabelled_as_a_number"),
    pytest.param([2, "b", "?", 10], "?", ["10", "2", "b"], [1, 2, 3, 0], id="several_types"),
    pytest.param([1, "1", "?", 2], "?", ["1", "2"], [0, 0, 2, 1], id="names_that_read_alike"),
    pytest.param(
        pd.Categorical(["b", "?", "a", "b"], ["z", "b", "a", "?"]),
        "?",
        ["a", "b"],
        [1, 2, 0, 1],
        id="categories",
    ),
]


def cells(values):
    """Cells without genes, with their labels in a column."""
    index = pd.Index([f"cell_{i}" for i in range(len(values))])
    values = values if isinstance(values, pd.Categorical) else np.array(values, dtype=object)
    return AnnData(np.zeros((len(values), 0)), obs=pd.DataFrame({"label": values}, index=index))


@pytest.mark.parametrize(("values", "unlabeled", "names", "codes"), COLUMNS)
def test_names_that_occur_have_codes_and_the_last_is_for_cells_without(
    values, unlabeled, names, codes
):
    adata = cells(values)
    before = adata.obs["label"].copy()
    state = LabelsField("labels", "label", unlabeled).register_field(adata)
    assert state["categorical_mapping"].tolist() == [*names, str(unlabeled)]
    assert state["unlabeled_category"] == unlabeled
    assert adata.obs["_scvi_labels"].tolist() == codes
    pd.testing.assert_series_equal(adata.obs["label"], before)


@pytest.mark.parametrize(
    ("column", "codes"),
    [
        pytest.param(["5", 10, "-1", "new"], [0, 1, 2, 2], id="with_names_known_and_unknown"),
        pytest.param(None, [2, 2, 2, 2], id="without_the_column"),
    ],
)
def test_new_data_take_the_codes_of_the_model(column, codes):
    field, known = LabelsField("labels", "label", -1), cells([10, -1, 5, 10])
    state = field.register_field(known)
    adata = cells(column or list("abcd"))
    if column is None:
        del adata.obs["label"]
    transferred = field.transfer_field(state, adata)
    assert transferred["categorical_mapping"].tolist() == ["5", "10", "-1"]
    assert adata.obs["_scvi_labels"].tolist() == codes
    assert ("label" in adata.obs) == (column is not None)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=str)
def test_cells_with_a_missing_value_have_no_label(counts, make_model, missing):
    adata = counts.copy()
    labels = adata.obs["component"].astype(object)
    labels.iloc[::3] = missing
    adata.obs["type"] = labels
    model = make_model(adata, {"labels_key": "type"})
    assert model._setup.label_names == ["component_0", "component_1", "component_2"]
    codes = label_codes(model.adata_manager)
    assert (codes[::3] == -1).all()
    kept = np.arange(300) % 3 > 0
    assert (codes[kept] == counts.obs["component"].cat.codes[kept]).all()


@pytest.mark.parametrize(
    ("value", "category", "message"),
    [
        ("Unknown", "unknown", "unlabeled_category='unknown'.*'Unknown' looks like it"),
        ("Unassigned", "unknown", "'Unassigned' looks like it"),
        ("component_1", "none", "unlabeled_category='none'.*all cells count as labelled"),
    ],
)
def test_an_unlabelled_category_that_no_cell_has_is_warned_of(counts, value, category, message):
    adata = counts.copy()
    adata.obs["type"] = np.where(np.arange(300) % 3 > 0, adata.obs["component"], value)
    with pytest.warns(UserWarning, match=message):
        SCGMVAE.setup_anndata(adata, labels_key="type", unlabeled_category=category)


def test_labels_of_all_cells_are_no_reason_to_warn(counts):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SCGMVAE.setup_anndata(counts.copy(), labels_key="component")
    assert caught == []
