"""Figures of clusters: which batches and labels they have, and which genes mark them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scvi import REGISTRY_KEYS

from scgmvae.compat import torch_threads_kept
from scgmvae.data.groups import groups_of
from scgmvae.data.matrices import read_rows
from scgmvae.data.normalization import on_log_scale
from scgmvae.plotting._heat import shares_on
from scgmvae.plotting._style import WIDTH, colors_of, new_axes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scgmvae.model.scgmvae import SCGMVAE

__all__ = ["composition", "confusion", "markers"]

N_SHOWN = 5_000
"""Largest number of cells whose counts a dot plot is made of."""
LONGEST_LEGEND = 10
"""Largest number of lines of a legend; a longer legend is left out."""


def composition(
    adata: AnnData, condition: str, key: str = "scgmvae", *, ax: Axes | None = None
) -> Axes:
    """Shares of batches, donors or other levels of a condition in each cluster.

    Parameters
    ----------
    adata
        Data that :meth:`scgmvae.SCGMVAE.annotate` has written to.
    condition
        obs column of the levels.
    key
        obs column of the clusters.
    ax
        Axes to draw into.

    Returns
    -------
    Axes, a bar for each cluster, and one for all cells at the top.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If no cell has a value there, or a column holds measurements.

    Examples
    --------
    >>> axis = composition(adata, "batch")
    """
    clusters, levels = groups_of(adata, key=key), groups_of(adata, condition=condition)
    counted = pd.crosstab(clusters, levels)
    rows = ["all", *counted.index]
    counts = np.vstack([counted.sum(), counted])
    shares = pd.DataFrame(counts / counts.sum(1, keepdims=True), columns=counted.columns)
    n_columns = max(1, 40 // (4 + max(len(plain(level)) for level in shares)))
    n_lines = -(-shares.shape[1] // n_columns)
    has_legend = n_lines <= LONGEST_LEGEND
    if ax is None:
        ax = new_axes(1.1 + 0.2 * len(rows) + 0.16 * n_lines * has_legend)
    colors = colors_of(AnnData(obs=levels.to_frame(condition), uns=adata.uns), condition)
    left = np.zeros(len(rows))
    for level in shares:
        color, label = colors[level], plain(level)
        ax.barh(range(len(rows)), shares[level], left=left, color=color, label=label)
        left += shares[level].to_numpy()
    names = [f"{plain(row)}  ({n:,})" for row, n in zip(rows, counts.sum(1), strict=True)]
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
    ax.axhline(0.5, color="black", linewidth=0.8)
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel(f"share of the cells by {plain(condition)}", fontsize=9)
    ax.set_ylabel("cluster (cells)", fontsize=9)
    if has_legend:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": n_columns}
        ax.legend(fontsize=8, frameon=False, **place)
    return ax


def confusion(
    adata: AnnData, labels_key: str, key: str = "scgmvae", *, ax: Axes | None = None
) -> Axes:
    """Shares of labels in each cluster: which cluster is which type.

    Parameters
    ----------
    adata
        Data that :meth:`scgmvae.SCGMVAE.annotate` has written to.
    labels_key
        obs column of labels. Cells without one are left out.
    key
        obs column of the clusters.
    ax
        Axes to draw into.

    Returns
    -------
    Axes of a heat map, clusters × labels, the labels in the order of the clusters that they are
    commonest in. Shares are written in per cent.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If no cell has a value there, or a column holds measurements.

    Examples
    --------
    >>> axis = confusion(adata, "component")
    """
    counted = pd.crosstab(groups_of(adata, key=key), groups_of(adata, labels_key=labels_key))
    order = np.argsort((counted / counted.sum()).to_numpy().argmax(0), kind="stable")
    counted = counted.iloc[:, order]
    shares = counted.div(counted.sum(axis=1), axis=0)
    longest = max(len(plain(name)) for name in shares)
    if ax is None:
        size = (max(WIDTH, 1.2 + 0.33 * shares.shape[1]), 0.6 + 0.2 * len(shares) + 0.07 * longest)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    shares_on(ax, shares.to_numpy())
    ax.set_xticks(range(shares.shape[1]), map(plain, shares), rotation=90, fontsize=8)
    names = [f"{plain(row)}  ({n:,})" for row, n in counted.sum(axis=1).items()]
    ax.set_yticks(range(len(shares)), names, fontsize=8)
    ax.set_xlabel(plain(labels_key), fontsize=9)
    ax.set_ylabel("cluster (cells)", fontsize=9)
    ax.set_title("per cent of the cells of a cluster", fontsize=9)
    return ax


@torch_threads_kept()
def markers(
    model: SCGMVAE, n: int = 3, groupby: str = "scgmvae", *, ax: Axes | None = None
) -> Axes:
    """Dot plot of the marker genes of each cluster, as scanpy draws it.

    Parameters
    ----------
    model
        A trained model with data.
    n
        Number of genes of each cluster, those of :meth:`scgmvae.SCGMVAE.markers`.
    groupby
        obs column of the clusters.
    ax
        Axes to draw into.

    Returns
    -------
    Axes of the dots: their size is the share of the cells that have any of a gene, their colour
    the mean of log(1 + counts per 10,000) in the cluster, from the lowest of the clusters (0) to
    the highest (1).

    Raises
    ------
    KeyError
        If there is no such obs column.
    RuntimeError
        If the model is not trained, or has no data.
    ValueError
        If there are fewer than two clusters.

    Examples
    --------
    >>> axis = markers(model, n=2)
    """
    table = model.markers(n, groupby)
    genes = pd.unique(table["gene"]).tolist()
    adata = model._validate_anndata()
    groups = groups_of(adata, groupby=groupby)
    groups = groups.cat.rename_categories(list(map(plain, groups.cat.categories)))
    rows = np.flatnonzero(groups.notna())
    if len(rows) > N_SHOWN:
        rows = np.sort(np.random.default_rng(0).choice(rows, N_SHOWN, replace=False))
    x = read_rows(model.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY), rows)
    cells = AnnData(on_log_scale(x, model._kinds))
    cells.var_names = model._setup.gene_names
    cells.obs["cluster"] = groups.array[rows]
    cells = cells[:, genes].copy()
    if ax is None:
        ax = _axes_of_dots(groups.cat.categories, genes)
    size = ax.get_window_extent().size / ax.figure.dpi
    plot = sc.pl.dotplot(
        cells,
        genes,
        "cluster",
        standard_scale="var",
        return_fig=True,
        ax=ax,
        show=False,
        figsize=tuple(size),  # without it scanpy leaves room above the dots
    )
    plot.legend(colorbar_title="mean, 0 to 1\nby gene", size_title="% of cells", width=1.7).style(
        cmap="Blues", dot_edge_color="none", largest_dot=90
    )
    drawn = plot.get_axes()["mainplot_ax"]
    drawn.tick_params(labelsize=8)
    drawn.set_title("marker genes", fontsize=9)
    return drawn


def _axes_of_dots(groups: pd.Index, genes: list[str]) -> Axes:
    """Axes with room for the names around it; scanpy's grid suits no layout of matplotlib's."""
    left = 0.4 + 0.08 * max(len(plain(name)) for name in groups)
    below = 0.3 + 0.09 * max(map(len, genes))
    width, height = left + 0.2 * len(genes) + 1.8, below + 0.24 * max(6, len(groups)) + 0.3
    grid = plt.figure(figsize=(width, height)).add_gridspec(
        1, 1, left=left / width, right=1 - 0.1 / width, bottom=below / height, top=1 - 0.3 / height
    )
    return grid.figure.add_subplot(grid[0])
