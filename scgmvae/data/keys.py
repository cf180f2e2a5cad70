"""Keys of what comes with the cells beside the fields that scvi-tools registers."""

__all__ = [
    "CELLS_KEY",
    "COMPONENT_KEY",
    "GUIDE_KEY",
    "IMAGE_SHAPE_KEY",
    "MODALITY_KEY",
    "OBSERVED_KEY",
    "SEEN_KEY",
]

CELLS_KEY = "cells"
"""Of a minibatch: the rows of the AnnData that it is made of, (n,)."""

GUIDE_KEY = "guide"
"""Of a minibatch: the starting partition as component codes, (n,), −1 where a cell has none."""

COMPONENT_KEY = "component"
"""Of a minibatch: the components that cells are to be drawn from, (n,)."""

SEEN_KEY = "seen"
"""Of a minibatch: the images as the encoder sees them, where they are distorted for it."""

OBSERVED_KEY = "_scgmvae_observed"
"""Of a minibatch, and a column of ``var``: whether a gene was measured, (G,)."""

IMAGE_SHAPE_KEY = "image_shape"
"""Of ``adata.uns``: height, width and, if there are any, channels of the images in the rows."""

MODALITY_KEY = "_scgmvae_modality"
"""Of ``mdata.uns``: the modality that was set up."""
