"""A Gaussian whose standard deviation is an output of the decoder, for each value."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS as KEYS

from scgmvae import SCGMVAE
from scgmvae.datasets import blobs, digits
from scgmvae.module.cgmvae import CGMVAE

NETWORK_SCALE = {"likelihood": "gaussian", "gaussian_scale": "network"}
SMALLEST = np.exp(-5)  # of σ
G = 20


@pytest.fixture(scope="module")
def noisy():
    """Values around a line, the noise of which differs along it and between genes."""
    rng = np.random.default_rng(0)
    along = rng.normal(size=(2000, 1))
    slope, growth = rng.normal(size=(2, G))
    mean, sd = along * slope, 0.3 * np.exp(0.8 * growth * np.tanh(along))
    adata = AnnData((mean + sd * rng.normal(size=mean.shape)).astype(np.float32))
    adata.layers["sd"] = sd
    return adata


def trained_vae(adata, scale):
    model = SCGMVAE(
        adata.copy(),
        prior="normal",
        n_latent=1,
        n_hidden=32,
        dropout_rate=0.0,
        likelihood="gaussian",
        gaussian_scale=scale,
    )
    model.train(
        max_epochs=60,
        pretrain_epochs=0,
        seed=0,
        plan_kwargs={"lr": 3e-3, "lr_decline": 0.5},
        accelerator="cpu",
        enable_progress_bar=False,
    )
    return model


def test_the_noise_of_each_value_is_found(noisy):
    model = trained_vae(noisy, "network")
    mean, scale = model.get_reconstruction(return_scale=True)
    np.testing.assert_array_equal(mean, model.get_reconstruction())
    true = noisy.layers["sd"]
    ratio = scale / true
    assert np.median(np.abs(ratio - 1)) < 0.1
    assert np.corrcoef(np.log(scale).ravel(), np.log(true).ravel())[0, 1] > 0.93
    # (x − mean) / σ is then of unit variance in every part of the line, for one gene σ is not
    of_genes = trained_vae(noisy, "gene")
    log_p = [float(one.get_marginal_ll(n_mc_samples=20)) for one in (model, of_genes)]
    assert log_p[0] > log_p[1] + 3
    one_for_all = of_genes.get_reconstruction(return_scale=True)[1]
    np.testing.assert_allclose(one_for_all, one_for_all[:1].repeat(2000, 0), rtol=1e-6)


@pytest.mark.parametrize("encoder", ["mlp", "conv"])
@pytest.mark.parametrize("n_samples", [1, 3])
def test_loss_and_gradients_are_those_of_torch(encoder, n_samples):
    torch.manual_seed(0)
    shape = (8, 9, 2)
    n_input = int(np.prod(shape))
    module = CGMVAE(
        n_input,
        prior="normal",
        n_latent=3,
        n_hidden=8,
        encoder=encoder,
        image_shape=shape,
        **NETWORK_SCALE,
    )
    module = module.double().eval()
    x = torch.rand(5, n_input, dtype=torch.float64)
    tensors = {KEYS.X_KEY: x, KEYS.BATCH_KEY: torch.zeros(5, 1)}
    q, p, out = module(tensors, inference_kwargs={"n_samples": n_samples})
    of_decoder = list(module.decoder.parameters())
    found = torch.autograd.grad(
        out.reconstruction_loss["reconstruction_loss"].sum(), of_decoder, retain_graph=True
    )
    heads = module.decoder(q["z"], module._conditions_of(tensors))
    scale = torch.exp(5 * torch.tanh(heads[1] / 5))
    assert p["px"].scale.shape == x.expand(*q["z"].shape[:-1], -1).shape
    torch.testing.assert_close(p["px"].scale, scale)
    assert scale.std() > 0.001
    log_p = torch.distributions.Normal(heads[0], scale).log_prob(x).sum(-1)
    log_p = log_p.mean(0) if n_samples > 1 else log_p
    expected = torch.autograd.grad(-log_p.sum(), of_decoder)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_training_starts_at_the_means_with_a_scale_of_1():
    for encoder in ("mlp", "conv"):
        module = CGMVAE(
            64,
            prior="normal",
            encoder=encoder,
            image_shape=(8, 8),
            n_hidden=8,
            **NETWORK_SCALE,
        )
        means = torch.full((64,), 0.25)
        module.decoder.start_at(means)
        with torch.no_grad():
            if encoder == "mlp":
                mean, raw = (head.bias for head in module.decoder.heads)
            else:
                mean, raw = module.decoder.layers[-1].bias.chunk(2)
        assert torch.equal(mean, torch.full_like(mean, 0.25))
        assert torch.equal(raw, torch.zeros_like(raw))


def test_the_scale_by_cell_is_the_same_by_its_other_name():
    names = ({"dispersion": "gene-cell", "likelihood": "gaussian"}, NETWORK_SCALE)
    losses = []
    for settings in names:
        torch.manual_seed(0)
        module = CGMVAE(6, prior="normal", n_latent=2, n_hidden=8, **settings).eval()
        tensors = {KEYS.X_KEY: torch.rand(4, 6), KEYS.BATCH_KEY: torch.zeros(4, 1)}
        losses.append(module(tensors)[2].loss)
    assert torch.equal(*losses)


@pytest.fixture(scope="module", params=["mlp", "conv"])
def of_images(request):
    """Images under two conditions, with many pixels that never change."""
    adata = digits()[:600].copy()
    adata.X = np.where(adata.X.std(0) < 0.2, adata.X.mean(0).round(1), adata.X)
    adata.X = adata.X.astype(np.float32)
    adata.obs["batch"] = np.where(np.arange(600) % 2, "a", "b")
    SCGMVAE.setup_anndata(adata, batch_key="batch")
    model = SCGMVAE(
        adata, n_components=3, n_hidden=(32,), n_latent=4, encoder=request.param, **NETWORK_SCALE
    )
    model.train(
        max_epochs=20,
        pretrain_epochs=100,
        start="kmeans",
        seed=0,
        plan_kwargs={"lr": 5e-3},
        accelerator="cpu",
        enable_progress_bar=False,
    )
    return model


def test_constant_pixels_stay_finite_at_the_bound(of_images):
    x = of_images.adata.X
    is_constant = x.std(0) == 0
    assert 5 < is_constant.sum() < 40
    assert np.isfinite(of_images.history["train_loss"].to_numpy(float)).all()
    mean, scale = of_images.get_reconstruction(return_scale=True)
    assert np.isfinite(mean).all()
    assert (scale >= SMALLEST * (1 - 1e-5)).all()
    assert np.median(scale[:, is_constant]) < 0.1 < np.median(scale[:, ~is_constant])
    for name, values in of_images.module.state_dict().items():
        assert torch.isfinite(values.float()).all(), name


def test_generated_and_counterfactual_images_have_the_noise_of_their_values(of_images):
    found = of_images.predict_counterfactual(conditions={"batch": "a"})
    generated = of_images.sample(500)
    for one in (found, generated):
        assert np.isfinite(one.X).all()
        noise = one.X - one.layers["rate"]
        is_constant = of_images.adata.X.std(0) == 0
        # of the typical pixel and image: some generated ones are unlike any that was learned
        spread = np.median(np.abs(noise), axis=0)
        assert np.median(spread[~is_constant]) > 3 * np.median(spread[is_constant])


def test_a_saved_model_has_the_same_scales(of_images, tmp_path):
    of_images.save(tmp_path / "model", save_anndata=False)
    loaded = SCGMVAE.load(tmp_path / "model", of_images.adata)
    assert loaded.module.gaussian_scale == "network"
    for one, other in zip(
        loaded.get_reconstruction(return_scale=True),
        of_images.get_reconstruction(return_scale=True),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_one_learned_scale_survives_saving_and_a_query(tmp_path):
    adata = blobs(40, n_classes=3, n_conditions=2)
    SCGMVAE.setup_anndata(adata, batch_key="condition")
    model = SCGMVAE(
        adata, prior="normal", n_hidden=16, likelihood="gaussian", gaussian_scale="shared"
    )
    how = {"max_epochs": 2, "pretrain_epochs": 0, "enable_progress_bar": False}
    model.train(accelerator="cpu", **how)
    scale = model.get_reconstruction(return_scale=True)[1]
    assert (scale == scale[0, 0]).all()
    assert scale[0, 0] != 1.0
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(loaded.get_reconstruction(return_scale=True)[1], scale)
    new = adata[adata.obs["condition"] == "condition_1"].copy()
    new.obs["condition"] = "new"
    query = SCGMVAE.load_query_data(new, model)
    query.train(accelerator="cpu", **how)
    assert (query.get_reconstruction(return_scale=True)[1] == scale[0, 0]).all()


def test_scales_of_counts_are_refused(noisy):
    adata = noisy[:50].copy()
    adata.X = np.random.default_rng(0).poisson(3.0, size=adata.shape).astype(np.float32)
    model = SCGMVAE(adata, prior="normal", n_hidden=8)
    with pytest.raises(ValueError, match="likelihood='gaussian', but the likelihood is 'nb'"):
        model.get_reconstruction(return_scale=True)
