"""Novelty and confidence: how unlike the training cells a cell is, how sure its cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scgmvae.data.minibatches import stacked
from scgmvae.model.posteriors import READ_BATCH_SIZE, PosteriorsMixin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

__all__ = ["OUTERMOST", "NoveltyMixin"]

N_QUANTILES = 1001
"""Number of quantiles of the training cells' distances that a model keeps."""

LIMIT = 0.99
"""Share of the training cells whose distances set the units of distances in z and of features."""

N_REMEMBERED = 20_000
"""Largest number of training cells by which distances are measured."""

RIDGE = 0.01
"""Share of the mean variance of the features that is added to each: few cells leave directions
without any."""

PRIOR_CELLS = 10
"""Number of cells of any component that count among those of each."""

OUTERMOST = 0.01
"""Share of the training cells that count as outliers: their confidence is reduced."""


class NoveltyMixin(PosteriorsMixin):
    """The method ``get_novelty``, and the confidence, which is reduced for outliers."""

    distance_quantiles_: NDArray[np.float64] | None
    """Quantiles of the training cells' distances to their components."""
    distance_scales_: NDArray[np.float64] | None
    """Root mean square distance of the training cells of each component, (K,)."""
    distance_limits_: NDArray[np.float64] | None
    """Distances of z and of the features that 99 % of the training cells do not exceed, (2,)."""
    used_components_: NDArray[np.int64] | None
    """Numbers of the components that training cells are in."""

    def get_novelty(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
    ) -> NDArray[np.float64]:
        r"""Novelty of each cell: how far it is from the cells that the model was trained on.

        .. math::
            \delta_z = \min_k \lVert (z - \mu_k(w,c)) / \sigma_k(w,c) \rVert / s_k, \qquad
            \delta_h = \min_k \lVert h - m_k \rVert_{C^{-1}}

        :math:`\delta_z` is at the posterior means of z and w, over the components that training
        cells are in, with :math:`s_k` the root mean square of the distances of the training cells
        of component k: those of a rare type are as near to it as those of a common one.
        :math:`\delta_h` is of the features h, the units of the hidden layer that q(z|x,c) is read
        from, with their mean in the training cells of each component and their covariance within
        components: z can put cells of an unknown type among known ones, which the layer before
        still keeps apart. Each is in units of what 99 % of the training cells do not exceed, and
        the distance of a cell is :math:`\delta_z`, or :math:`\delta_h` where that is larger and
        above 1. The novelty is the share of the training cells that have a smaller distance, so
        among these themselves it is uniform. Near 1 a cell fits no component. Without a hidden
        layer, with convolutions and with several modalities :math:`\delta_z` is all.

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
        Cells like those trained on, but not seen in training, lie nearer to the components than
        the training cells do, because the encoder was not fitted to them; half of them may
        have a novelty below 0.25. So compare the novelty of groups of new cells with one another
        too. How well unknown types are told from known ones is in ``docs/benchmarks.md``: types
        that resemble a known one, such as naive and memory T cells, hardly are.

        References
        ----------
        Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples and
        adversarial attacks" (distances of features).

        Examples
        --------
        >>> novelty = model.get_novelty()
        >>> float(novelty.min()), float(novelty.max())
        (0.0, 1.0)
        """
        self._check_mixture()
        return self._novelty(
            self._posteriors(adata, indices, batch_size, dataloader, with_features=True)
        )

    def _novelty(self, posteriors: dict[str, NDArray]) -> NDArray[np.float64]:
        if self.distance_quantiles_ is None:
            raise RuntimeError(
                "Novelty is measured by the training cells when training ends, but this model was "
                "saved before. Load it with its data and train it for one more epoch."
            )
        shares = np.linspace(0, 1, N_QUANTILES)
        return np.interp(self._distance(posteriors), self.distance_quantiles_, shares)

    def _distance(self, posteriors: dict[str, NDArray]) -> NDArray[np.float64]:
        """Distance to the nearest of the components that training cells are in, (n,)."""
        of_z = self._distance_of_z(posteriors)
        if self.distance_limits_ is None:
            return of_z
        both = np.stack([of_z, posteriors["feature_distance"].astype(float)])
        of_z, of_features = both / self.distance_limits_[:, None]
        # below their limit features differ between types by more than they tell of new ones
        return np.where(of_features > 1, np.maximum(of_z, of_features), of_z)

    def _distance_of_z(self, posteriors: dict[str, NDArray]) -> NDArray[np.float64]:
        distances = posteriors["distances"].astype(float)
        if self.distance_scales_ is not None:
            distances = distances / self.distance_scales_
        return distances[:, self.used_components_].min(1)

    def _remember_training_cells(
        self, posteriors: dict[str, NDArray], rows: NDArray[np.integer]
    ) -> None:
        """Keep the distances of the training cells, against which novelty is measured."""
        component = posteriors["log_proba"].argmax(1)
        self.used_components_ = np.unique(component)
        squares = posteriors["distances"][np.arange(len(component)), component].astype(float) ** 2
        n_components = posteriors["log_proba"].shape[1]
        n_cells = np.bincount(component, minlength=n_components)
        sums = np.bincount(component, weights=squares, minlength=n_components)
        # the few cells of a rare type say little: shrink towards all cells
        sums, n_cells = sums + PRIOR_CELLS * squares.mean(), n_cells + PRIOR_CELLS
        self.distance_scales_ = np.sqrt(sums / n_cells)
        order = np.random.default_rng(0).permutation(len(rows))
        some = np.sort(order[:N_REMEMBERED])
        self._remember_features(component[some], rows[some])
        read = self._posteriors(indices=rows[some], with_features=True)
        if self.feature_means_ is not None:
            both = np.stack([self._distance_of_z(read), read["feature_distance"]])
            self.distance_limits_ = np.quantile(both, LIMIT, axis=1)
        shares = np.linspace(0, 1, N_QUANTILES)
        self.distance_quantiles_ = np.quantile(self._distance(read), shares)

    @torch.inference_mode()
    def _remember_features(
        self, component: NDArray[np.integer], rows: NDArray[np.integer]
    ) -> None:
        """Keep means and covariance of the features of training cells, if there are features."""
        self.feature_means_ = self.feature_whitening_ = self.distance_limits_ = None
        if not self.module.has_features:
            return
        self.module.eval()
        loader = self._make_data_loader(self.adata, indices=rows, batch_size=READ_BATCH_SIZE)
        features = stacked({"h": self.module.features(tensors)} for tensors in loader)["h"]
        features = features.astype(float)
        used, code = np.unique(component, return_inverse=True)
        of_component = np.eye(len(used))[code]  # (n, K')
        means = (of_component.T @ features) / of_component.sum(0)[:, None]
        within = features - means[code]
        covariance = within.T @ within / len(within)
        floor = max(RIDGE * covariance.trace() / len(covariance), 1e-12)
        root = np.linalg.cholesky(covariance + floor * np.eye(len(covariance)))
        whitening = np.linalg.inv(root).T
        self.feature_whitening_ = whitening.astype(np.float32)
        self.feature_means_ = (means @ whitening).astype(np.float32)

    def _evidence(self) -> NDArray[np.float64]:
        """How sure it is that each cluster is one of its own, (M,)."""
        return np.ones(len(self.cluster_names))

    def _confidence(self, proba: NDArray, novelty: NDArray) -> NDArray[np.float32]:
        """Probability of the chosen cluster, and that it is one, less for outliers, (n,)."""
        is_own = self._evidence()[proba.argmax(1)]
        return (proba.max(1) * is_own * ((1 - novelty) / OUTERMOST).clip(max=1)).astype(np.float32)
