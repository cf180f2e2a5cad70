"""A small MuData of RNA, proteins and peaks, whose cells may lack modalities."""

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

KINDS = {"rna": "nb", "protein": "protein", "atac": "bernoulli"}


def make_mdata(n=240, n_genes=60, n_proteins=6, n_peaks=80, unpaired=False, seed=0):
    """MuData of three types in two batches; ``unpaired`` leaves out parts of two modalities."""
    rng = np.random.default_rng(seed)
    types = rng.integers(3, size=n)
    profiles = rng.normal(0, 1.2, size=(3, n_genes))
    shares = np.exp(profiles) / np.exp(profiles).sum(1, keepdims=True)
    rna = rng.poisson(shares[types] * rng.uniform(200, 600, size=(n, 1)))
    has = rng.random((3, n_proteins)) < 0.5
    protein = rng.poisson(np.where(has[types], 60, 3) * rng.gamma(5, 0.2, size=(n, n_proteins)))
    open_ = np.where(rng.random((3, n_peaks)) < 0.3, 0.4, 0.05)
    atac = rng.random((n, n_peaks)) < open_[types]
    names = [f"cell_{i}" for i in range(n)]
    obs = pd.DataFrame(index=names)
    parts = {
        name: AnnData(
            sparse.csr_matrix(x.astype(np.float32)),
            obs=obs.copy(),
            var=pd.DataFrame(index=[f"{name}_{i}" for i in range(x.shape[1])]),
        )
        for name, x in {"rna": rna, "protein": protein, "atac": atac}.items()
    }
    if unpaired:
        parts["protein"] = parts["protein"][60:].copy()
        parts["atac"] = parts["atac"][: n - 60].copy()
    mdata = mudata.MuData(parts)
    rows = [names.index(name) for name in mdata.obs_names]
    mdata.obs["cell_type"] = pd.Categorical(np.array(["a", "b", "c"])[types[rows]])
    mdata.obs["batch"] = pd.Categorical(np.where(np.array(rows) % 2, "x", "y"))
    return mdata
