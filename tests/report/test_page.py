"""Tests of report.page and report.diagnosis: one whole file, safe, with warnings when due."""

import json
import re
from html import escape
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from browser import browse, needs_browser

from scgmvae import SCGMVAE
from scgmvae.metrics import clustering_scores
from scgmvae.report import diagnosis
from scgmvae.report import page as report

pytestmark = pytest.mark.usefixtures("no_window_and_no_new_settings")

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'
FORMULA = "$\\frac & </td></table>$"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements and text of a page; raises where elements are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.text.append(" ".join(data.split()))

    def after(self, name, start=None):
        """Text that follows a name, as in a table of names and values, from a heading on."""
        first = 0 if start is None else self.text.index(start)
        return self.text[self.text.index(name, first) + 1]

    def between(self, start, end):
        return self.text[self.text.index(start) + 1 : self.text.index(end)]


def page_of(model, tmp_path, *args, **kwargs):
    path = tmp_path / "report.html"
    model.report(path, *args, **kwargs)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hostile(counts, make_model, train):
    """A model with names that are markup, set up with labels and batches; only to be read."""
    adata = counts.copy()
    adata.var_names = [f"{SCRIPT}{i}" for i in range(adata.n_vars)]
    names = {"component_0": SCRIPT, "component_1": IMAGE, "component_2": "unknown"}
    adata.obs["<b>type"] = adata.obs["component"].map(names)
    adata.obs["batch"] = adata.obs["batch"].map({"batch_0": FORMULA, "batch_1": "b"})
    setup = {"batch_key": "batch", "labels_key": "<b>type"}
    model = make_model(adata, setup, n_components=4, n_latent=2)
    return train(model, max_epochs=8, pretrain_epochs=8, start="kmeans")


@pytest.fixture(scope="module")
def path(hostile, tmp_path_factory):
    """The report of that model; only to be read."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    hostile.report(path)
    return path


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def no_pictures(monkeypatch):
    """Figures are drawn, but not rendered, which takes most of the time of a report."""

    def close(figure, text):
        plt.close(figure)
        return report.Picture("data:image/png;base64,", text)

    monkeypatch.setattr(report, "_picture", close)


@pytest.fixture
def no_umap(monkeypatch):
    """UMAP takes its time to compile: two dimensions of z in its place."""

    def plane(adata, seed):
        adata.obsm["X_umap"] = adata.X[:, :2]
        return "umap"

    monkeypatch.setattr(report, "in_two_dimensions", plane)


# ------------------------------------------------------------------------------------- safety


def test_the_file_needs_nothing_else_and_runs_nothing(page, path):
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"script", "link", "iframe", "object", "b"}
    )
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "href" not in attributes
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/png;base64,")
    text = path.read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    policy = next(a["content"] for t, a in page.elements if "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_names_that_are_markup_stand_there_as_text(page):
    cells = " ".join(page.between("Cells", "Settings and versions"))
    for name in (SCRIPT, IMAGE, "labels: <b>type", f"{SCRIPT}5"):
        assert name in cells, name
    alternatives = [a["alt"] for tag, a in page.elements if tag == "img"]
    assert "Labels: <b>type, z itself" in alternatives
    assert len(alternatives) == len([tag for tag, _ in page.elements if tag == "figure"])


# ------------------------------------------------------------------------------------ content


def test_it_says_what_the_model_says(hostile, page):
    adata, table = hostile.adata, hostile.component_table()
    assert page.after("cells", "Data") == "300"
    assert page.after("genes") == "60"
    assert page.after("condition: batch") == "2 categories"
    known = adata.obs["<b>type"] != "unknown"
    assert page.after("labels: <b>type") == f"2 labels of {known.sum()} cells"
    sizes = np.asarray(adata.X.sum(axis=1)).ravel()
    assert page.after("counts per cell").startswith(f"median {np.median(sizes):,.0f} (")
    assert page.after("non-zero values") == f"{(adata.X.toarray() > 0).mean():.1%}"
    assert page.after("epochs") == "8 of pretraining, 8 joint"
    assert page.after("seed") == "0"
    assert page.after("n_components") == "4"
    assert page.after("torch version") == version("torch")
    rows = page.between("marker genes", "Agreement with labels")
    for name, row in table.iterrows():
        place = rows.index(name)
        assert rows[place + 1] == f"{row['n_cells']:,}"
        assert rows[place + 2] == f"{row['share']:.1%}"
        if row["label"] is not None:
            assert rows[place + 5] == f"{row['label']} ({row['label_share']:.0%})"
    scores = clustering_scores(
        adata.obs.loc[known, "<b>type"].astype(str), adata.obs.loc[known, "scgmvae"].astype(str)
    )
    assert page.after("ARI") == f"{scores['ARI']:.3f}"
    assert page.after("ACC") == f"{scores['ACC']:.3f}"
    assert "The model was trained on these labels" in " ".join(page.text)


def test_figures_are_of_terms_of_the_latent_and_of_components(page):
    shown = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert shown == [
        "Clusters: scgmvae, z itself",
        "Labels: <b>type, z itself",
        "Condition: batch, z itself",
        "Share of the labels of <b>type in each component",
        "Cells of each cluster by batch",
        "Overlap of the components in z",
        "Confidence by cluster",
        "Novelty of the cells",
        "−ELBO by epoch",
        "reconstruction, −log p(x|z,c) by epoch",
        "KL of z by epoch",
        "KL of w by epoch",
        "KL of y by epoch",
        "KL of d by epoch",
        "guide, cross-entropy by epoch",
        "labels, cross-entropy by epoch",
    ]


def test_labels_that_the_model_did_not_see_are_compared_with(hostile, tmp_path, no_pictures):
    page = page_of(hostile, tmp_path, "component")
    adata = hostile.adata
    scores = clustering_scores(adata.obs["component"], adata.obs["scgmvae"])
    assert page.after("NMI") == f"{scores['NMI']:.3f}"
    assert page.after("clusters") == str(scores["n_clusters"])
    assert "The model was trained on these labels" not in " ".join(page.text)


def test_cells_may_lack_the_labels_that_are_compared_with(hostile, tmp_path, no_pictures):
    adata = hostile.adata
    adata.obs["some"] = adata.obs["component"].astype(object).where(np.arange(300) % 3 > 0)
    page = page_of(hostile, tmp_path, "some")
    is_known = adata.obs["some"].notna()
    scores = clustering_scores(adata.obs["component"][is_known], adata.obs["scgmvae"][is_known])
    assert page.after("ARI") == f"{scores['ARI']:.3f}"
    assert page.after("labels: some") == "3 labels of 200 cells"
    assert hostile.component_table(labels_key="some")["label"].notna().any()
    del adata.obs["some"]


def test_the_cells_with_the_lowest_confidence_are_named(hostile, page):
    obs, proba = hostile.adata.obs, hostile.adata.obsm["scgmvae_proba"]
    lowest = obs["scgmvae_confidence"].sort_values(kind="stable").index[:10]
    rows = page.between("next cluster (probability)", "Training")
    for name in lowest:
        place = rows.index(name)
        first, second = np.argsort(-proba[obs.index.get_loc(name)])[:2]
        assert rows[place + 1] == f"{obs.loc[name, 'scgmvae_confidence']:.2f}"
        assert rows[place + 3].startswith(f"{hostile.cluster_names[first]} (")
        assert rows[place + 4].startswith(f"{hostile.cluster_names[second]} (")


def test_new_cells_without_any_label_are_reported_without_them(hostile, tmp_path, no_pictures):
    adata = hostile.adata[:60].copy()
    adata.obs["<b>type"] = "unknown"
    query = SCGMVAE.load_query_data(adata, hostile)
    page = page_of(query, tmp_path)
    assert "Agreement with labels" not in page.text
    assert "label (share)" not in page.text
    assert page.after("cells", "Data") == "60"
    assert "label" not in query.component_table()
    with pytest.raises(ValueError, match="in the obs column '<b>type' no cell has one"):
        query.component_table(labels_key="<b>type")
    # labels that it was not trained on
    page = page_of(query, tmp_path, "component", overwrite=True)
    assert "Agreement with labels" in page.text


def test_images_are_called_so(make_model, train, tmp_path, no_pictures):
    adata = AnnData(np.random.default_rng(0).random((60, 12), dtype=np.float32))
    adata.uns["image_shape"] = (3, 4)
    model = train(make_model(adata, n_latent=2), start="kmeans")
    page = page_of(model, tmp_path)
    assert page.after("images") == "60"
    assert page.after("values of each") == "12"
    assert "marker genes" not in " ".join(page.text).lower()


def test_merged_components_are_listed_by_cluster(counts, make_model, train, tmp_path, no_pictures):
    model = make_model(counts.copy(), n_components=5, n_latent=2)
    train(model, start="kmeans")
    model.merge_components(2)
    page = page_of(model, tmp_path)
    shown = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert "Components: scgmvae_fine, z itself" in shown
    clusters = page.between(
        "Clusters and the components that were merged to them:", "Confidence and novelty"
    )
    listed = dict(zip(clusters[::2], clusters[1::2], strict=True))
    assert set(listed) - {"dropped"} == {"0", "1"}
    assert sorted(", ".join(listed.values()).split(", ")) == sorted(model.component_names)


def test_a_model_without_components_is_reported_without_them(
    trained_normal, tmp_path, no_umap, no_pictures
):
    page = page_of(trained_normal, tmp_path)
    assert "Components" not in page.text
    assert "Agreement with labels" not in page.text
    assert page.after("prior") == "normal"
    shown = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert len(shown) == 3  # terms of the loss; there is nothing to colour z by


def test_of_many_cells_some_are_drawn(hostile, tmp_path, monkeypatch, no_pictures):
    assert "drawn at random" not in " ".join(page_of(hostile, tmp_path).text)
    monkeypatch.setattr(report, "N_SHOWN", 50)
    drawn = []
    embedding = report.plotting.embedding
    monkeypatch.setattr(
        report.plotting,
        "embedding",
        lambda plane, *args: drawn.append(plane) or embedding(plane, *args),
    )
    page = page_of(hostile, tmp_path, overwrite=True)
    assert "50 cells were drawn at random" in " ".join(page.text)
    assert [plane.n_obs for plane in drawn] == [50, 50, 50]
    places = hostile.adata[drawn[0].obs_names].obsm["X_scgmvae"]
    np.testing.assert_allclose(drawn[0].obsm["X_z"], places, rtol=1e-5)


def test_marker_genes_are_those_of_the_model_and_one_cell_has_none(hostile):
    rows, names = np.arange(200), hostile.component_names
    codes = np.where(rows < 90, 0, np.where(rows < 199, 1, 2))
    obs = pd.DataFrame({"scgmvae_fine": names[codes]}, rows.astype(str))
    markers = report._markers(hostile, rows, obs)
    found = report._component_rows(hostile, hostile.component_table(), markers)
    genes = [row[-1] for row in found["rows"]]
    assert found["header"][-1] == "marker genes"
    assert genes[2:] == ["–", "–"]  # one cell has no variance, and none has no genes
    sums = hostile._sums_by_group(rows, codes, 4)
    best = hostile._markers_of(0, sums, report.N_MARKERS)
    assert genes[0] == ", ".join(hostile.adata.var_names[best])
    assert genes[0] != genes[1]


# -------------------------------------------------------------------------------- what it leaves


def test_data_random_state_and_figures_stay_as_they_were(hostile, tmp_path):
    adata = hostile.adata
    before = adata.copy()
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    page_of(hostile, tmp_path)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert set(adata.uns) == set(before.uns)
    assert set(adata.obsm) == set(before.obsm)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert plt.get_fignums() == []
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_file_is_replaced_only_on_demand_and_only_by_a_whole_one(hostile, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(
        ValueError, match="must not exist yet, but .*report.html does.*overwrite=True"
    ):
        hostile.report(path)
    with pytest.raises(FileNotFoundError, match="folder of .* must exist"):
        hostile.report(tmp_path / "nowhere" / "report.html")
    with pytest.raises(ValueError, match="is a folder"):
        hostile.report(tmp_path, overwrite=True)
    with monkeypatch.context() as patched:

        def fail(made, *args, **kwargs):
            made.write_bytes(b"half")
            raise OSError("no space left")

        patched.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="no space left"):
            hostile.report(path, overwrite=True)
    assert path.read_text() == "mine"
    assert [other.name for other in tmp_path.iterdir()] == ["report.html"]
    hostile.report(path, overwrite=True)
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_what_cannot_be_reported_is_refused_before_anything_is_written(
    counts, make_model, hostile, tmp_path
):
    path = tmp_path / "report.html"
    with pytest.raises(RuntimeError, match="train"):
        make_model(counts.copy()).report(path)
    with pytest.raises(KeyError, match="labels_key names the obs column 'kind'"):
        hostile.report(path, "kind")
    hostile.save(tmp_path / "model")
    with pytest.raises(RuntimeError, match="no data to report on"):
        SCGMVAE.load(tmp_path / "model", adata=False).report(path)
    assert not path.exists()


# ------------------------------------------------------------------------------------ findings


def history_of(part="train", kl_w=0.5, **curves):
    """Four epochs of pretraining, then a joint stage with the given values of the ELBO."""
    (elbo,) = curves.values()
    epochs = range(4 + len(elbo))
    history = {
        f"elbo_{part}": pd.DataFrame({"x": [900.0] * 4 + list(elbo)}, index=epochs),
        "kl_w_train": pd.DataFrame({"x": [kl_w] * len(elbo)}, index=epochs[4:]),
    }
    history[f"kl_w_{part}"] = history["kl_w_train"]
    return history


FLAT, RISING = [500.0] * 10, [500.0 - 5 * i for i in range(10)]
HISTORIES = [
    pytest.param(history_of(elbo=FLAT), [], id="nothing"),
    pytest.param(
        history_of(elbo=FLAT, kl_w=0.012), ["The KL of w is 0.01 nats: w is off"], id="w"
    ),
    pytest.param(history_of(elbo=FLAT, kl_w=0.05), [], id="w_at_the_threshold"),
    pytest.param(
        history_of("validation", elbo=RISING),
        ["The validation ELBO was still rising at the end of training, by 10.0 nats"],
        id="validation_rises",
    ),
    pytest.param(
        history_of(elbo=RISING), ["The training ELBO was still rising"], id="train_rises"
    ),
    # 500 → 497.6 is a gain of 0.48 %, 500 → 497.4 of 0.52 %
    pytest.param(history_of(elbo=[500.0] * 8 + [497.6] * 2), [], id="below_the_threshold"),
    pytest.param(
        history_of(elbo=[500.0] * 8 + [497.4] * 2), ["by 2.6 nats"], id="above_the_threshold"
    ),
    pytest.param(history_of(elbo=[500.0] * 8 + [600.0] * 2), [], id="falling"),
    pytest.param(history_of(elbo=[500.0]), [], id="one_epoch"),
    pytest.param(None, [], id="no_history"),
    pytest.param({"elbo_train": history_of(elbo=RISING)["elbo_train"]}, [], id="no_joint_stage"),
]


@pytest.mark.parametrize(("history", "expected"), HISTORIES)
def test_findings_of_training_come_when_due(history, expected):
    found = diagnosis.training_findings(history)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


def test_a_latent_that_does_not_vary_is_found():
    z = np.zeros((100, 3))
    (sentence,) = diagnosis.latent_findings(z)
    assert "z is off" in sentence
    z[::2, 1] = 0.21  # variance 0.011
    assert diagnosis.latent_findings(z) == []
    z[::2, 1] = 0.19
    assert len(diagnosis.latent_findings(z)) == 1


def table_of(n_cells, overlaps=(), clusters=None):
    """Table of components; ``overlaps`` is (component, nearest, overlap)."""
    names = [str(k) for k in range(len(n_cells))]
    table = pd.DataFrame(
        {
            "cluster": clusters or names,
            "is_empty": np.array(n_cells) == 0,
            "nearest": "0",
            "overlap": 0.0,
        },
        index=names,
    )
    for name, nearest, overlap in overlaps:
        table.loc[name, ["nearest", "overlap"]] = [nearest, overlap]
    return table


TABLES = [
    pytest.param(table_of([5, 5, 5]), [], id="nothing"),
    pytest.param(table_of([5] * 17 + [0] * 3), ["3 of 20 components are empty"], id="three_empty"),
    pytest.param(table_of([5, 0]), ["1 of 2 components is empty"], id="one_empty"),
    pytest.param(
        table_of([5, 5, 5], [("1", "2", 0.6), ("2", "1", 0.6)]),
        ["The components 1 and 2 overlap by 0.60"],
        id="a_pair_once",
    ),
    pytest.param(table_of([5, 5, 5], [("1", "2", 0.5)]), [], id="at_the_threshold"),
    pytest.param(table_of([5, 5, 5], [("1", "2", 0.9)], ["0", "1", "1"]), [], id="of_one_cluster"),
    pytest.param(
        table_of([5, 5, 0], [("1", "2", 0.9), ("2", "1", 0.9)]),
        ["1 of 3 components is empty"],
        id="with_an_empty_one",
    ),
]


@pytest.mark.parametrize(("table", "expected"), TABLES)
def test_findings_of_components_come_when_due(table, expected):
    found = diagnosis.component_findings(table)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("n_unsure", "n_novel", "expected"),
    [
        pytest.param(10, 10, [], id="at_the_thresholds"),
        pytest.param(12, 0, ["12 cells have .* clusters 0 (24% of its cells)."], id="unsure"),
        pytest.param(0, 11, ["11% of the cells have a novelty above 0.99, as 1% of"], id="far"),
        pytest.param(50, 50, ["50 cells have a confidence", "50% of the cells have a"], id="both"),
    ],
)
def test_findings_of_cells_come_when_due(n_unsure, n_novel, expected):
    clusters = pd.Series(np.where(np.arange(100) < 50, "0", "1"))
    confidence = pd.Series(np.where(np.arange(100) < n_unsure, 0.49, 0.5))
    novelty = pd.Series(np.where(np.arange(100) < n_novel, 0.995, 0.99))
    found = diagnosis.cell_findings(clusters, confidence, novelty)
    assert len(found) == len(expected)
    for words, sentence in zip(expected, found, strict=True):
        assert all(part in sentence for part in words.split(" .* "))


def test_a_cluster_whose_cells_are_mostly_unsure_is_named_if_they_are_ten():
    clusters = pd.Categorical(["0"] * 985 + ["1"] * 15)
    confidence = pd.Series([0.9] * 985 + [0.4] * 10 + [0.6] * 5)
    (sentence,) = diagnosis.cell_findings(clusters, confidence, pd.Series(np.zeros(1000)))
    assert "10 cells have" in sentence and "clusters 1 (67% of its cells)." in sentence
    confidence[985] = 0.6  # nine are few
    assert diagnosis.cell_findings(clusters, confidence, pd.Series(np.zeros(1000))) == []


def test_clusters_of_cells_that_are_mostly_novel_are_named():
    clusters = pd.Series(["a"] * 985 + ["b"] * 15)
    novelty = pd.Series([0.5] * 985 + [0.995] * 10 + [0.5] * 5)
    (sentence,) = diagnosis.cell_findings(clusters, pd.Series(np.ones(1000)), novelty)
    assert sentence.startswith("1% of the cells") and "most of the cells of b." in sentence
    novelty[985] = 0.5  # nine are few
    assert diagnosis.cell_findings(clusters, pd.Series(np.ones(1000)), novelty) == []


def test_findings_of_splits_name_the_weak_ones_between_clusters():
    columns = ["left", "right", "strength", "height", "is_made", "is_of_few_genes"]
    rows = [
        ("0, 1", "2", 0.9, 0.9, True, False),
        ("0", "1", 0.54, 0.54, True, False),
        ("2", "3", 0.4, 0.16, False, True),
        ("4", "5", 0.8, 0.32, False, True),
        ("6", "7", 0.45, 0.66, True, False),
        ("8", "9", 0.9, 0.65, True, True),
    ]
    table = pd.DataFrame(rows, columns=columns)
    weak, narrow = diagnosis.split_findings(table)
    assert "strength: 0 from 1 (0.54). Another" in weak
    assert "three genes or fewer: 4 from 5 (0.80). They" in narrow
    assert diagnosis.split_findings(table.iloc[[0, 2, 4, 5]]) == []


def test_findings_of_mixing_name_condition_clusters_and_levels():
    rows = [
        ("stim", "0", "ctrl", 0.95, "mixed"),
        ("stim", "1", "ctrl", 0.31, "apart"),
        ("stim", "2", "ctrl", np.nan, "divided from 3"),
        ("stim", "3", "stim", np.nan, "divided from 2"),
        ("batch", "0", "a", 0.5, "partly mixed"),
    ]
    columns = ["condition", "group", "level", "mixing", "verdict"]
    table = pd.DataFrame(rows, columns=columns)
    apart, divided = diagnosis.mixing_findings(table)
    assert "levels of stim are apart within a cluster: ctrl in 1 (0.31)" in apart
    assert "of another: 2 (ctrl), 3 (stim)." in divided
    assert diagnosis.mixing_findings(table.iloc[[0, 4]]) == []


def test_findings_of_quality_name_clusters_of_the_deepest_and_shallowest_cells():
    clusters = np.repeat(["0", "1", "2"], 100)
    counts = np.concatenate([np.arange(100), np.arange(100) + 1000, np.arange(100) + 40])
    (sentence,) = diagnosis.quality_findings(clusters, {"counts": counts})
    assert "cluster 1 have more counts than other cells (median 1,050 against 69.5)" in sentence
    assert "model.markers(groups=['1'])" in sentence
    assert diagnosis.quality_findings(clusters, {"counts": np.tile(np.arange(100), 3)}) == []
    assert diagnosis.quality_findings(np.full(300, "0"), {"counts": counts}) == []


def test_the_report_has_the_findings_of_its_model(hostile, tmp_path, monkeypatch, no_pictures):
    page = page_of(hostile, tmp_path)
    sentences = page.between("What to look at", "Components")
    cells = hostile.adata.obs
    expected = [
        *diagnosis.training_findings(hostile.history),
        *diagnosis.latent_findings(hostile.get_latent_representation()),
        *diagnosis.component_findings(hostile.component_table()),
        *diagnosis.cell_findings(
            cells["scgmvae"], cells["scgmvae_confidence"], cells["scgmvae_novelty"]
        ),
    ]
    assert expected  # eight epochs are few
    assert sentences == expected
    for name in ("training", "latent", "component", "cell"):
        monkeypatch.setattr(diagnosis, f"{name}_findings", lambda *args: [])
    (sentence,) = page_of(hostile, tmp_path, overwrite=True).between(
        "What to look at", "Components"
    )
    assert sentence.startswith("None of the checks found anything.")


# -------------------------------------------------------------------------------------- browser

# a window cannot be narrower than 500 px, a frame can
MEASURE = """<iframe srcdoc="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>
<pre></pre><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const shown = [...page.images].map(image => {{
    const box = image.getBoundingClientRect();
    return [image.complete && image.naturalWidth > 0, box.left, box.right, box.height];
  }});
  const width = page.documentElement.scrollWidth;
  document.querySelector("pre").textContent = JSON.stringify({{width, shown}});
}});
</script>"""


@needs_browser
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_all_figures_without_scrolling_sideways(path, page, tmp_path, width):
    _, log = browse(path.as_uri(), tmp_path / "profile")
    assert "CONSOLE" not in log
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(page=escape(path.read_text()), width=width))
    elements, log = browse(frame.as_uri(), tmp_path / "profile")
    assert "CONSOLE" not in log
    measured = json.loads(re.search(r"<pre>(.+?)</pre>", elements).group(1))
    assert measured["width"] == width
    assert len(measured["shown"]) == len([tag for tag, _ in page.elements if tag == "img"])
    for is_loaded, left, right, height in measured["shown"]:
        assert is_loaded
        assert 0 <= left < right <= width
        assert right - left > 300
        assert height > 100


def test_scatters_have_the_colours_that_other_figures_have(trained, tmp_path, monkeypatch):
    names = trained.adata.obs["scgmvae"].cat.categories
    colors = [f"#0000{i:02x}" for i in range(len(names))]
    monkeypatch.setitem(trained.adata.uns, "scgmvae_colors", colors)
    seen = {}
    draw = report.plotting.embedding

    def watched(adata, color, *args, **kwargs):
        seen[color] = adata.uns.get(f"{color}_colors")
        return draw(adata, color, *args, **kwargs)

    monkeypatch.setattr(report.plotting, "embedding", watched)
    trained.report(tmp_path / "report.html")
    assert list(seen["scgmvae"]) == colors
