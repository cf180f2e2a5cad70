"""Expected x at points of the latent: at the z of cells, at any z, and at components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor

from scgmvae import checks
from scgmvae.data import matrix_checks
from scgmvae.data.conditions import resolved
from scgmvae.model.merging import MergingMixin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

__all__ = ["DecodingMixin"]

BATCH_SIZE = 1024
"""Number of points that are decoded at a time."""


class DecodingMixin(MergingMixin):
    """Expectations of p(x|z,c)."""

    def get_reconstruction(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int = BATCH_SIZE,
        return_scale: bool = False,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Expected x of each cell at the mean of its z, at its own conditions and library size.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        indices
            Rows to use.
        batch_size
            Cells at a time.
        return_scale
            Whether to return the standard deviations σ of a Gaussian likelihood as well.

        Returns
        -------
        Array ``(n, G)``: expected counts, or values; those of a Bernoulli lie in [0, 1]. With
        ``return_scale`` a second array, ``(n, G)``, in the unit of x.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        ValueError
            With ``return_scale`` where the likelihood is not Gaussian.

        Examples
        --------
        >>> model.get_reconstruction().shape
        (300, 50)
        """
        likelihood = self.module.gene_likelihood
        if return_scale and likelihood != "gaussian":
            raise ValueError(
                "return_scale=True reads the standard deviations of likelihood='gaussian', but "
                f"the likelihood is {likelihood!r}. Leave it out."
            )

        def read(_: dict, p: dict) -> dict[str, Tensor]:
            found = {"mean": p["px"].mean}
            return found | {"scale": p["px"].stddev} if return_scale else found

        found = self._at_means(read, adata, indices, batch_size)
        return (found["mean"], found["scale"]) if return_scale else found["mean"]

    @torch.inference_mode()
    def decode(
        self,
        z: NDArray[np.floating],
        conditions: Mapping[str, object] | None = None,
        library_size: float = 1.0,
    ) -> NDArray[np.float32]:
        """Expected x at any points of the latent.

        Parameters
        ----------
        z
            Points, ``(n, L)``.
        conditions
            obs column of each registered condition → its value; empty for a model without
            conditions.
        library_size
            Expected counts per cell. With 1 the values are frequencies. Count likelihoods only.

        Returns
        -------
        Array ``(n, G)``.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        ValueError
            If z has another number of columns than the latent, or a condition is missing or
            unknown.

        Examples
        --------
        >>> shares = model.decode(np.zeros((2, 10)), {"batch": "batch_0"})
        >>> shares.sum(axis=1).round(3).tolist()
        [1.0, 1.0]
        """
        self._check_if_trained(warn=False)
        checks.check_positive(library_size=library_size)
        z = np.asarray(z)
        matrix_checks.check_numeric(z, "z")
        if z.ndim != 2 or z.shape[1] != self.module.n_latent:
            raise ValueError(
                f"z must have shape (n, {self.module.n_latent}), one column per dimension of the "
                f"latent, but it has shape {z.shape}."
            )
        matrix_checks.check_finite(z, "z")
        z = z.astype(np.float32)
        self.module.eval()
        parts = []
        for points in torch.from_numpy(z).split(BATCH_SIZE):
            tensors = self._tensors_of(len(points), conditions or {})
            parts.append(self._expected(points, tensors, library_size))
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def decode_components(
        self,
        n_draws: int = 1,
        conditions: Mapping[str, object] | None = None,
        library_size: float = 1.0,
        *,
        seed: int = 0,
    ) -> NDArray[np.float32]:
        """Expected x at the mean of every component, for draws of w that all components share.

        Parameters
        ----------
        n_draws
            Number of draws of w ~ p(w|c). What w holds, such as a style, varies between them.
        conditions, library_size
            As in :meth:`decode`.
        seed
            Seed of the random draws.

        Returns
        -------
        Array ``(n_draws, K, G)``.

        Raises
        ------
        RuntimeError
            If the model has no trained components.
        ValueError
            If a condition is missing or unknown.

        Examples
        --------
        >>> model.decode_components(4, {"batch": "batch_0"}).shape
        (4, 3, 50)
        """
        self._check_mixture()
        checks.check_whole(1, n_draws=n_draws)
        checks.check_seed(seed)
        checks.check_positive(library_size=library_size)
        self.module.eval()
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            tensors = self._tensors_of(n_draws, conditions or {})
            z = self.module.prior_components(tensors).loc  # (n_draws, K, L)
        n_components = z.shape[1]
        repeated = {
            key: values.repeat_interleave(n_components, 0) for key, values in tensors.items()
        }
        expected = self._expected(z.flatten(0, 1), repeated, library_size)
        return expected.unflatten(0, (n_draws, n_components)).numpy()

    def _expected(self, z: Tensor, tensors: dict[str, Tensor], library_size: float) -> Tensor:
        """Mean of p(x|z,c), (n, G), on the CPU."""
        latents = {
            "z": z.to(self.device),
            "w": None,
            "library": torch.full((len(z), 1), library_size, device=self.device).log(),
        }
        inputs = self.module._get_generative_input(tensors, latents)
        return self.module.generative(**inputs, only_x=True)["px"].mean.cpu()

    def _tensors_of(self, n: int, conditions: Mapping[str, object]) -> dict[str, Tensor]:
        """A minibatch of n cells under given conditions, without data."""
        given = resolved(conditions, self._setup)
        missing = [name for name in self._setup.condition_names if name not in conditions]
        if missing:
            raise ValueError(
                "conditions must give a value to every registered condition, but "
                f"{checks.listed(missing)} has none."
            )
        n_covariates = len(self.module.n_categories) - 1
        tensors = {
            REGISTRY_KEYS.X_KEY: torch.zeros(n, self.module.n_input),
            REGISTRY_KEYS.BATCH_KEY: torch.zeros(n, 1),
        }
        if n_covariates:
            tensors[REGISTRY_KEYS.CAT_COVS_KEY] = torch.zeros(n, n_covariates)
        if self.module.n_continuous:
            tensors[REGISTRY_KEYS.CONT_COVS_KEY] = torch.zeros(n, self.module.n_continuous)
        for condition in given:
            tensors[condition.key][:, condition.position] = condition.code
        return {key: values.to(self.device) for key, values in tensors.items()}
