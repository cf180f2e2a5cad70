"""Tests of the estimators of the loss: several samples, divergences estimated at them."""

import math

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS as KEYS

from scgmvae.module.cgmvae import CGMVAE

N, G, L, W, K = 5, 6, 3, 2, 4

# A Monte Carlo mean lies within this many standard errors of what it estimates.
N_ERRORS = 5

VAES = [
    pytest.param({"prior": "normal"}, id="vae"),
    pytest.param({"prior": "normal", "n_batch": 2, "condition_prior": "learned"}, id="cvae"),
]
MIXTURES = [
    pytest.param({"prior": "mixture"}, id="mixture"),
    pytest.param({"prior": "dirichlet", "dirichlet_posterior": "conjugate"}, id="conjugate"),
    pytest.param({"prior": "dirichlet", "dirichlet_posterior": "network"}, id="network"),
]


def make_module(**settings):
    """A small module in evaluation mode, its weights away from their starting values."""
    torch.manual_seed(0)
    sizes = {"n_components": K, "n_latent": L, "n_latent_w": W, "n_hidden": 8}
    module = CGMVAE(G, **(sizes | {"likelihood": "bernoulli"} | settings))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    module.mixture_started = module.has_mixture
    return module.eval()


def make_minibatch(module, n_copies=1, labels=None):
    """The same N cells, as often as told."""
    x = np.random.default_rng(1).uniform(size=(N, G)).astype(np.float32)
    tensors = {
        KEYS.X_KEY: torch.from_numpy(x),
        KEYS.BATCH_KEY: torch.arange(N)[:, None] % module.n_categories[0],
    }
    if labels is not None:
        tensors[KEYS.LABELS_KEY] = torch.as_tensor(labels)[:, None]
    return {name: torch.cat([value] * n_copies) for name, value in tensors.items()}


def draw(module, n_draws, labels=None, **loss_kwargs):
    """Terms of the loss at one sample each of as many copies of the cells, (n_draws, N)."""
    tensors = make_minibatch(module, n_draws, labels)
    torch.manual_seed(2)
    with torch.no_grad():
        out = module(tensors, loss_kwargs=loss_kwargs)[2]
    return {name: value.view(n_draws, N).double() for name, value in out.kl_local.items()}


def assert_same_mean(draws, expected):
    """The mean over the draws is the expected value, itself exact or a mean of as many draws."""
    variance = draws.var(0)
    if expected.dim() == 2:
        variance, expected = variance + expected.var(0), expected.mean(0)
    error = (variance / len(draws)).sqrt()
    assert torch.all((draws.mean(0) - expected).abs() < N_ERRORS * error + 1e-5)


# ------------------------------------------------------------------------------ several samples


@pytest.mark.parametrize("settings", [*VAES, *MIXTURES])
@pytest.mark.parametrize("monte_carlo_kl", [False, True], ids=["closed_form", "monte_carlo"])
def test_the_loss_of_several_samples_is_the_mean_of_their_losses(settings, monte_carlo_kl):
    module = make_module(n_labels=2, **settings)
    tensors = make_minibatch(module, labels=[0, 1, 2, 2, 2])  # 2 is the unlabelled category
    tensors["guide"] = torch.tensor([3, -1, 2, 0, -1])
    how = {"kl_weight": 0.3, "guide_weight": 2.0, "monte_carlo_kl": monte_carlo_kl}
    torch.manual_seed(0)
    q, _, several = module(tensors, inference_kwargs={"n_samples": 3}, loss_kwargs=how)
    assert (q["z"][0] - q["z"][1]).abs().min() > 0
    singles = []
    for s in range(3):
        of_sample = {
            name: value[s] if isinstance(value, torch.Tensor) and value.dim() == 3 else value
            for name, value in q.items()
        }
        p = module.generative(**module._get_generative_input(tensors, of_sample))
        singles.append(module.loss(tensors, of_sample, p, **how))
    torch.testing.assert_close(several.loss, sum(out.loss for out in singles) / 3)
    for name, value in several.kl_local.items():
        mean = sum(out.kl_local[name] for out in singles) / 3
        torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-5)
    for name, value in several.extra_metrics.items():
        mean = sum(out.extra_metrics[name] for out in singles) / 3
        torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ divergences at the samples


@pytest.mark.parametrize("settings", VAES)
def test_the_estimated_divergence_of_a_vae_has_the_closed_form_as_its_mean(settings):
    module = make_module(**settings)
    closed = draw(module, 1)["kl_z"][0]
    draws = draw(module, 20_000, monte_carlo_kl=True)["kl_z"]
    assert draws.std(0).min() > 0.1  # so it is an estimate
    assert_same_mean(draws, closed)


@pytest.mark.parametrize("settings", MIXTURES)
def test_the_estimated_divergence_of_w_has_the_closed_form_as_its_mean(settings):
    module = make_module(**settings)
    closed = draw(module, 1)["kl_w"][0]
    draws = draw(module, 20_000, monte_carlo_kl=True)
    assert draws["kl_w"].std(0).min() > 0.1
    assert_same_mean(draws["kl_w"], closed)


@pytest.mark.parametrize("settings", MIXTURES)
def test_estimates_leave_the_divergences_of_y_and_d_as_they_are(settings):
    module = make_module(**settings)
    closed, estimated = draw(module, 3), draw(module, 3, monte_carlo_kl=True)
    for name in closed.keys() - {"kl_z", "kl_w"}:
        assert torch.equal(estimated[name], closed[name]), name


@pytest.mark.parametrize("settings", MIXTURES)
@pytest.mark.parametrize("why", ["labelled", "classifier_of_nothing"])
def test_the_estimated_divergence_of_z_has_the_closed_form_as_its_mean_where_y_is_fixed(
    settings, why
):
    module = make_module(n_labels=3, **settings)
    labels = [0, 1, 2, 1, 0] if why == "labelled" else [3] * N
    if why == "classifier_of_nothing":
        with torch.no_grad():
            module.classifier.logits.weight.zero_()
    closed = draw(module, 20_000, labels)["kl_z"]  # varies with w
    draws = draw(module, 20_000, labels, monte_carlo_kl=True)["kl_z"]
    # both have the same draws of w, so the difference is what the draw of z adds
    assert (draws - closed).std(0).min() > 0.1
    assert_same_mean(draws - closed, torch.zeros(N, dtype=draws.dtype))


@pytest.mark.parametrize("settings", MIXTURES)
def test_the_estimated_divergence_of_z_goes_with_the_component_at_the_same_sample(settings):
    # By quadrature over a z of one dimension, with a p(z|w,y) that does not look at w. The
    # components differ in width, so q(y|z) and the log ratio vary together, and the mean is not
    # that of the closed form, in which y comes from another z.
    module = make_module(n_latent=1, **settings)
    with torch.no_grad():
        module.component_prior.shift.weight.zero_()
        module.component_prior.raw_scale.copy_(torch.linspace(-1, 1, K)[:, None])
        # steep, with the border between components where the cells are
        module.classifier.logits.weight.mul_(8)
        q, p, _ = module(make_minibatch(module), inference_kwargs={"sample": False})
        module.classifier.logits.bias.sub_(q["y_logits"].mean(0))
        nodes = np.linspace(-7, 7, 4001)  # a steep classifier wants many
        weights = np.exp(-(nodes**2) / 2)
        loc, scale = (value.double().numpy()[:, 0] for value in (q["qz"].loc, q["qz"].scale))
        z = loc + scale * nodes[:, None]  # (4001, N)
        points = torch.as_tensor(z, dtype=torch.float32).unsqueeze(-1)
        q_y = module.classify(points, make_minibatch(module)).softmax(-1).double().numpy()
    prior_loc, prior_scale = (
        value.double().numpy()[0, :, 0] for value in (p["pz"].loc, p["pz"].scale)
    )
    log_p = log_normal(z[..., None], prior_loc, prior_scale)  # (4001, N, K)
    log_q = log_normal(z, loc, scale)[..., None]
    weights = weights / weights.sum()
    same = np.einsum("s,snk->n", weights, q_y * (log_q - log_p))
    kl = np.einsum("s,snk->nk", weights, log_q - log_p)
    another = (np.einsum("s,snk->nk", weights, q_y) * kl).sum(-1)
    assert np.abs(same - another).max() > 0.05
    assert_same_mean(draw(module, 20_000, monte_carlo_kl=True)["kl_z"], torch.from_numpy(same))
    assert_same_mean(draw(module, 20_000)["kl_z"], torch.from_numpy(another))


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)


# ------------------------------------------------------------------------------------ gradients


def gradients(module, n_draws, monte_carlo_kl, labels=None):
    """Gradients of the divergences by the mean of q(z|x), summed over the cells of a draw.

    Those are the gradients by the bias of the head, an array (n_draws, L).
    """
    torch.manual_seed(3)
    tensors = make_minibatch(module, n_draws, labels)
    q, _, out = module(tensors, loss_kwargs={"monte_carlo_kl": monte_carlo_kl})
    total = sum(out.kl_local[name].sum() for name in ("kl_z", "kl_w") if name in out.kl_local)
    gradient = torch.autograd.grad(total, q["qz"].loc)[0]
    return gradient.view(n_draws, N, L).sum(1).double()


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        pytest.param(VAES[0].values[0], None, id="vae"),
        pytest.param(VAES[1].values[0], None, id="cvae"),
        pytest.param(MIXTURES[0].values[0], [0, 1, 2, 1, 0], id="mixture"),
        pytest.param(MIXTURES[1].values[0], [0, 1, 2, 1, 0], id="conjugate"),
    ],
)
def test_the_gradient_of_the_estimate_has_that_of_the_closed_form_as_its_mean(settings, labels):
    n_labels = 0 if labels is None else 3
    module = make_module(n_labels=n_labels, **settings)
    closed = gradients(module, 5000, False, labels)
    if labels is None:  # the closed form has no randomness
        assert closed.std(0).max() < 1e-5
        closed = closed[0]
    draws = gradients(module, 5000, True, labels)
    assert draws.std(0).min() > 0.01
    assert_same_mean(draws, closed)


# ------------------------------------------------------------------------------------- training


def test_training_by_estimates_follows_training_by_closed_forms(
    counts, make_model, train, monkeypatch
):
    seen, loss = set(), CGMVAE.loss

    def remember(self, tensors, q, p, **kwargs):
        seen.add((q["z"].shape[:-2], kwargs["monte_carlo_kl"]))
        return loss(self, tensors, q, p, **kwargs)

    monkeypatch.setattr(CGMVAE, "loss", remember)
    histories = []
    for monte_carlo_kl in (False, True):
        plan = {"n_samples": 3, "monte_carlo_kl": monte_carlo_kl}
        model = make_model(counts.copy(), setup={"batch_key": "batch"})
        train(model, max_epochs=4, pretrain_epochs=8, start="kmeans", plan_kwargs=plan)
        histories.append({name: h.to_numpy(float)[:, 0] for name, h in model.history.items()})
    assert seen == {((3,), False), ((3,), True)}
    closed, estimated = histories
    assert closed.keys() == estimated.keys()
    assert all(np.isfinite(values).all() for values in estimated.values())
    for name in ("elbo_train", "reconstruction_loss_train"):
        np.testing.assert_allclose(estimated[name], closed[name], rtol=0.05, err_msg=name)
    # noise of the first steps is over, and in the joint stage the means of kl_z differ, see above
    for name, epochs in (("kl_z_train", slice(4, 8)), ("kl_w_train", slice(0, 4))):
        np.testing.assert_allclose(
            estimated[name][epochs], closed[name][epochs], rtol=0.2, err_msg=name
        )


@pytest.mark.parametrize("n_samples", [0, -1, 2.0, True])
def test_a_number_of_samples_that_is_none_is_refused(counts, make_model, train, n_samples):
    model = make_model(counts.copy())
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 1"):
        train(model, plan_kwargs={"n_samples": n_samples})
