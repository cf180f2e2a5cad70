"""A trained model for the examples in docstrings, which show one call each."""

import numpy as np
import pytest

import scgmvae


@pytest.fixture(scope="session")
def example():
    """Model of 300 cells × 50 genes of 3 components in 2 batches."""
    adata = scgmvae.datasets.synthetic_counts(300, 50, n_components=3, n_batches=2, seed=0)
    scgmvae.SCGMVAE.setup_anndata(adata, batch_key="batch")
    model = scgmvae.SCGMVAE(adata, n_components=3)
    length = {"max_epochs": 5, "pretrain_epochs": 20}
    model.train(accelerator="cpu", enable_progress_bar=False, **length)
    return model


@pytest.fixture(autouse=True)
def names_in_examples(request, doctest_namespace):
    """``model``, trained once and for docstrings alone, and ``adata``, a copy of its data."""
    if isinstance(request.node, pytest.DoctestItem):
        model = request.getfixturevalue("example")
        doctest_namespace |= {"np": np, "scgmvae": scgmvae}
        doctest_namespace |= {"model": model, "adata": model.adata.copy()}
