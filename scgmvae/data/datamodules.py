"""Data modules of scvi-tools: minibatches that others make, of cells that are in no AnnData.

A model that is made for one keeps a sample of its cells as an AnnData. By these the mixture
starts, components are merged and novelty is measured, as elsewhere by all cells of the model. In
the joint stage every minibatch is guided by the model as it was when the mixture had started.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch.utilities.model_helpers import is_overridden
from numpy.typing import NDArray
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import _constants as scvi_constants
from torch import Tensor

from scgmvae.data.minibatches import CELLS_IN_MEMORY, CELLS_KEY, in_layout
from scgmvae.module.cgmvae import CGMVAE, GUIDE_KEY
from scgmvae.nn.sparse import is_sparse

if TYPE_CHECKING:
    from scgmvae.model.scgmvae import SCGMVAE

__all__ = [
    "ForeignMinibatches",
    "check_data_module",
    "is_of_data_module",
    "n_obs_of",
    "registry_of",
    "tensors_of",
]

Minibatch = Mapping[str, Tensor | object]
"""What a data module makes: x, codes, and ``None``, 0 or an empty tensor for a missing field."""


def is_of_data_module(registry: Mapping[str, object] | None) -> bool:
    """Whether a registry is one that a data module made."""
    return (registry or {}).get(scvi_constants._SETUP_METHOD_NAME) == "setup_datamodule"


def n_obs_of(registry: Mapping[str, object]) -> int:
    """Number of cells of a data module."""
    x = registry[scvi_constants._FIELD_REGISTRIES_KEY][REGISTRY_KEYS.X_KEY]
    return x[scvi_constants._STATE_REGISTRY_KEY]["n_obs"]


def registry_of(
    model_class: type[SCGMVAE], registry: Mapping[str, object]
) -> tuple[dict[str, object], tuple[int, ...]]:
    """What ``setup_anndata`` registers for data as a data module has them.

    Parameters
    ----------
    model_class
        Class of the model.
    registry
        The data module's.

    Returns
    -------
    The registry, and for each of the data module's labels the number of its component, or of the
    unlabelled category, which is the last here; empty without labels.
    """

    def state(key: str) -> Mapping[str, object]:
        of_key = registry[scvi_constants._FIELD_REGISTRIES_KEY].get(key, {})
        return of_key.get(scvi_constants._STATE_REGISTRY_KEY, {})

    batches, labels = state(REGISTRY_KEYS.BATCH_KEY), state(REGISTRY_KEYS.LABELS_KEY)
    setup: dict[str, object] = {}
    columns: dict[str, Sequence[object]] = {}
    if batches.get("categorical_mapping") is not None:
        setup["batch_key"] = batches["original_key"]
        columns[setup["batch_key"]] = _in_order(batches["categorical_mapping"])
    if covariates := state(REGISTRY_KEYS.CAT_COVS_KEY).get("mapping"):
        setup["categorical_covariate_keys"] = list(covariates)
        columns |= {key: _in_order(names) for key, names in covariates.items()}
    if labels.get("categorical_mapping") is not None:
        setup["labels_key"] = labels["original_key"]
        setup["unlabeled_category"] = str(labels["unlabeled_category"])
        columns[setup["labels_key"]] = [str(name) for name in labels["categorical_mapping"]]
    if len(continuous := state(REGISTRY_KEYS.CONT_COVS_KEY).get("columns", ())):
        setup["continuous_covariate_keys"] = list(continuous)

    # as few cells as have all the categories
    n = max([1, *map(len, columns.values())])
    obs = pd.DataFrame(index=map(str, range(n)))
    for key, names in columns.items():
        obs[key] = pd.Categorical(np.resize(np.array(names, dtype=object), n), categories=names)
    obs = obs.assign(**dict.fromkeys(setup.get("continuous_covariate_keys", ()), 0.0))
    var = pd.DataFrame(index=[str(name) for name in state(REGISTRY_KEYS.X_KEY)["column_names"]])
    cells = AnnData(sparse.csr_matrix((n, len(var)), dtype=np.float32), obs=obs, var=var)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Category .* has fewer than 3 cells")
        model_class.setup_anndata(cells, **setup)
    managers = model_class._setup_adata_manager_store
    made = managers.pop(cells.uns[scvi_constants._SCVI_UUID_KEY]).registry
    if "labels_key" not in setup:
        return made, ()
    known = pd.Index(model_class._labels_of(made))
    codes = known.get_indexer(columns[setup["labels_key"]])
    return made, tuple(np.where(codes < 0, len(known), codes).tolist())


def _in_order(names: Mapping[object, int] | Sequence[object]) -> list[object]:
    """Categories by their codes, which some data modules keep as a dictionary."""
    return sorted(names, key=names.get) if isinstance(names, Mapping) else list(names)


def check_data_module(model: SCGMVAE, datamodule: object) -> None:
    """Raise where a model was not made for a data module.

    Raises
    ------
    TypeError
        If it is none of Lightning's, or without a registry.
    ValueError
        If the model was made of an AnnData, or of other genes, labels or conditions.
    """
    if not (isinstance(datamodule, pl.LightningDataModule) and hasattr(datamodule, "registry")):
        raise TypeError(
            "datamodule must be a LightningDataModule with a registry, as those of scvi-tools "
            f"are, but it is a {type(datamodule).__name__}."
        )
    if model.label_codes_ is None:
        raise ValueError(
            "The model was made of an AnnData and trains on that. For a data module make a model "
            "of its registry: SCGMVAE(registry=datamodule.registry)."
        )
    registry, codes = registry_of(type(model), datamodule.registry)

    def description(registry: dict[str, object]) -> tuple[object, ...]:
        fields = registry[scvi_constants._FIELD_REGISTRIES_KEY]
        x = fields[REGISTRY_KEYS.X_KEY]
        continuous = registry[scvi_constants._SETUP_ARGS_KEY]["continuous_covariate_keys"]
        categories = model._categories_of(registry).items()
        return (
            list(x[scvi_constants._STATE_REGISTRY_KEY]["column_names"]),
            [(column, list(names)) for column, names in categories],
            list(continuous or ()),
            model._labels_of(registry),
        )

    same = description(registry) == description(model.registry_)
    if not (same and codes == tuple(model.label_codes_)):
        raise ValueError(
            "The data module must have the genes, labels and conditions that the model was made "
            "for, in the same order, but it has others. Make a model of its registry: "
            "SCGMVAE(registry=datamodule.registry)."
        )


def tensors_of(model: SCGMVAE, minibatch: Minibatch) -> dict[str, Tensor]:
    """A data module's minibatch as the module reads it.

    Parameters
    ----------
    model
        A model that was made for the data module.
    minibatch
        The minibatch, with the codes of the data module.

    Raises
    ------
    ValueError
        If genes or conditions are not those of the model, or a code is none of the data module's.
    """
    module = model.module
    x = torch.as_tensor(minibatch[REGISTRY_KEYS.X_KEY]).float()
    if x.shape[1:] != (module.n_input,):
        raise ValueError(
            f"Minibatches must have the {module.n_input} genes that the model was made for, but "
            f"the shape of {REGISTRY_KEYS.X_KEY!r} is {tuple(x.shape)}. Bring one column for each "
            "gene of the data module's registry, in its order."
        )
    n, n_labels = len(x), module.n_labels
    n_batch, *n_categories = module.n_categories

    def field(key: str, n_columns: int, is_needed: bool = True) -> Tensor | None:
        values = minibatch.get(key)
        is_there = values is not None and np.ndim(values) > 0
        values = torch.as_tensor(values, device=x.device) if is_there else torch.empty(0)
        if not n_columns or not (is_needed or values.numel()):
            return None
        if values.numel() != n * n_columns:
            what = f"its shape is {tuple(values.shape)}" if values.numel() else "it is missing"
            raise ValueError(
                f"Minibatches must have the conditions that the model was made for, {key!r} as a "
                f"tensor ({n}, {n_columns}), but {what}. Bring it as the registry describes it."
            )
        return values.reshape(n, n_columns)

    batch = field(REGISTRY_KEYS.BATCH_KEY, 1, n_batch > 1)
    label = field(REGISTRY_KEYS.LABELS_KEY, int(n_labels > 0), False)
    categories = field(REGISTRY_KEYS.CAT_COVS_KEY, len(n_categories))
    continuous = field(REGISTRY_KEYS.CONT_COVS_KEY, module.sizes.n_cont)
    codes = torch.full((n, 1), n_labels, device=x.device)
    if label is not None:
        of_label = torch.tensor(model.label_codes_, device=x.device)
        # some data modules mark unlabelled cells by −1
        known = _codes(REGISTRY_KEYS.LABELS_KEY, label.clamp(min=0), [len(of_label)])
        codes = torch.where(label < 0, codes, of_label[known])
    if batch is None:
        batch = torch.zeros_like(codes)
    if categories is not None:
        categories = _codes(REGISTRY_KEYS.CAT_COVS_KEY, categories, n_categories)
    tensors = {
        REGISTRY_KEYS.X_KEY: in_layout(x, module.takes_sparse),
        REGISTRY_KEYS.BATCH_KEY: _codes(REGISTRY_KEYS.BATCH_KEY, batch, [n_batch]),
        REGISTRY_KEYS.LABELS_KEY: codes,
        REGISTRY_KEYS.CAT_COVS_KEY: categories,
        REGISTRY_KEYS.CONT_COVS_KEY: None if continuous is None else continuous.float(),
        CELLS_KEY: torch.arange(n),
    }
    return {key: values for key, values in tensors.items() if values is not None}


def _codes(key: str, values: Tensor, n_categories: Sequence[int]) -> Tensor:
    """The codes of a field, (n, columns), each below the number of its column's categories."""
    for column, n in zip(values.T, n_categories, strict=True):
        is_known = torch.isin(column, torch.arange(n, device=column.device))
        if not is_known.all():
            raise ValueError(
                f"The codes {key!r} of a minibatch must be whole numbers from 0 to {n - 1}, but "
                f"one is {column[~is_known][0].item()}. Bring those of the data module's registry."
            )
    return values.long()


class ForeignMinibatches(pl.LightningDataModule):
    """A data module whose minibatches are made into those of the model, and guided.

    Parameters
    ----------
    model
        A model that was made for the data module.
    datamodule
        The data module.
    validates
        Whether the training reads something off validation cells.

    Raises
    ------
    ValueError
        If there are none, or nobody knows how many minibatches an epoch has.
    """

    # its cells have no numbers
    train_idx = val_idx = test_idx = None

    def __init__(self, model: SCGMVAE, datamodule: pl.LightningDataModule, validates: bool):
        super().__init__()
        datamodule.prepare_data()
        datamodule.setup("fit")
        self.model, self.datamodule = model, datamodule
        self.guide: CGMVAE | None = None
        self.n_obs = n_obs_of(datamodule.registry)
        has_validation = is_overridden("val_dataloader", datamodule, pl.LightningDataModule)
        self.validation = datamodule.val_dataloader() if has_validation else None
        self.n_val = int(self.validation is not None)  # whether there are any
        if validates and not self.n_val:
            raise ValueError(
                "Early stopping, checkpoints and the like need validation cells, but the data "
                "module has no val_dataloader that brings any. Give it one, or leave them out."
            )
        try:
            len(datamodule.train_dataloader())
        except TypeError as error:
            raise ValueError(
                "The training loader of a data module must have a length, by which the stages and "
                f"their schedules go, but {error}."
            ) from error

    def setup(self, stage: str) -> None:
        """Show the data module its trainer, which can have one device alone."""
        if self.trainer.world_size > 1:
            raise NotImplementedError(
                "A data module trains a model on one device, but there are "
                f"{self.trainer.world_size}. Give devices=1; several share an AnnData."
            )
        self.datamodule.trainer = self.trainer

    def train_dataloader(self) -> object:
        """The data module's training loader."""
        return self.datamodule.train_dataloader()

    def val_dataloader(self) -> object:
        """The data module's validation loader, if it has one."""
        return [] if self.validation is None else self.validation

    def on_before_batch_transfer(self, batch: object, dataloader_idx: int) -> object:
        """As the data module does."""
        return self.datamodule.on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: object, dataloader_idx: int) -> dict[str, Tensor]:
        """Make a minibatch of the model of it, and add the guide to those of the joint stage."""
        batch = self.datamodule.on_after_batch_transfer(batch, dataloader_idx)
        tensors = tensors_of(self.model, batch)
        if self.trainer is None or not self.trainer.training:
            return tensors
        if len(tensors[CELLS_KEY]) < 2:
            raise ValueError(
                "Training needs minibatches of two cells or more, because batch normalisation has "
                "no value for one, but the data module has made one of a single cell. Let it drop "
                "the last minibatch, or give another batch size."
            )
        if self.guide is not None:
            tensors[GUIDE_KEY] = self._component_of(tensors)
        return tensors

    @torch.no_grad()
    def _component_of(self, tensors: dict[str, Tensor]) -> Tensor:
        """Component of each cell, (n,), by its label or by the model that guides."""
        inputs = self.guide._get_inference_input(tensors)
        return self.guide.component_of(self.guide.inference(**inputs, sample=False)["z"], tensors)

    def guide_by(self, module: CGMVAE, partition: NDArray[np.integer]) -> None:
        """Guide minibatches from now on by a module whose mixture has started."""
        self.guide = deepcopy(module).eval()

    def sample(self) -> AnnData:
        """Cells of the first minibatches, at least as many as are in memory elsewhere."""
        parts, n_cells = [], 0
        for tensors in self._minibatches():
            parts.append(tensors)
            n_cells += len(tensors[CELLS_KEY])
            if n_cells >= CELLS_IN_MEMORY:
                break
        x = [tensors[REGISTRY_KEYS.X_KEY].cpu() for tensors in parts]
        if is_sparse(x[0]):
            x = sparse.vstack([_scipy(part) for part in x], format="csr")
        else:
            x = torch.cat(x).numpy()
        var = pd.DataFrame(index=self.model.get_var_names())
        return AnnData(x, obs=self._obs(parts), var=var)

    def _obs(self, parts: Sequence[Mapping[str, Tensor]]) -> pd.DataFrame:
        """The registered columns of minibatches, with the names that codes stand for."""
        setup, state_of = (
            self.model.registry_[scvi_constants._SETUP_ARGS_KEY],
            self.model._state_of,
        )
        cats, conts = REGISTRY_KEYS.CAT_COVS_KEY, REGISTRY_KEYS.CONT_COVS_KEY
        fields = {
            key: torch.cat([tensors[key] for tensors in parts]).cpu().numpy().T
            for key in parts[0]
            if key != REGISTRY_KEYS.X_KEY
        }
        columns = {}
        for key, argument in (
            (REGISTRY_KEYS.BATCH_KEY, "batch_key"),
            (REGISTRY_KEYS.LABELS_KEY, "labels_key"),
        ):
            if setup[argument] is not None:
                names = np.asarray(state_of(key)["categorical_mapping"])
                columns[setup[argument]] = names[fields[key][0].astype(int)]
        for column, codes in zip(
            setup["categorical_covariate_keys"] or (), fields.get(cats, ()), strict=True
        ):
            columns[column] = np.asarray(state_of(cats)["mappings"][column])[codes.astype(int)]
        columns |= zip(
            setup["continuous_covariate_keys"] or (), fields.get(conts, ()), strict=True
        )
        return pd.DataFrame(columns, index=pd.RangeIndex(len(fields[CELLS_KEY])).astype(str))

    def _minibatches(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.datamodule.train_dataloader():
            yield self.on_after_batch_transfer(self.on_before_batch_transfer(batch, 0), 0)


def _scipy(x: Tensor) -> sparse.csr_matrix:
    """A CSR tensor as a matrix."""
    parts = (x.values(), x.col_indices(), x.crow_indices())
    return sparse.csr_matrix(tuple(part.numpy() for part in parts), shape=x.shape)
