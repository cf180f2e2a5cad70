"""What users of scvi-tools take for granted: SCVI's calls, with the values they promise."""

import inspect
import logging
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from scipy import special, stats
from scvi import REGISTRY_KEYS as KEYS
from scvi.dataloaders import AnnDataLoader
from scvi.model import SCVI
from scvi.train import SaveCheckpoint

from scgmvae import SCGMVAE

ROWS = np.array([7, 3, 250, 0])


@pytest.fixture
def adata(counts):
    return counts.copy()


@pytest.fixture(autouse=True)
def seeded():
    """scvi-tools' sampling methods draw from the global states."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        yield


@pytest.fixture(scope="module")
def by_label(counts, make_model, train):
    """A small zinb model of labels, batches, covariates and size factors; only to be read."""
    adata = counts.copy()
    adata.obs["type"] = np.where(np.arange(300) % 2, adata.obs["component"].astype(str), "unknown")
    adata.obs["age"] = np.linspace(-1, 1, 300)
    adata.obs["donor"] = np.where(np.arange(300) % 3, "a", "b")
    adata.obs["size"] = np.asarray(adata.X.sum(1)).ravel() / 100
    setup = {
        "batch_key": "batch",
        "labels_key": "type",
        "size_factor_key": "size",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
    }
    return train(make_model(adata, setup, gene_likelihood="zinb", dispersion="gene-batch"))


# ------------------------------------------------------------------------ names and arguments

NOT_HERE = {
    "minified_data_type",  # no data are minified
    "prepare_query_mudata",  # SCVI has it from a base class; here one modality is the query
}


def public_names(cls):
    return {name for name in dir(cls) if not name.startswith("_")}


def test_there_is_everything_that_scvi_has():
    assert public_names(SCVI) - public_names(SCGMVAE) == NOT_HERE


@pytest.mark.parametrize(
    "name", sorted(n for n in public_names(SCVI) - NOT_HERE if callable(getattr(SCVI, n)))
)
def test_methods_take_the_arguments_that_scvi_takes(name):
    theirs = inspect.signature(getattr(SCVI, name)).parameters
    ours = inspect.signature(getattr(SCGMVAE, name)).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in ours.values()):
        named = {n for n, p in theirs.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        assert named <= set(ours)
    both = [n for n in theirs if n in ours and ours[n].kind is not inspect.Parameter.KEYWORD_ONLY]
    assert both == [n for n in ours if n in both]  # in the same order


@pytest.mark.parametrize(
    ("settings", "likelihood"),
    [
        ({"gene_likelihood": "zinb"}, "zinb"),
        ({"gene_likelihood": "normal"}, "gaussian"),
        ({"latent_distribution": "normal", "use_observed_lib_size": True}, "nb"),
        ({"use_batch_norm": "both", "use_layer_norm": "none", "var_activation": None}, "nb"),
    ],
)
def test_settings_of_scvi_are_understood(adata, make_model, settings, likelihood):
    assert make_model(adata, **settings).module.gene_likelihood == likelihood


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"latent_distribution": "ln"}, NotImplementedError, "'ln'.*components are Gaussians"),
        ({"var_activation": torch.nn.Softplus()}, NotImplementedError, "var_activation"),
        ({"dispersion": "cell"}, ValueError, "'gene', 'gene-batch'.*'gene-cell'.*'cell'"),
        ({"gene_likelihood": "nb", "likelihood": "nb"}, ValueError, "give one of them"),
        ({"n_hiden": 3}, TypeError, "n_hiden"),
    ],
)
def test_settings_without_a_meaning_here_are_refused(adata, make_model, settings, error, words):
    with pytest.raises(error, match=words):
        make_model(adata, **settings)
    assert not any(key.startswith("_scvi") for key in adata.uns)  # as it was


# ------------------------------------------------------------------------------------ set-up


def test_data_can_be_set_up_again_with_other_keys(adata, make_model, train):
    with_batches = train(make_model(adata, {"batch_key": "batch"}))
    z = with_batches.get_latent_representation()
    without = make_model(adata, {})
    assert without.summary_stats.n_batch == 1
    assert with_batches.summary_stats.n_batch == 2
    np.testing.assert_array_equal(with_batches.get_latent_representation(), z)


@pytest.mark.parametrize("form", ["copy", "view", "subset"])
def test_other_data_give_the_rows_that_they_are(trained, counts, form):
    other = {"copy": counts.copy(), "view": counts[ROWS], "subset": counts[ROWS].copy()}[form]
    rows = slice(None) if form == "copy" else ROWS
    whole, part = trained.get_latent_representation(), trained.get_latent_representation(other)
    np.testing.assert_allclose(part, whole[rows], atol=1e-5)
    validated = trained._validate_anndata(other)
    manager = trained.get_anndata_manager(validated, required=True)
    assert manager.adata is validated and manager is not trained.adata_manager


@pytest.mark.parametrize(
    "read",
    [
        lambda model, data: model.get_latent_representation(data),
        lambda model, data: model.get_elbo(data, return_mean=False),
        lambda model, data: model.get_marginal_ll(data, n_mc_samples=2, return_mean=False),
        lambda model, data: model.get_reconstruction_error(data, return_mean=False)[
            "reconstruction_loss"
        ],
        lambda model, data: model.get_normalized_expression(data),
        lambda model, data: model.get_likelihood_parameters(data)["mean"],
        lambda model, data: model.get_latent_library_size(data, give_mean=False),
        lambda model, data: model.posterior_predictive_sample(data).todense(),
        lambda model, data: model.predict(data, soft=True),
    ],
)
def test_every_method_takes_other_data(by_label, read):
    other = by_label.adata[10:30].copy()
    assert len(read(by_label, other)) == 20


def test_batches_unseen_in_setup_are_refused_and_a_query_adds_them(trained, adata, train):
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"batch_1": "new"})
    with pytest.raises(ValueError, match="'new'.*load_query_data"):
        trained.get_elbo(adata)
    query = SCGMVAE.load_query_data(adata, trained)
    assert list(query.get_state_registry("batch").categorical_mapping) == [
        "batch_0",
        "batch_1",
        "new",
    ]
    own = query.get_normalized_expression(transform_batch="new", indices=[0])
    assert np.isclose(own.to_numpy().sum(), 1, atol=1e-4)


@pytest.mark.parametrize("order", ["same", "reversed"])
def test_the_data_of_a_model_can_be_exchanged(adata, make_model, train, order):
    model = train(make_model(adata, {"batch_key": "batch"}))
    whole = model.get_latent_representation()
    other = adata[:50, :: 1 if order == "same" else -1].copy()
    model.adata = other
    assert model.adata.n_obs == model.summary_stats.n_cells == 50
    assert list(model.adata.var_names) == list(adata.var_names)
    np.testing.assert_allclose(model.get_latent_representation(), whole[:50], atol=1e-5)
    with pytest.raises(ValueError, match="must be an AnnData.*NoneType"):
        model.adata = None


def test_managers_can_be_let_go(adata, make_model, train):
    model = train(make_model(adata, {"batch_key": "batch"}))
    expected = model.get_latent_representation()
    other, read = adata[:20].copy(), adata[20:40].copy()
    SCGMVAE.setup_anndata(other, batch_key="batch")
    model.get_latent_representation(other)
    model.get_latent_representation(read)
    model.deregister_manager(other)
    assert model.get_anndata_manager(other) is None
    assert model.get_anndata_manager(read).adata is read
    model.deregister_manager()  # all but the model's own
    assert model.get_anndata_manager(read) is None
    assert model.get_anndata_manager(adata) is model.adata_manager
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    np.testing.assert_allclose(model.get_latent_representation(read), expected[20:40], atol=1e-5)


def test_what_was_registered_can_be_looked_up(by_label):
    data = by_label.data_registry(KEYS.X_KEY)
    np.testing.assert_array_equal(data.toarray(), by_label.adata.X.toarray())
    assert by_label.get_setup_arg("labels_key") == "type"
    assert list(by_label.get_state_registry("batch").categorical_mapping) == ["batch_0", "batch_1"]
    assert list(by_label.get_var_names()) == list(by_label.adata.var_names)
    assert by_label.registry["setup_args"]["categorical_covariate_keys"] == ["donor"]
    assert by_label.get_from_registry(by_label.adata, KEYS.BATCH_KEY).shape == (300, 1)
    transferred = by_label.transfer_fields(by_label.adata[:9].copy())
    assert transferred.get_from_registry(KEYS.BATCH_KEY).shape == (9, 1)


def test_setup_and_registry_are_printed(by_label, capsys):
    by_label.view_anndata_setup(hide_state_registries=True)
    short = capsys.readouterr().out
    by_label.view_registry()
    whole = capsys.readouterr().out
    by_label.view_setup_method_args()
    arguments = capsys.readouterr().out
    assert "batch_1" in whole and "batch_1" not in short
    for text in (short, whole, arguments):
        assert "'continuous_covariate_keys': ['age']" in text


def test_minified_data_are_refused(adata, trained):
    adata.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    for call in (SCGMVAE.setup_anndata, SCGMVAE, trained.get_elbo):
        with pytest.raises(NotImplementedError, match="inferred from the counts"):
            call(adata)
    with pytest.raises(NotImplementedError, match="inferred from the counts"):
        trained.minify_adata()


# ----------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("indices", [ROWS, list(ROWS), np.isin(np.arange(300), ROWS)])
def test_indices_give_rows_of_the_whole(by_label, indices):
    rows = np.flatnonzero(indices) if len(indices) == 300 else ROWS

    def close(part, whole):
        np.testing.assert_allclose(part, np.asarray(whole)[rows], rtol=1e-4, atol=1e-5)

    close(
        by_label.get_latent_representation(indices=indices), by_label.get_latent_representation()
    )
    close(by_label.predict(indices=indices, soft=True), by_label.predict(soft=True))
    close(by_label.get_novelty(indices=indices), by_label.get_novelty())
    library = by_label.get_latent_library_size(give_mean=False)
    close(by_label.get_latent_library_size(indices=indices, give_mean=False), library)
    # these draw z
    expression = by_label.get_normalized_expression(indices=indices)
    assert list(expression.index) == list(by_label.adata.obs_names[rows])
    seeds = range(10)
    whole = sum(by_label.get_elbo(return_mean=False, seed=seed) for seed in seeds)
    elbo = sum(by_label.get_elbo(indices=indices, return_mean=False, seed=seed) for seed in seeds)
    assert np.corrcoef(elbo, whole[rows])[0, 1] > 0.99
    drawn = by_label.posterior_predictive_sample(indices=indices).todense()
    assert drawn.shape == (4, 60)


@pytest.fixture(scope="module", params=["scvi", "own", "list"])
def make_loader(request):
    """Function that makes minibatches of a model's data, some of them of one cell."""

    def make(model):
        if request.param == "scvi":
            return AnnDataLoader(model.adata_manager, batch_size=23)
        loader = model._make_data_loader(model.adata, batch_size=50)
        return loader if request.param == "own" else list(loader)

    return make


def test_dataloaders_stand_for_their_data(by_label, make_loader):
    loader = make_loader(by_label)
    np.testing.assert_allclose(
        by_label.get_latent_representation(dataloader=loader),
        by_label.get_latent_representation(),
        rtol=1e-4,
        atol=1e-5,
    )
    pairs = [
        (by_label.get_elbo(dataloader=loader), by_label.get_elbo()),
        (
            by_label.get_reconstruction_error(dataloader=loader)["reconstruction_loss"],
            by_label.get_reconstruction_error()["reconstruction_loss"],
        ),
        (
            by_label.get_marginal_ll(dataloader=loader, n_mc_samples=20),
            by_label.get_marginal_ll(n_mc_samples=20),
        ),
    ]
    for of_loader, of_data in pairs:
        assert np.isclose(float(of_loader), float(of_data), rtol=0.01)
    expression = by_label.get_normalized_expression(dataloader=loader)
    np.testing.assert_allclose(expression.sum(1), 1, atol=1e-4)
    parameters = by_label.get_likelihood_parameters(dataloader=loader)
    assert parameters["mean"].shape == parameters["dropout"].shape == (300, 60)
    drawn = by_label.posterior_predictive_sample(dataloader=loader)
    assert drawn.shape == (300, 60)
    library = by_label.get_latent_library_size(dataloader=loader, give_mean=False)
    np.testing.assert_allclose(library, by_label.get_latent_library_size(give_mean=False))


def test_what_a_dataloader_cannot_follow_is_refused(trained, adata):
    loader = trained._make_data_loader(trained.adata)
    for read in (
        trained.get_latent_representation,
        trained.get_normalized_expression,
        trained.posterior_predictive_sample,
        trained.get_elbo,
    ):
        with pytest.raises(ValueError, match="dataloader"):
            read(adata, dataloader=loader)
    for choice in ({"transform_batch": "batch_1"}, {"gene_list": ["gene_1"]}, {"indices": [0]}):
        for read in (trained.get_normalized_expression, trained.posterior_predictive_sample):
            with pytest.raises(ValueError, match=f"{next(iter(choice))} would change that"):
                read(dataloader=loader, **choice)


def test_latents_are_means_draws_and_distributions(trained):
    mean = trained.get_latent_representation()
    loc, variance = trained.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(mean, loc)
    np.testing.assert_array_equal(trained.get_latent_representation(mc_samples=2), mean)
    np.testing.assert_allclose(trained.get_latent_representation(batch_size=7), mean, atol=1e-5)
    draw = trained.get_latent_representation(give_mean=False)
    scaled = (draw - loc) / np.sqrt(variance)
    assert stats.kstest(scaled.ravel(), "norm").pvalue > 1e-3


def test_the_mean_likelihood_is_one_over_cells_whatever_the_minibatches(trained):
    uneven = [*trained._make_data_loader(trained.adata, np.arange(299)), None]
    uneven[-1] = next(iter(trained._make_data_loader(trained.adata, [299])))
    torch.manual_seed(0)
    of_cells = trained.get_marginal_ll(dataloader=uneven, n_mc_samples=3, return_mean=False)
    torch.manual_seed(0)
    mean = trained.get_marginal_ll(dataloader=uneven, n_mc_samples=3)
    assert of_cells.shape == (300,)
    torch.testing.assert_close(mean, of_cells.mean())


def test_the_bound_is_below_likelihood_and_reconstruction(trained):
    elbo = trained.get_elbo(return_mean=False)
    torch.testing.assert_close(trained.get_elbo(), elbo.mean(), rtol=0.02, atol=0)
    error = trained.get_reconstruction_error(return_mean=False)["reconstruction_loss"]
    marginal = trained.get_marginal_ll(n_mc_samples=50, return_mean=False)
    assert elbo.shape == error.shape == marginal.shape == (300,)
    assert elbo.mean() < marginal.mean()
    assert elbo.mean() < -error.mean()


# -------------------------------------------------------------------------------- expression


def test_the_own_batch_gives_the_own_value(trained):
    of_batch = trained.adata.obs["batch"].to_numpy()

    def expression(batch):
        torch.manual_seed(0)
        return trained.get_normalized_expression(transform_batch=batch).to_numpy()

    own, first, second = expression(None), expression("batch_0"), expression(["batch_1"])
    np.testing.assert_array_equal(first[of_batch == "batch_0"], own[of_batch == "batch_0"])
    np.testing.assert_array_equal(second[of_batch == "batch_1"], own[of_batch == "batch_1"])
    assert not np.allclose(first[of_batch == "batch_1"], own[of_batch == "batch_1"], rtol=0.05)


def test_several_batches_are_averaged(trained):
    with_draws = {"n_samples": 200, "indices": ROWS}
    single = [
        trained.get_normalized_expression(transform_batch=name, **with_draws).to_numpy()
        for name in ("batch_0", "batch_1")
    ]
    both = trained.get_normalized_expression(transform_batch=["batch_0", "batch_1"], **with_draws)
    np.testing.assert_allclose(both, np.mean(single, axis=0), rtol=0.1)
    with pytest.raises(ValueError, match="is none. Known are: 'batch_0'"):
        trained.get_normalized_expression(transform_batch="nowhere")


def test_batches_may_be_numbers(adata, make_model, train):
    adata.obs["batch"] = adata.obs["batch"].cat.codes.to_numpy()
    model = train(make_model(adata, {"batch_key": "batch"}))
    torch.manual_seed(0)
    own = model.get_normalized_expression().to_numpy()
    torch.manual_seed(0)
    of_1 = model.get_normalized_expression(transform_batch=1).to_numpy()
    in_1 = adata.obs["batch"] == 1
    np.testing.assert_array_equal(of_1[in_1], own[in_1])
    assert not np.array_equal(of_1, own)


def test_expression_has_the_genes_cells_and_scale_that_are_asked_for(trained):
    genes = list(trained.adata.var_names[[5, 2]])
    torch.manual_seed(0)
    whole = trained.get_normalized_expression()
    torch.manual_seed(0)
    some = trained.get_normalized_expression(gene_list=genes, library_size=1e4)
    assert list(some.columns) == genes
    np.testing.assert_allclose(some, whole[some.columns] * 1e4, rtol=1e-6)
    torch.manual_seed(0)
    counts = trained.get_normalized_expression(library_size="latent", return_numpy=True)
    sizes = trained.get_latent_library_size(give_mean=False)
    np.testing.assert_allclose(counts, whole * sizes, rtol=1e-4, atol=1e-6)
    with pytest.raises(KeyError, match="'no_gene'"):
        trained.get_normalized_expression(gene_list=["no_gene", genes[0]])
    with pytest.raises(KeyError, match="'no_gene'"):
        trained.posterior_predictive_sample(gene_list=["no_gene", genes[0]])


def test_the_mean_of_samples_is_near_the_mean(trained):
    draws = trained.get_normalized_expression(indices=ROWS, n_samples=400, return_mean=False)
    assert draws.shape == (400, 4, 60)
    mean = trained.get_normalized_expression(indices=ROWS, n_samples=400, batch_size=2)
    error = np.hypot(draws.std(0), draws.std(0)) / np.sqrt(400)
    assert (np.abs(draws.mean(0) - mean.to_numpy()) < 5 * error).all()


def test_samples_of_a_group_are_of_its_cells(trained):
    group = trained.adata.obs["component"].to_numpy() == "component_0"
    draws = trained.get_normalized_expression(indices=group, n_samples_overall=2000)
    assert draws.shape == (2000, 60)
    of_group = trained.get_normalized_expression(indices=group, n_samples=20).to_numpy()
    error = draws.std(0) / np.sqrt(2000)
    assert (np.abs(draws.mean(0) - of_group.mean(0)) < 5 * error).all()


@pytest.mark.parametrize("n_samples", [1, 3])
def test_parameters_of_the_likelihood(by_label, n_samples):
    found = by_label.get_likelihood_parameters(
        indices=ROWS, n_samples=n_samples, give_mean=n_samples > 1
    )
    assert found["mean"].shape == found["dropout"].shape == found["dispersions"].shape == (4, 60)
    batch = by_label.adata_manager.get_from_registry(KEYS.BATCH_KEY)[ROWS, 0]
    whole = by_label.get_likelihood_parameters()["dispersions"]
    np.testing.assert_allclose(found["dispersions"], whole[ROWS], rtol=1e-5)
    same = batch == batch[0]
    np.testing.assert_allclose(whole[ROWS][same], whole[ROWS[:1]].repeat(same.sum(), 0))
    expected = by_label.get_normalized_expression(indices=ROWS, library_size="latent")
    assert np.corrcoef(found["mean"].ravel(), expected.to_numpy().ravel())[0, 1] > 0.95
    assert ((found["dropout"] > 0) & (found["dropout"] < 1)).all()


@pytest.mark.parametrize("of", ["nb", "zinb"])
@pytest.mark.parametrize("kind", ["spearman", "pearson"])
@pytest.mark.parametrize("n_samples", [1, 5])
def test_genes_of_one_program_correlate(request, of, kind, n_samples):
    model = request.getfixturevalue({"nb": "trained", "zinb": "by_label"}[of])
    found = model.get_feature_correlation_matrix(
        n_samples=n_samples, correlation_type=kind, transform_batch=["batch_0"]
    )
    np.testing.assert_allclose(found, found.T, atol=1e-10)
    np.testing.assert_allclose(np.diag(found), 1)
    if of == "nb":  # which is trained long enough to tell
        denoised = model.get_normalized_expression(transform_batch="batch_0")
        upper = np.triu_indices(60, 1)
        expected = denoised.corr(kind).to_numpy()[upper]
        assert np.corrcoef(found.to_numpy()[upper], expected)[0, 1] > 0.8


def test_denoised_samples_have_the_moments_of_their_gamma(trained):
    """Mean rate and, of many draws, variance rate²/θ beside that of z."""
    draws = trained._get_denoised_samples(indices=ROWS, n_samples=500, rna_size_factor=1000)
    assert draws.shape == (4, 60, 500)
    rate = trained.get_normalized_expression(
        indices=ROWS, n_samples=500, return_mean=False, library_size=1000
    )
    theta = trained.get_likelihood_parameters(indices=ROWS)["dispersions"]
    variance = rate.var(0) + (rate**2).mean(0) / theta
    error = np.sqrt(variance / 500)
    assert (np.abs(draws.mean(-1) - rate.mean(0)) < 6 * error).all()
    np.testing.assert_allclose(draws.var(-1).sum(), variance.sum(), rtol=0.15)


def test_predictive_samples_are_sparse_counts_of_the_right_mean(trained):
    draws = trained.posterior_predictive_sample(indices=ROWS, n_samples=300)
    assert type(draws).__name__ == "GCXS"
    dense = draws.todense()
    assert dense.shape == (4, 60, 300)
    np.testing.assert_array_equal(dense, np.round(dense))
    expected = trained.get_normalized_expression(
        indices=ROWS, n_samples=300, library_size="latent"
    )
    error = dense.std(-1) / np.sqrt(300)
    assert (np.abs(dense.mean(-1) - expected.to_numpy()) < 6 * error + 0.05).all()
    some = trained.posterior_predictive_sample(
        indices=ROWS, gene_list=["gene_3"], transform_batch="batch_1", n_samples=2
    )
    assert some.shape == (4, 1, 2)


@pytest.mark.parametrize("likelihood", ["poisson", "gaussian"])
def test_likelihoods_without_dispersion_say_so(adata, make_model, train, likelihood):
    model = train(make_model(adata, {}, likelihood=likelihood))
    for read in (model.get_likelihood_parameters, model.get_feature_correlation_matrix):
        with pytest.raises(NotImplementedError, match=likelihood):
            read()
    if likelihood == "gaussian":
        with pytest.raises(NotImplementedError, match="those of counts"):
            model.get_latent_library_size()
    else:
        with pytest.raises(RuntimeError, match="give_mean"):
            model.get_latent_library_size()


# ------------------------------------------------------------------------------ differences


@pytest.mark.parametrize(
    "options",
    [
        {"groupby": "component", "group1": "component_0"},
        {"groupby": "component", "group1": ["component_0"], "filter_outlier_cells": True},
        {"groupby": "component", "group1": "component_0", "batch_correction": True},
        {
            "groupby": "component",
            "group1": "component_0",
            "batch_correction": True,
            "batchid1": ["batch_0"],
            "batchid2": ["batch_1"],
        },
        {"idx1": 'component == "component_0"'},
        {"idx1": "mask", "idx2": "others", "all_stats": False},
    ],
    ids=["group", "outliers", "batches", "crossed_batches", "query", "masks"],
)
def test_differences_between_groups_are_those_of_their_expression(trained, options):
    group = trained.adata.obs["component"].to_numpy() == "component_0"
    options = {k: {"mask": group, "others": ~group}.get(str(v), v) for k, v in options.items()}
    found = trained.differential_expression(
        mode="change", delta=0.5, fdr_target=0.2, silent=True, **options
    ).loc[trained.adata.var_names]
    expression = trained.get_normalized_expression().to_numpy()
    change = np.log2(expression[group].mean(0)) - np.log2(expression[~group].mean(0))
    assert np.corrcoef(found["lfc_mean"], change)[0, 1] > 0.8
    assert found["is_de_fdr_0.2"].dtype == bool and found["is_de_fdr_0.2"].any()
    assert ("raw_mean1" in found) == options.get("all_stats", True)
    if "raw_mean1" in found:
        np.testing.assert_allclose(
            found["raw_mean1"], trained.adata.X[group].mean(0).A1, rtol=1e-5
        )


def test_two_groups_are_compared_as_named(trained):
    names = ["component_1", "component_2"]
    found = trained.differential_expression(
        groupby="component", group1=names[0], group2=names[1], silent=True
    ).loc[trained.adata.var_names]
    assert set(found["comparison"]) == {"component_1 vs component_2"}
    reverse = trained.differential_expression(
        groupby="component", group1=names[1], group2=names[0], silent=True
    ).loc[trained.adata.var_names]
    assert np.corrcoef(found["bayes_factor"], -reverse["bayes_factor"])[0, 1] > 0.9
    every = trained.differential_expression(groupby="component", silent=True)
    assert len(every) == 3 * 60


@pytest.mark.parametrize("dof", [None, 3.0])
def test_abundance_is_a_mixture_with_the_right_scales(adata, make_model, train, dof):
    model = train(make_model(adata, {"batch_key": "batch"}))
    model.differential_abundance(sample_key="condition", dof=dof, batch_size=64)
    model.differential_abundance(sample_key="batch", dof=dof, batch_size=64)
    found = adata.obsm["da_log_probs"]
    loc, variance = model.get_latent_representation(return_dist=True)
    scale = np.sqrt(variance)
    density = stats.norm if dof is None else stats.t(dof)
    for sample in found.columns:
        inside = adata.obs["batch"].to_numpy() == sample
        scaled = (loc[:, None] - loc[inside]) / scale[inside]
        of_cells = (density.logpdf(scaled) - np.log(scale[inside])).sum(-1)
        expected = special.logsumexp(of_cells, axis=1) - np.log(inside.sum())
        np.testing.assert_allclose(found[sample], expected, rtol=1e-3, atol=1e-2)
    with pytest.raises(ValueError, match="sample_key"):
        model.differential_abundance()
    with pytest.raises(KeyError, match="'nobody'"):
        model.differential_abundance(sample_key="nobody")


# ----------------------------------------------------------------------------------- training


class Seen(Callback):
    """Keeps the numbers of the epochs that end with a validation."""

    def __init__(self):
        self.epochs = []

    def on_validation_epoch_end(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)


def test_parts_of_the_cells_have_their_sizes(adata, make_model, train):
    model = train(make_model(adata), train_size=0.5, validation_size=0.3, load_sparse_tensor=True)
    parts = [model.train_indices, model.validation_indices, model.test_indices]
    assert [len(part) for part in parts] == [150, 90, 60]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(300))


def test_parts_can_be_given(adata, make_model, train):
    parts = [np.arange(0, 200), np.arange(200, 280), np.arange(280, 300)]
    model = train(make_model(adata), datasplitter_kwargs={"external_indexing": parts})
    found = [model.train_indices, model.validation_indices, model.test_indices]
    for part, given in zip(found, parts, strict=True):
        np.testing.assert_array_equal(part, given)
    model = train(
        make_model(adata),
        check_val_every_n_epoch=1,
        datasplitter_kwargs={"external_indexing": [np.arange(200), np.arange(200, 300)]},
    )
    assert len(model.history["elbo_validation"]) == 4
    assert len(model.test_indices) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"check_val_every_n_epoch": 1},
        {"early_stopping": True},
        {"trainer_config": {"early_stopping": True}},
        {"plan_kwargs": {"reduce_lr_on_plateau": True}},
        {"plan_config": {"reduce_lr_on_plateau": True}},
    ],
    ids=["validation", "early_stopping", "trainer_config", "plateau", "plan_config"],
)
def test_settings_that_need_validation_cells_get_some(adata, make_model, train, settings):
    seen = Seen()
    model = train(make_model(adata), callbacks=[seen], **settings)
    assert seen.epochs == [0, 1, 2, 3]
    assert len(model.validation_indices) == 30
    assert len(model.history["elbo_validation"]) == 4
    assert ("lr-Adam" in model.history) == ("reduce_lr_on_plateau" in str(settings))
    model = make_model(adata)
    with pytest.raises(ValueError, match="train_size=1.0.*below 1"):
        train(model, train_size=1.0, **settings)
    assert not model.is_trained


def test_validation_can_be_rarer_and_of_what_is_held_out(adata, make_model, train):
    seen = Seen()
    model = train(make_model(adata), train_size=0.8, check_val_every_n_epoch=2, callbacks=[seen])
    assert seen.epochs == [1, 3]
    assert len(model.validation_indices) == 60


def test_what_plan_kwargs_say_comes_before_plan_config(adata, make_model, train):
    model = train(
        make_model(adata),
        batch_size=None,  # that of the settings
        plan_config=scvi.train.TrainingPlanConfig(lr=0.1, n_epochs_kl_warmup=None),
        plan_kwargs={"lr": 0.002, "weight_decay": 0.5},
        trainer_config=scvi.train.TrainerConfig(max_epochs=77, enable_progress_bar=False),
        callbacks=[LearningRateMonitor()],
        log_every_n_steps=1,
    )
    assert set(model.history["lr-Adam"]["lr-Adam"].astype(float)) == {0.002}
    assert model.trainer.max_epochs == 4  # what is passed, not what is configured
    assert model.trainer.num_training_batches == 3
    assert model.trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.5
    with pytest.raises(NotImplementedError, match="once per epoch"):
        train(model, plan_kwargs={"on_step": True})


def test_loggers_of_lightning_get_the_terms(adata, make_model, train, tmp_path):
    model = train(make_model(adata), logger=CSVLogger(tmp_path), check_val_every_n_epoch=1)
    rows = pd.read_csv(tmp_path / "lightning_logs/version_0/metrics.csv")
    kept = rows.dropna(subset=["elbo_train"])
    assert len(kept) == len(rows["elbo_validation"].dropna()) == 4
    np.testing.assert_allclose(
        kept["elbo_train"], kept["reconstruction_loss_train"] + kept["kl_local_train"], rtol=1e-4
    )
    assert model.history is None  # scvi-tools keeps that of its own logger alone
    assert model.is_trained


def test_settings_of_scvi_tools_are_respected(adata, make_model, monkeypatch):
    before = scvi.settings.seed
    latents = []
    try:
        for seed in (3, 3, 4):
            scvi.settings.seed = seed
            model = make_model(adata)
            model.train(1, 1, accelerator="cpu", enable_progress_bar=False)
            assert model.seed_ == seed
            latents.append(model.get_latent_representation())
    finally:
        scvi.settings._seed = before
    np.testing.assert_array_equal(latents[0], latents[1])
    assert not np.allclose(latents[0], latents[2])
    monkeypatch.setattr(scvi.settings, "batch_size", 11)
    assert len(model._make_data_loader(adata)) == -(-300 // 11)
    monkeypatch.setattr(scvi.settings, "dl_num_workers", 7)  # which are not needed
    np.testing.assert_allclose(model.get_latent_representation(), latents[2], atol=1e-5)


@pytest.mark.parametrize("style", ["tqdm", "rich"])
def test_other_bars_have_the_style_of_the_settings(trained, monkeypatch, capsys, style):
    monkeypatch.setattr(scvi.settings, "progress_bar_style", style)
    trained.differential_expression(groupby="component")
    shown = "".join(capsys.readouterr())
    assert "DE..." in shown
    assert ("━" in shown) == (style == "rich")


# --------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    """Function that makes a callback which saves the best models to a folder of the test."""

    def make(**settings):
        return SaveCheckpoint(
            dirpath=str(tmp_path / "best"), monitor="elbo_validation", **settings
        )

    return make


def test_a_checkpoint_is_a_model_with_its_components(adata, make_model, train, checkpoints):
    callback = checkpoints(save_top_k=-1)
    model = train(make_model(adata, {"batch_key": "batch"}), callbacks=[callback], max_epochs=3)
    last = max(callback.best_k_models, key=lambda path: int(path.split("epoch=")[1].split("-")[0]))
    loaded = SCGMVAE.load(last.split(".ckpt")[0], adata)
    assert loaded.is_trained and loaded.module.n_components == 3
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    with pytest.raises(RuntimeError, match="one more epoch"):
        loaded.get_novelty()
    train(loaded, max_epochs=1)
    assert loaded.get_novelty().max() == 1


class SpoilsTheLastEpoch(Callback):
    """Makes the last epoch start from weights that are far too large."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == trainer.max_epochs - 1:
            for weights in pl_module.module.decoder.parameters():
                weights.data *= 3


def test_the_best_of_the_joint_stage_is_loaded_at_the_end(adata, make_model, train, checkpoints):
    callback = checkpoints(load_best_on_end=True)
    model = train(make_model(adata), callbacks=[callback, SpoilsTheLastEpoch()], max_epochs=3)
    best = SCGMVAE.load(callback.best_model_path, adata)
    assert best.mixture_started_  # not one of the pretraining, whose bound is another
    for name, weights in best.module.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], weights), name
    np.testing.assert_array_equal(adata.obsm["X_scgmvae"], best.get_latent_representation())
    history = model.history["elbo_validation"]["elbo_validation"].astype(float)
    assert np.isclose(float(callback.best_model_score), history[2:].min())
    assert history.iloc[-1] > history[2:].min() + 1
    assert callback.load_best_on_end  # as it was given


def test_checkpoints_by_name(adata, make_model, train, tmp_path, monkeypatch):
    monkeypatch.setattr(scvi.settings, "_logging_dir", str(tmp_path))
    model = train(make_model(adata), enable_checkpointing=True)
    callback = next(c for c in model.trainer.callbacks if isinstance(c, SaveCheckpoint))
    assert callback.best_model_path.startswith(str(tmp_path))
    assert SCGMVAE.load(callback.best_model_path, adata).is_trained


def test_checkpoints_that_would_be_unpickled_are_refused(adata, make_model, train, checkpoints):
    model = make_model(adata)
    with pytest.raises(NotImplementedError, match="check_nan_gradients=True.*Leave it out"):
        train(model, callbacks=[checkpoints(check_nan_gradients=True)])
    assert not model.is_trained


# ----------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("prefix", [None, "mine_"])
@pytest.mark.parametrize("with_data", [True, False])
def test_a_model_comes_back_with_and_without_data(by_label, tmp_path, prefix, with_data, caplog):
    folder = str(tmp_path / "model")
    by_label.save(folder, prefix=prefix, save_anndata=with_data)
    with pytest.raises(ValueError, match="overwrite=True"):
        by_label.save(folder, prefix=prefix)
    by_label.save(folder, prefix=prefix, save_anndata=with_data, overwrite=True)
    given = None if with_data else by_label.adata.copy()
    loaded = SCGMVAE.load(folder, given, prefix=prefix)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), by_label.get_latent_representation()
    )
    assert loaded.summary_string == by_label.summary_string
    pd.testing.assert_frame_equal(
        loaded.history["elbo_train"], by_label.history["elbo_train"], check_dtype=False
    )
    np.testing.assert_array_equal(loaded.train_indices, by_label.train_indices)
    registry = SCGMVAE.load_registry(folder, prefix)
    assert registry["setup_args"] == by_label.registry["setup_args"]


def test_a_model_without_data_takes_what_it_is_given(by_label, tmp_path, capsys):
    by_label.save(tmp_path / "model")
    SCGMVAE.view_setup_args(tmp_path / "model")
    assert "'size_factor_key': 'size'" in capsys.readouterr().out
    loaded = SCGMVAE.load(tmp_path / "model", adata=False)
    assert loaded.adata is None
    loaded.view_registry()
    assert "'size_factor_key': 'size'" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="loaded without data"):
        loaded.get_elbo()
    part = by_label.adata[:30].copy()
    np.testing.assert_allclose(
        loaded.get_latent_representation(part),
        by_label.get_latent_representation(indices=np.arange(30)),
        atol=1e-5,
    )
    assert loaded.adata is part


def test_models_do_not_load_what_does_not_suit(trained, adata, tmp_path):
    trained.save(tmp_path / "model")
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories(["a", "b"])
    with pytest.raises(ValueError, match="'batch'.*'a', 'b'.*load_query_data"):
        SCGMVAE.load(tmp_path / "model", adata)
    with pytest.raises(ValueError, match="50%"):
        SCGMVAE.load(tmp_path / "model", adata[:, :10].copy())
    with pytest.raises(TypeError, match="backup_url"):
        SCGMVAE.load(tmp_path / "model", backup_url="https://example.org/model.pt")
    with pytest.raises(TypeError, match="save_anndata=True.*save_kwargs"):
        trained.save(tmp_path / "model", overwrite=True, save_kwargs={})
    with pytest.raises(NotImplementedError, match="0.15"):
        SCGMVAE.convert_legacy_save(str(tmp_path / "model"), str(tmp_path / "new"))
    with pytest.raises(ValueError, match="model.pt"):  # what scvi-tools' hub reads
        SCVI.load(str(tmp_path / "model"), adata)


def test_models_move_between_devices(trained, adata, tmp_path):
    trained.save(tmp_path / "model")
    model = SCGMVAE.load(tmp_path / "model", adata, accelerator="cpu", device="auto")
    model.to_device("cpu")
    assert model.device == torch.device("cpu")
    assert model.is_trained and "Trained" in model.summary_string


# ------------------------------------------------------------------------------------ queries


@pytest.mark.parametrize("inplace", [True, False])
def test_genes_of_a_query_are_prepared(trained, adata, inplace, tmp_path):
    trained.save(tmp_path / "model")
    query = adata[:40, ::-1].copy()
    query.layers["other"] = query.X.copy()
    names = SCGMVAE.prepare_query_anndata(query, tmp_path / "model", True)
    assert isinstance(names, pd.Index) and list(names) == list(adata.var_names)
    returned = SCGMVAE.prepare_query_anndata(query, trained, inplace=inplace)
    assert (returned is None) == inplace
    prepared = query if inplace else returned
    for matrix in (prepared.X, prepared.layers["other"]):
        np.testing.assert_array_equal(matrix.toarray(), adata[:40].X.toarray())
    assert list(query.var_names) == list(adata.var_names[:: 1 if inplace else -1])
    model = SCGMVAE.load_query_data(prepared, tmp_path / "model", accelerator="cpu")
    assert model.adata is prepared
    np.testing.assert_allclose(
        model.get_latent_representation(), trained.get_latent_representation()[:40], atol=1e-5
    )


def test_missing_genes_are_unobserved_in_a_prepared_query(trained, adata):
    query = adata[:40, 5:].copy()
    with pytest.warns(UserWarning, match="unobserved.*lacks 5"):
        SCGMVAE.prepare_query_anndata(query, trained)
    assert query.X[:, :5].sum() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        direct = SCGMVAE.load_query_data(adata[:40, 5:].copy(), trained)
    np.testing.assert_allclose(
        SCGMVAE.load_query_data(query, trained).get_latent_representation(),
        direct.get_latent_representation(),
        atol=1e-6,
    )


def test_a_query_can_be_subset_in_place(trained, adata, caplog):
    query = adata[:40, ::-1].copy()
    with caplog.at_level(logging.INFO, logger="scgmvae"):
        model = SCGMVAE.load_query_data(query, trained, inplace_subset_query_vars=True)
    assert model.adata is query
    assert list(query.var_names) == list(adata.var_names)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"unfrozen": True}, NotImplementedError),
        ({"freeze_expression": False}, NotImplementedError),
        ({"freeze_dropout": True}, NotImplementedError),
        ({"frozen": True}, TypeError),
    ],
)
def test_what_is_frozen_cannot_be_chosen(trained, adata, settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        SCGMVAE.load_query_data(adata, trained, **settings)
    query = SCGMVAE.load_query_data(adata, trained, unfrozen=False, freeze_expression=True)
    assert query.is_trained


# ----------------------------------------------------------------------------- whole sessions


def test_data_on_disk_go_the_whole_way(adata, make_model, train, tmp_path):
    adata.write_h5ad(tmp_path / "counts.h5ad")
    backed = anndata.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    model = train(make_model(backed, {"batch_key": "batch"}), check_val_every_n_epoch=1)
    in_memory = model.get_latent_representation(adata)
    np.testing.assert_allclose(model.get_latent_representation(), in_memory, atol=1e-5)
    backed.file.close()
