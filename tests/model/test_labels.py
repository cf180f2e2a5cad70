"""Labels that are known in part: their components, and what the model makes of them."""

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.callbacks import Callback
from scvi import REGISTRY_KEYS as KEYS

import scgmvae
from scgmvae import SCGMVAE

# ---------------------------------------------------------------- labels of a part of the cells


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
    found = model.predict(components=True)
    assert (found == truth.to_numpy()).mean() > 0.95
    assert (adata.obs["scgmvae"].astype(str) == found).all()


def test_labels_are_predicted_for_every_cell(partly_labelled):
    adata, model, names = partly_labelled
    found = model.predict()
    assert set(found) == set(names[:3])
    has_name = (adata.obs["component"] != names[3]).to_numpy()
    assert (found == adata.obs["component"].astype(str))[has_name].mean() > 0.95
    # the labels, by what is left when the free component is put aside
    components = model.predict(soft=True, components=True)
    labels = model.predict(soft=True)
    assert components.columns.tolist() == [*names[:3], "3"]
    assert labels.columns.tolist() == list(names[:3])
    assert components.index.equals(adata.obs_names) and labels.index.equals(adata.obs_names)
    np.testing.assert_allclose(components.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)
    rest = components.iloc[:, :3].to_numpy(float)
    sure = rest.sum(1) > 1e-3
    expected = rest[sure] / rest[sure].sum(1, keepdims=True)
    np.testing.assert_allclose(labels[sure], expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found, labels.columns[labels.to_numpy().argmax(1)])


def test_cells_keep_the_label_that_they_have_on_request(partly_labelled):
    adata, model, _ = partly_labelled
    given = adata.obs[model._setup.labels_key].astype(str)
    is_given = (given != model._setup.arguments["unlabeled_category"]).to_numpy()
    plain = model.predict()
    wrong = adata.copy()
    wrong.obs[model._setup.labels_key] = np.where(
        is_given, model._setup.label_names[1], given
    )  # labels that the model would not predict
    kept = model.predict(wrong, keep_labels=True)
    assert set(kept[is_given]) == {model._setup.label_names[1]}
    assert kept[~is_given].tolist() == plain[~is_given].tolist()
    proba = model.predict(wrong, indices=np.flatnonzero(is_given)[:3], soft=True, keep_labels=True)
    assert proba[model._setup.label_names[1]].tolist() == [1.0] * 3
    bare = adata.copy()
    del bare.obs[model._setup.labels_key]
    assert model.predict(bare, keep_labels=True).tolist() == plain.tolist()
    with pytest.raises(ValueError, match="keep_labels=True keeps the labels"):
        model.predict(components=True, keep_labels=True)


def test_labels_are_kept_only_by_a_model_that_has_any(trained):
    with pytest.raises(ValueError, match="set up with a labels_key"):
        trained.predict(keep_labels=True)


def test_without_labels_there_are_only_components_to_predict(trained):
    np.testing.assert_array_equal(trained.predict(), trained.predict(components=True))
    pd.testing.assert_frame_equal(
        trained.predict(soft=True), trained.predict(soft=True, components=True)
    )


def test_classification_of_labelled_cells_is_learned_and_logged(partly_labelled):
    _, model, _ = partly_labelled
    curve = model.history["classification_train"].iloc[:, 0].astype(float)
    assert len(curve) == 20
    assert curve.iloc[-1] < 0.05


@pytest.mark.parametrize("components", [False, True], ids=["labels", "components"])
def test_new_data_needs_no_label_column(partly_labelled, components):
    adata, model, _ = partly_labelled
    new = adata[:50].copy()
    del new.obs["label"]
    new.uns.clear()
    np.testing.assert_array_equal(
        model.predict(new, components=components), model.predict(components=components)[:50]
    )
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


# ------------------------------------------------------------------------ unused categories


def test_an_unused_category_gets_no_component_and_never_wins(counts, make_model, train):
    adata = counts.copy()
    categories = ["absent", "component_0", "component_1", "component_2", "unknown", "z_absent"]
    has_label = np.random.default_rng(0).random(adata.n_obs) < 0.3
    values = np.where(has_label, adata.obs["component"].astype(str), "unknown")
    adata.obs["label"] = pd.Categorical(values, categories)
    model = make_model(adata, {"labels_key": "label"})  # three components are enough
    # setting up leaves the column as it was, down to its categories
    assert adata.obs["label"].cat.categories.tolist() == categories
    assert adata.obs["label"].tolist() == values.tolist()
    assert model.component_names.tolist() == ["component_0", "component_1", "component_2"]
    assert model.module.n_labels == 3
    train(model, max_epochs=5, pretrain_epochs=5)
    assert adata.obs["label"].cat.categories.tolist() == categories
    assert model.predict(soft=True).columns.tolist() == model.component_names.tolist()
    assert (model.predict() == adata.obs["component"].astype(str)).mean() > 0.9
    # the number of components is that of the names in use
    smaller = {"n_components": 2}
    with pytest.raises(ValueError, match="3 labels.*n_components=2"):
        make_model(adata, **smaller)


def test_more_labels_than_components_are_refused_with_both_numbers(counts, make_model):
    adata = counts.copy()
    adata.obs["label"] = (np.arange(300) % 7).astype(str)
    with pytest.raises(ValueError, match="7 labels but only n_components=6.*at least 7"):
        make_model(adata, {"labels_key": "label"}, n_components=6)
    assert make_model(adata, n_components=7).component_names.tolist() == list("0123456")


@pytest.mark.parametrize(
    "values",
    [
        pytest.param("unknown", id="text"),
        pytest.param(
            pd.Categorical(["unknown"] * 300, ["B", "T", "unknown"]), id="with_unused_categories"
        ),
    ],
)
def test_a_column_without_a_label_is_refused(counts, make_model, values):
    adata = counts.copy()
    adata.obs["label"] = values
    before = adata.obs.copy()
    with pytest.raises(ValueError, match="one cell needs a label.*'label'.*'unknown'"):
        make_model(adata, {"labels_key": "label"})
    pd.testing.assert_frame_equal(adata.obs, before)


# -------------------------------------------------------- how often cells come up in training


class Count(Callback):
    """Counts the label codes of the cells that training sees."""

    def __init__(self):
        self.codes = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.codes += batch[KEYS.LABELS_KEY].ravel().tolist()


def labelled_shares(counts, make_model, train, has_label, n_epochs=4, **settings):
    """Share of each label, and at last of the unlabelled, among the cells seen in training."""
    adata = counts.copy()
    adata.obs["label"] = np.where(has_label, adata.obs["component"].astype(str), "unknown")
    count = Count()
    model = make_model(adata, {"labels_key": "label"})
    train(model, max_epochs=n_epochs - 1, pretrain_epochs=1, callbacks=[count], **settings)
    seen = np.bincount(np.array(count.codes, dtype=int), minlength=4)
    return seen / len(count.codes), len(count.codes) / n_epochs, model


def test_few_labelled_cells_come_up_as_a_tenth(counts, make_model, train):
    # 3, 3 and 3 of 300 cells
    has_label = np.zeros(300, dtype=bool)
    for name in counts.obs["component"].cat.categories:
        has_label[np.flatnonzero(counts.obs["component"] == name)[:3]] = True
    shares, per_epoch, _ = labelled_shares(counts, make_model, train, has_label)
    # 291 unlabelled cells once each, and a ninth of that of labelled ones
    assert per_epoch == round(291 / 0.9)
    np.testing.assert_allclose(shares[:3].sum(), 0.1, atol=0.01)
    np.testing.assert_allclose(shares[:3], 0.1 / 3, atol=0.01)


@pytest.mark.parametrize("fraction", [0.2, 1.0], ids=["a_fifth", "all"])
def test_enough_labelled_cells_come_up_once_each(counts, make_model, train, fraction):
    has_label = np.arange(300) < fraction * 300
    shares, per_epoch, model = labelled_shares(counts, make_model, train, has_label, n_epochs=2)
    assert per_epoch == 300
    np.testing.assert_allclose(shares[:3].sum(), fraction)
    assert model._copies(None) is None


def test_balancing_by_the_labels_leaves_unlabelled_cells_as_they_are(counts, make_model, train):
    # 90 cells of one label, 10 of another, and 3 of the last
    has_label = np.zeros(300, dtype=bool)
    for name, n in zip(counts.obs["component"].cat.categories, (70, 10, 3), strict=True):
        has_label[np.flatnonzero(counts.obs["component"] == name)[:n]] = True
    shares, per_epoch, _ = labelled_shares(
        counts, make_model, train, has_label, balance_key="label"
    )
    assert per_epoch == 300
    np.testing.assert_allclose(shares[3], 217 / 300, atol=0.005)
    np.testing.assert_allclose(shares[:3], 83 / 300 / 3, atol=0.005)


@pytest.mark.parametrize("kind", [str, "category", int], ids=["text", "categorical", "numbers"])
def test_balancing_by_a_column_lets_its_groups_come_up_alike(counts, make_model, kind):
    adata = counts.copy()
    group = np.repeat([0, 1, 2], [250, 45, 5])
    adata.obs["group"] = pd.Series(group, index=adata.obs_names).astype(kind)
    model = make_model(adata, {"batch_key": "batch"})
    copies = model._copies("group")
    np.testing.assert_allclose(np.bincount(group, weights=copies), [100, 100, 100])
    np.testing.assert_allclose(copies[-1], 20)


def test_balancing_keeps_a_rare_type_whole(make_model, train):
    adata = scgmvae.datasets.synthetic_counts(
        400, 60, n_components=3, weights=[60, 38, 2], component_scale=3.0, seed=4
    )
    rare = (adata.obs["component"] == "component_2").to_numpy()
    assert 3 <= rare.sum() <= 15
    adata.obs["group"] = adata.obs["component"].astype(str)
    model = train(
        make_model(adata),
        max_epochs=10,
        pretrain_epochs=10,
        guide_key="group",
        balance_key="group",
    )
    clusters = model.predict()
    name = pd.Series(clusters[rare]).mode()[0]
    assert (clusters[rare] == name).all()
    assert (clusters[~rare] == name).mean() < 0.01


# ---------------------------------------------------------------- guidance by a given partition


def test_the_guide_weight_is_that_of_the_cross_entropy_to_the_partition(counts, make_model, train):
    # a partition that the counts know nothing of
    group = (np.random.default_rng(0).random(300) < 0.5).astype(str)
    agreement = {}
    for weight in (0.0, 100.0):
        adata = counts.copy()
        adata.obs["group"] = group
        model = make_model(adata, n_components=2)
        train(model, max_epochs=6, pretrain_epochs=4, guide_key="group", guide_weight=weight)
        curve = model.history["guide_weight"].iloc[4:, 0].to_numpy(float)
        fading = np.clip(1 - np.arange(1, 7) / (0.67 * 6), 0, None)
        np.testing.assert_allclose(curve, weight * fading, atol=1e-6)
        agreement[weight] = model.history["guide_train"].iloc[:, 0].to_numpy(float)
    # with weight the model learns the partition; without, it lets it go at once
    assert agreement[100.0][2] < agreement[0.0][2] - 0.05


@pytest.mark.parametrize("value", [np.nan, None], ids=["nan", "None"])
@pytest.mark.parametrize("key", ["guide_key", "balance_key"])
def test_columns_with_missing_values_are_refused(counts, make_model, train, key, value):
    adata = counts.copy()
    adata.obs["group"] = adata.obs["component"].astype(object)
    adata.obs.loc[["cell_3", "cell_8"], "group"] = value
    model = make_model(adata)
    before = adata.obs.copy()
    with pytest.raises(ValueError, match=f"'group'.*{key}.*2 have none: 'cell_3', 'cell_8'"):
        train(model, **{key: "group"})
    pd.testing.assert_frame_equal(adata.obs, before)
    assert not model.is_trained_


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        pytest.param({"balance_key": "no"}, KeyError, "balance_key.*'no'", id="no_balance_column"),
        pytest.param(
            {"guide_weight": -1}, ValueError, "guide_weight must be at least 0", id="guide_weight"
        ),
    ],
)
def test_bad_settings_of_labels_and_guide_are_refused(
    counts, make_model, train, settings, error, words
):
    with pytest.raises(error, match=words):
        train(make_model(counts.copy()), **settings)


def labels_of_type(kind, names):
    """The same partly known labels in columns of several types, with their unlabelled value."""
    codes = names.cat.codes.to_numpy()
    is_known = np.arange(len(names)) % 3 == 0
    if kind == "strings":
        return np.where(is_known, names.astype(str), "unknown"), "unknown"
    values = np.where(is_known, codes * 5, -1)  # 0, 5, 10: as strings they have another order
    if kind == "floats":
        return values.astype(float), -1.0
    if kind == "categorical":
        return pd.Categorical(values, categories=[10, 7, 5, -1, 0]), -1
    return values, -1


@pytest.mark.parametrize("kind", ["strings", "integers", "floats", "categorical"])
def test_labels_of_any_type_survive_saving_new_data_and_another_set_up(
    counts, make_model, train, tmp_path, kind
):
    adata = counts.copy()
    adata.obs["label"], unlabeled = labels_of_type(kind, adata.obs["component"])
    setup = {"labels_key": "label", "unlabeled_category": unlabeled, "batch_key": "batch"}
    model = train(make_model(adata, setup))
    names, predicted = model.component_names.tolist(), model.predict()
    if kind == "integers":
        assert names == ["0", "5", "10"]
    model.save(str(tmp_path / "model"))
    SCGMVAE.setup_anndata(adata, batch_key="batch")  # for another model
    loaded = SCGMVAE.load(str(tmp_path / "model"), counts.copy())
    new = counts.copy()
    mapped = SCGMVAE.load_query_data(counts.copy(), model)
    for one, data in ((model, None), (loaded, None), (model, new), (mapped, None), (model, new)):
        assert one.component_names.tolist() == names
        np.testing.assert_array_equal(one.predict(data), predicted)
        assert one.predict(data, soft=True).columns.tolist() == names
    assert "label" not in new.obs


def test_new_data_of_a_model_with_labels_need_none(counts, make_model, train):
    adata = counts.copy()
    adata.obs["label"] = adata.obs["component"].astype(str)
    model = train(make_model(adata, setup={"labels_key": "label"}))
    query = counts[::3].copy()
    np.testing.assert_array_equal(model.predict(query), model.predict()[::3])
    assert "label" not in query.obs  # nothing is made up in the user's data


def test_more_labels_than_groups_found_still_get_a_component_each(make_model, train):
    # nine arbitrary labels, of which the counts know nothing
    adata = scgmvae.datasets.synthetic_counts(200, 40, n_components=3, seed=0)
    adata.obs["label"] = (np.arange(200) % 9).astype(str)
    model = make_model(adata, setup={"labels_key": "label"}, n_components=None)
    train(model)
    assert model.n_components_ >= 9
    assert list(model.component_names[:9]) == [str(k) for k in range(9)]
