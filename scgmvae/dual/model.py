"""DualVAE: images of an AnnData in, foreground and background out and written back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField

from scgmvae import checks
from scgmvae.data import validation
from scgmvae.data.genes import observed_genes
from scgmvae.data.images import image_shape_of
from scgmvae.data.minibatches import SeededDataSplitter
from scgmvae.dual.module import DualLikelihood, DualModule
from scgmvae.dual.plan import DecliningPlan
from scgmvae.model.base import Model
from scgmvae.train.finite_watch import FiniteWatch
from scgmvae.train.runner import KeepingTrainRunner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from scgmvae.distributions.families import Likelihood

__all__ = ["DualVAE"]

Source = Literal["foreground", "background"]

OBSM = {"foreground": "X_dualvae_fg", "background": "X_dualvae_bg"}
"""Key in obsm under which the latent of each source of light is written."""

LATENTS = {"foreground": "z1", "background": "z2"}

N_START = 1024
"""Number of training images to which the networks are scaled at the start."""


class DualVAE(Model):
    r"""Foreground and background of images, by two VAEs whose light adds up.

    .. math::
        p(x|z_1, z_2):\; \mathbb{E}[x] = f(z_1) + U b(z_2), \qquad f, b \ge 0

    The foreground f has all pixels and a latent z₁ of the image; the background b has the low
    resolution alone, and a latent z₂ of the image at low resolution, g(x).

    Parameters
    ----------
    adata
        Images in the rows of ``X`` or of a layer, with ``uns["image_shape"]``: height, width and,
        if there are any, channels. Intensities count from darkness, as both sources are at least
        0. Data that were not passed to :meth:`setup_anndata` are set up with defaults.
    registry
        Registry of a model without data; used by :meth:`load`.
    image_shape
        Used by :meth:`load`; with data it is read from ``uns``.
    likelihood
        ``"gaussian"``, with a standard deviation for each pixel, or ``"poisson"`` for counts of
        photons.
    **module_kwargs
        Further settings of :class:`~scgmvae.dual.module.DualModule`: ``n_latent_foreground``,
        ``n_latent_background``, ``encoder``, ``n_hidden``, ``n_hidden_decoder``, ``window``,
        ``blur``, ``interaction``, ``image_interaction``.

    Raises
    ------
    ValueError
        If the data are no images, smaller than the window, or do not suit the likelihood.
        ``adata`` is then as it was before.

    References
    ----------
    ``docs/dual.md`` has the derivation.

    Examples
    --------
    >>> import scgmvae
    >>> adata = scgmvae.datasets.two_photon(200, image_shape=(24, 36))
    >>> model = scgmvae.DualVAE(adata, n_latent_foreground=24)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.get_foreground().shape, model.get_latent_representation(which="background").shape
    ((200, 864), (200, 8))
    """

    _module_cls = DualModule
    module: DualModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: Mapping[str, Any] | None = None,
        *,
        image_shape: Sequence[int] | None = None,
        likelihood: DualLikelihood = "gaussian",
        **module_kwargs: Any,
    ):
        if adata is not None:
            validation.check_anndata(adata)
            image_shape = image_shape_of(adata)
            if image_shape is None:
                raise ValueError(
                    "DualVAE is a model of images, but adata.uns has no 'image_shape'. Set "
                    "adata.uns['image_shape'] = (height, width) in pixels."
                )
        self._module_kwargs = {
            "image_shape": image_shape,
            "likelihood": likelihood,
            **module_kwargs,
        }
        module = self._first_module()
        with self._unchanged_on_error(adata):
            if adata is not None:
                self._set_up_if_needed(adata)
            super().__init__(adata, registry)
            if adata is not None:
                self._check_data(self.adata_manager, likelihood, image_shape)
        self.module = module
        self._model_summary_string = self._summary()
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(cls, adata: AnnData, layer: str | None = None, **kwargs: Any) -> None:
        """Register the matrix of an AnnData that the model reads.

        Parameters
        ----------
        adata
            Images × pixels.
        layer
            Layer that holds the images; ``None`` is ``X``.
        **kwargs
            Passed to :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError
            If the layer is missing.
        ValueError
            If there are no values, ``adata`` is a view, or two images have the same name.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        validation.check_not_view(adata)
        validation.check_obs_names(adata)
        validation.check_var_names(adata)
        validation.check_layer(adata, layer, of_model="source_registry" in kwargs)
        fields = [LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False)]
        cls._register(adata, AnnDataManager(fields, setup_method_args), **kwargs)

    @classmethod
    def _check_data(
        cls,
        manager: AnnDataManager,
        likelihood: Likelihood,
        image_shape: Sequence[int] | None,
        of_model: bool = False,
    ) -> None:
        """Raise unless the registered matrix suits the likelihood, with a value at every pixel."""
        super()._check_data(manager, likelihood, image_shape, of_model)
        if observed_genes(manager.adata) is not None:
            raise ValueError(
                "The model needs every pixel that it was made with, but some are missing from the "
                "data. Give images of all pixels, named alike."
            )

    def _make_module(self) -> DualModule:
        """The module with fresh weights, which come from torch's random state."""
        return self._module_cls(**self._module_kwargs)

    def _summary(self) -> str:
        given = ", ".join(f"{name}: {value}" for name, value in self._module_kwargs.items())
        return f"DualVAE with the following parameters: {given}"

    def _rows_shown(self) -> dict[str, str]:
        return {"training": self._training_shown()}

    def _calls_shown(self) -> list[str]:
        if self.adata is None:
            return ["DualVAE.load(folder, adata)", "model.get_foreground(adata)"]
        if not self.is_trained_:
            return ["model.train()"]
        return ["model.get_foreground()", "model.get_background()", "model.save(folder)"]

    # ---------------------------------------------------------------------------- training

    def train(
        self,
        max_epochs: int = 100,
        *,
        seed: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float = 1.0,
        validation_size: float | None = None,
        batch_size: int = 64,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model and write its results into its AnnData (:meth:`annotate`).

        Parameters
        ----------
        max_epochs
            Passes over the images.
        seed
            Seed of everything random: first weights (drawn anew by the first call), order of the
            images, samples. Any other random state stays as it is. ``None`` takes
            ``scvi.settings.seed``, or 0. On a CPU the same seed gives the same result bit for
            bit.
        accelerator, devices
            As in Lightning; ``"auto"`` takes a GPU where there is one.
        train_size, validation_size
            As in :class:`scvi.dataloaders.DataSplitter`; all images are trained on unless asked
            otherwise.
        batch_size
            Largest number of images in a minibatch.
        plan_kwargs
            Further arguments of :class:`~scgmvae.dual.plan.DecliningPlan`, for example ``lr``.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        RuntimeError
            If the model was loaded without data.
        ValueError
            If an argument is out of range, or the model reads a layer that is written to.
        """
        if self.adata is None:
            raise RuntimeError("The model has no data to train on: load it with adata=...")
        self._validate_anndata()
        seed = self._seed_of(seed)
        checks.check_whole(1, max_epochs=max_epochs, batch_size=batch_size)
        checks.check_seed(seed)
        self._check_layer_is_free()
        splitter = SeededDataSplitter(
            self.adata_manager,
            seed=seed,
            train_size=train_size,
            validation_size=validation_size,
            batch_size=batch_size,
        )
        rows = splitter.external_indexing[0]
        n_steps = max_epochs * -(-len(rows) // batch_size)
        with self._in_training(seed):
            if not self.is_trained_:
                self._start_module(rows)
            plan = DecliningPlan(self.module, n_steps=n_steps, **(plan_kwargs or {}))
            watch = FiniteWatch(self.adata.obs_names)
            runner = KeepingTrainRunner(
                self,
                training_plan=plan,
                data_splitter=splitter,
                max_epochs=int(max_epochs),
                accelerator=accelerator,
                devices=devices,
                callbacks=[*trainer_kwargs.pop("callbacks", ()), watch],
                **trainer_kwargs,
            )
            runner()
        self.annotate()

    def _start_module(self, rows: NDArray[np.integer]) -> None:
        """Make new weights, and scale them to the first training images."""
        self.module = self._make_module()
        (tensors,) = self._make_data_loader(self.adata, indices=rows[:N_START], batch_size=N_START)
        self.module.start_at(tensors[REGISTRY_KEYS.X_KEY])

    # ---------------------------------------------------------------------- results, writing

    def _read(
        self,
        names: Sequence[str],
        adata: AnnData | None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
    ) -> list[NDArray[np.float32]]:
        """Named outputs of the module at the posterior means, each ``(n, ·)``, in one pass."""
        found = self._at_means(
            lambda q, p: {name: (q | p)[name] for name in names}, adata, indices, batch_size
        )
        return [found[name] for name in names]

    def get_foreground(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Foreground f of each image, at the posterior mean of z₁.

        Parameters
        ----------
        adata
            Images with the pixels of the model; ``None`` is the model's own.
        indices
            Rows to use.
        batch_size
            Images at a time.

        Returns
        -------
        Array ``(n, P)``, at least 0, in the unit of the data (bytes stand for 0/255 to 255/255).
        With :meth:`get_background` it adds up to the mean of p(x|z₁,z₂) there. With
        ``image_interaction="none"`` it is that mean by itself, and with ``"concatenation"`` it is
        f(z₁, z₂), at both means.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        """
        return self._read(["foreground"], adata, indices, batch_size)[0]

    def get_background(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Background U b of each image, at all pixels and at the posterior mean of z₂.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_foreground`.

        Returns
        -------
        Array ``(n, P)``, above 0, in the unit of the data.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        """
        return self._read(["background"], adata, indices, batch_size)[0]

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        *,
        which: Source = "foreground",
    ) -> NDArray[np.float32]:
        """Posterior mean of a latent.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_foreground`.
        which
            ``"foreground"`` for z₁, ``"background"`` for z₂.

        Returns
        -------
        Array ``(n, L₁)`` or ``(n, L₂)``.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        ValueError
            If ``which`` is neither.
        """
        checks.check_choices(which=(which, tuple(LATENTS)))
        return self._read([LATENTS[which]], adata, indices, batch_size)[0]

    def annotate(self, adata: AnnData | None = None) -> None:
        """Write both sources and their latents into an AnnData.

        ``layers["foreground"]``, ``layers["background"]``; ``obsm["X_dualvae_fg"]`` and
        ``obsm["X_dualvae_bg"]``, the means of z₁ and z₂; ``uns["dualvae"]``, settings, versions
        and seed.

        Parameters
        ----------
        adata
            Images with the pixels of the model, in the same order; ``None`` is the model's own.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        ValueError
            If the pixels are others, ``adata`` is a view, or the model reads a layer that would be
            overwritten.
        """
        self._check_if_trained(warn=False)
        target = self.adata if adata is None else adata
        validation.check_not_view(target)
        self._check_layer_is_free()
        if not np.array_equal(target.var_names.astype(str), self.get_var_names()):
            raise ValueError(
                "Layers have a value for every pixel of the data, so it must have those of the "
                "model, in the same order, but its var names are others. Give such data, or read "
                "the results with get_foreground() and get_background()."
            )
        names = [*OBSM, *(LATENTS[source] for source in OBSM)]
        *images, z1, z2 = self._read(names, adata)
        target.layers.update(zip(OBSM, images, strict=True))
        target.obsm.update(zip(OBSM.values(), (z1, z2), strict=True))
        target.uns["dualvae"] = self._settings()

    def _check_layer_is_free(self) -> None:
        """Raise ``ValueError`` where writing back would overwrite what the model reads."""
        layer = self._setup.layer
        if layer in OBSM:
            raise ValueError(
                f"The model reads the layer {layer!r}, which its results would overwrite. Copy it "
                "to a layer of another name and set the data up with that."
            )
