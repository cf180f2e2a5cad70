"""Trees of tested splits while they grow, with an encoder that gives back the points."""

import numpy as np
import pytest
from latent_points import N_GENES, cells, exact, groups, noisy, sums_of
from sklearn.metrics import adjusted_rand_score

from scgmvae.clustering.growing import _Cuts, _divides_each, _grown, _is_between, grow
from scgmvae.clustering.split_tree import STRENGTH


def test_p_values_of_one_population_are_not_too_small():
    n_small = 0
    for seed in range(20):
        z, _ = groups([250], 0, seed)
        tree, _ = grow(z, exact, seed=seed)
        n_small += tree.n_splits > 0
    assert n_small <= 1


@pytest.mark.parametrize("encoder_of", [exact, noisy])
@pytest.mark.parametrize("sizes", [[400], [300, 300], [500, 60, 15], [200, 150, 100, 50, 30]])
def test_groups_that_are_apart_are_found(sizes, encoder_of):
    z, codes = groups(sizes, 8.0)
    tree, leaf = grow(z, encoder_of)
    clusters = tree.clusters(tree.height >= STRENGTH)[leaf]
    assert adjusted_rand_score(codes, clusters) == 1
    assert (np.diff(np.bincount(leaf)) <= 0).all()  # the largest first


def test_the_number_of_leaves_can_be_asked_for():
    z, codes = groups([300, 200, 100], 8.0)
    for n_leaves in (1, 2, 3, 5):
        tree, leaf = grow(z, exact, n_leaves=n_leaves)
        assert tree.n_splits == n_leaves - 1
        assert set(leaf) == set(range(n_leaves))
    assert adjusted_rand_score(codes, grow(z, exact, n_leaves=3)[1]) == 1


def test_few_cells_make_few_leaves_unless_more_are_asked_for():
    z, _ = groups([25], 0)
    tree, leaf = grow(z, exact)
    assert tree.n_splits <= 1
    assert np.bincount(leaf).min() >= 10
    tree, leaf = grow(z, exact, n_leaves=5)
    assert tree.n_splits == 4
    assert np.bincount(leaf).min() >= 2
    assert grow(z[:3], exact, n_leaves=3)[0].n_splits == 0


def test_the_same_seed_gives_the_same_tree():
    z, _ = groups([300, 200, 100], 3.0)
    first, second = (grow(z, noisy, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_array_equal(first[0].t, second[0].t)
    np.testing.assert_array_equal(first[0].null, second[0].null)


def test_a_rare_group_is_found_among_more_cells_than_a_test_takes():
    z, codes = groups([6000, 12], 8.0)
    tree, leaf = grow(z, exact)
    assert adjusted_rand_score(codes, tree.clusters(tree.height >= STRENGTH)[leaf]) == 1


# ------------------------------------------------------------------- told conditions


def test_a_split_between_batches_is_not_made():
    z, codes = groups([400, 400], 5.0)
    assert grow(z, exact)[0].n_splits == 1
    is_apart = z.copy()
    is_apart[codes == 1, 0] -= 2.0  # 3 standard deviations: near, yet seen
    assert grow(is_apart, exact)[0].n_splits == 1
    assert grow(is_apart, exact, [codes])[0].n_splits == 0


def test_types_are_found_in_batches_that_are_apart():
    rng = np.random.default_rng(0)
    z, types = groups([500, 300], 5.0)
    batch = rng.integers(2, size=800)
    z[batch == 1, 4] += 4.0
    tree, leaf = grow(z, exact, [batch])
    assert tree.n_splits == 1
    assert adjusted_rand_score(types, leaf) > 0.98
    assert tree.n_levels.tolist() == [[2]]


def test_a_type_that_only_one_batch_has_is_found():
    rng = np.random.default_rng(0)
    z, types = groups([500, 100], 7.0)
    batch = np.where(types == 1, 1, rng.integers(2, size=600))
    tree, leaf = grow(z, exact, [batch])
    assert adjusted_rand_score(types, leaf) == 1
    assert tree.n_levels.tolist() == [[1]]
    assert tree.t_moved[0, 0] < 0.1


# ----------------------------------------------------------------- untold conditions


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


def test_a_cut_between_types_divides_every_level_and_one_between_levels_does_not():
    level = np.repeat([0, 1], 100)
    types = np.tile([True, False, False, False], 50)
    assert _divides_each(level, types)
    assert not _is_between(level, types)
    assert not _divides_each(level, level == 1)
    assert _is_between(level, level == 1)
    uneven = np.where(level == 0, np.arange(200) < 60, np.arange(200) < 105)  # 60 and 5 of 100
    assert not _divides_each(level, uneven)
    one_large = np.repeat([0, 1], [980, 20])  # the cut is within one level alone
    assert not _divides_each(one_large, np.arange(1000) < 490)
    with_few = np.append(level, np.full(8, 2))  # on one side, as a rare type is
    assert _divides_each(with_few, np.append(types, np.zeros(8, dtype=bool)))
    assert not _divides_each(np.append(level, np.full(20, 2)), np.append(types, [False] * 20))
    assert not _is_between(level, np.zeros(200, dtype=bool))


def in_donors(n_donors, n=150, seed=0):
    """Points of two types in donors who are 20 apart, the types 6, and the codes of both."""
    rng = np.random.default_rng(seed)
    types, donor = (codes.repeat(n) for codes in np.indices((2, n_donors)).reshape(2, -1))
    z = rng.standard_normal((len(types), 4))
    z[:, 0] += 20 * donor
    z[:, 1] += 6 * types
    return z, types, donor


def test_further_donors_are_moved_until_types_show():
    z, types, donor = in_donors(3)
    cuts, rows = _Cuts(z, exact, [], 0, 10), np.arange(len(z))
    assert cuts._put_below(rows, donor == 2)
    assert adjusted_rand_score(types, cuts.of(rows).cut.side) > 0.95
    assert adjusted_rand_score(donor, cuts.moved[rows.tobytes()]) > 0.95
    tree, leaf, _ = _grown(cuts, None)
    repeats = cuts.that_repeat(tree, leaf, np.zeros(tree.n_splits, dtype=bool))
    assert repeats.tolist() == [False, True, True, True, True]  # each type is divided by donors


def test_a_told_batch_is_moved_beside_donors_who_were_not_told():
    z, types, donor = in_donors(2, n=300)
    batch = np.random.default_rng(1).integers(2, size=len(z))
    z[:, 2] += 5 * batch
    cuts, rows = _Cuts(z, exact, [batch], 0, 10), np.arange(len(z))
    assert cuts._put_below(rows, donor == 1)
    assert adjusted_rand_score(types, cuts.of(rows).cut.side) > 0.9


def test_a_split_that_was_known_to_repeat_stays_one():
    z, _, donor = in_donors(2)
    cuts = _Cuts(z, exact, [], 0, 10)
    tree, leaf, _ = _grown(cuts, None)
    every = np.ones(tree.n_splits, dtype=bool)
    assert not cuts.that_repeat(tree, leaf, ~every).any()
    assert cuts.that_repeat(tree, leaf, every).all()
    assert cuts.that_repeat(tree, leaf, ~every).all()


def test_growth_ends_where_moved_sides_are_apart_by_their_shape():
    rng = np.random.default_rng(0)
    t = rng.uniform(-1, 1, 300)
    bent = np.column_stack([8 * t, 8 * np.abs(t), np.zeros(300)])
    z = np.concatenate([bent, np.tile([0.0, 0.0, 12.0], (300, 1))])
    z += 0.25 * rng.standard_normal(z.shape)
    cuts, rows = _Cuts(z, exact, [], 0, 10), np.arange(len(z))
    assert not cuts._put_below(rows, rows >= 300)
