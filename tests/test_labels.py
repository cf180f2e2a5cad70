"""Labels that are known in part: their components, and what the model makes of them."""

import numpy as np
import pytest

import scgmvae
from scgmvae.partition import match_labels


@pytest.mark.parametrize(
    ("codes", "labels", "n_labels", "n_components", "expected"),
    [
        pytest.param([0, 0, 1, 1], [1, -1, 0, -1], 2, 2, [1, 1, 0, 0], id="groups take labels"),
        pytest.param([0, 0, 1, 1], [0, -1, -1, -1], 1, 2, [0, 0, 1, 1], id="free group"),
        pytest.param([0, 0, 1, 1], [0, -1, -1, -1], 1, 1, [0, 0, -1, -1], id="none left"),
        pytest.param([0, 0, 1, 1], [0, -1, -1, -1], 1, None, [0, 0, 1, 1], id="K unknown"),
        pytest.param(
            [0, 0, 0, 1, 1], [0, 0, -1, 0, -1], 1, 3, [0, 0, 0, 0, 0], id="label in two groups"
        ),
        pytest.param([0, 0, 0], [0, 1, 0], 2, 2, [0, 1, 0], id="labels share a group"),
        pytest.param([0, 0, 0, 1], [0, 0, 1, -1], 2, 3, [0, 0, 1, 2], id="label without group"),
    ],
)
def test_groups_find_the_components_of_their_labels(
    codes, labels, n_labels, n_components, expected
):
    found = match_labels(np.array(codes), np.array(labels), n_labels, n_components)
    assert found.tolist() == expected


@pytest.fixture(scope="module")
def partly_labelled():
    adata = scgmvae.datasets.synthetic_counts(400, 80, n_components=4, seed=1)
    names = adata.obs["component"].cat.categories
    known = np.random.default_rng(0).random(adata.n_obs) < 0.1
    # the fourth type has no label at all
    known &= (adata.obs["component"] != names[3]).to_numpy()
    adata.obs["label"] = np.where(known, adata.obs["component"].astype(str), "unknown")
    scgmvae.SCGMVAE.setup_anndata(adata, labels_key="label", unlabeled_category="unknown")
    model = scgmvae.SCGMVAE(adata, n_components=4)
    model.train(20, 20, enable_progress_bar=False)
    return adata, model, names


def test_components_carry_label_names_and_a_free_one_finds_the_unnamed_type(partly_labelled):
    adata, model, names = partly_labelled
    assert model.component_names.tolist() == [*names[:3], "3"]
    truth = adata.obs["component"].astype(str).replace({names[3]: "3"})
    assert (model.predict() == truth.to_numpy()).mean() > 0.95
    assert (adata.obs["scgmvae"].astype(str) == model.predict()).all()


def test_classification_of_labelled_cells_is_learned_and_logged(partly_labelled):
    _, model, _ = partly_labelled
    curve = model.history["classification_train"].iloc[:, 0].astype(float)
    assert len(curve) == 20
    assert curve.iloc[-1] < 0.05


def test_new_data_needs_no_label_column(partly_labelled):
    adata, model, _ = partly_labelled
    new = adata[:50].copy()
    del new.obs["label"]
    new.uns.clear()
    np.testing.assert_array_equal(model.predict(new), model.predict()[:50])
    assert "label" not in new.obs


def test_new_data_can_have_labels_that_the_model_does_not_know(partly_labelled):
    adata, model, _ = partly_labelled
    new = adata[:50].copy()
    new.obs["label"] = "new type"
    new.uns.clear()
    np.testing.assert_array_equal(model.predict(new), model.predict()[:50])
    assert (new.obs["label"] == "new type").all()


def test_labels_that_are_numbers_leave_other_numbers_to_the_free_components():
    adata = scgmvae.datasets.synthetic_counts(60, 20, n_components=2, seed=0)
    adata.obs["label"] = np.where(adata.obs["component"] == "component_0", "2", "3")
    scgmvae.SCGMVAE.setup_anndata(adata, labels_key="label")
    model = scgmvae.SCGMVAE(adata, n_components=4)
    assert model.component_names.tolist() == ["2", "3", "4", "5"]
    model.train(1, 1, enable_progress_bar=False)
    assert set(adata.obs["scgmvae"]) <= set(model.component_names)


def test_a_model_with_labels_loads_with_data_that_has_none(partly_labelled, tmp_path):
    adata, model, _ = partly_labelled
    model.save(str(tmp_path / "model"))
    new = adata[:50].copy()
    del new.obs["label"]
    new.uns.clear()
    loaded = scgmvae.SCGMVAE.load(str(tmp_path / "model"), new)
    np.testing.assert_array_equal(loaded.predict(), model.predict()[:50])
