"""Saving and loading a model; what its files hold is in :mod:`scgmvae.io.model_files`."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anndata
from anndata import AnnData
from mudata import MuData
from scvi.data import AnnDataManager
from scvi.model.base._save_load import _initialize_model, _validate_var_names

from scgmvae.data.genes import match_genes
from scgmvae.data.registry import Setup
from scgmvae.data.validation import unchanged_on_error
from scgmvae.io.model_files import DATA_FILE, PICKLE, Saved, check_there, read, write
from scgmvae.model.registration import Registration
from scgmvae.train.devices import device_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["Saving"]


class Saving(Registration):
    """The methods ``save`` and ``load``."""

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
            Whether to write into a folder that exists. A model that it holds is replaced once the
            new one is whole.
        save_anndata
            Whether to save the data as well.
        **anndata_write_kwargs
            Further arguments of :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        RuntimeError
            If the model waits for the data module that it is to be trained on.
        OSError
            If the files cannot be written. What was there stays as it was.
        TypeError
            If the model holds something that has no place in JSON, such as a category that is
            neither number, string nor boolean; or if there is no such argument.
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
        if self.module is None:
            raise RuntimeError(
                "A model without data has nothing to save until it is trained on a data module: "
                "train(datamodule=...)."
            )
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
        write_data = None
        if save_anndata:
            self._validate_anndata()  # data that were changed could not be loaded with the model
            write_data = partial(self.adata.write_h5ad, **anndata_write_kwargs)
        self._write_files(folder, prefix, self._attributes(), write_data=write_data)

    def _attributes(self) -> dict[str, Any]:
        """Attributes that are saved: as in scvi-tools, those whose name ends in one underscore."""
        return {name: v for name, v in self._get_user_attributes() if name.endswith("_")}

    def _write_files(
        self, folder: Path, prefix: str, attributes: Mapping[str, object], **others: Any
    ) -> None:
        """Write the model with given attributes, see :func:`scgmvae.io.model_files.write`."""
        write(
            folder,
            prefix,
            type(self).__name__,
            self.get_var_names(),
            attributes,
            self.module.state_dict(),
            **others,
        )

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
            Where to put the model, as in Lightning, or the name of a device, as ``"cuda:0"``;
            ``"auto"`` takes a GPU where there is one.
        prefix
            Prefix of the files' names.
        allow_pickle
            Whether to read a model in scvi-tools' own format. Such a file can run any code when it
            is loaded: allow it only where you trust who made it.
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
                adata = match_genes(adata, Setup(registry).gene_names)
            return super().load(str(folder), adata, accelerator, device, prefix=prefix, **kwargs)
        check_there(folder, prefix)
        if kwargs:
            raise TypeError(f"load got arguments that it does not have: {', '.join(kwargs)}.")
        target = device_of(accelerator, device)
        saved = read(folder, prefix, cls.__name__, {DATA_FILE} if adata is None else set())
        passed = adata
        if is_given:
            adata = cls._anndata_of(adata, saved.attributes)
        elif adata is None and saved.adata_path is not None:
            adata = anndata.read_h5ad(saved.adata_path)
        elif adata is None:
            warnings.warn(
                "No data were saved with the model and none are given, so it is loaded without. "
                "adata=False asks for that.",
                UserWarning,
                stacklevel=2,
            )
        if not isinstance(adata, AnnData):
            adata = None
        else:
            given = adata
            adata = match_genes(given, Setup(saved.attributes["registry_"]).gene_names)
            _validate_var_names(adata, saved.var_names)
        model = cls._of_files(saved, adata)
        if adata is not None:
            model._given = model._written_beside(passed, given, adata)
        model.to_device(target)
        return model

    @classmethod
    def _of_files(cls, saved: Saved, adata: AnnData | None) -> Self:
        """The model that was saved, with data that have its genes, if any are given."""
        registry = saved.attributes.pop("registry_")
        with nullcontext() if adata is None else unchanged_on_error(adata):
            if adata is not None:
                cls.setup_anndata(adata, source_registry=registry, **Setup(registry).arguments)
            model = _initialize_model(cls, adata, registry, saved.attributes, None)
            model.module.on_load(model)
            saved.put_weights(model.module)
            model.module.eval()
            model._model_summary_string = model._summary()
            if adata is not None:
                model._validate_anndata(adata)
        return model

    def _summary(self) -> str:
        """The model and its settings in one line."""
        raise NotImplementedError

    @classmethod
    def _saved_weights(cls, dir_path: str | Path) -> dict[str, Tensor]:
        """The weights of a saved model."""
        return read(Path(dir_path), "", cls.__name__).weights

    @classmethod
    def load_registry(cls, dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
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
