"""Images as rows of X: their shape, bytes as values in [0, 1], distorted copies.

An AnnData holds images when ``uns["image_shape"]`` is (height, width) or (height, width,
channels), and a row of ``X`` one image in that order of axes. Values lie in [0, 1]; bytes (uint8)
stand for 0/255 to 255/255 and become floats only in the minibatch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from scgmvae.data.keys import IMAGE_SHAPE_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from scvi.data import AnnDataManager

    from scgmvae.data.matrices import Matrix

__all__ = [
    "check_same_shape",
    "distorted",
    "image_shape_of",
    "pixel_scale",
    "scale_of",
    "shape_of",
]


LARGEST_DISTORTION = (0.15, 0.2, 0.1, 1 / 28, 1 / 28)
"""Largest angle, shear and change of size, and shifts right and down in sides of the image."""


def image_shape_of(adata: AnnData) -> tuple[int, ...] | None:
    """Shape of the images in the rows of ``X``, or ``None`` if the rows are not images.

    Parameters
    ----------
    adata
        The data.

    Raises
    ------
    ValueError
        If the shape is not two or three positive whole numbers, or their product is not the
        number of columns.

    Examples
    --------
    >>> from anndata import AnnData
    >>> image_shape_of(AnnData(np.zeros((2, 6)), uns={"image_shape": (3, 2)}))
    (3, 2)
    """
    given = adata.uns.get(IMAGE_SHAPE_KEY)
    if given is None:
        return None
    shape = shape_of(given)
    if np.prod(shape) != adata.n_vars:
        raise ValueError(
            "A row of X must hold one image, but adata.uns['image_shape'] = "
            f"{shape} makes {np.prod(shape)} values and there are {adata.n_vars} columns. Correct "
            "the shape, or remove it if the rows are no images."
        )
    return shape


def shape_of(given: object) -> tuple[int, ...]:
    """Shape of an image as a tuple; ``ValueError`` if it is not one."""
    sizes = np.asarray(given).ravel()
    is_whole = sizes.dtype.kind in "iuf" and (sizes == np.floor(sizes)).all()
    if not (is_whole and len(sizes) in (2, 3) and (sizes > 0).all()):
        raise ValueError(
            "adata.uns['image_shape'] must be (height, width) or (height, width, channels) in "
            f"pixels, but it is {given!r}."
        )
    return tuple(int(size) for size in sizes)


def check_same_shape(manager: AnnDataManager, image_shape: Sequence[int] | None) -> None:
    """Raise ``ValueError`` if data are not images of the shape that a model has.

    Floats without a shape are accepted, because their values mean the same without one.

    Parameters
    ----------
    manager
        Manager of the AnnData.
    image_shape
        Image shape of the model; ``None`` for a model that is not of images.
    """
    shape = image_shape_of(manager.adata)
    is_bytes = manager.get_from_registry(REGISTRY_KEYS.X_KEY).dtype == np.uint8
    if shape is None and (image_shape is None or not is_bytes):
        return
    expected = None if image_shape is None else tuple(image_shape)
    if shape != expected:
        raise ValueError(
            f"The model reads images of shape {expected}, but adata.uns['image_shape'] is {shape}."
            f" Set adata.uns['image_shape'] = {list(expected or ())} if the rows are such images."
            if expected
            else "The model's data had no adata.uns['image_shape'] when it was made, but this has "
            f"{shape}. Remove it, or make the model of images."
        )


def pixel_scale(manager: AnnDataManager) -> float:
    """Factor of the values of the registered matrix: 1/255 for bytes of images, else 1.

    Parameters
    ----------
    manager
        Manager of the AnnData.
    """
    return scale_of(manager.adata, manager.get_from_registry(REGISTRY_KEYS.X_KEY))


def scale_of(adata: AnnData, x: Matrix) -> float:
    """Factor of the values of a matrix of the data: 1/255 for bytes of images, else 1."""
    is_bytes = x.dtype == np.uint8 and IMAGE_SHAPE_KEY in adata.uns
    return 1 / 255 if is_bytes else 1.0


def distorted(x: Tensor, image_shape: Sequence[int], amount: float = 1.0) -> Tensor:
    """Every image turned, sheared, enlarged and moved a little, each at random.

    Parameters
    ----------
    x
        Images, ``(n, H·W·C)``.
    image_shape
        Height, width and, if there are any, channels.
    amount
        With 1 images turn by up to 0.15 (about 9°), shear by up to 0.2, are seen at 0.9 to 1.1
        times the pixels' distance and move by up to a 28th of their sides; uniform, from torch's
        random state. Other amounts multiply all of these.

    Returns
    -------
    Tensor ``(n, H·W·C)``. Zeros come in from outside; values in between pixels are interpolated.
    """
    height, width, n_channels = (*image_shape, 1)[:3]
    images = x.float().view(-1, height, width, n_channels).permute(0, 3, 1, 2)
    bounds = amount * torch.tensor(LARGEST_DISTORTION, device=x.device)
    turn, shear, growth, right, down = (
        (2 * torch.rand(len(x), 5, device=x.device) - 1) * bounds
    ).T
    cosine, sine = (1 + growth) * turn.cos(), (1 + growth) * turn.sin()
    # place that each pixel comes from, in half sides from the middle
    aspect = height / width  # angles are those between pixels, not between sides
    rows = [
        torch.stack([cosine, aspect * (shear * cosine - sine), 2 * right], dim=1),
        torch.stack([sine / aspect, shear * sine + cosine, 2 * down], dim=1),
    ]
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too coarse for places
        grid = affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
        moved = grid_sample(images, grid, align_corners=False)
    return moved.permute(0, 2, 3, 1).flatten(1)
