"""Tests of cuts: how many cells and draws they take."""

import numpy as np
import pytest

from scgmvae.clustering import cut_tests
from scgmvae.clustering.cut_tests import FINEST, OPEN, evidence_of_cut
from scgmvae.clustering.cuts import shared_neighbor_graph, weakest_cut
from scgmvae.clustering.growing import grow
from scgmvae.clustering.one_population import FEWEST_DRAWS, MOST_DRAWS, evidence_of


class Encoder:
    """One that gives back the points it is given, and remembers how many they were."""

    def __init__(self):
        self.sizes = []

    def __call__(self, rows):
        def encoded(points, rng):
            self.sizes.append(len(points))
            return points

        return encoded


def two_groups(n, distance, share=0.5, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 4))
    z[: int(n * share), 0] += distance
    return z


@pytest.mark.parametrize(
    ("distance", "largest"), [(9.0, 1000), (0.0, 1000), (3.2, 2500)], ids=["apart", "one", "open"]
)
def test_cells_that_tell_nothing_more_are_not_tested(distance, largest):
    encoder = Encoder()
    found = cut_tests.tested_cut(two_groups(4000, distance), encoder, [], np.random.default_rng(0))
    assert max(encoder.sizes) == largest
    if largest == 2500:
        assert OPEN[0] < found.evidence.strength < OPEN[1]
    assert found.is_split == (distance > 0)


def test_a_first_test_is_made_only_where_it_saves_time():
    encoder = Encoder()
    cut_tests.tested_cut(two_groups(1900, 9.0), encoder, [], np.random.default_rng(0))
    assert set(encoder.sizes) == {1900}


def test_a_rare_group_is_tested_with_all_its_cells():
    encoder = Encoder()
    z = two_groups(4000, 9.0, share=0.005)
    found = cut_tests.tested_cut(z, encoder, [], np.random.default_rng(0))
    assert found.cut.side.sum() == 20
    assert set(encoder.sizes) == {20 + cut_tests.CELLS_IN_FIRST_TEST // 2}
    assert found.evidence.strength > OPEN[1]


def test_t_that_is_known_is_that_of_the_graph():
    z = two_groups(400, 4.0)
    cut = weakest_cut(shared_neighbor_graph(z), z)
    known, found = (
        evidence_of_cut(z, cut.side, Encoder(), np.random.default_rng(0), t) for t in (cut.t, None)
    )
    assert known.t == pytest.approx(found.t)
    assert known.null == found.null


@pytest.mark.parametrize(("n", "fewest"), [(30, MOST_DRAWS), (100, 10), (400, FEWEST_DRAWS)])
def test_small_groups_have_more_draws(n, fewest):
    encoder = Encoder()
    evidence_of(0.0, two_groups(n, 0.0), encoder(None), np.random.default_rng(0))
    assert len(encoder.sizes) == fewest + 2  # two for the Gaussian


def test_draws_end_where_a_cut_cannot_become_as_strong_as_it_has_to_be():
    z, n_draws = two_groups(300, 0.0), {}
    null = evidence_of(0.0, z, Encoder()(None), np.random.default_rng(0)).null
    for weakest in (0.0, FINEST):
        encoder = Encoder()
        # a cut a tenth below one population's, which is neither clear nor hopeless
        found = evidence_of(0.9 * null, z, encoder(None), np.random.default_rng(0), weakest)
        n_draws[weakest] = len(encoder.sizes)
        assert found.strength < FINEST
    assert n_draws[FINEST] < n_draws[0.0]


def test_the_draws_of_a_group_do_not_depend_on_what_was_tested_before():
    z = np.concatenate([two_groups(300, 9.0), two_groups(200, 0.0, seed=1) + [0, 30, 0, 0]])
    tree, _ = grow(z, Encoder())
    assert tree.n_splits == 2
    # the first half is split as before where the second, which is tested beside it, is another
    z[300:] = two_groups(200, 3.5, seed=2) + [0, 30, 0, 0]
    other, _ = grow(z, Encoder())
    assert other.n_splits > 2
    assert len(np.intersect1d(tree.null, other.null)) == 1
