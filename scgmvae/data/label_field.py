"""The field of labels: names for some cells, none for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi.data.fields import CategoricalObsField

from scgmvae.data.categories import name_of, names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["LabelsField"]


class LabelsField(CategoricalObsField):
    """Labels of cells as codes; the last code means that a cell has no label.

    Names are compared as those of conditions are, so the column can be of any type. Only names
    that some cell has count: a category without cells is no label. Cells with a missing value are
    unlabelled. In data that is registered with the names of a model, so are cells with another
    name, or without the column. The column itself is never changed.

    scvi-tools' ``LabelsWithUnlabeledObsField`` counts categories without cells, and refuses names
    that a model does not know.

    Parameters
    ----------
    registry_key
        Key to register the field under.
    obs_key
        Column of obs.
    unlabeled_category
        Value of that column for cells without a label.
    """

    UNLABELED_CATEGORY = "unlabeled_category"

    def __init__(self, registry_key: str, obs_key: str, unlabeled_category: object):
        super().__init__(registry_key, obs_key)
        self._unlabeled_category = unlabeled_category

    def validate_field(self, adata: AnnData) -> None:
        """Data without the column is valid: all its cells are unlabelled."""

    def register_field(self, adata: AnnData) -> dict:
        """Write the codes of the labels that occur, in their order."""
        values = adata.obs[self._original_attr_key].dropna().astype(object)
        values = values[names_of(values) != name_of(self._unlabeled_category)]
        try:
            names = sorted(values.unique())
        except TypeError:  # values of several types cannot be sorted
            names = sorted(values.unique(), key=str)
        return self._register(adata, [name_of(name) for name in names])

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        """Write the codes of the labels that a model knows."""
        return self._register(adata_target, state_registry[self.CATEGORICAL_MAPPING_KEY][:-1])

    def _register(self, adata: AnnData, names: Sequence[str]) -> dict:
        names = list(dict.fromkeys(names))
        column = adata.obs.get(self._original_attr_key)
        codes = np.full(adata.n_obs, -1)
        if column is not None:
            codes = pd.Index(names).get_indexer(names_of(column))
        adata.obs[self.attr_key] = np.where(codes < 0, len(names), codes).astype(np.int64)
        return {
            self.CATEGORICAL_MAPPING_KEY: np.array([*names, name_of(self._unlabeled_category)]),
            self.ORIGINAL_ATTR_KEY: self._original_attr_key,
            self.UNLABELED_CATEGORY: self._unlabeled_category,
        }
