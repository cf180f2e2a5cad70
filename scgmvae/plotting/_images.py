"""Figures of images: reconstructions, and images that models generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from scvi import REGISTRY_KEYS

from scgmvae.checks import check_whole, is_number
from scgmvae.data.validation import rows_of
from scgmvae.dual.model import DualVAE

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scgmvae.model.scgmvae import SCGMVAE

__all__ = ["manifold", "reconstructions", "samples"]

N_COLUMNS = 10
"""Images in a row of samples of a model without components."""


def reconstructions(
    models: SCGMVAE | Mapping[str, SCGMVAE],
    adata: AnnData | None = None,
    *,
    indices: Sequence[int] | None = None,
    n_images: int = 10,
) -> Figure:
    """Images and their reconstructions: a row of originals, then a row per model.

    Values are drawn from 0 (white) to 1 (black); values outside, which a Gaussian likelihood
    allows, are drawn as the nearer of the two. Of images with two channels, or more than three,
    the first channel is drawn.

    Parameters
    ----------
    models
        A trained model, or several by name, all of the same images.
    adata
        Images; ``None`` takes those of the first model.
    indices
        Rows to show; ``None`` takes the first ``n_images``.
    n_images
        Number of images if ``indices`` is not given.

    Returns
    -------
    Figure.

    Raises
    ------
    ValueError
        If the models are not of images, or have no names.
    """
    if isinstance(models, Sequence):
        raise ValueError(
            f"models must be a model, or models by name, as {{'VAE': vae, 'c*GMVAE': model}}, but "
            f"it is a {type(models).__name__}."
        )
    if not isinstance(models, Mapping):
        models = {"reconstruction": models}
    if not models:
        raise ValueError("models must hold at least one trained model, but it is empty.")
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

    Values outside 0 to 1 are drawn as in :func:`reconstructions`.

    Parameters
    ----------
    model
        A trained model of images with ``n_latent=2``.
    n
        Number of images in a row and in a column.
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
    pair = np.asarray(limits).ravel().tolist()
    if not (len(pair) == 2 and all(map(is_number, pair)) and pair[0] < pair[1]):
        raise ValueError(
            f"limits must be the smallest and the largest z, as (-4, 4), but they are {limits!r}."
        )
    if model.module.n_latent != 2:
        raise ValueError(
            "The manifold is a plane, so the model needs n_latent=2, but it has "
            f"n_latent={model.module.n_latent}."
        )
    ticks = np.linspace(pair[0], pair[1], n)
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
    """Images that the model generates: a column per component, a row per draw of w.

    A VAE has no components: its images are decoded at draws of z, ten in a row. Values outside 0
    to 1 are drawn as in :func:`reconstructions`.

    Parameters
    ----------
    model
        A trained model of images with components, or a VAE.
    n_draws
        Number of draws of w, or of rows of a VAE.
    conditions
        As in :meth:`scgmvae.SCGMVAE.decode`.
    seed
        Seed of the random draws.

    Returns
    -------
    Figure.

    Raises
    ------
    ValueError
        If the model is not of images.
    RuntimeError
        If it is an autoencoder, which has neither components nor a density of z.
    """
    shape = _image_shape(model)
    if model.module.prior == "normal":
        return _samples_of_vae(model, n_draws, conditions, seed)
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


def _samples_of_vae(
    model: SCGMVAE, n_draws: int, conditions: Mapping[str, object] | None, seed: int
) -> Figure:
    """Images decoded at draws of p(z), or of p(z|c)."""
    check_whole(1, n_draws=n_draws)
    drawn = model.sample(n_draws * N_COLUMNS, conditions=conditions, seed=seed)
    figure, axis = plt.subplots(
        figsize=(0.6 * N_COLUMNS + 0.5, 0.6 * n_draws + 0.3), layout="constrained"
    )
    rate = drawn.layers["rate"].reshape(n_draws, N_COLUMNS, -1)
    _draw_grid(axis, rate, model.module.image_shape)
    axis.set_xlabel("draws of z", fontsize=9)
    return figure


def _image_shape(model: SCGMVAE) -> tuple[int, ...]:
    """Shape of the images that a model is of."""
    if isinstance(model, DualVAE):
        raise ValueError(
            "This figure decodes one z to values from 0 to 1, but a DualVAE has two latents and "
            "an image in units of light. Draw model.get_foreground() and model.get_background(), "
            "reshaped to adata.uns['image_shape'], with matplotlib's imshow, and the latents with "
            "scgmvae.pl.latent(model, which=...)."
        )
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
    else:  # dark on white; of other numbers of channels the first is drawn
        axis.imshow(tiled[..., 0], cmap="gray_r", vmin=0, vmax=1, extent=extent)
    for row in range(1, n_rows):
        axis.axhline(row * height, color="0.8", linewidth=0.8)
    for column in range(1, n_columns):
        axis.axvline(column * width, color="0.8", linewidth=0.8)
    axis.set_xticks([])
    axis.set_yticks([])
