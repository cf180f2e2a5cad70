"""Test of a given partition: which groups one population explains, and which hide several."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scgmvae.clustering.cut_tests import (
    FINEST,
    LARGEST_P,
    TestedCut,
    evidence_of_cut,
    of_rows,
    tested_cut,
)
from scgmvae.clustering.cuts import SMALLEST_SIDE, shared_neighbor_graph
from scgmvae.clustering.partition import weights_between

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from scipy import sparse

    from scgmvae.clustering.one_population import Encoded, Evidence

__all__ = ["GroupTests", "examine_groups"]

CLEARLY_APART = 0.02
"""T between two groups below which they need no test."""
CELLS_IN_GRAPH = 20_000
"""Largest number of cells by which neighbouring groups are found."""


class GroupTests(NamedTuple):
    """What the tests of a partition have found."""

    inside: list[TestedCut | None]
    """The weakest cut inside each group; ``None`` where it has too few cells."""
    nearest: NDArray[np.int64]
    """The group that each one is closest to, −1 where there is no other."""
    border: list[Evidence | None]
    """What speaks for the border between the group and its nearest one."""
    merged: NDArray[np.int64]
    """Group of each group after those were merged that one population explains."""


def examine_groups(
    z: NDArray[np.floating],
    codes: NDArray[np.integer],
    encoder_of: Callable[[NDArray[np.integer]], Encoded],
    levels: Sequence[NDArray[np.integer]] = (),
    *,
    strength: float,
    seed: int = 0,
) -> GroupTests:
    """Test the groups of a partition, inside and against the groups beside them.

    Parameters
    ----------
    z
        Cells, ``(n, L)``.
    codes
        Group of each cell, ``(n,)``, from 0 on, −1 for cells of no group.
    encoder_of
        As in :func:`~scgmvae.clustering.growing.grow`.
    levels
        Level of each cell, ``(n,)``, for each categorical condition.
    strength
        Strength from which on two groups stay apart.
    seed
        Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(codes.max()) + 1
    inside = []
    for group in range(n_groups):
        rows = np.flatnonzero(codes == group)
        inside.append(
            tested_cut(
                z[rows],
                partial(of_rows, encoder_of, rows),
                [level[rows] for level in levels],
                rng,
            )
        )
    merged = np.arange(n_groups)
    nearest = np.full(n_groups, -1)
    border: list[Evidence | None] = [None] * n_groups
    current = codes.copy()
    tested: set[frozenset[int]] = set()
    graph_rows = _cells_in_graph(codes, rng)
    graph = shared_neighbor_graph(z[graph_rows])
    while (pair := _closest(_t_between(graph, current[graph_rows]), tested)) is not None:
        one, other = pair
        tested.add(frozenset(pair))
        evidence = _evidence_between(z, current, pair, encoder_of, rng, min(strength, FINEST))
        for group, beside in (pair, pair[::-1]):
            if nearest[group] < 0:
                nearest[group], border[group] = beside, evidence
        if evidence is None or (evidence.p <= LARGEST_P and evidence.strength >= strength):
            continue
        merged[merged == other] = one
        current[current == other] = one
        tested = {names for names in tested if not names & frozenset(pair)}
    return GroupTests(inside, nearest, border, np.unique(merged, return_inverse=True)[1])


def _cells_in_graph(codes: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of the cells by which neighbouring groups are found: those of a group, or a sample."""
    rows = np.flatnonzero(codes >= 0)
    if len(rows) > CELLS_IN_GRAPH:
        rows = np.sort(rng.permutation(rows)[:CELLS_IN_GRAPH])
    return rows


def _t_between(graph: sparse.csr_matrix, codes: NDArray[np.integer]) -> NDArray[np.float64]:
    """T of the border between each two groups, (K, K), 0 where there is none."""
    weights = weights_between(graph, codes)
    degree = weights.sum(1)
    expected = np.outer(degree, degree) / np.maximum(degree[:, None] + degree, 1e-12)
    t = weights / np.maximum(expected, 1e-12)
    np.fill_diagonal(t, 0.0)
    return t


def _closest(t: NDArray[np.float64], tested: set[frozenset[int]]) -> tuple[int, int] | None:
    """The pair of groups with the largest T that was not tested; ``None`` if all are apart."""
    t = np.triu(t, 1)
    for names in tested:
        t[min(names), max(names)] = 0.0
    one, other = np.unravel_index(t.argmax(), t.shape)
    return (int(one), int(other)) if t[one, other] > CLEARLY_APART else None


def _evidence_between(
    z: NDArray[np.floating],
    codes: NDArray[np.integer],
    pair: tuple[int, int],
    encoder_of: Callable[[NDArray[np.integer]], Encoded],
    rng: np.random.Generator,
    weakest: float,
) -> Evidence | None:
    """What speaks for the border between two groups; ``None`` where one has too few cells."""
    rows = np.flatnonzero(np.isin(codes, pair))
    side = codes[rows] == pair[1]
    if side.sum() > len(side) / 2:
        side = ~side
    if side.sum() < SMALLEST_SIDE:
        return None
    own_encoder_of = partial(of_rows, encoder_of, rows)
    return evidence_of_cut(z[rows], side, own_encoder_of, rng, weakest=weakest)
