"""scgmvae: one generative model for embedding and clustering of single cells."""

from scgmvae import datasets, metrics
from scgmvae import plotting as pl
from scgmvae.dual.model import DualVAE
from scgmvae.dual.module import DualModule
from scgmvae.model.scgmvae import SCGMVAE
from scgmvae.module.cgmvae import CGMVAE
from scgmvae.versions import __version__

__all__ = [
    "CGMVAE",
    "SCGMVAE",
    "DualModule",
    "DualVAE",
    "__version__",
    "datasets",
    "metrics",
    "pl",
]
