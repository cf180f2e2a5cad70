"""Trees of tested splits, with an encoder that gives back the points it is given."""

from dataclasses import replace

import numpy as np
import pytest
from latent_points import exact, groups, noisy
from scipy.cluster.hierarchy import fcluster, is_valid_linkage

from scgmvae.clustering.examined_groups import examine_groups
from scgmvae.clustering.one_population import evidence_of, one_population
from scgmvae.clustering.split_tree import STRENGTH, SplitTree
from scgmvae.clustering.support import support_of, without_level_means


@pytest.fixture
def tree():
    """All cells → leaf 0 | (leaf 1 | leaf 2), the second split stronger than the first."""
    nothing = np.zeros((2, 0), dtype=int)
    return SplitTree(
        np.array([[-1, 1], [-2, -3]]),
        np.array([0.1, 0.05]),
        np.array([0.2, 0.5]),
        np.array([0.01, 0.001]),
        nothing,
        nothing,
        np.zeros(2, dtype=bool),
        np.zeros(2, dtype=bool),
        np.zeros(2, dtype=bool),
    )


# -------------------------------------------------------------------------- the tree


def test_a_tree_is_kept_as_arrays_which_earlier_ones_had_fewer_of(tree):
    arrays = dict(vars(tree))
    again = SplitTree.of_arrays(arrays)
    assert all(np.array_equal(vars(again)[name], values) for name, values in arrays.items())
    for name in ("is_of_few_genes", "is_of_one_level"):
        del arrays[name]
        assert vars(SplitTree.of_arrays(arrays))[name].tolist() == [False, False]


def test_a_split_whose_sides_one_population_would_have_apart_has_no_strength(tree):
    apart = replace(tree, t=np.zeros(2), null=np.array([0.0, 0.5]))
    np.testing.assert_array_equal(apart.strength, [0, 1])


def test_a_split_is_made_only_with_those_above_it(tree):
    np.testing.assert_allclose(tree.strength, [0.5, 0.9])
    np.testing.assert_allclose(tree.height, [0.63, 0.63])
    assert tree.clusters(tree.height >= 0.4).tolist() == [0, 1, 2]
    assert tree.clusters(tree.height >= 0.7).tolist() == [0, 0, 0]
    assert tree.clusters(tree.strongest(2)).tolist() == [0, 1, 1]


def test_what_is_far_apart_is_not_held_together_by_a_weak_split_above_it(tree):
    weak = replace(tree, t=np.array([0.12, 0.01]))  # strengths .4 and .98
    np.testing.assert_allclose(weak.height, [0.686, 0.686])
    assert weak.clusters(weak.height >= STRENGTH).tolist() == [0, 1, 2]
    both_weak = replace(tree, t=np.array([0.12, 0.2]))
    np.testing.assert_allclose(both_weak.height, [0.42, 0.42])
    # nor by one of few genes; a donor's split stays one, whatever types are below it
    narrow = replace(weak, is_of_few_genes=np.array([True, False]))
    np.testing.assert_allclose(narrow.height, [0.686, 0.686])
    repeated = replace(weak, is_repeated=np.array([True, False]))
    np.testing.assert_allclose(repeated.height, [0.16, 0.16])


def test_a_split_that_repeats_counts_less(tree):
    repeated = replace(tree, is_repeated=np.array([False, True]))
    np.testing.assert_allclose(repeated.height, [0.5, 0.36])
    assert repeated.clusters(repeated.height >= 0.5).tolist() == [0, 1, 1]
    first = replace(tree, is_repeated=np.array([True, False]))
    np.testing.assert_allclose(first.height, [0.2, 0.2])  # and so do those below it
    narrow = replace(repeated, is_of_few_genes=np.array([False, True]))
    np.testing.assert_allclose(narrow.height, repeated.height)  # once, whatever the reasons


def test_a_split_of_one_level_of_a_condition_counts_a_little_less(tree):
    one = replace(tree, is_of_one_level=np.array([False, True]))
    np.testing.assert_allclose(one.height, [0.504, 0.504])  # 0.7 × 0.8 × 0.9, above
    both = replace(one, is_of_few_genes=np.array([False, True]))
    np.testing.assert_allclose(both.height, [0.5, 0.36])  # the stronger reason alone


def test_the_linkage_is_one_of_scipy_and_gives_the_same_clusters(tree):
    linkage = tree.linkage
    assert is_valid_linkage(linkage)
    np.testing.assert_allclose(linkage, [[1, 2, 0.63, 2], [0, 3, 0.63, 3]])
    codes = fcluster(linkage, 0.65, "distance")
    assert len(np.unique(codes)) == 1


def test_newick_has_names_and_strengths(tree):
    assert tree.newick(["T", "B's", "NK"]) == "('T',('B''s','NK')0.9)0.5;"


def test_the_tree_of_some_splits_has_their_clusters_as_leaves(tree):
    part = tree.only(np.array([True, False]))
    assert part.n_splits == 1
    assert part.children.tolist() == [[-1, -2]]
    assert part.t.tolist() == [0.1]


def test_leaves_are_renumbered(tree):
    swapped = tree.renumbered(np.array([2, 0, 1]))
    assert [side.tolist() for side in swapped.leaves_of(0)] == [[2], [0, 1]]
    assert swapped.leaf_order().tolist() == [2, 0, 1]


# ------------------------------------------------------------------- one population


def test_the_gaussian_is_such_that_its_cells_encoded_again_are_like_the_given_ones():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4000, 3)) * [1.0, 0.7, 0.5] + [2.0, 0.0, -1.0]
    encoded = noisy(None)
    mean, factor = one_population(z, encoded, rng)
    again = encoded(mean + rng.standard_normal(z.shape) @ factor.T, rng)
    np.testing.assert_allclose(again.mean(0), z.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(again.T), np.cov(z.T), atol=0.05)


def test_p_is_small_where_no_population_has_such_a_cut_and_large_where_one_has():
    rng = np.random.default_rng(0)
    z, _ = groups([400], 0)
    apart = evidence_of(0.0, z, exact(None), rng)
    assert apart.p < 1e-3
    assert apart.strength == 1
    usual = evidence_of(apart.null, z, exact(None), rng)
    assert 0.05 < usual.p < 0.95
    assert abs(usual.strength) < 0.2


# --------------------------------------------------------------------------- support


def test_a_cut_between_levels_is_gone_once_they_are_moved():
    z, types = groups([200, 200], 4.0)
    batch = np.tile([0, 1], 200)
    kept = support_of(z, types == 1, batch, 0.0, 0.3)
    assert kept.n_levels == 2
    assert kept.t < 0.1
    assert kept.is_given
    gone = support_of(z, types == 1, types, 0.0, 0.3)
    assert gone.n_levels == 0
    assert gone.t > 0.3
    assert not gone.is_given


def test_levels_are_moved_onto_each_other():
    z = np.array([[0.0], [2.0], [10.0], [14.0]])
    np.testing.assert_allclose(
        without_level_means(z, np.array([0, 0, 1, 1])), [[5.5], [7.5], [4.5], [8.5]]
    )


# --------------------------------------------------------------------- given groups


def test_groups_that_one_population_explains_are_merged_and_those_that_hide_two_are_told():
    z, types = groups([300, 300, 300], 8.0)
    given = types.copy()
    given[(types == 0) & (z[:, 4] > 0)] = 3  # one type cut in two
    given[types == 2] = 1  # two types in one
    given[given == 3] = 2
    tests = examine_groups(z, given, exact, strength=STRENGTH)
    hides = [cut.is_split and cut.evidence.strength >= STRENGTH for cut in tests.inside]
    assert hides == [False, True, False]
    assert tests.merged[0] == tests.merged[2] != tests.merged[1]
    assert tests.nearest[0] == 2
    assert tests.border[0].strength < STRENGTH


def test_groups_of_a_tree_stay_as_they_are():
    z, types = groups([300, 200, 60], 8.0)
    tests = examine_groups(z, types, noisy, strength=STRENGTH)
    assert tests.merged.tolist() == [0, 1, 2]
    assert not any(cut.is_split for cut in tests.inside)


def test_groups_of_a_few_cells_cannot_be_tested_and_stay():
    z, _ = groups([200], 0)
    given = np.where(np.arange(200) < 4, 1, 0)
    given[199] = 2
    tests = examine_groups(z, given, exact, strength=STRENGTH)
    assert tests.merged.tolist() == [0, 1, 2]
    assert tests.border[1] is None
    assert tests.inside[2] is None
