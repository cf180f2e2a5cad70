"""Tests of scgmvae.plotting: what a figure shows, and that nothing else changes."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.figure import Figure

import scgmvae
from scgmvae.plotting._style import PALEST, colors_of

pytestmark = pytest.mark.usefixtures("no_window_and_no_new_settings")


def panels(figure):
    """Visible axes by title."""
    return {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}


# -------------------------------------------------------------------------------- training

TITLES = ["−ELBO", "reconstruction, −log p(x|z,c)", "KL of z"]
JOINT_TITLES = ["KL of w", "KL of y", "KL of d", "guide, cross-entropy"]


def test_training_has_a_panel_per_term_with_its_history(trained):
    figure = scgmvae.pl.training(trained)
    assert isinstance(figure, Figure)
    assert list(panels(figure)) == TITLES + JOINT_TITLES
    for name, title in (("elbo", "−ELBO"), ("kl_w", "KL of w"), ("guide", JOINT_TITLES[-1])):
        curve, joint_start = panels(figure)[title].lines
        history = trained.history[f"{name}_train"].iloc[:, 0]
        np.testing.assert_array_equal(curve.get_xdata(), history.index)
        np.testing.assert_allclose(curve.get_ydata(), history.to_numpy(float))
        # the joint stage began after 15 epochs of pretraining
        assert list(joint_start.get_xdata()) == [15, 15]
    assert {axis.get_xlabel() for axis in panels(figure).values()} == {"epoch"}
    assert figure.axes[0].get_ylabel() == "nats per cell"
    assert figure.axes[0].get_legend() is None


def test_training_of_a_model_without_components_has_one_stage(trained_normal):
    figure = scgmvae.pl.training(trained_normal)
    assert list(panels(figure)) == TITLES
    assert [len(axis.lines) for axis in panels(figure).values()] == [1, 1, 1]


def test_training_of_a_dual_model_has_its_own_terms():
    model = scgmvae.DualVAE(scgmvae.datasets.two_photon(20, image_shape=(12, 12)))
    model.train(2, enable_progress_bar=False, accelerator="cpu")
    shown = panels(scgmvae.pl.training(model))
    terms = ["elbo", "reconstruction_loss", "reconstruction_pixels", "reconstruction_low"]
    terms += ["kl_foreground", "kl_background"]
    assert len(shown) == len(terms) == 6
    for axis, term in zip(shown.values(), terms, strict=True):
        (curve,) = axis.lines
        np.testing.assert_allclose(
            curve.get_ydata(), model.history[f"{term}_train"].iloc[:, 0].to_numpy(float)
        )
    assert shown["−ELBO"].get_ylabel() == "nats per image"


def test_a_training_without_a_history_is_told_from_none(counts, make_model, train):
    model = make_model(counts.copy())
    with pytest.raises(RuntimeError, match="no training history: call train"):
        scgmvae.pl.training(model)
    train(model, logger=False)
    with pytest.raises(RuntimeError, match="is trained but has no history, which the logger"):
        scgmvae.pl.training(model)


def test_training_draws_validation_beside_training(counts, make_model, train):
    adata = counts.copy()
    adata.obs["label"] = adata.obs["component"].astype(str)
    model = make_model(adata, setup={"labels_key": "label"})
    train(model, train_size=0.8, check_val_every_n_epoch=1)
    figure = scgmvae.pl.training(model)
    assert list(panels(figure)) == [*TITLES, *JOINT_TITLES, "labels, cross-entropy"]
    lines = panels(figure)["−ELBO"].lines
    assert [line.get_label() for line in lines[:2]] == ["train", "validation"]
    np.testing.assert_allclose(
        lines[1].get_ydata(), model.history["elbo_validation"].iloc[:, 0].to_numpy(float)
    )
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["train", "validation"]


# ------------------------------------------------------------------------------- embedding


@pytest.mark.parametrize(
    ("color", "n_axes"),
    [
        pytest.param(["scgmvae"], 1, id="clusters"),
        pytest.param(["scgmvae", "batch"], 2, id="two_columns"),
        # a panel of numbers brings the axes of its colour bar
        pytest.param(["scgmvae", "gene_3"], 3, id="a_gene"),
    ],
)
def test_embedding_has_a_panel_per_column(trained, color, n_axes):
    adata = trained.adata.copy()
    adata.obsm["X_plane"] = adata.obsm["X_scgmvae"][:, :2]
    figure = scgmvae.pl.embedding(adata, color, basis="plane")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == n_axes
    assert [axis.get_title() for axis in figure.axes[: len(color)]] == color
    for axis in figure.axes[: len(color)]:
        drawn = np.vstack([points.get_offsets() for points in axis.collections])
        places = adata.obsm["X_plane"]
        np.testing.assert_allclose(
            np.sort(drawn[np.isfinite(drawn).all(1)], axis=0), np.sort(places, axis=0), rtol=1e-5
        )


def test_embedding_takes_the_size_of_points(trained):
    adata = trained.adata.copy()
    adata.obsm["X_umap"] = adata.obsm["X_scgmvae"][:, :2]
    figure = scgmvae.pl.embedding(adata, point_size=7)
    assert figure.axes[0].collections[0].get_sizes().tolist() == [7]


# ---------------------------------------------------------------------------------- splits


def test_the_tree_has_every_split_with_strength_genes_and_cells(counts, make_model, train):
    model = make_model(counts.copy(), {"batch_key": "batch"}, n_components=None)
    train(model, max_epochs=20, pretrain_epochs=30)
    axis = scgmvae.pl.split_tree(model, n_genes=2)
    table = model.split_table(n_genes=2)
    texts = [text.get_text() for text in axis.texts]
    for split, row in table.iterrows():
        assert f"{row['strength']:.2f}" in texts, split
        assert row["genes_left"] in texts
    for name, n_cells in model.adata.obs["scgmvae"].value_counts().items():
        assert f"{name}  ({n_cells:,} cells)" in texts
    assert len(axis.lines) == 2 * len(table) + model.n_components_
    del model.adata.obs["scgmvae"]  # as of data that were not annotated
    assert [text.get_text() for text in scgmvae.pl.split_tree(model, n_genes=2).texts] == texts
    model.cut(n=2)
    dashed = [line for line in scgmvae.pl.split_tree(model).lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2 * (len(table) - 1)


def test_a_tree_needs_tested_splits(roughly_trained):
    with pytest.raises(RuntimeError, match="no tested splits"):
        scgmvae.pl.split_tree(roughly_trained)


# -------------------------------------------------------------------------------- colours


def test_parts_of_a_cluster_have_shades_of_its_colour():
    fine = ["0a", "0b", "0c", "1", "0a", "1"]
    obs = pd.DataFrame({"scgmvae_fine": fine, "scgmvae": [name[0] for name in fine]})
    adata = AnnData(obs=obs.astype("category").set_axis([f"c{i}" for i in range(6)]))
    adata.uns["scgmvae_colors"] = ["#ff0000", "#0000ff"]
    half, palest = round(255 * PALEST / 2), round(255 * PALEST)
    expected = {"0a": "#ff0000", "1": "#0000ff"}
    expected |= {f"0{n}": f"#ff{v:02x}{v:02x}" for n, v in (("b", half), ("c", palest))}
    assert colors_of(adata, "scgmvae_fine") == expected
    adata.uns["scgmvae_fine_colors"] = ["#000000"] * 4  # a choice of the user's
    assert set(colors_of(adata, "scgmvae_fine").values()) == {"#000000"}
