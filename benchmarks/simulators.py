"""Simulated cells in batches, harder than those of ``scgmvae.datasets``, with known types.

Types form a tree: lineages differ in many genes, the types of a lineage in few. A batch multiplies
every gene by a factor of its own, and each type's genes by a further one, so that no batch effect
is the same in all types. Batches differ in depth and in the types that they hold.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["SIMULATORS"]

N_GENES = 1000
BATCH_SD, OF_TYPE_SD = 0.25, 0.1
"""Standard deviation of the log factors of a batch: for all types, and for each type anew."""


def log_profiles(rng: np.random.Generator, sizes_of_lineages: tuple[int, ...]) -> NDArray:
    """Log expression of types in a tree, (types, G)."""
    base = rng.normal(0, 1.2, N_GENES)
    profiles = []
    for n_types in sizes_of_lineages:
        lineage = base + rng.normal(0, 0.7, N_GENES) * (rng.random(N_GENES) < 0.2)
        profiles += [
            lineage + rng.normal(0, 0.7, N_GENES) * (rng.random(N_GENES) < 0.06)
            for _ in range(n_types)
        ]
    return np.array(profiles)


def drawn(
    rng: np.random.Generator,
    profiles: NDArray,
    n_cells: NDArray,
    effects: NDArray,
    median_depth: NDArray,
    of_type_sd: float = OF_TYPE_SD,
) -> AnnData:
    """Cells of every type and batch, with depths about the median of their batch.

    Parameters
    ----------
    rng
        Source of the draws.
    profiles
        Log expression of each type, ``(types, G)``.
    n_cells
        Number of cells, ``(batches, types)``.
    effects
        Log factors of each batch, ``(batches, G)``, or of each of its types,
        ``(batches, types, G)``.
    median_depth
        Median of the total counts of each batch, ``(batches,)``.
    of_type_sd
        Standard deviation of further log factors of each type in each batch.
    """
    batch, kind = (
        np.repeat(index.ravel(), n_cells.ravel()) for index in np.indices(n_cells.shape)
    )
    of_type = rng.normal(0, of_type_sd, (*n_cells.shape, N_GENES))
    of_type += effects if effects.ndim == 3 else effects[:, None]
    share = np.exp(profiles[kind] + of_type[batch, kind])
    depth = median_depth[batch] * np.exp(rng.normal(0, 0.35, len(batch)))
    mean = share / share.sum(1, keepdims=True) * depth[:, None]
    dispersion = rng.gamma(4, 1, N_GENES)
    counts = rng.poisson(rng.gamma(dispersion, mean / dispersion)).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": [f"type {k}" for k in kind], "batch": [f"batch {b}" for b in batch]},
        index=[f"cell {i}" for i in range(len(kind))],
    )
    order = rng.permutation(len(kind))
    return AnnData(sparse.csr_matrix(counts[order]), obs=obs.iloc[order].astype("category"))


def partly_shared(rng: np.random.Generator) -> AnnData:
    """Eight types in four batches: two in all, five in two or three, one in a single batch."""
    profiles = log_profiles(rng, (3, 3, 2))
    held = np.array(
        [[1, 1, 1, 0, 1, 0, 0, 0], [1, 1, 0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 1, 1, 0],
         [1, 1, 0, 0, 1, 0, 1, 1]]
    )  # fmt: skip
    n_cells = held * rng.integers(50, 200, held.shape)
    effects = rng.normal(0, BATCH_SD, (4, N_GENES))
    return drawn(rng, profiles, n_cells, effects, np.array([2000, 3000, 1500, 5000]))


def rare_in_one(rng: np.random.Generator) -> AnnData:
    """Six types in three batches, and of one lineage a seventh, of 30 cells in one batch."""
    profiles = log_profiles(rng, (3, 4))
    n_cells = rng.integers(60, 180, (3, 7))
    n_cells[:, 6] = 0, 30, 0
    effects = rng.normal(0, BATCH_SD, (3, N_GENES))
    return drawn(rng, profiles, n_cells, effects, np.array([2000, 4000, 3000]))


def uneven_depth(rng: np.random.Generator) -> AnnData:
    """Six types in three batches whose depths are tenfold apart."""
    profiles = log_profiles(rng, (2, 2, 2))
    n_cells = rng.integers(60, 180, (3, 6))
    effects = rng.normal(0, BATCH_SD, (3, N_GENES))
    return drawn(rng, profiles, n_cells, effects, np.array([800, 2500, 8000]))


def nested(rng: np.random.Generator) -> AnnData:
    """Six types in six donors, three of each technology, whose effect is twice a donor's."""
    profiles = log_profiles(rng, (3, 3))
    n_cells = rng.integers(30, 90, (6, 6))
    technology = rng.normal(0, 2 * BATCH_SD, (2, N_GENES))
    effects = np.repeat(technology, 3, axis=0) + rng.normal(0, BATCH_SD, (6, N_GENES))
    return drawn(rng, profiles, n_cells, effects, np.repeat([1500, 5000], 3))


def stimulated_types(rng: np.random.Generator, fewest: int, most: int) -> AnnData:
    """Eight types, control and stimulated: a lineage responds in full, one in part, one not.

    A tenth of the genes respond. Of the second lineage half of these do, and as many of its own.
    A type responds by a factor between 0.7 and 1.3 of what its lineage does.
    """
    profiles = log_profiles(rng, (3, 3, 2))
    full = rng.normal(0, 1, N_GENES) * (np.arange(N_GENES) < 100)
    own = rng.normal(0, 1, N_GENES) * ((np.arange(N_GENES) >= 100) & (np.arange(N_GENES) < 150))
    partial = np.where(np.arange(N_GENES) < 50, full, own)
    gain = rng.uniform(0.7, 1.3, (8, 1))
    responses = gain * np.repeat([full, partial, np.zeros(N_GENES)], (3, 3, 2), axis=0)
    effects = np.stack([np.zeros_like(responses), responses])
    n_cells = rng.integers(fewest, most, (2, 8))
    adata = drawn(rng, profiles, n_cells, effects, np.array([2500, 2500]), of_type_sd=0)
    names = {"batch 0": "control", "batch 1": "stimulated"}
    adata.obs["condition"] = adata.obs.pop("batch").cat.rename_categories(names)
    order = rng.permutation(N_GENES)  # genes that respond stand anywhere
    return adata[:, order].copy()


SIMULATORS: dict[str, Callable[[np.random.Generator], AnnData]] = {
    "partly shared": partly_shared,
    "rare in one": rare_in_one,
    "uneven depth": uneven_depth,
    "nested": nested,
}
"""Name → cells with ``cell_type`` and ``batch`` in obs."""
