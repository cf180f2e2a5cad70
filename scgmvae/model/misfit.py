"""Misfit: what a model does not explain of new cells, nor of the new cells like them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scgmvae.clustering.shared_residuals import shared_residuals
from scgmvae.data.fingerprint import sums_of_some_rows
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
"""Number of cells of the mean of all components that count among those of each."""
MOST_DEVIATIONS = 3.0
"""Residuals end at as many standard deviations, so that no single value counts for many."""
VALUES_AT_A_TIME = 1 << 25
"""Largest number of residuals in memory: larger data are looked at part by part."""
LARGEST_SAMPLE = 5000
"""Largest number of training cells by which the misfit of new cells is judged."""
TAIL = 0.01
"""Share of the drawn cells beyond which the probability of a misfit falls off exponentially."""


class MisfitMixin(PosteriorsMixin):
    r"""The misfit of cells that a model was not trained on, and how probable it is.

    The misfit of a cell is what the residuals (x − E[x]) / sd[x] of it and the cells like it have
    in common (:func:`~scgmvae.clustering.shared_residuals.shared_residuals`). It is large for
    cells of a type that the model has not seen, also where the encoder puts these into the midst
    of a type that it knows.

    What is common is judged by cells that are drawn from the model. The training cells have less
    misfit than these, because the model has learned their noise by heart; and new cells have as
    much more, to the first order, for the same reason. So the difference is added, for each
    component, whose cells may be few. Of a model that explains its training cells badly, these
    have more misfit than drawn ones, and new cells are expected to have as much.
    """

    misfit_quantiles_: NDArray[np.float64] | None
    """Quantiles of the misfit of cells that are drawn from the model."""
    misfit_shifts_: NDArray[np.float64] | None
    """By how much the misfit of new cells is larger in each component, (K,)."""
    trained_on_: NDArray[np.float64] | None
    """Weighted sums of a few rows of the training data, by which these are known again."""
    reference_categories_: tuple[int, ...] | None
    """Numbers of categories that the reference of a query model knows; ``None`` without one."""

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
        for the categories that the reference does not know, 0 where it knows all.
        """
        is_measured = self.module.mixture_started and self.misfit_quantiles_ is not None
        if not is_measured or (dataloader is None and self._was_trained_on(adata)):
            return self._posteriors(adata, indices, batch_size, dataloader)
        batch_size = batch_size or self._cells_at_a_time()
        minibatches = self._minibatches_to_read(adata, indices, batch_size, dataloader)
        return self._all_of(self._judged_parts(minibatches))

    def _was_trained_on(self, adata: AnnData | None) -> bool:
        """Whether data are those that the model was trained on, by a few rows of them."""
        sums = _sums_of_rows(self.get_anndata_manager(self._validate_anndata(adata), True))
        return sums.shape == self.trained_on_.shape and np.allclose(sums, self.trained_on_)

    def _cells_at_a_time(self) -> int:
        """Number of cells that are decoded at once."""
        return min(READ_BATCH_SIZE, max(1, VALUES_AT_A_TIME // self.module.n_input))

    @torch.inference_mode()
    def _judged_parts(
        self, minibatches: Iterable[dict[str, Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        """Posteriors and misfit of as many cells at a time as there is memory for."""
        self.module.eval()
        noise, part, n_values = self._noise(), [], 0
        for tensors in minibatches:
            posteriors, residuals = self._posteriors_of(tensors, noise), self._residuals(tensors)
            part.append(
                posteriors | {"residuals": residuals, "unknown": self._unknown_categories(tensors)}
            )
            n_values += residuals.numel()
            if n_values >= VALUES_AT_A_TIME:
                yield _with_misfit(part)
                part, n_values = [], 0
        if part:
            yield _with_misfit(part)

    def _residuals(self, tensors: dict[str, Tensor]) -> Tensor:
        """Standardised residuals at the mean of z, (n, G), 0 where nothing was measured."""
        p_x = self._at_mean(tensors)
        x = dense(tensors[REGISTRY_KEYS.X_KEY])
        residuals = (x - p_x.mean) / p_x.variance.clamp_min(1e-12).sqrt()
        residuals = residuals.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)
        is_measured = tensors.get(OBSERVED_KEY)
        if PANELS_KEY in tensors:
            is_measured = tensors[PANELS_KEY][tensors[PANEL_KEY].reshape(-1).long()]
        return residuals if is_measured is None else residuals * is_measured

    def _at_mean(self, tensors: dict[str, Tensor]) -> torch.distributions.Distribution:
        """p(x|z,c) of cells at the mean of their z."""
        outputs = self.module.inference(**self.module._get_inference_input(tensors), sample=False)
        inputs = self.module._get_generative_input(tensors, outputs)
        return self.module.generative(**inputs, only_x=True)["px"]

    def _unknown_categories(self, tensors: dict[str, Tensor]) -> Tensor:
        """A number for the categories of each cell that the reference does not know, (n,)."""
        codes = tensors[REGISTRY_KEYS.BATCH_KEY].long()
        number = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        if self.reference_categories_ is None:
            return number
        if REGISTRY_KEYS.CAT_COVS_KEY in tensors:
            codes = torch.cat([codes, tensors[REGISTRY_KEYS.CAT_COVS_KEY].long()], dim=1)
        sizes = zip(self.reference_categories_, self.module.n_categories, strict=True)
        for code, (n_known, n_all) in zip(codes.T, sizes, strict=True):
            number = number * (n_all - n_known + 1) + (code - n_known + 1).clamp_min(0)
        return number

    # ------------------------------------------------------------------------- being judged

    @torch.inference_mode()
    def _remember_misfit(self, rows: NDArray[np.integer], seed: int) -> None:
        """Keep the misfit that new cells would have, by some of the training cells."""
        rng = np.random.default_rng(seed)
        if len(rows) > LARGEST_SAMPLE:
            rows = np.sort(rng.choice(rows, LARGEST_SAMPLE, replace=False))
        size = self._cells_at_a_time()
        self.module.eval()
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            loader = self._make_data_loader(self.adata, indices=rows, batch_size=size)
            found = stacked(self._judged_parts(loader))
            drawn = stacked(self._judged_parts(map(self._drawn_anew, loader)))
        component, n_components = found["log_proba"].argmax(1), self.module.n_components
        excess = drawn["misfit"] - found["misfit"]
        n_cells = np.bincount(component, minlength=n_components)
        sums = np.bincount(component, excess, minlength=n_components)
        shifts = (sums + PRIOR_CELLS * excess.mean()) / (n_cells + PRIOR_CELLS)
        self.trained_on_ = _sums_of_rows(self.adata_manager)
        self.misfit_shifts_ = np.abs(shifts)
        # training cells that were put where the drawn ones are, in case they are scattered more
        both = [drawn["misfit"], found["misfit"] + shifts[component]]
        shares = np.linspace(0, 1, N_QUANTILES)
        self.misfit_quantiles_ = np.max([np.quantile(each, shares) for each in both], axis=0)

    def _drawn_anew(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A minibatch of cells that are drawn at the means of z of these."""
        x = self._at_mean(tensors).sample()
        if self.module.is_count:
            x[x.sum(1) == 0, 0] = 1.0  # a cell without counts has no depth
        return tensors | {REGISTRY_KEYS.X_KEY: x}

    def _p_of_misfit(self, posteriors: dict[str, NDArray]) -> NDArray[np.float64]:
        """Probability of a misfit as large in new cells of the training cells' types, (n,).

        The misfit of most cells of a category that the reference does not know counts as what is
        different there, such as the effect of a batch.
        """
        quantiles = self.misfit_quantiles_
        misfit = posteriors["misfit"] - self.misfit_shifts_[posteriors["log_proba"].argmax(1)]
        for number in np.setdiff1d(posteriors["unknown"], 0):
            rows = posteriors["unknown"] == number
            misfit[rows] = _put_onto(misfit[rows], quantiles)
        shares = np.linspace(0, 1, N_QUANTILES)
        p = 1 - np.interp(misfit, quantiles, shares)
        beyond = quantiles[shares >= 1 - TAIL]
        mean_excess = max(beyond.mean() - beyond[0], 1e-12)
        of_tail = TAIL * np.exp(-np.maximum(misfit - beyond[0], 0) / mean_excess)
        return np.where(misfit > beyond[0], of_tail, p)


def _sums_of_rows(manager: AnnDataManager) -> NDArray[np.float64]:
    """Weighted sums of a few rows of the matrix of registered data."""
    return sums_of_some_rows(manager.get_from_registry(REGISTRY_KEYS.X_KEY))


def _with_misfit(part: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Minibatches put together, with the misfit of the cells in place of their residuals."""
    whole = {name: torch.cat([tensors[name] for tensors in part]) for name in part[0]}
    z, residuals = (whole[name].cpu().numpy() for name in ("z_loc", "residuals"))
    del whole["residuals"]
    misfit = np.zeros(len(z))
    is_seen = np.isfinite(z).all(1)
    if is_seen.any():
        misfit[is_seen] = shared_residuals(z[is_seen], residuals[is_seen])
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
