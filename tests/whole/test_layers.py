"""The folders of the package import one way, files never in a circle, and functions stay short."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scgmvae
from scgmvae import SCGMVAE, DualVAE

PACKAGE = Path(__file__).parents[2] / "scgmvae"
LAYERS = (
    *("versions", "compat", "checks", "metrics", "nn", "distributions", "io", "datasets", "data"),
    *("clustering", "module", "train", "model", "dual", "plotting", "report"),
    *("__init__", "cli", "__main__"),
)
"""A file imports from its own layer and from those before it. ``docs/architecture.md`` has why."""

UPWARD = {("model.scgmvae", "report.page"), ("model.scgmvae", "plotting._overview")}
"""``SCGMVAE.report`` and ``overview`` import what they need when they are called."""

LONGEST_BODY = 50


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "__init__"


FILES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(tree):
    """Names of the package's files that a file imports, wherever in it, annotations included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "scgmvae":
            module = node.module.removeprefix("scgmvae").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                yield inner if inner in FILES else module or "__init__"
        elif isinstance(node, ast.Import):
            yield from ("__init__" for alias in node.names if alias.name == "scgmvae")


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_from_its_own_layer_or_from_one_before(name):
    layer = LAYERS.index(name.split(".")[0])
    found = {other for other in imports_of(FILES[name]) if (name, other) not in UPWARD}
    assert {other for other in found if LAYERS.index(other.split(".")[0]) > layer} == set()


def test_no_files_import_each_other_in_a_circle():
    graph = {
        name: {other for other in imports_of(tree) if (name, other) not in UPWARD}
        for name, tree in FILES.items()
    }
    order = list(TopologicalSorter(graph).static_order())  # raises where there is a circle
    assert order.index("data.keys") < order.index("model.scgmvae") < order.index("report.page")
    assert set(FILES) <= set(order)


def test_few_files_stand_beside_the_folders():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize("name", FILES)
def test_no_function_is_longer_than_a_screen(name):
    too_long = {}
    for node in ast.walk(FILES[name]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[ast.get_docstring(node) is not None :]
            n_lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if n_lines > LONGEST_BODY:
                too_long[node.name] = n_lines
    assert too_long == {}


# ------------------------------------------------------------------- docs/architecture.md

PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("cls", [SCGMVAE, DualVAE])
def test_the_page_has_the_order_of_the_classes(cls):
    names = [base.__name__ for base in inspect.getmro(cls)[:-1]]
    assert " → ".join(names) in " ".join(PAGE.split())


def test_the_files_that_the_page_names_are_there():
    paths = set(re.findall(r"`((?:scgmvae|tests|docs|benchmarks)/[\w/.]+)`", PAGE))
    assert len(paths) > 25
    assert [path for path in paths if not (PACKAGE.parent / path).exists()] == []


def test_the_names_that_the_page_points_to_are_in_its_files():
    rows = re.findall(r"`(\w+)` (?:of|in) `(scgmvae/[\w/]+\.py)`", PAGE)
    assert len(rows) >= 4
    assert [row for row in rows if row[0] not in (PACKAGE.parent / row[1]).read_text()] == []


def test_help_comes_without_what_takes_seconds_to_import():
    code = "import sys, scgmvae.cli, scgmvae; dir(scgmvae); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"anndata", "lightning", "matplotlib", "numpy", "pandas", "scanpy", "scvi", "torch"}
    assert not heavy & set(run.stdout.split())


def test_the_package_offers_what_it_names_and_nothing_else():
    assert all(getattr(scgmvae, name) is not None for name in scgmvae.__all__)
    assert set(scgmvae.__all__) == {*scgmvae.PLACES, "__version__"} <= set(dir(scgmvae))
    assert scgmvae.pl is importlib.import_module("scgmvae.plotting")
    assert scgmvae.CGMVAE is importlib.import_module("scgmvae.module.cgmvae").CGMVAE
    with pytest.raises(AttributeError, match="'scgmvae' has no attribute 'VAE'"):
        scgmvae.VAE  # noqa: B018
