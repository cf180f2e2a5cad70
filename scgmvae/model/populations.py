"""Cells as the model draws them: points of z, decoded under given conditions and encoded again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scgmvae.model.merging import MergingMixin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray
    from torch import Tensor

    from scgmvae.clustering.one_population import Encoded

__all__ = ["PopulationsMixin"]

VALUES_AT_A_TIME = 1 << 24
"""Largest number of values of x that are drawn at once."""


class PopulationsMixin(MergingMixin):
    """What the tests of splits need of a model: cells drawn from it, and levels of conditions."""

    def _encoder_of(self, rows: NDArray[np.integer], twin: Self | None = None) -> Encoded:
        """Function that decodes points as these cells, draws x, and gives the mean of z of x.

        Points ``(n, L)`` are decoded at the library sizes and under the conditions of the n cells.
        With a twin, which is another model of the same cells, they are points ``(n, 2 L)`` in both
        its z and that of this model. Each value of x is drawn from one of both decoders, and both
        encode all.
        """
        members = [self] if twin is None else [self, twin]
        size = max(1, VALUES_AT_A_TIME // self.module.n_input)
        loader = self._make_data_loader(self.adata, rows, batch_size=size)
        with torch.inference_mode():
            minibatches = [[one._as_given(tensors) for one in members] for tensors in loader]

        def encoded(
            points: NDArray[np.floating], rng: np.random.Generator
        ) -> NDArray[np.floating]:
            z = torch.as_tensor(points, dtype=torch.float32, device=self.device)
            parts = z.split(size)
            devices = range(torch.cuda.device_count())
            with torch.inference_mode(), torch.random.fork_rng(devices):
                torch.manual_seed(int(rng.integers(1 << 31)))
                drawn = [
                    _encoded_again(members, part, given)
                    for part, given in zip(parts, minibatches, strict=True)
                ]
            return torch.cat(drawn).double().cpu().numpy()

        return encoded

    def _as_given(self, tensors: dict[str, Tensor]) -> tuple[dict, dict]:
        """Inputs of inference, and of the generative model, for one minibatch."""
        tensors = self._on_device(tensors)
        inputs, outputs = self._inferred(tensors)
        return inputs, self.module._get_generative_input(tensors, outputs)

    def _levels(self) -> dict[str, NDArray[np.int64]]:
        """Level of each cell, (n,), of each categorical condition, in the order of the set-up."""
        manager = self.adata_manager
        fields = [manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)]
        if REGISTRY_KEYS.CAT_COVS_KEY in manager.data_registry:
            fields.append(manager.get_from_registry(REGISTRY_KEYS.CAT_COVS_KEY))
        codes = np.column_stack([np.asarray(field) for field in fields]).astype(np.int64)
        if self._setup.arguments.get("batch_key") is None:
            codes = codes[:, 1:]
        return dict(zip(self._setup.categories, codes.T, strict=True))


def _encoded_again(
    members: Sequence[PopulationsMixin], points: Tensor, given: Sequence[tuple[dict, dict]]
) -> Tensor:
    """Means of z, side by side, of the cells that models draw together at given points, (n, any).

    Of two models each draws about half of the values of every cell.
    """
    parts = points.chunk(len(members), 1)
    x = None
    for one, z, (_, to_decode) in zip(members, parts, given, strict=True):
        drawn = one.module.generative(**(to_decode | {"z": z}), only_x=True)["px"].sample()
        x = drawn if x is None else torch.where(torch.rand_like(x) < 0.5, x, drawn)
    x = members[0]._with_depth(x)
    encoded = [
        one.module.inference(**(inputs | {"x": x}), sample=False)["qz"].loc
        for one, (inputs, _) in zip(members, given, strict=True)
    ]
    return torch.cat(encoded, 1)
