"""SCGMVAE: fields of an AnnData in, results out and written back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from itertools import count, islice
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS
from scvi.data import _constants as scvi_constants
from scvi.model.base import BaseModelClass, RNASeqMixin, VAEMixin
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    StudentT,
)

import scgmvae
from scgmvae import checks
from scgmvae.fields import FieldsMixin
from scgmvae.likelihoods import Likelihood
from scgmvae.loading import MinibatchLoader
from scgmvae.module import CGMVAE, Prior
from scgmvae.training import StagedTrainingMixin

__all__ = ["SCGMVAE"]

READ_BATCH_SIZE = 1024
"""Cells per minibatch where posteriors are read out: no gradients, so larger than in training."""


class SCGMVAE(FieldsMixin, StagedTrainingMixin, RNASeqMixin, VAEMixin, BaseModelClass):
    r"""c*GMVAE for single-cell data: embedding, clusters and expression of one generative model.

    .. math::
        p(x, z, w, y, d \mid c) = p(w|c)\, p(d)\, p(y|d)\, p(z|w,y,c)\, p(x|z,c)

    Parameters
    ----------
    adata
        Cells × genes. One that was not passed to :meth:`setup_anndata` is set up with defaults:
        the layer ``counts`` if there is one, else ``X``; no batches, labels or covariates.
    registry
        Registry of a model without data; used by :meth:`load`.
    n_components
        K, the number of components. ``None`` takes as many as a graph partition finds.
    n_latent, n_latent_w
        L and W, dimensions of z and w.
    n_hidden, n_layers
        Width and number of the hidden layers of encoder and decoder.
    dropout_rate
        Dropout in the encoder.
    likelihood
        p(x|z,c): ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts, ``"bernoulli"`` for values in
        [0, 1], ``"gaussian"`` for any.
    prior
        ``"dirichlet"`` (c*GMVAE), ``"mixture"`` (GMVAE) or ``"normal"`` (VAE, no components).
    **module_kwargs
        Further settings of :class:`~scgmvae.CGMVAE`: ``dispersion``, ``gaussian_scale``,
        ``component_weights``, ``concentration``, ``dirichlet_posterior``, ``classifier_input``,
        ``condition_prior``.

    Raises
    ------
    ValueError
        If the data does not suit the likelihood, or ``n_components`` the data. ``adata`` is then
        as it was before.

    References
    ----------
    Kolb 2023, "c*GMVAE", thesis, Berlin; Dilokthanakul et al. 2016 (GMVAE); Lopez et al. 2018
    (scVI).

    Examples
    --------
    >>> import scgmvae
    >>> adata = scgmvae.datasets.synthetic_counts(300, 50, n_components=3, seed=0)
    >>> model = scgmvae.SCGMVAE(adata, n_components=3)
    >>> model.train(max_epochs=5, pretrain_epochs=5, enable_progress_bar=False)
    >>> adata.obsm["X_scgmvae"].shape, adata.obs["scgmvae"].nunique()
    ((300, 10), 3)
    """

    _module_cls = CGMVAE
    _data_loader_cls = MinibatchLoader

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        n_components: int | None = None,
        n_latent: int = 10,
        n_latent_w: int = 10,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        likelihood: Likelihood = "nb",
        prior: Prior = "dirichlet",
        **module_kwargs: object,
    ):
        self._module_kwargs = {
            "n_latent": n_latent,
            "n_latent_w": n_latent_w,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "likelihood": likelihood,
            "prior": prior,
            **module_kwargs,
        }
        with checks.unchanged_on_error(adata) if adata is not None else nullcontext():
            if adata is not None:
                self._set_up_if_needed(adata)
            super().__init__(adata, registry)
            self.n_components_ = n_components
            self.mixture_started_ = False
            self.seed_ = 0
            if adata is not None:
                checks.check_n_components(n_components, adata.n_obs, len(self._label_names))
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(0)
                self.module = self._make_module()
            if adata is not None:
                self._check_data(self.adata_manager, likelihood)
        self._model_summary_string = self._summary()
        self.init_params_ = self._get_init_params(locals())

    def _make_module(self) -> CGMVAE:
        """The module with fresh weights, which come from torch's random state."""
        return self._module_cls(
            self.summary_stats.n_vars,
            n_batch=self.summary_stats.n_batch,
            n_cats_per_cov=self._state_of(REGISTRY_KEYS.CAT_COVS_KEY).get("n_cats_per_key", ()),
            n_continuous_cov=self.summary_stats.get("n_extra_continuous_covs", 0),
            n_labels=len(self._label_names),
            n_components=self.n_components_ or 1,
            use_size_factor=bool(self._field(REGISTRY_KEYS.SIZE_FACTOR_KEY)["data_registry"]),
            **self._module_kwargs,
        )

    def _summary(self) -> str:
        settings = ", ".join(f"{name}: {value}" for name, value in self._module_kwargs.items())
        n_components = self.n_components_ or "yet unknown"
        return f"SCGMVAE with the following parameters: n_components: {n_components}, {settings}"

    # ------------------------------------------------------------------------ results

    @property
    def component_names(self) -> NDArray[np.str_]:
        """Names of the K components: label names where they carry labels, else numbers.

        Numbers that are themselves labels are left out.
        """
        labels = self._label_names
        numbers = (str(k) for k in count(len(labels)) if str(k) not in labels)
        n_free = max(0, (self.n_components_ or 0) - len(labels))
        return np.array([*labels, *islice(numbers, n_free)])

    @torch.inference_mode()
    def _posteriors(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Parameters of the cells' posteriors, in one pass.

        Returns
        -------
        ``z_loc``, ``z_var`` (n, L) and, once the mixture is started, ``w_loc``, ``w_var`` (n, W)
        and ``proba`` (n, K), q(y|z,c) at the mean of z.
        """
        if dataloader is None:
            adata = self._validate_anndata(adata)
            dataloader = self._make_data_loader(
                adata, indices=indices, batch_size=batch_size or READ_BATCH_SIZE
            )
        self.module.eval()
        parts: dict[str, list[Tensor]] = {}
        for tensors in dataloader:
            outputs = self.module.inference(
                **self.module._get_inference_input(tensors), sample=False
            )
            values = {"z_loc": outputs["qz"].loc, "z_var": outputs["qz"].variance}
            if self.module.mixture_started:
                values |= {
                    "w_loc": outputs["qw"].loc,
                    "w_var": outputs["qw"].variance,
                    "proba": outputs["y_logits"].softmax(-1),
                }
            for name, value in values.items():
                parts.setdefault(name, []).append(value.cpu())
        if not parts:
            raise ValueError("indices must select at least one cell, but it selects none.")
        return {name: torch.cat(values).numpy() for name, values in parts.items()}

    def _check_mixture(self) -> None:
        """Raise ``RuntimeError`` where there are no trained components to speak of."""
        self._check_if_trained(warn=False)
        if not self.module.mixture_started:
            why = (
                "its prior is 'normal', which has none"
                if self.module.prior == "normal"
                else "training ended before they were started; call train() to go on"
            )
            raise RuntimeError(f"The model has no components: {why}.")

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
        *,
        which: Literal["z", "w"] = "z",
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
            Posterior means, or else one draw from the posteriors.
        batch_size
            Cells at a time.
        return_dist
            Return means and variances.
        dataloader
            Minibatches to use in place of ``adata``.
        which
            ``"z"``, or ``"w"``, the latent that places the components.
        seed
            Of the draw.

        Returns
        -------
        Array ``(n, L)`` (``(n, W)`` for w), or the pair of means and variances.

        Raises
        ------
        RuntimeError
            If the model is untrained, or has no w.
        """
        self._check_if_trained(warn=False)
        if which not in ("z", "w"):
            raise ValueError(f"which must be 'z' or 'w', but it is {which!r}.")
        if which == "w":
            self._check_mixture()
        posteriors = self._posteriors(adata, indices, batch_size, dataloader)
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
        indices: Sequence[int] | None = None,
        soft: bool = False,
        batch_size: int | None = None,
    ) -> NDArray[np.str_] | pd.DataFrame:
        """Component of each cell, by q(y|z,c) at the posterior mean of z.

        Parameters
        ----------
        adata
            Data with the genes of the model, seen in training or not; ``None`` is the model's own.
        indices
            Rows to use.
        soft
            Return probabilities in place of the most probable component.
        batch_size
            Cells at a time.

        Returns
        -------
        Component names ``(n,)``, or a DataFrame ``(n, K)`` of probabilities, cells × components.

        Raises
        ------
        RuntimeError
            If the model has no trained components.
        """
        self._check_mixture()
        adata = self._validate_anndata(adata)
        proba = self._posteriors(adata, indices, batch_size)["proba"]
        if not soft:
            return self.component_names[proba.argmax(1)]
        obs_names = adata.obs_names if indices is None else adata.obs_names[indices]
        return pd.DataFrame(proba, index=obs_names, columns=self.component_names)

    @torch.inference_mode()
    def get_elbo_terms(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Terms of the negative ELBO of each cell.

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
        DataFrame, cells × terms, in nats; the ELBO of a cell is minus the sum of its row. The
        terms are estimated with one sample of z and w.
        """
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        parts = []
        for tensors in self._make_data_loader(adata, indices=indices, batch_size=batch_size):
            _, _, output = self.module(tensors)
            terms = output.reconstruction_loss | output.kl_local
            parts.append(pd.DataFrame({name: term.cpu() for name, term in terms.items()}))
        table = pd.concat(parts, ignore_index=True)
        table.index = adata.obs_names if indices is None else adata.obs_names[indices]
        return table

    def component_table(self, adata: AnnData | None = None) -> pd.DataFrame:
        r"""How the components are used.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.

        Returns
        -------
        DataFrame with a row per component: ``n_cells`` assigned, their ``share``, the model's
        ``weight`` π, ``mean_confidence`` (probability of the component in its cells),
        ``entropy`` −s log s of the share in nats, whose sum is the entropy of use (log K where
        all are used alike), and ``is_empty``.
        """
        self._check_mixture()
        proba = self._posteriors(adata)["proba"]
        return self._component_table(proba)

    def _component_table(self, proba: NDArray[np.float32]) -> pd.DataFrame:
        component = proba.argmax(1)
        n_cells = np.bincount(component, minlength=proba.shape[1])
        share = n_cells / len(proba)
        confidence = pd.Series(proba.max(1)).groupby(component).mean()
        return pd.DataFrame(
            {
                "n_cells": n_cells,
                "share": share,
                "weight": self.module.log_weights.detach().exp().cpu().numpy(),
                "mean_confidence": confidence.reindex(range(proba.shape[1])).to_numpy(),
                "entropy": -share * np.log(np.where(share > 0, share, 1.0)),
                "is_empty": n_cells == 0,
            },
            index=pd.Index(self.component_names, name="component"),
        )

    @torch.inference_mode()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: NDArray[np.integer] | None = None,
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
        """
        self._check_if_trained(warn=False)
        posteriors = self._posteriors(adata, indices, batch_size)
        loc = torch.as_tensor(posteriors["z_loc"], device=self.device)
        scale = torch.as_tensor(posteriors["z_var"], device=self.device).sqrt()
        component = Normal(loc, scale) if dof is None else StudentT(dof, loc, scale)
        weights = Categorical(logits=torch.zeros(len(loc), device=self.device))
        return MixtureSameFamily(weights, Independent(component, 1))

    def get_importance_weights(self, *args: object, **kwargs: object) -> NDArray[np.floating]:
        """Not available: scvi-tools' weights assume the prior N(0, I) of z.

        Parameters
        ----------
        *args, **kwargs
            As in scvi-tools.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            "weights='importance' assumes a standard normal prior of z, which this model does not "
            "have. Use weights='uniform'."
        )

    def get_likelihood_parameters(self, *args: object, **kwargs: object) -> dict[str, NDArray]:
        """As in scvi-tools, for the likelihoods ``nb`` and ``zinb``.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.base.RNASeqMixin.get_likelihood_parameters`.

        Raises
        ------
        NotImplementedError
            For a likelihood without dispersion.
        """
        self._check_dispersion()
        return super().get_likelihood_parameters(*args, **kwargs)

    def get_feature_correlation_matrix(self, *args: object, **kwargs: object) -> pd.DataFrame:
        """As in scvi-tools, for the likelihoods ``nb`` and ``zinb``.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.base.RNASeqMixin.get_feature_correlation_matrix`.

        Raises
        ------
        NotImplementedError
            For a likelihood without dispersion.
        """
        self._check_dispersion()
        return super().get_feature_correlation_matrix(*args, **kwargs)

    def _check_dispersion(self) -> None:
        likelihood = self._module_kwargs["likelihood"]
        if likelihood not in ("nb", "zinb"):
            raise NotImplementedError(
                "This method reads the inverse dispersion of the likelihoods 'nb' and 'zinb', "
                f"which {likelihood!r} does not have."
            )

    # ------------------------------------------------------------------------ writing back

    def annotate(self, adata: AnnData | None = None, key_added: str = "scgmvae") -> None:
        """Write embedding and clusters into an AnnData.

        ``obsm["X_<key>"]`` mean of z, ``obsm["X_<key>_w"]`` mean of w, ``obsm["<key>_proba"]``
        probabilities of the components, ``obs["<key>"]`` the most probable one (categorical),
        ``obs["<key>_confidence"]`` its probability, ``uns["<key>"]`` settings, versions and seed.
        A model without components writes the embedding and the settings alone.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        key_added
            Name of what is written.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        ValueError
            If ``key_added`` is a column that the model was set up with, or ``adata`` a view.
        """
        self._check_if_trained(warn=False)
        target = self.adata if adata is None else adata
        checks.check_not_view(target)
        checks.check_key_added(key_added, self.registry_[scvi_constants._SETUP_ARGS_KEY])
        posteriors = self._posteriors(adata)
        target.obsm[f"X_{key_added}"] = posteriors["z_loc"]
        if self.module.mixture_started:
            proba = posteriors["proba"]
            target.obsm[f"X_{key_added}_w"] = posteriors["w_loc"]
            target.obsm[f"{key_added}_proba"] = proba
            clusters = pd.Categorical.from_codes(proba.argmax(1), list(self.component_names))
            target.obs[key_added] = clusters.remove_unused_categories()
            target.obs[f"{key_added}_confidence"] = proba.max(1)
        else:
            # what an earlier model wrote does not belong to this embedding
            for name in (f"X_{key_added}_w", f"{key_added}_proba"):
                target.obsm.pop(name, None)
            stale = [key_added, f"{key_added}_confidence"]
            target.obs = target.obs.drop(columns=stale, errors="ignore")
        # scanpy keeps colours by position: those of an earlier partition would mislead
        target.uns.pop(f"{key_added}_colors", None)
        target.uns[key_added] = self._settings()

    def _settings(self) -> dict[str, object]:
        """What made the annotation, in types that h5ad keeps."""
        settings = {
            "params": {
                name: value for name, value in self._module_kwargs.items() if value is not None
            },
            "seed": self.seed_,
            "versions": {"scgmvae": scgmvae.__version__}
            | {name: version(name) for name in ("scvi-tools", "torch", "anndata")},
        }
        if self.module.mixture_started:
            settings["n_components"] = self.n_components_
            settings["components"] = self.component_names.astype(object)
        return settings
