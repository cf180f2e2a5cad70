"""Minibatches: the registered fields of an AnnData, cut into tensors.

:class:`torch.utils.data.DataLoader` collates cell by cell and hands minibatches through a queue;
for counts in memory that costs as much as the training step. Here all fields become tensors once,
on the device where they fit, and one indexing makes one minibatch.
"""

from __future__ import annotations

import logging
import warnings
from inspect import signature
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.data._utils import registry_key_to_default_dtype
from scvi.dataloaders import AnnDataLoader, DataSplitter
from scvi.dataloaders._data_splitting import validate_data_split
from torch import Tensor
from torch.utils.data import DataLoader

from scgmvae.checks import check_rate, check_seed, check_whole, is_number, listed
from scgmvae.data.genes import observed_genes
from scgmvae.data.images import pixel_scale
from scgmvae.data.keys import CELLS_KEY, GUIDE_KEY, OBSERVED_KEY, PANEL_KEY, PANELS_KEY
from scgmvae.data.matrices import RowsOnDisk, rows_in
from scgmvae.data.modalities import panels_of
from scgmvae.nn.sparse import is_sparse, pinned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray
    from scvi.data import AnnDataManager
    from scvi.module.base import BaseModuleClass

logger = logging.getLogger(__name__)

__all__ = ["MinibatchLoader", "SeededDataSplitter", "in_layout", "stacked"]


CELLS_IN_MEMORY = 16_384
"""Number of cells that are read at once from data on disk."""

BLOCK = 64
"""Number of neighbouring cells on disk that are read together in shuffled passes."""

IGNORED = {name for loader in (AnnDataLoader, DataLoader) for name in signature(loader).parameters}
"""Settings of loaders with workers, which are accepted and ignored."""

DEVICE_SHARE = 0.5
"""Share of a GPU's free memory that data may take."""


class MinibatchLoader:
    """Iterable over minibatches of an AnnData, as dictionaries of tensors.

    Parameters
    ----------
    adata_manager
        Manager of the AnnData. A matrix on disk is read in parts.
    indices
        Rows to read; ``None`` reads all.
    batch_size
        Largest number of cells in a minibatch. The cells are shared out evenly. A shuffled loader,
        which is one for training, makes no minibatch of a single cell where there are more cells,
        because batch normalisation has no value for it.
    shuffle
        Whether to draw a new order for every pass, from torch's random state. On disk blocks of
        64 neighbouring cells are drawn, and the cells that are in memory together are mixed.
    copies
        Expected number of times that each cell of the AnnData comes up in a pass, ``(n,)``, for a
        shuffled loader; ``None`` is once for every cell. In every pass the number of times is
        rounded up or down at random.
    sparse
        Whether minibatches hold x as a CSR tensor, in place of a dense one.
    cells_in_memory
        Number of cells that are read at once from a matrix on disk, which bounds the memory.
    **ignored
        Arguments of :class:`scvi.dataloaders.AnnDataLoader` for its workers; there are none here.

    Raises
    ------
    TypeError
        If there is no such argument.
    ValueError
        If a number is not a whole number of at least 1.

    Attributes
    ----------
    extra
        Further tensors by name, of as many rows as the AnnData has, that go into the minibatches.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        copies: NDArray[np.floating] | None = None,
        sparse: bool = False,
        cells_in_memory: int = CELLS_IN_MEMORY,
        **ignored: object,
    ):
        unknown = ignored.keys() - IGNORED
        if unknown:
            raise TypeError(
                f"datasplitter_kwargs has settings that do not exist: {listed(sorted(unknown))}."
            )
        batch_size = settings.batch_size if batch_size is None else batch_size
        check_whole(1, batch_size=batch_size, cells_in_memory=cells_in_memory)
        adata = adata_manager.adata
        rows = np.arange(adata.n_obs) if indices is None else np.asarray(indices)
        self.indices = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(int)
        self.x = rows_in(adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))
        self.fields = {
            key: _field_tensor(adata_manager, key)
            for key in adata_manager.data_registry
            if key != REGISTRY_KEYS.X_KEY
        }
        self.pixel_scale = pixel_scale(adata_manager)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.copies = None
        if shuffle and copies is not None:
            self.copies = np.cumsum(copies[self.indices])
        self.sparse = sparse
        self.pin_memory = False
        self.rank, self.n_ranks, self.seed = 0, 1, 0
        self.cells_in_memory = cells_in_memory
        self.extra: dict[str, Tensor] = {}
        self.shared: dict[str, Tensor] = {}
        observed, panels = observed_genes(adata), panels_of(adata)
        if observed is not None:
            self.shared[OBSERVED_KEY] = torch.from_numpy(observed)
        if panels is not None:
            self.fields[PANEL_KEY] = torch.from_numpy(panels[0]).unsqueeze(1)
            self.shared[PANELS_KEY] = torch.from_numpy(panels[1])

    @property
    def n_obs_per_pass(self) -> int:
        """Number of cells in a pass; a cell that comes up twice is counted twice."""
        return len(self.indices) if self.copies is None else round(self.copies[-1])

    @property
    def is_on_disk(self) -> bool:
        """Whether x is read from a file in every pass."""
        return isinstance(self.x, RowsOnDisk)

    def __len__(self) -> int:
        n_obs = self.n_obs_per_pass
        n_batches = -(-n_obs // (self.batch_size * self.n_ranks))
        return min(n_batches, max(1, n_obs // (2 * self.n_ranks))) if self.shuffle else n_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if not len(self):
            return
        minibatches = np.array_split(self._order(), len(self) * self.n_ranks)
        minibatches = minibatches[self.rank * len(self) : (self.rank + 1) * len(self)]
        if not isinstance(self.x, RowsOnDisk):
            for rows in minibatches:
                yield self._minibatch(rows, self.x[rows])
            return
        n_at_once = max(1, self.cells_in_memory // len(minibatches[0]))
        for first in range(0, len(minibatches), n_at_once):
            part = minibatches[first : first + n_at_once]
            part_rows = np.concatenate(part)
            in_memory = np.unique(part_rows)
            x = self.x.load(in_memory)
            if self.shuffle:
                part_rows = _shuffled(part_rows)
            for rows in np.split(part_rows, np.cumsum([len(rows) for rows in part[:-1]])):
                yield self._minibatch(rows, x[np.searchsorted(in_memory, rows)])

    def _minibatch(self, rows: NDArray[np.integer], x: Tensor) -> dict[str, Tensor]:
        if self.pixel_scale != 1:
            x = x * self.pixel_scale
        x = in_layout(x, self.sparse)
        places = torch.from_numpy(rows)
        fields = {key: values[places] for key, values in (self.fields | self.extra).items()}
        if self.pin_memory:
            x = pinned(x)
        return {REGISTRY_KEYS.X_KEY: x, CELLS_KEY: places} | fields | self.shared

    def move_to(self, device: torch.device) -> None:
        """Keep on a GPU what all minibatches share, and x, in the smallest types, where it fits.

        Parameters
        ----------
        device
            The device that the minibatches are for. A CPU needs nothing.
        """
        if device.type != "cuda":
            return
        self.shared = {key: values.to(device) for key, values in self.shared.items()}
        # from pinned memory a minibatch is sent while the GPU works on the one before
        self.pin_memory = True
        if isinstance(self.x, RowsOnDisk):
            return
        x = self.x.compact()
        free, _ = torch.cuda.mem_get_info(device)
        if x.nbytes > DEVICE_SHARE * free:
            logger.info(
                "The data (%.1f GB) do not fit into half of the GPU's free memory (%.1f GB): "
                "minibatches are sent there one by one.",
                x.nbytes / 1e9,
                free / 1e9,
            )
            return
        self.x, self.pin_memory = x.to(device), False

    def show_only(self, features: NDArray[np.bool_]) -> None:
        """Count all other features as not measured from now on.

        Parameters
        ----------
        features
            Which features stay, ``(G,)``, whole modalities.
        """
        if PANELS_KEY not in self.shared:
            self.fields[PANEL_KEY] = torch.zeros_like(self.fields[REGISTRY_KEYS.BATCH_KEY])
            self.shared[PANELS_KEY] = torch.ones(1, len(features), dtype=torch.bool)
        self.shared[PANELS_KEY] = self.shared[PANELS_KEY] & torch.from_numpy(features)

    def share_out(self, rank: int, n_ranks: int, seed: int) -> None:
        """Give this process its part of the minibatches; all processes call this alike.

        Parameters
        ----------
        rank, n_ranks
            Number of this process, and number of all processes.
        seed
            Seed of the order, which has to be the same in all processes.
        """
        self.rank, self.n_ranks, self.seed = rank, n_ranks, seed

    def _order(self) -> NDArray[np.integer]:
        """Rows of the next pass, in order."""
        if self.n_ranks == 1:
            return self._drawn_order()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            self.seed += 1  # the next pass has another order
            return self._drawn_order()

    def _drawn_order(self) -> NDArray[np.integer]:
        """Rows in an order that is drawn from torch's random state."""
        order = self.indices
        if self.copies is not None:
            # systematic resampling: evenly spaced points on the cumulated numbers of copies
            points = np.arange(self.n_obs_per_pass) + torch.rand(1, dtype=torch.double).item()
            points *= self.copies[-1] / self.n_obs_per_pass
            last = len(order) - 1  # rounding can put the last point beyond the end
            order = order[np.searchsorted(self.copies, points, side="right").clip(max=last)]
        if not self.shuffle:
            return order
        if not self.is_on_disk:
            return _shuffled(order)
        # neighbours stay together here, and are mixed with others once they are in memory
        blocks = np.split(np.sort(order), range(BLOCK, len(order), BLOCK))
        return np.concatenate([blocks[i] for i in torch.randperm(len(blocks)).tolist()])


def stacked(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, NDArray]:
    """Results of minibatches, concatenated by name.

    The arrays grow in place, because a list of parts would fragment the memory.

    Parameters
    ----------
    parts
        Name → tensor ``(n_i, ...)`` of each minibatch.

    Returns
    -------
    Name → array ``(n, ...)``; empty where there is no minibatch.

    Examples
    --------
    >>> stacked([{"z": torch.ones(2, 1)}, {"z": torch.zeros(1, 1)}])["z"].ravel().tolist()
    [1.0, 1.0, 0.0]
    """
    gathered: dict[str, NDArray] = {}
    n = end = 0
    for part in parts:
        for name, value in part.items():
            array = value.cpu().numpy()
            end = n + len(array)
            # in C order: a longer array keeps the memory of its rows only then
            rows = gathered.setdefault(name, np.empty_like(array, order="C"))
            if end > len(rows):
                longer = end + min(end, CELLS_IN_MEMORY)
                rows.resize((longer, *rows.shape[1:]), refcheck=False)
            rows[n:end] = array
        n = end
    for rows in gathered.values():
        rows.resize((n, *rows.shape[1:]), refcheck=False)
    return gathered


def in_layout(x: Tensor, sparse: bool) -> Tensor:
    """The matrix x as a CSR tensor, or as a dense one."""
    if not sparse:
        return x if x.layout is torch.strided else x.to_dense()
    return x if is_sparse(x) else x.to_sparse_csr()


def _shuffled(order: NDArray[np.integer]) -> NDArray[np.integer]:
    return order[torch.randperm(len(order)).numpy()]


def _field_tensor(manager: AnnDataManager, key: str) -> Tensor:
    """A registered field of the cells as a tensor, (n, any)."""
    dtype = registry_key_to_default_dtype(key)
    return torch.from_numpy(np.array(manager.get_from_registry(key), dtype=dtype))


def _three_parts(parts: Sequence[ArrayLike | None]) -> list[NDArray[np.int64]]:
    """Rows of training, validation and test cells; the last two may be left out or ``None``."""
    given = [np.asarray([] if rows is None else rows) for rows in parts]
    whole = all(rows.ndim == 1 and (rows.dtype.kind in "iu" or not len(rows)) for rows in given)
    if not whole or not 1 <= len(given) <= 3:
        described = ", ".join(f"{rows.dtype} {rows.shape}" for rows in given)
        raise ValueError(
            "external_indexing must be one to three arrays of row numbers, of training, "
            f"validation and test cells, but it is {len(given)} arrays: {described}. Of a mask "
            "give numpy.flatnonzero(mask), and of names adata.obs_names.get_indexer(names)."
        )
    rows = [part.astype(np.int64) for part in given]
    return rows + [np.array([], dtype=np.int64)] * (3 - len(rows))


class SeededDataSplitter(DataSplitter):
    """Splits cells into training, validation and test cells by a seed of its own.

    scvi-tools splits by its global seed, and without one at random.

    Parameters
    ----------
    adata_manager
        Manager of the AnnData.
    seed
        Seed of the split.
    train_size, validation_size, shuffle_set_split, external_indexing, **kwargs
        As in :class:`scvi.dataloaders.DataSplitter`.

    Raises
    ------
    ValueError
        If a size is not a share, rows are missing, or there are fewer than two training cells.
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
        check_seed(seed)
        self.seed = seed
        self.n_obs = n_obs = adata_manager.adata.n_obs
        if not (is_number(train_size) and 0 < train_size <= 1):
            raise ValueError(
                f"train_size must be a share above 0 and at most 1, but it is {train_size!r}."
            )
        if validation_size is not None:
            check_rate(validation_size=validation_size)
        if external_indexing is None:
            n_train, n_val = validate_data_split(n_obs, train_size, validation_size)
            order = np.arange(n_obs)
            if shuffle_set_split:
                order = np.random.default_rng(seed).permutation(n_obs)
            external_indexing = np.split(order, [n_train, n_train + n_val])
        external_indexing = _three_parts(external_indexing)
        rows = np.concatenate(external_indexing)
        if not np.array_equal(np.sort(rows), np.arange(n_obs)):
            raise ValueError(
                "external_indexing must have every row of the data once, in arrays of training, "
                f"validation and test cells, but it has {len(np.unique(rows))} different numbers "
                f"in {len(rows)}, and there are {n_obs} rows."
            )
        if len(external_indexing[0]) < 2:
            raise ValueError(
                "Training needs two cells or more, because batch normalisation has no value for "
                f"one, but of {n_obs} cells there are {len(external_indexing[0])} to train on."
            )
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

    def train_dataloader(self) -> MinibatchLoader:
        """Loader of the training cells, which keeps their x on a GPU where there is one."""
        loader = super().train_dataloader()
        if self.trainer is not None:
            loader.move_to(self.trainer.strategy.root_device)
            # an earlier part of the training may have ended at this epoch
            seed = self.seed + self.trainer.current_epoch
            loader.share_out(self.trainer.global_rank, self.trainer.world_size, seed)
        return loader

    def guide_by(self, module: BaseModuleClass, guide: NDArray) -> None:
        """Guide the training cells from now on.

        Parameters
        ----------
        module
            The module whose mixture has started.
        guide
            Components of the cells: codes ``(n,)``, −1 where one has none, or probabilities
            ``(n, K)``, 0 where one has none.
        """
        self.trainer.train_dataloader.extra[GUIDE_KEY] = torch.from_numpy(guide)
