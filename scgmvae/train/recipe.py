"""Defaults that differ between counts and images: networks, lengths of the stages, weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scgmvae.clustering.partition import Start
    from scgmvae.distributions.families import Likelihood

__all__ = ["COUNTS", "IMAGES", "SEVERAL", "Length", "Recipe", "recipe_for"]


SMALLEST_MINIBATCH = 128
"""Number of cells in a minibatch where there are few cells."""

CELLS_OF_SMALLEST = 25_000
"""Number of cells at which minibatches are the smallest; with twice as many they are twice as
large. If they grew faster there would be too few steps, as every cell comes up at least 30 times
(``benchmarks/studies/batch_size.py``)."""


@dataclass(frozen=True)
class Length:
    """Length of a stage: number of minibatches of 128 cells, and bounds on its epochs."""

    n_steps: int
    shortest: int
    longest: int

    def epochs(self, n_obs: int) -> int:
        """Epochs for a number of cells.

        Parameters
        ----------
        n_obs
            Number of cells.

        Examples
        --------
        >>> Length(n_steps=320, shortest=5, longest=60).epochs(4_271)
        10
        """
        return int(np.clip(round(self.n_steps * 128 / n_obs), self.shortest, self.longest))


@dataclass(frozen=True)
class Recipe:
    """Default settings of a model and its training for one kind of data."""

    likelihood: Likelihood
    """Name of the likelihood p(x|z,c)."""
    n_hidden: int | tuple[int, ...]
    """Width of the hidden layers of the encoder, or the width of each of them."""
    dropout_rate: float
    """Dropout of hidden units in the encoder."""
    pretraining: Length
    """Length of the first stage."""
    joint: Length
    """Length of the joint stage."""
    start: Start
    """Partition that components start from."""
    straight: bool
    """Whether groups in the latent are balls, with straight borders between them."""
    plan: dict[str, float] = field(default_factory=dict)
    """Settings of the training plan of a model with a mixture."""
    per_value: dict[str, float] = field(default_factory=dict)
    """Further settings, multiplied by the number of values in x, as the likelihood is."""
    largest_minibatch: int = SMALLEST_MINIBATCH
    """Number of cells to which minibatches grow where there are many cells."""

    def minibatch(self, n_obs: int) -> int:
        """Number of cells in a minibatch; from 25,000 cells on an epoch has at least 195 of them.

        Parameters
        ----------
        n_obs
            Number of cells.

        Examples
        --------
        >>> [COUNTS.minibatch(n) for n in (4_271, 49_999, 50_000, 100_000, 1_000_000)]
        [128, 128, 256, 512, 1024]
        """
        doublings = int(np.log2(max(n_obs / CELLS_OF_SMALLEST, 1)))
        return min(SMALLEST_MINIBATCH * 2**doublings, self.largest_minibatch)

    def weights(self, n_input: int) -> dict[str, Any]:
        """Settings of the training plan of a model with a mixture.

        Parameters
        ----------
        n_input
            Number of values in x.
        """
        return self.plan | {name: value * n_input for name, value in self.per_value.items()}


COUNTS = Recipe(
    likelihood="nb",
    n_hidden=128,
    dropout_rate=0.1,
    pretraining=Length(2000, 10, 120),
    joint=Length(2500, 20, 120),
    start="tested",
    straight=True,
    largest_minibatch=1024,
)
"""Recipe for counts."""

IMAGES = Recipe(
    likelihood="bernoulli",
    n_hidden=(512, 256, 128),  # one layer of the width for genes blurs them
    dropout_rate=0.0,
    pretraining=Length(9400, 10, 60),
    joint=Length(4700, 10, 60),
    start="leiden",
    straight=False,
    plan={
        "pretrain_kl_weight": 0.05,
        "max_kl_weight": 0.05,
        "guide_fraction": 1.0,
        "lr_decline": 1.0,
    },
    per_value={"guide_weight": 0.64, "classification_weight": 0.64},
)
"""Recipe for images. A weak divergence in pretraining keeps the classes apart in z, as curved
sheets rather than balls; a graph follows such sheets, straight borders do not. Gaussian components
cannot keep the sheets by themselves, so the guide fades until the very end. Cross-entropies with
the weights for counts would be negligible beside the reconstruction of hundreds of pixels. The
borders of the classes jump from epoch to epoch unless the steps get shorter."""


SEVERAL = replace(COUNTS, dropout_rate=0.3)
"""Recipe for several modalities, whose encoders learn the cells by heart more readily."""


def recipe_for(image_shape: tuple[int, ...] | None, n_modalities: int = 1) -> Recipe:
    """The recipe for images of a shape, for several modalities, or for anything else.

    Parameters
    ----------
    image_shape
        Height, width and, if any, channels; ``None`` where x are no images.
    n_modalities
        Number of modalities that are modelled together.
    """
    if image_shape is not None:
        return IMAGES
    return COUNTS if n_modalities == 1 else SEVERAL
