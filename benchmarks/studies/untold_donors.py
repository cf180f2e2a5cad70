"""Are types found that lie closer to each other than donors do, where donors are not told?

    SCGMVAE_DATA_DIR=... python benchmarks/studies/untold_donors.py [--seeds 0 1 2]

Simulated cells are of three groups of two close types each. The log expression of every gene
differs between groups by a standard deviation of .6; *close* and *donors* are the standard
deviations between the two types of a group and between donors, and *own* is the share of a donor's
effect that is another one in each group. The real sets have a treatment, batches or mice that are
not told.

Each set is trained on once, and two trees are made of it: with splits that repeat from type to
type left where they are (*below types*: no), and put below those between types (yes), as by
default. *ARI* is the agreement of the clusters of the tree with the known types. ``--short`` runs
few epochs on few simulated cells.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
import tested
from common import run_tasks
from embedding import labelled
from trees import trees_of

from scgmvae.clustering import growing


class Design(NamedTuple):
    """Simulated cells of types in donors."""

    n_donors: int
    donors: float
    close: float
    own: float

    def cells(self, n: int, seed: int) -> AnnData:
        """The cells, with ``cell_type`` in obs."""
        rng = np.random.default_rng(seed)
        group, member, donor = (rng.integers(k, size=n) for k in (3, 2, self.n_donors))

        def effect(scale: float, sizes: tuple[int, ...]) -> NDArray[np.float64]:
            return rng.normal(0, scale, (*sizes, tested.N_GENES))

        log_share = rng.normal(0, 1, tested.N_GENES) + effect(0.6, (3,))[group]
        log_share = log_share + effect(self.close, (3, 2))[group, member]
        shared = effect(self.donors, (self.n_donors,))[donor]
        own = effect(self.donors, (3, self.n_donors))[group, donor]
        log_share = log_share + np.sqrt(1 - self.own) * shared + np.sqrt(self.own) * own
        adata = tested.counts(rng, np.exp(log_share), np.exp(rng.normal(np.log(3000), 0.3, n)))
        adata.obs["cell_type"] = pd.Categorical((2 * group + member).astype(str))
        return adata


DESIGNS = {
    "2 donors, as far apart as close types": Design(2, 0.3, 0.3, 0.2),
    "4 donors, 1.5 times as far": Design(4, 0.45, 0.3, 0.0),
    "4 donors, 1.5 times as far, 30 % own": Design(4, 0.45, 0.3, 0.3),
    "6 donors, as far apart as close types, 20 % own": Design(6, 0.4, 0.4, 0.2),
}
SETS = ("kang", "sc_mixology", "baron_mouse")
SETTINGS = {
    "no": partial(patch.object, growing, "MOST_LEVELS", 0),
    "yes": nullcontext,
}
"""Whether splits that repeat are put below those between types."""


def untold(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """The rows of every design and set, one at a time."""
    for name in list(DESIGNS)[:1] if short else [*DESIGNS, *SETS]:
        if name in DESIGNS:
            adata = DESIGNS[name].cells(200 if short else 3000, seed)
        else:
            adata = labelled(name, seed)[0]
        rows = trees_of(adata, None, seed, short, SETTINGS)
        yield [{"data": name, "below types": below, **row} for below, row in rows.items()]


if __name__ == "__main__":
    tasks = {"untold_donors": (untold, ["data", "below types"])}
    run_tasks("untold_donors", __doc__.split("\n")[0], tasks)
