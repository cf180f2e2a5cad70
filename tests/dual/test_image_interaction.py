"""Tests of what the image is told of the background: its light, its bounds, what is kept."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from scgmvae import DualModule, DualVAE
from scgmvae.datasets import two_photon
from scgmvae.nn.layers import Conditions

OF_IMAGE = ("additive", "none", "concatenation", "gated")
OF_LOW = ("none", "concatenation", "gated")
GRID = np.linspace(-8, 8, 161)
"""Points of each latent of one dimension, on which integrals are sums."""


def small_module(image_interaction, interaction="concatenation", **settings):
    torch.manual_seed(0)
    settings = {"n_latent_foreground": 5, "window": 4} | settings
    shape = settings.pop("image_shape", (8, 12))
    module = DualModule(
        shape, image_interaction=image_interaction, interaction=interaction, **settings
    )
    module.start_at(torch.rand(20, shape[0] * shape[1]) * 10)
    return module.double().eval()


def means(module, z1, z2):
    """Foreground, background and means of x and g(x), by plain computation."""
    both = torch.cat([z1, z2], -1)
    seen = both if module.image_interaction == "concatenation" else z1
    f = module.unit * module.foreground(seen, Conditions())[0].clamp(min=0)
    b = module.unit * torch.log1p(module.background(z2, Conditions())[0].exp())
    share = 1.0
    if module.image_interaction == "gated":
        share = 1 / (1 + (-module.image_gate(both)).exp())
    background = module.resolution.upsample(share * b)
    x = f if module.image_interaction == "none" else f + background
    if module.interaction == "none":
        return f, background, x, b
    told = 1.0
    if module.interaction == "gated":
        told = 1 / (1 + (-module.gate(both)).exp())
    return f, background, x, share * b + told * module.resolution(f)


# --------------------------------------------------------------------------------- densities


@pytest.mark.parametrize("interaction", OF_LOW)
@pytest.mark.parametrize("image_interaction", OF_IMAGE)
@torch.no_grad()
def test_image_and_low_resolution_have_the_means_computed_by_hand(image_interaction, interaction):
    module = small_module(image_interaction, interaction, n_hidden_decoder=(6,))
    z1, z2 = torch.randn(7, 5).double() * 2, torch.randn(7, 8).double() * 2
    p = module.generative(z1, z2)
    f, background, x, low = means(module, z1, z2)
    for found, expected in (
        (p["foreground"], f),
        (p["background"], background),
        (p["px"].loc, x),
        (p["pr"].loc, low),
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("image_interaction", OF_IMAGE)
@torch.no_grad()
def test_counts_are_possible_whatever_the_foreground(image_interaction):
    module = small_module(image_interaction, likelihood="poisson")
    x = torch.poisson(torch.full((50, 96), 4.0)).double()
    z1, z2 = torch.randn(50, 5).double() * 30, torch.randn(50, 8).double()
    p = module.generative(z1, z2)
    rate = p["foreground"] + (image_interaction != "none") * p["background"]
    assert (p["foreground"] == 0).any() == (image_interaction != "none")
    expected = stats.poisson.logpmf(x.numpy(), rate.numpy()).sum()
    assert np.isfinite(expected)
    assert p["px"].log_prob(x).sum().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("image_interaction", OF_IMAGE)
@torch.no_grad()
def test_only_in_the_concatenation_is_the_foreground_of_both_latents(image_interaction):
    module = small_module(image_interaction)
    z1, z2 = torch.randn(6, 5).double(), torch.randn(6, 8).double()
    p, moved = module.generative(z1, z2), module.generative(z1, z2 + 1)
    is_of_both = not torch.equal(p["foreground"], moved["foreground"])
    assert is_of_both == (image_interaction == "concatenation")
    assert torch.equal(p["px"].loc, moved["px"].loc) == (image_interaction == "none")
    other = module.generative(z1 + 1, z2)
    of_z1 = not torch.equal(p["background"], other["background"])
    assert of_z1 == (image_interaction == "gated")


@pytest.mark.parametrize("image_interaction", OF_IMAGE)
def test_every_parameter_gets_a_finite_gradient(image_interaction):
    module = small_module(image_interaction, n_hidden_decoder=(6,)).train()
    module({"X": torch.rand(8, 96).double() * 10})[2].loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_light_begins_in_the_background_or_where_there_is_none_in_the_foreground():
    images = torch.rand(20, 96) * 10
    z1, z2 = torch.zeros(1, 5).double(), torch.zeros(1, 8).double()
    light = {}
    for name in OF_IMAGE:
        p = small_module(name).generative(z1, z2)
        light[name] = {key: p[key].mean().item() for key in ("foreground", "background")}
    mean = images.mean().item()
    for name in ("additive", "gated"):
        assert light[name]["foreground"] < 0.1 * mean
        assert light[name]["background"] > 0.8 * mean
    opened = light["gated"]["background"] / light["additive"]["background"]
    assert opened == pytest.approx(1 / (1 + np.exp(-3)), abs=0.02)
    assert light["none"]["foreground"] == pytest.approx(mean, rel=0.1)


# ------------------------------------------------------------------------------------ bounds


@torch.no_grad()
def nats_on_a_grid(module, x):
    """What enters the bounds at every point of both latents, and weights that sum to integrals."""
    grid = torch.meshgrid(torch.tensor(GRID), torch.tensor(GRID), indexing="ij")
    first, second = (values.reshape(-1, 1) for values in grid)
    _, _, mean, low = means(module, first, second)
    low_x = module.resolution(x)
    raw_scales = (module.raw_scale, module.raw_low_scale)
    scales = [(14 * torch.tanh(raw / 14)).exp() for raw in raw_scales]
    q = module.inference(x, sample=False)
    posterior = [
        stats.norm.logpdf(z[:, 0], q[name].loc.item(), q[name].scale.item())
        for z, name in ((first, "q_z1"), (second, "q_z2"))
    ]
    return {
        "x": stats.norm.logpdf(x, mean, scales[0]).sum(-1),
        "low": stats.norm.logpdf(low_x, low, scales[1]).sum(-1),
        "prior": stats.norm.logpdf(first[:, 0]) + stats.norm.logpdf(second[:, 0]),
        "posterior": sum(posterior),
        "cell": 2 * np.log(GRID[1] - GRID[0]),
    }


def fit_encoders(module, x):
    """Bring the posteriors of an image near to those of the model."""
    optimizer = torch.optim.Adam([*module.q_z1.parameters(), *module.q_z2.parameters()], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        module({"X": x.expand(32, -1)})[2].loss.backward()
        optimizer.step()


@pytest.mark.parametrize("interaction", OF_LOW)
@pytest.mark.parametrize("image_interaction", OF_IMAGE)
def test_bounds_lie_below_the_integrals_that_they_bound(image_interaction, interaction):
    one = {"n_latent_foreground": 1, "n_latent_background": 1, "image_shape": (4, 6), "window": 2}
    module = small_module(image_interaction, interaction, **one)
    with torch.no_grad():  # effects that are not small
        module.foreground.heads[0].weight.mul_(3)
    x = torch.rand(1, 24).double() * 10
    fit_encoders(module, x)
    nats = nats_on_a_grid(module, x)
    weight = np.exp(nats["posterior"] + nats["cell"])
    assert weight.sum() == pytest.approx(1, abs=1e-4)
    of_x, of_low = ((weight * nats[name]).sum() for name in ("x", "low"))
    torch.manual_seed(1)
    _, _, output = module({"X": x.expand(20_000, -1)})
    terms = {**output.reconstruction_loss, **output.kl_local}
    terms = {name: values.detach().mean().item() for name, values in terms.items()}
    # the terms that are logged are draws of those of the bound
    assert -terms["reconstruction_pixels"] == pytest.approx(of_x, rel=0.02)
    assert -terms["reconstruction_low"] == pytest.approx(of_low, rel=0.02)
    kl_1, kl_2 = terms["kl_foreground"], terms["kl_background"]

    integral = {
        name: logsumexp(value + nats["prior"] + nats["cell"])
        for name, value in (
            ("both", nats["x"] + nats["low"]),
            ("x", nats["x"]),
            ("low", nats["low"]),
        )
    }
    assert of_x + of_low - kl_1 - kl_2 <= integral["both"]
    # a latent that has no part in a density costs nothing in its bound
    in_x = image_interaction != "none"
    in_low = interaction != "none"
    assert of_x - kl_1 - in_x * kl_2 <= integral["x"]
    assert of_low - in_low * kl_1 - kl_2 <= integral["low"]
    found = module.marginal_ll({"X": x}, 20_000, return_mean=True, n_mc_samples_per_pass=5_000)
    assert found == pytest.approx(integral["x"], abs=0.1)


def test_the_bound_of_both_can_exceed_the_sum_of_the_two_likelihoods():
    """Image and low resolution tell of the same z₂, so that together they are more likely."""
    one = {"n_latent_foreground": 1, "n_latent_background": 1, "image_shape": (4, 6), "window": 2}
    module = small_module("additive", "concatenation", **one)
    with torch.no_grad():
        module.background.heads[0].weight.mul_(10)
    x = torch.rand(1, 24).double() * 10
    fit_encoders(module, x)
    nats = nats_on_a_grid(module, x)
    weight = np.exp(nats["posterior"] + nats["cell"])
    kl = (weight * (nats["posterior"] - nats["prior"])).sum()
    bound = (weight * (nats["x"] + nats["low"])).sum() - kl
    of_two = sum(logsumexp(nats[name] + nats["prior"] + nats["cell"]) for name in ("x", "low"))
    assert bound > of_two + 0.1
    assert bound - kl <= of_two


# ------------------------------------------------------------------------------------- model


SMALL = {"n_latent_foreground": 24, "n_latent_background": 4, "window": 6}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.mark.parametrize("image_interaction", OF_IMAGE)
def test_a_trained_model_says_its_light_and_can_be_saved(image_interaction, tmp_path):
    adata = two_photon(200, seed=3, image_shape=(24, 36))
    settings = {"image_interaction": image_interaction, "n_hidden_decoder": (16,)}
    model = DualVAE(adata, **(SMALL | settings))
    before = None
    for _ in range(2):
        model.train(4, seed=0, **QUIET)
        now = model.get_elbo()
        assert before is None or now > before
        before = now
    x = torch.from_numpy(adata.X[:5])
    q = model.module.inference(x, sample=False)
    mean = model.module.generative(q["z1"], q["z2"])["px"].loc.detach().numpy()
    foreground, background = (
        read(indices=range(5)) for read in (model.get_foreground, model.get_background)
    )
    light = foreground if image_interaction == "none" else foreground + background
    np.testing.assert_allclose(light, mean, rtol=1e-5, atol=1e-5)
    assert adata.uns["dualvae"]["params"]["image_interaction"] == image_interaction
    model.save(tmp_path / "model")
    loaded = DualVAE.load(tmp_path / "model", adata=adata)
    np.testing.assert_array_equal(loaded.get_foreground(), model.get_foreground())
    np.testing.assert_array_equal(loaded.get_background(), model.get_background())


def test_additive_is_the_default_and_has_the_parameters_of_earlier_models():
    torch.manual_seed(0)
    default = DualModule((12, 12))
    torch.manual_seed(0)
    additive = DualModule((12, 12), image_interaction="additive", n_hidden_decoder=())
    torch.testing.assert_close(default.state_dict(), additive.state_dict(), rtol=0, atol=0)
    assert not [name for name in default.state_dict() if "gate" in name]
    assert default.foreground.heads[0].weight.shape == (128, 144)


@pytest.mark.parametrize(
    ("name", "bad"),
    [("image_interaction", "sum"), ("n_hidden_decoder", 3), ("n_hidden_decoder", [0])],
    ids=repr,
)
def test_bad_settings_are_refused_by_name(name, bad):
    adata = two_photon(20, image_shape=(12, 12))
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        DualVAE(adata, **{name: bad})
    assert set(adata.uns) == {"image_shape", "sector"}
