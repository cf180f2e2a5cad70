"""Files of cells that the command line reads."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import anndata
import h5py
import mudata
import scanpy as sc

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

__all__ = ["read_cells"]

OTHERS = {
    "loom": "anndata.io.read_loom",
    "csv": "scanpy.read_csv",
    "tsv": "scanpy.read_text",
    "txt": "scanpy.read_text",
    "mtx": "scanpy.read_10x_mtx",
    "zarr": "anndata.read_zarr",
    "rds": "R, for example with the package zellkonverter",
}
"""Kind of a file that is not read here → what reads it."""


def read_cells(path: Path, backed: Literal["r"] | None = None) -> AnnData | MuData:
    """Read an h5ad or h5mu file, or the h5 file that Cell Ranger writes.

    Parameters
    ----------
    path
        The file. Its content, not its name, tells what it is.
    backed
        Whether values stay in an h5ad file until they are needed, as in
        :func:`anndata.read_h5ad`.

    Returns
    -------
    The cells, of an h5mu file as a MuData. Genes of the same name in a file of Cell Ranger get
    numbers.

    Raises
    ------
    ValueError
        If it is another kind of file, or cannot be read.
    """
    try:
        kind = _kind_of(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if kind not in ("h5ad", "h5mu", "10x"):
        reader = OTHERS.get(kind)
        what = f"looks like {kind}" if reader else "is neither"
        how = f"Read it with {reader}" if reader else "Read it into an AnnData"
        raise ValueError(
            "Cells are read from h5ad and h5mu files and from h5 files of Cell Ranger, but "
            f"{path} {what}. "
            f"{how}, and write that as h5ad: adata.write_h5ad('cells.h5ad')."
        )
    try:
        if kind == "h5ad":
            return anndata.read_h5ad(path, backed=backed)
        if kind == "h5mu":
            return mudata.read_h5mu(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Variable names are not unique")
            adata = sc.read_10x_h5(path)
    except Exception as error:  # whatever a damaged file makes the readers do
        raise ValueError(f"{path} cannot be read: {error}") from error
    adata.var_names_make_unique()
    return adata


def _kind_of(path: Path) -> str:
    """Kind of a file by its content, or by its name where that tells nothing."""
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            groups = set(file)
            if "mod" in groups:
                return "h5mu"
            if "obs" in groups and "var" in groups:
                return "h5ad"
            if "row_attrs" in groups:
                return "loom"
            if any(isinstance(f, h5py.Group) and "barcodes" in f for f in file.values()):
                return "10x"
        return "h5"
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix in OTHERS), "text")
