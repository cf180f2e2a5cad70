"""Models as text and as tables of notebooks: what they say, and that names are never markup."""

import xml.etree.ElementTree as ET

import pytest

import scgmvae
from scgmvae import SCGMVAE, DualVAE


def shown(model):
    """Title, name → text of the rows, and calls of a table, which must be well-formed."""
    root = ET.fromstring(model._repr_html_())
    rows = {row.find("th").text: row.find("td") for row in root.iter("tr")}
    calls = [code.text for code in rows.pop("go on with").findall("code")]
    texts = {name: "".join(cell.itertext()) for name, cell in rows.items()}
    return root.find("strong").text, texts, calls


@pytest.fixture
def dual():
    return DualVAE(scgmvae.datasets.two_photon(40, image_shape=(24, 36)), n_latent_foreground=4)


def test_text_is_that_of_the_summary(trained, dual, capsys):
    for model in (trained, dual):
        assert repr(model) == model.summary_string
        assert repr(model).startswith(f"{type(model).__name__} with the following parameters")
    assert repr(trained).endswith("Training status: Trained")
    assert capsys.readouterr().out == ""  # a notebook asks for both, and would show it twice


def test_a_table_goes_with_the_state_of_the_model(counts, make_model, train, tmp_path):
    adata = counts.copy()
    adata.layers["raw"] = adata.X.copy()
    adata.obs["age"] = 1.0
    setup = {"layer": "raw", "batch_key": "batch", "continuous_covariate_keys": ["age"]}
    model = make_model(adata, setup, n_components=None)
    title, rows, calls = shown(model)
    assert title == "SCGMVAE"
    assert list(rows) == ["data", "conditions", "components", "training", "settings"]
    assert rows["data"] == "300 cells × 60 genes, layer raw"
    assert rows["conditions"] == "batch (2), age"
    assert rows["components"] == "not found yet"
    assert rows["training"] == "not trained"
    assert rows["settings"].startswith("n_latent=5, n_latent_w=4, n_hidden=32")
    assert calls == ["model.train()"]
    train(model, max_epochs=3, seed=7, start="leiden")
    _, rows, calls = shown(model)
    assert rows["components"] == str(model.n_components_)
    assert rows["training"] == "trained; epochs: 2 of pretraining, 3 joint; seed 7"
    assert calls[0] == "model.predict()" and calls[-1] == "model.save(folder)"
    model.merge_components(2)
    assert shown(model)[1]["clusters"] == "2"
    model.save(tmp_path / "model")
    _, rows, calls = shown(SCGMVAE.load(tmp_path / "model", adata=False))
    assert rows["data"] == "not loaded; cells × 60 genes, layer raw"
    assert calls == ["SCGMVAE.load(folder, adata)", "model.predict(adata)"]


def test_a_table_names_no_components_where_there_are_none(trained_normal):
    _, rows, calls = shown(trained_normal)
    assert rows["components"] == "none, as prior='normal'"
    assert rows["training"] == "trained; epochs: 4; seed 0"
    assert calls[0] == "model.get_latent_representation()"
    assert "model.predict()" not in calls


def test_names_are_text_and_colours_are_the_notebooks(counts, make_model):
    adata = counts.copy()
    adata.obs["<b>"] = adata.obs["component"].cat.rename_categories(
        ["<script>alert(1)</script>", "a & b", '"c"']
    )
    model = make_model(adata, {"labels_key": "<b>"})
    html = model._repr_html_()
    assert "<script" not in html and "<b>" not in html
    assert shown(model)[1]["labels"] == "<b>: '\"c\"', '<script>alert(1)</script>', 'a & b'"
    assert html.count("color") == html.count("color: inherit") == 1
    assert "background" not in html and "border" not in html


def test_images_and_their_sources_have_a_table_too(dual):
    title, rows, calls = shown(dual)
    assert title == "DualVAE"
    assert rows["data"] == "40 images of 24 × 36, X"
    assert "n_latent_foreground=4" in rows["settings"] and "image_shape" not in rows["settings"]
    assert calls == ["model.train()"]
    dual.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    _, rows, calls = shown(dual)
    assert rows["training"] == "trained; epochs: 1; seed 0"
    assert calls[0] == "model.get_foreground()"
