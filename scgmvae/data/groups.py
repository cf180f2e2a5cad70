"""Groups of cells, by a column of obs, that are to be compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgmvae.checks import listed, listed_like
from scgmvae.data import validation
from scgmvae.data.categories import name_of, names_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["groups_of", "groups_to_compare"]

MOST_GROUPS = 200
"""Number of groups from which on a column of numbers is taken for a measurement."""


def groups_of(adata: AnnData, **key: str) -> pd.Series:
    """Groups of the cells by name, as a categorical of the groups that have cells.

    Parameters
    ----------
    adata
        The data.
    **key
        Argument name → obs column. Cells without a value have no group.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If no cell has a group, or the column holds measurements.
    """
    ((argument, name),) = key.items()
    named: dict[str, Any] = {argument: name}
    validation.check_columns(adata, is_whole=False, **named)
    column = adata.obs[name]
    is_categorical = isinstance(column.dtype, pd.CategoricalDtype)
    values = column.cat.categories if is_categorical else pd.unique(column.dropna())
    if not is_categorical:
        by_size = values.dtype.kind in "biuf"
        values = sorted(values) if by_size else sorted(values, key=name_of)
        if by_size and len(values) > MOST_GROUPS:
            raise ValueError(
                f"{argument} must name an obs column of groups, but {name!r} has {len(values):,} "
                "different numbers. Make groups of them, for example with pandas.cut."
            )
    names = pd.unique(np.array([name_of(value) for value in values], dtype=object))
    of_cells = pd.Series(names_of(column), index=adata.obs_names).where(column.notna())
    groups = of_cells.astype(pd.CategoricalDtype(names)).cat.remove_unused_categories()
    if not len(groups.cat.categories):
        raise ValueError(f"No cell has a value in the obs column {name!r} ({argument}).")
    return groups


def groups_to_compare(
    adata: AnnData, groupby: str | None, group1: Any, group2: Any
) -> tuple[list[object], object]:
    """Groups that have cells, as the values that the column has.

    Parameters
    ----------
    adata
        The data.
    groupby
        obs column of the groups.
    group1
        Group or list of groups, compared by name; ``None`` is every group with cells.
    group2
        Group that each of them is compared with; ``None`` is all other cells.

    Returns
    -------
    The groups, and the group that each of them is compared with.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If there is no group of a name, or nothing to compare it with.
    """
    if groupby is None:
        raise ValueError(
            "Name what to compare: an obs column with groupby=..., for example groupby='scgmvae' "
            "for the clusters, or two sets of cells with idx1=... and idx2=..."
        )
    validation.check_columns(adata, is_whole=False, groupby=groupby)
    column = adata.obs[groupby].astype("category").cat.remove_unused_categories()
    known = {name_of(value): value for value in column.cat.categories}

    def found(name: str, groups: Any) -> list[object]:
        is_one = isinstance(groups, str) or not isinstance(groups, Iterable)
        asked = [groups] if is_one else list(groups)
        unknown = [group for group in asked if name_of(group, known) not in known]
        if unknown or not asked:
            what = f"{listed(unknown)} has no cells" if unknown else "the list is empty"
            raise ValueError(
                f"{name} must name groups in the obs column {groupby!r}, but {what}. Groups with "
                f"cells are: {listed_like(unknown[0] if unknown else '', known)}."
            )
        return [known[name_of(group, known)] for group in asked]

    first = list(known.values()) if group1 is None else found("group1", group1)
    if group2 is not None:
        others = found("group2", group2)
        if len(others) > 1:
            raise ValueError(
                f"group2 must be one group, but it is {group2!r}. Compare with several by idx1 "
                "and idx2."
            )
        return first, others[0]
    if len(known) == 1:
        raise ValueError(
            "A group is compared with the other cells, but all cells are in the group "
            f"{next(iter(known))!r} of the obs column {groupby!r}. Name another column."
        )
    return first, None
