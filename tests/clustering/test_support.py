"""Tests of what the levels of a condition say of a cut."""

import numpy as np
import pytest

from scgmvae.clustering import cut_tests
from scgmvae.clustering.cut_tests import APART, FINEST
from scgmvae.clustering.support import fall_on_their_sides, levels_on_both_sides, support_of


def given_back(rows):
    """An encoder that gives back the points it is given."""
    return lambda points, rng: points


def cells(groups, seed=0):
    """Cells of groups, each a number of cells, a place on two axes, and a level."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((sum(n for n, *_ in groups), 4))
    z[:, :2] += np.repeat([place for _, place, _ in groups], [n for n, *_ in groups], axis=0)
    return z, np.repeat([level for *_, level in groups], [n for n, *_ in groups])


def cut_of(groups, seed=0):
    z, level = cells(groups, seed)
    return cut_tests.tested_cut(z, given_back, [level], np.random.default_rng(seed))


TWO_TYPES = [(150, (0, 0), 0), (120, (6, 0), 0), (90, (0, 0), 1), (110, (0, 0), 2)]
"""The second comes in one level of three, so that level means differ by types."""


@pytest.mark.parametrize("seed", range(3))
def test_a_type_that_some_levels_lack_is_one(seed):
    found = cut_of(TWO_TYPES, seed)
    (support,) = found.supports
    assert found.cut.side.sum() == pytest.approx(120, abs=3)
    assert found.evidence.strength < APART  # where a cut would need no support
    assert support.t > found.cut.t + 0.5 * (found.evidence.null - found.cut.t)  # moved, it is gone
    assert support.n_levels == 1
    assert found.is_split


@pytest.mark.parametrize("seed", range(3))
def test_a_type_that_a_condition_moves_is_not_cut(seed):
    # no level has cells on both sides
    found = cut_of([(200, (0, 0), 0), (200, (5, 0), 1)], seed)
    assert not found.is_split


def test_what_a_condition_has_moved_is_not_of_another_type():
    # Level 0 shows a cut between two types by itself. Level 1 holds the first type alone, moved,
    # and the cut has it on the side of the second, which is further away.
    z, level = cells([(200, (0, 0), 0), (60, (5, 6), 0), (200, (5, 0), 1)])
    is_first = np.arange(460) < 200
    is_second = (np.arange(460) >= 200) & (np.arange(460) < 260)
    for side, is_right in ((~is_first, False), (is_second, True)):
        assert fall_on_their_sides(z, side, level == 0) == is_right
        rng = np.random.default_rng(0)
        assert cut_tests._is_seen_within(z, side, level, given_back, rng) == is_right


@pytest.mark.parametrize(
    ("strengths", "p", "is_seen"),
    [
        ([0.9, 0.4], 1e-4, True),
        ([0.9, 0.2], 1e-4, False),
        ([0.5, 0.5], 1e-4, False),
        ([0.5, 0.8], 1e-4, True),
        ([0.9, 0.9], 0.05, False),
        ([0.9, np.nan], np.nan, False),
    ],
)
def test_every_level_that_holds_both_sides_shows_the_cut(strengths, p, is_seen, monkeypatch):
    left = iter(strengths)  # of level 0 with 40 cells on its smaller side, and level 1 with 20

    def evidence(*_):
        return cut_tests.Evidence(0.2 * (1 - next(left)), 0.2, p)

    monkeypatch.setattr(cut_tests, "evidence_of_cut", evidence)
    groups = [(60, (0, 0), 0), (40, (5, 0), 0), (60, (0, 0), 1), (20, (5, 0), 1)]
    z, level = cells(groups)
    side = np.repeat([False, True, False, True], [n for n, *_ in groups])
    rng = np.random.default_rng(0)
    assert cut_tests._is_seen_within(z, side, level, given_back, rng) == is_seen


def test_levels_with_most_cells_on_their_smaller_side_come_first():
    level = np.repeat([0, 1, 2, 3, 4], [40, 50, 30, 60, 400])
    side = np.zeros(580, dtype=bool)
    side[:12] = True  # of level 0
    side[40:60] = True  # of level 1
    side[90:99] = True  # of level 2: too few for a side
    side[180:191] = True  # of level 4: strays, 11 of 400 where 9 % of all cells are on this side
    assert levels_on_both_sides(side, level, most=4).tolist() == [1, 0]
    assert levels_on_both_sides(side, level, most=1).tolist() == [1]
    few = levels_on_both_sides(side[:180], level[:180], most=4)
    assert few.tolist() == [1, 0]


def test_cells_of_other_levels_lie_on_their_sides():
    z, level = cells([(50, (0, 0), 0), (50, (9, 0), 0), (40, (0, 0), 1), (40, (9, 0), 1)])
    side, shows = z[:, 0] > 4.5, level == 0
    assert fall_on_their_sides(z, side, shows)
    assert fall_on_their_sides(z, side, np.ones(180, dtype=bool))
    wrong = np.where(shows, side, ~side)
    assert not fall_on_their_sides(z, wrong, shows)
    # of level 1, nine cells or ten are said to be on the second side but lie on the first
    for n_wrong, is_right in ((9, True), (10, False)):
        few = np.where(shows, side, np.arange(180) < 100 + n_wrong)
        moved = np.where(shows[:, None], z, z[np.arange(180) % 40 + 100])
        assert fall_on_their_sides(moved, few, shows) == is_right


@pytest.mark.parametrize(
    ("n_second", "is_of_one"),
    [([60, 0], True), ([60, 4], True), ([60, 5], False), ([30, 30], False)],
)
def test_a_cut_is_of_one_level_where_another_has_cells_for_both_sides(n_second, is_of_one):
    groups = [(100, (0, 0), 0), (100, (0, 0), 1)]
    groups += [(n, (9, 0), level) for level, n in enumerate(n_second)]
    z, level = cells(groups)
    side = z[:, 0] > 4.5
    assert support_of(z, side, level, 0.01, 0.2).is_of_one_level == is_of_one
    # a level of which nearly no cells would be on the smaller side says nothing
    few = np.where((level == 1) & (np.arange(len(z)) % 100 >= 30), 0, level)
    assert not support_of(z, side, few, 0.01, 0.2).is_of_one_level


def test_support_is_asked_for_where_a_cut_counts():
    found = cut_of([(150, (0, 0), 0), (150, (0, 0), 1)])
    assert found.evidence.strength < FINEST
    assert found.supports == ()
