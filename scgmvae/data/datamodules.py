"""Data modules of scvi-tools, which make the minibatches themselves, without an AnnData.

A model that is made for a data module keeps a sample of its cells as an AnnData. The mixture is
started, components are merged and novelty is measured with this sample, where a model of an
AnnData uses all of its cells. In the joint stage every minibatch is guided by a copy of the
module that was made when the mixture had started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch.utilities.model_helpers import is_overridden
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import _constants as scvi_constants
from torch import Tensor

from scgmvae import checks
from scgmvae.data.keys import CELLS_KEY, GUIDE_KEY
from scgmvae.data.minibatches import CELLS_IN_MEMORY, in_layout
from scgmvae.data.registry import Setup
from scgmvae.nn.sparse import is_sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scvi.module.base import BaseModuleClass

__all__ = [
    "ForeignMinibatches",
    "Layout",
    "cells_of_categories",
    "is_of_data_module",
    "label_codes_of",
    "n_obs_of",
    "registry_of",
    "registry_of_sizes",
    "tensors_of",
]

Minibatch = Mapping[str, Tensor | object]
"""Minibatch of a data module: x and codes; a missing field is ``None``, 0 or an empty tensor."""


def is_of_data_module(registry: Mapping[str, Any] | None) -> bool:
    """Whether a registry is one that a data module made."""
    return (registry or {}).get(scvi_constants._SETUP_METHOD_NAME) == "setup_datamodule"


def n_obs_of(registry: Mapping[str, Any]) -> int | None:
    """Number of cells of a data module, ``None`` where it does not tell it."""
    x = registry[scvi_constants._FIELD_REGISTRIES_KEY][REGISTRY_KEYS.X_KEY]
    return x[scvi_constants._STATE_REGISTRY_KEY]["n_obs"]


@dataclass(frozen=True)
class Layout:
    """Genes, labels and conditions in the order in which a model reads them."""

    setup: Setup
    """What the model was set up with."""
    label_codes: tuple[int, ...]
    """Component of each label of the data module; the number of labels for unlabelled cells."""
    is_sparse: bool = False
    """Whether the model takes x as CSR tensors."""

    @property
    def gene_names(self) -> list[str]:
        """Names of the genes, (G,)."""
        return list(self.setup.gene_names)

    @property
    def n_categories(self) -> tuple[int, ...]:
        """Number of categories of the batch (1 without batches) and of each further condition."""
        batch_key = self.setup.arguments["batch_key"]
        sizes = {column: len(names) for column, names in self.setup.categories.items()}
        return (sizes.pop(batch_key, 1), *sizes.values())

    @property
    def description(self) -> tuple[object, ...]:
        """Everything that must be equal in two data modules for the same model."""
        categories = [(column, list(names)) for column, names in self.setup.categories.items()]
        labels = (self.setup.label_names, self.label_codes)
        return self.gene_names, categories, self.setup.continuous, *labels


def cells_of_categories(registry: Mapping[str, Any]) -> tuple[AnnData, dict[str, Any]]:
    """A small AnnData that has all categories of a data module; its counts are all 0.

    What ``setup_anndata`` registers for these cells is what it would register for those of the
    data module, if they were in an AnnData.

    Parameters
    ----------
    registry
        Registry of the data module.

    Returns
    -------
    The cells, and the arguments of ``setup_anndata`` for them.
    """
    found = Setup(registry)
    batches, labels = found.state(REGISTRY_KEYS.BATCH_KEY), found.state(REGISTRY_KEYS.LABELS_KEY)
    arguments: dict[str, Any] = {}
    columns: dict[str, Sequence[object]] = {}
    if batches.get("categorical_mapping") is not None:
        arguments["batch_key"] = batches["original_key"]
        columns[arguments["batch_key"]] = _in_order(batches["categorical_mapping"])
    if covariates := found.state(REGISTRY_KEYS.CAT_COVS_KEY).get("mapping"):
        arguments["categorical_covariate_keys"] = list(covariates)
        columns |= {key: _in_order(names) for key, names in covariates.items()}
    # some data modules without labels bring the unlabelled category as the only one
    if set(_label_names(registry)) - {str(labels.get("unlabeled_category"))}:
        arguments["labels_key"] = labels["original_key"]
        arguments["unlabeled_category"] = str(labels["unlabeled_category"])
        columns[arguments["labels_key"]] = _label_names(registry)
    if len(continuous := found.state(REGISTRY_KEYS.CONT_COVS_KEY).get("columns", ())):
        arguments["continuous_covariate_keys"] = list(continuous)
    # two cells of each category, because a value of its own for every cell is no category
    n = 2 * max([1, *map(len, columns.values())])
    obs = pd.DataFrame(index=map(str, range(n)))
    for key, names in columns.items():
        obs[key] = pd.Categorical(np.resize(np.array(names, dtype=object), n), categories=names)
    obs = obs.assign(**dict.fromkeys(arguments.get("continuous_covariate_keys", ()), 0.0))
    var = pd.DataFrame(index=[str(name) for name in found.gene_names])
    cells = AnnData(sparse.csr_matrix((n, len(var)), dtype=np.float32), obs=obs, var=var)
    return cells, arguments


def label_codes_of(registry: Mapping[str, Any], label_names: Sequence[str]) -> tuple[int, ...]:
    """Component of each label of a data module; the number of labels for unlabelled cells.

    Parameters
    ----------
    registry
        Registry of the data module.
    label_names
        Names of the labels in the order of their components.
    """
    known = pd.Index(label_names)
    codes = known.get_indexer(_label_names(registry))
    return tuple(np.where(codes < 0, len(known), codes).tolist())


def _label_names(registry: Mapping[str, Any]) -> list[str]:
    """Names of a data module's labels in the order of their codes; empty without labels."""
    names = Setup(registry).state(REGISTRY_KEYS.LABELS_KEY).get("categorical_mapping")
    return [] if names is None else [str(name) for name in names]


def _in_order(names: Mapping[object, int] | Sequence[object]) -> list[object]:
    """Categories in the order of their codes; some data modules keep them as a dictionary."""
    return sorted(names, key=names.get) if isinstance(names, Mapping) else list(names)


def registry_of(datamodule: Any) -> Mapping[str, Any]:
    """Registry of a data module, made up where it has none but tells its sizes.

    scvi-tools takes data modules of the latter kind, such as its ``DataSplitter``, if somebody
    has set ``n_vars`` and ``n_batch``: genes and batches then have numbers for names.

    Parameters
    ----------
    datamodule
        What a user has passed.

    Raises
    ------
    TypeError
        If it is none of Lightning's, or has neither a registry nor sizes.
    """
    has_sizes = hasattr(datamodule, "n_vars") and hasattr(datamodule, "n_batch")
    is_described = hasattr(datamodule, "registry") or has_sizes
    if not (isinstance(datamodule, pl.LightningDataModule) and is_described):
        raise TypeError(
            "datamodule must be a LightningDataModule with a registry, as those of scvi-tools "
            f"are, or with n_vars and n_batch, but it is a {type(datamodule).__name__}."
        )
    if hasattr(datamodule, "registry"):
        return datamodule.registry
    checks.check_whole(
        1,
        **{"datamodule.n_vars": datamodule.n_vars, "datamodule.n_batch": datamodule.n_batch},
    )
    return registry_of_sizes(
        datamodule.n_vars, datamodule.n_batch, getattr(datamodule, "n_obs", None)
    )


def registry_of_sizes(n_vars: int, n_batch: int, n_obs: int | None) -> Mapping[str, Any]:
    """Registry of a data module whose genes and batches have numbers for names.

    Parameters
    ----------
    n_vars, n_batch, n_obs
        Number of genes, batches and cells.
    """
    states = {
        REGISTRY_KEYS.X_KEY: {
            "n_obs": n_obs,
            "column_names": [str(gene) for gene in range(n_vars)],
        },
        REGISTRY_KEYS.BATCH_KEY: {
            "categorical_mapping": [str(batch) for batch in range(n_batch)],
            "original_key": "batch",
        },
    }
    return {
        scvi_constants._SETUP_METHOD_NAME: "setup_datamodule",
        scvi_constants._FIELD_REGISTRIES_KEY: {
            key: {scvi_constants._STATE_REGISTRY_KEY: state} for key, state in states.items()
        },
    }


def tensors_of(layout: Layout, minibatch: Minibatch) -> dict[str, Tensor]:
    """Minibatch of a data module, converted to what the module of the model reads.

    Parameters
    ----------
    layout
        Genes, labels and conditions in the order in which the model reads them.
    minibatch
        The minibatch, with the codes of the data module.

    Raises
    ------
    ValueError
        If genes or conditions are not those of the model, or the data module has no such code.
    """
    n_genes, n_labels = len(layout.setup.gene_names), len(layout.setup.label_names)
    x = torch.as_tensor(minibatch[REGISTRY_KEYS.X_KEY]).float()
    if x.shape[1:] != (n_genes,):
        raise ValueError(
            f"Minibatches must have the {n_genes} genes that the model was made for, but "
            f"the shape of {REGISTRY_KEYS.X_KEY!r} is {tuple(x.shape)}. Bring one column for each "
            "gene of the data module's registry, in its order."
        )
    n_batch, *n_categories = layout.n_categories

    def field(key: str, n_columns: int, is_needed: bool = True) -> Tensor | None:
        return _field(minibatch.get(key), key, (len(x), n_columns), x.device, is_needed)

    batch = field(REGISTRY_KEYS.BATCH_KEY, 1, n_batch > 1)
    label = field(REGISTRY_KEYS.LABELS_KEY, int(n_labels > 0), False)
    categories = field(REGISTRY_KEYS.CAT_COVS_KEY, len(n_categories))
    continuous = field(REGISTRY_KEYS.CONT_COVS_KEY, len(layout.setup.continuous))
    codes = torch.full((len(x), 1), n_labels, device=x.device)
    if label is not None:
        component = torch.tensor(layout.label_codes, device=x.device)
        # some data modules mark unlabelled cells by −1
        known = _codes(REGISTRY_KEYS.LABELS_KEY, label.clamp(min=0), [len(component)])
        codes = torch.where(label < 0, codes, component[known])
    if batch is None:
        batch = torch.zeros_like(codes)
    if categories is not None:
        categories = _codes(REGISTRY_KEYS.CAT_COVS_KEY, categories, n_categories)
    tensors = {
        REGISTRY_KEYS.X_KEY: in_layout(x, layout.is_sparse),
        REGISTRY_KEYS.BATCH_KEY: _codes(REGISTRY_KEYS.BATCH_KEY, batch, [n_batch]),
        REGISTRY_KEYS.LABELS_KEY: codes,
        REGISTRY_KEYS.CAT_COVS_KEY: categories,
        REGISTRY_KEYS.CONT_COVS_KEY: None if continuous is None else continuous.float(),
        CELLS_KEY: torch.arange(len(x)),
    }
    return {key: values for key, values in tensors.items() if values is not None}


def _field(
    values: Any, key: str, shape: tuple[int, int], device: torch.device, is_needed: bool
) -> Tensor | None:
    """Field of a minibatch as a tensor of a shape; ``None`` if it is missing and not needed.

    Raises
    ------
    ValueError
        If the field is needed and missing, or of another shape.
    """
    is_there = values is not None and np.ndim(values) > 0
    found = torch.as_tensor(values, device=device) if is_there else torch.empty(0)
    if not shape[1] or not (is_needed or found.numel()):
        return None
    if found.numel() != shape[0] * shape[1]:
        what = f"its shape is {tuple(found.shape)}" if found.numel() else "it is missing"
        raise ValueError(
            f"Minibatches must have the conditions that the model was made for, {key!r} as a "
            f"tensor {shape}, but {what}. Bring it as the registry describes it."
        )
    return found.reshape(shape)


def _codes(key: str, values: Tensor, n_categories: Sequence[int]) -> Tensor:
    """Codes of a field, (n, columns), checked to be below the number of categories."""
    for column, n in zip(values.T, n_categories, strict=True):
        is_known = torch.isin(column, torch.arange(n, device=column.device))
        if not is_known.all():
            raise ValueError(
                f"The codes {key!r} of a minibatch must be whole numbers from 0 to {n - 1}, but "
                f"one is {column[~is_known][0].item()}. Bring those of the data module's registry."
            )
    return values.long()


class ForeignMinibatches(pl.LightningDataModule):
    """A data module whose minibatches are converted to those of the model, and guided.

    Parameters
    ----------
    datamodule
        The data module.
    layout
        Genes, labels and conditions in the order in which the model reads them.
    validates
        Whether the training needs validation cells.

    Raises
    ------
    ValueError
        If validation cells are needed and missing, or the length of an epoch is unknown.
    """

    # the cells of a data module have no row numbers
    train_idx = val_idx = test_idx = None

    def __init__(self, datamodule: pl.LightningDataModule, layout: Layout, validates: bool):
        super().__init__()
        datamodule.prepare_data()
        datamodule.setup("fit")
        self.datamodule, self.layout = datamodule, layout
        self.guiding: BaseModuleClass | None = None
        self.is_soft = False
        self.n_obs = n_obs_of(registry_of(datamodule))
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
        """Give the data module its trainer, which can have only one device."""
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

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Prepare a minibatch as the data module does, before it is moved to the device."""
        return self.datamodule.on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> dict[str, Tensor]:
        """Convert a minibatch to one of the model, and add the guide in the joint stage."""
        batch = self.datamodule.on_after_batch_transfer(batch, dataloader_idx)
        tensors = tensors_of(self.layout, batch)
        if self.trainer is None or not self.trainer.training:
            return tensors
        if len(tensors[CELLS_KEY]) < 2:
            raise ValueError(
                "Training needs minibatches of two cells or more, because batch normalisation has "
                "no value for one, but the data module has made one of a single cell. Let it drop "
                "the last minibatch, or give another batch size."
            )
        if self.guiding is not None:
            tensors[GUIDE_KEY] = self._guide_of(tensors)
        return tensors

    @torch.no_grad()
    def _guide_of(self, tensors: dict[str, Tensor]) -> Tensor:
        """Probabilities of the components by the guiding module, (n, K), or codes (n,)."""
        inputs = self.guiding._get_inference_input(tensors)
        z = self.guiding.inference(**inputs, sample=False)["z"]
        proba = self.guiding.component_proba(z, tensors)
        return proba if self.is_soft else proba.argmax(-1)

    def guide_by(self, module: BaseModuleClass, guide: NDArray) -> None:
        """Guide minibatches from now on by a module whose mixture has started.

        The kind of guide is that of the cells of the sample: probabilities or codes.
        """
        self.guiding, self.is_soft = deepcopy(module).eval(), guide.ndim == 2

    def sample(self) -> AnnData:
        """Sample of cells: the first minibatches, until there are 16,384 cells or no more."""
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
        var = pd.DataFrame(index=self.layout.gene_names)
        return AnnData(x, obs=self._obs(parts), var=var)

    def _obs(self, parts: Sequence[Mapping[str, Tensor]]) -> pd.DataFrame:
        """The registered columns of minibatches, with the names that codes stand for."""
        setup = self.layout.setup
        fields = {
            key: torch.cat([tensors[key] for tensors in parts]).cpu().numpy().T
            for key in parts[0]
            if key != REGISTRY_KEYS.X_KEY
        }
        columns = {}
        for key, column in (
            (REGISTRY_KEYS.BATCH_KEY, setup.arguments["batch_key"]),
            (REGISTRY_KEYS.LABELS_KEY, setup.labels_key),
        ):
            if column is not None:
                names = np.asarray(setup.state(key)["categorical_mapping"])
                columns[column] = names[fields[key][0].astype(int)]
        for column, codes in zip(
            setup.arguments["categorical_covariate_keys"] or (),
            fields.get(REGISTRY_KEYS.CAT_COVS_KEY, ()),
            strict=True,
        ):
            columns[column] = np.asarray(setup.categories[column])[codes.astype(int)]
        columns |= zip(setup.continuous, fields.get(REGISTRY_KEYS.CONT_COVS_KEY, ()), strict=True)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(fields[CELLS_KEY])).astype(str))

    def _minibatches(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.datamodule.train_dataloader():
            yield self.on_after_batch_transfer(self.on_before_batch_transfer(batch, 0), 0)


def _scipy(x: Tensor) -> sparse.csr_matrix:
    """CSR matrix of scipy with the values of a CSR tensor."""
    parts = (x.values(), x.col_indices(), x.crow_indices())
    return sparse.csr_matrix(tuple(part.numpy() for part in parts), shape=x.shape)
