"""Simulated data with known truth: Gaussian classes and negative-binomial counts.

The simulators draw from their own generator, made from ``seed``; equal arguments give equal data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgmvae.checks import (
    check_at_least,
    check_positive,
    check_seed,
    check_whole,
    is_number,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["blobs", "synthetic_counts"]

_CHUNK_ENTRIES = 4_000_000  # dense entries of synthetic_counts at a time: 32 MB in float64
_BASELINE_SIGMA = 1.5  # sd of log expression over genes: a few genes hold most of the counts
_MAX_DRAWS = 100


def blobs(
    n_per_group: int = 200,
    *,
    n_classes: int = 5,
    n_conditions: int = 2,
    n_dims: int = 16,
    class_scale: float = 12.0,
    condition_scale: float = 4.0,
    noise: float = 1.0,
    seed: int = 0,
) -> ad.AnnData:
    r"""Gaussian classes, each seen in every condition, where a condition is a common shift.

    .. math:: x = \mu_y + \nu_c + \epsilon, \qquad \epsilon \sim N(0, \mathrm{noise}^2 I)

    The directions of all :math:`\mu` and :math:`\nu` are orthogonal, so any two classes have
    centres ``class_scale`` apart and any two conditions are shifted by ``condition_scale``.

    Parameters
    ----------
    n_per_group
        Cells in each pair of class and condition.
    n_classes, n_conditions
        Number of classes and of conditions, each at least 1.
    n_dims
        Dimensions of ``X``, at least ``n_classes + n_conditions``.
    class_scale
        Distance between the centres of any two classes, in the units of ``X``.
    condition_scale
        Distance between any two conditions within a class.
    noise
        Standard deviation around the centre in every dimension.
    seed
        Seed of the directions, the noise and the order of the cells.

    Returns
    -------
    anndata.AnnData
        ``n_per_group * n_classes * n_conditions`` cells in random order. ``X``: float32, dense,
        ``(n, n_dims)``. ``obs``: categoricals ``"class"`` and ``"condition"``.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    With the defaults classes are 12 standard deviations apart, so that k-means recovers
    them without error; conditions overlap a little (4 standard deviations), and a model that
    ignores them spends its latent space on a shift that the condition explains.

    Examples
    --------
    >>> adata = blobs(100, n_classes=3)
    >>> adata.shape
    (600, 16)
    >>> adata.obs.groupby(["class", "condition"], observed=True).size().unique().tolist()
    [100]
    """
    check_whole(1, n_per_group=n_per_group, n_classes=n_classes, n_conditions=n_conditions)
    check_whole(1, n_dims=n_dims)
    check_at_least(0, class_scale=class_scale, condition_scale=condition_scale, noise=noise)
    check_seed(seed)
    if n_dims < n_classes + n_conditions:
        raise ValueError(
            "n_dims must be at least n_classes + n_conditions, so that every centre has its own "
            f"direction, but received n_dims={n_dims} for {n_classes} classes and {n_conditions} "
            f"conditions; use n_dims={n_classes + n_conditions} or more."
        )
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.standard_normal((n_dims, n_classes + n_conditions)))
    # Orthonormal vectors are sqrt(2) apart.
    class_centers = class_scale / np.sqrt(2) * directions.T[:n_classes]
    condition_shifts = condition_scale / np.sqrt(2) * directions.T[n_classes:]

    groups = np.repeat(np.arange(n_classes * n_conditions), n_per_group)
    y, c = np.divmod(rng.permutation(groups), n_conditions)
    x = class_centers[y] + condition_shifts[c] + noise * rng.standard_normal((len(y), n_dims))
    obs = {
        "class": _categorical("class", y, n_classes),
        "condition": _categorical("condition", c, n_conditions),
    }
    return _annotated(x.astype(np.float32), obs, "dim")


def synthetic_counts(
    n_cells: int = 1000,
    n_genes: int = 500,
    *,
    n_components: int = 5,
    n_batches: int = 1,
    n_conditions: int = 1,
    weights: float | Sequence[float] | None = None,
    program_fraction: float = 0.1,
    component_scale: float = 2.0,
    batch_scale: float = 0.3,
    condition_scale: float = 1.0,
    library_size: float = 1000.0,
    library_sigma: float = 0.3,
    inverse_dispersion: float = 2.0,
    seed: int = 0,
) -> ad.AnnData:
    r"""Negative-binomial counts with known components, batches and conditions.

    .. math::
        y \sim \mathrm{Cat}(\pi), \quad
        \rho = \mathrm{softmax}(a + m_y + s_b + t_c), \quad
        \ell \sim \mathrm{LogNormal}(\log \mathtt{library\_size}, \mathtt{library\_sigma}^2),
        \quad x_g \sim \mathrm{NB}(\ell \rho_g, \theta)

    with mean :math:`\ell \rho_g` and variance
    :math:`\ell \rho_g + (\ell \rho_g)^2 / \theta`. Batch and condition are uniform and
    independent of the component; the first of each is the reference, with no shift.

    Parameters
    ----------
    n_cells, n_genes
        Shape of the counts.
    n_components, n_batches, n_conditions
        Number of components (cell types), batches and conditions, each at least 1.
    weights
        Component weights :math:`\pi`: equal (None); given, shape ``(n_components,)``,
        non-negative, divided by their sum; or a positive number, the concentration of the
        symmetric Dirichlet they are drawn from (1 gives uneven, 100 nearly equal weights).
    program_fraction
        Fraction of the genes, in (0, 1], in each component's program :math:`m` and in each
        condition's response :math:`t`; drawn anew for each, so they may share genes.
    component_scale
        Natural-log fold change of a component's program genes, all upwards.
    batch_scale
        Standard deviation over genes of a batch's natural-log shift :math:`s`.
    condition_scale
        Natural-log fold change of a condition's response genes, of random sign.
    library_size
        Median over cells of the expected counts per cell :math:`\ell`.
    library_sigma
        Standard deviation over cells of :math:`\log \ell`.
    inverse_dispersion
        :math:`\theta`; towards infinity the counts become Poisson.
    seed
        Seed of everything that is drawn.

    Returns
    -------
    anndata.AnnData
        ``X``: counts, float32 CSR, ``(n_cells, n_genes)``, no cell without counts.
        ``obs``: categoricals ``"component"``, ``"batch"``, ``"condition"``; ``"library_size"``
        (:math:`\ell`, expected counts). ``var``: ``"log_baseline"`` (:math:`a`). ``varm``:
        ``"component_shift"`` (:math:`m`), ``"batch_shift"`` (:math:`s`), ``"condition_shift"``
        (:math:`t`), ``(n_genes, number of categories)`` each, natural log.
        ``uns``: ``"component_weights"`` (:math:`\pi`).

    Raises
    ------
    ValueError
        If a number is out of range or ``weights`` does not fit ``n_components``.
    RuntimeError
        If a cell stays without counts after 100 draws (tiny ``library_size`` or
        ``inverse_dispersion``).

    Notes
    -----
    A cell without counts is drawn again, which conditions its distribution on a positive total;
    with the defaults that never matters. Rows are made in chunks that go straight into CSR, so
    100,000 cells × 2,000 genes (0.33 GB as CSR, half a minute on one core) need about twice the
    memory of their non-zero counts, never a dense matrix. A rare component may get no cell; its
    category is there all the same.

    References
    ----------
    Lopez et al. (2018), Deep generative modeling for single-cell transcriptomics (the same
    likelihood, with the library size as a latent factor).

    Examples
    --------
    >>> adata = synthetic_counts(300, 100, n_components=3, n_batches=2, weights=[3, 2, 1])
    >>> adata.shape, adata.obs["batch"].cat.categories.tolist()
    ((300, 100), ['batch_0', 'batch_1'])
    >>> bool((adata.X.sum(axis=1) > 0).all())
    True
    """
    sizes = {"n_components": n_components, "n_batches": n_batches, "n_conditions": n_conditions}
    check_whole(1, n_cells=n_cells, n_genes=n_genes, **sizes)
    scales = {"component_scale": component_scale, "condition_scale": condition_scale}
    check_at_least(0, batch_scale=batch_scale, library_sigma=library_sigma, **scales)
    check_positive(library_size=library_size, inverse_dispersion=inverse_dispersion)
    check_seed(seed)
    if not (is_number(program_fraction) and 0 < program_fraction <= 1):
        raise ValueError(
            f"program_fraction must lie in (0, 1], but received {program_fraction!r}."
        )

    rng = np.random.default_rng(seed)
    pi = _component_weights(weights, n_components, rng)
    baseline = _BASELINE_SIGMA * rng.standard_normal(n_genes)
    component_shift = component_scale * _programs(n_components, n_genes, program_fraction, rng)
    batch_shift = batch_scale * rng.standard_normal((n_batches, n_genes))
    condition_shift = condition_scale * _programs(n_conditions, n_genes, program_fraction, rng)
    condition_shift *= rng.choice([-1.0, 1.0], size=condition_shift.shape)
    batch_shift[0] = condition_shift[0] = 0.0

    y = rng.choice(n_components, size=n_cells, p=pi)
    b = rng.integers(n_batches, size=n_cells)
    c = rng.integers(n_conditions, size=n_cells)
    library = library_size * np.exp(library_sigma * rng.standard_normal(n_cells))

    chunks = []
    # The rows per chunk depend on n_genes alone, so the data depend on the arguments alone.
    for rows in _row_chunks(n_cells, n_genes):
        logits = baseline + component_shift[y[rows]]  # (rows, n_genes)
        logits += batch_shift[b[rows]]
        logits += condition_shift[c[rows]]
        rate = _scaled_softmax(logits, library[rows])
        chunks.append(_draw_counts(rate, inverse_dispersion, rng))

    obs = {
        "component": _categorical("component", y, n_components),
        "batch": _categorical("batch", b, n_batches),
        "condition": _categorical("condition", c, n_conditions),
        "library_size": library,
    }
    adata = _annotated(sp.vstack(chunks, format="csr"), obs, "gene")
    adata.var["log_baseline"] = baseline
    adata.varm["component_shift"] = component_shift.T.copy()
    adata.varm["batch_shift"] = batch_shift.T.copy()
    adata.varm["condition_shift"] = condition_shift.T.copy()
    adata.uns["component_weights"] = pi
    return adata


def _component_weights(
    weights: float | Sequence[float] | None, n_components: int, rng: np.random.Generator
) -> NDArray:
    """Weights that sum to 1, shape ``(n_components,)``."""
    if weights is None:
        return np.full(n_components, 1 / n_components)
    given = np.asarray(weights, dtype=np.float64)
    if given.ndim == 0:
        check_positive(weights=float(given))
        return rng.dirichlet(np.full(n_components, given))
    if given.shape != (n_components,):
        raise ValueError(
            "weights must be None, one number (a Dirichlet concentration) or one weight per "
            f"component, but received shape {given.shape} for n_components={n_components}."
        )
    if not (np.isfinite(given).all() and (given >= 0).all() and given.sum() > 0):
        raise ValueError(
            "weights must be finite, non-negative and not all zero, "
            f"but received {given.tolist()}."
        )
    return given / given.sum()


def _programs(n_programs: int, n_genes: int, fraction: float, rng: np.random.Generator) -> NDArray:
    """Gene sets of equal size as rows of zeros and ones, shape ``(n_programs, n_genes)``."""
    size = max(1, round(fraction * n_genes))
    programs = np.zeros((n_programs, n_genes))
    for program in programs:
        program[rng.choice(n_genes, size=size, replace=False)] = 1.0
    return programs


def _row_chunks(n_cells: int, n_genes: int) -> list[slice]:
    """Consecutive slices of rows with at most ``_CHUNK_ENTRIES`` dense entries each."""
    step = max(1, _CHUNK_ENTRIES // n_genes)
    return [slice(start, min(start + step, n_cells)) for start in range(0, n_cells, step)]


def _scaled_softmax(logits: NDArray, totals: NDArray) -> NDArray:
    """Softmax over genes times the cell's total; works in ``logits``, shape ``(n, n_genes)``."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits *= (totals / logits.sum(axis=1))[:, None]
    return logits


def _draw_counts(rate: NDArray, theta: float, rng: np.random.Generator) -> sp.csr_matrix:
    """Negative-binomial counts with mean ``rate`` and no empty row, float32 CSR, same shape."""
    return _without_empty_rows(
        lambda rows: _negative_binomial(rate[rows], theta, rng),
        rate.shape,
        "library_size or inverse_dispersion",
    )


def _without_empty_rows(
    draw: Callable[[NDArray], NDArray], shape: tuple[int, int], raised_by: str
) -> sp.csr_matrix:
    """Counts of ``draw``, which takes indices of rows; rows without a count are drawn again."""
    counts = np.zeros(shape, dtype=np.float32)
    empty = np.arange(len(counts))
    for _ in range(_MAX_DRAWS):
        counts[empty] = draw(empty)
        empty = empty[~counts[empty].any(axis=1)]
        if not empty.size:
            return sp.csr_matrix(counts)
    raise RuntimeError(
        f"Every cell must have a count, but {empty.size} had none in {_MAX_DRAWS} draws; "
        f"increase {raised_by}."
    )


def _negative_binomial(rate: NDArray, theta: float, rng: np.random.Generator) -> NDArray:
    """Draw counts of mean ``rate`` and variance ``rate + rate**2 / theta``, same shape."""
    mean = rng.standard_gamma(theta, size=rate.shape)  # NB is a Gamma mixture of Poissons
    mean *= rate
    mean /= theta
    return rng.poisson(mean).astype(np.float32)


def _categorical(prefix: str, codes: NDArray, n_categories: int) -> pd.Categorical:
    """Codes ``(n,)`` as a categorical with the names ``prefix_0``, ``prefix_1``, ..."""
    return pd.Categorical.from_codes(codes, [f"{prefix}_{i}" for i in range(n_categories)])


def _annotated(
    x: NDArray | sp.csr_matrix, obs: dict, var_prefix: str, row: str = "cell"
) -> ad.AnnData:
    """AnnData with the rows named ``<row>_0``, ... and the columns ``<var_prefix>_0``, ..."""
    n_rows, n_vars = x.shape
    return ad.AnnData(
        x,
        obs=pd.DataFrame(obs, index=[f"{row}_{i}" for i in range(n_rows)]),
        var=pd.DataFrame(index=[f"{var_prefix}_{i}" for i in range(n_vars)]),
    )
