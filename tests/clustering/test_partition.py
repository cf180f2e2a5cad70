"""Tests of clustering.partition, against plain counts of edges and plain linear algebra."""

import itertools
import random

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from scgmvae.clustering.partition import (
    RESOLUTION,
    RESOLUTION_FOR_K,
    by_size,
    initial_partition,
    leiden,
    log_normalized_pcs,
    merge_groups,
    neighbor_graph,
    split_groups,
)
from scgmvae.datasets import synthetic_counts
from tests.blobs import SIZES, make_blobs

METHODS = ["leiden", "kmeans", "gmm"]


def make_graph(blocks, weight_between=None, seed=0):
    """Complete graphs of the given sizes with weights near 1, linked as ``weight_between`` says.

    ``weight_between`` maps pairs of blocks to the weight of every edge between them.
    """
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(len(blocks)), blocks)
    weights = np.eye(len(blocks))
    for (i, j), value in (weight_between or {}).items():
        weights[i, j] = weights[j, i] = value
    graph = weights[block][:, block] * rng.uniform(0.9, 1.1, size=(len(block), len(block)))
    graph = (graph + graph.T) / 2
    np.fill_diagonal(graph, 0)
    return sparse.csr_matrix(graph), block


def modularity(graph, codes, resolution):
    """Σ_k (e_kk − γ d_k²), edge by edge."""
    dense = graph.toarray() / graph.sum()
    value = 0.0
    for k in np.unique(codes):
        members = codes == k
        value += dense[np.ix_(members, members)].sum() - resolution * dense[members].sum() ** 2
    return value


# ------------------------------------------------------------------------ initial_partition


@pytest.mark.parametrize("method", METHODS)
def test_a_partition_leaves_the_threads_of_torch_alone(method):
    # First in this file: only the first graph of a process was seen to change them.
    torch.set_num_threads(1)
    initial_partition(make_blobs()[0], 4, method)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("method", METHODS)
def test_separable_groups_are_found_and_numbered_by_size(method):
    x, truth = make_blobs()
    codes = initial_partition(x, 4, method)
    # the groups of the truth are numbered by size themselves
    np.testing.assert_array_equal(codes, truth)
    assert codes.dtype == np.int64


@pytest.mark.parametrize("n_groups", [2, 3, 6, 9])
@pytest.mark.parametrize("method", METHODS)
def test_exactly_k_groups_come_out_of_any_number_of_blobs(method, n_groups):
    codes = initial_partition(make_blobs()[0], n_groups, method)
    sizes = np.bincount(codes)
    assert len(sizes) == n_groups
    assert sizes.sum() == sum(SIZES)
    assert (np.diff(sizes) <= 0).all()


def test_k_is_found_where_it_is_not_given():
    x, truth = make_blobs()
    np.testing.assert_array_equal(initial_partition(x), truth)


@pytest.mark.parametrize("method", METHODS)
def test_one_group_holds_all(method):
    codes = initial_partition(make_blobs()[0], 1, method)
    np.testing.assert_array_equal(codes, np.zeros(sum(SIZES)))


@pytest.mark.parametrize("method", METHODS)
def test_fewer_cells_than_neighbors_are_partitioned(method):
    x, truth = make_blobs(sizes=[8, 6], distance=40.0)
    np.testing.assert_array_equal(initial_partition(x, 2, method), truth)


@pytest.mark.parametrize("method", METHODS)
def test_a_partition_follows_from_the_seed_and_leaves_global_random_states_alone(method):
    x, _ = make_blobs(distance=3.0)
    random.seed(0)
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = initial_partition(x, 4, method, seed=5)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    random.seed(1)
    np.testing.assert_array_equal(initial_partition(x, 4, method, seed=5), first)


@pytest.mark.parametrize(
    ("n_groups", "method", "words"),
    [
        pytest.param(3, "louvain", "'leiden', 'kmeans', 'gmm'.*'louvain'", id="unknown_method"),
        pytest.param(None, "kmeans", "'kmeans' needs the number of groups", id="kmeans_wants_k"),
        pytest.param(None, "gmm", "'gmm' needs the number of groups", id="gmm_wants_k"),
    ],
)
def test_bad_arguments_are_refused(n_groups, method, words):
    with pytest.raises(ValueError, match=words):
        initial_partition(make_blobs()[0], n_groups, method)


def test_by_size_numbers_groups_from_the_largest_and_keeps_ties_in_order():
    codes = by_size(np.array([7, 7, 2, 2, 2, 9, 4, 4]))
    assert codes.tolist() == [2, 2, 0, 0, 0, 3, 1, 1]


# ------------------------------------------------------------------------------- the graph


def test_the_graph_links_the_nearest_cells_and_no_distant_groups():
    x, truth = make_blobs()
    graph = neighbor_graph(x)
    np.testing.assert_allclose(graph.toarray(), graph.toarray().T)
    rows, columns = graph.nonzero()
    assert (truth[rows] == truth[columns]).all()
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(1)
    # the fuzzy graph gives the nearest neighbour of every cell the full weight
    np.testing.assert_allclose(graph[np.arange(len(x)), nearest], 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("resolution", "n_groups"),
    [
        pytest.param(0.01, 1, id="low_resolution_joins_all"),
        pytest.param(1.0, 3, id="middle_resolution_finds_the_blocks"),
    ],
)
def test_leiden_finds_the_blocks_of_a_graph(resolution, n_groups):
    links = {(0, 1): 0.1, (1, 2): 0.1, (0, 2): 0.1}
    graph, block = make_graph([30, 30, 30], links)
    codes = leiden(graph, resolution)
    assert len(np.unique(codes)) == n_groups
    assert adjusted_rand_score(codes, block) == (1.0 if n_groups == 3 else 0.0)


def best_move(graph, codes, resolution):
    """Largest gain in modularity of one cell that joins another group, in units of the weights."""
    dense, total = graph.toarray(), graph.sum()
    one_hot = np.eye(codes.max() + 1)[codes]
    degree = dense.sum(1, keepdims=True)
    without_it = (degree * one_hot).sum(0) - degree * one_hot
    value = dense @ one_hot - resolution * degree * without_it / total
    return (value - (value * one_hot).sum(1, keepdims=True)).max()


@pytest.mark.parametrize("seed", range(3))
def test_no_cell_would_rather_be_in_another_stable_group(seed):
    graph = neighbor_graph(np.random.default_rng(seed).normal(size=(1500, 4)))
    early, stable = (leiden(graph, 1.0, seed, until_stable=until) for until in (False, True))
    assert best_move(graph, early, 1.0) > 1e-3
    assert best_move(graph, stable, 1.0) < 1e-6
    assert modularity(graph, stable, 1.0) > modularity(graph, early, 1.0)


def test_ragged_groups_are_finer_where_more_are_asked_for():
    x = np.random.default_rng(0).normal(size=(600, 4))
    graph, resolution = neighbor_graph(x), RESOLUTION_FOR_K
    n_groups = leiden(graph, resolution, until_stable=True).max() + 6
    finer = []
    while not finer or finer[-1].max() + 1 < n_groups:
        finer.append(leiden(graph, resolution, until_stable=True))
        resolution *= 1.25
    assert len(finer) > 1
    expected = by_size(merge_groups(graph, finer[-1], n_groups))
    np.testing.assert_array_equal(initial_partition(x, n_groups, straight=False), expected)


@pytest.mark.parametrize("n_groups", [3, None])
def test_ragged_groups_are_those_that_leiden_settles_on(n_groups):
    x = np.random.default_rng(0).normal(size=(600, 4))
    graph = neighbor_graph(x)
    resolution = RESOLUTION if n_groups is None else RESOLUTION_FOR_K
    expected = leiden(graph, resolution, until_stable=True)
    if n_groups is not None:
        expected = merge_groups(graph, expected, n_groups)
    codes = initial_partition(x, n_groups, straight=False)
    np.testing.assert_array_equal(codes, by_size(expected))


# ----------------------------------------------------------------------------- merge_groups


@pytest.mark.parametrize("resolution", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(5))
def test_each_merge_is_the_one_of_highest_modularity(resolution, seed):
    rng = np.random.default_rng(seed)
    n = 40
    graph = np.triu(rng.uniform(size=(n, n)) * (rng.uniform(size=(n, n)) < 0.3), 1)
    graph = sparse.csr_matrix(graph + graph.T)
    start = np.concatenate([np.arange(7), rng.integers(0, 7, size=n - 7)])

    expected = start.copy()
    while len(np.unique(expected)) > 3:
        unions = [
            np.where(expected == j, i, expected)
            for i, j in itertools.combinations(np.unique(expected), 2)
        ]
        expected = max(unions, key=lambda codes: modularity(graph, codes, resolution))

    merged = merge_groups(graph, start, 3, resolution)
    assert adjusted_rand_score(merged, expected) == 1.0
    assert np.unique(merged).tolist() == [0, 1, 2]


def test_merging_leaves_few_enough_groups_and_its_input_alone():
    graph, block = make_graph([10, 10, 10], {(0, 1): 0.5})
    before = block.copy()
    np.testing.assert_array_equal(merge_groups(graph, block, 3), before)
    np.testing.assert_array_equal(merge_groups(graph, block, 5), before)
    # 0 and 1 are linked, 2 is apart
    np.testing.assert_array_equal(merge_groups(graph, block, 2), np.repeat([0, 0, 1], 10))
    np.testing.assert_array_equal(merge_groups(graph, block, 1), np.zeros(30))
    np.testing.assert_array_equal(block, before)


# Two groups, from 0 and from n on, with their edges; three links 0–n, 1–(n+1), 2–(n+2) between
# them; and a last cell that hangs on the second. Uniting the two gains 3/2m − γ ab/4m², with the
# sums a and b of their degrees and 2m of all; taking the last cell in gains 1/2m − γ b/4m².
UNIONS = [
    # a triangle and a path: a = 9, b = 8, 2m = 18, so up to γ = 9/16 the two are united
    pytest.param(
        [(0, 1), (0, 2), (1, 2)], [(0, 1), (1, 2)], [0, 0, 1], id="below_nine_sixteenths"
    ),
    # a complete graph of four and a ring: a = 15, b = 12, 2m = 28, so from γ = 1/3 on they are not
    pytest.param(
        list(itertools.combinations(range(4), 2)),
        [(0, 1), (1, 2), (2, 3), (0, 3)],
        [0, 1, 1],
        id="above_a_third",
    ),
]


@pytest.mark.parametrize(("first", "second", "expected"), UNIONS)
def test_the_usual_resolution_unites_as_computed_by_hand(first, second, expected):
    n = max(max(edge) for edge in first) + 1
    edges = [*first, *((i + n, j + n) for i, j in second), *((i, i + n) for i in range(3))]
    edges.append((n, 2 * n))
    graph = np.zeros((2 * n + 1, 2 * n + 1))
    for i, j in edges:
        graph[i, j] = graph[j, i] = 1
    groups = np.repeat([0, 1, 2], [n, n, 1])
    merged = merge_groups(sparse.csr_matrix(graph), groups, 2)
    np.testing.assert_array_equal(merged, np.array(expected)[groups])


# ----------------------------------------------------------------------------- split_groups


def test_the_group_that_hangs_together_least_is_split_first():
    # Group 0 is one block; group 1 has two blocks that are linked a little, group 2 two that are
    # linked more.
    links = {(1, 2): 0.02, (3, 4): 0.2}
    graph, block = make_graph([60, 30, 30, 25, 25], links)
    start = np.array([0, 1, 1, 2, 2])[block]
    before = start.copy()

    four = split_groups(graph, start, 4)
    assert adjusted_rand_score(four, np.array([0, 1, 2, 3, 3])[block]) == 1.0
    five = split_groups(graph, start, 5)
    assert adjusted_rand_score(five, block) == 1.0
    np.testing.assert_array_equal(start, before)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([9, 9], id="18_cells_are_too_few"),
        pytest.param([60, 3], id="three_cells_are_no_group_of_their_own"),
    ],
)
def test_there_are_fewer_groups_where_nothing_can_be_split(sizes):
    graph, _ = make_graph(sizes)
    start = np.zeros(sum(sizes), dtype=np.int64)
    np.testing.assert_array_equal(split_groups(graph, start, 4), start)


# ----------------------------------------------------------------------- log_normalized_pcs


def make_counts(n=80, n_genes=30, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 3.0, size=(n, n_genes))).astype(np.float32)


@pytest.mark.parametrize("as_sparse", [False, True], ids=["dense", "sparse"])
def test_pcs_are_those_of_the_log_normalised_counts(as_sparse):
    counts = make_counts()
    before = counts.copy()
    given = sparse.csr_matrix(counts) if as_sparse else counts
    pcs = log_normalized_pcs(given, n_pcs=5)

    values = np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).astype(np.float64)
    u, s, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    expected = u[:, :5] * s[:5]
    signs = np.sign((pcs * expected).sum(0))
    np.testing.assert_allclose(pcs * signs, expected, atol=2e-3 * np.abs(expected).max())
    assert pcs.dtype == np.float32
    np.testing.assert_array_equal(given.toarray() if as_sparse else given, before)


def test_small_data_have_fewer_pcs():
    counts = make_counts(80, 12)
    log_normalized = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(log_normalized_pcs(counts), log_normalized, rtol=1e-5)
    assert log_normalized_pcs(make_counts(9, 30)).shape == (9, 8)


def test_genes_without_counts_change_nothing_where_genes_are_selected():
    # 2,150 genes, of which the 2,000 that have counts are selected
    counts = make_counts(60, 2000)
    padded = np.hstack([counts, np.zeros((60, 150), dtype=np.float32)])
    pcs, expected = log_normalized_pcs(padded, 4), log_normalized_pcs(counts, 4)
    signs = np.sign((pcs * expected).sum(0))
    np.testing.assert_allclose(pcs * signs, expected, atol=2e-3 * np.abs(expected).max())


# ----------------------------------------------------------------------------- environment


@pytest.mark.slow
def test_neighbors_of_many_cells_are_found():
    # Above about 8,000 cells scanpy searches approximately, which pynndescent 0.7.0 breaks.
    x = np.random.default_rng(0).normal(size=(10_000, 10))
    graph = neighbor_graph(x)
    assert graph.shape == (10_000, 10_000)
    some = np.arange(0, 10_000, 50)
    distance = ((x[some, None] - x[None]) ** 2).sum(-1)
    distance[np.arange(len(some)), some] = np.inf
    weights = np.asarray(graph[some, distance.argmin(1)]).ravel()
    assert (weights > 0).mean() > 0.95


@pytest.mark.parametrize(
    "sizes",
    [[10, 10], [20, 20], [10] * 3, [10] * 4, [12] * 4, [12] * 5, [20] * 4, [60, 8], [40], [100]],
    ids=str,
)
def test_few_cells_fall_into_their_types(sizes):
    adata = synthetic_counts(3000, 500, n_components=len(sizes), component_scale=2.0, seed=5)
    types = adata.obs["component"].cat.codes.to_numpy()
    rows = np.concatenate([np.flatnonzero(types == k)[:n] for k, n in enumerate(sizes)])
    codes = initial_partition(log_normalized_pcs(adata.X[rows]))
    assert adjusted_rand_score(types[rows], codes) > 0.9
