"""Trees of splits that are made of one training under several settings of the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TypeVar
from unittest.mock import patch

import tested
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from scgmvae.clustering.split_tree import STRENGTH
from scgmvae.model.splits import SplitsMixin

__all__ = ["trees_of"]

Row = dict[str, object]
Key = TypeVar("Key")


def trees_of(
    adata: AnnData,
    batch_key: str | None,
    seed: int,
    short: bool,
    settings: Mapping[Key, Callable[[], AbstractContextManager[object]]],
) -> dict[Key, Row]:
    """Scores of the tree under each setting, the last of which is the default.

    Parameters
    ----------
    adata
        Cells with ``cell_type`` in obs.
    batch_key
        Column of the batches that are told.
    seed
        Seed of the training.
    short
        Whether to train for few epochs.
    settings
        Name → what makes the block in which the tree is grown.
    """
    rows: dict[Key, Row] = {}
    grown = SplitsMixin._grown_tree

    def all_of_them(self: SplitsMixin, *args: object) -> tuple[object, NDArray]:
        for name, setting in settings.items():
            with setting():
                tree, leaf = grown(self, *args)
                clusters = tree.clusters(tree.height >= STRENGTH)[leaf]
            rows[name] = {
                "seed": seed,
                "ARI": adjusted_rand_score(adata.obs["cell_type"], clusters),
                "n_clusters": int(clusters.max()) + 1,
                "splits": tree.n_splits,
                "repeated": int(tree.is_repeated.sum()),
            }
        return tree, leaf

    with patch.object(SplitsMixin, "_grown_tree", all_of_them):
        tested.fitted(adata, batch_key, seed, short, tested.BRIEF)
    return rows
