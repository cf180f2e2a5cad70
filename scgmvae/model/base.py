"""What SCGMVAE and DualVAE share: fields, seeds, files, text, and the frame of a training."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from scvi import settings
from torch import Tensor

from scgmvae.data import validation
from scgmvae.data.minibatches import stacked
from scgmvae.model.saving import Saving
from scgmvae.model.seeded import Seeded
from scgmvae.model.showing import Showing
from scgmvae.train.runner import unchanged_without_training
from scgmvae.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from scvi.module.base import BaseModuleClass

__all__ = ["Model"]


class Model(Showing, Seeded, Saving):
    """What all models of an AnnData have, whether of cells or of two sources of light.

    A class of models says how its data are set up, how its module is made
    (:meth:`_make_module`), how it is trained, and what it shows of itself
    (:class:`~scgmvae.model.showing.Showing`).
    """

    _module_cls: type[BaseModuleClass]
    module: BaseModuleClass
    seed_: int = 0
    """Seed of the last training."""

    # --------------------------------------------------------------------------- being made

    @staticmethod
    def _unchanged_on_error(adata: AnnData | None) -> AbstractContextManager[None]:
        """Context in which an error takes back what was written into the data, if any."""
        return nullcontext() if adata is None else validation.unchanged_on_error(adata)

    def _make_module(self) -> BaseModuleClass:
        """The module with fresh weights, which come from torch's random state."""
        raise NotImplementedError

    def _first_module(self) -> BaseModuleClass:
        """The module of an untrained model, with the same weights each time."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return self._make_module()

    @property
    def _arguments(self) -> dict[str, Any]:
        """Arguments that the model was made with, without its data."""
        given = self.init_params_["non_kwargs"] | {"adata": None, "registry": None}
        for group in self.init_params_["kwargs"].values():
            given |= group
        return given

    # ------------------------------------------------------------------------- being trained

    @staticmethod
    def _seed_of(seed: int | None) -> int:
        """Seed of a training: the given one, that of scvi-tools' settings, or 0."""
        return settings.seed or 0 if seed is None else seed

    @contextmanager
    def _in_training(self, seed: int) -> Iterator[None]:
        """Draw from a seed alone; restore the model if training fails before a result is kept."""
        with (
            unchanged_without_training(self),
            torch.random.fork_rng(range(torch.cuda.device_count())),
        ):
            torch.manual_seed(seed)
            self.seed_ = seed
            yield

    # --------------------------------------------------------------------------- being read

    @torch.inference_mode()
    def _at_means(
        self,
        read: Callable[[dict[str, Any], dict[str, Any]], Mapping[str, Tensor]],
        adata: AnnData | None,
        indices: ArrayLike | None,
        batch_size: int | None,
    ) -> dict[str, NDArray]:
        """Results at the posterior means of the latents, each ``(n, ·)``, in one pass.

        Parameters
        ----------
        read
            Function that takes the outputs of inference and of the generative model for a
            minibatch, and returns the wanted results by name.
        adata, indices, batch_size
            Data, rows to use, and number of cells at a time.
        """
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        rows = validation.rows_of(adata, indices)
        self.module.eval()
        loader = self._make_data_loader(adata, indices=rows, batch_size=batch_size)
        at_means = {"inference_kwargs": {"sample": False}, "compute_loss": False}
        return stacked(read(*self.module(tensors, **at_means)) for tensors in loader)

    def _settings(self) -> dict[str, Any]:
        """Settings, seed and versions of an annotation, in types that h5ad files can hold."""
        return {
            "params": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self._module_kwargs.items()
                if value is not None
            },
            "seed": self.seed_,
            "versions": versions(),
        }
