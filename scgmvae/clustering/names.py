"""Names of components and of the clusters that they were merged to."""

from __future__ import annotations

from itertools import count, islice
from string import ascii_lowercase
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_softmax, logsumexp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Clustering"]


def _letters(number: int) -> str:
    """Letters that stand for a number from 0 on: a to z, then aa, ab and so on."""
    letters = ""
    while number >= 0:
        number, last = divmod(number, len(ascii_lowercase))
        letters = ascii_lowercase[last] + letters
        number -= 1
    return letters


class Clustering(NamedTuple):
    """Components, the labels that the first components carry, and the clusters of components."""

    n_components: int
    """K, number of components."""
    labels: Sequence[str] = ()
    """Names of the labels; the first components carry them."""
    clusters: NDArray[np.int64] | None = None
    """Cluster of each component, (K,), −1 where it is dropped; ``None`` before any merging."""

    @property
    def component_names(self) -> NDArray[np.str_]:
        """Names of the components, (K,), see :attr:`scgmvae.SCGMVAE.component_names`."""
        if self.clusters is None:
            return self.numbered(self.n_components)
        clusters = pd.Series(self.clusters)
        dropped = "dropped_"
        while any(label.startswith(dropped) for label in self.labels):
            dropped += "_"
        name_of = pd.Series([*self.cluster_names, dropped])  # the last one is at −1
        names = name_of.to_numpy()[clusters]
        rank, size = clusters.groupby(clusters).cumcount(), clusters.map(clusters.value_counts())
        is_part = (size > 1) | (clusters < 0)
        return np.array(
            [
                f"{name}{_letters(r)}" if part else name
                for name, r, part in zip(names, rank, is_part, strict=True)
            ]
        )

    @property
    def cluster_names(self) -> NDArray[np.str_]:
        """Names of the clusters, (M,), see :attr:`scgmvae.SCGMVAE.cluster_names`."""
        if self.clusters is None:
            return self.component_names
        return self.numbered(int(self.clusters.max()) + 1)

    def numbered(self, n: int) -> NDArray[np.str_]:
        """Names: first the labels, then numbers that cannot be taken for labels or parts of one.

        Parameters
        ----------
        n
            Number of names.

        Examples
        --------
        >>> Clustering(4, labels=["B", "3b"]).numbered(4).tolist()
        ['B', '3b', '2', '4']
        """
        labels = self.labels
        taken = set(labels) | {label.rstrip(ascii_lowercase) for label in labels}  # as of a part
        numbers = (str(k) for k in count(len(labels)) if str(k) not in taken)
        return np.array([*labels, *islice(numbers, max(0, n - len(labels)))])

    def component_of(self, of_components: NDArray[np.floating]) -> NDArray[np.int64]:
        """Component of each cell, (n,): the most probable one of its most probable cluster.

        The most probable of all may belong to another cluster, whose other components are
        improbable. By names, a cell's component would then contradict its cluster.

        Parameters
        ----------
        of_components
            Log probabilities of the components, (n, K).
        """
        if self.clusters is None:
            return of_components.argmax(1)
        cluster = self.log_proba(of_components).argmax(1)
        in_cluster = self.clusters == cluster[:, None]
        return np.where(in_cluster, of_components, -np.inf).argmax(1)

    def log_proba(self, of_components: NDArray[np.floating]) -> NDArray[np.floating]:
        """Log probabilities of the clusters, (n, M), from those of the components, (n, K).

        Parameters
        ----------
        of_components
            Log probabilities of the components. Where some components were dropped, the
            probabilities of the clusters sum to 1 without them.
        """
        if self.clusters is None:
            return of_components
        summed = [
            logsumexp(of_components[:, self.clusters == m], axis=1)
            for m in range(self.clusters.max() + 1)
        ]
        return log_softmax(np.stack(summed, axis=1), axis=1)
