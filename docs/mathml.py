"""Formulas as MathML, made while the pages are built: browsers show it without any script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils import nodes
from math_core import LatexToMathML

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

CONVERTER = LatexToMathML(annotation=True, fancy_error=False)
"""With the LaTeX of each formula as an annotation, for screen readers and for copying."""


def mathml(latex: str, *, display: bool) -> str:
    """A formula as a ``<math>`` element; LaTeX that is wrong ends the build."""
    return CONVERTER.convert_with_local_state(latex.strip(), displaystyle=display)


def visit_math(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext(), display=False))
    raise nodes.SkipNode


def visit_displaymath(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="formula"))
    writer.body.append(mathml(node.astext(), display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
