"""Cells that were not measured: measured cells under other conditions, and new cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from scgmvae import checks
from scgmvae.data import validation
from scgmvae.data.categories import name_of, names_of
from scgmvae.data.conditions import (
    Condition,
    columns_of,
    registered_conditions,
    resolved,
)
from scgmvae.data.keys import COMPONENT_KEY, IMAGE_SHAPE_KEY, OBSERVED_KEY
from scgmvae.data.modalities import parted
from scgmvae.data.registry import label_codes
from scgmvae.model.decoding import DecodingMixin
from scgmvae.module.cgmvae import rows_of_component

if TYPE_CHECKING:
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray
    from torch.distributions import Distribution

    from scgmvae.data.minibatches import MinibatchLoader

__all__ = ["GenerationMixin"]

Place = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Any]]
"""Function of a minibatch, as it is and under new conditions: outputs of inference to decode."""


class GenerationMixin(DecodingMixin):
    """Counterfactuals and samples."""

    def predict_counterfactual(
        self,
        adata: AnnData | None = None,
        conditions: Mapping[str, object] | None = None,
        *,
        indices: ArrayLike | None = None,
        via: Literal["z", "w"] = "z",
        n_samples: int = 1,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> AnnData | MuData:
        r"""Predict cells under other conditions.

        .. math::
            \text{via z:}\quad z \sim q(z|x,c), \quad x' \sim p(x|z,c') \qquad
            \text{via w:}\quad w \sim q(w|x,c), \quad z = \mu_y(w,c'), \quad x' \sim p(x|z,c')

        With the default ``condition_prior="standard"`` :math:`\mu_y` is a function of w alone.

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
            where it has one, else the most probable component at the mean of z) and w, and lets
            the component's mean under the new conditions place z.
        n_samples
            S, number of draws from the posterior of each cell, over which the expected counts are
            averaged. The counts are drawn at the first of these draws.
        batch_size
            Cells at a time.
        seed
            Seed of the random draws.

        Returns
        -------
        AnnData of the same cells and genes, or MuData of a model of several modalities. ``X``:
        counts drawn from the predictive distribution at the cell's own library size (CSR; dense
        for likelihoods that are not of counts). ``layers["rate"]``: their expectation. ``obs``: as
        before, with the new conditions in their columns and the former values in
        ``"<column>_from"``.

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

        Examples
        --------
        >>> other = model.predict_counterfactual(adata, {"batch": "batch_1"})
        >>> other.obs["batch"].unique().tolist(), other.layers["rate"].shape
        (['batch_1'], (300, 50))
        """
        self._check_if_trained(warn=False)
        checks.check_choices(via=(via, ("z", "w")))
        checks.check_whole(1, n_samples=n_samples)
        checks.check_seed(seed)
        if via == "w":
            self._check_mixture()
        if not conditions:
            raise ValueError(
                "conditions must name a registered condition and its new value, for example "
                f"{{'condition': 'stimulated'}}. {registered_conditions(self._setup)}"
            )
        new_conditions = resolved(conditions, self._setup)
        adata = self._validate_anndata(adata)
        rows = validation.rows_of(adata, indices)
        loader = self._make_data_loader(adata, indices=rows, batch_size=batch_size)

        def place(tensors: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Any]:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            if via == "w":
                component = self.module.component_of(outputs["qz"].loc, tensors)
                p_z = self.module.component_density(outputs["w"], new)
                outputs["z"] = rows_of_component(p_z.loc, component)
            return outputs

        generated = self._generate(loader, new_conditions, place, n_samples, seed, adata.var)
        obs = adata.obs.iloc[rows]
        obs = obs.loc[:, ~obs.columns.str.startswith("_scvi")]
        former = {f"{column}_from": obs[column] for column in conditions}
        generated.obs = obs.assign(**columns_of(new_conditions, obs.index), **former)
        return self._parted(generated)

    def sample(
        self,
        n: int,
        component: str | int | None = None,
        conditions: Mapping[str, object] | None = None,
        *,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> AnnData | MuData:
        r"""New cells from the generative model.

        .. math:: w \sim p(w|c), \quad z \sim p(z|w,y,c), \quad x \sim p(x|z,c)

        The model has no density of library sizes and conditions, so they are taken from randomly
        drawn cells of the training data. If no component is given, y is taken from these cells as
        well, so it has the frequency that it has there. If a component or conditions are given,
        the cells are drawn among those that have them, as far as there are any.

        Parameters
        ----------
        n
            Number of cells.
        component
            Label, or name of a cluster or component (:attr:`cluster_names`,
            :attr:`component_names`), where 3 stands for ``"3"``; ``None`` draws the component of
            each cell.
        conditions
            obs column of a registered condition → its value; ``None`` draws the conditions of each
            cell.
        batch_size
            Cells at a time.
        seed
            Seed of the random draws.

        Returns
        -------
        AnnData of n cells and the model's genes, or MuData of a model of several modalities.
        ``X``: drawn counts (CSR; dense for likelihoods that are not of counts).
        ``layers["rate"]``: their expectation. ``obs``: ``"component"`` and the registered
        conditions.

        Raises
        ------
        RuntimeError
            If the model is untrained, or a component is given and the model has none.
        NotImplementedError
            For an autoencoder, which has no density of z.
        ValueError
            If the component is unknown or has no cells, or a condition is unknown.

        Examples
        --------
        >>> model.sample(20, conditions={"batch": "batch_0"}).shape
        (20, 50)
        """
        self._check_if_trained(warn=False)
        checks.check_whole(1, n=n)
        checks.check_seed(seed)
        if self.module.prior == "none":
            raise NotImplementedError(
                "An autoencoder (prior='none') has no density of z to draw from. Use "
                "prior='normal' for a VAE."
            )
        if self.adata is None:
            raise RuntimeError(
                "The model has no data to draw library sizes from: load it with some."
            )
        self._validate_anndata()
        given = resolved(conditions or {}, self._setup)
        components = self._components_to_draw(component)
        rows = self._rows_to_draw(n, component, components, given, seed)
        loader = self._make_data_loader(self.adata, indices=rows, batch_size=batch_size)
        loader.extra[COMPONENT_KEY] = torch.from_numpy(components)

        def place(tensors: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Any]:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            outputs["z"] = self.module.sample_prior(tensors[COMPONENT_KEY], new)
            return outputs

        generated = self._generate(loader, given, place, 1, seed, self.adata.var)
        index = pd.Index([f"generated_{i}" for i in range(n)])
        obs = {}
        if self.module.mixture_started:
            names = list(self.component_names)
            obs["component"] = pd.Categorical.from_codes(components[rows], names)
        for column in self._setup.condition_names:
            obs[column] = self.adata.obs[column].iloc[rows].set_axis(index)
        generated.obs = pd.DataFrame(obs | columns_of(given, index), index=index)
        return self._parted(generated)

    def _parted(self, generated: AnnData) -> AnnData | MuData:
        """Generated cells as they are given: of several modalities as a MuData."""
        return generated if self.modalities_ is None else parted(generated)

    # ----------------------------------------------------------- which cells to start from

    def _components_to_draw(self, component: str | int | None) -> NDArray[np.int64]:
        """Component of each cell of the data: its label's, or else the most probable, (n,)."""
        if component is not None:
            self._check_mixture()
        if not self.module.mixture_started:
            return np.zeros(self.adata.n_obs, dtype=np.int64)
        components = self._clustering.component_of(self._posteriors()["log_proba"])
        labels = label_codes(self.adata_manager)
        return np.where(labels >= 0, labels, components)

    def _rows_to_draw(
        self,
        n: int,
        component: str | int | None,
        components: NDArray[np.int64],
        conditions: Sequence[Condition],
        seed: int,
    ) -> NDArray[np.int64]:
        """Rows of n cells, drawn with replacement among those of a component and conditions.

        A generated cell takes its library size and its other conditions from such a real cell.
        """
        wanted = np.ones(self.adata.n_obs, dtype=bool)
        if component is not None:
            wanted = np.isin(components, self._components_meant(component, components))
        for condition in conditions:
            if condition.categories is not None:
                value = name_of(condition.categories[int(condition.code)])
                has_value = names_of(self.adata.obs[condition.column]) == value
                if (wanted & has_value).any():
                    wanted &= has_value
        return np.random.default_rng(seed).choice(np.flatnonzero(wanted), size=n)

    def _components_meant(
        self, component: str | int, components: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Numbers of the components that have a name, or the name of their cluster."""
        names, cluster_names = self.component_names, self.cluster_names
        used, name = names[np.unique(components)], name_of(component)
        if name in names:
            numbers = np.flatnonzero(names == name)
        elif name in cluster_names:
            numbers = np.flatnonzero(self.component_clusters_ == list(cluster_names).index(name))
        else:
            merged = [str(other) for other in cluster_names if other not in names]
            raise ValueError(
                f"component must be a cluster or component of the model, but it is {component!r}. "
                f"Its names are: {checks.listed([*merged, *names])}."
            )
        if not np.isin(components, numbers).any():
            raise ValueError(
                f"component must have cells in the training data, but {name!r} is empty. Those "
                f"with cells are: {checks.listed(list(used))}."
            )
        return numbers

    # ------------------------------------------------------------------------- z, c → cells

    @torch.inference_mode()
    def _generate(
        self,
        loader: MinibatchLoader,
        conditions: Sequence[Condition],
        place: Place,
        n_samples: int,
        seed: int,
        var: pd.DataFrame,
    ) -> AnnData:
        """Cells decoded under conditions at the z that ``place`` returns; obs is left empty.

        The counts are drawn at the first of the S placements, which is a draw from the predictive
        distribution, and the rate is the mean over all.
        """
        self.module.eval()
        drawn, rates = [], []
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            for tensors in loader:
                tensors = {key: values.to(self.device) for key, values in tensors.items()}
                new = self._under(tensors, conditions)
                first = self._density(new, place(tensors, new))
                rate = first.mean / n_samples
                for _ in range(n_samples - 1):
                    rate = rate + self._density(new, place(tensors, new)).mean / n_samples
                x = first.sample().float().cpu().numpy()
                drawn.append(sparse.csr_matrix(x) if self.module.is_count else x)
                rates.append(rate.float().cpu().numpy())
        image_shape = self.module.image_shape
        stack = partial(sparse.vstack, format="csr") if self.module.is_count else np.concatenate
        return AnnData(
            X=stack(drawn),
            layers={"rate": np.concatenate(rates)},
            var=var.drop(columns=OBSERVED_KEY, errors="ignore"),
            uns={} if image_shape is None else {IMAGE_SHAPE_KEY: np.array(image_shape)},
        )

    @staticmethod
    def _under(tensors: dict[str, Tensor], conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """The minibatch under new conditions."""
        new = dict(tensors)
        for condition in conditions:
            new[condition.key] = new[condition.key].clone()
            new[condition.key][:, condition.position] = condition.code
        return new

    def _density(self, tensors: dict[str, Tensor], outputs: dict[str, Any]) -> Distribution:
        """p(x|z,c) at the latents of outputs of inference, under the conditions of a minibatch."""
        inputs = self.module._get_generative_input(tensors, outputs)
        return self.module.generative(**inputs)["px"]
