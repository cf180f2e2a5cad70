"""Which misfit tells cells of a type that the reference lacks?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/misfit.py [--seeds 0 1 2]

One type after the other of two real sets and a simulated one is left out of the reference, with a
fifth of the other cells, as in ``transfer.py``. Each reference is trained once, and the novelty of
the query is measured with one setting of the misfit changed at a time: without misfit; with
neighbours in z alone, or also in more principal components of the residuals; with fewer or more
neighbours; with residuals that end later; and without the shift by which the misfit of new cells
is larger than that of drawn ones. *AUROC* tells how well the left-out type and the other cells of
the query are apart; *known* and *new* are the shares of both whose novelty is above 0.99, and
*alone* is that of the known cells in a query without the new type.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import run_tasks
from simulators import SIMULATORS
from transfer import FEWEST, TYPE, UNLABELED, halves, labelled_model, with_batches

import scgmvae
from scgmvae.clustering.shared_residuals import shared_residuals
from scgmvae.model import misfit

REAL, SIMULATED = ("pbmc3k", "kang"), "partly shared"
SETTINGS: dict[str, dict[str, object]] = {
    "default": {},
    "no misfit": {},
    "neighbours in z alone": {"n_directions": 0},
    "20 components": {"n_directions": 20},
    "5 neighbours": {"n_neighbors": 5},
    "30 neighbours": {"n_neighbors": 30},
    "residuals up to 10": {"MOST_DEVIATIONS": 10.0},
    "no shift": {},
}
"""Change → arguments of the function, and constants, that are others."""


def misfit_settings(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """Rows of one type that is left out after the other."""
    for name in [SIMULATED] if short else [*REAL, SIMULATED]:
        if short:
            adata = halves("", short)[0]
        elif name in SIMULATORS:
            adata = SIMULATORS[name](np.random.default_rng(seed))
            adata.obs = adata.obs.astype(str)
        else:
            adata = with_batches(name)
        is_held_out = np.random.default_rng(seed).random(adata.n_obs) < 0.2
        sizes = adata.obs[TYPE].value_counts()
        for kind in sizes.index[sizes >= FEWEST][: 1 if short else None]:
            is_new = (adata.obs[TYPE] == kind).to_numpy()
            reference = labelled_model(adata[~is_held_out & ~is_new].copy(), seed, short)
            is_query = is_held_out | is_new
            query = adata[is_query].copy()
            query.obs[TYPE] = UNLABELED
            found = measured(reference, query, is_new[is_query], seed)
            yield [{"data": name, "type": kind, "seed": seed} | row for row in found]


def measured(
    reference: scgmvae.SCGMVAE, query: AnnData, is_new: NDArray[np.bool_], seed: int
) -> Iterator[dict[str, object]]:
    """A row per setting."""
    rows = np.arange(reference.adata.n_obs)
    known = query[~is_new].copy()
    for setting, changed in SETTINGS.items():
        with ExitStack() as stack:
            arguments = {name: value for name, value in changed.items() if name.islower()}
            function = partial(shared_residuals, **arguments)
            stack.enter_context(patch.object(misfit, "shared_residuals", function))
            for name in changed.keys() - arguments:
                stack.enter_context(patch.object(misfit, name, changed[name]))
            reference._remember_misfit(rows, seed)
            if setting == "no misfit":
                reference.misfit_quantiles_ = None
            elif setting == "no shift":
                reference.misfit_shifts_ = np.zeros_like(reference.misfit_shifts_)
            novelty, alone = reference.get_novelty(query), reference.get_novelty(known)
        yield {
            "setting": setting,
            "AUROC": float(roc_auc_score(is_new, novelty)),
            "known": float((novelty[~is_new] > 0.99).mean()),
            "alone": float((alone > 0.99).mean()),
            "new": float((novelty[is_new] > 0.99).mean()),
        }


if __name__ == "__main__":
    tasks = {"misfit": (misfit_settings, ["setting", "data", "type"])}
    run_tasks("misfit", __doc__.split("\n")[0], tasks)
