"""Sphinx: pages in Markdown, notebooks executed while building."""

import scgmvae

project = "scgmvae"
author = copyright = "the scgmvae developers"
release = scgmvae.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
myst_enable_extensions = ["dollarmath", "amsmath"]
exclude_patterns = ["_build"]

# The notebooks are kept without outputs; their figures are made here.
nb_execution_mode = "force"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True
