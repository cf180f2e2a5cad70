"""Tests of datasets.synthetic_multiome: distributions, what tells types apart, missing cells."""

import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from scgmvae import datasets
from scgmvae.datasets import simulated

THIRDS = {"share_unpaired": 2 / 3}


@pytest.fixture(scope="module")
def multiome():
    """1,200 cells of six types in two batches; read-only."""
    return datasets.synthetic_multiome(1200, 200, 2000, n_batches=2, seed=1)


def expected(mdata, name):
    """Expected counts or fragments of the cells, from what the MuData says of its truth."""
    adata, obs = mdata[name], mdata.obs.loc[mdata[name].obs_names]
    logits = adata.var["log_baseline"].to_numpy()[None]
    for column, key in (("cell_type", "type_shift"), ("batch", "batch_shift")):
        logits = logits + adata.varm[key].T[obs[column].cat.codes.to_numpy()]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if name == "rna":
        return adata.obs["library_size"].to_numpy()[:, None] * shares
    return 0.02 * adata.n_vars * adata.obs["depth"].to_numpy()[:, None] * shares


def test_contents(multiome):
    """Sparse counts and zeros and ones, named categories, and the truth in its places."""
    assert multiome.shape == (1200, 2200)
    assert list(multiome.mod) == ["rna", "atac"]
    rna, atac = multiome["rna"].X, multiome["atac"].X
    for x in (rna, atac):
        assert x.format == "csr" and x.dtype == np.float32
        assert (np.diff(x.indptr) > 0).all()
        assert (x.data == np.round(x.data)).all() and (x.data >= 1).all()
    assert rna.max() > 10 and set(atac.data) == {1.0}
    assert atac.nnz / np.prod(atac.shape) == pytest.approx(0.02, abs=0.002)
    assert list(multiome.obs) == ["cell_type", "batch", "measured"]
    assert list(multiome.obs["cell_type"].cat.categories) == [f"type_{k}" for k in range(6)]
    assert list(multiome.obs["batch"].cat.categories) == ["batch_0", "batch_1"]
    assert (multiome.obs["measured"] == "rna and atac").all()
    assert multiome["rna"].var_names[0] == "gene_0" and multiome["atac"].var_names[0] == "peak_0"
    of_types = ["rna", "rna", "atac", "atac", "both", "both"]
    assert multiome.uns["told_by"] == {f"type_{k}": by for k, by in enumerate(of_types)}


def test_programs_are_of_the_modalities_that_tell_a_type(multiome):
    """A tenth of the features of 2.0 where a type is told, none elsewhere; no shift at first."""
    for name, n_features, told in (("rna", 200, [0, 1, 4, 5]), ("atac", 2000, [2, 3, 4, 5])):
        shift = multiome[name].varm["type_shift"]
        assert shift.shape == (n_features, 6)
        sizes = np.where(np.isin(np.arange(6), told), n_features // 10, 0)
        np.testing.assert_array_equal((shift == 2.0).sum(0), sizes)
        assert set(np.unique(shift)) == {0.0, 2.0}
        batch = multiome[name].varm["batch_shift"]
        assert not batch[:, 0].any()
        assert batch[:, 1].std() == pytest.approx(0.3, rel=0.3)


@pytest.mark.parametrize("chunk_entries", [7000, 4_000_000], ids=["chunks_of_7", "one_chunk"])
def test_sums_over_cells_are_as_promised(monkeypatch, chunk_entries):
    """Sums of genes and of open peaks over each type fit mean and variance of the model."""
    monkeypatch.setattr(simulated, "_CHUNK_ENTRIES", chunk_entries)
    mdata = datasets.synthetic_multiome(1500, 60, 1000, n_batches=2, inverse_dispersion=3.0)
    codes = mdata.obs["cell_type"].cat.codes.to_numpy()
    for name in ("rna", "atac"):
        mean = expected(mdata, name)
        if name == "rna":
            variance = mean + mean**2 / 3
        else:
            mean = -np.expm1(-mean)  # the chance of at least one fragment
            variance = mean * (1 - mean)
        x = mdata[name].X.toarray()
        of_types = [codes == k for k in range(6)]
        sums, variances = (
            np.stack([v[of].sum(0) for of in of_types]) for v in (x - mean, variance)
        )
        scores = (sums / np.sqrt(variances))[variances > 10]  # rarer ones are too skewed
        assert scores.size > 200
        assert np.abs(scores).max() < 5.5
        assert scores.mean() == pytest.approx(0, abs=5 / np.sqrt(scores.size))
        assert scores.std() == pytest.approx(1, abs=0.15)


def test_depths_are_lognormal_and_independent(multiome):
    """Of 1,200 cells within 5 standard errors."""
    library = np.log(multiome["rna"].obs["library_size"])
    depth = np.log(multiome["atac"].obs["depth"])
    assert library.median() == pytest.approx(np.log(1000), abs=0.06)
    assert depth.median() == pytest.approx(0, abs=0.1)
    assert (library.std(), depth.std()) == pytest.approx((0.3, 0.5), abs=0.06)
    assert abs(np.corrcoef(library, depth)[0, 1]) < 5 / np.sqrt(1200)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ("type_0", "type_1", {"rna"}),
        ("type_2", "type_3", {"atac"}),
        ("type_0", "type_2", {"rna", "atac"}),
        ("type_4", "type_5", {"rna", "atac"}),
    ],
)
def test_types_are_told_where_they_should_be_and_nowhere_else(multiome, one, other, told):
    """Held-out cells are right by 95 % there, and elsewhere by chance, within 5 s.e."""
    types = multiome.obs["cell_type"].astype(str)
    names = types.index[types.isin([one, other])]
    for name in ("rna", "atac"):
        x = multiome[name][names].X.toarray()
        x = x / x.sum(1, keepdims=True) * 100
        is_one = (types[names] == one).to_numpy()
        found = cross_val_predict(LogisticRegression(max_iter=1000), x, is_one, cv=5)
        right = (found == is_one).mean()
        if name in told:
            assert right > 0.95
        else:
            assert right == pytest.approx(0.5, abs=2.5 / np.sqrt(len(names)))


def test_every_modality_tells_all_types_where_none_is_told_by_one():
    mdata = datasets.synthetic_multiome(50, 20, 100, n_types=3, n_told_by_one=0)
    assert set(mdata.uns["told_by"].values()) == {"both"}
    assert all((mdata[name].varm["type_shift"] > 0).any(0).all() for name in ("rna", "atac"))


def test_cells_that_lack_a_modality_are_not_in_it(multiome):
    """Thirds, drawn without regard to type; what is left are the values of the paired data."""
    mosaic = datasets.synthetic_multiome(1200, 200, 2000, n_batches=2, seed=1, **THIRDS)
    measured = mosaic.obs["measured"]
    assert measured.value_counts().to_dict() == {"rna and atac": 400, "rna": 400, "atac": 400}
    for name in ("rna", "atac"):
        has = measured.isin([name, "rna and atac"])
        assert mosaic[name].n_obs == 800
        np.testing.assert_array_equal(np.ravel(mosaic.obsm[name]), has)
        assert set(mosaic[name].obs_names) == set(mosaic.obs_names[has])
        assert (mosaic[name].X != multiome[name][mosaic[name].obs_names].X).nnz == 0
    obs = multiome.obs.loc[mosaic.obs_names]
    for key in ("cell_type", "batch"):
        assert (mosaic.obs[key] == obs[key]).all()
    table = pd.crosstab(measured, mosaic.obs["cell_type"])
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(("share", "n_alone"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_shares_of_unpaired_cells(share, n_alone):
    mdata = datasets.synthetic_multiome(9, 20, 200, share_unpaired=share)
    assert (mdata["rna"].n_obs, mdata["atac"].n_obs) == (9 - n_alone, 9 - n_alone)


def test_seed_decides_everything():
    first, second, other = (
        datasets.synthetic_multiome(60, 30, 200, seed=seed, **THIRDS) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(first.obs, second.obs)
    for name in ("rna", "atac"):
        assert (first[name].X != second[name].X).nnz == 0
        assert list(first[name].obs_names) == list(second[name].obs_names)
        assert first[name].obs_names.difference(other[name].obs_names).size > 0


def test_no_cell_is_empty_even_when_most_draws_are():
    """A cell of 100 peaks has 0.2 open ones expected."""
    mdata = datasets.synthetic_multiome(200, 20, 100, open_share=0.002, library_size=0.5)
    assert (mdata["atac"].X.sum(1) > 0).all() and (mdata["rna"].X.sum(1) > 0).all()
    with pytest.raises(RuntimeError, match="in 100 draws; increase open_share or n_peaks"):
        datasets.synthetic_multiome(20, 20, 10, open_share=1e-9)


def test_a_file_of_it_is_loaded_by_its_name(tmp_path, monkeypatch):
    mdata = datasets.synthetic_multiome(40, 20, 200, **THIRDS)
    (tmp_path / "counts").mkdir()
    mdata.write(tmp_path / "counts" / "cells.h5mu")
    monkeypatch.setenv("SCGMVAE_DATA_DIR", str(tmp_path))
    loaded = datasets.load("cells")
    assert isinstance(loaded, mudata.MuData)
    assert loaded.uns["told_by"] == mdata.uns["told_by"]
    assert list(loaded.obs) == ["cell_type", "batch", "measured"]
    with pytest.raises(FileNotFoundError, match=r"one of other\.h5mu\. Available: cells\."):
        datasets.load("other")
