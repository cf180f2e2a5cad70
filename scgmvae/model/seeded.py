"""scvi-tools' methods that read a model, for trained models alone and with a seed of their own.

In scvi-tools most of them take an untrained model as well, whose batch normalisation they then
change, and all of them draw from the random states that the rest of the program draws from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import BoundArguments, Parameter, signature
from typing import TypeVar

import numpy as np
import torch
from scvi.model.base import RNASeqMixin, VAEMixin

from scgmvae import checks

__all__ = ["ReadingMixin", "drawing_from", "reading"]

T = TypeVar("T")

is_drawing = ContextVar("is_drawing", default=False)

NUMBERS = ("n_samples", "n_samples_overall", "n_mc_samples", "n_mc_samples_per_pass")


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Seed numpy's and torch's global random states, and leave them as they were.

    Within another such block draws go on from that one's seed: methods that call one another would
    else repeat the same draws.
    """
    if is_drawing.get():
        yield
        return
    token = is_drawing.set(True)
    state = np.random.get_state()  # noqa: NPY002, what scvi-tools draws from
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        is_drawing.reset(token)


def reading(
    method: Callable[..., T], original: Callable[..., T] | None = None
) -> Callable[..., T]:
    """A method of scvi-tools with the keyword ``seed`` of its draws, and its arguments checked.

    Parameters
    ----------
    method
        Method of a model.
    original
        The method of scvi-tools whose arguments it takes, where it does not name them all.
    """
    own, known = signature(method), signature(original or method)
    names_all = all(of.kind is not Parameter.VAR_POSITIONAL for of in own.parameters.values())
    positions = own if names_all else known

    @wraps(method)
    def read(self, *args: object, seed: int = 0, **kwargs: object) -> T:
        self._check_if_trained(warn=False)
        checks.check_seed(seed)
        given = _by_name(positions.bind(self, *args, **kwargs))
        _check_arguments(self, known.bind(**given).arguments)
        if given.get("dataloader") is not None:
            given["dataloader"] = self._minibatches(given["dataloader"])
        self.module.eval()
        with drawing_from(seed):
            return method(**given)

    of_seed = Parameter("seed", Parameter.KEYWORD_ONLY, default=0, annotation="int")
    arguments = [*signature(method).parameters.values(), of_seed]
    read.__signature__ = signature(method).replace(parameters=sorted(arguments, key=_kind))
    return read


def _by_name(bound: BoundArguments) -> dict[str, object]:
    """Arguments by their names, further ones too."""
    given = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def _kind(parameter: Parameter) -> int:
    return parameter.kind


def _check_arguments(model: VAEMixin, given: Mapping[str, object]) -> None:
    """Raise where an argument would be ignored, or fail where nobody understands it."""
    numbers = {name: given[name] for name in NUMBERS if given.get(name) is not None}
    checks.check_whole(1, **numbers)
    if given.get("library_size", "latent") != "latent":
        checks.check_positive(library_size=given["library_size"])
    if "weights" in given:
        checks.check_choices(weights=(given["weights"], (None, "uniform", "importance")))
        if given["weights"] == "importance":
            model.get_importance_weights()  # which says why there are none
    genes = given.get("gene_list")
    if genes is not None:
        if isinstance(genes, str) or not len(genes):
            raise ValueError(f"gene_list must be a list of genes, but it is {genes!r}.")
        unknown = set(genes) - set(model.get_var_names())
        if unknown:
            unknown = checks.listed(sorted(unknown, key=str))
            raise KeyError(f"gene_list has genes that the model lacks: {unknown}.")
    keys = {name: given[name] for name in ("groupby", "sample_key") if name in given}
    if keys:
        adata = model._validate_anndata(given.get("adata"))
        checks.check_columns(adata, **keys)
        for name in ("group1", "group2"):
            groups = given.get(name)
            if groups is None:
                continue
            groups = [groups] if isinstance(groups, str) else list(groups)
            known = adata.obs[keys["groupby"]].astype(str) if len(groups) else ()
            unknown = {str(group) for group in groups} - set(known)
            if unknown:
                raise ValueError(
                    f"{name} must name groups in the obs column {keys['groupby']!r}, but "
                    f"{checks.listed(sorted(unknown))} has no cells."
                )


class ReadingMixin:
    """Methods of scvi-tools, each with one keyword more, the ``seed`` of its draws (0)."""

    get_elbo = reading(VAEMixin.get_elbo)
    get_reconstruction_error = reading(VAEMixin.get_reconstruction_error)
    differential_abundance = reading(VAEMixin.differential_abundance)
    differential_expression = reading(RNASeqMixin.differential_expression)
