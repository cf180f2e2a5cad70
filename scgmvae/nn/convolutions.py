"""Convolutional encoder and decoder of images: three halvings of the sides, three doublings.

An image is a row of H·W·C values in the order height, width, channel. Both networks take square
steps of two with kernels of four, the decoder as the mirror of the encoder, each with batch
normalisation and ReLU. c enters at the linear maps to and from the latents.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgmvae.nn.bounds import full
from scgmvae.nn.layers import ConditionedLinear, Conditions, ConditionSizes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ConvolutionalDecoder", "ConvolutionalTrunk", "check_image_shape"]

CHANNELS = (32, 64, 128)
KERNEL, STRIDE, PADDING = 4, 2, 1
SMALLEST_SIDE = STRIDE ** len(CHANNELS)


def check_image_shape(image_shape: Sequence[int] | None) -> None:
    """Raise ``ValueError`` unless there is a shape that can be halved three times."""
    if image_shape is None:
        raise ValueError(
            "encoder='conv' needs the shape of the images, but adata.uns has no 'image_shape'. "
            "Set adata.uns['image_shape'] = (height, width) or (height, width, channels)."
        )
    if min(image_shape[:2]) < SMALLEST_SIDE:
        raise ValueError(
            f"encoder='conv' halves height and width {len(CHANNELS)} times, so both must be at "
            f"least {SMALLEST_SIDE}, but image_shape is {tuple(image_shape)}. Use encoder='mlp'."
        )


def _norm(n_channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(n_channels, momentum=0.01, eps=1e-3)  # as in scvi-tools


def _sides(side: int) -> list[int]:
    """The side of an image before and after each halving.

    Examples
    --------
    >>> _sides(28)
    [28, 14, 7, 3]
    """
    sides = [side]
    for _ in CHANNELS:
        sides.append((sides[-1] + 2 * PADDING - KERNEL) // STRIDE + 1)
    return sides


class ConvolutionalTrunk(nn.Module):
    """Convolutions from images to a vector, in place of the hidden layers of the encoder.

    Parameters
    ----------
    image_shape
        Height, width and, if there are any, channels.

    References
    ----------
    Radford et al. 2016, "Unsupervised representation learning with deep convolutional generative
    adversarial networks" (strided convolutions in place of pooling).
    """

    takes_conditions = False

    def __init__(self, image_shape: Sequence[int]):
        super().__init__()
        self.image_shape = (*image_shape, 1)[:3]  # height, width, channels
        height, width, n_channels = self.image_shape
        layers = []
        for n_in, n_out in pairwise((n_channels, *CHANNELS)):
            # the bias would be taken out again by the normalisation
            layers.append(nn.Conv2d(n_in, n_out, KERNEL, STRIDE, PADDING, bias=False))
            layers += [_norm(n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.n_out = CHANNELS[-1] * _sides(height)[-1] * _sides(width)[-1]

    def forward(self, inputs: Tensor, c: Conditions) -> Tensor:
        """``(n, H·W·C)`` to ``(n, n_out)``."""
        images = inputs.unflatten(-1, self.image_shape).permute(0, 3, 1, 2)
        return self.layers(images).flatten(1)


class ConvolutionalDecoder(nn.Module):
    """p(x|z,c) of images: a linear map of z and c, then transposed convolutions.

    Parameters
    ----------
    n_latent
        L, dimensions of z.
    sizes
        Sizes of the conditions.
    image_shape
        Height, width and, if there are any, channels.
    n_heads
        Outputs per value: 1, or 2 where the network gives standard deviations too.
    """

    def __init__(
        self, n_latent: int, sizes: ConditionSizes, image_shape: Sequence[int], n_heads: int = 1
    ):
        super().__init__()
        self.n_heads = n_heads
        height, width, n_channels = (*image_shape, 1)[:3]
        sides = list(zip(_sides(height), _sides(width), strict=True))[::-1]  # smallest first
        self.first_shape = (CHANNELS[-1], *sides[0])
        n_first = CHANNELS[-1] * sides[0][0] * sides[0][1]
        self.first = ConditionedLinear(n_latent, n_first, sizes)
        layers: list[nn.Module] = [_norm(CHANNELS[-1]), nn.ReLU()]
        channels = (*CHANNELS[::-1], n_heads * n_channels)
        for i, (n_in, n_out) in enumerate(pairwise(channels)):
            # a halving rounds down; what it left out is added back
            left_out = [
                large - (STRIDE * (small - 1) + KERNEL - 2 * PADDING)
                for small, large in zip(sides[i], sides[i + 1], strict=True)
            ]
            is_last = i == len(CHANNELS) - 1
            layers.append(
                nn.ConvTranspose2d(n_in, n_out, KERNEL, STRIDE, PADDING, left_out, bias=is_last)
            )
            layers += [] if is_last else [_norm(n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, c: Conditions) -> list[Tensor]:
        """``(..., n, L)`` to the outputs of each head, ``(..., n, H·W·C)``."""
        hidden = self.first(z, c)
        images = self.layers(hidden.view(-1, *self.first_shape))  # (S·n, heads·C, H, W)
        return [
            full(head.permute(0, 2, 3, 1).reshape(*hidden.shape[:-1], -1))
            for head in images.chunk(self.n_heads, dim=1)
        ]

    @torch.no_grad()
    def start_at(self, output: Tensor, head: int = 0) -> None:
        """Set a head's bias to the mean of ``output``, (H·W·C,), where every image then starts."""
        bias = self.layers[-1].bias.chunk(self.n_heads)[head]
        bias.copy_(output.view(-1, len(bias)).mean(0))
