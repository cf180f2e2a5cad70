"""MuData: the model reads one modality, or several side by side, as an AnnData.

The rest of the model sees only that AnnData. Of one modality it is the modality's own, of several
it is made here, and kept as long as the MuData is there and unchanged.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi.data._utils import _check_if_view

from scgmvae import checks
from scgmvae.data import validation
from scgmvae.data.fingerprint import sums_of_some_rows
from scgmvae.data.keys import (
    COPIED_KEY,
    FEATURE_MODALITY_KEY,
    MODALITIES_KEY,
    MODALITY_KEY,
)
from scgmvae.data.modalities import check_modalities, joined, modalities_of
from scgmvae.data.registry import Setup
from scgmvae.model.setup import SetupMixin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from scvi.data import AnnDataManager

__all__ = ["MuDataMixin", "named_columns"]


class MuDataMixin(SetupMixin):
    """The method ``setup_mudata``, and MuData wherever an AnnData is taken."""

    modality_: str | None
    """Name of the modality that is read, where the model was made of one of a MuData."""
    modalities_: dict[str, dict[str, Any]] | None = None
    """Likelihood, layer and number of features of each modality of a joint model."""
    shown_proteins_: dict[str, dict[str, list[bool]]] | None = None
    """Which proteins were measured in which batch, of a joint model."""

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        modality: str = "rna",
        layer: str | Mapping[str, str | None] | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        unlabeled_category: str = "unknown",
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        *,
        modalities: Mapping[str, str] | None = None,
    ) -> None:
        """Register the fields of one modality of a MuData, or of several for a joint model.

        Of one modality: from then on the MuData stands for it wherever the model takes an
        AnnData, and ``model.adata`` is ``mdata[modality]``. Results are written there as well, for
        example ``mdata["rna"].obs["scgmvae"]``, which ``mdata.pull_obs()`` brings into
        ``mdata.obs``.

        Of several, with ``modalities``: the model has one z for all of them and a likelihood for
        each. ``model.adata`` has their features side by side, and results are written into the
        MuData itself, for example ``mdata.obs["scgmvae"]``. Cells may lack modalities.

        Parameters
        ----------
        mdata
            Cells × features of several modalities. Cells that were not measured in the one
            modality are left out; with ``modalities`` every cell needs one of them.
        modality
            Name of the one modality, without ``modalities``.
        layer
            Layer of the modality that holds the data; ``None`` is its ``X``. With ``modalities``
            a dictionary of the layer of each; ``None`` is the layer ``"counts"`` of those of
            counts that have one, and else ``X``.
        batch_key, labels_key, size_factor_key
            As in :meth:`setup_anndata`, each a column of the modality's obs, with or without
            ``"rna:"`` before it, or one of ``mdata.obs``, which is copied to the modality's.
        unlabeled_category
            As in :meth:`setup_anndata`.
        categorical_covariate_keys, continuous_covariate_keys
            Lists of such columns.
        modalities
            Name of each modality → its likelihood: ``"nb"``, ``"zinb"`` or ``"poisson"`` for
            counts of RNA; ``"protein"`` for counts of proteins, which have a background;
            ``"bernoulli"`` for accessibility, where counts are read as 1; ``"gaussian"`` for other
            values, such as CLR-normalised proteins. A protein that no cell of a batch shows counts
            as not measured there.

        Raises
        ------
        KeyError
            If there is no such modality, or a column or layer is missing.
        ValueError
            If ``mdata`` is not a MuData, a column of this name differs between the modality and
            the MuData, values do not suit the likelihood of a modality, or as in
            :meth:`setup_anndata`. The data are then as they were before.

        Examples
        --------
        >>> import mudata
        >>> mdata = mudata.MuData({"rna": adata})
        >>> mdata.obs["donor"] = np.where(np.arange(300) % 2, "a", "b")
        >>> scgmvae.SCGMVAE.setup_mudata(mdata, batch_key="donor", labels_key="rna:component")
        >>> of_rna = scgmvae.SCGMVAE(mdata)
        >>> of_rna.adata is mdata["rna"], of_rna.summary_stats.n_batch
        (True, 2)

        A joint model of RNA and proteins:

        >>> proteins = adata[:, :5].copy()
        >>> proteins.var_names = [f"protein_{i}" for i in range(5)]
        >>> mdata = mudata.MuData({"rna": adata, "protein": proteins})
        >>> scgmvae.SCGMVAE.setup_mudata(mdata, modalities={"rna": "nb", "protein": "protein"})
        >>> joint = scgmvae.SCGMVAE(mdata, n_components=3)
        >>> joint.train(max_epochs=2, pretrain_epochs=2, enable_progress_bar=False)
        >>> mdata.obsm["X_scgmvae"].shape, mdata.obs["scgmvae"].nunique() <= 3
        ((300, 10), True)
        """
        if not isinstance(mdata, MuData):
            raise ValueError(
                f"mdata must be a MuData, but it is a {type(mdata).__name__}. Set an AnnData up "
                f"with {cls.__name__}.setup_anndata(adata)."
            )
        setup: dict[str, Any] = {
            "batch_key": batch_key,
            "labels_key": labels_key,
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": categorical_covariate_keys,
            "continuous_covariate_keys": continuous_covariate_keys,
        }
        if modalities is not None:
            setup["unlabeled_category"] = unlabeled_category
            if modality != "rna":
                raise ValueError(
                    "Give modality, for a model of one, or modalities, for one of several, but "
                    f"not both; received modality={modality!r} and modalities={modalities!r}."
                )
            cls._set_up_joint(mdata, modalities, layer, setup)
            return
        if not (layer is None or isinstance(layer, str)):
            raise ValueError(
                f"layer must be the name of one layer of {modality!r}, but it is {layer!r}. "
                "Layers of several modalities go with modalities=..."
            )
        modality = cls._modality_of(mdata, modality)
        adata = mdata[modality]
        validation.check_not_view(adata)
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
        mdata.uns.pop(MODALITIES_KEY, None)
        mdata.uns[MODALITY_KEY] = modality

    # -------------------------------------------------------------------- several modalities

    @classmethod
    def _set_up_joint(
        cls,
        mdata: MuData,
        modalities: Mapping[str, str],
        layer: str | Mapping[str, str | None] | None,
        setup: dict[str, Any],
    ) -> None:
        """Register several modalities of a MuData, and keep in its ``uns`` how."""
        modalities = check_modalities(mdata, modalities)
        if mdata.is_view:
            raise ValueError(
                "The model writes into its MuData, but this one is a view of another. Make it "
                "data of its own first: mdata = mdata.copy()."
            )
        if setup["size_factor_key"] is not None:
            raise ValueError(
                "size_factor_key is for one modality, but there are "
                f"{checks.listed(list(modalities))}. Leave it out: each has its observed depth."
            )
        layers = _layers_of(mdata, modalities, layer)
        wanted = {"modalities": modalities, "layers": layers, "setup": setup}
        _JOINED.pop(mdata, None)
        cls._joint_of(mdata, wanted)
        mdata.uns.pop(MODALITY_KEY, None)
        mdata.uns[MODALITIES_KEY] = json.dumps(wanted)

    @classmethod
    def _joint_of(cls, mdata: MuData, wanted: Mapping[str, Any]) -> AnnData:
        """The modalities side by side: what was made of the MuData before, if it fits, or anew.

        What is made for no model yet is registered with the class.
        """
        columns = named_columns(wanted["setup"])
        made = _JOINED.get(mdata)
        if made is not None and made.is_of(mdata, wanted, columns):
            made.take_columns(mdata, columns)
            return made.adata
        adata = joined(
            mdata,
            wanted["modalities"],
            layers=wanted["layers"],
            columns=columns,
            batch_key=wanted["setup"].get("batch_key"),
            features=wanted.get("features"),
            panels=wanted.get("panels"),
        )
        if "features" not in wanted:
            arguments = {k: v for k, v in wanted["setup"].items() if v is not None}
            cls.setup_anndata(adata, **arguments)
        _JOINED[mdata] = Joined.of(adata, mdata, wanted, columns)
        return adata

    @classmethod
    def _wanted_of(cls, mdata: MuData, attributes: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a joint model reads of a MuData, or what it was set up for; ``None`` if neither."""
        if "registry_" not in attributes:
            kept = mdata.uns.get(MODALITIES_KEY)
            return None if kept is None else json.loads(kept)
        modalities = attributes.get("modalities_")
        if modalities is None:
            return None
        setup = Setup(attributes["registry_"])
        ends = np.cumsum([modality["n_features"] for modality in modalities.values()])
        features = np.split(setup.gene_names, ends[:-1])
        return {
            "modalities": {name: m["likelihood"] for name, m in modalities.items()},
            "layers": {name: m["layer"] for name, m in modalities.items()},
            "setup": {k: v for k, v in setup.arguments.items() if k != "layer"},
            "features": dict(zip(modalities, (names.tolist() for names in features), strict=True)),
            "panels": attributes.get("shown_proteins_"),
        }

    @property
    def _kinds(self) -> list[tuple[str, int]]:
        """Likelihood and number of features of each modality that the model reads."""
        if self.modalities_ is None:
            return [(self._module_kwargs["likelihood"], self.summary_stats.n_vars)]
        return [(m["likelihood"], m["n_features"]) for m in self.modalities_.values()]

    def _given_features(self, given: str | Sequence[str] | None) -> NDArray[np.bool_] | None:
        """Which features belong to some modalities, (G,); ``None`` for all.

        Raises
        ------
        RuntimeError
            If the model is not one of several modalities.
        ValueError
            If there is no such modality.
        """
        if given is None:
            return None
        names = [given] if isinstance(given, str) else list(given)
        if not names:
            raise ValueError("Name one modality or more, or None for all; the list is empty.")
        numbers = [self._modality_number(name) for name in names]
        sizes = [size for _, size in self._kinds]
        return np.repeat(np.isin(np.arange(len(sizes)), numbers), sizes)

    def _modality_number(self, name: str) -> int:
        """Number of a modality of a joint model."""
        if self.modalities_ is None:
            raise RuntimeError(
                "The model reads one modality, so none can be named. Set a MuData up with "
                "setup_mudata(mdata, modalities={'rna': 'nb', 'protein': 'protein'}) for several."
            )
        if not isinstance(name, str) or name not in self.modalities_:
            raise ValueError(
                f"The modalities of the model are {checks.listed(list(self.modalities_))}, but "
                f"{name!r} is none of them."
            )
        return list(self.modalities_).index(name)

    def _take_new_columns(self, given: AnnData) -> None:
        if not isinstance(given, MuData):
            super()._take_new_columns(given)
            return
        made = _JOINED.get(given)
        if made is not None and made.adata is self.adata:
            made.take_columns(given, named_columns(self._setup.arguments))

    def __getstate__(self) -> dict[str, Any]:
        # a MuData cannot be copied in this way, and the model has its values
        state = dict(vars(self))
        if isinstance(state.get("_given"), MuData):
            state["_given"] = None
        return state

    def _written_beside(self, passed: object, given: AnnData, read: AnnData) -> Any:
        if isinstance(passed, MuData) and self.modalities_ is not None:
            return passed
        return super()._written_beside(passed, given, read)

    # ---------------------------------------------------------------------- one modality

    @classmethod
    def _modality_of(cls, data: object, model_modality: str | None = None) -> str | None:
        """Name of the modality that a MuData stands for: the model's, the one set up, or rna."""
        if not isinstance(data, MuData) or (model_modality is None and MODALITIES_KEY in data.uns):
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
        if isinstance(data, MuData):
            wanted = cls._wanted_of(data, attributes)
            if wanted is not None:
                return cls._joint_of(data, wanted)
        elif attributes.get("modalities_") and isinstance(data, AnnData):
            _check_joined(data, list(attributes["modalities_"]))
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
        if self.modalities_ is not None:
            shown = [f"modalities {', '.join(self.modalities_)}"]
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


def _check_joined(adata: AnnData, modalities: list[str]) -> None:
    """Raise ``ValueError`` unless an AnnData has modalities side by side."""
    if modalities_of(adata) is None:
        raise ValueError(
            f"The model reads the modalities {checks.listed(modalities)} of a MuData, but this is "
            f"an AnnData of {adata.n_vars:,} features. Say of which modality it is: "
            f"mudata.MuData({{{modalities[0]!r}: adata}}). Cells may lack the others."
        )


class Joined(NamedTuple):
    """An AnnData of several modalities side by side, and what it was made of."""

    adata: AnnData
    wanted: Mapping[str, Any]
    state: list[Any]
    """What each modality was like, see :func:`_state_of`."""
    obs: pd.DataFrame

    @classmethod
    def of(
        cls, adata: AnnData, mdata: MuData, wanted: Mapping[str, Any], columns: list[str]
    ) -> Joined:
        """What was made of a MuData just now."""
        return cls(adata, wanted, _state_of(mdata, wanted), _columns_now(mdata, columns))

    def is_of(self, mdata: MuData, wanted: Mapping[str, Any], columns: list[str]) -> bool:
        """Whether the MuData still has what this was made of, and the same is wanted of it.

        A model wants the features of its own data, which were wanted without their names.
        """
        own, others = (
            {"features": self.features, "panels": None} | dict(one)
            for one in (self.wanted, wanted)
        )
        others["panels"] = own["panels"]  # of its own data a model has the panels that they show
        return (
            own == others
            and _state_of(mdata, wanted) == self.state
            and mdata.obs_names.equals(self.adata.obs_names)
            and _columns_now(mdata, columns).equals(self.obs)
        )

    def take_columns(self, mdata: MuData, columns: list[str]) -> None:
        """Copy columns of obs that are new or were changed, and were not registered."""
        own = self.adata.obs
        for name in mdata.obs.columns.difference(columns, sort=False):
            if name not in own or not own[name].equals(mdata.obs[name]):
                own[name] = mdata.obs[name]

    @property
    def features(self) -> dict[str, list[str]]:
        """Names of the features of each modality."""
        modality = self.adata.var[FEATURE_MODALITY_KEY]
        return {
            name: self.adata.var_names[(modality == name).to_numpy()].tolist()
            for name in self.wanted["modalities"]
        }


_JOINED: WeakKeyDictionary[MuData, Joined] = WeakKeyDictionary()
"""What was made of each MuData last."""


def _state_of(mdata: MuData, wanted: Mapping[str, Any]) -> list[Any]:
    """What tells that values, cells or features of a modality were changed."""
    state: list[Any] = []
    for name in wanted["modalities"]:
        if name in mdata.mod:
            adata, layer = mdata[name], wanted["layers"].get(name)
            x = adata.X if layer is None else adata.layers.get(layer)
            sums = () if x is None or not adata.n_obs else tuple(sums_of_some_rows(x))
            state.append((sums, tuple(adata.obs_names), tuple(adata.var_names)))
    return state


def _columns_now(mdata: MuData, columns: Iterable[str]) -> pd.DataFrame:
    """The named obs columns as they are, of the MuData and of its modalities."""
    found = {}
    for column in columns:
        for name, source in {"": mdata, **mdata.mod}.items():
            plain = column.removeprefix(f"{name}:")
            if plain in source.obs:
                found[f"{name}/{column}"] = (
                    source.obs[plain].astype(object).reindex(mdata.obs_names)
                )
    return pd.DataFrame(found, index=mdata.obs_names)


def _layers_of(
    mdata: MuData,
    modalities: Mapping[str, str],
    layer: str | Mapping[str, str | None] | None,
) -> dict[str, str | None]:
    """Layer of each modality that holds its values."""
    if isinstance(layer, str):
        return dict.fromkeys(modalities, layer)
    unknown = set(layer or {}) - set(modalities)
    if unknown:
        raise ValueError(
            f"layer must name layers of the modalities {checks.listed(list(modalities))}, but it "
            f"names one of {checks.listed(sorted(unknown))}."
        )
    usual = {
        name: "counts" if likelihood != "gaussian" and "counts" in mdata[name].layers else None
        for name, likelihood in modalities.items()
    }
    return usual | dict(layer or {})


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
