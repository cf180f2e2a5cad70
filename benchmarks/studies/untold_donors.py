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
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).parents[1]))
import tested
from common import run_tasks
from embedding import labelled

from scgmvae.clustering import growing
from scgmvae.clustering.split_tree import STRENGTH
from scgmvae.model.splits import SplitsMixin


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


def two_trees(adata: AnnData, seed: int, short: bool) -> list[dict[str, object]]:
    """A row for each of the two trees of a training."""
    rows: list[dict[str, object]] = []
    original = SplitsMixin._grown_tree

    def both(self: SplitsMixin, *args: object) -> tuple[object, NDArray]:
        for is_put_below in (False, True):
            most = growing.MOST_LEVELS if is_put_below else 0
            with patch.object(growing, "MOST_LEVELS", most):
                tree, leaf = original(self, *args)
            clusters = tree.clusters(tree.height >= STRENGTH)[leaf]
            rows.append(
                {
                    "below types": "yes" if is_put_below else "no",
                    "seed": seed,
                    "ARI": adjusted_rand_score(adata.obs["cell_type"], clusters),
                    "n_clusters": int(clusters.max()) + 1,
                    "splits": tree.n_splits,
                    "repeated": int(tree.is_repeated.sum()),
                }
            )
        return tree, leaf

    with patch.object(SplitsMixin, "_grown_tree", both):
        tested.fitted(adata, None, seed, short, tested.BRIEF)
    return rows


def untold(seed: int, short: bool) -> Iterator[list[dict[str, object]]]:
    """The rows of every design and set, one at a time."""
    for name in list(DESIGNS)[:1] if short else [*DESIGNS, *SETS]:
        if name in DESIGNS:
            adata = DESIGNS[name].cells(200 if short else 3000, seed)
        else:
            adata = labelled(name, seed)[0]
        yield [{"data": name, **row} for row in two_trees(adata, seed, short)]


if __name__ == "__main__":
    tasks = {"untold_donors": (untold, ["data", "below types"])}
    run_tasks("untold_donors", __doc__.split("\n")[0], tasks)
