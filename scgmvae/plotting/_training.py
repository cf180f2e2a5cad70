"""Figures of training: the terms of the loss by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from scgmvae.checks import check_choices
from scgmvae.plotting._style import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgmvae.dual.model import DualVAE
    from scgmvae.model.scgmvae import SCGMVAE

__all__ = ["TERMS", "terms_of", "training", "training_term"]

TERMS = {
    "elbo": "−ELBO",
    "reconstruction_loss": "reconstruction, −log p(x|z,c)",
    "reconstruction_pixels": "reconstruction of all pixels",
    "reconstruction_low": "reconstruction at low resolution",
    "kl_foreground": "KL of z₁, foreground",
    "kl_background": "KL of z₂, background",
    "kl_z": "KL of z",
    "kl_w": "KL of w",
    "kl_y": "KL of y",
    "kl_d": "KL of d",
    "guide": "guide, cross-entropy",
    "classification": "labels, cross-entropy",
}
"""Name of each term of the loss in the history → its name in a figure."""


LEAST_SPAN = 0.5
"""Shortest range of an axis in nats."""


def terms_of(model: SCGMVAE | DualVAE) -> list[str]:
    """Names of the terms in the history of a model.

    Raises
    ------
    RuntimeError
        If the model is untrained, or was trained with another logger.
    """
    if not model.history and model.is_trained:
        raise RuntimeError(
            "The model is trained but has no history, which the logger of train() keeps where "
            "there is no other: leave logger as it is to draw the training."
        )
    if not model.history:
        raise RuntimeError("The model has no training history: call train() first.")
    if getattr(model.module, "prior", None) == "none":  # an autoencoder has no bound
        return ["reconstruction_loss"]
    return [name for name in TERMS if f"{name}_train" in model.history]


def training(model: SCGMVAE | DualVAE) -> Figure:
    """Each term of the loss by epoch, in nats per cell, with the stages marked.

    Parameters
    ----------
    model
        A trained model.

    Returns
    -------
    Figure with a panel per term, see :func:`training_term`.

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
    names = terms_of(model)
    n_columns = min(4, len(names))
    n_rows = -(-len(names) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(2.9 * n_columns, 2.2 * n_rows),
        squeeze=False,
        layout="constrained",
    )
    for axis, name in zip(axes.flat, names, strict=False):
        training_term(model, name, ax=axis)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")
    for axis in axes.flat[1:]:
        if axis.get_legend() is not None:
            axis.get_legend().remove()
    return figure


def training_term(model: SCGMVAE | DualVAE, term: str = "elbo", *, ax: Axes | None = None) -> Axes:
    """One term of the loss by epoch, in nats per cell.

    Parameters
    ----------
    model
        A trained model.
    term
        Name of the term: ``"elbo"`` (its negative is drawn), ``"reconstruction_loss"``,
        ``"kl_z"``, ``"kl_w"``, ``"kl_y"``, ``"kl_d"``, ``"guide"`` or ``"classification"``; of a
        :class:`~scgmvae.DualVAE` ``"reconstruction_pixels"``, ``"reconstruction_low"``,
        ``"kl_foreground"`` or ``"kl_background"`` in place of those of z, w, y and d.
    ax
        Axes to draw into.

    Returns
    -------
    Axes. Validation is dashed, where there was one; a dotted line marks the start of the joint
    stage.

    Raises
    ------
    RuntimeError
        If the model is untrained.
    ValueError
        If the model has no such term.
    """
    names = terms_of(model)
    check_choices(term=(term, names))
    history = model.history
    axis = new_axes(2.4) if ax is None else ax
    for part, style in (("train", "-"), ("validation", "--")):
        if f"{term}_{part}" in history:
            curve = history[f"{term}_{part}"].iloc[:, 0].astype(float)
            axis.plot(curve.index, curve, style, label=part, linewidth=1.2)
    if "kl_y_train" in history:
        axis.axvline(history["kl_y_train"].index[0], color="0.6", linewidth=0.8, linestyle=":")
    low, high = axis.get_ylim()
    if high - low < LEAST_SPAN:  # so that noise does not look like a change
        low = max(0.0, (low + high - LEAST_SPAN) / 2)
        axis.set_ylim(low, low + LEAST_SPAN)
    n_epochs = max(history[f"{name}_train"].index.max() for name in names)
    axis.set_xlim(-0.02 * n_epochs, 1.02 * n_epochs)
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axis.set_title(TERMS[term], fontsize=9)
    axis.set_xlabel("epoch", fontsize=9)
    axis.set_ylabel(f"nats per {'cell' if model.module.image_shape is None else 'image'}")
    axis.yaxis.label.set_size(9)
    axis.tick_params(labelsize=8)
    if f"{term}_validation" in history:
        axis.legend(fontsize=8)
    return axis
