"""Settings of scvi-tools' SCVI that have the same meaning here, and those that have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scgmvae.distributions.families import Likelihood

__all__ = ["OF_QUERY", "check_offered", "from_scvi"]

LIKELIHOOD_NAMES: dict[str, Likelihood] = {"normal": "gaussian"}
"""Values of SCVI's ``gene_likelihood`` that have another name here."""

Offered = Mapping[str, tuple[object, str]]
"""Name of a setting → the only value that it can have here, and why it has no other."""

OF_MODEL: Offered = {
    "latent_distribution": ("normal", "The components are Gaussians, so z is one."),
    "log_variational": (
        True,
        "Counts enter as log(1 + x); for values that are none use likelihood='gaussian'.",
    ),
    "use_batch_norm": ("both", "Every hidden layer is batch-normalised."),
    "use_layer_norm": ("none", "Every hidden layer is batch-normalised."),
    "var_activation": (None, "The posterior variance of z is the exponential of a bounded value."),
}

OF_QUERY: Offered = {
    name: (value, "A reference stays as it is. To train all, make a model of both data sets.")
    for name, value in {
        "unfrozen": False,
        "freeze_dropout": False,
        "freeze_expression": True,
        "freeze_decoder_first_layer": True,
        "freeze_batchnorm_encoder": True,
        "freeze_batchnorm_decoder": True,
        "freeze_classifier": True,
        "transfer_batch": True,
        "registry": None,
        "datamodule": None,
    }.items()
}


def check_offered(offered: Offered, given: Mapping[str, object]) -> dict[str, Any]:
    """Settings that are not of scvi-tools; ``NotImplementedError`` for values without meaning.

    Parameters
    ----------
    offered
        Settings of scvi-tools, with the values that they can have here.
    given
        Settings that a user has passed.
    """
    for name, value in given.items():
        if name in offered and value != offered[name][0]:
            only, why = offered[name]
            raise NotImplementedError(
                f"{name}={value!r} is a setting of scvi-tools that is not offered here, where "
                f"{name}={only!r}. {why}"
            )
    return {name: value for name, value in given.items() if name not in offered}


def from_scvi(
    likelihood: Likelihood | None, settings: Mapping[str, object]
) -> tuple[Likelihood | None, dict[str, Any]]:
    """Likelihood and settings of the module, where some may be named as SCVI names them.

    Parameters
    ----------
    likelihood
        Likelihood by its name here; ``None`` if it is not given, or given by SCVI's name.
    settings
        Further settings.

    Raises
    ------
    NotImplementedError
        For a setting of SCVI that has no meaning here.
    ValueError
        If the likelihood is given twice.

    Examples
    --------
    >>> from_scvi(None, {"gene_likelihood": "normal", "dispersion": "gene"})
    ('gaussian', {'dispersion': 'gene'})
    """
    settings = check_offered(OF_MODEL, settings)
    scvi_name = settings.pop("gene_likelihood", None)
    if scvi_name is None:
        return likelihood, settings
    if likelihood is not None:
        raise ValueError(
            "gene_likelihood is SCVI's name of likelihood, so give one of them, but they are "
            f"{scvi_name!r} and {likelihood!r}."
        )
    return LIKELIHOOD_NAMES.get(scvi_name, scvi_name), settings
