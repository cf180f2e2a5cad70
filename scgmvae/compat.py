"""Differences between versions of the packages underneath, and what they do to each other.

What is written alike for all versions needs nothing here: arguments of scvi-tools' methods are
passed by name, because 1.5 has more of them, and columns that may hold ``None`` are made with
``dtype=object``, because pandas 3 would take them for strings.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from anndata import AnnData

__all__ = ["mudata_contained", "named_layers", "neighbors_package", "torch_threads_kept"]


def named_layers(adata: AnnData) -> dict[str, Any]:
    """The layers of an AnnData beside X, which is a layer of the name ``None`` from 0.13 on.

    Parameters
    ----------
    adata
        The data.
    """
    return {name: layer for name, layer in adata.layers.items() if name is not None}


def neighbors_package() -> ModuleType:
    """The package whose ``pp.neighbors`` is used: rapids-singlecell where it can run, else scanpy.

    rapids-singlecell has the interface of scanpy and searches on the GPU. Its search is exact, and
    that of scanpy is not from some thousand cells on, so a few edges of the graphs differ.
    """
    on_gpu = torch.cuda.is_available() and importlib.util.find_spec("rapids_singlecell")
    return importlib.import_module("rapids_singlecell" if on_gpu else "scanpy")


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Restore torch's number of threads after a block or a function.

    numba, and so scanpy and umap, hand back all cores when they are first called, to torch as
    well. Where other work keeps the cores busy, torch then waits for its threads most of the
    time; and on another number of threads sums differ in their last digit.
    """
    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def mudata_contained() -> Iterator[None]:
    """Keep mudata from what it does on the side when it makes a MuData.

    It draws the names of columns for a moment from the global random state, and up to 0.3 it
    copies columns of the modalities, with a warning. It is imported here, because that takes
    longer than the data sets that do not need it.
    """
    import mudata

    state = random.getstate()
    try:
        if hasattr(mudata, "set_options"):
            with mudata.set_options(pull_on_update=False):
                yield
        else:
            yield
    finally:
        random.setstate(state)
