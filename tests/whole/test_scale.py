"""Tests of what large data need: files, samples to start from, mixed precision, processes."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import anndata as ad
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.metrics import adjusted_rand_score
from torch import nn

from scgmvae import SCGMVAE
from scgmvae.data import minibatches
from scgmvae.data.matrices import RowsOnDisk
from scgmvae.datasets import synthetic_counts
from scgmvae.model import start
from scgmvae.nn.layers import Dropout
from scgmvae.train import cells
from scgmvae.train import devices as parallel

LONG_ENOUGH = {"max_epochs": 20, "pretrain_epochs": 20}


@pytest.fixture
def adata(counts):
    return counts.copy()


def agreement(adata, model):
    return adjusted_rand_score(adata.obs["component"], model.predict())


def loss(model):
    return model.history["elbo_train"].iloc[:, 0].to_numpy(dtype=float)


class Record(Callback):
    """What a function says of the module at the end of every minibatch."""

    def __init__(self, function):
        self.function, self.values = function, []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.values.append(self.function(pl_module.module))


# ------------------------------------------------------------------------------- train mode


def test_a_second_training_is_in_training_mode(adata, make_model, train):
    model = make_model(adata, dropout_rate=0.5)
    for _ in range(2):
        modes = Record(lambda module: {part.training for part in module.modules()})
        train(model, callbacks=[modes])
        assert modes.values
        assert all(mode == {True} for mode in modes.values)
        assert not any(part.training for part in model.module.modules())


def test_dropout_and_batch_normalisation_go_on_in_a_second_training(adata, make_model, train):
    model = train(make_model(adata, dropout_rate=0.5))
    shares = []

    def share_of_zeros(module, inputs, output):
        shares.append((output[inputs[0] > 0] == 0).float().mean().item())

    model.get_latent_representation()  # which leaves the module in evaluation mode
    dropouts = [part for part in model.module.modules() if isinstance(part, Dropout) and part.p]
    norm = next(part for part in model.module.modules() if isinstance(part, nn.BatchNorm1d))
    before = norm.running_mean.clone()
    hooks = [part.register_forward_hook(share_of_zeros) for part in dropouts]
    train(model, callbacks=[Record(lambda module: hooks)], max_epochs=1)
    assert min(shares[: 5 * len(dropouts)]) > 0.05  # the five steps of the epoch
    assert not torch.equal(norm.running_mean, before)


# ---------------------------------------------------------------------------- data in a file


@pytest.fixture
def backed(counts, tmp_path):
    """``counts`` read from a file."""
    path = tmp_path / "counts.h5ad"
    counts.write_h5ad(path)
    adata = ad.read_h5ad(path, backed="r")
    yield adata
    adata.file.close()


@pytest.fixture(scope="module")
def from_file(counts, make_model, train, tmp_path_factory):
    """A model that was trained on ``counts`` in a file, with that AnnData."""
    path = tmp_path_factory.mktemp("from_file") / "counts.h5ad"
    counts.write_h5ad(path)
    adata = ad.read_h5ad(path, backed="r")
    yield train(make_model(adata, {"batch_key": "batch"}), **LONG_ENOUGH), adata
    adata.file.close()


def test_training_from_a_file_finds_the_components(from_file, counts):
    model, adata = from_file
    assert adata.isbacked
    assert agreement(counts, model) > 0.95
    assert adata.obs["scgmvae"].tolist() == model.predict().tolist()
    np.testing.assert_array_equal(adata.obsm["X_scgmvae"], model.get_latent_representation())


def test_results_from_a_file_are_those_from_memory(from_file, counts):
    model, _ = from_file
    in_memory = counts.copy()
    np.testing.assert_allclose(
        model.get_latent_representation(),
        model.get_latent_representation(in_memory),
        rtol=1e-4,
        atol=1e-5,
    )
    assert model.predict().tolist() == model.predict(in_memory).tolist()
    rows = [5, 200, 7]
    expression = model.get_normalized_expression(indices=rows, return_mean=True)
    assert expression.shape == (3, counts.n_vars)
    np.testing.assert_allclose(expression.sum(1), 1, rtol=1e-5)
    assert float(model.get_elbo()) == pytest.approx(float(model.get_elbo(in_memory)), rel=0.02)


def test_a_file_is_annotated_like_data_in_memory(from_file, counts):
    model, adata = from_file
    given = counts.copy()
    model.annotate(given)
    model.annotate(adata)
    assert adata.obs["scgmvae"].tolist() == given.obs["scgmvae"].tolist()
    np.testing.assert_allclose(adata.obsm["scgmvae_proba"], given.obsm["scgmvae_proba"], atol=1e-4)


def test_few_cells_of_a_file_are_in_memory_at_a_time(
    backed, counts, make_model, train, monkeypatch
):
    model, load = make_model(backed), RowsOnDisk.load
    sizes = {True: [], False: []}

    def recorded(self, rows):
        sizes[model.module.training].append(len(rows))
        return load(self, rows)

    monkeypatch.setattr(RowsOnDisk, "load", recorded)
    for module in (cells, start):
        monkeypatch.setattr(module, "CELLS_IN_MEMORY", 192)
    train(model, datasplitter_kwargs={"cells_in_memory": 128}, **LONG_ENOUGH)
    assert sum(sizes[True]) >= 40 * 300
    assert max(sizes[True][1:]) <= 128  # the first reading is of the mean of x
    # the cells that are partitioned, and the rest, before those whose results are written
    assert max(sizes[False][:2]) <= 192
    assert agreement(counts, model) > 0.9


def test_results_are_gathered_step_by_step(from_file, monkeypatch):
    model, _ = from_file
    whole = model._posteriors()
    monkeypatch.setattr(minibatches, "CELLS_IN_MEMORY", 20)
    parts = model._posteriors(batch_size=7)
    assert list(parts) == list(whole)
    for name, values in parts.items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["pretraining", "joint"])
def test_a_file_that_is_closed_ends_training_and_keeps_what_was_learned(
    backed, counts, make_model, train, stage
):
    model = make_model(backed)
    step = {"pretraining": 7, "joint": 103}[stage]  # five steps an epoch

    class Close(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == step:
                backed.file.close()

    with pytest.raises(OSError, match="of the data could not be read: .* must stay in place"):
        train(
            model,
            callbacks=[Close()],
            datasplitter_kwargs={"cells_in_memory": 64},
            max_epochs=4,
            pretrain_epochs=20,
        )
    assert model.is_trained_
    assert not model.module.training
    in_memory = counts.copy()
    z = model.get_latent_representation(in_memory)
    assert np.isfinite(z).all()
    assert len(loss(model)) == step // 5
    backed.file.open()
    train(model, **LONG_ENOUGH)
    assert len(loss(model)) == step // 5 + (40 if stage == "pretraining" else 20)
    assert agreement(counts, model) > 0.9


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_that_loses_its_end_ends_training(counts, make_model, train, tmp_path, compression):
    path = tmp_path / "counts.h5ad"
    counts.write_h5ad(path, compression=compression)
    adata = ad.read_h5ad(path, backed="r")
    model = make_model(adata)

    class Truncate(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 7:
                os.truncate(path, 10_000)

    with pytest.raises(OSError, match="of the data could not be read: .* whole and open"):
        train(model, callbacks=[Truncate()], datasplitter_kwargs={"cells_in_memory": 64})
    assert model.is_trained_
    assert np.isfinite(model.get_latent_representation(counts.copy())).all()
    adata.file.close()


# --------------------------------------------------------------------- a sample to start from


@pytest.fixture
def samples(monkeypatch):
    """At most 150 cells to start from; the rows of every start, and its partition."""
    monkeypatch.setattr(cells, "LARGEST_TREE", 150)
    taken = []
    start_mixture = start.StartMixin._start_mixture

    def recorded_pick(*args, **kwargs):
        taken.append({"cells": cells.cells_to_start_from(*args, **kwargs)})
        return taken[-1]["cells"]

    def recorded_start(self, *args):
        started = start_mixture(self, *args)
        taken[-1]["codes"] = started.guide
        return started

    monkeypatch.setattr(start, "cells_to_start_from", recorded_pick)
    monkeypatch.setattr(start.StartMixin, "_start_mixture", recorded_start)
    return taken


@pytest.mark.parametrize("n_components", [3, None], ids=["K_given", "K_found"])
def test_a_sample_is_partitioned_and_the_others_follow(
    adata, make_model, train, samples, n_components
):
    model = train(make_model(adata, n_components=n_components), max_epochs=12, pretrain_epochs=20)
    (taken,) = samples
    assert len(np.unique(taken["cells"])) == 150
    assert (taken["codes"] >= 0).all()
    others = np.setdiff1d(np.arange(300), taken["cells"])
    component = adata.obs["component"].to_numpy()
    assert adjusted_rand_score(component[others], taken["codes"][others]) > 0.9
    # of components: in so short a training their merging errs with and without a sample
    components = model.predict(components=True)
    assert adjusted_rand_score(component, components) > 0.95


def test_labels_guide_the_others_of_a_sample(adata, make_model, train, samples):
    component = adata.obs["component"].astype(str).to_numpy()
    known = np.random.default_rng(0).random(300) < 0.3
    adata.obs["label"] = np.where(known, component, "none")
    SCGMVAE.setup_anndata(adata, labels_key="label", unlabeled_category="none")
    model = train(SCGMVAE(adata, n_components=4), max_epochs=8, pretrain_epochs=20)
    (taken,) = samples
    others = np.setdiff1d(np.arange(300), taken["cells"])
    assert taken["codes"].shape == (300, 4)
    np.testing.assert_allclose(taken["codes"].sum(1), 1, rtol=1e-5)
    guide = model.component_names[taken["codes"].argmax(1)]
    assert (guide[known] == component[known]).all()
    assert 0 < known[others].sum()
    assert (taken["codes"][known].max(1) == 1).all()
    assert (guide[others] == component[others]).mean() > 0.9


def test_all_cells_are_partitioned_where_there_are_few(adata, make_model, train, samples):
    cells.LARGEST_TREE = 300  # which the fixture takes back
    train(make_model(adata))
    np.testing.assert_array_equal(samples[0]["cells"], np.arange(300))


@pytest.mark.parametrize(("tests_splits", "largest"), [(True, "TREE"), (False, "START")])
def test_the_sample_follows_from_the_seed(monkeypatch, tests_splits, largest):
    monkeypatch.setattr(cells, f"LARGEST_{largest}", 150)
    rows, labels = np.arange(300), np.full(300, -1)
    how = {"tests_splits": tests_splits, "on_disk": False}
    one, same, other = (
        cells.cells_to_start_from(rows, labels, seed=seed, **how) for seed in (0, 0, 1)
    )
    assert len(one) == 150
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert (np.diff(one) > 0).all()


def test_cells_left_out_of_training_are_left_out_of_the_start(adata, make_model, train, samples):
    model = train(make_model(adata), train_size=0.8)
    (taken,) = samples
    assert np.isin(taken["cells"], model.train_indices).all()
    np.testing.assert_array_equal(np.flatnonzero(taken["codes"] >= 0), sorted(model.train_indices))


def test_labels_are_kept_and_rare_ones_are_in_the_sample(adata, make_model, train, samples):
    names = np.array(["a", "b", "c"])[adata.obs["component"].cat.codes]
    labels = np.where(np.arange(300) % 2 == 0, names, "unknown").astype(object)
    rare = np.flatnonzero(names == "a")[:3]
    labels[names == "a"] = "unknown"
    labels[rare] = "rare"
    adata.obs["label"] = labels
    model = train(make_model(adata, {"labels_key": "label"}, n_components=4), **LONG_ENOUGH)
    (taken,) = samples
    assert np.isin(rare, taken["cells"]).all()
    is_labelled = labels != "unknown"
    assert is_labelled[taken["cells"]].sum() >= 75  # half of the sample
    codes = {name: k for k, name in enumerate(model.component_names[:3])}
    expected = [codes[label] for label in labels[is_labelled]]
    np.testing.assert_array_equal(taken["codes"][is_labelled], np.eye(4)[expected])


def test_a_sample_from_a_file_is_of_blocks(
    backed, counts, make_model, train, samples, monkeypatch
):
    for module in (cells, start):
        monkeypatch.setattr(module, "CELLS_IN_MEMORY", 200)
    cells.LARGEST_TREE = 300  # which the fixture takes back
    model = train(make_model(backed), **LONG_ENOUGH)
    (taken,) = samples
    assert 128 <= len(taken["cells"]) <= 200
    assert np.count_nonzero(np.diff(taken["cells"]) > 1) <= 3
    assert agreement(counts, model) > 0.9


# --------------------------------------------------------------------------- mixed precision


def test_mixed_precision_finds_the_same_clusters_at_nearly_the_same_bound(
    adata, make_model, train
):
    full = train(make_model(adata), **LONG_ENOUGH)
    clusters = full.predict()
    half = train(make_model(adata), precision="bf16-mixed", **LONG_ENOUGH)
    assert adjusted_rand_score(half.predict(), clusters) > 0.95
    assert np.isfinite(loss(half)).all()
    np.testing.assert_allclose(loss(half), loss(full), rtol=0.02)
    assert {parameter.dtype for parameter in half.module.parameters()} == {torch.float32}


# -------------------------------------------------------------------------- several processes


def test_more_gpus_than_there_are_is_an_error(adata, make_model, train):
    n_found = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"asks for {n_found + 2} GPUs, but {n_found} are found"):
        train(make_model(adata), accelerator="gpu", devices=n_found + 2)


@pytest.mark.parametrize("devices", [[0, 1], 2, "2"])
def test_gpus_are_counted_as_lightning_takes_them(monkeypatch, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="asks for 2 GPUs, but 1 are found. Give devices='auto'"):
        parallel.check_devices("gpu", devices)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    parallel.check_devices("gpu", devices)


@pytest.mark.parametrize("devices", ["auto", -1, "-1", 1, [0], "0,"])
def test_devices_that_are_there_are_no_error(monkeypatch, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    parallel.check_devices("gpu", devices)
    parallel.check_devices("cpu", 8)
    # whatever is found is taken where the number is left open; else one that is gone is missed
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    missed = nullcontext() if devices in ("auto", -1, "-1") else pytest.raises(ValueError)
    with missed as raised:
        parallel.check_devices("gpu", devices)
    assert (raised is None) == (devices in ("auto", -1, "-1"))


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_strategies_that_train_a_copy_are_refused(adata, make_model, train, strategy):
    with pytest.raises(ValueError, match=f"strategy='{strategy}' trains a copy .*strategy='ddp'"):
        train(make_model(adata), devices=2, strategy=strategy)


SCRIPT = """
import json, os, sys, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
from sklearn.metrics import adjusted_rand_score
import scgmvae
if __name__ == "__main__":
    adata = scgmvae.datasets.synthetic_counts(600, 80, n_components=3, seed=0)
    scgmvae.SCGMVAE.setup_anndata(adata)
    model = scgmvae.SCGMVAE(adata)
    model.train(20, 12, accelerator="cpu", enable_progress_bar=False,
                devices=2, strategy="ddp", batch_size=64)
    weights = [p.detach().double().abs().sum().item() for p in model.module.parameters()]
    result = {
        "K": model.n_components_,
        "ari": adjusted_rand_score(adata.obs["component"], adata.obs["scgmvae"]),
        "elbo": model.history["elbo_train"].iloc[:, 0].tolist() if model.history else None,
        "weights": weights,
    }
    path = sys.argv[1] + "." + os.environ.get("LOCAL_RANK", "0")
    json.dump(result, open(path, "w"))
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path, train):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py", str(tmp_path / "result")],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"result.{rank}").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["K"] == second["K"]
    assert first["ari"] > 0.95
    assert second["ari"] > 0.95
    # as one process with minibatches of both
    adata = synthetic_counts(600, 80, n_components=3, seed=0)
    SCGMVAE.setup_anndata(adata)
    alone = SCGMVAE(adata)
    train(alone, max_epochs=20, pretrain_epochs=12, batch_size=128)
    np.testing.assert_allclose(first["elbo"], loss(alone), rtol=0.02)
