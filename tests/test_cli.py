"""Tests of cli: what commands write and print, and how they end."""

import importlib
import io
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from click.testing import CliRunner
from scipy import sparse
from small import NETWORK, TRAINING

from scgmvae import SCGMVAE
from scgmvae.cli import main
from scgmvae.train.plan import StagedTrainingPlan

GROUPS = ["obs", "var"]
FEW = ["--epochs", "2", "--pretrain-epochs", "2"]


def run(*arguments):
    """Result of a command; an exception that is none of click's comes through."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="scgmvae")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(code, message, *arguments):
    """Check that a command ends with a code and one line of an error."""
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def folder(counts, tmp_path_factory):
    """Files to work on: counts.h5ad, with the counts in a layer, and what a fit made of them."""
    folder = tmp_path_factory.mktemp("files")
    adata = counts[:, :40].copy()
    names = {"component_0": "B cell", "component_1": "T cell", "component_2": "unknown"}
    adata.obs["type"] = adata.obs["component"].astype(str).map(names)
    adata.layers["counts"] = adata.X.copy()
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()))
    adata.write_h5ad(folder / "counts.h5ad")
    log = AnnData(adata.X, adata.obs, adata.var, layers={"raw_counts": adata.layers["counts"]})
    log.write_h5ad(folder / "log.h5ad")
    (folder / "cells.csv").write_text("gene_0,gene_1\n1,2\n")
    for name, groups in {"cells.loom": ["row_attrs", "matrix"], "damaged.h5ad": GROUPS}.items():
        with h5py.File(folder / name, "w") as file:
            for group in groups:
                file.create_group(group)
    outputs = ["--out", folder / "annotated.h5ad", "--model", folder / "model"]
    outputs += ["--report", folder / "report.html", "--interactive"]
    setup = ["--batch-key", "batch", "--labels-key", "type", "--components", "4"]
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:  # a UMAP takes its time to compile
        patched.setattr("scgmvae.report.page.in_two_dimensions", plane)
        result = run("fit", folder / "counts.h5ad", *setup, *FEW, *outputs)
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def plane(adata, seed):
    adata.obsm["X_umap"] = adata.X[:, :2]
    return "umap"


@pytest.fixture(scope="module")
def annotated(folder):
    return anndata.read_h5ad(folder / "annotated.h5ad")


# -------------------------------------------------------------------------------------- fit


def test_fit_writes_what_the_model_says_and_prints_a_summary(folder, annotated):
    model = SCGMVAE.load(folder / "model", annotated.copy())
    np.testing.assert_allclose(
        model.get_latent_representation(), annotated.obsm["X_scgmvae"], rtol=1e-4, atol=1e-5
    )
    summary = json.loads((folder / "stdout").read_text())
    assert summary["cells"] == 300
    assert summary["genes"] == 40
    assert summary["components"] == 4
    assert summary["clusters"] == annotated.obs["scgmvae"].value_counts().to_dict()
    assert summary["elbo"] == pytest.approx(-float(model.history["elbo_train"].iloc[-1, 0]))
    setup = model.registry_["setup_args"]
    assert setup["layer"] == "counts"  # found by itself
    assert (setup["batch_key"], setup["labels_key"]) == ("batch", "type")
    assert list(model.cluster_names) == ["B cell", "T cell", "2", "3"]
    assert len(model.history["elbo_train"]) == 4
    report = (folder / "report.html").read_text()
    assert "T cell" in report
    assert 'id="explorer-gene"' in report


def test_fit_says_on_stderr_what_it_does(folder):
    said = (folder / "stderr").read_text().splitlines()
    said = [line for line in said if not line.startswith("Warning: ")]  # of older packages
    assert said.pop(0) == "Training on 300 cells and 40 genes of layer counts."
    stages = [re.sub(r"\d+ s.*", "", said.pop(0)) for _ in range(3)]
    assert stages == [
        "1/3 learning the embedding: 2 epochs, ",
        "2/3 finding clusters: ",
        "3/3 fitting the mixture: 2 epochs, ",
    ]
    assert said == [
        "4 clusters in 300 cells, in adata.obs['scgmvae']",
        f"Wrote {folder / 'model'}.",
        f"Wrote {folder / 'annotated.h5ad'}.",
        f"Wrote {folder / 'report.html'}.",
    ]


@pytest.mark.parametrize(
    ("option", "name"),
    [("--out", "annotated.h5ad"), ("--model", "model"), ("--report", "report.html")],
)
def test_what_exists_is_refused_before_training(folder, monkeypatch, option, name):
    def train(*args, **kwargs):
        raise AssertionError("trained")

    monkeypatch.setattr(SCGMVAE, "train", train)
    fails(
        2,
        f"{folder / name} does. Give another, or --force",
        "fit",
        folder / "counts.h5ad",
        option,
        folder / name,
    )
    with pytest.raises(AssertionError, match="trained"):
        run("fit", folder / "counts.h5ad", option, folder / name, "--force")


def test_force_replaces_what_exists(folder, tmp_path, counts):
    out, model = tmp_path / "out.h5ad", tmp_path / "model"
    out.write_text("before")
    model.mkdir()
    setup = ["--components", "3", "--layer", "counts", "--seed", "3"]
    result = run(
        "fit", folder / "counts.h5ad", "--out", out, "--model", model, "--force", *setup, *FEW
    )
    assert result.exit_code == 0
    expected = anndata.read_h5ad(folder / "counts.h5ad")
    SCGMVAE.setup_anndata(expected, layer="counts")
    SCGMVAE(expected, n_components=3).train(2, 2, seed=3, enable_progress_bar=False)
    written = anndata.read_h5ad(out)
    np.testing.assert_array_equal(written.obsm["X_scgmvae"], expected.obsm["X_scgmvae"])
    np.testing.assert_array_equal(written.X.toarray(), expected.X.toarray())
    assert SCGMVAE.load(model, adata=False).seed_ == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.h5ad"]


def test_fit_passes_every_option_on(folder, tmp_path):
    adata = anndata.read_h5ad(folder / "counts.h5ad")
    adata.obs["type"] = adata.obs["type"].astype(str).replace("unknown", "none")
    for number, (column, value) in enumerate([("donor", "d"), ("site", "s")], start=2):
        adata.obs[column] = [f"{value}{i % number}" for i in range(adata.n_obs)]
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    adata.obs["dose"] = adata.obs["age"] ** 2
    adata.layers["spliced"] = adata.layers["counts"].copy()
    adata.write_h5ad(tmp_path / "data.h5ad")
    setup = "--layer spliced --batch-key batch --labels-key type --unlabeled none"
    conditions = "--covariate donor --covariate site --continuous age --continuous dose"
    settings = "--components 4 --likelihood poisson --epochs 1 --pretrain-epochs 2 --seed 7"
    options = [*setup.split(), *conditions.split(), *settings.split()]
    result = run("fit", tmp_path / "data.h5ad", *options, "--model", tmp_path / "model")
    assert json.loads(result.stdout)["seed"] == 7
    model = SCGMVAE.load(tmp_path / "model", adata=False)
    assert model.registry_["setup_args"] == {
        "layer": "spliced",
        "batch_key": "batch",
        "labels_key": "type",
        "unlabeled_category": "none",
        "size_factor_key": None,
        "categorical_covariate_keys": ["donor", "site"],
        "continuous_covariate_keys": ["age", "dose"],
    }
    assert list(model.component_names) == ["B cell", "T cell", "2", "3"]
    assert len(model.history["elbo_train"]) == 3
    assert len(model.history["kl_y_train"]) == 1  # of the joint stage alone
    told = json.loads(run("info", tmp_path / "model").stdout)
    assert (told["seed"], told["epochs"], told["params"]["likelihood"]) == (7, 3, "poisson")
    assert told["conditions"] == {
        "batch": ["batch_0", "batch_1"],
        "donor": ["d0", "d1"],
        "site": ["s0", "s1", "s2"],
    }


def test_an_interrupted_fit_writes_nothing(folder, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(StagedTrainingPlan, "training_step", interrupt)
    result = run("fit", folder / "counts.h5ad", "--out", tmp_path / "out.h5ad", *FEW)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "interrupted, so nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- predict


def test_predict_prints_a_table_of_the_cells(folder, annotated):
    result = run("predict", folder / "model", folder / "counts.h5ad")
    assert result.exit_code == 0
    table = pd.read_csv(io.StringIO(result.stdout), index_col="cell", dtype={"scgmvae": str})
    assert list(table) == ["scgmvae", "scgmvae_confidence", "scgmvae_novelty"]
    assert table.index.tolist() == annotated.obs_names.tolist()
    assert table["scgmvae"].tolist() == annotated.obs["scgmvae"].astype(str).tolist()
    np.testing.assert_allclose(
        table["scgmvae_confidence"], annotated.obs["scgmvae_confidence"], rtol=1e-4
    )


def test_predict_writes_new_cells_annotated(folder, annotated, tmp_path):
    new = annotated[::3].copy()
    new = anndata.AnnData(
        obs=new.obs[["batch"]], var=new.var[[]], layers={"counts": new.layers["counts"]}
    )
    new.write_h5ad(tmp_path / "new.h5ad")
    out = tmp_path / "out.h5ad"
    result = run("predict", folder / "model", tmp_path / "new.h5ad", "--out", out)
    assert (result.exit_code, result.stdout) == (0, "")
    written = anndata.read_h5ad(out)
    np.testing.assert_allclose(
        written.obsm["scgmvae_proba"], annotated.obsm["scgmvae_proba"][::3], rtol=1e-3, atol=1e-5
    )
    fails(2, "or --force", "predict", folder / "model", tmp_path / "new.h5ad", "--out", out)


@pytest.fixture(scope="module")
def merged(folder, tmp_path_factory):
    """A model whose components were merged, and the folder of it and its data."""
    path = tmp_path_factory.mktemp("merged") / "model"
    adata = anndata.read_h5ad(folder / "counts.h5ad")
    SCGMVAE.setup_anndata(adata, layer="counts", batch_key="batch")
    model = SCGMVAE(adata, n_components=5, **NETWORK)
    model.train(**(TRAINING | {"max_epochs": 10, "pretrain_epochs": 10, "start": "kmeans"}))
    model.merge_components(2)
    model.save(path, save_anndata=True)
    return model, path


def test_commands_tell_components_from_the_clusters_that_they_were_merged_to(folder, merged):
    model, path = merged
    text = dict.fromkeys(["scgmvae", "scgmvae_fine"], str)
    printed = run("predict", path, folder / "counts.h5ad").stdout
    table = pd.read_csv(io.StringIO(printed), index_col="cell", dtype=text)
    assert list(table) == [*text, "scgmvae_confidence", "scgmvae_novelty"]
    for column in text:
        assert table[column].tolist() == model.adata.obs[column].tolist()
    for column in ("scgmvae_confidence", "scgmvae_novelty"):
        np.testing.assert_allclose(table[column], model.adata.obs[column], rtol=1e-4, atol=1e-6)
    told = json.loads(run("info", path).stdout)
    assert told["components"] == model.component_names.tolist()
    assert told["clusters"] == ["0", "1"]
    assert set(table["scgmvae"]) <= {"0", "1"} and not set(table["scgmvae_fine"]) <= {"0", "1"}


# -------------------------------------------------------------------------------------- sample


def test_sample_writes_cells_of_a_component_and_condition(folder, tmp_path):
    arguments = ["sample", folder / "model", "-n", "30", "--component", "B cell"]
    arguments += ["--condition", "batch=batch_1", "--seed", "5"]
    with_data = [*arguments, "--data", folder / "counts.h5ad"]
    result = run(*with_data, "--out", tmp_path / "new.h5ad")
    assert (result.exit_code, result.stdout) == (0, "")
    written = anndata.read_h5ad(tmp_path / "new.h5ad")
    model = SCGMVAE.load(folder / "model", anndata.read_h5ad(folder / "counts.h5ad"))
    expected = model.sample(30, "B cell", {"batch": "batch_1"}, seed=5)
    np.testing.assert_array_equal(written.X.toarray(), expected.X.toarray())
    assert set(written.obs["component"]) == {"B cell"}
    assert set(written.obs["batch"]) == {"batch_1"}
    fails(2, "name a file with --data", *arguments, "--out", tmp_path / "other.h5ad")
    fails(2, "or --force", *with_data, "--out", tmp_path / "new.h5ad")


def test_sample_draws_from_the_data_that_were_saved_with_the_model(merged, tmp_path):
    model, path = merged
    assert run("sample", path, "-n", "20", "--out", tmp_path / "new.h5ad").exit_code == 0
    written, expected = anndata.read_h5ad(tmp_path / "new.h5ad"), model.sample(20)
    np.testing.assert_array_equal(written.X.toarray(), expected.X.toarray())
    assert written.obs["batch"].tolist() == expected.obs["batch"].tolist()


# ---------------------------------------------------------------------------------------- info


def test_info_of_a_model_and_of_data(folder):
    of_model = json.loads(run("info", folder / "model").stdout)
    assert of_model["kind"] == "model"
    assert of_model["genes"] == 40
    assert of_model["clusters"] == ["B cell", "T cell", "2", "3"]
    assert of_model["labels"] == ["B cell", "T cell"]
    assert of_model["conditions"] == {"batch": ["batch_0", "batch_1"]}
    assert of_model["params"]["likelihood"] == "nb"
    assert of_model["epochs"] == 4
    assert of_model["versions"]["scgmvae"]
    of_data = json.loads(run("info", folder / "counts.h5ad").stdout)
    assert of_data["kind"] == "data"
    assert (of_data["cells"], of_data["genes"]) == (300, 40)
    assert of_data["matrices"] == {"X": "no counts", "layer counts": "counts"}
    assert of_data["obs"]["type"] == "3 categories"
    assert of_data["obs"]["library_size"].startswith("float")
    assert of_data["annotated"] is False
    assert json.loads(run("info", folder / "annotated.h5ad").stdout)["annotated"] is True


def test_whole_numbers_below_0_are_no_counts(tmp_path):
    whole = np.array([[0.0, 1.0], [-1.0, 2.0]])
    adata = anndata.AnnData(whole, layers={"above": np.abs(whole), "halves": whole**2 / 2})
    adata.write_h5ad(tmp_path / "data.h5ad")
    told = json.loads(run("info", tmp_path / "data.h5ad").stdout)["matrices"]
    assert told == {"X": "no counts", "layer above": "counts", "layer halves": "no counts"}


def test_a_file_of_cell_ranger_is_read(counts, tmp_path):
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        matrix = file.create_group("matrix")
        x = counts.X[:80].T.tocsc().astype(np.int32)
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(x, name)
        matrix["shape"] = x.shape
        matrix["barcodes"] = np.array([f"cell_{i}" for i in range(80)], dtype="S")
        genes = [*counts.var_names[:-1], counts.var_names[0]]  # one name comes twice
        features = matrix.create_group("features")
        features["name"] = features["id"] = np.array(genes, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * 60, dtype="S")
        features["genome"] = np.array(["GRCh38"] * 60, dtype="S")
    out = tmp_path / "annotated.h5ad"
    result = run("fit", tmp_path / "cells.h5", "--components", 3, *FEW, "--out", out)
    assert result.exit_code == 0, result.stderr
    written = anndata.read_h5ad(out)
    assert written.var_names[-1] == f"{counts.var_names[0]}-1"
    np.testing.assert_array_equal(written.X.toarray(), counts.X[:80].toarray())


# -------------------------------------------------------------------------------------- errors

DATA_ERRORS = [
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.h5ad", "--batch-key", "Batch"],
        "Its columns are: 'batch',",
        id="closest_column",
    ),
    pytest.param(
        ["fit", "{f}/log.h5ad", "--out", "{t}/o.h5ad"],
        "name the layer that holds the raw counts with --layer, or model values of another kind "
        "with --likelihood 'gaussian'. Whole numbers are in --layer 'raw_counts'.",
        id="no_counts",
    ),
    pytest.param(
        ["predict", "{f}/model", "{f}/log.h5ad"],
        "The model reads the layer 'counts', which the data does not have. Its layers are: "
        "'raw_counts'. Put the values there: adata.layers['counts'] = ...",
        id="layer_of_the_model",
    ),
    pytest.param(
        ["fit", "{f}/cells.loom", "--out", "{t}/o.h5ad"],
        "cells.loom looks like loom. Read it with anndata.io.read_loom",
        id="loom",
    ),
    pytest.param(
        ["fit", "{f}/cells.csv", "--out", "{t}/o.h5ad"],
        "cells.csv looks like csv. Read it with scanpy.read_csv",
        id="csv",
    ),
    pytest.param(
        ["fit", "{f}/damaged.h5ad", "--out", "{t}/o.h5ad"],
        "damaged.h5ad cannot be read: ",
        id="damaged",
    ),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.h5ad", "--layer", "raw"],
        "--layer 'raw' names no layer of the data. Its layers are: 'counts'",
        id="layer",
    ),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.h5ad", "--batch-key", "donor"],
        "--batch-key names the obs column 'donor'",
        id="column",
    ),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.h5ad", "--components", "301"],
        "to the number of cells (300), or left out, which finds it from the data, but it is 301",
        id="too_many_components",
    ),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.h5ad"]
        + ["--batch-key", "batch", "--covariate", "batch"],
        "'batch' is both --batch-key and one of the --covariate. Name it once.",
        id="one_column_twice",
    ),
    pytest.param(
        ["fit", "{f}/report.html", "--out", "{t}/o.h5ad"],
        "report.html is neither. Read it into an AnnData",
        id="no_h5ad",
    ),
    pytest.param(["predict", "{t}", "{f}/counts.h5ad"], "must hold a saved model", id="no_model"),
    pytest.param(
        ["sample", "{f}/model", "-n", "3", "--out", "{t}/o.h5ad", "--data", "{f}/counts.h5ad"]
        + ["--condition", "batch=b9"],
        "'b9' is no value of the condition 'batch'",
        id="unknown_batch",
    ),
    pytest.param(
        ["sample", "{f}/model", "-n", "3", "--out", "{t}/o.h5ad", "--data", "{f}/counts.h5ad"]
        + ["--condition", "batch=b=9"],
        "'b=9' is no value of the condition 'batch'",
        id="value_with_an_equals_sign",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), DATA_ERRORS)
def test_errors_of_the_data_are_one_line_and_code_1(folder, tmp_path, arguments, message):
    fails(1, message, *(part.format(f=folder, t=tmp_path) for part in arguments))
    assert list(tmp_path.iterdir()) == []


USAGE_ERRORS = [
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.h5ad", "--model", "{t}/o.h5ad"],
        "different files",
        id="one_file_for_two",
    ),
    pytest.param(["fit", "{f}/counts.h5ad"], "at least one output", id="no_output"),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.h5ad", "--interactive"],
        "name its file with --report",
        id="interactive_without_report",
    ),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.csv"],
        "of the kind .h5ad or .h5mu, so its name must end so, but it is 'o.csv'",
        id="out_is_no_h5ad",
    ),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--report", "{t}/o"],
        "of the kind .html",
        id="report_is_no_html",
    ),
    pytest.param(["fit", "{t}/no.h5ad", "--out", "{t}/o.h5ad"], "does not exist", id="no_file"),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.h5ad", "--seed", "-1"], "'--seed'", id="seed"
    ),
    pytest.param(
        ["sample", "{f}/model", "-n", "3", "--out", "{t}/o.h5ad"]
        + ["--condition", "batch=a", "--condition", "batch=b"],
        "a column is named twice",
        id="condition_twice",
    ),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/no/o.h5ad"], "folder of", id="no_folder"
    ),
    pytest.param(
        ["fit", "{f}/counts.h5ad", "--out", "{t}/o.h5ad", "--components", "0"], "x>=1", id="range"
    ),
    pytest.param(["train"], "No such command", id="command"),
    pytest.param(
        ["sample", "{f}/model", "-n", "3", "--out", "{t}/o.h5ad", "--condition", "b1"],
        "A condition is COLUMN=VALUE",
        id="condition",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE_ERRORS)
def test_errors_of_usage_are_code_2(folder, tmp_path, arguments, message):
    fails(2, message, *(part.format(f=folder, t=tmp_path) for part in arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["fit", "predict", "sample", "info"])
def test_help_has_an_example_and_goes_to_stdout(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert f"\n    scgmvae {command} " in result.stdout


# -------------------------------------------------------------------------------- real process


def test_the_entry_point_is_the_command():
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    module, name = pyproject["project"]["scripts"]["scgmvae"].split(":")
    assert getattr(importlib.import_module(module), name) is main


def test_a_process_prints_results_alone_to_stdout(folder, tmp_path):
    command = [sys.executable, "-m", "scgmvae", "fit", str(folder / "counts.h5ad"), *FEW]
    command += ["--components", "3", "--out", str(tmp_path / "out.h5ad")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["components"] == 3
    assert done.stderr.startswith("Training on 300 cells")
    command = [sys.executable, "-m", "scgmvae", "predict", str(folder / "model")]
    again = subprocess.run(
        [*command, str(folder / "counts.h5ad")], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stderr + again.stderr  # no colours
    assert "Model was loaded" not in again.stderr
    assert "Traceback" not in done.stderr
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obs["scgmvae"].nunique() <= 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_result_that_cannot_be_written_is_one_line_of_an_error(folder):
    command = [sys.executable, "-m", "scgmvae", "info", str(folder / "counts.h5ad")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The result could not be written: ")
    assert "Traceback" not in done.stderr
