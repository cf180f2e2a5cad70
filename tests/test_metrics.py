"""Tests of scgmvae.metrics: values worked out by hand, invariances, messages."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from scgmvae.metrics import clustering_accuracy, clustering_scores, purity

FUNCTIONS = [clustering_accuracy, purity, clustering_scores]

# labels, clusters, ACC, purity: each value counted by hand.
CASES = [
    pytest.param("AABB", "xxyy", 1, 1, id="equal_partitions"),
    pytest.param("AABB", "yyxx", 1, 1, id="names_swapped"),
    pytest.param("AABB", "xxyx", 3 / 4, 3 / 4, id="one_cell_wrong"),
    # A is split into x and z: only x can be matched to A, but both are pure.
    pytest.param("AAAABB", "xxxzyy", 5 / 6, 1, id="more_clusters_than_labels"),
    # x holds A and B: it is matched to A, so all of B is wrong.
    pytest.param("AAABBCC", "xxxxxyy", 5 / 7, 5 / 7, id="fewer_clusters_than_labels"),
    # Both clusters have majority A, but only one of them may be matched to it: x-A and y-B.
    pytest.param("AAAAABBC", "xxxyyyxy", 4 / 8, 5 / 8, id="two_clusters_want_one_label"),
    # N = [[3, 2], [2, 0]] over (A, B) x (x, y): matching greedily (A-x, B-y) gives 3, best is 4.
    pytest.param("AAAAABB", "xxxyyxx", 4 / 7, 5 / 7, id="greedy_match_is_not_best"),
    pytest.param("ABCD", "xxxx", 1 / 4, 1 / 4, id="one_cluster"),
    pytest.param("AAAA", "wxyz", 1 / 4, 1, id="one_cluster_per_cell"),
    pytest.param("A", "x", 1, 1, id="one_cell"),
]


@pytest.mark.parametrize(("labels", "clusters", "accuracy", "expected_purity"), CASES)
def test_values_by_hand(labels, clusters, accuracy, expected_purity):
    """Accuracy and purity equal the values counted by hand, alone and in the dictionary."""
    labels, clusters = list(labels), list(clusters)
    assert clustering_accuracy(labels, clusters) == pytest.approx(accuracy, abs=1e-15)
    assert purity(labels, clusters) == pytest.approx(expected_purity, abs=1e-15)
    scores = clustering_scores(labels, clusters)
    assert scores["ACC"] == clustering_accuracy(labels, clusters)
    assert scores["purity"] == purity(labels, clusters)
    assert scores["n_clusters"] == len(set(clusters))


def test_ari_and_nmi_by_hand():
    """ARI and NMI (arithmetic mean) equal their formulas on a 2 × 2 table."""
    # N = [[2, 1], [0, 3]]: pairs in the same cell of N: 1 + 0 + 0 + 3 = 4; per label 3 + 3 = 6,
    # per cluster 1 + 6 = 7, of 15 pairs: ARI = (4 - 6*7/15) / ((6 + 7)/2 - 6*7/15) = 12/37.
    scores = clustering_scores(list("AAABBB"), list("xxyyyy"))
    assert scores["ARI"] == pytest.approx(12 / 37, abs=1e-12)
    h_labels = np.log(2)
    h_clusters = -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3))
    mutual = (
        1 / 3 * np.log((1 / 3) / (1 / 2 * 1 / 3))
        + 1 / 6 * np.log((1 / 6) / (1 / 2 * 2 / 3))
        + 1 / 2 * np.log((1 / 2) / (1 / 2 * 2 / 3))
    )
    assert scores["NMI"] == pytest.approx(2 * mutual / (h_labels + h_clusters), abs=1e-12)


def test_accuracy_equals_search_over_all_matches():
    """The assignment finds what an exhaustive search over all matches finds."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, clusters = rng.integers(4, size=30), rng.integers(5, size=30)
        # Each tuple gives every label its own cluster; 5 clusters, so one always stays unmatched.
        best = max((np.take(m, labels) == clusters).sum() for m in permutations(range(5), 4))
        assert clustering_accuracy(labels, clusters) == pytest.approx(best / 30)


def test_scores_ignore_names_and_order_of_cells():
    """Renaming clusters or shuffling cells changes nothing."""
    rng = np.random.default_rng(1)
    labels, clusters = rng.integers(3, size=200), rng.integers(6, size=200)
    expected = clustering_scores(labels, clusters)
    renamed = np.array(list("qwerty"))[rng.permutation(6)][clusters]
    order = rng.permutation(200)
    assert clustering_scores(labels, renamed) == pytest.approx(expected)
    assert clustering_scores(labels[order], clusters[order]) == pytest.approx(expected)
    assert expected["purity"] >= expected["ACC"]
    assert abs(expected["ARI"]) < 0.05  # independent partitions: chance level is zero


def test_accuracy_is_symmetric_but_purity_is_not():
    """Exchanging labels and clusters keeps accuracy and changes purity."""
    labels, clusters = list("AAAABB"), list("xxxzyy")
    assert clustering_accuracy(labels, clusters) == clustering_accuracy(clusters, labels)
    assert purity(labels, clusters) == 1
    assert purity(clusters, labels) == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(list, id="list"),
        pytest.param(tuple, id="tuple"),
        pytest.param(np.array, id="numpy_str"),
        pytest.param(lambda v: np.array(v, dtype=object), id="numpy_object"),
        pytest.param(pd.Categorical, id="categorical"),
        pytest.param(lambda v: pd.Categorical(v, ["z", "y", "x", "B", "A"]), id="unused_levels"),
        pytest.param(lambda v: pd.Series(v, index=range(9, 3, -1)), id="series_with_index"),
        pytest.param(lambda v: pd.Index(v), id="index"),
        pytest.param(lambda v: np.array([ord(s) for s in v]), id="numpy_int"),
        pytest.param(lambda v: [float(ord(s)) for s in v], id="float"),
        pytest.param(lambda v: np.array(v) == v[0], id="bool"),
    ],
)
def test_any_dtype(convert):
    """Every container and dtype of the same partition gives the same scores."""
    scores = clustering_scores(convert(list("AAAABB")), convert(list("xxxyyy")))
    # N = [[3, 1], [0, 2]]; ARI: pairs 3 + 0 + 0 + 1 = 4, labels 6 + 1, clusters 3 + 3, of 15.
    assert scores["ACC"] == scores["purity"] == pytest.approx(5 / 6)
    assert scores["ARI"] == pytest.approx((4 - 42 / 15) / (13 / 2 - 42 / 15))
    assert scores["n_clusters"] == 2


def test_results_are_plain_python_numbers():
    """Scores can go into JSON: no NumPy scalars."""
    scores = clustering_scores(np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert [type(scores[key]) for key in ("ACC", "purity", "NMI", "ARI")] == [float] * 4
    assert type(scores["n_clusters"]) is int


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("labels", "clusters", "message"),
    [
        pytest.param(["A", "B"], [0], "2 labels and 1 clusters; subset both", id="lengths"),
        pytest.param([], [], "labels must hold at least one cell", id="empty"),
        pytest.param(["A"], [], "clusters must hold at least one cell", id="empty_clusters"),
        pytest.param(
            ["A", "B"],
            np.eye(2),
            "clusters must be one-dimensional, but received 2 dimensions",
            id="probabilities",
        ),
        pytest.param("AB", [0, 1], "labels must be one-dimensional, but received 0", id="string"),
        pytest.param([np.nan, "A"], [0, 1], "labels .* received 1 of them among 2", id="nan"),
        pytest.param(["A", "B"], [None, None], "clusters .* received 2 of them", id="none"),
    ],
)
def test_errors(function, labels, clusters, message):
    """Every function refuses bad input and says what it received."""
    with pytest.raises(ValueError, match=message):
        function(labels, clusters)
