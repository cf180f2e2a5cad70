"""What a few labelled cells say of the others, before a mixture learns from them.

Where borders between types are straight this is a linear discriminant analysis together with a
logistic regression, each with the weight with which both predict labelled cells best that are held
out. These weights also say how sure the probabilities may be. Then they are made right for types
as frequent as they are among all cells.
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


class Mix(NamedTuple):
    """How much classifiers count, and for how many cells they do not."""

    weights: NDArray[np.float64]
    """a, by which the log densities of each classifier are multiplied, (C,), at least 0."""
    strange: float
    """ε, share of the cells of which densities say nothing."""


USUAL_STRANGE, MOST_STRANGE = 0.02, 0.2
"""ε where few cells are held out, and its largest value."""
SD_OF_WEIGHTS = 0.5
"""By how much weights vary between data, over the usual ones."""


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
    :math:`f_{1l}(x)`. Where many cells are labelled, a logistic regression, which says the same up
    to a number for each cell, :math:`f_{2l}(x)`, knows the borders better. With the shares
    :math:`s_l` of the labelled cells both are too sure, and some cells are unlike all others of
    their type, so

    .. math::
        p(l|x) = (1 - \varepsilon) \frac{q_l}{\sum_m q_m} + \varepsilon \pi_l, \quad
        q_l = \frac{\pi_l}{s_l} \prod_c (s_l f_{cl}(x))^{a_c}

    with the weights :math:`a_c` and the ε by which labelled cells are predicted best, each held
    out once in ten folds. A user may have labelled as many cells of a rare type as of a common
    one, so π are not their shares. With π = s at first, the mean of p(l|x) over all cells without
    a label says how many more there are of a type than among the labelled cells, where it is that
    over cells that are held out. Once is enough: repeated until nothing changes, types that
    overlap lose their cells to the largest (``benchmarks/studies/label_start.py``).

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
    Genest and Zidek 1986, "Combining probability distributions" (logarithmic opinion pools, a).
    Wolpert 1992, "Stacked generalization" (weights by what is held out).
    Saerens et al. 2002, "Adjusting the outputs of a classifier to new a priori probabilities" (π).
    """
    is_labelled = labels >= 0
    known, label = np.unique(labels[is_labelled], return_inverse=True)
    spread = np.sqrt(x[is_labelled].var(0).mean())
    cells = x.astype(np.float64) / max(float(spread), TINY)
    shares = np.bincount(label) / len(label)
    log_f = _log_densities(cells[is_labelled], label, cells)
    held_out = _held_out(cells[is_labelled], label, seed)
    mix = _best_mix(*held_out, shares, shares)
    of_others = _mixed(log_f[:, labels == -1], shares, shares, mix)
    of_held_out = _mixed(held_out[0], shares, shares, mix)
    frequency = _frequency(of_others, of_held_out, held_out[1], shares)
    mix = _best_mix(*held_out, shares, frequency)
    of_all = np.zeros((len(cells), n_labels))
    of_all[:, known] = _mixed(log_f, shares, frequency, mix)
    return of_all


def _show_spread(n_cells: int, n_labels: int, n_dims: int) -> bool:
    """Whether so many labelled cells show how cells of one type differ."""
    return n_cells - n_labels >= min(LEAST_FREEDOM, n_dims)


def _log_densities(
    x: NDArray[np.float64], label: Codes, of: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log densities of rows in each label by each classifier, ``(C, n, labels)``.

    The classifiers are fitted to x. Densities are up to a number for each row.
    """
    return np.stack([classifier.log_densities(x, label, of) for classifier in CLASSIFIERS])


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
    x: NDArray[np.float64], label: Codes, seed: int
) -> tuple[NDArray[np.float64], Codes]:
    """Log densities of labelled cells by others, ``(C, m, labels)``, and their labels, ``(m,)``.

    The only cell of a label cannot be held out.
    """
    order = np.random.default_rng(seed).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    fold = np.empty(len(label), dtype=np.int64)
    fold[order] = np.arange(len(label)) % N_FOLDS  # so all labels are left in each
    fold[np.bincount(label)[label] == 1] = -1
    parts, tested = [np.empty((len(CLASSIFIERS), 0, label.max() + 1))], [label[:0]]
    for number in np.unique(fold[fold >= 0]):
        test = fold == number
        if _show_spread((~test).sum(), label.max() + 1, x.shape[1]):
            parts.append(_log_densities(x[~test], label[~test], x[test]))
            tested.append(label[test])
    return np.concatenate(parts, axis=1), np.concatenate(tested)


def _mixed(
    log_f: NDArray[np.float64],
    shares: NDArray[np.float64],
    frequency: NDArray[np.float64],
    mix: Mix,
) -> NDArray[np.float64]:
    """Probabilities of labels of these frequencies, ``(n, labels)``."""
    logits = np.tensordot(mix.weights, log_f + np.log(shares), 1) + np.log(frequency / shares)
    return (1 - mix.strange) * softmax(logits, axis=1) + mix.strange * frequency


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


def _best_mix(
    log_f: NDArray[np.float64],
    label: Codes,
    shares: NDArray[np.float64],
    frequency: NDArray[np.float64],
) -> Mix:
    """Weights and ε by which held-out cells are predicted best, were they as frequent as all are.

    A few held-out cells say little. So it is assumed that the first classifier has about the
    weight that it has alone in most data, and that the others have none, with normal deviations
    from it, and of ε that it is exponential.
    """
    usual = np.array([classifier.usual_weight for classifier in CLASSIFIERS])
    expected = np.arange(len(CLASSIFIERS)) == 0
    weights_of_cells = (frequency / shares)[label]

    def loss(parameters: NDArray[np.float64]) -> float:
        relative, strange = parameters[:-1], parameters[-1]
        proba = _mixed(log_f, shares, frequency, Mix(relative * usual, strange))
        log_proba = np.log(proba[np.arange(len(label)), label] + TINY)
        deviations = (relative - expected) / SD_OF_WEIGHTS
        unusual = (deviations**2).sum() / 2 + strange / USUAL_STRANGE
        return float(unusual - weights_of_cells @ log_proba)

    start = [*expected.astype(float), USUAL_STRANGE]
    bounds = [*[(0.0, None)] * len(usual), (0.0, MOST_STRANGE)]
    *relative, strange = minimize(loss, start, bounds=bounds, method="L-BFGS-B").x
    return Mix(np.array(relative) * usual, float(strange))


class Classifier(NamedTuple):
    """What can say how likely a cell is in each type."""

    log_densities: LogDensities
    usual_weight: float
    """Its weight in most data with ten labelled cells of a type, if it is alone."""


CLASSIFIERS = (
    Classifier(_log_densities_of_analysis, 1 / 4.5),
    Classifier(_log_densities_of_regression, 1 / 1.2),
)
"""Linear discriminant analysis and logistic regression. Alone they have weights between 1/8 and
1/2.5, and between 1/2 and 1."""


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
