"""What a model leaves unexplained of a cell and of the cells like it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_svd

from scgmvae.compat import torch_threads_kept

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["shared_residuals"]

N_NEIGHBORS = 15
"""Number of cells that are looked at together, each cell itself among them."""
N_DIRECTIONS = 5
"""Number of principal components of the residuals in which neighbours are near, beside z."""
VALUES_AT_A_TIME = 1 << 22
"""Number of residuals of neighbours that are in memory at once."""


@torch_threads_kept()
def shared_residuals(
    z: NDArray[np.floating],
    residuals: NDArray[np.floating],
    n_neighbors: int = N_NEIGHBORS,
    n_directions: int = N_DIRECTIONS,
) -> NDArray[np.float64]:
    r"""How much the residuals of the cells that are like each cell have in common.

    .. math:: s_i = \frac{1}{k G} \sum_{j \ne l} \sum_g r_{jg} r_{lg}

    over the pairs of k cells, i itself and those nearest to it. Noise is another one in every
    cell, so it is about 0 where the model explains the cells. If it lacks the same of each of
    them, as of a type that it has not seen, s is (k − 1) times the mean of the squares of that.

    Near are cells in z and in the first principal components of the residuals, so that cells of
    an unseen type are found that lie among known ones in z. What is common is measured in one half
    of the features, and the neighbours are chosen by the components of the other half, and the
    other way round: cells that were chosen because their noise is alike would share it.

    Parameters
    ----------
    z
        Cells, ``(n, L)``.
    residuals
        Standardised residuals of the cells, ``(n, G)``.
    n_neighbors
        k; all cells where there are fewer.
    n_directions
        Number of principal components of the residuals; 0 goes by z alone.

    Returns
    -------
    s of each cell, ``(n,)``; 0 for a single cell.

    Examples
    --------
    >>> z = np.arange(4.0)[:, None]
    >>> shared_residuals(z, np.ones((4, 2)), n_neighbors=3).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    n, n_features = residuals.shape
    k = min(n_neighbors, n)
    if k < 2:
        return np.zeros(n)
    is_first = np.random.default_rng(0).permutation(n_features) % 2 == 0
    shared = np.zeros(n)
    for half in (is_first, ~is_first):
        place = np.hstack([z, _scores(residuals[:, ~half], n_directions)])
        # a tree takes longer: in the noise of so many dimensions nothing is far from anything
        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(place)
        nearest = search.kneighbors(place, return_distance=False)
        shared += _sums_over_pairs(residuals[:, half], nearest)
    return shared / (k * n_features)


def _scores(residuals: NDArray[np.floating], n_directions: int) -> NDArray[np.floating]:
    """Cells in the first principal components, (n, D), in the unit of the residuals."""
    n_directions = min(n_directions, *residuals.shape)
    if n_directions == 0:
        return np.zeros((len(residuals), 0))
    left, values, _ = randomized_svd(residuals - residuals.mean(0), n_directions, random_state=0)
    return left * values


def _sums_over_pairs(
    residuals: NDArray[np.floating], groups: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Sum of the products of residuals over the pairs of each group of cells, (n,)."""
    squares = np.square(residuals).sum(1, dtype=float)
    of_pairs = np.empty(len(groups))
    n_at_a_time = max(1, VALUES_AT_A_TIME // (groups.shape[1] * residuals.shape[1] or 1))
    for start in range(0, len(groups), n_at_a_time):
        some = slice(start, start + n_at_a_time)
        sums = residuals[groups[some]].sum(1)
        of_pairs[some] = np.square(sums).sum(1, dtype=float) - squares[groups[some]].sum(1)
    return of_pairs
