"""Partitions of cells, trees of components, and the names of clusters: arrays in, arrays out."""
