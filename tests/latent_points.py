"""Cells as points in z, encoders of them, and types in donors."""

import numpy as np

from scgmvae.clustering.group_sums import GroupSums

N_GENES = 200


def exact(rows):
    """Encoder of a model that gives back z as it is."""
    return lambda points, rng: points


def noisy(rows):
    """Encoder of a model that shrinks z, moves it, and adds noise."""
    return lambda points, rng: 0.6 * points + 1 + 0.3 * rng.standard_normal(points.shape)


def groups(sizes, distance, seed=0, n_latent=5):
    """Gaussian groups along different axes, and the group of each cell."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    z = rng.standard_normal((len(codes), n_latent))
    for group in range(1, len(sizes)):
        z[codes == group, (group - 1) % n_latent] += distance * (1 + (group - 1) // n_latent)
    return z, codes


def sums_of(x, group):
    """Sums of x over the cells of each group."""
    member = np.eye(group.max() + 1)[group]
    return GroupSums(member.T @ x, member.T @ x**2, np.bincount(group))


def cells(n_types, n_donors, donor_scale, seed=0, n=60):
    """Cells × genes of every type and donor, and the type and the donor of each cell."""
    rng = np.random.default_rng(seed)
    of_type = rng.normal(0, 1.0, (n_types, N_GENES))
    of_donor = rng.normal(0, donor_scale, (n_donors, N_GENES))
    types, donor = (
        codes.repeat(n).ravel() for codes in np.divmod(np.arange(n_types * n_donors), n_donors)
    )
    x = of_type[types] + of_donor[donor] + rng.standard_normal((len(types), N_GENES))
    return x, types, donor
