"""Tests of clustering.labels: what a few labelled cells say of the others."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from scgmvae.clustering import labels as spreading
from scgmvae.clustering.labels import (
    CLASSIFIERS,
    _best_mix,
    _frequency,
    label_probabilities,
    partition_by_labels,
    without_levels,
)
from scgmvae.clustering.partition import initial_partition
from scgmvae.metrics import calibration_error
from tests.blobs import make_blobs

# Cells on a line: two labels around 0 and 10, and what lies elsewhere.
LINE = [0.0, 1.0, 0.5, 10.0, 11.0, 10.5, 50.0, 51.0]


@pytest.mark.parametrize(
    ("codes", "labels", "n_labels", "n_components", "expected"),
    [
        pytest.param(
            [0, 0, 0, 1, 1, 1, 1, 1],
            [0, 0, -1, 1, 1, -1, -1, -1],
            2,
            2,
            [0, 0, 0, 1, 1, 1, 1, 1],
            id="every_cell_takes_the_label_it_is_nearest_to",
        ),
        pytest.param(
            [0, 0, 0, 1, 1, 1, 2, 2],
            [1, 1, -1, 0, 0, -1, -1, -1],
            2,
            3,
            [1, 1, 1, 0, 0, 0, 2, 2],
            id="a_group_without_labels_is_a_type_of_its_own",
        ),
        pytest.param(
            [0, 0, 0, 1, 1, 1, 3, 2],
            [0, 0, -1, 1, 1, -1, -1, -1],
            2,
            4,
            [0, 0, 0, 1, 1, 1, 3, 2],
            id="the_larger_group_takes_the_first_free_component",
        ),
        pytest.param(
            [0, 0, 0, 1, 1, 1, 3, 2],
            [0, 0, -1, 1, 1, -1, -1, -1],
            2,
            3,
            [0, 0, 0, 1, 1, 1, -1, 2],
            id="none_is_left_for_the_last_group",
        ),
        pytest.param(
            [0, 0, 0, 1, 1, 1, 3, 2],
            [0, 0, -1, 1, 1, -1, -1, -1],
            2,
            None,
            [0, 0, 0, 1, 1, 1, 3, 2],
            id="K_unknown_has_no_bound",
        ),
        pytest.param(
            [0] * 8,
            [0, 0, 1, 1, 1, 0, -1, -1],
            2,
            2,
            [0, 0, 1, 1, 1, 0, 1, 1],
            id="labelled_cells_keep_their_labels",
        ),
        pytest.param(
            [0, 0, 0, 0, 0, 0, 1, 1],
            [0, 0, -1, 1, 1, -1, -1, -1],
            2,
            3,
            [0, 0, 0, 1, 1, 1, 2, 2],
            id="labels_divide_a_group",
        ),
        pytest.param(
            [0, 0, 0, 1, 1, 1, 1, 1],
            [1, -1, -1, 1, -1, -1, -1, -1],
            2,
            3,
            [1] * 8,
            id="one_label_of_two_has_cells",
        ),
        pytest.param(
            [0, 0, 0, 1, 1, 1, 2, 2],
            [-1] * 8,
            2,
            2,
            [0, 0, 0, 1, 1, 1, -1, -1],
            id="all_labelled_cells_are_held_out",
        ),
        pytest.param(
            [0, 0, 0, 1, 1, 1, 2, 2],
            [-1] * 8,
            2,
            None,
            [0, 0, 0, 1, 1, 1, 2, 2],
            id="held_out_and_K_unknown",
        ),
    ],
)
def test_cells_find_the_components_of_their_labels(
    codes, labels, n_labels, n_components, expected
):
    x = np.array(LINE)[:, None]
    found = partition_by_labels(x, np.array(codes), np.array(labels), n_labels, n_components)
    assert found.component.tolist() == expected
    assert found.component.dtype == np.int64


def test_fewer_labelled_cells_than_dimensions_still_divide_the_others():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 100)
    # twenty dimensions of noise, and four labelled cells of each of two types
    x = rng.normal(size=(200, 20))
    x[:, 1:] += 2.0 * truth[:, None]
    labels = np.full(200, -1)
    labels[[0, 1, 2, 3, 100, 101, 102, 103]] = [0, 0, 0, 0, 1, 1, 1, 1]
    found = partition_by_labels(x, np.zeros(200, dtype=int), labels, 2, 2)
    assert (found.component == truth).mean() > 0.95


def test_one_labelled_cell_of_each_type_names_its_group():
    x, truth = make_blobs(distance=20.0)
    labels = np.full(len(truth), -1)
    n_types = truth.max() + 1
    for label in range(n_types):
        labels[np.flatnonzero(truth == label)[0]] = label
    codes = initial_partition(x, n_types, "leiden")
    np.testing.assert_array_equal(
        partition_by_labels(x, codes, labels, n_types, n_types, True).component, truth
    )


@pytest.mark.parametrize("rare", [0, 1, 2, 5])
def test_a_rare_label_does_not_keep_neighbors_from_naming_the_others(rare):
    # two types in one group, which only their neighbours tell apart, and some cells of a third
    x, truth = make_blobs([100, 100, 20])
    codes = np.zeros(len(truth), dtype=np.int64)
    labels = np.full(len(truth), -1)
    for label, n_labelled in enumerate((50, 50, rare)):
        labels[np.flatnonzero(truth == label)[:n_labelled]] = label
    found = partition_by_labels(x, codes, labels, 3, 3, straight=False)
    assert found.proba is None
    named = truth < (2 if rare < 2 else 3)
    np.testing.assert_array_equal(found.component[named], truth[named])


# ---------------------------------------------------------------------------- label_probabilities


def overlapping(n=3000, n_dims=30, shares=(0.5, 0.3, 0.2), n_labelled=10, seed=0):
    """Three Gaussian types that overlap, with as many labelled cells each, and their labels."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=shares)
    x = rng.normal(size=(n, n_dims)) + 2.0 * np.eye(3, n_dims)[truth]
    labels = np.full(n, -1)
    for k in range(3):
        labels[np.flatnonzero(truth == k)[:n_labelled]] = k
    return x, labels, truth


def error_of(proba, truth, labels):
    hidden = labels < 0
    return calibration_error(truth[hidden], pd.DataFrame(proba[hidden], columns=[0, 1, 2]))


def test_labels_are_as_probable_as_they_are_right():
    errors, accuracies = [], []
    for seed in range(5):
        x, labels, truth = overlapping(seed=seed)
        known = labels >= 0
        analysis = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        analysis.fit(x[known], labels[known])
        both = label_probabilities(x, labels, 3), analysis.predict_proba(x)
        np.testing.assert_allclose(both[0].sum(1), 1)
        errors.append([error_of(proba, truth, labels) for proba in both])
        accuracies.append([(proba.argmax(1) == truth).mean() for proba in both])
    error, plain_error = np.mean(errors, axis=0)
    assert error < plain_error / 2
    accuracy, plain_accuracy = np.mean(accuracies, axis=0)
    assert accuracy >= plain_accuracy


def test_types_are_as_frequent_as_they_are_among_all_cells():
    errors, gains = [], []
    for seed in range(4):
        x, labels, truth = overlapping(shares=(0.8, 0.15, 0.05), n_labelled=40, seed=seed)
        proba = label_probabilities(x, labels, 3)
        shares = np.bincount(truth) / len(truth)
        errors.append(np.abs(proba.mean(0) - shares).sum() / np.abs(1 / 3 - shares).sum())
        # as many cells of each type are labelled, which says nothing
        balanced = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        balanced.fit(x[labels >= 0], labels[labels >= 0])
        gains.append((proba.argmax(1) == truth).mean() - balanced.score(x, truth))
    assert np.mean(errors) < 0.2
    assert min(gains) > 0.02


def test_a_label_without_cells_is_impossible_and_one_cell_is_enough():
    x, truth = make_blobs([60, 60, 60], n_dims=10)
    labels = np.full(180, -1)
    labels[np.flatnonzero(truth == 0)[:3]] = 0
    labels[np.flatnonzero(truth == 1)[:1]] = 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proba = label_probabilities(x, labels, 4)
    np.testing.assert_array_equal(proba[:, [1, 3]], 0)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (proba.argmax(1)[truth == 0] == 0).all()
    assert (proba.argmax(1)[truth == 1] == 2).all()


def test_cells_of_no_label_do_not_count_as_any():
    x, labels, _ = overlapping(shares=(0.4, 0.4, 0.2))
    strange = x[:, 0] > 2  # equal of the first type
    kept = label_probabilities(x[~strange | (labels >= 0)], labels[~strange | (labels >= 0)], 3)
    excluded = np.where(strange & (labels < 0), -2, labels)
    proba = label_probabilities(x, excluded, 3)
    np.testing.assert_allclose(proba[~strange | (labels >= 0)], kept)


def test_probabilities_of_components_beside_those_of_labels():
    x, truth = make_blobs([100, 60, 40, 30])
    labels = np.full(230, -1)
    for k in (0, 1):
        labels[np.flatnonzero(truth == k)[:5]] = k
    found = partition_by_labels(x, truth, labels, 2, 3)  # one component is left for two types
    np.testing.assert_array_equal(found.component, np.where(truth == 3, -1, truth))
    assert found.proba.shape == (230, 3)
    is_sure = (labels >= 0) | (truth == 2)
    np.testing.assert_array_equal(found.proba[is_sure], np.eye(3)[truth[is_sure]])
    np.testing.assert_array_equal(found.proba[truth == 3], 0)
    of_labels = found.proba[(truth < 2) & (labels < 0)]
    np.testing.assert_array_equal(of_labels[:, 2], 0)
    np.testing.assert_allclose(of_labels.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("n_cells", [[2] * 8, [2, 2, 2, 2, 1, 1, 1, 1], [10] + [1] * 7], ids=str)
def test_one_or_two_cells_of_a_label_are_enough_for_types_far_apart(n_cells):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 8, 1000)
    x = rng.normal(size=(1000, 40)) + 10 * np.eye(8, 40)[truth]
    labels = np.full(1000, -1)
    for k, n in enumerate(n_cells):
        labels[np.flatnonzero(truth == k)[:n]] = k
    found = partition_by_labels(x, np.zeros(1000, dtype=int), labels, 8, None)
    assert (found.component == truth).mean() > 0.9


def test_labels_with_hardly_a_cell_each_name_groups():
    # two cells beyond one of each label show no spread in forty dimensions
    rng = np.random.default_rng(0)
    truth = np.sort(rng.integers(0, 8, 1000))
    x = rng.normal(size=(1000, 40)) + 10 * np.eye(8, 40)[truth]
    labels = np.full(1000, -1)
    for k in range(8):
        labels[np.flatnonzero(truth == k)[: 3 if k == 0 else 1]] = k
    found = partition_by_labels(x, truth, labels, 8, None)
    assert found.proba is None
    np.testing.assert_array_equal(found.component, truth)


def test_repeated_labelled_cells_do_not_hide_the_others():
    x, truth = make_blobs([60, 60, 60], n_dims=10)
    labels = np.full(180, -1)
    for k in range(3):
        labels[np.flatnonzero(truth == k)[:5]] = k
        x[labels == k] = x[labels == k][0]
    proba = label_probabilities(x, labels, 3)
    assert (proba.argmax(1) == truth).all()


def test_a_few_held_out_cells_do_not_make_labels_sure():
    log_f, equal = np.array([[[0.0, -6.0, -6.0]], [[0.0, -1.0, -1.0]]]), np.full(3, 1 / 3)
    usual = np.array([CLASSIFIERS[0].usual_weight, 0])
    few, many = (
        _best_mix(np.repeat(log_f, n, axis=1), np.zeros(n, dtype=int), equal, equal)
        for n in (3, 3000)
    )
    assert (few.weights < usual + [0.2, 0.2]).all()
    assert (few.weights >= usual).all()
    assert (many.weights > few.weights).all()
    assert many.strange < 1e-3
    # and where nothing can be held out, the analysis counts alone and is as sure as usual
    none = _best_mix(log_f[:, :0], np.zeros(0, dtype=int), equal, equal)
    np.testing.assert_allclose(none.weights, usual, atol=1e-3)


def test_a_classifier_that_predicts_nothing_gets_no_weight():
    rng = np.random.default_rng(0)
    label, equal = rng.integers(0, 2, 2000), np.full(2, 0.5)
    # the first is right and knows how sure it may be, the second knows nothing
    x = rng.normal(2 * label - 1.0, 1.0)
    log_f = np.stack([np.column_stack([-x, x]), rng.normal(size=(2000, 2))])
    mix = _best_mix(log_f, label, equal, equal)
    assert mix.weights[0] == pytest.approx(1, abs=0.1)
    assert mix.weights[1] < 0.1


def of_unequal_spread(n, seed=0):
    """Two types, one of them ten times as widely spread: the means tell little of the border."""
    rng = np.random.default_rng(seed)
    truth = np.repeat([0, 1], n // 2)
    x = rng.standard_normal((n, 4))
    x[truth == 0, 0] -= 3
    x[truth == 1, 0] += 10 * np.abs(rng.standard_normal(n // 2))
    return x, truth


def of_equal_spread(n, seed=0):
    """Two types of thirty dimensions, which differ in one."""
    rng = np.random.default_rng(seed)
    truth = np.repeat([0, 1], n // 2)
    x = rng.standard_normal((n, 30))
    x[:, 0] += 4 * truth
    return x, truth


@pytest.mark.parametrize(
    ("cells", "n_labelled", "better"),
    [(of_equal_spread, 40, 0), (of_unequal_spread, 800, 1)],
    ids=["analysis", "regression"],
)
def test_that_classifier_counts_more_whose_borders_are_right(
    cells, n_labelled, better, monkeypatch
):
    x, truth = cells(2000)
    some = np.random.default_rng(0).permutation(2000)[:n_labelled]
    labels = np.full(2000, -1)
    labels[some] = truth[some]
    mix = _best_mix(
        *spreading._held_out(x[some], truth[some], 0), np.full(2, 0.5), np.full(2, 0.5)
    )
    usual = np.array([classifier.usual_weight for classifier in CLASSIFIERS])
    relative = mix.weights / usual
    assert relative[better] > 1.5 * relative[1 - better]
    right = (label_probabilities(x, labels, 2).argmax(1) == truth).mean()
    alone = []
    for classifier in CLASSIFIERS:
        monkeypatch.setattr(spreading, "CLASSIFIERS", (classifier,))
        alone.append((label_probabilities(x, labels, 2).argmax(1) == truth).mean())
    assert alone[better] > alone[1 - better]
    assert right > alone[better] - 0.01


def test_weights_do_not_depend_on_the_cells_without_a_label(monkeypatch):
    x, truth = of_unequal_spread(2000)
    some = np.random.default_rng(0).permutation(2000)[:60]
    mixes, original = [], spreading._best_mix
    monkeypatch.setattr(
        spreading, "_best_mix", lambda *given: mixes.append(original(*given)) or mixes[-1]
    )
    for of_others in (x, x + [30.0, 0, 0, 0]):  # all of them look like the second type
        cells, labels = of_others.copy(), np.full(2000, -1)
        cells[some], labels[some] = x[some], truth[some]
        label_probabilities(cells, labels, 2)
    # the first of two for either, before frequencies are corrected
    np.testing.assert_array_equal(mixes[0].weights, mixes[2].weights)


def test_many_labels_find_a_border_that_the_means_do_not_tell():
    x, truth = of_unequal_spread(4000)
    labels = np.where(np.arange(4000) % 4, -1, truth)
    unknown = labels < 0
    by_means = LinearDiscriminantAnalysis().fit(x[~unknown], truth[~unknown]).predict(x)
    found = label_probabilities(x, labels, 2).argmax(1)
    wrong = (found != truth)[unknown].mean()
    assert wrong < 0.7 * (by_means != truth)[unknown].mean()


def test_of_many_labelled_cells_a_regression_takes_about_as_many_of_each_label():
    label = np.repeat([0, 1, 2], [300, 290, 5])
    rows = spreading._some_of_each(label, 50)
    assert np.bincount(label[rows]).tolist() == [23, 22, 5]
    assert len(np.unique(rows)) == 50
    np.testing.assert_array_equal(spreading._some_of_each(label, 1000), np.arange(595))


def test_a_regression_is_fitted_to_some_of_many_labelled_cells(monkeypatch):
    monkeypatch.setattr(spreading, "MOST_IN_REGRESSION", 50)
    x, truth = make_blobs([300, 300, 2], n_dims=4)
    log_f = spreading._log_densities_of_regression(x, truth, x)
    assert log_f.shape == (602, 3)
    assert (log_f.argmax(1) == truth)[:600].all()


def test_a_type_without_predicted_cells_keeps_a_frequency():
    x, labels, _ = overlapping(shares=(0.5, 0.5, 0.0), n_labelled=10)
    labels[0] = 2  # one wrong label, and no other cell of that type
    proba = label_probabilities(x, labels, 3)
    assert (proba[:, 2] > 0).all()


def test_frequencies_are_shares_times_how_much_more_probable_labels_are():
    shares, label = np.array([0.4, 0.4, 0.2]), np.array([0, 0, 1, 1])  # one cell of the third
    of_held_out = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.8, 0.0], [0.0, 1.0, 0.0]])
    of_others = np.array([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    # 0.4 of the mean over each of both labels, and the third's own share
    expected = 0.4 * np.array([0.7, 0.2, 0.1]) + 0.4 * np.array([0.1, 0.9, 0.0]) + [0, 0, 0.2]
    found = shares * (np.array([0.3, 0.5, 0.2]) + 0.2) / (expected + 0.2)
    np.testing.assert_allclose(
        _frequency(of_others, of_held_out, label, shares), found / found.sum()
    )
    np.testing.assert_array_equal(_frequency(of_others[:0], of_held_out, label, shares), shares)


@pytest.mark.parametrize("seed", range(3))
def test_shares_stay_where_labelled_cells_are_drawn_from_all(seed):
    x, _, truth = overlapping(shares=(0.7, 0.2, 0.1), seed=seed)
    labels = np.where(np.random.default_rng(seed + 10).random(len(truth)) < 0.1, truth, -1)
    proba = label_probabilities(x, labels, 3)
    np.testing.assert_allclose(proba.mean(0), np.bincount(truth) / len(truth), atol=0.03)


# --------------------------------------------------------------------------------- without_levels


@pytest.mark.parametrize("n_conditions", [1, 2])
def test_levels_are_taken_out_whatever_types_they_have(n_conditions):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, 2000)
    # nine tenths of the first group are of one level, and of the second of the other
    levels = [(rng.random(2000) < np.array([0.9, 0.1, 0.5])[group]).astype(int)]
    levels += [rng.integers(0, 4, 2000) for _ in range(n_conditions - 1)]
    types = 5 * rng.normal(size=(3, 8))[group]
    x = types + 0.1 * rng.normal(size=(2000, 8))
    for level in levels:
        x += 3 * rng.normal(size=(4, 8))[level]
    found = without_levels(x, group, levels)
    for level in levels:
        for k in range(3):
            means = [found[(group == k) & (level == m)].mean(0) for m in np.unique(level)]
            np.testing.assert_allclose(means, np.broadcast_to(means[0], np.shape(means)), atol=0.1)
    apart = [found[group == k].mean(0) - found[group == 0].mean(0) for k in (1, 2)]
    truth = [types[group == k][0] - types[group == 0][0] for k in (1, 2)]
    np.testing.assert_allclose(apart, truth, atol=0.15)


def test_cells_without_conditions_stay_as_they_are():
    x = np.random.default_rng(0).normal(size=(20, 3))
    assert without_levels(x, np.zeros(20, dtype=int), []) is x
