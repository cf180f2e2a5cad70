"""Tests of clustering.merging: overlaps by integration, trees by force, levels, the elbow."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.cluster.hierarchy import is_valid_linkage
from scipy.special import softmax, xlogy
from torch.distributions import Normal, kl_divergence

from scgmvae.clustering.merging import (
    bhattacharyya,
    entropy_elbow,
    levels_of,
    tree_by_elbo,
    tree_by_entropy,
    tree_by_overlap,
)


def merges(tree):
    """Members, height and size of each merge, in the order of the rows."""
    members = {i: {i} for i in range(len(tree) + 1)}
    for new, (i, j, height, size) in enumerate(tree, start=len(tree) + 1):
        members[new] = members[int(i)] | members[int(j)]
        yield members[new], height, size


def by_force(n_components, cost):
    """Merges as of ``merges``, without ``cost`` knowing of any step but its own, and raw costs."""
    partition, found, raw = [frozenset([k]) for k in range(n_components)], [], []
    while len(partition) > 1:
        costs = {(a, b): cost(a, b) for a, b in combinations(partition, 2)}
        a, b = min(costs, key=costs.get)
        raw.append(costs[a, b])
        found.append((set(a | b), max(0.0, *raw), len(a | b)))
        partition = [c for c in partition if c not in (a, b)] + [a | b]
    return found, raw


def assert_same_merges(tree, expected):
    found = list(merges(tree))
    assert [members for members, _, _ in found] == [members for members, _, _ in expected]
    heights = [height for _, height, _ in expected]
    np.testing.assert_allclose([height for _, height, _ in found], heights, rtol=1e-9, atol=1e-12)
    assert [size for _, _, size in found] == [size for _, _, size in expected]


def unsure(n=40, n_components=6, seed=0):
    """Probabilities of components, (n, K), no cell being quite sure."""
    return np.random.default_rng(seed).dirichlet(np.full(n_components, 0.5), size=n)


# ---------------------------------------------------------------------------------- overlap

LOC = np.array([[[0.0], [0.8], [-3.0]], [[1.0], [1.0], [2.5]]])  # (S, K, 1)
SCALE = np.array([[[1.0], [0.4], [2.0]], [[0.7], [1.9], [0.3]]])


@pytest.mark.parametrize(("i", "j"), list(combinations(range(3), 2)))
def test_the_overlap_is_the_integral_averaged_over_draws(i, j):
    def root(z, s):
        p, q = (stats.norm.pdf(z, LOC[s, k, 0], SCALE[s, k, 0]) for k in (i, j))
        return np.sqrt(p * q)

    expected = [
        integrate.quad(root, -20, 20, args=(s,), points=[*LOC[s, :, 0]], limit=200)[0]
        for s in range(2)
    ]
    assert abs(expected[0] - expected[1]) > 0.01  # so that the average is another number
    assert bhattacharyya(LOC, SCALE)[i, j] == pytest.approx(np.mean(expected), abs=1e-7)


def test_the_overlap_in_two_dimensions_is_the_integral():
    loc, scale = np.array([[[0.0, 1.0], [1.5, -0.5]]]), np.array([[[1.0, 0.5], [0.6, 1.2]]])
    axis = np.linspace(-8, 8, 801)
    z = np.stack(np.meshgrid(axis, axis), axis=-1)
    p, q = (stats.multivariate_normal(loc[0, k], np.diag(scale[0, k] ** 2)).pdf(z) for k in (0, 1))
    expected = np.sqrt(p * q).sum() * (axis[1] - axis[0]) ** 2
    assert bhattacharyya(loc, scale)[0, 1] == pytest.approx(expected, abs=1e-6)


def test_the_overlap_is_symmetric_one_for_twins_and_none_for_the_far():
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(4, 5, 3)), rng.uniform(0.2, 2, size=(4, 5, 3))
    loc[:, 3], scale[:, 3] = loc[:, 1], scale[:, 1]
    loc[:, 4] += 1000
    overlap = bhattacharyya(loc, scale)
    np.testing.assert_array_equal(overlap, overlap.T)
    np.testing.assert_array_equal(np.diag(overlap), 1)
    assert overlap[1, 3] == pytest.approx(1, abs=1e-12)
    assert (overlap[4, :4] == 0).all()
    others = overlap[np.triu_indices(3, 1)]
    assert ((others > 0) & (others < 1)).all()


def test_the_tree_by_overlap_is_that_of_a_calculation_by_hand():
    # −log overlap: 1 between a and b, 4 and 6 from these to c, so on average 5
    distance = np.array([[0.0, 1, 4], [1, 0, 6], [4, 6, 0]])
    tree = tree_by_overlap(np.exp(-distance))
    np.testing.assert_allclose(tree, [[0, 1, 1, 2], [2, 3, 5, 3]], rtol=1e-12)


def test_the_tree_by_overlap_averages_over_all_pairs_of_members():
    rng = np.random.default_rng(0)
    overlap = bhattacharyya(rng.normal(size=(3, 7, 2)), rng.uniform(0.5, 2, size=(3, 7, 2)))
    before = overlap.copy()
    tree = tree_by_overlap(overlap)
    expected, _ = by_force(7, lambda a, b: np.mean([-np.log(overlap[i, j]) for i in a for j in b]))
    assert_same_merges(tree, expected)
    np.testing.assert_array_equal(overlap, before)


def test_components_without_any_overlap_merge_last_at_a_finite_height():
    tree = tree_by_overlap(np.array([[1, 0, 0], [0, 1, 0.5], [0, 0.5, 1]]))
    np.testing.assert_allclose(tree[:, 2], [np.log(2), 300 * np.log(10)])
    assert set(tree[0, :2]) == {1, 2}


# ---------------------------------------------------------------------------------- entropy


def test_twins_merge_first_at_height_0_and_decided_pairs_at_height_1():
    # the cells of 0 and 2 are torn between these two, all others are sure
    proba = np.repeat([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 0, 1]], 10, axis=0)
    tree = tree_by_entropy(proba)
    assert set(tree[0, :2]) == {0, 2}
    np.testing.assert_allclose(tree[:, 2], [0, 1, 1], atol=1e-12)


def cost_of_entropy(proba):
    def entropy(groups):
        return stats.entropy(np.stack([proba[:, [*g]].sum(1) for g in groups]), axis=0).sum()

    def cost(a, b):
        rest = [[k] for k in range(proba.shape[1]) if k not in a | b]
        fall = entropy([a, b, *rest]) - entropy([a | b, *rest])
        return 1 - fall / (np.log(2) * proba[:, [*a, *b]].sum())

    return cost


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_by_entropy_merges_what_lowers_the_entropy_most_per_cell(seed):
    proba = unsure(seed=seed)
    expected, _ = by_force(6, cost_of_entropy(proba))
    assert_same_merges(tree_by_entropy(proba), expected)


def test_two_components_have_the_height_of_their_binary_entropy():
    a = np.array([0.2, 0.9, 0.5])
    expected = 1 - np.mean([stats.entropy([p, 1 - p], base=2) for p in a])
    np.testing.assert_allclose(tree_by_entropy(np.stack([a, 1 - a], 1)), [[0, 1, expected, 2]])


def test_an_empty_component_is_as_far_as_can_be_by_entropy():
    proba = np.zeros((20, 4))
    proba[:, :2] = 0.5
    tree = tree_by_entropy(proba)  # 2 and 3 have no cells
    assert set(tree[0, :2]) == {0, 1}
    np.testing.assert_allclose(tree[:, 2], [0, 1, 1], atol=1e-12)


# ------------------------------------------------------------------------------------- elbo


def posterior(n=60, n_components=5, n_latent=2, seed=0):
    """Arguments of ``tree_by_elbo``: cells of Gaussians, and how likely each is to be of each."""
    rng = np.random.default_rng(seed)
    loc = 2 * rng.normal(size=(n_components, n_latent))
    variance = rng.uniform(0.2, 2, size=(n_components, n_latent))
    of = rng.integers(n_components, size=n)
    z = rng.normal(loc[of], np.sqrt(variance[of]))
    density = stats.norm.logpdf(z[:, None], loc, np.sqrt(variance)).sum(-1)
    return {
        "proba": softmax(density, axis=1),
        "z_loc": z,
        "z_var": rng.uniform(0.05, 0.2, size=z.shape),
        "loc": loc,
        "variance": variance,
    }


def negative_elbo(groups, proba, z_loc, z_var, loc, variance):
    """Terms of z and y per cell, with one Gaussian of the same moments for each group."""
    weight, total = proba.mean(0), 0.0
    q = Normal(*map(torch.tensor, (z_loc, np.sqrt(z_var))))
    for group in map(list, groups):
        share = (weight[group] / weight[group].sum())[:, None]
        mean = (share * loc[group]).sum(0)
        square = (share * (variance[group] + loc[group] ** 2)).sum(0)
        p = Normal(*map(torch.tensor, (mean, np.sqrt(square - mean**2))))
        tau = proba[:, group].sum(1)
        kl_z = tau * kl_divergence(q, p).sum(-1).numpy()
        kl_y = xlogy(tau, tau / weight[group].sum())
        total += (kl_z + kl_y).mean()
    return total


def cost_of_elbo(given):
    n_components = given["proba"].shape[1]

    def cost(a, b):
        rest = [[k] for k in range(n_components) if k not in a | b]
        return negative_elbo([a | b, *rest], **given) - negative_elbo([a, b, *rest], **given)

    return cost


@pytest.mark.parametrize("seed", [3, 9, 17])  # no merge gains, and later ones can cost less
def test_the_tree_by_elbo_merges_what_the_bound_loses_least_by(seed):
    given = posterior(seed=seed)
    expected, _ = by_force(5, cost_of_elbo(given))
    assert expected[0][1] > 1e-3
    assert_same_merges(tree_by_elbo(**given), expected)


def with_twin(given, share):
    """The same where component 5 is 1 again, and takes a share of its probability in each cell."""
    proba = given["proba"].copy()
    twin, proba[:, 1] = share * proba[:, 1], (1 - share) * proba[:, 1]
    copied = {name: np.vstack([given[name], given[name][1]]) for name in ("loc", "variance")}
    return given | copied | {"proba": np.column_stack([proba, twin])}


@pytest.mark.parametrize(
    ("share", "least", "most"),
    [
        pytest.param(0.3, -1e-12, 1e-12, id="by_chance"),
        # y tells cells apart that z does not: that is paid for in nats and gives nothing
        pytest.param(np.arange(60) % 5 / 4, -1, -0.01, id="by_more_than_chance"),
    ],
)
def test_a_component_that_is_there_twice_merges_first_and_changes_nothing(share, least, most):
    given = posterior(seed=3)
    doubled = with_twin(given, share)
    assert least < cost_of_elbo(doubled)({1}, {5}) < most
    tree = tree_by_elbo(**doubled)
    assert set(tree[0, :2]) == {1, 5}
    np.testing.assert_allclose(tree[:, 2], [0, *tree_by_elbo(**given)[:, 2]], atol=1e-12)


def test_an_empty_component_merges_first_and_changes_nothing():
    given = posterior(seed=3)
    tree = tree_by_elbo(**with_twin(given, 0.0))
    assert 5 in tree[0, :2]
    np.testing.assert_allclose(tree[:, 2], [0, *tree_by_elbo(**given)[:, 2]], atol=1e-6)


# ------------------------------------------------------------------------------------ trees


@pytest.mark.parametrize("criterion", ["entropy", "elbo"])
def test_heights_never_fall_though_costs_do(criterion):
    steps = []
    for seed in range(12):
        if criterion == "entropy":
            proba = unsure(8, 7, seed)
            tree, cost = tree_by_entropy(proba), cost_of_entropy(proba)
        else:
            given = posterior(seed=seed)
            tree, cost = tree_by_elbo(**given), cost_of_elbo(given)
        _, costs = by_force(len(tree) + 1, cost)
        steps.append(np.diff(costs).min())
        assert is_valid_linkage(tree)
        assert (np.diff(tree[:, 2]) >= 0).all()
        assert tree[0, 2] >= 0
    assert min(steps) < 0  # a union nearer to a third than its parts were


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: tree_by_overlap(np.ones((1, 1))), id="overlap"),
        pytest.param(lambda: tree_by_entropy(np.ones((5, 1))), id="entropy"),
        pytest.param(lambda: tree_by_elbo(**posterior(n_components=1)), id="elbo"),
    ],
)
def test_the_tree_of_one_component_has_no_merge(make):
    tree = make()
    assert tree.shape == (0, 4)
    assert levels_of(tree, ["only"]).to_dict() == {1: {"only": 0}}


def test_the_tree_of_two_components_has_one_merge():
    given = posterior(n_components=2)
    cost = cost_of_elbo(given)({0}, {1})
    np.testing.assert_allclose(tree_by_elbo(**given), [[0, 1, max(cost, 0), 2]])
    np.testing.assert_allclose(tree_by_overlap([[1, 0.25], [0.25, 1]]), [[0, 1, np.log(4), 2]])
    levels = levels_of(tree_by_elbo(**given), ["a", "b"])
    assert levels.to_dict() == {1: {"a": 0, "b": 0}, 2: {"a": 0, "b": 1}}


# ----------------------------------------------------------------------------------- levels


def partition_of(codes):
    return {frozenset(np.flatnonzero(codes == k)) for k in np.unique(codes)}


def after(tree, n_merges):
    """Partition after the first rows of a linkage."""
    partition = [{k} for k in range(len(tree) + 1)]
    for members, _, _ in list(merges(tree))[:n_merges]:
        partition = [group for group in partition if not group <= members] + [members]
    return set(map(frozenset, partition))


TIED = np.array([[0, 1, 0.5, 2], [2, 3, 0.5, 2], [4, 6, 0.5, 3], [5, 7, 0.9, 5]])


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param(tree_by_overlap(bhattacharyya(LOC, SCALE)), id="overlap"),
        pytest.param(tree_by_entropy(unsure(seed=1)), id="entropy"),
        pytest.param(tree_by_elbo(**posterior()), id="elbo"),
        pytest.param(TIED, id="merges_of_one_height"),
    ],
)
def test_each_level_is_what_the_first_merges_make_and_refines_the_one_before(tree):
    n_components = len(tree) + 1
    names = [f"c{k}" for k in range(n_components)]
    levels = levels_of(tree, names)
    assert levels.index.tolist() == names
    assert levels.columns.tolist() == list(range(1, n_components + 1))
    for n in levels:
        assert sorted(levels[n].unique()) == list(range(n))
        assert partition_of(levels[n].to_numpy()) == after(tree, n_components - n)
        if n > 1:
            assert (levels.groupby(n)[n - 1].nunique() == 1).all()


# ------------------------------------------------------------------------------------ elbow


def with_twins(twins, seed=0, n=600):
    """Probabilities of groups that are sure, each shared at random by so many twins."""
    rng = np.random.default_rng(seed)
    group = rng.integers(len(twins), size=n)
    parts = [
        rng.dirichlet(np.ones(k), size=n) * (group == g)[:, None] for g, k in enumerate(twins)
    ]
    return np.hstack(parts)


@pytest.mark.parametrize("twins", [(2, 2, 2), (2, 2, 1, 2), (2, 1, 1, 2, 1), (3, 3, 2), (2, 2)])
def test_the_elbow_is_at_the_number_of_groups_that_were_planted(twins):
    proba = with_twins(twins)
    levels = levels_of(tree_by_entropy(proba), range(proba.shape[1]))
    assert entropy_elbow(proba, levels) == len(twins)
    planted = np.repeat(np.arange(len(twins)), twins)
    assert partition_of(levels[len(twins)].to_numpy()) == partition_of(planted)


def test_the_elbow_is_where_two_regressions_meet_best():
    elbows = set()
    for seed in range(6):
        proba = unsure(60, 7, seed)
        tree = tree_by_overlap(np.exp(-np.random.default_rng(seed).uniform(1, 5, size=(7, 7))))
        levels = levels_of(tree, range(7))
        steps = [(0.0, stats.entropy(proba, axis=1).sum())]
        for n in range(6, 0, -1):
            groups = [proba[:, [*g]].sum(1) for g in partition_of(levels[n].to_numpy())]
            (new,) = partition_of(levels[n].to_numpy()) - partition_of(levels[n + 1].to_numpy())
            concerned = steps[-1][0] + proba[:, [*new]].sum()
            steps.append((concerned, stats.entropy(np.stack(groups), axis=0).sum()))
        steps = np.array(steps)

        def misfit(points):
            line = stats.linregress(*points.T)
            return ((points[:, 1] - line.intercept - line.slope * points[:, 0]) ** 2).sum()

        misfits = [misfit(steps[: c + 1]) + misfit(steps[c:]) for c in range(1, 6)]
        elbows.add(entropy_elbow(proba, levels))
        assert entropy_elbow(proba, levels) == 6 - int(np.argmin(misfits))
    assert len(elbows) > 1


@pytest.mark.parametrize("n_components", [1, 2, 3])
def test_fewer_than_four_components_have_no_elbow(n_components):
    proba = with_twins([n_components])
    levels = levels_of(tree_by_entropy(proba), range(n_components))
    assert entropy_elbow(proba, levels) == n_components


def test_components_without_cells_do_not_move_the_elbow():
    proba = np.hstack([with_twins((2, 2, 2)), np.zeros((600, 1))])
    levels = levels_of(tree_by_entropy(proba), range(7))
    assert entropy_elbow(proba, levels) == 4  # the empty one stays by itself
    assert frozenset([6]) in partition_of(levels[4].to_numpy())
