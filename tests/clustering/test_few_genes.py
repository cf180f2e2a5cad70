"""Splits that rest on few genes."""

import numpy as np
import pytest

from scgmvae.clustering.few_genes import splits_of_few_genes
from scgmvae.clustering.group_sums import GroupSums

SIDES = [(np.array([0]), np.array([1]))]


def sums(n_genes, n_differ, size, n_cells=(400, 400), seed=0):
    """Sums over two groups that differ in some genes by a number of standard deviations."""
    rng = np.random.default_rng(seed)
    groups = [rng.standard_normal((n, n_genes)) for n in n_cells]
    groups[1][:, :n_differ] += size
    return GroupSums(
        np.array([x.sum(0) for x in groups]),
        np.array([(x**2).sum(0) for x in groups]),
        np.array(n_cells),
    )


@pytest.mark.parametrize(
    ("n_differ", "size", "expected"),
    [
        pytest.param(3, 6.0, True, id="three_genes_however_far"),
        pytest.param(23, 1.0, False, id="twenty_more"),
        pytest.param(9, 1.0, True, id="six_more_that_are_not_enough"),
        pytest.param(100, 0.5, False, id="many_small_ones"),
        pytest.param(0, 0.0, True, id="none"),
    ],
)
def test_a_split_needs_genes_beside_the_three_that_differ_most(n_differ, size, expected):
    assert splits_of_few_genes(SIDES, sums(500, n_differ, size)).tolist() == [expected]


@pytest.mark.parametrize("n_small", [12, 40])
def test_noise_in_the_means_of_a_small_side_is_no_difference(n_small):
    # 2,000 genes about a mean of 12 cells alone would be 2,000 / 12 apart, squared
    few = [splits_of_few_genes(SIDES, sums(2000, 3, 6.0, (800, n_small), s))[0] for s in range(5)]
    assert sum(few) >= 4
    assert not splits_of_few_genes(SIDES, sums(2000, 40, 2.0, (800, n_small))).any()


def test_panels_of_few_genes_are_not_asked_for_many():
    assert not splits_of_few_genes(SIDES, sums(99, 3, 6.0)).any()
    assert splits_of_few_genes(SIDES, sums(100, 3, 6.0)).all()


def test_an_empty_side_and_constant_genes_are_borne():
    empty = GroupSums(np.zeros((2, 200)), np.zeros((2, 200)), np.array([5, 0]))
    assert splits_of_few_genes(SIDES, empty).tolist() == [True]
    assert splits_of_few_genes([], empty).shape == (0,)
