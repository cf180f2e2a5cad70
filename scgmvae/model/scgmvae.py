"""SCGMVAE, the model that users work with: its construction, its summary and its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from scgmvae.checks import listed
from scgmvae.data import validation
from scgmvae.data.datamodules import n_obs_of, registry_of, registry_of_sizes
from scgmvae.data.images import image_shape_of, shape_of
from scgmvae.data.keys import MODALITIES_KEY
from scgmvae.data.matrices import row_sums
from scgmvae.data.modalities import modalities_of, shown_proteins
from scgmvae.distributions.families import COUNT_LIKELIHOODS, JOINT
from scgmvae.model.condition_tests import ConditionTestsMixin
from scgmvae.model.effects import EffectsMixin
from scgmvae.model.fitted import Fitted
from scgmvae.model.importance import ImportanceMixin
from scgmvae.model.integration import IntegrationMixin
from scgmvae.model.marker_tests import MarkerTestsMixin
from scgmvae.model.markers import MarkersMixin
from scgmvae.model.modalities import ModalitiesMixin
from scgmvae.model.query import QueryMixin
from scgmvae.model.scvi_settings import from_scvi
from scgmvae.module.cgmvae import CGMVAE, Prior, Widths
from scgmvae.module.joint import JointCGMVAE
from scgmvae.train.recipe import COUNTS, recipe_for
from scgmvae.train.request import check_length_is_known

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from anndata import AnnData
    from matplotlib.figure import Figure
    from mudata import MuData

    from scgmvae.data.minibatches import MinibatchLoader
    from scgmvae.distributions.families import Likelihood

__all__ = ["SCGMVAE"]


class SCGMVAE(
    MarkerTestsMixin,
    EffectsMixin,
    ModalitiesMixin,
    QueryMixin,
    ImportanceMixin,
    MarkersMixin,
    ConditionTestsMixin,
    IntegrationMixin,
):
    r"""c*GMVAE for single-cell data: embedding, clusters and expression by one generative model.

    .. math::
        p(x, z, w, y, d \mid c) = p(w|c)\, p(d)\, p(y|d)\, p(z|w,y,c)\, p(x|z,c)

    Parameters
    ----------
    adata
        Cells × genes. Data that :meth:`setup_anndata` has not set up are set up with defaults:
        the layer ``counts`` if there is one, else ``X``; no batches, labels or covariates. A
        MuData stands for the modality that :meth:`setup_mudata` named, here and in all methods.
    registry
        Registry of a model without data: that of a data module of scvi-tools, to be trained by
        ``train(datamodule=...)``; also used by :meth:`load`. Without data and registry the model
        is made when it is trained on a data module.
    n_components
        K, the number of components. ``None`` finds it by tests of splits of the cells
        (:meth:`split_table`), of which strong ones make clusters (:meth:`cut`).
    n_latent, n_latent_w
        L and W, dimensions of z and w.
    n_hidden, n_layers
        Width (default 128) and number of the hidden layers of the encoder, mirrored in the
        decoder; or in ``n_hidden`` the width of each, (512, 256, 128) for images.
    dropout_rate
        Dropout in the encoder; ``None`` is 0.1, 0.3 for several modalities, and 0 for images.
    likelihood
        p(x|z,c): ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts, ``"bernoulli"`` for values in
        [0, 1], ``"gaussian"`` for any. ``None`` is ``"nb"``, and ``"bernoulli"`` for images.
    prior
        ``"dirichlet"`` (c*GMVAE), ``"mixture"`` (GMVAE), ``"normal"`` (VAE, no components) or
        ``"none"`` (autoencoder).
    image_shape
        Used by :meth:`load`; with data it is read from ``uns["image_shape"]``: height, width and,
        if any, channels of the images that are the rows of ``X``. Bytes (uint8) of images stand
        for 0/255 to 255/255.
    **module_kwargs
        Further settings of :class:`~scgmvae.CGMVAE`: ``encoder``, ``encode_covariates``,
        ``dispersion``, ``gaussian_scale`` (a number fixes the standard deviation; ``"gene"``,
        ``"shared"`` and ``"network"`` learn one per gene, one in all, and one per value),
        ``component_weights``, ``concentration``, ``batch_representation``,
        ``batch_embedding_kwargs``, ``use_observed_lib_size``, ``dirichlet_posterior``,
        ``classifier_input``, ``condition_prior``, ``input_dropout_rate``; of several modalities
        ``modality_weights`` and ``hidden_share`` (:class:`~scgmvae.module.joint.JointCGMVAE`).
        SCVI's ``gene_likelihood`` is taken for ``likelihood``.

    Raises
    ------
    NotImplementedError
        For minified data, and for settings of scvi-tools' SCVI without a meaning here.
    ValueError
        If the data does not suit the likelihood, or ``n_components`` does not suit the data.
        ``adata`` is then as it was before.

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
    module: CGMVAE

    def __init__(
        self,
        adata: AnnData | MuData | None = None,
        registry: Mapping[str, Any] | None = None,
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
        **module_kwargs: Any,
    ):
        if adata is None and registry is None:
            self._wait_for_training(locals())
            return
        likelihood, module_kwargs = from_scvi(likelihood, module_kwargs)
        self.modality_ = self._modality_of(adata)
        registry = self._register_data_module(registry, n_components)
        passed = adata
        if adata is not None:
            adata = self._anndata_of(adata, {"modality_": self.modality_})
            if image_shape is None:
                image_shape = image_shape_of(adata)
            likelihood, module_kwargs = self._of_modalities(adata, likelihood, module_kwargs)
        if image_shape is not None:
            image_shape = shape_of(image_shape)
        recipe = recipe_for(image_shape, len(module_kwargs.get("modalities", [1])))
        likelihood = recipe.likelihood if likelihood is None else likelihood
        dropout_rate = recipe.dropout_rate if dropout_rate is None else dropout_rate
        if n_hidden is None:
            n_hidden = recipe.n_hidden if n_layers == 1 else COUNTS.n_hidden
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
        with self._unchanged_on_error(adata):
            if adata is not None:
                self._set_up_if_needed(adata)
            super().__init__(adata, registry)
            self.n_components_asked = n_components
            self.reference_categories_ = None
            self.reference_has_condition_prior_ = True
            Fitted(n_components).give_to(self)
            if adata is not None:
                n_labels = len(self._setup.label_names)
                validation.check_n_components(n_components, adata.n_obs, n_labels)
            self.module = self._first_module()
            if adata is not None:
                self._check_data(self.adata_manager, likelihood, image_shape)
                self._given = self._written_beside(passed, adata, adata)
            if adata is not None and self.modalities_ is not None:
                self.shown_proteins_ = shown_proteins(adata, self._setup.arguments["batch_key"])
        self._model_summary_string = self._summary()
        self.init_params_ = self._get_init_params(locals())

    def _of_modalities(
        self, adata: AnnData, likelihood: Likelihood | None, module_kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Likelihood and settings of the module; those of several modalities are in the data."""
        modalities = modalities_of(adata)
        if modalities is None:
            for name in module_kwargs.keys() & {"hidden_share", "modality_weights"}:
                raise ValueError(
                    f"{name} is for several modalities, but the data are of one. Leave it out, or "
                    "set a MuData up with setup_mudata(mdata, modalities=...)."
                )
            return likelihood, module_kwargs
        if likelihood not in (None, JOINT):
            raise ValueError(
                "Each modality has the likelihood that setup_mudata(modalities=...) gave it, but "
                f"likelihood={likelihood!r} is given as well. Leave it out."
            )
        layers = adata.uns[MODALITIES_KEY]["layer"]
        self.modalities_ = {
            modality.name: {
                "likelihood": modality.likelihood,
                "n_features": modality.n_features,
                "layer": str(layer) or None,
            }
            for modality, layer in zip(modalities, layers, strict=True)
        }
        return JOINT, module_kwargs | {"modalities": [list(modality) for modality in modalities]}

    def _wait_for_training(self, arguments: dict[str, Any]) -> None:
        """Keep the settings of a model whose data ``train(datamodule=...)`` will bring."""
        settings = {name: arguments[name] for name in SCGMVAE.__init__.__kwdefaults__}
        settings |= arguments["module_kwargs"]
        shape = settings["image_shape"]
        n_genes = 2 if shape is None else math.prod(shape_of(shape))
        n_cells = max(n_genes, settings["n_components"] or 1)  # as many as it takes
        SCGMVAE(None, registry_of_sizes(n_genes, 1, n_cells), **settings)  # checks the settings
        self._settings_to_come = settings
        self._module_init_on_train, self.module, self._adata = True, None, None
        self.is_trained_, self.history_ = False, None
        self._model_summary_string = "SCGMVAE that is made when it is trained on a data module"

    def __getattr__(self, name: str) -> Any:
        # reached for what is not there, also where a property looks for it in vain
        if vars(self).get("module") is None and "_settings_to_come" in vars(self):
            what = "registry" if name in ("_setup", "registry_") else name
            raise AttributeError(
                f"{type(self).__name__}() has no {what!r} before it is made, which "
                "train(datamodule=...) does."
            )
        return super().__getattribute__(name)  # raises the error anew

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the model to a device.

        Parameters
        ----------
        device
            As in :meth:`scvi.model.base.BaseModelClass.to_device`.

        Raises
        ------
        AttributeError
            If the model waits for the data module that it is to be trained on.
        """
        if self.module is None:
            self.__getattr__("device")
        super().to_device(device)

    def _make_for(self, datamodule: object, max_epochs: int | None) -> None:
        """Make a model that was waiting for the data module that it is to be trained on."""
        if datamodule is None:
            raise AttributeError(
                "The model was made without data, so it can be trained on a data module alone: "
                "train(datamodule=...). For an AnnData make SCGMVAE(adata)."
            )
        registry = registry_of(datamodule)
        check_length_is_known(max_epochs, n_obs_of(registry))
        SCGMVAE.__init__(self, None, registry, **self._settings_to_come)

    def _make_module(self) -> CGMVAE:
        """The module with fresh weights, which come from torch's random state."""
        setup = self._setup
        is_joint = self._module_kwargs["likelihood"] == JOINT
        return (JointCGMVAE if is_joint else self._module_cls)(
            self.summary_stats.n_vars,
            n_batch=self.summary_stats.n_batch,
            n_cats_per_cov=setup.state(REGISTRY_KEYS.CAT_COVS_KEY).get("n_cats_per_key", ()),
            n_continuous_cov=self.summary_stats.get("n_extra_continuous_covs", 0),
            n_labels=len(setup.label_names),
            n_components=self.n_components_ or 1,
            use_size_factor=setup.has_size_factors,
            **self._library_prior(),
            **self._module_kwargs,
        )

    def _library_prior(self) -> dict[str, Any]:
        """Mean and variance of the log library sizes of each batch, if sizes are latent.

        Without data they are those of no batch, until saved ones take their place.
        """
        if self._module_kwargs.get("use_observed_lib_size", True):
            return {}
        n_batch = self.summary_stats.n_batch
        means, variances = np.zeros((1, n_batch)), np.ones((1, n_batch))
        if self.adata is not None and self._module_kwargs["likelihood"] in COUNT_LIKELIHOODS:
            batches = self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY).ravel()
            x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
            sizes = row_sums(x)
            has_counts = sizes > 0  # a cell without counts has no log library size
            log_sizes = np.log(sizes[has_counts])
            # batches without cells, as in the sample of a data module, are like the others
            means[:], variances[:] = log_sizes.mean(), log_sizes.var()
            for batch, size in pd.Series(log_sizes).groupby(batches[has_counts]):
                means[0, int(batch)], variances[0, int(batch)] = size.mean(), size.var(ddof=0)
        return {"library_log_means": means, "library_log_vars": variances}

    def _make_data_loader(self, *args: Any, **kwargs: Any) -> MinibatchLoader:
        """Loader of minibatches as in scvi-tools, with x in the layout that is read faster."""
        kwargs = {"sparse": self.module.takes_sparse} | kwargs
        return super()._make_data_loader(*args, **kwargs)

    def _summary(self) -> str:
        settings = ", ".join(f"{name}: {value}" for name, value in self._module_kwargs.items())
        n_components = self.n_components_ or "yet unknown"
        if self.component_clusters_ is not None:
            n_components = f"{n_components} in {len(self.cluster_names)} clusters"
        return f"SCGMVAE with the following parameters: n_components: {n_components}, {settings}"

    def _rows_shown(self) -> dict[str, str]:
        setup, rows = self._setup, {}
        known = setup.categories
        conditions = [
            f"{name} ({len(known[name])})" if name in known else name
            for name in setup.condition_names
        ]
        if conditions:
            rows["conditions"] = ", ".join(conditions)
        if setup.label_names:
            rows["labels"] = f"{setup.labels_key}: {listed(setup.label_names)}"
        if not self.module.has_mixture:
            rows["components"] = f"none, as prior={self.module.prior!r}"
        elif self.n_components_ is None:
            rows["components"] = "not found yet"
        else:
            rows["components"] = str(self.n_components_)
        if self.component_clusters_ is not None:
            rows["clusters"] = str(len(self.cluster_names))
        return rows | {"training": self._training_shown()}

    def _epochs_shown(self) -> str:
        if not self.module.has_mixture:
            return super()._epochs_shown()
        n_epochs = len(self.history["elbo_train"])
        n_joint = len(self.history.get("kl_y_train", ()))
        return f"{n_epochs - n_joint} of pretraining, {n_joint} joint"

    def _data_shown(self) -> str:
        if self.label_codes_ is None:
            return super()._data_shown()
        return (
            f"{'' if self.adata is None else 'a sample, '}{self._matrix_shown()}, of a data module"
        )

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
        cluster_calls = ["model.predict()", "model.component_table()"]
        calls = ["model.get_latent_representation()", 'model.report("report.html")']
        return [*(cluster_calls if self.module.has_mixture else ()), *calls, "model.save(folder)"]

    # -------------------------------------------------------------------- first look, report

    def overview(
        self, labels_key: str | None = None, n_genes: int = 2, *, seed: int = 0
    ) -> Figure:
        """First look at what was found: UMAP, confidence, marker genes, batches, and labels.

        Parameters
        ----------
        labels_key
            obs column of labels to compare with; ``None`` takes the one that the model was set up
            with, if any.
        n_genes
            Number of marker genes of each cluster.
        seed
            Seed of the UMAP.

        Returns
        -------
        Figure, as :func:`scgmvae.plotting.overview` draws it.

        Raises
        ------
        KeyError
            If there is no such obs column.
        RuntimeError
            If the model has no trained components, or no data.

        Examples
        --------
        >>> figure = model.overview("component")
        """
        # figures read models, so they are above this module and are imported only here
        from scgmvae.plotting._overview import overview

        return overview(self, labels_key, n_genes, seed=seed)

    def report(
        self,
        path: str | Path,
        labels_key: str | None = None,
        *,
        overwrite: bool = False,
        seed: int = 0,
        interactive: bool = False,
    ) -> None:
        """Write a report of the fit into one HTML file that needs no other file.

        It has data, settings and versions; training curves; scatters of z by cluster, label and
        condition; the components with their marker genes; agreement with labels; how components
        merge; and what to look at, in plain words (:mod:`scgmvae.report.diagnosis`).

        Parameters
        ----------
        path
            File to write.
        labels_key
            obs column of labels to compare with; ``None`` takes the one that the model was set up
            with, if any.
        overwrite
            Whether to replace a file that exists.
        seed
            Seed of the draw of cells, if there are more than 5,000, and of the UMAP.
        interactive
            Whether the file lets a browser explore the UMAP: what each cell is, colours by
            cluster, confidence, labels, conditions and genes. It is then of up to 10,000 cells,
            and the file of up to 8 MB; of more genes than that holds it has the marker genes and
            the most variable ones.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        KeyError
            If there is no such obs column.
        RuntimeError
            If the model is untrained, or has no data.
        ValueError
            If the file exists and ``overwrite`` is False, or ``interactive`` is no boolean.

        Notes
        -----
        The data are left as they are.
        """
        # the report reads models, so it is above this module and is imported only here
        from scgmvae.report.page import write_report

        write_report(
            self, path, labels_key, overwrite=overwrite, seed=seed, interactive=interactive
        )
