"""Data sets that cannot be read, drawn or made of images."""

import re

import numpy as np
import pytest
from refused import TWICE
from states import unchanged

from scgmvae import datasets

IMAGES = np.zeros((3, 4, 4))


@pytest.mark.parametrize("name", ["", "../x", 3, None], ids=repr)
def test_files_are_loaded_by_a_name_without_folder(name):
    message = f"file name without folder, but received {name!r}"
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                datasets.load(name)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("n_per_group", 0),
        ("n_per_group", -1),
        ("n_per_group", 1.5),
        ("n_per_group", "3"),
        ("n_per_group", True),
        ("n_classes", 0),
        ("n_dims", 3),
        ("noise", -1),
        ("noise", np.nan),
        ("noise", "a"),
        ("class_scale", np.inf),
        ("seed", -1),
        ("seed", 1.5),
        ("seed", "a"),
    ],
    ids=repr,
)
def test_blobs_that_cannot_be_drawn_are_refused(name, bad):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                datasets.blobs(**{name: bad})


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("n_cells", 0),
        ("n_cells", -1),
        ("n_cells", 1.5),
        ("n_cells", "3"),
        ("n_components", 0),
        ("weights", 0),
        ("weights", -1.0),
        ("weights", [1]),
        ("weights", [-1] * 5),
        ("weights", [0] * 5),
        ("weights", [np.nan] * 5),
        ("program_fraction", 0),
        ("program_fraction", 1.5),
        ("program_fraction", np.nan),
        ("program_fraction", "a"),
        ("component_scale", -1),
        ("component_scale", np.nan),
        ("component_scale", "a"),
        ("library_size", 0),
        ("library_size", np.nan),
        ("library_size", "a"),
        ("inverse_dispersion", 0),
        ("inverse_dispersion", -1),
        ("seed", -1),
        ("seed", "a"),
    ],
    ids=repr,
)
def test_counts_that_cannot_be_drawn_are_refused(name, bad):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                datasets.synthetic_counts(**{name: bad})


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("n_cells", 0),
        ("n_genes", 1.5),
        ("n_peaks", "3"),
        ("n_batches", True),
        ("n_types", 0),
        ("n_types", 3),
        ("n_told_by_one", -1),
        ("n_told_by_one", 1),
        ("n_told_by_one", 4),
        ("program_fraction", 0),
        ("program_fraction", 1.5),
        ("type_scale", -1),
        ("batch_scale", np.nan),
        ("library_size", 0),
        ("library_sigma", "a"),
        ("inverse_dispersion", -1),
        ("open_share", 0),
        ("open_share", 1.5),
        ("depth_sigma", np.inf),
        ("share_unpaired", -0.1),
        ("share_unpaired", 1.1),
        ("share_unpaired", None),
        ("seed", -1),
    ],
    ids=repr,
)
def test_multiomes_that_cannot_be_drawn_are_refused(name, bad):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                datasets.synthetic_multiome(**{name: bad})


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("n", 0),
        ("n", 1.5),
        ("image_shape", (10, 10)),
        ("image_shape", (6,)),
        ("image_shape", 6),
        ("image_shape", None),
        ("image_shape", (6, 6, 3)),
        ("sector", 0),
        ("sector", 7),
        ("sector", 100),
        ("p_on", -0.1),
        ("p_on", 1.1),
        ("p_on", np.nan),
        ("p_on", "a"),
        ("photons", 0),
        ("photons", "a"),
        ("read_noise", -1),
        ("seed", -1),
    ],
    ids=repr,
)
def test_images_of_a_microscope_that_cannot_be_drawn_are_refused(name, bad):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                datasets.two_photon(**{name: bad})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        pytest.param(np.zeros((3, 4)), r"\(3, 4\)", id="two_dimensions"),
        pytest.param(np.zeros((0, 4, 4)), "none of them 0", id="no_images"),
        pytest.param(IMAGES.astype(int), "astype", id="integers"),
        pytest.param(IMAGES - 1, "from -1 to -1", id="negative"),
        pytest.param(IMAGES * np.nan, "from nan", id="NaN"),
        pytest.param("abc", "shape", id="text"),
        pytest.param(IMAGES.astype(object), "object", id="objects"),
        pytest.param(np.ma.masked_all((3, 4, 4)), "masked", id="masked"),
    ],
)
def test_what_are_no_images_are_refused(images, message):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                datasets.images_to_anndata(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param([1, 2], r"\(3,\).*\(2,\)", id="too_few"),
        pytest.param([1, "1", 2], "same name: '1'", id="two_of_one_name"),
    ],
)
def test_labels_that_do_not_tell_images_apart_are_refused(labels, message):
    with unchanged():
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                datasets.images_to_anndata(IMAGES, labels)
