"""SCGMVAE: fields of an AnnData in, results out and written back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS
from scvi.data import _constants as scvi_constants
from scvi.model.base import BaseModelClass, VAEMixin

import scgmvae
from scgmvae import checks
from scgmvae.data.datamodules import is_of_data_module, n_obs_of, registry_of
from scgmvae.data.images import image_shape_of, shape_of
from scgmvae.data.minibatches import MinibatchLoader
from scgmvae.distributions.likelihoods import Likelihood
from scgmvae.model.clusters import ComponentsMixin
from scgmvae.model.decoding import DecodingMixin
from scgmvae.model.expression import ExpressionMixin
from scgmvae.model.fields import FieldsMixin
from scgmvae.model.generation import GenerationMixin
from scgmvae.model.mudata import MuDataMixin
from scgmvae.model.posteriors import ResultsMixin
from scgmvae.model.query import QueryMixin
from scgmvae.model.saving import SavingMixin
from scgmvae.model.scvi_settings import from_scvi
from scgmvae.model.seeded import ReadingMixin
from scgmvae.model.showing import ShowingMixin
from scgmvae.model.training import StagedTrainingMixin
from scgmvae.module.cgmvae import CGMVAE, Prior, Widths
from scgmvae.report.page import ReportMixin

__all__ = ["SCGMVAE"]

IMAGE_WIDTHS = (512, 256, 128)
"""Hidden layers for images; one layer of the width for genes blurs them."""


class SCGMVAE(
    ShowingMixin,
    MuDataMixin,
    FieldsMixin,
    StagedTrainingMixin,
    ResultsMixin,
    ComponentsMixin,
    GenerationMixin,
    DecodingMixin,
    QueryMixin,
    ReportMixin,
    SavingMixin,
    ReadingMixin,
    ExpressionMixin,
    VAEMixin,
    BaseModelClass,
):
    r"""c*GMVAE for single-cell data: embedding, clusters and expression of one generative model.

    .. math::
        p(x, z, w, y, d \mid c) = p(w|c)\, p(d)\, p(y|d)\, p(z|w,y,c)\, p(x|z,c)

    Parameters
    ----------
    adata
        Cells × genes. One that was not passed to :meth:`setup_anndata` is set up with defaults:
        the layer ``counts`` if there is one, else ``X``; no batches, labels or covariates. A
        MuData stands for the modality that :meth:`setup_mudata` was told, here and in all methods.
    registry
        Registry of a model without data: that of a data module of scvi-tools, to be trained by
        ``train(datamodule=...)``; also used by :meth:`load`.
    n_components
        K, the number of components. ``None`` takes as many as a graph partition finds, and merges
        those that overlap after training (:meth:`merge_components`).
    n_latent, n_latent_w
        L and W, dimensions of z and w.
    n_hidden, n_layers
        Width (default 128) and number of the hidden layers of the encoder, mirrored in the
        decoder; or in ``n_hidden`` the width of each, (512, 256, 128) for images.
    dropout_rate
        Dropout in the encoder; ``None`` is 0.1, and 0 for images.
    likelihood
        p(x|z,c): ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts, ``"bernoulli"`` for values in
        [0, 1], ``"gaussian"`` for any. ``None`` is ``"nb"``, and ``"bernoulli"`` for images.
    prior
        ``"dirichlet"`` (c*GMVAE), ``"mixture"`` (GMVAE), ``"normal"`` (VAE, no components) or
        ``"none"`` (autoencoder).
    image_shape
        Used by :meth:`load`; of data it is read from ``uns["image_shape"]``: height, width and, if
        any, channels of the images that are the rows of ``X``. Bytes (uint8) of images stand for
        0/255 to 255/255.
    **module_kwargs
        Further settings of :class:`~scgmvae.CGMVAE`: ``encoder``, ``encode_covariates``,
        ``dispersion``, ``gaussian_scale``, ``component_weights``, ``concentration``,
        ``dirichlet_posterior``, ``classifier_input``, ``condition_prior``,
        ``input_dropout_rate``. SCVI's ``gene_likelihood`` is taken for ``likelihood``.

    Raises
    ------
    NotImplementedError
        For minified data, and settings of scvi-tools' SCVI without a meaning here.
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
        adata: AnnData | MuData | None = None,
        registry: dict | None = None,
        *,
        n_components: int | None = None,
        n_latent: int = 10,
        n_latent_w: int = 10,
        n_hidden: Widths | None = None,
        n_layers: int = 1,
        dropout_rate: float | None = None,
        likelihood: Likelihood | None = None,
        prior: Prior = "dirichlet",
        image_shape: Sequence[int] | None = None,
        **module_kwargs: object,
    ):
        likelihood, module_kwargs = from_scvi(likelihood, module_kwargs)
        self.modality_ = self._modality_of(adata)
        if is_of_data_module(registry):
            n_obs = n_obs_of(registry)
            registry, self.label_codes_ = registry_of(type(self), registry)
            checks.check_n_components(n_components, n_obs, len(self._labels_of(registry)))
        if adata is not None:
            adata = self._anndata_of(adata, {"modality_": self.modality_})
            if image_shape is None:
                image_shape = image_shape_of(adata)
        if image_shape is not None:
            image_shape = shape_of(image_shape)
        if likelihood is None:
            likelihood = "nb" if image_shape is None else "bernoulli"
        if n_hidden is None:
            wide = image_shape is not None and n_layers == 1
            n_hidden = IMAGE_WIDTHS if wide else 128
        if dropout_rate is None:
            dropout_rate = 0.1 if image_shape is None else 0.0
        self._module_kwargs = {
            "n_latent": n_latent,
            "n_latent_w": n_latent_w,
            "n_hidden": tuple(n_hidden) if isinstance(n_hidden, Sequence) else n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "likelihood": likelihood,
            "prior": prior,
            "image_shape": image_shape,
            **module_kwargs,
        }
        with checks.unchanged_on_error(adata) if adata is not None else nullcontext():
            if adata is not None:
                self._set_up_if_needed(adata)
            super().__init__(adata, registry)
            self.n_components_ = n_components
            self.mixture_started_ = False
            self.component_clusters_ = None
            self.distance_quantiles_: NDArray[np.float64] | None = None
            self.used_components_: NDArray[np.int64] | None = None
            self.reference_categories_: tuple[int, ...] | None = None
            self.reference_has_condition_prior_ = True
            self.seed_ = 0
            if adata is not None:
                checks.check_n_components(n_components, adata.n_obs, len(self._label_names))
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(0)
                self.module = self._make_module()
            if adata is not None:
                self._check_data(self.adata_manager, likelihood, image_shape)
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

    def _make_data_loader(self, *args: object, **kwargs: object) -> MinibatchLoader:
        """As in scvi-tools, with x in the layout that the module reads faster."""
        kwargs = {"sparse": self.module.takes_sparse} | kwargs
        return super()._make_data_loader(*args, **kwargs)

    def _summary(self) -> str:
        settings = ", ".join(f"{name}: {value}" for name, value in self._module_kwargs.items())
        n_components = self.n_components_ or "yet unknown"
        if self.component_clusters_ is not None:
            n_components = f"{n_components} in {len(self.cluster_names)} clusters"
        return f"SCGMVAE with the following parameters: n_components: {n_components}, {settings}"

    def _rows_shown(self) -> dict[str, str]:
        rows = {}
        known = self._known_categories()
        conditions = [
            f"{name} ({len(known[name])})" if name in known else name
            for name in self._condition_names()
        ]
        if conditions:
            rows["conditions"] = ", ".join(conditions)
        if self._label_names:
            key = self.get_setup_arg("labels_key")
            rows["labels"] = f"{key}: {checks.listed(self._label_names)}"
        if not self.module.has_mixture:
            rows["components"] = f"none, as prior={self.module.prior!r}"
        elif self.n_components_ is None:
            rows["components"] = "not found yet"
        else:
            rows["components"] = str(self.n_components_)
        if self.component_clusters_ is not None:
            rows["clusters"] = str(len(self.cluster_names))
        return rows | {"training": self._training_shown()}

    def _calls_shown(self) -> list[str]:
        is_of_data_module = self.label_codes_ is not None
        if self.adata is None and not is_of_data_module:
            return [f"{type(self).__name__}.load(folder, adata)", "model.predict(adata)"]
        if not self.is_trained_ or self.module.has_mixture and not self.module.mixture_started:
            return [f"model.train({'datamodule=datamodule' if is_of_data_module else ''})"]
        if self.adata is None:
            reads = ["predict"] if self.module.has_mixture else []
            reads.append("get_latent_representation")
            return [f"model.{name}(dataloader=dataloader)" for name in reads]
        of_clusters = ["model.predict()", "model.component_table()"]
        calls = ["model.get_latent_representation()", 'model.report("report.html")']
        return [*(of_clusters if self.module.has_mixture else ()), *calls, "model.save(folder)"]

    # ------------------------------------------------------------------------ writing back

    def annotate(self, adata: AnnData | MuData | None = None, key_added: str = "scgmvae") -> None:
        """Write embedding and clusters into an AnnData.

        ``obsm["X_<key>"]`` mean of z, ``obsm["X_<key>_w"]`` mean of w, ``obsm["<key>_proba"]``
        probabilities of the clusters, ``obs["<key>"]`` the most probable one (categorical),
        ``obs["<key>_fine"]`` the most probable component, once components were merged to clusters
        (without merging clusters are components),
        ``obs["<key>_novelty"]`` how far out the cell lies (:meth:`get_novelty`),
        ``obs["<key>_confidence"]`` the probability of its cluster, which falls to 0 from novelty
        0.99 to 1 because such cells fit none, ``uns["<key>"]`` settings, versions and seed. A
        model without components writes the embedding and the settings alone.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own. Of a MuData the modality
            is written into.
        key_added
            Name of what is written.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        ValueError
            If ``key_added`` is a column that the model was set up with, or ``adata`` a view.

        Examples
        --------
        >>> model.annotate(adata, key_added="mine")
        >>> adata.obsm["X_mine"].shape
        (300, 10)
        """
        self._check_if_trained(warn=False)
        given = self.adata if adata is None else adata
        target = self._anndata_of(given, vars(self), to_write=True)
        checks.check_key_added(self.registry_[scvi_constants._SETUP_ARGS_KEY], key_added)
        self._write(target, self._posteriors(target), key_added)

    def _write(
        self, target: AnnData, posteriors: dict[str, NDArray], key_added: str = "scgmvae"
    ) -> None:
        target.obsm[f"X_{key_added}"] = posteriors["z_loc"]
        if self.module.mixture_started:
            proba = np.exp(self._of_clusters(posteriors["log_proba"]))
            novelty = self._novelty(posteriors)
            target.obsm[f"X_{key_added}_w"] = posteriors["w_loc"]
            target.obsm[f"{key_added}_proba"] = proba
            clusters = pd.Categorical.from_codes(proba.argmax(1), list(self.cluster_names))
            target.obs[key_added] = clusters.remove_unused_categories()
            if self.component_clusters_ is not None:
                component = posteriors["log_proba"].argmax(1)
                fine = pd.Categorical.from_codes(component, list(self.component_names))
                target.obs[f"{key_added}_fine"] = fine.remove_unused_categories()
            target.obs[f"{key_added}_confidence"] = self._confidence(proba, novelty)
            target.obs[f"{key_added}_novelty"] = novelty
        # what an earlier model wrote does not belong to this embedding
        stale = []
        if not self.module.mixture_started:
            for name in (f"X_{key_added}_w", f"{key_added}_proba"):
                target.obsm.pop(name, None)
            stale += [key_added, f"{key_added}_confidence", f"{key_added}_novelty"]
        if self.component_clusters_ is None:
            stale.append(f"{key_added}_fine")
        target.obs = target.obs.drop(columns=stale, errors="ignore")
        # scanpy keeps colours by position: those of an earlier partition would mislead
        for name in (key_added, f"{key_added}_fine"):
            target.uns.pop(f"{name}_colors", None)
        target.uns[key_added] = self._settings()

    def _settings(self) -> dict[str, object]:
        """What made the annotation, in types that h5ad keeps."""
        settings = {
            "params": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self._module_kwargs.items()
                if value is not None
            },
            "seed": self.seed_,
            "versions": {"scgmvae": scgmvae.__version__}
            | {name: version(name) for name in ("scvi-tools", "torch", "anndata")},
        }
        if self.module.mixture_started:
            settings["n_components"] = self.n_components_
            settings["components"] = self.component_names.astype(object)
            settings["clusters"] = self.cluster_names.astype(object)
        return settings
