"""Whether a cut is deeper than in one population: a parametric bootstrap in z.

Cells of ONE population are drawn: Gaussian in z, decoded to x, and encoded again. They are cut by
the same rule as the real cells, so whatever the encoder, the neighbour graph and the search for
the weakest cut do, they do to both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from scgmvae.clustering.cuts import shared_neighbor_graph, weakest_cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Encoded = Callable[[NDArray[np.floating], np.random.Generator], NDArray[np.floating]]

__all__ = ["Evidence", "evidence_of", "one_population"]

N_ROUNDS = 2
"""Number of corrections of the Gaussian."""
FEWEST_DRAWS, MOST_DRAWS = 4, 15
"""Numbers of draws of a large group, at first and in all."""
CELLS_DRAWN = 1000
"""Number of cells in the first draws of a small group together: it has as many as that makes,
at most 15, and 3.75 times as many in all."""
CLEAR_P = 1e-3
"""p from which on no further draws are needed."""
T_FLOOR = 0.005
"""Added to T before its logarithm is taken, as T is 0 where two sides are apart."""
DIRECTIONS_LEFT = 0.15
"""Smallest singular value, over the largest, of a direction that decoding and encoding keep."""


class Evidence(NamedTuple):
    """How a cut compares with the weakest cuts of one population."""

    t: float
    """T of the cut."""
    null: float
    """Mean T of the weakest cuts of one population."""
    p: float
    """Probability of a T as small in one population."""

    @property
    def strength(self) -> float:
        """1 − T / null: 1 where the sides are apart, 0 where the valley is that of one."""
        return 1 - self.t / self.null if self.null > 0 else 0.0


def one_population(
    z: NDArray[np.floating], encoded: Encoded, rng: np.random.Generator
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean and Cholesky factor of a Gaussian whose cells, encoded again, are like given ones.

    Decoding and encoding add noise and shrink. Without a correction the drawn cells are not
    spread as the real ones are, and then everything looks split.

    Parameters
    ----------
    z
        Cells, ``(n, L)``.
    encoded
        Function that decodes n points, draws x and encodes them again.
    rng
        Source of the draws.

    Returns
    -------
    Mean ``(L,)`` and lower triangular factor ``(L, L)`` of the covariance.
    """
    n_latent = z.shape[1]
    target_mean, target_cov = z.mean(0), np.cov(z.T).reshape(n_latent, n_latent)
    mean, cov = target_mean, target_cov
    for _ in range(N_ROUNDS):
        u = mean + rng.standard_normal(z.shape) @ _factor(cov).T
        design = np.column_stack([np.ones(len(u)), u])
        v = encoded(u, rng)
        coefficients, *_ = np.linalg.lstsq(design, v, rcond=None)
        residual = np.cov((v - design @ coefficients).T).reshape(n_latent, n_latent)
        back = np.linalg.pinv(coefficients[1:].T, rcond=DIRECTIONS_LEFT)
        values, vectors = np.linalg.eigh(back @ (target_cov - residual) @ back.T)
        mean = back @ (target_mean - coefficients[0])
        cov = (vectors * np.maximum(values, 1e-3)) @ vectors.T
    return mean, _factor(cov)


def _factor(cov: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.linalg.cholesky(cov + 1e-6 * np.eye(len(cov)))


def evidence_of(
    t: float,
    z: NDArray[np.floating],
    encoded: Encoded,
    rng: np.random.Generator,
    weakest: float = 0.0,
) -> Evidence:
    """Compare a cut with the weakest cuts of one population.

    The logarithms of their T are near normal, so p comes from a t distribution: four draws can
    say more than the rank among twenty. Draws go on only while p is neither clear nor hopeless,
    and the cut may be as strong as it has to be.

    Parameters
    ----------
    t
        T of the cut.
    z
        The cells that were cut, ``(n, L)``.
    encoded
        Function that decodes n points, draws x and encodes them again.
    rng
        Source of the draws.
    weakest
        Strength below which p does not matter.
    """
    mean, factor = one_population(z, encoded, rng)
    fewest = min(max(FEWEST_DRAWS, CELLS_DRAWN // len(z)), MOST_DRAWS)
    null: list[float] = []
    p = 1.0
    while len(null) < fewest * MOST_DRAWS / FEWEST_DRAWS:
        drawn = encoded(mean + rng.standard_normal(z.shape) @ factor.T, rng)
        cut = weakest_cut(shared_neighbor_graph(drawn), drawn)
        null.append(1.0 if cut is None else cut.t)
        if len(null) >= fewest:
            p = _p_value(t, np.array(null))
            if not CLEAR_P < p < 0.3 or _largest_strength(t, np.array(null)) < weakest:
                break
    return Evidence(t, float(np.mean(null)), p)


def _largest_strength(t: float, null: NDArray[np.floating]) -> float:
    """Strength with the mean of the draws two standard errors higher."""
    return 1 - t / (null.mean() + 2 * null.std(ddof=1) / np.sqrt(len(null)))


def _p_value(t: float, null: NDArray[np.floating]) -> float:
    logs = np.log(null + T_FLOOR)
    spread = max(logs.std(ddof=1), 0.02) * np.sqrt(1 + 1 / len(logs))
    return float(stats.t.cdf((np.log(t + T_FLOOR) - logs.mean()) / spread, len(logs) - 1))
