"""MuData: the model reads one modality, and the rest of the model sees only its AnnData."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from mudata import MuData
from scvi.data._utils import _check_if_view

from scgmvae import checks
from scgmvae.data import validation
from scgmvae.data.keys import COPIED_KEY, MODALITY_KEY
from scgmvae.data.registry import Setup
from scgmvae.model.setup import SetupMixin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anndata import AnnData
    from scvi.data import AnnDataManager

__all__ = ["MuDataMixin", "named_columns"]


class MuDataMixin(SetupMixin):
    """The method ``setup_mudata``, and MuData wherever an AnnData is taken."""

    modality_: str | None
    """Name of the modality that is read, where the model was made of a MuData."""

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        modality: str = "rna",
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        unlabeled_category: str = "unknown",
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
    ) -> None:
        """Register the fields of one modality of a MuData.

        From then on the MuData stands for this modality wherever the model takes an AnnData, and
        ``model.adata`` is ``mdata[modality]``. Results are written there as well, for example
        ``mdata["rna"].obs["scgmvae"]``, which ``mdata.pull_obs()`` brings into ``mdata.obs``.

        Parameters
        ----------
        mdata
            Cells × genes of several modalities. Cells that were not measured in this modality
            are left out.
        modality
            Name of the modality.
        layer
            Layer of the modality that holds the data; ``None`` is its ``X``.
        batch_key, labels_key, size_factor_key
            As in :meth:`setup_anndata`, each a column of the modality's obs, with or without
            ``"rna:"`` before it, or one of ``mdata.obs``, which is copied to the modality's.
        unlabeled_category
            As in :meth:`setup_anndata`.
        categorical_covariate_keys, continuous_covariate_keys
            Lists of such columns.

        Raises
        ------
        KeyError
            If there is no such modality, or a column or layer is missing.
        ValueError
            If ``mdata`` is not a MuData, a column of this name differs between the modality and
            the MuData, or as in :meth:`setup_anndata`. The data are then as they were before.

        Examples
        --------
        >>> import mudata
        >>> mdata = mudata.MuData({"rna": adata})
        >>> mdata.obs["donor"] = np.where(np.arange(300) % 2, "a", "b")
        >>> scgmvae.SCGMVAE.setup_mudata(mdata, batch_key="donor", labels_key="rna:component")
        >>> of_rna = scgmvae.SCGMVAE(mdata)
        >>> of_rna.adata is mdata["rna"], of_rna.summary_stats.n_batch
        (True, 2)
        """
        if not isinstance(mdata, MuData):
            raise ValueError(
                f"mdata must be a MuData, but it is a {type(mdata).__name__}. Set an AnnData up "
                f"with {cls.__name__}.setup_anndata(adata)."
            )
        modality = cls._modality_of(mdata, modality)
        adata = mdata[modality]
        validation.check_not_view(adata)
        setup: dict[str, Any] = {
            "batch_key": batch_key,
            "labels_key": labels_key,
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": categorical_covariate_keys,
            "continuous_covariate_keys": continuous_covariate_keys,
        }
        prefix = f"{modality}:"
        mdata_columns = [name for name in named_columns(setup) if not name.startswith(prefix)]
        _check_same(mdata, adata, mdata_columns, prefix)
        with validation.unchanged_on_error(adata):
            _copy_missing(mdata, adata, mdata_columns)
            cls.setup_anndata(
                adata,
                layer=layer,
                unlabeled_category=unlabeled_category,
                **{name: _without(prefix, value) for name, value in setup.items()},
            )
        mdata.uns[MODALITY_KEY] = modality

    @classmethod
    def _modality_of(cls, data: object, model_modality: str | None = None) -> str | None:
        """Name of the modality that a MuData stands for: the model's, the one set up, or rna."""
        if not isinstance(data, MuData):
            return None
        name = model_modality or data.uns.get(MODALITY_KEY, "rna")
        if name not in data.mod:
            raise KeyError(
                f"{cls.__name__} reads one modality of a MuData, here {name!r}, which this one "
                f"does not have. Its modalities are: {checks.listed(list(data.mod))}. Name one of "
                f"them in {cls.__name__}.setup_mudata(mdata, modality=...), or pass its AnnData."
            )
        return name

    @classmethod
    def _anndata_of(
        cls, data: Any, attributes: Mapping[str, Any], to_write: bool = False
    ) -> AnnData:
        """AnnData that a user has passed; of a MuData its modality, with the columns to read.

        Parameters
        ----------
        data
            What a user has passed.
        attributes
            Attributes of the model, if there is one: ``modality_`` and ``registry_``.
        to_write
            Whether to refuse a view.
        """
        modality = cls._modality_of(data, attributes.get("modality_"))
        if modality is None:
            return super()._anndata_of(data, attributes, to_write)
        adata = super()._anndata_of(data[modality], attributes, to_write)
        if "registry_" in attributes:
            columns = named_columns(Setup(attributes["registry_"]).arguments)
            for name in columns:
                if _is_twice(data, adata, name):
                    warnings.warn(
                        f"mdata.obs and the obs of {modality!r} both have a column {name!r}, but "
                        "with different values: that of the modality is read. Remove or rename "
                        "the other.",
                        UserWarning,
                        stacklevel=2,
                    )
            _copy_missing(data, adata, columns)
        return adata

    def _places_shown(self) -> list[str]:
        shown = [] if self.modality_ is None else [f"modality {self.modality_}"]
        return super()._places_shown() + shown

    def get_anndata_manager(
        self, adata: AnnData | MuData, required: bool = False
    ) -> AnnDataManager | None:
        """Manager of data that the model has registered.

        Parameters
        ----------
        adata
            Data that were set up, or read with the model.
        required
            Whether to raise an error if nothing was registered, in place of returning ``None``.
        """
        if isinstance(adata, MuData):
            adata = self._anndata_of(adata, vars(self))
        return super().get_anndata_manager(adata, required)


def named_columns(setup: Mapping[str, object]) -> list[str]:
    """The obs columns that arguments of ``setup_anndata`` name."""
    found = []
    for argument, value in setup.items():
        if argument.endswith("_key") and isinstance(value, str):
            found.append(value)
        elif argument.endswith("_keys") and isinstance(value, list):
            found += [name for name in value if isinstance(name, str)]
    return found


def _without(prefix: str, value: Any) -> Any:
    """Name of a column, or names of columns, without the prefix of the modality."""
    if isinstance(value, list):
        return [_without(prefix, name) for name in value]
    return value.removeprefix(prefix) if isinstance(value, str) else value


def _is_twice(mdata: MuData, adata: AnnData, name: str) -> bool:
    """Whether MuData and modality both have a column, with different values."""
    if name not in mdata.obs or name not in adata.obs or name in adata.uns.get(COPIED_KEY, ()):
        return False
    values = mdata.obs[name].reindex(adata.obs_names).astype(object)
    return not values.equals(adata.obs[name].astype(object))


def _check_same(mdata: MuData, adata: AnnData, columns: Iterable[str], prefix: str) -> None:
    """Raise ``ValueError`` if MuData and modality both have a column, with different values."""
    for name in columns:
        if _is_twice(mdata, adata, name):
            raise ValueError(
                f"mdata.obs and the obs of the modality both have a column {name!r}, but with "
                f"different values. Name {prefix + name!r} to read the modality's, or give "
                "the other a name of its own."
            )


def _copy_missing(mdata: MuData, adata: AnnData, columns: Iterable[str]) -> None:
    """Copy columns of the MuData that the modality lacks to it, cell by cell.

    Those that were copied before are copied again, because they may have changed since.
    """
    copied = set(adata.uns.get(COPIED_KEY, ()))
    for name in columns:
        if name in mdata.obs and (name not in adata.obs or name in copied):
            validation.check_obs_names(mdata)
            _check_if_view(adata, copy_if_view=True)  # writing to a view would warn
            adata.obs[name] = mdata.obs[name].reindex(adata.obs_names)
            adata.uns[COPIED_KEY] = sorted(copied := copied | {name})
