"""Splits that repeat from type to type."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from scgmvae.clustering.group_sums import GroupSums
from scgmvae.clustering.growing import grow
from scgmvae.clustering.repeated import repeated_splits
from scgmvae.clustering.split_tree import STRENGTH

N_GENES = 200


def sums_of(x, group):
    """Sums of x over the cells of each group."""
    member = np.eye(group.max() + 1)[group]
    return GroupSums(member.T @ x, member.T @ x**2, np.bincount(group))


def exact(rows):
    """Encoder of a model that gives back z as it is."""
    return lambda points, rng: points


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


def test_donors_that_are_not_told_make_no_clusters_and_stay_in_the_tree():
    x, types, donor = cells(4, 3, 0.4)
    z = x @ np.linalg.svd(x, full_matrices=False)[2][:8].T
    tree, leaf = grow(z, exact, sums_of=lambda leaf: sums_of(x, leaf))
    clusters = tree.clusters(tree.height >= STRENGTH)[leaf]
    assert adjusted_rand_score(types, clusters) > 0.99
    assert adjusted_rand_score(3 * types + donor, leaf) > 0.95
    assert adjusted_rand_score(types, tree.clusters(tree.strongest(4))[leaf]) > 0.99
    plain, leaf = grow(z, exact)
    assert not plain.is_repeated.any()
    assert plain.clusters(plain.height >= STRENGTH).max() == 11


def test_types_closer_to_each_other_than_their_donors_are_found_above_the_donors():
    rng = np.random.default_rng(0)
    broad, fine, donor = (codes.repeat(60) for codes in np.indices((3, 2, 3)).reshape(3, -1))
    effects = ((1.0, (3,), broad), (0.3, (3, 2), (broad, fine)), (0.5, (3,), donor))
    x = rng.standard_normal((len(broad), N_GENES))
    for scale, sizes, of_cell in effects:
        x += rng.normal(0, scale, (*sizes, N_GENES))[of_cell]
    z = x @ np.linalg.svd(x, full_matrices=False)[2][:8].T
    tree, leaf = grow(z, exact, sums_of=lambda leaf: sums_of(x, leaf))
    clusters = tree.clusters(tree.height >= STRENGTH)[leaf]
    assert adjusted_rand_score(2 * broad + fine, clusters) > 0.95
    assert (tree.height[tree.is_repeated] < STRENGTH).all()  # the donors are in the tree, below
    assert adjusted_rand_score(6 * broad + 3 * fine + donor, leaf) > 0.95
