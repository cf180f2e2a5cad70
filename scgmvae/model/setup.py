"""What a model of cells is set up with: columns of an AnnData, or a data module."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data import _constants as scvi_constants
from scvi.data.fields import (
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)

from scgmvae.data import validation
from scgmvae.data.categories import CategoricalField, CategoricalFields
from scgmvae.data.datamodules import (
    Layout,
    cells_of_categories,
    is_of_data_module,
    label_codes_of,
    n_obs_of,
    registry_of,
    tensors_of,
)
from scgmvae.data.label_field import LabelsField
from scgmvae.data.registry import Setup
from scgmvae.model.base import Model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData
    from torch import Tensor

__all__ = ["SetupMixin"]


class SetupMixin(Model):
    """The method ``setup_anndata``, and models for a data module of scvi-tools."""

    label_codes_: Sequence[int] | None = None
    """Component of each label of the model's data module; ``None`` without a data module."""

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
        **kwargs: Any,
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
            Value in that column of cells without a label; so are cells with a missing value. Names
            are compared as strings.
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
        validation.check_not_view(adata)
        validation.check_obs_names(adata)
        validation.check_var_names(adata)
        source = kwargs.get("source_registry")  # given where a saved model is loaded
        validation.check_layer(adata, layer, of_model=source is not None)
        validation.check_columns(
            adata,
            of_model=source is not None,
            batch_key=batch_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
        )
        if batch_key is not None and batch_key in (categorical_covariate_keys or ()):
            raise ValueError(
                f"A column is one condition, but {batch_key!r} is both batch_key and one of the "
                "categorical_covariate_keys. Name it once."
            )
        if source is None:
            validation.check_columns(adata, labels_key=labels_key, is_whole=False)
        validation.check_size_factors(adata, size_factor_key)
        validation.check_continuous(adata, continuous_covariate_keys)
        if labels_key is None:
            labels = CategoricalField(REGISTRY_KEYS.LABELS_KEY, None)
        else:
            if source is None:
                validation.check_labels(adata, labels_key, unlabeled_category)
            labels = LabelsField(REGISTRY_KEYS.LABELS_KEY, labels_key, unlabeled_category)
        fields = [
            # Which data are valid depends on the likelihood, which the constructor knows.
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            labels,
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoricalFields(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
        cls._register(adata, AnnDataManager(fields, setup_method_args), **kwargs)

    # ---------------------------------------------------------------------- data modules

    def _register_data_module(
        self, registry: Mapping[str, Any], n_components: int | None
    ) -> Mapping[str, Any]:
        """Registry that ``setup_anndata`` would make for the data of a data module.

        Any other registry is returned as it is.
        """
        if not is_of_data_module(registry):
            return registry
        made, self.label_codes_ = self._registered_as_anndata(registry)
        n_labels, n_obs = len(Setup(made).label_names), n_obs_of(registry)
        if n_obs is not None:
            validation.check_n_components(n_components, n_obs, n_labels)
        return made

    @classmethod
    def _registered_as_anndata(
        cls, registry: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], tuple[int, ...]]:
        """The registry that an AnnData would have, and components of the data module's labels."""
        cells, arguments = cells_of_categories(registry)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The obs column .* has fewer than 3 cells")
            cls.setup_anndata(cells, **arguments)
        uuid = cells.uns[scvi_constants._SCVI_UUID_KEY]
        made = cls._setup_adata_manager_store.pop(uuid).registry
        return made, label_codes_of(registry, Setup(made).label_names)

    def _layout(self) -> Layout:
        """Genes, labels and conditions in the order in which the model reads them."""
        return Layout(self._setup, tuple(self.label_codes_), self.module.takes_sparse)

    def _check_data_module(self, datamodule: Any) -> None:
        """Raise if the model cannot be trained on a data module.

        Raises
        ------
        TypeError
            If it is not a data module of Lightning, or has no registry.
        ValueError
            If the model was made of an AnnData, or of other genes, labels or conditions.
        """
        given = registry_of(datamodule)
        if self.label_codes_ is None:
            raise ValueError(
                "The model was made of an AnnData and trains on that. For a data module make a "
                "model of its registry: SCGMVAE(registry=datamodule.registry)."
            )
        registry, codes = self._registered_as_anndata(given)
        if Layout(Setup(registry), codes).description != self._layout().description:
            raise ValueError(
                "The data module must have the genes, labels and conditions that the model was "
                "made for, in the same order, but it has others. Make a model of its registry: "
                "SCGMVAE(registry=datamodule.registry)."
            )

    def _minibatches(self, dataloader: Iterable[Any]) -> Iterable[dict[str, Tensor]]:
        """Minibatches that a user has passed, as the module reads them."""
        if self.label_codes_ is None:
            return dataloader
        layout = self._layout()
        return (tensors_of(layout, minibatch) for minibatch in dataloader)
