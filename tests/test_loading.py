"""Tests of scgmvae.loading: which cells a minibatch holds, and in what order."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS as KEYS

from scgmvae import SCGMVAE
from scgmvae.loading import MinibatchLoader, SeededDataSplitter

N, G = 103, 4


def make_manager(n=N, as_sparse=False):
    """Manager of an AnnData whose gene 0 and covariate ``row`` say which row a cell is."""
    x = np.arange(1, n + 1, dtype=np.float32)[:, None] * np.ones(G, dtype=np.float32)
    adata = AnnData(sparse.csr_matrix(x) if as_sparse else x)
    adata.obs["row"] = np.arange(n, dtype=np.float64)
    SCGMVAE.setup_anndata(adata, continuous_covariate_keys=["row"])
    return SCGMVAE._get_most_recent_anndata_manager(adata)


def rows_of(minibatches):
    """The rows that each minibatch holds, as its values of gene 0 tell."""
    return [(batch[KEYS.X_KEY][:, 0].numpy() - 1).astype(int) for batch in minibatches]


@pytest.fixture(scope="module")
def manager():
    return make_manager()


# ------------------------------------------------------------------------- MinibatchLoader


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [
        pytest.param(103, [103], id="all_at_once"),
        pytest.param(1000, [103], id="more_than_all"),
        pytest.param(102, [52, 51], id="one_too_many"),
        pytest.param(25, [21, 21, 21, 20, 20], id="five"),
        pytest.param(1, [1] * 103, id="one_by_one"),
    ],
)
def test_a_pass_has_every_cell_once_in_minibatches_of_even_size(
    manager, batch_size, sizes, shuffle
):
    loader = MinibatchLoader(manager, batch_size=batch_size, shuffle=shuffle)
    if shuffle and batch_size == 1:  # batch normalisation has no value for a single cell
        sizes = [3] + [2] * 50
    rows = rows_of(loader)
    assert [len(part) for part in rows] == sizes
    assert len(loader) == len(sizes)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(N))


def test_rows_keep_their_order_without_shuffling(manager):
    indices = [50, 3, 99, 4, 7]
    rows = rows_of(MinibatchLoader(manager, indices, batch_size=2))
    assert [part.tolist() for part in rows] == [[50, 3], [99, 4], [7]]


def test_indices_may_be_a_mask(manager):
    mask = np.zeros(N, dtype=bool)
    mask[[5, 60]] = True
    assert np.concatenate(rows_of(MinibatchLoader(manager, mask))).tolist() == [5, 60]


def test_no_indices_make_no_minibatch(manager):
    loader = MinibatchLoader(manager, np.array([], dtype=int))
    assert len(loader) == 0
    assert list(loader) == []


def test_every_pass_has_a_new_order_that_follows_from_the_seed_of_torch(manager):
    loader = MinibatchLoader(manager, batch_size=N, shuffle=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = rows_of(loader)[0], rows_of(loader)[0]
        torch.manual_seed(3)
        again = rows_of(loader)[0]
        torch.manual_seed(4)
        other = rows_of(loader)[0]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, again)


def test_the_fields_of_a_cell_stay_together(manager):
    loader = MinibatchLoader(manager, batch_size=10, shuffle=True)
    loader.extra["guide"] = torch.arange(N) * 2
    for batch, rows in zip(loader, rows_of(loader), strict=True):
        # the second pass has another order, so rows come from the minibatch itself
        rows = batch[KEYS.X_KEY][:, 0].numpy() - 1
        np.testing.assert_array_equal(batch[KEYS.CONT_COVS_KEY][:, 0].numpy(), rows)
        np.testing.assert_array_equal(batch["guide"].numpy(), 2 * rows)


def test_sparse_and_dense_data_give_the_same_minibatches(manager):
    dense = list(MinibatchLoader(manager, batch_size=20))
    from_sparse = list(MinibatchLoader(make_manager(as_sparse=True), batch_size=20))
    assert len(dense) == len(from_sparse) == 6
    for one, other in zip(dense, from_sparse, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name], other[name])


# ---------------------------------------------------------------------- SeededDataSplitter


def split(manager, **settings):
    splitter = SeededDataSplitter(manager, **({"seed": 0, "train_size": 0.8} | settings))
    splitter.setup()
    return splitter


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        pytest.param({"train_size": 1.0}, (103, 0, 0), id="all_for_training"),
        pytest.param({"train_size": 0.8}, (83, 20, 0), id="rest_for_validation"),
        pytest.param({"train_size": 0.5, "validation_size": 0.3}, (52, 30, 21), id="three_parts"),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_parts_have_their_sizes_and_share_no_cell(manager, settings, sizes, shuffle):
    splitter = split(manager, shuffle_set_split=shuffle, **settings)
    parts = [splitter.train_idx, splitter.val_idx, splitter.test_idx]
    assert tuple(len(part) for part in parts) == sizes
    together = np.concatenate(parts)
    if shuffle:
        assert not np.array_equal(together, np.arange(N))
        together = np.sort(together)
    np.testing.assert_array_equal(together, np.arange(N))


def test_the_split_follows_from_the_seed_alone(manager):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one = split(manager, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.rand(3)  # noqa: NPY002
    np.testing.assert_array_equal(split(manager, seed=1).train_idx, one.train_idx)
    assert not np.array_equal(split(manager, seed=2).train_idx, one.train_idx)


def test_a_split_can_be_given(manager):
    given = np.split(np.random.default_rng(0).permutation(N), [60, 90])
    splitter = split(manager, external_indexing=given)
    for part, rows in zip(
        (splitter.train_idx, splitter.val_idx, splitter.test_idx), given, strict=True
    ):
        np.testing.assert_array_equal(part, rows)


def test_training_cells_are_shuffled_and_validation_cells_are_not(manager):
    splitter = split(manager, batch_size=N)
    training, validation = (
        rows_of(loader)[0] for loader in (splitter.train_dataloader(), splitter.val_dataloader())
    )
    np.testing.assert_array_equal(validation, splitter.val_idx)
    assert not np.array_equal(training, splitter.train_idx)
    np.testing.assert_array_equal(np.sort(training), np.sort(splitter.train_idx))


def test_a_small_rest_does_not_warn():
    # 129 cells in minibatches of 128: scvi-tools warns of a last minibatch of one cell
    splitter = split(make_manager(129), train_size=1.0, batch_size=128)
    assert [len(part) for part in rows_of(splitter.train_dataloader())] == [65, 64]
