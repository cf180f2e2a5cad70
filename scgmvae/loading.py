"""Minibatches: the registered fields of an AnnData, cut into tensors.

:class:`torch.utils.data.DataLoader` collates cell by cell and hands minibatches through a queue;
for counts in memory that costs as much as the training step. Here one slice makes one minibatch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter
from scvi.dataloaders._data_splitting import validate_data_split
from torch import Tensor

from scgmvae.genes import OBSERVED_KEY, observed_genes
from scgmvae.images import pixel_scale

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
    copies
        Expected number of times that each cell of the AnnData comes up in a pass, ``(n,)``, for a
        shuffled loader; ``None`` is once for all. In every pass a cell comes up as often as that,
        rounded up or down at random.
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
        copies: NDArray[np.floating] | None = None,
        **ignored: object,
    ):
        self.dataset = adata_manager.create_torch_dataset()
        indices = np.arange(len(self.dataset)) if indices is None else np.asarray(indices)
        self.indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(int)
        self.pixel_scale = pixel_scale(adata_manager)
        self.batch_size = batch_size or settings.batch_size
        self.shuffle = shuffle
        self.copies = None
        if shuffle and copies is not None:
            self.copies = np.cumsum(copies[self.indices])
        self.extra: dict[str, Tensor] = {}
        observed = observed_genes(adata_manager.adata)
        self.of_all_cells = {} if observed is None else {OBSERVED_KEY: torch.from_numpy(observed)}

    @property
    def n_obs_per_pass(self) -> int:
        """Cells in a pass, those that come up twice counted twice."""
        return len(self.indices) if self.copies is None else round(self.copies[-1])

    def __len__(self) -> int:
        n_obs = self.n_obs_per_pass
        n_batches = -(-n_obs // self.batch_size)
        return min(n_batches, max(1, n_obs // 2)) if self.shuffle else n_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows in np.array_split(self._order(), len(self)) if len(self) else ():
            tensors = {k: torch.from_numpy(v) for k, v in self.dataset[rows].items()}
            if self.pixel_scale != 1:
                tensors[REGISTRY_KEYS.X_KEY] *= self.pixel_scale
            tensors |= {key: values[rows] for key, values in self.extra.items()}
            yield tensors | self.of_all_cells

    def _order(self) -> NDArray[np.integer]:
        """Rows of the next pass, in order."""
        order = self.indices
        if self.copies is not None:
            # systematic resampling: evenly spaced points on the cumulated numbers of copies
            points = np.arange(self.n_obs_per_pass) + torch.rand(1, dtype=torch.double).item()
            points *= self.copies[-1] / self.n_obs_per_pass
            last = len(order) - 1  # rounding can put the last point beyond the end
            order = order[np.searchsorted(self.copies, points, side="right").clip(max=last)]
        if self.shuffle:
            order = order[torch.randperm(len(order)).numpy()]
        return order


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
