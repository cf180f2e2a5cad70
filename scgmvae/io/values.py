"""Conversion of values to JSON, with arrays beside it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KIND", "decode", "encode"]

KIND = "type"
"""Key of a JSON object that stands for a value that JSON does not have."""


def encode(value: object, arrays: dict[str, NDArray]) -> object:
    """Value as JSON has it; arrays of numbers go into ``arrays``, and their names stay.

    Parameters
    ----------
    value
        Numbers, strings, ``None``, arrays, tensors, DataFrames, and lists, tuples and mappings of
        these.
    arrays
        Dictionary that receives the arrays.

    Raises
    ------
    TypeError
        For any other value.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return {KIND: "scalar", "dtype": value.dtype.str, "value": encode(value.item(), arrays)}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            name = str(len(arrays))
            arrays[name] = np.array(value, order="C")
            return {KIND: "array", "name": name}
        values = [encode(v, arrays) for v in value.ravel().tolist()]
        kind = "U" if value.dtype.kind == "U" else "O"
        return {KIND: "array", "kind": kind, "shape": value.shape, "values": values}
    if isinstance(value, Tensor):
        return {KIND: "tensor", "value": encode(value.detach().cpu().numpy(), arrays)}
    if isinstance(value, pd.DataFrame):
        columns = [encode(value[name].to_numpy(), arrays) for name in value.columns]
        return {
            KIND: "frame",
            "names": [encode(name, arrays) for name in value.columns],
            "index": encode(value.index.to_numpy(), arrays),
            "index_name": value.index.name,
            "columns": columns,
        }
    if isinstance(value, list):
        return [encode(v, arrays) for v in value]
    if isinstance(value, tuple):
        return {KIND: "tuple", "values": [encode(v, arrays) for v in value]}
    if isinstance(value, Mapping):
        items = [[encode(k, arrays), encode(v, arrays)] for k, v in value.items()]
        return {KIND: "mapping", "items": items}
    raise TypeError(f"{value!r}, a {type(value).__name__}")


def decode(value: Any, arrays: Mapping[str, NDArray]) -> Any:
    """The value that :func:`encode` was given.

    Parameters
    ----------
    value
        Value as parsed from JSON.
    arrays
        The arrays that the value names.
    """
    if isinstance(value, list):
        return [decode(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    kind = value[KIND]
    if kind == "scalar":
        return np.dtype(value["dtype"]).type(decode(value["value"], arrays))
    if kind == "array" and "name" in value:
        return arrays[value["name"]]
    if kind == "array":
        values = [decode(v, arrays) for v in value["values"]]
        if value["kind"] == "U":
            return np.array(values, dtype=str).reshape(value["shape"])
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape(value["shape"])
    if kind == "frame":
        index = pd.Index(decode(value["index"], arrays), name=value["index_name"])
        columns = [decode(column, arrays) for column in value["columns"]]
        frame = pd.DataFrame(dict(enumerate(columns)), index=index)
        return frame.set_axis([decode(name, arrays) for name in value["names"]], axis=1)
    if kind == "tensor":
        return torch.from_numpy(decode(value["value"], arrays))
    if kind == "tuple":
        return tuple(decode(v, arrays) for v in value["values"])
    return {decode(k, arrays): decode(v, arrays) for k, v in value["items"]}
