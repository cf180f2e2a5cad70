"""Tests of data.minibatches: which cells a minibatch holds, and in what order."""

import numpy as np
import pytest
import torch
from anndata import AnnData, read_h5ad
from scipy import sparse
from scvi import REGISTRY_KEYS as KEYS

from scgmvae import SCGMVAE
from scgmvae.data.matrices import RowsOnDisk
from scgmvae.data.minibatches import BLOCK, MinibatchLoader, SeededDataSplitter, stacked

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
    x = [batch[KEYS.X_KEY] for batch in minibatches]
    x = [values.to_dense() if values.layout is torch.sparse_csr else values for values in x]
    return [(values[:, 0].numpy() - 1).astype(int) for values in x]


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


# ----------------------------------------------------------------- cells that come up often


def copies_of(loader, n_passes=1):
    """How often each cell comes up in each pass, (n_passes, N)."""
    passes = [np.concatenate(rows_of(loader)) for _ in range(n_passes)]
    return np.stack([np.bincount(rows, minlength=N) for rows in passes])


@pytest.fixture
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_copies(kind):
    """Expected numbers of copies that sum to a whole number, or do not."""
    copies = np.random.default_rng(0).uniform(0.1, 3.5, size=N)
    total = {"whole_total": 180.0, "total_with_a_fraction": 180.4}[kind]
    return copies * total / copies.sum()


@pytest.mark.parametrize("kind", ["whole_total", "total_with_a_fraction"])
def test_copies_are_expected_exactly_and_rounded_up_or_down(manager, seeded, kind):
    copies = make_copies(kind)
    loader = MinibatchLoader(manager, batch_size=1000, shuffle=True, copies=copies)
    found = copies_of(loader, 600)
    # every pass has the whole number nearest to the total, shared out in proportion
    assert (found.sum(1) == 180).all()
    expected = copies * 180 / copies.sum()
    assert (np.abs(found - expected) < 1).all()
    # the mean of 600 numbers that are rounded up or down, which vary by a quarter at most
    np.testing.assert_allclose(found.mean(0), expected, atol=5 * 0.5 / np.sqrt(600))


def test_a_whole_number_of_copies_comes_up_in_every_pass(manager, seeded):
    copies = np.where(np.arange(N) < 3, 5.0, 1.0)
    loader = MinibatchLoader(manager, batch_size=20, shuffle=True, copies=copies)
    assert len(loader) == 6  # 115 cells
    assert loader.n_obs_per_pass == 115
    np.testing.assert_array_equal(copies_of(loader, 3), np.tile(copies, (3, 1)))


def test_copies_of_one_each_are_a_plain_pass(manager, seeded):
    loader = MinibatchLoader(manager, batch_size=50, shuffle=True, copies=np.ones(N))
    np.testing.assert_array_equal(copies_of(loader), np.ones((1, N)))


def test_copies_follow_the_rows_that_are_read(manager, seeded):
    copies = np.arange(N, dtype=float)
    loader = MinibatchLoader(manager, [2, 50, 3], batch_size=1000, shuffle=True, copies=copies)
    found = copies_of(loader)[0]
    assert found[[2, 3, 50]].tolist() == [2, 3, 50]
    assert found.sum() == 55


def test_copies_come_in_a_new_order_every_pass(manager, seeded):
    loader = MinibatchLoader(manager, batch_size=1000, shuffle=True, copies=np.full(N, 2.0))
    first, second = (rows_of(loader)[0] for _ in range(2))
    assert len(first) == 2 * N
    assert not np.array_equal(first, second)
    # copies of a cell are not side by side
    assert (first[1:] == first[:-1]).mean() < 0.1


def test_cells_that_are_read_in_order_have_no_copies(manager):
    loader = MinibatchLoader(manager, batch_size=1000, copies=np.full(N, 2.0))
    np.testing.assert_array_equal(rows_of(loader)[0], np.arange(N))


def test_a_rare_group_comes_up_as_often_as_a_common_one(manager, seeded):
    group = np.repeat([0, 1], [98, 5])
    copies = N / 2 / np.bincount(group)[group]
    splitter = split(manager, train_size=1.0, batch_size=10, copies=copies)
    loader = splitter.train_dataloader()
    passes = copies_of(loader, 40)
    of_groups = np.stack([passes[:, group == k].sum(1) for k in (0, 1)])
    assert (of_groups.sum(0) == N).all()
    # the rounding of five rare cells, which lie among the others
    assert (np.abs(of_groups - N / 2) <= 2.5).all()
    np.testing.assert_allclose(of_groups.mean(1), N / 2, atol=1)
    # every rare cell alike, about ten times a pass
    assert passes[:, group == 1].min() == 10
    assert passes[:, group == 1].max() == 11


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


# ------------------------------------------------------------------------------ CSR tensors


@pytest.mark.parametrize("as_sparse", [False, True], ids=["of_dense", "of_sparse"])
def test_minibatches_that_are_asked_for_as_csr_hold_the_same(manager, as_sparse):
    csr = list(MinibatchLoader(make_manager(as_sparse=as_sparse), batch_size=20, sparse=True))
    dense = list(MinibatchLoader(manager, batch_size=20))
    assert len(csr) == len(dense) == 6
    for one, other in zip(csr, dense, strict=True):
        assert one[KEYS.X_KEY].layout is torch.sparse_csr
        assert torch.equal(one[KEYS.X_KEY].to_dense(), other[KEYS.X_KEY])
        assert torch.equal(one[KEYS.CONT_COVS_KEY], other[KEYS.CONT_COVS_KEY])


# ---------------------------------------------------------------------------------- on disk

N_DISK = 10 * BLOCK + 17


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "csr"])
def on_disk(request, tmp_path_factory):
    """Manager of an AnnData that is read from a file."""
    path = tmp_path_factory.mktemp("on_disk") / "x.h5ad"
    make_manager(N_DISK, request.param).adata.write_h5ad(path)
    adata = read_h5ad(path, backed="r")
    SCGMVAE.setup_anndata(adata, continuous_covariate_keys=["row"])
    yield SCGMVAE._get_most_recent_anndata_manager(adata)
    adata.file.close()


@pytest.fixture
def loads(monkeypatch):
    """Rows of every reading from a file."""
    loads, load = [], RowsOnDisk.load

    def recorded(self, rows):
        loads.append(rows)
        return load(self, rows)

    monkeypatch.setattr(RowsOnDisk, "load", recorded)
    return loads


def disk_loader(on_disk, *args, cells_in_memory=3 * BLOCK, batch_size=32, **settings):
    return MinibatchLoader(
        on_disk, *args, cells_in_memory=cells_in_memory, batch_size=batch_size, **settings
    )


def test_every_pass_over_a_file_has_each_cell_once_in_a_new_order(on_disk, seeded):
    loader = disk_loader(on_disk, shuffle=True)
    passes = [np.concatenate(rows_of(loader)) for _ in range(3)]
    for rows in passes:
        np.testing.assert_array_equal(np.sort(rows), np.arange(N_DISK))
    assert (passes[0] == passes[1]).mean() < 0.05
    assert (passes[1] == passes[2]).mean() < 0.05


def test_minibatches_of_a_file_mix_blocks_from_all_over_it(on_disk, seeded):
    loader = disk_loader(on_disk, shuffle=True)
    n_blocks = [len(np.unique(rows // BLOCK)) for rows in rows_of(loader)]
    # three blocks are in memory at a time, more where one is cut, fewer at the end
    assert np.mean(n_blocks) >= 3
    assert min(n_blocks[:-1]) >= 2
    # which blocks come together is drawn anew
    together = [tuple(np.unique(rows_of(loader)[0] // BLOCK)) for _ in range(8)]
    assert len(set(together)) > 4


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
@pytest.mark.parametrize("cells_in_memory", [100, 3 * BLOCK, 10_000])
def test_no_more_cells_of_a_file_are_in_memory_than_may_be(
    on_disk, seeded, loads, shuffle, cells_in_memory
):
    loader = disk_loader(on_disk, shuffle=shuffle, cells_in_memory=cells_in_memory)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows_of(loader))), np.arange(N_DISK))
    sizes = np.array([len(rows) for rows in loads])
    assert sizes.max() <= cells_in_memory
    assert sizes.sum() == N_DISK  # nothing is read twice
    assert len(sizes) <= 1.4 * np.ceil(N_DISK / cells_in_memory)


@pytest.mark.parametrize("n_ranks", [1, 2], ids=["one_process", "two_processes"])
@pytest.mark.parametrize("batch_size", [32, 40], ids=["even", "uneven"])
def test_shuffled_cells_of_a_file_are_read_in_long_runs(
    on_disk, seeded, loads, batch_size, n_ranks
):
    loader = disk_loader(on_disk, shuffle=True, batch_size=batch_size)
    loader.share_out(0, n_ranks, seed=0)
    list(loader)
    # every run is a reading of its own, of which single cells take as long as blocks
    n_runs = sum(1 + np.count_nonzero(np.diff(rows) > 1) for rows in loads)
    assert n_runs < 3 * N_DISK / BLOCK


def test_a_minibatch_may_be_larger_than_what_is_read_at_once(on_disk):
    rows = rows_of(disk_loader(on_disk, cells_in_memory=10, batch_size=100))
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(N_DISK))


def test_the_fields_of_a_cell_of_a_file_stay_together(on_disk, seeded):
    loader = disk_loader(on_disk, shuffle=True)
    loader.extra["guide"] = torch.arange(N_DISK) * 2
    for batch in loader:
        (rows,) = rows_of([batch])
        assert (batch[KEYS.X_KEY] == batch[KEYS.X_KEY][:, :1]).all()
        np.testing.assert_array_equal(batch[KEYS.CONT_COVS_KEY][:, 0].numpy(), rows)
        np.testing.assert_array_equal(batch["guide"].numpy(), 2 * rows)


def test_rows_of_a_file_keep_their_order_without_shuffling(on_disk):
    indices = [500, 3, 99, 4, 7]
    rows = rows_of(disk_loader(on_disk, indices, batch_size=2))
    assert [part.tolist() for part in rows] == [[500, 3], [99, 4], [7]]


def test_a_file_and_memory_give_the_same_minibatches_in_order(on_disk):
    in_memory = make_manager(N_DISK)
    for one, other in zip(
        MinibatchLoader(in_memory, batch_size=50), disk_loader(on_disk, batch_size=50), strict=True
    ):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name])


def test_cells_of_a_file_come_up_as_often_as_they_have_copies(on_disk, seeded, loads):
    copies = np.where(np.arange(N_DISK) % 100 == 0, 20.0, 1.0)
    loader = disk_loader(on_disk, shuffle=True, copies=copies)
    rows = np.concatenate(rows_of(loader))
    np.testing.assert_array_equal(np.bincount(rows, minlength=N_DISK), copies)
    assert max(map(len, loads)) <= 3 * BLOCK


# ------------------------------------------------------------------------ several processes


def shared_out(manager, n_ranks, seed=5, n_passes=1, **settings):
    """Minibatches of each rank in each pass, [rank][pass][minibatch]."""
    ranks = []
    for rank in range(n_ranks):
        torch.manual_seed(rank)  # as each process has a random state of its own
        loader = MinibatchLoader(manager, shuffle=True, **settings)
        loader.share_out(rank, n_ranks, seed)
        ranks.append([rows_of(loader) for _ in range(n_passes)])
        assert all(len(rows) == len(loader) for rows in ranks[-1])
    return ranks


@pytest.mark.parametrize("n_ranks", [2, 3])
@pytest.mark.parametrize("batch_size", [7, 10, 1000])
def test_processes_share_the_cells_of_every_pass(manager, seeded, batch_size, n_ranks):
    ranks = shared_out(manager, n_ranks, n_passes=2, batch_size=batch_size)
    for minibatches in zip(*ranks, strict=True):  # of all ranks in a pass
        assert len({len(rows) for rows in minibatches}) == 1
        assert max(len(rows) for part in minibatches for rows in part) <= batch_size
        together = np.concatenate([rows for part in minibatches for rows in part])
        np.testing.assert_array_equal(np.sort(together), np.arange(N))
    first, second = (np.concatenate(rows) for rows in ranks[0])
    assert not np.array_equal(np.sort(first), np.sort(second))


def test_processes_share_the_cells_of_a_file(on_disk, seeded, loads):
    settings = {"batch_size": 32, "cells_in_memory": 3 * BLOCK}
    ranks = shared_out(on_disk, 2, **settings)
    together = np.concatenate([rows for (part,) in ranks for rows in part])
    np.testing.assert_array_equal(np.sort(together), np.arange(N_DISK))
    assert max(map(len, loads)) <= 3 * BLOCK


def test_processes_share_copies_of_cells(manager, seeded):
    copies = np.where(np.arange(N) < 3, 5.0, 1.0)
    ranks = shared_out(manager, 2, batch_size=20, copies=copies)
    together = np.concatenate([rows for (part,) in ranks for rows in part])
    np.testing.assert_array_equal(np.bincount(together, minlength=N), copies)


def test_the_seed_of_shared_orders_leaves_the_random_state_alone(manager, seeded):
    loader = MinibatchLoader(manager, shuffle=True, batch_size=20)
    loader.share_out(0, 2, seed=5)
    before = torch.get_rng_state()
    first = rows_of(loader)
    assert torch.equal(torch.get_rng_state(), before)
    loader.share_out(0, 2, seed=5)
    for one, other in zip(first, rows_of(loader), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("batch_size", [2, 3, 51])
def test_processes_have_no_minibatch_of_a_single_cell(manager, seeded, batch_size):
    ranks = shared_out(manager, 2, batch_size=batch_size)
    assert min(len(rows) for (part,) in ranks for rows in part) > 1


def test_results_of_minibatches_keep_their_rows_in_any_layout():
    parts = [torch.arange(12.0).view(3, 4), torch.arange(20.0, 32.0).view(3, 4)]
    expected = torch.cat(parts).numpy()
    row = torch.arange(4.0)
    found = stacked(
        {"columns first": part.T.contiguous().T, "repeated": row.expand(3, -1)} for part in parts
    )
    np.testing.assert_array_equal(found["columns first"], expected)
    np.testing.assert_array_equal(found["repeated"], row.expand(6, -1))
