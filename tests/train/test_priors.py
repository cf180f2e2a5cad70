"""The prior of dispersions: which parameters have one, and what it does to them."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small import NETWORK, TRAINING
from torch.distributions import Normal

from scgmvae import SCGMVAE
from scgmvae.datasets import digits, synthetic_counts
from scgmvae.distributions.joint import Modality
from scgmvae.module.cgmvae import CGMVAE, DISPERSION_PRECISION
from scgmvae.module.joint import JointCGMVAE


def weight_of(model):
    """Weight of the log prior in the training of a model."""
    return model.trainer.lightning_module.prior_weight


@pytest.mark.parametrize("prior", ["dirichlet", "normal"])
def test_the_prior_counts_once_beside_all_cells(counts, prior):
    model = SCGMVAE(counts.copy(), prior=prior, **NETWORK)
    model.train(**TRAINING)
    assert weight_of(model) == 1 / counts.n_obs


def test_the_log_prior_is_normal_around_0():
    module = CGMVAE(20, n_components=3)
    raw = torch.linspace(-1, 2, 20)
    module.raw_dispersion.data.copy_(raw)
    density = Normal(0, DISPERSION_PRECISION**-0.5)
    expected = (density.log_prob(raw) - density.log_prob(torch.zeros(20))).sum()
    torch.testing.assert_close(module.log_prior(), expected)


class FirstGradient(Callback):
    """Keeps the dispersions of the first step and their gradient."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 0:
            raw = pl_module.module.raw_dispersion
            self.raw, self.gradient = raw.detach().clone(), raw.grad.clone()


def test_the_gradient_of_a_step_has_the_prior(counts):
    seen = {}
    for weight in (0.0, 0.5):
        seen[weight] = FirstGradient()
        model = SCGMVAE(counts.copy(), prior="normal", **NETWORK)
        plan_kwargs = {"prior_weight": weight}
        model.train(seed=0, callbacks=[seen[weight]], plan_kwargs=plan_kwargs, **TRAINING)
    expected = seen[0.0].gradient + 0.5 * DISPERSION_PRECISION * seen[0.0].raw
    torch.testing.assert_close(seen[0.5].gradient, expected)


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli", "gaussian"])
def test_likelihoods_without_dispersions_of_counts_have_no_prior(likelihood):
    assert CGMVAE(20, n_components=3, likelihood=likelihood).log_prior() == 0


def test_dispersions_from_the_decoder_have_no_prior():
    assert CGMVAE(20, n_components=3, dispersion="gene-cell").log_prior() == 0


def test_images_have_no_prior():
    model = SCGMVAE(digits()[:200].copy(), image_shape=(8, 8), n_components=3, **NETWORK)
    model.train(**TRAINING)
    assert model.module.log_prior() == 0


def test_each_modality_that_is_counts_has_a_prior_whatever_the_others_are():
    modalities = [
        Modality("rna", "nb", 4), Modality("logs", "gaussian", 3), Modality("atac", "bernoulli", 2)
    ]  # fmt: skip
    module = JointCGMVAE(9, modalities=modalities, n_components=3)
    raw = torch.arange(9.0)
    module.raw_dispersion.data.copy_(raw)
    expected = -0.5 * DISPERSION_PRECISION * (raw[:4] ** 2).sum()
    torch.testing.assert_close(module.log_prior(), expected)


def test_a_query_has_no_prior(counts):
    reference = counts.copy()
    reference.obs["batch"] = np.repeat(["a", "b"], [100, counts.n_obs - 100])
    query = reference[100:].copy()
    reference = reference[:100].copy()
    SCGMVAE.setup_anndata(reference, batch_key="batch")
    model = SCGMVAE(reference, n_components=3, **NETWORK)
    model.train(**TRAINING)
    mapped = SCGMVAE.load_query_data(query, model)
    mapped.train(max_epochs=1, batch_size=64, accelerator="cpu", enable_progress_bar=False)
    assert weight_of(mapped) == 0


def fitted(adata, weight):
    """A VAE of cells in which genes are overdispersed by 1 / 2, with a weight of the prior."""
    model = SCGMVAE(adata.copy(), prior="normal", n_hidden=64)
    model.train(
        seed=0,
        max_epochs=150,
        batch_size=64,
        accelerator="cpu",
        enable_progress_bar=False,
        plan_kwargs={"lr": 5e-3, "prior_weight": weight},
    )
    return model


def test_with_the_prior_dispersions_and_held_out_cells_are_nearer_to_the_truth():
    adata = synthetic_counts(600, 200, n_components=3, library_size=300.0, seed=1)
    train, test = adata[:300].copy(), adata[300:].copy()
    models = [fitted(train, weight) for weight in (0.0, 1 / 300)]
    without, by_prior = [model.module.raw_dispersion.detach().numpy() for model in models]
    errors = [np.abs(values - np.log(2)).mean() for values in (without, by_prior)]
    assert errors[1] < 0.5 * errors[0]
    rare = np.asarray(train.X.sum(0)).ravel() < 50
    assert np.abs(by_prior[rare]).mean() < np.abs(by_prior[~rare]).mean()  # as less is known
    held_out = [float(model.get_marginal_ll(test, n_mc_samples=50)) for model in models]
    assert held_out[1] > held_out[0] + 1
