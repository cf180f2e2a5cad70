"""Scores of cells that were predicted under a condition, by cells that were measured under it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA

from scgmvae.data.normalization import r_squared

__all__ = ["Judge", "squared_distances"]

N_TOP = 100
"""Number of genes that change most, by which the change is compared."""
N_SPLITS = 10
"""Number of times that the measured cells are divided into halves."""


def squared_distances(a: NDArray, b: NDArray, scale: float) -> tuple[float, float]:
    """Squared maximum mean discrepancy and energy distance of two samples, without bias.

    Parameters
    ----------
    a, b
        Cells x coordinates.
    scale
        Distance at which the Gaussian kernel of the discrepancy has fallen to exp(-1/2).
    """
    between, within_a, within_b = cdist(a, b).ravel(), pdist(a), pdist(b)

    def kernel(distance: NDArray) -> float:
        return float(np.exp(-0.5 * (distance / scale) ** 2).mean())

    mmd = kernel(within_a) + kernel(within_b) - 2 * kernel(between)
    energy = 2 * between.mean() - within_a.mean() - within_b.mean()
    return mmd, float(energy)


class Judge:
    """Scores of predicted cells of one type.

    All scores are means over divisions of the measured cells into halves: predicted cells are
    compared with one half, and so are the cells of the other half, which are the ceiling. For
    distances as many cells are drawn of each.

    Parameters
    ----------
    control, truth
        Log-normalised expression of the type without and with the condition, cells x genes.
    others
        Mean expression of the other types with the condition, types x genes.
    pca
        Space in which distances are measured.
    responds
        Whether the type changes; else there is no change to compare with, and these scores are
        missing.
    """

    def __init__(
        self, control: NDArray, truth: NDArray, others: NDArray, pca: PCA, responds: bool = True
    ) -> None:
        self.control, self.truth, self.others, self.pca = control, truth, others, pca
        self.responds = responds
        self.n = min(len(control), len(truth) // 2)
        rng = np.random.default_rng(0)
        orders = [rng.permutation(len(truth)) for _ in range(N_SPLITS)]
        self.halves = [np.array_split(order, 2) for order in orders]
        both = pca.transform(np.concatenate([control, truth]))
        self.scale = float(np.median(pdist(both)))

    def scores(self, cells: NDArray) -> dict[str, float]:
        """Scores of predicted cells, cells x genes."""
        return self._mean([self._against(cells, self.truth[half]) for half, _ in self.halves])

    def ceiling(self) -> dict[str, float]:
        """Scores of measured cells."""
        return self._mean(
            [self._against(self.truth[other], self.truth[half]) for half, other in self.halves]
        )

    @staticmethod
    def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def _against(self, cells: NDArray, half: NDArray) -> dict[str, float]:
        mean, before, target = cells.mean(0), self.control.mean(0), half.mean(0)
        own = ((mean - self.truth.mean(0)) ** 2).sum()
        rows = {
            "error": float(np.sqrt(np.mean((mean - target) ** 2))),
            "R2 mean": r_squared(mean, target),
            "R2 variance": r_squared(cells.var(0), half.var(0)),
            "told apart": float(own < ((mean - self.others) ** 2).sum(1).min()),
        }
        of_change = self._change(mean - before, target - before) | self._ratios(cells, half)
        return rows | {k: v if self.responds else np.nan for k, v in of_change.items()}

    @staticmethod
    def _change(predicted: NDArray, true: NDArray) -> dict[str, float]:
        """How well a change of mean expression agrees with the true one."""
        top = np.argsort(-np.abs(true))[:N_TOP]
        found = np.argsort(-np.abs(predicted))[:N_TOP]
        # no change has no correlation, and no genes that change most
        changes = bool(np.any(predicted))
        return {
            "r": float(np.corrcoef(predicted, true)[0, 1]) if changes else np.nan,
            "r top": float(np.corrcoef(predicted[top], true[top])[0, 1]) if changes else np.nan,
            "direction": float((np.sign(predicted[top]) == np.sign(true[top])).mean()),
            "overlap": len(set(top) & set(found)) / N_TOP if changes else np.nan,
        }

    def _ratios(self, cells: NDArray, half: NDArray) -> dict[str, float]:
        """Distances from the measured cells, over those of the control cells from them."""
        rng = np.random.default_rng(0)
        target, predicted, control = (
            self.pca.transform(group[rng.permutation(len(group))[: self.n]])
            for group in (half, cells, self.control)
        )
        distances = squared_distances(predicted, target, self.scale)
        without = squared_distances(control, target, self.scale)
        return {
            "MMD": distances[0] / without[0],
            "energy": distances[1] / without[1],
        }
