"""Cells as the model draws them: points of z, decoded under given conditions and encoded again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scgmvae.model.merging import MergingMixin

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scgmvae.clustering.one_population import Encoded

__all__ = ["PopulationsMixin"]

VALUES_AT_A_TIME = 1 << 24
"""Largest number of values of x that are drawn at once."""


class PopulationsMixin(MergingMixin):
    """What the tests of splits need of a model: cells drawn from it, and levels of conditions."""

    def _encoder_of(self, rows: NDArray[np.integer]) -> Encoded:
        """Function that decodes points as these cells, draws x, and gives the mean of z of x.

        Points ``(n, L)`` are decoded at the library sizes and under the conditions of the n cells.
        """
        size = max(1, VALUES_AT_A_TIME // self.module.n_input)
        loader = self._make_data_loader(self.adata, rows, batch_size=size)
        with torch.inference_mode():
            minibatches = [self._as_given(tensors) for tensors in loader]

        def encoded(
            points: NDArray[np.floating], rng: np.random.Generator
        ) -> NDArray[np.floating]:
            z = torch.as_tensor(points, dtype=torch.float32, device=self.device)
            parts = z.split(size)
            devices = range(torch.cuda.device_count())
            with torch.inference_mode(), torch.random.fork_rng(devices):
                torch.manual_seed(int(rng.integers(1 << 31)))
                drawn = [
                    self._encoded_again(part, *given)
                    for part, given in zip(parts, minibatches, strict=True)
                ]
            return torch.cat(drawn).double().cpu().numpy()

        return encoded

    def _as_given(self, tensors: dict[str, Tensor]) -> tuple[dict, dict]:
        """Inputs of inference, and of the generative model, for one minibatch."""
        tensors = self._on_device(tensors)
        inputs, outputs = self._inferred(tensors)
        return inputs, self.module._get_generative_input(tensors, outputs)

    def _encoded_again(self, z: Tensor, inputs: dict, given: dict) -> Tensor:
        """Mean of z of the cells that are drawn at given points, (n, L)."""
        x = self._drawn_x(given | {"z": z})
        return self.module.inference(**(inputs | {"x": x}), sample=False)["qz"].loc

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
