"""The built documentation: its pages load nothing from elsewhere, and tools can read them."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import scgmvae

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GROUPED = ("scgmvae.SCGMVAE", "scgmvae.DualVAE")


@pytest.fixture
def members(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return runpy.run_path(str(DOCS / "members.py"))


# ----------------------------------------------------------------------------- reference


@pytest.mark.parametrize("fullname", GROUPED)
def test_every_public_member_of_a_model_is_under_one_heading(members, fullname):
    shown = [name for names in members["grouped_members"](fullname).values() for name in names]
    assert sorted(shown) == sorted(members["members_from"](fullname, "scgmvae"))


def test_headings_list_members_that_exist(members):
    listed = [name for names in members["GROUPS"].values() for name in names]
    models = [getattr(scgmvae, fullname.split(".")[1]) for fullname in GROUPED]
    assert [name for name in listed if not any(hasattr(model, name) for model in models)] == []


@pytest.mark.parametrize("fullname", GROUPED)
def test_what_is_not_available_is_not_listed(members, fullname):
    model = getattr(scgmvae, fullname.split(".")[1])
    absent = {"minify_adata", "convert_legacy_save"}
    assert all(hasattr(model, name) for name in absent)
    listed = [name for names in members["grouped_members"](fullname).values() for name in names]
    assert not absent & {*listed, *members["members_from"](fullname, "scvi")}


def test_the_gallery_has_every_figure_with_its_call_and_a_picture():
    text = (DOCS / "gallery.md").read_text()
    parts = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.M | re.S))
    assert sorted(parts) == sorted(scgmvae.pl.__all__)
    for name, part in parts.items():
        assert f"scgmvae.pl.{name}(" in part
        (picture,) = re.findall(r"!\[.+\]\((.+)\)", part)
        assert (DOCS / picture).is_file()


# ----------------------------------------------------------------------------- pages


class Elements(HTMLParser):
    """Elements of a page: (name, attributes)."""

    def __init__(self, path):
        super().__init__()
        self.found = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """All pages, built without running the notebooks."""
    for package in ("sphinx", "myst_nb", "sphinx_book_theme", "math_core"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("_build", "generated"))
    out = folder / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    command += ["-D", "nb_execution_mode=off", folder / "docs", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for tag, attributes in Elements(page).found:
            address = attributes.get("src") or ""
            if tag == "link" and attributes.get("rel") not in ("next", "prev", "index", "search"):
                address = attributes.get("href") or ""
            assert "//" not in address, f"{page.name}: {tag} {address}"


@pytest.mark.slow
def test_formulas_are_mathml(site):
    text = (site / "user_guide" / "derivations.html").read_text()
    assert text.count("<math") > 20
    assert text.count('display="block"') > 10
    assert "MathJax" not in text


@pytest.mark.slow
def test_the_list_for_tools_has_every_page_of_the_navigation(site):
    text = (site / "llms.txt").read_text()
    assert re.match(r"# scgmvae\n\n> .+\n\n## Start\n", text)
    headings = re.findall(r"^## (.+)$", text, re.M)
    listed = re.findall(r"^- \[.+?\]\((\S+)\.html\.md\): \S", text, re.M)
    index = (DOCS / "index.md").read_text()
    assert headings == ["Start", *re.findall(r"^:caption: (.+)$", index, re.M)]
    assert listed == ["index", *re.findall(r"^([a-z_]+(?:/[a-z_]+)?)$", index, re.M)]
    assert len(text) < 10_000


@pytest.mark.slow
def test_markdown_lies_beside_every_page_and_its_links_lead_somewhere(site):
    pages = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    pages = [path for path in pages if path.stem not in ("genindex", "search")]
    for page in pages:
        text = page.with_name(page.name + ".md").read_text()
        if "generated" not in page.parts:
            assert text.startswith("# ") or page.stem == "release"
            for link in re.findall(r"\]\(([^)\s#]+\.html\.md|[^)\s]+\.png)", text):
                assert link.startswith("http") or (page.parent / link).is_file(), (page, link)
    model = (site / "api" / "generated" / "scgmvae.SCGMVAE.html.md").read_text()
    assert "## Save and load" in model
    assert "### predict_counterfactual" in model
    notebook = json.loads((ROOT / "tutorials" / "pbmc.ipynb").read_text())
    text = (site / "tutorials" / "pbmc.html.md").read_text()
    assert all("".join(cell["source"]) in text for cell in notebook["cells"][:4])


def test_what_a_page_would_load_is_found(tmp_path, monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS))
    found_in = runpy.run_path(str(DOCS / "site_files.py"))["loaded_from_elsewhere"]
    (tmp_path / "page.html").write_text(
        '<a href="https://a.org">a link</a> <link rel="canonical" href="https://b.org/page">'
        '<script defer src="https://c.org/x.js"></script> <script src="_static/y.js"></script>'
        '<link rel="stylesheet" href="//d.org/x.css" /> <img alt="" src="https://e.org/x.png">'
    )
    (tmp_path / "x.css").write_text("@font-face {src: url('http://f.org/x.woff2')}")
    assert found_in(tmp_path) == {
        "https://c.org/x.js": {"page.html"},
        "//d.org/x.css": {"page.html"},
        "https://e.org/x.png": {"page.html"},
        "http://f.org/x.woff2": {"x.css"},
    }
