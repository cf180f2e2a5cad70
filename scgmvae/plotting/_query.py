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
from scgmvae.plotting._style import WIDTH, colors_of_clusters

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
    KeyError
        If the reference's data have no such embedding.
    RuntimeError
        If a model has no trained components, or no data.
    ValueError
        If ``mapped`` has other clusters than the reference, or the embedding has no numbers.

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
    rng = np.random.default_rng(seed)
    known, found = (_annotated(model, n_cells, rng) for model in (reference, mapped))
    plane = _plane(reference, known, basis, seed)
    is_placed = np.isfinite(plane).all(axis=1)
    known, plane = known[is_placed], plane[is_placed]
    placed = _placed(known.obsm[f"X_{KEY}"], plane, found.obsm[f"X_{KEY}"])
    names = list(reference.cluster_names)
    clusters = [pd.Categorical(cells.obs[KEY].astype(str), names) for cells in (known, found)]
    colors = colors_of_clusters(reference)
    figure, axes = plt.subplots(1, 3, figsize=(3 * WIDTH, 3.3), layout="constrained")
    for axis in axes[1:]:
        axis.scatter(*plane.T, s=point_size(len(plane)), c=PALE, linewidths=0)
    groups_on(axes[0], plane, clusters[0], colors, "reference")
    groups_on(axes[1], placed, clusters[1], colors, "query")
    confidence = found.obs[f"{KEY}_confidence"].to_numpy()
    confidence_on(axes[2], placed, confidence, "confidence of the query")
    for axis in axes[1:]:
        axis.set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    return figure


def _check_alike(reference: SCGMVAE, mapped: SCGMVAE) -> None:
    """Raise unless both are models with trained components, and the same."""
    for name, model in (("reference", reference), ("mapped", mapped)):
        if not hasattr(model, "cluster_names"):
            raise ValueError(
                f"{name} must be a model, but it is a {type(model).__name__}. Pass the reference "
                "and the model that SCGMVAE.load_query_data made of the query."
            )
        model._check_mixture()
    own, other = ([str(name) for name in model.cluster_names] for model in (reference, mapped))
    if own != other or reference.module.n_latent != mapped.module.n_latent:
        raise ValueError(
            "mapped must be a model that load_query_data made from the reference as it is now, "
            f"with the same clusters, but the reference has {', '.join(own)} and mapped has "
            f"{', '.join(other)}. Map the query again."
        )


def _annotated(model: SCGMVAE, n_most: int, rng: np.random.Generator) -> AnnData:
    """Cells of a model's data, all or as many at random, as the model annotates them now."""
    adata = model._validate_anndata()
    rows = np.arange(adata.n_obs)
    if adata.n_obs > n_most:
        rows = np.sort(rng.choice(adata.n_obs, n_most, replace=False))
    cells = AnnData(obs=pd.DataFrame({"row": rows}, adata.obs_names[rows]))
    posteriors = model._posteriors_to_judge()  # of all, because cells are judged together
    model._write_annotation(cells, {name: v[rows] for name, v in posteriors.items()}, KEY)
    return cells


def _plane(reference: SCGMVAE, cells: AnnData, basis: str, seed: int) -> NDArray[np.floating]:
    """Places of the cells of the reference in two dimensions, (n, 2)."""
    obsm = reference.adata.obsm
    if f"X_{basis}" in obsm:
        plane = np.asarray(obsm[f"X_{basis}"], dtype=float)[cells.obs["row"]]
        if plane.shape[1] < 2 or not np.isfinite(plane).all(axis=1).any():
            raise ValueError(
                f"obsm['X_{basis}'] must have two columns with numbers, but its shape is "
                f"{obsm[f'X_{basis}'].shape}. Compute it anew, or name another with basis=..."
            )
        return plane[:, :2]
    if basis != "umap":
        raise KeyError(
            f"basis names obsm['X_{basis}'], which the data of the reference do not have. They "
            f"have: {', '.join(obsm)}. Without basis a UMAP of z is made."
        )
    of_z = AnnData(cells.obsm[f"X_{KEY}"])
    return of_z.obsm[f"X_{in_two_dimensions(of_z, seed=seed)}"]


def _placed(
    z: NDArray[np.floating], plane: NDArray[np.floating], new: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Places of new cells in the plane, given z of those that are placed already and their own."""
    nearest = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(z))).fit(z)
    distance, index = nearest.kneighbors(new)
    closeness = 1 / np.maximum(distance, 1e-9)
    weights = closeness / closeness.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkd->nd", weights, plane[index])
