"""Results read out of a model: embedding, clusters, labels, posteriors."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from scvi import REGISTRY_KEYS
from scvi.model.base import VAEMixin
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    StudentT,
)
from torch.quasirandom import SobolEngine

from scgmvae import checks
from scgmvae.clustering.names import Clustering
from scgmvae.data import validation
from scgmvae.data.minibatches import stacked
from scgmvae.data.registry import label_codes
from scgmvae.model.mudata import MuDataMixin
from scgmvae.model.seeded import seeded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

__all__ = ["PosteriorsMixin"]

READ_BATCH_SIZE = 1024
"""Cells per minibatch where posteriors are read out: no gradients, so larger than in training."""

N_POINTS = 16
"""Number of points of q(z|x,c) over which probabilities of components are averaged."""


class PosteriorsMixin(MuDataMixin, VAEMixin):
    """Results of a trained model for cells: embedding, clusters, labels."""

    n_components_: int | None
    """K, or ``None`` as long as it is not known."""
    component_clusters_: NDArray[np.int64] | None
    """Cluster of each component, (K,), −1 where it is dropped; ``None`` before any merging."""

    get_reconstruction_error = seeded(VAEMixin.get_reconstruction_error)

    @property
    def _clustering(self) -> Clustering:
        """Components, labels and clusters by name."""
        labels = self._setup.label_names
        return Clustering(self.n_components_ or 0, labels, self.component_clusters_)

    @property
    def component_names(self) -> NDArray[np.str_]:
        """Names of the K components: label names where they carry labels, else numbers.

        Components that were merged have their cluster's name and a letter: cluster ``"3"`` has
        ``"3a"`` and ``"3b"``. Those that were dropped are ``"dropped_a"`` and so on. A number is
        left out if it is itself a label, or if a label looks like the name of a part of it, as
        the label ``"3b"`` does for 3.
        """
        return self._clustering.component_names

    @property
    def cluster_names(self) -> NDArray[np.str_]:
        """Names of the clusters: labels first, then numbers, the largest cluster first.

        Without any merging the clusters are the components.
        """
        return self._clustering.cluster_names

    # ------------------------------------------------------------------- cells → posteriors

    @torch.inference_mode()
    def _posteriors(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
        given: str | Sequence[str] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Parameters of the cells' posteriors, in one pass.

        Of a joint model ``given`` names the modalities that are seen, and cells that have none of
        them get NaN.

        Returns
        -------
        ``z_loc``, ``z_var`` (n, L) and, once the mixture is started, ``w_loc``, ``w_var`` (n, W)
        and ``log_proba`` (n, K) of q(y|z,c) averaged over q(z|x,c).
        """
        minibatches = self._minibatches_to_read(adata, indices, batch_size, dataloader, given)
        self.module.eval()
        noise = self._noise()
        return self._all_of(self._posteriors_of(tensors, noise) for tensors in minibatches)

    @staticmethod
    def _all_of(parts: Iterable[dict[str, Tensor]]) -> dict[str, NDArray]:
        """What was read of minibatches, put together; ``ValueError`` if there were none."""
        found = stacked(parts)
        if not found:
            raise ValueError(
                "A dataloader must bring cells, but the dataloader brought no minibatch. Give it "
                "anew: an iterator can be read only once."
            )
        return found

    def _minibatches_to_read(
        self,
        adata: AnnData | None,
        indices: ArrayLike | None,
        batch_size: int | None,
        dataloader: Iterator[dict[str, Tensor]] | None,
        given: str | Sequence[str] | None = None,
    ) -> Iterable[dict[str, Tensor]]:
        """Minibatches of rows of data, or of a dataloader."""
        features = self._given_features(given)
        if dataloader is not None:
            if not (adata is None and indices is None):
                raise ValueError(
                    "A dataloader brings its cells with it. Give either that, or adata and "
                    "indices."
                )
            return self._minibatches(dataloader)
        adata = self._validate_anndata(adata)
        loader = self._make_data_loader(
            adata,
            indices=validation.rows_of(adata, indices),
            batch_size=READ_BATCH_SIZE if batch_size is None else batch_size,
        )
        if features is not None:
            loader.show_only(features)
        return loader

    def _posteriors_of(self, tensors: dict[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Parameters of the posteriors of one minibatch."""
        return self._read_of(tensors, noise, *self._inferred(tensors))

    def _inferred(self, tensors: dict[str, Tensor]) -> tuple[dict, dict]:
        """Inputs and outputs of inference for a minibatch, at the means of the latents."""
        inputs = self.module._get_inference_input(tensors)
        return inputs, self.module.inference(**inputs, sample=False)

    def _read_of(
        self, tensors: dict[str, Tensor], noise: Tensor, inputs: dict, outputs: dict
    ) -> dict[str, Tensor]:
        """Parameters of the posteriors of one minibatch, given what was inferred of it."""
        z, w = outputs["z"], outputs["w"]
        if self.modalities_ is not None:
            z = z.masked_fill(self.module.sees_nothing(inputs["observed"]), torch.nan)
        posteriors = {"z_loc": z, "z_var": outputs["qz"].variance}
        if not self.module.mixture_started:
            return posteriors
        log_proba = self.module.classify(z + outputs["qz"].scale * noise, tensors)
        log_proba = torch.logsumexp(log_proba.log_softmax(-1), 0) - math.log(len(noise))
        return posteriors | {
            "w_loc": w,
            "w_var": outputs["qw"].variance,
            "log_proba": log_proba,
        }

    def _noise(self) -> Tensor:
        """Points that stand for N(0, I) of z, (S, 1, L), the same for every cell."""
        n_latent = self.module.n_latent
        uniform = SobolEngine(n_latent, scramble=True, seed=0).draw(N_POINTS)
        normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6).double())
        return normal.float().unsqueeze(1).to(self.device)

    def _check_mixture(self) -> None:
        """Raise ``RuntimeError`` if there are no trained components."""
        self._check_if_trained(warn=False)
        if not self.module.mixture_started:
            why = (
                f"its prior is {self.module.prior!r}, which has none"
                if not self.module.has_mixture
                else "training ended before they were started; call train() to go on"
            )
            raise RuntimeError(f"The model has no components: {why}.")

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        give_mean: bool = True,
        mc_samples: int | None = None,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
        *,
        which: Literal["z", "w"] = "z",
        modality: str | Sequence[str] | None = None,
        seed: int = 0,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Latent representation of the cells.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        indices
            Rows to use.
        give_mean
            Whether to return the posterior means, or one draw from the posteriors.
        mc_samples
            Without effect, as in scvi-tools for a Gaussian z: its mean needs no samples.
        batch_size
            Cells at a time.
        return_dist
            Whether to return means and variances.
        dataloader
            Minibatches to use in place of ``adata``.
        which
            ``"z"``, or ``"w"``, the latent that shifts the components.
        modality
            Of a model of several modalities: the one, or those, by which z is told. Cells without
            them get NaN. ``None`` is all that a cell has.
        seed
            Seed of the random draw.

        Returns
        -------
        Array ``(n, L)`` (``(n, W)`` for w), or the pair of means and variances.

        Raises
        ------
        RuntimeError
            If the model is untrained, or has no w.
        ValueError
            If ``adata`` or ``indices`` are given as well as ``dataloader``, or there is no such
            modality.

        Examples
        --------
        >>> model.get_latent_representation().shape
        (300, 10)
        >>> mean, variance = model.get_latent_representation(return_dist=True, which="w")
        """
        self._check_if_trained(warn=False)
        if which not in ("z", "w"):
            raise ValueError(f"which must be 'z' or 'w', but it is {which!r}.")
        checks.check_seed(seed)
        if which == "w":
            self._check_mixture()
        posteriors = self._posteriors(adata, indices, batch_size, dataloader, modality)
        loc, variance = posteriors[f"{which}_loc"], posteriors[f"{which}_var"]
        if return_dist:
            return loc, variance
        if give_mean:
            return loc
        noise = np.random.default_rng(seed).standard_normal(loc.shape, dtype=np.float32)
        return loc + np.sqrt(variance) * noise

    def predict(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        soft: bool = False,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
        *,
        components: bool = False,
        keep_labels: bool = False,
    ) -> NDArray[np.str_] | pd.DataFrame:
        r"""Label of each cell, or its cluster where there are no labels.

        .. math::
            p(l|x) = q(l) / \textstyle\sum_{l'} q(l'), \qquad
            q(k) = \mathbb{E}_{q(z|x,c)}[q(y{=}k|z,c)]

        with the sum over the components that carry labels. The others stand for types that no
        label names: their cells get the nearest label, and their own component with
        ``components=True``. The probability of a cluster is the sum over its components; where
        some were dropped, the clusters' sum to 1 without them.

        Parameters
        ----------
        adata
            Data with the genes of the model, seen in training or not; ``None`` is the model's own.
        indices
            Rows to use.
        soft
            Whether to return probabilities in place of the most probable name.
        batch_size
            Cells at a time.
        dataloader
            Minibatches to use in place of ``adata``.
        components
            Whether to predict among all K components: the most probable one of the cell's cluster.
            A model without labels does so anyway, as long as none of them were merged.
        keep_labels
            Whether cells that have a label, in the obs column that the model was set up with, keep
            it, with a probability of 1.

        Returns
        -------
        Names ``(n,)``, or a DataFrame of probabilities, cells × names of the labels, the clusters
        (:attr:`cluster_names`) or the components (:attr:`component_names`).

        Raises
        ------
        RuntimeError
            If the model has no trained components.
        ValueError
            If ``adata`` or ``indices`` are given as well as ``dataloader``, or ``keep_labels`` is
            asked for where there are no labels to keep.

        Notes
        -----
        The expectation over q(z|x,c) is taken at 16 quasi-random points, the same for every cell.
        It makes the probabilities less extreme than they are at the mean of z alone.

        Examples
        --------
        >>> names = model.predict()  # one for each cell
        >>> model.predict(soft=True).shape  # probabilities
        (300, 3)
        """
        self._check_mixture()
        if keep_labels and (components or dataloader is not None or not self._setup.label_names):
            raise ValueError(
                "keep_labels=True keeps the labels in adata.obs, so it needs a model that was set "
                "up with a labels_key, and neither components=True nor a dataloader."
            )
        if dataloader is None:
            adata = self._validate_anndata(adata)
            indices = validation.rows_of(adata, indices)
        logits = self._posteriors(adata, indices, batch_size, dataloader)["log_proba"]
        names = self.component_names
        if components and not soft:
            return names[self._clustering.component_of(logits)]
        if not components:
            logits, names = self._clustering.log_proba(logits), self.cluster_names
            # labels are the first clusters
            names = names[: len(self._setup.label_names) or None]
        logits = logits[:, : len(names)]
        if keep_labels:
            manager = self.get_anndata_manager(adata, required=True)
            known = label_codes(manager)[np.asarray(indices)]
            is_known = known >= 0
            logits[is_known] = np.where(known[is_known, None] == np.arange(len(names)), 0, -np.inf)
        if not soft:
            return names[logits.argmax(1)]
        index = adata.obs_names[indices] if dataloader is None else None
        return pd.DataFrame(softmax(logits, axis=1), index=index, columns=names)

    def differential_abundance(
        self, adata: AnnData | None = None, sample_key: str | None = None, **kwargs: object
    ) -> None:
        """Log density of every sample at each cell's mean of z, in ``obsm["da_log_probs"]``.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        sample_key
            obs column of samples.
        **kwargs
            As in :meth:`scvi.model.base.VAEMixin.differential_abundance`.

        Raises
        ------
        KeyError
            If there is no such column.
        ValueError
            If no column is named, or it has missing values.
        """
        if sample_key is None:
            raise ValueError("sample_key must name the obs column of the samples to compare.")
        adata = self._validate_anndata(adata)
        validation.check_columns(adata, sample_key=sample_key)
        abundance = seeded(VAEMixin.differential_abundance)
        abundance(self, adata, sample_key=sample_key, **kwargs)

    @torch.inference_mode()
    def get_batch_representation(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Point of each cell's batch in the embedding of batches.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        indices
            Rows to use.
        batch_size
            Cells at a time.

        Returns
        -------
        Array ``(n, embedding_dim)``.

        Raises
        ------
        KeyError
            If the model was not made with ``batch_representation="embedding"``.
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        if REGISTRY_KEYS.BATCH_KEY not in self.module.embeddings_dict:
            raise KeyError(
                "The model has no embedding of batches. Make it with "
                "batch_representation='embedding'."
            )
        embed = partial(self.module.compute_embedding, REGISTRY_KEYS.BATCH_KEY)
        minibatches = self._minibatches_to_read(adata, indices, batch_size, None)
        codes = (tensors[REGISTRY_KEYS.BATCH_KEY].long() for tensors in minibatches)
        return stacked({"batch": embed(batch)} for batch in codes)["batch"]

    @torch.inference_mode()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> Distribution:
        """Mixture of the cells' posteriors of z.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        indices
            Rows to use.
        batch_size
            Cells at a time.
        dof
            Degrees of freedom of Student's t; ``None`` takes Gaussians.

        Notes
        -----
        scvi-tools 1.4.2 puts the variance where the scale belongs; this does not.

        Examples
        --------
        >>> model.get_aggregated_posterior().sample((5,)).shape
        torch.Size([5, 10])
        """
        self._check_if_trained(warn=False)
        if self.module.prior == "none":
            raise NotImplementedError(
                "An autoencoder (prior='none') has a code for each cell and no posterior. Use "
                "get_latent_representation()."
            )
        if dof is not None:
            checks.check_positive(dof=dof)
        posteriors = self._posteriors(adata, indices, batch_size)
        loc = torch.as_tensor(posteriors["z_loc"], device=self.device)
        scale = torch.as_tensor(posteriors["z_var"], device=self.device).sqrt()
        component = Normal(loc, scale) if dof is None else StudentT(dof, loc, scale)
        weights = Categorical(logits=torch.zeros(len(loc), device=self.device))
        return MixtureSameFamily(weights, Independent(component, 1))
