"""How often a training sees each cell, and from which cells its mixture starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgmvae.data.minibatches import BLOCK, CELLS_IN_MEMORY

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["cells_to_start_from", "copies_of_cells"]

LARGEST_START = 100_000
"""Largest number of cells that are partitioned; of more, a sample is taken."""

LARGEST_TREE = 20_000
"""Largest number of cells whose splits are tested."""

LABELLED_SHARE = 0.1
"""Share that labelled cells are oversampled to in every minibatch if they are fewer."""


def copies_of_cells(
    labels: NDArray[np.integer],
    groups: NDArray[np.integer] | None,
    *,
    groups_are_labels: bool,
    has_mixture: bool,
) -> NDArray[np.floating] | None:
    """How often each cell comes up in an epoch, (n,); ``None`` if each comes up once.

    Parameters
    ----------
    labels
        Label of each cell, (n,), −1 where it has none. If fewer than 10 % of the cells in a
        mixture are labelled, they are oversampled to 10 % of every minibatch.
    groups
        Group of each cell, (n,), if groups are to come up equally often.
    groups_are_labels
        Whether the groups are the labels; unlabelled cells then belong to no group.
    has_mixture
        Whether the model has components, which learn from labels.
    """
    n_obs = len(labels)
    copies = np.ones(n_obs)
    is_labelled = labels >= 0
    if groups is not None:
        balanced = is_labelled if groups_are_labels else np.ones(n_obs, dtype=bool)
        _, group, sizes = np.unique(groups[balanced], return_inverse=True, return_counts=True)
        copies[balanced] = balanced.sum() / (len(sizes) * sizes[group])
    if has_mixture and 0 < is_labelled.sum() < LABELLED_SHARE * n_obs:
        wanted = LABELLED_SHARE / (1 - LABELLED_SHARE) * copies[~is_labelled].sum()
        copies[is_labelled] *= max(1.0, wanted / copies[is_labelled].sum())
    return None if (copies == 1).all() else copies


def cells_to_start_from(
    rows: NDArray[np.integer],
    labels: NDArray[np.integer],
    *,
    tests_splits: bool,
    on_disk: bool,
    seed: int,
) -> NDArray[np.integer]:
    """Training cells that are partitioned: all, or a sample that memory and time allow.

    Labelled cells come first, up to half of the sample, those of the rarest labels before
    others. On disk the sample is made of blocks of neighbours, which are read at once.

    Parameters
    ----------
    rows
        Rows of the training cells, ascending.
    labels
        Label of each cell of the data, (n,), −1 where it has none.
    tests_splits
        Whether the partition is made of tested splits, which takes longer than others.
    on_disk
        Whether the counts are read from a file.
    seed
        Seed of the sample.
    """
    largest = LARGEST_TREE if tests_splits else LARGEST_START
    if on_disk:
        largest = min(largest, CELLS_IN_MEMORY)
    if len(rows) <= largest:
        return rows
    rng = np.random.default_rng(seed)
    row_labels = pd.Series(labels[rows], index=rows)
    labelled = row_labels[row_labels >= 0].sample(frac=1, random_state=seed)
    rank = labelled.groupby(labelled).cumcount().sort_values(kind="stable")
    chosen = rank.index[: largest // 2].to_numpy()
    others = np.setdiff1d(rows, chosen)
    block = BLOCK if on_disk else 1
    blocks = np.split(others, range(block, len(others), block))
    n_blocks = (largest - len(chosen)) // block
    picked = rng.choice(len(blocks), min(n_blocks, len(blocks)), replace=False)
    return np.sort(np.concatenate([chosen, *(blocks[i] for i in picked)]))
