"""Figures of expression: two groups of cells gene by gene, real and generated ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import sparse

from scgmvae.checks import check_whole, listed
from scgmvae.data.normalization import mean_expression as mean_of_genes
from scgmvae.data.normalization import r_squared
from scgmvae.data.validation import check_layer
from scgmvae.plotting._style import PALETTE, WIDTH, new_axes, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

__all__ = ["generated", "mean_expression"]

REAL, MODELLED = PALETTE[8], PALETTE[0]


def mean_expression(
    real: AnnData,
    predicted: AnnData,
    genes: int | Sequence[str] = 10,
    *,
    layer: str | None = None,
    predicted_layer: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean expression of predicted against real cells, gene by gene.

    Parameters
    ----------
    real
        Measured cells, for example the stimulated ones of a type.
    predicted
        Cells to compare with them, for example of
        :meth:`scgmvae.SCGMVAE.predict_counterfactual`.
    genes
        Genes to name in the figure, or the number of genes to name, furthest from the diagonal.
    layer, predicted_layer
        Layers with the counts; ``None`` is ``X``.
    ax
        Axes to draw into.

    Returns
    -------
    Axes: mean log(1 + counts per 10,000) of each gene that both have, with the diagonal, and R²,
    the squared correlation over these genes, in the title.

    Raises
    ------
    KeyError
        If there is no such layer, or a gene to name is not in both.
    ValueError
        If fewer than two genes are in both.
    """
    means = _means_of_shared_genes(real, predicted, layer, predicted_layer)
    if isinstance(genes, int | np.integer):
        check_whole(0, genes=genes)
        distance = (means["predicted"] - means["real"]).abs()
        named = list(distance.sort_values(ascending=False, kind="stable").index[:genes])
    else:
        named = list(genes)
    unknown = [gene for gene in named if gene not in means.index]
    if unknown:
        raise KeyError(
            f"Genes to name must be in both data, but these are not: {listed(unknown)}."
        )
    axis = new_axes(WIDTH) if ax is None else ax
    _regression(means["real"], means["predicted"], axis)
    axis.set_title(f"R² = {r_squared(means['real'], means['predicted']):.3f}", fontsize=9)
    axis.set_xlabel("real, mean log(1 + counts per 10,000)", fontsize=8)
    axis.set_ylabel("predicted", fontsize=8)
    _name_points(means.loc[named], axis)
    return axis


def generated(real: AnnData, generated: AnnData, *, layer: str | None = None) -> Figure:
    """Generated against real counts: library sizes, and three statistics of each gene.

    Parameters
    ----------
    real
        Measured cells.
    generated
        Cells with counts in ``X``, as of :meth:`scgmvae.SCGMVAE.sample`.
    layer
        Layer of ``real`` with the counts; ``None`` is ``X``.

    Returns
    -------
    Figure of four panels: counts per cell; and of each gene that both have the mean and the
    variance of its counts, as log10(1 + value), and the share of cells without it, with the
    squared correlation over genes.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        If fewer than two genes are in both.
    """
    shared = _shared_genes(real, generated)
    counts = [_counts(real, layer, shared), _counts(generated, None, shared)]
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, WIDTH), layout="constrained")
    sizes = [np.log10(1 + np.asarray(x.sum(axis=1)).ravel()) for x in counts]
    bins = np.histogram_bin_edges(np.concatenate(sizes), 30)
    for size, name, color in zip(sizes, ("real", "generated"), (REAL, MODELLED), strict=True):
        weights = np.full(len(size), 1 / len(size))
        axes[0, 0].hist(
            size, bins, weights=weights, histtype="step", color=color, label=name, linewidth=1.2
        )
    axes[0, 0].set_title("counts per cell, log10", fontsize=8)
    axes[0, 0].set_ylabel("share of the cells", fontsize=7)
    axes[0, 0].margins(y=0.4)
    axes[0, 0].legend(fontsize=6, frameon=False, loc="upper center", ncols=2, columnspacing=1)
    statistics = {"mean, log10": _log_mean, "variance, log10": _log_variance, "zeros": _zeros}
    for axis, (title, statistic) in zip(axes.flat[1:], statistics.items(), strict=True):
        a, b = map(statistic, counts)
        _regression(a, b, axis)
        axis.set_title(title, fontsize=8)
        r2 = f"R² = {r_squared(a, b):.2f}"
        axis.text(0.05, 0.95, r2, transform=axis.transAxes, va="top", fontsize=7)
        axis.set_xlabel("real", fontsize=7)
        axis.set_ylabel("generated", fontsize=7)
    for axis in axes.flat:
        axis.tick_params(labelsize=6)
    return figure


def _shared_genes(a: AnnData, b: AnnData) -> pd.Index:
    """Genes that both data have, in the order of the first."""
    shared = a.var_names[a.var_names.isin(b.var_names)]
    if len(shared) < 2:
        raise ValueError(
            "Cells are compared by the genes that both data have, at least two, but they share "
            f"{len(shared)}. Are the genes named alike (symbols or Ensembl IDs)?"
        )
    return shared


def _means_of_shared_genes(
    real: AnnData, predicted: AnnData, layer: str | None, predicted_layer: str | None
) -> pd.DataFrame:
    """Mean expression in the columns ``real`` and ``predicted``, a row per shared gene."""
    shared = _shared_genes(real, predicted)
    # cells are brought to 10,000 counts in all their genes, so genes are picked afterwards
    means = {
        "real": mean_of_genes(real, layer),
        "predicted": mean_of_genes(predicted, predicted_layer),
    }
    return pd.DataFrame({name: mean[shared] for name, mean in means.items()})


def _counts(adata: AnnData, layer: str | None, genes: pd.Index) -> sparse.csr_matrix:
    check_layer(adata, layer)
    counts = adata.X if layer is None else adata.layers[layer]
    return sparse.csr_matrix(counts[:, adata.var_names.get_indexer_for(genes)]).astype(float)


def _log_mean(counts: sparse.csr_matrix) -> NDArray[np.float64]:
    return np.log10(1 + np.asarray(counts.mean(axis=0)).ravel())


def _log_variance(counts: sparse.csr_matrix) -> NDArray[np.float64]:
    mean, square = (np.asarray(x.mean(axis=0)).ravel() for x in (counts, counts.multiply(counts)))
    return np.log10(1 + (square - mean**2).clip(min=0))


def _zeros(counts: sparse.csr_matrix) -> NDArray[np.float64]:
    return 1 - np.asarray((counts > 0).mean(axis=0)).ravel()


def _regression(real: ArrayLike, modelled: ArrayLike, axis: Axes) -> None:
    """Draw a point for each gene, and the diagonal of equal values."""
    axis.scatter(real, modelled, s=9, color=MODELLED, alpha=0.6, linewidths=0)
    top = max(np.max(real), np.max(modelled))
    axis.plot([0, top], [0, top], color="0.3", linewidth=0.8, linestyle="--")
    axis.tick_params(labelsize=8)


def _name_points(means: pd.DataFrame, axis: Axes) -> None:
    """Write names of genes at the edges, one above another, with lines to their points.

    Those above the diagonal stand on the left, the others on the right, each side in the order of
    its points, so that neither names nor lines cross.
    """
    axis.margins(x=0.25)
    axis.autoscale_view()  # otherwise places would refer to the limits before
    is_above = means["predicted"] > means["real"]
    for side, chosen in (("left", means[is_above]), ("right", means[~is_above])):
        chosen = chosen.sort_values("predicted")
        to_axes = axis.transData + axis.transAxes.inverted()
        heights = to_axes.transform(chosen[["real", "predicted"]].to_numpy())[:, 1]
        for place, (gene, point) in zip(_apart(heights), chosen.iterrows(), strict=True):
            axis.annotate(
                plain(gene),
                (point["real"], point["predicted"]),
                (0.02 if side == "left" else 0.98, place),
                textcoords="axes fraction",
                ha=side,
                va="center",
                fontsize=7,
                arrowprops={
                    "arrowstyle": "-",
                    "color": "0.5",
                    "linewidth": 0.5,
                    "relpos": (1 if side == "left" else 0, 0.5),
                },
            )


def _apart(heights: NDArray[np.float64], gap: float = 0.055) -> NDArray[np.float64]:
    """Ascending heights in [0, 1], moved up, or down from the top, until they are a gap apart."""
    n = len(heights)
    gap = min(gap, 0.94 / max(n - 1, 1))
    steps = gap * np.arange(n)
    moved_up = np.maximum.accumulate(np.maximum(heights - steps, 0.03)) + steps
    return np.minimum(moved_up, 0.97 - steps[::-1])
