"""Are types found where batches hold different ones, and conditions make no clusters?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/level_support.py [--seeds 0 1 2]

A split that is gone once the batches are moved onto each other is none between types, unless
single batches show it (*single batches*: yes, the default); without this rule (no) types stay
together whose batches differ in the types they hold. *Of one batch* is the share of its strength
for which a split counts that one batch alone supports (0.8, the default). The batches are told.

*partly shared*, *rare in one*, *uneven depth* and *nested* are the simulations of
``embedding.py``. Of *stages* each holds four of eight types, two of which the next one has as
well. In *condition* all types are there with and without a stimulus, which changes one lineage in
full and another in part; in *condition, other shares* most cells of a type have been stimulated,
or few. *one type* is a single type in three batches. ``--short`` runs few epochs on few cells.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from anndata import AnnData

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import run_tasks
from embedding import labelled
from simulators import BATCH_SD, N_GENES, SIMULATORS, drawn, log_profiles, stimulated_types
from trees import trees_of

from scgmvae.clustering import cut_tests, split_tree


@contextmanager
def changed(most_levels: int, of_one_level: float) -> Iterator[None]:
    """The block in which both rules are so."""
    with (
        patch.object(cut_tests, "MOST_LEVELS", most_levels),
        patch.object(split_tree, "OF_ONE_LEVEL", of_one_level),
    ):
        yield


SETTINGS = {
    ("no", "1"): partial(changed, 0, 1.0),
    ("yes", "1"): partial(changed, cut_tests.MOST_LEVELS, 1.0),
    ("yes", "0.8"): nullcontext,
}
SETS = ("kang", "sc_mixology", "baron_mouse")


def stages(rng: np.random.Generator) -> AnnData:
    """Eight types in three stages of four each, two of which the next stage has as well."""
    held = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]])
    effects = rng.normal(0, BATCH_SD, (3, N_GENES))
    n_cells = held * rng.integers(60, 250, held.shape)
    return drawn(rng, log_profiles(rng, (3, 3, 2)), n_cells, effects, np.array([2000, 3000, 4000]))


def one_type(rng: np.random.Generator) -> AnnData:
    """A single type in three batches."""
    effects = rng.normal(0, BATCH_SD, (3, N_GENES))
    n_cells = np.array([[400], [700], [300]])
    return drawn(rng, log_profiles(rng, (1,)), n_cells, effects, np.array([2000, 3000, 4000]))


def with_condition(rng: np.random.Generator, share: float) -> AnnData:
    """Types with and without a stimulus, some cells of each left out.

    Of every second type this share of the stimulated cells is kept, of the others of the controls.
    """
    adata = stimulated_types(rng, 60, 250)
    stimulated = adata.obs["condition"] == "stimulated"
    kept = np.ones(adata.n_obs, dtype=bool)
    for number, name in enumerate(adata.obs["cell_type"].cat.categories):
        thinned = stimulated if number % 2 else ~stimulated
        rows = np.flatnonzero((adata.obs["cell_type"] == name) & thinned)
        kept[rows[rng.random(len(rows)) > share]] = False
    adata = adata[kept].copy()
    adata.obs["batch"] = adata.obs["condition"]
    return adata


DESIGNS: dict[str, Callable[[np.random.Generator], AnnData]] = {
    **SIMULATORS,
    "stages": stages,
    "condition": partial(with_condition, share=1.0),
    "condition, other shares": partial(with_condition, share=0.2),
    "one type": one_type,
}


def support(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """The rows of every design and set, one at a time."""
    for name in list(DESIGNS)[:1] if short else [*DESIGNS, *SETS]:
        if name in DESIGNS:
            adata, batch_key = DESIGNS[name](np.random.default_rng(seed)), "batch"
        else:
            adata, batch_key = labelled(name, seed)
        if short:
            adata = adata[:300].copy()
        rows = trees_of(adata, batch_key, seed, short, SETTINGS)
        yield [
            {"data": name, "single batches": within, "of one batch": share, **row}
            for (within, share), row in rows.items()
        ]


if __name__ == "__main__":
    tasks = {"level_support": (support, ["data", "single batches", "of one batch"])}
    run_tasks("level_support", __doc__.split("\n")[0], tasks)
