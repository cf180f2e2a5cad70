"""Simulated images of neuronal activity, with the two sources of their light known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgmvae.checks import (
    check_at_least,
    check_positive,
    check_seed,
    check_whole,
    is_number,
)
from scgmvae.datasets.simulated import _annotated

if TYPE_CHECKING:
    import anndata as ad
    from numpy.typing import NDArray

__all__ = ["two_photon"]

SOURCES = (2, 2)
"""Rows and columns of wide sources of the background: one in each quarter of the image."""

STRENGTH_SHAPE = 2.0
"""Shape of the gamma distribution of a source's strength, whose sd is 0.7 of its mean."""


def two_photon(
    n: int = 2000,
    seed: int = 0,
    *,
    image_shape: tuple[int, int] = (60, 60),
    sector: int = 6,
    p_on: float = 0.5,
    photons: float = 10.0,
    background: float = 1.0,
    read_noise: float = 1.0,
) -> ad.AnnData:
    r"""Sharp sectors in focus over diffuse light from below, as two-photon microscopy sees them.

    .. math::
        x \sim \mathrm{Poisson}(f + b) + N(0, \mathtt{read\_noise}^2), \qquad
        f = \mathtt{photons} \cdot a_{\mathrm{sector}}, \quad a \sim \mathrm{Bernoulli}(p_{on}),
        \qquad b = \textstyle\sum_j s_j h_j, \quad s_j \sim \mathrm{Gamma}

    The foreground f is a grid of square sectors, each on or off independently. The background b
    comes from four wide sources h, one somewhere in each quarter of the image, of a strength that
    varies from image to image.

    Parameters
    ----------
    n
        Number of images.
    seed
        Seed of the places of the sources and of everything that varies between images.
    image_shape
        Height and width in pixels, multiples of ``sector``.
    sector
        Side of a sector, in pixels.
    p_on
        Probability that a sector is on.
    photons
        Foreground of a sector that is on, in photons per pixel.
    background
        Mean of the background over pixels and images, as a multiple of ``photons``: with 1 it is
        as strong as the foreground where that is on.
    read_noise
        Standard deviation of the detector's noise, in photons. Without it (0) ``X`` are counts;
        with it there are negative values.

    Returns
    -------
    anndata.AnnData
        ``X``: intensities in photons, float32, ``(n, height * width)``. ``layers``: the truth,
        ``"true_foreground"`` and ``"true_background"``, expected photons, float32.
        ``obsm["sectors"]``: whether each sector is on, row by row. ``uns``: ``"image_shape"`` and
        ``"sector"``.

    Raises
    ------
    ValueError
        If a number is out of range, or the sectors do not fill the image.

    Notes
    -----
    The sources are Gaussian with a standard deviation of a fifth of the image's longer side, and
    their strengths have a gamma distribution of shape 2, independent of one another.

    Examples
    --------
    >>> adata = two_photon(100)
    >>> adata.shape, adata.obsm["sectors"].shape
    ((100, 3600), (100, 100))
    >>> light = adata.layers["true_foreground"] + adata.layers["true_background"]
    >>> bool(abs((adata.X - light).mean()) < 0.1)  # what is left is noise
    True
    """
    if np.shape(image_shape) != (2,):
        raise ValueError(
            f"image_shape must be (height, width) in pixels, but received {image_shape!r}."
        )
    height, width = image_shape
    check_whole(1, n=n, height=height, width=width, sector=sector)
    check_positive(photons=photons)
    check_at_least(0, background=background, read_noise=read_noise)
    check_seed(seed)
    if not (is_number(p_on) and 0 <= p_on <= 1):
        raise ValueError(f"p_on must lie in [0, 1], but received {p_on!r}.")
    if height % sector or width % sector:
        raise ValueError(
            "Sectors must fill the image, so its sides must be multiples of sector, but received "
            f"image_shape={tuple(image_shape)} and sector={sector}."
        )
    rng = np.random.default_rng(seed)
    sources = _wide_sources(height, width, rng)  # (4, H, W)
    strengths = rng.gamma(STRENGTH_SHAPE, 1 / STRENGTH_SHAPE, size=(n, len(sources)))
    below = background * photons * np.tensordot(strengths, sources / sources.sum(0).mean(), 1)
    is_on = rng.random((n, height // sector, width // sector)) < p_on
    focussed = photons * is_on.repeat(sector, 1).repeat(sector, 2)
    x = rng.poisson(focussed + below) + read_noise * rng.standard_normal(below.shape)

    adata = _annotated(x.reshape(n, -1).astype(np.float32), {}, "pixel", row="image")
    adata.layers["true_foreground"] = focussed.reshape(n, -1).astype(np.float32)
    adata.layers["true_background"] = below.reshape(n, -1).astype(np.float32)
    adata.obsm["sectors"] = is_on.reshape(n, -1)
    adata.uns |= {"image_shape": np.array([height, width]), "sector": sector}
    return adata


def _wide_sources(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Light of each source of strength 1, shape ``(4, height, width)``."""
    corners = np.stack(np.meshgrid(*map(np.arange, SOURCES), indexing="ij"), -1).reshape(-1, 2)
    centers = (corners + rng.random(corners.shape)) / SOURCES * (height, width)
    rows, columns = np.ogrid[:height, :width]
    squared = [(rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 for y, x in centers]
    return np.exp(-np.stack(squared) / (2 * (max(height, width) / 5) ** 2))
