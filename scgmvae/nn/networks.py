"""The networks, each named by the density that it parameterises.

All take the conditions c at every hidden layer. What turns raw network outputs into scales and
concentrations is bounded here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import Normal

from scgmvae.nn import sparse

__all__ = [
    "Classifier",
    "ComponentPrior",
    "Conditions",
    "ConditionPrior",
    "ConditionSizes",
    "Decoder",
    "DirichletNetwork",
    "Encoder",
    "Trunk",
    "bounded",
    "bounded_exp",
    "inverse_bounded_exp",
]

LOG_SCALE_BOUND = 5.0
"""Log standard deviations of latents stay within ±5."""

LOG_CONCENTRATION_BOUND = 7.0
"""Log concentrations of q(d|z,c) stay within ±7."""


def bounded(raw: Tensor, bound: float) -> Tensor:
    """``raw`` squeezed smoothly into (−bound, bound); near 0 the identity."""
    return bound * torch.tanh(raw / bound)


def bounded_exp(raw: Tensor, bound: float) -> Tensor:
    """``exp`` of ``raw`` squeezed smoothly into (−bound, bound).

    Unbounded log-scales overflow in the first steps of training; a hard clamp would leave them
    without a gradient.

    Examples
    --------
    >>> bounded_exp(torch.tensor([0.0, 1e9]), bound=1.0)
    tensor([1.0000, 2.7183])
    """
    return _BoundedExp.apply(raw, bound)


class _BoundedExp(torch.autograd.Function):
    """One step back where autograd takes four: small steps cost more than their arithmetic."""

    @staticmethod
    def forward(ctx, raw: Tensor, bound: float) -> Tensor:
        ratio = torch.tanh(raw / bound)
        value = torch.exp(bound * ratio)
        ctx.save_for_backward(ratio, value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        ratio, value = ctx.saved_tensors
        return grad * value * (1 - ratio.square()), None


def inverse_bounded_exp(value: Tensor, bound: float) -> Tensor:
    """The ``raw`` that :func:`bounded_exp` turns into ``value``.

    Values out of its reach get the nearest raw value that still has a gradient.
    """
    ratio = (torch.log(value) / bound).clamp(-0.99, 0.99)
    return bound * torch.atanh(ratio)


def _normal(loc: Tensor, raw_scale: Tensor) -> Normal:
    scale = bounded_exp(full(raw_scale), LOG_SCALE_BOUND)
    return Normal(full(loc), scale, validate_args=False)


def full(output: Tensor) -> Tensor:
    """Output in single precision, where mixed precision has left half of it.

    Divergences and likelihoods are sums over many values, and bfloat16 has three digits.
    """
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


class Conditions(NamedTuple):
    """c: what is known of a cell beside its data."""

    one_hots: tuple[Tensor, ...] = ()
    """One (n, n_categories) float tensor per categorical condition, the batch first."""

    continuous: Tensor | None = None
    """Continuous conditions, (n, n_continuous)."""


class ConditionSizes(NamedTuple):
    """Sizes of the conditions."""

    n_cat_list: tuple[int, ...] = ()
    """Categories of each categorical condition; one that has a single category tells nothing."""

    n_cont: int = 0
    """Number of continuous conditions."""


class ConditionedLinear(nn.Module):
    r"""Affine map of an input and c, with the weights of every category kept by themselves.

    .. math:: W^T x + b + \sum_i E_i[c_i] + V^T c_\mathrm{cont}

    That is :class:`torch.nn.Linear` on x and all one-hots side by side. Kept apart, the input is
    never copied, and a category that is added later (:meth:`extend`) leaves the result for all
    others what it was to the last bit. W has a row for each input, so that a sparse x picks whole
    rows, as a category does.

    Parameters
    ----------
    n_in, n_out
        Sizes of input and output; without an input (0) c alone counts.
    sizes
        Sizes of the conditions.
    """

    def __init__(self, n_in: int, n_out: int, sizes: ConditionSizes):
        super().__init__()
        self.takes_categories = bool(sizes.n_cat_list)
        n_categories = [n for n in sizes.n_cat_list if n > 1]
        bound = 1 / math.sqrt(max(1, n_in + sum(n_categories) + sizes.n_cont))

        def uniform(n_from: int) -> nn.Parameter:
            # drawn in the order of torch.nn.Linear, whose weight is the transpose
            drawn = torch.empty(n_out, n_from).uniform_(-bound, bound)
            return nn.Parameter(drawn.T.contiguous())

        self.weight = uniform(n_in) if n_in else None
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))
        self.offsets = nn.ParameterDict(
            {
                str(i): nn.Parameter(torch.empty(n, n_out).uniform_(-bound, bound))
                for i, n in enumerate(sizes.n_cat_list)
                if n > 1
            }
        )
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
            Categories of each condition from now on.
        known
            Categories that each has had so far.
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
    """Several maps of the same inputs, of the same conditions, by one product.

    ``(..., n, n_in)`` to ``(..., n, sum of all n_out)``, the outputs side by side.
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

    :class:`torch.nn.Dropout` draws a number for each, which takes four times as long. The
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
        Units of each hidden layer. Without any the input comes out as it is.
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
        """Whether c enters here; where it does not, what follows has to take it."""
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


class Encoder(nn.Module):
    """q(z|x,c) and q(w|x,c): one trunk, two heads.

    Parameters
    ----------
    trunk
        Hidden layers: a :class:`Trunk`, or one of convolutions.
    sizes
        Sizes of the conditions. They enter at the heads where the trunk does not take them.
    n_latent, n_latent_w
        L and W; no head for w where W is 0.
    input_dropout_rate
        Share of the genes that are hidden from the encoder in training, drawn anew for every cell
        and step.
    noise
        Whether q(z|x,c) has a spread; else it is a point, the code of an autoencoder.
    """

    def __init__(
        self,
        trunk: nn.Module,
        sizes: ConditionSizes,
        n_latent: int,
        n_latent_w: int,
        input_dropout_rate: float,
        noise: bool = True,
    ):
        super().__init__()
        self.input_dropout = Dropout(input_dropout_rate)
        self.trunk = trunk
        sizes = ConditionSizes() if trunk.takes_conditions else sizes
        self.z_loc = ConditionedLinear(trunk.n_out, n_latent, sizes)
        self.z_scale = ConditionedLinear(trunk.n_out, n_latent, sizes) if noise else None
        if n_latent_w:
            self.w_loc = ConditionedLinear(trunk.n_out, n_latent_w, sizes)
            self.w_scale = ConditionedLinear(trunk.n_out, n_latent_w, sizes)

    def forward(self, x: Tensor, c: Conditions) -> Tensor:
        """Hidden representation of the cells, ``(n, n_hidden)``, that both heads read.

        x is dense or, for a :class:`Trunk`, CSR.
        """
        return self.trunk(sparse.map_values(self.input_dropout, x), c)

    def q_z(self, hidden: Tensor, c: Conditions, center: Tensor | float = 0.0) -> Normal:
        """q(z|x,c), parameters ``(n, L)``, as a deviation from the mean of p(z|c)."""
        loc = center + self.z_loc(hidden, c)
        if self.z_scale is None:
            return Normal(loc, torch.zeros_like(loc), validate_args=False)
        return _normal(loc, self.z_scale(hidden, c))

    def q_zw(
        self, hidden: Tensor, c: Conditions, center: Tensor | float = 0.0
    ) -> tuple[Normal, Normal]:
        """q(z|x,c), and q(w|x,c) with parameters ``(n, W)``, as a deviation from p(w|c)'s mean."""
        heads = [self.z_loc, self.w_loc, self.z_scale, self.w_scale]
        sizes = [len(self.z_loc.bias), len(self.w_loc.bias)]
        loc, raw_scale = full(linear_maps(heads, hidden, c)).chunk(2, dim=-1)
        z_loc, w_loc = loc.split(sizes, dim=-1)
        z_scale, w_scale = bounded_exp(raw_scale, LOG_SCALE_BOUND).split(sizes, dim=-1)
        q_z = Normal(z_loc, z_scale, validate_args=False)
        return q_z, Normal(center + w_loc, w_scale, validate_args=False)


class Classifier(nn.Module):
    """q(y|z,c), or q(y|z,x,c): logits over the K components.

    Parameters
    ----------
    n_in
        Size of z, or of z and x together.
    sizes
        Sizes of the conditions.
    n_components
        K.
    n_hidden
        Width of the hidden layer.
    """

    def __init__(self, n_in: int, sizes: ConditionSizes, n_components: int, n_hidden: int):
        super().__init__()
        # Without batch normalisation: the logits of a cell must not depend on its minibatch, and
        # the classifier is fitted to the starting partition outside of the training loop.
        self.trunk = Trunk(n_in, sizes, (n_hidden,), use_batch_norm=False)
        self.logits = nn.Linear(n_hidden, n_components)

    def forward(self, inputs: Tensor, c: Conditions) -> Tensor:
        """Logits, ``(..., n, K)``."""
        return full(self.logits(self.trunk(inputs, c)))


class DirichletNetwork(Classifier):
    """q(d|z,c): concentrations a of a Dirichlet, ``(n, K)``."""

    def forward(self, inputs: Tensor, c: Conditions) -> Tensor:
        """Concentrations, ``(..., n, K)``."""
        return bounded_exp(super().forward(inputs, c), LOG_CONCENTRATION_BOUND)


class ComponentPrior(nn.Module):
    """p(z|w,y,c): a Gaussian for each component, placed by w and c.

    The means are anchors (K, L), which start at the clusters' means, plus what a network of w and
    c adds; the scales likewise. The network's output layer starts small, so that at the start a
    component sits where its cluster is, for every w and c.

    Parameters
    ----------
    n_latent, n_latent_w
        L and W.
    sizes
        Sizes of the conditions.
    n_components
        K.
    n_hidden
        Width of the hidden layer.
    """

    def __init__(
        self,
        n_latent: int,
        n_latent_w: int,
        sizes: ConditionSizes,
        n_components: int,
        n_hidden: int,
    ):
        super().__init__()
        self.shape = (n_components, n_latent)
        self.loc = nn.Parameter(torch.randn(self.shape))
        self.raw_scale = nn.Parameter(torch.zeros(self.shape))
        self.trunk = Trunk(n_latent_w, sizes, (n_hidden,), use_batch_norm=False)
        self.shift = nn.Linear(n_hidden, 2 * n_components * n_latent, bias=False)
        nn.init.normal_(self.shift.weight, std=1e-2)

    def forward(self, w: Tensor, c: Conditions) -> Normal:
        """p(z|w,y,c) for every y, parameters ``(..., K, L)`` for ``w`` of shape ``(..., W)``."""
        anchors = torch.cat([self.loc.flatten(), self.raw_scale.flatten()])
        placed = nn.functional.linear(self.trunk(w, c), self.shift.weight, anchors)
        loc, raw_scale = placed.unflatten(-1, (2, *self.shape)).unbind(-3)  # each (..., K, L)
        return _normal(loc, raw_scale)

    @torch.no_grad()
    def start_at(self, loc: Tensor, scale: Tensor) -> None:
        """Put the anchors at the given means and standard deviations, each ``(K, L)``."""
        self.loc.copy_(loc)
        self.raw_scale.copy_(inverse_bounded_exp(scale, LOG_SCALE_BOUND))


class ConditionPrior(nn.Module):
    """p(w|c) = N(m(c), I), or p(z|c) of a VAE, learned: a mean for each set of conditions.

    The posterior is given as a deviation from m(c). Encoded freely, it has noise in proportion to
    the distance of the means, and the KL divergence drives the conditions to one place.

    Parameters
    ----------
    n_latent
        W, or L.
    sizes
        Sizes of the conditions.
    n_hidden
        Width of the hidden layer.
    """

    def __init__(self, n_latent: int, sizes: ConditionSizes, n_hidden: int):
        super().__init__()
        self.trunk = Trunk(0, sizes, (n_hidden,), use_batch_norm=False)
        self.loc = nn.Linear(n_hidden, n_latent)
        # about one standard deviation between two conditions in every dimension
        nn.init.normal_(self.loc.weight, std=0.3)

    def forward(self, c: Conditions) -> Tensor:
        """m(c), ``(n, W)`` or ``(n, L)``."""
        return self.loc(self.trunk(c.one_hots[0][:, :0], c))


class Decoder(nn.Module):
    """p(x|z,c): one output per gene and head, which the likelihood turns into its parameters.

    Parameters
    ----------
    n_latent
        L.
    sizes
        Sizes of the conditions.
    n_output
        G, number of genes.
    n_heads
        Outputs per gene: 1, or 2 where there is zero inflation.
    widths
        Units of each hidden layer; without any the decoder is linear.
    """

    def __init__(
        self,
        n_latent: int,
        sizes: ConditionSizes,
        n_output: int,
        n_heads: int,
        widths: Sequence[int],
    ):
        super().__init__()
        self.trunk = Trunk(n_latent, sizes, widths)
        sizes = ConditionSizes() if self.trunk.takes_conditions else sizes
        self.heads = nn.ModuleList(
            ConditionedLinear(self.trunk.n_out, n_output, sizes) for _ in range(n_heads)
        )

    def forward(self, z: Tensor, c: Conditions) -> list[Tensor]:
        """Outputs of each head, ``(..., n, G)``."""
        hidden = self.trunk(z, c)
        return [full(head(hidden, c)) for head in self.heads]

    @torch.no_grad()
    def start_at(self, output: Tensor) -> None:
        """Let the first head give ``output``, (G,), for a cell with nothing of its own."""
        self.heads[0].bias.copy_(output)
