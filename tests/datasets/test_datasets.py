"""Tests of scgmvae.datasets, without images: recovered values, simulators, messages."""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from scgmvae import datasets
from scgmvae.compat import named_layers
from scgmvae.datasets import local, simulated

DATA_DIR = os.environ.get("SCGMVAE_DATA_DIR")
needs_collection = pytest.mark.skipif(
    not DATA_DIR or not Path(DATA_DIR, "counts").is_dir(),
    reason="SCGMVAE_DATA_DIR does not name a folder with counts/*.h5ad",
)


def assert_whole_counts(x):
    """Check that ``x`` is float32 CSR with positive whole numbers stored and no empty row."""
    assert sp.issparse(x) and x.format == "csr"
    assert x.dtype == np.float32
    assert (x.data == np.round(x.data)).all() and (x.data >= 1).all()
    assert (np.diff(x.indptr) > 0).all()


def dense(adata):
    """Return ``X`` as a float64 array, ``(n, G)``."""
    return adata.X.toarray().astype(np.float64)


# --- pbmc68k_reduced ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pbmc():
    """Return the recovered counts; read-only."""
    return datasets.pbmc68k_reduced()


@pytest.fixture(scope="module")
def bundled():
    """Return scanpy's own file; read-only."""
    return sc.datasets.pbmc68k_reduced()


def test_pbmc_holds_counts_and_nothing_stale(pbmc, bundled):
    """The new AnnData has the counts, four columns, the names of raw, and no old results."""
    assert pbmc.shape == (700, 765)
    assert_whole_counts(pbmc.X)
    totals = pbmc.X.sum(axis=1)
    assert (totals.min(), pbmc.X.max(), totals.sum()) == (342, 259, 486651)
    assert list(pbmc.obs) == ["bulk_labels", "louvain", "phase", "n_counts"]
    assert pbmc.obs["bulk_labels"].cat.categories.size == 10
    assert pbmc.obs["louvain"].cat.categories.size == 11
    assert list(pbmc.obs_names) == list(bundled.obs_names)
    assert list(pbmc.var_names) == list(bundled.raw.var_names)
    assert pbmc.raw is None
    for part in (pbmc.uns, pbmc.obsm, pbmc.varm, pbmc.obsp, named_layers(pbmc)):
        assert len(part) == 0


def test_pbmc_counts_give_the_bundled_log_values_back(pbmc, bundled):
    """Normalised again, every count is the bundled value up to its rounding to 3 decimals."""
    totals = pbmc.obs["n_counts"].to_numpy()[:, None]
    again = np.log1p(dense(pbmc) * 1e4 / totals)
    stored = bundled.raw.X.toarray().astype(np.float64)
    assert np.abs(again - stored).max() < 5.01e-4
    # One count more or less misses by more than that, so no other counts fit.
    for step in (-1, 1):
        other = np.log1p(np.maximum(dense(pbmc) + step, 0) * 1e4 / totals)
        assert np.abs(other - stored)[stored > 0].min() > 3e-3


def test_pbmc_smallest_value_of_each_cell_is_one_count(pbmc, bundled):
    """Dividing by each cell's smallest value, without the totals, gives the same counts."""
    values = np.expm1(bundled.raw.X.toarray().astype(np.float64))
    smallest = np.where(values > 0, values, np.inf).min(axis=1, keepdims=True)
    np.testing.assert_array_equal(np.round(values / smallest), pbmc.X.toarray())


def test_pbmc_totals_cover_the_selected_genes(pbmc):
    """The totals over all genes are at least the totals over the selected ones."""
    assert pbmc.obs["n_counts"].dtype == np.int64
    assert (pbmc.X.sum(axis=1) < pbmc.obs["n_counts"].to_numpy()).all()


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(np.log1p(2.4 * 4), id="fractional_count"),
        pytest.param(np.log1p(0.1 * 4), id="below_one_count"),
        pytest.param(np.nan, id="nan"),
    ],
)
def test_recovery_refuses_what_is_no_count(value):
    """A stored value between two counts, or none at all, is reported rather than rounded away."""
    log_values = sp.csr_matrix(np.log1p([[4.0, 8.0], [4.0, 12.0]]))  # 1e4 / 2500 = 4 per count
    totals = np.array([2500, 2500])
    recovered = local._counts_from_log(log_values, totals).toarray()
    np.testing.assert_array_equal(recovered, [[1, 2], [1, 3]])
    log_values.data[3] = value
    with pytest.raises(RuntimeError, match=r"but 1 of 4 are not .* another version"):
        local._counts_from_log(log_values, totals)


# --- blobs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blobs():
    """Return the default blobs; read-only."""
    return datasets.blobs()


def group_means(adata):
    """Mean of X by class and condition, ``(n_classes, n_conditions, n_dims)``."""
    frame = pd.DataFrame(adata.X.astype(np.float64))
    keys = [adata.obs[key].to_numpy() for key in ("class", "condition")]
    means = frame.groupby(keys).mean().to_numpy()
    sizes = [adata.obs[key].cat.categories.size for key in ("class", "condition")]
    return means.reshape(*sizes, -1)


def test_blobs_contents(blobs):
    """Shape, type, names, group sizes; the cells come in random order."""
    assert blobs.shape == (2000, 16)
    assert isinstance(blobs.X, np.ndarray) and blobs.X.dtype == np.float32
    assert list(blobs.obs["class"].cat.categories) == [f"class_{i}" for i in range(5)]
    assert list(blobs.obs["condition"].cat.categories) == ["condition_0", "condition_1"]
    assert (blobs.obs.groupby(["class", "condition"], observed=False).size() == 200).all()
    assert blobs.obs_names.is_unique and len(blobs.uns) == 0
    assert blobs.obs["class"].iloc[:100].nunique() == 5


def test_blobs_centres_without_noise():
    """Distances between centres are exactly the scales, and the shift is common to all classes."""
    adata = datasets.blobs(
        2, n_classes=4, n_conditions=3, n_dims=7, class_scale=10, condition_scale=3, noise=0
    )
    means = group_means(adata)  # (4, 3, 7)
    between_classes = np.linalg.norm(means[:, None, 0] - means[None, :, 0], axis=-1)
    np.testing.assert_allclose(between_classes, 10 * (1 - np.eye(4)), atol=1e-5)
    between_conditions = np.linalg.norm(means[0, :, None] - means[0, None, :], axis=-1)
    np.testing.assert_allclose(between_conditions, 3 * (1 - np.eye(3)), atol=1e-5)
    shifts = means - means[:, :1]
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:1], shifts.shape), atol=1e-5)


def test_blobs_noise_is_the_standard_deviation(blobs):
    """Around the group means every dimension has standard deviation 1, within 5 s.e."""
    codes = [blobs.obs[key].cat.codes.to_numpy() for key in ("class", "condition")]
    residuals = blobs.X - group_means(blobs)[codes[0], codes[1]]
    n_free = residuals.size - 10 * 16
    assert np.sqrt((residuals**2).sum() / n_free) == pytest.approx(1, abs=5 / np.sqrt(2 * n_free))


def test_blobs_are_separable(blobs):
    """Without the condition shift k-means finds the classes without one error."""
    condition = blobs.obs["condition"].cat.codes.to_numpy()
    x = blobs.X - np.stack([blobs.X[condition == c].mean(axis=0) for c in range(2)])[condition]
    clusters = KMeans(5, n_init=10, random_state=0).fit_predict(x)
    assert adjusted_rand_score(blobs.obs["class"], clusters) == 1.0


def test_blobs_condition_is_visible_but_smaller(blobs):
    """Within a class the condition is read off with about 2 % errors: half of 4 s.d. is 2."""
    y, c = (blobs.obs[key].cat.codes.to_numpy() for key in ("class", "condition"))
    means = group_means(blobs)
    distances = np.linalg.norm(blobs.X[:, None] - means[y], axis=-1)  # (n, n_conditions)
    error = (distances.argmin(axis=1) != c).mean()
    assert error == pytest.approx(stats.norm.sf(2), abs=5 * np.sqrt(0.023 / 2000))


# --- synthetic_counts --------------------------------------------------------------------------

SETTING = {"n_components": 3, "n_batches": 2, "n_conditions": 2, "weights": [5, 3, 2]}


@pytest.fixture(scope="module")
def counts():
    """Return counts of three uneven components, two batches, two conditions; read-only."""
    return datasets.synthetic_counts(3000, 80, **SETTING)


def expected_rate(adata):
    """Rebuild the expected counts, ``(n, G)``, from what the AnnData says of its truth."""
    logits = adata.var["log_baseline"].to_numpy()[None]
    for key in ("component", "batch", "condition"):
        logits = logits + adata.varm[f"{key}_shift"].T[adata.obs[key].cat.codes.to_numpy()]
    rho = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return adata.obs["library_size"].to_numpy()[:, None] * rho


def standardised_group_sums(adata, theta):
    """(observed − expected sum) / its s.d., per component × batch × condition and gene."""
    rate = expected_rate(adata)
    groups = adata.obs.groupby(["component", "batch", "condition"], observed=True).ngroup()
    x, by = dense(adata), groups.to_numpy()
    return np.stack(
        [
            (x[by == g] - rate[by == g]).sum(axis=0)
            / np.sqrt((rate[by == g] + rate[by == g] ** 2 / theta).sum(axis=0))
            for g in np.unique(by)
        ]
    )


def test_counts_contents(counts):
    """Sparse whole counts, named categories, and the truth in the documented places."""
    assert counts.shape == (3000, 80)
    assert_whole_counts(counts.X)
    assert list(counts.obs) == ["component", "batch", "condition", "library_size"]
    assert list(counts.obs["component"].cat.categories) == [f"component_{i}" for i in range(3)]
    assert list(counts.obs["batch"].cat.categories) == ["batch_0", "batch_1"]
    assert list(counts.obs["condition"].cat.categories) == ["condition_0", "condition_1"]
    assert {key: v.shape for key, v in counts.varm.items()} == {
        "component_shift": (80, 3),
        "batch_shift": (80, 2),
        "condition_shift": (80, 2),
    }
    np.testing.assert_allclose(counts.uns["component_weights"], [0.5, 0.3, 0.2])


@pytest.mark.parametrize("chunk_entries", [80 * 7, 4_000_000], ids=["chunks_of_7", "one_chunk"])
def test_group_means_are_as_promised(monkeypatch, chunk_entries):
    """Sums over every component, batch and condition fit the model's mean and variance.

    There are 12 groups × 80 genes; a standardised sum beyond 5 has odds of about 1 in 2,000.
    """
    monkeypatch.setattr(simulated, "_CHUNK_ENTRIES", chunk_entries)
    adata = datasets.synthetic_counts(3000, 80, **SETTING, inverse_dispersion=1.5)
    scores = standardised_group_sums(adata, theta=1.5)
    assert scores.shape == (12, 80)
    assert np.abs(scores).max() < 5
    assert scores.mean() == pytest.approx(0, abs=5 / np.sqrt(scores.size))
    assert scores.std() == pytest.approx(1, abs=0.12)
    assert_whole_counts(adata.X)


def test_truth_has_the_promised_form(counts):
    """Programs have 10 % of the genes and the given size; the reference has no shift."""
    component, batch, condition = (
        counts.varm[f"{key}_shift"] for key in ("component", "batch", "condition")
    )
    np.testing.assert_array_equal((component == 2.0).sum(axis=0), [8, 8, 8])
    assert set(np.unique(component)) == {0.0, 2.0}
    assert not batch[:, 0].any() and not condition[:, 0].any()
    assert batch[:, 1].std() == pytest.approx(0.3, rel=0.4)  # 5 s.e. with 80 genes
    assert (np.abs(condition[:, 1]) == 1.0).sum() == 8
    assert set(np.unique(condition[:, 1])) == {-1.0, 0.0, 1.0}


def test_counts_are_negative_binomial():
    """Frequencies of 0, 1, ... 5 of identical cells equal scipy's, within 5 s.e."""
    n, theta = 4000, 0.7
    adata = datasets.synthetic_counts(
        n, 20, n_components=1, library_size=60, library_sigma=0, inverse_dispersion=theta, seed=3
    )
    rate, x = expected_rate(adata)[0], dense(adata)
    for k in range(6):
        p = stats.nbinom.pmf(k, theta, theta / (theta + rate))
        error = np.sqrt(p * (1 - p) / n)
        assert (np.abs((x == k).mean(axis=0) - p) < 5 * error + 1e-3).all()
    np.testing.assert_allclose(x.mean(axis=0), rate, atol=5 * np.sqrt(120**2 / theta / n))


def test_large_inverse_dispersion_is_poisson():
    """Variance equals the mean when the inverse dispersion goes to infinity."""
    adata = datasets.synthetic_counts(
        4000, 10, n_components=1, library_size=100, library_sigma=0, inverse_dispersion=1e9
    )
    x = dense(adata)
    np.testing.assert_allclose(x.var(axis=0) / x.mean(axis=0), 1, atol=0.15)


def test_library_size_is_lognormal(counts):
    """The median and the spread of the library size are the arguments, within 5 s.e."""
    log_library = np.log(counts.obs["library_size"])
    assert log_library.median() == pytest.approx(np.log(1000), abs=0.035)
    assert log_library.std() == pytest.approx(0.3, abs=0.02)


def test_categories_follow_their_weights(counts):
    """Components have the given weights, batches and conditions are even, within 5 s.e."""
    share = counts.obs["component"].value_counts(normalize=True, sort=False)
    np.testing.assert_allclose(share, [0.5, 0.3, 0.2], atol=0.046)
    for key in ("batch", "condition"):
        share = counts.obs[key].value_counts(normalize=True, sort=False)
        np.testing.assert_allclose(share, [0.5, 0.5], atol=0.046)


@pytest.mark.parametrize(
    ("weights", "low", "high"),
    [
        pytest.param(None, 0.2, 0.2, id="equal"),
        pytest.param(1e6, 0.199, 0.201, id="high_concentration_is_nearly_equal"),
        pytest.param(0.3, 0, 1, id="low_concentration_is_uneven"),
        pytest.param([1, 0, 1, 1, 1], 0, 0.25, id="given"),
    ],
)
def test_weights(weights, low, high):
    """The three forms of the weights give weights of the promised kind."""
    adata = datasets.synthetic_counts(50, 20, weights=weights)
    pi = adata.uns["component_weights"]
    assert pi.shape == (5,) and pi.sum() == pytest.approx(1)
    assert low <= pi.min() and pi.max() <= high
    if weights == 0.3:
        assert pi.max() > 0.4
    assert adata.obs["component"].cat.categories.size == 5


def test_components_can_be_found():
    """Log-normalise, PCA, k-means finds the default components (ARI 0.99 or more at seed 0)."""
    adata = datasets.synthetic_counts()
    sc.pp.normalize_total(adata, target_sum=1e3)
    sc.pp.log1p(adata)
    pcs = PCA(10, random_state=0).fit_transform(adata.X.toarray())
    clusters = KMeans(5, n_init=10, random_state=0).fit_predict(pcs)
    assert adjusted_rand_score(adata.obs["component"], clusters) > 0.95


def test_no_cell_is_empty_even_when_most_draws_are():
    """With 0.5 expected counts per cell 60 % of the draws are empty, and none is returned."""
    adata = datasets.synthetic_counts(500, 20, library_size=0.5)
    assert_whole_counts(adata.X)
    # Given a positive total, a Poisson total of mean 0.5 is 1.27 on average; dispersion adds some.
    assert 1.1 < adata.X.sum(axis=1).mean() < 1.8


def test_hopelessly_empty_cells_raise():
    """A setting that cannot give counts ends with an error, not in an endless loop."""
    with pytest.raises(RuntimeError, match=r"had none in 100 draws; increase library_size"):
        datasets.synthetic_counts(20, 10, library_size=1e-9)


@pytest.mark.parametrize("n_cells", [1, 6, 7, 8, 20])
def test_row_chunks_cover_every_row_once(monkeypatch, n_cells):
    """Chunks are consecutive, no larger than the limit, and cover exactly the rows."""
    monkeypatch.setattr(simulated, "_CHUNK_ENTRIES", 70)
    rows = [np.arange(n_cells)[chunk] for chunk in simulated._row_chunks(n_cells, n_genes=10)]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(n_cells))
    assert max(map(len, rows)) <= 7
    assert simulated._row_chunks(3, n_genes=1000) == [slice(0, 1), slice(1, 2), slice(2, 3)]


# --- both simulators ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("simulate", "arguments"),
    [
        pytest.param(datasets.blobs, {"n_per_group": 5}, id="blobs"),
        pytest.param(
            datasets.synthetic_counts,
            {"n_cells": 60, "n_genes": 30, "n_batches": 2, "weights": 1.0},
            id="synthetic_counts",
        ),
    ],
)
def test_seed_decides_everything(simulate, arguments):
    """Equal seeds give equal data whatever the global state; other seeds give other data."""

    def values(adata):
        return adata.X.toarray() if sp.issparse(adata.X) else adata.X

    first, second, other = (simulate(**arguments, seed=seed) for seed in (1, 1, 2))
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what is watched
    np.testing.assert_array_equal(values(first), values(second))
    pd.testing.assert_frame_equal(first.obs, second.obs)
    pd.testing.assert_frame_equal(first.var, second.var)
    assert (values(first) != values(other)).mean() > 0.2
    simulate(**arguments)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("simulate", "arguments", "message"),
    [
        pytest.param(
            datasets.blobs,
            {"n_per_group": 0},
            "n_per_group must be an integer of at least 1, but it is 0",
            id="none",
        ),
        pytest.param(
            datasets.blobs,
            {"n_classes": 2.5},
            "n_classes must be an integer of at least 1, but it is 2",
            id="half",
        ),
        pytest.param(
            datasets.blobs, {"noise": -1}, "noise must be at least 0, but it is -1", id="sd"
        ),
        pytest.param(
            datasets.blobs,
            {"n_dims": 6},
            "received n_dims=6 for 5 classes and 2 conditions; use n_dims=7 or more",
            id="too_few_dims",
        ),
        pytest.param(
            datasets.synthetic_counts, {"n_batches": 0}, "n_batches .* at least 1", id="no_batch"
        ),
        pytest.param(
            datasets.synthetic_counts, {"library_size": 0}, "library_size .* above 0", id="library"
        ),
        pytest.param(
            datasets.synthetic_counts,
            {"inverse_dispersion": np.inf},
            "inverse_dispersion must be above 0, but it is inf",
            id="infinite_theta",
        ),
        pytest.param(
            datasets.synthetic_counts,
            {"program_fraction": 1.5},
            r"program_fraction must lie in \(0, 1\], but received 1.5",
            id="fraction",
        ),
        pytest.param(
            datasets.synthetic_counts,
            {"weights": [1, 2]},
            r"received shape \(2,\) for n_components=5",
            id="weights_shape",
        ),
        pytest.param(
            datasets.synthetic_counts,
            {"weights": [1, 2, 3, 4, -5]},
            "weights must be finite, non-negative and not all zero",
            id="weights_negative",
        ),
        pytest.param(
            datasets.synthetic_counts, {"weights": 0.0}, "weights .* above 0", id="concentration"
        ),
    ],
)
def test_simulators_refuse_bad_arguments(simulate, arguments, message):
    """Each bad argument is named, with what was received."""
    with pytest.raises(ValueError, match=message):
        simulate(**arguments)


# --- load --------------------------------------------------------------------------------------


@pytest.fixture
def collection(tmp_path, monkeypatch):
    """Make a collection with ``here``, ``counts/below`` and ``both`` at the two places."""
    monkeypatch.setenv("SCGMVAE_DATA_DIR", str(tmp_path))
    (tmp_path / "counts").mkdir()
    for value, name in enumerate(["here", "counts/below", "both", "counts/both"]):
        adata = ad.AnnData(np.full((2, 3), value, dtype=np.float32))
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    return tmp_path


@pytest.mark.parametrize(("name", "value"), [("here", 0), ("below", 1), ("both", 2)])
def test_load_looks_in_the_folder_then_in_counts(collection, name, value):
    """The file is found at either place; the folder itself comes first."""
    np.testing.assert_array_equal(datasets.load(name).X, np.full((2, 3), value))


def test_load_of_a_missing_name_lists_the_others(collection):
    """The message has both places and every available name, once."""
    with pytest.raises(FileNotFoundError) as error:
        datasets.load("pbmc")
    message = str(error.value)
    assert str(collection / "pbmc.h5ad") in message
    assert str(collection / "counts" / "pbmc.h5ad") in message
    assert "Available: below, both, here." in message
    assert "SCGMVAE_DATA_DIR" in message


def test_load_from_a_missing_folder(monkeypatch, tmp_path):
    """A folder that does not exist has nothing available, which is not another kind of error."""
    monkeypatch.setenv("SCGMVAE_DATA_DIR", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="Available: none"):
        datasets.load("pbmc")


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_load_without_the_variable(monkeypatch, value):
    """The message says which variable to set, and to what."""
    monkeypatch.delenv("SCGMVAE_DATA_DIR", raising=False)
    if value is not None:
        monkeypatch.setenv("SCGMVAE_DATA_DIR", value)
    with pytest.raises(FileNotFoundError, match=r"SCGMVAE_DATA_DIR is not set\. Set it .*counts"):
        datasets.load("pbmc")


@pytest.mark.parametrize("name", ["counts/below", "../here", "..\\here", "/here", ""])
def test_load_refuses_paths(collection, name):
    """A name cannot lead out of the collection."""
    with pytest.raises(ValueError, match="name must be a file name without folder"):
        datasets.load(name)


@needs_collection
@pytest.mark.parametrize(
    ("name", "shape", "column", "n_categories"),
    [
        ("pbmc3k", (2638, 13714), "cell_type", 9),
        ("pbmc4k", (4271, 2000), "cell_type", 8),
        ("mouse_bladder", (2746, 2003), "cell_type", 16),
        ("paul15", (2730, 3451), "cell_type", 19),
        ("kang", (4525, 4805), "condition", 2),
        ("sc_mixology", (1021, 2000), "batch", 5),
    ],
)
def test_load_real_counts(name, shape, column, n_categories):
    """The files of the real collection are whole counts with the labels benchmarks use."""
    adata = datasets.load(name)
    assert adata.shape == shape
    assert adata.obs[column].nunique() == n_categories
    assert_whole_counts(adata.X)
