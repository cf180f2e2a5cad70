"""The number of torch operations of a training step, which does not depend on the machine.

At 128 cells the arithmetic of most operations takes less time than calling them.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import scgmvae
from scgmvae.data.keys import GUIDE_KEY

MOST = {"pretraining": 430, "joint stage": 700}
"""Operations of a step, forward, backward and that of Adam, in counts with one batch."""


class Counter(TorchDispatchMode):
    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


def n_operations(model):
    """Operations of the second step of a model."""
    module = model.module.train()
    loader = model._data_loader_cls(model.adata_manager, batch_size=128, sparse=True)
    loader.extra[GUIDE_KEY] = torch.zeros(model.adata.n_obs, dtype=torch.int64)
    (tensors,) = loader
    optimizer = torch.optim.Adam(module.parameters(), fused=True)

    def step():
        optimizer.zero_grad()
        _, _, output = module(tensors, loss_kwargs={"guide_weight": 1.0})
        output.loss.backward()
        optimizer.step()

    step()
    with Counter() as counter:
        step()
    return counter.n


def test_a_step_has_few_operations():
    adata = scgmvae.datasets.synthetic_counts(128, 200, n_components=3, seed=0)
    scgmvae.SCGMVAE.setup_anndata(adata)
    model = scgmvae.SCGMVAE(adata, n_components=10, n_layers=2)
    found = {"pretraining": n_operations(model)}
    model.train(1, 1, start="kmeans", enable_progress_bar=False)
    found["joint stage"] = n_operations(model)
    assert all(found[stage] <= MOST[stage] for stage in MOST), found
    assert all(found[stage] > MOST[stage] - 60 for stage in MOST), f"lower the bounds: {found}"
