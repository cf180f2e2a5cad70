"""scgmvae: one generative model for embedding and clustering of single cells.

What the package offers is imported when it is first used: torch, scanpy and scvi-tools take
seconds, which the help of the command line need not wait for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scgmvae.versions import __version__

if TYPE_CHECKING:
    from scgmvae import datasets, metrics
    from scgmvae import plotting as pl
    from scgmvae.dual.model import DualVAE
    from scgmvae.dual.module import DualModule
    from scgmvae.model.scgmvae import SCGMVAE
    from scgmvae.module.cgmvae import CGMVAE

__all__ = [
    "CGMVAE",
    "SCGMVAE",
    "DualModule",
    "DualVAE",
    "__version__",
    "datasets",
    "metrics",
    "pl",
]

PLACES = {
    "CGMVAE": "module.cgmvae",
    "SCGMVAE": "model.scgmvae",
    "DualModule": "dual.module",
    "DualVAE": "dual.model",
    "datasets": "datasets",
    "metrics": "metrics",
    "pl": "plotting",
}
"""Module in which each name is, or which it is."""


if not TYPE_CHECKING:  # for a type checker any name would then be one of the package

    def __getattr__(name: str) -> Any:
        if name not in PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        place = import_module(f"{__name__}.{PLACES[name]}")
        value = getattr(place, name, place)
        globals()[name] = value  # found at once from now on
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
