"""The registered matrix x, from which minibatches are cut: in memory, on a device, or on disk."""

from __future__ import annotations

import os
import warnings
from functools import cached_property
from typing import Any, Self

import h5py
import numpy as np
import torch
from anndata.abc import CSCDataset, CSRDataset
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from scgmvae.nn.sparse import column_sums, csr_tensor

__all__ = [
    "DenseRows",
    "RowsOnDisk",
    "SparseRows",
    "column_means",
    "is_on_disk",
    "read_rows",
    "row_sums",
    "rows_in",
]

Rows = NDArray[np.integer]

Matrix = Any
"""Cells × genes: an array, a sparse matrix, or either of them in a file."""


class SparseRows:
    """A CSR matrix whose rows can be picked.

    Parameters
    ----------
    offsets, genes, values
        Parts of the CSR matrix: row offsets ``(n + 1,)``, columns ``(nnz,)`` and values
        ``(nnz,)``, of any numeric type.
    n_genes
        G, number of genes.
    """

    def __init__(self, offsets: Tensor, genes: Tensor, values: Tensor, n_genes: int):
        self.offsets, self.genes, self.values = offsets, genes, values
        self.n_genes = n_genes

    @classmethod
    def of(cls, matrix: sparse.spmatrix | sparse.sparray) -> Self:
        """Rows of a scipy matrix; memory is shared if it is CSR and stores each value once."""
        csr = matrix.tocsr()
        if not csr.has_canonical_format:  # several values at one place stand for their sum
            csr = csr.copy()
            csr.sum_duplicates()
        offsets, genes, values = map(_tensor, (csr.indptr, csr.indices, csr.data))
        return cls(offsets, genes, values, csr.shape[1])

    @property
    def nbytes(self) -> int:
        """Size in bytes of the parts that a device would hold."""
        return self.genes.nbytes + self.values.nbytes

    def compact(self) -> Self:
        """The matrix in the smallest types that hold its values."""
        genes = self.genes.to(torch.int16 if self.n_genes <= 2**15 else torch.int32)
        return type(self)(self.offsets, genes, _smallest(self.values), self.n_genes)

    def to(self, device: torch.device) -> Self:
        """The matrix on a device."""
        # offsets stay: asking a GPU for the number of values would wait for it in every step
        return type(self)(
            self.offsets, self.genes.to(device), self.values.to(device), self.n_genes
        )

    def __getitem__(self, rows: Rows) -> Tensor:
        """The rows as a CSR tensor of floats."""
        rows = torch.from_numpy(rows)
        start = self.offsets[rows].long()
        length = self.offsets[rows + 1].long() - start
        offsets = torch.cat([length.new_zeros(1), length.cumsum(0)])
        n_values, device = int(offsets[-1]), self.values.device
        shift, length = (start - offsets[:-1]).to(device), length.to(device)
        place = torch.arange(n_values, device=device)
        place += torch.repeat_interleave(shift, length, output_size=n_values)
        genes, values = self.genes[place].long(), self.values[place].float()
        return csr_tensor(offsets.to(device), genes, values, self.n_genes)


class DenseRows:
    """A dense matrix (n, G) whose rows can be picked."""

    def __init__(self, values: Tensor):
        self.values = values

    @classmethod
    def of(cls, matrix: NDArray) -> Self:
        """Rows of a numpy array, whose memory is shared."""
        return cls(_tensor(np.ascontiguousarray(matrix)))

    @property
    def nbytes(self) -> int:
        """Size of the matrix in bytes."""
        return self.values.nbytes

    def compact(self) -> Self:
        """The matrix in the smallest type that holds its values."""
        return type(self)(_smallest(self.values))

    def to(self, device: torch.device) -> Self:
        """The matrix on a device."""
        return type(self)(self.values.to(device))

    def __getitem__(self, rows: Rows) -> Tensor:
        """The rows as floats, (n, G)."""
        return self.values[torch.from_numpy(rows).to(self.values.device)].float()


class RowsOnDisk:
    """A CSR or dense matrix in a file, some rows of which can be brought into memory.

    Parameters
    ----------
    matrix
        Backed matrix of anndata, or anything else from which slices of rows can be read.
    """

    def __init__(self, matrix: Matrix):
        self.matrix = matrix

    def load(self, rows: Rows) -> SparseRows | DenseRows:
        """Read rows into memory, see :func:`read_rows`."""
        part = self.read(rows)
        return SparseRows.of(part) if sparse.issparse(part) else DenseRows.of(part)

    def read(self, rows: Rows) -> NDArray | sparse.csr_matrix:
        """Read rows as :func:`read_rows` returns them."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        bounds = [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
        try:
            _check_whole(self.matrix)
            if isinstance(self.matrix, CSRDataset):
                return self._read_csr(rows, bounds)
            parts = [self.matrix[first:end] for first, end in bounds] or [self.matrix[:0]]
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise OSError(
                f"Rows {rows[0]} to {rows[-1]} of the data could not be read: {error}. The file "
                "must stay in place, whole and open while a model reads from it."
            ) from error
        return np.concatenate([np.asarray(part) for part in parts])

    @cached_property
    def _offsets(self) -> NDArray[np.integer]:
        """Offsets at which the values of each row of a CSR matrix begin and end, (n + 1,)."""
        return self.matrix.group["indptr"][:]

    def _read_csr(self, rows: Rows, bounds: list[tuple[int, int]]) -> sparse.csr_matrix:
        """Read runs of rows of a CSR matrix; slices of anndata take several milliseconds each."""
        ends = [(self._offsets[first], self._offsets[end]) for first, end in bounds]
        values, columns = (
            np.concatenate([part[:0], *(part[first:end] for first, end in ends)])
            for part in (self.matrix.group["data"], self.matrix.group["indices"])
        )
        lengths = self._offsets[rows + 1] - self._offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shape = (len(rows), self.matrix.shape[1])
        return sparse.csr_matrix((values, columns, offsets), shape=shape)


def is_on_disk(matrix: Matrix) -> bool:
    """Whether a registered matrix is in a file rather than in memory."""
    return not (isinstance(matrix, np.ndarray) or sparse.issparse(matrix))


def read_rows(matrix: Matrix, rows: Rows) -> NDArray | sparse.csr_matrix:
    """Rows of a registered matrix in memory.

    Parameters
    ----------
    matrix
        The registered matrix, in memory or on disk.
    rows
        Row numbers, ascending, without duplicates. On disk, neighbouring rows are read together.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    if not is_on_disk(matrix):
        return matrix[rows]
    return RowsOnDisk(matrix).read(rows)


def _check_whole(matrix: Matrix) -> None:
    """Raise ``OSError`` if an HDF5 file is gone or cut short; HDF5 would read zeros."""
    file = getattr(getattr(matrix, "group", matrix), "file", None)
    if isinstance(file, h5py.File):
        missing = file.id.get_filesize() - os.path.getsize(file.filename)
        if missing > 0:
            raise OSError(f"{file.filename} has lost its last {missing} bytes")


def rows_in(matrix: Matrix) -> SparseRows | DenseRows | RowsOnDisk:
    """The rows of a registered matrix, for minibatches to be cut from.

    Raises
    ------
    ValueError
        If a matrix on disk is stored by columns.
    """
    if isinstance(matrix, CSCDataset):
        raise ValueError(
            "A matrix on disk must be stored by rows (CSR), but this one is stored by columns "
            "(CSC), of which a minibatch would read all. Convert it once: adata.to_memory(), "
            "adata.X = adata.X.tocsr(), adata.write_h5ad(...)."
        )
    if is_on_disk(matrix):
        return RowsOnDisk(matrix)
    return SparseRows.of(matrix) if sparse.issparse(matrix) else DenseRows.of(matrix)


def row_sums(matrix: Matrix, n_at_once: int = 4096) -> NDArray[np.float64]:
    """Sums of the rows of a registered matrix, (n,), which is read a few rows at a time."""
    parts = []
    for first in range(0, matrix.shape[0], n_at_once):
        rows = np.arange(first, min(first + n_at_once, matrix.shape[0]))
        parts.append(np.asarray(read_rows(matrix, rows).sum(axis=1, dtype=np.float64)).ravel())
    return np.concatenate(parts)


def column_means(matrix: Matrix, rows: Rows, n_at_once: int = 4096) -> NDArray[np.float64]:
    """Means over rows of a registered matrix, (G,); rows ascend and are read a few at a time."""
    source = rows_in(matrix)
    total = torch.zeros(matrix.shape[1], dtype=torch.double)
    for part in np.split(rows, range(n_at_once, len(rows), n_at_once)):
        if isinstance(source, RowsOnDisk):
            x = source.load(part)[np.arange(len(part))]
        else:
            x = source[part]
        total += column_sums(x)
    return (total / len(rows)).numpy()


def _tensor(array: NDArray) -> Tensor:
    """Tensor of an array; it shares the memory if torch has its type."""
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch barely supports these
        array = array.astype(np.int64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    with warnings.catch_warnings():
        # torch warns of read-only arrays, such as those of a file; nothing here writes to them
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _smallest(values: Tensor) -> Tensor:
    """The values in the smallest type that holds them without loss."""
    if values.numel() == 0:
        return values
    for dtype in (torch.uint8, torch.int16):
        bounds = torch.iinfo(dtype)
        if values.min() >= bounds.min and values.max() <= bounds.max:
            narrow = values.to(dtype)
            if torch.equal(narrow.to(values.dtype), values):
                return narrow
    return values.float()
