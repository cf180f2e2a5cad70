"""How well are the cells of a type predicted under a condition that it was not measured under?

    SCGMVAE_DATA_DIR=... python benchmarks/counterfactual.py [--tasks kang simulated] [--seeds 0 1]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from common import run_tasks, threads_kept
from counterfactual_scores import Judge
from numpy.typing import NDArray
from simulators import stimulated_types
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

import scgmvae
from scgmvae.data.normalization import log_normalized

Row = dict[str, object]
TYPE, CONDITION, UNKNOWN = "cell_type", "condition", "unknown"
CONTROL, STIMULATED = "control", "stimulated"
FEWEST = 50
"""Number of cells that a type has under both conditions, to be left out in turn."""
N_PCS = 30
PENALTIES = np.logspace(-1, 4, 11)
SHORT = {"max_epochs": 2, "pretrain_epochs": 2}


class LeftOut(NamedTuple):
    """A type whose stimulated cells are left out."""

    name: str
    kept: AnnData
    """All other cells."""
    control: AnnData
    judge: Judge


def log_values(adata: AnnData) -> NDArray:
    """log(1 + counts per 10,000), cells x genes."""
    return log_normalized(adata.X).X.toarray()


@threads_kept()
def left_out(adata: AnnData, names: Sequence[str], silent: Sequence[str] = ()) -> list[LeftOut]:
    """Each of the types without its stimulated cells, and what judges their prediction.

    Parameters
    ----------
    adata
        Cells of known types under both conditions.
    names
        Types to leave out in turn.
    silent
        Those of them that do not respond.
    """
    logs = log_values(adata)
    pca = PCA(min(N_PCS, *logs.shape), random_state=0).fit(logs)
    types, is_stimulated = adata.obs[TYPE], (adata.obs[CONDITION] == STIMULATED).to_numpy()
    found = []
    for name in names:
        is_type = (types == name).to_numpy()
        others = [
            logs[is_stimulated & (types == other).to_numpy()].mean(0)
            for other in types.unique()
            if other != name
        ]
        judge = Judge(
            logs[is_type & ~is_stimulated],
            logs[is_type & is_stimulated],
            np.array(others),
            pca,
            name not in silent,
        )
        kept = adata[~(is_type & is_stimulated)].copy()
        found.append(LeftOut(name, kept, adata[is_type & ~is_stimulated].copy(), judge))
    return found


# ------------------------------------------------------------------------------- predictions


@threads_kept()
def baselines(case: LeftOut) -> dict[str, NDArray]:
    """Control cells as they are, and moved by what is known of the other types, in log space."""
    logs, obs = log_values(case.kept), case.kept.obs
    pcs = PCA(min(N_PCS, *logs.shape), random_state=0).fit_transform(logs)
    is_control = (obs[CONDITION] == CONTROL).to_numpy()
    others = [name for name in obs[TYPE].unique() if name != case.name]

    def mean(values: NDArray, name: str, of_control: bool) -> NDArray:
        return values[(obs[TYPE] == name).to_numpy() & (is_control == of_control)].mean(0)

    shifts = np.array([mean(logs, name, False) - mean(logs, name, True) for name in others])
    places = np.array([mean(pcs, name, True) for name in others])
    place = mean(pcs, case.name, True)
    nearest = np.linalg.norm(places - place, axis=1).argmin()
    linear = RidgeCV(PENALTIES).fit(places, shifts)
    control = case.judge.control
    moved = {
        "mean shift": shifts.mean(0),
        "nearest type's shift": shifts[nearest],
        "linear model": linear.predict(place[None])[0],
    }
    return {"no change": control} | {
        name: (control + shift).clip(min=0) for name, shift in moved.items()
    }


def fit(adata: AnnData, seed: int, short: bool, **settings: object) -> scgmvae.SCGMVAE:
    """A model that knows types and conditions."""
    scgmvae.SCGMVAE.setup_anndata(
        adata, labels_key=TYPE, unlabeled_category=UNKNOWN, categorical_covariate_keys=[CONDITION]
    )
    model = scgmvae.SCGMVAE(adata, **settings)
    with threads_kept():
        model.train(
            seed=seed, enable_progress_bar=False, logger=False, **(SHORT if short else {})
        )
    return model


def predictions(case: LeftOut, model: scgmvae.SCGMVAE, seed: int) -> Iterator[tuple[str, NDArray]]:
    """Name of the call and the cells that it predicts."""
    for via in ("x", "z", "w"):
        predicted = model.predict_counterfactual(
            case.control, {CONDITION: STIMULATED}, via=via, seed=seed
        )
        yield f"scgmvae via {via}", log_values(predicted)


def rows_of(cases: Sequence[LeftOut], seed: int, short: bool) -> list[Row]:
    """A row for each type and method."""
    rows: list[Row] = []
    for case in cases:
        cells = dict(predictions(case, fit(case.kept, seed, short), seed)) | baselines(case)
        scores = {name: case.judge.scores(values) for name, values in cells.items()}
        scores["half of the real cells"] = case.judge.ceiling()
        sizes = {"control": len(case.judge.control), "stimulated": len(case.judge.truth)}
        rows += [
            {"method": name, "held_out": case.name, "seed": seed} | sizes | of_method
            for name, of_method in scores.items()
        ]
    return rows


# ------------------------------------------------------------------------------------ tasks


def kang(seed: int, short: bool) -> list[Row]:
    """Blood cells with and without interferon, types with enough cells under both."""
    if short:
        return simulated(seed, short)
    adata = scgmvae.datasets.load("kang")
    # cells without a type may be stimulated cells of the type that is left out
    adata = adata[adata.obs[TYPE] != UNKNOWN].copy()
    sizes = pd.crosstab(adata.obs[TYPE], adata.obs[CONDITION]).min(axis=1)
    names = sizes.index[sizes >= FEWEST].astype(str)
    return rows_of(left_out(adata, names), seed, short)


def simulated(seed: int, short: bool) -> list[Row]:
    """Lineages that respond in full, in part, and not at all."""
    adata = stimulated_types(np.random.default_rng(seed), *((20, 30) if short else (60, 180)))
    names, silent = ("type 0", "type 3", "type 6"), ("type 6",)
    return rows_of(left_out(adata, names, silent), seed, short)


TASKS = {
    "kang": (kang, ["method", "held_out"]),
    "simulated": (simulated, ["method", "held_out"]),
}


if __name__ == "__main__":
    run_tasks("counterfactual", __doc__.split("\n")[0], TASKS)
