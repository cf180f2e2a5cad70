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
import warnings
from collections.abc import Callable, Mapping, Set
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Self

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data import _constants as scvi_constants
from scvi.model._utils import parse_device_args
from scvi.model.base._save_load import _initialize_model, _validate_var_names
from torch import Tensor, nn

from scgmvae.checks import unchanged_on_error
from scgmvae.data.genes import match_genes
from scgmvae.nn.networks import ConditionedLinear

__all__ = ["FORMAT", "Saved", "SavingMixin", "check_there", "decode", "encode", "read"]

FORMAT = 2
"""Version of the format. Raised when an older scgmvae could not read what this one writes.

1 had the weights of :class:`~scgmvae.nn.networks.ConditionedLinear` as :class:`torch.nn.Linear`
has them, with a row for each output."""

KIND = "type"
"""Key of a JSON object that stands for a value that JSON does not have."""

ARRAY, WEIGHT = "array.", "weight."
PICKLE = "model.pt"
ABANDONED = 3600
"""Seconds after which an unfinished save counts as killed."""
OPTIONAL = {"adata.h5ad", "training.safetensors"}
PACKAGES = ("scgmvae", "scvi-tools", "torch", "anndata")


class SavingMixin:
    """``save`` and ``load``."""

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: object,
    ) -> None:
        """Save the model, in files that cannot run code when they are loaded.

        Optimiser states are not saved.

        Parameters
        ----------
        dir_path
            Folder to write into.
        prefix
            Prefix of the files' names, where several models share a folder.
        overwrite
            Write into a folder that exists. A model that it holds is replaced once the new one is
            whole.
        save_anndata
            Save the data as well.
        **anndata_write_kwargs
            Further arguments of :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        OSError
            If the files cannot be written. What was there stays as it was.
        TypeError
            If the model holds something that has no place in JSON, as a category that is neither
            number, string nor boolean; or for an argument that there is not.
        ValueError
            If the folder exists and ``overwrite`` is False, or there is no data to save.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder, overwrite=True)
        ...     same = scgmvae.SCGMVAE.load(folder, adata)
        >>> bool((same.predict() == model.predict()).all())
        True
        """
        folder, prefix = Path(dir_path), prefix or ""
        if Path(prefix).name != prefix:
            raise ValueError(
                f"prefix must be the beginning of a file name, but it is {prefix!r}. Name folders "
                "in dir_path."
            )
        if folder.exists() and not overwrite:
            raise ValueError(
                f"The folder must not exist yet, but {folder} does. Give another, or "
                "overwrite=True."
            )
        if anndata_write_kwargs and not save_anndata:
            raise TypeError(
                "save has further arguments for the data alone, with save_anndata=True, but got: "
                f"{', '.join(anndata_write_kwargs)}."
            )
        if save_anndata and self.adata is None:
            raise ValueError("save_anndata=True needs data, but this model was loaded without.")
        writers = {}
        if save_anndata:
            writers["adata.h5ad"] = lambda path: self.adata.write_h5ad(
                path, **anndata_write_kwargs
            )
        self._save(folder, prefix, self._attributes(), writers)

    def _attributes(self) -> dict[str, object]:
        """What of the model is kept, by scvi-tools' rule that its name ends in one underscore."""
        return {name: v for name, v in self._get_user_attributes() if name.endswith("_")}

    def _save(
        self,
        folder: Path,
        prefix: str,
        attributes: dict[str, object],
        writers: dict[str, Callable],
        training: dict[str, object] | None = None,
    ) -> None:
        """Write the model, and further files by their writers, in place of what is there."""
        arrays: dict[str, NDArray] = {}
        content = {
            "class": type(self).__name__,
            "versions": {name: version(name) for name in PACKAGES},
            "var_names": encode(np.asarray(self.get_var_names()), arrays),
            "attributes": {name: _encode(name, v, arrays) for name, v in attributes.items()},
        }
        tensors = {ARRAY + name: torch.from_numpy(array) for name, array in arrays.items()}
        weights = self.module.state_dict()
        tensors |= {WEIGHT + k: v.detach().cpu().contiguous() for k, v in weights.items()}
        writers = {"model.safetensors": lambda path: save_file(tensors, path)} | writers
        if training is not None:
            of_training: dict[str, NDArray] = {}
            content["training"] = encode(training, of_training)
            state = {ARRAY + name: torch.from_numpy(array) for name, array in of_training.items()}
            writers["training.safetensors"] = lambda path: save_file(state, path)
        try:
            _write(folder, prefix, content, writers)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"The model could not be saved in {folder}: {error}. A model that was there "
                "before is as it was, and this one can be saved elsewhere."
            ) from error

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | MuData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        *,
        allow_pickle: bool = False,
        **kwargs: object,
    ) -> Self:
        """Load a saved model.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        adata
            Data with the genes of the model; a copy with the genes in the model's order is taken
            where they are in another. ``None`` takes the data saved with the model, if any;
            ``False`` takes none.
        accelerator, device
            Where to put the model, as in Lightning; ``"auto"`` takes a GPU where there is one.
        prefix
            Prefix of the files' names.
        allow_pickle
            Read a model in scvi-tools' own format. Such a file can run any code when it is loaded:
            allow it only where you trust who made it.
        **kwargs
            Further arguments of :meth:`scvi.model.base.BaseModelClass.load`, for a pickle alone.

        Raises
        ------
        ValueError
            If there is no model, it is of another class, of a newer format, a pickle, or damaged:
            a file is missing or not what was written.
        """
        is_given = isinstance(adata, AnnData | MuData)
        if not (is_given or adata is None or adata is False):
            raise ValueError(
                "adata must be an AnnData or a MuData, None or False, but it is a "
                f"{type(adata).__name__}. Read a file with anndata.read_h5ad first."
            )
        folder, prefix = Path(dir_path), prefix or ""
        is_pickle = (folder / f"{prefix}{PICKLE}").exists()
        if allow_pickle and is_pickle and not (folder / f"{prefix}model.json").exists():
            if is_given:
                registry = super().load_registry(str(folder), prefix)
                adata = cls._anndata_of(adata, {"registry_": registry})
                adata = match_genes(adata, _gene_names(registry))
            return super().load(str(folder), adata, accelerator, device, prefix=prefix, **kwargs)
        check_there(folder, prefix)
        if kwargs:
            raise TypeError(f"load got arguments that it does not have: {', '.join(kwargs)}.")
        _, _, target = parse_device_args(
            accelerator, device, return_device="torch", validate_single_device=True
        )
        wanted = {"adata.h5ad"} if adata is None else set()
        saved = read(folder, prefix, cls.__name__, wanted)
        if is_given:
            adata = cls._anndata_of(adata, saved.attributes)
        registry = saved.attributes.pop("registry_")
        if adata is None and saved.adata_path is not None:
            adata = anndata.read_h5ad(saved.adata_path)
        elif adata is None:
            warnings.warn(
                "No data were saved with the model and none are given, so it is loaded without. "
                "adata=False asks for that.",
                UserWarning,
                stacklevel=2,
            )
        if isinstance(adata, AnnData):
            adata = match_genes(adata, _gene_names(registry))
            _validate_var_names(adata, saved.var_names)
        else:
            adata = None
        with unchanged_on_error(adata) if adata is not None else nullcontext():
            if adata is not None:
                setup = registry[scvi_constants._SETUP_ARGS_KEY]
                cls.setup_anndata(adata, source_registry=registry, **setup)
            model = _initialize_model(cls, adata, registry, saved.attributes, None)
            model.module.on_load(model)
            saved.put_weights(model.module)
            model.to_device(target)
            model.module.eval()
            model._model_summary_string = model._summary()
            if adata is not None:
                model._validate_anndata(adata)
        return model

    @classmethod
    def _saved_weights(cls, dir_path: str | Path) -> dict[str, Tensor]:
        """The weights of a saved model."""
        return read(Path(dir_path), "", cls.__name__).weights

    @classmethod
    def load_registry(cls, dir_path: str | Path, prefix: str | None = None) -> dict[str, object]:
        """The registry of a saved model, without loading it.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.

        Raises
        ------
        ValueError
            As in :meth:`load`; a pickle is not read.
        """
        folder, prefix = Path(dir_path), prefix or ""
        check_there(folder, prefix)
        return read(folder, prefix, cls.__name__).attributes["registry_"]

    @classmethod
    def view_setup_args(cls, dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments of ``setup_anndata`` that a saved model was set up with.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.
        """
        AnnDataManager.view_setup_method_args(cls.load_registry(dir_path, prefix))

    @classmethod
    def convert_legacy_save(cls, *args: object, **kwargs: object) -> None:
        """Not available: no model of this class is as old as what scvi-tools converts.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.base.BaseModelClass.convert_legacy_save`.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            "scvi-tools converts pickles of before its version 0.15, and there are none of "
            f"{cls.__name__}. Load a model with {cls.__name__}.load(folder), and one that was "
            "kept as a pickle with allow_pickle=True."
        )


def _gene_names(registry: Mapping[str, dict]) -> NDArray:
    genes = registry[scvi_constants._FIELD_REGISTRIES_KEY][REGISTRY_KEYS.X_KEY]
    return genes[scvi_constants._STATE_REGISTRY_KEY]["column_names"]


def check_there(folder: Path, prefix: str = "") -> None:
    """Raise ``ValueError`` where a folder holds no model in our files, and say what it holds."""
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


# ------------------------------------------------------------------------------ files


class Saved(NamedTuple):
    """What the files of a model hold."""

    attributes: dict[str, object]
    var_names: NDArray
    weights: dict[str, Tensor]
    adata_path: Path | None
    training: dict[str, object] | None
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
                of_layer = {f"{name}.weight", f"{name}.slopes"} & weights.keys()
                weights |= {key: weights[key].T for key in of_layer}
        module.load_state_dict(weights)


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(
    folder: Path, prefix: str, content: dict[str, object], writers: dict[str, Callable]
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
            if not final.exists():  # else it is the very same
                placed.append(final)
            _to_disk(made)
            made.replace(final)
            content["files"][name] = {"name": final.name, "sha256": digest}
        document = {"format": FORMAT, "sha256": _digest(content), "content": content}
        made = workshop / "model.json"
        made.write_text(json.dumps(document))
        _to_disk(made)
        _to_disk(folder)  # the names of the files before the one that refers to them
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
    for left in folder.glob(".saving-*"):  # by saves that were killed, not those that go on
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Have a file, or the names in a folder, outlast a loss of power."""
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


def _check_content(content: dict[str, object]) -> None:
    """Raise ``TypeError`` where the document is not built as :meth:`SavingMixin.save` does."""
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


def read(folder: Path, prefix: str, class_name: str, wanted: Set[str] = frozenset()) -> Saved:
    """What a folder holds, checked against its checksums.

    Parameters
    ----------
    folder, prefix
        As in :meth:`SavingMixin.load`.
    class_name
        Class that the model must be of.
    wanted
        Which of the optional files, ``adata.h5ad`` and ``training.safetensors``, to read as well.

    Raises
    ------
    ValueError
        As in :meth:`SavingMixin.load`.
    """
    path = folder / f"{prefix}model.json"
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
    if content["class"] != class_name:
        raise ValueError(
            f"{path} must be a {class_name}, but it is a {content['class']}. Load it with that "
            "class."
        )
    paths = {}
    for name, entry in content["files"].items():
        if name in OPTIONAL and name not in wanted:
            continue
        paths[name] = file = folder / entry["name"]
        if not file.exists():
            raise ValueError(f"{file} is missing: the model in {folder} is not whole.")
        if _digest_of_file(file) != entry["sha256"]:
            raise ValueError(
                f"{file} is damaged: its SHA-256 is not the {entry['sha256'][:12]}… that was "
                "written. Restore it from a copy."
            )
    tensors = load_file(paths["model.safetensors"])
    arrays, training = _arrays_in(tensors), None
    if "training.safetensors" in paths:
        of_training = _arrays_in(load_file(paths["training.safetensors"]))
        training = decode(content["training"], of_training)
    weights = {k.removeprefix(WEIGHT): v for k, v in tensors.items() if k.startswith(WEIGHT)}
    return Saved(
        {name: decode(value, arrays) for name, value in content["attributes"].items()},
        decode(content["var_names"], arrays),
        weights,
        paths.get("adata.h5ad"),
        training,
        found,
    )


def _arrays_in(tensors: Mapping[str, Tensor]) -> dict[str, NDArray]:
    return {k.removeprefix(ARRAY): v.numpy() for k, v in tensors.items() if k.startswith(ARRAY)}


# ------------------------------------------------------------------------------ values


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


def encode(value: object, arrays: dict[str, NDArray]) -> object:
    """A value as JSON has it; arrays of numbers go into ``arrays`` and leave their name.

    Parameters
    ----------
    value
        Numbers, strings, ``None``, arrays, tensors, DataFrames, and lists, tuples and mappings of
        these.
    arrays
        Gets the arrays.

    Raises
    ------
    TypeError
        For any other value.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return {KIND: "scalar", "dtype": value.dtype.str, "value": encode(value.item(), arrays)}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            name = str(len(arrays))
            arrays[name] = np.array(value, order="C")
            return {KIND: "array", "name": name}
        values = [encode(v, arrays) for v in value.ravel().tolist()]
        kind = "U" if value.dtype.kind == "U" else "O"
        return {KIND: "array", "kind": kind, "shape": value.shape, "values": values}
    if isinstance(value, Tensor):
        return {KIND: "tensor", "value": encode(value.detach().cpu().numpy(), arrays)}
    if isinstance(value, pd.DataFrame):
        columns = [encode(value[name].to_numpy(), arrays) for name in value.columns]
        return {
            KIND: "frame",
            "names": [encode(name, arrays) for name in value.columns],
            "index": encode(value.index.to_numpy(), arrays),
            "index_name": value.index.name,
            "columns": columns,
        }
    if isinstance(value, list):
        return [encode(v, arrays) for v in value]
    if isinstance(value, tuple):
        return {KIND: "tuple", "values": [encode(v, arrays) for v in value]}
    if isinstance(value, Mapping):
        items = [[encode(k, arrays), encode(v, arrays)] for k, v in value.items()]
        return {KIND: "mapping", "items": items}
    raise TypeError(f"{value!r}, a {type(value).__name__}")


def decode(value: object, arrays: Mapping[str, NDArray]) -> object:
    """The value that :func:`encode` was given.

    Parameters
    ----------
    value
        As parsed from JSON.
    arrays
        The arrays that it names.
    """
    if isinstance(value, list):
        return [decode(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    kind = value[KIND]
    if kind == "scalar":
        return np.dtype(value["dtype"]).type(decode(value["value"], arrays))
    if kind == "array" and "name" in value:
        return arrays[value["name"]]
    if kind == "array":
        values = [decode(v, arrays) for v in value["values"]]
        if value["kind"] == "U":
            return np.array(values, dtype=str).reshape(value["shape"])
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape(value["shape"])
    if kind == "frame":
        index = pd.Index(decode(value["index"], arrays), name=value["index_name"])
        columns = [decode(column, arrays) for column in value["columns"]]
        frame = pd.DataFrame(dict(enumerate(columns)), index=index)
        return frame.set_axis([decode(name, arrays) for name in value["names"]], axis=1)
    if kind == "tensor":
        return torch.from_numpy(decode(value["value"], arrays))
    if kind == "tuple":
        return tuple(decode(v, arrays) for v in value["values"])
    return {decode(k, arrays): decode(v, arrays) for k, v in value["items"]}
