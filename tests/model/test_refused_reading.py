"""Calls that read cells of a model and are refused: model and data stay as they were."""

import re

import numpy as np
import pytest
from refused import TWICE
from small import NETWORK
from states import unchanged

from scgmvae import SCGMVAE

# Methods that read cells, with the arguments that they cannot do without.
READING = {
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
# Those that read all cells of the data.
READING_ALL = {"annotate": {}, "component_table": {}}
# Those that have other things to tell.
OTHERS = {
    "component_similarity": {},
    "merge_components": {},
    "decode": {"z": np.zeros((1, 5))},
    "decode_components": {},
    "sample": {"n": 3},
    "differential_expression": {"groupby": "batch"},
    "differential_abundance": {"sample_key": "batch"},
}

each_reading_method = pytest.mark.parametrize(("method", "needed"), READING.items(), ids=READING)


# -------------------------------------------------------------------------- of every method


@pytest.mark.parametrize(
    ("method", "needed"),
    (READING | READING_ALL | OTHERS).items(),
    ids=READING | READING_ALL | OTHERS,
)
def test_an_untrained_model_tells_nothing(counts, method, needed):
    adata = counts.copy()
    SCGMVAE.setup_anndata(adata, batch_key="batch")
    model = SCGMVAE(adata, n_components=3, **NETWORK)
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(RuntimeError, match="train the model first"):
                getattr(model, method)(**needed)


@pytest.mark.parametrize(
    ("method", "needed"), (READING | READING_ALL).items(), ids=READING | READING_ALL
)
def test_the_name_of_a_file_is_no_data(conditioned, method, needed):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match="adata must be an AnnData.*str"):
                getattr(conditioned, method)("new.h5ad", **needed)


@pytest.mark.parametrize(
    "indices",
    [[300], [-301], [0.0, 1.0], [], [True, False], "abc", 5, [[0, 1]], slice(3)],
    ids=repr,
)
@each_reading_method
def test_indices_must_select_cells_that_are_there(conditioned, method, needed, indices):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match="indices must select.*300"):
                getattr(conditioned, method)(indices=indices, **needed)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "64"], ids=repr)
@each_reading_method
def test_the_size_of_minibatches_must_be_an_integer(conditioned, method, needed, batch_size):
    message = f"batch_size must be an integer.*{re.escape(repr(batch_size))}"
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                getattr(conditioned, method)(batch_size=batch_size, **needed)


@pytest.mark.parametrize(
    ("method", "needed"),
    [
        ("get_elbo", {}),
        ("get_elbo_terms", {}),
        ("get_latent_representation", {}),
        ("sample", {"n": 2}),
        ("decode_components", {"conditions": {"batch": "batch_0", "age": 0.5}}),
        ("predict_counterfactual", {"conditions": {"age": 1.0}}),
    ],
    ids=str,
)
def test_whatever_is_drawn_takes_no_seed_below_0(conditioned, method, needed):
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match="seed.*-1"):
                getattr(conditioned, method)(seed=-1, **needed)


@pytest.mark.parametrize(
    ("method", "needed"),
    [
        ("predict", {}),
        ("component_table", {}),
        ("get_latent_representation", {"which": "w"}),
        ("merge_components", {}),
        ("decode_components", {}),
        ("get_novelty", {}),
    ],
    ids=str,
)
def test_a_model_without_components_tells_nothing_of_them(trained_normal, method, needed):
    with unchanged(trained_normal):
        for _ in TWICE:
            with pytest.raises(RuntimeError, match="prior is 'normal'"):
                getattr(trained_normal, method)(**needed)


# ------------------------------------------------------------------------- of single methods


def test_an_unknown_latent_is_refused(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match="'q'"):
                roughly_trained.get_latent_representation(which="q")


@pytest.mark.parametrize("dof", [0, -1, np.nan, "a"], ids=repr)
def test_degrees_of_freedom_must_be_above_0(roughly_trained, dof):
    message = f"dof must be above 0, but it is {dof!r}"
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                roughly_trained.get_aggregated_posterior(dof=dof)


@pytest.mark.parametrize("n", [0, -1, 1.5], ids=repr)
def test_samples_of_the_likelihood_must_be_an_integer(roughly_trained, n):
    message = f"n_mc_samples must be an integer.*{re.escape(repr(n))}"
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                roughly_trained.get_marginal_ll(n_mc_samples=n)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"n_samples": 0}, "n_samples must be", id="no_samples"),
        pytest.param({"n_samples_overall": -1}, "n_samples_overall must be", id="below_0_overall"),
        pytest.param({"library_size": -1}, "library_size must be above 0", id="size_below_0"),
        pytest.param({"library_size": np.nan}, "library_size must be above 0", id="size_NaN"),
        pytest.param(
            {"library_size": "total"}, "library_size must be above 0.*'total'", id="size_text"
        ),
        pytest.param({"gene_list": "gene_1"}, "list of.*'gene_1'", id="one_gene_by_name"),
        pytest.param({"gene_list": []}, r"list of genes, but it is \[\]", id="no_genes"),
        pytest.param({"weights": "other"}, "weights must be one of.*'other'", id="weights"),
        pytest.param(
            {"transform_batch": "no"},
            "transform_batch must name batches.*'no' is none",
            id="unknown_batch",
        ),
    ],
)
def test_bad_arguments_of_expression_are_refused(roughly_trained, arguments, message):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                roughly_trained.get_normalized_expression(**arguments)


def test_genes_that_the_model_lacks_are_refused(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(KeyError, match="genes that the model lacks: 'no'"):
                roughly_trained.get_normalized_expression(gene_list=["gene_1", "no"])


def test_groups_to_compare_must_be_in_a_column(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(KeyError, match="'no'"):
                roughly_trained.differential_expression(groupby="no")


def test_a_group_to_compare_must_have_cells(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match="group1.*'batch'.*'batch_9' has no cells"):
                roughly_trained.differential_expression(groupby="batch", group1="batch_9")


def test_samples_to_compare_must_be_in_a_column(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(KeyError, match="'no'"):
                roughly_trained.differential_abundance(sample_key="no")
