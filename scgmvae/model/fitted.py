"""What a model knows of its mixture beside the weights of its module."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Fitted"]


@dataclass(frozen=True)
class Fitted:
    """Attributes of a model that training learns, each saved under its name with an underscore.

    The defaults are those of a model that was not trained.
    """

    n_components: int | None = None
    """K, number of components, or ``None`` as long as it is not known."""
    mixture_started: bool = False
    """Whether the mixture is the prior of z, as it is from the start of the joint stage on."""
    component_clusters: NDArray[np.int64] | None = None
    """Cluster of each component, (K,), −1 where it is dropped; ``None`` before any merging."""
    split_tree: dict[str, NDArray] | None = None
    """The tree of the tested splits, whose leaves are the components; ``None`` without one."""
    distance_quantiles: NDArray[np.float64] | None = None
    """Quantiles of the training cells' distances to their components."""
    occupied_means: NDArray[np.float64] | None = None
    """Mean of z of the training cells of each component that has any, (K', L)."""
    occupied_whitening: NDArray[np.float64] | None = None
    """Matrices that turn the covariances of those cells into the identity, (K', L, L)."""
    misfit_quantiles: NDArray[np.float64] | None = None
    """Quantiles of the misfit by which that of new cells is judged, before it is shifted."""
    misfit_shifts: NDArray[np.float64] | None = None
    """By how much the misfit of new cells of known types is larger in each component, (K,)."""
    known_categories: tuple[int, ...] | None = None
    """Number of categories of each condition in the data that the model was trained on."""
    trained_on: NDArray[np.float64] | None = None
    """Weighted sums of a few rows of the training data, by which these are recognised."""

    @classmethod
    def of(cls, model: Any) -> Fitted:
        """Attributes that a model has learned.

        Parameters
        ----------
        model
            The model.
        """
        return cls(**{field.name: getattr(model, f"{field.name}_") for field in fields(cls)})

    def give_to(self, model: Any) -> None:
        """Set these attributes on a model.

        Parameters
        ----------
        model
            The model.
        """
        for field in fields(self):
            setattr(model, f"{field.name}_", getattr(self, field.name))
