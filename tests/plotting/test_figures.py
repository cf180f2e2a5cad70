"""Tests of plotting on fixed values: what single panels show, and how figures look.

The figures in ``tests/plotting/figures`` are made anew with ``make figures``, and looked at before
they are committed.
"""

from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from matplotlib.legend import Legend
from matplotlib.testing.compare import compare_images
from matplotlib.text import Annotation, Text
from scanpy.plotting import palettes
from scipy import sparse
from scvi import REGISTRY_KEYS

from scgmvae import pl
from scgmvae.data.normalization import log_normalized, mean_expression, r_squared
from scgmvae.data.registry import Setup
from scgmvae.model.components import ComponentsMixin
from scgmvae.model.novelty import OUTERMOST
from scgmvae.plotting import _style
from scgmvae.plotting._expression import _apart

pytestmark = pytest.mark.usefixtures("no_window_and_no_new_settings")

N, K, H, W = 200, 4, 5, 4

# Figures are compared without letters, which every version of freetype draws differently: what
# they say is tested by value.
TOLERANCE, DPI = 3, 80
DRAWN_WITH = "3.11"
other_drawing = pytest.mark.skipif(
    not mpl.__version__.startswith(DRAWN_WITH + "."),
    reason=f"the figures to compare with were drawn with matplotlib {DRAWN_WITH}",
)
compared = pytest.mark.mpl_image_compare(
    baseline_dir="figures", style="default", tolerance=TOLERANCE, savefig_kwargs={"dpi": DPI}
)


class Fixed:
    """What figures ask a model for, with values that never change."""

    module = SimpleNamespace(prior="dirichlet", image_shape=None, mixture_started=True)
    component_names = cluster_names = np.array(["B cell", "T cell", "2", "3"])
    _label_shares = ComponentsMixin._label_shares
    _known_labels = ComponentsMixin._known_labels
    _setup = Setup({"setup_args": {"labels_key": "type", "unlabeled_category": "unknown"}})

    def __init__(self, image_shape=None):
        rng = np.random.default_rng(0)
        self.module = SimpleNamespace(
            prior="dirichlet",
            image_shape=image_shape,
            mixture_started=True,
            n_components=K,
            n_latent=2,
        )
        self.codes = np.repeat(np.arange(K), [80, 60, 40, 20])
        centres = np.array([[0, 0], [4, 1], [1, 4], [5, 5]])
        self.z = (centres[self.codes] + rng.normal(0, 0.6, (N, 2))).astype(np.float32)
        types = np.array(["B cell", "T cell", "NK", "unknown"])[self.codes]
        types[::9] = "T cell"
        obs = {"type": types, "batch": np.where(np.arange(N) % 2, "a", "b")}
        self.adata = AnnData(self.z, obs=pd.DataFrame(obs, [f"cell_{i}" for i in range(N)]))
        joint = np.arange(6, 20)
        self.history = {}
        for number, term in enumerate(("elbo", "reconstruction_loss", "kl_z")):
            for part, shift in (("train", 0), ("validation", 10)):
                values = 100 / (1 + np.arange(20)) + 50 * number + shift
                self.history[f"{term}_{part}"] = pd.DataFrame({"x": values})
        for number, term in enumerate(("kl_w", "kl_y", "kl_d", "guide")):
            values = np.exp(-0.2 * (joint - 6)) * (number + 1)
            self.history[f"{term}_train"] = pd.DataFrame({"x": values}, index=joint)

    def _check_mixture(self):
        pass

    def _validate_anndata(self, adata=None):
        return self.adata if adata is None else adata

    def _labels_key_of(self, adata):
        return "type"

    def get_latent_representation(self, adata=None, indices=None):
        return self.z[indices]

    def predict(self, adata=None, indices=slice(None), components=False):
        return self.component_names[self.codes[indices]]

    def _posteriors_to_judge(self):
        return {"rows": np.arange(N)}

    def _write_annotation(self, target, posteriors, key):
        rows = posteriors["rows"]
        target.obsm[f"X_{key}"] = self.z[rows]
        target.obs[key] = pd.Categorical(self.predict(indices=rows))
        target.obs[f"{key}_confidence"] = np.linspace(0.2, 1, N)[(rows * 7) % N]

    def component_similarity(self):
        overlap = np.array(
            [[1, 0.6, 0.1, 0], [0.6, 1, 0.2, 0], [0.1, 0.2, 1, 0.4], [0, 0, 0.4, 1]]
        )
        return pd.DataFrame(overlap, self.component_names, self.component_names)

    # of images

    def picture(self, n):
        """n images of a bar that moves to the right."""
        images = np.zeros((n, H, W), np.float32)
        images[np.arange(n), :, np.arange(n) % W] = np.linspace(0.3, 1, n)[:, None]
        return images.reshape(n, H * W)

    def _make_data_loader(self, adata, indices, batch_size):
        return [{REGISTRY_KEYS.X_KEY: torch.from_numpy(self.picture(len(indices)))}]

    def get_reconstruction(self, adata, rows):
        return self.picture(len(rows))[::-1] * 0.7

    def decode(self, z, conditions):
        return self.picture(len(z))

    def decode_components(self, n_draws, conditions, seed):
        return self.picture(n_draws * K).reshape(n_draws, K, -1)


@pytest.fixture(scope="module")
def model():
    return Fixed()


@pytest.fixture(scope="module")
def images():
    return Fixed(image_shape=(H, W))


@pytest.fixture
def annotated(model):
    """Cells as annotate leaves them."""
    adata = model.adata.copy()
    adata.obs["scgmvae"] = pd.Categorical(model.predict(), list(model.component_names))
    adata.obs["scgmvae_confidence"] = np.linspace(0.2, 1, N)[(np.arange(N) * 7) % N]
    adata.obs["scgmvae_novelty"] = np.linspace(0, 1, N) ** 0.5
    return adata


@pytest.fixture
def placed(annotated):
    """A model whose data have a UMAP and results."""
    model = Fixed()
    model.adata = annotated
    annotated.obsm["X_umap"] = model.z @ [[1.0, 0.3], [-0.2, 1.0]]
    return model


def simulated(seed, shift=0.0, n=120, n_genes=40):
    """Counts of genes of rising expression; ``shift`` raises every seventh of them."""
    rng = np.random.default_rng(seed)
    mean = np.exp(np.linspace(-2, 3, n_genes) + shift * (np.arange(n_genes) % 7 == 0))
    counts = rng.poisson(mean * rng.gamma(5, 0.2, (n, 1))).astype(np.float32)
    genes = pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)])
    return AnnData(sparse.csr_matrix(counts + (np.arange(n_genes) == 0)), var=genes)


@pytest.fixture(scope="module")
def real():
    return simulated(0)


@pytest.fixture(scope="module")
def predicted():
    return simulated(1, shift=0.8)


# ------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    ("term", "parts"), [("elbo", ["train", "validation"]), ("kl_w", ["train"])]
)
def test_a_term_is_drawn_into_given_axes(model, term, parts):
    _, axis = plt.subplots()
    assert pl.training_term(model, term, ax=axis) is axis
    *curves, joint_start = axis.lines
    assert [curve.get_label() for curve in curves] == parts
    for curve, part in zip(curves, parts, strict=True):
        values = model.history[f"{term}_{part}"]["x"]
        np.testing.assert_array_equal(curve.get_xdata(), values.index)
        np.testing.assert_array_equal(curve.get_ydata(), values)
    assert list(joint_start.get_xdata()) == [6, 6]
    assert (axis.get_legend() is not None) == ("validation" in parts)
    assert axis.get_ylabel() == "nats per cell"


def test_a_term_that_the_model_does_not_have_is_refused(model):
    with pytest.raises(ValueError, match="term must be one of .*'guide'.* but it is 'kl_x'"):
        pl.training_term(model, "kl_x")
    assert plt.get_fignums() == []


# ---------------------------------------------------------------------------------- components


def test_similarity_has_its_tree_over_it(model):
    axis = pl.component_similarity(model)
    order = [text.get_text() for text in axis.get_xticklabels()]
    expected = model.component_similarity().loc[order, order]
    np.testing.assert_array_equal(axis.images[0].get_array(), expected)
    (tree,) = axis.child_axes
    # the nearest are merged first, at −log of their overlap
    assert min(max(line.get_ydata()) for line in tree.lines) == pytest.approx(-np.log(0.6))
    assert {order.index("B cell"), order.index("T cell")} in ({0, 1}, {2, 3})
    assert len(tree.lines) == K - 1
    assert tree.get_xlim() == axis.get_xlim()


def test_labels_of_components_are_shares_of_their_labelled_cells(model):
    _, axis = plt.subplots()
    assert pl.component_labels(model, ax=axis) is axis
    columns = [text.get_text() for text in axis.get_xticklabels()]
    rows = [text.get_text() for text in axis.get_yticklabels()]
    assert rows == list(model.component_names)
    drawn = pd.DataFrame(axis.images[0].get_array(), rows, columns)
    is_known = (model.adata.obs["type"] != "unknown").to_numpy()
    labels, components = model.adata.obs["type"][is_known], model.predict()[is_known]
    expected = pd.crosstab(components, labels.to_numpy(), normalize="index")
    pd.testing.assert_frame_equal(
        drawn.loc[expected.index], expected, check_names=False, check_exact=False
    )
    assert set(columns) == {"B cell", "T cell", "NK"}


def test_without_labels_there_is_nothing_to_compare_components_with(model, monkeypatch):
    monkeypatch.setattr(model, "_labels_key_of", lambda adata: None)
    with pytest.raises(ValueError, match="set up without labels.*: name the obs column"):
        pl.component_labels(model)
    with pytest.raises(KeyError, match="labels_key names the obs column 'kind'"):
        pl.component_labels(model, "kind")
    assert plt.get_fignums() == []


# -------------------------------------------------------------------------- confidence, novelty


def test_confidence_has_a_box_per_cluster_in_its_colour(annotated):
    annotated.uns["scgmvae_colors"] = ["#ff0000", "#00ff00", "#0000ff", "#888888"]
    axis = pl.confidence(annotated)
    names = list(annotated.obs["scgmvae"].cat.categories)
    assert [text.get_text() for text in axis.get_yticklabels()] == names
    assert [mpl.colors.to_hex(box.get_facecolor()) for box in axis.patches] == list(
        annotated.uns["scgmvae_colors"]
    )
    values = annotated.obs["scgmvae_confidence"]
    for name, box in zip(names, axis.patches, strict=True):
        edges = box.get_path().vertices[:, 0]
        quartiles = values[annotated.obs["scgmvae"] == name].quantile([0.25, 0.75])
        np.testing.assert_allclose([edges.min(), edges.max()], quartiles)
    assert axis.yaxis_inverted()  # the first cluster is on top


def test_the_axis_of_the_confidence_shows_its_range(annotated):
    lowest = annotated.obs["scgmvae_confidence"].groupby(annotated.obs["scgmvae"], observed=True)
    low, high = pl.confidence(annotated).get_xlim()
    assert low == pytest.approx(lowest.quantile(0.05).min() - 0.02)
    assert high == 1.005
    annotated.obs["scgmvae_confidence"] = 1.0
    assert pl.confidence(annotated).get_xlim()[0] == 0.9


def test_novelty_has_a_box_per_cluster_and_the_border_of_outliers(annotated):
    _, axis = plt.subplots()
    assert pl.novelty(annotated, ax=axis) is axis
    values = annotated.obs["scgmvae_novelty"]
    for name, box in zip(annotated.obs["scgmvae"].cat.categories, axis.patches, strict=True):
        edges = box.get_path().vertices[:, 0]
        quartiles = values[annotated.obs["scgmvae"] == name].quantile([0.25, 0.75])
        np.testing.assert_allclose([edges.min(), edges.max()], quartiles)
    half, border = axis.lines[-2:]
    assert set(half.get_xdata()) == {0.5}
    assert set(border.get_xdata()) == {1 - OUTERMOST}


def test_the_axis_of_a_term_does_not_magnify_noise(model, monkeypatch):
    noise = pd.DataFrame({"x": 1.6 + 0.005 * np.sin(np.arange(20))})
    monkeypatch.setitem(model.history, "kl_z_train", noise)
    monkeypatch.setitem(model.history, "kl_z_validation", noise)
    low, high = pl.training_term(model, "kl_z").get_ylim()
    assert high - low == pytest.approx(0.5)
    assert low < 1.595 < 1.605 < high
    monkeypatch.setitem(model.history, "kl_z_train", noise - 1.59)
    monkeypatch.setitem(model.history, "kl_z_validation", noise - 1.59)
    assert pl.training_term(model, "kl_z").get_ylim() == pytest.approx((0, 0.5))


@pytest.mark.parametrize("draw", [pl.confidence, pl.novelty])
def test_data_without_annotation_is_refused(model, draw):
    with pytest.raises(KeyError, match="key names the obs column 'other"):
        draw(model.adata, "other")
    assert plt.get_fignums() == []


# ---------------------------------------------------------------------------------- expression


def test_mean_expression_is_that_of_log_normalised_counts(real):
    counts = real.X.toarray()
    expected = np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(mean_expression(real), expected, rtol=1e-5)
    assert mean_expression(real).index.equals(real.var_names)
    before = real.X.copy()
    log_normalized(real.X)
    assert (real.X != before).nnz == 0
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    assert r_squared(a, b) == pytest.approx(covariance**2 / (a.var() * b.var()))


def test_means_are_drawn_by_gene_with_the_furthest_named(real, predicted):
    reordered = predicted[:, ::-1].copy()
    axis = pl.mean_expression(real, reordered, 3)
    x, y = mean_expression(real), mean_expression(predicted)
    np.testing.assert_allclose(axis.collections[0].get_offsets(), np.column_stack([x, y]))
    assert axis.get_title() == f"R² = {r_squared(x, y):.3f}"
    named = [text.get_text() for text in axis.texts]
    assert set(named) == set((x - y).abs().nlargest(3).index)
    limits = axis.get_ylim()
    for text in axis.texts:
        # as high as its point, because there is room
        height = (y[text.get_text()] - limits[0]) / (limits[1] - limits[0])
        assert text.xyann[1] == pytest.approx(height, abs=0.12)
        assert text.xy == pytest.approx((x[text.get_text()], y[text.get_text()]))


def test_genes_and_layers_can_be_chosen(real, predicted):
    other = predicted.copy()
    other.layers["raw"], other.X = other.X, None
    _, axis = plt.subplots()
    drawn = pl.mean_expression(real, other, ["gene_5"], predicted_layer="raw", ax=axis)
    assert drawn is axis
    assert [text.get_text() for text in axis.texts] == ["gene_5"]
    with pytest.raises(KeyError, match="must be in both data, but these are not: 'x'"):
        pl.mean_expression(real, predicted, ["gene_5", "x"])
    with pytest.raises(KeyError, match="layer='raw' names no layer"):
        pl.mean_expression(real, predicted, layer="raw")
    predicted = predicted.copy()
    predicted.var_names = [f"ENSG{i}" for i in range(predicted.n_vars)]
    for draw in (pl.mean_expression, pl.generated):
        with pytest.raises(ValueError, match="at least two, but they share 0"):
            draw(real, predicted)


@pytest.mark.parametrize("heights", [[0.1, 0.1, 0.1], [0.96, 0.97, 0.98, 0.99], [0.5] * 40, []])
def test_names_stand_apart_and_within_the_axes(heights):
    placed = _apart(np.array(heights))
    assert np.all(np.diff(placed) >= min(0.055, 0.94 / max(len(heights) - 1, 1)) - 1e-9)
    assert np.all((placed >= 0.03 - 1e-9) & (placed <= 0.97 + 1e-9))


def test_generated_counts_are_compared_in_four_ways(real, predicted):
    figure = pl.generated(real, predicted)
    a, b = real.X.toarray().astype(float), predicted.X.toarray().astype(float)
    statistics = {
        "mean, log10": lambda x: np.log10(1 + x.mean(0)),
        "variance, log10": lambda x: np.log10(1 + x.var(0)),
        "zeros": lambda x: (x == 0).mean(0),
    }
    assert [axis.get_title() for axis in figure.axes] == ["counts per cell, log10", *statistics]
    for axis, statistic in zip(figure.axes[1:], statistics.values(), strict=True):
        drawn = axis.collections[0].get_offsets()
        np.testing.assert_allclose(drawn, np.column_stack([statistic(a), statistic(b)]), atol=1e-9)
        expected = r_squared(statistic(a), statistic(b))
        assert axis.texts[0].get_text() == f"R² = {expected:.2f}"
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["real", "generated"]


# --------------------------------------------------------------------------- colours and names


def test_few_groups_have_colours_that_can_be_told_apart(annotated):
    assert _style.palette_of(annotated, "scgmvae") == list(_style.PALETTE[:K])
    colors = _style.colors_of(annotated, "scgmvae")
    assert list(colors.values()) == list(_style.PALETTE[:K])
    assert len(set(_style.PALETTE)) == 10
    for name in ("scgmvae_confidence", "gene_1", None):  # numbers, a gene, nothing
        assert _style.palette_of(annotated, name) is None
    with mpl.rc_context({"axes.prop_cycle": mpl.cycler(color=["r", "g", "b", "y"])}):
        assert _style.palette_of(annotated, "scgmvae") is None
        assert list(_style.colors_of(annotated, "scgmvae").values()) == ["r", "g", "b", "y"]
    annotated.uns["scgmvae_colors"] = np.array(["#010101"] * K)
    assert _style.palette_of(annotated, "scgmvae") is None
    assert set(_style.colors_of(annotated, "scgmvae").values()) == {"#010101"}
    annotated.obs["many"] = pd.Categorical((np.arange(N) % 12).astype(str))
    many = _style.colors_of(annotated, "many")
    assert list(many.values()) == palettes.default_20[:12]


def test_colours_of_the_data_are_taken_and_kept(model):
    adata = model.adata.copy()
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    adata.uns["batch_colors"] = ["#ff0000", "#0000ff"]
    figure = pl.latent(model, "batch", adata)
    (legend,) = [axis.get_legend() for axis in figure.axes]
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    points = figure.axes[0].collections[0]
    drawn = {mpl.colors.to_hex(colour) for colour in points.get_facecolors()}
    assert drawn == {"#ff0000", "#0000ff"}
    assert adata.uns["batch_colors"] == ["#ff0000", "#0000ff"]


def test_a_single_panel_is_drawn_into_given_axes(model):
    figure, axis = plt.subplots()
    assert pl.latent(model, "component", ax=axis) is figure
    np.testing.assert_array_equal(
        np.sort(axis.collections[0].get_offsets(), 0), np.sort(model.z, 0)
    )
    with pytest.raises(ValueError, match="ax has room for one panel, but color names 2"):
        pl.latent(model, ["component", "batch"], ax=axis)


def test_names_are_drawn_as_they_are_and_shortened(annotated, tmp_path):
    adata = annotated.copy()
    hostile = ["$\\frac$", "x" * 300, "<b>", "3"]
    adata.obs["scgmvae"] = adata.obs["scgmvae"].cat.rename_categories(hostile)
    adata.obs["$odd$"] = adata.obs["scgmvae"]
    adata.obsm["X_z"] = adata.X
    figure = pl.embedding(adata, ["$odd$"], "z")
    figure.savefig(tmp_path / "figure.png")  # where a formula would fail
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["\\$\\frac\\$", "x" * 39 + "…", "<b>", "3"]
    pl.confidence(adata).figure.savefig(tmp_path / "figure.png")


def test_a_legend_that_would_fill_the_page_is_left_out(annotated):
    annotated.obsm["X_z"] = annotated.X
    annotated.obs["cell"] = pd.Categorical(annotated.obs_names)
    figure = pl.embedding(annotated, "cell", "z")
    assert figure.axes[0].get_legend() is None
    assert figure.get_size_inches().tolist() == [3.5, 3.0]


# ---------------------------------------------------------------------------------- appearance


def sized(figure, inches):
    """The figure in another size, which keeps its file small."""
    figure.set_size_inches(inches)
    return figure


SIZES = pd.DataFrame(
    {
        "n_latent": [2, 2, 5, 5, 10, 10],
        "loss": [120.0, 124, 100, 102, 99, 97],
        "reconstruction": [110.0, 114, 85, 87, 80, 78],
    }
)
FIGURES = {
    "training": lambda f: pl.training(f["model"]),
    "training_term": lambda f: pl.training_term(f["model"]).figure,
    "latent": lambda f: pl.latent(f["model"], ["component", "type"]),
    "latent_size": lambda f: pl.latent_size(SIZES),
    "components": lambda f: pl.components(f["model"]),
    "component_similarity": lambda f: pl.component_similarity(f["model"]).figure,
    "component_labels": lambda f: pl.component_labels(f["model"]).figure,
    "composition": lambda f: pl.composition(f["annotated"], "batch").figure,
    "confusion": lambda f: pl.confusion(f["annotated"], "type").figure,
    "confidence": lambda f: pl.confidence(f["annotated"]).figure,
    "novelty": lambda f: pl.novelty(f["annotated"]).figure,
    "query": lambda f: sized(pl.query(f["placed"], f["placed"]), (5, 1.8)),
    "mean_expression": lambda f: pl.mean_expression(f["real"], f["predicted"]).figure,
    "generated": lambda f: pl.generated(f["real"], f["predicted"]),
    "reconstructions": lambda f: pl.reconstructions(f["images"], n_images=6),
    "manifold": lambda f: pl.manifold(f["images"], n=6),
    "samples": lambda f: pl.samples(f["images"], 3),
}


@pytest.fixture
def given(model, images, annotated, placed, real, predicted):
    """What the figures are of."""
    names = ("model", "images", "annotated", "placed", "real", "predicted")
    return dict(zip(names, (model, images, annotated, placed, real, predicted), strict=True))


def without_letters(figure):
    """The figure without text and legends, so that its layout does not depend on them either."""
    for axis in figure.axes:
        axis.tick_params(which="both", **dict.fromkeys(LABELS, False))
        for child in axis.findobj(lambda artist: isinstance(artist, Text | Legend)):
            if isinstance(child, Annotation):
                child.set_text("")  # its line stays
            else:
                child.set_visible(False)
    return figure


LABELS = ("labelbottom", "labeltop", "labelleft", "labelright")


@compared
@other_drawing
@pytest.mark.parametrize("name", FIGURES)
def test_looks_as_it_did(name, given):
    return without_letters(FIGURES[name](given))


@other_drawing
@pytest.mark.parametrize("name", FIGURES)
def test_a_missing_panel_is_beyond_the_tolerance(name, given, tmp_path):
    expected = Path(__file__).parent / "figures" / f"test_looks_as_it_did_{name}.png"
    assert expected.stat().st_size < 30_000
    with plt.style.context("default", after_reset=True):
        figure = without_letters(FIGURES[name](given))
        figure.savefig(tmp_path / "as_it_is.png", dpi=DPI)
        assert compare_images(expected, tmp_path / "as_it_is.png", TOLERANCE) is None
        for number, axis in enumerate(figure.axes):
            if axis.get_visible() and (axis.has_data() or axis.images):
                axis.set_visible(False)
                path = tmp_path / f"without_{number}.png"
                figure.savefig(path, dpi=DPI)
                assert compare_images(expected, path, TOLERANCE) is not None, number
                axis.set_visible(True)
