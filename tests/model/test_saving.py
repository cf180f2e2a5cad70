"""Tests of model.saving: files that run no code, and that are whole or refused."""

import copy
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scvi.model.base import BaseModelClass

from scgmvae import SCGMVAE
from scgmvae.io import model_files
from scgmvae.io.values import decode, encode
from scgmvae.module.cgmvae import CGMVAE
from scgmvae.nn.layers import ConditionedLinear

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture(scope="module")
def model(counts, make_model, train):
    """A model with batches and labels; only to be read."""
    adata = counts.copy()
    adata.obs["type"] = np.where(np.arange(adata.n_obs) % 3, adata.obs["component"], "unknown")
    return train(make_model(adata, {"batch_key": "batch", "labels_key": "type"}))


@pytest.fixture(scope="module")
def other(counts, make_model, train):
    """Another model of the same data; only to be read."""
    return train(make_model(counts.copy(), {"batch_key": "batch"}), seed=1)


@pytest.fixture
def folder(model, tmp_path):
    """A folder with the saved model and its data."""
    model.save(tmp_path / "model", save_anndata=True)
    return tmp_path / "model"


def assert_same(loaded, model):
    torch.testing.assert_close(
        loaded.module.state_dict(), model.module.state_dict(), rtol=0, atol=0
    )
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))


# ---------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": [1, None, True, "x", 0.1 + 0.2]}, id="plain"),
        pytest.param((1, (2.5, "y")), id="tuples"),
        pytest.param({1: "one", False: "no", None: ()}, id="keys_that_are_no_strings"),
        pytest.param({"type": "array", "name": "0"}, id="a_mapping_that_looks_like_an_array"),
        pytest.param(np.float32(0.1), id="scalar"),
        pytest.param(np.bool_(True), id="boolean"),
        pytest.param(np.arange(6, dtype=np.int16).reshape(2, 3), id="integers"),
        pytest.param(np.array([0.1, np.nan, np.inf], dtype=np.float32), id="floats"),
        pytest.param(np.array(0.5), id="array_without_a_dimension"),
        pytest.param(np.arange(12.0).reshape(3, 4).T, id="columns_first"),
        pytest.param(np.array(["B", "äß"]), id="strings"),
        pytest.param(np.array(["B", 1, None, True], dtype=object), id="objects"),
        pytest.param(np.array([], dtype=np.int64), id="nothing"),
        pytest.param(
            pd.DataFrame({"loss": [1.5, np.nan]}, index=pd.Index([3, 4], name="epoch")),
            id="frame",
        ),
    ],
)
def test_a_value_comes_back_as_it_was(value):
    arrays = {}
    back = decode(json.loads(json.dumps(encode(value, arrays))), arrays)
    assert type(back) is type(value)
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(back, value)
    elif isinstance(value, np.ndarray | np.generic):
        assert back.dtype == value.dtype
        np.testing.assert_array_equal(back, value)
    else:
        assert back == value


def test_a_tensor_comes_back_as_one():
    value, arrays = torch.tensor([[0.5, -1.0]], dtype=torch.float64), {}
    back = decode(json.loads(json.dumps(encode({"of": value}, arrays))), arrays)["of"]
    assert torch.equal(back, value)
    assert back.dtype == value.dtype


def test_what_json_cannot_hold_is_named_and_nothing_is_written(model, tmp_path):
    model.note_ = {"file": Path("x")}
    try:
        with pytest.raises(TypeError, match="PosixPath"):
            model.save(tmp_path / "model")
    finally:
        del model.note_
    assert not (tmp_path / "model").exists()


# ----------------------------------------------------------------------------- save and load


def test_a_loaded_model_is_what_was_saved(model, folder):
    loaded = SCGMVAE.load(folder, accelerator="cpu")
    assert_same(loaded, model)
    pd.testing.assert_frame_equal(loaded.adata.obs, model.adata.obs)
    assert loaded.seed_ == model.seed_
    np.testing.assert_array_equal(loaded.train_indices, model.train_indices)
    for name, curve in model.history.items():
        pd.testing.assert_frame_equal(loaded.history[name], curve)
    assert loaded.init_params_ == model.init_params_


def test_a_loaded_module_is_ready_to_be_read(folder):
    loaded = SCGMVAE.load(folder, accelerator="cpu")
    assert not any(part.training for part in loaded.module.modules())


@pytest.mark.parametrize("is_pickle", [False, True], ids=["own_format", "pickle"])
def test_genes_of_given_data_are_put_into_the_models_order(model, tmp_path, is_pickle):
    save = BaseModelClass.save if is_pickle else SCGMVAE.save
    save(model, str(tmp_path / "model"))
    given = model.adata[:, ::-1].copy()
    loaded = SCGMVAE.load(tmp_path / "model", given, accelerator="cpu", allow_pickle=is_pickle)
    assert loaded.adata.var_names.tolist() == model.adata.var_names.tolist()
    assert given.var_names.tolist() == model.adata.var_names[::-1].tolist()
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-5
    )


def test_others_may_read_a_model_if_they_may_read_other_files(model, tmp_path):
    (tmp_path / "other").touch()
    model.save(tmp_path / "model", save_anndata=True)
    usual = (tmp_path / "other").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "model").iterdir()} == {usual}


def test_nothing_is_unpickled(model, folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    loaded = SCGMVAE.load(folder, accelerator="cpu")
    np.testing.assert_array_equal(loaded.predict(), model.predict())
    assert SCGMVAE.load_registry(folder)["setup_args"]["labels_key"] == "type"


def test_a_model_loads_from_links_as_hubs_keep_them(model, folder, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, path in enumerate(folder.iterdir()):
        blob = path.rename(tmp_path / "blobs" / str(number))
        (tmp_path / "snapshot" / path.name).symlink_to(blob)
    (tmp_path / "snapshot" / "README.md").write_text("A model card.")
    assert_same(SCGMVAE.load(tmp_path / "snapshot"), model)


def test_the_arguments_of_the_setup_can_be_seen(folder, capsys):
    SCGMVAE.view_setup_args(folder)
    shown = capsys.readouterr().out
    assert "batch_key" in shown
    assert "type" in shown


def test_files_of_others_stay_when_a_model_is_overwritten(other, folder):
    others = ["adata.raw.h5ad", "model.v1.safetensors", "notes.txt"]
    for name in others:
        (folder / name).write_text("mine")
    (folder / ".saving-old").mkdir()  # of a save that was killed
    os.utime(folder / ".saving-old", (0, 0))
    (folder / ".saving-now").mkdir()  # of one that goes on
    other.save(folder, overwrite=True)
    assert all((folder / name).read_text() == "mine" for name in others)
    assert not (folder / ".saving-old").exists()
    (folder / ".saving-now").rmdir()
    assert len(list(folder.iterdir())) == len(others) + 2


def test_a_prefix_is_no_folder(model, tmp_path):
    with pytest.raises(ValueError, match="beginning of a file name.*'sub/a_'"):
        model.save(tmp_path / "model", prefix="sub/a_")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("adata", ["data.h5ad", True])
def test_what_is_no_data_is_not_taken_for_it(folder, adata):
    with pytest.raises(ValueError, match="adata must be an AnnData.*read_h5ad"):
        SCGMVAE.load(folder, adata)


def test_a_model_without_its_data_is_loaded_with_a_warning(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="loaded without"):
        assert SCGMVAE.load(tmp_path / "model").adata is None


def test_a_category_that_json_lacks_is_named_with_a_remedy(counts, make_model, tmp_path):
    adata = counts.copy()
    adata.obs["age"] = pd.cut(np.arange(adata.n_obs), 2)
    model = make_model(adata, {"batch_key": "age"})
    with pytest.raises(TypeError, match="registry_ of the model has Interval.*strings"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_interrupt_after_the_last_rename_leaves_the_new_model(other, folder, monkeypatch):
    replace = Path.replace

    def interrupted(self, target):
        replace(self, target)
        if Path(target).name == "model.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.save(folder, overwrite=True)
    assert_same(SCGMVAE.load(folder, other.adata.copy(), accelerator="cpu"), other)


def test_models_share_a_folder_under_prefixes(model, other, tmp_path):
    model.save(tmp_path / "both", prefix="a_")
    other.save(tmp_path / "both", prefix="b_", overwrite=True)
    for prefix, saved in (("a_", model), ("b_", other)):
        loaded = SCGMVAE.load(
            tmp_path / "both", saved.adata.copy(), prefix=prefix, accelerator="cpu"
        )
        assert_same(loaded, saved)


def test_what_was_registered_is_told_of_the_model_with_the_prefix(model, other, tmp_path, capsys):
    model.save(tmp_path / "both")
    other.save(tmp_path / "both", prefix="b_", overwrite=True)
    for prefix, labels_key in ((None, "type"), ("b_", None)):
        registry = SCGMVAE.load_registry(tmp_path / "both", prefix)
        assert registry["setup_args"]["labels_key"] == labels_key
        SCGMVAE.view_setup_args(tmp_path / "both", prefix)
        assert ("'labels_key': 'type'" in capsys.readouterr().out) == (labels_key == "type")


def test_a_folder_is_not_overwritten_unasked(other, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="overwrite=True"):
        other.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_overwriting_leaves_the_files_of_the_new_model_alone(other, folder):
    other.save(folder, overwrite=True)
    suffixes = sorted("".join(path.suffixes[-1:]) for path in folder.iterdir())
    assert suffixes == [".json", ".safetensors"]
    assert_same(SCGMVAE.load(folder, other.adata.copy(), accelerator="cpu"), other)


# ----------------------------------------------------------------------------------- pickles


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_no_code_unless_it_is_allowed(tmp_path):
    folder, trace = tmp_path / "model", tmp_path / "trace"
    folder.mkdir()
    torch.save(Payload(trace), folder / "model.pt")
    for read in (SCGMVAE.load, SCGMVAE.load_registry, SCGMVAE.view_setup_args):
        with pytest.raises(ValueError, match="allow_pickle=True"):
            read(folder)
        assert not trace.exists()
    with pytest.raises((AttributeError, TypeError)):
        SCGMVAE.load(folder, allow_pickle=True)
    assert trace.exists()  # so the file would have run its code


@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_a_trained_model_can_be_pickled(counts, make_model, train, tmp_path, with_checkpoints):
    model = make_model(counts.copy(), {"batch_key": "batch"})
    settings = {"checkpoint_dir": tmp_path / "checkpoints"} if with_checkpoints else {}
    train(model, early_stopping=with_checkpoints, **settings)
    pickled = pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for made in (pickled, torch.load(file, weights_only=False), copy.deepcopy(model)):
        np.testing.assert_array_equal(made.predict(), model.predict())
        train(made)  # and goes on
        assert len(made.history["elbo_train"]) > 0


def test_a_model_whose_steps_get_shorter_can_be_pickled(counts, make_model, train):
    model = train(make_model(counts.copy()), plan_kwargs={"lr_decline": 0.5})
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(), model.predict())


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0", r"device='cuda:0' asks for a GPU that is not there: 0 are found.*device='cpu'"),
        ("gpu:0", r"device must be 'auto', a number, or the name of a device.*'gpu:0'"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_that_are_not_there_are_refused(folder, model, device, message):
    with pytest.raises(ValueError, match=message):
        SCGMVAE.load(folder, model.adata.copy(), device=device)


def test_a_device_can_be_named_as_torch_does(folder, model):
    assert SCGMVAE.load(folder, False, device="cpu").device == torch.device("cpu")


def test_the_format_of_scvi_tools_is_read_on_request(model, counts, tmp_path):
    BaseModelClass.save(model, str(tmp_path / "model"))
    loaded = SCGMVAE.load(
        tmp_path / "model", model.adata.copy(), accelerator="cpu", allow_pickle=True
    )
    assert_same(loaded, model)


# ------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("kind", ["model.json", "safetensors", "h5ad"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_file_is_named(folder, kind, damage):
    (path,) = (path for path in folder.iterdir() if path.name.endswith(kind))
    content = path.read_bytes()
    if damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=path.name) as caught:
        SCGMVAE.load(folder)
    expected = "damaged"
    if damage == "missing":
        expected = "no model.json" if kind == "model.json" else "missing"
    assert expected in str(caught.value)


def test_a_document_that_was_changed_by_hand_is_damaged(folder):
    path = folder / "model.json"
    document = json.loads(path.read_text())
    document["content"]["attributes"]["seed_"] += 1
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        SCGMVAE.load(folder)


def test_damaged_data_do_not_matter_where_others_are_given(model, folder):
    (path,) = folder.glob("*.h5ad")
    path.write_bytes(b"damaged")
    assert_same(SCGMVAE.load(folder, model.adata.copy(), accelerator="cpu"), model)
    assert SCGMVAE.load_registry(folder)["setup_args"]["batch_key"] == "batch"


def rewrite(folder, change):
    """Change a saved model's JSON, with a checksum that fits."""
    path = folder / "model.json"
    document = json.loads(path.read_text())
    change(document)
    document["sha256"] = model_files._digest(document["content"])
    path.write_text(json.dumps(document))


def test_a_newer_format_asks_for_an_update(folder):
    rewrite(folder, lambda document: document.update(format=model_files.FORMAT + 1))
    with pytest.raises(ValueError, match="Update scgmvae"):
        SCGMVAE.load(folder)


def test_another_class_is_named(folder):
    rewrite(folder, lambda document: document["content"].update({"class": "SCVI"}))
    with pytest.raises(ValueError, match="must be a SCGMVAE, but it is a SCVI"):
        SCGMVAE.load(folder)


def point_outside(document):
    document["content"]["files"]["model.safetensors"]["name"] = "../outside.safetensors"


def point_at_the_folder(document):
    document["content"]["files"]["model.safetensors"]["name"] = ".."


def overwrite_a_method(document):
    document["content"]["attributes"]["to_device"] = "x"


@pytest.mark.parametrize(
    "change",
    [
        point_outside,
        point_at_the_folder,
        overwrite_a_method,
        pytest.param(lambda document: document["content"].pop("files"), id="no_files"),
        pytest.param(lambda document: document["content"].pop("class"), id="no_class"),
        pytest.param(lambda document: document.update(content=[1, 2]), id="no_content"),
        pytest.param(lambda document: document.update(format="x"), id="no_number"),
    ],
)
def test_a_document_that_is_not_of_a_model_is_refused(folder, change):
    for path in folder.glob("*.safetensors"):
        shutil.copy(path, folder.parent / "outside.safetensors")
    rewrite(folder, change)
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        SCGMVAE.load(folder)


# -------------------------------------------------------------------------- interrupted saving


@pytest.mark.parametrize("at", ["tensors", "data", "first_rename", "json"])
def test_a_full_disk_leaves_the_model_that_was_there(model, other, folder, monkeypatch, at):
    before = sorted(path.name for path in folder.iterdir())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        if at == "tensors":
            broken.setattr(model_files, "save_file", full)
        elif at == "data":
            broken.setattr("anndata.AnnData.write_h5ad", full)
        else:
            broken.setattr(Path, "replace" if at == "first_rename" else "write_text", full)
        with pytest.raises(OSError, match="No space left on device.*is as it was"):
            other.save(folder, overwrite=True, save_anndata=True)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert_same(SCGMVAE.load(folder, accelerator="cpu"), model)
    other.predict()


def test_a_save_that_fails_leaves_no_folder(model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_files, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from scgmvae import SCGMVAE
model = SCGMVAE.load(sys.argv[1], accelerator="cpu")
model.seed_ = 99
replace = Path.replace
def dying(self, target):
    if str(target).endswith("model.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = dying
model.save(sys.argv[1], overwrite=True, save_anndata=True)
"""


def test_a_killed_save_leaves_the_model_that_was_there(model, folder):
    run = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert run.returncode == -signal.SIGKILL
    loaded = SCGMVAE.load(folder, accelerator="cpu")
    assert_same(loaded, model)
    assert loaded.seed_ == model.seed_


def test_data_that_a_model_lacks_cannot_be_saved(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # asked for none, so no warning that there are none
        model = SCGMVAE.load(folder, adata=False, accelerator="cpu")
    with pytest.raises(ValueError, match="needs data"):
        model.save(tmp_path / "again", save_anndata=True)
    assert not (tmp_path / "again").exists()


# -------------------------------------------------------------------------- formats so far


def test_weights_of_the_first_format_had_a_row_for_each_output():
    def make(seed):
        torch.manual_seed(seed)
        return CGMVAE(6, 2, (3,), 2, n_components=3, n_latent=4, n_hidden=5)

    written, read = make(0), make(1)
    weights = written.state_dict()
    layers = [
        name for name, part in written.named_modules() if isinstance(part, ConditionedLinear)
    ]
    of_layers = {f"{name}.{part}" for name in layers for part in ("weight", "slopes")}
    assert len(of_layers & weights.keys()) > len(layers)  # some have slopes
    older = {key: value.T if key in of_layers else value for key, value in weights.items()}
    model_files.Saved({}, None, older, None, None, format=1).put_weights(read)
    for key, value in read.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("number", range(1, model_files.FORMAT + 1))
def test_models_of_every_format_load(number):
    """Each was written, with its data and results, by the first version that had the format."""
    loaded = SCGMVAE.load(MODELS / f"format_{number}", accelerator="cpu")
    results = loaded.adata.copy()
    with pytest.warns(UserWarning, match="novelty of the cells is left out"):
        loaded.annotate()  # these formats measured it otherwise
    assert loaded.adata.obs["scgmvae_novelty"].isna().all()
    assert loaded.adata.obs["scgmvae_confidence"].between(0, 1).all()
    with pytest.raises(RuntimeError, match="by an earlier version"):
        loaded.get_novelty()
    for key in ("X_scgmvae", "X_scgmvae_w", "scgmvae_proba"):
        np.testing.assert_allclose(loaded.adata.obsm[key], results.obsm[key], atol=1e-4)
    assert loaded.adata.obs["scgmvae"].tolist() == results.obs["scgmvae"].tolist()
    assert len(loaded.history["elbo_train"]) == 5
