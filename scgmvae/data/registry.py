"""Readable names for what was registered for an AnnData.

scvi-tools keeps a registry as nested dictionaries: the arguments of the set-up, and for each field
its place in the AnnData and what was found in it. The package reads them through this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data import _constants as scvi_constants

from scgmvae.data.label_field import LabelsField

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["CONDITION_ARGUMENTS", "Setup", "label_codes"]

CONDITION_ARGUMENTS = (
    "batch_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
)
"""Arguments of ``setup_anndata`` whose obs columns new data must have as well."""


class Setup:
    """Read-only view of a registry.

    Parameters
    ----------
    registry
        Registry of a model, of a saved model, or of an :class:`~scvi.data.AnnDataManager`.
    """

    def __init__(self, registry: Mapping[str, Any]):
        self._registry = registry

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that ``setup_anndata`` was called with."""
        return self._registry[scvi_constants._SETUP_ARGS_KEY]

    def state(self, key: str) -> Mapping[str, Any]:
        """What was found in a field; empty if there is no such field.

        Parameters
        ----------
        key
            One of scvi-tools' ``REGISTRY_KEYS``.
        """
        field = self._registry[scvi_constants._FIELD_REGISTRIES_KEY].get(key, {})
        return field.get(scvi_constants._STATE_REGISTRY_KEY, {})

    @property
    def gene_names(self) -> NDArray[np.str_]:
        """Names of the genes in their order, (G,)."""
        return self.state(REGISTRY_KEYS.X_KEY)["column_names"]

    @property
    def layer(self) -> str | None:
        """Layer of the data; ``None`` is ``X``."""
        return self.arguments["layer"]

    @property
    def labels_key(self) -> str | None:
        """Column of the labels in obs; ``None`` without labels."""
        return self.arguments["labels_key"]

    @property
    def label_names(self) -> list[str]:
        """Names of the labels in the order of their components; empty without labels."""
        state = self.state(REGISTRY_KEYS.LABELS_KEY)
        if LabelsField.UNLABELED_CATEGORY not in state:
            return []
        return [str(name) for name in state[LabelsField.CATEGORICAL_MAPPING_KEY][:-1]]

    @property
    def categories(self) -> dict[str, Sequence[object]]:
        """Categories of each registered categorical condition, by its column in obs."""
        known = {}
        if self.arguments.get("batch_key") is not None:
            state = self.state(REGISTRY_KEYS.BATCH_KEY)
            known[self.arguments["batch_key"]] = state["categorical_mapping"]
        if self.arguments.get("categorical_covariate_keys"):
            known |= self.state(REGISTRY_KEYS.CAT_COVS_KEY)["mappings"]
        return known

    @property
    def continuous(self) -> list[str]:
        """Columns of the registered continuous conditions in obs."""
        return list(self.arguments["continuous_covariate_keys"] or ())

    @property
    def has_size_factors(self) -> bool:
        """Whether cells have size factors, used in place of the observed library size."""
        field = self._registry[scvi_constants._FIELD_REGISTRIES_KEY][REGISTRY_KEYS.SIZE_FACTOR_KEY]
        return bool(field["data_registry"])

    @property
    def columns(self) -> list[str]:
        """All registered columns of obs."""
        keys = ("labels_key", *CONDITION_ARGUMENTS)
        named = [self.arguments.get(key) or () for key in keys]
        return [n for names in named for n in ([names] if isinstance(names, str) else names)]

    @property
    def condition_names(self) -> list[str]:
        """Columns of all registered conditions in obs, categorical ones first."""
        return [*self.categories, *self.continuous]


def label_codes(manager: AnnDataManager) -> NDArray[np.int64]:
    """Label of each cell as the number of its component, −1 if it has none, (n,).

    Parameters
    ----------
    manager
        Manager of the AnnData.
    """
    n_labels = len(Setup(manager.registry).label_names)
    if not n_labels:
        return np.full(manager.adata.n_obs, -1)
    codes = manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY).ravel().astype(np.int64)
    return np.where(codes == n_labels, -1, codes)  # the unlabelled category is the last code
