"""Figures. Every function returns its Figure; none shows or saves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram
from scvi import REGISTRY_KEYS

from scgmvae.checks import check_choices, check_columns, check_whole, rows_of
from scgmvae.merging import tree_by_overlap

if TYPE_CHECKING:
    from scgmvae.model import SCGMVAE

__all__ = [
    "components",
    "embedding",
    "latent",
    "latent_size",
    "manifold",
    "reconstructions",
    "samples",
    "training",
]

TERMS = {
    "elbo": "−ELBO",
    "reconstruction_loss": "reconstruction, −log p(x|z,c)",
    "kl_z": "KL of z",
    "kl_w": "KL of w",
    "kl_y": "KL of y",
    "kl_d": "KL of d",
    "guide": "guide, cross-entropy",
    "classification": "labels, cross-entropy",
}
"""Terms of the loss in the history, and how a figure names them."""


def embedding(
    adata: AnnData, color: Sequence[str] = ("scgmvae",), basis: str = "umap", point_size: float = 0
) -> Figure:
    """Scatter of a two-dimensional embedding, a panel per obs column, legends beside them.

    Parameters
    ----------
    adata
        Data with the embedding in ``obsm["X_<basis>"]``.
    color
        obs columns or genes.
    basis
        Name of the embedding.
    point_size
        Size of the points; 0 takes scanpy's choice.

    Returns
    -------
    Figure with a row of panels.

    Examples
    --------
    >>> adata.obsm["X_z"] = model.get_latent_representation()[:, :2]
    >>> figure = embedding(adata, basis="z")
    """
    width = 4.6
    figure, axes = plt.subplots(
        1, len(color), figsize=(width * len(color), 3.4), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], color, strict=True):
        sc.pl.embedding(
            adata, basis, color=name, ax=axis, show=False, size=point_size or None, frameon=False
        )
    return figure


def training(model: SCGMVAE) -> Figure:
    """Each term of the loss by epoch, in nats per cell, with the stages marked.

    Parameters
    ----------
    model
        A trained model.

    Returns
    -------
    Figure with a panel per term; validation is drawn where there was one.

    Raises
    ------
    RuntimeError
        If the model is untrained.

    Examples
    --------
    >>> figure = training(model)
    >>> [axis.get_title() for axis in figure.axes][:2]
    ['−ELBO', 'reconstruction, −log p(x|z,c)']
    """
    history = model.history
    if not history:
        raise RuntimeError("The model has no training history: call train() first.")
    names = [name for name in TERMS if f"{name}_train" in history]
    if model.module.prior == "none":  # which has no bound
        names = ["reconstruction_loss"]
    n_columns = min(4, len(names))
    n_rows = -(-len(names) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(2.9 * n_columns, 2.2 * n_rows),
        squeeze=False,
        layout="constrained",
    )
    n_epochs = max(history[f"{name}_train"].index.max() for name in names)
    joint_start = history["kl_y_train"].index[0] if "kl_y_train" in history else None
    for axis, name in zip(axes.flat, names, strict=False):
        for part, style in (("train", "-"), ("validation", "--")):
            if f"{name}_{part}" in history:
                curve = history[f"{name}_{part}"].iloc[:, 0].astype(float)
                axis.plot(curve.index, curve, style, label=part, linewidth=1.2)
        axis.set_title(TERMS[name], fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlim(-0.02 * n_epochs, 1.02 * n_epochs)
        axis.set_xlabel("epoch", fontsize=9)
        if joint_start is not None:
            axis.axvline(joint_start, color="0.6", linewidth=0.8, linestyle=":")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("nats per cell" if model.module.image_shape is None else "nats per image")
        axis.yaxis.label.set_size(9)
    if any(f"{name}_validation" in history for name in names):
        axes.flat[0].legend(fontsize=8)
    return figure


def components(model: SCGMVAE, labels_key: str | None = None) -> Figure:
    """Overlap of the components, in the order of their tree, and the labels of their cells.

    Parameters
    ----------
    model
        A trained model with components and data.
    labels_key
        obs column of labels; ``None`` takes the one that the model was set up with. Without any
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
    check_columns(model.adata, labels_key=labels_key)
    shares = None
    if labels_key is not None:
        component = pd.Categorical(model.predict(components=True), list(names)).codes
        shares = model._label_shares(component, model.adata, labels_key).set_axis(names).fillna(0)
    side = 0.28 * n + 1.2
    widths = [side, 0.28 * (0 if shares is None else shares.shape[1]) + 1.2]
    longest = max(map(len, [*names, *([] if shares is None else shares.columns)]))
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
    order = np.arange(n)
    if n > 1:
        # centres of the leaves are at 5, 15, …, those of the heat map's columns at 0, 1, …
        tree = dendrogram(tree_by_overlap(overlap.to_numpy()), no_plot=True)
        order = np.array(tree["leaves"])
        for x, y in zip(tree["icoord"], tree["dcoord"], strict=True):
            axes[0, 0].plot((np.array(x) - 5) / 10, y, color="0.3", linewidth=1)
        axes[0, 0].set_xlim(-0.5, n - 0.5)
    panels = [(overlap.iloc[order, order], "overlap", "component")]
    if shares is not None:
        panels.append((shares.iloc[order], "share of the component's labelled cells", labels_key))
    for axis, (table, title, x_label) in zip(axes[1], panels, strict=True):
        image = axis.imshow(table.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(table.shape[1]), table.columns, rotation=90, fontsize=8)
        axis.set_yticks(range(n), table.index, fontsize=8)
        axis.set_xlabel(x_label, fontsize=9)
        axis.set_title(title, fontsize=9)
    axes[1, 0].set_ylabel("component", fontsize=9)
    figure.colorbar(image, ax=axes[1, -1], shrink=0.6)
    return figure


def latent(
    model: SCGMVAE,
    color: str | Sequence[str] | None = None,
    adata: AnnData | None = None,
    *,
    method: Literal["umap", "tsne"] = "umap",
    n_cells: int = 5000,
    seed: int = 0,
    point_size: float = 0,
) -> Figure:
    """Scatter of z, a panel per colouring: z itself where it has two dimensions.

    Parameters
    ----------
    model
        A trained model.
    color
        ``"component"`` for the most probable component, or obs columns, such as a label or a
        condition. ``None`` is ``"component"`` where there are components.
    adata
        Data with the genes of the model; ``None`` is the model's own.
    method
        What reduces a z of more dimensions to two: UMAP or t-SNE, as scanpy has them.
    n_cells
        Of more cells, as many are drawn at random.
    seed
        Of the drawing and the reduction.
    point_size
        Size of the points; 0 takes scanpy's choice.

    Returns
    -------
    Figure with a row of panels.

    Raises
    ------
    KeyError
        If there is no such obs column.
    RuntimeError
        If the model is untrained, or has no components to colour by.
    """
    check_choices(method=(method, ("umap", "tsne")))
    if color is None:
        color = "component" if model.module.mixture_started else []
    color = [color] if isinstance(color, str) else list(color)
    source = model._validate_anndata(adata)
    check_columns(source, color=[name for name in color if name != "component"])
    rows = np.arange(source.n_obs)
    if source.n_obs > n_cells:
        rows = np.sort(np.random.default_rng(seed).choice(source.n_obs, n_cells, replace=False))
    z = model.get_latent_representation(adata, indices=rows)
    shown = AnnData(z, obs=source.obs.iloc[rows][[n for n in color if n != "component"]].copy())
    if "component" in color:
        names = model.predict(adata, indices=rows, components=True)
        shown.obs["component"] = pd.Categorical(names, list(model.component_names))
        shown.obs["component"] = shown.obs["component"].cat.remove_unused_categories()
    basis = "z"
    if z.shape[1] == 2:
        shown.obsm["X_z"] = z
    elif method == "umap":
        sc.pp.neighbors(shown, use_rep="X", random_state=seed)
        sc.tl.umap(shown, random_state=seed)
        basis = "umap"
    else:
        sc.tl.tsne(shown, use_rep="X", random_state=seed)
        basis = "tsne"
    return embedding(shown, color or [None], basis, point_size)


def latent_size(table: pd.DataFrame) -> Figure:
    """Loss and reconstruction error against the size of the latent.

    Parameters
    ----------
    table
        A row per model, with columns ``"n_latent"`` (L), ``"loss"`` (−ELBO) and
        ``"reconstruction"`` (−log p(x|z,c)), both in nats. Of several rows with one L, as of
        several seeds, the mean is drawn, with the standard deviation where there is one.

    Returns
    -------
    Figure with two panels.

    Raises
    ------
    KeyError
        If a column is missing.
    """
    titles = {"loss": "loss, −ELBO", "reconstruction": "reconstruction, −log p(x|z,c)"}
    missing = [name for name in ("n_latent", *titles) if name not in table]
    if missing:
        raise KeyError(
            f"table must have the columns 'n_latent', 'loss' and 'reconstruction', but {missing} "
            f"are missing; there are {list(table)}."
        )
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.6), layout="constrained")
    groups = table.groupby("n_latent")
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        mean, spread = groups[name].mean(), groups[name].std().fillna(0.0)
        axis.errorbar(mean.index, mean, spread, marker="o", markersize=4, linewidth=1.2, capsize=2)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("dimensions of z", fontsize=9)
        axis.set_xticks(mean.index)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("nats", fontsize=9)
    return figure


# ------------------------------------------------------------------------------------- images


def reconstructions(
    models: SCGMVAE | Mapping[str, SCGMVAE],
    adata: AnnData | None = None,
    *,
    indices: Sequence[int] | None = None,
    n_images: int = 10,
) -> Figure:
    """Images and what models make of them: a row of originals, then a row per model.

    Parameters
    ----------
    models
        A trained model, or several by name, all of the same images.
    adata
        Images; ``None`` takes those of the first model.
    indices
        Rows to show; ``None`` takes the first ``n_images``.
    n_images
        Number of images where ``indices`` does not say.

    Returns
    -------
    Figure.

    Raises
    ------
    ValueError
        If the models are not of images.
    """
    if not isinstance(models, Mapping):
        models = {"reconstruction": models}
    check_whole(1, n_images=n_images)
    first = next(iter(models.values()))
    shape = _image_shape(first)
    source = first._validate_anndata(adata)
    rows = rows_of(source, np.arange(min(n_images, source.n_obs)) if indices is None else indices)
    loader = first._make_data_loader(source, indices=rows, batch_size=len(rows))
    (tensors,) = loader
    images = {"original": tensors[REGISTRY_KEYS.X_KEY].numpy()}
    for name, model in models.items():
        images[name] = model.get_reconstruction(source, rows)
    figure, axis = plt.subplots(
        figsize=(0.7 * len(rows) + 1.2, 0.7 * len(images)), layout="constrained"
    )
    _draw_grid(axis, np.stack(list(images.values())), shape)
    height = shape[0]
    axis.set_yticks(height * (np.arange(len(images)) + 0.5), list(images), fontsize=9)
    return figure


def manifold(
    model: SCGMVAE,
    *,
    n: int = 20,
    limits: tuple[float, float] = (-4.0, 4.0),
    conditions: Mapping[str, object] | None = None,
) -> Figure:
    """Images decoded at a square grid of a two-dimensional z.

    Parameters
    ----------
    model
        A trained model of images with ``n_latent=2``.
    n
        Images in a row and in a column.
    limits
        Smallest and largest z in both dimensions.
    conditions
        As in :meth:`scgmvae.SCGMVAE.decode`.

    Returns
    -------
    Figure, with the first dimension of z to the right and the second upwards.

    Raises
    ------
    ValueError
        If the model is not of images, or z has not two dimensions.
    """
    shape = _image_shape(model)
    check_whole(2, n=n)
    if model.module.n_latent != 2:
        raise ValueError(
            "The manifold is a plane, so the model needs n_latent=2, but it has "
            f"n_latent={model.module.n_latent}."
        )
    ticks = np.linspace(*limits, n)
    right, up = np.meshgrid(ticks, ticks[::-1])
    decoded = model.decode(np.column_stack([right.ravel(), up.ravel()]), conditions)
    figure, axis = plt.subplots(figsize=(5.4, 5.4 * shape[0] / shape[1]), layout="constrained")
    _draw_grid(axis, decoded.reshape(n, n, -1), shape)
    shown = np.linspace(0, n - 1, 5).round().astype(int)
    labels = [f"{ticks[i]:.1f}" for i in shown]
    axis.set_xticks(shape[1] * (shown + 0.5), labels, fontsize=8)
    axis.set_yticks(shape[0] * (n - shown - 0.5), labels, fontsize=8)
    axis.set_xlabel("z, first dimension", fontsize=9)
    axis.set_ylabel("z, second dimension", fontsize=9)
    return figure


def samples(
    model: SCGMVAE,
    n_draws: int = 6,
    conditions: Mapping[str, object] | None = None,
    *,
    seed: int = 0,
) -> Figure:
    """Images of the model's own making: a column per component, a row per draw of w.

    Parameters
    ----------
    model
        A trained model of images with components.
    n_draws
        Number of draws of w.
    conditions
        As in :meth:`scgmvae.SCGMVAE.decode`.
    seed
        Of the draws.

    Returns
    -------
    Figure.

    Raises
    ------
    ValueError
        If the model is not of images.
    RuntimeError
        If it has no components.
    """
    shape = _image_shape(model)
    decoded = model.decode_components(n_draws, conditions, seed=seed)  # (n_draws, K, G)
    n_components = decoded.shape[1]
    figure, axis = plt.subplots(
        figsize=(0.6 * n_components + 0.5, 0.6 * n_draws + 0.5), layout="constrained"
    )
    _draw_grid(axis, decoded, shape)
    names = list(model.component_names)
    angle = 90 if max(map(len, names)) > 3 else 0
    axis.set_xticks(shape[1] * (np.arange(n_components) + 0.5), names, fontsize=8, rotation=angle)
    axis.set_xlabel("component", fontsize=9)
    axis.set_ylabel("draws of w", fontsize=9)
    return figure


def _image_shape(model: SCGMVAE) -> tuple[int, ...]:
    """Shape of the images that a model is of."""
    if model.module.image_shape is None:
        raise ValueError(
            "This figure shows images, but the model's data are none: adata.uns['image_shape'] "
            "was not set when the model was made."
        )
    return model.module.image_shape


def _draw_grid(axis: Axes, images: NDArray[np.floating], shape: Sequence[int]) -> None:
    """Draw images (rows, columns, H·W·C) side by side, without ticks, with lines between them."""
    n_rows, n_columns, _ = images.shape
    height, width, n_channels = (*shape, 1)[:3]
    tiled = images.reshape(n_rows, n_columns, height, width, n_channels).swapaxes(1, 2)
    tiled = tiled.reshape(n_rows * height, n_columns * width, n_channels).clip(0, 1)
    extent = (0, n_columns * width, n_rows * height, 0)
    if n_channels == 3:
        axis.imshow(tiled, extent=extent)
    else:  # ink on paper; of other numbers of channels the first
        axis.imshow(tiled[..., 0], cmap="gray_r", vmin=0, vmax=1, extent=extent)
    for row in range(1, n_rows):
        axis.axhline(row * height, color="0.8", linewidth=0.8)
    for column in range(1, n_columns):
        axis.axvline(column * width, color="0.8", linewidth=0.8)
    axis.set_xticks([])
    axis.set_yticks([])
