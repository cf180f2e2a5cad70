"""The version of this package, and those of the packages that results depend on."""

from importlib.metadata import version

__all__ = ["__version__", "versions"]

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Version by package, as models and annotations keep them.

    The package's own version is read from here, so that a checkout which is not installed has one
    as well.
    """
    others = {name: version(name) for name in ("scvi-tools", "torch", "anndata")}
    return {"scgmvae": __version__} | others
