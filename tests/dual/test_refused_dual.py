"""What a DualVAE refuses: data, settings, trainings and calls; all stays as it was."""

import numpy as np
import pytest
from refused import TWICE, with_matrix, with_two_genes_of_one_name
from states import unchanged

from scgmvae import DualVAE
from scgmvae.datasets import two_photon


@pytest.fixture(scope="module")
def images():
    """20 images of 12 × 12 pixels; copy them before use."""
    return two_photon(20, image_shape=(12, 12))


@pytest.fixture
def untrained(images):
    """A model that is not trained."""
    return DualVAE(images.copy(), n_latent_foreground=4)


@pytest.fixture(scope="module")
def trained(images):
    """A trained model; only to be read."""
    model = DualVAE(images.copy(), n_latent_foreground=4)
    model.train(1, enable_progress_bar=False, accelerator="cpu")
    return model


# ------------------------------------------------------------------------- data and settings


def test_what_is_no_anndata_is_refused():
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="AnnData.*int"):
                DualVAE(3)


def test_what_is_no_anndata_is_not_set_up():
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="AnnData.*str"):
                DualVAE.setup_anndata("a")


def test_a_model_of_nothing_wants_the_shape_of_images():
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="height, width.*None"):
                DualVAE()


def test_a_layer_must_be_there(images):
    adata = images.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(KeyError, match="'no'"):
                DualVAE.setup_anndata(adata, layer="no")


def test_data_without_a_shape_are_refused(images):
    adata = images.copy()
    del adata.uns["image_shape"]
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="no 'image_shape'"):
                DualVAE(adata)


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(with_two_genes_of_one_name, "'twice'", id="pixel_twice"),
        pytest.param(lambda adata: with_matrix(adata, adata.X * np.nan), "NaN", id="NaN"),
        pytest.param(
            lambda adata: with_matrix(adata, adata.X.astype(object)),
            "real numbers.*object",
            id="objects",
        ),
    ],
)
def test_images_that_cannot_be_modelled_are_refused(images, change, message):
    adata = change(images.copy())
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                DualVAE(adata)


def test_images_with_noise_are_no_counts(images):
    adata = images.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="negative|no integers"):
                DualVAE(adata, likelihood="poisson")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("n_latent_foreground", 0),
        ("n_latent_background", 1.5),
        ("n_hidden", 3),
        ("n_hidden", [0]),
        ("encoder", "x"),
        ("interaction", "x"),
        ("likelihood", "nb"),
        ("window", 0),
        ("window", 100),
        ("blur", -1),
        ("blur", "a"),
    ],
    ids=repr,
)
def test_bad_settings_are_refused_by_name(images, name, bad):
    adata = images.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                DualVAE(adata, **{name: bad})


# ------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        pytest.param({"max_epochs": 0}, ValueError, "max_epochs", id="no_epochs"),
        pytest.param({"batch_size": 1.5}, ValueError, "batch_size", id="batch_size"),
        pytest.param({"seed": -1}, ValueError, "seed", id="seed"),
        pytest.param({"train_size": 0}, ValueError, "train_size", id="train_size"),
        pytest.param({"accelerator": "x"}, ValueError, "'x'", id="accelerator"),
        pytest.param(
            {"plan_kwargs": {"lr": -1}}, ValueError, "lr must be at least 0", id="step_length"
        ),
        pytest.param({"plan_kwargs": {"lrr": 1}}, TypeError, "'lrr'", id="misspelt_in_the_plan"),
        pytest.param(
            {"early_stopping": True}, ValueError, "validation cells", id="early_stopping"
        ),
        pytest.param({"epochs": 3}, TypeError, "epochs", id="no_such_argument"),
    ],
)
def test_bad_arguments_of_training_are_refused(untrained, settings, error, message):
    quick = {"max_epochs": 1, "enable_progress_bar": False}
    with unchanged(untrained):
        for _ in TWICE:
            with pytest.raises(error, match=message):
                untrained.train(**(quick | settings))


# -------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "method",
    [
        "get_foreground",
        "get_background",
        "get_latent_representation",
        "annotate",
        "get_elbo",
        "get_elbo_terms",
        "get_marginal_ll",
    ],
)
def test_an_untrained_model_tells_nothing(untrained, method):
    with unchanged(untrained):
        for _ in TWICE:
            with pytest.raises(RuntimeError, match="train the model first"):
                getattr(untrained, method)()


@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        pytest.param("get_latent_representation", {"which": "z"}, "which", id="unknown_latent"),
        pytest.param("get_foreground", {"indices": [20]}, "indices", id="image_not_there"),
        pytest.param("get_elbo", {"indices": [20]}, "indices", id="image_not_there_for_elbo"),
        pytest.param("get_background", {"batch_size": 0}, "batch_size", id="batch_size"),
        pytest.param("annotate", {"adata": "a"}, "AnnData.*str", id="annotated_text"),
    ],
)
def test_bad_arguments_of_reading_are_refused(trained, method, argument, message):
    with unchanged(trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                getattr(trained, method)(**argument)


def test_a_view_is_not_annotated(trained):
    with unchanged(trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match="view"):
                trained.annotate(trained.adata[:3])
