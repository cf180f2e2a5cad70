"""Training from disk through scvi-tools' data module of annbatch, where both are installed."""

import pytest
from sklearn.metrics import adjusted_rand_score

from scgmvae import SCGMVAE

annbatch = pytest.importorskip("annbatch", reason="annbatch wants Python 3.12 or newer")
zarr = pytest.importorskip("zarr")
dataloaders = pytest.importorskip("scvi.dataloaders")
if not hasattr(dataloaders, "AnnbatchDataModule"):
    pytest.skip("scvi-tools has had AnnbatchDataModule since 1.5", allow_module_level=True)

CHUNKS = {"chunk_size": 32, "preload_nchunks": 4, "preload_to_gpu": False, "shuffle": True}


@pytest.fixture
def make_data_module(counts, tmp_path):
    """Function that makes a data module of the counts, which are written to disk in chunks."""
    counts.write_h5ad(tmp_path / "counts.h5ad")
    collection = annbatch.DatasetCollection(zarr.open(str(tmp_path / "chunks.zarr"), mode="w"))
    collection.add_adatas([str(tmp_path / "counts.h5ad")], shuffle=True)

    def make(**columns):
        loader = annbatch.Loader(batch_size=64, to="torch", **CHUNKS)
        loader.use_collection(collection)
        names = list(counts.var_names)
        return dataloaders.AnnbatchDataModule(loader, var_names=names, **CHUNKS, **columns)

    return make


@pytest.mark.parametrize("label_key", [None, "component"])
def test_chunks_on_disk_train_a_model(counts, make_data_module, label_key):
    module = make_data_module(batch_key="batch", label_key=label_key)
    model = SCGMVAE(registry=module.registry, n_hidden=32, n_latent=5)
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    model.train(datamodule=module, max_epochs=12, pretrain_epochs=12, **quiet)
    assert model.summary_stats.n_batch == 2
    assert model._setup.label_names == sorted(set(counts.obs["component"]) if label_key else [])
    # the chunks are shuffled, so each cell of the model's sample is found by its counts
    row_of = {tuple(x): row for row, x in enumerate(counts.X.toarray())}
    rows = [row_of[tuple(x)] for x in model.adata.X.toarray()]
    assert sorted(rows) == list(range(counts.n_obs))
    component = counts.obs["component"].to_numpy()
    # of components: in so short a training their merging errs
    assert adjusted_rand_score(component[rows], model.predict(components=True)) > 0.9
