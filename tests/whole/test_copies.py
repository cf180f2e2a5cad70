"""Copies and views of registered data, and annotation over what an earlier model wrote."""

import lightning.pytorch as pl
import numpy as np
import pytest

import scgmvae


@pytest.fixture
def batches():
    adata = scgmvae.datasets.synthetic_counts(120, 30, n_components=2, n_batches=2, seed=0)
    scgmvae.SCGMVAE.setup_anndata(adata, batch_key="batch")
    model = scgmvae.SCGMVAE(adata, n_components=2, n_hidden=16, n_latent=3)
    model.train(1, 1, enable_progress_bar=False)
    return adata, model


def test_a_copy_read_by_the_model_leaves_the_original_registered(batches):
    adata, model = batches
    identity = adata.uns["_scvi_uuid"]
    expected = model.predict()
    np.testing.assert_array_equal(model.predict(adata.copy()), expected)
    np.testing.assert_array_equal(model.predict(), expected)
    assert adata.uns["_scvi_uuid"] == identity
    assert scgmvae.SCGMVAE(adata).summary_stats.n_batch == 2


def test_a_model_of_a_copy_is_set_up_as_the_original_was(batches):
    adata, _ = batches
    copy = adata.copy()
    assert scgmvae.SCGMVAE(copy).summary_stats.n_batch == 2
    assert copy.uns["_scvi_uuid"] != adata.uns["_scvi_uuid"]


def test_a_view_is_read_but_not_written_to(batches):
    adata, model = batches
    expected = model.predict()[:7]
    np.testing.assert_array_equal(model.predict(adata[:7]), expected)
    with pytest.raises(ValueError, match=r"a view of another.*adata\.copy\(\)"):
        model.annotate(adata[:7])
    with pytest.raises(ValueError, match=r"a view of another.*adata\.copy\(\)"):
        scgmvae.SCGMVAE(adata[:7])


def test_an_embedding_without_components_leaves_no_clusters_of_another_model(batches):
    adata, _ = batches
    vae = scgmvae.SCGMVAE(adata, prior="normal", n_latent=3, n_hidden=16)
    vae.train(1, 1, enable_progress_bar=False)
    assert not [name for name in adata.obs if name.startswith("scgmvae")]
    assert set(adata.obsm) == {"X_scgmvae"}
    assert adata.uns["scgmvae"]["params"]["prior"] == "normal"


def test_annotation_does_not_overwrite_what_the_model_reads(batches):
    adata, model = batches
    before = adata.obs["batch"].copy()
    with pytest.raises(ValueError, match="key_added='batch' would overwrite"):
        model.annotate(key_added="batch")
    assert adata.obs["batch"].equals(before)


def test_a_failed_training_does_not_bind_the_next_to_the_k_it_found(batches):
    adata, _ = batches
    model = scgmvae.SCGMVAE(adata, n_hidden=16, n_latent=3)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if pl_module.module.mixture_started:
                raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        model.train(2, 1, enable_progress_bar=False, callbacks=[Stop()])
    assert not model.is_trained
    model.train(1, 1, enable_progress_bar=False)
    assert model.init_params_["non_kwargs"]["n_components"] is None
    assert model.n_components_ == len(model.component_table())
    # from the beginning: pretraining as well
    assert len(model.history["elbo_train"]) == 2


def test_predict_of_no_cells_is_refused(batches):
    with pytest.raises(ValueError, match="indices must select at least one cell"):
        batches[1].predict(indices=[])
