"""The c*GMVAE as a scvi-tools module: inference, generative model and loss."""
