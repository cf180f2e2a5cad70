"""Figure of the tested splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scgmvae.clustering.split_tree import SplitTree
from scgmvae.plotting._style import WIDTH, colors_of_clusters, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scgmvae.model.scgmvae import SCGMVAE

__all__ = ["split_tree"]

ROW = 0.3
"""Height of a component in inches."""


def split_tree(model: SCGMVAE, n_genes: int = 3, *, ax: Axes | None = None) -> Axes:
    """The tested splits of a model, from all cells on the left to its components on the right.

    Every split has its strength beside it, and the genes that are higher on a side are written
    along the line to it. Splits that the present clusters do not follow are dashed. Components
    have the colour of their cluster, and their number of cells.

    Parameters
    ----------
    model
        A trained model with tested splits.
    n_genes
        Number of genes to name for each side.
    ax
        Axes to draw into; a figure of two columns without.

    Returns
    -------
    Axes of the tree.

    Raises
    ------
    RuntimeError
        If the model has no trained components, no tested splits, or no data.

    Examples
    --------
    >>> axis = split_tree(model)
    """
    table = model.split_table(n_genes)
    tree = SplitTree.of_arrays(model.split_tree_)
    names = model.component_names
    order = tree.leaf_order()
    if ax is None:
        size = (2 * WIDTH, 0.6 + ROW * len(order))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    y = {-1 - leaf: float(row) for row, leaf in enumerate(order)}
    depth = {0: 0}
    for split, children in enumerate(tree.children):
        depth |= {child: depth[split] + 1 for child in children if child >= 0}
    end = max(depth.values()) + 1 if tree.n_splits else 1
    for split in range(tree.n_splits - 1, -1, -1):
        y[split] = float(np.mean([y[child] for child in tree.children[split]]))
    for split in range(tree.n_splits):
        _draw_split(tree, table.loc[split], split, (depth[split], end, depth, y), ax)
    _draw_leaves(model, names, order, end, ax)
    ax.set(xlim=(-0.3, end + 0.1), ylim=(len(order) - 0.4, -0.6))
    ax.set_axis_off()
    return ax


def _draw_split(
    tree: SplitTree,
    row: pd.Series,
    split: int,
    place: tuple[int, int, dict[int, int], dict[int, float]],
    axis: Axes,
) -> None:
    """Draw a split: a line to each of its sides, its strength, and the genes."""
    x, end, depth, y = place
    style = "-" if row["is_made"] else (0, (2, 2))
    color = "0.2" if row["is_made"] else "0.6"
    for child, side in zip(tree.children[split], ("left", "right"), strict=True):
        to = depth[child] if child >= 0 else end
        axis.plot([x, x, to], [y[split], y[child], y[child]], color=color, lw=1, ls=style)
        genes = row.get(f"genes_{side}", "")
        # the strength of the split would hide the beginning of genes just below it
        is_beside_strength = 0 < y[child] - y[split] < 1
        axis.annotate(
            plain(genes),
            (x, y[child]),
            (11 if is_beside_strength else 3, 1.5),
            textcoords="offset points",
            fontsize=6,
            color="0.35",
            va="bottom",
        )
    axis.text(
        x,
        y[split],
        f"{row['strength']:.2f}",
        fontsize=6.5,
        ha="center",
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def _draw_leaves(
    model: SCGMVAE, names: np.ndarray, order: np.ndarray, end: int, axis: Axes
) -> None:
    """Write the name and the number of cells of each component beside its end of the tree."""
    codes = pd.Categorical(model.predict(components=True), list(names)).codes
    n_cells = np.bincount(codes, minlength=len(names))
    colors = colors_of_clusters(model)
    clusters = [*model.cluster_names, None]
    for row, leaf in enumerate(order):
        cluster = clusters[model._clusters_of_components()[leaf]]
        axis.plot(end, row, "o", ms=5, color=colors.get(cluster, "0.8"), clip_on=False)
        text = f"{names[leaf]}  ({n_cells[leaf]:,} cells)"
        axis.annotate(
            plain(text), (end, row), (7, 0), textcoords="offset points", fontsize=8, va="center"
        )
