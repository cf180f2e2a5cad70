"""Products of Gaussians, and encoders of cells that lack modalities."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from scgmvae.nn.experts import Experts, Seen, product_of_normals
from scgmvae.nn.layers import Conditions, ConditionSizes, Trunk
from scgmvae.nn.networks import Encoder

SIZES = (5, 3)
C = Conditions()


def normals(n=4, n_latent=2, m=3):
    rng = np.random.default_rng(0)
    return [
        Normal(
            torch.tensor(rng.normal(size=(n, n_latent))),
            torch.tensor(rng.uniform(0.5, 2, size=(n, n_latent))),
        )
        for _ in range(m)
    ]


def test_the_product_has_the_density_of_the_product():
    parts = normals()
    q = product_of_normals(parts)
    points = torch.randn(7, 4, 2, dtype=torch.float64)
    log_product = sum(part.log_prob(points) for part in parts)
    constant = q.log_prob(points) - log_product
    np.testing.assert_allclose(constant, constant[:1].expand_as(constant), atol=1e-12)


def test_what_has_no_weight_has_no_part_and_nothing_at_all_gives_a_unit_normal():
    parts = normals()
    weight = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    q = product_of_normals(parts, weight)
    of_two = product_of_normals([parts[0], parts[2]])
    np.testing.assert_allclose(q.loc[0], of_two.loc[0])
    np.testing.assert_allclose(q.loc[1], parts[1].loc[1])
    np.testing.assert_allclose(q.scale[1], parts[1].scale[1])
    assert q.loc[2].tolist() == [0, 0]
    assert q.scale[2].tolist() == [1, 1]


def test_points_are_averaged():
    parts = [
        Normal(torch.full((1, 2), loc), torch.zeros(1, 2), validate_args=False)
        for loc in (1.0, 4.0)
    ]
    q = product_of_normals(parts, is_point=True)
    assert q.loc.tolist() == [[2.5, 2.5]]
    assert q.scale.tolist() == [[0, 0]]


@pytest.fixture
def experts():
    torch.manual_seed(0)
    return Experts(
        [Encoder(Trunk(n, ConditionSizes(), (8,)), ConditionSizes(), 2, 3, 0.0) for n in SIZES]
    )


def seen(n=6, is_there=None):
    blocks = [torch.randn(n, size) for size in SIZES]
    return Seen.of(blocks, is_there)


def test_values_of_a_modality_that_is_not_there_do_not_matter(experts):
    is_there = torch.tensor([[True, True], [True, False], [False, True]] * 2)
    given = seen(is_there=is_there)
    experts.train()
    q_z, q_w = experts.q_zw(given, C)
    mean = experts.encoders[1].trunk.norms[0].running_mean.clone()
    for block, there in zip(given.blocks, is_there.T, strict=True):
        block[~there] = 1e3
    for norm in (encoder.trunk.norms[0] for encoder in experts.encoders):
        norm.reset_running_stats()
    again_z, again_w = experts.q_zw(given, C)
    torch.testing.assert_close(again_z.loc, q_z.loc)
    torch.testing.assert_close(again_w.scale, q_w.scale)
    torch.testing.assert_close(experts.encoders[1].trunk.norms[0].running_mean, mean)
    of_sparse, _ = experts.q_zw(Seen.of([x.to_sparse_csr() for x in given.blocks], is_there), C)
    torch.testing.assert_close(of_sparse.loc, q_z.loc)


@pytest.mark.parametrize("n_there", [0, 1])
def test_a_minibatch_may_have_one_cell_or_none_of_a_modality(experts, n_there):
    is_there = torch.ones(6, 2, dtype=torch.bool)
    is_there[n_there:, 1] = False
    experts.train()
    q_z = experts.q_z(seen(is_there=is_there), C)
    assert q_z.loc.isfinite().all()
    assert experts.encoders[1].trunk.norms[0].training
