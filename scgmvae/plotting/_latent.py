"""Figures of the latent: scatters in two dimensions, and the loss by number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from scgmvae.checks import check_choices, check_seed, check_whole
from scgmvae.compat import torch_threads_kept
from scgmvae.data.validation import check_anndata, check_columns
from scgmvae.dual.model import DualVAE
from scgmvae.plotting._plane import point_size as usual_size
from scgmvae.plotting._style import WIDTH, palette_of, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgmvae.dual.model import Source
    from scgmvae.model.scgmvae import SCGMVAE

__all__ = ["embedding", "in_two_dimensions", "latent", "latent_size"]

FEWEST_REDUCED = 10
"""Smallest number of cells for UMAP or t-SNE, which fail, or show nothing, with fewer."""

LEGEND_WIDTH = 48
"""Letters that a line of a legend has room for; the marker of a name counts as five."""

LONGEST_LEGEND = 30
"""Largest number of lines of a legend; a longer legend is left out."""


def embedding(
    adata: AnnData,
    color: str | Sequence[str] = "scgmvae",
    basis: str = "umap",
    point_size: float = 0,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Scatter of a two-dimensional embedding, a panel per obs column, legends below them.

    Parameters
    ----------
    adata
        Data with the embedding in ``obsm["X_<basis>"]``.
    color
        obs columns or genes, at least one.
    basis
        Name of the embedding.
    point_size
        Area of the points in pt²; 0 makes them smaller the more cells there are.
    ax
        Axes to draw a single panel into.

    Returns
    -------
    Figure with a row of panels.

    Raises
    ------
    KeyError
        If there is no such column, gene or embedding.
    ValueError
        If there is nothing to colour by, no AnnData, or ``ax`` is given for several panels.

    Examples
    --------
    >>> adata.obsm["X_z"] = model.get_latent_representation()[:, :2]
    >>> figure = embedding(adata, basis="z")
    """
    check_anndata(adata)
    color = [color] if isinstance(color, str) else list(color)
    if not color:
        raise ValueError("color must name at least one obs column or gene, but it is empty.")
    if ax is not None:
        if len(color) != 1:
            raise ValueError(f"ax has room for one panel, but color names {len(color)}: {color}.")
        _panel(adata, color[0], basis, point_size, ax)
        return ax.figure
    n_lines = max(_legend_shape(adata, name)[0] for name in color)
    figure, axes = plt.subplots(
        1,
        len(color),
        figsize=(WIDTH * len(color), 3.0 + 0.16 * n_lines),
        squeeze=False,
        layout="constrained",
    )
    for axis, name in zip(axes[0], color, strict=True):
        _panel(adata, name, basis, point_size, axis)
    return figure


def _panel(adata: AnnData, name: str | None, basis: str, point_size: float, axis: Axes) -> None:
    sc.pl.embedding(
        adata,
        basis,
        color=name,
        ax=axis,
        show=False,
        size=point_size or usual_size(adata.n_obs),
        frameon=False,
        palette=palette_of(adata, name),
        title="" if name is None else plain(name),
    )
    axis.title.set_size(9)
    if axis.get_legend() is None:  # numbers have no legend
        return
    _, n_columns = _legend_shape(adata, name)
    if not n_columns:
        axis.get_legend().remove()
    else:
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(
            handles,
            [plain(label) for label in labels],
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=n_columns,
            fontsize=8,
            frameon=False,
            handletextpad=0.1,
            columnspacing=0.8,
        )


def _legend_shape(adata: AnnData, name: str | None) -> tuple[int, int]:
    """Lines and columns of the legend of an obs column; 0 for numbers, genes and long legends."""
    if name not in adata.obs or adata.obs[name].dtype.kind in "iuf":
        return 0, 0
    names = [plain(value) for value in adata.obs[name].astype("category").cat.categories]
    n_columns = max(1, LEGEND_WIDTH // (5 + max(map(len, names))))
    n_lines = -(-len(names) // n_columns)
    return (n_lines, n_columns) if n_lines <= LONGEST_LEGEND else (0, 0)


def latent(
    model: SCGMVAE | DualVAE,
    color: str | Sequence[str] | None = None,
    adata: AnnData | None = None,
    *,
    method: Literal["umap", "tsne"] = "umap",
    which: Source = "foreground",
    n_cells: int = 5000,
    seed: int = 0,
    point_size: float = 0,
    ax: Axes | None = None,
) -> Figure:
    """Scatter of z, a panel per colouring; z itself is drawn if it has two dimensions.

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
        Method that reduces a z of more dimensions to two: UMAP or t-SNE, as scanpy has them.
    which
        Of a :class:`~scgmvae.DualVAE`, the latent to draw: ``"foreground"`` or ``"background"``.
    n_cells
        Largest number of cells in the figure; of more, as many are drawn at random.
    seed
        Seed of that draw and of the reduction.
    point_size
        Area of the points in pt²; 0 makes them smaller the more cells there are.
    ax
        Axes to draw a single panel into.

    Returns
    -------
    Figure with a row of panels.

    Raises
    ------
    KeyError
        If there is no such obs column.
    RuntimeError
        If the model is untrained, or has no components to colour by.
    ValueError
        If there are fewer cells than a reduction needs.
    """
    check_choices(method=(method, ("umap", "tsne")))
    check_whole(1, n_cells=n_cells)
    check_seed(seed)
    check_choices(which=(which, ("foreground", "background")))
    color = _colors(model, color)
    source = model._validate_anndata(adata)
    for name in color:
        if name != "component":
            check_columns(source, color=name)
    rows = np.arange(source.n_obs)
    if source.n_obs > n_cells:
        rows = np.sort(np.random.default_rng(seed).choice(source.n_obs, n_cells, replace=False))
    one_of_two: dict[str, Any] = {"which": which} if isinstance(model, DualVAE) else {}
    z = model.get_latent_representation(adata, indices=rows, **one_of_two)
    shown = AnnData(z, obs=source.obs.iloc[rows][[n for n in color if n != "component"]].copy())
    shown.uns = {name: colors for name, colors in source.uns.items() if name.endswith("_colors")}
    if "component" in color:
        names = model.predict(adata, indices=rows, components=True)
        shown.obs["component"] = pd.Categorical(names, list(model.component_names))
        shown.obs["component"] = shown.obs["component"].cat.remove_unused_categories()
        shown.uns.pop("component_colors", None)
    if shown.n_vars != 2 and shown.n_obs < FEWEST_REDUCED:
        raise ValueError(
            f"{method} needs at least {FEWEST_REDUCED} cells to bring {shown.n_vars} dimensions "
            f"of z to two, but there are {shown.n_obs}. Draw more cells, or take a model of "
            "n_latent=2."
        )
    basis = in_two_dimensions(shown, method, seed)
    return embedding(shown, color or [None], basis, point_size, ax=ax)


def _colors(model: SCGMVAE | DualVAE, color: str | Sequence[str] | None) -> list[str]:
    """What to colour a latent by; by default the components, where there are any."""
    if isinstance(model, DualVAE):
        if color is not None and "component" in ([color] if isinstance(color, str) else color):
            raise ValueError(
                "A DualVAE has no components to colour by. Give obs columns, or leave color out."
            )
        color = [] if color is None else color
    elif color is None:
        color = "component" if model.module.mixture_started else []
    return list(color) if isinstance(color, Sequence) and not isinstance(color, str) else [color]


@torch_threads_kept()
def in_two_dimensions(
    adata: AnnData, method: Literal["umap", "tsne"] = "umap", seed: int = 0
) -> str:
    """Reduce z, the X of the data, to two dimensions, which are kept in ``obsm``.

    Parameters
    ----------
    adata
        Cells × dimensions of z. The result is written into its ``obsm``.
    method
        Method that reduces a z of more than two dimensions.
    seed
        Seed of the reduction.

    Returns
    -------
    Name of the embedding: ``"z"`` where z has two dimensions, ``"pca"`` (two principal components)
    where there are too few cells for either method, else the method's.
    """
    if adata.n_vars == 2:
        adata.obsm["X_z"] = adata.X
        return "z"
    if adata.n_obs < FEWEST_REDUCED:  # too few for either method
        centred = adata.X - adata.X.mean(axis=0)
        both = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        adata.obsm["X_pca"] = np.pad(both, ((0, 0), (0, 2 - both.shape[1])))
        return "pca"
    if method == "umap":
        sc.pp.neighbors(adata, use_rep="X", random_state=seed)
        sc.tl.umap(adata, random_state=seed)
    else:
        perplexity = min(30, (adata.n_obs - 1) / 3)  # scikit-learn asks for less than n
        sc.tl.tsne(adata, use_rep="X", perplexity=perplexity, random_state=seed)
    return method


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
