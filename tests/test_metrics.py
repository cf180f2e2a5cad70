"""Tests of scgmvae.metrics: values worked out by hand, invariances, messages."""

import sys
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from scgmvae.metrics import (
    calibration_error,
    clustering_accuracy,
    clustering_scores,
    mixing_by_group,
    mixing_scores,
    purity,
    type_recovery,
)

FUNCTIONS = [clustering_accuracy, purity, clustering_scores, type_recovery]

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


# ------------------------------------------------------------------------------- calibration


def frame(of_a):
    """Probabilities of the labels A and B."""
    return pd.DataFrame({"A": of_a, "B": 1 - np.asarray(of_a)})


@pytest.mark.parametrize(
    ("labels", "of_a", "n_bins", "expected"),
    [
        pytest.param("AABB", [1, 1, 0, 0], 15, 0, id="sure_and_right"),
        pytest.param("BBAA", [1, 1, 0, 0], 15, 1, id="sure_and_wrong"),
        pytest.param("AAAA", [0.6] * 4, 15, 0.4, id="too_unsure"),
        pytest.param("AAAB", [0.75] * 4, 15, 0, id="as_often_right_as_it_says"),
        pytest.param("AAAB", [0.25] * 4, 15, 0.5, id="of_the_label_that_wins"),
        # two bins: 0.9 with two of two right, 0.6 with none of two
        pytest.param("AABB", [0.9, 0.9, 0.6, 0.6], 10, (0.2 + 1.2) / 4, id="two_bins"),
        # one bin: 1.5 right of two, and two are, so that errors of either sign cancel
        pytest.param("AABB", [0.9, 0.9, 0.6, 0.6], 1, abs(3.0 - 2) / 4, id="one_bin"),
        # 0.55 of A and 0.55 of B fall into one bin, of which one is right
        pytest.param("AA", [0.55, 0.45], 10, 0.05, id="labels_share_a_bin"),
    ],
)
def test_calibration_error_by_hand(labels, of_a, n_bins, expected):
    found = calibration_error(list(labels), frame(of_a), n_bins)
    assert type(found) is float
    assert found == pytest.approx(expected, abs=1e-12)


def test_draws_from_the_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    of_a = rng.uniform(size=20_000)
    labels = np.where(rng.uniform(size=20_000) < of_a, "A", "B")
    assert calibration_error(labels, frame(of_a)) < 0.02
    # the same labels with everything said with more confidence
    sharper = of_a**3 / (of_a**3 + (1 - of_a) ** 3)
    assert calibration_error(labels, frame(sharper)) > 0.1


def test_calibration_error_ignores_index_and_type_of_the_labels():
    proba = frame([0.9, 0.8, 0.3]).set_axis(["x", "y", "z"])
    expected = (0.1 + 0.2 + 0.7) / 3
    for labels in (list("AAA"), pd.Categorical(list("AAA")), pd.Series(list("AAA"), [7, 8, 9])):
        assert calibration_error(labels, proba) == pytest.approx(expected)


def test_calibration_error_wants_a_label_per_row():
    with pytest.raises(ValueError, match="2 labels and 3 rows"):
        calibration_error(["A", "B"], frame([0.1, 0.2, 0.3]))


# ------------------------------------------------------------------------------------ mixing


@pytest.fixture(scope="module")
def scib_metrics():
    return pytest.importorskip("scib_metrics")


def embedding(batch_shift, n=150):
    """Two labels far apart, the batches of each as far as is said; batches and labels."""
    rng = np.random.default_rng(0)
    labels, batches = np.arange(n) % 2, np.arange(n) // 2 % 2
    x = rng.normal(size=(n, 4))
    x[:, 0] += 20 * labels
    x[:, 1] += batch_shift * batches
    return x, np.array(["b0", "b1"])[batches], np.array(["A", "B"])[labels]


@pytest.mark.slow  # jax and numba compile
def test_mixing_scores_tell_mixed_from_separated_batches(scib_metrics):
    mixed, separated = (mixing_scores(*embedding(shift), n_neighbors=30) for shift in (0, 20))
    assert list(mixed) == ["silhouette_label", "silhouette_batch", "iLISI", "cLISI"]
    assert all(type(score) is float for score in mixed.values())
    assert mixed["iLISI"] > 0.7
    assert separated["iLISI"] < 0.05
    assert mixed["silhouette_batch"] > 0.9
    assert separated["silhouette_batch"] < 0.3
    # labels are apart in both
    assert mixed["cLISI"] == pytest.approx(1, abs=1e-3)
    assert separated["cLISI"] == pytest.approx(1, abs=1e-3)
    assert mixed["silhouette_label"] > 0.85


@pytest.mark.slow  # jax and numba compile
def test_mixing_scores_tell_labels_apart_from_labels_in_one_heap(scib_metrics):
    x, batches, labels = embedding(0)
    heap = mixing_scores(x[:, 1:], batches, labels, n_neighbors=30)
    assert heap["cLISI"] < 0.3
    assert heap["silhouette_label"] == pytest.approx(0.5, abs=0.05)
    assert heap["iLISI"] > 0.7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda x, b, t: (x, b[:-1], t), "150, 149 and 150", id="batches"),
        pytest.param(lambda x, b, t: (x, b, t[:-2]), "150, 150 and 148", id="labels"),
        pytest.param(lambda x, b, t: (x[:-3], b, t), "147, 150 and 150", id="embedding"),
        pytest.param(
            lambda x, b, t: (x, [None, *b[1:]], t), "batches must not hold missing", id="missing"
        ),
    ],
)
def test_mixing_scores_want_a_batch_and_a_label_per_cell(scib_metrics, change, words):
    with pytest.raises(ValueError, match=words):
        mixing_scores(*change(*embedding(0)))


def test_mixing_scores_name_the_extra_that_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(
        ImportError, match=r"needs scib-metrics: pip install 'scgmvae\[benchmark\]'"
    ):
        mixing_scores(*embedding(0))


# ---------------------------------------------------------------------------------- recovery


@pytest.mark.parametrize(
    ("labels", "clusters", "expected"),
    [
        pytest.param("AABBB", "xxyyy", {"A": (2, "x", 1), "B": (3, "y", 1)}, id="all_found"),
        # both types suit the same cluster best: it may be the best of two
        pytest.param(
            "ABBBB", "xxxxy", {"A": (1, "x", 2 / 5), "B": (4, "x", 6 / 8)}, id="one_for_two"
        ),
        # A-x: 2*2/(3+2) = 4/5, A-y: 2*1/(3+4) = 2/7; B-y: 2*3/(3+4) = 6/7; C-z: 1
        pytest.param(
            "AAABBBC",
            "xxyyyyz",
            {"C": (1, "z", 1), "A": (3, "x", 4 / 5), "B": (3, "y", 6 / 7)},
            id="smallest_first",
        ),
        # most of A is in y, but x is its own: 2*2/(5+2) = 4/7 against 2*3/(5+8) = 6/13
        pytest.param(
            "AAAAABBBBB",
            "xxyyyyyyyy",
            {"A": (5, "x", 4 / 7), "B": (5, "y", 10 / 13)},
            id="not_by_most_cells",
        ),
    ],
)
def test_type_recovery_by_hand(labels, clusters, expected):
    table = type_recovery(list(labels), list(clusters))
    assert table.index.name == "type"
    assert table.index.tolist() == list(expected)
    assert table["n_cells"].tolist() == [n for n, _, _ in expected.values()]
    assert table["cluster"].tolist() == [cluster for _, cluster, _ in expected.values()]
    np.testing.assert_allclose(table["F1"], [f1 for _, _, f1 in expected.values()])


def test_type_recovery_is_the_best_f1_score_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.choice(4, size=200, p=[0.5, 0.3, 0.15, 0.05])
    clusters = np.where(rng.random(200) < 0.6, labels, rng.integers(6, size=200))
    table = type_recovery(labels, pd.Categorical(clusters.astype(str), list("9543210")))
    assert table["n_cells"].is_monotonic_increasing
    for label, row in table.iterrows():
        scores = {str(k): f1_score(labels == label, clusters == k) for k in range(6)}
        assert row["F1"] == pytest.approx(max(scores.values()))
        assert row["cluster"] == max(scores, key=scores.get)
        assert row["n_cells"] == (labels == label).sum()


# ---------------------------------------------------------------------------- mixing by group


def test_mixing_is_1_by_chance_and_0_where_levels_are_apart():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((900, 3))
    groups = np.repeat(["mixed", "apart", "one level"], 300)
    levels = np.where(rng.random(900) < 0.3, "a", "b")
    levels[600:] = "a"
    z[:, 0] += np.where((groups == "apart") & (levels == "a"), 50.0, 0.0)
    mixing = mixing_by_group(z, levels, groups)
    assert mixing["mixed"] == pytest.approx(1, abs=0.08)
    assert mixing["apart"] == 0
    assert np.isnan(mixing["one level"])
    assert mixing.index.tolist() == ["apart", "mixed", "one level"]


def test_mixing_needs_one_level_and_group_per_cell():
    with pytest.raises(ValueError, match="one entry per cell"):
        mixing_by_group(np.zeros((5, 2)), ["a"] * 4, ["x"] * 5)
