"""Figure of a query among the cells of its reference."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

import scgmvae
from scgmvae import pl

pytestmark = pytest.mark.usefixtures("no_window_and_no_new_settings")


@pytest.fixture(scope="module")
def mapped(trained):
    new = trained.adata[:60].copy()
    new.obs["batch"] = "new"
    model = scgmvae.SCGMVAE.load_query_data(new, trained)
    model.train(max_epochs=1, enable_progress_bar=False)
    return model


def places(axis):
    """Places of the cells of a panel, the last ones drawn."""
    return np.asarray(axis.collections[-1].get_offsets())


def test_cells_of_a_query_lie_among_those_of_the_reference_that_are_like_them(trained, mapped):
    adata = trained.adata
    before = set(adata.obsm)
    adata.obsm["X_own"] = trained.get_latent_representation()[:, :2] * 3.0
    try:
        first, second, third = pl.query(trained, mapped, basis="own").axes[:3]
    finally:
        del adata.obsm["X_own"]
    assert set(adata.obsm) == before
    titles = ["reference", "query", "confidence of the query"]
    assert [axis.get_title() for axis in (first, second, third)] == titles
    assert len(places(first)) == adata.n_obs
    assert len(places(second)) == len(places(third)) == mapped.adata.n_obs
    # z of the same cells, nearly: the new batch starts as the mean of those that are known
    own = mapped.get_latent_representation()[:, :2] * 3.0
    by_x = np.argsort(own[:, 0])
    drawn = places(second)[np.argsort(places(second)[:, 0])]
    assert np.corrcoef(own[by_x, 0], drawn[:, 0])[0, 1] > 0.98
    assert second.get_xlim() == third.get_xlim() == first.get_xlim()
    plt.close("all")


def test_a_cell_of_the_reference_lies_where_it_is():
    z, plane = np.arange(12.0).reshape(6, 2), np.random.default_rng(0).random((6, 2))
    placed = pl._query._placed(z, plane, z[[4, 1]])
    np.testing.assert_allclose(placed, plane[[4, 1]], atol=1e-6)
    between = pl._query._placed(z, plane, z[:2].mean(0, keepdims=True))
    weights = 1 / np.linalg.norm(z - z[:2].mean(0), axis=1)[:5]
    np.testing.assert_allclose(between[0], weights @ plane[:5] / weights.sum())


def test_names_are_drawn_on_the_cells_with_the_same_colours(trained, mapped):
    trained.adata.obsm["X_own"] = trained.get_latent_representation()[:, :2]
    first, second = pl.query(trained, mapped, basis="own", n_cells=50).axes[:2]
    del trained.adata.obsm["X_own"]
    names = [{text.get_text() for text in axis.texts} for axis in (first, second)]
    assert names[0] == set(trained.predict())
    assert names[1] == set(mapped.predict()) <= names[0]
    assert len(places(first)) == len(places(second)) == 50
    colors = [
        {to_hex(color) for color in axis.collections[-1].get_facecolors()}
        for axis in (first, second)
    ]
    assert colors[1] <= colors[0]


def test_a_model_of_other_clusters_is_refused(trained, counts, make_model, train):
    other = train(make_model(counts.copy(), {}, n_components=2))
    with pytest.raises(ValueError, match="must be a model that load_query_data made"):
        pl.query(trained, other)
    assert plt.get_fignums() == []


def test_confidence_is_that_of_the_query_and_not_what_its_data_had_before(trained):
    new = trained.adata[:40].copy()
    new.obs["batch"], new.obs["scgmvae_confidence"] = "new", 0.123
    mapped = scgmvae.SCGMVAE.load_query_data(new, trained)  # not trained, not annotated
    trained.adata.obsm["X_own"] = trained.get_latent_representation()[:, :2]
    axis = pl.query(trained, mapped, basis="own").axes[2]
    del trained.adata.obsm["X_own"]
    mapped.annotate(new)
    np.testing.assert_allclose(
        np.sort(axis.collections[-1].get_array()), np.sort(new.obs["scgmvae_confidence"])
    )


def test_cells_without_a_place_are_left_out(trained, mapped):
    own = trained.get_latent_representation()[:, :2].astype(float)
    own[::5] = np.nan
    trained.adata.obsm["X_own"] = own
    first, second = pl.query(trained, mapped, basis="own").axes[:2]
    assert len(places(first)) == np.isfinite(own).all(1).sum()
    assert np.isfinite(places(second)).all()
    trained.adata.obsm["X_own"] = own[:, :1]
    with pytest.raises(ValueError, match="must have two columns with numbers"):
        pl.query(trained, mapped, basis="own")
    del trained.adata.obsm["X_own"]
    with pytest.raises(KeyError, match="basis names obsm\\['X_mde'\\]"):
        pl.query(trained, mapped, basis="mde")
    with pytest.raises(ValueError, match="mapped must be a model, but it is a AnnData"):
        pl.query(trained, mapped.adata)


def test_few_cells_are_drawn_without_a_umap(trained, mapped):
    assert len(places(pl.query(trained, mapped, n_cells=2).axes[1])) == 2
