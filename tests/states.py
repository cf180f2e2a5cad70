"""Fingerprints of an AnnData, a model and the random states, to compare before and after."""

import hashlib
import random
from collections.abc import Mapping
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

PARTS = ("uns", "obsm", "varm", "obsp", "layers")


def digest(value):
    """Fingerprint of any value that an AnnData or a model holds; types and shapes count."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if sparse.issparse(value):
        value = (value.format, value.shape, value.tocsr().toarray())
    elif isinstance(value, pd.DataFrame):
        columns = [(name, str(value[name].dtype), value[name].to_numpy()) for name in value]
        value = (value.index.to_numpy(), columns)
    elif isinstance(value, Mapping):
        value = sorted((str(key), digest(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        value = repr([digest(item) for item in value])
    elif isinstance(value, np.ndarray):
        kind = f"{value.dtype}{value.shape}{np.ma.isMaskedArray(value)}"
        plain = value.dtype.kind in "biufc"
        return hashlib.sha1(
            kind.encode()
            + (
                value.tobytes()
                if plain
                else repr([digest(item) for item in value.ravel().tolist()]).encode()
            )
        ).hexdigest()
    return hashlib.sha1(f"{type(value).__name__}{value!r}".encode()).hexdigest()


def parts_of(thing):
    """Fingerprint of each part of an AnnData or a model, by its name."""
    if isinstance(thing, AnnData):
        parts = {name: getattr(thing, name) for name in ("X", "obs", "var")}
        if thing.isbacked:
            parts["X"] = thing.X[:]
        for part in PARTS:
            parts |= {f"{part}[{key!r}]": value for key, value in getattr(thing, part).items()}
        return {name: digest(value) for name, value in parts.items()}
    parts = {f"parameter {name}": value for name, value in thing.module.state_dict().items()}
    parts |= {f"history {name}": value for name, value in (thing.history_ or {}).items()}
    settings = ("is_trained_", "n_components_", "component_clusters_", "seed_")
    settings += ("mixture_started_", "registry_", "occupied_means_", "distance_quantiles_")
    parts |= {name: getattr(thing, name, None) for name in settings}
    parts |= {"summary": thing._model_summary_string, "training mode": thing.module.training}
    parts = {name: digest(value) for name, value in parts.items()}
    if thing.adata is not None:
        parts |= {f"adata.{name}": value for name, value in parts_of(thing.adata).items()}
    return parts


def random_states():
    """Fingerprints of the global random states."""
    return {
        "random": digest(list(random.getstate()[1])),
        "numpy": digest(list(np.random.get_state())),  # noqa: NPY002, it must stay as it is
        "torch": digest(torch.get_rng_state()),
    }


@contextmanager
def unchanged(*things):
    """Assert that things, and the global random states, are after the block as before it."""
    before = [parts_of(thing) for thing in things], random_states()
    yield
    assert ([parts_of(thing) for thing in things], random_states()) == before
