"""Style of all figures: the size of a panel, colours of categories, names as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import to_hex, to_rgb
from scanpy.plotting import palettes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scgmvae.model.scgmvae import SCGMVAE

__all__ = [
    "PALETTE",
    "WIDTH",
    "colors_of",
    "colors_of_clusters",
    "new_axes",
    "palette_of",
    "plain",
]

WIDTH = 3.5
"""Width of a single panel in inches: one column of a journal."""

FINE = "_fine"
"""End of the name of a column with the parts of clusters."""

PALEST = 0.65
"""Share of white in the colour of the last part of a cluster."""

LONGEST_NAME = 40
"""Number of letters of a name that a figure has room for."""

PALETTE = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
"""Ten colours that colour-blind readers tell apart (Petroff 2021, arXiv:2107.02270)."""


def new_axes(height: float) -> Axes:
    """Axes of a new figure of one column."""
    _, axis = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    return axis


def palette_of(adata: AnnData, key: str | None) -> list[str] | None:
    """Colours of the groups of an obs column; ``None`` leaves the choice to scanpy.

    scanpy chooses if the column already has colours in ``uns``, if the user has set a colour
    cycle, and if there are more groups than colours that can be told apart. The parts of clusters,
    ``<key>_fine``, have shades of the colours of their clusters.
    """
    if key not in adata.obs or f"{key}_colors" in adata.uns:
        return None
    if _is_fine(adata, key):
        return _shades(adata, key.removesuffix(FINE), key)
    name = "axes.prop_cycle"
    if mpl.rcParams[name] != mpl.rcParamsDefault[name]:
        return None
    values = adata.obs[key]
    if values.dtype.kind in "iuf":  # numbers have a colour map
        return None
    n_groups = len(values.astype("category").cat.categories)
    return list(PALETTE[:n_groups]) if n_groups <= len(PALETTE) else None


def colors_of(adata: AnnData, key: str) -> dict[str, str]:
    """Group of a categorical obs column → its colour."""
    groups = adata.obs[key].cat.categories
    colors = adata.uns.get(f"{key}_colors")
    if isinstance(colors, str | dict) or colors is not None and len(colors) < len(groups):
        colors = None  # of other groups, as after another clustering
    if colors is None:
        needed = {key, key.removesuffix(FINE)} & set(adata.obs)
        of_others = {f"{name}_colors" for name in needed - {key}} & set(adata.uns)
        without = AnnData(
            obs=adata.obs[sorted(needed)], uns={name: adata.uns[name] for name in of_others}
        )
        colors = palette_of(without, key)
    if colors is None:  # choose as scanpy does
        cycle = [style["color"] for style in mpl.rcParams["axes.prop_cycle"]]
        choices = (cycle, palettes.default_20, palettes.default_28, palettes.default_102)
        colors = next(
            (some for some in choices if len(some) >= len(groups)), ["grey"] * len(groups)
        )
    return dict(zip(groups, colors, strict=False))


def colors_of_clusters(model: SCGMVAE) -> dict[str, str]:
    """Cluster of a model → its colour in the figures of the model's data, annotated or not."""
    names = [str(name) for name in model.cluster_names]
    clusters = pd.Categorical(names, names)
    obs = pd.DataFrame({"scgmvae": clusters}, [f"cluster {name}" for name in names])
    uns = {k: v for k, v in model.adata.uns.items() if k == "scgmvae_colors"}
    return colors_of(AnnData(obs=obs, uns=uns), "scgmvae")


def _is_fine(adata: AnnData, key: str) -> bool:
    """Whether an obs column has the parts of the clusters of another one."""
    names = (key, key.removesuffix(FINE))
    return key.endswith(FINE) and all(
        name in adata.obs and adata.obs[name].dtype == "category" for name in names
    )


def _shades(adata: AnnData, key: str, fine: str) -> list[str]:
    """Colour of each part of a cluster: that of the cluster, paler from part to part."""
    counts = pd.crosstab(adata.obs[fine], adata.obs[key], dropna=False)
    cluster_of = counts.idxmax(axis=1)
    colors, shades = colors_of(adata, key), []
    for part in adata.obs[fine].cat.categories:
        siblings = cluster_of.index[cluster_of == cluster_of[part]]
        share = PALEST * siblings.get_loc(part) / max(len(siblings) - 1, 1)
        shades.append(to_hex((1 - share) * np.array(to_rgb(colors[cluster_of[part]])) + share))
    return shades


def plain(name: object) -> str:
    """Name from the data for a figure: not too long, and a dollar sign starts no formula."""
    text = str(name)
    if len(text) > LONGEST_NAME:
        text = f"{text[: LONGEST_NAME - 1]}…"
    return text.replace("$", r"\$")
