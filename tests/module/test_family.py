"""Tests of the family: each member's loss against a computation of its own on the same weights.

The computations take the weights by name and use nothing of the package: affine maps, batch
normalisation, densities and divergences are written out, the noise is drawn anew from the seed.
"""

import math

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.linalg import subspace_angles
from scvi import REGISTRY_KEYS as KEYS
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch.nn.functional import binary_cross_entropy_with_logits, linear, relu

from scgmvae import SCGMVAE
from scgmvae.module.cgmvae import CGMVAE

N, G, L, W, K = 7, 6, 3, 2, 4
WIDTHS = (9, 5)  # of the encoder; the decoder has them in the opposite order
CONDITIONS = {"n_batch": 2, "n_cats_per_cov": (3,), "n_continuous_cov": 2}
SIGMA = 0.7  # of the Gaussian likelihood, learned as raw_dispersion elsewhere


# --------------------------------------------------------------------- the modules under test


def make_module(**settings):
    """A small module in evaluation mode, with weights and batch statistics of no special value."""
    torch.manual_seed(0)
    sizes = {"n_components": K, "n_latent": L, "n_latent_w": W}
    if settings.get("n_layers") != 0:
        sizes["n_hidden"] = WIDTHS
    module = CGMVAE(G, **(sizes | settings))
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand_like(value) + 0.5)
            elif value.is_floating_point() and name not in (
                "raw_dispersion",
                "size_scale",
                "typical_counts",
            ):
                value.add_(0.3 * torch.randn_like(value))
    module.mixture_started = module.has_mixture
    return module.eval()


def make_minibatch(module):
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(N, G))
    tensors = {KEYS.X_KEY: x, KEYS.BATCH_KEY: np.arange(N)[:, None] % module.n_categories[0]}
    if len(module.n_categories) > 1:
        tensors[KEYS.CAT_COVS_KEY] = rng.integers(3, size=(N, 1))
    if module.sizes.n_cont:
        tensors[KEYS.CONT_COVS_KEY] = rng.normal(size=(N, 2))
    dtype = torch.get_default_dtype()
    return {name: torch.as_tensor(value, dtype=dtype) for name, value in tensors.items()}


@pytest.fixture
def in_double_precision():
    """Rounding of log Γ in single precision would hide small errors of gradients."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ------------------------------------------------------------------- the independent computation


class Plain:
    """Log densities of one minibatch, from the weights of a module and the seed of its noise."""

    def __init__(self, module, tensors, seed):
        self.weights = {
            name: value.detach().clone() for name, value in module.state_dict().items()
        }
        for name, value in module.named_parameters():
            self.weights[name].requires_grad_(value.requires_grad)
        self.plain_layers = {
            name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)
        }
        self.n_layers = len(WIDTHS) if "encoder.trunk.linears.0.weight" in self.weights else 0
        self.training = module.training
        self.x = tensors[KEYS.X_KEY]
        one_hot = torch.eye(3)
        self.categories = [one_hot[tensors[KEYS.BATCH_KEY][:, 0].long()][:, :2]]
        if KEYS.CAT_COVS_KEY in tensors:
            self.categories.append(one_hot[tensors[KEYS.CAT_COVS_KEY][:, 0].long()])
        self.continuous = tensors.get(KEYS.CONT_COVS_KEY)
        torch.manual_seed(seed)
        self.noise = [torch.normal(torch.zeros(N, n), torch.ones(N, n)) for n in (L, W)]

    def affine(self, name, inputs):
        """W x + b, and the part of every condition that has one here."""
        weights = self.weights
        bias = weights.get(f"{name}.bias")
        if name in self.plain_layers:
            value = linear(inputs, weights[f"{name}.weight"], bias)
        elif f"{name}.weight" in weights:
            value = inputs @ weights[f"{name}.weight"] + bias
        else:
            value = bias.expand(N, -1)
        for i, one_hot in enumerate(self.categories):
            if f"{name}.offsets.{i}" in weights:
                value = value + linear(one_hot, weights[f"{name}.offsets.{i}"].T)
        if f"{name}.slopes" in weights:
            value = value + self.continuous @ weights[f"{name}.slopes"]
        return value

    def trunk(self, name, inputs, n_layers):
        for i in range(n_layers):
            inputs = self.affine(f"{name}.linears.{i}", inputs)
            if f"{name}.norms.{i}.running_mean" in self.weights:
                mean, var, weight, bias = (
                    self.weights[f"{name}.norms.{i}.{part}"]
                    for part in ("running_mean", "running_var", "weight", "bias")
                )
                if self.training:  # statistics of the minibatch, over all draws
                    rows = inputs.reshape(-1, inputs.shape[-1])
                    mean, var = rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
                inputs = (inputs - mean) / torch.sqrt(var + 1e-3) * weight + bias
            inputs = relu(inputs)
        return inputs

    def encoded(self, latent, noise, center=0.0):
        """Mean and standard deviation of q, and the sample that the noise makes of them."""
        hidden = self.trunk("encoder.trunk", self.x, self.n_layers)
        loc = center + self.affine(f"encoder.{latent}_loc", hidden)
        scale = torch.exp(squeezed(self.affine(f"encoder.{latent}_scale", hidden), 5))
        return loc, scale, loc + scale * noise

    def code(self):
        """z of an autoencoder."""
        return self.affine("encoder.z_loc", self.trunk("encoder.trunk", self.x, self.n_layers))

    def center(self):
        """Mean of a prior that knows c."""
        return self.affine("condition_prior.loc", self.trunk("condition_prior.trunk", None, 1))

    def log_p_x(self, z):
        output = self.affine("decoder.heads.0", self.trunk("decoder.trunk", z, self.n_layers))
        if "decoder.heads.1.bias" in self.weights:
            raw = self.affine("decoder.heads.1", self.trunk("decoder.trunk", z, self.n_layers))
            return log_normal(self.x, output, torch.exp(squeezed(raw, 5)))
        if "raw_dispersion" not in self.weights:
            x = self.x.expand_as(output)
            return -binary_cross_entropy_with_logits(output, x, reduction="none").sum(-1)
        log_sigma = squeezed(self.weights["raw_dispersion"], 14)
        return log_normal(self.x, output, torch.exp(log_sigma))

    def components(self, w):
        """Mean and standard deviation of p(z|w,y) for every y, (N, K, L)."""
        shift = self.affine("component_prior.shift", self.trunk("component_prior.trunk", w, 1))
        loc, raw_scale = shift.view(N, 2, K, L).unbind(1)
        loc = loc + self.weights["component_prior.loc"]
        return loc, torch.exp(squeezed(self.weights["component_prior.raw_scale"] + raw_scale, 5))

    def log_q_y(self, z):
        logits = self.affine("classifier.logits", self.trunk("classifier.trunk", z, 1))
        return logits - torch.logsumexp(logits, -1, keepdim=True)

    def log_pi(self):
        raw = squeezed(self.weights["weight_logits"], 7)
        return raw - torch.logsumexp(raw, -1)


def squeezed(raw, bound):
    return bound * torch.tanh(raw / bound)


def log_normal(x, loc, scale):
    return (-0.5 * ((x - loc) / scale) ** 2 - torch.log(scale) - 0.5 * math.log(2 * math.pi)).sum(
        -1
    )


def normal_kl(loc_q, scale_q, loc_p, scale_p):
    ratio = (scale_q / scale_p) ** 2
    return 0.5 * (ratio + ((loc_q - loc_p) / scale_p) ** 2 - 1 - torch.log(ratio)).sum(-1)


def log_gamma_ratio(a):
    return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))


# Each gives log p(x|z,c) of every cell, the divergences, and log p(x, z, w|c) − log q(z, w|x, c).


def autoencoder(plain):
    return plain.log_p_x(plain.code()), {"kl_z": torch.zeros(N)}, None


def vae(plain, monte_carlo, center=0.0):
    loc, scale, z = plain.encoded("z", plain.noise[0], center)
    log_p_x = plain.log_p_x(z)
    prior_loc, one = torch.zeros(N, L) + center, torch.ones(N, L)
    log_ratio = log_normal(z, loc, scale) - log_normal(z, prior_loc, one)
    kl = log_ratio if monte_carlo else normal_kl(loc, scale, prior_loc, one)
    return log_p_x, {"kl_z": kl}, log_p_x - log_ratio


def vae_of_conditions(plain, monte_carlo):
    return vae(plain, monte_carlo, plain.center())


def gmvae(plain, monte_carlo, center=0.0):
    z_loc, z_scale, z = plain.encoded("z", plain.noise[0])
    w_loc, w_scale, w = plain.encoded("w", plain.noise[1], center)
    loc, scale = plain.components(w)
    log_q_y, log_pi = plain.log_q_y(z), plain.log_pi()
    q_y = torch.exp(log_q_y)
    log_p_x = plain.log_p_x(z)
    log_q_z, log_q_w = log_normal(z, z_loc, z_scale), log_normal(w, w_loc, w_scale)
    log_p_z = log_normal(z[:, None], loc, scale)  # (N, K)
    prior_w = torch.zeros(N, W) + center, torch.ones(N, W)
    kl = {
        "kl_z": (q_y * normal_kl(z_loc[:, None], z_scale[:, None], loc, scale)).sum(-1),
        "kl_w": normal_kl(w_loc, w_scale, *prior_w),
        "kl_y": (q_y * (log_q_y - log_pi)).sum(-1),
    }
    if monte_carlo:
        kl["kl_z"] = (q_y * (log_q_z[:, None] - log_p_z)).sum(-1)
        kl["kl_w"] = log_q_w - log_normal(w, *prior_w)
    log_ratio = log_p_x + torch.logsumexp(log_pi + log_p_z, -1) - log_q_z
    return log_p_x, kl, log_ratio + log_normal(w, *prior_w) - log_q_w


def cgmvae(plain, monte_carlo, center=0.0):
    log_p_x, kl, log_ratio = gmvae(plain, monte_carlo, center)
    z = plain.encoded("z", plain.noise[0])[2]
    log_q_y = plain.log_q_y(z)
    alpha = 1.5 * K * torch.exp(plain.log_pi())
    if "dirichlet_network.logits.weight" in plain.weights:
        raw = plain.affine(
            "dirichlet_network.logits", plain.trunk("dirichlet_network.trunk", z, 1)
        )
        a = torch.exp(squeezed(raw, 7))
    else:
        a = alpha + torch.exp(log_q_y)
    log_d = torch.digamma(a) - torch.digamma(a.sum(-1, keepdim=True))
    kl["kl_y"] = (torch.exp(log_q_y) * (log_q_y - log_d)).sum(-1)
    kl["kl_d"] = log_gamma_ratio(alpha) - log_gamma_ratio(a) + ((a - alpha) * log_d).sum(-1)
    return log_p_x, kl, log_ratio


def cgmvae_of_conditions(plain, monte_carlo):
    return cgmvae(plain, monte_carlo, plain.center())


NONE = {"prior": "none"}
NORMAL = {"prior": "normal"}
GMVAE = {"prior": "mixture", "component_weights": "uniform"}
CGMVAE_ = {"prior": "dirichlet", "concentration": 1.5, **CONDITIONS}
LEARNED = {"condition_prior": "learned"}
AUTOENCODERS = [
    pytest.param(NONE, id="autoencoder"),
    pytest.param(NONE | CONDITIONS, id="conditional_autoencoder"),
    pytest.param(NONE | {"n_layers": 0}, id="linear_autoencoder"),
    pytest.param(NONE | {"n_layers": 0} | CONDITIONS, id="linear_conditional_autoencoder"),
]
VAES = [
    pytest.param(NORMAL, vae, id="vae"),
    pytest.param(NORMAL | {"n_layers": 0}, vae, id="linear_vae"),
    pytest.param(NORMAL | CONDITIONS, vae, id="cvae"),
    pytest.param(
        NORMAL | CONDITIONS | {"encode_covariates": False}, vae, id="cvae_encoder_without_c"
    ),
    pytest.param(NORMAL | CONDITIONS | LEARNED, vae_of_conditions, id="cvae_learned_prior"),
    pytest.param(GMVAE, gmvae, id="gmvae"),
    pytest.param(GMVAE | {"component_weights": "learned"}, gmvae, id="gmvae_learned_weights"),
    pytest.param(CGMVAE_, cgmvae, id="cgmvae"),
    pytest.param(CGMVAE_ | {"dirichlet_posterior": "network"}, cgmvae, id="cgmvae_network"),
    pytest.param(CGMVAE_ | LEARNED, cgmvae_of_conditions, id="cgmvae_learned_prior"),
]
LIKELIHOODS = [
    pytest.param({"likelihood": "bernoulli"}, id="bernoulli"),
    pytest.param({"likelihood": "gaussian", "gaussian_scale": SIGMA}, id="gaussian_fixed_scale"),
    pytest.param({"likelihood": "gaussian"}, id="gaussian"),
    pytest.param({"likelihood": "gaussian", "gaussian_scale": "shared"}, id="gaussian_one_scale"),
    pytest.param({"likelihood": "gaussian", "gaussian_scale": "network"}, id="gaussian_network"),
]


def assert_close(actual, expected, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(actual.detach(), expected.detach(), rtol=rtol, atol=atol)


def assert_same_loss_and_gradients(module, tensors, monte_carlo, compute):
    torch.manual_seed(5)
    how = {"kl_weight": 0.4, "monte_carlo_kl": monte_carlo}
    out = module(tensors, loss_kwargs=how)[2]
    plain = Plain(module, tensors, seed=5)
    log_p_x, kl, log_ratio = compute(plain)
    assert_close(out.reconstruction_loss["reconstruction_loss"], -log_p_x)
    assert list(out.kl_local) == list(kl)
    for name, expected in kl.items():
        assert_close(out.kl_local[name], expected)
    expected = (-log_p_x + 0.4 * sum(kl.values())).mean()
    assert_close(out.loss, expected)

    out.loss.backward()
    expected.backward()
    for name, parameter in module.named_parameters():
        gradient = plain.weights[name].grad
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            # an entry is rounded as the largest terms of its sum are
            scale = max(1.0, float(gradient.abs().max()))
            assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-11 * scale)
    return log_ratio


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("settings", AUTOENCODERS)
def test_autoencoders_equal_a_plain_computation(settings, likelihood):
    module = make_module(**settings, **likelihood)
    tensors = make_minibatch(module)
    assert_same_loss_and_gradients(module, tensors, False, autoencoder)


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("monte_carlo", [False, True], ids=["closed_form", "monte_carlo"])
@pytest.mark.parametrize(("settings", "compute"), VAES)
def test_vaes_equal_a_plain_computation(settings, compute, likelihood, monte_carlo):
    module = make_module(**settings, **likelihood)
    tensors = make_minibatch(module)
    log_ratio = assert_same_loss_and_gradients(
        module, tensors, monte_carlo, lambda plain: compute(plain, monte_carlo)
    )
    # with one sample the importance-sampled likelihood is that sample's ratio
    torch.manual_seed(5)
    assert_close(module.marginal_ll(tensors, n_mc_samples=1), log_ratio, atol=1e-4)


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_in_training_a_layer_normalises_all_draws_together(likelihood):
    module = make_module(**NORMAL, **CONDITIONS, **likelihood, dropout_rate=0.0).train()
    tensors = make_minibatch(module)
    plain = Plain(module, tensors, seed=5)
    q, _, out = module(tensors, inference_kwargs={"n_samples": 3}, loss_kwargs={"kl_weight": 0.4})
    assert q["z"].shape == (3, N, L)
    loc, scale, _ = plain.encoded("z", plain.noise[0])
    assert_close(q["qz"].loc, loc)
    assert_close(q["qz"].scale, scale)
    log_p_x = plain.log_p_x(q["z"].detach()).mean(0)
    kl = normal_kl(loc, scale, torch.zeros(N, L), torch.ones(N, L))
    assert_close(out.loss, (-log_p_x + 0.4 * kl).mean())


# --------------------------------------------------------------------- what sets members apart


@pytest.mark.parametrize("settings", AUTOENCODERS)
def test_the_code_of_an_autoencoder_has_neither_noise_nor_divergence(settings):
    module = make_module(likelihood="bernoulli", **settings)
    tensors = make_minibatch(module)
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        q, _, out = module(tensors, loss_kwargs={"kl_weight": 1e6, "monte_carlo_kl": True})
        assert torch.equal(q["z"], q["qz"].loc)
        assert torch.equal(out.kl_local["kl_z"], torch.zeros(N))
        losses.append(out.loss)
    assert torch.equal(*losses)
    assert not [name for name in module.state_dict() if "z_scale" in name]
    # c has nothing to be learned for where no density depends on it
    learned = make_module(likelihood="bernoulli", **settings, **LEARNED)
    assert learned.state_dict().keys() == module.state_dict().keys()


def test_a_linear_autoencoder_is_an_affine_map_in_every_direction():
    module = make_module(prior="none", n_layers=0, likelihood="gaussian")
    tensors = make_minibatch(module)

    def reconstruct(x):
        return module(tensors | {KEYS.X_KEY: x}, compute_loss=False)[1]["px"].mean

    one, other = torch.randn(2, N, G)
    both = 0.25 * reconstruct(one) + 0.75 * reconstruct(other)
    assert_close(reconstruct(0.25 * one + 0.75 * other), both)


def test_a_learned_prior_of_z_differs_by_condition_and_the_posterior_deviates_from_it():
    module = make_module(likelihood="bernoulli", **NORMAL, **LEARNED, n_batch=2)
    tensors = make_minibatch(module)
    q, p, before = module(tensors)
    batch = tensors[KEYS.BATCH_KEY][:, 0]
    p_z = p["pz"]
    for code in (0, 1):
        of_batch = p_z.loc[batch == code]
        assert_close(of_batch, of_batch[:1].expand_as(of_batch))
    assert (p_z.loc[batch == 0][0] - p_z.loc[batch == 1][0]).abs().min() > 0.01
    assert torch.equal(p_z.scale, torch.ones(N, L))

    # a prior that moves takes the posterior along, at no cost in divergence
    with torch.no_grad():
        module.condition_prior.loc.bias += 3.0
    q_moved, p_moved, after = module(tensors)
    assert_close(p_moved["pz"].loc, p_z.loc + 3.0)
    assert_close(q_moved["qz"].loc, q["qz"].loc + 3.0)
    assert_close(q_moved["qz"].scale, q["qz"].scale)
    assert_close(after.kl_local["kl_z"], before.kl_local["kl_z"], atol=1e-4)


def test_draws_from_a_learned_prior_of_z_lie_around_the_mean_of_their_condition():
    module = make_module(likelihood="bernoulli", **NORMAL, **LEARNED, n_batch=2)
    tensors = {KEYS.X_KEY: torch.zeros(4000, G), KEYS.BATCH_KEY: torch.arange(4000)[:, None] % 2}
    with torch.no_grad():
        torch.manual_seed(0)
        z = module.sample_prior(torch.zeros(4000, dtype=torch.long), tensors)
        _, p, _ = module(make_minibatch(module))
    for code in (0, 1):
        draws = z[code::2]
        # standard errors of a mean and of a standard deviation of 2,000 draws, five of each
        assert (draws.mean(0) - p["pz"].loc[code]).abs().max() < 5 / math.sqrt(2000)
        assert (draws.std(0) - 1).abs().max() < 5 / math.sqrt(4000)


# ------------------------------------------------------------------------ the public interface


@pytest.fixture(scope="module")
def digits():
    """1,797 images of 8 × 8 pixels in [0, 1]; only to be read."""
    adata = AnnData((load_digits().data / 16).astype(np.float32))
    adata.uns["image_shape"] = (8, 8)
    adata.X.flags.writeable = False
    return adata


@pytest.fixture(scope="module")
def linear_autoencoder(digits):
    """Linear autoencoder of ten dimensions that is trained to the end; only to be read."""
    model = SCGMVAE(
        digits.copy(),
        prior="none",
        n_layers=0,
        n_latent=10,
        likelihood="gaussian",
        gaussian_scale=1.0,
        dropout_rate=0.0,
        input_dropout_rate=0.0,
    )
    model.train(
        max_epochs=120,
        pretrain_epochs=0,
        batch_size=128,
        plan_kwargs={"lr": 5e-3, "weight_decay": 0.0},
        accelerator="cpu",
        enable_progress_bar=False,
    )
    return model


def test_a_trained_linear_autoencoder_spans_the_principal_components(linear_autoencoder, digits):
    columns = linear_autoencoder.module.decoder.heads[0].weight.detach().numpy().T
    components = PCA(10).fit(digits.X).components_
    assert columns.shape == (64, 10)
    angles = np.degrees(subspace_angles(columns, components.T))
    assert angles.max() < 2
    # and so reconstructs, up to the noise of the last steps, what ten components can
    best = PCA(10).fit(digits.X)
    error = ((digits.X - best.inverse_transform(best.transform(digits.X))) ** 2).sum(1).mean()
    actual = ((digits.X - linear_autoencoder.get_reconstruction()) ** 2).sum(1).mean()
    assert error < actual < 1.01 * error


def test_the_elbo_of_an_autoencoder_is_its_log_likelihood(linear_autoencoder, digits):
    expected = log_normal(
        torch.tensor(digits.X),
        torch.from_numpy(linear_autoencoder.get_reconstruction()),
        torch.ones(64),
    ).numpy()
    each = linear_autoencoder.get_elbo(return_mean=False)
    np.testing.assert_allclose(each, expected, rtol=1e-5)
    # scvi-tools' sign: higher is better
    assert linear_autoencoder.get_elbo() == pytest.approx(expected.mean(), rel=1e-5)
    error = linear_autoencoder.get_reconstruction_error()["reconstruction_loss"]
    assert error.item() == pytest.approx(-expected.mean(), rel=1e-5)
    terms = linear_autoencoder.get_elbo_terms()
    np.testing.assert_allclose(terms["reconstruction_loss"], -expected, rtol=1e-5)
    assert (terms["kl_z"] == 0).all()


def test_an_autoencoder_refuses_what_needs_a_density_of_z(linear_autoencoder):
    with pytest.raises(NotImplementedError, match=r"\(prior='none'\) has no density of z to draw"):
        linear_autoencoder.sample(3)
    with pytest.raises(NotImplementedError, match=r"no density of z.*Use prior='normal'"):
        linear_autoencoder.get_marginal_ll(n_mc_samples=2)
    with pytest.raises(RuntimeError, match="its prior is 'none', which has none"):
        linear_autoencoder.predict()


def test_an_autoencoder_writes_its_code_alone(linear_autoencoder):
    adata = linear_autoencoder.adata
    loc, variance = linear_autoencoder.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(adata.obsm["X_scgmvae"], loc)
    assert (variance == 0).all()
    draw = linear_autoencoder.get_latent_representation(give_mean=False)
    np.testing.assert_array_equal(draw, loc)
    assert not [name for name in adata.obs if name.startswith("scgmvae")]
    assert linear_autoencoder.history["kl_z_train"].to_numpy(float).max() == 0
    assert (
        linear_autoencoder.history["elbo_train"].to_numpy(float)
        == linear_autoencoder.history["reconstruction_loss_train"].to_numpy(float)
    ).all()


def test_training_starts_from_the_mean_of_the_data(digits):
    model = SCGMVAE(digits.copy(), prior="none", likelihood="gaussian", n_hidden=8)
    model.train(
        max_epochs=1,
        pretrain_epochs=0,
        plan_kwargs={"lr": 0.0},
        accelerator="cpu",
        enable_progress_bar=False,
    )
    bias = model.module.decoder.heads[0].bias.detach().numpy()
    np.testing.assert_allclose(bias, digits.X.mean(0), atol=1e-6)


@pytest.mark.parametrize("condition_prior", ["standard", "learned"])
def test_a_cvae_through_the_public_interface(make_model, train, digits, condition_prior):
    adata = digits[:300].copy()
    adata.obs["side"] = np.where(np.arange(300) < 150, "left", "right")
    model = make_model(
        adata,
        setup={"batch_key": "side"},
        prior="normal",
        condition_prior=condition_prior,
    )
    train(model)
    assert model.get_elbo() < model.get_marginal_ll(n_mc_samples=50)
    drawn = model.sample(20, conditions={"side": "left"})
    assert set(drawn.obs["side"]) == {"left"}
    with torch.no_grad():
        tensors = next(iter(model._make_data_loader(adata, batch_size=300)))
        p_z = model.module(tensors)[1]["pz"]
    distance = (p_z.loc[0] - p_z.loc[-1]).abs().max()
    assert (distance > 0.01) == (condition_prior == "learned")
