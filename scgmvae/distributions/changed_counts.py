"""Counts of measured cells as they would be at other means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributions import Distribution

__all__ = ["ChangedCounts", "carried_over"]

ADDED = 1e-4
"""Share of a cell's counts that is added to every gene where changes are compared: one count per
10,000, as in the logarithm of normalised expression."""


def carried_over(mean: Tensor, here: Tensor, there: Tensor) -> Tensor:
    r"""Mean counts after a change that is known of other cells.

    .. math:: \log(\mu' + \epsilon) = \log(\mu + \epsilon)
        + \log(\nu' + \epsilon) - \log(\nu + \epsilon)

    with :math:`\epsilon` of one count per 10,000: a gene that the other cells hardly express says
    nothing of how it changes in these. The sum over genes stays as it is.

    Parameters
    ----------
    mean
        Mean counts of the cells, ``(n, G)``.
    here, there
        Mean counts of the other cells before and after, ``(n, G)``, at the same library sizes.

    Examples
    --------
    >>> mean, here, there = torch.tensor([[1.0, 9.0], [3.0, 4.0], [6.0, 8.0]])[:, None]
    >>> carried_over(mean, here, there).round(decimals=2)  # in the others both are doubled
    tensor([[1., 9.]])
    """
    added = ADDED * mean.sum(-1, keepdim=True)
    ratio = (there + added) / (here + added)
    changed = (mean * ratio + added * (ratio - 1)).clamp_min(0)  # exact where nothing changes
    return changed * (mean.sum(-1, keepdim=True) / changed.sum(-1, keepdim=True))


class ChangedCounts:
    r"""Counts of cells, given what was measured of them, if their means had been others.

    Negative binomial counts are Poisson counts whose mean is μ times a factor g of the cell and
    gene, with :math:`g \sim \text{Gamma}(\theta, \theta)`. Given a count x,
    :math:`g \sim \text{Gamma}(\theta + x, \theta + \mu)`. The cell keeps its g: where the mean
    falls to μ', a share μ'/μ of its counts is kept, and where it rises, Poisson counts with mean
    (μ' − μ) g are added. If x follows the model at μ, the result follows it at μ', and if nothing
    changes it is x.

    Parameters
    ----------
    x
        Counts, ``(n, G)``.
    before
        p(x|z,c) over ``(n, G)``. For ``"zinb"`` the zeros that are added to a negative binomial
        are taken for a part of it.
    after
        Mean counts after the change, ``(n, G)``.
    observed
        Which genes were measured, ``(G,)``; ``None`` where all were. The others follow
        ``before``.
    """

    def __init__(
        self, x: Tensor, before: Distribution, after: Tensor, observed: Tensor | None = None
    ):
        self.x, self.before, self.after, self.observed = x, before, after, observed
        self.theta: Tensor | None = getattr(before, "theta", None)  # a Poisson has none
        ratio = after / before.mean
        self.kept = ratio.where(before.mean > 0, 1.0).clamp_max(1)
        self.added = (after - before.mean).clamp_min(0)

    @property
    def mean(self) -> Tensor:
        """Expected counts, ``(n, G)``."""
        x = self._counts(lambda: self.before.mean)
        factor: Tensor | float = 1.0
        if self.theta is not None:
            factor = (self.theta + x) / (self.theta + self.before.mean)
        return x * self.kept + self.added * factor

    def sample(self) -> Tensor:
        """Drawn counts, ``(n, G)``."""
        x = self._counts(self.before.sample)
        factor: Tensor | float = 1.0
        if self.theta is not None:
            factor = torch._standard_gamma(self.theta + x) / (self.theta + self.before.mean)
        kept, is_counted = x.clone(), x > 0
        kept[is_counted] = torch.binomial(x[is_counted], self.kept[is_counted])
        return kept + torch.poisson(self.added * factor)

    def _counts(self, unobserved: Callable[[], Tensor]) -> Tensor:
        """Counts, with values for the genes that were not measured."""
        if self.observed is None:
            return self.x
        return torch.where(self.observed, self.x, unobserved())
