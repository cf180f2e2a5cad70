"""How are labels of a few cells spread over the others before the mixture starts?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/label_start.py [--seeds 0 1 2]

Ten cells of each type are labelled, drawn by the seed, or of *baron_mouse* all cells of the first
mouse. Scores are on all other cells: accuracy, macro F1, and the calibration error of the
probabilities (*ECE*). Labels are spread by principal components, the pretrained z, or both. Rows
say how the probabilities of the discriminant analysis are made right: not at all (*plain*, as
scikit-learn has it); softened until they predict held-out cells (*softened*); that, and for
frequencies of the types that are corrected once (*softened, frequencies*), or estimated until they
change no more (*softened, EM*). *regression* has a logistic regression in its place, softened and
corrected once, and *both* (the default) has the two with the weights that predict held-out cells
best. Where there are batches they are told.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import load_counts, run_tasks
from labels import KEY, SHORT, TYPE, UNLABELED, draw_labelled, scores

import scgmvae
from scgmvae.clustering import labels as spreading
from scgmvae.model import start

SETS = ("kang", "paul15", "mouse_bladder", "pbmc4k", "baron_mouse")
N_LABELLED, N_LATENT = 10, 10


class Data:
    """A set of which a few cells are labelled."""

    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.adata, batch_key = load_counts(name)
        types = self.adata.obs[TYPE].astype(str)
        has_type = (types != UNLABELED).to_numpy()
        if name == "baron_mouse":
            batch_key = "batch"
            mouse = self.adata.obs[batch_key].astype(str)
            is_first = (mouse == mouse.min()).to_numpy()
            self.is_labelled = is_first & has_type
            has_type &= types.isin(types[is_first]).to_numpy()
        else:
            self.is_labelled = draw_labelled(types, N_LABELLED, seed) & has_type
        self.is_scored = has_type & ~self.is_labelled
        self.types = types.to_numpy()
        self.adata.obs[KEY] = types.where(self.is_labelled, UNLABELED)
        scgmvae.SCGMVAE.setup_anndata(
            self.adata, labels_key=KEY, unlabeled_category=UNLABELED, batch_key=batch_key
        )

    def spread_by(self, short: bool) -> tuple[NDArray, list[str]]:
        """What labels are spread by, z and principal components, and the names of the labels."""
        taken: list[NDArray] = []

        def recorded(x: NDArray, *args: object) -> spreading.Spread:
            taken.append(x)
            return spreading.partition_by_labels(x, *args)

        model = scgmvae.SCGMVAE(self.adata.copy())
        length = SHORT if short else {"max_epochs": 1}
        with patch.object(start, "partition_by_labels", recorded):
            model.train(seed=self.seed, enable_progress_bar=False, **length)
        return taken[0], model.predict(soft=True).columns.tolist()

    def row(self, proba: pd.DataFrame, **keys: str) -> dict[str, object]:
        found = scores(proba, self.types, self.is_scored)
        return {"data": self.name, **keys, "seed": self.seed, **found}


def plain(x: NDArray, labels: NDArray, n_labels: int) -> NDArray[np.float64]:
    known = labels >= 0
    analysis = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return analysis.fit(x[known], labels[known]).predict_proba(x)


def softened(x: NDArray, labels: NDArray, n_labels: int, n_rounds: int) -> NDArray[np.float64]:
    """Probabilities of softened densities, and of frequencies estimated so many times."""
    known = labels >= 0
    x, label = x.astype(np.float64), labels[known]
    counts = np.bincount(label, minlength=n_labels)
    shares = frequency = counts / counts.sum()
    with patch.object(spreading, "CLASSIFIERS", spreading.CLASSIFIERS[:1]):
        log_f = spreading._log_densities(x[known], label, x)
        held_out = spreading._held_out(x[known], label, seed=0)
        for _ in range(n_rounds + 1):
            mix = spreading._best_mix(*held_out, shares, frequency)
            proba = spreading._mixed(log_f, shares, frequency, mix)
            frequency = proba[~known].sum(0) + counts
            frequency = frequency / frequency.sum()
    return proba


def by_one(x: NDArray, labels: NDArray, n_labels: int, number: int) -> NDArray[np.float64]:
    """Probabilities of one of the two classifiers alone."""
    with patch.object(spreading, "CLASSIFIERS", spreading.CLASSIFIERS[number : number + 1]):
        return spreading.label_probabilities(x, labels, n_labels)


PROBABILITIES = {
    "plain": plain,
    "softened": partial(softened, n_rounds=0),
    "softened, frequencies": partial(by_one, number=0),
    "softened, EM": partial(softened, n_rounds=30),
    "regression": partial(by_one, number=1),
    "both": spreading.label_probabilities,
}


def starts(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    for name in ["simulated"] if short else SETS:
        data = Data(name, seed)
        x, names = data.spread_by(short)
        codes = pd.Categorical(data.adata.obs[KEY], categories=names).codes.astype(np.int64)
        parts = {"z, PCs": x, "z": x[:, :N_LATENT], "PCs": x[:, N_LATENT:]}
        for spread_by, values in parts.items():
            yield [
                data.row(
                    pd.DataFrame(right(values, codes, len(names)), columns=names),
                    spread_by=spread_by,
                    probabilities=probabilities,
                )
                for probabilities, right in PROBABILITIES.items()
            ]


TASKS = {"label_start": (starts, ["data", "spread_by", "probabilities"])}

if __name__ == "__main__":
    run_tasks("label_start", __doc__.splitlines()[0], TASKS)
