"""How should the encoders of several modalities be kept from learning cells by heart?

    python benchmarks/studies/joint_encoders.py

Simulated RNA and open chromatin, every cell with both, of which three quarters are trained on. Two
of the six types differ in their chromatin alone. Of the cells that were left out: agreement of
their clusters with the types, log likelihood of their open chromatin as it is imputed from their
RNA, and of both together; by the share of the cells of which one modality is read alone in
training, and the dropout in the encoders.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.metrics import adjusted_rand_score

import scgmvae
from scgmvae.compat import mudata_contained
from scgmvae.datasets import synthetic_multiome

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import run_tasks, threads_kept

SETTINGS = ((0.0, 0.3), (0.03, 0.3), (0.1, 0.3), (0.3, 0.3), (0.03, 0.1))
"""Share, and dropout."""
SHORT = {"max_epochs": 2, "pretrain_epochs": 2, "start": "kmeans"}


def of_setting(share: float, dropout: float, seed: int, short: bool) -> dict[str, object]:
    """Scores of cells that were left out of training."""
    size = (160, 60, 100) if short else (1200, 300, 1500)
    cells = synthetic_multiome(*size, type_scale=2.5, open_share=0.05, seed=seed)
    n_train = 3 * cells.n_obs // 4
    train, test = cells[:n_train].copy(), cells[n_train:].copy()
    scgmvae.SCGMVAE.setup_mudata(train, modalities={"rna": "nb", "atac": "bernoulli"})
    model = scgmvae.SCGMVAE(train, n_components=6, hidden_share=share, dropout_rate=dropout)
    model.train(seed=seed, enable_progress_bar=False, **(SHORT if short else {}))
    is_open = test["atac"].X.toarray() > 0
    rate = np.clip(model.impute("atac", test, given="rna", seed=seed).X, 1e-6, 1 - 1e-6)
    return {
        "share": share,
        "dropout": dropout,
        "seed": seed,
        "ARI": float(adjusted_rand_score(test.obs["cell_type"], model.predict(test))),
        "imputed": float(np.log(np.where(is_open, rate, 1 - rate)).sum(1).mean()),
        "likelihood": float(model.get_marginal_ll(test, n_mc_samples=50, return_mean=True)),
    }


def run(seed: int, short: bool) -> list[dict[str, object]]:
    with mudata_contained(), threads_kept(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.|scvi\.")
        return [of_setting(*setting, seed, short) for setting in SETTINGS]


if __name__ == "__main__":
    run_tasks("joint_encoders", __doc__.split("\n")[0], {"": (run, ["share", "dropout"])})
