"""Panels: which features of several modalities were measured in which cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PanelTable", "Panels", "with_each_alone"]

_TABLES = WeakTensorKeyDictionary()
"""Table of panels → what follows from it, as long as the table lives: every step needs it."""
_WITH_EACH_ALONE = WeakTensorKeyDictionary()
"""Table of panels → the same with each modality alone."""


class PanelTable(NamedTuple):
    """What each of P panels holds, and what follows from it."""

    holds: Tensor
    """Whether each panel holds each feature, (P, G)."""
    has: Tensor
    """Whether each panel holds any feature of each modality, (P, M)."""
    is_partial: tuple[bool, ...]
    """Whether some panel holds some of the features of a modality and not all, for each."""
    depth: Tensor
    """Sum of the features of each modality that a panel holds, in a typical cell, (P, M)."""

    @classmethod
    def of(
        cls, holds: Tensor, ranges: Sequence[tuple[int, int]], typical_counts: Tensor
    ) -> PanelTable:
        """The table, which is made once for the same tensors.

        Parameters
        ----------
        holds
            Whether each panel holds each feature, ``(P, G)``.
        ranges
            First column of each modality, and the one after its last.
        typical_counts
            Features in a typical cell, ``(G,)``.
        """
        if torch.is_inference_mode_enabled():  # what is made there cannot be trained with
            return cls._made(holds, ranges, typical_counts)
        state = (tuple(ranges), holds._version, id(typical_counts), typical_counts._version)
        kept, table = _TABLES.get(holds, (None, None))
        if kept != state:
            table = cls._made(holds, ranges, typical_counts)
            _TABLES[holds] = state, table
        return table

    @classmethod
    def _made(
        cls, holds: Tensor, ranges: Sequence[tuple[int, int]], typical_counts: Tensor
    ) -> PanelTable:
        parts = [holds[:, first:end] for first, end in ranges]
        has = torch.stack([part.any(1) for part in parts], dim=1)
        is_whole = torch.stack([part.all(1) for part in parts], dim=1)
        depths = [
            part.to(typical_counts.dtype) @ typical_counts[first:end]
            for part, (first, end) in zip(parts, ranges, strict=True)
        ]
        is_partial = tuple((has & ~is_whole).any(0).tolist())
        return cls(holds, has, is_partial, torch.stack(depths, dim=1))


class Panels(NamedTuple):
    """Which features were measured in each cell of a minibatch."""

    code: Tensor
    """Panel of each cell, (n,)."""
    table: PanelTable
    """What each panel holds."""

    def mask(self, first: int, end: int) -> Tensor:
        """Whether some neighbouring features were measured in each cell, (n, end − first)."""
        return self.table.holds[:, first:end][self.code]

    def has(self) -> Tensor:
        """Whether each cell has each modality, (n, M)."""
        return self.table.has[self.code]


def with_each_alone(holds: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """A table of panels, and below it for each modality the same with that alone.

    Parameters
    ----------
    holds, ranges
        As in :meth:`PanelTable.of`.

    Returns
    -------
    ``((1 + M) P, G)``, the same tensor each time.
    """
    kept, table = _WITH_EACH_ALONE.get(holds, (None, None))
    if kept != holds._version:
        parts = [holds]
        for first, end in ranges:
            alone = torch.zeros_like(holds)
            alone[:, first:end] = holds[:, first:end]
            parts.append(alone)
        table = torch.cat(parts)
        _WITH_EACH_ALONE[holds] = holds._version, table
    return table
