"""Tests of distributions.accessibility, against torch's Bernoulli on a dense matrix."""

import pytest
import torch

from scgmvae.distributions.accessibility import bernoulli_log_prob
from scgmvae.distributions.likelihoods import Bernoulli, log_likelihood


def open_peaks(n=5, n_peaks=11, share=0.2, dtype=torch.double):
    x = (torch.rand(n, n_peaks, generator=torch.manual_seed(0)) < share).to(dtype)
    x[2] = 0  # a cell without any
    return x


@pytest.mark.parametrize("shape", [(), (3,), (2, 1)], ids=str)
@pytest.mark.parametrize("form", ["dense", "CSR"])
def test_it_is_that_of_torch_with_its_gradient(shape, form):
    x = open_peaks()
    logits = torch.randn(*shape, 5, 11, dtype=torch.double, generator=torch.manual_seed(1)) * 4
    weights = torch.randn(*shape, 5, dtype=torch.double)
    given = x.to_sparse_csr() if form == "CSR" else x
    values, gradients = [], []
    for log_prob in (
        lambda a: bernoulli_log_prob(given, a),
        lambda a: torch.distributions.Bernoulli(logits=a).log_prob(x.expand_as(a)).sum(-1),
    ):
        a = logits.clone().requires_grad_()
        value = log_prob(a)
        (value * weights).sum().backward()
        values.append(value)
        gradients.append(a.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_it_is_finite_at_any_logits():
    x = open_peaks(dtype=torch.float)
    for size in (-1e4, -90.0, 90.0, 1e4):
        logits = torch.full((5, 11), size, requires_grad=True)
        value = bernoulli_log_prob(x.to_sparse_csr(), logits)
        value.sum().backward()
        expected = torch.where(x > 0, min(size, 0.0), -max(size, 0.0)).sum(-1)
        torch.testing.assert_close(value, expected)
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float, torch.bfloat16])
def test_a_sparse_matrix_gives_what_a_dense_one_gives_in_single_precision(dtype):
    x = open_peaks(dtype=torch.float)
    p_x = Bernoulli(logits=torch.randn(5, 11).to(dtype), validate_args=False)
    found = log_likelihood(p_x, x.to_sparse_csr())
    whole = Bernoulli(logits=p_x.logits.float(), validate_args=False)
    assert found.dtype == torch.float
    torch.testing.assert_close(found, log_likelihood(whole, x))
