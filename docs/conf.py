"""Sphinx: pages in Markdown, notebooks executed, a page for each class and function."""

import os
from importlib import import_module
from inspect import getattr_static, unwrap

import scgmvae

project = "scgmvae"
author = copyright = "the scgmvae developers"
release = scgmvae.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme = "sphinx_book_theme"
html_title = f"scgmvae {release}"
html_theme_options = {"show_toc_level": 2, "show_navbar_depth": 1, "home_page_in_toc": True}
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]

# The notebooks are kept without outputs; their figures are made here.
nb_execution_mode = "force"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True
# A backend from outside, as the Makefile sets it, would keep figures out of the notebooks' pages.
os.environ.pop("MPLBACKEND", None)

autodoc_typehints = "none"  # shapes and units are in the text, types in the signature
napoleon_google_docstring = False
napoleon_use_param = False  # parameters that share a text keep one entry


INHERITED = (
    "get_normalized_expression",
    "differential_expression",
    "differential_abundance",
    "get_elbo",
    "get_marginal_ll",
    "get_reconstruction_error",
    "get_latent_library_size",
    "posterior_predictive_sample",
    "get_anndata_manager",
    "get_var_names",
    "history",
    "to_device",
    "view_anndata_setup",
)
"""What users call of scvi-tools' methods, which its own documentation describes."""


def members_from(fullname: str, package: str) -> list[str]:
    """Public methods and properties of a class that are written in a package."""
    module, name = fullname.rsplit(".", 1)
    cls, found = getattr(import_module(module), name), []
    for member in dir(cls):
        value = getattr_static(cls, member)
        value = unwrap(getattr(value, "__func__", getattr(value, "fget", value)))
        origin = (getattr(value, "__module__", None) or "").split(".")[0]
        if not member.startswith("_") and origin == package:
            found.append(member)
    return found if package == "scgmvae" else [name for name in INHERITED if name in found]


autosummary_context = {"members_from": members_from}
suppress_warnings = ["config.cache"]  # a function in the settings cannot be kept for the next run
