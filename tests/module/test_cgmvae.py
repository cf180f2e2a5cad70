"""Tests of module.cgmvae: the bound and its parts against formulas written out again."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from scvi import REGISTRY_KEYS as KEYS

from scgmvae.data.keys import GUIDE_KEY
from scgmvae.module.cgmvae import CGMVAE, LOG_WEIGHT_BOUND
from scgmvae.nn.bounds import LOG_SCALE_BOUND

N, G, L, W, K, N_HIDDEN = 8, 6, 3, 2, 4, 16

# A Monte Carlo mean lies within this many standard errors of what it estimates.
N_ERRORS = 5

PRIORS = [
    pytest.param({"prior": "dirichlet", "dirichlet_posterior": "conjugate"}, id="conjugate"),
    pytest.param({"prior": "dirichlet", "dirichlet_posterior": "network"}, id="network"),
    pytest.param({"prior": "mixture"}, id="mixture"),
]
CONDITIONS = [
    pytest.param({}, id="no_condition"),
    pytest.param({"n_batch": 2}, id="batch"),
    pytest.param({"n_cats_per_cov": (2, 3)}, id="categorical"),
    pytest.param({"n_batch": 2, "n_cats_per_cov": (3,), "n_continuous_cov": 2}, id="all"),
]
ALL_CONDITIONS = CONDITIONS[-1].values[0]


def weights_of(module):
    """π of the squeezed logits, in numpy."""
    return special.softmax(
        LOG_WEIGHT_BOUND * np.tanh(array(module.weight_logits) / LOG_WEIGHT_BOUND)
    )


def make_module(*, started=True, n_input=G, n_components=K, **settings):
    """A small module in evaluation mode, its weights away from their starting values."""
    torch.manual_seed(0)
    sizes = {"n_latent": L, "n_latent_w": W, "n_hidden": N_HIDDEN}
    module = CGMVAE(n_input, n_components=n_components, **(sizes | settings))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    module.mixture_started = started and module.prior != "normal"
    return module.eval()


def make_minibatch(module, n=N, seed=1, labels=None, guide=None, size_factor=None):
    """What scvi-tools' loader hands to a module of these settings."""
    rng = np.random.default_rng(seed)
    n_genes = module.n_input
    x = {
        "bernoulli": rng.integers(0, 2, size=(n, n_genes)),
        "gaussian": rng.normal(size=(n, n_genes)),
    }.get(module.gene_likelihood, rng.poisson(3, size=(n, n_genes)))
    n_batch, *n_cats = module.n_categories
    codes = [np.arange(n) % n_categories for n_categories in n_cats]
    tensors = {
        KEYS.X_KEY: torch.as_tensor(x, dtype=torch.float32),
        KEYS.BATCH_KEY: torch.arange(n).unsqueeze(-1) % n_batch,
        # without labels scvi-tools sends a column of zeros
        KEYS.LABELS_KEY: torch.as_tensor([0] * n if labels is None else labels).unsqueeze(-1),
    }
    if n_cats:
        tensors[KEYS.CAT_COVS_KEY] = torch.as_tensor(np.stack(codes, axis=1))
    if module.sizes.n_cont:
        covariates = rng.normal(size=(n, module.sizes.n_cont))
        tensors[KEYS.CONT_COVS_KEY] = torch.as_tensor(covariates, dtype=torch.float32)
    if guide is not None:
        tensors[GUIDE_KEY] = torch.as_tensor(guide)
    if size_factor is not None:
        tensors[KEYS.SIZE_FACTOR_KEY] = torch.as_tensor(size_factor, dtype=torch.float32)
    return tensors


def run(module, tensors, seed=0, n_samples=1, **loss_kwargs):
    """Inference outputs, generative outputs and loss, from a fixed seed."""
    torch.manual_seed(seed)
    return module(
        tensors, inference_kwargs={"n_samples": n_samples}, loss_kwargs=loss_kwargs or None
    )


def assert_close(actual, expected, rtol=1e-5, atol=1e-5):
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().numpy()
    if isinstance(expected, torch.Tensor):
        expected = expected.detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def bound(out):
    """The evidence lower bound of each cell."""
    return -(out.reconstruction_loss["reconstruction_loss"] + sum(out.kl_local.values()))


def array(value):
    return value.detach().double().numpy()


# ------------------------------------------------------------------- the loss and its parts

LABELS = [0, 1, 2, 2, 3, 3, 3, 3]  # of three names; 3 is the unlabelled category
GUIDE = [3, -1, 0, 1, -1, 2, 2, -1]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_loss_is_the_sum_of_its_parts(prior, weight):
    module = make_module(n_labels=3, **prior)
    tensors = make_minibatch(module, labels=LABELS, guide=GUIDE)
    _, _, out = run(module, tensors, kl_weight=weight, classification_weight=0.7, guide_weight=2.5)
    parts = (out.reconstruction_loss["reconstruction_loss"]).mean()
    parts = parts + weight * sum(out.kl_local.values()).mean()
    parts = parts + 0.7 * out.extra_metrics["classification"] + 2.5 * out.extra_metrics["guide"]
    assert_close(out.loss, parts, rtol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("is_labelled", [False, True], ids=["unlabelled", "labelled"])
def test_every_term_equals_its_formula(prior, is_labelled):
    module = make_module(
        n_labels=3 if is_labelled else 0, condition_prior="learned", n_batch=2, **prior
    )
    labels = LABELS if is_labelled else [3] * N
    tensors = make_minibatch(module, labels=labels, guide=GUIDE)
    q, p, out = run(module, tensors)

    log_q_y = special.log_softmax(array(q["y_logits"]), axis=-1)
    pi = weights_of(module)
    alpha = module.concentration * K * pi
    terms = {name: np.zeros(N) for name in ("kl_z", "kl_w", "kl_y", "kl_d")}
    classification, guide = 0.0, 0.0
    for i in range(N):
        q_y = np.eye(K)[labels[i]] if labels[i] < 3 else np.exp(log_q_y[i])
        z_loc, z_scale = array(q["qz"].loc)[i], array(q["qz"].scale)[i]
        for k in range(K):
            loc, scale = array(p["pz"].loc)[i, k], array(p["pz"].scale)[i, k]
            terms["kl_z"][i] += q_y[k] * gaussian_kl(z_loc, z_scale, loc, scale)
        terms["kl_w"][i] = gaussian_kl(
            array(q["qw"].loc)[i],
            array(q["qw"].scale)[i],
            array(p["pw"].loc)[i],
            array(p["pw"].scale)[i],
        )
        negative_entropy = special.xlogy(q_y, q_y).sum()
        if module.prior == "mixture":
            terms["kl_y"][i] = negative_entropy - q_y @ np.log(pi)
        else:
            a = alpha + q_y
            if module.dirichlet_posterior == "network":
                a = array(q["d_concentration"])[i]
            log_d = special.digamma(a) - special.digamma(a.sum())
            terms["kl_y"][i] = negative_entropy - q_y @ log_d
            terms["kl_d"][i] = log_beta(alpha) - log_beta(a) + (a - alpha) @ log_d
        classification -= log_q_y[i, labels[i]] / N if labels[i] < 3 else 0
        guide -= log_q_y[i, GUIDE[i]] / N if GUIDE[i] >= 0 else 0

    if module.prior == "mixture":
        del terms["kl_d"]
    assert list(out.kl_local) == list(terms)
    for name, expected in terms.items():
        assert_close(out.kl_local[name], expected, atol=1e-4)
        assert_close(out.extra_metrics[name], expected.mean(), atol=1e-4)
    assert_close(out.extra_metrics["guide"], guide)
    if is_labelled:
        assert_close(out.extra_metrics["classification"], classification)
    assert ("classification" in out.extra_metrics) == is_labelled

    mu, theta = array(p["px"].mu), np.exp(14 * np.tanh(array(module.raw_dispersion) / 14))
    log_x = stats.nbinom(theta, theta / (theta + mu)).logpmf(tensors[KEYS.X_KEY].numpy())
    assert_close(out.reconstruction_loss["reconstruction_loss"], -log_x.sum(-1), rtol=1e-5)


def gaussian_kl(loc_q, scale_q, loc_p, scale_p):
    ratio = (scale_q / scale_p) ** 2
    return 0.5 * (ratio + ((loc_q - loc_p) / scale_p) ** 2 - 1 - np.log(ratio)).sum()


def log_beta(a):
    return special.gammaln(a).sum() - special.gammaln(a.sum())


@pytest.mark.parametrize("prior", PRIORS)
def test_one_component_equals_a_vae_with_a_learned_prior_written_by_hand(prior):
    module = make_module(n_components=1, n_batch=2, n_continuous_cov=2, **prior)
    tensors = make_minibatch(module)
    q, _, out = run(module, tensors)
    weights = {name: array(value) for name, value in module.state_dict().items()}
    x = tensors[KEYS.X_KEY].double().numpy()
    batch = np.eye(2)[tensors[KEYS.BATCH_KEY].numpy()[:, 0]]
    covariates = tensors[KEYS.CONT_COVS_KEY].numpy()

    def hidden(trunk, inputs):
        layer, norm = f"{trunk}.linears.0", f"{trunk}.norms.0"
        value = inputs @ weights[f"{layer}.weight"] + weights[f"{layer}.bias"]
        if trunk != "component_prior.trunk":  # which c does not enter
            value = value + batch @ weights[f"{layer}.offsets.0"]
            value = value + covariates @ weights[f"{layer}.slopes"]
        if f"{norm}.running_mean" in weights:
            value = value - weights[f"{norm}.running_mean"]
            value = value / np.sqrt(weights[f"{norm}.running_var"] + 1e-3)
            value = value * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]
        return np.maximum(value, 0)

    def to_scale(raw):
        return np.exp(LOG_SCALE_BOUND * np.tanh(raw / LOG_SCALE_BOUND))

    def head(name, inputs):
        return inputs @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    h = hidden("encoder.trunk", np.log1p(x))
    z_loc, z_scale = head("encoder.z_loc", h), to_scale(head("encoder.z_scale", h))
    w_loc, w_scale = head("encoder.w_loc", h), to_scale(head("encoder.w_scale", h))
    # the noise is the module's own: what made its samples out of its Gaussians
    z = z_loc + z_scale * array((q["z"] - q["qz"].loc) / q["qz"].scale)
    w = w_loc + w_scale * array((q["w"] - q["qw"].loc) / q["qw"].scale)
    of_w = hidden("component_prior.trunk", w)
    shift = of_w @ weights["component_prior.shift.weight"].T  # a plain torch.nn.Linear
    prior_loc = weights["component_prior.loc"] + shift[:, :L]
    prior_scale = to_scale(weights["component_prior.raw_scale"] + shift[:, L:])
    share = special.softmax(head("decoder.heads.0", hidden("decoder.trunk", z)), axis=-1)
    mu = share * x.sum(-1, keepdims=True)
    theta = np.exp(14 * np.tanh(weights["raw_dispersion"] / 14))
    log_x = stats.nbinom(theta, theta / (theta + mu)).logpmf(x).sum(-1)
    expected = [
        gaussian_kl(z_loc[i], z_scale[i], prior_loc[i], prior_scale[i])
        + gaussian_kl(w_loc[i], w_scale[i], np.zeros(W), np.ones(W))
        - log_x[i]
        for i in range(N)
    ]
    assert_close(-bound(out), expected, rtol=1e-4)
    assert_close(out.loss, np.mean(expected), rtol=1e-4)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("classifier_input", ["z", "zx"])
def test_relabelling_the_components_leaves_the_loss_unchanged(prior, classifier_input):
    settings = {"classifier_input": classifier_input, **ALL_CONDITIONS, **prior}
    module = make_module(**settings)
    tensors = make_minibatch(module, guide=GUIDE)
    q, _, before = run(module, tensors, guide_weight=1.0)
    order = torch.tensor([2, 0, 3, 1])  # the new component j is the old one order[j]
    with torch.no_grad():
        rows = [
            module.classifier.logits.weight,
            module.classifier.logits.bias,
            module.component_prior.loc,
            module.component_prior.raw_scale,
            module.weight_logits,
        ]
        if hasattr(module, "dirichlet_network"):
            rows += list(module.dirichlet_network.logits.parameters())
        for parameter in rows:
            parameter.copy_(parameter[order])
        shift = module.component_prior.shift.weight  # (2 K L, H)
        shift.copy_(shift.unflatten(0, (2, K, L))[:, order].flatten(0, 2))
    guide = torch.as_tensor(GUIDE)
    tensors[GUIDE_KEY] = torch.where(guide < 0, guide, order.argsort()[guide])
    relabelled, _, after = run(module, tensors, guide_weight=1.0)
    assert_close(relabelled["y_logits"], q["y_logits"][:, order])
    for name, value in before.kl_local.items():
        assert_close(after.kl_local[name], value)
    assert_close(after.loss, before.loss, rtol=1e-6)


# ----------------------------------------------------------------------- family of the module


@pytest.mark.parametrize("prior", [*PRIORS, pytest.param({"prior": "normal"}, id="normal")])
def test_before_the_mixture_starts_the_module_is_a_plain_vae(prior):
    module = make_module(started=False, n_batch=2, **prior)
    tensors = make_minibatch(module, guide=GUIDE)
    q, p, out = run(module, tensors)
    assert [q[name] for name in ("qw", "w", "y_logits", "d_concentration")] == [None] * 4
    assert p["pw"] is None
    expected = [
        gaussian_kl(loc, scale, np.zeros(L), np.ones(L))
        for loc, scale in zip(array(q["qz"].loc), array(q["qz"].scale), strict=True)
    ]
    assert list(out.kl_local) == ["kl_z"]
    assert list(out.extra_metrics) == ["kl_z"]
    assert_close(out.kl_local["kl_z"], expected)
    total = out.reconstruction_loss["reconstruction_loss"].mean() + np.mean(expected)
    assert_close(out.loss, total)

    # and the same VAE, weight for weight, as the one with prior="normal"
    vae = make_module(prior="normal", n_batch=2)
    vae.load_state_dict(module.state_dict(), strict=False)
    assert torch.equal(run(vae, tensors)[2].loss, out.loss)


@pytest.mark.parametrize(
    ("prior", "names"),
    [
        pytest.param("dirichlet", ["kl_z", "kl_w", "kl_y", "kl_d"], id="dirichlet"),
        pytest.param("mixture", ["kl_z", "kl_w", "kl_y"], id="mixture"),
        pytest.param("normal", ["kl_z"], id="normal"),
    ],
)
def test_terms_of_a_prior(prior, names):
    module = make_module(prior=prior)
    q, p, out = run(module, make_minibatch(module))
    assert list(out.kl_local) == names
    assert (q["d_concentration"] is None) == (prior != "dirichlet")
    assert (p["pw"] is None) == (prior == "normal")
    # divergences, every one, of every cell
    assert all(value.min() > 0 for value in out.kl_local.values())
    assert hasattr(module, "classifier") == (prior != "normal")


@pytest.mark.parametrize("prior", PRIORS)
def test_uniform_component_weights_are_not_learned(prior):
    module = make_module(component_weights="uniform", concentration=0.6, **prior)
    assert_close(module.log_weights, np.full(K, -np.log(K)))
    assert_close(module.alpha, np.full(K, 0.6))
    run(module, make_minibatch(module))[2].loss.backward()
    assert module.weight_logits.grad is None
    assert not module.weight_logits.requires_grad


@pytest.mark.parametrize("prior", PRIORS)
def test_learned_component_weights_are_a_distribution_and_scale_alpha(prior):
    module = make_module(concentration=0.6, **prior)
    pi = weights_of(module)
    assert pi.std() > 0.01
    assert_close(module.log_weights, np.log(pi))
    assert_close(module.alpha, 0.6 * K * pi)
    assert_close(module.alpha.mean(), 0.6)


def test_prior_of_w_is_learned_only_where_there_are_conditions():
    assert make_module(condition_prior="learned").condition_prior is None
    module = make_module(condition_prior="learned", n_batch=2)
    tensors = make_minibatch(module)
    p_w = run(module, tensors)[1]["pw"]
    batch = tensors[KEYS.BATCH_KEY][:, 0]
    assert_close(p_w.loc[batch == 0], p_w.loc[0].expand(4, W))
    assert (p_w.loc[0] - p_w.loc[1]).abs().min() > 1e-4
    standard = make_module(condition_prior="standard", n_batch=2)
    p_w = run(standard, tensors)[1]["pw"]
    assert_close(p_w.loc, np.zeros((N, W)))
    assert_close(p_w.scale, np.ones((N, W)))


@pytest.mark.parametrize("prior", PRIORS)
def test_set_components_changes_k_and_nothing_else(prior):
    module = make_module(**prior)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.set_components(7)
    module.eval()
    q, p, out = run(module, make_minibatch(module))
    assert q["y_logits"].shape == (N, 7)
    assert p["pz"].loc.shape == (N, 7, L)
    assert_close(module.log_weights, np.full(7, -np.log(7)))
    assert torch.isfinite(out.loss)
    for name, value in module.state_dict().items():
        if name.startswith(("encoder.", "decoder.", "raw_dispersion")):
            assert torch.equal(value, before[name])


# ----------------------------------------------------------------------------------- gradients

ALL_PRIORS = [*PRIORS, pytest.param({"prior": "normal"}, id="normal")]


def assert_all_gradients(module, tensors):
    run(module, tensors)[2].loss.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name


# In evaluation mode, because batch normalisation in training takes a layer's bias out again.
@pytest.mark.parametrize("prior", ALL_PRIORS)
@pytest.mark.parametrize("classifier_input", ["z", "zx"])
@pytest.mark.parametrize("condition_prior", ["standard", "learned"])
@pytest.mark.parametrize("conditions", CONDITIONS)
def test_every_parameter_gets_a_gradient(prior, classifier_input, condition_prior, conditions):
    module = make_module(
        classifier_input=classifier_input, condition_prior=condition_prior, **prior, **conditions
    )
    assert_all_gradients(module, make_minibatch(module))


@pytest.mark.parametrize("prior", ALL_PRIORS[::3])
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
@pytest.mark.parametrize("conditions", CONDITIONS)
def test_every_parameter_gets_a_gradient_under_every_likelihood(
    prior, likelihood, dispersion, conditions
):
    module = make_module(likelihood=likelihood, dispersion=dispersion, **prior, **conditions)
    assert_all_gradients(module, make_minibatch(module))


@pytest.mark.parametrize("prior", PRIORS)
def test_gradients_in_training_mode_are_finite(prior):
    module = make_module(n_labels=3, **ALL_CONDITIONS, **prior).train()
    tensors = make_minibatch(module, labels=LABELS, guide=GUIDE)
    run(module, tensors, guide_weight=1.0)[2].loss.backward()
    for name, parameter in module.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert all(p.grad.abs().max() > 0 for p in module.classifier.parameters())


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.01])
def test_fixed_scale_of_the_gaussian_is_as_told_and_not_learned(scale):
    module = make_module(likelihood="gaussian", gaussian_scale=scale)
    tensors = make_minibatch(module)
    _, p, out = run(module, tensors)
    out.loss.backward()
    assert module.raw_dispersion.grad is None
    assert_close(p["px"].scale.expand(N, G), np.full((N, G), scale))
    expected = stats.norm(array(p["px"].loc), scale).logpdf(tensors[KEYS.X_KEY].numpy()).sum(-1)
    assert_close(-out.reconstruction_loss["reconstruction_loss"], expected)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_a_cell_without_counts_has_a_finite_bound_and_gradient(likelihood):
    module = make_module(likelihood=likelihood)
    tensors = make_minibatch(module)
    # its log library size is -inf
    tensors[KEYS.X_KEY][0] = 0
    out = run(module, tensors)[2]
    # the chance of no count where none is expected
    assert abs(out.reconstruction_loss["reconstruction_loss"][0].item()) < 1e-5
    out.loss.backward()
    assert torch.isfinite(bound(out)).all()
    for name, parameter in module.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


# ----------------------------------------------------------------------------- labels and guide


@pytest.mark.parametrize("prior", PRIORS)
def test_unlabelled_cells_alone_give_the_unsupervised_loss(prior):
    module, plain = make_module(n_labels=3, **prior), make_module(n_labels=0, **prior)
    plain.load_state_dict(module.state_dict())
    expected = run(plain, make_minibatch(plain))[2]
    actual = run(module, make_minibatch(module, labels=[3] * N), classification_weight=50.0)[2]
    assert torch.equal(actual.loss, expected.loss)
    assert actual.extra_metrics["classification"] == 0
    assert torch.equal(bound(actual), bound(expected))


@pytest.mark.parametrize("prior", PRIORS)
def test_a_label_acts_on_its_own_cell_only(prior):
    module = make_module(n_labels=3, **prior)
    unlabelled = run(module, make_minibatch(module, labels=[3] * N))[2]
    mixed = run(module, make_minibatch(module, labels=LABELS))[2]
    has_label = torch.as_tensor(LABELS) < 3
    assert_close(bound(mixed)[~has_label], bound(unlabelled)[~has_label])
    assert (bound(mixed) - bound(unlabelled))[has_label].abs().min() > 1e-3
    reconstruction = (
        out.reconstruction_loss["reconstruction_loss"] for out in (mixed, unlabelled)
    )
    assert torch.equal(*reconstruction)
    assert torch.equal(mixed.kl_local["kl_w"], unlabelled.kl_local["kl_w"])


@pytest.mark.parametrize("prior", PRIORS)
def test_a_labelled_cell_has_its_own_component_in_the_bound_and_no_classifier(prior):
    module = make_module(n_labels=3, **prior)
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    tensors = make_minibatch(module, labels=labels)
    q, p, out = run(module, tensors)
    for i, label in enumerate(labels):
        expected = gaussian_kl(
            array(q["qz"].loc)[i],
            array(q["qz"].scale)[i],
            array(p["pz"].loc)[i, label],
            array(p["pz"].scale)[i, label],
        )
        assert out.kl_local["kl_z"][i].item() == pytest.approx(expected, rel=1e-4)
    log_q_y = special.log_softmax(array(q["y_logits"]), axis=-1)
    expected = -log_q_y[np.arange(N), labels].mean()
    assert_close(out.extra_metrics["classification"], expected)
    assert_close(out.loss, -bound(out).mean() + expected)

    # another classifier: another classification term, the same bound
    with torch.no_grad():
        module.classifier.logits.bias.add_(torch.tensor([1.0, -2.0, 0.5, 0.0]))
    other = run(module, tensors)[2]
    assert torch.equal(bound(other), bound(out))
    difference = other.extra_metrics["classification"] - out.extra_metrics["classification"]
    assert difference.abs() > 0.1
    assert_close(other.loss - out.loss, difference, atol=1e-5)


@pytest.mark.parametrize("prior", PRIORS[::2])
def test_label_of_a_certain_cell_costs_its_log_prior_weight(prior):
    # y and d terms of a labelled cell: −log p(y) where q(d) is exact
    module = make_module(n_labels=3, **prior)
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    out = run(module, make_minibatch(module, labels=labels))[2]
    total = out.kl_local["kl_y"] + out.kl_local.get("kl_d", torch.zeros(N))
    assert_close(total, -module.log_weights[labels])


@pytest.mark.parametrize("prior", PRIORS)
def test_guide_of_no_cell_adds_nothing(prior):
    module = make_module(**prior)
    expected = run(module, make_minibatch(module))[2]
    actual = run(module, make_minibatch(module, guide=[-1] * N), guide_weight=10.0)[2]
    assert torch.equal(actual.loss, expected.loss)
    assert actual.extra_metrics["guide"] == 0
    assert "guide" not in expected.extra_metrics


def test_a_guide_can_be_probabilities():
    module = make_module()
    codes = torch.as_tensor(GUIDE)
    sure = torch.nn.functional.one_hot(codes.clamp(min=0), module.n_components).float()
    sure[codes < 0] = 0
    losses = [
        run(module, make_minibatch(module, guide=guide), guide_weight=2.0)[2].loss
        for guide in (codes, sure)
    ]
    torch.testing.assert_close(losses[0], losses[1])
    # and between two guides lies the mean of both
    rng = np.random.default_rng(0)
    proba = torch.as_tensor(rng.dirichlet(np.ones(module.n_components), N), dtype=torch.float32)
    parts = [
        run(module, make_minibatch(module, guide=guide))[2].extra_metrics["guide"]
        for guide in (sure, proba, (sure + proba) / 2)
    ]
    torch.testing.assert_close(parts[2], (parts[0] + parts[1]) / 2)


def test_guide_acts_by_its_weight_and_stays_out_of_the_bound():
    module = make_module()
    tensors = make_minibatch(module, guide=GUIDE)
    without, half, whole = (run(module, tensors, guide_weight=g)[2] for g in (0.0, 0.5, 1.0))
    assert torch.equal(bound(whole), bound(without))
    assert_close(whole.loss - without.loss, 2 * (half.loss - without.loss), rtol=1e-3)
    assert (whole.loss - without.loss).item() == pytest.approx(
        whole.extra_metrics["guide"].item(), rel=1e-4
    )


@pytest.mark.parametrize("labels", [LABELS, [3] * N], ids=["some_labels", "no_labels"])
def test_the_dirichlet_network_is_never_better_than_the_conjugate(labels):
    module = make_module(n_labels=3, prior="dirichlet", dirichlet_posterior="network")
    tensors = make_minibatch(module, labels=labels)
    network = run(module, tensors)[2].kl_local
    module.dirichlet_posterior = "conjugate"
    conjugate = run(module, tensors)[2].kl_local
    assert torch.equal(network["kl_z"], conjugate["kl_z"])
    excess = network["kl_y"] + network["kl_d"] - conjugate["kl_y"] - conjugate["kl_d"]
    assert excess.min() > 1e-4


# --------------------------------------------------- settings of inference and generative model


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
def test_transform_batch_changes_p_x_and_leaves_the_posteriors_alone(dispersion):
    module = make_module(condition_prior="learned", dispersion=dispersion, **ALL_CONDITIONS)
    tensors = make_minibatch(module)

    def forward(tensors, **generative_kwargs):
        torch.manual_seed(0)
        return module(tensors, generative_kwargs=generative_kwargs, compute_loss=False)

    q, p = forward(tensors)
    q_other, p_other = forward(tensors, transform_batch=1)
    for name in ("qz", "qw"):
        assert torch.equal(q[name].loc, q_other[name].loc)
        assert torch.equal(q[name].scale, q_other[name].scale)
    assert torch.equal(q["z"], q_other["z"])
    is_other = tensors[KEYS.BATCH_KEY][:, 0] == 0
    difference = (p_other["px"].mu - p["px"].mu).abs().amax(-1)
    assert difference[is_other].min() > 1e-3
    # cells that are of that batch already stay as they are
    assert difference[~is_other].max() == 0
    theta = p_other["px"].theta
    assert_close(theta, theta[1:2].expand(N, G))

    # the same z under the other batch by the long way
    moved = tensors | {KEYS.BATCH_KEY: torch.ones(N, 1, dtype=torch.long)}
    arguments = module._get_generative_input(moved, q)
    assert_close(module.generative(**arguments)["px"].mu, p_other["px"].mu)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_mean_counts_add_up_to_library_or_size_factor(likelihood):
    size_factor = np.linspace(1, 90, N)[:, None]
    for use_size_factor in (False, True):
        module = make_module(likelihood=likelihood, use_size_factor=use_size_factor)
        tensors = make_minibatch(module, size_factor=size_factor)
        _, p, _ = run(module, tensors)
        expected = size_factor if use_size_factor else tensors[KEYS.X_KEY].sum(-1, keepdim=True)
        total = p["px"].get_normalized("mu").sum(-1, keepdim=True)
        assert_close(total, expected)


def test_size_factor_does_not_act_on_the_posteriors():
    module = make_module(use_size_factor=True)
    few, many = (
        run(module, make_minibatch(module, size_factor=np.full((N, 1), value)))[0]
        for value in (3.0, 300.0)
    )
    assert torch.equal(few["qz"].loc, many["qz"].loc)
    assert_close(many["library"] - few["library"], np.full((N, 1), math.log(100)))


def test_means_in_place_of_samples():
    module = make_module(n_batch=2)
    tensors = make_minibatch(module)
    arguments = module._get_inference_input(tensors)
    first, second = (module.inference(**arguments, sample=False) for _ in range(2))
    assert torch.equal(first["z"], first["qz"].loc)
    assert torch.equal(first["w"], first["qw"].loc)
    assert torch.equal(first["y_logits"], second["y_logits"])
    assert_close(first["y_logits"], module.classify(first["qz"].loc, tensors))


@pytest.mark.parametrize("classifier_input", ["z", "zx"])
def test_classify_is_the_classifier_of_inference(classifier_input):
    module = make_module(classifier_input=classifier_input, **ALL_CONDITIONS)
    tensors = make_minibatch(module)
    q, _, _ = run(module, tensors, n_samples=3)
    assert_close(module.classify(q["z"], tensors), q["y_logits"])
    other = tensors | {KEYS.X_KEY: tensors[KEYS.X_KEY] + 5}
    difference = (module.classify(q["z"], other) - q["y_logits"]).abs().max()
    # q(y|z,c) sees x through z alone
    assert (difference == 0) == (classifier_input == "z")


@pytest.mark.parametrize("prior", ALL_PRIORS)
@pytest.mark.parametrize("classifier_input", ["z", "zx"])
def test_shapes_with_several_samples(prior, classifier_input):
    module = make_module(
        classifier_input=classifier_input, condition_prior="learned", **ALL_CONDITIONS, **prior
    )
    q, p, out = run(module, make_minibatch(module), n_samples=5)
    assert q["qz"].loc.shape == (N, L)
    assert q["z"].shape == (5, N, L)
    assert p["px"].mu.shape == (5, N, G)
    if module.mixture_started:
        assert q["w"].shape == (5, N, W)
        assert q["y_logits"].shape == (5, N, K)
        assert p["pz"].loc.shape == (5, N, K, L)
        assert p["pw"].loc.shape == (5, N, W)
    if module.prior == "dirichlet":
        assert q["d_concentration"].shape == (5, N, K)
    for value in (*out.kl_local.values(), *out.reconstruction_loss.values()):
        assert value.shape == (N,)
    assert all(value.dim() == 0 for value in out.extra_metrics.values())
    assert_close(out.loss, -bound(out).mean(), rtol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_mean_over_samples_estimates_the_bound_of_one_sample(prior):
    n_samples = 2000
    module = make_module(n_labels=3, n_batch=2, condition_prior="learned", **prior)
    tensors = make_minibatch(module, labels=LABELS, guide=GUIDE)
    with torch.no_grad():
        several = run(module, tensors, n_samples=n_samples, guide_weight=1.0)[2]
        # one sample each of as many copies of the cells
        copies = {key: torch.cat([value] * n_samples) for key, value in tensors.items()}
        single = run(module, copies, seed=1, guide_weight=1.0)[2]
    terms = several.kl_local | several.reconstruction_loss
    for name, value in terms.items():
        draws = (single.kl_local | single.reconstruction_loss)[name].reshape(n_samples, N)
        # both means have this error; the KL of a term may be the same for every sample
        error = math.sqrt(2 / n_samples) * draws.std(0) + 1e-5
        assert torch.all((value - draws.mean(0)).abs() < N_ERRORS * error), name
    for name in ("classification", "guide"):
        expected = single.extra_metrics[name].item()
        assert several.extra_metrics[name].item() == pytest.approx(expected, rel=0.02)
    # a mean over cells and 2000 samples of values that vary by less than themselves
    assert several.loss.item() == pytest.approx(single.loss.item(), rel=0.01)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_posterior_predictive_shapes(likelihood):
    module = make_module(likelihood=likelihood)
    tensors = make_minibatch(module)
    torch.manual_seed(0)
    one, several = module.sample(tensors), module.sample(tensors, n_samples=3)
    assert one.shape == (N, G)
    assert several.shape == (N, G, 3)
    assert several.std(-1).max() > 0
    if likelihood != "gaussian":
        assert several.min() >= 0
        assert torch.equal(several, several.round())


@pytest.mark.parametrize("transform_batch", [None, 0, 1])
def test_posterior_predictive_has_the_mean_of_p_x(transform_batch):
    n_samples = 3000
    module = make_module(n_batch=2)
    tensors = make_minibatch(module)
    kwargs = {"transform_batch": transform_batch}
    torch.manual_seed(0)
    draws = module.sample(tensors, n_samples=n_samples, generative_kwargs=kwargs)
    with torch.no_grad():
        _, p = module(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=kwargs,
            compute_loss=False,
        )
    error = (draws.var(-1) + p["px"].mu.var(0)).div(n_samples).sqrt()
    assert torch.all((draws.mean(-1) - p["px"].mu.mean(0)).abs() < N_ERRORS * error)


# --------------------------------------------------- a toy whose log likelihood is a closed form

SIGMA = 1.0


def make_linear(trunk, inputs_weight):
    """Make the trunk's layer h = relu(±A inputs), of which a head forms any linear function."""
    linear, norm = trunk.linears[0], trunk.norms[0]
    linear.weight.copy_(torch.cat([inputs_weight, -inputs_weight]).T)
    linear.bias.zero_()
    if isinstance(norm, torch.nn.BatchNorm1d):
        norm.weight.fill_(1)
        norm.bias.zero_()
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)


def set_head(head, matrix, bias=0.0):
    """Make the head of such a trunk give ``matrix @ A inputs + bias``."""
    weight = torch.cat([matrix, -matrix], dim=1)
    # of torch.nn.Linear, (n_out, n_in), or one with conditions, (n_in, n_out)
    head.weight.copy_(weight if isinstance(head, torch.nn.Linear) else weight.T)
    if head.bias is not None:
        head.bias.copy_(torch.as_tensor(bias).expand_as(head.bias))


class LinearToy:
    """x = A z + b + noise, z = μ_y + B_y w + noise, and an encoder that is linear as well.

    ``encoder="exact"`` gives it the exact posterior of z (of a single component without B);
    ``encoder="wide"`` a posterior too wide, of one component with the moments of all.
    """

    def __init__(self, n_components, b_scale, encoder, **settings):
        rng = np.random.default_rng(3)
        # orthogonal columns: the posterior of z is then as diagonal as q(z|x)
        self.a = np.linalg.qr(rng.normal(size=(G, 2)))[0] * [1.5, 0.7]
        self.offset = rng.normal(size=G)
        self.mu = 2 * rng.normal(size=(n_components, 2))
        self.scale = rng.uniform(0.4, 1.2, size=(n_components, 2))
        self.b = b_scale * rng.normal(size=(n_components, 2, 2))
        self.log_pi = special.log_softmax(rng.normal(size=n_components))
        self.module = make_module(
            n_components=n_components,
            n_latent=2,
            n_latent_w=2,
            n_hidden=4,
            likelihood="gaussian",
            gaussian_scale=SIGMA,
            **settings,
        )
        if self.module.prior == "normal":
            self.mu, self.scale, self.b = np.zeros((1, 2)), np.ones((1, 2)), np.zeros((1, 2, 2))
        with torch.no_grad():
            self._write_weights(encoder)
        z = np.concatenate(
            [m + s * rng.normal(size=(3, 2)) for m, s in zip(self.mu, self.scale, strict=True)]
        )
        x = z @ self.a.T + self.offset + SIGMA * rng.normal(size=(len(z), G))
        self.x = x.astype(np.float32)
        self.labels = np.repeat(np.arange(len(self.mu)), 3)

    def _write_weights(self, encoder):
        def tensor(value):
            return torch.as_tensor(value, dtype=torch.float32)

        module = self.module
        make_linear(module.decoder.trunk, torch.eye(2))
        set_head(module.decoder.heads[0], tensor(self.a), tensor(self.offset))
        # moments of p(z), whose posterior under a linear decoder is linear in x
        pi = np.exp(self.log_pi[:, None]) if len(self.mu) > 1 else np.ones((1, 1))
        mean = (pi * self.mu).sum(0)
        spread = self.scale**2 + (self.b**2).sum(-1) + (self.mu - mean) ** 2
        precision = 1 / (pi * spread).sum(0) + (self.a**2).sum(0) / SIGMA**2
        gain = self.a.T / SIGMA**2 / precision[:, None]
        at_zero = mean / (pi * spread).sum(0) / precision - gain @ self.offset
        sd = precision**-0.5 * (1.0 if encoder == "exact" else 2.0)
        raw_scale = LOG_SCALE_BOUND * np.arctanh(np.log(sd) / LOG_SCALE_BOUND)
        make_linear(module.encoder.trunk, tensor(gain))
        set_head(module.encoder.z_loc, torch.eye(2), tensor(at_zero))
        set_head(module.encoder.z_scale, torch.zeros(2, 2), tensor(raw_scale))
        if module.prior == "normal":
            return
        set_head(module.encoder.w_loc, torch.zeros(2, 2))
        set_head(module.encoder.w_scale, torch.zeros(2, 2))
        module.weight_logits.copy_(tensor(self.log_pi))
        if hasattr(module, "dirichlet_network"):
            # where concentrations come near 0, a few draws of the bound decide its mean
            module.dirichlet_network.logits.weight.mul_(0.2)
        prior = module.component_prior
        prior.start_at(tensor(self.mu), tensor(self.scale))
        make_linear(prior.trunk, torch.eye(2))
        shift = np.stack([self.b, np.zeros_like(self.b)])  # (2, K, L, W): of means, of scales
        set_head(prior.shift, tensor(shift).flatten(0, 2))

    def log_joint(self):
        """log p(x, y) of every cell and component, (n, K)."""
        values = []
        for k, (mu, scale, b) in enumerate(zip(self.mu, self.scale, self.b, strict=True)):
            cov_z = np.diag(scale**2) + b @ b.T
            cov = self.a @ cov_z @ self.a.T + SIGMA**2 * np.eye(G)
            density = stats.multivariate_normal(self.a @ mu + self.offset, cov)
            log_pi = self.log_pi[k] if len(self.mu) > 1 else 0.0
            values.append(log_pi + density.logpdf(self.x))
        return np.stack(values, axis=-1)

    def tensors(self, labels=None):
        tensors = make_minibatch(self.module, n=len(self.x), labels=labels)
        return tensors | {KEYS.X_KEY: torch.as_tensor(self.x)}

    def mean_bound(self, labels=None, n_samples=4000):
        """The bound of every cell, averaged over samples, and the error of the average."""
        n = len(self.x)
        copies = {
            key: torch.cat([value] * n_samples) for key, value in self.tensors(labels).items()
        }
        with torch.no_grad():
            draws = bound(run(self.module, copies)[2]).reshape(n_samples, n).double()
        return draws.mean(0).numpy(), draws.std(0).numpy() / math.sqrt(n_samples)


@pytest.mark.parametrize("prior", ALL_PRIORS)
def test_bound_is_tight_where_the_posterior_is_exact(prior):
    toy = LinearToy(1, 0.0, "exact", **prior)
    expected = special.logsumexp(toy.log_joint(), axis=-1)
    mean, error = toy.mean_bound()
    assert np.all(np.abs(mean - expected) < N_ERRORS * error)
    # every importance weight is p(x) itself, so one sample tells all
    torch.manual_seed(0)
    assert_close(toy.module.marginal_ll(toy.tensors(), n_mc_samples=1), expected, atol=1e-4)


@pytest.fixture(scope="module", params=ALL_PRIORS)
def wide_toy(request):
    return LinearToy(3, 0.6, "wide", **request.param)


def test_bound_lies_below_the_log_likelihood(wide_toy):
    expected = special.logsumexp(wide_toy.log_joint(), axis=-1)
    mean, error = wide_toy.mean_bound()
    assert error.max() < 0.2
    assert np.all(mean + N_ERRORS * error < expected)


@pytest.mark.parametrize("prior", PRIORS)
def test_bound_of_labelled_cells_lies_below_the_joint_log_likelihood(prior):
    toy = LinearToy(3, 0.6, "wide", n_labels=3, **prior)
    expected = toy.log_joint()[np.arange(len(toy.x)), toy.labels]
    mean, error = toy.mean_bound(toy.labels)
    assert np.all(mean + N_ERRORS * error < expected)


def test_importance_bound_reaches_the_log_likelihood(wide_toy):
    expected = special.logsumexp(wide_toy.log_joint(), axis=-1)
    torch.manual_seed(0)
    value = wide_toy.module.marginal_ll(wide_toy.tensors(), 40_000, n_mc_samples_per_pass=10_000)
    assert_close(value, expected, rtol=0, atol=0.05)


def test_importance_bound_rises_with_the_number_of_samples(wide_toy):
    tensors = wide_toy.tensors()
    expected = special.logsumexp(wide_toy.log_joint(), axis=-1).mean()
    torch.manual_seed(0)
    means, errors = [], []
    for n_samples in (1, 4, 16):
        repeats = [
            wide_toy.module.marginal_ll(tensors, n_samples, return_mean=True) for _ in range(250)
        ]
        means.append(np.mean(repeats))
        errors.append(np.std(repeats) / math.sqrt(len(repeats)))
    assert np.all(np.diff(means) > 3 * np.hypot(errors[1:], errors[:-1]))
    assert means[-1] < expected


def test_importance_samples_may_come_in_passes(wide_toy):
    tensors = wide_toy.tensors()
    expected = special.logsumexp(wide_toy.log_joint(), axis=-1)
    torch.manual_seed(0)
    # the last pass holds one sample, which has no axis of its own
    value = wide_toy.module.marginal_ll(tensors, 20_001, n_mc_samples_per_pass=5000)
    assert value.shape == expected.shape
    assert_close(value, expected, rtol=0, atol=0.1)
    torch.manual_seed(0)
    mean = wide_toy.module.marginal_ll(
        tensors, 20_001, return_mean=True, n_mc_samples_per_pass=5000
    )
    assert mean == pytest.approx(value.mean().item(), rel=1e-6)


def test_a_classifier_surer_than_single_precision_has_finite_gradients():
    # probabilities that underflow to 0 have an entropy of infinite slope
    module = make_module()
    with torch.no_grad():
        module.classifier.logits.weight.mul_(1e4)
    run(module, make_minibatch(module))[2].loss.backward()
    q_y = run(module, make_minibatch(module))[0]["y_logits"].softmax(-1)
    assert (q_y == 0).any()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name


# ----------------------------------------------------------------------------- depth of cells


def test_the_encoder_sees_cells_of_one_depth():
    module = CGMVAE(4).eval()
    module.typical_counts.copy_(torch.tensor([10.0, 20.0, 5.0, 5.0]))
    x = torch.tensor([[1.0, 2.0, 0.0, 1.0], [10.0, 20.0, 0.0, 10.0], [0.0, 0.0, 0.0, 0.0]])
    seen = module._encoder_input(x)
    torch.testing.assert_close(seen[0], torch.log1p(torch.tensor([10.0, 20.0, 0.0, 10.0])))
    torch.testing.assert_close(seen[1], seen[0])
    assert (seen[2] == 0).all()
    torch.testing.assert_close(module._encoder_input(x.to_sparse_csr()).to_dense(), seen)


def test_genes_that_were_not_measured_do_not_count_for_the_depth():
    module = CGMVAE(4).eval()
    module.typical_counts.copy_(torch.tensor([10.0, 20.0, 5.0, 5.0]))
    observed = torch.tensor([True, True, False, False])
    whole = module._encoder_input(torch.tensor([[2.0, 4.0, 1.0, 1.0]]))
    part = module._encoder_input(torch.tensor([[2.0, 4.0, 0.0, 0.0]]), observed)
    torch.testing.assert_close(part[:, :2] * 0.5, whole[:, :2])


def test_models_that_know_no_typical_depth_see_counts_as_they_are():
    module = CGMVAE(4)
    x = torch.tensor([[1.0, 2.0, 0.0, 1.0]])
    torch.testing.assert_close(module._encoder_input(x), torch.log1p(x))
    weights = module.state_dict()
    del weights["typical_counts"]  # as in files of version 0.1
    module.typical_counts.fill_(3.0)
    module.load_state_dict(weights)
    assert (module.typical_counts == 0).all()
