"""The networks, each named by the density that it parameterises.

All are built of :class:`scvi.nn.FCLayers`, which takes the conditions c at every layer. What turns
raw network outputs into scales and concentrations is bounded here and nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scvi.nn import FCLayers
from torch import Tensor, nn
from torch.distributions import Normal

__all__ = [
    "Classifier",
    "ComponentPrior",
    "Conditions",
    "ConditionPrior",
    "ConditionSizes",
    "Decoder",
    "DirichletNetwork",
    "Encoder",
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
    return torch.exp(bounded(raw, bound))


def inverse_bounded_exp(value: Tensor, bound: float) -> Tensor:
    """The ``raw`` that :func:`bounded_exp` turns into ``value``.

    Values out of its reach get the nearest raw value that still has a gradient.
    """
    ratio = (torch.log(value) / bound).clamp(-0.99, 0.99)
    return bound * torch.atanh(ratio)


def _normal(loc: Tensor, raw_scale: Tensor) -> Normal:
    scale = bounded_exp(raw_scale, LOG_SCALE_BOUND)
    return Normal(loc, scale, validate_args=False)


class Conditions(NamedTuple):
    """c: what is known of a cell beside its data."""

    one_hots: tuple[Tensor, ...] = ()
    """One (n, n_categories) float tensor per categorical condition, the batch first."""

    continuous: Tensor | None = None
    """Continuous conditions, (n, n_continuous)."""


class ConditionSizes(NamedTuple):
    """Sizes of the conditions, as :class:`scvi.nn.FCLayers` wants them."""

    n_cat_list: tuple[int, ...] = ()
    n_cont: int = 0


class _Trunk(nn.Module):
    """Hidden layers on an input and c; the base of every network here."""

    def __init__(
        self,
        n_in: int,
        sizes: ConditionSizes,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float = 0.0,
        use_batch_norm: bool = True,
    ):
        super().__init__()
        self.layers = FCLayers(
            n_in,
            n_hidden,
            n_cat_list=sizes.n_cat_list,
            n_cont=sizes.n_cont,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
            use_batch_norm=use_batch_norm,
        )

    def forward(self, inputs: Tensor, c: Conditions) -> Tensor:
        return self.layers(inputs, *c.one_hots, cont=c.continuous)


class Encoder(nn.Module):
    """q(z|x,c) and q(w|x,c): one trunk, two heads.

    Parameters
    ----------
    n_input
        G, number of genes.
    sizes
        Sizes of the conditions.
    n_latent, n_latent_w
        L and W.
    n_hidden, n_layers, dropout_rate
        Shape of the trunk.
    input_dropout_rate
        Share of the genes that are hidden from the encoder in training, drawn anew for every cell
        and step.
    """

    def __init__(
        self,
        n_input: int,
        sizes: ConditionSizes,
        n_latent: int,
        n_latent_w: int,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float,
        input_dropout_rate: float,
    ):
        super().__init__()
        self.input_dropout = nn.Dropout(input_dropout_rate)
        self.trunk = _Trunk(n_input, sizes, n_hidden, n_layers, dropout_rate)
        self.z_loc = nn.Linear(n_hidden, n_latent)
        self.z_scale = nn.Linear(n_hidden, n_latent)
        if n_latent_w:
            self.w_loc = nn.Linear(n_hidden, n_latent_w)
            self.w_scale = nn.Linear(n_hidden, n_latent_w)

    def forward(self, x: Tensor, c: Conditions) -> Tensor:
        """Hidden representation of the cells, ``(n, n_hidden)``, that both heads read."""
        return self.trunk(self.input_dropout(x), c)

    def q_z(self, hidden: Tensor) -> Normal:
        """q(z|x,c), parameters ``(n, L)``."""
        return _normal(self.z_loc(hidden), self.z_scale(hidden))

    def q_w(self, hidden: Tensor) -> Normal:
        """q(w|x,c), parameters ``(n, W)``."""
        return _normal(self.w_loc(hidden), self.w_scale(hidden))


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
        self.trunk = _Trunk(n_in, sizes, n_hidden, n_layers=1, use_batch_norm=False)
        self.logits = nn.Linear(n_hidden, n_components)

    def forward(self, inputs: Tensor, c: Conditions) -> Tensor:
        """Logits, ``(..., n, K)``."""
        return self.logits(self.trunk(inputs, c))


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
        self.trunk = _Trunk(n_latent_w, sizes, n_hidden, n_layers=1, use_batch_norm=False)
        self.shift = nn.Linear(n_hidden, 2 * n_components * n_latent, bias=False)
        nn.init.normal_(self.shift.weight, std=1e-2)

    def forward(self, w: Tensor, c: Conditions) -> Normal:
        """p(z|w,y,c) for every y, parameters ``(..., K, L)`` for ``w`` of shape ``(..., W)``."""
        shift = self.shift(self.trunk(w, c)).unflatten(-1, (2, *self.shape))
        loc_shift, scale_shift = shift.unbind(-3)  # each (..., K, L)
        return _normal(self.loc + loc_shift, self.raw_scale + scale_shift)

    @torch.no_grad()
    def start_at(self, loc: Tensor, scale: Tensor) -> None:
        """Put the anchors at the given means and standard deviations, each ``(K, L)``."""
        self.loc.copy_(loc)
        self.raw_scale.copy_(inverse_bounded_exp(scale, LOG_SCALE_BOUND))


class ConditionPrior(nn.Module):
    """p(w|c), learned: a Gaussian for each set of conditions.

    Parameters
    ----------
    n_latent_w
        W.
    sizes
        Sizes of the conditions.
    n_hidden
        Width of the hidden layer.
    """

    def __init__(self, n_latent_w: int, sizes: ConditionSizes, n_hidden: int):
        super().__init__()
        # The trunk reads c alone: its own input has no columns.
        self.trunk = _Trunk(0, sizes, n_hidden, n_layers=1, use_batch_norm=False)
        self.loc = nn.Linear(n_hidden, n_latent_w)
        self.raw_scale = nn.Linear(n_hidden, n_latent_w)

    def forward(self, w: Tensor, c: Conditions) -> Normal:
        """p(w|c), parameters ``(..., n, W)``; of w only the shape is used."""
        hidden = self.trunk(w[..., :0], c)
        return _normal(self.loc(hidden), self.raw_scale(hidden))


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
    n_hidden, n_layers
        Shape of the trunk.
    """

    def __init__(
        self,
        n_latent: int,
        sizes: ConditionSizes,
        n_output: int,
        n_heads: int,
        n_hidden: int,
        n_layers: int,
    ):
        super().__init__()
        self.trunk = _Trunk(n_latent, sizes, n_hidden, n_layers)
        self.heads = nn.ModuleList(nn.Linear(n_hidden, n_output) for _ in range(n_heads))

    def forward(self, z: Tensor, c: Conditions) -> list[Tensor]:
        """Outputs of each head, ``(..., n, G)``."""
        hidden = self.trunk(z, c)
        return [head(hidden) for head in self.heads]
