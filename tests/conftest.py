"""Fixtures of all test files: small data that nobody writes to, and models trained once."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no window opens, with or without a display

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from small import NETWORK, QUICK, TRAINING

from scgmvae import SCGMVAE
from scgmvae.datasets import synthetic_counts

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
START_PROCESSES = ("soak.py",)
"""Benchmarks that start processes by their own main program, which here is that of the tests."""

N_THREADS = torch.get_num_threads()


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no process waits for another at the end."""
    items.sort(key=lambda item: "whole" not in item.path.parts)


@pytest.fixture(autouse=True)
def same_number_of_threads():
    """scanpy can leave torch with all cores, on which tests side by side crawl and sums differ.

    A fixture of a wider scope comes before this one, so the number is that of the beginning.
    """
    torch.set_num_threads(N_THREADS)
    yield
    torch.set_num_threads(N_THREADS)


@pytest.fixture
def no_window_and_no_new_settings(monkeypatch):
    """No figure is shown, and matplotlib's settings stay as they are."""

    def show(*args, **kwargs):
        raise AssertionError("the figure was shown")

    monkeypatch.setattr(plt, "show", show)
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture
def no_columns_are_pulled():
    """The way of mudata 0.4, which is an option of 0.3."""
    import mudata

    if not hasattr(mudata, "set_options"):
        yield
        return
    with mudata.set_options(pull_on_update=False):
        yield


@pytest.fixture(scope="session")
def make_model():
    """Function that makes a small model of an AnnData, set up as the keywords ``setup`` say."""

    def make(adata, setup=None, **settings):
        if setup is not None:
            SCGMVAE.setup_anndata(adata, **setup)
        return SCGMVAE(adata, **(NETWORK | {"n_components": 3} | settings))

    return make


@pytest.fixture(scope="session")
def train():
    """Function that trains a model, for two epochs a stage where nothing else is asked for."""

    def train(model, **settings):
        model.train(**(TRAINING | settings))
        return model

    return train


@pytest.fixture(scope="session")
def counts():
    """300 cells × 60 genes of 3 well separated components in 2 batches; copy it before use."""
    adata = synthetic_counts(300, 60, n_components=3, n_batches=2, component_scale=3.0, seed=0)
    adata.X.data.flags.writeable = False
    return adata


@pytest.fixture(scope="session")
def trained(counts, make_model, train):
    """A model trained on a copy of ``counts``, with batches as the condition; only to be read."""
    model = make_model(counts.copy(), setup={"batch_key": "batch"})
    return train(model, max_epochs=15, pretrain_epochs=15)


@pytest.fixture(scope="session")
def roughly_trained(counts, make_model, train):
    """A model like ``trained``, made in no time by one epoch a stage; only to be read."""
    return train(make_model(counts.copy(), setup={"batch_key": "batch"}), **QUICK)


@pytest.fixture(scope="session")
def trained_normal(counts, make_model, train):
    """The model without components, trained on a copy of ``counts``; only to be read."""
    return train(make_model(counts.copy(), prior="normal"))


@pytest.fixture(scope="session")
def conditioned(counts, make_model, train):
    """A model of a batch and a continuous covariate ``age`` as conditions; only to be read."""
    adata = counts.copy()
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    setup = {"batch_key": "batch", "continuous_covariate_keys": ["age"]}
    return train(make_model(adata, setup), **QUICK)


@pytest.fixture
def run_benchmark(monkeypatch):
    """Function that runs a script with its arguments.

    It runs in this process, which has imported and compiled most of what scripts need, or in one
    of its own where the script starts others.
    """

    def run(command):
        path = BENCHMARKS / command[0]
        if command[0] in START_PROCESSES:
            where = {"cwd": BENCHMARKS, "capture_output": True, "text": True}
            done = subprocess.run([sys.executable, *command], check=False, **where)
            assert done.returncode == 0, done.stderr[-2000:]
            return
        monkeypatch.setattr(sys, "argv", [str(path), *command[1:]])
        monkeypatch.chdir(BENCHMARKS)
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.syspath_prepend(str(path.parent))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a script may warn, a test may not
            runpy.run_path(str(path), run_name="__main__")

    return run


@pytest.fixture
def check_benchmark(tmp_path, run_benchmark):
    """Function that runs the short form of a script, and checks what it has written.

    It takes the script, with arguments if any, and for each JSON the number of its rows, None
    where it depends on what is installed, and the column, if any, that holds a score between 0
    and 1.
    """

    def check(script, results):
        run_benchmark([*script.split(), "--short", "--out", str(tmp_path)])
        for name, (n_rows, score) in results.items():
            written = json.loads((tmp_path / f"{name}.json").read_text())
            assert len(written["rows"]) == (n_rows or len(written["rows"])) > 0
            scores = [] if score is None else [row[score] for row in written["rows"]]
            assert all(0 <= value <= 1 for value in scores if value is not None)
            assert written["machine"]["versions"]["scgmvae"]
            assert written["short"] is True

    return check
