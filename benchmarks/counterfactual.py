"""How well are cells predicted under a condition that their type was not measured under?

    SCGMVAE_DATA_DIR=... python benchmarks/counterfactual.py [--tasks kang simulated settings]

kang       control and stimulated blood cells: every type with at least 50 cells under both. Cells
           without a type are left out, since stimulated cells of the type may be among them
simulated  types of three lineages, one that responds, one that responds in part, and one that
           does not; one type of each
settings   what each part of the prediction contributes, on both

The stimulated cells of one type are left out of training, and its control cells are predicted as
stimulated. Beside the calls of scgmvae: *no change*; the mean *shift* of log(1 + counts per
10,000) of the other types, that of the *nearest* type (by its control cells, on 30 principal
components), and that of a *linear model*, a ridge regression from those components to the shift;
each is added to every control cell. scGen is run where pertpy is installed. The ceiling are real
stimulated cells: the cells are divided into halves ten times, one half is what the other and all
methods are compared with.

*MMD* and *energy* are the squared maximum mean discrepancy (Gaussian kernel with the median
distance as its scale) and the energy distance between predicted and real cells, over those
between control and real cells, on 30 principal components of log-normalised real cells, estimated
without bias from as many cells of each. *r* is the correlation over genes of the predicted and
real change of mean log-normalised expression, *r top* over the 100 genes that change most. Of
these, *direction* is the share that is predicted to change in the right direction, and *overlap*
the share that is among the 100 that are predicted to change most. *R2 mean* and *R2 variance* are
squared correlations over genes. *told apart* is whether the mean of the predicted cells is nearer
to that of the type than to that of any other stimulated type, and *error* the root mean square of
the difference of the means over all genes. ``--short`` runs few epochs on few simulated cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import tools
from anndata import AnnData
from common import run_tasks, threads_kept
from counterfactual_scores import Judge
from numpy.typing import NDArray
from simulators import stimulated_types
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

import scgmvae
from scgmvae.data.normalization import log_normalized
from scgmvae.model import generation

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
        model.train(seed=seed, enable_progress_bar=False, logger=False, **(SHORT if short else {}))
    return model


def predicted(case: LeftOut, model: scgmvae.SCGMVAE, via: str, seed: int) -> NDArray:
    """The control cells as stimulated ones."""
    cells = model.predict_counterfactual(case.control, {CONDITION: STIMULATED}, via=via, seed=seed)
    return log_values(cells)


@tools.quiet()
def by_scgen(case: LeftOut, seed: int, short: bool) -> NDArray:
    """The control cells as scGen of pertpy predicts them."""
    import scvi
    from pertpy.tools import Scgen

    scvi.settings.seed = seed
    cells = log_normalized(case.kept.X)
    cells.obs = case.kept.obs[[TYPE, CONDITION]].astype(str)
    Scgen.setup_anndata(cells, batch_key=CONDITION, labels_key=TYPE)
    model = Scgen(cells)
    model.train(
        max_epochs=2 if short else 100,
        batch_size=32,
        early_stopping=True,
        early_stopping_patience=25,
        progress_bar_refresh_rate=0,
    )
    moved, _ = model.predict(CONTROL, STIMULATED, celltype_to_predict=case.name)
    return np.asarray(moved.X).clip(min=0)


def rows_of(cases: Sequence[LeftOut], seed: int, short: bool) -> list[Row]:
    """A row for each type and method."""
    rows: list[Row] = []
    for case in cases:
        model = fit(case.kept, seed, short)
        cells = {f"scgmvae via {via}": predicted(case, model, via, seed) for via in "xzw"}
        if tools.is_there("pertpy"):
            cells["scGen"] = by_scgen(case, seed, short)
        scores = {name: case.judge.scores(x) for name, x in (cells | baselines(case)).items()}
        scores["half of the real cells"] = case.judge.ceiling()
        rows += [
            {"method": name, "held_out": case.name, "n": len(case.judge.truth), "seed": seed}
            | of_method
            for name, of_method in scores.items()
        ]
    return rows


# ------------------------------------------------------------------------------------ tasks


def cases_of_kang() -> list[LeftOut]:
    """Types with enough cells under both conditions."""
    adata = scgmvae.datasets.load("kang")
    adata = adata[adata.obs[TYPE] != UNKNOWN].copy()
    sizes = pd.crosstab(adata.obs[TYPE], adata.obs[CONDITION]).min(axis=1)
    return left_out(adata, sizes.index[sizes >= FEWEST].astype(str))


def simulated_cases(seed: int, short: bool) -> list[LeftOut]:
    """A type of each lineage; in the short form of the first."""
    sizes, names = (60, 180), ["type 0", "type 3", "type 6"]
    if short:
        sizes, names = (20, 30), names[:1]
    adata = stimulated_types(np.random.default_rng(seed), *sizes)
    return left_out(adata, names, silent=["type 6"])


def kang(seed: int, short: bool) -> list[Row]:
    return rows_of(simulated_cases(seed, short) if short else cases_of_kang(), seed, short)


def simulated(seed: int, short: bool) -> list[Row]:
    responses = {"type 0": "in full", "type 3": "in part", "type 6": "none"}
    rows = rows_of(simulated_cases(seed, short), seed, short)
    return [row | {"response": responses[str(row["held_out"])]} for row in rows]


def settings(seed: int, short: bool) -> list[Row]:
    """The calls one by one, and another encoder."""
    data = {"simulated": simulated_cases(seed, short)}
    if not short:
        data["kang"] = cases_of_kang()
    rows: list[Row] = []
    for name, case in [(name, case) for name, cases in data.items() for case in cases]:
        model = fit(case.kept, seed, short)
        cells = {f"via {via}": predicted(case, model, via, seed) for via in "zwx"}
        with patch.object(generation.GenerationMixin, "_measured_under", return_value=None):
            cells["via x, the effect read at its own z"] = predicted(case, model, "x", seed)
        blind = fit(case.kept, seed, short, encode_covariates=False)
        cells |= {
            f"via {via}, encoder without conditions": predicted(case, blind, via, seed)
            for via in "zx"
        }
        rows += [
            {"data": name, "setting": setting, "held_out": case.name, "seed": seed}
            | case.judge.scores(values)
            for setting, values in cells.items()
        ]
    return rows


TASKS = {
    "kang": (kang, ["method", "held_out"]),
    "simulated": (simulated, ["method", "held_out"]),
    "settings": (settings, ["data", "setting", "held_out"]),
}


if __name__ == "__main__":
    run_tasks("counterfactual", __doc__.split("\n")[0], TASKS)
