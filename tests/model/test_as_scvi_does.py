"""Settings and calls that SCVI has: batches as points, dispersions, latent sizes, weights."""

from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy import sparse, special, stats
from scvi import REGISTRY_KEYS
from scvi.model.base import RNASeqMixin
from small import NETWORK, QUICK
from torch.utils.data import DataLoader

from scgmvae import SCGMVAE
from scgmvae.data.keys import OBSERVED_KEY
from scgmvae.data.registry import label_codes
from scgmvae.datasets import digits
from scgmvae.distributions.likelihoods import log_likelihood, make_likelihood

EMBEDDED = {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 3}}


@pytest.fixture
def adata(counts):
    return counts.copy()


@pytest.fixture
def make(make_model, train):
    """Function that makes and trains a model for one epoch a stage."""

    def trained(adata, setup=None, **settings):
        return train(make_model(adata, setup or {"batch_key": "batch"}, **settings), **QUICK)

    return trained


def minibatch(model, n=40):
    (tensors,) = model._make_data_loader(model.adata, indices=np.arange(n), batch_size=n)
    return tensors


# --------------------------------------------------------------------- embeddings of batches


@pytest.mark.parametrize("encode_covariates", [True, False])
def test_batches_are_points_that_layers_read(adata, make, tmp_path, encode_covariates):
    model = make(adata, **EMBEDDED, encode_covariates=encode_covariates)
    points = model.get_batch_representation()
    table = model.module.get_embedding(REGISTRY_KEYS.BATCH_KEY).weight.detach().numpy()
    assert table.shape == (2, 3)
    np.testing.assert_array_equal(points, table[adata.obs["batch"].cat.codes])
    # no layer has weights for each batch
    assert not any("offsets" in name for name in model.module.state_dict())
    as_other = model.get_normalized_expression(transform_batch="batch_1").to_numpy()
    as_own = model.get_normalized_expression().to_numpy()
    is_other = (adata.obs["batch"] == "batch_1").to_numpy()
    assert (np.abs(as_other - as_own).max(axis=1) > 1e-6).tolist() == (~is_other).tolist()
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(loaded.get_batch_representation(), points)


def test_a_model_of_one_hot_batches_has_no_embedding(trained):
    with pytest.raises(KeyError, match="batch_representation='embedding'"):
        trained.get_batch_representation()


def test_a_query_adds_points_and_moves_nothing_else(adata, make, train, tmp_path):
    reference = make(adata, **EMBEDDED)
    before = {name: value.clone() for name, value in reference.module.state_dict().items()}
    z = reference.get_latent_representation()
    new = adata[:80].copy()
    new.obs["batch"] = np.where(np.arange(80) % 2, "new", "newer")
    query = SCGMVAE.load_query_data(new, reference)
    table = "_embeddings_dict.batch.weight"
    known = before[table]
    start = query.module.state_dict()[table].clone()
    torch.testing.assert_close(start[2:], known.mean(0).expand(2, -1))
    train(query, max_epochs=2)
    after = query.module.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(
            after[name][: len(value)] if name == table else after[name], value
        )
    assert not torch.equal(after[table][2:], start[2:])
    np.testing.assert_array_equal(reference.get_latent_representation(), z)
    query.save(tmp_path / "query")
    loaded = SCGMVAE.load(tmp_path / "query", new)
    np.testing.assert_array_equal(loaded.predict(soft=True), query.predict(soft=True))
    train(loaded, max_epochs=1)
    torch.testing.assert_close(loaded.module.state_dict()[table][:2], known)


# ------------------------------------------------------------------------------ dispersions


def test_genes_have_a_dispersion_for_each_label(adata, make):
    names = adata.obs["component"].astype(str)
    adata.obs["label"] = np.where(np.arange(adata.n_obs) % 2, names, "unknown")
    model = make(adata, {"labels_key": "label"}, dispersion="gene-label")
    raw = model.module.raw_dispersion
    assert raw.shape == (3, adata.n_vars)
    values = torch.tensor([0.0, 1.0, 5.0])
    with torch.no_grad():
        raw.copy_(values[:, None].expand_as(raw))
    theta = model.get_likelihood_parameters()["dispersions"]
    codes = label_codes(model.adata_manager)
    of_cells = np.where(codes < 0, 2.0, values.numpy()[codes])  # the mean for one without a label
    bounded = 14 * np.tanh(of_cells / 14)
    np.testing.assert_allclose(theta, np.exp(bounded)[:, None] * np.ones_like(theta), rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "gaussian"])
def test_the_decoder_gives_every_cell_its_dispersions(adata, make, likelihood):
    if likelihood == "gaussian":
        adata.X = adata.X.toarray()
    model = make(adata, dispersion="gene-cell", likelihood=likelihood)
    assert model.module.raw_dispersion is None
    tensors = minibatch(model)
    _, p = model.module.forward(tensors, inference_kwargs={"n_samples": 2}, compute_loss=False)
    spread = p["px"].scale if likelihood == "gaussian" else p["px"].theta
    assert spread.shape == (2, 40, adata.n_vars)
    assert (spread.std(dim=1) > 0).all()
    # the fast likelihood of several samples, each with its dispersions, is that of scvi-tools
    expected = p["px"].log_prob(tensors["X"].to_dense()).sum(-1)
    torch.testing.assert_close(
        log_likelihood(p["px"], tensors["X"]), expected, rtol=1e-4, atol=1e-2
    )


def test_dispersions_of_cells_do_not_go_with_what_fixes_them():
    settings = {"dispersion": "gene-cell", "likelihood": "gaussian", "gaussian_scale": 1.0}
    with pytest.raises(ValueError, match="dispersion='gene-cell'.*Leave one out"):
        SCGMVAE(digits()[:50].copy(), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_representation": "embedding", "batch_embedding_kwargs": {"max_norm": 1.0}},
        {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 0}},
        {"batch_embedding_kwargs": {"embedding_dim": 2}},
    ],
)
def test_points_of_batches_have_a_number_of_dimensions_and_no_more(adata, settings):
    with pytest.raises(ValueError, match="embedding_dim"):
        SCGMVAE(adata, **settings)


@pytest.mark.parametrize("representation", ["one-hot", "embedding"])
def test_a_resumed_query_moves_no_weight_of_its_reference(adata, make, tmp_path, representation):
    reference = make(adata, dispersion="gene-batch", batch_representation=representation)
    known = reference.module.state_dict()
    new = adata[:80].copy()
    new.obs["batch"] = np.where(np.arange(80) % 2, "batch_0", "new")  # known cells pull as well
    query = SCGMVAE.load_query_data(new, reference)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}

    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise InterruptedError

    run = quiet | {"max_epochs": 4, "checkpoint_every": 1}
    with pytest.raises(InterruptedError):
        query.train(checkpoint_dir=tmp_path / "run", callbacks=[Stop()], **run)
    resumed = SCGMVAE.load_query_data(new, reference)
    resumed.train(resume_from=tmp_path / "run", **quiet)
    whole = SCGMVAE.load_query_data(new, reference)
    whole.train(checkpoint_dir=tmp_path / "whole", **run)
    for name, value in resumed.module.state_dict().items():
        first = value[: len(known[name])] if value.ndim else value
        torch.testing.assert_close(first, known[name], rtol=0, atol=0)
        torch.testing.assert_close(value, whole.module.state_dict()[name], rtol=0, atol=0)


def test_dispersions_of_new_batches_start_at_the_mean_of_the_known_and_are_learned(
    adata, make, train
):
    reference = make(adata, dispersion="gene-batch")
    known = reference.module.raw_dispersion.detach().clone()
    assert not torch.equal(known[0], known[1])
    new = adata[:80].copy()
    new.obs["batch"] = "new"
    query = SCGMVAE.load_query_data(new, reference)
    start = query.module.raw_dispersion.detach().clone()
    assert torch.equal(start, torch.cat([known, known.mean(0, keepdim=True)]))
    train(query, max_epochs=1)
    after = query.module.raw_dispersion.detach()
    assert torch.equal(after[:2], known)
    assert (after[2] != start[2]).all()


# ---------------------------------------------------------------------- latent library sizes


@pytest.fixture
def latent(adata, make):
    return make(adata, use_observed_lib_size=False)


def test_the_prior_of_sizes_is_that_of_the_batches(latent):
    sizes = np.log(np.asarray(latent.adata.X.sum(axis=1)).ravel())
    batches = latent.adata.obs["batch"].cat.codes.to_numpy()
    for batch in range(2):
        own = sizes[batches == batch]
        assert float(latent.module.library_log_means[0, batch]) == pytest.approx(
            own.mean(), rel=1e-5
        )
        assert float(latent.module.library_log_vars[0, batch]) == pytest.approx(
            own.var(), rel=1e-4
        )


def test_the_bound_has_the_divergence_of_sizes(latent):
    q, p, output = latent.module(minibatch(latent))
    ratio = p["pl"].scale / q["ql"].scale
    expected = torch.log(ratio) - 0.5
    expected += (q["ql"].variance + (q["ql"].loc - p["pl"].loc) ** 2) / (2 * p["pl"].variance)
    torch.testing.assert_close(output.kl_local["kl_l"], expected.squeeze(-1), rtol=1e-4, atol=1e-5)
    assert "kl_l" in latent.get_elbo_terms()
    # the bound is below the likelihood, which has the sizes summed out
    bound, likelihood = latent.get_elbo(), latent.get_marginal_ll(n_mc_samples=200)
    assert float(bound) < float(likelihood)


def test_sizes_are_learned(adata, make_model, train):
    model = make_model(adata, {"batch_key": "batch"}, use_observed_lib_size=False)
    train(model, max_epochs=100, pretrain_epochs=100)
    sizes = np.asarray(adata.X.sum(axis=1)).ravel()
    found = model.get_latent_library_size().ravel()
    assert stats.pearsonr(np.log(found), np.log(sizes))[0] > 0.7
    assert np.median(found / sizes) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson"])
def test_the_gradient_of_a_size_is_that_of_the_plain_formula(kind):
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, 5, 7, generator=generator) for _ in range(2)]
    library = torch.randn(2, 5, 1, generator=generator).requires_grad_()
    x = torch.poisson(3 * torch.rand(5, 7, generator=generator), generator=generator)
    p_x = make_likelihood(kind, heads, library, torch.zeros(7))
    value = log_likelihood(p_x, x)
    plain = make_likelihood(kind, heads, library, torch.zeros(7)).log_prob(x).sum(-1)
    torch.testing.assert_close(value, plain, rtol=1e-4, atol=1e-3)
    (found,) = torch.autograd.grad(value.sum(), library)
    (expected,) = torch.autograd.grad(plain.sum(), library)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (found.abs() > 0).all()


def test_a_query_has_sizes_of_its_own(latent):
    new = latent.adata[:60].copy()
    new.obs["batch"] = "new"
    query = SCGMVAE.load_query_data(new, latent)
    means = query.module.library_log_means
    torch.testing.assert_close(means[:, :2], latent.module.library_log_means)
    sizes = np.log(np.asarray(new.X.sum(axis=1)).ravel())
    assert float(means[0, 2]) == pytest.approx(sizes.mean(), rel=1e-5)


def test_sizes_of_a_new_batch_are_those_of_its_own_cells(latent):
    new, is_new = latent.adata[:60].copy(), np.arange(60) % 2 == 1
    new.obs["batch"] = np.where(is_new, "new", "batch_0")
    new.X = sparse.csr_matrix(new.X.toarray() * np.where(is_new, 3, 1)[:, None])
    query = SCGMVAE.load_query_data(new, latent)
    sizes = np.log(np.asarray(new.X.sum(axis=1)).ravel()[is_new])
    assert float(query.module.library_log_means[0, 2]) == pytest.approx(sizes.mean(), rel=1e-5)
    assert float(query.module.library_log_vars[0, 2]) == pytest.approx(sizes.var(), rel=1e-4)
    known = latent.module
    torch.testing.assert_close(query.module.library_log_means[:, :2], known.library_log_means)
    torch.testing.assert_close(query.module.library_log_vars[:, :2], known.library_log_vars)


def test_sizes_of_a_query_that_lacks_genes_are_not_those_of_what_it_has(latent):
    new = latent.adata[:60, 12:].copy()
    new.obs["batch"] = "new"
    with pytest.warns(UserWarning, match="treated as unobserved"):
        query = SCGMVAE.load_query_data(new, latent)
    expected = latent.module.library_log_means.mean()
    assert float(query.module.library_log_means[0, 2]) == pytest.approx(float(expected))
    assert float(query.module.library_log_vars[0, 2]) == pytest.approx(
        float(latent.module.library_log_vars.mean())
    )


def test_latent_sizes_are_for_counts(counts):
    adata = counts.copy()
    adata.X = adata.X.toarray()
    with pytest.raises(ValueError, match="use_observed_lib_size=False is for counts"):
        SCGMVAE(adata, likelihood="gaussian", use_observed_lib_size=False)


# ------------------------------------------------------------------------ importance weights


@pytest.fixture
def population(adata, make):
    """A VAE, rows, and what scvi-tools hands over for them."""
    model = make(adata, prior="normal", likelihood="zinb")
    rows = np.arange(20)
    (tensors,) = model._make_data_loader(adata, indices=rows, batch_size=20)
    torch.manual_seed(0)
    with torch.inference_mode():
        q, p = model.module.forward(tensors, inference_kwargs={"n_samples": 3}, compute_loss=False)
    return model, rows, q["qz"], p["px"], q["z"]


def test_weights_of_a_vae_are_those_of_scvi_tools(population):
    model, rows, q_z, p_x, z = population
    samples = {"n_mc_samples": 200}
    found = model.get_importance_weights(model.adata, rows, q_z, p_x, z, **samples)
    expected = RNASeqMixin.get_importance_weights(
        model, model.adata, rows, q_z, p_x, z, **samples, sparse=False
    )
    assert found.shape == (60,)
    assert found.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("case", ["size factors", "missing genes", "latent sizes"])
def test_weights_take_cells_as_the_likelihood_does(adata, make, monkeypatch, case):
    adata.obs["size"] = np.random.default_rng(0).lognormal(0, 0.5, adata.n_obs)
    setup = {"batch_key": "batch"}
    if case == "size factors":
        setup["size_factor_key"] = "size"
    settings = {"use_observed_lib_size": case != "latent sizes"}
    model = make(adata, setup, prior="normal", **settings)
    new = model.adata[:12].copy()
    if case == "missing genes":
        new = new[:, 8:].copy()
        with pytest.warns(UserWarning, match="treated as unobserved"):
            model = SCGMVAE.load_query_data(new, model)
    rows = np.arange(12)
    log_px = torch.linspace(-300, -200, 12)  # an estimate of it would differ from one to the next
    monkeypatch.setattr(model, "get_marginal_ll", lambda *args, **settings: log_px)
    (tensors,) = model._make_data_loader(model.adata, indices=rows, batch_size=12)
    torch.manual_seed(0)
    with torch.inference_mode():
        q, p = model.module.forward(tensors, compute_loss=False)
        found = model.get_importance_weights(model.adata, rows, q["qz"], p["px"], q["z"])
        # every cell decoded from the z of each other one, by the module itself
        log_px_z = []
        for cell in rows:
            inputs = model.module._get_inference_input(tensors)
            outputs = model.module.inference(**inputs, sample=False)
            outputs["z"] = q["z"]
            outputs["library"] = outputs["library"][cell].expand(12, 1)
            p_x = model.module.generative(
                **model.module._get_generative_input(tensors, outputs), only_x=True
            )["px"]
            x = tensors["X"].to_dense()[cell].expand(12, -1)
            log_px_z.append(log_likelihood(p_x, x, tensors.get(OBSERVED_KEY)))
        log_qz = q["qz"].log_prob(q["z"].unsqueeze(1)).sum(-1)
    log_pz = stats.norm.logpdf(q["z"].numpy()).sum(-1)
    log_w = log_pz[:, None] + torch.stack(log_px_z, 1).numpy() - log_px.numpy()
    log_w = special.logsumexp(log_w - special.logsumexp(log_qz.numpy(), axis=1)[:, None], axis=1)
    np.testing.assert_allclose(found, special.softmax(log_w), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"likelihood": "bernoulli"}, "'bernoulli'"), ({"prior": "none"}, "prior='none'")],
)
def test_no_weights_where_there_is_no_density(adata, make, settings, words):
    if "likelihood" in settings:
        adata.X = (adata.X.toarray() > 0).astype(np.float32)
    model = make(adata, **settings)
    with pytest.raises(NotImplementedError, match=f"{words}.*weights='uniform'"):
        model.get_normalized_expression(weights="importance", n_samples_overall=5)


def test_a_dataloader_gives_no_weights(trained):
    loader = trained._make_data_loader(trained.adata)
    with pytest.raises(NotImplementedError, match="which a dataloader gives once"):
        trained.get_normalized_expression(
            dataloader=loader, weights="importance", n_samples_overall=5
        )


def test_truncated_weights_are_no_smaller_than_their_mean(population):
    model, rows, q_z, p_x, z = population
    weights = model.get_importance_weights(model.adata, rows, q_z, p_x, z, truncation=True)
    free = model.get_importance_weights(model.adata, rows, q_z, p_x, z)
    assert weights.max() / weights.min() < free.max() / free.min()


def test_the_prior_of_a_mixture_is_averaged_over_w(trained):
    z = torch.from_numpy(trained.get_latent_representation()[:5])
    (tensors,) = trained._make_data_loader(trained.adata, np.arange(50), batch_size=50)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = trained.module.prior_log_prob(z, tensors)
        torch.manual_seed(0)
        p_z = trained.module.prior_components(tensors)
    log_prob = stats.norm(p_z.loc.numpy(force=True), p_z.scale.numpy(force=True)).logpdf(
        z.numpy()[:, None, None]
    )
    weights = trained.module.log_weights.exp().numpy(force=True)
    expected = np.log((np.exp(log_prob.sum(-1)) * weights).sum(-1))
    np.testing.assert_allclose(found.numpy(force=True), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_weights_tell_of_the_same_genes_as_no_weights(adata, make_model, train, likelihood):
    model = make_model(adata, {"batch_key": "batch"}, likelihood=likelihood)
    train(model, max_epochs=150, pretrain_epochs=100)
    names = {"group1": "component_0", "group2": "component_1"}
    changes = [
        model.differential_expression(
            mode="change", weights=weights, groupby="component", silent=True, **names
        ).loc[adata.var_names, "lfc_mean"]
        for weights in ("uniform", "importance")
    ]
    assert stats.spearmanr(*changes)[0] > 0.8
    assert not changes[0].equals(changes[1])


# ---------------------------------------------------------------------------------- training


def test_rows_of_each_part_can_be_given_as_scvi_tools_takes_them(adata, make_model, train):
    rows = np.random.default_rng(0).permutation(adata.n_obs)
    model = make_model(adata, {"batch_key": "batch"})
    for parts in ([rows[:200], rows[200:]], [rows[:200], rows[200:250], rows[250:]]):
        train(model, datasplitter_kwargs={"external_indexing": parts}, **QUICK)
        np.testing.assert_array_equal(np.sort(model.train_indices), np.sort(parts[0]))
        np.testing.assert_array_equal(np.sort(model.validation_indices), np.sort(parts[1]))
    with pytest.raises(ValueError, match="external_indexing must have every row"):
        train(model, datasplitter_kwargs={"external_indexing": [rows[:200], None]}, **QUICK)
    for parts in ([rows + 0.5], [rows < 200, rows >= 200], [adata.obs_names], [rows, [], [], []]):
        with pytest.raises(ValueError, match="one to three arrays of row numbers.*flatnonzero"):
            train(model, datasplitter_kwargs={"external_indexing": parts}, **QUICK)


class Minibatches(pl.LightningDataModule):
    """A data module that tells its sizes and no names."""

    def __init__(self, adata):
        super().__init__()
        self.n_vars, self.n_batch = adata.n_vars, 2
        x = torch.from_numpy(adata.X.toarray())
        batch = torch.from_numpy(adata.obs["batch"].cat.codes.to_numpy().astype(np.int64))
        self.batches = [
            {"X": x[i : i + 60], "batch": batch[i : i + 60, None]} for i in range(0, 300, 60)
        ]

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def test_a_model_without_data_is_made_when_it_is_trained(adata, tmp_path):
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    model = SCGMVAE(n_components=3, **NETWORK)
    assert model.module is None
    assert "made when it is trained" in repr(model)
    assert "model.train(datamodule=datamodule)" in model._repr_html_()
    with pytest.raises(AttributeError, match=r"train\(datamodule=...\)"):
        model.train(**quiet)
    with pytest.raises(RuntimeError, match="nothing to save until it is trained"):
        model.save(tmp_path / "nothing")
    module = Minibatches(adata)
    with pytest.raises(ValueError, match=r"Set datamodule.n_obs, or give max_epochs"):
        model.train(datamodule=module, **quiet)
    with pytest.raises(ValueError, match="guide_key"):
        model.train(datamodule=module, max_epochs=2, guide_key="type", **quiet)
    assert model.module is None
    model.train(datamodule=module, max_epochs=2, **quiet)
    assert model.module.n_input == adata.n_vars
    assert model.module.n_latent == NETWORK["n_latent"]
    assert len(model.history["elbo_train"]) == 4
    module.n_obs = 100_000_000
    with pytest.MonkeyPatch.context() as patch:
        lengths = []
        stopped = SimpleNamespace(progress=None)
        patch.setattr(
            SCGMVAE, "_run", lambda self, training, plan, *a: lengths.append(plan) or stopped
        )
        model.train(datamodule=module, **quiet)
    assert lengths[0].joint_epochs == 20
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=False)
    expected = model.get_latent_representation(dataloader=module.train_dataloader())
    found = loaded.get_latent_representation(dataloader=module.train_dataloader())
    np.testing.assert_array_equal(found, expected)


def test_a_data_module_must_tell_something_of_itself():
    model = SCGMVAE(**NETWORK)
    with pytest.raises(TypeError, match="with a registry.*or with n_vars and n_batch"):
        model.train(datamodule=pl.LightningDataModule())
    with pytest.raises(TypeError, match="LightningDataModule.*dict"):
        model.train(datamodule={})
