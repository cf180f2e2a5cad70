"""Differences between versions of the packages underneath, met in this one place.

What is written alike for all versions needs nothing here: arguments of scvi-tools' methods are
passed by name, because 1.5 has more of them, and columns that may hold ``None`` are made with
``dtype=object``, because pandas 3 would take them for strings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["named_layers"]


def named_layers(adata: AnnData) -> dict[str, Any]:
    """The layers of an AnnData beside X, which is a layer of the name ``None`` from 0.13 on.

    Parameters
    ----------
    adata
        The data.
    """
    return {name: layer for name, layer in adata.layers.items() if name is not None}
