"""Settings that a model cannot have are refused, and the data stay as they were."""

import re

import numpy as np
import pytest
from refused import TWICE
from small import NETWORK
from states import unchanged

from scgmvae import SCGMVAE

SMALL = NETWORK | {"n_components": 3}


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "3", 301, np.nan], ids=repr)
def test_components_must_be_an_integer_up_to_the_number_of_cells(counts, bad):
    adata = counts.copy()
    message = f"n_components.*1 to .*300.*{re.escape(repr(bad))}"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE(adata, n_components=bad, **NETWORK)


def test_fewer_components_than_labels_are_refused(counts):
    adata = counts.copy()
    SCGMVAE.setup_anndata(adata, labels_key="component")
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="3 labels.*n_components=2.*at least 3"):
                SCGMVAE(adata, n_components=2, **NETWORK)


@pytest.mark.parametrize(
    "name",
    [
        "likelihood",
        "prior",
        "encoder",
        "dispersion",
        "component_weights",
        "dirichlet_posterior",
        "classifier_input",
        "condition_prior",
    ],
)
def test_what_is_none_of_the_choices_is_refused(counts, name):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=f"{name} must be one of.*'other'"):
                SCGMVAE(adata, **SMALL, **{name: "other"})


def test_no_prior_at_all_is_refused(counts):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="'dirichlet'.*None"):
                SCGMVAE(adata, prior=None, **SMALL)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("n_latent", 0),
        ("n_latent", -1),
        ("n_latent", 2.5),
        ("n_latent", "5"),
        ("n_latent", None),
        ("n_latent_w", 0),
        ("n_latent_w", 2.5),
        ("n_hidden", 0),
        ("n_hidden", -3),
        ("n_hidden", 1.5),
        ("n_layers", -1),
        ("n_layers", 1.5),
    ],
    ids=repr,
)
def test_sizes_must_be_integers_that_are_large_enough(counts, name, bad):
    adata = counts.copy()
    message = f"{name} must be an integer.*{re.escape(repr(bad))}"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE(adata, **(SMALL | {name: bad}))


def test_networks_without_a_width_are_refused(counts):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="at least one width"):
                SCGMVAE(adata, **(SMALL | {"n_hidden": []}))


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5, np.nan, "0.1"], ids=repr)
@pytest.mark.parametrize("name", ["dropout_rate", "input_dropout_rate"])
def test_dropout_rates_must_be_from_0_to_below_1(counts, name, bad):
    adata = counts.copy()
    message = f"{name} must be at least 0 and below 1, but it is {bad!r}"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
                SCGMVAE(adata, **SMALL, **{name: bad})


@pytest.mark.parametrize("bad", [0, -1, np.inf, np.nan, "1"], ids=repr)
@pytest.mark.parametrize("name", ["concentration", "gaussian_scale"])
def test_concentration_and_scale_must_be_numbers_above_0(counts, name, bad):
    adata = counts.copy()
    message = rf"{name} must be .*at least 0.001, but it is {re.escape(repr(bad))}"
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE(adata, **SMALL, **{name: bad})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"gaussian_scale": "pixel", "likelihood": "gaussian"},
            "must be one of ('gene', 'shared', 'network') or a number of at least 0.001, but it "
            "is 'pixel'.",
        ),
        (
            {"gaussian_scale": "shared"},
            "goes with likelihood='gaussian', but the likelihood is 'nb'. Leave it out.",
        ),
        (
            {"gaussian_scale": 0.5},
            "goes with likelihood='gaussian', but the likelihood is 'nb'. Leave it out.",
        ),
        (
            {"gaussian_scale": "network", "likelihood": "bernoulli"},
            "goes with likelihood='gaussian', but the likelihood is 'bernoulli'. Leave it out.",
        ),
        (
            {"gaussian_scale": "shared", "likelihood": "gaussian", "dispersion": "gene-batch"},
            "but dispersion is 'gene-batch'. Leave one out.",
        ),
        (
            {"gaussian_scale": "network", "likelihood": "gaussian", "dispersion": "gene-cell"},
            "but that is 'network'. Leave one out.",
        ),
    ],
)
def test_a_scale_of_the_gaussian_that_does_not_fit_is_refused(counts, settings, message):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match=re.escape(message)):
                SCGMVAE(adata, **SMALL, **settings)


def test_a_shape_of_images_that_is_text_is_refused(counts):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="height, width.*'ab'"):
                SCGMVAE(adata, image_shape="ab", **SMALL)


def test_a_setting_that_does_not_exist_is_refused(counts):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(TypeError, match="n_hiden"):
                SCGMVAE(adata, n_hiden=3, **SMALL)
