"""Model files that cannot run code: tensors as safetensors, all else as JSON.

A saved model is a folder with

* ``model.json``: format, versions, names and SHA-256 of the other files, registry and settings;
* ``model.<hash>.safetensors``: weights, and the larger arrays;
* ``adata.<hash>.h5ad``, if the data were saved as well;
* ``training.<hash>.safetensors`` in a checkpoint: arrays of the state of the training.

The JSON file is written last and put in place by one rename. Until then it names the files of the
model that was there before, so a save that is killed leaves that model whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scgmvae.io.values import decode, encode
from scgmvae.nn.layers import ConditionedLinear
from scgmvae.versions import versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMAT", "PICKLE", "Saved", "check_there", "read", "write"]

FORMAT = 2
"""Version of the format. Raised when an older scgmvae could not read what this one writes.

Format 1 had the weights of :class:`~scgmvae.nn.layers.ConditionedLinear` as
:class:`torch.nn.Linear` has them, with a row for each output."""

ARRAY, WEIGHT = "array.", "weight."
"""Prefixes of the names of tensors: arrays of the settings, and weights of the module."""

PICKLE = "model.pt"
"""File of a model in scvi-tools' own format."""

ABANDONED = 3600
"""Seconds after which an unfinished save counts as killed."""

WEIGHTS_FILE, DATA_FILE, TRAINING_FILE = "model.safetensors", "adata.h5ad", "training.safetensors"
"""Names of the files without their hashes; the last two are optional."""

Writer = Callable[[Path], object]
"""Function that writes a file to a path."""


def check_there(folder: Path, prefix: str = "") -> None:
    """Raise ``ValueError`` if a folder holds no model in our files, and say what it holds."""
    if (folder / f"{prefix}model.json").exists():
        return
    if not (folder / f"{prefix}{PICKLE}").exists():
        raise ValueError(
            f"{folder} must hold a saved model, but there is no {prefix}model.json in it. Check "
            "the folder and the prefix."
        )
    raise ValueError(
        f"{folder / (prefix + PICKLE)} is a pickle, scvi-tools' format, which can run any code "
        "when it is loaded. If you trust who made it, load it with allow_pickle=True and save it "
        "again."
    )


class Saved(NamedTuple):
    """What the files of a model hold."""

    attributes: dict[str, Any]
    var_names: NDArray
    weights: dict[str, Tensor]
    adata_path: Path | None
    training: dict[str, Any] | None
    format: int

    def put_weights(self, module: nn.Module) -> None:
        """Give a module of the same shape the weights.

        Parameters
        ----------
        module
            The module.
        """
        weights = dict(self.weights)
        for name, layer in module.named_modules():
            if self.format == 1 and isinstance(layer, ConditionedLinear):
                names = {f"{name}.weight", f"{name}.slopes"} & weights.keys()
                weights |= {key: weights[key].T for key in names}
        module.load_state_dict(weights)


# ------------------------------------------------------------------------------- writing


def write(
    folder: Path,
    prefix: str,
    class_name: str,
    var_names: NDArray,
    attributes: Mapping[str, object],
    weights: Mapping[str, Tensor],
    write_data: Writer | None = None,
    training: Mapping[str, object] | None = None,
) -> None:
    """Write a model in place of the one that is there.

    Parameters
    ----------
    folder, prefix
        As in :meth:`scgmvae.SCGMVAE.save`.
    class_name
        Class of the model.
    var_names
        Names of the genes of the model.
    attributes
        Attributes of the model by name.
    weights
        Weights of the module of the model.
    write_data
        Function that writes the data; ``None`` if they are not saved.
    training
        State of a training, for a checkpoint; ``None`` for a saved model.

    Raises
    ------
    OSError
        If a file cannot be written. What was there stays as it was.
    TypeError
        If an attribute has no place in JSON.
    """
    arrays: dict[str, NDArray] = {}
    content: dict[str, Any] = {
        "class": class_name,
        "versions": versions(),
        "var_names": encode(np.asarray(var_names), arrays),
        "attributes": {name: _encode(name, v, arrays) for name, v in attributes.items()},
    }
    tensors = _tensors_of(arrays)
    tensors |= {WEIGHT + k: v.detach().cpu().contiguous() for k, v in weights.items()}
    writers: dict[str, Writer] = {WEIGHTS_FILE: lambda path: save_file(tensors, path)}
    if write_data is not None:
        writers[DATA_FILE] = write_data
    if training is not None:
        training_arrays: dict[str, NDArray] = {}
        content["training"] = encode(training, training_arrays)
        writers[TRAINING_FILE] = lambda path: save_file(_tensors_of(training_arrays), path)
    try:
        _put_in_place(folder, prefix, content, writers)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"The model could not be saved in {folder}: {error}. A model that was there "
            "before is as it was, and this one can be saved elsewhere."
        ) from error


def _tensors_of(arrays: Mapping[str, NDArray]) -> dict[str, Tensor]:
    return {ARRAY + name: torch.from_numpy(array) for name, array in arrays.items()}


def _encode(attribute: str, value: object, arrays: dict[str, NDArray]) -> object:
    try:
        return encode(value, arrays)
    except TypeError as error:
        raise TypeError(
            "A model file holds numbers, strings, arrays, tables, lists and mappings, but "
            f"{attribute} of the model has {error}. If it is a category of an obs column, make "
            "that column one of strings and set the data up anew; or keep a pickle, with "
            "scvi.model.base.BaseModelClass.save(model, folder)."
        ) from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put_in_place(
    folder: Path, prefix: str, content: dict[str, Any], writers: dict[str, Callable]
) -> None:
    """Write files beside what is there, then put the JSON file that names them in place."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    document_path = folder / f"{prefix}model.json"
    replaced = _named_in(document_path)
    workshop = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    placed: list[Path] = []
    try:
        usual = workshop / "permissions"
        usual.touch()
        content["files"] = {}
        for name, write in writers.items():
            made = workshop / name
            write(made)
            shutil.copymode(usual, made)  # some writers let nobody else read
            digest = _digest_of_file(made)
            stem, suffix = name.split(".")
            final = folder / f"{prefix}{stem}.{digest[:12]}.{suffix}"
            if not final.exists():  # otherwise the same file is there already
                placed.append(final)
            _to_disk(made)
            made.replace(final)
            content["files"][name] = {"name": final.name, "sha256": digest}
        document = {"format": FORMAT, "sha256": _digest(content), "content": content}
        made = workshop / "model.json"
        made.write_text(json.dumps(document))
        _to_disk(made)
        _to_disk(folder)  # the files come to disk before the document that names them
        made.replace(document_path)
        _to_disk(folder)
    except BaseException:
        kept = _named_in(document_path)  # an interrupt can come after the last rename
        for path in placed:
            if path.name not in kept:
                path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
    for name in replaced - _named_in(document_path):
        (folder / name).unlink(missing_ok=True)
    # saves that were killed have left these; a save that still runs is younger
    for left in folder.glob(".saving-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named_in(document_path: Path) -> set[str]:
    """Names of the files that belong to a saved model; none where there is no model."""
    try:
        entries = json.loads(document_path.read_text())["content"]["files"].values()
        return {entry["name"] for entry in entries if _is_plain(entry["name"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _is_plain(name: object) -> bool:
    """Whether a file of that name lies in the folder itself."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _check_content(content: dict[str, Any]) -> None:
    """Raise ``TypeError`` where the document is not built as :func:`write` does."""
    files, attributes = content["files"], content["attributes"]
    is_sound = (
        "model.safetensors" in files
        and all(_is_plain(e["name"]) and isinstance(e["sha256"], str) for e in files.values())
        and all(name.endswith("_") and name.isidentifier() for name in attributes)
        and "registry_" in attributes
        and {"class", "var_names"} <= content.keys()
    )
    if not is_sound:
        raise TypeError("the document is not one of a model")


# ------------------------------------------------------------------------------- reading


def read(folder: Path, prefix: str, class_name: str, wanted: Set[str] = frozenset()) -> Saved:
    """Read what a folder holds, and check it against its checksums.

    Parameters
    ----------
    folder, prefix
        As in :meth:`scgmvae.SCGMVAE.load`.
    class_name
        Class that the model must be of.
    wanted
        Which of the optional files, :data:`DATA_FILE` and :data:`TRAINING_FILE`, to read as well.

    Raises
    ------
    ValueError
        As in :meth:`scgmvae.SCGMVAE.load`.
    """
    path = folder / f"{prefix}model.json"
    found, content = _document(path)
    if content["class"] != class_name:
        raise ValueError(
            f"{path} must be a {class_name}, but it is a {content['class']}. Load it with that "
            "class."
        )
    wanted = wanted | {WEIGHTS_FILE}
    entries = {name: entry for name, entry in content["files"].items() if name in wanted}
    paths = {name: _whole(folder / entry["name"], entry) for name, entry in entries.items()}
    tensors = load_file(paths[WEIGHTS_FILE])
    arrays, training = _arrays_in(tensors), None
    if TRAINING_FILE in paths:
        training_arrays = _arrays_in(load_file(paths[TRAINING_FILE]))
        training = decode(content["training"], training_arrays)
    weights = {k.removeprefix(WEIGHT): v for k, v in tensors.items() if k.startswith(WEIGHT)}
    return Saved(
        {name: decode(value, arrays) for name, value in content["attributes"].items()},
        decode(content["var_names"], arrays),
        weights,
        paths.get(DATA_FILE),
        training,
        found,
    )


def _document(path: Path) -> tuple[int, dict[str, Any]]:
    """Format and content of the JSON file; ``ValueError`` where it is newer or damaged."""
    damaged = f"{path} is damaged: it is not what scgmvae wrote. Restore it from a copy."
    try:
        document = json.loads(path.read_text())
        found, content = document["format"], document["content"]
        if isinstance(found, int) and found <= FORMAT:
            _check_content(content)
        if found > FORMAT:
            raise ValueError(
                f"{path} has format {found}, and this scgmvae reads formats up to {FORMAT}. "
                "Update scgmvae."
            )
        if document["sha256"] != _digest(content):
            raise ValueError(damaged)
    except (
        KeyError,
        TypeError,
        AttributeError,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:
        raise ValueError(damaged) from error
    return found, content


def _whole(file: Path, entry: Mapping[str, str]) -> Path:
    """A file of a model; ``ValueError`` where it is missing or damaged."""
    if not file.exists():
        raise ValueError(f"{file} is missing: the model in {file.parent} is not whole.")
    if _digest_of_file(file) != entry["sha256"]:
        raise ValueError(
            f"{file} is damaged: its SHA-256 is not the {entry['sha256'][:12]}… that was "
            "written. Restore it from a copy."
        )
    return file


def _arrays_in(tensors: Mapping[str, Tensor]) -> dict[str, NDArray]:
    return {k.removeprefix(ARRAY): v.numpy() for k, v in tensors.items() if k.startswith(ARRAY)}
