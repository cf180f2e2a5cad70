"""Torch operations of a step: a measure of its overhead that does not depend on the machine.

At 128 cells a step is hundreds of small operations around a few products of matrices, and each of
them costs a few microseconds however little it computes.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

MOST = {"pretraining": 380, "joint": 640}
"""Operations of the loss and its gradients; about a twentieth more than there are."""


class Counter(TorchDispatchMode):
    """Counts the operations that reach torch's kernels."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["pretraining", "joint"])
def test_a_step_has_few_operations(counts, make_model, train, stage):
    model = make_model(counts.copy(), n_components=5)
    if stage == "joint":
        train(model, max_epochs=1, pretrain_epochs=1)
    module = model.module.train()
    minibatch = next(iter(model._make_data_loader(model.adata, batch_size=128)))
    with Counter() as counter:
        module(minibatch)[-1].loss.backward()
    assert MOST[stage] / 2 < counter.n <= MOST[stage]
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
