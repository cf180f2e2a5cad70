"""Figures. Each function returns its Figure or Axes; none shows or saves it.

Functions that draw one panel take ``ax``, and without it make a figure one column (3.5 inches)
wide. Colours of a category are those of ``adata.uns["<key>_colors"]``, as scanpy keeps them; if
there are none and matplotlib's colour cycle was not changed, they are ten colours that
colour-blind readers tell apart.
"""

from scgmvae.plotting._clusters import composition, confusion, markers
from scgmvae.plotting._components import (
    component_labels,
    component_similarity,
    components,
    confidence,
    novelty,
)
from scgmvae.plotting._expression import generated, mean_expression
from scgmvae.plotting._images import manifold, reconstructions, samples
from scgmvae.plotting._latent import embedding, latent, latent_size
from scgmvae.plotting._overview import overview
from scgmvae.plotting._query import query
from scgmvae.plotting._splits import split_tree
from scgmvae.plotting._training import training, training_term

__all__ = [
    "component_labels",
    "component_similarity",
    "components",
    "composition",
    "confidence",
    "confusion",
    "embedding",
    "generated",
    "latent",
    "latent_size",
    "manifold",
    "markers",
    "mean_expression",
    "novelty",
    "overview",
    "query",
    "reconstructions",
    "samples",
    "split_tree",
    "training",
    "training_term",
]
