"""scgmvae: one generative model for embedding and clustering of single cells."""

from scgmvae import datasets, metrics
from scgmvae import plotting as pl
from scgmvae.model import SCGMVAE
from scgmvae.module import CGMVAE

__all__ = ["CGMVAE", "SCGMVAE", "datasets", "metrics", "pl"]

__version__ = "0.1.0"
