"""The weakest cut of a neighbour graph."""

import numpy as np
import pytest
from scipy import sparse

from scgmvae.clustering import cuts
from scgmvae.clustering.cuts import cut_weight, shared_neighbor_graph, weakest_cut


def graph_of(weights):
    """Symmetric graph of a dictionary of edges."""
    n = 1 + max(max(edge) for edge in weights)
    dense = np.zeros((n, n))
    for (i, j), weight in weights.items():
        dense[i, j] = dense[j, i] = weight
    return sparse.csr_matrix(dense)


@pytest.fixture
def two_triangles():
    """Two triangles with one edge of half the weight between them."""
    edges = {(0, 1): 1, (1, 2): 1, (0, 2): 1, (3, 4): 1, (4, 5): 1, (3, 5): 1, (2, 3): 0.5}
    return graph_of(edges)


def test_the_weight_of_a_cut_is_that_across_it_over_chance(two_triangles):
    side = np.arange(6) >= 3
    # 0.5 across, 13 in all, 6.5 on each side
    assert cut_weight(two_triangles, side) == pytest.approx(0.5 * 13 / 6.5**2)


def test_the_weakest_cut_goes_between_two_triangles(two_triangles):
    cut = weakest_cut(two_triangles, np.arange(6.0)[:, None], smallest=2)
    assert set(np.flatnonzero(cut.side)) in ({0, 1, 2}, {3, 4, 5})
    assert cut.t == pytest.approx(0.5 * 13 / 6.5**2)


def test_no_side_is_smaller_than_allowed(two_triangles):
    assert weakest_cut(two_triangles, np.arange(6.0)[:, None], smallest=4) is None


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_two_islands_are_cut_apart(share):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((1500, 5))
    is_moved = np.arange(1500) < 1500 * share
    z[is_moved] += 12
    cut = weakest_cut(shared_neighbor_graph(z), z)
    assert cut.t == 0
    assert min((cut.side != is_moved).sum(), (cut.side == is_moved).sum()) == 0


def test_cells_apart_from_all_do_not_hide_a_cut():
    rng = np.random.default_rng(1)
    z = rng.standard_normal((600, 5))
    z[:200, 0] += 7
    z = np.vstack([z, 1000 * np.eye(5)[:3] + 0.1 * rng.standard_normal((3, 5))])
    cut = weakest_cut(shared_neighbor_graph(z), z)
    found = set(np.flatnonzero(cut.side[:600]))
    assert found == set(range(200))
    assert cut.t < 0.01


def test_t_of_a_cut_is_found_again():
    z = np.random.default_rng(2).standard_normal((300, 4))
    graph = shared_neighbor_graph(z)
    cut = weakest_cut(graph, z)
    assert 0.2 < cut.t < 1
    assert cut_weight(graph, cut.side) == pytest.approx(cut.t, rel=1e-5)
    assert 10 <= cut.side.sum() <= 150


def test_neighbours_are_those_that_are_shared():
    z = np.array([[0.0], [1.0], [2.1], [3.3], [50.0], [51.0], [52.1], [53.3]])
    graph = shared_neighbor_graph(z, n_neighbors=3).toarray()
    assert (graph == graph.T).all()
    assert graph[:4, 4:].sum() == 0
    assert graph[0, 1] == 2  # both are near 2 and 3


@pytest.mark.parametrize("n", [20, 50, 200])
def test_cells_that_are_all_alike_are_no_error(n):
    cut = weakest_cut(shared_neighbor_graph(np.zeros((n, 3))), np.zeros((n, 3)))
    assert cut is None or cut.t > 0.3


def test_a_graph_without_edges_has_no_cut():
    assert weakest_cut(sparse.csr_matrix((40, 40)), np.zeros((40, 1))) is None


def test_of_islands_those_that_are_close_stay_on_one_side():
    z = np.random.default_rng(0).standard_normal((400, 3))
    island = np.repeat([0, 1, 2, 3], 100)
    z[:, 0] += np.array([0, 100, 20, 120])[island]
    cut = weakest_cut(shared_neighbor_graph(z), z)
    assert cut.t == 0
    assert set(island[cut.side]) in ({0, 2}, {1, 3})
    assert cut.side.sum() == 200


def test_a_group_that_is_apart_is_cut_off_last_where_others_are_as_well():
    z = np.random.default_rng(0).standard_normal((630, 3))
    z[300:600, 0] += 50
    z[600:, 1] += 15  # nearer, and with the same T
    cut = weakest_cut(shared_neighbor_graph(z), z)
    assert cut.side.sum() == 300


def test_all_distances_and_a_tree_give_the_same_graph(monkeypatch):
    z = np.random.default_rng(0).normal(size=(400, 10))
    by_distances = shared_neighbor_graph(z)
    monkeypatch.setattr(cuts, "FEW", 0)
    assert (by_distances != shared_neighbor_graph(z)).nnz == 0
