"""Simulated RNA and open chromatin of the same cells, with known types.

As the other simulators, it draws from its own generator: equal arguments give equal data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgmvae.checks import check_at_least, check_positive, check_seed, check_share, check_whole
from scgmvae.compat import mudata_contained
from scgmvae.datasets.simulated import (
    _BASELINE_SIGMA,
    _annotated,
    _categorical,
    _draw_counts,
    _programs,
    _row_chunks,
    _scaled_softmax,
    _without_empty_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad
    from mudata import MuData
    from numpy.typing import NDArray

__all__ = ["synthetic_multiome"]

_PEAK_SIGMA = 1.0  # sd of the log rate over peaks: they are more alike than genes
MEASURED = ("rna and atac", "rna", "atac")


def synthetic_multiome(
    n_cells: int = 1000,
    n_genes: int = 500,
    n_peaks: int = 2000,
    *,
    n_types: int = 6,
    n_told_by_one: int = 2,
    n_batches: int = 1,
    program_fraction: float = 0.1,
    type_scale: float = 2.0,
    batch_scale: float = 0.3,
    library_size: float = 1000.0,
    library_sigma: float = 0.3,
    inverse_dispersion: float = 2.0,
    open_share: float = 0.02,
    depth_sigma: float = 0.5,
    share_unpaired: float = 0.0,
    seed: int = 0,
) -> MuData:
    r"""RNA counts and open chromatin of the same cells, or of some, with known types and batches.

    .. math::
        y \sim \mathrm{Cat}(1/K), \quad
        \rho = \mathrm{softmax}(a + m_y + s_b), \quad
        \sigma = P \,\mathrm{softmax}(a' + m'_y + s'_b), \\
        x_g \sim \mathrm{NB}(\ell \rho_g, \theta), \quad
        x_p \sim \mathrm{Bernoulli}(1 - e^{-\delta \omega \sigma_p})

    over P peaks, where a peak is open if one of its fragments, of a Poisson number, is read. The
    library size :math:`\ell` of the RNA and the depth factor :math:`\delta` of the chromatin are
    log-normal, and independent of each other and of the type.

    Some types have a program of genes (:math:`m`) and no program of peaks (:math:`m' = 0`): RNA
    alone tells them apart. For others it is the other way round, and the remaining ones have
    both. So a single modality sees all types that the other one tells apart as a single group.

    Parameters
    ----------
    n_cells, n_genes, n_peaks
        Numbers of cells, genes and peaks.
    n_types
        Number of types K, at least ``2 * n_told_by_one``.
    n_told_by_one
        Number of types that RNA alone tells apart, and of those that chromatin alone does. 0, or
        at least 2, as a single type without a program would be told by having none.
    n_batches
        Number of batches; uniform, and independent of the type. The first has no shift.
    program_fraction
        Fraction of the genes and of the peaks, in (0, 1], in the program of a type.
    type_scale
        Natural-log fold change of the program, :math:`m` and :math:`m'`, upwards.
    batch_scale
        Standard deviation over genes and over peaks of a batch's natural-log shift.
    library_size, library_sigma
        Median over cells of the expected counts :math:`\ell`, and standard deviation of its log.
    inverse_dispersion
        :math:`\theta` of the counts.
    open_share
        :math:`\omega`, the expected fragments per peak of a cell with a depth factor of 1: about
        the share of the peaks that are open, below 1.
    depth_sigma
        Standard deviation over cells of :math:`\log \delta`.
    share_unpaired
        Share of the cells, from 0 to 1, that have one modality alone: half of them RNA, half of
        them chromatin. 2/3 leaves a third of the cells for each of the three kinds. The values of
        the others are those of the same data without unpaired cells.
    seed
        Seed of everything that is drawn.

    Returns
    -------
    mudata.MuData
        Modalities ``"rna"``, counts, ``(cells, n_genes)``, and ``"atac"``, zeros and ones,
        ``(cells, n_peaks)``, both float32 CSR without empty cells; a cell that lacks a modality
        is not in it. ``obs``: categoricals ``"cell_type"``, ``"batch"`` and ``"measured"``
        (``"rna and atac"``, ``"rna"`` or ``"atac"``). ``uns``: ``"told_by"``, for every type
        ``"rna"``, ``"atac"`` or ``"both"``. The modalities have ``obs["library_size"]`` or
        ``obs["depth"]``, ``var["log_baseline"]`` (:math:`a`), and ``varm["type_shift"]``
        (:math:`m`) and ``varm["batch_shift"]`` (:math:`s`), natural log.

    Raises
    ------
    ValueError
        If a number is out of range, or there are fewer types than are told by one modality.
    RuntimeError
        If a cell stays without counts or open peaks after 100 draws.

    Notes
    -----
    Cells are made in chunks that go straight into CSR: 2,000 cells of 50,000 peaks never stand as
    a dense matrix.

    References
    ----------
    Ashuach et al. (2023), MultiVI: deep generative model for the integration of multimodal data;
    Martens et al. (2024), Modeling fragment counts improves single-cell ATAC-seq analysis (the
    Poisson fragments behind the zeros and ones).

    Examples
    --------
    >>> mdata = synthetic_multiome(300, 100, 400, share_unpaired=2 / 3)
    >>> mdata.shape, mdata["rna"].shape, mdata["atac"].shape
    ((300, 500), (200, 100), (200, 400))
    >>> mdata.obs["measured"].value_counts().tolist()
    [100, 100, 100]
    >>> mdata.uns["told_by"]["type_0"]
    'rna'
    """
    check_whole(1, n_cells=n_cells, n_genes=n_genes, n_peaks=n_peaks, n_batches=n_batches)
    _check_types(n_types, n_told_by_one)
    check_at_least(0, type_scale=type_scale, batch_scale=batch_scale)
    check_at_least(0, library_sigma=library_sigma, depth_sigma=depth_sigma)
    check_positive(library_size=library_size, inverse_dispersion=inverse_dispersion)
    check_share(share_unpaired=share_unpaired, program_fraction=program_fraction)
    check_positive(program_fraction=program_fraction, open_share=open_share)
    check_share(open_share=open_share)
    check_seed(seed)

    rng = np.random.default_rng(seed)
    told_by = np.array(["both"] * n_types)
    told_by[:n_told_by_one], told_by[n_told_by_one : 2 * n_told_by_one] = "rna", "atac"
    types = rng.integers(n_types, size=n_cells)
    batches = rng.integers(n_batches, size=n_cells)
    library = library_size * np.exp(library_sigma * rng.standard_normal(n_cells))
    depth = np.exp(depth_sigma * rng.standard_normal(n_cells))

    def modality(differs: NDArray, sigma: float, n_features: int) -> _Profiles:
        baseline = sigma * rng.standard_normal(n_features)
        type_shift = type_scale * _programs(n_types, n_features, program_fraction, rng)
        batch_shift = batch_scale * rng.standard_normal((n_batches, n_features))
        type_shift[~differs] = batch_shift[0] = 0.0
        return _Profiles(baseline, type_shift, batch_shift)

    genes = modality(told_by != "atac", _BASELINE_SIGMA, n_genes)
    peaks = modality(told_by != "rna", _PEAK_SIGMA, n_peaks)
    counts = genes.drawn(
        types, batches, library, lambda rate: _draw_counts(rate, inverse_dispersion, rng)
    )
    fragments = n_peaks * open_share * depth
    is_open = peaks.drawn(types, batches, fragments, lambda rate: _draw_open(rate, rng))
    rna = genes.annotated(counts, {"library_size": library}, "gene")
    atac = peaks.annotated(is_open, {"depth": depth}, "peak")

    n_alone = int(share_unpaired * n_cells / 2)
    measured = np.zeros(n_cells, dtype=int)
    order = rng.permutation(n_cells)
    measured[order[:n_alone]], measured[order[n_alone : 2 * n_alone]] = 1, 2
    obs = {
        "cell_type": _categorical("type", types, n_types),
        "batch": _categorical("batch", batches, n_batches),
        "measured": pd.Categorical.from_codes(measured, MEASURED),
    }
    mdata = _joined(rna[measured != 2].copy(), atac[measured != 1].copy(), obs, rna.obs_names)
    mdata.uns["told_by"] = {f"type_{k}": str(by) for k, by in enumerate(told_by)}
    return mdata


class _Profiles(NamedTuple):
    """Log rates of the features of a modality: baseline (F,), and shifts (types or batches, F)."""

    baseline: NDArray
    type_shift: NDArray
    batch_shift: NDArray

    def drawn(
        self,
        types: NDArray,
        batches: NDArray,
        totals: NDArray,
        draw: Callable[[NDArray], sp.csr_matrix],
    ) -> sp.csr_matrix:
        """Values of cells, ``(n, F)``, that ``draw`` makes of expected values of given totals."""
        chunks = []
        for rows in _row_chunks(len(types), len(self.baseline)):
            logits = self.baseline + self.type_shift[types[rows]]
            logits += self.batch_shift[batches[rows]]
            chunks.append(draw(_scaled_softmax(logits, totals[rows])))
        return sp.vstack(chunks, format="csr")

    def annotated(self, x: sp.csr_matrix, obs: dict, var_prefix: str) -> ad.AnnData:
        """The values with what they were drawn from."""
        adata = _annotated(x, obs, var_prefix)
        adata.var["log_baseline"] = self.baseline
        adata.varm["type_shift"] = self.type_shift.T.copy()
        adata.varm["batch_shift"] = self.batch_shift.T.copy()
        return adata


def _check_types(n_types: int, n_told_by_one: int) -> None:
    """Raise ``ValueError`` unless there are types enough for those told by one modality."""
    check_whole(1, n_types=n_types)
    check_whole(0, n_told_by_one=n_told_by_one)
    if n_told_by_one == 1 or n_types < 2 * n_told_by_one:
        raise ValueError(
            "n_told_by_one must be 0, or at least 2 and at most half of n_types, but received "
            f"n_told_by_one={n_told_by_one} of n_types={n_types}; use 0 where each modality is to "
            "tell all types apart."
        )


def _draw_open(rate: NDArray, rng: np.random.Generator) -> sp.csr_matrix:
    """Ones where a Poisson number of fragments of mean ``rate`` is not 0, without empty rows."""
    chance = -np.expm1(-rate)
    return _without_empty_rows(
        lambda rows: rng.random((len(rows), rate.shape[1])) < chance[rows],
        rate.shape,
        "open_share or n_peaks",
    )


def _joined(rna: ad.AnnData, atac: ad.AnnData, obs: dict, names: pd.Index) -> MuData:
    """The modalities together, with columns of all cells."""
    from mudata import MuData

    with mudata_contained():
        mdata = MuData({"rna": rna, "atac": atac})
    for key, values in obs.items():
        mdata.obs[key] = pd.Series(values, index=names).reindex(mdata.obs_names)
    return mdata
