"""The dual VAE, a separate part of the package: no other model depends on it."""
