"""One figure of what a model found, for a first look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData

from scgmvae.data.groups import groups_of
from scgmvae.data.validation import check_columns
from scgmvae.plotting._clusters import composition, confusion, markers
from scgmvae.plotting._latent import in_two_dimensions
from scgmvae.plotting._plane import confidence_on, groups_on
from scgmvae.plotting._style import colors_of, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from scgmvae.model.scgmvae import SCGMVAE

__all__ = ["overview"]

N_SHOWN = 10_000
"""Largest number of cells of which a UMAP is made."""
HALF = 4.0
"""Half of the width of the figure in inches, and the height of the scatters."""


def overview(
    model: SCGMVAE, labels_key: str | None = None, n_genes: int = 2, *, seed: int = 0
) -> Figure:
    """UMAP with the names of the clusters, confidence, marker genes, batches, and labels.

    Parameters
    ----------
    model
        A trained model with components and data.
    labels_key
        obs column of labels to compare with; ``None`` takes the one that the model was set up
        with, if any.
    n_genes
        Number of marker genes of each cluster.
    seed
        Seed of the UMAP.

    Returns
    -------
    Figure. The composition is that of the first condition that the model was set up with; without
    a condition, or without labels, their panel is left out.

    Raises
    ------
    KeyError
        If there is no such obs column.
    RuntimeError
        If the model has no trained components, or no data.
    ValueError
        If ``n_genes`` is below 1, or a column has no groups.

    Examples
    --------
    >>> figure = overview(model, "component")
    """
    model._check_mixture()
    adata = model._validate_anndata()
    labels_key = labels_key or model._labels_key_of(adata)
    condition = next(iter(model._setup.categories), None)
    clusters = groups_of(adata, key="scgmvae").cat.categories
    has_markers = len(clusters) > 1 and model.module.image_shape is None
    labels = [] if labels_key is None else groups_of(adata, labels_key=labels_key).cat.categories
    beside = 1.0 + 0.07 * max(len(plain(name)) for name in clusters)
    below = 0.5 + 0.075 * max((len(plain(name)) for name in labels), default=0)
    rows = 0.22 * (len(clusters) + 1)
    dots, lower = 1.25 + max(1.6, rows), below + 0.6 + rows
    heights = [HALF, *[dots] * has_markers, *[lower] * bool(condition or labels_key)]
    wide = 2 * (HALF + max(0.0, beside - 1.3))
    figure = plt.figure(figsize=(wide, sum(heights)))
    parts = iter(np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights)))
    half = wide / 2
    first, second = _axes(next(parts), (wide, HALF), [0.4, half], half - 0.5, (0.1, 0.4))
    cells = _on_plane(model, adata, seed)
    plane, clusters = cells.obsm["plane"], cells.obs["scgmvae"].array
    groups_on(first, plane, clusters, colors_of(cells, "scgmvae"), "clusters")
    confidence_on(second, plane, cells.obs["scgmvae_confidence"].to_numpy())
    if has_markers:
        (axis,) = _axes(next(parts), (wide, dots), [beside], wide - beside - 0.2, (0.95, 0.3))
        markers(model, n_genes, ax=axis)
    if condition or labels_key:
        n_panels = (condition is not None) + (labels_key is not None)
        places = [beside, half + beside][:n_panels]
        axes = _axes(next(parts), (wide, lower), places, half - beside - 0.2, (below, 0.5))
        if condition is not None:
            composition(adata, condition, ax=axes[0])
        if labels_key is not None:
            known = model._known_labels(adata, labels_key).to_frame(labels_key)
            labelled = AnnData(obs=known.assign(scgmvae=adata.obs["scgmvae"]))
            confusion(labelled, labels_key, ax=axes[-1])
    return figure


def _axes(
    part: SubFigure,
    size: tuple[float, float],
    places: list[float],
    wide: float,
    margins: tuple[float, float],
) -> list[Axes]:
    """Axes side by side, given left ends, width, and margins below and above, in inches."""
    (width, height), (below, above) = size, margins
    grids = [
        part.add_gridspec(
            1,
            1,
            left=left / width,
            right=(left + wide) / width,
            bottom=below / height,
            top=1 - above / height,
        )
        for left in places
    ]
    return [part.add_subplot(grid[0]) for grid in grids]


def _on_plane(model: SCGMVAE, adata: AnnData, seed: int) -> AnnData:
    """Cells with their z in two dimensions in ``obsm["plane"]``, clusters and confidence."""
    check_columns(adata, key="scgmvae_confidence")
    rows = np.flatnonzero(adata.obs["scgmvae"].notna())
    if len(rows) > N_SHOWN:
        rows = np.sort(np.random.default_rng(seed).choice(rows, N_SHOWN, replace=False))
    z = model.get_latent_representation(indices=rows)
    cells = AnnData(z, obs=pd.DataFrame(index=adata.obs_names[rows]))
    cells.obs["scgmvae"] = groups_of(adata, key="scgmvae").array[rows]
    cells.obs["scgmvae_confidence"] = adata.obs["scgmvae_confidence"].to_numpy()[rows]
    if "scgmvae_colors" in adata.uns:
        cells.uns["scgmvae_colors"] = adata.uns["scgmvae_colors"]
    cells.obsm["plane"] = cells.obsm["X_" + in_two_dimensions(cells, seed=seed)]
    return cells
