"""Figure of a query among the cells of its reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.neighbors import NearestNeighbors

from scgmvae.checks import check_seed, check_whole
from scgmvae.plotting._latent import in_two_dimensions
from scgmvae.plotting._plane import confidence_on, groups_on, point_size
from scgmvae.plotting._style import WIDTH, colors_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scgmvae.model.scgmvae import SCGMVAE

__all__ = ["query"]

N_NEIGHBORS = 5
"""Number of cells of the reference among which a cell of the query is placed."""
KEY = "scgmvae"
PALE = "0.85"
"""Colour of the reference behind the query."""


def query(
    reference: SCGMVAE,
    mapped: SCGMVAE,
    *,
    basis: str = "umap",
    n_cells: int = 10_000,
    seed: int = 0,
) -> Figure:
    """Cells of a query on the UMAP of the reference: their clusters or labels, and confidence.

    A cell of the query is placed at the mean of its five nearest cells of the reference in z,
    weighted by their closeness. A cell that is like none of them is drawn among them all the same,
    so look at its confidence as well.

    Parameters
    ----------
    reference
        The reference, with its data.
    mapped
        The model of the query, made by :meth:`scgmvae.SCGMVAE.load_query_data`.
    basis
        Embedding of the reference's data, ``obsm["X_<basis>"]``. If the data have none, a UMAP
        of z is made.
    n_cells
        Largest number of cells of the reference, and of the query; of more, as many are drawn at
        random.
    seed
        Seed of those draws and of the UMAP.

    Returns
    -------
    Figure with three panels: the reference, the query by cluster or label, and by confidence.

    Raises
    ------
    RuntimeError
        If a model has no trained components, or no data.
    ValueError
        If ``mapped`` has other components than the reference.

    Examples
    --------
    >>> new = scgmvae.datasets.synthetic_counts(100, 50, n_components=3, seed=1)
    >>> new.obs["batch"] = "new"
    >>> mapped = scgmvae.SCGMVAE.load_query_data(new, model)
    >>> figure = query(model, mapped)
    """
    check_whole(1, n_cells=n_cells)
    check_seed(seed)
    _check_alike(reference, mapped)
    adata, new = reference._validate_anndata(), mapped._validate_anndata()
    rng = np.random.default_rng(seed)
    rows, new_rows = (_sample(data.n_obs, n_cells, rng) for data in (adata, new))
    z = np.asarray(reference.get_latent_representation(indices=rows))
    if f"X_{basis}" in adata.obsm:
        plane = np.asarray(adata.obsm[f"X_{basis}"])[rows, :2]
    else:
        cells = AnnData(z)
        plane = cells.obsm[f"X_{in_two_dimensions(cells, seed=seed)}"]
    names = list(reference.cluster_names)
    known, found = (
        pd.Categorical(model.predict(indices=some), names)
        for model, some in ((reference, rows), (mapped, new_rows))
    )
    placed = _placed(z, plane, np.asarray(mapped.get_latent_representation(indices=new_rows)))
    clusters = AnnData(obs=pd.DataFrame({KEY: known}, adata.obs_names[rows]), uns=_colors(adata))
    colors = colors_of(clusters, KEY)
    figure, axes = plt.subplots(1, 3, figsize=(3 * WIDTH, 3.3), layout="constrained")
    for axis in axes[1:]:
        axis.scatter(*plane.T, s=point_size(len(plane)), c=PALE, linewidths=0)
    groups_on(axes[0], plane, known, colors, "reference")
    groups_on(axes[1], placed, found, colors, "query")
    confidence = new.obs[f"{KEY}_confidence"].to_numpy()[new_rows]
    confidence_on(axes[2], placed, confidence, "confidence of the query")
    for axis in axes[1:]:
        axis.set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    return figure


def _check_alike(reference: SCGMVAE, mapped: SCGMVAE) -> None:
    """Raise unless both models have trained components, and the same."""
    for model in (reference, mapped):
        model._check_mixture()
    own, other = list(reference.cluster_names), list(mapped.cluster_names)
    if own != other:
        raise ValueError(
            "mapped must be a model that load_query_data made from the reference, with the same "
            f"clusters, but the reference has {own} and mapped has {other}."
        )


def _sample(n: int, n_most: int, rng: np.random.Generator) -> NDArray[np.integer]:
    """Numbers of all of n cells, or of as many at random, ascending."""
    return np.arange(n) if n <= n_most else np.sort(rng.choice(n, n_most, replace=False))


def _colors(adata: AnnData) -> dict[str, list[str]]:
    """Colours of the clusters that the reference's figures have, if any."""
    name = f"{KEY}_colors"
    return {name: adata.uns[name]} if name in adata.uns else {}


def _placed(
    z: NDArray[np.floating], plane: NDArray[np.floating], new: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Places of new cells in the plane, given z of those that are placed already and their own."""
    nearest = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(z))).fit(z)
    distance, index = nearest.kneighbors(new)
    closeness = 1 / np.maximum(distance, 1e-9)
    weights = closeness / closeness.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkd->nd", weights, plane[index])
