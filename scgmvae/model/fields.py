"""Fields of an AnnData: registering them, and checking data that a model has not seen."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data import _constants as scvi_constants
from scvi.data._utils import _assign_adata_uuid, _check_if_view
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model.base import BaseModelClass
from torch import Tensor

from scgmvae import checks
from scgmvae.data.datamodules import Minibatch, tensors_of
from scgmvae.data.genes import match_genes
from scgmvae.data.images import check_same_shape, pixel_scale
from scgmvae.data.label_field import LabelsField
from scgmvae.data.minibatches import MinibatchLoader
from scgmvae.distributions.likelihoods import COUNT_LIKELIHOODS, Likelihood

logger = logging.getLogger(__name__)

__all__ = ["FieldsMixin"]

CONDITION_ARGS = (
    "batch_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
)
"""Arguments of ``setup_anndata`` whose obs columns new data must have as well."""


class FieldsMixin:
    """``setup_anndata`` and the checks of new data."""

    label_codes_: Sequence[int] | None = None
    """Component of each label of the data module that the model was made for, if it was."""

    _matched: AnnData | None = None

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        unlabeled_category: str = "unknown",
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        **kwargs: object,
    ) -> None:
        """Register the fields of an AnnData that the model reads.

        Parameters
        ----------
        adata
            Cells × genes.
        layer
            Layer that holds the data; ``None`` is ``X``.
        batch_key
            obs column of batches, a condition.
        labels_key
            obs column of labels; the first components stand for them.
        unlabeled_category
            Value in that column of cells without a label. Names are compared as strings.
        size_factor_key
            obs column of positive size factors, used in place of the observed library size. Their
            unit does not matter.
        categorical_covariate_keys, continuous_covariate_keys
            obs columns of further conditions.
        **kwargs
            Passed to :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError
            If a column or layer is missing.
        ValueError
            If a column has missing or unsuitable values, or names of cells or genes occur twice.
            ``adata`` is then as it was before.

        Examples
        --------
        >>> scgmvae.SCGMVAE.setup_anndata(adata, batch_key="batch", labels_key="component")
        >>> scgmvae.SCGMVAE(adata).component_names.tolist()
        ['component_0', 'component_1', 'component_2']
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        checks.check_anndata(adata)
        source = kwargs.get("source_registry")  # given where a saved model is loaded
        checks.check_not_view(adata)
        checks.check_obs_names(adata)
        checks.check_var_names(adata)
        checks.check_layer(adata, layer)
        checks.check_columns(
            adata,
            batch_key=batch_key,
            labels_key=labels_key if source is None else None,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
        )
        checks.check_size_factors(adata, size_factor_key)
        checks.check_continuous(adata, continuous_covariate_keys)
        if source is not None and not kwargs.get("extend_categories"):
            for column, known in cls._categories_of(source).items():
                checks.check_categories(adata, column, known)
        if labels_key is None:
            labels = CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, None)
        else:
            if source is None:
                checks.check_labels(adata, labels_key, unlabeled_category)
            labels = LabelsField(REGISTRY_KEYS.LABELS_KEY, labels_key, unlabeled_category)
        fields = [
            # What suits as data depends on the likelihood, which the constructor knows.
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            labels,
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
        cls._register(adata, AnnDataManager(fields, setup_method_args), **kwargs)

    @classmethod
    def _anndata_of(
        cls, data: object, attributes: Mapping[str, object], to_write: bool = False
    ) -> AnnData:
        """The AnnData that a user has passed, for a model with these attributes.

        Raises
        ------
        ValueError
            For anything else, and for a view that is to be written to.
        """
        (checks.check_not_view if to_write else checks.check_anndata)(data)
        return data

    @classmethod
    def _register(cls, adata: AnnData, manager: AnnDataManager, **kwargs: object) -> None:
        """Register the fields of a manager, or leave the data as they were."""
        with checks.unchanged_on_error(adata):
            if cls._original_of(adata) is not None:
                _assign_adata_uuid(adata, overwrite=True)
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def _original_of(cls, adata: AnnData) -> AnnDataManager | None:
        """Manager of other data that this is a copy of, by the identity that copies share."""
        uuid = adata.uns.get(scvi_constants._SCVI_UUID_KEY)
        manager = cls._setup_adata_manager_store.get(uuid)
        return None if manager is None or manager.adata is adata else manager

    @staticmethod
    def _labels_of(registry: dict) -> list[str]:
        """Names of the labels in the order of their components; none without labels."""
        fields = registry[scvi_constants._FIELD_REGISTRIES_KEY]
        if REGISTRY_KEYS.LABELS_KEY not in fields:
            return []
        state = fields[REGISTRY_KEYS.LABELS_KEY][scvi_constants._STATE_REGISTRY_KEY]
        if LabelsField.UNLABELED_CATEGORY not in state:
            return []
        return [str(name) for name in state["categorical_mapping"][:-1]]

    def _make_data_loader(
        self, adata: AnnData, indices: Sequence[int] | None = None, *args: object, **kwargs: object
    ) -> MinibatchLoader:
        """As in scvi-tools, for rows that are there."""
        rows = checks.rows_of(adata, indices)
        return super()._make_data_loader(adata, rows, *args, **kwargs)

    def _minibatches(self, dataloader: Iterable[Minibatch]) -> Iterable[dict[str, Tensor]]:
        """Minibatches of others as the module reads them."""
        if self.label_codes_ is None:
            return dataloader
        return (tensors_of(self, minibatch) for minibatch in dataloader)

    @staticmethod
    def _check_data(
        manager: AnnDataManager, likelihood: Likelihood, image_shape: tuple[int, ...] | None
    ) -> None:
        """Raise unless the registered matrix suits the likelihood and the shape of the images."""
        check_same_shape(manager, image_shape)
        x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        where = manager.data_registry[REGISTRY_KEYS.X_KEY]
        name = "adata.X" if where.attr_name == "X" else f"adata.layers[{where.attr_key!r}]"
        checks.check_numeric(x, name)
        if pixel_scale(manager) != 1:  # bytes, which are finite and stand for values in [0, 1]
            if likelihood in COUNT_LIKELIHOODS:
                checks.refuse_counts(name, likelihood)
            return
        checks.check_finite(x, name)
        if likelihood in COUNT_LIKELIHOODS:
            checks.check_counts(x, name, manager.adata.obs_names, likelihood)
        elif likelihood == "bernoulli":
            checks.check_unit_interval(x, name)

    def _field(self, key: str) -> dict:
        """What the registry says of a field."""
        return self.registry_[scvi_constants._FIELD_REGISTRIES_KEY][key]

    def _state_of(self, key: str) -> dict:
        return self._field(key)[scvi_constants._STATE_REGISTRY_KEY]

    @property
    def _label_names(self) -> list[str]:
        """Names of the labels in the order of their components; none without labels."""
        return self._labels_of(self.registry_)

    @property
    def adata(self) -> AnnData | None:
        """The model's own data; other data that suit the model can be put in their place."""
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        # the copy with the model's genes, where they are others or in another order
        validated = self._validate_anndata(self._anndata_of(adata, vars(self)))
        BaseModelClass.adata.fset(self, validated)

    def minify_adata(self, *args: object, **kwargs: object) -> None:
        """Not available: posteriors of z do not stand for a cell's counts here.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.base.BaseMinifiedModeModelClass.minify_adata`.

        Raises
        ------
        NotImplementedError
            Always.
        """
        checks.refuse_minified()

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print what was registered; of a model without data, what it was set up with.

        Parameters
        ----------
        hide_state_registries
            Leave out the categories and the like of each field.
        """
        if self.adata_manager is None:
            self.view_setup_method_args()
        else:
            self.adata_manager.view_registry(hide_state_registries)

    def _validate_anndata(
        self, adata: AnnData | None = None, copy_if_view: bool = True
    ) -> AnnData:
        """Register new data with the model after checking it; reorder its genes if need be."""
        if adata is None and self.adata is None:
            raise RuntimeError("The model was loaded without data: pass the data to read.")
        if adata is not None:
            adata = self._anndata_of(adata, vars(self))
        if adata is None or adata is self.adata or self._knows(adata):
            return super()._validate_anndata(adata, copy_if_view)
        given = adata
        adata = match_genes(given, self.get_var_names())
        _check_if_view(adata, copy_if_view=copy_if_view)
        checks.check_obs_names(adata)
        setup = self.registry_[scvi_constants._SETUP_ARGS_KEY]
        checks.check_layer(adata, setup["layer"])
        # all but the layer are there where the model has them
        columns = {name: value for name, value in setup.items() if name in CONDITION_ARGS}
        checks.check_columns(adata, **columns)
        checks.check_size_factors(adata, columns.get("size_factor_key"))
        checks.check_continuous(adata, columns.get("continuous_covariate_keys"))
        for column, known in self._known_categories().items():
            checks.check_categories(adata, column, known)
        with (
            self._registers_unchanged_on_error(),
            checks.unchanged_on_error(adata),
            warnings.catch_warnings(),
        ):
            # the data are read, not trained on
            warnings.filterwarnings("ignore", message="Category .* has fewer than 3 cells")
            if self._is_copy(adata):
                _assign_adata_uuid(adata, overwrite=True)
            if self.adata_manager is not None:
                manager = self.adata_manager.transfer_fields(adata)
                self._register_manager_for_instance(manager)
            adata = super()._validate_anndata(adata, copy_if_view)
            manager = self.get_anndata_manager(adata, required=True)
            likelihood, image_shape = (
                self._module_kwargs[name] for name in ("likelihood", "image_shape")
            )
            self._check_data(manager, likelihood, image_shape)
        if adata is not given:
            self._forget_matched()
            self._matched = adata
        return adata

    @contextmanager
    def _registers_unchanged_on_error(self) -> Iterator[None]:
        """Forget data that turn out to be refused; they would pass as known the next time."""
        of_model = self._per_instance_manager_store.setdefault(self.id, {})
        before = [(s, dict(s)) for s in (of_model, self._setup_adata_manager_store)]
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
        """Let go of the last copy that was made to match genes, unless it is the model's data."""
        of_model = self._per_instance_manager_store.get(self.id, {})
        for store in (of_model, self._setup_adata_manager_store):
            for uuid in [
                uuid for uuid, manager in store.items() if manager.adata is self._matched
            ]:
                if self._matched is not self.adata:
                    del store[uuid]

    def _is_copy(self, adata: AnnData) -> bool:
        """Whether the data carries the identity of other data that is registered."""
        uuid = adata.uns.get(scvi_constants._SCVI_UUID_KEY)
        of_model = self._per_instance_manager_store.get(self.id, {})
        stores = (self._setup_adata_manager_store, of_model)
        managers = [store[uuid] for store in stores if uuid in store]
        return any(manager.adata is not adata for manager in managers)

    def _knows(self, adata: AnnData) -> bool:
        """Whether this very object was registered with this model before."""
        managers = self._per_instance_manager_store.get(self.id, {})
        return any(manager.adata is adata for manager in managers.values())

    @staticmethod
    def _categories_of(registry: dict) -> dict[str, Sequence[object]]:
        """The categories of each registered categorical condition, by obs column."""
        setup = registry[scvi_constants._SETUP_ARGS_KEY]
        fields = registry[scvi_constants._FIELD_REGISTRIES_KEY]
        known = {}
        if setup.get("batch_key") is not None:
            state = fields[REGISTRY_KEYS.BATCH_KEY][scvi_constants._STATE_REGISTRY_KEY]
            known[setup["batch_key"]] = state["categorical_mapping"]
        if setup.get("categorical_covariate_keys"):
            state = fields[REGISTRY_KEYS.CAT_COVS_KEY][scvi_constants._STATE_REGISTRY_KEY]
            known |= state["mappings"]
        return known

    def _known_categories(self) -> dict[str, Sequence[object]]:
        return self._categories_of(self.registry_)

    @classmethod
    def _set_up_if_needed(cls, adata: AnnData) -> None:
        """Register data that was not set up: a copy as its original was, else with defaults."""
        checks.check_not_view(adata)
        if adata.uns.get(scvi_constants._SCVI_UUID_KEY) not in cls._setup_adata_manager_store:
            cls.setup_anndata(adata, layer=checks.default_layer(adata))
            return
        original = cls._original_of(adata)
        if original is not None:
            logger.info("The AnnData is a copy of one that was set up; it is set up alike.")
            cls.setup_anndata(adata, **original.registry[scvi_constants._SETUP_ARGS_KEY])
