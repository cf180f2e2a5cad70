"""What is refused, with which words, and that whatever was refused leaves all as it was.

Each row of a table is what there is, what is done with it, and the error with its message.
"""

import re

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import LambdaCallback
from scipy import sparse
from small import NETWORK, TRAINING
from states import unchanged

from scgmvae import SCGMVAE, DualVAE, datasets, metrics, pl
from scgmvae.datasets import synthetic_counts

QUICK = TRAINING | {"max_epochs": 1, "pretrain_epochs": 1, "start": "kmeans"}


@pytest.fixture
def adata(counts):
    return counts.copy()


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def conditioned(counts):
    """A trained model with a batch, a continuous covariate and labels."""
    adata = counts.copy()
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    keys = {"batch_key": "batch", "continuous_covariate_keys": ["age"]}
    SCGMVAE.setup_anndata(adata, **keys)
    model = SCGMVAE(adata, **(NETWORK | {"n_components": 3}))
    model.train(**QUICK)
    return model


@pytest.fixture(scope="module")
def of_images():
    """A trained model of images with a plane as its latent."""
    model = SCGMVAE(datasets.digits()[:60].copy(), n_hidden=8, n_latent=2, n_components=3)
    model.train(**QUICK)
    return model


@pytest.fixture(scope="module")
def microscopy():
    return datasets.two_photon(20, image_shape=(12, 12))


@pytest.fixture(scope="module")
def dual(microscopy):
    """A trained DualVAE."""
    model = DualVAE(microscopy.copy(), n_latent_foreground=4)
    model.train(1, enable_progress_bar=False, accelerator="cpu")
    return model


# ---------------------------------------------------------------------- what there is: worlds


def nothing(request):
    return ()


def data(change=None, **setup):
    """A copy of the counts, changed, and set up where keywords say how."""

    def world(request):
        adata = request.getfixturevalue("counts").copy()
        adata = adata if change is None else changed(adata, change)
        if setup:
            SCGMVAE.setup_anndata(adata, **setup)
        return (adata,)

    return world


def untrained(change=None, prior="dirichlet", **setup):
    """A model of such data, not trained."""

    def world(request):
        (adata,) = data(change, **setup)(request)
        sizes = {} if prior == "normal" else {"n_components": min(3, adata.n_obs)}
        return (SCGMVAE(adata, prior=prior, **(NETWORK | sizes)),)

    return world


def of(*names):
    """Fixtures by name: models that are only read."""
    return lambda request: tuple(map(request.getfixturevalue, names))


def new_data(change):
    """The model with conditions, and changed data of the same kind for it."""

    def world(request):
        model = request.getfixturevalue("conditioned")
        adata = request.getfixturevalue("counts")[::3].copy()
        adata.obs["age"] = 0.5
        return model, changed(adata, change)

    return world


def images(change=None):
    def world(request):
        adata = request.getfixturevalue("microscopy").copy()
        return (adata if change is None else changed(adata, change),)

    return world


def new_dual(request):
    return (DualVAE(request.getfixturevalue("microscopy").copy(), n_latent_foreground=4),)


def saved(change=None):
    """The folder of a saved model, and changed data for it."""

    def world(request):
        folder = request.getfixturevalue("tmp_path") / "model"
        request.getfixturevalue("conditioned").save(folder)
        if change is None:
            return (folder,)
        return new_data(change)(request)[1], folder

    return world


# ------------------------------------------------------------------------------------ changes


def changed(adata, change):
    """What a change returns, or else the data that it has changed."""
    result = change(adata)
    return adata if result is None else result


def dense(function):
    """Change of the matrix, with its zeros."""

    def change(adata):
        adata.X = function(adata.X.toarray())

    return change


def with_value(value, dtype=np.float32, form=sparse.csr_matrix):
    """Change that puts a value at cell 3, gene 4."""

    def change(adata):
        x = adata.X.toarray().astype(dtype)
        x[3, 4] = value
        adata.X = form(x)

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


def with_duplicate_cells(adata):
    adata.obs_names = ["twice", "twice", *adata.obs_names[2:]]


def with_duplicate_genes(adata):
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]


def with_log_layer(adata):
    adata.layers["log"] = adata.X.log1p()


def with_shape(value):
    def change(adata):
        adata.uns["image_shape"] = value

    return change


def without_column(name):
    def change(adata):
        del adata.obs[name]

    return change


def without_shape(adata):
    del adata.uns["image_shape"]


def other_genes(adata):
    adata.var_names = [f"other_{i}" for i in range(adata.n_vars)]


def with_gene_twice(adata):
    names = adata.var_names.tolist()
    both = anndata.concat([adata, adata[:, :1].copy()], axis=1, merge="first")
    assert both.var_names.tolist() == [*names, names[0]]
    return both


# ----------------------------------------------------------------------------------- calls


def make(**settings):
    return lambda adata: SCGMVAE(adata, **(NETWORK | {"n_components": 3} | settings))


def set_up(**settings):
    return lambda adata: SCGMVAE.setup_anndata(adata, **settings)


def training(**settings):
    return lambda model: model.train(**(QUICK | settings))


def plan(**settings):
    return training(plan_kwargs=settings)


def ask(name, *args, **kwargs):
    return lambda model, *new: getattr(model, name)(*new, *args, **kwargs)


def row(id, world, call, error, words):
    return pytest.param(world, call, error, words, id=id)


def rows(id, world, call, values, error, words):
    """A row for each bad value of one argument, which ``call`` takes; {value} stands for it."""
    return [
        row(
            f"{id}={value!r:.25}",
            world,
            call(value),
            error,
            words.replace("{value}", re.escape(f"{value!r:.90}")),
        )
        for value in values
    ]


REMEDY = "layer=.*likelihood='gaussian'"
IN_PLAN = {"batch": "batch_0", "age": 0.5}

BAD_DATA = [
    row("no_anndata", nothing, lambda: SCGMVAE("x.h5ad"), ValueError, "an AnnData.*str.*read"),
    row("a_matrix", nothing, lambda: SCGMVAE(np.ones((3, 3))), ValueError, "AnnData.*ndarray"),
    row(
        "no_anndata_set_up",
        nothing,
        lambda: SCGMVAE.setup_anndata(pd.DataFrame()),
        ValueError,
        "AnnData.*DataFrame",
    ),
    row("neither_data_nor_registry", nothing, SCGMVAE, ValueError, "adata or registry"),
    row("no_cells", data(lambda a: a[:0].copy()), make(), ValueError, "0 cells and 60 genes"),
    row("no_genes", data(lambda a: a[:, :0].copy()), make(), ValueError, "300 cells and 0 genes"),
    row("no_X", data(lambda a: AnnData(obs=a.obs, var=a.var)), make(), ValueError, "no X.*layer"),
    row("view", data(lambda a: a[:50]), make(), ValueError, r"view.*adata\.copy\(\)"),
    row("view_set_up", data(lambda a: a[:50]), set_up(), ValueError, r"view.*adata\.copy\(\)"),
    row("negative", data(with_value(-2)), make(), ValueError, f"negative.*-2.*{REMEDY}"),
    row(
        "negative_dense",
        data(with_value(-2, form=np.asarray)),
        make(),
        ValueError,
        f"negative.*{REMEDY}",
    ),
    row("fraction", data(with_value(0.5)), make(), ValueError, rf"no integers.*0\.5.*{REMEDY}"),
    row("nan", data(with_value(np.nan)), make(), ValueError, "NaN or infinite"),
    row("infinite", data(with_value(np.inf)), make(), ValueError, "NaN or infinite"),
    row("minus_infinite", data(with_value(-np.inf)), make(), ValueError, "NaN or infinite"),
    row(
        "nan_under_gaussian",
        data(with_value(np.nan)),
        make(likelihood="gaussian"),
        ValueError,
        "NaN or infinite",
    ),
    *(
        row(
            f"too_large_{likelihood}",
            data(with_value(1e300, np.float64, np.asarray)),
            make(likelihood=likelihood),
            ValueError,
            r"within ±1e\+18.*single precision.*1e\+300",
        )
        for likelihood in ("nb", "gaussian")
    ),
    *(
        row(
            f"{np.dtype(kind).name}_values",
            data(dense(lambda x, kind=kind: x.astype(kind))),
            make(likelihood="gaussian"),
            ValueError,
            f"real numbers.*{np.dtype(kind).name[:3]}|real numbers.*<U|real numbers.*datetime",
        )
        for kind in ("complex64", "object", "str", "datetime64[s]", "longdouble")
    ),
    row(
        "masked_values",
        data(dense(lambda x: np.ma.masked_greater(x, 5))),
        make(),
        ValueError,
        "masked.*filled",
    ),
    row("no_counts", data(without_counts), make(), ValueError, "at least one count.*'cell_7'"),
    row("cell_twice", data(with_duplicate_cells), make(), ValueError, "cell needs.*'twice'"),
    row("gene_twice", data(with_duplicate_genes), make(), ValueError, "gene needs.*'twice'"),
    row("bernoulli", data(), make(likelihood="bernoulli"), ValueError, r"\[0, 1\].*from"),
    row(
        "log_layer",
        data(with_log_layer, layer="log"),
        make(),
        ValueError,
        rf"layers\['log'\].*no integers.*{REMEDY}",
    ),
    *rows(
        "image_shape",
        nothing,
        lambda shape: lambda: SCGMVAE(AnnData(np.ones((3, 6)), uns={"image_shape": shape})),
        ("3x2", (6,), (np.nan, 6), (-2, -3), (3, 2, 1, 1), (1.5, 4)),
        ValueError,
        "height, width.*{value}",
    ),
    row("other_shape", data(with_shape((7, 7))), make(), ValueError, "49 values.*60 columns"),
    row("counts_as_images", data(with_shape((6, 10))), make(), ValueError, r"\[0, 1\]"),
]

BAD_SETTINGS = [
    *rows(
        "K",
        data(),
        lambda k: make(n_components=k),
        (0, -1, 1.5, True, "3", 301, np.nan),
        ValueError,
        "n_components.*1 to .*300.*{value}",
    ),
    row(
        "more_labels_than_components",
        data(labels_key="component"),
        make(n_components=2),
        ValueError,
        "3 labels.*n_components=2.*at least 3",
    ),
    *(
        row(name, data(), make(**{name: "other"}), ValueError, f"{name} must be one of.*'other'")
        for name in (
            "likelihood",
            "prior",
            "encoder",
            "dispersion",
            "component_weights",
            "dirichlet_posterior",
            "classifier_input",
            "condition_prior",
        )
    ),
    row("prior=None", data(), make(prior=None), ValueError, "'dirichlet'.*None"),
    *(
        case
        for name, values in {
            "n_latent": (0, -1, 2.5, "5", None),
            "n_latent_w": (0, 2.5),
            "n_hidden": (0, -3, 1.5),
            "n_layers": (-1, 1.5),
        }.items()
        for case in rows(
            name,
            data(),
            lambda value, name=name: make(**{name: value}),
            values,
            ValueError,
            f"{name} must be an integer.*{{value}}",
        )
    ),
    row("no_width", data(), make(n_hidden=[]), ValueError, "at least one width"),
    *(
        case
        for name in ("dropout_rate", "input_dropout_rate")
        for case in rows(
            name,
            data(),
            lambda value, name=name: make(**{name: value}),
            (-0.1, 1.0, 1.5, np.nan, "0.1"),
            ValueError,
            f"^{name} must be at least 0 and below 1.*{{value}}",
        )
    ),
    *(
        case
        for name in ("concentration", "gaussian_scale")
        for case in rows(
            name,
            data(),
            lambda value, name=name: make(**{name: value}),
            (0, -1, np.inf, np.nan, "1"),
            ValueError,
            f"{name} must be at least 0.001.*{{value}}",
        )
    ),
    row("image_shape_text", data(), make(image_shape="ab"), ValueError, "height, width.*'ab'"),
    row("no_such_setting", data(), make(n_hiden=3), TypeError, "n_hiden"),
]

BAD_FIELDS = [
    *(
        row(f"no_{key}", data(), set_up(**{key: "no"}), KeyError, f"{key}.*'no'.*'library_size'")
        for key in ("batch_key", "labels_key", "size_factor_key")
    ),
    *(
        row(f"no_{key}", data(), set_up(**{key: ["batch", "no"]}), KeyError, f"{key}.*'no'")
        for key in ("categorical_covariate_keys", "continuous_covariate_keys")
    ),
    *(
        case
        for key in ("batch_key", "labels_key", "size_factor_key")
        for case in rows(
            key,
            data(),
            lambda value, key=key: set_up(**{key: value}),
            (["batch"], 3),
            ValueError,
            f"{key} must be the name of an obs column, but it is {{value}}",
        )
    ),
    *(
        case
        for key in ("categorical_covariate_keys", "continuous_covariate_keys")
        for case in rows(
            key,
            data(),
            lambda value, key=key: set_up(**{key: value}),
            ("batch", ("batch",), ["batch", "batch"], [3]),
            ValueError,
            f"{key} must be a list of different obs columns, but it is {{value}}",
        )
    ),
    *(
        row(
            f"{key}_with_nan",
            data(with_column("batch", np.nan, row=3)),
            set_up(**{key: value}),
            ValueError,
            f"'batch'.*{key}.*'cell_3'",
        )
        for key, value in (
            ("batch_key", "batch"),
            ("labels_key", "batch"),
            ("categorical_covariate_keys", ["batch"]),
        )
    ),
    *(
        row(
            f"size_factor_{value}",
            data(with_column("library_size", value, row=3)),
            set_up(size_factor_key="library_size"),
            ValueError,
            "positive.*'library_size'.*'cell_3'",
        )
        for value in (0, -1.5, np.inf, "large", 1e-300, 1e300)
    ),
    *(
        row(
            f"age_{value!r:.12}",
            data(with_column("age", value)),
            set_up(continuous_covariate_keys=["age"]),
            ValueError,
            "finite numbers.*'age'.*categorical_covariate_keys",
        )
        for value in ("old", np.inf, 1e300, 1j, pd.Timestamp("2020-01-01"))
    ),
    row("missing_layer", data(), set_up(layer="raw"), KeyError, "'raw'.*none"),
    row("layer_list", data(), set_up(layer=["raw"]), KeyError, r"\['raw'\].*none"),
    row("misspelt_layer", data(with_log_layer), set_up(layer="raw"), KeyError, "'raw'.*'log'"),
    row("no_such_field", data(), set_up(batchkey="batch"), TypeError, "batchkey"),
    row(
        "no_cell_has_a_label",
        data(with_column("label", "unknown")),
        set_up(labels_key="label"),
        ValueError,
        "one cell needs a label.*'label'.*'unknown'",
    ),
    row(
        "no_cell_has_a_label_under_another_name",
        data(with_column("label", "?")),
        set_up(labels_key="label", unlabeled_category="?"),
        ValueError,
        r"one cell needs a label.*'\?'",
    ),
]

BAD_TRAINING = [
    row("start", untrained(), training(start="louvain"), ValueError, "'leiden'.*'louvain'"),
    row("no_guide", untrained(), training(guide_key="no"), KeyError, "guide_key.*'no'"),
    row(
        "guide_list", untrained(), training(guide_key=["batch"]), ValueError, "guide_key.*name of"
    ),
    row("no_balance", untrained(), training(balance_key="no"), KeyError, "balance_key.*'no'"),
    row("balance_3", untrained(), training(balance_key=3), ValueError, "balance_key.*name of"),
    row(
        "guide_with_nan",
        untrained(with_column("guide", pd.Categorical(["a", None, "b"] * 100))),
        training(guide_key="guide"),
        ValueError,
        "'guide'.*guide_key.*100 have none.*'cell_1'",
    ),
    row(
        "more_guides_than_components",
        untrained(with_column("guide", np.arange(300) % 5)),
        training(guide_key="guide"),
        ValueError,
        "guide.*5 groups.*n_components=3",
    ),
    row(
        "guide_without_mixture",
        untrained(prior="normal"),
        training(guide_key="batch"),
        ValueError,
        "prior='normal' has none",
    ),
    *(
        case
        for name, values in {
            "max_epochs": (0, -1, 1.5, "3", True),
            "pretrain_epochs": (-1, 0.5, np.nan),
            "batch_size": (0, -1, 1.5, "64"),
        }.items()
        for case in rows(
            name,
            untrained(),
            lambda value, name=name: training(**{name: value}),
            values,
            ValueError,
            f"{name} must be an integer.*{{value}}",
        )
    ),
    *rows(
        "guide_weight",
        untrained(),
        lambda value: training(guide_weight=value),
        (-1, np.nan, np.inf, "a"),
        ValueError,
        "guide_weight must be at least 0, but it is {value}",
    ),
    *rows(
        "seed",
        untrained(),
        lambda value: training(seed=value),
        (-1, 1.5, "a", 2**32, True),
        ValueError,
        "seed must be an integer from 0 to 4294967295.*{value}",
    ),
    *rows(
        "train_size",
        untrained(),
        lambda value: training(train_size=value),
        (0, -0.1, 1.5, np.nan, "a"),
        ValueError,
        "train_size must be a share above 0.*{value}",
    ),
    *rows(
        "validation_size",
        untrained(),
        lambda value: training(validation_size=value),
        (-0.1, 1, np.nan),
        ValueError,
        "validation_size must be at least 0 and below 1.*{value}",
    ),
    row(
        "sizes_above_1",
        untrained(),
        training(train_size=0.8, validation_size=0.5),
        ValueError,
        r"train_size \+ validation_size",
    ),
    row(
        "early_stopping_without_validation",
        untrained(),
        training(early_stopping=True, train_size=1.0),
        ValueError,
        "validation cells.*train_size below 1",
    ),
    pytest.param(
        untrained(lambda adata: adata[:1].copy()),
        training(),
        ValueError,
        "two cells or more.*of 1 cells there are 1",
        id="one_cell",
        # scvi-tools' advice
        marks=pytest.mark.filterwarnings("ignore:Category 0 in adata.obs:UserWarning"),
    ),
    *(
        row(
            f"rows_{id}",
            untrained(),
            training(datasplitter_kwargs={"external_indexing": parts}),
            ValueError,
            f"every row.*{words}",
        )
        for id, parts, words in (
            ("missing", [np.arange(299)], "299 different numbers in 299.*300 rows"),
            ("twice", [np.arange(300), np.array([3])], "300 different numbers in 301"),
            ("beyond", [np.arange(1, 301)], "300 different numbers in 300"),
        )
    ),
    row(
        "no_such_splitter_setting",
        untrained(),
        training(datasplitter_kwargs={"cell_in_memory": 9}),
        TypeError,
        "do not exist: 'cell_in_memory'",
    ),
    row(
        "cells_in_memory",
        untrained(),
        training(datasplitter_kwargs={"cells_in_memory": 0}),
        ValueError,
        "cells_in_memory must be an integer of at least 1",
    ),
    *rows(
        "lr",
        untrained(),
        lambda value: plan(lr=value),
        (-1, np.nan, np.inf, "a"),
        ValueError,
        "lr must be at least 0.*{value}",
    ),
    *(
        row(f"{name}=-1", untrained(), plan(**{name: -1}), ValueError, f"{name} must be at least")
        for name in (
            "weight_decay",
            "eps",
            "kl_warmup",
            "pretrain_kl_weight",
            "max_kl_weight",
            "guide_weight",
            "guide_fraction",
            "classification_weight",
            "n_epochs_kl_warmup",
            "distortion",
        )
    ),
    *rows(
        "lr_decline",
        untrained(),
        lambda value: plan(lr_decline=value),
        (-0.1, 1.1, np.nan, "a"),
        ValueError,
        "lr_decline must be from 0 to 1.*{value}",
    ),
    row("n_samples", untrained(), plan(n_samples=0), ValueError, "n_samples must be an integer"),
    row("no_images", untrained(), plan(distortion=1.0), ValueError, "distortion is one of images"),
    row("no_such_plan_setting", untrained(), plan(lrr=1), TypeError, "nor the loss.*'lrr'"),
    row("length_in_plan", untrained(), plan(joint_epochs=3), TypeError, "joint_epochs"),
    row("optimizer", untrained(), plan(optimizer="no"), ValueError, "Optimizer not understood"),
    row("accelerator", untrained(), training(accelerator="tpux"), ValueError, "'tpux'"),
    row("strategy", untrained(), training(strategy="ddp_spawn"), ValueError, "would be lost"),
    row("no_such_trainer_setting", untrained(), training(epochs=3), TypeError, "epochs"),
    row("trained_lr", of("conditioned"), plan(lr=-1), ValueError, "lr must be at least 0"),
    row("trained_guide", of("conditioned"), training(guide_key="batch"), ValueError, "go on"),
]

READINGS = {
    "predict": {},
    "get_latent_representation": {},
    "get_novelty": {},
    "get_elbo": {},
    "get_elbo_terms": {},
    "get_marginal_ll": {"n_mc_samples": 2},
    "get_reconstruction": {},
    "get_reconstruction_error": {},
    "get_aggregated_posterior": {},
    "get_normalized_expression": {},
    "get_likelihood_parameters": {},
    "get_feature_correlation_matrix": {},
    "posterior_predictive_sample": {},
    "predict_counterfactual": {"conditions": {"batch": "batch_0"}},
}
"""Methods that read cells, with the arguments that they need."""

BAD_READING = [
    *(
        row(
            f"untrained_{name}",
            untrained(batch_key="batch"),
            ask(name, **needed),
            RuntimeError,
            "train",
        )
        for name, needed in {
            **READINGS,
            "component_table": {},
            "component_similarity": {},
            "merge_components": {},
            "annotate": {},
            "decode": {"z": np.zeros((1, 5))},
            "decode_components": {},
            "sample": {"n": 3},
            "differential_expression": {"groupby": "batch"},
            "differential_abundance": {"sample_key": "batch"},
        }.items()
    ),
    *(
        case
        for name, needed in READINGS.items()
        for case in rows(
            f"{name}_indices",
            of("conditioned"),
            lambda value, name=name, needed=needed: ask(name, indices=value, **needed),
            ([300], [-301], [0.0, 1.0], [], [True, False], "abc", 5, [[0, 1]], slice(3)),
            ValueError,
            r"indices must select.*300",
        )
    ),
    *(
        case
        for name, needed in READINGS.items()
        for case in rows(
            f"{name}_batch_size",
            of("conditioned"),
            lambda value, name=name, needed=needed: ask(name, batch_size=value, **needed),
            (0, -1, 1.5, "64"),
            ValueError,
            "batch_size must be an integer.*{value}",
        )
    ),
    *(
        row(
            f"{name}_seed", of("conditioned"), ask(name, seed=-1, **needed), ValueError, "seed.*-1"
        )
        for name, needed in {
            "get_elbo": {},
            "get_elbo_terms": {},
            "get_latent_representation": {},
            "sample": {"n": 2},
            "decode_components": {"conditions": IN_PLAN},
            "predict_counterfactual": {"conditions": {"age": 1.0}},
        }.items()
    ),
    row("which", of("trained"), ask("get_latent_representation", which="q"), ValueError, "'q'"),
    *(
        row(
            f"no_components_{name}",
            of("trained_normal"),
            ask(name, **needed),
            RuntimeError,
            "prior is 'normal'",
        )
        for name, needed in {
            "predict": {},
            "component_table": {},
            "get_latent_representation": {"which": "w"},
            "merge_components": {},
            "decode_components": {},
            "get_novelty": {},
        }.items()
    ),
    *rows(
        "dof",
        of("trained"),
        lambda value: ask("get_aggregated_posterior", dof=value),
        (0, -1, np.nan, "a"),
        ValueError,
        "dof must be above 0.*{value}",
    ),
    *rows(
        "n_mc_samples",
        of("trained"),
        lambda value: ask("get_marginal_ll", n_mc_samples=value),
        (0, -1, 1.5),
        ValueError,
        "n_mc_samples must be an integer.*{value}",
    ),
    *(
        row(
            f"expression_{name}={value!r:.10}",
            of("trained"),
            ask("get_normalized_expression", **{name: value}),
            ValueError,
            words,
        )
        for name, value, words in (
            ("n_samples", 0, "n_samples must be"),
            ("n_samples_overall", -1, "n_samples_overall must be"),
            ("library_size", -1, "library_size must be above 0"),
            ("library_size", np.nan, "library_size must be above 0"),
            ("library_size", "total", "library_size must be above 0.*'total'"),
            ("gene_list", "gene_1", "list of.*'gene_1'"),
            ("gene_list", [], "list of genes, but it is \\[\\]"),
            ("weights", "other", "weights must be one of.*'other'"),
            ("transform_batch", "no", "no.*not a valid batch"),
        )
    ),
    row(
        "genes_that_the_model_lacks",
        of("trained"),
        ask("get_normalized_expression", gene_list=["gene_1", "no"]),
        KeyError,
        "genes that the model lacks: 'no'",
    ),
    row(
        "importance",
        of("trained"),
        ask("get_normalized_expression", weights="importance"),
        NotImplementedError,
        "weights='uniform'",
    ),
    row(
        "importance_weights",
        of("trained"),
        ask("get_importance_weights"),
        NotImplementedError,
        "weights='uniform'",
    ),
    row(
        "DE_column", of("trained"), ask("differential_expression", groupby="no"), KeyError, "'no'"
    ),
    row(
        "DE_group",
        of("trained"),
        ask("differential_expression", groupby="batch", group1="batch_9"),
        ValueError,
        "group1.*'batch'.*'batch_9' has no cells",
    ),
    row(
        "DA_column",
        of("trained"),
        ask("differential_abundance", sample_key="no"),
        KeyError,
        "'no'",
    ),
    *(
        row(f"decode_{id}", of("conditioned"), ask("decode", z, IN_PLAN), ValueError, words)
        for id, z, words in (
            ("columns", np.zeros((3, 4)), r"\(n, 5\).*\(3, 4\)"),
            ("vector", np.zeros(5), r"\(n, 5\).*\(5,\)"),
            ("nan", np.full((2, 5), np.nan), "finite.*z holds NaN"),
            ("text", "abc", "real numbers.*z is of type <U3"),
            ("complex", np.zeros((2, 5), complex), "real numbers.*complex"),
        )
    ),
    *rows(
        "library_size",
        of("conditioned"),
        lambda value: ask("decode", np.zeros((1, 5)), IN_PLAN, value),
        (0, -1, np.nan, np.inf, "a", None),
        ValueError,
        "library_size must be above 0.*{value}",
    ),
    *(
        row(f"{name}_{id}", of("conditioned"), call(bad), ValueError, words)
        for name, call in {
            "decode": lambda bad: ask("decode", np.zeros((1, 5)), bad),
            "counterfactual": lambda bad: ask("predict_counterfactual", conditions=bad),
            "sample": lambda bad: ask("sample", 3, conditions=bad),
        }.items()
        for id, bad, words in (
            ("no_mapping", "batch", "must map columns to values"),
            ("number", 3, "must map columns to values"),
            ("unknown_condition", IN_PLAN | {"tissue": 1}, "'tissue' is no condition.*'batch'"),
            ("unknown_value", IN_PLAN | {"batch": "batch_9"}, "'batch_9' is no value.*'batch_0'"),
            ("text_age", IN_PLAN | {"age": "old"}, "'age'.*finite number.*'old'"),
            ("infinite_age", IN_PLAN | {"age": np.inf}, "'age'.*finite number.*inf"),
            ("large_age", IN_PLAN | {"age": 1e300}, "'age'.*finite number"),
            ("complex_age", IN_PLAN | {"age": 1j}, "'age'.*finite number"),
        )
    ),
    row(
        "decode_lacks",
        of("conditioned"),
        ask("decode", np.zeros((1, 5)), {"age": 1}),
        ValueError,
        "every registered condition.*'batch' has none",
    ),
    row(
        "no_conditions",
        of("conditioned"),
        ask("predict_counterfactual"),
        ValueError,
        "must name a registered condition.*'batch', 'age'",
    ),
    row(
        "via",
        of("conditioned"),
        ask("predict_counterfactual", conditions=IN_PLAN, via="y"),
        ValueError,
        "via must be one of",
    ),
    *rows(
        "n_draws",
        of("conditioned"),
        lambda n: ask("decode_components", n, IN_PLAN),
        (0, 1.5),
        ValueError,
        "n_draws must be an integer.*{value}",
    ),
    *rows(
        "sample_n",
        of("trained"),
        lambda n: ask("sample", n),
        (0, -1, 1.5, "3"),
        ValueError,
        "n must be an integer.*{value}",
    ),
    *rows(
        "component",
        of("trained"),
        lambda k: ask("sample", 3, k),
        (3, -1, 1.5, "no", True, ["0"]),
        ValueError,
        "component must be a number below 3 .*'0'.*{value}",
    ),
    *(
        row(f"merge_{kw}", of("trained"), ask("merge_components", **kw), ValueError, words)
        for kw, words in (
            ({"n": 0}, "n must be an integer"),
            ({"n": 4}, "at most K, 3.*4"),
            ({"n": 2, "threshold": 0.3}, "n or threshold, not both"),
            ({"threshold": 0}, r"\(0, 1\]"),
            ({"threshold": 1.5}, r"\(0, 1\]"),
            ({"threshold": "a"}, "threshold must be at least 0"),
            ({"threshold": -1, "method": "elbo"}, "threshold must be at least 0"),
            ({"method": "no"}, "method must be one of"),
        )
    ),
    *rows(
        "key_added",
        of("trained"),
        lambda key: ask("annotate", key_added=key),
        ("", 3, None, ["a"], "a/b", "_scvi_batch"),
        ValueError,
        "key_added must be a name.*{value}",
    ),
    row("key_in_use", of("trained"), ask("annotate", key_added="batch"), ValueError, "overwrite"),
    row("table_column", of("trained"), ask("component_table", labels_key="no"), KeyError, "'no'"),
    row(
        "table_list",
        of("trained"),
        ask("component_table", labels_key=["batch"]),
        ValueError,
        "labels_key must be the name",
    ),
]

BAD_NEW_DATA = {
    "no_anndata": (
        lambda adata: AnnData(adata.X, adata.obs),  # its genes have numbers for names
        ValueError,
        "at least 80%.*lacks 60",
    ),
    "missing_genes": (
        lambda adata: adata[:, 13:].copy(),
        ValueError,
        r"at least 80%.*lacks 13 \(21\.7%\): 'gene_0', 'gene_1'.*'gene_9' and 3 more",
    ),
    "other_genes": (other_genes, ValueError, "at least 80%.*lacks 60"),
    "gene_twice": (with_gene_twice, ValueError, "more than once.*'gene_0'.*make_unique"),
    "no_age": (without_column("age"), KeyError, "'age'"),
    "text_age": (with_column("age", "old"), ValueError, "finite numbers.*'age'"),
    "no_batch": (without_column("batch"), KeyError, "'batch'"),
    "batch_with_nan": (with_column("batch", np.nan, row=1), ValueError, "'batch'.*have none"),
    "negative": (with_value(-1), ValueError, "negative values"),
    "log": (lambda adata: setattr(adata, "X", adata.X.log1p()), ValueError, "no integers"),
    "nan": (with_value(np.nan), ValueError, "NaN"),
    "objects": (dense(lambda x: x.astype(object)), ValueError, "real numbers.*object"),
    "no_counts": (without_counts, ValueError, "at least one count"),
    "cell_twice": (with_duplicate_cells, ValueError, "cell needs.*'twice'"),
    "no_cells": (lambda adata: adata[:0].copy(), ValueError, "0 cells"),
}
"""Changes of new data that every reading method refuses."""

UNSEEN = (with_column("batch", "batch_9"), ValueError, "'batch_9'.*'batch_0', 'batch_1'")

BAD_QUERIES = [
    *(
        row(f"{name}_{id}", new_data(change), call, error, words)
        for name, call in {
            "predict": ask("predict"),
            "latent": ask("get_latent_representation"),
            "elbo": ask("get_elbo"),
            "annotate": ask("annotate"),
            "table": ask("component_table"),
        }.items()
        for id, (change, error, words) in (BAD_NEW_DATA | {"unseen_batch": UNSEEN}).items()
    ),
    *(
        row(
            f"load_query_{id}",
            new_data(change),
            lambda model, adata: SCGMVAE.load_query_data(adata, model),
            error,
            words,
        )
        for id, (change, error, words) in BAD_NEW_DATA.items()
    ),
    *(
        row(
            f"load_{id}",
            saved(change),
            lambda adata, folder: SCGMVAE.load(folder, adata),
            error,
            words,
        )
        for id, (change, error, words) in (BAD_NEW_DATA | {"unseen_batch": UNSEEN}).items()
    ),
    *(
        row(
            f"{name}_no_anndata",
            of("conditioned"),
            ask(name, "new.h5ad", **needed),
            ValueError,
            "adata must be an AnnData.*str",
        )
        for name, needed in (READINGS | {"annotate": {}, "component_table": {}}).items()
    ),
    row(
        "query_view",
        new_data(lambda adata: adata[:5]),
        lambda model, adata: SCGMVAE.load_query_data(adata, model),
        ValueError,
        "view",
    ),
    row("annotate_view", new_data(lambda adata: adata[:5]), ask("annotate"), ValueError, "view"),
    row(
        "query_order",
        of("conditioned"),
        lambda model: SCGMVAE.load_query_data(model, model.adata),
        ValueError,
        "AnnData of the query, but it is a SCGMVAE",
    ),
    *rows(
        "reference",
        data(),
        lambda value: lambda adata: SCGMVAE.load_query_data(adata, value),
        (3, None),
        ValueError,
        "reference_model must be a trained SCGMVAE",
    ),
    row(
        "untrained_reference",
        untrained(),
        lambda m: SCGMVAE.load_query_data(m.adata.copy(), m),
        RuntimeError,
        "train",
    ),
]

BAD_FILES = [
    row("no_model", nothing, lambda: SCGMVAE.load("/nowhere"), ValueError, "must hold a saved"),
    row(
        "prefix",
        saved(),
        lambda folder: SCGMVAE.load(folder, False, prefix="b_"),
        ValueError,
        "no b_model.json",
    ),
    row(
        "class",
        saved(),
        lambda folder: DualVAE.load(folder, False),
        ValueError,
        "must be a DualVAE, but it is a SCGMVAE",
    ),
    row(
        "adata_path",
        saved(),
        lambda folder: SCGMVAE.load(folder, "x.h5ad"),
        ValueError,
        "AnnData or a MuData, None or False.*str",
    ),
    row(
        "no_such_argument",
        saved(),
        lambda folder: SCGMVAE.load(folder, False, pickle=True),
        TypeError,
        "pickle",
    ),
    row("registry", nothing, lambda: SCGMVAE.load_registry("/nowhere"), ValueError, "saved"),
    row(
        "save_prefix",
        of("trained"),
        ask("save", "/nowhere", prefix="a/b"),
        ValueError,
        "beginning of a file name.*'a/b'",
    ),
    row("save_over", of("trained"), ask("save", "/tmp"), ValueError, "must not exist.*overwrite"),
]

PAIRS = [
    ("empty", [], [], "at least one cell"),
    ("lengths", ["a", "b"], [1], "2 labels and 1 clusters"),
    ("tables", [[1, 2]], [[1, 2]], "one-dimensional.*2 dimensions"),
    ("text", "ab", "ab", "one-dimensional.*0 dimensions"),
    ("nan", [1.0, np.nan], [1, 2], "missing values.*1 of them among 2"),
    ("none", ["a", None], [1, 2], "missing values"),
    ("masked", np.ma.masked_equal([1, 2], 2), [1, 2], "missing values"),
]
PROBA = pd.DataFrame({"a": [0.9, 0.2], "b": [0.1, 0.8]})
Z = np.random.default_rng(0).normal(size=(40, 2))
XY, UV = ["x", "y"] * 20, ["u"] * 20 + ["v"] * 20

BAD_SCORES = [
    *(
        row(
            f"{score.__name__}_{id}",
            nothing,
            lambda score=score, labels=labels, clusters=clusters: score(labels, clusters),
            ValueError,
            words,
        )
        for score in (
            metrics.clustering_accuracy,
            metrics.purity,
            metrics.clustering_scores,
            metrics.type_recovery,
        )
        for id, labels, clusters, words in PAIRS
    ),
    *(
        row(
            f"calibration_{id}",
            nothing,
            lambda args=args: metrics.calibration_error(*args),
            ValueError,
            words,
        )
        for id, args, words in (
            ("lengths", (["a"], PROBA), "1 labels and 2 rows"),
            ("array", (["a", "b"], PROBA.to_numpy()), "DataFrame.*ndarray"),
            ("empty", ([], PROBA[:0]), "at least one cell"),
            ("bins", (["a", "b"], PROBA, 0), "n_bins must be an integer"),
            ("nan", (["a", "b"], PROBA * np.nan), "from 0 to 1"),
            ("logits", (["a", "b"], PROBA * 3), "from 0 to 1"),
            ("text", (["a", "b"], PROBA.astype(str) + "x"), "from 0 to 1"),
            ("none", (["a", None], PROBA), "missing values"),
        )
    ),
    *(
        row(
            f"mixing_{id}",
            nothing,
            lambda args=args: metrics.mixing_scores(*args),
            ValueError,
            words,
        )
        for id, args, words in (
            ("lengths", (Z, XY[:5], UV), "40, 5 and 40"),
            ("nan", (Z * np.nan, XY, UV), "80 values that are not finite"),
            ("vector", (Z[:, 0], XY, UV), r"shape \(n, L\).*\(40,\)"),
            ("neighbors", (Z, XY, UV, 0), "n_neighbors must be an integer"),
            ("one_batch", (Z, ["x"] * 40, UV), "two batches.*2 labels"),
            ("all_apart", (Z, XY, list(range(40))), "two batches.*40 labels"),
        )
    ),
]

IMAGE = np.zeros((3, 4, 4))

BAD_DATASETS = [
    *rows(
        "load",
        nothing,
        lambda name: lambda: datasets.load(name),
        ("", "../x", 3, None),
        ValueError,
        "file name without folder.*{value}",
    ),
    *(
        row(
            f"{make_data.__name__}_{name}={value!r:.12}",
            nothing,
            lambda make_data=make_data, name=name, value=value: make_data(**{name: value}),
            ValueError,
            name,
        )
        for make_data, values in {
            datasets.blobs: {
                "n_per_group": (0, -1, 1.5, "3", True),
                "n_classes": (0,),
                "n_dims": (3,),
                "noise": (-1, np.nan, "a"),
                "class_scale": (np.inf,),
                "seed": (-1, 1.5, "a"),
            },
            datasets.synthetic_counts: {
                "n_cells": (0, -1, 1.5, "3"),
                "n_components": (0,),
                "weights": (0, -1.0, [1], [-1] * 5, [0] * 5, [np.nan] * 5),
                "program_fraction": (0, 1.5, np.nan, "a"),
                "component_scale": (-1, np.nan, "a"),
                "library_size": (0, np.nan, "a"),
                "inverse_dispersion": (0, -1),
                "seed": (-1, "a"),
            },
            datasets.two_photon: {
                "n": (0, 1.5),
                "image_shape": ((10, 10), (6,), 6, None, (6, 6, 3)),
                "sector": (0, 7, 100),
                "p_on": (-0.1, 1.1, np.nan, "a"),
                "photons": (0, "a"),
                "read_noise": (-1,),
                "seed": (-1,),
            },
        }.items()
        for name, bad in values.items()
        for value in bad
    ),
    *(
        row(
            f"images_{id}",
            nothing,
            lambda args=args: datasets.images_to_anndata(*args),
            ValueError,
            words,
        )
        for id, args, words in (
            ("2d", (np.zeros((3, 4)),), r"\(3, 4\)"),
            ("none", (np.zeros((0, 4, 4)),), "none of them 0"),
            ("integers", (IMAGE.astype(int),), "astype"),
            ("negative", (IMAGE - 1,), "from -1 to -1"),
            ("nan", (IMAGE * np.nan,), "from nan"),
            ("text", ("abc",), "shape"),
            ("objects", (IMAGE.astype(object),), "object"),
            ("masked", (np.ma.masked_all((3, 4, 4)),), "masked"),
            ("labels", (IMAGE, [1, 2]), r"\(3,\).*\(2,\)"),
            ("same_names", (IMAGE, [1, "1", 2]), "same name: '1'"),
        )
    ),
]

BAD_FIGURES = [
    row("embedding_model", of("trained"), pl.embedding, ValueError, "AnnData.*SCGMVAE"),
    row("no_color", data(), lambda a: pl.embedding(a, color=[]), ValueError, "at least one"),
    row("no_basis", data(), lambda a: pl.embedding(a, "batch", "tsne"), KeyError, "tsne"),
    row("training", untrained(), pl.training, RuntimeError, "train"),
    row("components", untrained(), pl.components, RuntimeError, "train"),
    row("components_key", of("trained"), lambda m: pl.components(m, "no"), KeyError, "'no'"),
    *(
        row(f"latent_{kw}", of("trained"), lambda m, kw=kw: pl.latent(m, **kw), error, words)
        for kw, error, words in (
            ({"color": "no"}, KeyError, "'no'"),
            ({"color": 3}, ValueError, "color must be the name.*3"),
            ({"method": "pca"}, ValueError, "method"),
            ({"n_cells": 0}, ValueError, "n_cells"),
            ({"n_cells": 1.5}, ValueError, "n_cells"),
            ({"seed": -1}, ValueError, "seed"),
            ({"adata": 3}, ValueError, "AnnData"),
        )
    ),
    row("no_models", nothing, lambda: pl.reconstructions({}), ValueError, "at least one trained"),
    row(
        "latent_size",
        nothing,
        lambda: pl.latent_size(pd.DataFrame({"a": [1]})),
        KeyError,
        "'n_latent'",
    ),
    *(
        row(f"{figure.__name__}_of_counts", of("trained"), figure, ValueError, "shows images")
        for figure in (pl.reconstructions, pl.manifold, pl.samples)
    ),
    *rows(
        "n_images",
        of("of_images"),
        lambda n: lambda m: pl.reconstructions(m, n_images=n),
        (0, 1.5),
        ValueError,
        "n_images must be an integer.*{value}",
    ),
    row(
        "images_indices",
        of("of_images"),
        lambda m: pl.reconstructions(m, indices=[60]),
        ValueError,
        "indices must select",
    ),
    *rows(
        "limits",
        of("of_images"),
        lambda v: lambda m: pl.manifold(m, limits=v),
        ((1,), ("a", "b"), (np.nan, 1), 3, (2, 2), (0, np.inf)),
        ValueError,
        "smallest and the largest z.*{value}",
    ),
    row("manifold_n", of("of_images"), lambda m: pl.manifold(m, n=1), ValueError, "n must be"),
    row("n_draws_0", of("of_images"), lambda m: pl.samples(m, 0), ValueError, "n_draws must be"),
    row("samples_seed", of("of_images"), lambda m: pl.samples(m, seed=-1), ValueError, "seed"),
]

BAD_DUAL = [
    row("no_anndata", nothing, lambda: DualVAE(3), ValueError, "AnnData.*int"),
    row("set_up", nothing, lambda: DualVAE.setup_anndata("a"), ValueError, "AnnData.*str"),
    row("nothing", nothing, DualVAE, ValueError, "height, width.*None"),
    row(
        "no_shape",
        images(without_shape),
        DualVAE,
        ValueError,
        "no 'image_shape'",
    ),
    row("layer", images(), lambda a: DualVAE.setup_anndata(a, layer="no"), KeyError, "'no'"),
    row("pixel_twice", images(with_duplicate_genes), DualVAE, ValueError, "'twice'"),
    row("nan", images(lambda a: setattr(a, "X", a.X * np.nan)), DualVAE, ValueError, "NaN"),
    row(
        "objects",
        images(lambda a: setattr(a, "X", a.X.astype(object))),
        DualVAE,
        ValueError,
        "real numbers.*object",
    ),
    row(
        "noisy_poisson",
        images(),
        lambda a: DualVAE(a, likelihood="poisson"),
        ValueError,
        "negative|no integers",
    ),
    *(
        row(
            f"{name}={value!r}",
            images(),
            lambda a, name=name, value=value: DualVAE(a, **{name: value}),
            ValueError,
            name,
        )
        for name, value in (
            ("n_latent_foreground", 0),
            ("n_latent_background", 1.5),
            ("n_hidden", 3),
            ("n_hidden", [0]),
            ("encoder", "x"),
            ("interaction", "x"),
            ("likelihood", "nb"),
            ("window", 0),
            ("window", 100),
            ("blur", -1),
            ("blur", "a"),
        )
    ),
    *(
        row(f"untrained_{name}", new_dual, ask(name), RuntimeError, "train")
        for name in (
            "get_foreground",
            "get_background",
            "get_latent_representation",
            "annotate",
            "get_elbo",
            "get_elbo_terms",
            "get_marginal_ll",
        )
    ),
    *(
        row(
            f"train_{settings}",
            new_dual,
            lambda model, settings=settings: model.train(
                **({"max_epochs": 1, "enable_progress_bar": False} | settings)
            ),
            error,
            words,
        )
        for settings, error, words in (
            ({"max_epochs": 0}, ValueError, "max_epochs"),
            ({"batch_size": 1.5}, ValueError, "batch_size"),
            ({"seed": -1}, ValueError, "seed"),
            ({"train_size": 0}, ValueError, "train_size"),
            ({"accelerator": "x"}, ValueError, "'x'"),
            ({"plan_kwargs": {"lr": -1}}, ValueError, "lr must be at least 0"),
            ({"plan_kwargs": {"lrr": 1}}, TypeError, "'lrr'"),
            ({"early_stopping": True}, ValueError, "validation cells"),
            ({"epochs": 3}, TypeError, "epochs"),
        )
    ),
    row("which", of("dual"), ask("get_latent_representation", which="z"), ValueError, "which"),
    row("indices", of("dual"), ask("get_foreground", indices=[20]), ValueError, "indices"),
    row("elbo_indices", of("dual"), ask("get_elbo", indices=[20]), ValueError, "indices"),
    row("batch_size", of("dual"), ask("get_background", batch_size=0), ValueError, "batch_size"),
    row("annotate_text", of("dual"), ask("annotate", "a"), ValueError, "AnnData.*str"),
    row("annotate_view", of("dual"), lambda m: m.annotate(m.adata[:3]), ValueError, "view"),
]

BAD_INPUT = [
    *BAD_DATA,
    *BAD_SETTINGS,
    *BAD_FIELDS,
    *BAD_TRAINING,
    *BAD_READING,
    *BAD_QUERIES,
    *BAD_FILES,
    *BAD_SCORES,
    *BAD_DATASETS,
    *BAD_FIGURES,
    *(pytest.param(*case.values, id=f"dual_{case.id}") for case in BAD_DUAL),
]


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
@pytest.mark.parametrize(("world", "call", "error", "words"), BAD_INPUT)
def test_bad_input_is_refused_and_leaves_all_as_it_was(request, world, call, error, words):
    things = world(request)
    with unchanged(
        *(thing for thing in things if hasattr(thing, "obs") or hasattr(thing, "module"))
    ):
        for _ in range(2):  # whoever runs a cell of a notebook again is told again
            with pytest.raises(error, match=words):
                call(*things)


def test_a_model_without_data_does_not_adopt_refused_data(trained, counts, tmp_path):
    trained.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=False, accelerator="cpu")
    refused = counts.copy()
    refused.X = refused.X * 0.5
    for _ in range(2):
        with pytest.raises(ValueError, match="counts"):
            loaded.predict(refused)
        assert loaded.adata is None
    assert loaded.predict(counts.copy()).tolist() == trained.predict(counts.copy()).tolist()


@pytest.mark.parametrize("has_data", [True, False])
def test_data_whose_check_was_interrupted_are_checked_again(
    trained, counts, tmp_path, monkeypatch, has_data
):
    trained.save(tmp_path / "model", save_anndata=has_data)
    data = None if has_data else False
    loaded = SCGMVAE.load(tmp_path / "model", adata=data, accelerator="cpu")
    own = loaded.adata
    refused = counts.copy()
    refused.X = refused.X * 0.5

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SCGMVAE, "_check_data", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loaded.predict(refused)
    assert loaded.adata is own
    with pytest.raises(ValueError, match="counts"):
        loaded.predict(refused)


def test_a_refused_copy_keeps_the_setup_of_its_original(trained, counts):
    original = counts.copy()
    SCGMVAE.setup_anndata(original, batch_key="batch", labels_key="component")
    copied = original.copy()
    copied.X = copied.X * 0.5
    with pytest.raises(ValueError, match="counts"):
        trained.predict(copied)
    copied.X = copied.X * 2
    assert SCGMVAE(copied, **NETWORK).registry_["setup_args"]["labels_key"] == "component"


def test_data_mended_in_place_are_read_and_keep_their_own_setup(trained, counts):
    adata = counts.copy()
    SCGMVAE.setup_anndata(adata, batch_key="batch", labels_key="component")
    adata.X = adata.X * 0.5
    for _ in range(2):
        with pytest.raises(ValueError, match="counts"):
            trained.predict(adata)
    adata.X = adata.X * 2
    assert trained.predict(adata).tolist() == trained.predict(counts.copy()).tolist()
    assert SCGMVAE(adata, **NETWORK).registry_["setup_args"]["labels_key"] == "component"


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
        pytest.param(lambda x: x.astype(np.uint64), id="uint64"),
        pytest.param(lambda x: x.astype(">f4"), id="big_endian"),
        pytest.param(lambda x: x.clip(max=2000).astype(np.float16), id="float16"),
        pytest.param(lambda x: (x > 0) | (x.sum(1, keepdims=True) == 0), id="boolean"),
        pytest.param(np.asfortranarray, id="by_columns"),
        pytest.param(np.ma.asarray, id="nothing_masked"),
        pytest.param(sparse.csr_array, id="csr_array"),
        pytest.param(lambda x: np.where(x == x.max(), 2.0**24 + 1, x), id="above_2^24"),
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
    model = train(make_model(adata), max_epochs=1, pretrain_epochs=1, start="kmeans")
    assert np.isfinite(adata.obsm["X_scgmvae"]).all()
    assert torch.isfinite(model.get_elbo())


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("size_factor_key", ["1.5", "2"]),
        ("size_factor_key", pd.Categorical([1.5, 2])),
        ("size_factor_key", pd.array([1.5, 2], dtype="Float64")),
        ("continuous_covariate_keys", ["1.5", "2"]),
        ("continuous_covariate_keys", pd.Categorical([1.5, 2])),
        ("continuous_covariate_keys", [True, False]),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{pd.Series(value).dtype}",
)
def test_numbers_are_numbers_in_any_form(counts, make_model, train, key, values):
    expected = np.array(values, dtype=float)
    results = []
    for column in (values, expected):
        adata = counts.copy()
        adata.obs["number"] = pd.Series(column).take([0, 1] * 150).set_axis(adata.obs_names)
        setup = {key: ["number"] if key.endswith("s") else "number"}
        train(make_model(adata, setup), max_epochs=1, pretrain_epochs=1, start="kmeans")
        results.append(adata.obsm["X_scgmvae"])
    np.testing.assert_array_equal(*results)


@pytest.mark.filterwarnings("ignore:Category 0 in adata.obs:UserWarning")
@pytest.mark.parametrize(
    "change",
    [lambda adata: adata[:2].copy(), lambda adata: adata[:, :1].copy()],
    ids=["two_cells", "one_gene"],
)
def test_the_smallest_data_train(adata, change, make_model, train):
    adata = change(adata)
    adata.X = adata.X + sparse.csr_matrix(np.ones(adata.shape, dtype=np.float32))
    train(make_model(adata, n_components=1), max_epochs=1, pretrain_epochs=1)
    assert np.isfinite(adata.obsm["X_scgmvae"]).all()
    assert adata.obs["scgmvae"].tolist() == ["0"] * adata.n_obs


def test_a_refused_training_leaves_no_trace_in_the_next(counts, make_model, train):
    models = [make_model(counts.copy()) for _ in range(2)]
    for settings in ({"plan_kwargs": {"lr": -1}}, {"accelerator": "tpux"}, {"seed": -1}):
        with pytest.raises(ValueError):
            train(models[0], **(settings | {"max_epochs": 3}))
    for model in models:
        train(model, max_epochs=1, pretrain_epochs=1, start="kmeans")
    latents = [model.adata.obsm["X_scgmvae"] for model in models]
    np.testing.assert_array_equal(*latents)


def test_a_failure_in_training_leaves_the_model_untrained_as_it_was(adata, make_model, train):
    def fail(*_):
        raise RuntimeError("on purpose")

    model = make_model(adata)
    with unchanged(model), pytest.raises(RuntimeError, match="on purpose"):
        train(model, callbacks=[LambdaCallback(on_train_epoch_end=fail)], start="kmeans")


def test_a_long_list_of_missing_genes_is_cut_short(counts, trained):
    with pytest.raises(ValueError, match="lacks 59 .*'gene_9' and 49 more"):
        trained.predict(counts[:, 59:].copy())


def test_new_data_need_no_labels(counts, make_model, train):
    adata = counts.copy()
    adata.obs["label"] = adata.obs["component"].astype(str)
    model = train(make_model(adata, setup={"labels_key": "label"}))
    query = counts[::3].copy()
    np.testing.assert_array_equal(model.predict(query), model.predict()[::3])
    assert "label" not in query.obs  # nothing is made up in the user's data


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
