"""Checks of a matrix of values. Each error names the rule, what was found and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scgmvae.checks import listed
from scgmvae.compat import named_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from scgmvae.data.matrices import Matrix

__all__ = [
    "CHUNK",
    "LARGEST",
    "check_counts",
    "check_finite",
    "check_numeric",
    "check_unit_interval",
    "holds_counts",
    "matrix_of",
    "refuse_counts",
]

CHUNK = 10_000
"""Number of cells that are checked at a time: a matrix on disk is never read whole."""

N_LOOKED_AT = 1000
"""Number of rows from which it is told whether a matrix holds counts."""

LARGEST = 1e18
"""Absolute value up to which the square of a value is finite in single precision."""


def _chunks(x: Matrix) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """First row, stored values and row sums of each chunk of rows of a matrix."""
    for first in range(0, x.shape[0], CHUNK):
        block = x[first : first + CHUNK]
        if sparse.issparse(block):
            yield first, block.data, np.asarray(block.sum(axis=1)).ravel()
        else:
            block = np.asarray(block)
            yield first, block, block.sum(axis=1)


def check_numeric(x: Matrix, name: str) -> None:
    """Raise ``ValueError`` where the matrix holds no real numbers, or masked ones."""
    if np.ma.is_masked(x):
        raise ValueError(
            f"The data must be whole, but {name} has masked values. Fill them in with "
            "numpy.ma.filled, or drop the cells or genes that have them."
        )
    if x.dtype.kind not in "biuf" or x.dtype.itemsize > 8:
        raise ValueError(
            f"The data must be real numbers of at most 64 bits, but {name} is of type {x.dtype}. "
            "Convert it, for example by astype('float32')."
        )


def check_finite(x: Matrix, name: str) -> None:
    """Raise ``ValueError`` where the matrix holds NaN, infinity or what overflows in a model."""
    for _, values, _ in _chunks(x):
        if not np.isfinite(values).all():
            n_bad = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"The data must be finite numbers, but {name} holds NaN or infinite values "
                f"(at least {n_bad}). Replace them, or drop the cells or genes that have them. "
                "anndata.concat(join='outer') leaves NaN for genes that some of the data lack."
            )
        largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))
        if largest > LARGEST:
            raise ValueError(
                f"The data must lie within ±{LARGEST:g}, because a model computes in single "
                f"precision, but {name} holds a value of size {largest:.4g}. Scale it, or drop "
                "the cells or genes that have such values."
            )


def check_counts(
    adata: AnnData, layer: str | None, likelihood: str, of_model: bool = False
) -> None:
    """Raise ``ValueError`` unless a matrix holds counts, with at least one in every cell.

    Parameters
    ----------
    adata
        The data.
    layer
        Layer of the matrix, dense, sparse or backed; ``None`` is X.
    likelihood
        Name of the count likelihood.
    of_model
        Whether a model reads the matrix as it was set up, rather than being set up now.
    """
    x, name = matrix_of(adata, layer)
    empty: list[str] = []
    for first, values, sums in _chunks(x):
        if values.size and values.min() < 0:
            raise ValueError(
                f"{name} holds negative values (smallest {values.min():.4g}), so it is no count "
                f"matrix. {_where_counts_are(adata, layer, likelihood, of_model)}"
            )
        if (values != np.floor(values)).any():
            raise ValueError(
                f"{name} holds values that are no integers ({_fractions_in(x)}), so it is no "
                f"count matrix. {_where_counts_are(adata, layer, likelihood, of_model)} Estimated "
                "counts, as those of RSEM, salmon or SoupX, can be rounded: "
                f"{name} = np.rint({name})."
            )
        empty += list(adata.obs_names[first : first + len(sums)][sums == 0])
    if empty:
        raise ValueError(
            f"Every cell needs at least one count, but {len(empty)} have none in {name}: "
            f"{listed(empty)}. Drop them first, for example by "
            "scanpy.pp.filter_cells(adata, min_counts=1)."
        )


def _fractions_in(x: Matrix) -> str:
    """How many stored values of a matrix are no integers, and how far from one."""
    n_values, n_fractions, farthest, largest = 0, 0, 0.0, 0.0
    for _, values, _ in _chunks(x):
        distances = np.abs(values - np.rint(values))
        n_values += int(np.count_nonzero(values))
        n_fractions += int(np.count_nonzero(distances))
        farthest = max(farthest, float(distances.max(initial=0)))
        largest = max(largest, float(values.max(initial=0)))
    return (
        f"{n_fractions:,} of {n_values:,} that are not 0, up to {farthest:.2g} from the next; "
        f"largest value {largest:.4g}"
    )


def _where_counts_are(adata: AnnData, layer: str | None, likelihood: str, of_model: bool) -> str:
    """Sentences that say where counts belong, and which matrix of the data holds some."""
    others = {
        f"layer={key!r}": values for key, values in named_layers(adata).items() if key != layer
    }
    if layer is not None:
        others["X"] = adata.X
    named = [place for place, x in others.items() if x is not None and holds_counts(x)]
    is_raw = adata.raw is not None and holds_counts(adata.raw.X)
    target = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if of_model:
        text = f"The model was set up with counts, which it reads from {target}: put them there."
    else:
        text = (
            f"The likelihood {likelihood!r} is one of counts: name the layer that holds the raw "
            "counts with layer=..., or model values of another kind with likelihood='gaussian'."
        )
    if named:
        text += f" Whole numbers are in {' and in '.join(named)}."
    if is_raw:
        to = target if of_model else "adata.layers['counts']"
        text += f" Whole numbers are in adata.raw: {to} = adata.raw[:, adata.var_names].X."
    return text


def matrix_of(adata: AnnData, layer: str | None) -> tuple[Matrix, str]:
    """A matrix of the data, and its name in messages.

    Parameters
    ----------
    adata
        The data.
    layer
        Its layer; ``None`` is X.
    """
    if layer is None:
        return adata.X, "adata.X"
    return adata.layers[layer], f"adata.layers[{layer!r}]"


def holds_counts(matrix: Matrix) -> bool:
    """Whether the first rows of a matrix are whole numbers that are not negative."""
    rows = matrix[:N_LOOKED_AT]
    values = rows.data if sparse.issparse(rows) else np.asarray(rows)
    return bool(values.dtype.kind in "biuf" and (values >= 0).all() and (values % 1 == 0).all())


def refuse_counts(name: str, likelihood: str) -> None:
    """Raise ``ValueError``: a likelihood of counts does not suit images."""
    raise ValueError(
        f"{name} holds bytes of images, which are no counts, but the likelihood is "
        f"{likelihood!r}. Use 'bernoulli' or 'gaussian', or remove adata.uns['image_shape'] if "
        "the rows are no images."
    )


def check_unit_interval(x: Matrix, name: str) -> None:
    """Raise ``ValueError`` where a value lies outside [0, 1]."""
    for _, values, _ in _chunks(x):
        if values.size and (values.min() < 0 or values.max() > 1):
            raise ValueError(
                "The likelihood 'bernoulli' wants values in [0, 1], but those of "
                f"{name} reach from {values.min():.4g} to {values.max():.4g}. Scale them, for "
                "example by adata.X = adata.X / adata.X.max(), or use likelihood='gaussian'."
            )
