"""Splits that repeat from type to type."""

import numpy as np
import pytest
from latent_points import N_GENES, cells, sums_of

from scgmvae.clustering.group_sums import GroupSums
from scgmvae.clustering.repeated import repeated_splits


def pair(first, second):
    """Leaves on both sides of a split."""
    return np.atleast_1d(first), np.atleast_1d(second)


def halves(n_types):
    """Splits of each type in two donors."""
    return [pair(2 * t, 2 * t + 1) for t in range(n_types)]


def test_splits_by_donor_repeat_and_those_between_types_do_not():
    x, types, donor = cells(3, 2, 0.4)
    sides = [pair(np.arange(4), [4, 5]), pair([0, 1], [2, 3]), *halves(3)]
    found = repeated_splits(sides, sums_of(x, 2 * types + donor))
    assert found.tolist() == [False, False, True, True, True]


def test_two_types_that_both_have_donors_are_still_two():
    x, types, donor = cells(4, 3, 0.7)  # much of what divides either half is the same
    sides = [pair(6 * t + np.arange(3), 6 * t + np.arange(3, 6)) for t in range(2)]
    assert not repeated_splits(sides, sums_of(x, 3 * types + donor)).any()


@pytest.mark.parametrize(("in_common", "repeats"), [(0.9, True), (0.7, True), (0.1, False)])
def test_half_of_the_effect_has_to_be_the_same(in_common, repeats):
    x, types, donor = cells(4, 2, 0.0)
    rng = np.random.default_rng(1)
    same, own = rng.normal(0, 0.4, (2, N_GENES)), rng.normal(0, 0.4, (4, 2, N_GENES))
    x += np.sqrt(in_common) * same[donor] + np.sqrt(1 - in_common) * own[types, donor]
    found = repeated_splits(halves(4), sums_of(x, 2 * types + donor))
    assert found.tolist() == [repeats] * 4


def test_one_type_alone_does_not_repeat():
    x, types, donor = cells(1, 2, 0.4)
    assert not repeated_splits(halves(1), sums_of(x, donor)).any()


def test_noise_alone_does_not_repeat():
    x, types, donor = cells(4, 2, 0.0, n=20)
    assert not repeated_splits(halves(4), sums_of(x, 2 * types + donor)).any()


def test_few_doublets_of_two_types_do_not_make_types_repeat():
    x, types, _ = cells(3, 1, 0.0, n=300)
    is_double = np.arange(len(types)) % 300 < 9  # of every type, with the next one
    means = np.array([x[types == t].mean(0) for t in range(3)])
    x[is_double] += (means[(types[is_double] + 1) % 3] - means[types[is_double]]) / 2
    sides = [pair([0, 1], [2, 3, 4, 5]), pair([2, 3], [4, 5]), *halves(3)]
    sums = sums_of(x, 2 * types + is_double)
    assert not repeated_splits(sides, sums)[:2].any()
    # the direction is that of doublets elsewhere, and few cells are what tells them
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("scgmvae.clustering.repeated.EVENNESS", 0.0)
        assert repeated_splits(sides, sums)[1]


def test_donors_with_a_third_of_one_type_and_two_thirds_of_another_repeat():
    x, types, donor = cells(3, 2, 0.4, n=300)
    kept = np.random.default_rng(0).random(len(types)) < np.where(types == donor, 1.0, 0.5)
    sides = [pair(np.arange(4), [4, 5]), pair([0, 1], [2, 3]), *halves(3)]
    found = repeated_splits(sides, sums_of(x[kept], (2 * types + donor)[kept]))
    assert found.tolist() == [False, False, True, True, True]


def test_an_effect_of_another_size_in_every_type_repeats():
    x, types, donor = cells(3, 2, 0.0)
    effect = np.random.default_rng(1).normal(0, 0.5, N_GENES)
    x += np.array([1.0, 2.0, 4.0])[types][:, None] * donor[:, None] * effect
    assert repeated_splits(halves(3), sums_of(x, 2 * types + donor)).all()


def test_parts_with_few_of_the_cells_do_not_repeat():
    x, types, donor = cells(5, 2, 0.4)
    group = np.where(types < 2, 2 * types + donor, types + 2)  # two of five types are divided
    assert not repeated_splits(halves(2), sums_of(x, group)).any()
    most = types < 3  # two of three, and the third has one donor alone
    assert repeated_splits(halves(2), sums_of(x[most], group[most])).all()


@pytest.mark.parametrize("n_genes", [1, 5, 12])
def test_of_few_genes_what_lies_alike_by_chance_does_not_repeat(n_genes):
    n_repeated = 0
    for seed in range(10):
        x, types, donor = cells(4, 3, 0.0, seed)
        x = x[:, :n_genes]
        own = np.random.default_rng(100 + seed).normal(0, 2.0, (4, 3, n_genes))
        sides = [pair(3 * t, [3 * t + 1, 3 * t + 2]) for t in range(4)]
        n_repeated += repeated_splits(
            sides, sums_of(x + own[types, donor], 3 * types + donor)
        ).sum()
    assert n_repeated <= 4  # of 40


def test_genes_without_a_count_and_leaves_without_a_cell_are_no_error():
    x, types, donor = cells(2, 2, 0.4)
    x[:, :50] = 0
    sums = sums_of(x, 2 * types + donor)
    sums = GroupSums(*(np.append(v, np.zeros_like(v[:1]), axis=0) for v in sums))
    sides = [pair(0, 1), pair(2, [3, 4])]
    assert repeated_splits(sides, sums).shape == (2,)
    assert not repeated_splits(sides, GroupSums(*(0 * v for v in sums))).any()
