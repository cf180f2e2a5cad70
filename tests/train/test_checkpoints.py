"""Tests of train.checkpoints: a training that was killed ends as one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from scgmvae import SCGMVAE
from scgmvae.io import model_files

# 300 cells in minibatches of at most 64 are 5 steps an epoch; pretraining ends with step 15
STAGES = {"max_epochs": 4, "pretrain_epochs": 3}


class Killed(Exception):
    pass


class Kill(Callback):
    """Ends a training at a step, or at the start of the mixture."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise Killed


SETTINGS = {
    "K_found": ({}, {"n_components": None}, {}),
    "labels_and_batches": (
        {"batch_key": "batch", "labels_key": "type"},
        {},
        {"balance_key": "batch", "guide_weight": 3.0},
    ),
    "validation_and_schedule": (
        {},
        {"prior": "mixture"},
        {
            "train_size": 0.8,
            "check_val_every_n_epoch": 1,
            "plan_kwargs": {"lr": 2e-3, "lr_decline": 0.7},
        },
    ),
}


@pytest.fixture(scope="module")
def fresh(counts, make_model):
    """Function that makes a model of the same data anew, as one of ``SETTINGS`` says."""

    def make(which="K_found", adata=counts):
        adata = adata.copy()
        adata.obs["type"] = np.where(np.arange(adata.n_obs) % 3, adata.obs["component"], "unknown")
        setup, settings, _ = SETTINGS[which]
        return make_model(adata, setup, **settings)

    return make


@pytest.fixture(scope="module")
def unbroken(fresh, train):
    """Models that were trained without a break, by the name of their settings."""
    return {name: train(fresh(name), **STAGES, **SETTINGS[name][2]) for name in SETTINGS}


@pytest.fixture
def broken_at(fresh, train, tmp_path):
    """Function that trains with checkpoints until a step; returns their folder."""

    def run(step, which="K_found", **settings):
        settings = STAGES | {"checkpoint_every": 2} | SETTINGS[which][2] | settings
        with pytest.raises(Killed):
            train(
                fresh(which),
                checkpoint_dir=tmp_path / "run",
                callbacks=[Kill(step)],
                **settings,
            )
        return tmp_path / "run"

    return run


def assert_same(model, other):
    states = model.module.state_dict(), other.module.state_dict()
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert model.history.keys() == other.history.keys()
    for name, curve in model.history.items():
        pd.testing.assert_frame_equal(curve.astype(float), other.history[name].astype(float))
    pd.testing.assert_frame_equal(model.predict(soft=True), other.predict(soft=True))
    np.testing.assert_array_equal(model.train_indices, other.train_indices)
    pd.testing.assert_frame_equal(model.adata.obs, other.adata.obs)


# --------------------------------------------------------------------------- as if unbroken


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(2, id="before_the_first_epoch_ends"),
        pytest.param(12, id="pretraining"),
        pytest.param(16, id="just_after_the_start"),
        pytest.param(29, id="joint"),
        pytest.param(35, id="last"),
    ],
)
def test_a_resumed_training_ends_like_an_unbroken_one(fresh, unbroken, broken_at, step):
    model = fresh()
    model.train(resume_from=broken_at(step))
    assert_same(model, unbroken["K_found"])


@pytest.mark.parametrize("which", ["labels_and_batches", "validation_and_schedule"])
@pytest.mark.parametrize("step", [12, 22])
def test_whatever_the_settings(fresh, unbroken, broken_at, which, step):
    model = fresh(which)
    folder = broken_at(step, which)
    model.train(resume_from=str(folder))
    assert_same(model, unbroken[which])


def test_a_training_can_be_broken_twice(fresh, unbroken, broken_at):
    folder = broken_at(12)
    with pytest.raises(Killed):
        fresh().train(resume_from=folder, callbacks=[Kill(28)])
    model = fresh()
    model.train(resume_from=folder)
    assert_same(model, unbroken["K_found"])


def test_a_training_that_ended_is_only_read_out(fresh, train, unbroken, tmp_path):
    train(fresh(), checkpoint_dir=tmp_path / "run", **STAGES)
    model = fresh()
    model.train(resume_from=tmp_path / "run", callbacks=[Kill(1)])
    assert_same(model, unbroken["K_found"])


def test_a_further_training_goes_on(fresh, train, tmp_path):
    model = train(fresh(), **STAGES)
    model.save(tmp_path / "model")
    train(model, max_epochs=3)
    again = SCGMVAE.load(tmp_path / "model", fresh().adata, accelerator="cpu")
    with pytest.raises(Killed):
        folder = tmp_path / "run"
        train(again, max_epochs=3, checkpoint_dir=folder, checkpoint_every=1, callbacks=[Kill(8)])
    resumed = fresh()
    resumed.train(resume_from=tmp_path / "run")
    assert_same(resumed, model)
    assert resumed.component_names.tolist() == model.component_names.tolist()


def test_early_stopping_remembers_what_it_waits_for(fresh, train, tmp_path):
    # any rise is too small, so that it ends three epochs after the first joint one
    settings = {
        "max_epochs": 30,
        "pretrain_epochs": 2,
        "early_stopping": True,
        "early_stopping_patience": 3,
        "early_stopping_min_delta": 1e6,
    }
    model = train(fresh(), **settings)
    assert len(model.history["elbo_train"]) == 6
    with pytest.raises(Killed):
        train(
            fresh(),
            checkpoint_dir=tmp_path / "run",
            checkpoint_every=1,
            callbacks=[Kill(23)],
            **settings,
        )
    resumed = fresh()
    resumed.train(resume_from=tmp_path / "run")
    assert_same(resumed, model)
    # and that it has ended
    again = fresh()
    again.train(resume_from=tmp_path / "run", callbacks=[Kill(30)])
    assert_same(again, model)


def test_a_killed_process_loses_nothing(fresh, unbroken, tmp_path):
    script = tmp_path / "train.py"
    fresh().adata.write_h5ad(tmp_path / "counts.h5ad")
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal
            import anndata
            from lightning.pytorch.callbacks import Callback
            from scgmvae import SCGMVAE

            class Kill(Callback):
                def on_train_batch_end(self, trainer, *args):
                    if trainer.global_step == 27:
                        os.kill(os.getpid(), signal.SIGKILL)

            adata = anndata.read_h5ad({str(tmp_path / "counts.h5ad")!r})
            SCGMVAE.setup_anndata(adata)
            model = SCGMVAE(adata, n_hidden=32, n_latent=5, n_latent_w=4)
            model.train(max_epochs=4, pretrain_epochs=3, batch_size=64, accelerator="cpu",
                        checkpoint_dir={str(tmp_path / "run")!r}, checkpoint_every=2,
                        callbacks=[Kill()])
            """
        )
    )
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, script], env=one_thread, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    model = fresh()
    model.train(resume_from=tmp_path / "run")
    assert_same(model, unbroken["K_found"])


def test_no_random_state_is_touched(fresh, broken_at):
    folder = broken_at(22)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    fresh().train(resume_from=folder)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


# ------------------------------------------------------------------------------ what is written


def test_checkpoints_come_every_few_epochs_and_after_each_stage(
    fresh, train, tmp_path, monkeypatch
):
    moments = []
    write = SCGMVAE._write_files

    def remember(model, folder, prefix, attributes, training):
        moments.append((training["epoch"], attributes["mixture_started_"]))
        write(model, folder, prefix, attributes, training=training)

    monkeypatch.setattr(SCGMVAE, "_write_files", remember)
    train(fresh(), checkpoint_dir=tmp_path, checkpoint_every=2, max_epochs=4, pretrain_epochs=3)
    pretraining = [(0, False), (2, False), (3, False)]
    assert moments == [*pretraining, (3, True), (4, True), (6, True), (7, True)]
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert names == {"model", "training"}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("step", "n_epochs"), [(12, 2), (29, 4)])
def test_a_checkpoint_is_a_model_that_can_be_read_and_trained(
    fresh, train, broken_at, step, n_epochs
):
    folder = broken_at(step)
    model = SCGMVAE.load(folder, fresh().adata, accelerator="cpu")
    assert len(model.history["elbo_train"]) == n_epochs
    assert np.isfinite(model.get_latent_representation()).all()
    train(model, max_epochs=1, pretrain_epochs=1)
    assert model.adata.obs["scgmvae"].notna().all()


def test_a_full_disk_leaves_model_and_last_checkpoint(
    fresh, train, unbroken, tmp_path, monkeypatch
):
    save_file, calls = model_files.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) > 6:  # two files each time
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    model = fresh()
    with monkeypatch.context() as limited:
        limited.setattr(model_files, "save_file", full)
        with pytest.raises(OSError, match="could not be saved in .*No space left on device"):
            train(model, checkpoint_dir=tmp_path / "run", checkpoint_every=1, **STAGES)
    assert model.is_trained_
    assert np.isfinite(model.get_latent_representation()).all()
    model.save(tmp_path / "elsewhere")
    resumed = fresh()
    resumed.train(resume_from=tmp_path / "run")
    assert_same(resumed, unbroken["K_found"])


# ------------------------------------------------------------------------------------ errors


@pytest.fixture(scope="module")
def folder(fresh, train, tmp_path_factory):
    """A checkpoint; only to be read."""
    path = tmp_path_factory.mktemp("checkpoints") / "run"
    train(fresh(), checkpoint_dir=path, max_epochs=1, pretrain_epochs=1)
    return path


def state_of(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def assert_refused(model, words, error=ValueError, **settings):
    before = state_of(model)
    with pytest.raises(error, match=words):
        model.train(**settings)
    assert not model.is_trained_
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)
    assert not model.adata.obsm.keys()


def test_other_arguments_are_refused(fresh, folder):
    words = "arguments that it was begun with.*resume_from and max_epochs, seed. Leave out"
    assert_refused(fresh(), words, resume_from=folder, max_epochs=5, seed=0)


def test_a_folder_without_a_checkpoint_is_refused(fresh, tmp_path, unbroken):
    assert_refused(fresh(), "there is no model.json in it", resume_from=tmp_path)
    unbroken["K_found"].save(tmp_path / "model")
    words = "resume_from must be a folder of checkpoints, but .* without the state"
    assert_refused(fresh(), words, resume_from=tmp_path / "model")


def test_a_checkpoint_of_an_older_format_is_refused(fresh, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "older")
    path = tmp_path / "older" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    words = "must be a checkpoint of format 2, but .* has one of 1, which an older scgmvae wrote"
    assert_refused(fresh(), words, resume_from=tmp_path / "older")


def test_another_model_or_other_data_are_refused(fresh, folder, make_model):
    words = "has other settings of the model. Make the model"
    assert_refused(make_model(fresh().adata.copy(), {}, n_components=2), words, resume_from=folder)
    fewer = fresh().adata[:200].copy()
    words = "other cells, genes or values"
    assert_refused(make_model(fewer, {}, n_components=None), words, resume_from=folder)
    batches = make_model(fresh().adata.copy(), {"batch_key": "batch"}, n_components=None)
    assert_refused(batches, "other arguments of setup_anndata", resume_from=folder)


def test_a_damaged_checkpoint_is_refused(fresh, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    (file,) = (tmp_path / "run").glob("training.*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert_refused(fresh(), "is damaged: its SHA-256", resume_from=tmp_path / "run")
    # the model beside it is whole
    assert SCGMVAE.load(tmp_path / "run", fresh().adata, accelerator="cpu").is_trained_
    file.unlink()
    assert_refused(fresh(), "is missing", resume_from=tmp_path / "run")


def test_a_model_is_not_overwritten_by_checkpoints(fresh, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert_refused(fresh(), "checkpoint_dir must hold no model yet", checkpoint_dir=folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_arguments_that_no_file_holds_are_refused_before_training(fresh, tmp_path):
    assert_refused(
        fresh(),
        "checkpoint_dir keeps the arguments of train, but plan_kwargs has .*a function",
        TypeError,
        checkpoint_dir=tmp_path,
        plan_kwargs={"optimizer": "Custom", "optimizer_creator": lambda params: None},
    )
    assert not list(tmp_path.iterdir())


def test_epochs_between_checkpoints_are_counted(fresh, tmp_path):
    words = "checkpoint_every must be .* 1"
    assert_refused(fresh(), words, checkpoint_dir=tmp_path, checkpoint_every=0)


# ----------------------------------------------------------------- what reading it had shown


def test_a_query_is_resumed_on_a_frozen_reference(fresh, train, counts, tmp_path):
    adata = counts.copy()
    SCGMVAE.setup_anndata(adata, batch_key="batch")
    reference = train(SCGMVAE(adata, n_components=3, n_hidden=32, n_latent=5), **STAGES)

    def query():
        new = counts[:120].copy()
        new.obs["batch"] = "new"
        return SCGMVAE.load_query_data(new, reference)

    whole = train(query(), max_epochs=4)
    with pytest.raises(Killed):
        folder = tmp_path / "run"
        train(
            query(), max_epochs=4, checkpoint_dir=folder, checkpoint_every=1, callbacks=[Kill(5)]
        )
    resumed = query()
    trainable = {name for name, p in resumed.module.named_parameters() if p.requires_grad}
    resumed.train(resume_from=tmp_path / "run")
    assert_same(resumed, whole)
    assert {n for n, p in resumed.module.named_parameters() if p.requires_grad} == trainable


def test_a_training_out_of_steps_goes_on_where_it_was_saved(fresh, train, unbroken, tmp_path):
    train(fresh(), checkpoint_dir=tmp_path / "run", checkpoint_every=2, max_steps=22, **STAGES)
    model = fresh()
    model.train(resume_from=tmp_path / "run", max_steps=-1)
    assert_same(model, unbroken["K_found"])


def test_a_learning_rate_that_is_lowered_leaves_no_gap_in_the_history(fresh, train, tmp_path):
    settings = STAGES | {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_patience": 1}}
    whole = train(fresh(), **settings)
    assert whole.history["train_loss"].index.tolist() == list(range(7))
    with pytest.raises(Killed):
        train(
            fresh(),
            checkpoint_dir=tmp_path / "run",
            checkpoint_every=2,
            callbacks=[Kill(29)],
            **settings,
        )
    model = fresh()
    model.train(resume_from=tmp_path / "run")
    assert_same(model, whole)


def test_a_folder_that_cannot_be_written_leaves_the_model_untrained(fresh, train, tmp_path):
    (tmp_path / "file").touch()
    model = fresh()
    with pytest.raises(OSError, match="could not be saved"):
        train(model, checkpoint_dir=tmp_path / "file" / "run")
    assert not model.is_trained_


def test_other_values_of_the_same_cells_are_refused(fresh, counts, folder):
    twice = counts.copy()
    twice.X = twice.X * 2
    model = fresh(adata=twice)
    assert_refused(model, "other cells, genes or values", resume_from=folder)


def test_callbacks_with_a_state_are_missed(fresh, train, tmp_path):
    class Counts(Callback):
        def state_dict(self):
            return {"n": 1}

    train(fresh(), checkpoint_dir=tmp_path / "run", callbacks=[Counts()], **STAGES)
    words = "needs the callbacks that it was begun with, but these are missing: .*Counts. Give"
    assert_refused(fresh(), words, resume_from=tmp_path / "run")


@pytest.mark.parametrize("every", [1, 2])
def test_warm_up_of_early_stopping_is_told_in_epochs(fresh, train, every):
    model = train(
        fresh(),
        max_epochs=20,
        pretrain_epochs=4,
        early_stopping=True,
        early_stopping_patience=1,
        early_stopping_min_delta=1e6,
        check_val_every_n_epoch=every,
    )
    # one look sets the mark, the next is no better
    assert len(model.history["train_loss"]) == 4 + 2 * every
