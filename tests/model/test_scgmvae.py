"""Tests of model.scgmvae: fields in, results out, writing back, saving, inherited methods."""

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
import rich
import torch
from scipy import special, stats
from scvi import REGISTRY_KEYS as KEYS

import scgmvae
from scgmvae import SCGMVAE
from scgmvae.datasets import synthetic_counts

# A Monte Carlo mean lies within this many standard errors of what it estimates.
N_ERRORS = 5


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


def assert_near(one, other):
    """Two sets of draws (S,) have the same mean, up to their errors."""
    error = np.hypot(np.std(one) / np.sqrt(len(one)), np.std(other) / np.sqrt(len(other)))
    assert abs(np.mean(one) - np.mean(other)) < N_ERRORS * error


# ----------------------------------------------------------------------------------- set-up


@pytest.mark.parametrize("has_layer", [True, False], ids=["layer_counts", "X"])
def test_an_anndata_that_was_not_set_up_gets_defaults(adata, has_layer, caplog):
    expected = adata.X.toarray()
    if has_layer:
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X.log1p()
    with caplog.at_level(logging.INFO, logger="scgmvae"):
        model = SCGMVAE(adata)
    chosen = "layers['counts']" if has_layer else "X"
    assert f"not set up; using {chosen} without batches, labels or covariates" in caplog.text
    registered = model.adata_manager.get_from_registry(KEYS.X_KEY)
    np.testing.assert_array_equal(registered.toarray(), expected)
    assert model.summary_stats.n_batch == 1
    assert not model.module.has_conditions


def test_an_anndata_that_was_set_up_keeps_its_setup(adata, caplog):
    SCGMVAE.setup_anndata(adata, batch_key="batch")
    with caplog.at_level(logging.INFO, logger="scgmvae"):
        model = SCGMVAE(adata)
    assert "not set up" not in caplog.text
    assert model.summary_stats.n_batch == 2


def test_every_field_reaches_the_module(adata, make_model, train):
    rng = np.random.default_rng(0)
    adata.layers["raw"] = adata.X.copy()
    adata.X = adata.X.log1p()
    adata.obs["donor"] = rng.choice(["d1", "d2", "d3"], size=300)
    adata.obs["age"] = rng.normal(size=300)
    adata.obs["size"] = rng.uniform(500, 2000, size=300)
    adata.obs["label"] = np.where(rng.random(300) < 0.5, adata.obs["component"].astype(str), "?")
    setup = {
        "layer": "raw",
        "batch_key": "batch",
        "labels_key": "label",
        "unlabeled_category": "?",
        "size_factor_key": "size",
        "categorical_covariate_keys": ["donor", "condition"],
        "continuous_covariate_keys": ["age"],
    }
    model = make_model(adata, setup, n_components=4)
    assert model.module.n_categories == (2, 3, 1)
    assert model.module.sizes.n_cont == 1
    assert model.module.n_labels == 3
    assert model.module.use_size_factor
    assert set(model.component_names[:3]) == {"component_0", "component_1", "component_2"}
    assert model.component_names[3] == "3"
    tensors = next(iter(model._make_data_loader(adata, indices=np.arange(5))))
    np.testing.assert_array_equal(
        tensors[KEYS.X_KEY].to_dense(), adata.layers["raw"][:5].toarray()
    )
    np.testing.assert_allclose(tensors[KEYS.CONT_COVS_KEY][:, 0], adata.obs["age"][:5], rtol=1e-6)
    np.testing.assert_array_equal(
        tensors[KEYS.CAT_COVS_KEY][:, 0], adata.obs["donor"].astype("category").cat.codes[:5]
    )
    train(model)
    # expected counts per cell go with the size factors, not with the observed totals
    expected = model.get_normalized_expression(library_size="latent").sum(axis=1)
    per_factor = adata.layers["raw"].sum() / adata.obs["size"].sum()
    np.testing.assert_allclose(expected, adata.obs["size"] * per_factor, rtol=1e-4)


# ------------------------------------------------------------------------------ embedding


def test_latents_are_posterior_means_variances_and_draws(trained):
    z = trained.get_latent_representation()
    loc, variance = trained.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(z, loc)
    assert z.shape == (300, 5)
    assert z.dtype == np.float32
    assert (variance > 0).all()
    draws = [trained.get_latent_representation(give_mean=False, seed=s) for s in range(2)]
    again = trained.get_latent_representation(give_mean=False, seed=1)
    np.testing.assert_array_equal(draws[1], again)
    standardised = (draws[0] - loc) / np.sqrt(variance)
    assert stats.kstest(standardised.ravel(), "norm").pvalue > 1e-3
    assert not np.array_equal(draws[0], draws[1])


def test_w_has_its_own_size_and_values(trained):
    w = trained.get_latent_representation(which="w")
    loc, variance = trained.get_latent_representation(which="w", return_dist=True)
    assert w.shape == variance.shape == (300, 4)
    np.testing.assert_array_equal(w, loc)
    np.testing.assert_array_equal(w, trained.adata.obsm["X_scgmvae_w"])


def test_latents_agree_with_the_networks(trained):
    tensors = next(iter(trained._make_data_loader(trained.adata, batch_size=300)))
    with torch.no_grad():
        outputs = trained.module.inference(**trained.module._get_inference_input(tensors))
    loc, variance = trained.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(loc, outputs["qz"].loc, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, outputs["qz"].scale ** 2, rtol=1e-5)


# ------------------------------------------------------------------------------- clusters


def test_hard_and_soft_predictions_agree(trained):
    soft = trained.predict(soft=True)
    assert soft.shape == (300, 3)
    assert soft.columns.tolist() == ["0", "1", "2"]
    assert soft.index.equals(trained.adata.obs_names)
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)
    hard = trained.predict()
    np.testing.assert_array_equal(hard, soft.columns[soft.to_numpy().argmax(1)])
    np.testing.assert_array_equal(hard, trained.adata.obs["scgmvae"].astype(str))
    np.testing.assert_allclose(soft, trained.adata.obsm["scgmvae_proba"], rtol=1e-5)


def test_the_component_table_counts_cells(trained):
    table = trained.component_table()
    assert table.index.tolist() == trained.component_names.tolist()
    expected = trained.adata.obs["scgmvae"].value_counts().reindex(table.index)
    np.testing.assert_array_equal(table["n_cells"], expected)
    assert table["n_cells"].sum() == 300
    np.testing.assert_allclose(table["weight"].sum(), 1, rtol=1e-5)
    share = table["n_cells"] / 300
    np.testing.assert_allclose(table["share"], share)
    np.testing.assert_allclose(table["entropy"].sum(), stats.entropy(share))
    proba = trained.predict(soft=True)
    for name, row in table.iterrows():
        confidence = proba.loc[trained.predict() == name, name].mean()
        np.testing.assert_allclose(row["mean_confidence"], confidence, rtol=1e-5)
    assert not table["is_empty"].any()


def test_the_component_table_flags_what_is_empty(trained):
    one = trained.adata.obs["scgmvae"] == "1"
    table = trained.component_table(trained.adata[one].copy())
    assert table["n_cells"].tolist() == [0, one.sum(), 0]
    assert table["is_empty"].tolist() == [True, False, True]
    assert table["entropy"].tolist() == [0, 0, 0]
    assert table["mean_confidence"].isna().tolist() == [True, False, True]


# --------------------------------------------------------------------------------- bounds


def test_the_elbo_is_minus_the_sum_of_its_terms(trained):
    rows = np.arange(0, 300, 6)
    tables = [trained.get_elbo_terms(indices=rows, seed=s) for s in range(30)]
    assert list(tables[0]) == ["reconstruction_loss", "kl_z", "kl_w", "kl_y", "kl_d"]
    assert tables[0].index.equals(trained.adata.obs_names[rows])
    sums = [-table.sum(axis=1).mean() for table in tables]
    assert_near(sums, [float(trained.get_elbo(indices=rows, seed=s)) for s in range(30, 60)])
    per_cell = trained.get_elbo(indices=rows, return_mean=False)
    assert per_cell.shape == (50,)
    assert (np.mean(tables, axis=0)[:, 1:3] > 0).all()

    errors = [table["reconstruction_loss"].mean() for table in tables]
    found = [trained.get_reconstruction_error(indices=rows, seed=s) for s in range(30, 60)]
    # scvi-tools gives the negative log-likelihood under this name
    assert_near(errors, [float(value["reconstruction_loss"]) for value in found])


def test_the_marginal_likelihood_is_above_the_elbo(trained):
    rows = np.arange(0, 300, 6)
    elbo = np.mean([float(trained.get_elbo(indices=rows, seed=s)) for s in range(20)])
    few, many = (float(trained.get_marginal_ll(indices=rows, n_mc_samples=n)) for n in (5, 100))
    assert elbo < few < many
    per_cell = trained.get_marginal_ll(indices=rows, n_mc_samples=5, return_mean=False)
    assert per_cell.shape == (50,)


# ----------------------------------------------------------------------------- expression


def test_normalised_expression_sums_to_one(trained):
    table = trained.get_normalized_expression()
    assert table.shape == (300, 60)
    assert table.index.equals(trained.adata.obs_names)
    assert table.columns.equals(trained.adata.var_names)
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-4)
    scaled = trained.get_normalized_expression(library_size=1e4)
    np.testing.assert_allclose(scaled.sum(axis=1), 1e4, rtol=1e-4)


def test_normalised_expression_of_some_genes_samples_and_cells(trained):
    genes = ["gene_7", "gene_2"]
    table = trained.get_normalized_expression(gene_list=genes, indices=np.array([4, 2]))
    assert table.columns.tolist() == genes
    assert table.index.tolist() == ["cell_4", "cell_2"]
    draws = trained.get_normalized_expression(n_samples=40, return_mean=False, gene_list=genes)
    assert isinstance(draws, np.ndarray)
    assert draws.shape == (40, 300, 2)
    assert (draws.std(0) > 0).all()
    mean = trained.get_normalized_expression(n_samples=40, return_numpy=True, gene_list=genes)
    assert isinstance(mean, np.ndarray)
    np.testing.assert_allclose(mean.mean(), draws.mean(), rtol=0.02)


def test_expression_under_another_batch_follows_the_truth(counts, make_model, train):
    model = make_model(counts.copy(), setup={"batch_key": "batch"})
    trained = train(model, max_epochs=40, pretrain_epochs=40)
    z_before = trained.get_latent_representation()
    log = {
        name: np.log(
            trained.get_normalized_expression(
                transform_batch=name, n_samples=10, return_numpy=True
            )
        ).mean(0)
        for name in ("batch_0", "batch_1")
    }
    learned = log["batch_1"] - log["batch_0"]
    truth = counts.varm["batch_shift"][:, 1]
    assert np.corrcoef(learned, truth)[0, 1] > 0.75  # six seeds: 0.84 to 0.90
    np.testing.assert_array_equal(trained.get_latent_representation(), z_before)
    # cells of batch_1 are decoded as such anyway, up to the draw of z
    own = trained.get_normalized_expression(n_samples=10, return_numpy=True)
    is_own = (counts.obs["batch"] == "batch_1").to_numpy()
    np.testing.assert_allclose(np.log(own[is_own]).mean(0), log["batch_1"], atol=0.5)


def test_predictive_samples_have_the_size_of_the_cells(trained, counts):
    one = trained.posterior_predictive_sample()
    assert one.shape == (300, 60)
    draws = trained.posterior_predictive_sample(n_samples=25, indices=np.arange(100))
    assert draws.shape == (100, 60, 25)
    values = draws.todense() if hasattr(draws, "todense") else np.asarray(draws)
    assert (values >= 0).all()
    np.testing.assert_array_equal(values, np.floor(values))
    totals = np.asarray(counts.X[:100].sum(axis=1))
    np.testing.assert_allclose(values.sum(1).mean() / totals.mean(), 1, atol=0.05)
    some = trained.posterior_predictive_sample(gene_list=["gene_1", "gene_4"])
    assert some.shape == (300, 2)


@pytest.mark.parametrize("mode", ["vanilla", "change"])
def test_differential_expression_finds_the_programs_of_components(trained, counts, mode):
    table = trained.differential_expression(groupby="scgmvae", mode=mode, silent=True)
    assert len(table) == 3 * 60
    for name in trained.component_names:
        members = counts.obs["component"][trained.predict() == name]
        truth = members.cat.codes.mode()[0]
        shifts = counts.varm["component_shift"]
        # genes of this program alone, against genes of no other either
        program = counts.var_names[
            (shifts[:, truth] > 0) & (np.delete(shifts, truth, 1).sum(1) == 0)
        ]
        of_group = table[table["group1"] == name]
        change = np.log(of_group["scale1"] / of_group["scale2"])
        others = of_group.index.difference(program)
        assert change[program].min() > change[others].quantile(0.9)


# ------------------------------------------------------------------- aggregated posterior


@pytest.mark.parametrize("dof", [None, 3.0], ids=["gaussian", "student"])
def test_the_aggregated_posterior_has_the_scales_of_the_cells(trained, dof):
    rows = np.array([0, 5, 9])
    mixture = trained.get_aggregated_posterior(indices=rows, dof=dof)
    loc, variance = trained.get_latent_representation(indices=rows, return_dist=True)
    scale = mixture.component_distribution.base_dist.scale
    np.testing.assert_allclose(scale, np.sqrt(variance), rtol=1e-5)
    at = loc[:1] + 0.1
    density = stats.norm if dof is None else stats.t(dof)
    standardised = (at - loc) / np.sqrt(variance)
    log_prob = (density.logpdf(standardised) - np.log(np.sqrt(variance))).sum(-1)
    expected = special.logsumexp(log_prob) - np.log(3)
    np.testing.assert_allclose(mixture.log_prob(torch.tensor(at))[0], expected, rtol=1e-4)


# -------------------------------------------------------------------------------- new data


def in_other_order(adata):
    return adata[:, ::-1].copy()


def with_extra_genes(adata):
    extra = adata[:, :3].copy()
    extra.var_names = ["new_1", "new_2", "new_3"]
    both = anndata.concat([extra, adata], axis=1, merge="same")
    return both[:, np.random.default_rng(0).permutation(both.n_vars)].copy()


NEW_DATA = [
    pytest.param(lambda adata: adata.copy(), id="same"),
    pytest.param(in_other_order, id="other_order"),
    pytest.param(with_extra_genes, id="extra_genes"),
]


@pytest.mark.parametrize("change", NEW_DATA)
def test_new_data_give_the_same_results(trained, counts, change):
    new = change(counts[50:150])
    rows = np.arange(50, 150)
    for method in ("get_latent_representation", "predict"):
        found, expected = getattr(trained, method)(new), getattr(trained, method)(indices=rows)
        if method == "predict":
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(
        trained.predict(new, soft=True), trained.predict(soft=True, indices=rows), rtol=1e-3
    )
    assert trained.component_table(new)["n_cells"].sum() == 100
    assert trained.get_elbo_terms(new).shape == (100, 5)
    assert trained.get_normalized_expression(new).columns.equals(counts.var_names)
    for value, of_own in (
        (trained.get_elbo(new), trained.get_elbo(indices=rows)),
        (
            trained.get_marginal_ll(new, n_mc_samples=20),
            trained.get_marginal_ll(indices=rows, n_mc_samples=20),
        ),
        (
            trained.get_reconstruction_error(new)["reconstruction_loss"],
            trained.get_reconstruction_error(indices=rows)["reconstruction_loss"],
        ),
        (
            trained.get_normalized_expression(new)["gene_2"].mean(),
            trained.get_normalized_expression(indices=rows)["gene_2"].mean(),
        ),
        (
            trained.posterior_predictive_sample(new).sum(),
            trained.posterior_predictive_sample(indices=rows).sum(),
        ),
    ):
        # up to the draws of z; a wrong order of genes is off by far more
        np.testing.assert_allclose(float(value), float(of_own), rtol=0.05)


@pytest.mark.parametrize("change", NEW_DATA)
def test_new_data_can_be_annotated_under_another_name(trained, counts, change):
    new = change(counts[50:150])
    columns = new.obs.columns
    trained.annotate(new, key_added="other")
    np.testing.assert_array_equal(new.obs["other"], trained.predict(indices=np.arange(50, 150)))
    np.testing.assert_allclose(
        new.obsm["X_other"], trained.adata.obsm["X_scgmvae"][50:150], rtol=1e-4, atol=1e-5
    )
    assert set(new.obsm) == {"X_other", "X_other_w", "other_proba"}
    added = {name for name in new.obs.columns.difference(columns) if not name.startswith("_scvi")}
    assert added == {"other", "other_confidence", "other_novelty"}
    assert "scgmvae" not in new.uns


def test_indices_select_cells(trained):
    rows = np.array([7, 3, 250])
    z = trained.get_latent_representation()
    np.testing.assert_allclose(
        trained.get_latent_representation(indices=rows), z[rows], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(trained.predict(indices=rows), trained.predict()[rows])
    soft = trained.predict(indices=rows, soft=True)
    assert soft.index.tolist() == ["cell_7", "cell_3", "cell_250"]
    assert trained.get_elbo_terms(indices=rows).index.tolist() == soft.index.tolist()


def test_new_cells_may_come_from_one_batch(trained, counts):
    one = (counts.obs["batch"] == "batch_1").to_numpy()
    new = counts[one].copy()
    new.obs["batch"] = new.obs["batch"].cat.remove_unused_categories()
    np.testing.assert_array_equal(trained.predict(new), trained.predict()[one])


# ------------------------------------------------------------------------------- annotate


def test_annotate_writes_these_keys_and_types(trained):
    adata = trained.adata
    expected = {"X_scgmvae": (300, 5), "X_scgmvae_w": (300, 4), "scgmvae_proba": (300, 3)}
    assert {name: adata.obsm[name].shape for name in adata.obsm} == expected
    assert all(values.dtype == np.float32 for values in adata.obsm.values())
    assert isinstance(adata.obs["scgmvae"].dtype, pd.CategoricalDtype)
    assert adata.obs["scgmvae"].cat.categories.tolist() == ["0", "1", "2"]
    confidence, novelty = adata.obs["scgmvae_confidence"], adata.obs["scgmvae_novelty"]
    inside = (novelty < 0.99).to_numpy()
    assert 290 < inside.sum() < 300
    largest = adata.obsm["scgmvae_proba"].max(1)
    largest = largest * trained._evidence()[adata.obsm["scgmvae_proba"].argmax(1)]
    np.testing.assert_allclose(confidence[inside], largest[inside], rtol=1e-5)
    assert (confidence[~inside] < largest[~inside]).all()
    np.testing.assert_array_equal(novelty, trained.get_novelty())
    settings = adata.uns["scgmvae"]
    assert settings["n_components"] == 3
    assert settings["components"].tolist() == ["0", "1", "2"]
    assert settings["seed"] == 0
    assert settings["params"]["n_latent"] == 5
    assert settings["params"]["likelihood"] == "nb"
    assert settings["versions"]["scgmvae"] == scgmvae.__version__
    assert settings["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_without_components_only_the_embedding_is_written(trained_normal):
    adata = trained_normal.adata
    assert set(adata.obsm) == {"X_scgmvae"}
    assert "scgmvae" not in adata.obs
    assert "n_components" not in adata.uns["scgmvae"]
    np.testing.assert_array_equal(
        adata.obsm["X_scgmvae"], trained_normal.get_latent_representation()
    )


def test_colors_of_an_earlier_partition_are_dropped(trained):
    adata = trained.adata.copy()
    adata.uns["scgmvae_colors"] = ["#000000"]
    adata.uns["batch_colors"] = ["#111111", "#222222"]
    trained.annotate(adata)
    assert "scgmvae_colors" not in adata.uns
    assert adata.uns["batch_colors"] == ["#111111", "#222222"]


def flat(mapping, prefix=""):
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("model", ["trained", "trained_normal"])
def test_an_annotated_anndata_survives_h5ad(model, request, tmp_path):
    adata = request.getfixturevalue(model).adata
    adata.write_h5ad(tmp_path / "data.h5ad")
    read = anndata.read_h5ad(tmp_path / "data.h5ad")
    pd.testing.assert_frame_equal(read.obs, adata.obs)
    for name in adata.obsm:
        np.testing.assert_array_equal(read.obsm[name], adata.obsm[name])
    before, after = dict(flat(adata.uns["scgmvae"])), dict(flat(read.uns["scgmvae"]))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


# --------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("with_data", [True, False], ids=["data_saved", "data_given"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"n_components": 3}, id="K_given"),
        pytest.param({"n_components": None}, id="K_found"),
        pytest.param({"prior": "normal"}, id="no_components"),
        pytest.param({"dirichlet_posterior": "network", "likelihood": "zinb"}, id="networks"),
    ],
)
def test_a_loaded_model_gives_the_same_results(
    counts, make_model, train, tmp_path, settings, with_data
):
    model = train(make_model(counts.copy(), {"batch_key": "batch"}, **settings))
    model.save(tmp_path / "model", save_anndata=with_data)
    given = None if with_data else counts.copy()
    loaded = SCGMVAE.load(tmp_path / "model", adata=given, accelerator="cpu")
    assert loaded.is_trained_
    assert loaded.n_components_ == model.n_components_
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    torch.manual_seed(0)
    terms = model.get_elbo_terms()
    torch.manual_seed(0)
    pd.testing.assert_frame_equal(loaded.get_elbo_terms(), terms)
    if settings.get("prior") != "normal":
        pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
        pd.testing.assert_frame_equal(loaded.component_table(), model.component_table())
        assert loaded.component_names.tolist() == model.component_names.tolist()
    assert loaded.history.keys() == model.history.keys()
    train(loaded, max_epochs=1)
    assert loaded.history["elbo_train"].index.tolist() == [0, 1, 2, 3, 4]
    assert loaded.n_components_ == model.n_components_


def test_a_model_can_be_loaded_with_other_cells(trained, counts, tmp_path):
    trained.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=counts[:40].copy())
    np.testing.assert_allclose(
        loaded.get_latent_representation(),
        trained.get_latent_representation()[:40],
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_model_can_be_loaded_without_cells(trained, counts, tmp_path):
    trained.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=False)
    np.testing.assert_array_equal(loaded.predict(counts.copy()), trained.predict())


# --------------------------------------------------------------------- scvi-tools' contract


def test_a_model_prints_what_it_is(trained, adata, make_model, capsys):
    assert rich.__name__ == "rich"
    print(trained)
    rich.print(make_model(adata, n_components=None))
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("SCGMVAE with", "n_latent: 5", "likelihood: nb", "prior: dirichlet"):
        assert words in shown
    assert "Training status: Trained" in shown
    assert "n_components: 3" in shown
    assert "Training status: Not Trained" in shown


def test_the_setup_can_be_viewed(trained, capsys):
    trained.view_anndata_setup()
    shown = capsys.readouterr().out
    assert "SCGMVAE" in shown
    assert "batch_1" in shown


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_every_likelihood_reconstructs_its_data(make_model, train, likelihood):
    adata = synthetic_counts(200, 40, n_components=2, component_scale=3.0, seed=0)
    if likelihood == "bernoulli":
        adata.X = (adata.X > 5).astype(np.float32)
    elif likelihood == "gaussian":
        adata.X = adata.X.log1p()
    model = train(
        make_model(adata, likelihood=likelihood), max_epochs=6, pretrain_epochs=6, start="kmeans"
    )
    key = "latent" if likelihood in ("nb", "zinb", "poisson") else 1
    expected = model.get_normalized_expression(library_size=key).mean()
    x = np.asarray(adata.X.mean(axis=0)).ravel()
    assert np.corrcoef(expected, x)[0, 1] > 0.9
    elbo = model.history["elbo_train"].iloc[:, 0].to_numpy(float)
    assert elbo[5] < elbo[0]
