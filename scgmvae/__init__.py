"""scgmvae: one generative model for embedding, clustering and counterfactuals of single cells."""

from scgmvae import datasets, metrics
from scgmvae.model import SCGMVAE
from scgmvae.module import CGMVAE

__all__ = ["CGMVAE", "SCGMVAE", "datasets", "metrics"]

__version__ = "0.1.0"
