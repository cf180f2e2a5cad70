"""Layers that take an input and the conditions c."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from scgmvae.nn import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ConditionSizes", "ConditionedLinear", "Conditions", "Dropout", "Trunk", "linear_maps"]


class Conditions(NamedTuple):
    """c: what is known of a cell beside its data."""

    one_hots: tuple[Tensor, ...] = ()
    """One (n, n_categories) float tensor per categorical condition, the batch first."""

    continuous: Tensor | None = None
    """Continuous conditions, (n, n_continuous)."""


class ConditionSizes(NamedTuple):
    """Sizes of the conditions."""

    n_cat_list: tuple[int, ...] = ()
    """Number of categories of each categorical condition; one category alone has no weights."""

    n_cont: int = 0
    """Number of continuous conditions."""


@contextmanager
def _random_numbers_apart() -> Iterator[None]:
    """Draw in the block what does not change the numbers that are drawn after it."""
    with torch.random.fork_rng(devices=()):
        # by one of the coming numbers, so that two blocks differ; it does not seed GPUs as well
        torch.default_generator.manual_seed(int(torch.randint(1 << 62, ())))
        yield


class ConditionedLinear(nn.Module):
    r"""Affine map of an input and c, with separate weights for every category.

    .. math:: W^T x + b + \sum_i E_i[c_i] + V^T c_\mathrm{cont}

    That is :class:`torch.nn.Linear` on x and all one-hots side by side. With separate weights the
    input is never copied, and a category that is added later (:meth:`extend`) leaves the results
    of all others bit for bit as they were. W has a row for each input, so that a sparse x picks
    whole rows, as a category does.

    The weights of conditions are drawn apart, so that all others start as they do without these
    conditions: with the same seed, one that has no effect changes less.

    Parameters
    ----------
    n_in, n_out
        Sizes of input and output; if the input has size 0, the map depends on c alone.
    sizes
        Sizes of the conditions.
    """

    def __init__(self, n_in: int, n_out: int, sizes: ConditionSizes):
        super().__init__()
        self.takes_categories = bool(sizes.n_cat_list)
        n_categories = {str(i): n for i, n in enumerate(sizes.n_cat_list) if n > 1}
        bound = 1 / math.sqrt(n_in or max(1, sum(n_categories.values()) + sizes.n_cont))

        def uniform(n_from: int) -> nn.Parameter:
            # drawn in the order of torch.nn.Linear, whose weight is the transpose
            drawn = torch.empty(n_out, n_from).uniform_(-bound, bound)
            return nn.Parameter(drawn.T.contiguous())

        self.weight = uniform(n_in) if n_in else None
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))
        with _random_numbers_apart():
            self.offsets = nn.ParameterDict({i: uniform(n) for i, n in n_categories.items()})
            self.slopes = uniform(sizes.n_cont) if sizes.n_cont else None

    def forward(self, inputs: Tensor, c: Conditions) -> Tensor:
        """``(..., n, n_in)`` to ``(..., n, n_out)``."""
        return linear_maps([self], inputs, c)

    @torch.no_grad()
    def extend(self, n_cat_list: tuple[int, ...], known: tuple[int, ...]) -> None:
        """Add categories, each of which starts as the mean of the known ones.

        Parameters
        ----------
        n_cat_list
            Number of categories of each condition from now on.
        known
            Number of categories of each condition so far.
        """
        for i, (n, n_known) in enumerate(zip(n_cat_list, known, strict=True)):
            if n == n_known:
                continue
            old = self.bias.new_zeros(n_known, len(self.bias))
            if n_known > 1:
                old = self.offsets[str(i)].detach()
            added = old.mean(0).expand(n - n_known, -1)
            self.offsets[str(i)] = nn.Parameter(torch.cat([old, added]))


def linear_maps(layers: Sequence[ConditionedLinear], inputs: Tensor, c: Conditions) -> Tensor:
    """Several maps of the same inputs and conditions, computed by one product.

    The inputs are ``(..., n, n_in)``; the outputs stand side by side in
    ``(..., n, sum of all n_out)``.
    """

    def beside(parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    first, bias = layers[0], beside([layer.bias for layer in layers])
    if first.weight is None:
        out = bias.expand(*inputs.shape[:-1], -1)
    else:
        out = sparse.linear(inputs, beside([layer.weight for layer in layers]), bias)
    for i in first.offsets:
        out = out + c.one_hots[int(i)] @ beside([layer.offsets[i] for layer in layers])
    if first.slopes is not None:
        out = out + c.continuous @ beside([layer.slopes for layer in layers])
    return out


class Dropout(nn.Dropout):
    """Dropout that takes 16 random bits for each value on a CPU.

    :class:`torch.nn.Dropout` draws a number for each value, which takes four times as long. The
    probability is rounded to 1/65,536.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with some values set to 0 and the others scaled up, in training."""
        if not self.training or self.p == 0:
            return x
        n_dropped = round(self.p * 2**16)
        if not 0 < n_dropped < 2**16 or x.device.type != "cpu":
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = (bits >= n_dropped - 2**15).to(x.dtype)
        return x * keep.mul_(2**16 / (2**16 - n_dropped))


class Trunk(nn.Module):
    """Hidden layers on an input and c; the base of every network here.

    Parameters
    ----------
    n_in
        Size of the input.
    sizes
        Sizes of the conditions.
    widths
        Units of each hidden layer. Without hidden layers the input is returned as it is.
    dropout_rate
        Dropout after every layer.
    use_batch_norm
        Whether every layer is batch-normalised.
    """

    def __init__(
        self,
        n_in: int,
        sizes: ConditionSizes,
        widths: Sequence[int],
        dropout_rate: float = 0.0,
        use_batch_norm: bool = True,
    ):
        super().__init__()
        widths = (n_in, *widths)
        self.n_out = widths[-1]
        self.linears = nn.ModuleList(ConditionedLinear(*pair, sizes) for pair in pairwise(widths))
        # momentum and eps as in scvi-tools
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(n, momentum=0.01, eps=1e-3) if use_batch_norm else nn.Identity()
            for n in widths[1:]
        )
        self.dropout = Dropout(dropout_rate)

    @property
    def takes_conditions(self) -> bool:
        """Whether c enters these layers; if not, the layers that follow have to take it."""
        return len(self.linears) > 0

    def forward(self, inputs: Tensor, c: Conditions) -> Tensor:
        """``(..., n, n_in)`` to ``(..., n, n_out)``."""
        hidden = inputs
        for linear, norm in zip(self.linears, self.norms, strict=True):
            out = linear(hidden, c)
            # batch normalisation takes two dimensions, and samples (S, n, ·) have three
            out = norm(out.flatten(0, -2)).view_as(out)
            hidden = self.dropout(torch.relu(out))
        return hidden
