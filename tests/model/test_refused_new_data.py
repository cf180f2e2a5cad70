"""New data that do not suit a model are refused wherever they come, and nothing is changed."""

import anndata
import numpy as np
import pytest
from anndata import AnnData
from refused import (
    TWICE,
    with_column,
    with_matrix,
    with_one_entry,
    with_two_cells_of_one_name,
    with_value,
    without_counts,
)
from small import NETWORK, QUICK
from states import unchanged

from scgmvae import SCGMVAE

pytestmark = pytest.mark.filterwarnings(
    "ignore:Observation names are not unique:UserWarning",
    "ignore:Variable names are not unique:UserWarning",
)


@pytest.fixture
def new_cells(counts):
    """100 cells of the same kind as those of ``conditioned``."""
    return with_column(counts[::3].copy(), "age", 0.5)


@pytest.fixture(scope="module")
def with_size_factors(counts, make_model, train):
    """A model of size factors; only to be read."""
    adata = with_column(counts.copy(), "size", 1.5)
    return train(make_model(adata, {"size_factor_key": "size"}), **QUICK)


@pytest.fixture(scope="module")
def folder(conditioned, tmp_path_factory):
    """The folder of a saved model."""
    path = tmp_path_factory.mktemp("saved") / "model"
    conditioned.save(path)
    return path


def without_column(adata, name):
    """The data without an obs column."""
    del adata.obs[name]
    return adata


def with_other_genes(adata):
    """The data with names of genes that no model knows."""
    adata.var_names = [f"other_{i}" for i in range(adata.n_vars)]
    return adata


def with_gene_twice(adata):
    """New data with the first gene of these once more at the end."""
    both = anndata.concat([adata, adata[:, :1].copy()], axis=1, merge="first")
    assert both.var_names.tolist() == [*adata.var_names, adata.var_names[0]]
    return both


UNSUITED = [
    pytest.param(
        lambda adata: AnnData(adata.X, adata.obs),
        ValueError,
        "at least 50%.*lacks 60",
        id="numbers_for_names_of_genes",
    ),
    pytest.param(
        lambda adata: adata[:, 31:].copy(),
        ValueError,
        r"at least 50%.*lacks 31 \(51\.7%\): 'gene_0', 'gene_1'.*'gene_9' and 21 more",
        id="missing_genes",
    ),
    pytest.param(with_other_genes, ValueError, "at least 50%.*lacks 60", id="other_genes"),
    pytest.param(
        with_gene_twice, ValueError, "more than once.*'gene_0'.*make_unique", id="gene_twice"
    ),
    pytest.param(lambda adata: without_column(adata, "age"), KeyError, "'age'", id="no_age"),
    pytest.param(
        lambda adata: with_column(adata, "age", "old"),
        ValueError,
        "finite numbers.*'age'",
        id="text_as_age",
    ),
    pytest.param(lambda adata: without_column(adata, "batch"), KeyError, "'batch'", id="no_batch"),
    pytest.param(
        lambda adata: with_one_entry(adata, "batch", 1, np.nan),
        ValueError,
        "'batch'.*have none",
        id="cell_of_no_batch",
    ),
    pytest.param(
        lambda adata: with_value(adata, -1), ValueError, "negative values", id="negative"
    ),
    pytest.param(
        lambda adata: with_matrix(adata, adata.X.log1p()), ValueError, "no integers", id="logs"
    ),
    pytest.param(lambda adata: with_value(adata, np.nan), ValueError, "NaN", id="NaN"),
    pytest.param(
        lambda adata: with_matrix(adata, adata.X.toarray().astype(object)),
        ValueError,
        "real numbers.*object",
        id="objects",
    ),
    pytest.param(without_counts, ValueError, "at least one count", id="cell_without_counts"),
    pytest.param(with_two_cells_of_one_name, ValueError, "cell needs.*'twice'", id="cell_twice"),
    pytest.param(lambda adata: adata[:0].copy(), ValueError, "0 cells", id="no_cells"),
]
# Only a query may have batches that the model does not know.
OF_AN_UNSEEN_BATCH = pytest.param(
    lambda adata: with_column(adata, "batch", "batch_9"),
    ValueError,
    "'batch_9'.*'batch_0', 'batch_1'",
    id="unseen_batch",
)


@pytest.mark.parametrize(("change", "error", "message"), [*UNSUITED, OF_AN_UNSEEN_BATCH])
@pytest.mark.parametrize(
    "method", ["predict", "get_latent_representation", "get_elbo", "annotate", "component_table"]
)
def test_methods_refuse_unsuited_data(conditioned, new_cells, method, change, error, message):
    adata = change(new_cells)
    with unchanged(conditioned, adata):
        for _ in TWICE:
            with pytest.raises(error, match=message):
                getattr(conditioned, method)(adata)


@pytest.mark.parametrize(("change", "error", "message"), UNSUITED)
def test_unsuited_data_are_no_query(conditioned, new_cells, change, error, message):
    adata = change(new_cells)
    with unchanged(conditioned, adata):
        for _ in TWICE:
            with pytest.raises(error, match=message):
                SCGMVAE.load_query_data(adata, conditioned)


@pytest.mark.parametrize(("change", "error", "message"), [*UNSUITED, OF_AN_UNSEEN_BATCH])
def test_models_are_not_loaded_with_unsuited_data(folder, new_cells, change, error, message):
    adata = change(new_cells)
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(error, match=message):
                SCGMVAE.load(folder, adata)


def test_a_long_list_of_missing_genes_is_cut_short(counts, roughly_trained):
    with pytest.raises(ValueError, match="lacks 59 .*'gene_9' and 49 more"):
        roughly_trained.predict(counts[:, 59:].copy())


@pytest.mark.parametrize("bad", [0, -1, np.inf])
def test_size_factors_of_new_data_are_positive(with_size_factors, bad):
    adata = with_size_factors.adata[::3].copy()
    adata.obs["size"] = [bad, *adata.obs["size"][1:]]
    with unchanged(with_size_factors, adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="Size factors must be positive.*'size'"):
                with_size_factors.predict(adata)


def test_a_view_is_not_annotated(conditioned, new_cells):
    view = new_cells[:5]
    with unchanged(conditioned, view):
        for _ in TWICE:
            with pytest.raises(ValueError, match="view"):
                conditioned.annotate(view)


# ---------------------------------------------------------------------------------- queries


def test_a_view_is_no_query(conditioned, new_cells):
    view = new_cells[:5]
    with unchanged(conditioned, view):
        for _ in TWICE:
            with pytest.raises(ValueError, match="view"):
                SCGMVAE.load_query_data(view, conditioned)


def test_the_query_comes_before_the_model(conditioned):
    message = "AnnData or MuData of the query, but it is a SCGMVAE"
    with unchanged(conditioned):
        for _ in TWICE:
            with pytest.raises(ValueError, match=message):
                SCGMVAE.load_query_data(conditioned, conditioned.adata)


@pytest.mark.parametrize("reference", [3, None])
def test_a_query_is_mapped_to_a_model(counts, reference):
    adata = counts.copy()
    with unchanged(adata):
        for _ in TWICE:
            with pytest.raises(ValueError, match="reference_model must be a trained SCGMVAE"):
                SCGMVAE.load_query_data(adata, reference)


def test_a_query_is_mapped_to_a_model_that_is_trained(counts):
    model = SCGMVAE(counts.copy(), n_components=3, **NETWORK)
    with unchanged(model):
        for _ in TWICE:
            with pytest.raises(RuntimeError, match="train"):
                SCGMVAE.load_query_data(model.adata.copy(), model)


# ------------------------------------------------------------------- after data were refused


def test_a_model_without_data_does_not_adopt_refused_data(roughly_trained, counts, tmp_path):
    roughly_trained.save(tmp_path / "model")
    loaded = SCGMVAE.load(tmp_path / "model", adata=False, accelerator="cpu")
    refused = counts.copy()
    refused.X = refused.X * 0.5
    for _ in TWICE:
        with pytest.raises(ValueError, match="counts"):
            loaded.predict(refused)
        assert loaded.adata is None
    expected = roughly_trained.predict(counts.copy())
    assert loaded.predict(counts.copy()).tolist() == expected.tolist()


@pytest.mark.parametrize("has_data", [True, False])
def test_data_whose_check_was_interrupted_are_checked_again(
    roughly_trained, counts, tmp_path, monkeypatch, has_data
):
    roughly_trained.save(tmp_path / "model", save_anndata=has_data)
    data = None if has_data else False
    loaded = SCGMVAE.load(tmp_path / "model", adata=data, accelerator="cpu")
    own = loaded.adata
    refused = counts.copy()
    refused.X = refused.X * 0.5

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SCGMVAE, "_check_data", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loaded.predict(refused)
    assert loaded.adata is own
    with pytest.raises(ValueError, match="counts"):
        loaded.predict(refused)


def test_a_refused_copy_keeps_the_setup_of_its_original(roughly_trained, counts):
    original = counts.copy()
    SCGMVAE.setup_anndata(original, batch_key="batch", labels_key="component")
    copied = original.copy()
    copied.X = copied.X * 0.5
    with pytest.raises(ValueError, match="counts"):
        roughly_trained.predict(copied)
    copied.X = copied.X * 2
    assert SCGMVAE(copied, **NETWORK).registry_["setup_args"]["labels_key"] == "component"


def test_data_mended_in_place_are_read_and_keep_their_own_setup(roughly_trained, counts):
    adata = counts.copy()
    SCGMVAE.setup_anndata(adata, batch_key="batch", labels_key="component")
    adata.X = adata.X * 0.5
    for _ in TWICE:
        with pytest.raises(ValueError, match="counts"):
            roughly_trained.predict(adata)
    adata.X = adata.X * 2
    expected = roughly_trained.predict(counts.copy())
    assert roughly_trained.predict(adata).tolist() == expected.tolist()
    assert SCGMVAE(adata, **NETWORK).registry_["setup_args"]["labels_key"] == "component"
