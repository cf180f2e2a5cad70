"""Categories of conditions: which of them count, and when two are the same.

Categories are compared by name everywhere: 0, 0.0 and ``"0"`` are the same batch, and so are True
and ``"True"``, whatever type a column has in one file or another. Only those with cells count.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import settings
from scvi.data.fields import CategoricalJointObsField, CategoricalObsField

from scgmvae.checks import listed

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["CategoricalField", "CategoricalFields", "name_of", "names_of"]

FEW_CELLS = 3
"""Number of cells below which a category is warned of, as in scvi-tools."""


def name_of(value: object, known: Container[str] = ()) -> str:
    """Name of a category: its text, where a whole number has no decimals.

    Parameters
    ----------
    value
        The category, of any type.
    known
        Names that there are: ``"0.0"``, as files have it, is 0 where that is one of them.

    Examples
    --------
    >>> name_of(0.0), name_of(True), name_of("0.0"), name_of("0.0", {"0", "1"})
    ('0', 'True', '0.0', '0')
    """
    if isinstance(value, float | np.floating):
        # in single precision, in which 0.1 is the same in every file
        name = str(int(value)) if float(value).is_integer() else str(np.float32(value))
    else:
        name = str(value)
    if name in known or not known:
        return name
    other = name.removesuffix(".0") if name.endswith(".0") else f"{name}.0"
    return other if other in known else name


def names_of(column: pd.Series, known: Container[str] = ()) -> NDArray[np.object_]:
    """Name of each cell's category, (n,); ``"nan"`` where it has none.

    Parameters
    ----------
    column
        Column of obs, of any type.
    known
        Names that there are, see :func:`name_of`.
    """
    codes, values = pd.factorize(column)
    return np.array([*(name_of(value, known) for value in values), "nan"], dtype=object)[codes]


def _check_known(adata: AnnData, column: str, known: Iterable[object]) -> None:
    """Raise ``ValueError`` where a column of new data holds categories the model does not know."""
    names = list(map(name_of, known))
    unseen = sorted(set(names_of(adata.obs[column], names)) - set(names))
    if unseen:
        raise ValueError(
            f"The obs column {column!r} of the new data holds categories that the model was not "
            f"trained on: {listed(unseen)}. Known are: {listed(names)}. To map them to the "
            "model, make a model of the new data with SCGMVAE.load_query_data(adata, model)."
        )


def _codes(column: pd.Series, known: Iterable[object]) -> NDArray[np.int32]:
    """Code of each cell, (n,): the place of its category among the known ones."""
    names = [name_of(value) for value in known]
    return pd.Index(names).get_indexer(names_of(column, names)).astype(np.int32)


def _found(column: pd.Series, known: NDArray | None = None) -> NDArray:
    """Known categories, and after them those of a column that are new and are to be learned.

    Raises
    ------
    ValueError
        If every cell has a new category of its own.

    Warns
    -----
    UserWarning
        If a new category has fewer than three cells.
    """
    if column.dtype == np.float16:  # pandas cannot sort it
        column = column.astype(np.float32)
    in_use = column.astype("category").cat.remove_unused_categories().cat.categories
    of_known = [] if known is None else [name_of(value) for value in known]
    names = pd.Index(names_of(pd.Series(in_use), of_known))
    is_new = ~names.duplicated() & ~names.isin(of_known)
    new = in_use[is_new].to_numpy()
    if new.dtype.kind not in "biufOU":  # dates, which have other names in numpy
        new = np.array(list(in_use[is_new]), dtype=object)
    sizes = pd.Series(names_of(column, of_known)).value_counts()
    few = [name for name in names[is_new] if sizes[name] < FEW_CELLS]
    if len(new) == len(column) > FEW_CELLS:
        raise ValueError(
            f"A categorical condition has cells in common, but every cell has a value of its own "
            f"in the obs column {column.name!r}. Name a column of groups, and one of numbers "
            "under continuous_covariate_keys."
        )
    if few:
        is_number = column.dtype.kind == "f"
        remedy = " Numbers belong under continuous_covariate_keys." if is_number else ""
        warnings.warn(
            f"The obs column {column.name!r} has fewer than {FEW_CELLS} cells of {listed(few)}, "
            f"which is too few to learn what is special about them.{remedy}",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return new if known is None else np.concatenate([known, new]) if len(new) else known


class CategoricalField(CategoricalObsField):
    """A column of obs as codes of its categories, or one category for all cells.

    scvi-tools' field counts categories without cells, compares values of different types as
    different, and cannot sort a column of several types.

    Parameters
    ----------
    registry_key
        Key to register the field under.
    obs_key
        Column of obs; ``None`` puts all cells into one category.
    """

    def register_field(self, adata: AnnData) -> dict:
        """Write the codes of the categories that have cells."""
        if self.is_default:
            return self._of_one_category(adata)
        return self._register(adata, _found(adata.obs[self._original_attr_key]))

    def transfer_field(
        self,
        state_registry: dict,
        adata_target: AnnData,
        extend_categories: bool = False,
        **kwargs: Any,
    ) -> dict:
        """Write the codes that a model's categories have, and further codes for new ones."""
        if self.is_default:
            return self._of_one_category(adata_target)
        known, key = state_registry[self.CATEGORICAL_MAPPING_KEY], self._original_attr_key
        if extend_categories:
            known = _found(adata_target.obs[key], known)
        _check_known(adata_target, key, known)
        return self._register(adata_target, known)

    def _of_one_category(self, adata: AnnData) -> dict:
        self._setup_default_attr(adata)
        return self._state(np.zeros(1, dtype=np.int64))

    def _register(self, adata: AnnData, categories: NDArray) -> dict:
        adata.obs[self.attr_key] = _codes(adata.obs[self._original_attr_key], categories)
        return self._state(categories)

    def _state(self, categories: NDArray) -> dict:
        return {
            self.CATEGORICAL_MAPPING_KEY: categories,
            self.ORIGINAL_ATTR_KEY: self._original_attr_key,
        }

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Number of categories."""
        return {self.count_stat_key: len(state_registry[self.CATEGORICAL_MAPPING_KEY])}


class CategoricalFields(CategoricalJointObsField):
    """Several columns of obs as codes of their categories, see :class:`CategoricalField`.

    Parameters
    ----------
    registry_key
        Key to register the fields under.
    obs_keys
        Columns of obs.
    """

    def register_field(self, adata: AnnData) -> dict:
        """Write the codes of the categories that have cells."""
        return self._register(adata, {key: _found(adata.obs[key]) for key in self.attr_keys})

    def transfer_field(
        self,
        state_registry: dict,
        adata_target: AnnData,
        extend_categories: bool = False,
        **kwargs: Any,
    ) -> dict:
        """Write the codes that a model's categories have, and further codes for new ones."""
        known = state_registry[self.MAPPINGS_KEY]
        if extend_categories:
            known = {key: _found(adata_target.obs[key], known[key]) for key in self.attr_keys}
        for key in self.attr_keys:
            _check_known(adata_target, key, known[key])
        return self._register(adata_target, known)

    def _register(self, adata: AnnData, categories: dict[str, NDArray]) -> dict:
        codes = {key: _codes(adata.obs[key], categories[key]) for key in self.attr_keys}
        adata.obsm[self.attr_key] = pd.DataFrame(codes, index=adata.obs_names)
        return {
            self.MAPPINGS_KEY: categories,
            self.FIELD_KEYS_KEY: self.attr_keys,
            self.N_CATS_PER_KEY: [len(categories[key]) for key in self.attr_keys],
        }
