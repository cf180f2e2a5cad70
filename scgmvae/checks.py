"""Checks of the input. Each error names the rule, what was found and what to do."""

from __future__ import annotations

from difflib import SequenceMatcher
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "check_at_least",
    "check_choices",
    "check_positive",
    "check_rate",
    "check_seed",
    "check_share",
    "check_whole",
    "is_number",
    "listed",
    "listed_like",
]


LARGEST_SEED = 2**32 - 1
"""Largest seed of numpy's global random state, which scikit-learn and scvi-tools use."""

MAX_LISTED = 10
"""Number of names that a message lists; it only counts the others."""


def listed(names: Sequence[object]) -> str:
    """Text with the first names, and the number of further names."""
    shown = ", ".join(repr(str(name)) for name in names[:MAX_LISTED])
    more = len(names) - MAX_LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def listed_like(wanted: object, names: Iterable[object]) -> str:
    """Text with names, those that are most like a wanted one first.

    Parameters
    ----------
    wanted
        What was asked for and is not among the names.
    names
        The names that there are.

    Examples
    --------
    >>> listed_like("batch", ["n_counts", "Batch"])
    "'Batch', 'n_counts'"
    """
    likeness = {name: _likeness(wanted, name) for name in names}
    return listed(sorted(likeness, key=likeness.__getitem__, reverse=True))


def _likeness(wanted: object, name: object) -> float:
    return SequenceMatcher(None, str(wanted).lower(), str(name).lower()).ratio()


def is_number(value: Any) -> bool:
    """Whether a value is a real number that is finite in single precision; a boolean is none."""
    is_real = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    return is_real and abs(float(value)) <= float(np.finfo(np.float32).max)


def _received(value: object) -> str:
    return repr(value) if is_number(value) else f"{value!r}, which is no finite number"


def check_at_least(smallest: float, **values: float | None) -> None:
    """Raise ``ValueError`` unless a number is finite and not below the smallest; None passes."""
    for name, value in values.items():
        if value is not None and not (is_number(value) and value >= smallest):
            raise ValueError(f"{name} must be at least {smallest}, but it is {_received(value)}.")


def check_positive(**values: float) -> None:
    """Raise ``ValueError`` unless a named number is finite and above 0."""
    for name, value in values.items():
        if not (is_number(value) and value > 0):
            raise ValueError(f"{name} must be above 0, but it is {_received(value)}.")


def check_rate(**values: float) -> None:
    """Raise ``ValueError`` unless a named number is from 0 to below 1."""
    for name, value in values.items():
        if not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} must be at least 0 and below 1, but it is {value!r}.")


def check_share(**values: float) -> None:
    """Raise ``ValueError`` unless a named number is from 0 to 1."""
    for name, value in values.items():
        if not (is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{name} must be from 0 to 1, but it is {value!r}.")


def check_seed(seed: int) -> None:
    """Raise ``ValueError`` for a seed that does not suit every random state in use."""
    is_integer = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not (is_integer and 0 <= seed <= LARGEST_SEED):
        raise ValueError(f"seed must be an integer from 0 to {LARGEST_SEED}, but it is {seed!r}.")


def check_whole(smallest: int, **values: int) -> None:
    """Raise ``ValueError`` where a named value is no integer, or below the smallest."""
    for name, value in values.items():
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_integer or value < smallest:
            raise ValueError(
                f"{name} must be an integer of at least {smallest}, but it is {value!r}."
            )


def check_choices(**values: tuple[object, Sequence[str]]) -> None:
    """Raise ``ValueError`` if a named setting is not one of its choices."""
    for name, (value, choices) in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {tuple(choices)}, but it is {value!r}.")
