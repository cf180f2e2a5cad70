"""Expression under the model: methods of scvi-tools, changed where they do not fit it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scvi.model.base import RNASeqMixin

from scgmvae.data import validation
from scgmvae.distributions.families import FAMILIES, JOINT
from scgmvae.model.base import Model
from scgmvae.model.seeded import seeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

__all__ = ["ExpressionMixin"]


class ExpressionMixin(Model, RNASeqMixin):
    """Normalised expression, predictive samples, parameters of p(x|z,c), correlated genes."""

    @partial(seeded, original=RNASeqMixin.get_normalized_expression)
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        transform_batch: object = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | str = 1,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
        **kwargs: object,
    ) -> pd.DataFrame | NDArray[np.float32]:
        """Normalised expression as in scvi-tools, but no argument is ignored silently.

        Parameters
        ----------
        adata, indices, transform_batch, gene_list, library_size, n_samples
            As in :meth:`scvi.model.base.RNASeqMixin.get_normalized_expression`.
        n_samples_overall
            Number of draws from all cells; they belong to no cell, so they come as an array.
        dataloader
            Minibatches to use in place of ``adata``, as they come.
        **kwargs
            Further arguments of scvi-tools' method.

        Raises
        ------
        KeyError
            If the model does not have a gene.
        ValueError
            If cells, genes or batches are chosen together with ``dataloader``.
        """
        self._check_choice(dataloader, indices, transform_batch, gene_list)
        if library_size != 1 and self._module_kwargs["likelihood"] == JOINT:
            raise ValueError(
                "library_size is one of counts, and a model of several modalities has features of "
                f"other kinds as well, but it is {library_size!r}. Leave it out, or use "
                "impute(modality), which gives counts."
            )
        if n_samples_overall is not None:
            kwargs["return_numpy"] = True
        if dataloader is None:
            adata = self._validate_anndata(adata)
            indices = validation.rows_of(adata, indices)
        # BaseModelClass has a method of this name as well, which comes first
        expression = RNASeqMixin.get_normalized_expression(
            self,
            adata,
            indices,
            transform_batch,
            gene_list,
            library_size,
            n_samples,
            n_samples_overall,
            dataloader=dataloader,
            **kwargs,
        )
        if gene_list is None:
            return expression
        places = self._places_of(gene_list)
        if isinstance(expression, pd.DataFrame):
            return expression.iloc[:, places]
        return expression[..., places]

    @partial(seeded, original=RNASeqMixin.posterior_predictive_sample)
    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        transform_batch: object = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor]] | None = None,
        **kwargs: object,
    ) -> object:
        """Posterior predictive samples as in scvi-tools, but no argument is ignored silently.

        Parameters
        ----------
        adata, indices, transform_batch, n_samples, gene_list, batch_size, **kwargs
            As in :meth:`scvi.model.base.RNASeqMixin.posterior_predictive_sample`.
        dataloader
            Minibatches to use in place of ``adata``, as they come.

        Returns
        -------
        ``sparse.GCXS`` ``(n, G)`` or, for several samples, ``(n, G, n_samples)``.

        Raises
        ------
        KeyError
            If the model does not have a gene.
        ValueError
            If cells, genes or batches are chosen together with ``dataloader``.
        """
        self._check_choice(dataloader, indices, transform_batch, gene_list)
        counts = super().posterior_predictive_sample(
            adata,
            indices,
            transform_batch,
            n_samples,
            gene_list,
            batch_size,
            dataloader,
            **kwargs,
        )
        return counts if gene_list is None else counts[:, self._places_of(gene_list)]

    def _places_of(self, gene_list: Sequence[str]) -> NDArray[np.integer]:
        """Places of genes in what scvi-tools returns: each gene once, in the model's order."""
        names = self.get_var_names()
        return pd.Index(names[np.isin(names, gene_list)]).get_indexer(list(gene_list))

    def _check_choice(
        self,
        dataloader: Iterator[dict[str, Tensor]] | None,
        indices: object,
        transform_batch: object,
        gene_list: Sequence[str] | None,
    ) -> None:
        """Raise where a choice of cells, batches or genes cannot be followed."""
        choice = {"indices": indices, "transform_batch": transform_batch, "gene_list": gene_list}
        asked = [name for name, value in choice.items() if value is not None]
        if dataloader is not None and asked:
            raise ValueError(
                f"A dataloader is read as it comes, but {', '.join(asked)} would change that. "
                "Pass adata in its place, or choose from the result."
            )

    @partial(seeded, original=RNASeqMixin.get_likelihood_parameters)
    def get_likelihood_parameters(self, *args: object, **kwargs: object) -> dict[str, NDArray]:
        """Parameters of the likelihood as in scvi-tools, for ``nb`` and ``zinb``.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.base.RNASeqMixin.get_likelihood_parameters`.

        Raises
        ------
        NotImplementedError
            For a likelihood without dispersion.
        """
        self._check_dispersion()
        return super().get_likelihood_parameters(*args, **kwargs)

    @partial(seeded, original=RNASeqMixin.get_feature_correlation_matrix)
    def get_feature_correlation_matrix(self, *args: object, **kwargs: object) -> pd.DataFrame:
        """Correlations of genes as in scvi-tools, for the likelihoods ``nb`` and ``zinb``.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.base.RNASeqMixin.get_feature_correlation_matrix`.

        Raises
        ------
        NotImplementedError
            For a likelihood without dispersion.
        """
        self._check_dispersion()
        return super().get_feature_correlation_matrix(*args, **kwargs)

    def _get_denoised_samples(self, *args: object, **kwargs: object) -> NDArray[np.float32]:
        # scvi-tools takes the shape of the dispersions from x, which a CSR tensor does not give
        return super()._get_denoised_samples(*args, sparse=False, **kwargs)

    def _check_weighted(self, dataloader: object) -> None:
        """Raise unless samples can have importance weights."""
        likelihood, prior = self._module_kwargs["likelihood"], self._module_kwargs["prior"]
        if likelihood in ("bernoulli", JOINT) or prior == "none":
            raise NotImplementedError(
                "weights='importance' needs densities of z and of x that scvi-tools can join, "
                f"which likelihood={likelihood!r} with prior={prior!r} does not have. Use "
                "weights='uniform'."
            )
        if dataloader is not None:
            raise NotImplementedError(
                "weights='importance' reads the cells again, which a dataloader gives once. Give "
                "adata and indices, or use weights='uniform'."
            )

    def _check_dispersion(self) -> None:
        likelihood = self._module_kwargs["likelihood"]
        family = FAMILIES.get(likelihood)  # a joint model has one for each modality
        if family is None or not family.is_count or family.start_dispersion is None:
            raise NotImplementedError(
                "This method reads the inverse dispersion of the likelihoods 'nb' and 'zinb', "
                f"which {likelihood!r} does not have."
            )

    @partial(seeded, original=RNASeqMixin.get_latent_library_size)
    def get_latent_library_size(self, *args: object, **kwargs: object) -> NDArray[np.float32]:
        """Library size of counts, as in scvi-tools: observed, or the latent one.

        Observed ones, the default of a model, are given with ``give_mean=False``.

        Parameters
        ----------
        *args, **kwargs
            As in :meth:`scvi.model.base.RNASeqMixin.get_latent_library_size`.

        Raises
        ------
        NotImplementedError
            For a likelihood that is not one of counts.
        RuntimeError
            With ``give_mean=True`` of observed library sizes, which have no posterior.
        """
        if not self.module.is_count:
            raise NotImplementedError(
                "Library sizes are those of counts, but the likelihood is "
                f"{self._module_kwargs['likelihood']!r}."
            )
        return super().get_latent_library_size(*args, **kwargs)
