r"""The library size as a latent: l, the log number of counts of a cell, with a prior of its batch.

.. math::
    p(l \mid c) = N(\mu_b, \sigma_b^2), \qquad
    q(l \mid x, c) = N(\mu_b + \sigma_b f(x, c), \sigma_b^2 g(x, c)^2)

where :math:`\mu_b` and :math:`\sigma_b^2` are mean and variance of the observed log library sizes
of the cell's batch, as in Lopez et al. 2018 (scVI). Told in units of the prior, q starts near it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from scgmvae.nn.layers import Conditions, ConditionSizes, Trunk
from scgmvae.nn.networks import Encoder

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["LibrarySize"]


class LibrarySize(nn.Module):
    """p(l|c) and q(l|x,c).

    Parameters
    ----------
    n_input
        G, number of genes.
    sizes
        Sizes of the conditions that the encoder sees.
    n_hidden, dropout_rate
        Width of the hidden layer, and dropout after it.
    log_means, log_vars
        Mean and variance of the log library sizes of each batch, ``(1, n_batch)``.
    """

    log_means: Tensor
    log_vars: Tensor

    def __init__(
        self,
        n_input: int,
        sizes: ConditionSizes,
        n_hidden: int,
        dropout_rate: float,
        log_means: ArrayLike,
        log_vars: ArrayLike,
    ):
        super().__init__()
        trunk = Trunk(n_input, sizes, (n_hidden,), dropout_rate)
        self.encoder = Encoder(trunk, sizes, 1, 0, 0.0)
        self.register_buffer("log_means", torch.as_tensor(log_means, dtype=torch.float32))
        self.register_buffer("log_vars", torch.as_tensor(log_vars, dtype=torch.float32))

    def prior(self, batch_index: Tensor) -> Normal:
        """p(l|c), parameters ``(n, 1)``.

        Parameters
        ----------
        batch_index
            Batch of each cell, ``(n, 1)``.
        """
        rows = batch_index.reshape(-1).long()
        loc, variance = self.log_means[0, rows, None], self.log_vars[0, rows, None]
        # cells of one batch can all have the same library size
        return Normal(loc, variance.clamp(min=1e-4).sqrt(), validate_args=False)

    def posterior(self, encoder_input: Tensor, c: Conditions, batch_index: Tensor) -> Normal:
        """q(l|x,c), parameters ``(n, 1)``.

        Parameters
        ----------
        encoder_input
            Input of the networks from x, ``(n, G)``.
        c
            Conditions of the cells.
        batch_index
            Batch of each cell, ``(n, 1)``.
        """
        prior = self.prior(batch_index)
        unit = self.encoder.q_z(self.encoder(encoder_input, c), c)
        loc = prior.loc + prior.scale * unit.loc
        return Normal(loc, prior.scale * unit.scale, validate_args=False)

    def extend(self, log_means: Tensor, log_vars: Tensor) -> None:
        """Add batches.

        Parameters
        ----------
        log_means, log_vars
            Mean and variance of the log library sizes of each new batch, ``(1, n_new)``.
        """
        self.log_means = torch.cat([self.log_means, log_means.to(self.log_means)], dim=1)
        self.log_vars = torch.cat([self.log_vars, log_vars.to(self.log_vars)], dim=1)
