"""Groups of points around far centres, which several tests of partitions share."""

import numpy as np

SIZES = [90, 70, 50, 40]


def make_blobs(sizes=SIZES, n_dims=5, distance=20.0, seed=0):
    """Groups of the given sizes around far centres, in shuffled order, and their codes."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return distance * np.eye(len(sizes), n_dims)[codes] + rng.normal(
        size=(len(codes), n_dims)
    ), codes
