"""Tests of scgmvae.plotting: figures of images, of the latent, and of its size."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from scgmvae import SCGMVAE, DualVAE, pl
from scgmvae.datasets import two_photon

N, H, W = 120, 8, 8
SMALL = {"n_hidden": 16, "n_components": 3, "n_latent_w": 2}


pytestmark = pytest.mark.usefixtures("no_window_and_no_new_settings")


@pytest.fixture(scope="module")
def digits():
    """120 digits as bytes, in two batches; only to be read."""
    adata = AnnData(np.round(load_digits().data[:N] * 255 / 16).astype(np.uint8))
    adata.uns["image_shape"] = (H, W)
    adata.obs["digit"] = load_digits().target[:N].astype(str)
    adata.obs["batch"] = np.where(np.arange(N) % 2, "b", "a")
    adata.X.flags.writeable = False
    return adata


@pytest.fixture(scope="module")
def flat(digits, train):
    """Model of digits with a z of two dimensions; only to be read."""
    return train(SCGMVAE(digits.copy(), n_latent=2, **SMALL), start="kmeans")


@pytest.fixture(scope="module")
def conditional(digits, make_model, train):
    """Model of digits in batches with a z of two dimensions; only to be read."""
    model = make_model(digits.copy(), setup={"batch_key": "batch"}, n_latent=2, **SMALL)
    return train(model, start="kmeans")


@pytest.fixture(scope="module")
def deep(digits, train):
    """Autoencoder of digits with a z of four dimensions; only to be read."""
    return train(SCGMVAE(digits.copy(), n_latent=4, prior="none", n_hidden=16))


@pytest.fixture(scope="module")
def colour(train):
    """Model of images of noise in three colours, as floats; only to be read."""
    x = np.random.default_rng(0).random((40, 4 * 5 * 3), dtype=np.float32)
    adata = AnnData(x, uns={"image_shape": (4, 5, 3)})
    return train(SCGMVAE(adata, n_latent=2, **SMALL), start="kmeans")


def drawn(figure):
    """The one picture of a figure as an array, and its axes."""
    assert isinstance(figure, Figure)
    (axis,) = figure.axes
    (image,) = axis.images
    return np.asarray(image.get_array()), axis


def tile(picture, row, column, shape=(H, W)):
    """The image in a row and column of a picture, as a row of X."""
    height, width = shape[:2]
    part = picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
    return part.reshape(-1)


def ticks(axis, name):
    """Place → label of the ticks of the x or y axis."""
    places = getattr(axis, f"get_{name}ticks")()
    labels = [label.get_text() for label in getattr(axis, f"get_{name}ticklabels")()]
    return dict(zip(np.asarray(places).tolist(), labels, strict=True))


def assert_images_fill_the_axes(picture, axis):
    """One unit of the axes is one pixel, the first row on top."""
    height, width = picture.shape[:2]
    assert axis.images[0].get_extent() == [0, width, height, 0]
    assert axis.images[0].origin == "upper"


# ------------------------------------------------------------------------------ reconstructions


def test_reconstructions_stand_below_their_originals(flat, digits):
    picture, axis = drawn(pl.reconstructions(flat, n_images=6))
    assert picture.shape == (2 * H, 6 * W)
    expected = flat.get_reconstruction()
    for column in range(6):
        np.testing.assert_allclose(tile(picture, 0, column), digits.X[column] / 255, rtol=1e-6)
        np.testing.assert_allclose(tile(picture, 1, column), expected[column], rtol=1e-4)
    assert_images_fill_the_axes(picture, axis)
    assert ticks(axis, "y") == {4: "original", 12: "reconstruction"}
    assert ticks(axis, "x") == {}
    # ink on paper, on a scale that does not follow the values
    assert axis.images[0].get_cmap().name == "gray_r"
    assert axis.images[0].get_clim() == (0, 1)


def test_several_models_have_a_row_each(flat, deep, digits):
    rows = [7, 3, 100]
    models = {"mixture": flat, "autoencoder": deep}
    picture, axis = drawn(pl.reconstructions(models, indices=rows))
    assert picture.shape == (3 * H, 3 * W)
    for row, model in enumerate(models.values(), start=1):
        expected = model.get_reconstruction(indices=rows)
        for column in range(3):
            np.testing.assert_allclose(
                tile(picture, 0, column), digits.X[rows[column]] / 255, rtol=1e-6
            )
            np.testing.assert_allclose(tile(picture, row, column), expected[column], rtol=1e-4)
    assert ticks(axis, "y") == {4: "original", 12: "mixture", 20: "autoencoder"}


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_reconstructions_of_other_images(flat, digits, kind):
    other = digits[60:].copy()
    if kind == "floats":
        other.X = (other.X / 255).astype(np.float32)
    picture, _ = drawn(pl.reconstructions(flat, other, n_images=2))
    np.testing.assert_allclose(tile(picture, 0, 1), digits.X[61] / 255, rtol=1e-6)
    expected = flat.get_reconstruction(indices=[61])[0]
    np.testing.assert_allclose(tile(picture, 1, 1), expected, rtol=1e-4, atol=1e-6)


def test_there_are_no_more_reconstructions_than_images(flat, digits):
    picture, _ = drawn(pl.reconstructions(flat, digits[:3].copy()))
    assert picture.shape == (2 * H, 3 * W)


def test_images_of_three_channels_are_drawn_in_colour(colour):
    picture, axis = drawn(pl.reconstructions(colour, indices=[5, 2]))
    assert picture.shape == (2 * 4, 2 * 5, 3)
    x, expected = colour.adata.X, colour.get_reconstruction()
    for column, row in enumerate([5, 2]):
        np.testing.assert_allclose(tile(picture, 0, column, (4, 5)), x[row], rtol=1e-6)
        np.testing.assert_allclose(tile(picture, 1, column, (4, 5)), expected[row], rtol=1e-4)
    assert_images_fill_the_axes(picture, axis)


def test_values_beyond_the_unit_interval_are_drawn_at_its_ends(train):
    x = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    adata = AnnData(x, uns={"image_shape": (4, 3)})
    model = SCGMVAE(adata, likelihood="gaussian", prior="none", n_hidden=8, n_latent=2)
    train(model, max_epochs=1)
    picture, _ = drawn(pl.reconstructions(model, n_images=4))
    np.testing.assert_allclose(tile(picture, 0, 3, (4, 3)), x[3].clip(0, 1), rtol=1e-6)
    assert picture.min() == 0


# -------------------------------------------------------------------------------------- manifold


def test_the_manifold_has_the_first_dimension_to_the_right_and_the_second_upwards(flat):
    limits = (-1.0, 3.0)
    picture, axis = drawn(pl.manifold(flat, n=5, limits=limits))
    assert picture.shape == (5 * H, 5 * W)
    for column, z_0 in enumerate([-1, 0, 1, 2, 3]):
        for row, z_1 in enumerate([3, 2, 1, 0, -1]):
            expected = flat.decode(np.array([[z_0, z_1]]))[0]
            np.testing.assert_allclose(tile(picture, row, column), expected, rtol=1e-4, atol=1e-6)
    assert np.abs(tile(picture, 0, 0) - tile(picture, 4, 4)).max() > 1e-4
    labels = ["-1.0", "0.0", "1.0", "2.0", "3.0"]
    # at the centre of the images that were decoded there
    assert ticks(axis, "x") == dict(zip([4, 12, 20, 28, 36], labels, strict=True))
    assert ticks(axis, "y") == dict(zip([36, 28, 20, 12, 4], labels, strict=True))
    assert axis.get_xlabel() == "z, first dimension"
    assert axis.get_ylabel() == "z, second dimension"
    assert_images_fill_the_axes(picture, axis)


def test_the_manifold_of_twenty_has_five_ticks_at_images_of_their_value(flat):
    picture, axis = drawn(pl.manifold(flat))
    assert picture.shape == (20 * H, 20 * W)
    values = np.linspace(-4, 4, 20)
    for place, label in ticks(axis, "x").items():
        assert label == f"{values[int(place // W)]:.1f}"
    assert len(ticks(axis, "x")) == len(ticks(axis, "y")) == 5


def test_the_manifold_takes_conditions(conditional):
    pictures = []
    for batch in ("a", "b"):
        picture, _ = drawn(pl.manifold(conditional, n=2, conditions={"batch": batch}))
        expected = conditional.decode(np.array([[4.0, -4.0]]), {"batch": batch})[0]
        np.testing.assert_allclose(tile(picture, 1, 1), expected, rtol=1e-4, atol=1e-6)
        pictures.append(picture)
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3
    with pytest.raises(ValueError, match="every registered condition, but 'batch' has none"):
        pl.manifold(conditional, n=2)


def test_the_manifold_of_colour_images(colour):
    picture, _ = drawn(pl.manifold(colour, n=3, limits=(0, 2)))
    assert picture.shape == (3 * 4, 3 * 5, 3)
    expected = colour.decode(np.array([[2.0, 1.0]]))[0]
    np.testing.assert_allclose(tile(picture, 1, 2, (4, 5)), expected, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------- samples


def test_samples_have_a_column_per_component_and_a_row_per_draw(flat):
    picture, axis = drawn(pl.samples(flat, 4, seed=2))
    expected = flat.decode_components(4, seed=2)
    assert picture.shape == (4 * H, 3 * W)
    for row in range(4):
        for column in range(3):
            np.testing.assert_allclose(
                tile(picture, row, column), expected[row, column], rtol=1e-5
            )
    assert ticks(axis, "x") == {4: "0", 12: "1", 20: "2"}
    assert ticks(axis, "y") == {}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("component", "draws of w")
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {0}
    assert_images_fill_the_axes(picture, axis)


def test_samples_take_conditions_and_the_names_of_labels(digits, make_model, train):
    adata = digits.copy()
    adata.obs["type"] = adata.obs["digit"].map({"0": "zero", "1": "one"}).fillna("unknown")
    setup = {"labels_key": "type", "batch_key": "batch"}
    model = train(make_model(adata, setup=setup, n_latent=2, **SMALL), start="kmeans")
    pictures = []
    for batch in ("a", "b"):
        picture, axis = drawn(pl.samples(model, conditions={"batch": batch}))
        expected = model.decode_components(6, {"batch": batch})
        assert picture.shape == (6 * H, 3 * W)
        np.testing.assert_allclose(tile(picture, 5, 2), expected[5, 2], rtol=1e-5)
        pictures.append(picture)
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3
    assert ticks(axis, "x") == {4: "one", 12: "zero", 20: "2"}
    # long names do not fit side by side
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {90}


def test_samples_of_a_vae_are_decoded_at_draws_of_its_prior(digits, train):
    vae = train(SCGMVAE(digits.copy(), n_latent=2, prior="normal", n_hidden=16))
    picture, axis = drawn(pl.samples(vae, 3, seed=2))
    assert picture.shape == (3 * H, 10 * W)
    expected = vae.sample(30, seed=2).layers["rate"]
    for row, column in ((0, 0), (1, 4), (2, 9)):
        np.testing.assert_allclose(
            tile(picture, row, column), expected[10 * row + column], rtol=1e-5
        )
    assert axis.get_xlabel() == "draws of z"
    assert_images_fill_the_axes(picture, axis)


# ---------------------------------------------------------------------------------------- latent


def offsets(axis):
    """Points of a scatter, in the order of the cells where they are drawn at once."""
    points = np.vstack([np.asarray(points.get_offsets()) for points in axis.collections])
    return points[np.isfinite(points).all(1)]


def test_a_latent_of_two_dimensions_is_drawn_as_it_is(flat):
    figure = pl.latent(flat, ["component", "digit"], point_size=9)
    assert [axis.get_title() for axis in figure.axes] == ["component", "digit"]
    z = flat.get_latent_representation()
    for axis in figure.axes:
        np.testing.assert_allclose(np.sort(offsets(axis), 0), np.sort(z, 0), rtol=1e-5)
        assert axis.collections[0].get_sizes().tolist() == [9]
    # every component in a colour of its own, as the legend says
    axis = figure.axes[0]
    component = flat.predict(components=True)
    colours = {}
    for points in axis.collections:
        for place, colour in zip(points.get_offsets(), points.get_facecolors(), strict=False):
            cell = np.abs(z - place).sum(1).argmin()
            colours.setdefault(component[cell], set()).add(tuple(colour))
    assert sorted(colours) == sorted(set(component))
    assert all(len(of_component) == 1 for of_component in colours.values())
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == sorted(set(component))
    # the model's data are as they were
    assert "component" not in flat.adata.obs
    assert "X_umap" not in flat.adata.obsm


def test_of_many_cells_some_are_drawn(flat):
    z = flat.get_latent_representation()
    shown = []
    for seed in (0, 0, 1):
        figure = pl.latent(flat, n_cells=30, seed=seed)
        shown.append(offsets(figure.axes[0]))
        assert len(shown[-1]) == 30
        assert np.abs(shown[-1][:, None] - z).sum(-1).min(1).max() < 1e-5
    np.testing.assert_array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], shown[2])


def test_a_latent_of_other_cells(flat, digits):
    other = digits[:20].copy()
    figure = pl.latent(flat, "digit", other)
    z = flat.get_latent_representation(indices=np.arange(20))
    np.testing.assert_allclose(np.sort(offsets(figure.axes[0]), 0), np.sort(z, 0), atol=1e-5)


REDUCED = [
    # the first call of UMAP compiles it
    pytest.param("umap", id="umap", marks=pytest.mark.slow),
    pytest.param("tsne", id="tsne"),
]


@pytest.mark.parametrize("method", REDUCED)
@pytest.mark.filterwarnings("ignore:n_jobs value 1 overridden:UserWarning")
def test_a_latent_of_more_dimensions_is_reduced_in_a_way_that_follows_from_the_seed(deep, method):
    places = []
    for seed in (0, 0, 1):
        figure = pl.latent(deep, "digit", method=method, n_cells=60, seed=seed)
        (axis,) = figure.axes
        assert axis.get_title() == "digit"
        places.append(offsets(axis))
        assert places[-1].shape == (60, 2)
        assert places[-1].std(0).min() > 0
    np.testing.assert_allclose(places[1], places[0], rtol=1e-4)
    assert np.abs(places[2] - places[0]).max() > 0.1
    assert not [name for name in deep.adata.obsm if name in ("X_umap", "X_tsne")]


@pytest.mark.parametrize("method", REDUCED)
@pytest.mark.filterwarnings("ignore:n_jobs value 1 overridden:UserWarning")
def test_a_latent_of_ten_cells_is_reduced(deep, method):
    (axis,) = pl.latent(deep, "digit", method=method, n_cells=10).axes
    assert offsets(axis).shape == (10, 2)
    assert np.isfinite(offsets(axis)).all()


@pytest.mark.parametrize("method", ["umap", "tsne"])
def test_the_reduction_is_that_of_z(deep, monkeypatch, method):
    # in place of scanpy's, which take their time, one whose places are known
    seen = []

    def reduce(adata, random_state, use_rep=None, perplexity=30):
        assert perplexity == 30
        seen.append((adata.X.copy(), random_state))
        adata.obsm[f"X_{method}"] = adata.X[:, [3, 1]]

    def neighbors(adata, use_rep, random_state):
        assert (use_rep, random_state) == ("X", 4)

    monkeypatch.setattr(sc.pp, "neighbors", neighbors)
    monkeypatch.setattr(sc.tl, method, reduce)
    figure = pl.latent(deep, ["digit", "batch"], method=method, seed=4)
    z = deep.get_latent_representation()
    ((reduced, random_state),) = seen
    assert random_state == 4
    np.testing.assert_array_equal(reduced, z)
    for axis in figure.axes:
        np.testing.assert_allclose(np.sort(offsets(axis), 0), np.sort(z[:, [3, 1]], 0), rtol=1e-5)


# ----------------------------------------------------------------------------------- latent_size


def test_the_loss_by_size_of_the_latent_is_the_mean_of_the_seeds():
    table = pd.DataFrame(
        {
            "n_latent": [8, 2, 2, 2, 4],
            "loss": [5.0, 9.0, 11.0, 10.0, 7.0],
            "reconstruction": [1.0, 8.0, 8.0, 8.0, 3.0],
            "seed": [0, 0, 1, 2, 0],
        }
    )
    figure = pl.latent_size(table)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["loss, −ELBO", "reconstruction, −log p(x|z,c)"]
    spreads = ([1.0, 0, 0], [0, 0, 0])  # where there is one row, none
    for axis, means, spread in zip(figure.axes, ([10, 7, 5], [8, 3, 1]), spreads, strict=True):
        (container,) = axis.containers
        curve, _, (bars,) = container
        np.testing.assert_array_equal(curve.get_xdata(), [2, 4, 8])
        np.testing.assert_allclose(np.asarray(curve.get_ydata(), dtype=float), means)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()], dtype=float)
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * np.array(spread))
        assert axis.get_xticks().tolist() == [2, 4, 8]
        assert axis.get_xlabel() == "dimensions of z"
    assert figure.axes[0].get_ylabel() == "nats"


def test_a_table_without_the_columns_is_refused():
    with pytest.raises(KeyError) as error:
        pl.latent_size(pd.DataFrame({"n_latent": [2], "elbo": [1.0]}))
    for part in ("['loss', 'reconstruction'] are missing", "there are ['n_latent', 'elbo']"):
        assert part in str(error.value)
    assert plt.get_fignums() == []


# ------------------------------------------------------------------------------ what is refused

REFUSED = [
    pytest.param(
        lambda models: pl.reconstructions(models["counts"]),
        ValueError,
        "shows images, but the model's data are none",
        id="reconstructions_of_counts",
    ),
    pytest.param(
        lambda models: pl.manifold(models["counts"]),
        ValueError,
        "shows images, but the model's data are none",
        id="manifold_of_counts",
    ),
    pytest.param(
        lambda models: pl.samples(models["counts"]),
        ValueError,
        "shows images, but the model's data are none",
        id="samples_of_counts",
    ),
    pytest.param(
        lambda models: pl.manifold(models["deep"]),
        ValueError,
        "needs n_latent=2, but it has n_latent=4",
        id="manifold_of_four_dimensions",
    ),
    pytest.param(
        lambda models: pl.manifold(models["flat"], n=1),
        ValueError,
        "n must be an integer of at least 2",
        id="manifold_of_one",
    ),
    pytest.param(
        lambda models: pl.samples(models["deep"]),
        RuntimeError,
        "The model has no components: its prior is 'none'",
        id="samples_of_an_autoencoder",
    ),
    pytest.param(
        lambda models: pl.samples(models["flat"], 0),
        ValueError,
        "n_draws must be an integer of at least 1",
        id="no_draws",
    ),
    pytest.param(
        lambda models: pl.reconstructions(models["flat"], n_images=0),
        ValueError,
        "n_images must be an integer of at least 1",
        id="no_images",
    ),
    pytest.param(
        lambda models: pl.reconstructions(models["flat"], indices=[N]),
        ValueError,
        f"below the number of cells ({N})",
        id="row_beyond_the_end",
    ),
    *(
        pytest.param(
            lambda models, method=method: pl.latent(models["deep"], method=method, n_cells=9),
            ValueError,
            f"{method} needs at least 10 cells to bring 4 dimensions of z to two, but there are 9",
            id=f"{method}_of_nine_cells",
        )
        for method in ("umap", "tsne")
    ),
    pytest.param(
        lambda models: pl.reconstructions([models["flat"]]),
        ValueError,
        "models must be a model, or models by name",
        id="models_without_names",
    ),
    pytest.param(
        lambda models: pl.latent(models["flat"], method="pca"),
        ValueError,
        "method must be one of ('umap', 'tsne'), but it is 'pca'",
        id="method",
    ),
    pytest.param(
        lambda models: pl.latent(models["flat"], ["component", "type"]),
        KeyError,
        "color names the obs column 'type'",
        id="colour",
    ),
    pytest.param(
        lambda models: pl.latent(models["deep"], color="component"),
        RuntimeError,
        "The model has no components: its prior is 'none'",
        id="component_of_an_autoencoder",
    ),
]


@pytest.mark.parametrize(("draw", "error", "message"), REFUSED)
def test_what_cannot_be_drawn_is_refused_without_a_figure(
    flat, deep, trained_normal, draw, error, message
):
    with pytest.raises(error) as raised:
        draw({"flat": flat, "deep": deep, "counts": trained_normal})
    assert message in str(raised.value)
    assert plt.get_fignums() == []


# ---------------------------------------------------------------------------------- dual models


@pytest.fixture(scope="module")
def dual():
    """Dual model of small images in two groups; only to be read."""
    adata = two_photon(40, image_shape=(12, 12))
    adata.obs["half"] = np.where(np.arange(40) < 20, "first", "second")
    model = DualVAE(adata, n_latent_foreground=4, n_latent_background=2)
    model.train(2, enable_progress_bar=False, accelerator="cpu")
    return model


def test_either_latent_of_a_dual_model_is_drawn(dual):
    (axis,) = pl.latent(dual, "half", which="background").axes
    z = dual.get_latent_representation(which="background")
    points = np.concatenate([np.asarray(part.get_offsets()) for part in axis.collections])
    np.testing.assert_allclose(points[np.lexsort(points.T)], z[np.lexsort(z.T)], rtol=1e-5)
    (reduced,) = pl.latent(dual, n_cells=20).axes  # z₁ has four dimensions
    assert sum(len(part.get_offsets()) for part in reduced.collections) == 20
    plt.close("all")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        pytest.param(pl.samples, r"Draw model.get_foreground\(\) and", id="samples"),
        pytest.param(pl.reconstructions, r"pl.latent\(model, which", id="reconstructions"),
        pytest.param(pl.manifold, "a DualVAE has two latents", id="manifold"),
        pytest.param(
            lambda model: pl.latent(model, "component"), "has no components", id="component"
        ),
        pytest.param(lambda model: pl.latent(model, which="z"), "which must be", id="which"),
    ],
)
def test_what_a_dual_model_has_not_is_refused_with_what_to_call(dual, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(dual)
    assert plt.get_fignums() == []
