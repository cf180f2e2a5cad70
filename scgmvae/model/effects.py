"""What a condition does to each gene, type by type, as the model predicts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scgmvae import checks
from scgmvae.data.categories import names_of
from scgmvae.data.conditions import resolved
from scgmvae.data.groups import groups_of
from scgmvae.data.matrices import read_rows
from scgmvae.data.normalization import per_ten_thousand
from scgmvae.model.generation import GenerationMixin, shift_to_measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

    from scgmvae.data.conditions import Condition

__all__ = ["EffectsMixin"]

N_CELLS = 500
"""Largest number of cells of a group whose expression is predicted."""
FEWEST_MEASURED = 10
"""Number of cells of each level from which on a measured change is given."""
ADDED = 0.1
"""Counts per 10,000 that are added, so that absent genes have no large fold change."""
BETWEEN = (0.025, 0.975)
"""Shares of the cells below the ends of the interval."""


class EffectsMixin(GenerationMixin):
    """The method ``effect_table``."""

    def effect_table(
        self,
        condition: str,
        value: object,
        other: object,
        *,
        groupby: str = "scgmvae",
        n_samples: int = 10,
        seed: int = 0,
    ) -> pd.DataFrame:
        r"""Change of every gene that the model predicts between two values of a condition.

        .. math:: \log_2 \mathbb{E}[x'|z,c'] - \log_2 \mathbb{E}[x'|z,c], \qquad z \sim q(z|x,c)

        Each cell is decoded under both values from the same z, all else being as it is, so what
        the model gets wrong of a cell under both does not count. If the condition is categorical,
        the mean of q is first moved to the mean z of the 15 nearest cells with the value, as
        :meth:`predict_counterfactual` does it, of 20,000 of them where there are more, since the
        decoder knows the effect there. With fewer than 15 such cells z stays where it is.

        Parameters
        ----------
        condition
            obs column of a registered condition.
        value, other
            Its value that the effect is of, and the one that it is compared with. The cells that
            are decoded are those with ``other``, or all of a group that has none.
        groupby
            obs column of the clusters or types, each of which has its own effect.
        n_samples
            Number of draws from the posterior of each cell, which are averaged.
        seed
            Seed of the draws, and of the choice of 500 cells where a group has more.

        Returns
        -------
        DataFrame with a row per group and gene, the largest change first: ``group``, ``gene``;
        ``lfc``, the log2 fold change of the mean over the cells, per 10,000 counts with 0.1 added;
        ``low`` and ``high``, between which it lies in 95 % of the cells; ``measured``, the same of
        the mean counts of the group's cells, missing where fewer than ten have either value;
        ``mean``, the predicted mean under ``other`` at that z. For data that are no counts,
        ``lfc`` and ``measured`` are differences.

        Raises
        ------
        KeyError
            If there is no such obs column.
        RuntimeError
            If the model is not trained, or has no data.
        ValueError
            If the condition is not registered, or the model does not know a value.

        Notes
        -----
        The interval is that of cells and not a standard error: for a test with samples as units
        see :meth:`test_condition`. Where no cell of a group was measured under ``value``, the
        effect is what the model carries over from other groups.

        Examples
        --------
        >>> table = model.effect_table("batch", "batch_1", "batch_0", groupby="component")
        >>> table.columns.tolist()
        ['group', 'gene', 'lfc', 'low', 'high', 'measured', 'mean']
        """
        self._check_if_trained(warn=False)
        checks.check_whole(1, n_samples=n_samples)
        checks.check_seed(seed)
        adata = self._validate_anndata()
        (first,), (second,) = (resolved({condition: v}, self._setup) for v in (value, other))
        if groupby == "scgmvae":
            self._check_mixture()
        groups = groups_of(adata, groupby=groupby)
        names, codes = groups.cat.categories, groups.cat.codes.to_numpy()
        has_value, has_other = (
            names_of(adata.obs[condition]) == names_of(c.values(adata.obs_names))
            for c in (first, second)
        )
        measured = None
        if first.categories is not None:  # every cell was measured under some value of a number
            measured = self._measured_under([first], seed)
        rng = np.random.default_rng(seed)
        tables = []
        for group, name in enumerate(names):
            rows = np.flatnonzero(codes == group)
            decoded = rows[has_other[rows]] if has_other[rows].any() else rows
            decoded = np.sort(rng.permutation(decoded)[:N_CELLS])
            with_value, with_other = self._decoded_under(
                [first, second], decoded, measured, n_samples, seed
            )
            change = self._on_scale(with_value) - self._on_scale(with_other)
            low, high = np.quantile(change, BETWEEN, axis=0)
            of_means = self._on_scale(with_value.mean(0)) - self._on_scale(with_other.mean(0))
            table = pd.DataFrame(
                {
                    "group": name,
                    "gene": self._setup.gene_names,
                    "lfc": of_means,
                    "low": low,
                    "high": high,
                    "measured": self._measured(adata, rows, has_value, has_other),
                    "mean": with_other.mean(0),
                }
            )
            tables.append(table.sort_values("lfc", key=lambda c: -c.abs(), kind="stable"))
        return pd.concat(tables, ignore_index=True)

    def _on_scale(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Values on the scale on which changes are differences."""
        return np.log2(values + ADDED) if self.module.is_count else values

    @torch.inference_mode()
    def _decoded_under(
        self,
        conditions: Sequence[Condition],
        rows: NDArray[np.integer],
        measured: Tensor | None,
        n_samples: int,
        seed: int,
    ) -> list[NDArray[np.float64]]:
        """Expression under each condition from the same draws of z, (cells, G), per 10,000."""
        self.module.eval()
        loader = self._make_data_loader(self.adata, indices=rows, batch_size=1024)
        parts: list[list[NDArray[np.float64]]] = [[] for _ in conditions]
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            for tensors in loader:
                tensors = {key: values.to(self.device) for key, values in tensors.items()}
                draws = [
                    self.module.inference(**self.module._get_inference_input(tensors))
                    for _ in range(n_samples)
                ]
                if measured is not None:  # q(z) is the same in all draws
                    shift = shift_to_measured(draws[0]["qz"].loc, measured)
                    draws = [draw | {"z": draw["z"] + shift} for draw in draws]
                for condition, part in zip(conditions, parts, strict=True):
                    new = self._under(tensors, [condition])
                    mean = sum(self._density(new, z).mean for z in draws) / n_samples
                    values = mean.double().cpu().numpy()
                    part.append(per_ten_thousand(values, self._kinds))
        return [np.concatenate(part) for part in parts]

    def _measured(
        self,
        adata: AnnData,
        rows: NDArray[np.integer],
        has_value: NDArray[np.bool_],
        has_other: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Change of the means of the cells that were measured under either value, (G,)."""
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        means = []
        for is_side in (has_value, has_other):
            cells = rows[is_side[rows]]
            if len(cells) < FEWEST_MEASURED:
                return np.full(adata.n_vars, np.nan)
            total = np.asarray(read_rows(x, cells).sum(0), dtype=float)
            share = self._measured_share(cells, np.zeros(len(cells), dtype=int), 1)
            n = len(cells) * (np.ones((1, 1)) if share is None else share)
            scaled = per_ten_thousand(total / np.maximum(n, 1), self._kinds)
            means.append(np.where(n < FEWEST_MEASURED, np.nan, scaled)[0])
        return self._on_scale(means[0]) - self._on_scale(means[1])
