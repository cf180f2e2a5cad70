"""Figures of components and clusters: their overlap, their labels, how sure their cells are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import dendrogram

from scgmvae.clustering.merging import tree_by_overlap
from scgmvae.data.validation import check_columns
from scgmvae.model.novelty import OUTERMOST
from scgmvae.plotting._heat import bar_beside, shares_on
from scgmvae.plotting._style import colors_of, new_axes, plain

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgmvae.model.scgmvae import SCGMVAE

__all__ = ["component_labels", "component_similarity", "components", "confidence", "novelty"]

CELL = 0.28
"""Side of a cell of a heat map in inches, where there is room."""

LEAST_SHOWN = 0.9
"""Confidence that the axis reaches down to at least."""

LABEL_SHARE = "share of the component's labelled cells"


def components(model: SCGMVAE, labels_key: str | None = None) -> Figure:
    """Overlap of the components, in the order of their tree, and the labels of their cells.

    Parameters
    ----------
    model
        A trained model with components and data.
    labels_key
        obs column of labels; ``None`` takes the one that the model was set up with. Without labels
        there is no second panel.

    Returns
    -------
    Figure: the tree by overlap over the heat map of :meth:`scgmvae.SCGMVAE.component_similarity`,
    and the share of each label among the labelled cells of a component.

    Raises
    ------
    KeyError
        If there is no such obs column.
    RuntimeError
        If the model has no components.

    Examples
    --------
    >>> figure = components(model, labels_key="component")
    """
    overlap = model.component_similarity()
    names, n = overlap.index, len(overlap)
    labels_key = labels_key or model._labels_key_of(model.adata)
    shares = None if labels_key is None else _label_shares(model, labels_key)
    side = CELL * n + 1.2
    widths = [side, CELL * (0 if shares is None else shares.shape[1]) + 1.2]
    longest = max(len(plain(name)) for name in [*names, *([] if shares is None else shares)])
    n_panels = 1 if shares is None else 2
    figure, axes = plt.subplots(
        2,
        n_panels,
        figsize=(sum(widths[:n_panels]), side + 0.9 + 0.07 * longest),
        height_ratios=[0.9, side],
        width_ratios=widths[:n_panels],
        squeeze=False,
        layout="constrained",
    )
    for axis in axes[0]:
        axis.set_axis_off()
    order = _draw_tree(overlap, axes[0, 0])
    _heat_map(overlap.iloc[order, order], "overlap", "component", axes[1, 0])
    if shares is not None:
        _heat_map(shares.iloc[order], LABEL_SHARE, labels_key, axes[1, 1])
        axes[1, 1].set_ylabel("")
    bar_beside(axes[1, -1], "overlap" if shares is None else "overlap, share")
    return figure


def component_similarity(model: SCGMVAE, *, ax: Axes | None = None) -> Axes:
    """Overlap of each two components, in the order of their tree, which is drawn above.

    Parameters
    ----------
    model
        A trained model with components and data.
    ax
        Axes to draw into.

    Returns
    -------
    Axes of the heat map of :meth:`scgmvae.SCGMVAE.component_similarity`; the tree is its one
    child.

    Raises
    ------
    RuntimeError
        If the model has no components.
    """
    overlap = model.component_similarity()
    axis = new_axes(3.7) if ax is None else ax
    tree = axis.inset_axes((0.0, 1.02, 1.0, 0.18))
    tree.set_axis_off()
    order = _draw_tree(overlap, tree)
    _heat_map(overlap.iloc[order, order], "", "component", axis)
    bar_beside(axis, "overlap")
    return axis


def component_labels(
    model: SCGMVAE, labels_key: str | None = None, *, ax: Axes | None = None
) -> Axes:
    """Share of each label among the labelled cells of each component.

    Parameters
    ----------
    model
        A trained model with components and data.
    labels_key
        obs column of labels; ``None`` takes the one that the model was set up with.
    ax
        Axes to draw into.

    Returns
    -------
    Axes of a heat map, components × labels; rows of components without labelled cells are empty.

    Raises
    ------
    KeyError
        If there is no such obs column.
    RuntimeError
        If the model has no components.
    ValueError
        If no column is given and the model was set up without labels, or no cell has one.
    """
    model._check_mixture()
    labels_key = labels_key or model._labels_key_of(model.adata)
    if labels_key is None:
        raise ValueError(
            "The model was set up without labels, or no cell has one: name the obs column to "
            "compare with, as labels_key='cell_type' does."
        )
    shares = _label_shares(model, labels_key)
    longest = max(len(plain(name)) for name in shares)
    axis = new_axes(1.2 + 0.16 * len(shares) + 0.07 * longest) if ax is None else ax
    _heat_map(shares, LABEL_SHARE, labels_key, axis)
    bar_beside(axis, "share")
    return axis


def _label_shares(model: SCGMVAE, labels_key: str) -> pd.DataFrame:
    """Share of each label among the labelled cells of each component, 0 without any."""
    check_columns(model.adata, is_whole=False, labels_key=labels_key)
    names = model.component_names
    component = pd.Categorical(model.predict(components=True), list(names)).codes
    return model._label_shares(component, model.adata, labels_key).set_axis(names).fillna(0)


def _draw_tree(overlap: pd.DataFrame, axis: Axes) -> np.ndarray:
    """Draw the tree by overlap with leaves above the columns; return the order of the leaves."""
    n = len(overlap)
    if n == 1:
        return np.arange(1)
    # centres of the leaves are at 5, 15, …, those of the heat map's columns at 0, 1, …
    tree = dendrogram(tree_by_overlap(overlap.to_numpy()), no_plot=True)
    for x, y in zip(tree["icoord"], tree["dcoord"], strict=True):
        axis.plot((np.array(x) - 5) / 10, y, color="0.3", linewidth=1)
    axis.set_xlim(-0.5, n - 0.5)
    return np.array(tree["leaves"])


def _heat_map(table: pd.DataFrame, title: str, x_label: str, axis: Axes) -> None:
    """Draw shares in [0, 1], with the names of rows and columns."""
    # many names are written small, so that they do not overlap
    sizes = [8 if n <= 12 else max(4.5, 8 - 0.2 * (n - 12)) for n in table.shape]
    shares_on(axis, table.to_numpy(), min(sizes) - 2)
    columns = [plain(name) for name in table.columns]
    axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=sizes[1])
    axis.set_yticks(range(len(table)), [plain(name) for name in table.index], fontsize=sizes[0])
    axis.set_xlabel(plain(x_label), fontsize=9)
    axis.set_ylabel("component", fontsize=9)
    axis.set_title(title, fontsize=9)


def confidence(adata: AnnData, key: str = "scgmvae", *, ax: Axes | None = None) -> Axes:
    """Confidence of the cells of each cluster: median, quartiles, and 5 to 95 % of the cells.

    Parameters
    ----------
    adata
        Data that :meth:`scgmvae.SCGMVAE.annotate` has written to.
    key
        The ``key_added`` that it was written under.
    ax
        Axes to draw into.

    Returns
    -------
    Axes, a box for each cluster.

    Raises
    ------
    KeyError
        If the data has no such annotation.
    """
    axis, lowest = _boxes(adata, key, "confidence", ax)
    axis.set_xlim(min(LEAST_SHOWN, lowest - 0.02), 1.005)
    return axis


def novelty(adata: AnnData, key: str = "scgmvae", *, ax: Axes | None = None) -> Axes:
    """Novelty of the cells of each cluster: median, quartiles, and 5 to 95 % of the cells.

    Parameters
    ----------
    adata
        Data that :meth:`scgmvae.SCGMVAE.annotate` has written to.
    key
        The ``key_added`` that it was written under.
    ax
        Axes to draw into.

    Returns
    -------
    Axes, a box for each cluster. Half of the training cells have a novelty above the dashed line,
    0.5, by definition; beyond the dotted line confidence is reduced.

    Raises
    ------
    KeyError
        If the data has no such annotation.
    """
    axis, _ = _boxes(adata, key, "novelty", ax)
    axis.axvline(0.5, color="0.4", linewidth=1, linestyle="--", zorder=0)
    axis.axvline(1 - OUTERMOST, color="black", linewidth=1, linestyle=":")
    axis.set_xlim(-0.01, 1.01)
    return axis


def _boxes(adata: AnnData, key: str, what: str, ax: Axes | None) -> tuple[Axes, float]:
    """A box for each cluster, and the lowest value that is drawn."""
    check_columns(adata, key=key)
    check_columns(adata, key=f"{key}_{what}")
    groups = adata.obs[f"{key}_{what}"].groupby(adata.obs[key], observed=True)
    values = {name: group.to_numpy() for name, group in groups}
    axis = new_axes(0.8 + 0.16 * len(values)) if ax is None else ax
    colors = colors_of(adata, key)
    boxes = axis.boxplot(
        list(values.values()),
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        widths=0.7,
        patch_artist=True,
        medianprops={"color": "black"},
    )
    for name, box in zip(values, boxes["boxes"], strict=True):
        box.set_facecolor(colors[name])
    axis.set_yticks(range(1, len(values) + 1), [plain(name) for name in values], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(what, fontsize=9)
    axis.set_ylabel("cluster", fontsize=9)
    axis.tick_params(labelsize=8)
    return axis, min(float(np.quantile(own, 0.05)) for own in values.values())
