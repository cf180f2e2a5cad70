"""Tests of datasets.two_photon: its two sources, its noise, its messages."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from scgmvae.datasets import two_photon


@pytest.fixture(scope="module")
def adata():
    """500 images of 60 × 60 pixels; read-only."""
    return two_photon(500, seed=1)


def test_the_form_is_that_of_images(adata):
    assert adata.shape == (500, 3600)
    assert adata.X.dtype == np.float32
    assert adata.uns["image_shape"].tolist() == [60, 60]
    assert adata.obs_names[0] == "image_0" and adata.var_names[-1] == "pixel_3599"


def test_the_foreground_is_ten_photons_in_sectors_that_are_on(adata):
    foreground = adata.layers["true_foreground"].reshape(-1, 10, 6, 10, 6)
    assert set(np.unique(foreground)) == {0, 10}
    assert (foreground == foreground[:, :, :1, :, :1]).all()  # even within a sector
    is_on = adata.obsm["sectors"]
    np.testing.assert_array_equal(foreground[:, :, 0, :, 0].reshape(500, -1) > 0, is_on)
    assert is_on.mean() == pytest.approx(0.5, abs=0.01)  # 50,000 sectors: two sd are 0.0045
    between = np.corrcoef(is_on.T)[np.triu_indices(100, 1)]
    assert np.abs(between.mean()) < 0.005  # each for itself
    assert between.std() == pytest.approx(500**-0.5, rel=0.1)


def test_the_background_is_smooth_and_of_four_sources(adata):
    background = adata.layers["true_background"].astype(float)
    values = np.linalg.svd(background, compute_uv=False)
    assert values[4] < 1e-4 * values[3]  # rounding alone is left
    images = background.reshape(-1, 60, 60)[:20]
    blurred = gaussian_filter(images, (0, 2, 2))[:, 8:-8, 8:-8]
    np.testing.assert_allclose(blurred, images[:, 8:-8, 8:-8], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_the_strength_is_relative_to_a_sector_that_is_on(strength):
    background = two_photon(2000, image_shape=(12, 18), background=strength)
    background = background.layers["true_background"]
    assert background.mean() == pytest.approx(10 * strength, rel=0.05)


def test_the_noise_is_that_of_photons_and_of_reading(adata):
    light = adata.layers["true_foreground"] + adata.layers["true_background"]
    noise = adata.X - light
    for low, high in ((0, 5), (10, 15), (25, 30)):
        chosen = (light >= low) & (light < high)
        assert noise[chosen].mean() == pytest.approx(0, abs=0.05)
        assert noise[chosen].var() == pytest.approx(light[chosen].mean() + 1, rel=0.02)
    assert adata.X.min() < 0


def test_without_read_noise_there_are_counts():
    x = two_photon(20, read_noise=0.0).X
    assert (x >= 0).all() and (x == np.round(x)).all()


def test_equal_seeds_give_equal_images():
    one, same, other = (two_photon(5, seed=seed).X for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"n": 0}, "n must be an integer of at least 1, but it is 0", id="n"),
        pytest.param({"image_shape": (60, 62)}, "multiples of sector.*sector=6", id="sides"),
        pytest.param({"p_on": 1.5}, r"p_on must lie in \[0, 1\].*1.5", id="p_on"),
        pytest.param({"photons": 0.0}, "photons must be above 0, but it is 0", id="photons"),
        pytest.param(
            {"background": -1.0}, "background must be at least 0, but it is -1", id="below"
        ),
        pytest.param(
            {"read_noise": -1.0}, "read_noise must be at least 0, but it is -1", id="read_noise"
        ),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        two_photon(**{"n": 2, **settings})
