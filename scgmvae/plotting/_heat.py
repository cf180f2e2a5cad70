"""Heat maps of shares, with numbers in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["bar_beside", "shares_on"]

FEWEST_SHARE = 0.005
"""Share from which on its number is written."""


def shares_on(axis: Axes, shares: NDArray[np.floating], size: float = 7) -> None:
    """Draw shares in [0, 1], each with its number in per cent.

    Parameters
    ----------
    axis
        Axes to draw into.
    shares
        Values, ``(rows, columns)``; NaN stays empty.
    size
        Size of the numbers in points; 0 leaves them out.
    """
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if size and share >= FEWEST_SHARE:
            axis.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if share > 0.6 else "black",
            )


def bar_beside(axis: Axes, name: str) -> None:
    """Draw the colour bar of a heat map, with the name of what it shows.

    Parameters
    ----------
    axis
        Axes of the heat map.
    name
        Name of the values.
    """
    bar = axis.figure.colorbar(axis.images[0], ax=axis, shrink=0.6)
    bar.set_label(name, fontsize=8)
    bar.ax.tick_params(labelsize=8)
