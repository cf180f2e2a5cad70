"""The start of a mixture from a partition, by the module alone."""

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS as KEYS

from scgmvae.module.cgmvae import CGMVAE
from scgmvae.train.start import start_mixture

N = 400


@pytest.mark.parametrize("is_soft", [False, True], ids=["codes", "probabilities"])
def test_the_classifier_is_as_sure_as_its_guide(is_soft):
    torch.manual_seed(0)
    module = CGMVAE(20, n_components=2, n_latent=2, dropout_rate=0.0).eval()
    rng = np.random.default_rng(0)
    partition = np.arange(N) % 2
    z = rng.normal(size=(N, 2)).astype(np.float32)
    z[:, 0] += 8 * partition
    proba = np.where(np.eye(2)[partition] == 1, 0.7, 0.3).astype(np.float32)
    tensors = {KEYS.X_KEY: torch.empty(N, 0), KEYS.BATCH_KEY: torch.zeros(N, 1)}
    posteriors = {"z_loc": z, "z_var": np.full((N, 2), 0.1, dtype=np.float32)}
    guide = torch.from_numpy(proba) if is_soft else None
    start_mixture(module, tensors, posteriors, torch.from_numpy(partition), 2, guide)
    found = module.classify(torch.from_numpy(z), tensors).softmax(-1).detach().numpy()
    assert (found.argmax(1) == partition).mean() > 0.99
    assert found.max(1).mean() == pytest.approx(0.7 if is_soft else 1.0, abs=0.03)
    # components are at the means of the groups in both cases
    loc = module.component_prior(torch.zeros(1, module.n_latent_w), None).loc[0].detach()
    means = [z[partition == k].mean(0) for k in range(2)]
    np.testing.assert_allclose(loc.numpy(), means, atol=0.5)
