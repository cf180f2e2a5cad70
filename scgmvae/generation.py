"""Cells that were not measured: the same ones under other conditions, and new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import _constants as scvi_constants
from torch import Tensor

from scgmvae import checks
from scgmvae.genes import OBSERVED_KEY

__all__ = ["GenerationMixin"]

Place = Callable[[dict[str, Tensor], dict[str, Tensor], dict[str, object]], Tensor]
"""Where z comes from: minibatch, minibatch under the new conditions, inference outputs → z."""


class GenerationMixin:
    """Counterfactuals and samples."""

    def predict_counterfactual(
        self,
        adata: AnnData | None = None,
        conditions: Mapping[str, object] | None = None,
        *,
        indices: Sequence[int] | None = None,
        via: Literal["z", "w"] = "z",
        n_samples: int = 1,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> AnnData:
        r"""The same cells under other conditions.

        .. math::
            \text{via z:}\quad z \sim q(z|x,c), \quad x' \sim p(x|z,c') \qquad
            \text{via w:}\quad w \sim q(w|x,c), \quad z = \mu_y(w,c'), \quad x' \sim p(x|z,c')

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        conditions
            obs column of a registered condition → its value in all predicted cells. Columns that
            are left out keep each cell's own value.
        indices
            Rows to use.
        via
            ``"z"`` keeps all that z holds of a cell. ``"w"`` keeps its component y (its label,
            where it has one, else the most probable component) and w, and lets the component's
            mean under the new conditions place z.
        n_samples
            S, draws from the posterior of each cell, over which the expected counts are averaged.
        batch_size
            Cells at a time.
        seed
            Of the draws.

        Returns
        -------
        AnnData of the same cells and genes. ``X``: counts drawn from the predictive distribution
        at the cell's own library size (CSR; dense for likelihoods that are none of counts).
        ``layers["rate"]``: their expectation. ``obs``: as before, with the new conditions in their
        columns and the former values in ``"<column>_from"``.

        Raises
        ------
        RuntimeError
            If the model is untrained, or ``via="w"`` and it has no components.
        ValueError
            If a column is no registered condition, or a value is not known to the model.

        References
        ----------
        Kolb 2023, "c*GMVAE" (via w); Lotfollahi et al. 2019, "scGen predicts single-cell
        perturbation responses" (the task).
        """
        self._check_if_trained(warn=False)
        checks.check_choices(via=(via, ("z", "w")))
        checks.check_whole(1, n_samples=n_samples)
        if via == "w":
            self._check_mixture()
        if not conditions:
            raise ValueError(
                "conditions must name a registered condition and its new value, for example "
                f"{{'condition': 'stimulated'}}. {self._registered_conditions()}"
            )
        self._check_conditions(conditions)
        adata = self._validate_anndata(adata)
        rows = np.arange(adata.n_obs)[slice(None) if indices is None else indices]
        place = self._place_by_component if via == "w" else _keep_z
        generated = self._generate(adata, rows, conditions, place, n_samples, batch_size, seed)
        obs = adata.obs.iloc[rows]
        is_internal = obs.columns.str.startswith("_scvi")
        obs = obs.loc[:, ~is_internal]
        former = {f"{column}_from": obs[column] for column in conditions}
        generated.obs = obs.assign(**self._condition_columns(conditions, obs.index), **former)
        return generated

    def sample(
        self,
        n: int,
        component: str | int | None = None,
        conditions: Mapping[str, object] | None = None,
        *,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> AnnData:
        r"""New cells from the generative model.

        .. math:: w \sim p(w|c), \quad z \sim p(z|w,y,c), \quad x \sim p(x|z,c)

        What the model has no density for, library size and conditions, is taken from cells of the
        training data drawn at random; so is y, where it is not given, and then comes with its
        frequency there. With a component or conditions the cells are drawn among those that have
        them, as far as there are any.

        Parameters
        ----------
        n
            Number of cells.
        component
            Label or name of a component (:attr:`component_names`), or its number; ``None`` draws
            each cell's.
        conditions
            obs column of a registered condition → its value; ``None`` draws each cell's.
        batch_size
            Cells at a time.
        seed
            Of the draws.

        Returns
        -------
        AnnData of n cells and the model's genes. ``X``: drawn counts (CSR; dense for likelihoods
        that are none of counts). ``layers["rate"]``: their expectation. ``obs``: ``"component"``
        and the registered conditions.

        Raises
        ------
        RuntimeError
            If the model is untrained, or a component is asked of one without.
        ValueError
            If the component is unknown or has no cells, or a condition is unknown.
        """
        self._check_if_trained(warn=False)
        checks.check_whole(1, n=n)
        conditions = conditions or {}
        self._check_conditions(conditions)
        has_components = self.module.mixture_started
        components = None
        wanted = np.ones(self.adata.n_obs, dtype=bool)
        if component is not None:
            self._check_mixture()
        if has_components:
            components = self._components_of_cells()
        if component is not None:
            wanted = components == self._component_number(component, components)
        for column in conditions.keys() & self._known_categories().keys():
            has_value = self.adata.obs[column].astype(str) == str(conditions[column])
            if (wanted & has_value).any():
                wanted &= has_value.to_numpy()
        rows = np.random.default_rng(seed).choice(np.flatnonzero(wanted), size=n)
        own = None if components is None else torch.from_numpy(components[rows])
        place = self._place_by_prior(own)
        generated = self._generate(self.adata, rows, conditions, place, 1, batch_size, seed)
        index = pd.Index([f"generated_{i}" for i in range(n)])
        obs = {} if own is None else {"component": self._categorical_components(components[rows])}
        for column in self._condition_names():
            obs[column] = self.adata.obs[column].iloc[rows].set_axis(index)
        obs |= self._condition_columns(conditions, index)
        generated.obs = pd.DataFrame(obs, index=index)
        return generated

    # ---------------------------------------------------------------------- where z comes from

    def _place_by_component(
        self, tensors: dict[str, Tensor], new: dict[str, Tensor], outputs: dict[str, object]
    ) -> Tensor:
        """The component's mean under the new conditions at each cell's own w, (..., n, L)."""
        y_logits = self.module.classify(outputs["qz"].loc, tensors)
        q_y, _, _ = self.module._observe_labels(tensors, y_logits, None)
        p_z = self.module.component_density(outputs["w"], new)
        return _of_component(p_z.loc, q_y.argmax(-1))

    def _place_by_prior(self, components: Tensor | None) -> Place:
        """Draws from p(w|c) p(z|w,y,c) for the given components of successive cells, (n,)."""
        n_done = 0

        def place(tensors, new, outputs):
            nonlocal n_done
            if components is None:
                return torch.randn_like(outputs["z"])
            p_w = self.module.generative(**self.module._get_generative_input(new, outputs))["pw"]
            p_z = self.module.component_density(p_w.sample(), new)
            n = len(outputs["z"])
            k = components[n_done : n_done + n].to(p_z.loc.device)
            n_done += n
            return torch.normal(_of_component(p_z.loc, k), _of_component(p_z.scale, k))

        return place

    # ------------------------------------------------------------------------- z, c → cells

    @torch.inference_mode()
    def _generate(
        self,
        adata: AnnData,
        rows: NDArray[np.integer],
        conditions: Mapping[str, object],
        place: Place,
        n_samples: int,
        batch_size: int,
        seed: int,
    ) -> AnnData:
        """Cells decoded under conditions from where ``place`` puts them; obs is left empty."""
        if not len(rows):
            raise ValueError("indices must select at least one cell, but it selects none.")
        self.module.eval()
        drawn, rates = [], []
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            for tensors in self._make_data_loader(adata, indices=rows, batch_size=batch_size):
                tensors = {key: values.to(self.device) for key, values in tensors.items()}
                new = self._under_conditions(tensors, conditions)
                inputs = self.module._get_inference_input(tensors)
                outputs = self.module.inference(**inputs, n_samples=n_samples)
                outputs["z"] = place(tensors, new, outputs)
                inputs = self.module._get_generative_input(new, outputs)
                p_x = self.module.generative(**inputs)["px"]
                x, rate = p_x.sample(), p_x.mean
                if n_samples > 1:
                    x, rate = x[0], rate.mean(0)
                x = x.float().cpu().numpy()
                drawn.append(sparse.csr_matrix(x) if self.module.is_count else x)
                rates.append(rate.float().cpu().numpy())
        stack = partial(sparse.vstack, format="csr") if self.module.is_count else np.concatenate
        return AnnData(
            X=stack(drawn),
            layers={"rate": np.concatenate(rates)},
            var=adata.var.drop(columns=OBSERVED_KEY, errors="ignore"),
        )

    # --------------------------------------------------------------------------- conditions

    def _condition_names(self) -> list[str]:
        """Columns of obs that hold registered conditions."""
        setup = self.registry_[scvi_constants._SETUP_ARGS_KEY]
        return [*self._known_categories(), *(setup["continuous_covariate_keys"] or ())]

    def _registered_conditions(self) -> str:
        names = self._condition_names()
        return f"Registered are: {checks.listed(names)}." if names else "None is registered."

    def _check_conditions(self, conditions: Mapping[str, object]) -> None:
        known = self._known_categories()
        for column, value in conditions.items():
            if column not in self._condition_names():
                raise ValueError(
                    f"{column!r} is no condition that the model was set up with. "
                    f"{self._registered_conditions()}"
                )
            if column in known:
                checks.check_known_value(column, value, known[column])
            elif not np.isfinite(pd.to_numeric(value, errors="coerce")):
                raise ValueError(
                    f"{column!r} is a continuous condition, so its value must be a finite number, "
                    f"but it is {value!r}."
                )

    def _under_conditions(
        self, tensors: dict[str, Tensor], conditions: Mapping[str, object]
    ) -> dict[str, Tensor]:
        """The minibatch with the codes of the given conditions in place of its own."""
        setup = self.registry_[scvi_constants._SETUP_ARGS_KEY]
        places = [(setup["batch_key"], REGISTRY_KEYS.BATCH_KEY, 0)]
        for key, columns in (
            (REGISTRY_KEYS.CAT_COVS_KEY, setup["categorical_covariate_keys"]),
            (REGISTRY_KEYS.CONT_COVS_KEY, setup["continuous_covariate_keys"]),
        ):
            places += [(column, key, i) for i, column in enumerate(columns or ())]
        known = self._known_categories()
        new = dict(tensors)
        for column, key, i in places:
            if column in conditions:
                value = conditions[column]
                if key != REGISTRY_KEYS.CONT_COVS_KEY:
                    value = [str(name) for name in known[column]].index(str(value))
                new[key] = new[key].clone()
                new[key][:, i] = value
        return new

    def _condition_columns(
        self, conditions: Mapping[str, object], index: pd.Index
    ) -> dict[str, pd.Series]:
        """Columns for obs that hold the given conditions."""
        known = self._known_categories()
        columns = {}
        for column, value in conditions.items():
            values = pd.Series([value] * len(index), index=index)
            if column in known:
                names = [str(name) for name in known[column]]
                codes = [names.index(str(value))] * len(index)
                values = pd.Series(pd.Categorical.from_codes(codes, known[column]), index=index)
            columns[column] = values
        return columns

    # --------------------------------------------------------------------------- components

    def _components_of_cells(self) -> NDArray[np.int64]:
        """Component of each cell of the model's data: its label's, or else the most probable."""
        components = self._posteriors()["log_proba"].argmax(1)
        labels = self._label_codes()
        return np.where(labels >= 0, labels, components)

    def _component_number(self, component: str | int, components: NDArray[np.int64]) -> int:
        names = self.component_names
        used = names[np.unique(components)]
        is_number = isinstance(component, int | np.integer) and not isinstance(component, bool)
        if is_number and 0 <= component < len(names):
            number = int(component)
        elif isinstance(component, str) and component in names:
            number = int(np.flatnonzero(names == component)[0])
        else:
            raise ValueError(
                f"component must be a number below {len(names)} or one of the names "
                f"{checks.listed(names)}, but it is {component!r}."
            )
        if not (components == number).any():
            raise ValueError(
                f"component must have cells in the training data, but {str(names[number])!r} is "
                "empty. "
                f"Those with cells are: {checks.listed(used)}."
            )
        return number

    def _categorical_components(self, components: NDArray[np.int64]) -> pd.Categorical:
        return pd.Categorical.from_codes(components, list(self.component_names))


def _keep_z(tensors, new, outputs) -> Tensor:
    return outputs["z"]


def _of_component(values: Tensor, component: Tensor) -> Tensor:
    """Rows of the given components, (..., n, K, L) and (n,) → (..., n, L)."""
    index = component.view(-1, 1, 1).expand(*values.shape[:-2], 1, values.shape[-1])
    return values.gather(-2, index).squeeze(-2)
