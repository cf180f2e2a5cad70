"""Figures. Every function returns its Figure; none shows or saves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import scanpy as sc
from anndata import AnnData
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from scgmvae.model import SCGMVAE

__all__ = ["embedding", "training"]

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
    """
    history = model.history
    if not history:
        raise RuntimeError("The model has no training history: call train() first.")
    names = [name for name in TERMS if f"{name}_train" in history]
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
        axis.set_ylabel("nats per cell", fontsize=9)
    if any(f"{name}_validation" in history for name in names):
        axes.flat[0].legend(fontsize=8)
    return figure
