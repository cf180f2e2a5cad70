"""Keys of data that come with the cells beside the fields that scvi-tools registers."""

__all__ = [
    "CELLS_KEY",
    "COMPONENT_KEY",
    "COPIED_KEY",
    "FEATURE_MODALITY_KEY",
    "GUIDE_KEY",
    "IMAGE_SHAPE_KEY",
    "MODALITIES_KEY",
    "MODALITY_KEY",
    "OBSERVED_KEY",
    "PANELS_KEY",
    "PANEL_KEY",
    "SEEN_KEY",
    "SHARED_KEYS",
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

MODALITIES_KEY = "_scgmvae_modalities"
"""Key in ``uns`` of a MuData of how several modalities were set up, and in that of the AnnData
that holds them side by side of their names, likelihoods and sizes."""

FEATURE_MODALITY_KEY = "modality"
"""Column of ``var`` with the modality of each feature, where they stand side by side."""

PANEL_KEY = "_scgmvae_panel"
"""Key in a minibatch, and column of ``obs``: the panel of features of each cell, (n,)."""

PANELS_KEY = "_scgmvae_panels"
"""Key in a minibatch and in ``uns``: whether each panel holds each feature, (P, G)."""

SHARED_KEYS = (OBSERVED_KEY, PANELS_KEY)
"""Keys in a minibatch of what all its cells share."""
