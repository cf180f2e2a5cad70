"""Tests of data.matrices: rows that are picked equal numpy's, wherever they are."""

import os

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

from scgmvae.data.matrices import (
    DenseRows,
    RowsOnDisk,
    SparseRows,
    column_means,
    is_on_disk,
    read_rows,
    rows_in,
)

N, G = 40, 7
DTYPES = ["uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64", ">f4"]
ROWS = {
    "some_in_any_order": np.array([5, 39, 0, 7]),
    "one_twice": np.array([3, 3, 4]),
    "none": np.array([], dtype=int),
    "all": np.arange(N),
}


def make_x(dtype="float32"):
    """Counts up to 255 with an empty row and an empty column."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 256, size=(N, G)) * (rng.random((N, G)) < 0.4)
    x[7], x[:, 2] = 0, 0
    return x.astype(dtype)


def assert_rows(source, rows, expected):
    """``source[rows]`` is ``expected`` in single precision."""
    x = source[rows]
    assert x.dtype == torch.float32
    x = x.to_dense() if x.layout is torch.sparse_csr else x
    np.testing.assert_array_equal(x.numpy(), expected[rows].astype(np.float32))


# --------------------------------------------------------------------------- in memory


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_in_memory_are_those_of_numpy(dtype, rows):
    x = make_x(dtype)
    assert_rows(DenseRows.of(x), rows, x)
    assert_rows(SparseRows.of(sparse.csr_matrix(x.astype(x.dtype.newbyteorder("=")))), rows, x)


@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
def test_places_of_any_integer_type_are_taken(index_dtype):
    x = make_x()
    csr = sparse.csr_matrix(x)
    csr.indices, csr.indptr = csr.indices.astype(index_dtype), csr.indptr.astype(index_dtype)
    assert_rows(SparseRows.of(csr), ROWS["some_in_any_order"], x)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix, sparse.csc_array])
def test_other_forms_in_memory_are_taken(form):
    x = make_x()
    assert_rows(rows_in(form(x)), ROWS["some_in_any_order"], x)
    np.testing.assert_allclose(column_means(form(x), np.arange(N)), x.mean(0))


def test_values_of_one_place_are_added_up_and_columns_may_be_in_any_order():
    places = (np.array([1.0, 2.0, 4.0, 3.0]), np.array([3, 0, 3, 1]), np.array([0, 3, 4]))
    csr = sparse.csr_matrix(places, shape=(2, G))
    x = SparseRows.of(csr)[np.array([1, 0])]
    assert x.values().tolist() == [3, 2, 5]
    assert x.to_dense()[:, :4].tolist() == [[0, 3, 0, 0], [2, 0, 0, 5]]
    assert csr.nnz == 4  # what was given is left alone


def test_columns_of_a_fortran_array_are_not_mixed_up():
    x = make_x()
    assert_rows(rows_in(np.asfortranarray(x)), ROWS["some_in_any_order"], x)


def test_data_in_memory_are_shared_and_left_alone():
    x = make_x()
    csr = sparse.csr_matrix(x)
    for array in (x, csr.data, csr.indices, csr.indptr):
        array.flags.writeable = False  # as of a file that is mapped to memory
    for source, values in ((rows_in(x), x), (rows_in(csr), csr.data)):
        assert source.values.data_ptr() == values.ctypes.data
        assert_rows(source, ROWS["some_in_any_order"], x)


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [
        pytest.param(255.0, torch.uint8, id="uint8"),
        pytest.param(256.0, torch.int16, id="just_too_large_for_uint8"),
        pytest.param(2.0**15 - 1, torch.int16, id="int16"),
        pytest.param(2.0**15, torch.float32, id="just_too_large_for_int16"),
        pytest.param(-1.0, torch.int16, id="negative"),
        pytest.param(0.5, torch.float32, id="not_whole"),
        pytest.param(np.nan, torch.float32, id="missing"),
    ],
)
@pytest.mark.parametrize("dtype_of_x", ["float32", "float64"])
def test_compact_values_have_the_smallest_type_that_holds_them(largest, dtype, dtype_of_x):
    x = make_x(dtype_of_x)
    x[5, 3] = largest
    for source in (DenseRows.of(x), SparseRows.of(sparse.csr_matrix(x))):
        compact = source.compact()
        assert compact.values.dtype is dtype
        assert compact.nbytes <= source.nbytes
        assert_rows(compact, ROWS["some_in_any_order"], x)


@pytest.mark.parametrize(
    ("n_genes", "dtype"), [(2**15, torch.int16), (2**15 + 1, torch.int32)], ids=["most", "more"]
)
def test_compact_columns_have_the_smallest_type_that_holds_them(n_genes, dtype):
    x = sparse.csr_matrix(([3.0, 4.0], ([0, 1], [0, n_genes - 1])), shape=(2, n_genes))
    compact = SparseRows.of(x).compact()
    assert compact.genes.dtype is dtype
    assert compact[np.array([1])].col_indices().tolist() == [n_genes - 1]


def test_a_matrix_without_counts_can_be_compact():
    compact = SparseRows.of(sparse.csr_matrix((3, G), dtype=np.float32)).compact()
    assert_rows(compact, np.array([2, 0]), np.zeros((3, G)))


# ----------------------------------------------------------------------------- on disk


@pytest.fixture
def write(tmp_path):
    """Function that writes a matrix as X and opens it from the file."""
    opened = []

    def write_and_open(x, name="x.h5ad"):
        ad.AnnData(x).write_h5ad(tmp_path / name)
        opened.append(ad.read_h5ad(tmp_path / name, backed="r"))
        return opened[-1]

    yield write_and_open
    for adata in opened:
        adata.file.close()


FORMS = [pytest.param(sparse.csr_matrix, id="csr"), pytest.param(np.asarray, id="dense")]
ASCENDING = {
    "runs_and_single_ones": np.array([0, 1, 2, 7, 11, 12, 39]),
    "one": np.array([39]),
    "all": np.arange(N),
}


@pytest.mark.parametrize("rows", ASCENDING.values(), ids=ASCENDING)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_on_disk_are_those_of_numpy(write, form, dtype, rows):
    x = make_x(dtype)
    source = rows_in(write(form(x)).X)
    assert isinstance(source, RowsOnDisk)
    order = np.random.default_rng(0).permutation(len(rows))
    assert_rows(source.load(rows), order, x[rows])


@pytest.mark.parametrize("form", FORMS)
def test_only_a_matrix_in_a_file_is_on_disk(write, form):
    assert not is_on_disk(form(make_x()))
    assert is_on_disk(write(form(make_x())).X)


@pytest.mark.parametrize("n_at_once", [4096, 3])
@pytest.mark.parametrize("form", FORMS)
def test_column_means_equal_those_of_numpy(write, form, n_at_once):
    x, rows = make_x("uint8"), np.array([0, 1, 5, 6, 7, 8, 30, 39])
    expected = x[rows].mean(0)
    for matrix in (form(x), write(form(x)).X):
        np.testing.assert_allclose(column_means(matrix, rows, n_at_once), expected, rtol=1e-12)


def test_a_matrix_stored_by_columns_is_refused_on_disk(write):
    adata = write(sparse.csc_matrix(make_x()))
    with pytest.raises(ValueError, match=r"stored by rows .* adata.X = adata.X.tocsr\(\)"):
        rows_in(adata.X)


@pytest.mark.parametrize("form", FORMS)
def test_a_closed_file_is_an_os_error(write, form):
    adata = write(form(make_x()))
    source = rows_in(adata.X)
    adata.file.close()
    with pytest.raises(OSError, match="Rows 3 to 5 of the data could not be read: .* in place"):
        source.load(np.array([3, 4, 5]))


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_has_lost_its_end_is_an_os_error(tmp_path, form, compression):
    x = np.random.default_rng(0).poisson(1, size=(2000, 50)).astype(np.float32)
    path = tmp_path / "x.h5ad"
    ad.AnnData(form(x)).write_h5ad(path, compression=compression)
    adata = ad.read_h5ad(path, backed="r")
    source = rows_in(adata.X)
    source.load(np.arange(3))
    os.truncate(path, path.stat().st_size // 4)
    # HDF5 itself gives zeros for what is missing, where data are not compressed
    with pytest.raises(OSError, match="Rows 0 to 1999 .* must stay in place, whole and open"):
        source.load(np.arange(2000))
    adata.file.close()


def test_rows_of_a_matrix_in_memory_are_read_like_those_on_disk(write):
    x, rows = make_x(), np.array([2, 3, 9])
    for matrix in (x, write(x).X):
        np.testing.assert_array_equal(read_rows(matrix, rows), x[rows])
    for matrix in (sparse.csr_matrix(x), write(sparse.csr_matrix(x), "sparse.h5ad").X):
        np.testing.assert_array_equal(read_rows(matrix, rows).toarray(), x[rows])
