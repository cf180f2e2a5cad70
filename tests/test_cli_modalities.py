"""The command line on a file of several modalities."""

import io
import json

import mudata
import pandas as pd
import pytest
from multimodal import make_mdata
from test_cli import FEW, fails, run

from scgmvae import SCGMVAE

MODALITIES = ["--modality", "rna=nb", "--modality", "protein=protein"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of RNA, proteins and peaks, and what a fit made of two of them."""
    folder = tmp_path_factory.mktemp("modalities")
    make_mdata().write_h5mu(folder / "cells.h5mu")
    outputs = ["--out", folder / "annotated.h5mu", "--model", folder / "model"]
    setup = ["--batch-key", "batch", "--components", "3"]
    result = run("fit", folder / "cells.h5mu", *MODALITIES, *setup, *FEW, *outputs)
    assert result.exit_code == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    return folder


def test_fit_writes_what_it_found_into_the_cells(folder):
    summary = json.loads((folder / "stdout").read_text())
    assert (summary["cells"], summary["genes"], summary["components"]) == (240, 66, 3)
    annotated = mudata.read_h5mu(folder / "annotated.h5mu")
    assert annotated.obs["scgmvae"].value_counts().to_dict() == {
        name: n for name, n in summary["clusters"].items() if n
    }
    assert annotated.obsm["X_scgmvae"].shape == (240, 10)


def test_predict_reads_the_modalities_of_the_model(folder):
    result = run("predict", folder / "model", folder / "cells.h5mu")
    table = pd.read_csv(io.StringIO(result.stdout), index_col="cell", dtype=str)
    mdata = mudata.read_h5mu(folder / "cells.h5mu")
    predicted = SCGMVAE.load(folder / "model", False).predict(mdata)
    assert table["scgmvae"].tolist() == predicted.tolist()
    run("predict", folder / "model", folder / "cells.h5mu", "--out", folder / "predicted.h5mu")
    written = mudata.read_h5mu(folder / "predicted.h5mu")
    assert written.obs["scgmvae"].astype(str).tolist() == predicted.tolist()


def test_sample_writes_all_modalities(folder):
    data = ["--data", folder / "cells.h5mu"]
    run("sample", folder / "model", "-n", "7", *data, "--out", folder / "drawn.h5mu")
    drawn = mudata.read_h5mu(folder / "drawn.h5mu")
    assert {name: part.shape for name, part in drawn.mod.items()} == {
        "rna": (7, 60),
        "protein": (7, 6),
    }


def test_info_tells_the_modalities_of_a_file(folder):
    told = json.loads(run("info", folder / "cells.h5mu").stdout)
    assert told["cells"] == 240
    assert {name: part["genes"] for name, part in told["modalities"].items()} == {
        "rna": 60,
        "protein": 6,
        "atac": 80,
    }
    assert json.loads(run("info", folder / "model").stdout)["genes"] == 66


def test_wrong_usage_is_said_before_training(folder, tmp_path):
    cells = folder / "cells.h5mu"
    fails(2, "It has rna, protein, atac", "fit", cells, "--model", tmp_path / "m")
    fails(2, "one of nb, zinb", "fit", cells, "--modality", "rna=x", "--model", tmp_path / "m")
    twice = ["--modality", "rna=nb", "--modality", "rna=poisson"]
    fails(2, "named twice", "fit", cells, *twice, "--model", tmp_path / "m")
    out = ["--out", tmp_path / "out.h5ad"]
    fails(2, "of the kind .h5mu", "fit", cells, *MODALITIES, *out)
    fails(1, "names 'adt'", "fit", cells, "--modality", "adt=nb", "--model", tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
