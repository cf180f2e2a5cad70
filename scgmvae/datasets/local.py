"""Real counts without a download: a file that scanpy ships, and a local collection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

from scgmvae.compat import mudata_contained

if TYPE_CHECKING:
    from mudata import MuData
    from numpy.typing import NDArray

__all__ = ["load", "pbmc68k_reduced"]

DATA_DIR = "SCGMVAE_DATA_DIR"  # environment variable that names the folder of local files
_PBMC_TARGET_SUM = 1e4  # counts per cell after the normalisation of the bundled file
_PBMC_HALF_DIGIT = 5e-4  # its log values are rounded to three decimals


def pbmc68k_reduced() -> ad.AnnData:
    r"""Real UMI counts of 700 blood cells, recovered from a file that scanpy ships.

    scanpy's ``sc.datasets.pbmc68k_reduced()`` holds scaled values in ``X`` and, in ``.raw.X``,
    :math:`v = \log(1 + 10^4 x / N)` rounded to three decimals, with the UMI count :math:`x` and
    the cell's total :math:`N` over all genes, which is kept exactly in ``obs["n_counts"]``. So
    :math:`x` is the integer nearest to :math:`(e^v - 1) N / 10^4`.

    Returns
    -------
    anndata.AnnData
        700 cells × 765 genes. ``X``: UMI counts, float32 CSR (at least 342 per cell).
        ``obs``: ``"bulk_labels"`` (10 cell types, by correlation with purified populations),
        ``"louvain"`` (11 clusters), ``"phase"`` (of the cell cycle) and ``"n_counts"`` (the
        cell's UMIs over all genes, of which ``X`` has a selection). Nothing else is carried over.

    Raises
    ------
    RuntimeError
        If an entry of the bundled file is not such a value: no count, or a recovered count that
        does not give the stored log value back to within half a unit of its last decimal.

    Notes
    -----
    The recovery is unique: log values of neighbouring counts differ by more than 0.0035 up to
    the largest count here (259), seven times the half unit. The smallest entry of each
    cell, which is one count in all 700 cells, would give the same counts, but as
    it is itself rounded, its multiples miss the integers by up to 0.11.

    References
    ----------
    Zheng et al. (2017), Massively parallel digital transcriptional profiling of single cells.

    Examples
    --------
    >>> adata = pbmc68k_reduced()
    >>> adata.shape, int(adata.X.sum())
    ((700, 765), 486651)
    """
    source = sc.datasets.pbmc68k_reduced()
    totals = source.obs["n_counts"].to_numpy()
    return ad.AnnData(
        _counts_from_log(source.raw.X, totals),
        obs=source.obs[["bulk_labels", "louvain", "phase"]]
        .assign(n_counts=totals.astype(np.int64))
        .rename_axis(None),
        var=pd.DataFrame(index=source.raw.var_names.rename(None)),
    )


def _counts_from_log(log_values: sp.spmatrix, totals: NDArray) -> sp.csr_matrix:
    """Integer counts (float32 CSR) from rounded log(1 + 1e4 count / total), all ``(n, G)``."""
    counts = sp.csr_matrix(log_values, dtype=np.float64, copy=True)
    stored = counts.data
    per_count = np.repeat(_PBMC_TARGET_SUM / totals.astype(np.float64), np.diff(counts.indptr))
    recovered = np.rint(np.expm1(stored) / per_count)
    error = np.abs(np.log1p(recovered * per_count) - stored)
    # float32 storage adds 2.4e-7 to a value near 6, hence the small allowance.
    wrong = ~(error <= _PBMC_HALF_DIGIT + 1e-6) | (recovered < 1)
    if wrong.any():
        raise RuntimeError(
            "Every stored value must be log(1 + 1e4 count / total), rounded to three decimals, of "
            f"a whole positive count, but {wrong.sum()} of {wrong.size} are not (largest error "
            f"{error.max():.2g}). The installed scanpy bundles another version of this file; "
            "please report its version."
        )
    counts.data = recovered.astype(np.float32)
    return counts


def load(name: str) -> ad.AnnData | MuData:
    """Read a dataset of the local collection by its name.

    Looks for ``<folder>/<name>.h5ad``, then for ``<folder>/counts/<name>.h5ad``, in the folder
    that the environment variable ``SCGMVAE_DATA_DIR`` names, and at both places for a file of
    several modalities, ``<name>.h5mu``.

    Parameters
    ----------
    name
        File name without folder and without ``.h5ad`` or ``.h5mu``.

    Returns
    -------
    anndata.AnnData or mudata.MuData
        The file as it is, in memory; a MuData of an ``.h5mu`` file.

    Raises
    ------
    ValueError
        If ``name`` is empty or has a path separator.
    FileNotFoundError
        If the variable is not set, or no such file is there; the message lists what is.

    Examples
    --------
    >>> load("../elsewhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: name must be a file name without folder, but received '../elsewhere'; ...
    """
    if not isinstance(name, str) or not name or "/" in name or "\\" in name:
        raise ValueError(
            f"name must be a file name without folder, but received {name!r}; set "
            f"{DATA_DIR} to the folder and pass the name alone."
        )
    folder = os.environ.get(DATA_DIR)
    if not folder:
        raise FileNotFoundError(
            f"Cannot look for {name!r}: the environment variable {DATA_DIR} is not set. "
            f"Set it to a folder with {name}.h5ad or counts/{name}.h5ad."
        )
    folders = [Path(folder).expanduser(), Path(folder).expanduser() / "counts"]
    candidates = [path / f"{name}.h5ad" for path in folders]
    for path in candidates:
        if path.is_file():
            return ad.read_h5ad(path)
    for path in candidates:
        if path.with_suffix(".h5mu").is_file():
            import mudata

            with mudata_contained():
                return mudata.read_h5mu(path.with_suffix(".h5mu"))
    available = sorted({path.stem for parent in folders for path in parent.glob("*.h5[am][du]")})
    raise FileNotFoundError(
        f"No dataset {name!r}: neither {candidates[0]} nor {candidates[1]} exists, nor "
        f"one of {name}.h5mu. Available: {', '.join(available) or 'none'}. Pass one of these "
        f"names, add the file, or set {DATA_DIR} to another folder."
    )
