"""Tests of report.explorer: what is packed unpacks, fits, and is what a browser shows."""

import base64
import json
import re
import zlib
from hashlib import sha256
from html import escape, unescape

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from browser import browse, needs_browser
from scipy import sparse

from scgmvae.data.normalization import log_normalized
from scgmvae.report import explorer
from scgmvae.report import page as report

pytestmark = pytest.mark.usefixtures("no_window_and_no_new_settings")

MARKUP = "</script><b>"


def unpacked(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def values_of(low, high, steps):
    """Values of a packed column of numbers."""
    return low + steps / explorer.N_STEPS * (high - low)


def gene_of(record):
    """Name and values of a packed gene."""
    name, low, high, packed = record
    steps = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return name, values_of(low, high, steps)


def part_of(text, name):
    """A block of data in a page."""
    block = re.search(
        rf'<script type="application/json" id="explorer-{name}">(.*?)</script>', text
    )
    return json.loads(block.group(1))


def expression_of(model):
    return pd.DataFrame(log_normalized(model.adata.X).X.toarray(), columns=model.adata.var_names)


@pytest.fixture(scope="module")
def model(counts, make_model, train):
    """A model with labels, two conditions and a gene whose name is markup; only to be read."""
    adata = counts.copy()
    adata.var_names = [MARKUP, *adata.var_names[1:]]
    adata.obs["type"] = adata.obs["component"].astype(str)
    adata.obs["age"] = np.linspace(20, 80, adata.n_obs)
    setup = {"batch_key": "batch", "labels_key": "type", "continuous_covariate_keys": ["age"]}
    return train(make_model(adata, setup, n_latent=2), max_epochs=8, pretrain_epochs=8)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    """The interactive report of that model; only to be read."""
    path = tmp_path_factory.mktemp("explorer") / "report.html"
    model.report(path, interactive=True)
    return path


@pytest.fixture(scope="module")
def text(path):
    return path.read_text(encoding="utf-8")


@pytest.fixture
def no_pictures(monkeypatch):
    """No figure is drawn, which takes most of the time of a report."""
    for name in ("_latent_pictures", "_training_pictures"):
        monkeypatch.setattr(report, name, lambda *args: [])
    picture = report.Picture("data:image/png;base64,", "")
    monkeypatch.setattr(report, "_picture", lambda figure, text: picture)


# ------------------------------------------------------------------------------------ packing


@pytest.mark.parametrize(
    ("values", "bounds", "expected"),
    [
        pytest.param([0.0, 1.0, 4.0], (), (0.0, 4.0, [0, 25, 100]), id="zeros_stay_zeros"),
        pytest.param([-1.0, 0.0, 1.0], (), (-1.0, 1.0, [0, 50, 100]), id="negative"),
        pytest.param([0.25, 0.5], (0.0, 1.0), (0.0, 1.0, [25, 50]), id="given_bounds"),
        pytest.param([3.0, 3.0], (), (3.0, 3.0, [0, 0]), id="constant"),
        pytest.param([0.0, 0.004, 1.0], (), (0.0, 1.0, [0, 0, 100]), id="rounded_down"),
        pytest.param([0.0, 0.006, 1.0], (), (0.0, 1.0, [0, 1, 100]), id="rounded_up"),
        pytest.param([0.0, 1e6 / 3], (), (0.0, 333333.0, [0, 100]), id="six_digits"),
    ],
)
def test_numbers_are_steps_between_their_bounds(values, bounds, expected):
    column = explorer.numbers("n", np.array(values), *bounds)
    low, high, steps = expected
    assert (column["name"], column["low"], column["high"]) == ("n", low, high)
    assert unpacked(column["steps"], np.uint8).tolist() == steps


def test_groups_have_the_colours_of_the_figures_and_missing_ones_none():
    cells = ["c0", "c1", "c2", "c3"]
    values = pd.Series(["b", None, "a", "b"], cells, "category", "kind")
    column = explorer.groups("shown", values, {"kind_colors": ["red", "url(http://x.org)"]})
    assert column["name"] == "shown"
    assert column["levels"] == ["a", "b"]
    assert column["colors"] == ["#ff0000", "#808080"]  # what is no colour does not pass
    assert unpacked(column["codes"], "<i2").tolist() == [1, -1, 0, 1]
    column = explorer.groups("n", pd.Series([2, 10, 2], cells[:3], name="n"), {})
    assert column["levels"] == ["2", "10"]
    assert unpacked(column["codes"], "<i2").tolist() == [0, 1, 0]


def test_genes_unpack_to_their_values_and_end_where_the_room_does():
    expression = sparse.random_array((50, 8), density=0.4, rng=0, format="csr") * 6
    names, ranked = np.array([f"{MARKUP}{i}" for i in range(8)]), np.arange(8)[::-1]
    whole, n = explorer.gene_data(expression, names, ranked, 10**6)
    assert n == 8
    assert "<" not in whole
    genes = dict(map(gene_of, json.loads(whole)))
    assert list(genes) == names[ranked].tolist()
    for gene, name in enumerate(names):
        expected = expression[:, [gene]].toarray().ravel()
        step = expected.max() / explorer.N_STEPS
        np.testing.assert_allclose(genes[name], expected, atol=0.5 * step + 1e-5)
        assert ((genes[name] == 0) >= (expected == 0)).all()
    # one byte less, and the last gene has no place
    for room in (len(whole) + 1, len(whole)):
        part, n = explorer.gene_data(expression, names, ranked, room)
        assert len(part) <= room
        assert n == (8 if room > len(whole) else 7)
    assert json.loads(part) == json.loads(whole)[:7]
    assert explorer.gene_data(expression, names, ranked, -5) == ("[]", 0)


def test_marker_genes_come_first_and_then_the_most_variable():
    x = sparse.csr_matrix(np.outer([0.0, 2.0], [1.0, 4.0, 2.0, 5.0, 3.0]))
    assert explorer.ranked_genes(x, []).tolist() == [3, 1, 4, 2, 0]
    markers = [np.array([2, 0]), np.array([], dtype=int), np.array([4, 2])]
    assert explorer.ranked_genes(x, markers).tolist() == [2, 4, 0, 3, 1]


def test_ten_thousand_cells_with_two_thousand_genes_fit():
    rng = np.random.default_rng(0)
    n, n_genes = 10_000, 2_000
    shares = rng.gamma(0.15, size=n_genes)
    depth = rng.lognormal(7.5, 0.4, size=(n, 1))
    counts = sparse.csr_matrix(rng.poisson(depth * shares / shares.sum()).astype(np.float32))
    assert counts.nnz / np.prod(counts.shape) > 0.15  # denser than most counts are
    expression = sparse.csr_matrix(log_normalized(counts).X)
    ranked = explorer.ranked_genes(expression, [])
    names = np.array([f"ENSG{i:011d}" for i in range(n_genes)])
    genes, n_held = explorer.gene_data(expression, names, ranked, 10**9)
    assert n_held == n_genes
    cells = [f"ACGTACGTACGTACGT-{i}" for i in range(n)]
    groups = pd.Series(rng.integers(20, size=n), cells)
    columns = [explorer.groups(f"condition {i}", groups, {}) for i in range(5)]
    columns.append(explorer.numbers("confidence", rng.random(n), 0.0, 1.0))
    packed = explorer.cell_data(cells, np.zeros((n, 2)), columns)
    assert len(packed) < 600_000
    assert len(packed) + len(genes) < 7_000_000


# ------------------------------------------------------------------------------------ the file


def test_the_cells_in_the_file_are_those_of_the_model(model, text):
    cells, adata = part_of(text, "cells"), model.adata
    assert cells["names"] == adata.obs_names.tolist()
    points = unpacked(cells["points"], "<f4").reshape(-1, 2)
    np.testing.assert_allclose(points, model.get_latent_representation(), rtol=1e-5, atol=1e-6)
    columns = {column["name"]: column for column in cells["columns"]}
    assert list(columns) == ["cluster", "confidence", "type", "batch", "age"]
    obs = {"cluster": "scgmvae", "type": "type", "batch": "batch"}
    for name, column in obs.items():
        levels = np.array(columns[name]["levels"])
        shown = levels[unpacked(columns[name]["codes"], "<i2")]
        assert shown.tolist() == adata.obs[column].astype(str).tolist()
    for name, column in {"confidence": "scgmvae_confidence", "age": "age"}.items():
        packed = columns[name]
        shown = values_of(packed["low"], packed["high"], unpacked(packed["steps"], np.uint8))
        step = (packed["high"] - packed["low"]) / explorer.N_STEPS
        np.testing.assert_allclose(shown, adata.obs[column], atol=0.5 * step + 1e-6)


def test_the_genes_in_the_file_are_log_normalised_and_all_there(model, text):
    genes = dict(map(gene_of, part_of(text, "genes")))
    assert set(genes) == set(model.adata.var_names)
    expected = expression_of(model)
    for name, values in genes.items():
        step = expected[name].max() / explorer.N_STEPS
        np.testing.assert_allclose(values, expected[name], atol=0.5 * step + 1e-4)
    shown = " ".join(text.split())
    assert "all 60 are in this file. Values are log(1 + counts per 10,000), rounded" in shown
    assert "100 steps from a gene's lowest to its highest value, and kept in 8 bits" in shown


def test_the_file_runs_its_own_script_and_asks_for_nothing(text):
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert MARKUP not in text
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text).group(1)
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    for word in ("eval", "Function(", "innerHTML", "fetch(", "XMLHttpRequest", "import("):
        assert word not in scripts[0]


def test_of_many_cells_some_and_of_many_genes_the_markers_are_there(
    model, path, text, tmp_path, monkeypatch, no_pictures
):
    monkeypatch.setattr(report, "N_EXPLORED", 50)
    model.report(tmp_path / "few.html", interactive=True)
    few = (tmp_path / "few.html").read_text()
    assert "50 cells were drawn at random" in few
    cells = part_of(few, "cells")
    assert len(cells["names"]) == 50
    points = unpacked(cells["points"], "<f4").reshape(-1, 2)
    rows = model.adata.obs_names.get_indexer(cells["names"])
    z = model.get_latent_representation(indices=rows)
    np.testing.assert_allclose(points, z, rtol=1e-5, atol=1e-6)
    largest = len(few) - 2_000
    monkeypatch.setattr(explorer, "LARGEST_FILE", largest)
    model.report(tmp_path / "small.html", interactive=True)
    small = (tmp_path / "small.html").read_text()
    assert largest - report.SENTENCE - 500 < len(small.encode()) <= largest
    held, ranked = part_of(small, "genes"), part_of(few, "genes")
    assert 0 < len(held) < 60
    assert held == ranked[: len(held)]
    assert f"{len(held)} of 60 are in\nthis file, the marker genes first" in small
    monkeypatch.setattr(explorer, "LARGEST_FILE", 0)
    model.report(tmp_path / "none.html", interactive=True)
    none = (tmp_path / "none.html").read_text()
    assert part_of(none, "genes") == []
    assert "No genes are in this file" in none
    assert 'id="explorer-gene"' not in none


def test_images_have_no_genes_to_search_for(make_model, train, tmp_path, no_pictures):
    adata = AnnData(np.random.default_rng(0).random((60, 12), dtype=np.float32))
    adata.uns["image_shape"] = (3, 4)
    model = train(make_model(adata, n_latent=2), start="kmeans")
    model.report(tmp_path / "report.html", interactive=True)
    text = (tmp_path / "report.html").read_text()
    assert part_of(text, "genes") == []
    assert [column["name"] for column in part_of(text, "cells")["columns"]][:2] == [
        "cluster",
        "confidence",
    ]
    assert 'id="explorer-gene"' not in text
    assert "genes" not in re.search(r'<section id="explorer">.*?</section>', text, re.DOTALL)[0]


def test_a_model_without_components_is_explored_by_its_genes(
    trained_normal, tmp_path, monkeypatch, no_pictures
):
    def plane(adata, seed):
        adata.obsm["X_umap"] = adata.X[:, :2]
        return "umap"

    monkeypatch.setattr(report, "in_two_dimensions", plane)
    trained_normal.report(tmp_path / "report.html", interactive=True)
    text = (tmp_path / "report.html").read_text()
    assert part_of(text, "cells")["columns"] == []
    variances = expression_of(trained_normal).var()
    names = [name for name, *_ in part_of(text, "genes")]
    assert names == variances.sort_values(ascending=False).index.tolist()


def test_interactive_is_yes_or_no(model, tmp_path):
    with pytest.raises(ValueError, match="interactive must be True or False, but it is 'umap'"):
        model.report(tmp_path / "report.html", interactive="umap")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- browser

# a window cannot be narrower than 500 px, a frame can
FRAME = """<iframe srcdoc="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>
<pre></pre><script>
const pause = () => new Promise(done => setTimeout(done, 200)); // in the browser's virtual time
addEventListener("load", async () => {{
  const inner = document.querySelector("iframe").contentWindow, page = inner.document;
  const part = name => page.getElementById("explorer-" + name);
  const seen = {{}}, canvas = part("canvas");
  const copy = document.createElement("canvas").getContext("2d", {{ willReadFrequently: true }});
  // number of pixels of each colour, and what is written beside them
  function look(name) {{
    copy.canvas.width = canvas.width;
    copy.canvas.height = canvas.height;
    copy.drawImage(canvas, 0, 0);
    const {{ data }} = copy.getImageData(0, 0, canvas.width, canvas.height);
    const colors = new Map();
    for (let i = 0; i < data.length; i += 4) {{
      if (data[i + 3] < 255) continue;
      const color = `${{data[i]}},${{data[i + 1]}},${{data[i + 2]}}`;
      colors.set(color, (colors.get(color) ?? 0) + 1);
    }}
    seen[name] = {{ colors: Object.fromEntries(colors), status: part("status").textContent,
      legend: [...part("legend").querySelectorAll("span")].map(span => span.textContent) }};
  }}
  {steps}
  seen.width = page.documentElement.scrollWidth;
  document.querySelector("pre").textContent = JSON.stringify(seen);
}});
</script>"""

STEPS = """
  // a browser without a screen draws a frame when it has time, which a busy machine has late
  inner.requestAnimationFrame = draw => setTimeout(draw, 0);
  const isDrawn = () => canvas.clientWidth > 0 && canvas.width === canvas.clientWidth;
  for (let tries = 0; tries < 50 && !isDrawn(); tries += 1) await pause();
  await pause();
  look("cluster");
  const search = part("gene"), menu = part("column");
  async function type(text, how) {
    search.value = text;
    search.dispatchEvent(new inner.Event(how));
    await pause();
  }
  seen.suggested = [...part("names").options].map(option => option.value);
  await type("GENE_5", "change");
  look("gene");
  await type("<\\/script>", "input");
  seen.offered = [...part("names").options].map(option => option.value);
  await type("<\\/script><b>", "input");
  look("markup");
  await type("nothing", "change");
  look("unknown");
  menu.selectedIndex = 1;
  menu.dispatchEvent(new inner.Event("change"));
  look("confidence");
  seen.search = search.value;
  seen.menu = [...menu.options].map(option => option.text);
  for (const factor of ["in", "in", "in", "in", "in", "in"]) part(factor).click();
  await pause();
  look("near");
  part("all").click();
  look("far");
  const box = canvas.getBoundingClientRect();
  for (let x = 2; x < box.width && part("tip").hidden; x += 4) {
    for (let y = 2; y < box.height && part("tip").hidden; y += 4) {
      canvas.dispatchEvent(new inner.PointerEvent("pointermove",
        { clientX: box.left + x, clientY: box.top + y, pointerType: "mouse" }));
    }
  }
  seen.isMarked = !part("mark").hidden;
  seen.tip = [...part("tip").children].map(line => line.textContent);
"""


def shown(address, profile, *settings):
    """What a page writes of itself; nothing may be logged."""
    elements, log = browse(address, profile, "--virtual-time-budget=20000", *settings)
    assert "CONSOLE" not in log
    return elements


def rgb(color):
    return ",".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))


@needs_browser
@pytest.mark.parametrize("width", [400, 1400])
def test_a_search_for_a_gene_changes_the_colours(model, text, tmp_path, width):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=escape(text), width=width, steps=STEPS))
    elements = shown(frame.as_uri(), tmp_path / "profile")
    seen = json.loads(unescape(re.search(r"<pre>(.+?)</pre>", elements).group(1)))
    assert seen["width"] == width
    columns = {column["name"]: column for column in part_of(text, "cells")["columns"]}
    for color in columns["cluster"]["colors"]:
        assert seen["cluster"]["colors"][rgb(color)] > 3
    counts = model.adata.obs["scgmvae"].value_counts(sort=False)
    assert seen["cluster"]["legend"] == [f"{name} ({n})" for name, n in counts.items()]
    # a gene, found by another case
    assert seen["gene"]["status"] == "Coloured by the gene gene_5."
    highest = expression_of(model)["gene_5"].max()
    assert seen["gene"]["legend"] == ["0", f"{highest:.3g}"]
    assert rgb("#d5dbe1") in seen["gene"]["colors"]
    assert rgb("#6d0a3a") in seen["gene"]["colors"]
    assert not {*map(rgb, columns["cluster"]["colors"])} & set(seen["gene"]["colors"])
    assert len(seen["suggested"]) == 50
    assert seen["offered"] == [MARKUP]
    assert seen["markup"]["status"] == f"Coloured by the gene {MARKUP}."
    assert seen["unknown"]["status"] == "This file has no gene nothing."
    assert seen["unknown"]["colors"] == seen["markup"]["colors"]
    # another colouring, and another part of the plane
    assert seen["menu"] == [*columns, "gene"]
    assert seen["confidence"]["status"] == "Coloured by confidence."
    assert seen["confidence"]["legend"] == ["0", "1"]
    assert seen["search"] == ""
    assert seen["near"]["colors"] != seen["confidence"]["colors"]
    assert seen["far"]["colors"] == seen["confidence"]["colors"]
    # what a cell is
    assert seen["isMarked"]
    name, *lines = seen["tip"]
    obs = model.adata.obs.loc[name]
    assert lines[0] == f"cluster: {obs['scgmvae']}"
    assert lines[1] == f"confidence: {round(obs['scgmvae_confidence'], 2):g}"
    assert lines[2:4] == [f"type: {obs['type']}", f"batch: {obs['batch']}"]
    assert float(lines[4].removeprefix("age: ")) == pytest.approx(obs["age"], abs=0.4)


@needs_browser
def test_an_address_names_a_gene_or_a_column(path, tmp_path):
    for place, status in {
        "#gene=gene_7": "Coloured by the gene gene_7.",
        "#gene=%3C%2Fscript%3E%3Cb%3E": "Coloured by the gene &lt;/script&gt;&lt;b&gt;.",
        "#colour=batch": "Coloured by batch.",
        "": "Coloured by cluster.",
        "#colour=nothing": "Coloured by cluster.",
    }.items():
        elements = shown(path.as_uri() + place, tmp_path / "profile")
        assert re.search(r'id="explorer-status".*?>(.*?)</p>', elements).group(1) == status


def with_script(text, script):
    """The page with one more script, which it lets run, before all others."""
    policy = explorer.policy(explorer.own_text("explorer.js"))
    text = text.replace(policy, f"{policy} {explorer.policy(script)}")
    return text.replace("<body>", f"<body><script>{script}</script>")


@needs_browser
def test_what_is_chosen_is_in_the_address(text, tmp_path):
    script = """addEventListener("load", () => {
      const change = (name, key, value) => {
        const control = document.getElementById("explorer-" + name);
        control[key] = value;
        control.dispatchEvent(new Event("change"));
        document.title += " " + location.hash;
      };
      change("gene", "value", "GENE_5");
      change("column", "selectedIndex", 3);
    });"""
    path = tmp_path / "page.html"
    path.write_text(with_script(text, script))
    elements = shown(path.as_uri(), tmp_path / "profile")
    assert "<title>scgmvae report #gene=gene_5 #colour=batch</title>" in elements
    # the gene takes longer to come, but the column was chosen later
    assert "Coloured by batch." in elements


@needs_browser
def test_a_browser_that_cannot_unpack_says_so_and_shows_the_cells(text, tmp_path):
    old = tmp_path / "old.html"
    old.write_text(with_script(text, "delete window.DecompressionStream;"))
    elements = shown(old.as_uri() + "#gene=gene_7", tmp_path / "profile")
    assert "This browser is too old to unpack the genes." in elements
    assert "Coloured by cluster." in elements
