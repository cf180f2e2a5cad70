"""The networks, each named by the density that it parameterises.

All take the conditions c at every hidden layer. Raw network outputs become scales and
concentrations within bounds here and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from scgmvae.nn import sparse
from scgmvae.nn.bounds import (
    LOG_CONCENTRATION_BOUND,
    LOG_SCALE_BOUND,
    _normal,
    bounded,
    bounded_exp,
    full,
    inverse_bounded_exp,
)
from scgmvae.nn.layers import (
    ConditionedLinear,
    Conditions,
    ConditionSizes,
    Dropout,
    Trunk,
    linear_maps,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG_FACTOR_BOUND = 1.5
"""Logs of the factors by which the background of a protein differs between cells stay within
±1.5."""

__all__ = [
    "Classifier",
    "ComponentPrior",
    "ConditionPrior",
    "Decoder",
    "DirichletNetwork",
    "Encoder",
    "ProteinDecoder",
]


class Encoder(nn.Module):
    """q(z|x,c) and q(w|x,c): one trunk, two heads.

    Parameters
    ----------
    trunk
        Hidden layers: a :class:`Trunk`, or one of convolutions.
    sizes
        Sizes of the conditions. They enter at the heads where the trunk does not take them.
    n_latent, n_latent_w
        L and W; there is no head for w if W is 0.
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
        K, number of components.
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
    """p(z|w,y,c): a Gaussian for each component, shifted by w and c.

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
        K, number of components.
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

    The encoder gives the posterior as a deviation from m(c). If it gave the mean itself, its noise
    would grow with the distance between the means, and the KL divergence would draw the means of
    all conditions to one place.

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
        L, dimensions of z.
    sizes
        Sizes of the conditions.
    n_output
        G, number of genes.
    n_heads
        Outputs per gene: 1, and one more for zero inflation and for dispersions by cell.
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
    def start_at(self, output: Tensor, head: int = 0) -> None:
        """Set the bias of a head to ``output``, (G,), where every cell then starts."""
        self.heads[head].bias.copy_(output)


class ProteinDecoder(Decoder):
    """p(x|z,c) of proteins: outputs for their mixture of background and foreground.

    The background is the same for all cells of a batch up to a bounded factor of each cell.

    Parameters
    ----------
    n_latent, sizes, n_output, widths
        As in :class:`Decoder`.
    """

    def __init__(self, n_latent: int, sizes: ConditionSizes, n_output: int, widths: Sequence[int]):
        super().__init__(n_latent, sizes, n_output, 3, widths)
        self.background = ConditionedLinear(0, n_output, sizes)

    def forward(self, z: Tensor, c: Conditions) -> list[Tensor]:
        """Log background, raw increment and log odds of the background, ``(..., n, P)``."""
        factor, *others = super().forward(z, c)
        of_batch = full(self.background(z[..., :0], c))
        return [of_batch + bounded(factor, LOG_FACTOR_BOUND), *others]

    @torch.no_grad()
    def start_at_levels(self, low: Tensor, high: Tensor) -> None:
        """Start at a background and a foreground of given mean counts, each ``(P,)``.

        Parameters
        ----------
        low, high
            Mean counts of the two, the second larger than the first.
        """
        self.background.bias.copy_(low.log())
        increment = (high / low).log().clamp(min=0.1)
        self.heads[0].bias.zero_()
        self.heads[1].bias.copy_(torch.log(torch.expm1(increment)))
        self.heads[2].bias.zero_()
