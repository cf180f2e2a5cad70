"""Misfit: what a model does not explain of new cells, nor of the new cells like them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scgmvae.clustering.shared_residuals import shared_residuals
from scgmvae.data import validation
from scgmvae.data.fingerprint import sums_of_some_rows
from scgmvae.data.images import scale_of
from scgmvae.data.keys import OBSERVED_KEY, PANEL_KEY, PANELS_KEY
from scgmvae.data.minibatches import stacked
from scgmvae.model.posteriors import READ_BATCH_SIZE, PosteriorsMixin
from scgmvae.nn.sparse import dense

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from scvi.data import AnnDataManager
    from torch import Tensor

__all__ = ["N_QUANTILES", "PRIOR_CELLS", "MisfitMixin"]

N_QUANTILES = 1001
"""Number of quantiles that a model keeps of what it measures of its training cells."""
PRIOR_CELLS = 10
"""Weight, in cells, of the mean over all components in what is estimated of each."""
MOST_DEVIATIONS = 3.0
"""Residuals end at as many standard deviations, so that no single value counts for many."""
LARGEST_PART, VALUES_IN_PART = 20_000, 1 << 26
"""Largest number of cells, and of their residuals, that are judged together."""
LARGEST_SAMPLE = 5000
"""Largest number of training cells by which the misfit of new cells is judged."""
TAIL = 0.01
"""Probability of a misfit from which on it falls off exponentially."""
N_ROWS = 4
"""Number of rows by which the training data are recognised, also on disk."""


class MisfitMixin(PosteriorsMixin):
    r"""The misfit of cells that a model was not trained on, and how probable it is.

    The misfit of a cell is what the residuals (x − E[x]) / sd[x] of it and the cells like it have
    in common (:func:`~scgmvae.clustering.shared_residuals.shared_residuals`). It is large for
    cells of a type that the model has not seen, also where the encoder puts these into the midst
    of a type that it knows.

    New cells of known types have some misfit, too. Cells that are drawn from the model say how
    much it would have if it were true. Its training cells have less, because it has learned their
    noise by heart, and new cells have, to the first order, as much more; so the difference is
    added. It is estimated for each component, because a component of few cells is learned by heart
    more readily. Where a model explains its training cells badly, these have more misfit than
    drawn ones, and new cells are expected to have as much as they.
    """

    misfit_quantiles_: NDArray[np.float64] | None
    """Quantiles of the misfit by which that of new cells is judged, before it is shifted."""
    misfit_shifts_: NDArray[np.float64] | None
    """By how much the misfit of new cells of known types is larger in each component, (K,)."""
    known_categories_: tuple[int, ...] | None
    """Number of categories of each condition in the data that the model was trained on."""
    trained_on_: NDArray[np.float64] | None
    """Weighted sums of a few rows of the training data, by which these are recognised."""

    def _posteriors_to_judge(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
    ) -> dict[str, NDArray]:
        """Posteriors of cells, with the misfit of such as the model was not trained on.

        Returns
        -------
        As of :meth:`_posteriors`, and of new cells ``misfit`` (n,) and ``unknown`` (n,), a number
        for the categories that were not in the training data, 0 where all were.
        """
        is_measured = self.module.mixture_started and self.misfit_quantiles_ is not None
        if dataloader is None:
            adata = self._validate_anndata(adata)
        if not is_measured or (dataloader is None and self._was_trained_on(adata)):
            return self._posteriors(adata, indices, batch_size, dataloader)
        if batch_size is None:
            batch_size = self._cells_at_a_time()
        most = max(1, min(LARGEST_PART, VALUES_IN_PART // self.module.n_input))
        if dataloader is not None:
            minibatches = self._minibatches_to_read(adata, indices, batch_size, dataloader)
            return self._all_of(self._judged_parts(minibatches, most))
        rows = validation.rows_of(adata, indices)
        n_parts = math.ceil(len(rows) / most)
        order = np.arange(len(rows))
        if n_parts > 1:  # each part has cells of all sorts, in whatever order they come
            order = np.random.default_rng(0).permutation(len(rows))
        minibatches = self._minibatches_to_read(adata, rows[order], batch_size, None)
        found = self._all_of(self._judged_parts(minibatches, math.ceil(len(rows) / n_parts)))
        place = np.argsort(order)
        return {name: values[place] for name, values in found.items()}

    def _was_trained_on(self, adata: AnnData) -> bool:
        """Whether data are those that the model was trained on, by a few rows of them."""
        sums = _sums_of_rows(self.get_anndata_manager(adata, True))
        return sums.shape == self.trained_on_.shape and np.allclose(sums, self.trained_on_)

    def _cells_at_a_time(self) -> int:
        """Number of cells that are decoded at once."""
        return min(READ_BATCH_SIZE, max(1, VALUES_IN_PART // (8 * self.module.n_input)))

    @torch.inference_mode()
    def _judged_parts(
        self, minibatches: Iterable[dict[str, Tensor]], n_cells: int
    ) -> Iterator[dict[str, Tensor]]:
        """Posteriors and misfit of cells, a number of them at a time."""
        self.module.eval()
        noise, part, n = self._noise(), [], 0
        for tensors in minibatches:
            tensors = self._on_device(tensors)
            inputs, outputs = self._inferred(tensors)
            posteriors = self._read_of(tensors, noise, inputs, outputs)
            part.append(posteriors | self._residuals_of(tensors, outputs))
            n += len(part[-1]["z_loc"])
            if n >= n_cells:
                yield _with_misfit(part)
                part, n = [], 0
        if part:
            yield _with_misfit(part)

    def _residuals_of(self, tensors: dict[str, Tensor], outputs: dict) -> dict[str, Tensor]:
        """Residuals of cells at the mean of z, and what else their misfit needs.

        Returns
        -------
        ``residuals`` (n, G), standardised, 0 where nothing was measured; ``measured`` (n,), the
        share of the features that was; ``unknown`` (n,), see :meth:`_posteriors_to_judge`.
        """
        given = self.module._get_generative_input(tensors, outputs)
        p_x = self.module.generative(**given, only_x=True)["px"]
        x = dense(tensors[REGISTRY_KEYS.X_KEY])
        residuals = (x - p_x.mean) / p_x.variance.clamp_min(1e-12).sqrt()
        residuals = residuals.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)
        is_measured = tensors.get(OBSERVED_KEY)
        if PANELS_KEY in tensors:
            is_measured = tensors[PANELS_KEY][tensors[PANEL_KEY].reshape(-1).long()]
        measured = torch.ones(len(x), device=x.device)
        if is_measured is not None:
            residuals = residuals * is_measured
            measured = measured * is_measured.float().mean(-1)
        unknown = self._unknown_categories(tensors)
        return {"residuals": residuals, "measured": measured, "unknown": unknown}

    def _on_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A minibatch on the device of the model."""
        return {name: values.to(self.device) for name, values in tensors.items()}

    def _drawn_x(self, given: dict) -> Tensor:
        """Values drawn from p(x|z,c), (n, G), given the inputs of the generative model."""
        x = self.module.generative(**given, only_x=True)["px"].sample()
        if self.module.is_count:
            x[x.sum(1) == 0, 0] = 1.0  # a cell without counts has no depth
        return x

    def _unknown_categories(self, tensors: dict[str, Tensor]) -> Tensor:
        """A number for the categories of each cell that were not in the training data, (n,)."""
        codes = tensors[REGISTRY_KEYS.BATCH_KEY].long()
        if REGISTRY_KEYS.CAT_COVS_KEY in tensors:
            codes = torch.cat([codes, tensors[REGISTRY_KEYS.CAT_COVS_KEY].long()], dim=1)
        n_all = self.module.n_categories
        known = n_all if self.known_categories_ is None else self.known_categories_
        number = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        for code, n_known, n in zip(codes.T, known, n_all, strict=True):
            number = number * (n - n_known + 1) + (code - n_known + 1).clamp_min(0)
        return number

    # ------------------------------------------------------------------------- being judged

    @torch.inference_mode()
    def _remember_misfit(self, rows: NDArray[np.integer], seed: int) -> None:
        """Keep the misfit that new cells would have, by some of the training cells."""
        rng = np.random.default_rng(seed)
        most = max(1, min(LARGEST_SAMPLE, VALUES_IN_PART // self.module.n_input))
        if len(rows) > most:
            rows = np.sort(rng.choice(rows, most, replace=False))
        self.known_categories_ = tuple(self.module.n_categories)
        self.trained_on_ = _sums_of_rows(self.adata_manager)
        self.module.eval()
        size = self._cells_at_a_time()
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            loader = self._make_data_loader(self.adata, indices=rows, batch_size=size)
            found = stacked(self._judged_parts(loader, len(rows)))
            drawn = stacked(self._judged_parts(map(self._drawn_anew, loader), len(rows)))
        component, n_components = found["log_proba"].argmax(1), self.module.n_components
        excess = drawn["misfit"] - found["misfit"]
        n_cells = np.bincount(component, minlength=n_components)
        sums = np.bincount(component, excess, minlength=n_components)
        shifts = (sums + PRIOR_CELLS * excess.mean()) / (n_cells + PRIOR_CELLS)
        self.misfit_shifts_ = np.abs(shifts)
        # training cells that were put where the drawn ones are, in case they are scattered more
        both = [drawn["misfit"], found["misfit"] + shifts[component]]
        shares = np.linspace(0, 1, N_QUANTILES)
        self.misfit_quantiles_ = np.max([np.quantile(each, shares) for each in both], axis=0)

    def _drawn_anew(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A minibatch of cells that are drawn at the means of z of these."""
        tensors = self._on_device(tensors)
        given = self.module._get_generative_input(tensors, self._inferred(tensors)[1])
        return tensors | {REGISTRY_KEYS.X_KEY: self._drawn_x(given)}

    def _p_of_misfit(self, posteriors: dict[str, NDArray]) -> NDArray[np.float64]:
        """Probability of a misfit as large in new cells of known types, (n,).

        In a category that was not in the training data, the misfit that most cells have is taken
        for the effect of that category, and removed.
        """
        quantiles = self.misfit_quantiles_
        misfit = posteriors["misfit"] - self.misfit_shifts_[posteriors["log_proba"].argmax(1)]
        for number in np.setdiff1d(posteriors["unknown"], 0):
            rows = (posteriors["unknown"] == number) & ~np.isnan(misfit)
            if rows.any():
                misfit[rows] = _put_onto(misfit[rows], quantiles)
        shares = np.linspace(0, 1, N_QUANTILES)
        p = 1 - np.interp(misfit, quantiles, shares)
        beyond = quantiles[shares >= 1 - TAIL]
        mean_excess = max(beyond.mean() - beyond[0], 1e-12)
        of_tail = TAIL * np.exp(-np.maximum(misfit - beyond[0], 0) / mean_excess)
        return np.where(misfit > beyond[0], of_tail, p)


def _sums_of_rows(manager: AnnDataManager) -> NDArray[np.float64]:
    """Weighted sums of a few rows of the matrix of registered data."""
    x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    return scale_of(manager.adata, x) * sums_of_some_rows(x, N_ROWS)


def _with_misfit(part: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Minibatches put together, with the misfit of the cells in place of their residuals.

    It is NaN for cells of which nothing is seen. A cell that comes up several times is judged
    once: its noise would be that of all of them.
    """
    residuals = torch.cat([tensors.pop("residuals") for tensors in part]).cpu().numpy()
    whole = {name: torch.cat([tensors[name] for tensors in part]).cpu() for name in part[0]}
    z, measured = whole["z_loc"].numpy(), whole.pop("measured").numpy()
    misfit = np.full(len(z), np.nan)
    seen = np.flatnonzero(np.isfinite(z).all(1))
    if len(seen):
        _, first, of = np.unique(z[seen].round(4), axis=0, return_index=True, return_inverse=True)
        once = seen[first]
        shared = shared_residuals(z[once], residuals[once])[of.ravel()]
        # a sum over fewer features has less noise, by the root of their number
        misfit[seen] = shared / np.sqrt(np.maximum(measured[seen], 1e-12))
    return whole | {"misfit": torch.from_numpy(misfit)}


def _put_onto(misfit: NDArray[np.float64], quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Misfit of cells, (n,), moved and scaled so that its lower half is that of drawn cells.

    Misfit that is less already stays as it is.
    """
    low, middle = quantiles[N_QUANTILES // 20], quantiles[N_QUANTILES // 2]
    own_low, own_middle = np.quantile(misfit, [0.05, 0.5])
    if own_middle <= middle:
        return misfit
    scale = min(1.0, (middle - low) / max(own_middle - own_low, 1e-12))
    return middle + (misfit - own_middle) * scale
