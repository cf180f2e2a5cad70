"""What a few labelled cells say of the others, before a mixture learns from them.

Where borders between types are straight this is a linear discriminant analysis, or a logistic
regression if that predicts labelled cells better that are held out. Probabilities are made right:
softened until they predict these cells, and for types as frequent as they are among all cells.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import CategoricalNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import OneHotEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    LogDensities = Callable[
        [NDArray[np.float64], "Codes", NDArray[np.float64]], NDArray[np.float64]
    ]
    """Labelled cells, their labels, and cells → log density of the cells in each label, up to a
    number for each cell, (n, labels)."""

__all__ = ["Spread", "label_probabilities", "partition_by_labels", "without_levels"]

Codes = NDArray[np.int64]

N_VOTES = 15
N_FOLDS = 10
LEAST_FREEDOM = 3
"""Smallest number of labelled cells, beyond one of each label, that show how cells of one type
differ, where there are as many dimensions."""
SMALLEST_SD = 1e-6
"""Smallest standard deviation within labels, over the largest of labelled cells, that is no 0."""
MOST_IN_REGRESSION = 5000
"""Largest number of labelled cells that a logistic regression is fitted to: more take long and say
little more of the borders."""
MOST_ITERATIONS = 300
LEAST_SHRINKAGE = 0.01
"""Smallest shrinkage of correlations: so few cells may have none by chance."""
TINY = 1e-300
"""In place of a 0 by which to divide, or of which to take the logarithm."""


class Spread(NamedTuple):
    """Labels spread over all cells."""

    component: Codes
    """Component of each cell, (n,); −1 for the cells of a group for which no component is left."""
    proba: NDArray[np.float32] | None
    """Probabilities of all components, (n, any), the rows of cells without one 0; ``None`` where
    they are not known."""


class Softness(NamedTuple):
    """By how much densities are too sure."""

    temperature: float
    """T, by which log densities are divided."""
    strange: float
    """ε, share of the cells of which densities say nothing."""


SD_OF_LOG_T = 0.5
"""By how much log T varies between data."""
LARGEST = Softness(temperature=50.0, strange=0.2)


def partition_by_labels(
    x: NDArray[np.floating],
    codes: Codes,
    labels: Codes,
    n_labels: int,
    n_components: int | None,
    straight: bool = True,
    seed: int = 0,
) -> Spread:
    """Components of the cells where the first components stand for labels.

    A group without any labelled cell is a type that no label names. It gets a component without a
    label as long as there are any, the largest group first. Labelled cells get the component of
    their label. Every other cell gets that of the label which a classifier predicts for it, fitted
    to the labelled cells.

    Parameters
    ----------
    x
        Representation of the cells, ``(n, D)``.
    codes
        Groups of the cells, ``(n,)``, from 0 on, the largest first.
    labels
        Labels ``(n,)`` from 0 on, −1 where there is none.
    n_labels
        Number of labels.
    n_components
        K; ``None`` sets no bound.
    straight
        Whether borders between types are straight. Then the classifier is that of
        :func:`label_probabilities`. Otherwise, and if labels have hardly more than one cell each,
        which shows no spread, a cell gets the commonest label of its group or of its neighbours,
        whichever is right more often in cross-validation. If no two labels have two cells each,
        it gets that of its group.
    seed
        Seed of the folds in which labelled cells are held out.

    Returns
    -------
    Components, and their probabilities where the classifier has some. Labelled cells and those of
    a group without any have their component for sure.
    """
    is_labelled = labels >= 0
    if not is_labelled.any():  # all labelled cells are held out
        return Spread(codes if n_components is None else _within(codes, n_components), None)
    known = np.unique(labels[is_labelled])
    rank_of_unnamed = np.full(codes.max() + 1, -1)
    unnamed = np.setdiff1d(np.arange(codes.max() + 1), codes[is_labelled])
    rank_of_unnamed[unnamed] = np.arange(len(unnamed))
    rank = np.where(is_labelled, -1, rank_of_unnamed[codes])
    component, proba = np.full(len(labels), known[0]), None
    if straight and len(known) > 1 and _show_spread(is_labelled.sum(), len(known), x.shape[1]):
        named = np.where(rank < 0, labels, -2)
        proba = label_probabilities(x, named, n_labels, seed)
        component = proba.argmax(1)
    elif len(known) > 1:
        component = _label_by_group_or_neighbors(x, codes, labels)
    component = np.where(rank >= 0, n_labels + rank, component)
    component = np.where(is_labelled, labels, component).astype(np.int64)
    if n_components is not None:
        component = _within(component, n_components)
    if proba is None:
        return Spread(component, None)
    wide = np.zeros((len(labels), max(n_labels, component.max() + 1)), dtype=np.float32)
    wide[:, :n_labels] = proba
    is_sure = is_labelled | (rank >= 0)
    wide[is_sure] = component[is_sure, None] == np.arange(wide.shape[1])
    return Spread(component, wide)


def _within(codes: Codes, n: int) -> Codes:
    return np.where(codes < n, codes, -1)


def label_probabilities(
    x: NDArray[np.floating], labels: Codes, n_labels: int, seed: int = 0
) -> NDArray[np.float64]:
    r"""Probabilities of the labels of all cells, learned from those that are labelled.

    A linear discriminant analysis, with correlations that are shrunk as Ledoit and Wolf do because
    there may be fewer labelled cells than dimensions, says how likely a cell is in each type,
    :math:`f_l(x)`. Where many cells are labelled, a logistic regression, which says the same up to
    a number for each cell, knows the borders better. That of the two is taken by which labelled
    cells are less surprising when they are held out. With the shares :math:`s_l` of the labelled
    cells both are too sure, and some cells are unlike all others of their type, so

    .. math::
        p(l|x) = (1 - \varepsilon) \frac{(s_l f_l(x))^{1/T} \pi_l / s_l}
        {\sum_m (s_m f_m(x))^{1/T} \pi_m / s_m} + \varepsilon \pi_l

    with the T and ε by which labelled cells are predicted best, each held out once in ten folds. A
    user may have labelled as many cells of a rare type as of a common one, so π are not their
    shares. With π = s at first, the mean of p(l|x) over all cells without a label says how many
    more there are of a type than among the labelled cells, where it is that over cells that are
    held out. Once is enough: repeated until nothing changes, types that overlap lose their cells
    to the largest (``benchmarks/studies/label_start.py``).

    Parameters
    ----------
    x
        Representation of the cells, ``(n, D)``.
    labels
        Labels ``(n,)`` from 0 on, −1 where there is none, and below that for cells that are of no
        label. Two labels or more need cells, and together three more than one each.
    n_labels
        Number of labels.
    seed
        Seed of the folds.

    Returns
    -------
    Array ``(n, n_labels)``, 0 for labels without cells.

    References
    ----------
    Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
    Guo et al. 2017, "On calibration of modern neural networks" (T).
    Saerens et al. 2002, "Adjusting the outputs of a classifier to new a priori probabilities" (π).
    """
    is_labelled = labels >= 0
    known, label = np.unique(labels[is_labelled], return_inverse=True)
    spread = np.sqrt(x[is_labelled].var(0).mean())
    cells = x.astype(np.float64) / max(float(spread), TINY)
    found = [
        _softened_by(classifier, cells, label, is_labelled, labels == -1, seed)
        for classifier in CLASSIFIERS
    ]
    of_all = np.zeros((len(cells), n_labels))
    of_all[:, known] = min(found, key=lambda one: one.surprise).proba
    return of_all


class _Softened(NamedTuple):
    """Probabilities of labels that are made right."""

    proba: NDArray[np.float64]
    """Those of all cells, (n, labels)."""
    surprise: float
    """Mean −log probability of the labels of cells that are held out, 0 without any."""


def _softened_by(
    classifier: Classifier,
    cells: NDArray[np.float64],
    label: Codes,
    is_labelled: NDArray[np.bool_],
    is_other: NDArray[np.bool_],
    seed: int,
) -> _Softened:
    """Probabilities of all cells by one classifier, which is fitted to those that are labelled.

    How surprising held-out cells are is said before frequencies are corrected, because each
    classifier corrects them in its own way.
    """
    log_densities, usual = classifier
    shares = np.bincount(label) / len(label)
    log_f = log_densities(cells[is_labelled], label, cells)
    held_out = _held_out(log_densities, cells[is_labelled], label, seed)
    softness = _softness(*held_out, shares, shares, usual)
    surprise = _surprise(*held_out, shares, shares, softness)
    of_others = _softened(log_f[is_other], shares, shares, softness)
    of_held_out = _softened(held_out[0], shares, shares, softness)
    frequency = _frequency(of_others, of_held_out, held_out[1], shares)
    softness = _softness(*held_out, shares, frequency, usual)
    return _Softened(_softened(log_f, shares, frequency, softness), surprise)


def _show_spread(n_cells: int, n_labels: int, n_dims: int) -> bool:
    """Whether so many labelled cells show how cells of one type differ."""
    return n_cells - n_labels >= min(LEAST_FREEDOM, n_dims)


def _log_densities_of_analysis(
    x: NDArray[np.float64], label: Codes, of: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log density of rows in each label, up to a number for each row, ``(n, labels)``.

    The covariance is that of the differences from the means of the labels. Labels of one cell have
    none, and that of the others.
    """
    n_cells = np.bincount(label)
    means = np.zeros((len(n_cells), x.shape[1]))
    np.add.at(means, label, x)
    means /= n_cells[:, None]
    residuals = (x - means[label])[n_cells[label] > 1]
    freedom = len(label) - len(n_cells)
    sd, overall = np.sqrt((residuals**2).sum(0) / freedom), max(x.std(0).max(), TINY)
    sd = np.where(sd > SMALLEST_SD * overall, sd, overall)  # of repeated cells it is 0
    residuals /= sd
    shrinkage = max(ledoit_wolf_shrinkage(residuals, assume_centered=True), LEAST_SHRINKAGE)
    correlation = (1 - shrinkage) * residuals.T @ residuals / freedom
    correlation[np.diag_indices_from(correlation)] += shrinkage
    means /= sd
    weights = np.linalg.solve(correlation, means.T)
    return of / sd @ weights - (means.T * weights).sum(0) / 2


def _log_densities_of_regression(
    x: NDArray[np.float64], label: Codes, of: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log density of rows in each label, up to a number for each row, ``(n, labels)``.

    Of many labelled cells the logistic regression takes some, of each label about as many.
    """
    rows = _some_of_each(label, MOST_IN_REGRESSION)
    x, label = x[rows], label[rows]
    regression = LogisticRegression(max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():  # where labels are apart it need not come to an end
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(x, label)
    logits = regression.decision_function(of)
    if logits.ndim == 1:  # of two labels
        logits = np.column_stack([np.zeros(len(of)), logits])
    return logits - np.log(np.bincount(label) / len(label))


def _some_of_each(label: Codes, most: int) -> Codes:
    """Rows of so many cells, ascending: all of rare labels, and of others as many as fit."""
    order = np.random.default_rng(0).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    counts = np.bincount(label)
    rank = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[np.argsort(rank, kind="stable")][:most])


def _held_out(
    log_densities: LogDensities, x: NDArray[np.float64], label: Codes, seed: int
) -> tuple[NDArray[np.float64], Codes]:
    """Log densities of labelled cells by others, ``(m, labels)``, and their labels, ``(m,)``.

    The only cell of a label cannot be held out.
    """
    order = np.random.default_rng(seed).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    fold = np.empty(len(label), dtype=np.int64)
    fold[order] = np.arange(len(label)) % N_FOLDS  # so all labels are left in each
    fold[np.bincount(label)[label] == 1] = -1
    parts, tested = [np.empty((0, label.max() + 1))], [label[:0]]
    for number in np.unique(fold[fold >= 0]):
        test = fold == number
        if _show_spread((~test).sum(), label.max() + 1, x.shape[1]):
            parts.append(log_densities(x[~test], label[~test], x[test]))
            tested.append(label[test])
    return np.concatenate(parts), np.concatenate(tested)


def _softened(
    log_f: NDArray[np.float64],
    shares: NDArray[np.float64],
    frequency: NDArray[np.float64],
    softness: Softness,
) -> NDArray[np.float64]:
    """Probabilities of labels of these frequencies, ``(n, labels)``."""
    logits = (log_f + np.log(shares)) / softness.temperature + np.log(frequency / shares)
    return (1 - softness.strange) * softmax(logits, axis=1) + softness.strange * frequency


def _frequency(
    of_others: NDArray[np.float64],
    of_held_out: NDArray[np.float64],
    label: Codes,
    shares: NDArray[np.float64],
) -> NDArray[np.float64]:
    """How frequent labels are among other cells, by how much more probable they are there.

    One labelled cell more says that they are as frequent, so no type disappears. The only cell of
    a label was not held out; it is taken to be predicted rightly.
    """
    if not len(of_others):
        return shares
    n_held_out = np.bincount(label, minlength=len(shares))
    expected = np.where(n_held_out, 0.0, shares)
    expected += (shares / np.maximum(n_held_out, 1))[label] @ of_held_out
    n_labelled = len(label) + (n_held_out == 0).sum()
    frequency = shares * (of_others.mean(0) + 1 / n_labelled) / (expected + 1 / n_labelled)
    return frequency / frequency.sum()


def _softness(
    log_f: NDArray[np.float64],
    label: Codes,
    shares: NDArray[np.float64],
    frequency: NDArray[np.float64],
    usual: Softness,
) -> Softness:
    """T and ε by which held-out cells are predicted best, were they as frequent as all are.

    A few held-out cells say little: of log T it is assumed that it is normal about the usual one,
    and of ε that it is exponential.
    """
    n_held_out = (frequency / shares)[label].sum()

    def loss(parameters: NDArray[np.float64]) -> float:
        log_t, strange = parameters
        softness = Softness(np.exp(log_t), strange)
        of_cells = n_held_out * _surprise(log_f, label, shares, frequency, softness)
        unusual = (log_t - np.log(usual.temperature)) / SD_OF_LOG_T
        return float(of_cells + unusual**2 / 2 + strange / usual.strange)

    start = (np.log(usual.temperature), usual.strange)
    bounds = [(0.0, np.log(LARGEST.temperature)), (0.0, LARGEST.strange)]
    log_t, strange = minimize(loss, start, bounds=bounds, method="L-BFGS-B").x
    return Softness(float(np.exp(log_t)), float(strange))


def _surprise(
    log_f: NDArray[np.float64],
    label: Codes,
    shares: NDArray[np.float64],
    frequency: NDArray[np.float64],
    softness: Softness,
) -> float:
    """Mean −log probability of the labels of cells, were they as frequent as all are."""
    if not len(label):
        return 0.0
    weights = (frequency / shares)[label]
    proba = _softened(log_f, shares, frequency, softness)[np.arange(len(label)), label]
    return float(-(weights @ np.log(proba + TINY)) / weights.sum())


class Classifier(NamedTuple):
    """What can say how likely a cell is in each type."""

    log_densities: LogDensities
    usual: Softness
    """What is found in most data with ten labelled cells of a type."""


CLASSIFIERS = (
    Classifier(_log_densities_of_analysis, Softness(temperature=4.5, strange=0.02)),
    Classifier(_log_densities_of_regression, Softness(temperature=1.2, strange=0.02)),
)
"""Linear discriminant analysis, with T from 2.5 to 8, and logistic regression, with T from 1 to
2; of both ε is up to .02."""


def without_levels(
    x: NDArray[np.floating], codes: Codes, levels: Sequence[NDArray[np.integer]]
) -> NDArray[np.floating]:
    """Cells without what the levels of conditions add to them.

    Levels may have other shares of the types, so their effects are those beside the effects of
    groups, by least squares, with a little shrinkage for levels of a few cells.

    Parameters
    ----------
    x
        Representation of the cells, ``(n, D)``.
    codes
        Groups of the cells, ``(n,)``.
    levels
        Level of each cell, ``(n,)``, for each condition.
    """
    if not levels:
        return x
    of_groups, of_levels = (
        OneHotEncoder(dtype=np.float64).fit_transform(np.column_stack(columns))
        for columns in ([codes], levels)
    )
    fit = Ridge(alpha=1.0, fit_intercept=False)
    fit.fit(sparse.hstack([of_groups, of_levels], format="csr"), x)
    return x - of_levels @ fit.coef_[:, of_groups.shape[1] :].T


def _label_by_group_or_neighbors(x: NDArray[np.floating], codes: Codes, labels: Codes) -> Codes:
    """Label of every cell, (n,): the commonest of its group, or of its nearest labelled cells.

    With few labels a group of many cells knows more than the few neighbours that have one; with
    many, groups are too coarse. The only cell of a label cannot be held out, so it is not used to
    choose between the two.
    """
    is_labelled = labels >= 0
    known = labels[is_labelled]
    _, label, n_cells = np.unique(known, return_inverse=True, return_counts=True)
    group = codes[:, None]
    group_model = CategoricalNB(alpha=1e-3, min_categories=int(codes.max()) + 1)
    several = n_cells[n_cells > 1]
    # a label with fewer cells than votes could never win
    neighbor_model = KNeighborsClassifier(min(N_VOTES, int(several.min(initial=N_VOTES))))
    candidates = [(group_model, group), (neighbor_model, x)]
    best = 0
    tested = n_cells[label] > 1
    if len(several) > 1:
        folds = min(5, int(several.min()))
        accuracies = [
            cross_val_score(model, values[is_labelled][tested], known[tested], cv=folds).mean()
            for model, values in candidates
        ]
        best = int(np.argmax(accuracies))
    model, values = candidates[best]
    return model.fit(values[is_labelled], known).predict(values)
