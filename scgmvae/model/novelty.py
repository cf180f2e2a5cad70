"""Novelty and confidence: how unlike the training cells a cell is, how sure its cluster."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from scgmvae.model.misfit import N_QUANTILES, PRIOR_CELLS, MisfitMixin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

__all__ = ["OUTERMOST", "NoveltyMixin"]

NOT_MEASURED = (
    "Novelty is measured by the training cells when training ends, but this model was saved "
    "before, or by an earlier version. Load it with its data and train it for one more epoch."
)

OUTERMOST = 0.01
"""Share of the training cells that count as outliers: their confidence is reduced."""

SMALLEST_P = 1e-6
"""Probability below which that of a misfit is not known; of such cells the distance decides."""


class NoveltyMixin(MisfitMixin):
    """The method ``get_novelty``, and the confidence, which is reduced for outliers."""

    distance_quantiles_: NDArray[np.float64] | None
    """Quantiles of the training cells' distances to their components."""
    occupied_means_: NDArray[np.float64] | None
    """Mean of z of the training cells of each component that has any, (K', L)."""
    occupied_whitening_: NDArray[np.float64] | None
    """Matrices that turn the covariances of those cells into the identity, (K', L, L)."""

    def get_novelty(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
    ) -> NDArray[np.float64]:
        r"""Novelty of each cell: how unlike the cells it is that the model was trained on.

        The larger of two shares. The first is that of the training cells that are nearer to their
        components, by a Mahalanobis distance at the posterior mean of z,

        .. math::
            \delta = \min_k \lVert \Sigma_k^{-1/2} (z - m_k) \rVert,

        with :math:`m_k` and :math:`\Sigma_k` the mean and the covariance of q(z|x) of the training
        cells of component k together. Those of a rare type are as near to it as those of a common
        one. Because few cells tell little, ten of the mean covariance of all components count
        among them, and the covariance is that of a new cell around the mean of n, larger by 1/n.

        The second is for new cells alone. What the model explains neither of a cell nor of the new
        cells most like it is their misfit, and the share is that of new cells of known types that
        would have less. It finds types that the encoder puts among those that it knows. In a batch
        that the model was not trained on, the misfit that most cells have is taken for the effect
        of the batch, and removed.

        Among the training cells novelty is uniform. Near 1 a cell fits no component.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        indices
            Rows to use.
        batch_size
            Cells at a time.
        dataloader
            Minibatches to use in place of ``adata``.

        Returns
        -------
        Array ``(n,)`` of values in [0, 1].

        Raises
        ------
        RuntimeError
            If the model has no trained components.
        ValueError
            If ``adata`` or ``indices`` are given as well as ``dataloader``.

        Notes
        -----
        New cells are judged together with those that they are given with, 20,000 at a time and
        fewer of many features. Of a handful of cells nothing but the distance counts, and a known
        cell beside new ones may share their misfit. Of types that resemble a known one, such as
        naive and memory T cells, a part stands out (``docs/benchmarks.md``), of single doublets
        little. A query of an unknown batch whose cells are mostly of new types looks like one of a
        batch with a large effect.

        The data that a model was trained on are recognised as a whole; a part of them, or what a
        ``dataloader`` brings, counts as new cells. A model that was saved by an earlier version
        goes by the distance alone.

        Examples
        --------
        >>> novelty = model.get_novelty()
        >>> float(novelty.min()), float(novelty.max())
        (0.0, 1.0)
        """
        self._check_mixture()
        return self._novelty(self._posteriors_to_judge(adata, indices, batch_size, dataloader))

    def _novelty(self, posteriors: dict[str, NDArray]) -> NDArray[np.float64]:
        if self.occupied_means_ is None:
            raise RuntimeError(NOT_MEASURED)
        shares = np.linspace(0, 1, N_QUANTILES)
        novelty = np.interp(self._distance(posteriors), self.distance_quantiles_, shares)
        if "misfit" not in posteriors:
            return novelty
        p = 1 - novelty
        return 1 - np.minimum(p, np.maximum(self._p_of_misfit(posteriors), SMALLEST_P * p))

    def _distance(self, posteriors: dict[str, NDArray]) -> NDArray[np.float64]:
        """Distance to the nearest of the components that training cells are in, (n,)."""
        z = posteriors["z_loc"].astype(float)
        components = zip(self.occupied_means_, self.occupied_whitening_, strict=True)
        return np.min([np.linalg.norm((z - m) @ axes, axis=1) for m, axes in components], axis=0)

    def _remember_training_cells(self, posteriors: dict[str, NDArray]) -> None:
        """Keep where the training cells are, and their distances: novelty is measured by them."""
        z, variances = (posteriors[name].astype(float) for name in ("z_loc", "z_var"))
        _, component = np.unique(posteriors["log_proba"].argmax(1), return_inverse=True)
        of_component = [np.flatnonzero(component == k) for k in range(component.max() + 1)]
        means, scatters = [], []
        for rows in of_component:
            mean = z[rows].mean(0)
            deviations = z[rows] - mean
            means.append(mean)
            # a latent that tells nothing has means that hardly differ, but wide posteriors
            scatters.append(deviations.T @ deviations + np.diag(variances[rows].sum(0)))
        n_cells = np.array([len(rows) for rows in of_component])[:, None, None]
        pooled = np.sum(scatters, axis=0) / len(z)
        covariances = (np.array(scatters) + PRIOR_CELLS * pooled) / (n_cells + PRIOR_CELLS)
        covariances *= 1 + 1 / n_cells  # the mean of few cells is not where that of the type is
        values, vectors = np.linalg.eigh(covariances)
        self.occupied_means_ = np.array(means)
        self.occupied_whitening_ = vectors / np.sqrt(values)[:, None]
        shares = np.linspace(0, 1, N_QUANTILES)
        self.distance_quantiles_ = np.quantile(self._distance(posteriors), shares)

    def _evidence(self) -> NDArray[np.float64]:
        """How sure it is that each cluster is one of its own, (M,)."""
        return np.ones(len(self.cluster_names))

    def _novelty_if_measured(self, posteriors: dict[str, NDArray]) -> NDArray[np.float64]:
        """Novelty of each cell, or NaN and a warning if the model has nothing to measure it by."""
        if self.occupied_means_ is not None:
            return self._novelty(posteriors)
        warnings.warn(
            f"The novelty of the cells is left out, and so is its part in their confidence. "
            f"{NOT_MEASURED}",
            UserWarning,
            stacklevel=4,
        )
        return np.full(len(posteriors["z_loc"]), np.nan)

    def _confidence(self, proba: NDArray, novelty: NDArray) -> NDArray[np.float32]:
        """Probability of the chosen cluster, and that it is one, less for outliers, (n,)."""
        is_own = self._evidence()[proba.argmax(1)]
        is_inside = np.where(np.isnan(novelty), 1.0, ((1 - novelty) / OUTERMOST).clip(max=1))
        return (proba.max(1) * is_own * is_inside).astype(np.float32)
