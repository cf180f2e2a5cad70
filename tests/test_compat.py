"""Tests of compat: what the package finds underneath, and what it uses of it."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from scipy import sparse

from scgmvae import compat
from scgmvae.clustering.partition import initial_partition, neighbor_graph


def test_layers_have_names():
    adata = AnnData(np.ones((3, 2)), layers={"counts": np.zeros((3, 2))})
    assert list(compat.named_layers(adata)) == ["counts"]


@pytest.fixture
def rapids(monkeypatch):
    """A module in the place of rapids-singlecell, and what it was asked."""
    asked = []

    def neighbors(adata, **settings):
        asked.append(settings)
        n = adata.n_obs
        adata.obsp["connectivities"] = sparse.block_diag([np.ones((n // 2, n // 2))] * 2).tocsr()

    module = ModuleType("rapids_singlecell")
    module.pp = SimpleNamespace(neighbors=neighbors)
    module.__spec__ = SimpleNamespace(name="rapids_singlecell")
    monkeypatch.setitem(sys.modules, "rapids_singlecell", module)
    return asked


def test_neighbors_are_found_on_a_gpu_where_rapids_is_installed(rapids, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    x = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    graph = neighbor_graph(x, seed=3)
    assert isinstance(graph, sparse.csr_matrix)
    assert rapids == [{"n_neighbors": 16, "use_rep": "X", "random_state": 3}]
    found = initial_partition(x, 2, seed=3, straight=False)
    np.testing.assert_array_equal(found, np.repeat([0, 1], 40))


def test_scanpy_finds_the_neighbors_without_a_gpu(rapids, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compat.neighbors_package() is sc
    neighbor_graph(np.random.default_rng(0).normal(size=(80, 3)))
    assert rapids == []


def test_scanpy_finds_the_neighbors_where_rapids_is_not_installed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    assert compat.neighbors_package() is sc
