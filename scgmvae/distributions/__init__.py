"""Densities and divergences: pure functions of tensors, tested against closed forms."""
