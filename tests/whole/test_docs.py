"""README and documentation: their Python runs, and their tables are those of the benchmarks."""

import hashlib
import json
import os
import re
import runpy
import shutil
import sys
import tomllib
import types
from pathlib import Path

import matplotlib.pyplot as plt
import mudata
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

import scgmvae
from scgmvae import SCGMVAE, DualVAE
from scgmvae.datasets import synthetic_counts, two_photon

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?```python\n(.*?)```", re.DOTALL)
TABLE = re.compile(r"(<!-- table: (\S+) -->)(.*?)<!-- end -->", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in PAGES if "_build" not in path.parts and "generated" not in path.parts]
MACHINE = {"accelerator": "cpu", "enable_progress_bar": False}
SHORT = {"max_epochs": 1}


def blocks_of(path):
    """Python of a page, with the reason why a block is not run, if there is one."""
    return [(code, reason) for reason, code in BLOCK.findall(path.read_text())]


def shortened(train, short):
    """Training as the page has it, but for its device and, unless it is resumed, its length."""

    def shorter(self, **settings):
        length = {} if "resume_from" in settings else short
        train(self, **(settings | MACHINE | length))

    return shorter


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub: files under their hashes, and folders of links to them."""
    blobs, snapshots = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots"

    class HfApi:
        def create_repo(self, repo_id, *, private=None, exist_ok=False):
            blobs.mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, folder_path, ignore_patterns=None):
            snapshot = snapshots / repo_id
            snapshot.mkdir(parents=True)
            for path in Path(folder_path).iterdir():
                if not path.match(ignore_patterns):
                    blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
                    shutil.copy(path, blob)
                    (snapshot / path.name).symlink_to(blob)

    def snapshot_download(repo_id, *, allow_patterns=None):
        for path in (snapshots / repo_id).iterdir():
            if not any(path.match(pattern) for pattern in allow_patterns):
                path.unlink()
        return str(snapshots / repo_id)

    module = types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


@pytest.fixture
def reader(tmp_path, monkeypatch, hub):
    """A reader's folder with the files that the pages speak of, and little patience."""
    adata = synthetic_counts(
        200, 60, n_components=3, n_batches=2, n_conditions=2, component_scale=3.0, seed=0
    )
    adata.layers["counts"] = adata.X.copy()
    adata.obs["condition"] = adata.obs["condition"].cat.rename_categories(
        ["control", "stimulated"]
    )
    adata.obs["leiden"] = adata.obs["component"]
    adata.obs["patient"] = ["patient_0", "patient_1"] * 100
    cell_type = adata.obs["component"].cat.rename_categories(["B", "NK", "T"]).astype(str)
    cell_type[1::2] = "unknown"
    adata.obs["cell_type"] = cell_type
    adata.write_h5ad(tmp_path / "counts.h5ad")
    protein = adata[:, :2].copy()
    protein.var_names = ["CD3", "CD19"]
    mdata = mudata.MuData({"rna": adata.copy(), "prot": protein})
    mdata.obs["donor"] = adata.obs["condition"]
    mdata.obs["wnn"] = adata.obs["component"]
    mdata.write(tmp_path / "cells.h5mu")
    adata.obs["batch"] = "new"
    adata.write_h5ad(tmp_path / "new_batch.h5ad")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: None)
    monkeypatch.setitem(plt.rcParams, "figure.max_open_warning", 0)  # a gallery has many
    monkeypatch.setattr(SCGMVAE, "train", shortened(SCGMVAE.train, SHORT | {"pretrain_epochs": 5}))
    monkeypatch.setattr(DualVAE, "train", shortened(DualVAE.train, SHORT))
    monkeypatch.setattr("scgmvae.datasets.two_photon", lambda: two_photon(40))
    yield
    plt.close("all")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=str(path.relative_to(ROOT))) for path in PAGES if blocks_of(path)],
)
def test_the_python_of_a_page_runs_from_top_to_bottom(path, reader):
    namespace = {}
    for code, reason in blocks_of(path):
        if not reason:
            exec(compile(code, str(path), "exec"), namespace)
    assert any(isinstance(value, SCGMVAE | DualVAE) for value in namespace.values())


def test_few_blocks_are_left_out_and_each_says_why():
    left_out = [reason for path in PAGES for _, reason in blocks_of(path) if reason]
    assert sorted(left_out) == [
        "needs Ray",
        "needs lamindb",
        "needs two GPUs",
        "there is no such file",
    ]


# ----------------------------------------------------------------------------- tables


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    return tables


def test_rows_that_differ_in_the_last_column_alone_stand_together(tables):
    rows = pd.DataFrame({"data": ["a", "b", "a"], "method": ["x", "x", "y"]})
    ordered = tables.together(rows, ["data", "method"])
    assert ordered.to_numpy().tolist() == [["a", "x"], ["a", "y"], ["b", "x"]]


def test_the_tables_of_every_page_are_those_of_the_results(tables):
    pages = tables.pages()
    assert ROOT / "README.md" in pages
    assert ROOT / "docs" / "benchmarks.md" in pages
    for path in pages:
        text = path.read_text()
        assert tables.filled(text) == text, f"python benchmarks/tables.py renews {path.name}"


def test_built_copies_of_the_pages_are_left_as_they_are(tables, tmp_path, monkeypatch):
    marked = "<!-- table: imports -->\n<!-- end -->\n"
    built = tmp_path / "docs" / "_build" / "html" / "_sources" / "page.md"
    built.parent.mkdir(parents=True)
    for path in (tmp_path / "README.md", tmp_path / "docs" / "page.md", built):
        path.write_text(marked)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.pages() == [tmp_path / "README.md", tmp_path / "docs" / "page.md"]


def test_the_page_of_peers_is_that_of_the_results(tables):
    from page import page

    assert page(tables.RESULTS) == (ROOT / "docs" / "peers.md").read_text()


def test_every_table_is_shown_somewhere(tables):
    shown = {name for path in tables.pages() for _, name, _ in TABLE.findall(path.read_text())}
    assert shown == {*tables.TABLES, "peers-given", "peers-found"}


def test_a_table_has_the_figures_of_its_file(tables, tmp_path):
    machine = {"python": "3.11", "system": "Linux", "cpus": 2, "threads": 1, "gpu": None}
    machine["versions"] = {"scgmvae": "9.9", "scvi-tools": "1.4.2", "torch": "2.13"}
    rows = [{"method": "p(w|c)", "seed": seed, "ACC": acc} for seed, acc in enumerate((0.5, 0.7))]
    content = {"machine": machine, "script": "kang.py", "note": "Once.", "rows": rows}
    (tmp_path / "kang-supervised.json").write_text(json.dumps(content))
    text = "before\n<!-- table: kang-supervised -->\nold\n<!-- end -->\nafter\n"
    filled = tables.filled(text, tmp_path)
    assert "old" not in filled
    assert filled.startswith("before\n<!-- table: kang-supervised -->\n| method | accuracy |")
    assert filled.endswith("<!-- end -->\nafter\n")
    assert "| p(w\\|c) | 0.600 ± 0.141 | 2 |" in filled  # sd of two is their distance / √2
    assert "*`kang-supervised.json`: `python benchmarks/kang.py` with scgmvae 9.9" in filled
    assert "2 processors, threads: 1, no GPU. Once.*" in filled


def test_a_table_without_a_file_stays_as_it_is(tables, tmp_path):
    text = "<!-- table: kang-supervised -->\nold\n<!-- end -->\n"
    assert tables.filled(text, tmp_path) == text


def test_importing_takes_little_more_than_scvi_tools_takes():
    rows = json.loads((ROOT / "benchmarks" / "results" / "imports.json").read_text())["rows"]
    ratio = {row["what"]: row["ratio"] for row in rows}
    assert ratio["import scgmvae"] <= 1.15
    assert ratio["scgmvae --help"] <= 0.1


# ----------------------------------------------------------------------------- release


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text())
    assert "docs/user_guide/model.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_figures_of_notebooks_reach_their_pages(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")  # as the Makefile exports it: kernels would obey
    runpy.run_path(str(ROOT / "docs" / "conf.py"))
    assert "MPLBACKEND" not in os.environ


def test_every_notebook_has_a_page_and_is_kept_without_outputs():
    notebooks = sorted((ROOT / "tutorials").glob("*.ipynb"))
    listed = re.findall(r"^tutorials/(\w+)$", (ROOT / "docs" / "index.md").read_text(), re.M)
    assert sorted(listed) == [path.stem for path in notebooks]
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        assert [cell["outputs"] for cell in cells if cell.get("outputs")] == []


CONDA_NAMES = {"torch": "pytorch", "igraph": "python-igraph", "matplotlib": "matplotlib-base"}


def test_the_conda_recipe_has_the_dependencies_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    wanted = {"python": project["requires-python"]}
    for line in project["dependencies"]:
        requirement = Requirement(line)
        wanted[CONDA_NAMES.get(requirement.name, requirement.name)] = str(requirement.specifier)
    found = dict(line.split(" ", 1) for line in recipe["requirements"]["run"])

    def bounds(of_all):
        return {name: sorted(versions.split(",")) for name, versions in of_all.items()}

    assert bounds(found) == bounds(wanted)


def test_the_version_is_the_same_everywhere():
    version = scgmvae.__version__
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert recipe["context"]["version"] == citation["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
