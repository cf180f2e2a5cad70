"""Groups of cells, by a column of obs, that are to be compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from scgmvae.checks import listed, listed_like
from scgmvae.data import validation
from scgmvae.data.categories import name_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["groups_to_compare"]


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
