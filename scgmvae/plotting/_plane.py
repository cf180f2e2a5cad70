"""Cells in two dimensions: groups with their names on the data, and confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import patheffects

from scgmvae.plotting._style import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["confidence_on", "groups_on", "point_size"]

LARGEST_POINT = 20
"""Area of the points of few cells, in pt²; a third of scanpy's, because the panels are small."""
LOWEST_CONFIDENCE = 0.5
"""Confidence from which downwards cells have the same colour."""


def point_size(n_cells: int) -> float:
    """Area of a point in pt², smaller the more cells there are."""
    return min(LARGEST_POINT, 4e4 / n_cells)


def groups_on(
    axis: Axes,
    plane: NDArray[np.floating],
    groups: pd.Categorical,
    colors: Mapping[str, str],
    title: str,
) -> None:
    """Draw cells by group, with the name of each at the median of its cells.

    Parameters
    ----------
    axis
        Axes to draw into.
    plane
        Places of the cells, ``(n, 2)``.
    groups
        Group of each cell, ``(n,)``.
    colors
        Colour of each group.
    title
        Title of the panel.
    """
    shuffled = np.random.default_rng(0).permutation(len(plane))  # no group lies on top
    of_cells = np.array([colors[name] for name in groups.categories])[groups.codes]
    size = point_size(len(plane))
    axis.scatter(*plane[shuffled].T, s=size, c=of_cells[shuffled], linewidths=0)
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for code, name in enumerate(groups.categories):
        own = plane[groups.codes == code]
        if len(own):
            place = own[np.abs(own - np.median(own, axis=0)).sum(1).argmin()]
            axis.text(
                *place,
                plain(name),
                fontsize=9 if len(name) < 12 else 7,
                weight="bold",
                ha="center",
                va="center",
                path_effects=halo,
            )
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


def confidence_on(
    axis: Axes,
    plane: NDArray[np.floating],
    values: NDArray[np.floating],
    title: str = "confidence",
) -> None:
    """Draw cells by confidence, the least certain on top.

    Parameters
    ----------
    axis
        Axes to draw into.
    plane
        Places of the cells, ``(n, 2)``.
    values
        Confidence of each cell, ``(n,)``, in [0, 1].
    title
        Title of the panel.
    """
    order = np.argsort(-values, kind="stable")
    points = axis.scatter(
        *plane[order].T,
        s=point_size(len(plane)),
        c=values[order],
        cmap="viridis",
        vmin=LOWEST_CONFIDENCE,
        vmax=1,
        linewidths=0,
    )
    bar = axis.figure.colorbar(points, ax=axis, shrink=0.6, extend="min")
    bar.ax.tick_params(labelsize=8)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
