"""Splits that repeat from type to type, as those of a condition that was not told do.

Cells of two donors differ in the same genes whatever their type. So, where donors are not told,
each type is divided in the same directions of gene space, and those divisions are no types. A
split between types has a direction of its own, or one in which a few cells of another type differ
as well: B cells differ from T cells as doublets of monocytes and B cells do from monocytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgmvae.clustering.group_sums import GroupSums

__all__ = ["repeated_splits"]

IN_COMMON = 0.25
"""Least share of a split, as a squared distance, in the directions in which another part of the
tree is divided, for the two to be divided alike: half of the effect is the same."""
EVENNESS = 0.5
"""Least evenness of another part of the tree along the direction of a split, over that of the
split, for the two to be divided alike: each type has its cells of a donor, and few doublets."""
COVERAGE = 0.6
"""Least share of all cells in the parts that are divided alike. It is not nearly all of them,
because some types may come from one batch alone."""
N_GENES = 300
"""Number of genes that are compared, those that differ most between leaves."""


def repeated_splits(
    sides: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]], sums: GroupSums
) -> NDArray[np.bool_]:
    """Which splits repeat in parts of the tree that together hold most of the cells.

    Parameters
    ----------
    sides
        Leaves on both sides of each of S splits.
    sums
        Sums over the cells of each leaf.

    Returns
    -------
    Whether each split repeats, ``(S,)``.
    """
    profiles = _profiles(sums)
    n = np.maximum(sums.n_cells, 1)
    divisions = [_Division.of(profiles, n, *both) for both in sides]
    members = np.array([np.isin(np.arange(len(n)), np.concatenate(both)) for both in sides])
    repeated = np.zeros(len(sides), dtype=bool)
    for split, (own, division) in enumerate(zip(members, divisions, strict=True)):
        alike = [
            other
            for other, theirs in zip(members, divisions, strict=True)
            if not (own & other).any()
            and division.is_seen_in(theirs)
            and theirs.is_seen_in(division)
        ]
        covered = np.logical_or.reduce([own, *alike])
        repeated[split] = bool(alike) and n[covered].sum() >= COVERAGE * n.sum()
    return repeated


def _profiles(sums: GroupSums) -> NDArray[np.float64]:
    """Mean profile of each leaf, (K, genes), by the genes that differ most.

    Genes are scaled to a variance of 1 within leaves, so that the mean of n cells has a noise of
    1 / n in each of them.
    """
    n = np.maximum(sums.n_cells, 1)[:, None]
    mean = sums.x / n
    within = (sums.squares - n * mean**2).sum(0) / max(n.sum() - len(n), 1)
    varies = within > 1e-6
    scaled = mean[:, varies] / np.sqrt(within[varies])
    between = (n * (scaled - (n * scaled).sum(0) / n.sum()) ** 2).sum(0)
    return scaled[:, np.argsort(-between, kind="stable")[:N_GENES]]


class _Division(NamedTuple):
    """In what a split divides cells, and in what all splits from it downwards do."""

    step: NDArray[np.float64]
    """Difference between the profiles of both sides, (genes,)."""
    noise: float
    """Variance of each of its values by noise."""
    evenness: float
    """Product of the shares of the cells on both sides, at most 1/4."""
    places: NDArray[np.float64]
    """Profiles of the leaves about their mean, (leaves, genes)."""
    shares: NDArray[np.float64]
    """Shares of the cells in the leaves, (leaves,)."""
    directions: NDArray[np.float64]
    """Orthonormal directions in which the leaves differ by more than noise, (any, genes)."""
    sharpness: float
    """Share of the variance along these directions that is no noise."""

    @classmethod
    def of(
        cls,
        profiles: NDArray[np.float64],
        n: NDArray[np.integer],
        left: NDArray[np.integer],
        right: NDArray[np.integer],
    ) -> _Division:
        """Division of the leaves on both sides of a split."""
        means = [np.average(profiles[side], axis=0, weights=n[side]) for side in (left, right)]
        noise = 1 / n[left].sum() + 1 / n[right].sum()
        leaves = np.concatenate([left, right])
        n_cells, shares = n[leaves].sum(), n[leaves] / n[leaves].sum()
        places = profiles[leaves] - shares @ profiles[leaves]
        deviations = np.sqrt(shares)[:, None] * places
        _, singular, directions = np.linalg.svd(deviations, full_matrices=False)
        by_noise = profiles.shape[1] / n_cells
        stands_out = singular**2 > 1.5 * by_noise
        variance = (singular[stands_out] ** 2).sum()
        sharpness = 1 - stands_out.sum() * by_noise / variance if variance else 1.0
        return cls(
            step=means[0] - means[1],
            noise=float(noise),
            evenness=float(n[left].sum() * n[right].sum() / n_cells**2),
            places=places,
            shares=shares,
            directions=directions[stands_out],
            sharpness=float(sharpness),
        )

    def is_seen_in(self, other: _Division) -> bool:
        """Whether another part of the tree is divided in the direction of this split as well."""
        is_along = self.share_in(other) >= IN_COMMON
        return is_along and other.evenness_along(self.step) >= EVENNESS * self.evenness

    def share_in(self, other: _Division) -> float:
        """Share of the split's squared size in the directions of another, beyond that by chance.

        Of few genes any direction lies in part in those of another division.
        """
        n_genes, n_directions = len(self.step), len(other.directions)
        size = (self.step**2).sum() - n_genes * self.noise
        if size <= 0 or n_directions == n_genes:
            return 0.0
        inside = ((other.directions @ self.step) ** 2).sum() - n_directions * self.noise
        share, chance = inside / (other.sharpness * size), n_directions / n_genes
        return float((share - chance) / (1 - chance))

    def evenness_along(self, direction: NDArray[np.float64]) -> float:
        """Product of the shares of two groups of cells that lie as skewed along a direction."""
        places = self.places @ direction
        variance = self.shares @ places**2
        if not variance:
            return 0.0
        return float(1 / (4 + (self.shares @ places**3) ** 2 / variance**3))
