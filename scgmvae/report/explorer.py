"""The explorer of an interactive report: what its script draws, packed as text.

The script is ``explorer.js``. It decodes what is packed here, so the two change together.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from jinja2.utils import htmlsafe_json_dumps
from matplotlib.colors import is_color_like, to_hex

from scgmvae.plotting._style import colors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

__all__ = [
    "LARGEST_FILE",
    "N_STEPS",
    "cell_data",
    "gene_data",
    "groups",
    "numbers",
    "own_text",
    "policy",
    "ranked_genes",
]

LARGEST_FILE = 8_000_000
"""Largest size of an interactive report in bytes; genes that would exceed it are left out."""

N_STEPS = 100
"""Number of steps from the lowest to the highest value of a column, which has a byte per cell.

A byte has room for 255, but no eye tells that many shades apart, and 100 take an eighth less.
"""


def own_text(name: str) -> str:
    """Text of a file in this folder: a template, the style or the script."""
    return (files("scgmvae.report") / name).read_text(encoding="utf-8")


def policy(script: str) -> str:
    """Source of scripts in a Content-Security-Policy that lets this one run, and no other."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


# ------------------------------------------------------------------------------- cells


def groups(name: str, values: pd.Series, uns: dict[str, Any]) -> dict[str, Any]:
    """A column of groups to colour cells by.

    Parameters
    ----------
    name
        Name that the page shows.
    values
        Group of each cell, (n,), named as in obs; missing ones have the code −1.
    uns
        ``uns`` of the data, with the colours of the groups where figures have chosen some.
    """
    column = str(values.name)
    values = values.astype("category").cat.remove_unused_categories()
    colors = colors_of(AnnData(obs=values.to_frame(column), uns=uns), column)
    return {
        "name": name,
        "levels": [str(level) for level in colors],
        # a browser is told no more than a colour
        "colors": [to_hex(color if is_color_like(color) else "grey") for color in colors.values()],
        "codes": _encoded(values.cat.codes.to_numpy().astype("<i2")),
    }


def numbers(
    name: str, values: NDArray, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    """A column of finite numbers to colour cells by, (n,); bounds are those of the values."""
    low, high, steps = _steps(values, low, high)
    return {"name": name, "low": low, "high": high, "steps": _encoded(steps)}


def cell_data(names: Sequence[str], points: NDArray, columns: Sequence[dict[str, Any]]) -> str:
    """JSON of the cells, safe within HTML.

    Parameters
    ----------
    names
        Names of the cells, n of them.
    points
        Places in two dimensions, (n, 2).
    columns
        Made by :func:`groups` and :func:`numbers`.
    """
    return htmlsafe_json_dumps(
        {
            "names": [str(name) for name in names],
            "points": _encoded(np.asarray(points, dtype="<f4")),
            "columns": columns,
            "n_steps": N_STEPS,
        }
    )


# ------------------------------------------------------------------------------- genes


def ranked_genes(
    expression: sparse.csr_matrix, first: Sequence[NDArray[np.integer]]
) -> NDArray[np.int64]:
    """Numbers of all genes, (G,): marker genes, then the others by their variance.

    Parameters
    ----------
    expression
        Values of the cells, (n, G).
    first
        Marker genes of each component, best ones first; the best of all components lead.
    """
    mean = np.asarray(expression.mean(axis=0)).ravel()
    variance = np.asarray(expression.multiply(expression).mean(axis=0)).ravel() - mean**2
    n_most = max(map(len, first), default=0)
    markers = [own[place] for place in range(n_most) for own in first if place < len(own)]
    ranked = np.concatenate([np.array(markers, dtype=np.int64), np.argsort(-variance)])
    _, places = np.unique(ranked, return_index=True)
    return ranked[np.sort(places)]


def gene_data(
    expression: sparse.csr_matrix, names: NDArray[np.str_], ranked: NDArray[np.integer], room: int
) -> tuple[str, int]:
    """JSON of the first genes that there is room for, safe within HTML, and their number.

    Parameters
    ----------
    expression
        Values of the cells, (n, G).
    names
        Names of the genes, (G,).
    ranked
        Numbers of the genes in the order in which they are taken.
    room
        Largest size of the JSON in bytes.

    Returns
    -------
    A list of ``[name, lowest, highest, steps]``; the steps are compressed one gene at a time, so
    that a browser unpacks none but those that are asked for.
    """
    by_gene = expression.tocsc()
    parts, size = [], len("[]")
    for gene in ranked:
        low, high, steps = _steps(by_gene[:, [gene]].toarray().ravel())
        record = htmlsafe_json_dumps([str(names[gene]), low, high, _encoded(_deflated(steps))])
        size += len(record) + len(",")
        if size > room:
            break
        parts.append(record)
    return f"[{','.join(parts)}]", len(parts)


# ----------------------------------------------------------------------------- packing


def _steps(
    values: NDArray, low: float | None = None, high: float | None = None
) -> tuple[float, float, NDArray[np.uint8]]:
    """Bounds of some values, and each value as a number of steps from the lower one, (n,)."""
    values = np.asarray(values, dtype=np.float64)
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    steps = np.rint((values - low) / ((high - low) or 1.0) * N_STEPS)
    return float(f"{low:.6g}"), float(f"{high:.6g}"), steps.clip(0, N_STEPS).astype(np.uint8)


def _deflated(values: NDArray[np.uint8]) -> bytes:
    # runs are of zeros, and longer patterns are chance: looking for runs alone is smaller
    packer = zlib.compressobj(9, strategy=zlib.Z_RLE)
    return packer.compress(values.tobytes()) + packer.flush()


def _encoded(values: NDArray | bytes) -> str:
    content = values if isinstance(values, bytes) else values.tobytes()
    return base64.b64encode(content).decode()
