"""What the page of a class lists, and under which heading."""

from __future__ import annotations

from importlib import import_module
from inspect import getattr_static, getdoc, unwrap

GROUPS = {
    "Set up": (
        "setup_anndata",
        "setup_mudata",
        "adata",
        "get_var_names",
        "get_anndata_manager",
        "view_registry",
        "to_device",
    ),
    "Train": ("train",),
    "Embedding, clusters and labels": (
        "predict",
        "get_latent_representation",
        "get_modality_entropy",
        "get_novelty",
        "get_foreground",
        "get_background",
        "annotate",
        "get_batch_representation",
    ),
    "Number of clusters": (
        "split_table",
        "split_tree",
        "cut",
        "test_partition",
        "cluster_names",
        "component_names",
        "component_table",
        "component_similarity",
        "merge_components",
    ),
    "Genes and expression": (
        "markers",
        "test_markers",
        "test_condition",
        "differential_expression",
        "differential_abundance",
        "integration_table",
        "impute",
        "get_protein_foreground_probability",
        "get_normalized_expression",
        "get_feature_correlation_matrix",
        "get_latent_library_size",
        "get_likelihood_parameters",
    ),
    "Other conditions and new cells": (
        "effect_table",
        "predict_counterfactual",
        "sample",
        "posterior_predictive_sample",
        "decode",
        "decode_components",
        "get_reconstruction",
    ),
    "New data on a trained model": ("load_query_data", "prepare_query_anndata"),
    "Quality of the fit": (
        "get_elbo_terms",
        "get_marginal_ll",
        "get_importance_weights",
        "get_aggregated_posterior",
    ),
    "Plot and report": ("overview", "report"),
    "Save and load": ("save", "load", "load_registry", "view_setup_args"),
}
"""Heading → members of the models, in the order of their use."""

INHERITED = (
    "get_elbo",
    "get_reconstruction_error",
    "get_anndata_manager",
    "history",
    "is_trained",
    "train_indices",
    "validation_indices",
    "device",
    "to_device",
    "view_anndata_setup",
)
"""What users call of scvi-tools' methods, which its own documentation describes."""


def members_from(fullname: str, package: str) -> list[str]:
    """Public methods and properties of a class that are written in a package, and available."""
    module, name = fullname.rsplit(".", 1)
    cls, found = getattr(import_module(module), name), []
    for member in dir(cls):
        value = getattr_static(cls, member)
        value = unwrap(getattr(value, "__func__", getattr(value, "fget", value)))
        origin = (getattr(value, "__module__", None) or "").split(".")[0]
        is_absent = (getdoc(value) or "").startswith("Not available")
        if not member.startswith("_") and origin == package and not is_absent:
            found.append(member)
    return found if package == "scgmvae" else [name for name in INHERITED if name in found]


def grouped_members(fullname: str) -> dict[str, list[str]]:
    """Headings of a class's page with the members under each; one heading if it is no model."""
    own = members_from(fullname, "scgmvae")
    if fullname not in ("scgmvae.SCGMVAE", "scgmvae.DualVAE"):
        return {"Members": own} if own else {}
    groups = {
        heading: [name for name in names if name in own] for heading, names in GROUPS.items()
    }
    return {heading: names for heading, names in groups.items() if names}
