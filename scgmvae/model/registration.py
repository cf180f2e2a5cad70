"""Registered fields: registering data with a class of models, and new data with a model."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi.data import AnnDataManager
from scvi.data import _constants as scvi_constants
from scvi.data._utils import _assign_adata_uuid, _check_if_view
from scvi.model.base import BaseModelClass

from scgmvae.data import matrix_checks, validation
from scgmvae.data.fingerprint import change_of, remember
from scgmvae.data.genes import match_genes
from scgmvae.data.images import check_same_shape, pixel_scale
from scgmvae.data.minibatches import MinibatchLoader
from scgmvae.data.registry import CONDITION_ARGUMENTS, Setup
from scgmvae.distributions.families import COUNT_LIKELIHOODS, JOINT, Likelihood

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from anndata import AnnData
    from lightning.pytorch import Trainer
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

logger = logging.getLogger(__name__)

__all__ = ["Registration"]


class Registration(BaseModelClass):
    """Base of models: registers the fields that a model reads, and checks them in new data."""

    _data_loader_cls = MinibatchLoader
    _module_kwargs: dict[str, Any]
    """Settings of the module, ``likelihood`` and ``image_shape`` among them."""
    _adata: AnnData | None
    _adata_manager: AnnDataManager | None
    _matched: AnnData | None = None
    """The last copy that was made to bring new data to the model's genes."""
    trainer: Trainer | None = None
    """The trainer of the last training, of the model's own data."""
    _given: AnnData | None = None
    """What a user has passed, where the model's own data are a copy of it with its genes."""

    @property
    def _setup(self) -> Setup:
        """What the model was set up with."""
        return Setup(self.registry_)

    @classmethod
    def _anndata_of(
        cls, data: object, attributes: Mapping[str, Any], to_write: bool = False
    ) -> AnnData:
        """The AnnData that a user has passed.

        Parameters
        ----------
        data
            What a user has passed.
        attributes
            Attributes of the model that reads the data, if there is one: ``registry_``, and
            others that its class needs.
        to_write
            Whether to refuse a view, which nothing can be written to.

        Raises
        ------
        ValueError
            For anything else, and for a view that is to be written to.
        """
        if to_write:
            validation.check_not_view(data)
        else:
            validation.check_anndata(data)
        return data

    # ------------------------------------------------------------- registering with a class

    @classmethod
    def _register(cls, adata: AnnData, manager: AnnDataManager, **kwargs: Any) -> None:
        """Register the fields of a manager, or leave the data as they were."""
        with validation.unchanged_on_error(adata):
            if cls._original_of(adata) is not None:
                _assign_adata_uuid(adata, overwrite=True)
            manager.register_fields(adata, **kwargs)
        remember(manager)
        cls.register_manager(manager)

    @classmethod
    def _original_of(cls, adata: AnnData) -> AnnDataManager | None:
        """Manager of the data that this is a copy of, by the identifier that copies share."""
        uuid = adata.uns.get(scvi_constants._SCVI_UUID_KEY)
        manager = cls._setup_adata_manager_store.get(uuid)
        return None if manager is None or manager.adata is adata else manager

    @classmethod
    def _set_up_if_needed(cls, adata: AnnData) -> None:
        """Register data with defaults, or anew like its original, or as it was before a change."""
        validation.check_not_view(adata)
        manager = cls._setup_adata_manager_store.get(adata.uns.get(scvi_constants._SCVI_UUID_KEY))
        if manager is None:
            cls.setup_anndata(adata, layer=validation.default_layer(adata))
        elif manager.adata is not adata:
            logger.info("The AnnData is a copy of one that was set up; it is set up alike.")
            cls.setup_anndata(adata, **Setup(manager.registry).arguments)
        elif (change := change_of(manager)) is not None:
            logger.info("The AnnData is set up anew because %s.", change.what)
            cls.setup_anndata(adata, **Setup(manager.registry).arguments)

    @classmethod
    def _check_data(
        cls,
        manager: AnnDataManager,
        likelihood: Likelihood,
        image_shape: Sequence[int] | None,
        of_model: bool = False,
    ) -> None:
        """Raise unless the registered matrix suits the likelihood and the shape of the images.

        Parameters
        ----------
        manager
            Manager of the data.
        likelihood, image_shape
            Settings of the module.
        of_model
            Whether the data are new ones of a model, which is set up already.
        """
        check_same_shape(manager, image_shape)
        layer = Setup(manager.registry).layer
        x, name = matrix_checks.matrix_of(manager.adata, layer)
        matrix_checks.check_numeric(x, name)
        if pixel_scale(manager) != 1:  # bytes, which are finite and stand for values in [0, 1]
            if likelihood in COUNT_LIKELIHOODS:
                matrix_checks.refuse_counts(name, likelihood)
            return
        matrix_checks.check_finite(x, name)
        if likelihood == JOINT:
            return  # each modality was checked before they were put side by side
        if likelihood in COUNT_LIKELIHOODS:
            matrix_checks.check_counts(manager.adata, layer, likelihood, of_model)
        elif likelihood == "bernoulli":
            matrix_checks.check_unit_interval(x, name)

    # ------------------------------------------------------------------- new data of a model

    @property
    def adata(self) -> AnnData | None:
        """The model's own data; other data that suit the model can be put in their place."""
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        given = self._anndata_of(adata, vars(self))
        # this is a copy if the data have other genes, or in another order
        validated = self._validate_anndata(given)
        if validated is not self.adata:
            self.trainer = None  # the cells of its training are those of other data
        BaseModelClass.adata.fset(self, validated)
        self._given = self._written_beside(adata, given, validated)

    def _written_beside(self, passed: object, given: AnnData, read: AnnData) -> Any:
        """What results are written into beside the data that are read, if anything.

        Parameters
        ----------
        passed
            What a user has passed.
        given
            The AnnData that it stands for.
        read
            The AnnData that is read: ``given``, or a copy with the model's genes.
        """
        return None if read is given else given

    def _make_data_loader(
        self, adata: AnnData, indices: ArrayLike | None = None, *args: Any, **kwargs: Any
    ) -> MinibatchLoader:
        """Loader of minibatches as in scvi-tools, of rows that are checked to exist."""
        rows = validation.rows_of(adata, indices)
        return super()._make_data_loader(adata, rows, *args, **kwargs)

    def _minibatches(self, dataloader: Iterable[Any]) -> Iterable[dict[str, Tensor]]:
        """Minibatches that a user has passed, as the module reads them."""
        return dataloader

    def minify_adata(self, *args: object, **kwargs: object) -> None:
        """Not available: posteriors of z cannot replace the counts of a cell here.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.base.BaseMinifiedModeModelClass.minify_adata`.

        Raises
        ------
        NotImplementedError
            Always.
        """
        validation.refuse_minified()

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print what was registered, or for a model without data the arguments of its set-up.

        Parameters
        ----------
        hide_state_registries
            Whether to leave out what was found in each field, such as categories.
        """
        if self.adata_manager is None:
            self.view_setup_method_args()
        else:
            self.adata_manager.view_registry(hide_state_registries)

    def get_var_names(self, legacy_mudata_format: bool = False) -> NDArray[np.str_]:
        """Names of the genes in the order in which the model reads them, (G,).

        Parameters
        ----------
        legacy_mudata_format
            Without effect: a model reads one AnnData.
        """
        return np.asarray(self._setup.gene_names)

    def _validate_anndata(
        self, adata: AnnData | None = None, copy_if_view: bool = True
    ) -> AnnData:
        """Register new data with the model after checking it; reorder its genes if need be."""
        if adata is None and self.adata is None:
            raise RuntimeError("The model was loaded without data: pass the data to read.")
        if adata is not None:
            adata = self._anndata_of(adata, vars(self))
        if adata is None or adata is self.adata:
            self._check_own_data()
            return super()._validate_anndata(None, copy_if_view)
        if self._knows(adata):
            return super()._validate_anndata(adata, copy_if_view)
        given = adata
        adata = match_genes(given, self.get_var_names())
        _check_if_view(adata, copy_if_view=copy_if_view)
        self._check_columns(adata)
        with (
            self._registers_unchanged_on_error(),
            validation.unchanged_on_error(adata),
        ):
            if self._is_copy(adata):
                _assign_adata_uuid(adata, overwrite=True)
            if self.adata_manager is not None:
                manager = self.adata_manager.transfer_fields(adata)
                self._register_manager_for_instance(manager)
            adata = super()._validate_anndata(adata, copy_if_view)
            manager = self.get_anndata_manager(adata, required=True)
            kinds = self._module_kwargs["likelihood"], self._module_kwargs["image_shape"]
            self._check_data(manager, *kinds, of_model=True)
            remember(manager)
        if adata is not given:
            self._forget_matched()
            self._matched = adata
        return adata

    def _check_columns(self, adata: AnnData) -> None:
        """Raise if new data lack the layer or a column of the set-up, or do not suit it."""
        setup = self._setup
        validation.check_obs_names(adata)
        validation.check_layer(adata, setup.layer, of_model=True)
        # apart from the layer, the arguments depend on the class of the model
        columns = {k: v for k, v in setup.arguments.items() if k in CONDITION_ARGUMENTS}
        validation.check_columns(adata, of_model=True, **columns)
        validation.check_size_factors(adata, columns.get("size_factor_key"))
        validation.check_continuous(adata, columns.get("continuous_covariate_keys"))

    @contextmanager
    def _registers_unchanged_on_error(self) -> Iterator[None]:
        """Forget data that are refused, which would otherwise be taken for known the next time."""
        own_managers = self._per_instance_manager_store.setdefault(self.id, {})
        before = [(s, dict(s)) for s in (own_managers, self._setup_adata_manager_store)]
        own = self._adata, self._adata_manager  # a model without data makes them its own
        try:
            yield
        except BaseException:  # also where reading a large matrix is interrupted
            for store, managers in before:
                store.clear()
                store.update(managers)
            self._adata, self._adata_manager = own
            raise

    def _forget_matched(self) -> None:
        """Forget the last copy that was made to match genes, unless it is the model's data."""
        own_managers = self._per_instance_manager_store.get(self.id, {})
        for store in (own_managers, self._setup_adata_manager_store):
            for uuid in [
                uuid for uuid, manager in store.items() if manager.adata is self._matched
            ]:
                if self._matched is not self.adata:
                    del store[uuid]

    def _is_copy(self, adata: AnnData) -> bool:
        """Whether the data carries the identity of other data that is registered."""
        uuid = adata.uns.get(scvi_constants._SCVI_UUID_KEY)
        own_managers = self._per_instance_manager_store.get(self.id, {})
        stores = (self._setup_adata_manager_store, own_managers)
        managers = [store[uuid] for store in stores if uuid in store]
        return any(manager.adata is not adata for manager in managers)

    def _knows(self, adata: AnnData) -> bool:
        """Whether this very object was registered with this model, and is as it was then."""
        managers = self._per_instance_manager_store.get(self.id, {})
        manager = managers.get(adata.uns.get(scvi_constants._SCVI_UUID_KEY))
        return manager is not None and manager.adata is adata and change_of(manager) is None

    def _check_own_data(self, *, to_train: bool = False) -> None:
        """Raise if the model's own data were changed in place; put right what can be.

        Parameters
        ----------
        to_train
            Whether the labels are read as well.

        Raises
        ------
        ValueError
            If they have other cells, genes, values or registered columns.
        """
        manager, uns = self.adata_manager, self.adata.uns
        uns[scvi_constants._SCVI_UUID_KEY] = manager.adata_uuid
        self._register_manager_for_instance(manager)  # a copy of a model shares its identity
        of_cells = [f for f in manager.fields if f.attr_name in ("obs", "obsm") and not f.is_empty]
        is_whole = all(f.attr_key in getattr(self.adata, f.attr_name) for f in of_cells)
        if not is_whole or scvi_constants._MANAGER_UUID_KEY not in uns:
            uns[scvi_constants._MANAGER_UUID_KEY] = None  # scvi-tools then registers them again
        if self._given is not None:
            self._take_new_columns(self._given)
        change = change_of(manager, to_train=to_train)
        if change is None:
            return
        if not change.is_order:
            raise ValueError(
                f"The model's AnnData was changed after it was set up: {change.what}. "
                f"{change.remedy}"
            )
        logger.info("The genes are in another order by now, so the model reads a copy.")
        given, trainer = self.adata, self.trainer
        self.adata = match_genes(given, self._setup.gene_names)
        self._given, self.trainer = given, trainer

    def _take_new_columns(self, given: AnnData) -> None:
        """Copy columns of obs that were added to what the model's data are a copy of."""
        new = [name for name in given.obs if name not in self.adata.obs]
        rows = given.obs_names.get_indexer(self.adata.obs_names) if new else np.empty(0, int)
        if new and (rows >= 0).all():
            for name in new:
                self.adata.obs[name] = given.obs[name].array.take(rows)
