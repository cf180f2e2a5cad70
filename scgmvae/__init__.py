"""scgmvae: one generative model for embedding and clustering of single cells."""

from scgmvae import datasets, metrics
from scgmvae import plotting as pl
from scgmvae.dual.model import DualVAE
from scgmvae.dual.module import DualModule
from scgmvae.model.scgmvae import SCGMVAE
from scgmvae.module.cgmvae import CGMVAE

__all__ = ["CGMVAE", "SCGMVAE", "DualModule", "DualVAE", "datasets", "metrics", "pl"]

__version__ = "0.1.0"
