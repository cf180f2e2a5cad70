"""Several encoders of one latent, one for each modality, and the product of what they say."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from scgmvae.nn import sparse
from scgmvae.nn.layers import Conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scgmvae.nn.layers import ConditionedLinear
    from scgmvae.nn.networks import Encoder

__all__ = ["Experts", "Seen", "product_of_normals"]


class Seen(NamedTuple):
    """What the encoders see of the cells of a minibatch."""

    blocks: list[Tensor]
    """Input of the encoder of each modality, (n, G_m)."""
    is_there: Tensor | None
    """Whether each cell was measured in each modality, (n, M); ``None`` if all were in all."""
    rows: list[Tensor]
    """Places of the cells that were, for each modality, where not all were in all."""

    @classmethod
    def of(cls, blocks: list[Tensor], is_there: Tensor | None = None) -> Seen:
        """Inputs of the encoders, and which of them each cell has.

        Parameters
        ----------
        blocks, is_there
            As above.
        """
        there = () if is_there is None else is_there.unbind(1)
        return cls(blocks, is_there, [of_one.nonzero().squeeze(-1) for of_one in there])


class Experts(nn.Module):
    r"""q(z|x,c) and q(w|x,c) of cells of several modalities, as a product of Gaussians.

    .. math:: q(z|x,c) \propto \prod_{m \text{ measured}} q_m(z|x_m,c)

    It is defined for cells that lack some of the modalities.

    Parameters
    ----------
    encoders
        Encoder of each modality.

    References
    ----------
    Wu and Goodman 2018, "Multimodal generative models for scalable weakly-supervised learning".
    """

    def __init__(self, encoders: Sequence[Encoder]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    @property
    def z_loc(self) -> ConditionedLinear:
        """A head, which tells device and type of all weights."""
        return self.encoders[0].z_loc

    def q_z(self, seen: Seen, c: Conditions, center: Tensor | float = 0.0) -> Normal:
        """q(z|x,c), parameters ``(n, L)``."""
        heads = [encoder.q_z for encoder in self.encoders]
        return self._product(self._read(heads, seen, c, center), seen)

    def q_zw(
        self, seen: Seen, c: Conditions, center: Tensor | float = 0.0
    ) -> tuple[Normal, Normal]:
        """q(z|x,c), and q(w|x,c) with parameters ``(n, W)``."""
        heads = [encoder.q_zw for encoder in self.encoders]
        pairs = self._read(heads, seen, c, center)
        sizes = [q.loc.shape[1] for q in pairs[0]]
        # side by side they take half of the operations
        both = [
            _normal(*(torch.cat([getattr(q, name) for q in pair], 1) for name in ("loc", "scale")))
            for pair in pairs
        ]
        product = self._product(both, seen)
        locs, scales = product.loc.split(sizes, 1), product.scale.split(sizes, 1)
        q_z, q_w = (_normal(*of_one) for of_one in zip(locs, scales, strict=True))
        return q_z, q_w

    def _read(
        self, heads: Sequence[Callable], seen: Seen, c: Conditions, center: Tensor | float
    ) -> list:
        """What the heads of each encoder say of the cells that have its modality.

        The other cells would count in the batch normalisation.
        """
        found = []
        for m, (encoder, head) in enumerate(zip(self.encoders, heads, strict=True)):
            x = seen.blocks[m]
            if seen.is_there is None:
                found.append(head(encoder(x, c), c, center))
                continue
            rows = seen.rows[m]
            of_rows = _conditions_of(c, rows)
            middle = center[rows] if isinstance(center, Tensor) else center
            with _with_kept_statistics(encoder) if len(rows) < 2 else nullcontext():
                hidden = encoder(sparse.rows_of(x, rows), of_rows)
            found.append(head(hidden, of_rows, middle))
        return found

    def _product(self, parts: Sequence[Normal], seen: Seen) -> Normal:
        """Product of the Gaussians of each modality."""
        if seen.is_there is not None:
            n = len(seen.is_there)
            parts = [_scattered(q, rows, n) for q, rows in zip(parts, seen.rows, strict=True)]
        is_point = self.encoders[0].z_scale is None
        return product_of_normals(parts, seen.is_there, is_point)


def product_of_normals(
    parts: Sequence[Normal], weight: Tensor | None = None, is_point: bool = False
) -> Normal:
    """Product of Gaussians, normalised.

    Parameters
    ----------
    parts
        M Gaussians with parameters ``(n, L)``.
    weight
        Whether each is part of the product of each row, ``(n, M)``; ``None`` if all are. A row
        without any gets N(0, I).
    is_point
        Whether they are points without a spread, which are averaged.

    Examples
    --------
    >>> one, other = (Normal(torch.tensor([[loc]]), torch.ones(1, 1)) for loc in (0.0, 2.0))
    >>> q = product_of_normals([one, other])
    >>> round(q.loc.item(), 3), round(q.variance.item(), 3)
    (1.0, 0.5)
    """
    if len(parts) == 1 and weight is None:
        return parts[0]
    loc = torch.stack([q.loc for q in parts], dim=-1)  # (n, L, M)
    scale = torch.stack([q.scale for q in parts], dim=-1)
    precision = torch.ones_like(scale) if is_point else scale.pow(-2)
    if weight is not None:
        precision = precision * weight.to(precision.dtype).unsqueeze(1)
    total = precision.sum(-1)
    if weight is not None:
        total = torch.where(total == 0, 1.0, total)
    mean = (precision * loc).sum(-1) / total
    spread = torch.zeros_like(mean) if is_point else total.rsqrt()
    return _normal(mean, spread)


def _normal(loc: Tensor, scale: Tensor) -> Normal:
    return Normal(loc, scale, validate_args=False)


def _conditions_of(c: Conditions, rows: Tensor) -> Conditions:
    """Conditions of some rows."""
    continuous = None if c.continuous is None else c.continuous[rows]
    return Conditions(tuple(one_hot[rows] for one_hot in c.one_hots), continuous)


@contextmanager
def _with_kept_statistics(encoder: nn.Module) -> Iterator[None]:
    """Context in which batch normalisation keeps its statistics, as for too few cells."""
    norms = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm1d)]
    changed = [layer for layer in norms if layer.training]
    for layer in changed:
        layer.eval()
    yield
    for layer in changed:
        layer.train()


def _scattered(q: Normal, rows: Tensor, n: int) -> Normal:
    """A Gaussian of some rows as one of n rows; the others are N(0, I)."""
    loc = q.loc.new_zeros(n, q.loc.shape[1]).index_copy(0, rows, q.loc)
    scale = q.scale.new_ones(n, q.scale.shape[1]).index_copy(0, rows, q.scale)
    return Normal(loc, scale, validate_args=False)
