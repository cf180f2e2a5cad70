"""How are labels of a few cells spread over the others, and does the mixture keep to it?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/label_start.py [--seeds 0 1 2]

Ten cells of each type are labelled, drawn by the seed, and scores are on all other cells:
accuracy, macro F1, and the calibration error of the probabilities (*ECE*). *start* compares what
labels are spread by before the mixture starts: principal components, the pretrained z, or both;
and how the probabilities of the discriminant analysis are made right: not at all (*plain*);
softened until they predict held-out cells (*softened*); that, and for frequencies of the types
that are estimated once (*softened, frequencies*, the default), or until they change no more
(*softened, EM*). *guide* has the trained model: guided by these probabilities, or by the most
probable labels alone, with a weight that falls to 0 as it does without labels. Where there are
batches they are told.
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

SETS = ("kang", "paul15", "mouse_bladder", "pbmc4k")
N_LABELLED = 10
GUIDES = ("probabilities", "codes, falling from 10")


class Data:
    """A set of which a few cells are labelled."""

    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.adata, batch_key = load_counts(name)
        types = self.adata.obs[TYPE].astype(str)
        has_type = (types != UNLABELED).to_numpy()
        self.is_labelled = draw_labelled(types, N_LABELLED, seed) & has_type
        self.is_scored = has_type & ~self.is_labelled
        self.types = types.to_numpy()
        self.adata.obs[KEY] = types.where(self.is_labelled, UNLABELED)
        scgmvae.SCGMVAE.setup_anndata(
            self.adata, labels_key=KEY, unlabeled_category=UNLABELED, batch_key=batch_key
        )

    def train(self, guide: str, length: dict[str, int]) -> tuple[scgmvae.SCGMVAE, NDArray]:
        """A trained model, and by what its labels were spread."""
        taken: list[NDArray] = []

        def recorded(x: NDArray, *args: object) -> spreading.Spread:
            taken.append(x)
            spread = spreading.partition_by_labels(x, *args)
            return spread._replace(proba=None) if guide.startswith("codes") else spread

        model = scgmvae.SCGMVAE(self.adata.copy())
        with patch.object(start, "partition_by_labels", recorded):
            model.train(seed=self.seed, enable_progress_bar=False, **length)
        return model, taken[0]

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
    log_f = spreading._log_densities(x[known], label, x)
    held_out = spreading._held_out_log_densities(x[known], label, seed=0)
    for _ in range(n_rounds + 1):
        softness = spreading._softness(*held_out, shares, frequency)
        proba = spreading._softened(log_f, shares, frequency, softness)
        frequency = proba[~known].sum(0) + counts
        frequency = frequency / frequency.sum()
    return proba


PROBABILITIES = {
    "plain": plain,
    "softened": partial(softened, n_rounds=0),
    "softened, frequencies": spreading.label_probabilities,
    "softened, EM": partial(softened, n_rounds=30),
}


def data_sets(seed: int, short: bool) -> Iterator[Data]:
    return (Data(name, seed) for name in (["simulated"] if short else SETS))


def starts(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    for data in data_sets(seed, short):
        model, x = data.train("probabilities", SHORT if short else {"max_epochs": 1})
        names = model.predict(soft=True).columns
        codes = pd.Categorical(data.adata.obs[KEY], categories=names).codes.astype(np.int64)
        n_latent = model.module.n_latent
        parts = {"z, PCs": x, "z": x[:, :n_latent], "PCs": x[:, n_latent:]}
        for spread_by, values in parts.items():
            yield [
                data.row(
                    pd.DataFrame(right(values, codes, len(names)), columns=names),
                    spread_by=spread_by,
                    probabilities=probabilities,
                )
                for probabilities, right in PROBABILITIES.items()
            ]


def guides(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    for data in data_sets(seed, short):
        for guide in GUIDES:
            model, _ = data.train(guide, SHORT if short else {})
            yield [data.row(model.predict(soft=True), guide=guide)]


TASKS = {
    "start": (starts, ["data", "spread_by", "probabilities"]),
    "guide": (guides, ["data", "guide"]),
}

if __name__ == "__main__":
    run_tasks("label_start", __doc__.splitlines()[0], TASKS)
