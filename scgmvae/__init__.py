"""scgmvae: one generative model for embedding and clustering of single cells."""

from scgmvae import datasets, metrics
from scgmvae import plotting as pl
from scgmvae.dual import DualModule
from scgmvae.dual_model import DualVAE
from scgmvae.model import SCGMVAE
from scgmvae.module import CGMVAE

__all__ = ["CGMVAE", "SCGMVAE", "DualModule", "DualVAE", "datasets", "metrics", "pl"]

__version__ = "0.1.0"
