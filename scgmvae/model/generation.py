"""Cells that were not measured: measured cells under other conditions, and new cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
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
from scgmvae.distributions.changed_counts import ChangedCounts, carried_over
from scgmvae.model.decoding import DecodingMixin
from scgmvae.module.cgmvae import rows_of_component
from scgmvae.nn.sparse import dense

if TYPE_CHECKING:
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray
    from torch.distributions import Distribution

    from scgmvae.data.minibatches import MinibatchLoader

__all__ = ["GenerationMixin"]

N_NEAREST = 15
"""Number of cells under a condition, the nearest ones in z, at whose mean its effect is read."""
N_MEASURED = 20_000
"""Largest number of cells under a condition among which the nearest ones are looked for."""


class Predictive(Protocol):
    """Distribution of the values of a minibatch."""

    @property
    def mean(self) -> Tensor:
        """Expected values, ``(n, G)``."""

    def sample(self) -> Tensor:
        """Drawn values, ``(n, G)``."""


Predict = Callable[[dict[str, Tensor], dict[str, Tensor]], Predictive]
"""Function of a minibatch, as it is and under new conditions."""


def shift_to_measured(z: Tensor, measured: Tensor) -> Tensor:
    """From the z of cells to where a condition was measured: the mean of the 15 nearest, (n, L).

    Where a type was not measured under a condition, the decoder confuses it with others that were.

    Parameters
    ----------
    z
        Means of z of the cells, ``(n, L)``.
    measured
        Means of z of the cells that were measured under the condition, ``(cells, L)``, 15 or more.
    """
    nearest = torch.cdist(z, measured).topk(N_NEAREST, largest=False).indices
    return measured[nearest].mean(1) - z


class GenerationMixin(DecodingMixin):
    """Counterfactuals and samples."""

    def predict_counterfactual(
        self,
        adata: AnnData | None = None,
        conditions: Mapping[str, object] | None = None,
        *,
        indices: ArrayLike | None = None,
        via: Literal["x", "z", "w"] | None = None,
        n_samples: int = 1,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> AnnData | MuData:
        r"""Predict cells under other conditions.

        .. math::
            \text{via x:}\quad z \sim q(z|x,c), \quad x' \sim p(x'|x,z,c,c') \qquad
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
            What is kept of a cell. ``"x"`` keeps its counts and changes them by the effect of the
            condition: what p(x|z,c') and p(x|z,c) expect where z is that of the nearest cells
            that were measured under the new conditions. ``"z"`` keeps what z holds of it. ``"w"``
            keeps its component y (its label, where it has one, else the most probable component
            at the mean of z) and w, and lets the component's mean under the new conditions place
            z; with ``condition_prior="standard"``, the default, that mean is a function of w
            alone. ``None`` is ``"x"`` for counts of one modality, and else ``"z"``.
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
        counts drawn from the predictive distribution at the cell's own library size, or via x near
        to it (CSR; dense for likelihoods that are not of counts). ``layers["rate"]``: their
        expectation. ``layers["rate_sd"]``, with two draws or more: its standard deviation over the
        draws, which is how far the model's knowledge of the cell leaves it open. ``obs``: as
        before, with the new conditions in their columns and the former values in
        ``"<column>_from"``.

        Raises
        ------
        RuntimeError
            If the model is untrained, or ``via="w"`` and it has no components, or ``via="x"`` and
            it has no data.
        ValueError
            If a column is no registered condition, a value is not known to the model, or
            ``via="x"`` and the likelihood is not of counts.

        Notes
        -----
        A decoder that has never seen a type under a condition confuses it there with others: its
        markers fade. Via x the effect is therefore read where the model was trained under the
        condition, as a change of log(1 + counts per 10,000). The z of a cell is moved to the mean
        of the 15 nearest training cells that have the new values of all categorical conditions
        that are changed; where there are fewer it stays. Under its own conditions a cell has its
        own counts. The standard deviation says nothing of whether the effect is right for a type
        that was not measured under the condition.

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
        if via is None:
            via = "x" if self.module.is_count and self.modalities_ is None else "z"
        checks.check_choices(via=(via, ("x", "z", "w")))
        checks.check_whole(1, n_samples=n_samples)
        checks.check_seed(seed)
        self._check_way(via)
        if not conditions:
            raise ValueError(
                "conditions must name a registered condition and its new value, for example "
                f"{{'condition': 'stimulated'}}. {registered_conditions(self._setup)}"
            )
        new_conditions = resolved(conditions, self._setup)
        adata = self._validate_anndata(adata)
        rows = validation.rows_of(adata, indices)
        loader = self._make_data_loader(adata, indices=rows, batch_size=batch_size)
        measured = self._measured_under(new_conditions, seed) if via == "x" else None

        def predict(tensors: dict[str, Tensor], new: dict[str, Tensor]) -> Predictive:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            if via == "x":
                return self._changed_counts(tensors, new, outputs, measured)
            if via == "w":
                component = self.module.component_proba(outputs["qz"].loc, tensors).argmax(-1)
                p_z = self.module.component_density(outputs["w"], new)
                outputs["z"] = rows_of_component(p_z.loc, component)
            return self._density(new, outputs)

        generated = self._generate(loader, new_conditions, predict, n_samples, seed, adata.var)
        obs = adata.obs.iloc[rows][validation.columns_of_user(adata.obs)]
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

        def predict(tensors: dict[str, Tensor], new: dict[str, Tensor]) -> Predictive:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            outputs["z"] = self.module.sample_prior(tensors[COMPONENT_KEY], new)
            return self._density(new, outputs)

        generated = self._generate(loader, given, predict, 1, seed, self.adata.var)
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
            has_value = self._has_value(condition)
            if (wanted & has_value).any():
                wanted &= has_value
        return np.random.default_rng(seed).choice(np.flatnonzero(wanted), size=n)

    def _has_value(self, condition: Condition) -> NDArray[np.bool_]:
        """Which cells of the data have the value of a condition; all, of a continuous one."""
        if condition.categories is None:
            return np.ones(self.adata.n_obs, dtype=bool)
        value = name_of(condition.categories[int(condition.code)])
        return names_of(self.adata.obs[condition.column]) == value

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

    # --------------------------------------------------------------- counts of cells, changed

    def _check_way(self, via: str) -> None:
        """Raise an error if the model lacks what this kind of counterfactual needs."""
        if via == "w":
            self._check_mixture()
        if via == "x" and self.modalities_ is not None:
            raise ValueError(
                "via='x' changes the counts of one modality, but the model has several: "
                f"{checks.listed(list(self.modalities_))}. Use via='z'."
            )
        if via == "x" and not self.module.is_count:
            raise ValueError(
                "via='x' changes the counts of a cell, but the likelihood of the model is "
                f"{self.module.gene_likelihood!r}. Use via='z'."
            )
        if via == "x" and self.adata is None:
            raise RuntimeError(
                "via='x' reads effects at cells that were measured under the condition, but the "
                "model has no data. Load it with some, or use via='z'."
            )

    def _measured_under(self, conditions: Sequence[Condition], seed: int) -> Tensor | None:
        """Means of z of training cells under conditions, (cells, L).

        ``None`` with fewer than 15 of them, to which all others would be drawn.
        """
        has_all = np.logical_and.reduce([self._has_value(one) for one in conditions])
        rows = np.flatnonzero(has_all)
        if len(rows) < N_NEAREST:
            return None
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:N_MEASURED])
        return torch.from_numpy(self._posteriors(indices=rows)["z_loc"]).to(self.device)

    def _changed_counts(
        self,
        tensors: dict[str, Tensor],
        new: dict[str, Tensor],
        outputs: dict[str, Any],
        measured: Tensor | None,
    ) -> ChangedCounts:
        """The cells' counts, changed by the effect of new conditions near their z."""
        before = self._density(tensors, outputs)
        if measured is not None:
            shift = shift_to_measured(outputs["qz"].loc, measured)
            outputs = outputs | {"z": outputs["z"] + shift}
        here, there = (self._density(c, outputs).mean for c in (tensors, new))
        after = carried_over(before.mean, here, there)
        x = dense(tensors[REGISTRY_KEYS.X_KEY])
        return ChangedCounts(x, before, after, tensors.get(OBSERVED_KEY))

    # ------------------------------------------------------------------------- z, c → cells

    @torch.inference_mode()
    def _generate(
        self,
        loader: MinibatchLoader,
        conditions: Sequence[Condition],
        predict: Predict,
        n_samples: int,
        seed: int,
        var: pd.DataFrame,
    ) -> AnnData:
        """Cells that are predicted under conditions; obs is left empty.

        The counts are drawn at the first of S draws of the latents, which is a draw from the
        predictive distribution, and the rate is the mean over all.
        """
        self.module.eval()
        drawn: list[Any] = []
        layers: dict[str, list[NDArray[np.float32]]] = {"rate": []}
        if n_samples > 1:
            layers["rate_sd"] = []
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            for tensors in loader:
                tensors = {key: values.to(self.device) for key, values in tensors.items()}
                new = self._under(tensors, conditions)
                first = predict(tensors, new)
                draws = chain([first], (predict(tensors, new) for _ in range(n_samples - 1)))
                moments = _mean_and_sd(draw.mean for draw in draws)
                for part, values in zip(layers.values(), moments, strict=False):
                    part.append(values.float().cpu().numpy())
                x = first.sample().float().cpu().numpy()
                drawn.append(sparse.csr_matrix(x) if self.module.is_count else x)
        image_shape = self.module.image_shape
        stack = partial(sparse.vstack, format="csr") if self.module.is_count else np.concatenate
        return AnnData(
            X=stack(drawn),
            layers={name: np.concatenate(parts) for name, parts in layers.items()},
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


def _mean_and_sd(draws: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over draws, of which one is kept at a time.

    In this form, unlike in that with the mean of squares, equal draws differ by exactly 0.
    """
    draws, n = iter(draws), 1
    mean = next(draws)
    squares = torch.zeros_like(mean)
    for n, draw in enumerate(draws, start=2):
        step = draw - mean
        mean = mean + step / n
        squares = squares + step * (draw - mean)
    return mean, (squares / max(n - 1, 1)).sqrt()
