"""What is refused, with which words, and that a refused AnnData is as it was before.

Each row of a table is an input, what is done with it, and the error with its message.
"""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from scipy import sparse

from scgmvae import SCGMVAE
from scgmvae.datasets import synthetic_counts


@pytest.fixture
def adata(counts):
    return counts.copy()


def snapshot(adata):
    return adata.copy()


def assert_same(adata, before):
    """Every part of an AnnData is as in the copy made before."""
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert dict(adata.uns).keys() == dict(before.uns).keys()
    for name in ("obsm", "layers"):
        assert getattr(adata, name).keys() == getattr(before, name).keys()
    for one, other in [(adata.X, before.X)] + [
        (adata.layers[key], before.layers[key]) for key in before.layers
    ]:
        assert type(one) is type(other)
        dense, dense_before = (x.toarray() if sparse.issparse(x) else x for x in (one, other))
        np.testing.assert_array_equal(dense, dense_before)


def with_value(value, *, dense=False):
    """Change that puts a value at cell 3, gene 4."""

    def change(adata):
        x = adata.X.toarray()
        x[3, 4] = value
        adata.X = x if dense else sparse.csr_matrix(x)

    return change


def with_column(name, value, row=None):
    """Change that adds an obs column of one value, or puts a value at one row of it."""

    def change(adata):
        if row is None:
            adata.obs[name] = value
        else:
            column = adata.obs[name].astype(object)
            column.iloc[row] = value
            adata.obs[name] = column

    return change


def without_counts(adata):
    x = adata.X.toarray()
    x[7] = 0
    adata.X = sparse.csr_matrix(x)


def with_duplicate_names(adata):
    adata.obs_names = ["twice", "twice", *adata.obs_names[2:]]


def with_log_values(adata):
    adata.layers["log"] = adata.X.log1p()


def nothing(adata):
    pass


def make(**settings):
    return lambda adata: SCGMVAE(adata, **settings)


def set_up(**settings):
    return lambda adata: SCGMVAE.setup_anndata(adata, **settings)


def set_up_and_make(setup, **settings):
    def action(adata):
        SCGMVAE.setup_anndata(adata, **setup)
        return SCGMVAE(adata, **settings)

    return action


COUNTS_REMEDY = "layer=.*likelihood='gaussian'"

BAD_DATA = [
    pytest.param(with_value(-2), make(), ValueError, rf"negative.*-2.*{COUNTS_REMEDY}", id="neg"),
    pytest.param(
        with_value(-2, dense=True),
        make(),
        ValueError,
        rf"negative.*{COUNTS_REMEDY}",
        id="neg_dense",
    ),
    pytest.param(
        with_value(0.5), make(), ValueError, rf"no integers.*0\.5.*{COUNTS_REMEDY}", id="fraction"
    ),
    pytest.param(with_value(np.nan), make(), ValueError, "NaN or infinite", id="nan"),
    pytest.param(with_value(np.inf), make(), ValueError, "NaN or infinite", id="infinite"),
    pytest.param(
        with_value(np.nan),
        make(likelihood="gaussian"),
        ValueError,
        "NaN or infinite",
        id="nan_under_gaussian",
    ),
    pytest.param(
        without_counts,
        make(),
        ValueError,
        "at least one count.*'cell_7'",
        id="cell_without_counts",
    ),
    pytest.param(
        with_duplicate_names, make(), ValueError, "name of its own.*'twice'", id="same_name_twice"
    ),
    pytest.param(
        nothing, make(likelihood="bernoulli"), ValueError, r"\[0, 1\].*from", id="bernoulli_counts"
    ),
    pytest.param(
        with_log_values,
        set_up_and_make({"layer": "log"}),
        ValueError,
        rf"layers\['log'\].*no integers.*{COUNTS_REMEDY}",
        id="log_layer",
    ),
]

BAD_SETTINGS = [
    *(
        pytest.param(
            nothing, make(n_components=k), ValueError, f"1 to .*300.*{k!r}", id=f"K={k!r}"
        )
        for k in (0, -1, 2.5, True, "3", 301)
    ),
    pytest.param(
        nothing,
        set_up_and_make({"labels_key": "component"}, n_components=2),
        ValueError,
        "3 labels.*n_components=2.*at least 3",
        id="more_labels_than_components",
    ),
    pytest.param(
        nothing,
        make(likelihood="negbin"),
        ValueError,
        "likelihood.*'nb'.*'negbin'",
        id="likelihood",
    ),
    pytest.param(
        nothing, make(prior="uniform"), ValueError, "prior.*'dirichlet'.*'uniform'", id="prior"
    ),
    *(
        pytest.param(nothing, make(**{name: "other"}), ValueError, f"{name}.*'other'", id=name)
        for name in (
            "dispersion",
            "component_weights",
            "dirichlet_posterior",
            "classifier_input",
            "condition_prior",
        )
    ),
    pytest.param(nothing, make(n_hiden=3), TypeError, "n_hiden", id="no_such_setting"),
]

BAD_FIELDS = [
    *(
        pytest.param(
            nothing, set_up(**{key: "no"}), KeyError, f"{key}.*'no'.*'library_size'", id=key
        )
        for key in ("batch_key", "labels_key", "size_factor_key")
    ),
    *(
        pytest.param(
            nothing, set_up(**{key: ["batch", "no"]}), KeyError, f"{key}.*'no'.*'batch'", id=key
        )
        for key in ("categorical_covariate_keys", "continuous_covariate_keys")
    ),
    *(
        pytest.param(
            with_column("batch", np.nan, row=3),
            set_up(**{key: value}),
            ValueError,
            f"'batch'.*{key}.*'cell_3'",
            id=f"{key}_with_nan",
        )
        for key, value in (
            ("batch_key", "batch"),
            ("labels_key", "batch"),
            ("categorical_covariate_keys", ["batch"]),
        )
    ),
    *(
        pytest.param(
            with_column("library_size", value, row=3),
            set_up(size_factor_key="library_size"),
            ValueError,
            "positive.*'library_size'.*'cell_3'",
            id=f"size_factor_{value}",
        )
        for value in (0, -1.5, np.inf, "large")
    ),
    pytest.param(
        with_column("age", "old"),
        set_up(continuous_covariate_keys=["age"]),
        ValueError,
        "finite numbers.*'age'.*categorical_covariate_keys",
        id="text_as_continuous_covariate",
    ),
    pytest.param(nothing, set_up(layer="raw"), KeyError, "'raw'.*none", id="missing_layer"),
    pytest.param(
        with_log_values, set_up(layer="raw"), KeyError, "'raw'.*'log'", id="misspelt_layer"
    ),
    pytest.param(
        with_column("label", "unknown"),
        set_up(labels_key="label"),
        ValueError,
        "one cell needs a label.*'label'.*'unknown'",
        id="no_cell_has_a_label",
    ),
    pytest.param(
        with_column("label", "?"),
        set_up(labels_key="label", unlabeled_category="?"),
        ValueError,
        r"one cell needs a label.*'\?'",
        id="no_cell_has_a_label_under_another_name",
    ),
]


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
@pytest.mark.parametrize(
    ("change", "action", "error", "words"), BAD_DATA + BAD_SETTINGS + BAD_FIELDS
)
def test_bad_input_is_refused_and_left_as_it_was(adata, change, action, error, words):
    change(adata)
    before = snapshot(adata)
    is_set_up = action.__qualname__.startswith("set_up_and_make")
    with pytest.raises(error, match=words):
        action(adata)
    if is_set_up:
        # the set-up itself was right, and stays
        adata = drop_registration(adata)
    assert_same(adata, before)


def drop_registration(adata):
    """A copy without what ``setup_anndata`` writes."""
    adata = adata.copy()
    for mapping in (adata.obs, adata.uns):
        for key in [key for key in mapping if key.startswith("_scvi")]:
            del mapping[key]
    return adata


def test_data_without_counts_names_what_was_found(adata):
    adata.X = adata.X.log1p()
    with pytest.raises(ValueError, match=r"adata\.X holds values that are no integers") as caught:
        SCGMVAE(adata)
    largest = f"{adata.X.max():.4g}"
    assert largest in str(caught.value)
    SCGMVAE(adata, likelihood="gaussian")  # the remedy that the message names


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda x: np.where(np.arange(x.shape[1]) == 5, 0, x), id="gene_without_counts"
        ),
        pytest.param(lambda x: x.astype(np.int64), id="integers"),
        pytest.param(lambda x: x.astype(np.float64), id="float64"),
        pytest.param(
            sparse.csc_matrix,
            id="csc",
            # scvi-tools' advice
            marks=pytest.mark.filterwarnings("ignore:Training will be faster:UserWarning"),
        ),
    ],
)
def test_other_forms_of_counts_are_fine(adata, change, make_model, train):
    adata.X = change(adata.X.toarray())
    model = train(make_model(adata))
    assert np.isfinite(adata.obsm["X_scgmvae"]).all()
    assert torch.isfinite(model.get_elbo())


# ------------------------------------------------------------------------------- new data


def new_data(counts):
    return counts[::3].copy()


def without_genes(adata):
    return adata[:, 13:].copy()


def with_unseen_batch(adata):
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    adata.obs.loc[adata.obs_names[2], "batch"] = "batch_9"
    return adata


def without_batch(adata):
    del adata.obs["batch"]
    return adata


def with_missing_batch(adata):
    with_column("batch", np.nan, row=1)(adata)
    return adata


def with_negative(adata):
    with_value(-1)(adata)
    return adata


def with_gene_twice(adata):
    names = adata.var_names.tolist()
    extra = adata[:, :1].copy()
    both = anndata.concat([adata, extra], axis=1, merge="first")
    assert both.var_names.tolist() == [*names, names[0]]
    return both


BAD_NEW_DATA = [
    pytest.param(
        without_genes,
        ValueError,
        r"at least 80%.*lacks 13 \(21\.7%\): 'gene_0', 'gene_1'.*'gene_9' and 3 more",
        id="missing_genes",
    ),
    pytest.param(
        with_unseen_batch,
        ValueError,
        "'batch'.*'batch_9'.*Known are: 'batch_0', 'batch_1'",
        id="unseen_batch",
    ),
    pytest.param(without_batch, KeyError, "'batch'", id="no_batch_column"),
    pytest.param(with_missing_batch, ValueError, "'batch'.*have none", id="cell_without_batch"),
    pytest.param(with_negative, ValueError, "negative values", id="negative"),
    pytest.param(
        with_gene_twice, ValueError, "more than once.*'gene_0'.*make_unique", id="gene_twice"
    ),
]


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
@pytest.mark.parametrize("method", ["predict", "get_latent_representation", "annotate"])
@pytest.mark.parametrize(("change", "error", "words"), BAD_NEW_DATA)
def test_bad_new_data_are_refused_and_left_as_they_were(
    counts, trained, change, error, words, method
):
    adata = change(new_data(counts))
    before = snapshot(adata)
    with pytest.raises(error, match=words):
        getattr(trained, method)(adata)
    assert_same(adata, before)


def test_a_long_list_of_missing_genes_is_cut_short(counts, trained):
    with pytest.raises(ValueError, match="lacks 59 .*'gene_9' and 49 more"):
        trained.predict(counts[:, 59:].copy())


def test_new_data_need_no_labels(counts, make_model, train):
    adata = counts.copy()
    adata.obs["label"] = adata.obs["component"].astype(str)
    model = train(make_model(adata, setup={"labels_key": "label"}))
    query = new_data(counts)
    np.testing.assert_array_equal(model.predict(query), model.predict()[::3])
    assert "label" not in query.obs  # nothing is made up in the user's data


# ----------------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    "ask",
    [
        "predict",
        "get_latent_representation",
        "annotate",
        "get_elbo_terms",
        "component_table",
        "get_aggregated_posterior",
    ],
)
def test_an_untrained_model_has_no_results(adata, make_model, ask):
    model = make_model(adata)
    before = snapshot(adata)
    with pytest.raises(RuntimeError, match="train"):
        getattr(model, ask)()
    assert_same(adata, before)


@pytest.mark.parametrize(
    ("ask", "settings"),
    [
        ("predict", {}),
        ("component_table", {}),
        ("get_latent_representation", {"which": "w"}),
    ],
    ids=["predict", "component_table", "w"],
)
def test_a_model_without_components_says_so(trained_normal, ask, settings):
    with pytest.raises(RuntimeError, match="prior is 'normal'"):
        getattr(trained_normal, ask)(**settings)


def test_there_is_no_third_latent(trained):
    with pytest.raises(ValueError, match="'z' or 'w'.*'q'"):
        trained.get_latent_representation(which="q")


def test_importance_weights_are_refused(trained):
    with pytest.raises(NotImplementedError, match="weights='uniform'"):
        trained.get_normalized_expression(n_samples_overall=10, weights="importance")
    with pytest.raises(NotImplementedError, match="weights='uniform'"):
        trained.get_importance_weights()


def with_guide(values):
    def change(adata):
        adata.obs["guide"] = values

    return change


BAD_TRAINING = [
    pytest.param(nothing, {}, {"start": "louvain"}, ValueError, "'leiden'.*'louvain'", id="start"),
    pytest.param(
        nothing,
        {"n_components": None},
        {"start": "kmeans"},
        ValueError,
        "'kmeans' needs the number of groups.*n_components",
        id="kmeans_without_K",
    ),
    pytest.param(
        nothing, {}, {"guide_key": "no"}, KeyError, "guide_key.*'no'", id="no_guide_column"
    ),
    pytest.param(
        with_guide(pd.Categorical(["a", None, "b"] * 100)),
        {},
        {"guide_key": "guide"},
        ValueError,
        "'guide'.*guide_key.*100 have none.*'cell_1'",
        id="guide_with_nan",
    ),
    pytest.param(
        with_guide(np.arange(300) % 5),
        {},
        {"guide_key": "guide"},
        ValueError,
        "guide.*5.*3",
        id="more_guides_than_components",
    ),
    pytest.param(nothing, {}, {"train_size": 1.5}, ValueError, "train_size", id="train_size"),
    pytest.param(nothing, {}, {"max_epochs": -1}, ValueError, "max_epochs", id="max_epochs"),
    pytest.param(
        nothing, {}, {"pretrain_epochs": -1}, ValueError, "pretrain_epochs", id="pretrain_epochs"
    ),
    pytest.param(nothing, {}, {"batch_size": 0}, ValueError, "batch_size", id="batch_size"),
]


@pytest.mark.parametrize(("change", "model_settings", "settings", "error", "words"), BAD_TRAINING)
def test_bad_training_arguments_are_refused(
    adata, make_model, train, change, model_settings, settings, error, words
):
    change(adata)
    model = make_model(adata, **model_settings)
    before = snapshot(adata)
    with pytest.raises(error, match=words):
        train(model, **settings)
    assert_same(adata, before)
    assert not model.is_trained_
    # nothing is lost: the model trains as if nothing had happened
    train(model, max_epochs=1, pretrain_epochs=1)
    assert len(adata.obs["scgmvae"]) == 300


def test_a_misspelt_start_is_refused_before_the_pretraining(adata, make_model, train):
    model = make_model(adata)
    epochs = []
    callback = LambdaCallback(on_train_epoch_end=lambda *_: epochs.append(1))
    with pytest.raises(ValueError, match="'louvain'"):
        train(model, start="louvain", callbacks=[callback])
    assert epochs == []


def test_more_labels_than_groups_found_still_get_a_component_each(make_model, train):
    # nine arbitrary labels, of which the counts know nothing
    adata = synthetic_counts(200, 40, n_components=3, seed=0)
    adata.obs["label"] = (np.arange(200) % 9).astype(str)
    model = make_model(adata, setup={"labels_key": "label"}, n_components=None)
    train(model)
    assert model.n_components_ >= 9
    assert list(model.component_names[:9]) == [str(k) for k in range(9)]
