"""New cells that the model does not explain, though the encoder puts them among known ones."""

import copy

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from sklearn.metrics import roc_auc_score

from scgmvae import SCGMVAE
from scgmvae.clustering.shared_residuals import shared_residuals
from scgmvae.data.categories import names_of
from scgmvae.datasets import synthetic_counts
from scgmvae.model import misfit
from tests.multimodal import KINDS, make_mdata

N_NEW = 80
GENES = slice(150, 165)
"""Genes of the new type, which hardly any known cell has."""


def with_new_type(adata, seed):
    """The cells, and of the first of them copies that have counts of genes of their own."""
    rng = np.random.default_rng(seed)
    x = adata.X.toarray()
    x[:, GENES] = rng.poisson(0.05, (len(x), 15))
    new = x[:N_NEW].copy()
    new[:, GENES] = rng.poisson(4.0, (N_NEW, 15))
    obs = pd.concat([adata.obs, adata.obs[:N_NEW].rename("new_{}".format)])
    both = AnnData(sparse.csr_matrix(np.vstack([x, new]).astype(np.float32)), obs=obs)
    return both, np.arange(len(both)) >= adata.n_obs


@pytest.fixture(scope="module")
def known_and_new(make_model, train):
    """A model of half of the known cells, and the other half with cells of a new type."""
    adata = synthetic_counts(1200, 200, n_components=3, component_scale=2.0, n_batches=2, seed=5)
    adata, is_new = with_new_type(adata, 0)
    order = np.random.default_rng(1).permutation(np.flatnonzero(~is_new))
    trained, others = order[:700], np.r_[order[700:], np.flatnonzero(is_new)]
    model = train(
        make_model(adata[trained].copy(), {"batch_key": "batch"}),
        max_epochs=40,
        pretrain_epochs=40,
    )
    return model, adata[others].copy(), is_new[others]


def test_a_new_type_among_known_cells_is_novel(known_and_new):
    model, cells, is_new = known_and_new
    by_distance = model._distance(model._posteriors(cells))
    novelty = model.get_novelty(cells)
    assert roc_auc_score(is_new, novelty) > max(0.97, roc_auc_score(is_new, by_distance))
    assert (novelty[is_new] > 0.99).mean() > 0.95
    model.annotate(cells)
    np.testing.assert_allclose(cells.obs["scgmvae_novelty"], novelty)
    assert cells.obs["scgmvae_confidence"][is_new].mean() < 0.1


def test_new_cells_of_known_types_are_not(known_and_new):
    model, cells, is_new = known_and_new
    novelty = model.get_novelty(cells[~is_new].copy())
    assert (novelty > 0.99).mean() < 0.06
    assert 0.25 < (novelty > 0.5).mean() < 0.8


def test_nor_are_they_if_the_model_explains_no_cells_well(known_and_new, make_model, train):
    trained, cells, is_new = known_and_new
    model = make_model(trained.adata.copy(), {"batch_key": "batch"})
    train(model, max_epochs=1, pretrain_epochs=1)
    novelty = model.get_novelty(cells[~is_new].copy())
    assert (novelty > 0.99).mean() < 0.06


def test_cells_that_were_trained_on_are_known_again(known_and_new):
    model, *_ = known_and_new
    expected = model.get_novelty()
    np.testing.assert_allclose(np.sort(expected), np.linspace(0, 1, len(expected)), atol=2e-3)
    again = model.adata.copy()
    again.obs_names = [f"other {name}" for name in again.obs_names]
    np.testing.assert_array_equal(model.get_novelty(again), expected)
    changed = model.adata[::-1].copy()
    assert "misfit" in model._posteriors_to_judge(changed)


def test_a_single_cell_is_judged_by_its_distance(known_and_new):
    model, cells, _ = known_and_new
    for row in (0, len(cells) - 1):
        one = cells[[row]].copy()
        expected = model._novelty(model._posteriors(one))
        assert model.get_novelty(one) == pytest.approx(expected)


def test_the_size_of_minibatches_does_not_matter(known_and_new):
    model, cells, _ = known_and_new
    expected = model.get_novelty(cells)
    np.testing.assert_allclose(model.get_novelty(cells, batch_size=50), expected, atol=1e-4)
    loader = model._make_data_loader(model._validate_anndata(cells), batch_size=100)
    np.testing.assert_allclose(model.get_novelty(dataloader=loader), expected, atol=1e-4)


def test_many_cells_are_judged_in_parts_of_cells_of_all_sorts(known_and_new, monkeypatch):
    model, cells, is_new = known_and_new
    monkeypatch.setattr(misfit, "LARGEST_PART", 300)
    sizes = []

    def counted(z, residuals):
        sizes.append(len(z))
        return shared_residuals(z, residuals)

    monkeypatch.setattr(misfit, "shared_residuals", counted)
    novelty = model.get_novelty(cells, batch_size=10)
    assert sizes == [290, 290]
    assert roc_auc_score(is_new, novelty) > 0.97
    assert (novelty[is_new] > 0.99).mean() > 0.9


def test_a_cell_that_comes_up_several_times_is_judged_once(known_and_new):
    model, cells, is_new = known_and_new
    known = np.flatnonzero(~is_new)[:200]
    expected = model.get_novelty(cells, indices=known)
    found = model.get_novelty(cells, indices=np.tile(known, 3))
    np.testing.assert_allclose(found, np.tile(expected, 3), atol=1e-3)


def test_a_further_training_judges_by_its_own_cells(known_and_new, make_model, train):
    trained, cells, _ = known_and_new
    model = make_model(trained.adata.copy(), {"batch_key": "batch"})
    train(model, max_epochs=1, pretrain_epochs=1)
    model.adata = cells.copy()
    train(model, max_epochs=1)
    np.testing.assert_allclose(model.adata.obs["scgmvae_novelty"], model.get_novelty(), atol=1e-6)


def test_training_cells_are_recognised_on_disk(known_and_new, tmp_path):
    model, *_ = known_and_new
    plain = AnnData(model.adata.X, obs=model.adata.obs[["batch"]].astype(str))
    plain.write_h5ad(tmp_path / "cells.h5ad")
    on_disk = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_allclose(model.get_novelty(on_disk), model.get_novelty(), atol=1e-6)
    on_disk.file.close()


def test_a_query_of_a_query_knows_what_the_first_reference_did(known_and_new):
    model, cells, _ = known_and_new
    first, second = cells[::2].copy(), cells[1::2].copy()
    first.obs["batch"] = second.obs["batch"] = "laboratory 2"
    of_first = SCGMVAE.load_query_data(first, model)
    of_second = SCGMVAE.load_query_data(second, of_first)
    assert set(of_second._posteriors_to_judge()["unknown"]) == {1}


def test_minibatches_must_have_cells(known_and_new):
    model, cells, _ = known_and_new
    for data in (cells, None):
        with pytest.raises(ValueError, match="batch_size"):
            model.get_novelty(data, batch_size=0)


def test_minibatches_go_to_the_device_of_the_model(known_and_new, monkeypatch):
    model, cells, _ = known_and_new
    tensors = next(iter(model._make_data_loader(model._validate_anndata(cells), batch_size=50)))
    elsewhere = copy.copy(model)
    elsewhere.module = copy.deepcopy(model.module).to("meta")
    monkeypatch.setattr(misfit, "_with_misfit", lambda part: part[0])
    (found,) = elsewhere._judged_parts([tensors], 50)
    assert {"z_loc", "residuals", "measured", "unknown"} <= set(found)
    assert all(values.device.type == "meta" for values in found.values())


def test_genes_that_were_not_measured_do_not_count(known_and_new):
    model, cells, _ = known_and_new
    kept = np.r_[0:160]
    with pytest.warns(UserWarning, match="40"):
        query = SCGMVAE.load_query_data(cells[:, kept].copy(), model)
    loader = query._make_data_loader(query.adata, batch_size=100)
    tensors = next(iter(loader))
    found = query._residuals_of(tensors, query._inferred(tensors)[1])
    residuals = found["residuals"]
    np.testing.assert_allclose(found["measured"], 0.8)
    assert (residuals[:, 160:] == 0).all()
    assert (residuals[:, kept] != 0).all()


def test_the_effect_of_an_unknown_batch_is_not_novel(known_and_new):
    model, cells, is_new = known_and_new
    factors = np.exp(np.random.default_rng(3).normal(0, 0.3, cells.n_vars))
    other = cells.copy()
    other.X = sparse.csr_matrix(np.random.default_rng(4).poisson(cells.X.toarray() * factors))
    other.X = other.X.astype(np.float32)
    other.obs["batch"] = "of another laboratory"
    query = SCGMVAE.load_query_data(other, model)
    judged = query._posteriors_to_judge()
    assert set(judged["unknown"]) == {1}
    novelty = query.get_novelty()
    assert (novelty[~is_new] > 0.99).mean() < 0.1
    assert (novelty[is_new] > 0.99).mean() > 0.9


def test_a_number_stands_for_each_set_of_unknown_categories(make_model, train):
    adata = synthetic_counts(240, 60, n_components=2, n_batches=2, seed=2)
    adata.obs["chemistry"] = np.resize(["v2", "v3"], adata.n_obs)
    setup = {"batch_key": "batch", "categorical_covariate_keys": ["chemistry"]}
    model = train(make_model(adata.copy(), setup), max_epochs=2, pretrain_epochs=2)
    new = synthetic_counts(240, 60, n_components=2, n_batches=2, seed=3)
    new.obs["chemistry"] = adata.obs["chemistry"].to_numpy()
    batch, chemistry = names_of(new.obs["batch"]), names_of(new.obs["chemistry"])
    batch[:80], chemistry[40:120] = "new", "v4"
    new.obs["batch"], new.obs["chemistry"] = batch, chemistry
    query = SCGMVAE.load_query_data(new, model)
    found = query._posteriors_to_judge()["unknown"]
    parts = [set(found[some]) for some in (slice(0, 40), slice(40, 80), slice(80, 120))]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert len(set.union(*parts)) == 3
    assert 0 not in set.union(*parts)
    assert set(found[120:]) == {0}


def test_it_is_saved_with_the_model(known_and_new, tmp_path):
    model, cells, _ = known_and_new
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", cells)
    np.testing.assert_allclose(loaded.get_novelty(), model.get_novelty(cells), atol=1e-6)


def test_a_model_that_kept_none_goes_by_the_distance(known_and_new, tmp_path):
    model, cells, _ = known_and_new
    model.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", cells)
    loaded.misfit_quantiles_ = loaded.misfit_shifts_ = loaded.trained_on_ = None
    loaded.known_categories_ = None
    expected = model._novelty(model._posteriors(cells))
    np.testing.assert_allclose(loaded.get_novelty(), expected, atol=1e-6)


def test_modalities_that_a_cell_lacks_have_no_residuals(train):
    mdata = make_mdata(unpaired=True)
    SCGMVAE.setup_mudata(mdata, modalities=KINDS, batch_key="batch")
    model = train(SCGMVAE(mdata, n_components=3, n_hidden=32), max_epochs=2, pretrain_epochs=2)
    loader = model._make_data_loader(model.adata, batch_size=len(model.adata))
    tensors = next(iter(loader))
    found = model._residuals_of(tensors, model._inferred(tensors)[1])
    residuals = found["residuals"].detach().numpy()
    lacks = ~np.isin(model.adata.obs_names, mdata["protein"].obs_names)
    assert lacks.sum() == 60
    assert (residuals[lacks, 60:66] == 0).all()
    assert (residuals[~lacks, 60:66] != 0).all()
    judged = model._posteriors_to_judge(make_mdata(seed=1))
    assert np.isfinite(judged["misfit"]).all()


@pytest.mark.parametrize("likelihood", ["zinb", "poisson", "bernoulli", "gaussian"])
def test_every_likelihood_has_residuals(likelihood, make_model, train):
    adata = synthetic_counts(300, 40, n_components=2, seed=1)
    if likelihood == "bernoulli":
        adata.X = (adata.X > 1).astype(np.float32)
    elif likelihood == "gaussian":
        adata.X = np.log1p(adata.X.toarray())
    model = make_model(adata[:200].copy(), likelihood=likelihood)
    train(model, max_epochs=3, pretrain_epochs=3)
    judged = model._posteriors_to_judge(adata[200:].copy())
    assert np.isfinite(judged["misfit"]).all()
    p = model._p_of_misfit(judged)
    assert ((p >= 0) & (p <= 1)).all()
