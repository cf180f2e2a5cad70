"""Tests of data.categories: which categories count, and when two are the same."""

import numpy as np
import pandas as pd
import pytest

from scgmvae import SCGMVAE
from scgmvae.data.categories import name_of, names_of

# What a column of two batches looks like in different files.
SPELLINGS = {
    "integers": np.array([0, 1]),
    "floats": np.array([0.0, 1.0]),
    "strings": np.array(["0", "1"], dtype=object),
    "booleans": np.array([False, True]),
    "their names": np.array(["False", "True"], dtype=object),
    "categories": pd.Categorical(["0", "1"]),
    "nullable": pd.array([0, 1], dtype="Int64"),
    "texts of floats": np.array(["0.0", "1.0"], dtype=object),
    "a category too many": pd.Categorical(["0", "1"], categories=["2", "0", "1"]),
}
ZERO_ONE = tuple(name for name in SPELLINGS if name not in ("booleans", "their names"))
TRUE_FALSE = ("booleans", "their names")
PAIRS = [(a, b) for group in (ZERO_ONE, TRUE_FALSE) for a in group for b in group]


def spelled(adata, spelling):
    """A copy that has two batches, and two sites, which are spelled like that."""
    adata = adata.copy()
    codes = adata.obs["batch"].cat.codes.to_numpy()
    for column in ("batch", "site"):
        adata.obs[column] = pd.Series(SPELLINGS[spelling]).take(codes).array
    return adata


@pytest.fixture(scope="module")
def models(counts, make_model, train):
    """Models whose batches, and whose further condition, were spelled in each way."""

    def made(spelling):
        adata = spelled(counts, spelling)
        setup = {"batch_key": "batch", "categorical_covariate_keys": ["site"]}
        return train(make_model(adata, setup), max_epochs=1, pretrain_epochs=1)

    return {spelling: made(spelling) for spelling in SPELLINGS}


@pytest.mark.parametrize(
    ("value", "name"),
    [(0, "0"), (0.0, "0"), (np.float32(3), "3"), (0.5, "0.5"), (True, "True"), ("0.0", "0.0")],
)
def test_names_are_texts_without_needless_decimals(value, name):
    assert name_of(value) == name


def test_names_of_a_column_of_several_types():
    column = pd.Series([1, "1", 2.0, "b", None, np.nan], dtype=object)
    assert names_of(column).tolist() == ["1", "1", "2", "b", "nan", "nan"]


@pytest.mark.parametrize(("own", "new"), PAIRS)
def test_one_batch_has_one_meaning_however_it_is_spelled(models, counts, own, new):
    model = models[own]
    expected = model.get_latent_representation()
    adata = spelled(counts, new)
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)
    value = adata.obs["batch"].iloc[0]
    given = [pd.Series(values).unique()[0] for values in (SPELLINGS[own], [value])]
    rates = [
        model.predict_counterfactual(None, {"batch": v, "site": v}).layers["rate"] for v in given
    ]
    if name_of(given[0]) == name_of(given[1]):
        np.testing.assert_array_equal(*rates)
    shares = [model.get_normalized_expression(adata, transform_batch=v) for v in (value, [value])]
    np.testing.assert_array_equal(*shares)


@pytest.mark.parametrize(("own", "new"), PAIRS)
def test_a_query_knows_the_batches_of_its_reference(models, counts, own, new):
    adata = spelled(counts, new)
    query = SCGMVAE.load_query_data(adata, models[own])
    assert query.module.n_categories == (2, 2)
    np.testing.assert_array_equal(
        query.get_latent_representation(), models[own].get_latent_representation()
    )


@pytest.mark.parametrize("own", ZERO_ONE)
@pytest.mark.parametrize("new", ["x", 7, 2.5])
def test_a_query_adds_what_is_new(models, counts, own, new):
    adata = spelled(counts, own)
    adata.obs["batch"] = adata.obs["batch"].astype(object)
    adata.obs.loc[adata.obs_names[:40], "batch"] = new
    query = SCGMVAE.load_query_data(adata, models[own])
    known = [name_of(value, "01") for value in query._setup.categories["batch"]]
    assert known == ["0", "1", name_of(new)]
    query.train(max_epochs=1, enable_progress_bar=False)
    shares = query.get_normalized_expression(transform_batch=name_of(new))
    assert shares.shape == adata.shape


@pytest.mark.parametrize("own", SPELLINGS)
def test_a_saved_model_reads_every_spelling(models, counts, tmp_path, own):
    models[own].save(tmp_path / "model")
    for new in ZERO_ONE if own in ZERO_ONE else TRUE_FALSE:
        adata = spelled(counts, new)
        loaded = SCGMVAE.load(tmp_path / "model", adata)
        np.testing.assert_array_equal(loaded.predict(), models[own].predict())


@pytest.fixture(scope="module")
def with_empty_level(counts, make_model, train):
    adata = counts.copy()
    levels = ["batch_2", "batch_0", "batch_1"]
    batches = pd.Categorical(counts.obs["batch"].astype(str), categories=levels)
    adata.obs = adata.obs.assign(batch=batches, site=batches)
    setup = {"batch_key": "batch", "categorical_covariate_keys": ["site"]}
    return train(make_model(adata, setup), max_epochs=1, pretrain_epochs=1)


def test_a_category_without_cells_is_not_known(with_empty_level):
    known = ["batch_0", "batch_1"]
    assert {k: list(v) for k, v in with_empty_level._setup.categories.items()} == {
        "batch": known,
        "site": known,
    }
    assert with_empty_level.module.n_categories == (2, 2)
    assert with_empty_level.summary_stats.n_batch == 2


def test_its_column_stays_as_it_was(with_empty_level):
    assert list(with_empty_level.adata.obs["batch"].cat.categories) == [
        "batch_2",
        "batch_0",
        "batch_1",
    ]


@pytest.mark.parametrize("column", ["batch", "site"])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda m, a, c: m.predict(a), id="predict"),
        pytest.param(lambda m, a, c: m.sample(5, conditions=c), id="sample"),
        pytest.param(lambda m, a, c: m.predict_counterfactual(None, c), id="counterfactual"),
    ],
)
def test_reading_it_is_refused(with_empty_level, counts, call, column):
    adata = counts.copy()
    adata.obs["site"] = adata.obs["batch"]
    adata.obs[column] = "batch_2"
    with pytest.raises(ValueError, match=r"batch_2.*Known are: 'batch_0', 'batch_1'"):
        call(with_empty_level, adata, {column: "batch_2"})


def test_transforming_to_it_is_refused(with_empty_level):
    with pytest.raises(ValueError, match=r"'batch_2' is none. Known are: 'batch_0'"):
        with_empty_level.get_normalized_expression(transform_batch="batch_2")


def test_a_query_of_it_is_trained(with_empty_level, counts):
    adata = counts[:50].copy()
    adata.obs["site"] = adata.obs["batch"]
    adata.obs["batch"] = "batch_2"
    query = SCGMVAE.load_query_data(adata, with_empty_level)
    assert query.module.n_categories == (3, 2)
    query.train(max_epochs=1, enable_progress_bar=False)
    assert query.predict().shape == (50,)


def test_batches_of_a_model_without_any_are_refused(trained_normal):
    with pytest.raises(ValueError, match=r"transform_batch names batches, but .* without"):
        trained_normal.get_normalized_expression(transform_batch="batch_0")


def test_a_batch_of_few_cells_is_warned_of_by_its_name(counts, make_model):
    adata = counts.copy()
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) < 2, "rare", "common")
    with pytest.warns(UserWarning, match=r"obs column 'batch' has fewer than 3 cells of 'rare'"):
        make_model(adata, setup={"batch_key": "batch"})


@pytest.mark.parametrize("setup", ["batch_key", "categorical_covariate_keys"])
@pytest.mark.parametrize("kind", ["barcodes", "numbers"])
def test_a_value_of_its_own_for_every_cell_is_no_condition(counts, setup, kind):
    adata = counts.copy()
    adata.obs["own"] = adata.obs_names if kind == "barcodes" else np.linspace(0, 1, 300)
    with pytest.raises(ValueError, match="every cell has a value of its own in the obs column"):
        SCGMVAE.setup_anndata(adata, **{setup: "own" if setup == "batch_key" else ["own"]})
    assert not [name for name in adata.obs if name.startswith("_scvi")]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(pd.to_datetime(["2020-01-01", "2021-02-02"]), id="dates"),
        pytest.param(pd.to_timedelta([1, 2], unit="D"), id="times"),
        pytest.param(np.array([0.1, 1.5], np.float32), id="single"),
        pytest.param(np.array([0.1, 1.5], np.float16), id="half"),
    ],
)
def test_values_of_any_type_are_categories(counts, make_model, values):
    adata = counts.copy()
    codes = adata.obs["batch"].cat.codes.to_numpy()
    adata.obs["own"] = pd.Series(values).take(codes).array
    for setup in ({"batch_key": "own"}, {"categorical_covariate_keys": ["own"]}):
        model = make_model(adata, setup)
        known = list(model._setup.categories["own"])
        assert known == sorted(known)
        np.testing.assert_array_equal(
            names_of(adata.obs["own"]), [name_of(known[k]) for k in codes]
        )
