"""The dual VAE, a slice of its own: nothing outside of it is needed to remove it."""
