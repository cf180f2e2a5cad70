"""Do a thousand cells tell whether a cut is plain?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/cells_in_test.py [--seeds 0 1]

Each set is trained on, and every group of cells that the tree tests, and that has more than a
thousand cells, is tested twice: with 1,000 of its cells and with up to 2,500. The rows are of
groups whose strength by 1,000 cells is *low* (up to .15), *open*, or *high* (from .85 on, with p
at most .001): their number, how far the strength by 2,500 cells is from it in the mean and at
most, the least and the largest strength by 2,500 cells, and the processor seconds of both tests.

``--short`` runs few epochs on simulated cells.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
import tested
from common import run_tasks
from embedding import labelled

from scgmvae.clustering import cut_tests
from scgmvae.clustering.one_population import CLEAR_P, Evidence

SETS = ("pbmc4k", "kang", "baron_mouse", "mouse_bladder", "pbmc3k", "sc_mixology", "paul15")
SIMULATED = (6000, 12_000)
"""Numbers of cells of simulated sets of five types."""


def tested_twice(name: str, seed: int, short: bool) -> pd.DataFrame:
    """Strengths and seconds of the groups of a set, by 1,000 cells and by up to 2,500."""
    few, many = (60, 120) if short else (cut_tests.CELLS_IN_FIRST_TEST, cut_tests.CELLS_IN_TEST)
    rows: list[dict[str, float]] = []
    original = cut_tests.evidence_of_cut

    def twice(z: NDArray, *args: Any) -> Evidence:
        side, encoder_of, rng, t = args
        found = {}
        for cells in (few, many) if len(z) > few else (many,):
            with patch.object(cut_tests, "CELLS_IN_TEST", cells):
                source = np.random.default_rng(0) if cells == few else rng
                begin = time.process_time()
                evidence = original(z, side, encoder_of, source, t)
                found[cells] = evidence, time.process_time() - begin
        if few in found:
            rows.append(
                {
                    "strength": found[few][0].strength,
                    "p": found[few][0].p,
                    "of many": found[many][0].strength,
                    "seconds": found[few][1],
                    "seconds of many": found[many][1],
                }
            )
        return found[many][0]

    if name.startswith("simulated"):
        rng = np.random.default_rng(seed)
        n = 300 if short else int(name.split()[1])
        adata, batch_key = tested.mixed(rng, [(40, 2.0)] * 4, [0.4, 0.3, 0.2, 0.09, 0.01], n), None
    else:
        adata, batch_key = labelled(name, 0)
    without_first = patch.object(cut_tests, "WORTH_A_FIRST_TEST", adata.n_obs)
    with without_first, patch.object(cut_tests, "evidence_of_cut", twice):
        tested.fitted(adata, batch_key, seed, short, tested.BRIEF)
    return pd.DataFrame(rows)


def groups(seed: int, short: bool) -> list[dict[str, object]]:
    """A row for low, open and high strengths."""
    names = [f"simulated {n}" for n in SIMULATED[: 1 if short else None]]
    names += [] if short else SETS
    found = pd.concat([tested_twice(name, seed, short) for name in names], ignore_index=True)
    low, high = cut_tests.OPEN
    is_high = (found["strength"] > high) & (found["p"] <= CLEAR_P)
    parts = {
        "low": found[found["strength"] < low],
        "open": found[(found["strength"] >= low) & ~is_high],
        "high": found[is_high],
    }
    rows = []
    for name, part in parts.items():
        change = (part["of many"] - part["strength"]).abs()
        rows.append(
            {
                "strength by 1,000 cells": name,
                "seed": seed,
                "groups": len(part),
                "mean change": change.mean(),
                "largest change": change.max(),
                "least by 2,500": part["of many"].min(),
                "largest by 2,500": part["of many"].max(),
                "seconds": part["seconds"].sum(),
                "seconds by 2,500": part["seconds of many"].sum(),
            }
        )
    return rows


if __name__ == "__main__":
    tasks = {"cells_in_test": (groups, ["strength by 1,000 cells"])}
    run_tasks("cells_in_test", __doc__.split("\n")[0], tasks)
