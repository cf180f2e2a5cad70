"""Panels: which features of several modalities were measured in which cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PanelTable", "Panels", "with_each_alone"]

_FACTS = WeakTensorKeyDictionary()
"""What panels hold → what follows from it, as long as that tensor lives: every step needs it."""
_WITH_EACH_ALONE = WeakTensorKeyDictionary()
"""What panels hold → the same with each modality alone."""


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
        """The table, whose facts are worked out once for the same tensors.

        Parameters
        ----------
        holds
            Whether each panel holds each feature, ``(P, G)``.
        ranges
            First column of each modality, and the one after its last.
        typical_counts
            Features in a typical cell, ``(G,)``.
        """
        # what is made in inference mode cannot be trained with, and has no versions
        if torch.is_inference_mode_enabled() or holds.is_inference():
            return cls(holds, *_facts(holds, ranges, typical_counts))
        state = (tuple(ranges), holds._version, typical_counts._version)
        kept, of_counts, facts = _FACTS.get(holds, (None, None, None))
        if kept != state or of_counts() is not typical_counts:
            facts = _facts(holds, ranges, typical_counts)
            # a value that held its own key would never be dropped
            _FACTS[holds] = state, ref(typical_counts), facts
        return cls(holds, *facts)


def _facts(
    holds: Tensor, ranges: Sequence[tuple[int, int]], typical_counts: Tensor
) -> tuple[Tensor, tuple[bool, ...], Tensor]:
    """What follows from the features that panels hold: has, is_partial and depth of the table."""
    parts = [holds[:, first:end] for first, end in ranges]
    has = torch.stack([part.any(1) for part in parts], dim=1)
    is_whole = torch.stack([part.all(1) for part in parts], dim=1)
    depths = [
        (part * typical_counts[first:end]).sum(1)
        for part, (first, end) in zip(parts, ranges, strict=True)
    ]
    return has, tuple((has & ~is_whole).any(0).tolist()), torch.stack(depths, dim=1)


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
    ``((1 + M) P, G)``, the same tensor for the same ``holds``.
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
