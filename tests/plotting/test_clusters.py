"""Figures of clusters: composition, labels, marker genes, and all of them at once."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt

from scgmvae import pl

pytestmark = pytest.mark.usefixtures("no_window_and_no_new_settings")


@pytest.fixture
def cells():
    """Ten cells of cluster 0 and five of cluster 1, in two batches, with labels."""
    obs = {
        "scgmvae": pd.Categorical(["0"] * 10 + ["1"] * 5),
        "batch": ["a"] * 4 + ["b"] * 6 + ["b"] * 5,
        "type": ["T"] * 9 + ["B"] + ["B"] * 4 + [None],
    }
    return AnnData(
        np.zeros((15, 2), np.float32), obs=pd.DataFrame(obs).set_axis([f"c{i}" for i in range(15)])
    )


def widths(axis):
    return {bars.get_label(): [bar.get_width() for bar in bars] for bars in axis.containers}


def test_composition_has_the_shares_of_all_cells_and_of_each_cluster(cells):
    axis = pl.composition(cells, "batch")
    shares = widths(axis)
    np.testing.assert_allclose(shares["a"], [4 / 15, 0.4, 0])
    np.testing.assert_allclose(shares["b"], [11 / 15, 0.6, 1])
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["all  (15)", "0  (10)", "1  (5)"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]


def test_composition_is_of_the_cells_that_have_both(cells):
    cells.obs["batch"] = cells.obs["batch"].where(np.arange(15) != 0)
    axis = pl.composition(cells, "batch")
    np.testing.assert_allclose(widths(axis)["a"], [3 / 14, 3 / 9, 0])
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["all  (14)", "0  (9)", "1  (5)"]


def test_confusion_has_shares_of_labelled_cells(cells):
    axis = pl.confusion(cells, "type")
    np.testing.assert_allclose(axis.images[0].get_array(), [[0.9, 0.1], [0, 1]])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["T", "B"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0  (10)", "1  (4)"]
    assert [text.get_text() for text in axis.texts] == ["90", "10", "100"]


@pytest.mark.parametrize("draw", [pl.composition, pl.confusion])
def test_missing_columns_are_named(cells, draw):
    with pytest.raises(KeyError, match="missing"):
        draw(cells, "missing")
    with pytest.raises(KeyError, match="leiden"):
        draw(cells, "batch", "leiden")


def test_figures_are_drawn_into_given_axes(cells):
    axis = plt.subplots()[1]
    assert pl.composition(cells, "batch", ax=axis) is axis
    assert pl.confusion(cells, "type", ax=plt.subplots()[1]).get_xlabel() == "type"


def test_dots_are_of_the_marker_genes(trained):
    axis = pl.markers(trained, 2)
    genes = [label.get_text() for label in axis.get_xticklabels()]
    assert genes == pd.unique(trained.markers(2)["gene"]).tolist()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "1", "2"]
    assert len(axis.collections[0].get_offsets()) == 3 * len(genes)


def test_dots_of_many_cells_are_those_of_a_sample(trained, monkeypatch):
    from scgmvae.plotting import _clusters

    monkeypatch.setattr(_clusters, "N_SHOWN", 60)
    axis = pl.markers(trained, 1, "component")
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "component_0",
        "component_1",
        "component_2",
    ]


def test_the_overview_has_all_that_the_data_have(trained):
    figure = trained.overview("component")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["clusters", "confidence"]
    assert "per cent of the cells of a cluster" in titles
    x_labels = [axis.get_xlabel() for axis in figure.axes]
    assert "share of the cells by batch" in x_labels
    assert "component" in x_labels
    first = figure.axes[0]
    assert [text.get_text() for text in first.texts] == ["0", "1", "2"]
    assert len(first.collections[0].get_offsets()) == 300


def test_the_overview_of_data_without_conditions_and_labels(counts, make_model, train):
    model = train(make_model(counts.copy(), {}))
    before = model.adata.copy()
    figure = pl.overview(model)
    assert [axis.get_title() for axis in figure.axes][:2] == ["clusters", "confidence"]
    assert not any(axis.get_xlabel().startswith("share") for axis in figure.axes)
    pd.testing.assert_frame_equal(model.adata.obs, before.obs)
    assert set(model.adata.obsm) == set(before.obsm)
    assert set(model.adata.uns) == set(before.uns)


def test_the_overview_of_one_cluster(counts, make_model, train):
    figure = train(make_model(counts.copy(), {}, n_components=1)).overview("component")
    assert [axis.get_title() for axis in figure.axes][:2] == ["clusters", "confidence"]


def test_the_overview_needs_components(trained_normal):
    with pytest.raises(RuntimeError, match="no components"):
        trained_normal.overview()


@pytest.mark.parametrize("kind", ["bool", "int", "mixed"])
def test_columns_of_every_kind_are_drawn(cells, kind):
    values = {"bool": [True, False] * 7 + [True], "int": [3, 1, 2] * 5, "mixed": [1, "1", 2] * 5}
    cells.obs["kind"] = values[kind]
    names = {"bool": ["False", "True"], "int": ["1", "2", "3"], "mixed": ["1", "2"]}[kind]
    axis = pl.composition(cells, "kind")
    assert list(widths(axis)) == names
    axis = pl.composition(cells, "batch", "kind")
    shown = [label.get_text().split("  ")[0] for label in axis.get_yticklabels()]
    assert shown == ["all", *names]
    assert sum(bar[0] for bar in widths(axis).values()) == pytest.approx(1)
    pl.confusion(cells, "kind")


def test_measurements_and_empty_columns_are_refused(cells, trained):
    cells.obs["empty"] = np.nan
    with pytest.raises(
        ValueError, match=r"No cell has a value in the obs column 'empty' \(labels"
    ):
        pl.confusion(cells, "empty")
    adata = AnnData(obs=trained.adata.obs.assign(number=np.linspace(0, 1, 300)))
    with pytest.raises(ValueError, match="condition must name .* 300 different numbers"):
        pl.composition(adata, "number")


@pytest.mark.parametrize("colors", [["red"], {"0": "red"}, "red"])
def test_colours_of_other_groups_are_left_aside(cells, colors):
    cells.uns["batch_colors"] = colors
    axis = pl.composition(cells, "batch")
    assert len({bars[0].get_facecolor() for bars in axis.containers}) == 2


def test_a_legend_of_many_levels_is_left_out(cells):
    cells.obs["many"] = [f"level {i} of many with a long name" for i in range(15)]
    assert pl.composition(cells, "many").get_legend() is None


def test_names_that_would_be_formulas_are_drawn(trained, monkeypatch, tmp_path):
    names = np.where(np.arange(300) % 2, "$\\frac{1}{$", "x" * 60)
    monkeypatch.setitem(trained.adata.obs, "kind", names)
    axis = pl.markers(trained, 1, "kind")
    axis.figure.savefig(tmp_path / "dots.png")  # where a formula would fail
    shown = {label.get_text() for label in axis.get_yticklabels()}
    assert shown == {r"\$\frac{1}{\$", "x" * 39 + "…"}


def test_the_overview_leaves_threads_and_unlabelled_cells(counts, make_model, train):
    import torch

    adata = counts.copy()
    adata.obs["type"] = adata.obs["component"].astype(str).replace("component_0", "unknown")
    model = train(make_model(adata, {"labels_key": "type"}))
    before = torch.get_num_threads()
    figure = model.overview()
    assert torch.get_num_threads() == before
    (labels,) = (axis for axis in figure.axes if axis.get_xlabel() == "type")
    assert [label.get_text() for label in labels.get_xticklabels()] == [
        "component_1",
        "component_2",
    ]


def test_cells_that_have_no_cluster_any_more_are_left_out(counts, make_model, train):
    model = train(make_model(counts.copy(), {}))
    model.adata.obs["scgmvae"] = (
        model.adata.obs["scgmvae"].cat.remove_categories("0").astype(object)
    )
    figure = model.overview()
    shown = len(figure.axes[0].collections[0].get_offsets())
    assert shown == model.adata.obs["scgmvae"].notna().sum() < 300
    del model.adata.obs["scgmvae"]
    with pytest.raises(KeyError, match="'scgmvae', which adata.obs does not have"):
        model.overview()
