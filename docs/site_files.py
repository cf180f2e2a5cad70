"""What a build adds for tools that read text, and the check that its pages load nothing.

``llms.txt`` lists the pages by task (https://llmstxt.org), and beside each ``page.html`` lies its
Markdown as ``page.html.md``. Scripts, styles and pictures must come from the site itself.
"""

from __future__ import annotations

import inspect
import json
import posixpath
import re
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from docutils import nodes
from members import grouped_members
from sphinx import addnodes
from sphinx.util import logging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

LOGGER = logging.getLogger(__name__)
INCLUDE = re.compile(r"```\{include\} (\S+)\n(.*?)```", re.DOTALL)
HIDDEN = re.compile(r"```\{toctree\}\n:hidden:.*?```\n*|<!--.*?-->\n?", re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]+)\.md(#[^)\s]*)?\)")
DOCUMENT = re.compile(r"\{doc\}`([^`<]+?)\s*<([^`>]+)>`")
LISTED = re.compile(r"```\{eval-rst\}\n(.*?)```", re.DOTALL)
ROLE = re.compile(r"\{(?:func|class|meth)\}`~?(?:[\w.]+\.)?(\w+)`")
PICTURE = re.compile(r"!\[([^]]*)\]\((?!\w+:)([^)\s]+)\)")
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*?\ssrc=\"((?:https?:)?//[^\"]+)"
    r"|<link\b(?=[^>]*\srel=\"(?:stylesheet|preload|icon|modulepreload))[^>]*?\shref=\"((?:https?:)?//[^\"]+)"
    r"|@import\s+(?:url\()?[\"']?((?:https?:)?//[^\"')]+)"
    r"|\burl\([\"']?((?:https?:)?//[^\"')]+)"
)
"""Addresses that a browser asks for by itself; links that a reader may follow are none."""


def loaded_from_elsewhere(folder: Path) -> dict[str, set[str]]:
    """Address → pages and styles of a built site that make a browser load it."""
    found: dict[str, set[str]] = {}
    for path in sorted([*folder.rglob("*.html"), *folder.rglob("*.css")]):
        for groups in LOADED.findall(path.read_text(encoding="utf-8")):
            found.setdefault("".join(groups), set()).add(path.relative_to(folder).as_posix())
    return found


# ----------------------------------------------------------------------------- Markdown


def of_notebook(text: str) -> str:
    """A notebook as Markdown, its code in blocks of Python."""
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
    return "\n\n".join(
        f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells
    )


def of_object(fullname: str) -> str:
    """Signature and docstrings of a function, or of a class and its members."""
    module, name = f"scgmvae.{fullname.removeprefix('scgmvae.')}".rsplit(".", 1)
    value = getattr(import_module(module), name)
    signature = f"```python\n{fullname}{inspect.signature(value)}\n```"
    parts = [f"# {fullname}", signature, inspect.getdoc(value)]
    if inspect.isclass(value):
        for heading, names in grouped_members(fullname).items():
            parts.append(f"## {heading}")
            for member in names:
                parts += [f"### {member}", inspect.getdoc(getattr(value, member)) or ""]
    return "\n\n".join(parts)


def markdown(app: Sphinx, docname: str) -> str:
    """A page as Markdown, with links to the Markdown of other pages."""
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".rst":
        return of_object(path.stem) + "\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = of_notebook(text)

    def included(match: re.Match[str]) -> str:
        other = (path.parent / match[1]).read_text(encoding="utf-8")
        return other.replace("](docs/", "](") if ":relative-docs: docs/" in match[2] else other

    def link(match: re.Match[str]) -> str:
        is_page = posixpath.normpath(f"{docname}/../{match[1]}") in app.env.found_docs
        return f"]({match[1]}.html.md{match[2] or ''})" if is_page else match[0]

    def picture(match: re.Match[str]) -> str:
        up = "../" * docname.count("/")
        return f"![{match[1]}]({up}_images/{PurePosixPath(match[2]).name})"

    def entries(match: re.Match[str]) -> str:
        names = re.findall(r"^ +(?!:)(\S+)$", match[1], re.MULTILINE)
        return "\n".join(f"- [{name}](generated/scgmvae.{name}.md)" for name in names)

    text = HIDDEN.sub("", INCLUDE.sub(included, text))
    text = ROLE.sub(r"`\1`", DOCUMENT.sub(r"[\1](\2.md)", text))
    text = LISTED.sub(entries, text)
    text = LINK.sub(link, text)
    return PICTURE.sub(picture, text).strip() + "\n"


# ----------------------------------------------------------------------------- llms.txt


def first_sentence(app: Sphinx, docname: str) -> str:
    """How the text of a page begins."""
    for paragraph in app.env.get_doctree(docname).findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        return re.split(r"(?<=[.?!])\s", text, maxsplit=1)[0].rstrip(":")
    return ""


def sections(app: Sphinx) -> Iterator[tuple[str, list[str]]]:
    """Captions of the navigation with the pages under each."""
    root = app.config.root_doc
    for tree in app.env.get_doctree(root).findall(addnodes.toctree):
        docnames = [docname for _, docname in tree["entries"]]
        yield (tree["caption"], docnames) if tree["caption"] else ("Start", [root, *docnames])


def llms_txt(app: Sphinx) -> str:
    lines = [f"# {app.config.project}", "", f"> {app.config.llms_summary}"]
    for caption, docnames in sections(app):
        lines += ["", f"## {caption}", ""]
        for docname in docnames:
            title = app.env.titles[docname].astext()
            what = first_sentence(app, docname)
            lines.append(f"- [{title}]({docname}.html.md)" + (f": {what}" if what else ""))
    return "\n".join(lines) + "\n"


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Write the text files, and warn of pages that load from elsewhere."""
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    (out / "llms.txt").write_text(llms_txt(app), encoding="utf-8")
    for docname in app.env.found_docs:
        (out / f"{docname}.html.md").write_text(markdown(app, docname), encoding="utf-8")
    for address, pages in loaded_from_elsewhere(out).items():
        LOGGER.warning("%s is loaded by %s", address, ", ".join(sorted(pages)[:3]))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("llms_summary", "", "")
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
