"""Sphinx: pages in Markdown, notebooks executed, a page for each class and function."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from members import grouped_members, members_from

import scgmvae

project = "scgmvae"
author = copyright = "the scgmvae developers"
release = scgmvae.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
extensions += ["mathml", "site_files"]  # files of this folder
html_theme = "sphinx_book_theme"
html_title = f"scgmvae {release}"
html_theme_options = {"show_toc_level": 2, "show_navbar_depth": 1, "home_page_in_toc": True}
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_math_renderer = "mathml"
llms_summary = (
    "scgmvae is a Python package that fits one generative model to the counts of single cells and "
    "gives an embedding, tested clusters, labels for new cells, and predictions under other "
    "conditions. It works on AnnData and MuData and follows the scvi-tools API."
)

# The notebooks are kept without outputs; their figures are made here.
nb_execution_mode = "force"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_ipywidgets_js = {}  # the notebooks show no widgets, whose scripts would come from a CDN
# A backend from outside, as the Makefile sets it, would keep figures out of the notebooks' pages.
os.environ.pop("MPLBACKEND", None)

autodoc_typehints = "none"  # shapes and units are in the text, types in the signature
napoleon_google_docstring = False
napoleon_use_param = False  # parameters that share a text keep one entry

autosummary_context = {"grouped_members": grouped_members, "members_from": members_from}
suppress_warnings = ["config.cache"]  # a function in the settings cannot be kept for the next run
