"""g: images at a low resolution, and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from scgmvae.checks import check_at_least, check_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LowResolution"]

BLUR_REACH = 3
"""Standard deviations of the blur after which its kernel ends."""


class LowResolution(nn.Module):
    """g(x): a Gaussian blur, if any, then the mean over square windows. Both are linear.

    Parameters
    ----------
    image_shape
        Height, width and, if there are any, channels.
    window
        Side of a window in pixels. Where it does not divide a side of the image, the last windows
        are smaller.
    blur
        Standard deviation of the blur, in pixels; 0 for none. Near the borders it is the mean of
        what lies within the image.

    Attributes
    ----------
    n_out
        Number of values of g(x).
    areas
        Pixels in each window, ``(n_out,)``.

    Raises
    ------
    ValueError
        If an image is smaller than the window, or a number is out of range.

    Examples
    --------
    >>> low = LowResolution((4, 6), window=2)
    >>> low(torch.arange(24.0).view(1, 24))
    tensor([[ 3.5000,  5.5000,  7.5000, 15.5000, 17.5000, 19.5000]])
    """

    def __init__(self, image_shape: Sequence[int], window: int, blur: float = 0.0):
        super().__init__()
        check_whole(1, window=window)
        check_at_least(0, blur=blur)
        if min(image_shape[:2]) < window:
            raise ValueError(
                "The low resolution has the means over square windows, so an image must not be "
                f"smaller than one, but image_shape is {tuple(image_shape)} and window={window}. "
                "Give a smaller window."
            )
        self.image_shape = (*image_shape, 1)[:3]  # height, width, channels
        self.window = window
        low_sides = [-(-side // window) for side in image_shape[:2]]
        self.low_shape = (*low_sides, self.image_shape[2])
        self.n_out = math.prod(self.low_shape)
        reach = math.ceil(BLUR_REACH * blur)
        offsets = torch.arange(-reach, reach + 1)
        kernel = torch.exp(-(offsets**2) / (2 * blur**2)) if blur else torch.ones(1)
        self.register_buffer("kernel", kernel, persistent=False)
        areas = torch.ones(self.low_shape)
        for axis, side in enumerate(image_shape[:2]):
            sizes = torch.full((low_sides[axis],), float(window))
            sizes[-1] = side - window * (low_sides[axis] - 1)
            areas *= sizes.view(-1, *(1,) * (2 - axis))
        self.register_buffer("areas", areas.flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(..., H·W·C)`` to ``(..., n_out)``."""
        images = _channels_first(x, self.image_shape)
        if len(self.kernel) > 1:
            images = self._blurred(images) / self._blurred(torch.ones_like(images[:1]))
        low = avg_pool2d(images, self.window, ceil_mode=True)
        return _rows(low, x.shape[:-1])

    def upsample(self, low: Tensor) -> Tensor:
        """``(..., n_out)`` to images ``(..., H·W·C)``, linear in between the windows' centres."""
        images = _channels_first(low, self.low_shape)
        images = interpolate(images, self.image_shape[:2], mode="bilinear", align_corners=False)
        return _rows(images, low.shape[:-1])

    def _blurred(self, images: Tensor) -> Tensor:
        """Every channel blurred along both sides, with zeros outside, (n, C, H, W)."""
        n_channels, reach = images.shape[1], len(self.kernel) // 2
        kernel = self.kernel.expand(n_channels, 1, 1, -1)
        images = conv2d(images, kernel, padding=(0, reach), groups=n_channels)
        return conv2d(images, kernel.mT, padding=(reach, 0), groups=n_channels)


def _channels_first(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """(..., H·W·C) to (n, C, H, W)."""
    return rows.reshape(-1, *shape).permute(0, 3, 1, 2)


def _rows(images: Tensor, leading: Sequence[int]) -> Tensor:
    """(n, C, H, W) to (..., H·W·C)."""
    return images.permute(0, 2, 3, 1).reshape(*leading, -1)
