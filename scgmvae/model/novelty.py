"""Novelty and confidence: how unlike the training cells a cell is, how sure its cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgmvae.model.posteriors import PosteriorsMixin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

__all__ = ["OUTERMOST", "NoveltyMixin"]

N_QUANTILES = 1001
"""Number of quantiles of the training cells' distances that a model keeps."""

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
            \delta = \min_k \lVert (z - \mu_k(w,c)) / \sigma_k(w,c) \rVert / s_k

        at the posterior means of z and w, over the components that training cells are in, with
        :math:`s_k` the root mean square of the distances of the training cells of component k:
        those of a rare type are as near to it as those of a common one. The novelty is the share
        of the training cells that have a smaller distance, so among these themselves it is
        uniform. Near 1 a cell fits no component.

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
        too. Types that resemble a known one, such as naive and memory T cells, hardly stand out
        (``docs/benchmarks.md``).

        Examples
        --------
        >>> novelty = model.get_novelty()
        >>> float(novelty.min()), float(novelty.max())
        (0.0, 1.0)
        """
        self._check_mixture()
        return self._novelty(self._posteriors(adata, indices, batch_size, dataloader))

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
        distances = posteriors["distances"].astype(float)
        if self.distance_scales_ is not None:
            distances = distances / self.distance_scales_
        return distances[:, self.used_components_].min(1)

    def _remember_training_cells(self, posteriors: dict[str, NDArray]) -> None:
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
        shares = np.linspace(0, 1, N_QUANTILES)
        self.distance_quantiles_ = np.quantile(self._distance(posteriors), shares)

    def _evidence(self) -> NDArray[np.float64]:
        """How sure it is that each cluster is one of its own, (M,)."""
        return np.ones(len(self.cluster_names))

    def _confidence(self, proba: NDArray, novelty: NDArray) -> NDArray[np.float32]:
        """Probability of the chosen cluster, and that it is one, less for outliers, (n,)."""
        is_own = self._evidence()[proba.argmax(1)]
        return (proba.max(1) * is_own * ((1 - novelty) / OUTERMOST).clip(max=1)).astype(np.float32)
