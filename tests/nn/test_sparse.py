"""Tests of nn.sparse: what is done with a CSR tensor equals what is done with its zeros."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from scgmvae.nn.sparse import (
    NonZero,
    column_sums,
    csr_tensor,
    dense,
    is_sparse,
    linear,
    map_values,
    row_sums,
    scale_rows,
    transposed,
)

N, G, K = 6, 5, 3

# which entries are not zero
MASKS = {
    "some": np.random.default_rng(0).random((N, G)) < 0.4,
    "empty_rows": np.isin(np.arange(N), [1, 3])[:, None] * np.ones(G, dtype=bool),
    "empty_first_and_last_row": np.isin(np.arange(N), [2])[:, None] * np.ones(G, dtype=bool),
    "empty_columns": np.isin(np.arange(G), [1, 2]) * np.ones((N, 1), dtype=bool),
    "all": np.ones((N, G), dtype=bool),
    "none": np.zeros((N, G), dtype=bool),
    "one_row": np.array([[True, False, True, False, True]]),
}


@pytest.fixture(params=MASKS)
def x(request):
    mask = MASKS[request.param]
    return torch.as_tensor(np.random.default_rng(1).uniform(1, 9, size=mask.shape) * mask)


def test_a_product_and_the_gradient_of_its_weight_equal_the_dense_ones(x):
    rng = np.random.default_rng(2)
    weight, bias = (torch.as_tensor(rng.normal(size=shape)) for shape in ((G, K), K))
    seed_of_gradient = torch.as_tensor(rng.normal(size=(len(x), K)))
    results = []
    for form in (x, x.to_sparse_csr()):
        leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        value = linear(form, *leaves)
        results.append([value.detach(), *torch.autograd.grad(value, leaves, seed_of_gradient)])
    for of_dense, of_csr in zip(*results, strict=True):
        torch.testing.assert_close(of_csr, of_dense, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_product_equals_finite_differences(x):
    rng = np.random.default_rng(2)
    weight, bias = (torch.as_tensor(rng.normal(size=s)).requires_grad_() for s in ((G, K), K))
    csr = x.to_sparse_csr()
    assert torch.autograd.gradcheck(lambda *given: linear(csr, *given), (weight, bias))


def test_a_dense_product_keeps_the_axis_of_samples():
    x, weight, bias = torch.randn(2, N, G), torch.randn(G, K), torch.randn(K)
    torch.testing.assert_close(linear(x, weight, bias), x @ weight + bias)


def test_a_weight_without_gradient_gets_none(x):
    bias = torch.zeros(K, dtype=torch.double, requires_grad=True)
    weight = torch.ones(G, K, dtype=torch.double)
    linear(x.to_sparse_csr(), weight, bias).sum().backward()
    assert weight.grad is None
    assert torch.equal(bias.grad, torch.full((K,), float(len(x)), dtype=torch.double))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_product_takes_places_of_any_integer_type(x, dtype):
    csr = x.to_sparse_csr()
    narrow = csr_tensor(csr.crow_indices().to(dtype), csr.col_indices().to(dtype), csr.values(), G)
    weight = torch.ones(G, K, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(K, dtype=torch.double)
    value = linear(narrow, weight, bias)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), x.sum(1, keepdim=True).expand(-1, K))
    torch.testing.assert_close(weight.grad, x.sum(0).unsqueeze(-1).expand(-1, K))


def test_transposed_parts_equal_those_of_scipy(x):
    csr = x.to_sparse_csr()
    values, cells, offsets = transposed(csr.values(), csr.col_indices(), csr.crow_indices(), G)
    expected = csr_matrix(x.numpy()).tocsc()
    np.testing.assert_array_equal(values, expected.data)
    np.testing.assert_array_equal(cells, expected.indices)
    np.testing.assert_array_equal(offsets, expected.indptr)


def test_values_are_mapped_and_zeros_are_not(x):
    csr = map_values(torch.log1p, x.to_sparse_csr())
    assert is_sparse(csr)
    torch.testing.assert_close(dense(csr), map_values(torch.log1p, x))
    torch.testing.assert_close(dense(csr), torch.log1p(x))


def test_row_sums_are_those_of_all_genes(x):
    expected = x.sum(1, keepdim=True)
    torch.testing.assert_close(row_sums(x.to_sparse_csr()), expected)
    torch.testing.assert_close(row_sums(x), expected)


def test_rows_are_scaled_by_one_number_each(x):
    size = torch.arange(1.0, len(x) + 1, dtype=x.dtype).unsqueeze(1)
    expected = torch.diag(size.squeeze(1)) @ x
    csr = scale_rows(x.to_sparse_csr(), size)
    assert is_sparse(csr)
    torch.testing.assert_close(dense(csr), expected)
    torch.testing.assert_close(scale_rows(x, size), expected)


def test_column_sums_are_those_of_all_cells_in_double_precision(x):
    expected = x.sum(0, dtype=torch.double)
    for given in (x, x.to_sparse_csr()):
        torch.testing.assert_close(column_sums(given), expected)
    nothing = torch.zeros(3, 4)
    for given in (nothing, nothing.to_sparse_csr()):
        torch.testing.assert_close(column_sums(given), torch.zeros(4, dtype=torch.double))


def test_row_sums_of_large_counts_are_exact_in_single_precision():
    x = torch.full((2, 4096), 4095.0)
    assert row_sums(x.to_sparse_csr()).tolist() == [[4096 * 4095.0]] * 2


def test_the_non_zero_values_of_both_forms_are_the_same(x):
    of_dense, of_csr = NonZero.of(x), NonZero.of(x.to_sparse_csr())
    for one, other in zip(of_dense, of_csr, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    cell, gene = np.nonzero(x.numpy())
    np.testing.assert_array_equal(of_csr.cell, cell)
    np.testing.assert_array_equal(of_csr.gene, gene)
    np.testing.assert_array_equal(of_csr.flat, cell * G + gene)
    np.testing.assert_array_equal(of_csr.values, x.numpy()[cell, gene])
