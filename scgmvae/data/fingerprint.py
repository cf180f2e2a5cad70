"""What registered data were like, so that changes made in place are seen before they are read.

An AnnData can be normalised, subset or edited in place at any time, and nothing tells the models
that read it. Comparing all values each time would cost as much as reading them, so the matrix is
compared by the weighted sums of a few rows, and columns of obs are compared whole.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pandas as pd
from anndata.abc import CSCDataset

from scgmvae.compat import named_layers
from scgmvae.data.categories import names_of
from scgmvae.data.images import scale_of
from scgmvae.data.matrices import is_on_disk, read_rows
from scgmvae.data.matrix_checks import holds_counts
from scgmvae.data.registry import Setup

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scvi.data import AnnDataManager

    from scgmvae.data.matrices import Matrix

__all__ = ["Change", "change_of", "remember", "sums_of_some_rows"]

N_ROWS, N_ROWS_ON_DISK = 64, 4
"""Number of rows of the matrix that are compared."""

AS_THEY_ARE = (
    "To read the cells as they are now, pass a copy of it: adata.copy(). To train on them, make a "
    "new model of such a copy."
)


class Change(NamedTuple):
    """What is different from when data were registered."""

    what: str
    """What has changed, as a clause."""
    remedy: str
    """What to do, as a sentence."""
    is_order: bool = False
    """Whether nothing but the order of the genes has changed."""


class Fingerprint(NamedTuple):
    """What registered data were like."""

    layer: str | None
    """Layer of the matrix; ``None`` is X."""
    cells: pd.Index
    """Names of the cells, (n,)."""
    genes: pd.Index
    """Names of the genes, (G,)."""
    rows: NDArray[np.integer]
    """Rows that are compared, ascending."""
    weights: NDArray[np.float64]
    """Weight of each gene in the sums, (G,)."""
    sums: NDArray[np.float64]
    """Weighted sums of the rows."""
    columns: dict[str, pd.api.extensions.ExtensionArray | NDArray]
    """Copies of the registered columns of obs."""
    labels_key: str | None
    """The one that holds labels."""
    scale: float
    """Factor of the values, which is that of bytes for images."""
    is_whole: bool
    """Whether the values of the rows are whole numbers."""

    @classmethod
    def of(cls, manager: AnnDataManager) -> Self:
        """Fingerprint of the data of a manager."""
        adata, setup = manager.adata, Setup(manager.registry)
        x = _matrix_in(adata, setup.layer)
        rows, weights = _drawn(x, adata.shape)
        columns = {n: _values(adata.obs[n]).copy() for n in setup.columns if n in adata.obs}
        made = cls(
            layer=setup.layer,
            cells=adata.obs_names,
            genes=adata.var_names,
            rows=rows,
            weights=weights,
            sums=weights,
            columns=columns,
            labels_key=setup.arguments.get("labels_key"),
            scale=scale_of(adata, x),
            is_whole=holds_counts(read_rows(x, rows)) if _is_readable(x) else False,
        )
        return made._replace(sums=made.sums_of(x))

    def sums_of(self, x: Matrix) -> NDArray[np.float64]:
        """Weighted sums of the rows of a matrix, whatever its layout and type."""
        if not _is_readable(x):
            return np.zeros(len(self.rows))
        return np.asarray(read_rows(x, self.rows) @ self.weights).ravel()


def sums_of_some_rows(x: Matrix, n_rows: int | None = None) -> NDArray[np.float64]:
    """Weighted sums of a few rows of a matrix, which tell whether it was changed in place.

    Parameters
    ----------
    x
        Matrix, ``(n, G)``.
    n_rows
        Number of rows; ``None`` reads fewer from disk.
    """
    rows, weights = _drawn(x, x.shape, n_rows)
    return np.asarray(read_rows(x, rows) @ weights).ravel()


def _drawn(
    x: Matrix, shape: tuple[int, int], n_rows: int | None = None
) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Rows of a matrix that are compared, ascending, and the weight of each gene, (G,)."""
    rng, (n_obs, n_vars) = np.random.default_rng(0), shape
    if n_rows is None:
        n_rows = N_ROWS_ON_DISK if is_on_disk(x) else N_ROWS
    n_rows = min(n_obs, n_rows)
    return np.sort(rng.choice(n_obs, n_rows, replace=False)), rng.uniform(1, 2, n_vars)


def _is_readable(x: Matrix) -> bool:
    """Whether a model can be made of a matrix: of real numbers that are not stored by columns."""
    return x.dtype.kind in "biuf" and not isinstance(x, CSCDataset)


def _matrix_in(adata: AnnData, layer: str | None) -> Matrix | None:
    """The registered matrix as it is now; ``None`` where it is gone."""
    return adata.X if layer is None else adata.layers.get(layer)


def _values(column: pd.Series) -> NDArray | pd.api.extensions.ExtensionArray:
    """Values of a column, not copied."""
    return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array


KEPT_AS = "_scgmvae_fingerprint"
"""Attribute of a manager that keeps the fingerprint, also in copies and pickles of a model."""


def remember(manager: AnnDataManager) -> None:
    """Keep what the data of a manager are like now.

    Parameters
    ----------
    manager
        A manager whose fields are registered.
    """
    setattr(manager, KEPT_AS, Fingerprint.of(manager))


def change_of(manager: AnnDataManager, *, to_train: bool = False) -> Change | None:
    """What is different from when the data of a manager were registered; ``None`` if nothing.

    Parameters
    ----------
    manager
        A manager. One that was not remembered is from now on.
    to_train
        Whether the labels count as well, which nothing else reads.
    """
    before: Fingerprint | None = getattr(manager, KEPT_AS, None)
    if before is None:
        remember(manager)
        return None
    adata = manager.adata
    return (
        _change_of_cells(before, adata)
        or _change_of_genes(before, adata)
        or _change_of_columns(before, adata, to_train)
        or _change_of_values(before, adata)
    )


def _change_of_cells(before: Fingerprint, adata: AnnData) -> Change | None:
    now = adata.obs_names
    if len(now) != len(before.cells):
        what = f"it has {len(now):,} cells in place of {len(before.cells):,}"
    elif now is before.cells or now.equals(before.cells) or len(now.difference(before.cells)):
        return None  # other names alone are no harm
    else:
        what = "its cells are in another order"
    return Change(what, AS_THEY_ARE)


def _change_of_genes(before: Fingerprint, adata: AnnData) -> Change | None:
    now = adata.var_names
    if now is before.genes or now.equals(before.genes):
        return None
    remedy = (
        "Choose genes before a model is made: make a new model of the data as they are now, or "
        "give this one data with its genes, model.adata = ..."
    )
    if len(now) == len(before.genes) and _has_values(before, adata):
        place = int(np.flatnonzero(now != before.genes)[0])
        return Change(
            f"its genes have other names, for example {now[place]!r} in place of "
            f"{before.genes[place]!r}",
            "Put the former names back, adata.var_names = model.get_var_names(), or rename genes "
            "before a model is made.",
        )
    gone = len(before.genes.difference(now))
    if gone or len(now) != len(before.genes):
        return Change(
            f"it has {len(now):,} genes, and {gone:,} of the {len(before.genes):,} that the model "
            "reads are gone",
            remedy,
        )
    places = before.genes.get_indexer_for(now)
    if not _has_values(before._replace(weights=before.weights[places]), adata):
        return Change("its genes are in another order, and have other values", remedy)
    return Change("its genes are in another order", "", is_order=True)


def _change_of_columns(before: Fingerprint, adata: AnnData, to_train: bool) -> Change | None:
    for name, values in before.columns.items():
        if name == before.labels_key and not to_train:
            continue
        if name not in adata.obs:
            return Change(f"its obs column {name!r} is gone", "Put it back.")
        if (is_new := _differences(values, adata.obs[name])).any():
            row = int(np.flatnonzero(is_new)[0])
            what = (
                f"its obs column {name!r} has other values for {int(is_new.sum()):,} cells, for "
                f"example {adata.obs[name].iloc[row]!r} in place of {values[row]!r} for "
                f"{adata.obs_names[row]!r}"
            )
            is_missing = bool(adata.obs[name].isna().any())
            return Change(what, "Put the former values back." if is_missing else AS_THEY_ARE)
    return None


def _differences(
    before: NDArray | pd.api.extensions.ExtensionArray, column: pd.Series
) -> NDArray[np.bool_]:
    """Cells whose value in a column has changed, (n,)."""
    now = _values(column)
    if isinstance(before, pd.Categorical) and isinstance(now, pd.Categorical):
        if now.categories.equals(before.categories):
            return now.codes != before.codes
    elif column.dtype.kind == before.dtype.kind == "f":
        return ~np.isclose(now, before, rtol=1e-6, atol=0, equal_nan=True)
    elif isinstance(before, np.ndarray) and isinstance(now, np.ndarray):
        with suppress(TypeError):  # of pandas' NA, which has no truth
            is_new = now != before  # quick, but 0 and "0" are different here
            if not is_new.any():
                return is_new
    former = names_of(pd.Series(before))
    names = names_of(column, set(former))
    return np.zeros(len(names), dtype=bool) if _are_renamed(former, names) else names != former


def _are_renamed(former: NDArray[np.object_], names: NDArray[np.object_]) -> bool:
    """Whether categories have other names and the same cells, which is no harm."""
    pairs = set(zip(former, names, strict=True))
    olds, news = {old for old, _ in pairs}, {new for _, new in pairs}
    is_same_partition = len(pairs) == len(olds) == len(news) and "nan" not in news
    return is_same_partition and all(new == old or new not in olds for old, new in pairs)


def _change_of_values(before: Fingerprint, adata: AnnData) -> Change | None:
    if (
        _has_values(before, adata)
        and scale_of(adata, _matrix_in(adata, before.layer)) == before.scale
    ):
        return None
    name = "X" if before.layer is None else f"layers[{before.layer!r}]"
    if _matrix_in(adata, before.layer) is None:
        return Change(f"its {name} is gone", f"Put the values back into adata.{name}.")
    if _has_values(before, adata):
        return Change(
            f"adata.{name} holds values of another unit than it did: bytes of images stand for "
            "values from 0 to 1 where adata.uns['image_shape'] says that they are images",
            "Put the bytes, and adata.uns['image_shape'], back.",
        )
    remedy = (
        f"Put the former values back into adata.{name}, or give the model data that have them, "
        "model.adata = ..."
    )
    places = [key for key in named_layers(adata) if _has_values(before._replace(layer=key), adata)]
    if places:
        remedy += f" They are in a layer: adata.{name} = adata.layers[{places[0]!r}].copy()."
    if before.layer is None and before.is_whole:
        remedy += (
            " For the next model keep counts in a layer of their own, adata.layers['counts'] = "
            "adata.X.copy() before normalising, and name it where the data are set up: "
            "layer='counts'."
        )
    return Change(f"adata.{name} has other values than it had then", remedy)


def _has_values(before: Fingerprint, adata: AnnData) -> bool:
    """Whether the sums are the same but for rounding, as after a change of type."""
    x = _matrix_in(adata, before.layer)
    if x is None:
        return False
    return np.allclose(before.sums_of(x), before.sums, rtol=1e-5, atol=1e-8, equal_nan=True)
