"""Figures that cannot be drawn: the words, and that data and models stay as they were."""

import re

import numpy as np
import pandas as pd
import pytest
from refused import TWICE
from small import NETWORK, QUICK
from states import unchanged

from scgmvae import SCGMVAE, datasets, pl

pytestmark = pytest.mark.usefixtures("no_window_and_no_new_settings")


@pytest.fixture(scope="module")
def of_images():
    """A trained model of images with a plane as its latent; only to be read."""
    model = SCGMVAE(datasets.digits()[:60].copy(), n_hidden=8, n_latent=2, n_components=3)
    model.train(**QUICK)
    return model


def test_an_embedding_is_drawn_of_data(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match="AnnData.*SCGMVAE"):
                pl.embedding(roughly_trained)


def test_an_embedding_wants_a_colour(counts):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="at least one"):
                pl.embedding(adata, color=[])


def test_an_embedding_must_be_there(counts):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(KeyError, match="tsne"):
                pl.embedding(adata, "batch", "tsne")


@pytest.mark.parametrize("figure", [pl.training, pl.components])
def test_an_untrained_model_has_nothing_to_show(counts, figure):
    model = SCGMVAE(counts.copy(), n_components=3, **NETWORK)
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(RuntimeError, match="train"):
                figure(model)


def test_labels_of_components_must_be_in_a_column(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(KeyError, match="'no'"):
                pl.components(roughly_trained, "no")


def test_colours_of_the_latent_must_be_in_a_column(roughly_trained):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(KeyError, match="'no'"):
                pl.latent(roughly_trained, color="no")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"color": 3}, "color must be the name.*3"),
        ({"method": "pca"}, "method"),
        ({"n_cells": 0}, "n_cells"),
        ({"n_cells": 1.5}, "n_cells"),
        ({"seed": -1}, "seed"),
        ({"adata": 3}, "AnnData"),
    ],
    ids=str,
)
def test_bad_arguments_of_the_latent_are_refused(roughly_trained, argument, message):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                pl.latent(roughly_trained, **argument)


def test_sizes_of_latents_are_compared_by_a_table_of_losses():
    table = pd.DataFrame({"a": [1]})
    with unchanged():
        for _ in TWICE:
            with pytest.raises(KeyError, match="'n_latent'"):
                pl.latent_size(table)


# ----------------------------------------------------------------------------------- images


@pytest.mark.parametrize("figure", [pl.reconstructions, pl.manifold, pl.samples])
def test_counts_are_not_drawn_as_images(roughly_trained, figure):
    with unchanged(roughly_trained):
        for _ in TWICE:
            with pytest.raises(ValueError, match="shows images"):
                figure(roughly_trained)


def test_reconstructions_want_a_model():
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match="at least one trained"):
                pl.reconstructions({})


@pytest.mark.parametrize("n_images", [0, 1.5])
def test_images_to_reconstruct_must_be_an_integer(of_images, n_images):
    message = f"n_images must be an integer.*{re.escape(repr(n_images))}"
    with unchanged(of_images):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                pl.reconstructions(of_images, n_images=n_images)


def test_images_to_reconstruct_must_be_there(of_images):
    with unchanged(of_images):
        for _ in TWICE:
            with pytest.raises(ValueError, match="indices must select"):
                pl.reconstructions(of_images, indices=[60])


@pytest.mark.parametrize(
    "limits", [(1,), ("a", "b"), (np.nan, 1), 3, (2, 2), (0, np.inf)], ids=repr
)
def test_limits_of_the_manifold_must_be_two_numbers(of_images, limits):
    message = f"smallest and the largest z.*{re.escape(repr(limits))}"
    with unchanged(of_images):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                pl.manifold(of_images, limits=limits)


def test_a_manifold_has_more_than_one_image_a_side(of_images):
    with unchanged(of_images):
        for _ in TWICE:
            with pytest.raises(ValueError, match="n must be"):
                pl.manifold(of_images, n=1)


def test_samples_want_draws(of_images):
    with unchanged(of_images):
        for _ in TWICE:
            with pytest.raises(ValueError, match="n_draws must be"):
                pl.samples(of_images, 0)


def test_samples_take_no_seed_below_0(of_images):
    with unchanged(of_images):
        for _ in TWICE:
            with pytest.raises(ValueError, match="seed"):
                pl.samples(of_images, seed=-1)
