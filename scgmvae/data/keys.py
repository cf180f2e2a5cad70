"""Keys of data that come with the cells beside the fields that scvi-tools registers."""

__all__ = [
    "CELLS_KEY",
    "COMPONENT_KEY",
    "COPIED_KEY",
    "GUIDE_KEY",
    "IMAGE_SHAPE_KEY",
    "MODALITY_KEY",
    "OBSERVED_KEY",
    "SEEN_KEY",
]

CELLS_KEY = "cells"
"""Key in a minibatch of the rows of the AnnData that it is made of, (n,)."""

GUIDE_KEY = "guide"
"""Key in a minibatch of the starting partition, codes (n,), −1 for cells without a component."""

COMPONENT_KEY = "component"
"""Key in a minibatch of the components from which cells are drawn, (n,)."""

SEEN_KEY = "seen"
"""Key in a minibatch of the images as the encoder sees them, if they are distorted for it."""

OBSERVED_KEY = "_scgmvae_observed"
"""Key in a minibatch, and column of ``var``: whether a gene was measured, (G,)."""

IMAGE_SHAPE_KEY = "image_shape"
"""Key in ``adata.uns`` of height, width and, if any, channels of the images in the rows."""

COPIED_KEY = "_scgmvae_copied"
"""Key in the modality's ``uns`` of the obs columns that were copied from those of its MuData."""

MODALITY_KEY = "_scgmvae_modality"
"""Key in ``mdata.uns`` of the modality that was set up."""
