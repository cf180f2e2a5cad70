"""Names and signatures of scvi-tools that the package is built on: an update shows here first."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from scvi.data import AnnDataManager
from scvi.data import _utils as data_utils
from scvi.data.fields import BaseAnnDataField, CategoricalObsField
from scvi.dataloaders import AnnDataLoader, DataSplitter
from scvi.dataloaders._data_splitting import validate_data_split
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass, RNASeqMixin, VAEMixin, _save_load
from scvi.module.base import BaseModuleClass, LossOutput
from scvi.train import SaveCheckpoint, Trainer, TrainingPlan, TrainRunner
from scvi.train._config import merge_kwargs

import scgmvae

PACKAGE = Path(scgmvae.__file__).parent


def names_of_scvi():
    """Every name of scvi-tools in the package: what is imported, and attributes of that."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "scvi":
                for alias in node.names:
                    imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "scvi":
                        imported[alias.asname or "scvi"] = alias.name
        found |= set(imported.values())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in imported:
                    found.add(f"{imported[node.value.id]}.{node.attr}")
    return sorted(found)


def resolved(name):
    """The object of a dotted name: modules are imported, the rest are attributes."""
    parts = name.split(".")
    value = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        if not hasattr(value, part) and inspect.ismodule(value):
            importlib.import_module(".".join(parts[:i]))
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", names_of_scvi())
def test_scvi_tools_has_every_name_that_is_used(name):
    resolved(name)


def test_names_are_found_in_all_kinds_of_use():
    names = names_of_scvi()
    assert {
        "scvi.REGISTRY_KEYS.X_KEY",  # attribute of what is imported
        "scvi.data._constants._SETUP_ARGS_KEY",  # of a module under another name
        "scvi.model.base.RNASeqMixin",  # a base class
        "scvi.train._config.merge_kwargs",  # private
        "scvi.settings.seed",
    } <= set(names)


def test_a_name_that_is_not_there_is_noticed():
    for name in ("scvi.model.base.NoSuchMixin", "scvi.no_such_module.name"):
        with pytest.raises(ImportError):
            resolved(name)
    with pytest.raises(AttributeError):
        resolved("scvi.REGISTRY_KEYS.NO_SUCH_KEY")


# Arguments that the package passes by name or position, or takes where it overrides.
SIGNATURES = [
    (AnnDataManager, "fields setup_method_args"),
    (AnnDataManager.register_fields, "self adata source_registry"),
    (AnnDataManager.transfer_fields, "self adata_target"),
    (AnnDataManager.get_from_registry, "self registry_key"),
    (AnnDataManager.view_registry, "self hide_state_registries"),
    (AnnDataManager.view_setup_method_args, "registry"),
    (BaseAnnDataField.register_field, "self adata"),
    (CategoricalObsField.transfer_field, "self state_registry adata_target"),
    (data_utils._assign_adata_uuid, "adata overwrite"),
    (data_utils._check_if_view, "adata copy_if_view"),
    (AnnDataLoader, "adata_manager indices batch_size shuffle"),
    (DataSplitter, "adata_manager train_size validation_size external_indexing"),
    (validate_data_split, "n_samples train_size validation_size"),
    (parse_device_args, "accelerator devices return_device validate_single_device"),
    (BaseModelClass.__init__, "self adata registry"),
    (BaseModelClass._make_data_loader, "self adata indices batch_size shuffle"),
    (BaseModelClass._validate_anndata, "self adata copy_if_view"),
    (BaseModelClass.get_anndata_manager, "self adata required"),
    (BaseModelClass.load, "dir_path adata accelerator device prefix"),
    (BaseModelClass.save, "self dir_path prefix overwrite save_anndata"),
    (BaseModelClass._get_init_params, "self locals"),
    (VAEMixin.get_elbo, "self adata indices batch_size dataloader return_mean"),
    (
        VAEMixin.get_marginal_ll,
        "self adata indices n_mc_samples batch_size return_mean dataloader",
    ),
    (VAEMixin.differential_abundance, "self adata sample_key batch_size"),
    (VAEMixin.get_aggregated_posterior, "self adata indices batch_size dof"),
    (
        RNASeqMixin.get_normalized_expression,
        "self adata indices transform_batch gene_list library_size n_samples n_samples_overall "
        "weights batch_size return_mean return_numpy silent dataloader",
    ),
    (
        RNASeqMixin.posterior_predictive_sample,
        "self adata indices transform_batch n_samples gene_list batch_size dataloader",
    ),
    (RNASeqMixin._get_denoised_samples, "self adata indices n_samples batch_size"),
    (_save_load._initialize_model, "cls adata registry attr_dict datamodule"),
    (_save_load._validate_var_names, "adata source_var_names"),
    (BaseModuleClass.forward, "self tensors get_inference_input_kwargs inference_kwargs"),
    (LossOutput, "loss reconstruction_loss kl_local"),
    (TrainingPlan, "module lr weight_decay eps n_epochs_kl_warmup on_step"),
    (TrainRunner, "model training_plan data_splitter max_epochs accelerator devices"),
    (
        Trainer,
        "check_val_every_n_epoch enable_checkpointing early_stopping early_stopping_warmup_epochs",
    ),
    (SaveCheckpoint, "dirpath filename monitor load_best_on_end check_nan_gradients"),
    (merge_kwargs, "config overrides name"),
]


@pytest.mark.parametrize(
    ("function", "arguments"), SIGNATURES, ids=[f.__qualname__ for f, _ in SIGNATURES]
)
def test_the_arguments_that_are_passed_are_there_in_order(function, arguments):
    known = list(inspect.signature(function).parameters)
    wanted = arguments.split()
    assert [name for name in known if name in wanted] == wanted
