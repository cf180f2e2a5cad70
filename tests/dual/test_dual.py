"""Tests of the dual VAE: its loss against hand computation, what it recovers, what it refuses."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.loggers import CSVLogger
from scipy import stats
from scipy.ndimage import gaussian_filter

from scgmvae import SCGMVAE, DualModule, DualVAE
from scgmvae.datasets import two_photon
from scgmvae.dual.plan import DecliningPlan
from scgmvae.dual.resolution import LowResolution
from scgmvae.nn.layers import Conditions

SHAPE = (24, 36)  # not square
SMALL = {"n_latent_foreground": 24, "n_latent_background": 4, "window": 6}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def images():
    """800 images of 24 × 36 pixels with 24 sectors; copy them before use."""
    return two_photon(800, seed=3, image_shape=SHAPE)


@pytest.fixture(scope="module")
def counts():
    """The same without read noise: counts of photons."""
    return two_photon(200, seed=3, image_shape=SHAPE, read_noise=0.0)


@pytest.fixture(scope="module")
def trained(images):
    """A model trained on the first 600 images; only to be read."""
    model = DualVAE(images[:600].copy(), **SMALL)
    model.train(100, seed=0, **QUIET)
    return model


def small_module(**settings):
    torch.manual_seed(0)
    module = DualModule((8, 12), **({"n_latent_foreground": 5, "window": 4} | settings))
    module.start_at(torch.rand(20, 96) * 10)
    return module.eval()


def tensors_of(x):
    return {"X": x}


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def sector_means(rows, shape=SHAPE, side=6):
    height, width = shape
    blocks = rows.reshape(len(rows), height // side, side, width // side, side)
    return blocks.mean((2, 4)).reshape(len(rows), -1)


# ------------------------------------------------------------------------------ resolution


def test_the_low_resolution_has_the_means_of_windows_also_of_cut_ones():
    low = LowResolution((5, 7), window=3)
    x = torch.rand(2, 5, 7)
    rows = [slice(0, 3), slice(3, 5)]
    columns = [slice(0, 3), slice(3, 6), slice(6, 7)]
    expected = torch.stack([x[:, r, c].mean((1, 2)) for r in rows for c in columns], dim=1)
    torch.testing.assert_close(low(x.flatten(1)), expected)
    assert low.areas.tolist() == [9, 9, 3, 6, 6, 2]
    torch.testing.assert_close(low.areas.sum(), torch.tensor(35.0))


def test_channels_stay_apart():
    low = LowResolution((4, 4, 2), window=2)
    x = torch.rand(3, 4, 4, 2)
    alone = LowResolution((4, 4), window=2)
    expected = torch.stack([alone(x[..., i].flatten(1)) for i in range(2)], dim=-1).flatten(1)
    torch.testing.assert_close(low(x.flatten(1)), expected)
    assert low.upsample(expected).shape == (3, 32)
    assert low.areas.tolist() == [4.0] * 8


def test_the_blur_is_that_of_scipy_inside_and_keeps_a_constant_everywhere():
    x = np.random.default_rng(0).random((40, 40))
    low = LowResolution((40, 40), window=1, blur=2.0)
    blurred = low(torch.tensor(x, dtype=torch.float32).view(1, -1)).view(40, 40).numpy()
    inside = np.s_[8:-8, 8:-8]
    expected = gaussian_filter(x, 2.0, radius=6)
    np.testing.assert_allclose(blurred[inside], expected[inside], rtol=1e-5)
    torch.testing.assert_close(low(torch.full((1, 1600), 3.0)), torch.full((1, 1600), 3.0))


def test_a_plane_survives_there_and_back():
    low = LowResolution((12, 18), window=3)
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(18.0), indexing="ij")
    plane = (2 * rows + columns).reshape(1, -1)
    back = low.upsample(low(plane)).view(12, 18)
    torch.testing.assert_close(back[2:-2, 2:-2], plane.view(12, 18)[2:-2, 2:-2])


# ------------------------------------------------------------------------------------ loss


@pytest.mark.parametrize("interaction", ["none", "concatenation", "gated"])
@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
def test_the_loss_is_the_sum_of_four_terms_computed_by_hand(likelihood, interaction):
    module = small_module(likelihood=likelihood, interaction=interaction).double()
    x = torch.poisson(torch.full((3, 96), 4.0)).double()
    torch.manual_seed(1)
    q, p, output = module(tensors_of(x), loss_kwargs={"kl_weight": 0.3})
    terms = {**output.reconstruction_loss, **output.kl_local}

    mean = (p["foreground"] + p["background"]).detach().numpy()
    low_x = x.view(3, 2, 4, 3, 4).mean((2, 4)).flatten(1).numpy()
    low_f = p["foreground"].view(3, 2, 4, 3, 4).mean((2, 4)).flatten(1)
    low_b = module.unit * torch.nn.functional.softplus(module.background(q["z2"], Conditions())[0])
    gate = {"none": 0.0, "concatenation": 1.0}.get(interaction)
    if gate is None:
        gate = torch.sigmoid(module.gate(torch.cat([q["z1"], q["z2"]], -1)))
    low = (low_b + gate * low_f).detach().numpy()
    if likelihood == "gaussian":
        # the bound on log scales is far from what a start has
        scale, low_scale = (
            (14 * torch.tanh(raw / 14)).exp().detach().numpy()
            for raw in (module.raw_scale, module.raw_low_scale)
        )
        of_x = stats.norm.logpdf(x.numpy(), mean, scale)
        of_low = stats.norm.logpdf(low_x, low, low_scale)
    else:
        of_x = stats.poisson.logpmf(x.numpy(), mean)
        of_low = stats.poisson.logpmf((16 * low_x).round(), 16 * low)
    expected = {
        "reconstruction_pixels": -of_x.sum(1),
        "reconstruction_low": -of_low.sum(1),
    }
    for name, key in (("kl_foreground", "q_z1"), ("kl_background", "q_z2")):
        loc, scale = (v.detach().numpy() for v in (q[key].loc, q[key].scale))
        expected[name] = 0.5 * (scale**2 + loc**2 - 1 - 2 * np.log(scale)).sum(1)
    assert terms.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(terms[name].detach().numpy(), values, rtol=1e-6)
    rows = [values if "kl" not in name else 0.3 * values for name, values in expected.items()]
    assert output.loss.item() == pytest.approx(sum(rows).mean())


def test_each_source_is_of_its_own_latent_and_not_negative():
    module = small_module(interaction="gated")
    z1, z2 = torch.randn(6, 5) * 3, torch.randn(6, 8) * 3
    p = module.generative(z1, z2)
    other_z1, other_z2 = module.generative(z1 + 1, z2), module.generative(z1, z2 + 1)
    torch.testing.assert_close(other_z1["background"], p["background"], rtol=0, atol=0)
    torch.testing.assert_close(other_z2["foreground"], p["foreground"], rtol=0, atol=0)
    assert not torch.equal(other_z1["foreground"], p["foreground"])
    assert not torch.equal(other_z2["background"], p["background"])
    assert p["foreground"].min() == 0
    assert p["background"].min() > 0


def test_s_sees_the_low_resolution_alone():
    module = small_module()
    x = torch.rand(4, 96) * 10
    blocks = x.view(4, 2, 4, 3, 4)
    turned = blocks.flip(2).flip(4).reshape(4, 96)  # the same means over windows
    q, other = module.inference(x, sample=False), module.inference(turned, sample=False)
    torch.testing.assert_close(q["z2"], other["z2"])
    assert (q["z1"] - other["z1"]).abs().max() > 1e-3


@pytest.mark.parametrize("encoder", ["mlp", "conv"])
@pytest.mark.parametrize("interaction", ["none", "concatenation", "gated"])
def test_every_parameter_gets_a_finite_gradient(encoder, interaction):
    module = small_module(encoder=encoder, interaction=interaction).train()
    module(tensors_of(torch.rand(8, 96) * 10))[2].loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_importance_bound_rises_with_samples_from_the_bound_of_x():
    module = small_module(likelihood="poisson")
    x = torch.poisson(torch.full((50, 96), 4.0))
    torch.manual_seed(0)
    _, _, output = module(tensors_of(x))
    terms = output.reconstruction_loss | output.kl_local
    bound = -(terms["reconstruction_pixels"] + terms["kl_foreground"] + terms["kl_background"])
    one, many = (module.marginal_ll(tensors_of(x), n, return_mean=True) for n in (1, 200))
    assert one == pytest.approx(bound.mean().item(), abs=2.0)
    assert many > one + 1


# ------------------------------------------------------------------------------------ model


def test_foreground_and_background_are_found_in_images_that_were_not_trained_on(trained, images):
    unseen = images[600:].copy()
    foreground, background = trained.get_foreground(unseen), trained.get_background(unseen)
    assert correlation(foreground, unseen.layers["true_foreground"]) > 0.85
    assert correlation(background, unseen.layers["true_background"]) > 0.9
    is_on = sector_means(foreground) > 5  # half the light of a sector that is on
    assert (is_on == unseen.obsm["sectors"]).mean() > 0.95


def test_both_sources_add_up_to_the_mean_of_x(trained, images):
    x = torch.from_numpy(images.X[:5])
    q = trained.module.inference(x, sample=False)
    p_x = trained.module.generative(q["z1"], q["z2"])["px"]
    both = trained.get_foreground(indices=range(5)) + trained.get_background(indices=range(5))
    np.testing.assert_allclose(both, p_x.loc.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_training_writes_the_results_back(trained):
    adata = trained.adata
    np.testing.assert_array_equal(adata.layers["foreground"], trained.get_foreground())
    np.testing.assert_array_equal(adata.layers["background"], trained.get_background())
    for which, key in (("foreground", "X_dualvae_fg"), ("background", "X_dualvae_bg")):
        z = trained.get_latent_representation(which=which)
        np.testing.assert_array_equal(adata.obsm[key], z)
        assert z.shape == (600, SMALL[f"n_latent_{which}"])
    assert adata.uns["dualvae"]["params"]["window"] == 6


def test_steps_get_shorter_over_the_last_half_and_divergences_fade_in_over_the_first_third():
    plan = DecliningPlan(DualModule((12, 12)), n_steps=100, lr=0.02)
    of_plan = plan.configure_optimizers()
    schedule = of_plan["lr_scheduler"]["scheduler"]
    assert of_plan["lr_scheduler"]["interval"] == "step"
    lengths = []
    for _ in range(101):
        lengths.append(schedule.get_last_lr()[0])
        of_plan["optimizer"].step()
        schedule.step()
    expected = np.interp(np.arange(101), [0, 50, 100], [0.02, 0.02, 0.0])
    np.testing.assert_allclose(lengths, expected, atol=1e-9)
    assert (plan.n_steps_kl_warmup, plan.n_epochs_kl_warmup) == (33, None)


def test_the_terms_make_the_loss_that_was_trained(trained):
    terms = trained.get_elbo_terms()
    history = trained.history
    for name in terms:  # of the last epoch, in which the weights moved a little
        assert terms[name].mean() == pytest.approx(
            history[f"{name}_train"].iloc[-1].item(), rel=0.1, abs=2
        )
    assert trained.get_elbo() == pytest.approx(-terms.sum(axis=1).mean(), rel=0.01)
    of_x = terms[["reconstruction_pixels", "kl_foreground", "kl_background"]].sum(axis=1).mean()
    assert trained.get_marginal_ll(n_mc_samples=50) > -of_x


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"likelihood": "poisson"}, id="poisson"),
        pytest.param({"encoder": "conv"}, id="conv"),
        pytest.param(
            {"n_hidden": (32,), "blur": 1.5, "interaction": "gated"}, id="other_settings"
        ),
    ],
)
def test_a_loaded_model_gives_the_same(settings, counts, tmp_path):
    model = DualVAE(counts.copy(), **(SMALL | settings))
    model.train(2, seed=0, **QUIET)
    model.save(tmp_path / "model", save_anndata=True)
    for given in (None, counts.copy()):
        loaded = DualVAE.load(tmp_path / "model", adata=given)
        state, other = model.module.state_dict(), loaded.module.state_dict()
        torch.testing.assert_close(other, state, rtol=0, atol=0)
        np.testing.assert_array_equal(loaded.get_foreground(), model.get_foreground())
    with pytest.raises(ValueError, match="must be a SCGMVAE, but it is a DualVAE"):
        SCGMVAE.load(tmp_path / "model")


def test_the_same_seed_gives_the_same_and_no_random_state_moves(counts):
    results = []
    for seed in (1, 1, 2):
        before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        model = DualVAE(counts.copy(), **SMALL)
        model.train(2, seed=seed, **QUIET)
        results.append(model.get_foreground())
        torch.testing.assert_close(torch.random.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 0


def test_training_goes_on_from_where_it_was(counts):
    model = DualVAE(counts.copy(), **SMALL)
    model.train(3, seed=0, **QUIET)
    before = model.get_elbo()
    model.train(3, seed=0, **QUIET)
    assert model.get_elbo() > before
    assert len(model.history["reconstruction_pixels_train"]) == 6


def test_loggers_of_lightning_get_the_terms(counts, tmp_path):
    model = DualVAE(counts.copy(), **SMALL)
    model.train(2, seed=0, logger=CSVLogger(tmp_path), **QUIET)
    rows = pd.read_csv(tmp_path / "lightning_logs/version_0/metrics.csv").dropna(
        subset=["elbo_train"]
    )
    assert len(rows) == 2
    terms = [f"{name}_train" for name in model.get_elbo_terms()]
    np.testing.assert_allclose(rows["elbo_train"], rows[terms].sum(axis=1), rtol=1e-4)


def test_constant_images_have_no_foreground_structure(trained):
    """An even image is even light: nothing sharp is found in it."""
    even = AnnData(np.full((2, 864), 15.0, dtype=np.float32), uns={"image_shape": np.array(SHAPE)})
    even.var_names = trained.adata.var_names
    foreground, background = trained.get_foreground(even), trained.get_background(even)
    assert np.isfinite(foreground).all() and np.isfinite(background).all()
    assert (foreground + background).mean() == pytest.approx(15, abs=3)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_model_of_constant_images_returns_them(value):
    x = np.full((64, 96), value, dtype=np.float32)
    model = DualVAE(AnnData(x, uns={"image_shape": np.array([8, 12])}), **(SMALL | {"window": 4}))
    model.train(3, **QUIET)
    both = model.get_foreground() + model.get_background()
    np.testing.assert_allclose(both, value, atol=0.5)


# ------------------------------------------------------------------------------- bad input


def make_images(x=None, shape=SHAPE):
    x = np.random.default_rng(0).poisson(4.0, (20, 864)) if x is None else x
    return AnnData(x.astype(np.float32), uns={"image_shape": np.array(shape)})


BAD = [
    pytest.param({}, {"window": 25}, "must not be smaller than one.*window=25", id="window"),
    pytest.param({}, {"window": 0}, "window must be an integer of at least 1", id="no_window"),
    pytest.param({}, {"blur": -1.0}, "blur must be at least 0", id="blur"),
    pytest.param({}, {"interaction": "sum"}, "interaction must be one of", id="interaction"),
    pytest.param({}, {"encoder": "vit"}, "encoder must be one of", id="encoder"),
    pytest.param({}, {"likelihood": "nb"}, "likelihood must be one of", id="likelihood"),
    pytest.param({}, {"n_latent_foreground": 0}, "n_latent_foreground must", id="latent"),
    pytest.param({"shape": (24, 35)}, {}, "A row of X must hold one image", id="shape"),
    pytest.param(
        {"x": np.full((20, 864), -1.0)},
        {"likelihood": "poisson"},
        "holds negative values.*likelihood='gaussian'",
        id="negative_under_poisson",
    ),
    pytest.param(
        {"x": np.full((20, 864), 0.5)},
        {"likelihood": "poisson"},
        "no integers",
        id="fractions_under_poisson",
    ),
    pytest.param({"x": np.full((20, 864), np.nan)}, {}, "must be finite", id="nan"),
]


@pytest.mark.parametrize(("data", "settings", "message"), BAD)
def test_what_cannot_be_is_refused_and_leaves_the_data_alone(data, settings, message):
    adata = make_images(**data)
    uns = set(adata.uns)
    with pytest.raises(ValueError, match=message):
        DualVAE(adata, **settings)
    assert set(adata.uns) == uns
    assert not adata.obsm and not adata.layers and not len(adata.obs.columns)


def test_rows_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match="adata.uns has no 'image_shape'"):
        DualVAE(AnnData(np.ones((5, 4), dtype=np.float32)))


def test_a_layer_that_would_be_overwritten_is_refused(counts):
    adata = counts.copy()
    adata.layers["foreground"] = adata.X.copy()
    DualVAE.setup_anndata(adata, layer="foreground")
    model = DualVAE(adata, **SMALL)
    with pytest.raises(ValueError, match="reads the layer 'foreground', which its results"):
        model.train(1, **QUIET)


def test_an_untrained_model_and_other_images_are_refused(trained, counts):
    with pytest.raises(RuntimeError):
        DualVAE(counts.copy(), **SMALL).get_foreground()
    with pytest.raises(ValueError, match="which must be one of"):
        trained.get_latent_representation(which="z")
    other = counts.copy()
    other.uns["image_shape"] = np.array([36, 24])
    with pytest.raises(ValueError, match="reads images of shape"):
        trained.get_foreground(other)
    turned = counts[:, ::-1].copy()
    with pytest.raises(ValueError, match="in the same order"):
        trained.annotate(turned)


def test_a_trained_model_can_be_pickled(trained):
    again = pickle.loads(pickle.dumps(trained))
    np.testing.assert_array_equal(again.get_foreground(), trained.get_foreground())
