"""Counts divided in two that are independent, so that one half tests what the other has found.

A negative-binomial count with mean mu and inverse dispersion theta is the sum of two independent
ones with half of both, and given the sum the first of them is beta-binomial (Neufeld et al. 2024,
Data thinning for convolution-closed distributions, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["halves"]


def halves(
    counts: sparse.csr_matrix, inverse_dispersion: NDArray[np.floating], rng: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Divide counts at random into two that are independent and alike.

    Parameters
    ----------
    counts
        Counts, ``(n, G)``.
    inverse_dispersion
        Inverse dispersion of each gene, ``(G,)``, or of each value, ``(n, G)``; infinite for
        Poisson counts.
    rng
        Source of the draws.

    Returns
    -------
    Two matrices, ``(n, G)``, whose sum is ``counts``.
    """
    counts = sparse.csr_matrix(counts)
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    theta = np.asarray(inverse_dispersion, dtype=float)
    of_values = theta[counts.indices] if theta.ndim == 1 else theta[rows, counts.indices]
    shape = np.minimum(of_values / 2, 1e8)  # beyond it the share is one half to four digits
    first = rng.binomial(counts.data.astype(np.int64), rng.beta(shape, shape))
    parts = []
    for data in (first, counts.data - first):
        part = sparse.csr_matrix(
            (data.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), counts.shape
        )
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]
