"""scvi-tools' methods that read a model: here for trained models only, with their own seed.

In scvi-tools most of them take an untrained model as well, whose batch normalisation they then
change, and all of them draw from the random states that the rest of the program draws from.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from inspect import BoundArguments, Parameter, signature
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import torch
from scvi.model.base import VAEMixin
from torch import Tensor

from scgmvae import checks
from scgmvae.data import validation
from scgmvae.data.categories import name_of
from scgmvae.data.minibatches import stacked
from scgmvae.model.registration import Registration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike

__all__ = ["Seeded", "drawing_from", "seeded"]

T = TypeVar("T")

is_drawing = ContextVar("is_drawing", default=False)

NUMBERS = ("n_samples", "n_samples_overall", "n_mc_samples", "n_mc_samples_per_pass")


BATCHES = ("transform_batch", "batchid1", "batchid2")


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Seed numpy's and torch's global random states, and leave them as they were.

    Within another such block, draws continue from the seed of the outer block. Otherwise methods
    that call one another would repeat the same draws.
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


def seeded(method: Callable[..., T], original: Callable[..., T] | None = None) -> Callable[..., T]:
    """A method of scvi-tools with the keyword ``seed`` of its draws, and its arguments checked.

    Parameters
    ----------
    method
        Method of a model.
    original
        The method of scvi-tools whose arguments it takes, if it does not name all of them.
    """
    own, known = signature(method), signature(original or method)
    names_all = all(p.kind is not Parameter.VAR_POSITIONAL for p in own.parameters.values())
    positions = own if names_all else known

    @wraps(method)
    def read(self: Registration, *args: Any, seed: int = 0, **kwargs: Any) -> T:
        self._check_if_trained(warn=False)
        checks.check_seed(seed)
        given = _by_name(positions.bind(self, *args, **kwargs))
        if not isinstance(given.get("gene_list"), str | NoneType):
            given["gene_list"] = list(given["gene_list"])  # an array, a set or whatever has genes
        _check_arguments(self, known.bind(**given).arguments)
        for name in BATCHES:
            if given.get(name) is not None:
                given[name] = _batches(self, name, given[name])
        if given.get("dataloader") is not None:
            given["dataloader"] = self._minibatches(given["dataloader"])
        self.module.eval()
        with drawing_from(seed):
            return method(**given)

    seed_parameter = Parameter("seed", Parameter.KEYWORD_ONLY, default=0, annotation="int")
    arguments = [*signature(method).parameters.values(), seed_parameter]
    shown = signature(method).replace(parameters=sorted(arguments, key=_kind))
    read.__signature__ = shown  # type: ignore[attr-defined]  # inspect reads this
    return read


def _by_name(bound: BoundArguments) -> dict[str, Any]:
    """Arguments by their names, including those of ``**kwargs``."""
    given = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def _kind(parameter: Parameter) -> int:
    return parameter.kind


def _check_arguments(model: Registration, given: Mapping[str, Any]) -> None:
    """Raise if an argument would be ignored, or would fail later with an unclear error."""
    numbers = {name: given[name] for name in NUMBERS if given.get(name) is not None}
    checks.check_whole(1, **numbers)
    if given.get("library_size", "latent") != "latent":
        checks.check_positive(library_size=given["library_size"])
    if "weights" in given:
        checks.check_choices(weights=(given["weights"], (None, "uniform", "importance")))
        if given["weights"] == "importance":
            model._check_weighted(given.get("dataloader"))
    if given.get("gene_list") is not None:
        _check_genes(given["gene_list"], model.get_var_names())


def _check_genes(genes: Sequence[str], known: Iterable[str]) -> None:
    """Raise unless all genes of a list are the model's."""
    if isinstance(genes, str) or not len(genes):
        raise ValueError(f"gene_list must be a list of genes, but it is {genes!r}.")
    unknown = sorted(set(genes) - set(known), key=str)
    if unknown:
        raise KeyError(f"gene_list has genes that the model lacks: {checks.listed(unknown)}.")


def _batches(model: Registration, name: str, asked: Any) -> list[object]:
    """Batches as they are registered, of those that an argument names.

    Raises
    ------
    ValueError
        If the model was set up without batches, or does not know one of them.
    """
    column = model._setup.arguments.get("batch_key")
    if column is None:
        raise ValueError(
            f"{name} names batches, but the model was set up without. Leave it out, or register "
            "an obs column with batch_key=..."
        )
    known = {name_of(value): value for value in model._setup.categories[column]}
    values = [asked] if np.ndim(asked) == 0 else list(asked)
    names = [None if value is None else name_of(value, known) for value in values]
    unknown = [name for name in names if name is not None and name not in known]
    if unknown:
        raise ValueError(
            f"{name} must name batches of the obs column {column!r} that the model was trained "
            f"on, but {checks.listed(unknown)} is none. Known are: "
            f"{checks.listed_like(unknown[0], known)}."
        )
    return [None if name is None else known[name] for name in names]


class Seeded(Registration):
    """Methods that every model has, each with one keyword more, the ``seed`` of its draws (0)."""

    get_elbo = seeded(VAEMixin.get_elbo)

    @partial(seeded, original=VAEMixin.get_marginal_ll)
    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Importance-sampled log likelihood of the cells, in nats.

        Parameters
        ----------
        adata, indices, n_mc_samples, batch_size, dataloader, **kwargs
            As in :meth:`scvi.model.base.VAEMixin.get_marginal_ll`.
        return_mean
            Whether to return the mean over the cells, or one value for each. scvi-tools takes the
            mean over the minibatches, whatever their sizes.

        Returns
        -------
        Tensor ``()`` or ``(n,)``.
        """
        values = VAEMixin.get_marginal_ll(
            self, adata, indices, n_mc_samples, batch_size, False, dataloader, **kwargs
        )
        return values.mean() if return_mean else values

    @torch.inference_mode()
    def get_elbo_terms(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        *,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Terms of the negative ELBO of each cell.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        indices
            Rows to use.
        batch_size
            Cells at a time.
        seed
            Seed of the random samples.

        Returns
        -------
        DataFrame, cells × terms, in nats; the ELBO of a cell is minus the sum of its row. The
        terms are estimated with one sample of the latents.

        Examples
        --------
        >>> model.get_elbo_terms().columns.tolist()
        ['reconstruction_loss', 'kl_z', 'kl_w', 'kl_y', 'kl_d']
        """
        self._check_if_trained(warn=False)
        checks.check_seed(seed)
        adata = self._validate_anndata(adata)
        rows = validation.rows_of(adata, indices)
        self.module.eval()
        loader = self._make_data_loader(adata, indices=rows, batch_size=batch_size)
        with drawing_from(seed):
            outputs = (self.module(tensors)[2] for tensors in loader)
            terms = stacked(output.reconstruction_loss | output.kl_local for output in outputs)
        return pd.DataFrame(terms, index=adata.obs_names[rows])
