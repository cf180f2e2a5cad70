"""Conditions as a user names them, and the place of each in a minibatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from scgmvae.checks import is_number, listed
from scgmvae.data.categories import name_of

if TYPE_CHECKING:
    from scgmvae.data.registry import Setup

__all__ = ["Condition", "columns_of", "registered_conditions", "resolved"]


class Condition(NamedTuple):
    """A registered condition and the value that it is set to."""

    column: str
    """Column of the condition in obs."""
    key: str
    """Key of the field that holds the condition in a minibatch."""
    position: int
    """Column of the condition within that field."""
    code: float
    """Number that stands for the value in the field: the code of a category, or the value."""
    categories: Sequence[object] | None
    """All categories of the condition; ``None`` for a continuous condition."""

    def values(self, index: pd.Index) -> pd.Series:
        """Column for obs that has the same value in every row.

        Parameters
        ----------
        index
            Names of the cells.
        """
        if self.categories is None:
            return pd.Series(self.code, index=index)
        codes = np.full(len(index), self.code)
        return pd.Series(pd.Categorical.from_codes(codes, self.categories), index=index)


def columns_of(conditions: Sequence[Condition], index: pd.Index) -> dict[str, pd.Series]:
    """Columns for obs that hold the conditions, by name."""
    return {condition.column: condition.values(index) for condition in conditions}


def registered_conditions(setup: Setup) -> str:
    """A sentence that names the registered conditions."""
    names = setup.condition_names
    return f"Registered are: {listed(names)}." if names else "None is registered."


def resolved(conditions: Mapping[str, object], setup: Setup) -> list[Condition]:
    """Find the place of each condition in a minibatch, and the number that stands for its value.

    Parameters
    ----------
    conditions
        Column of a registered condition in obs → its value.
    setup
        What the model was set up with.

    Raises
    ------
    ValueError
        If a column is not a registered condition, or the model does not know a value.
    """
    if not isinstance(conditions, Mapping):
        raise ValueError(
            "conditions must map columns to values, as {'condition': 'stimulated'} does, but "
            f"it is {conditions!r}."
        )
    fields = {
        REGISTRY_KEYS.BATCH_KEY: [setup.arguments["batch_key"]],
        REGISTRY_KEYS.CAT_COVS_KEY: setup.arguments["categorical_covariate_keys"] or [],
        REGISTRY_KEYS.CONT_COVS_KEY: setup.continuous,
    }
    known, found = setup.categories, []
    for column, value in conditions.items():
        if column not in setup.condition_names:
            raise ValueError(
                f"{column!r} is no condition that the model was set up with. "
                f"{registered_conditions(setup)}"
            )
        for key, columns in fields.items():
            if column not in columns:
                continue
            categories = None if key == REGISTRY_KEYS.CONT_COVS_KEY else known[column]
            if categories is None:
                code = _finite_number(column, value)
            else:
                code = _code_of(column, value, categories)
            found.append(Condition(column, key, columns.index(column), code, categories))
    return found


def _code_of(column: str, value: object, categories: Sequence[object]) -> int:
    """Code of a category of a condition; ``ValueError`` if the model does not know it."""
    names = list(map(name_of, categories))
    if name_of(value, names) not in names:
        raise ValueError(
            f"{value!r} is no value of the condition {column!r} that the model was trained on. "
            f"Known are: {listed(names)}."
        )
    return names.index(name_of(value, names))


def _finite_number(column: str, value: Any) -> float:
    """Value of a continuous condition; ``ValueError`` if it is not a finite number."""
    number = pd.to_numeric(value, errors="coerce") if np.ndim(value) == 0 else np.nan
    if isinstance(value, bool | np.bool_):
        number = int(value)
    if not is_number(number):
        raise ValueError(
            f"{column!r} is a continuous condition, so its value must be a finite number, but it "
            f"is {value!r}."
        )
    return float(number)
