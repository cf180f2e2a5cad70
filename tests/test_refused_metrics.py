"""Labels, clusters and embeddings that no score is computed of."""

import numpy as np
import pandas as pd
import pytest
from refused import TWICE
from states import unchanged

from scgmvae import metrics

PROBA = pd.DataFrame({"a": [0.9, 0.2], "b": [0.1, 0.8]})
Z = np.random.default_rng(0).normal(size=(40, 2))
BATCHES = ["x", "y"] * 20
LABELS = ["u"] * 20 + ["v"] * 20

# scib-metrics imports umap, which says so where it finds no Tensorflow
without_tensorflow = pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")


@pytest.mark.parametrize(
    ("labels", "clusters", "message"),
    [
        pytest.param([], [], "at least one cell", id="no_cells"),
        pytest.param(["a", "b"], [1], "2 labels and 1 clusters", id="lengths"),
        pytest.param([[1, 2]], [[1, 2]], "one-dimensional.*2 dimensions", id="tables"),
        pytest.param("ab", "ab", "one-dimensional.*0 dimensions", id="text"),
        pytest.param([1.0, np.nan], [1, 2], "missing values.*1 of them among 2", id="NaN"),
        pytest.param(["a", None], [1, 2], "missing values", id="None"),
        pytest.param(np.ma.masked_equal([1, 2], 2), [1, 2], "missing values", id="masked"),
    ],
)
@pytest.mark.parametrize(
    "score",
    [
        metrics.clustering_accuracy,
        metrics.purity,
        metrics.clustering_scores,
        metrics.type_recovery,
    ],
)
def test_scores_want_a_label_and_a_cluster_per_cell(score, labels, clusters, message):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                score(labels, clusters)


@pytest.mark.parametrize(
    ("labels", "proba", "message"),
    [
        pytest.param(["a"], PROBA, "1 labels and 2 rows", id="lengths"),
        pytest.param(["a", "b"], PROBA.to_numpy(), "DataFrame.*ndarray", id="array"),
        pytest.param([], PROBA[:0], "at least one cell", id="no_cells"),
        pytest.param(["a", "b"], PROBA * np.nan, "from 0 to 1", id="NaN"),
        pytest.param(["a", "b"], PROBA * 3, "from 0 to 1", id="logits"),
        pytest.param(["a", "b"], PROBA.astype(str) + "x", "from 0 to 1", id="text"),
        pytest.param(["a", None], PROBA, "missing values", id="None"),
    ],
)
def test_calibration_wants_a_table_of_probabilities(labels, proba, message):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                metrics.calibration_error(labels, proba)


def test_calibration_wants_a_number_of_bins():
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="n_bins must be an integer"):
                metrics.calibration_error(["a", "b"], PROBA, 0)


@without_tensorflow
@pytest.mark.parametrize(
    ("embedding", "batches", "labels", "message"),
    [
        pytest.param(Z, BATCHES[:5], LABELS, "40, 5 and 40", id="lengths"),
        pytest.param(Z * np.nan, BATCHES, LABELS, "80 values that are not finite", id="NaN"),
        pytest.param(Z[:, 0], BATCHES, LABELS, r"shape \(n, L\).*\(40,\)", id="vector"),
        pytest.param(Z, ["x"] * 40, LABELS, "two batches.*2 labels", id="one_batch"),
        pytest.param(Z, BATCHES, list(range(40)), "two batches.*40 labels", id="label_per_cell"),
    ],
)
def test_mixing_wants_batches_that_can_be_mixed(embedding, batches, labels, message):
    pytest.importorskip("scib_metrics")  # whose first import draws from a global random state
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                metrics.mixing_scores(embedding, batches, labels)


@without_tensorflow
def test_mixing_wants_a_number_of_neighbours():
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="n_neighbors must be an integer"):
                metrics.mixing_scores(Z, BATCHES, LABELS, 0)
