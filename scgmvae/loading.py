"""Minibatches: the registered fields of an AnnData, cut into tensors.

:class:`torch.utils.data.DataLoader` collates cell by cell and hands minibatches through a queue;
for counts in memory that costs as much as the training step. Here one slice makes one minibatch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scvi import settings
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter
from scvi.dataloaders._data_splitting import validate_data_split
from torch import Tensor

__all__ = ["MinibatchLoader", "SeededDataSplitter"]


class MinibatchLoader:
    """Iterable over minibatches of an AnnData, as dictionaries of tensors.

    Parameters
    ----------
    adata_manager
        Manager of the AnnData.
    indices
        Rows to read; ``None`` reads all.
    batch_size
        Largest number of cells in a minibatch. The cells are shared out evenly. A shuffled loader,
        which is one for training, makes no minibatch of a single cell where there are more cells,
        because batch normalisation has no value for it.
    shuffle
        Whether to draw a new order for every pass, from torch's random state.
    **ignored
        What :class:`scvi.dataloaders.AnnDataLoader` takes for its workers, which are not needed.

    Attributes
    ----------
    extra
        Further tensors by name, of as many rows as the AnnData has, that go into the minibatches.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        indices: Sequence[int] | Sequence[bool] | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        **ignored: object,
    ):
        self.dataset = adata_manager.create_torch_dataset()
        indices = np.arange(len(self.dataset)) if indices is None else np.asarray(indices)
        self.indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(int)
        self.batch_size = batch_size or settings.batch_size
        self.shuffle = shuffle
        self.extra: dict[str, Tensor] = {}

    def __len__(self) -> int:
        n_batches = -(-len(self.indices) // self.batch_size)
        return min(n_batches, max(1, len(self.indices) // 2)) if self.shuffle else n_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = self.indices
        if self.shuffle:
            order = order[torch.randperm(len(order)).numpy()]
        for rows in np.array_split(order, len(self)) if len(self) else ():
            tensors = {k: torch.from_numpy(v) for k, v in self.dataset[rows].items()}
            yield tensors | {key: values[rows] for key, values in self.extra.items()}


class SeededDataSplitter(DataSplitter):
    """Training, validation and test cells, split by a seed of its own.

    scvi-tools splits by its global seed, and without one at random.

    Parameters
    ----------
    adata_manager
        Manager of the AnnData.
    seed
        Seed of the split.
    train_size, validation_size, shuffle_set_split, external_indexing, **kwargs
        As in :class:`scvi.dataloaders.DataSplitter`.
    """

    data_loader_cls = MinibatchLoader

    def __init__(
        self,
        adata_manager: AnnDataManager,
        *,
        seed: int,
        train_size: float,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        external_indexing: list[np.ndarray] | None = None,
        **kwargs: object,
    ):
        if external_indexing is None:
            n_obs = adata_manager.adata.n_obs
            n_train, n_val = validate_data_split(n_obs, train_size, validation_size)
            order = np.arange(n_obs)
            if shuffle_set_split:
                order = np.random.default_rng(seed).permutation(n_obs)
            external_indexing = np.split(order, [n_train, n_train + n_val])
        with warnings.catch_warnings():
            # The loader shares cells out evenly, so there is no small last minibatch.
            warnings.filterwarnings("ignore", message="Last batch will have a small size")
            super().__init__(
                adata_manager,
                train_size=train_size,
                validation_size=validation_size,
                external_indexing=external_indexing,
                **kwargs,
            )
