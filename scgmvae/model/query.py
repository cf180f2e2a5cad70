"""Query mapping: new data are mapped to a reference that stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import pandas as pd
from anndata import AnnData
from mudata import MuData

from scgmvae.data import validation
from scgmvae.data.genes import match_genes
from scgmvae.data.keys import OBSERVED_KEY
from scgmvae.model.fitted import Fitted
from scgmvae.model.merging import MergingMixin
from scgmvae.model.scvi_settings import OF_QUERY, check_offered

__all__ = ["QueryMixin"]


class QueryMixin(MergingMixin):
    """The methods ``load_query_data`` and ``prepare_query_anndata``, in the way of scArches."""

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData | MuData,
        reference_model: MergingMixin | str | Path,
        *,
        inplace_subset_query_vars: bool = False,
        accelerator: str = "auto",
        device: int | str = "auto",
        **of_scvi: Any,
    ) -> Self:
        """Model of new data on top of a trained reference.

        Batches, or other categories of registered conditions, that the reference does not know
        get weights of their own, which start as the mean of the known ones. They are all that
        :meth:`train` changes, so the embedding of the reference's cells stays the same bit for
        bit. Results can be read before training as well.

        Parameters
        ----------
        adata
            New data with the obs columns that the reference was set up with. Cells without a
            label, or with one that the reference does not know, count as unlabelled; so do
            all cells if the column of labels is missing. Genes are put into the reference's order,
            in a copy; up to half can be missing and are then treated as unobserved, with a
            warning. Results are written into ``adata`` and into the copy.
        reference_model
            The trained reference, or the folder that it was saved in.
        inplace_subset_query_vars
            Whether to put the genes in order in ``adata`` itself, see
            :meth:`prepare_query_anndata`.
        accelerator, device
            Where to put a reference that is read from a folder, as in :meth:`load`.
        **of_scvi
            Arguments of scvi-tools that choose what is frozen; here everything is.

        Returns
        -------
        The model of the new data; ``model.adata`` is ``adata``, or its copy with the reference's
        genes.

        Raises
        ------
        KeyError
            If a column is missing.
        NotImplementedError
            If something is not to be frozen.
        RuntimeError
            If the reference is untrained, or its training ended before there were components.
        ValueError
            If the data does not suit the reference. ``adata`` is then as it was before.

        References
        ----------
        Lotfollahi et al. 2022, "Mapping single-cell data to reference atlases by transfer
        learning" (scArches).

        Examples
        --------
        >>> new = scgmvae.datasets.synthetic_counts(100, 50, n_components=3, seed=1)
        >>> new.obs["batch"] = "new"
        >>> mapped = scgmvae.SCGMVAE.load_query_data(new, model)
        >>> mapped.train(max_epochs=2, enable_progress_bar=False)
        >>> mapped.predict().shape
        (100,)
        """
        unknown = check_offered(OF_QUERY, of_scvi)
        if unknown:
            raise TypeError(
                f"load_query_data got arguments that it does not have: {', '.join(unknown)}."
            )
        reference = cls._reference(adata, reference_model, accelerator, device)
        if inplace_subset_query_vars:
            validation.check_not_view(adata)
            cls.prepare_query_anndata(adata, reference)
        passed = adata
        adata = cls._anndata_of(adata, vars(reference), to_write=True)
        given = adata
        adata = match_genes(given, reference.get_var_names())
        with validation.unchanged_on_error(adata):
            cls.setup_anndata(
                adata,
                source_registry=reference.registry_,
                extend_categories=True,
                **reference._setup.arguments,
            )
            model = cls(**reference._arguments | {"adata": adata, "n_components": None})
        model._take_from(reference)
        model._given = model._written_beside(passed, given, adata)
        return model

    @classmethod
    def _reference(
        cls,
        adata: object,
        reference_model: MergingMixin | str | Path,
        accelerator: str,
        device: int | str,
    ) -> MergingMixin:
        """The trained reference, read from its folder if need be."""
        reference = reference_model
        if isinstance(reference, str | Path):
            reference = cls.load(reference, False, accelerator, device)
        if not isinstance(adata, AnnData | MuData):
            raise ValueError(
                "adata must be the AnnData or MuData of the query, but it is a "
                f"{type(adata).__name__}. The reference comes second."
            )
        if not isinstance(reference, cls):
            raise ValueError(
                f"reference_model must be a trained {cls.__name__}, or the folder of one, but it "
                f"is a {type(reference).__name__}."
            )
        reference._check_if_trained(warn=False)
        if reference.module.has_mixture:
            reference._check_mixture()
        return reference

    def _take_from(self, reference: MergingMixin) -> None:
        """Take over all that a reference has learned, with weights for new categories."""
        n_categories = self.module.n_categories
        Fitted.of(reference).give_to(self)
        self.modality_ = reference.modality_
        self.shown_proteins_ = reference.shown_proteins_ and {
            name: self.shown_proteins_[name] | known
            for name, known in reference.shown_proteins_.items()
        }
        self.seed_ = reference.seed_
        self.reference_categories_ = reference.module.n_categories
        self.reference_has_condition_prior_ = reference.module.condition_prior is not None
        own_library = self.module.library_size
        self.module = copy.deepcopy(reference.module)
        self.module.extend_categories(n_categories)
        if own_library is not None:
            n_known = self.reference_categories_[0]
            new = own_library.log_means[:, n_known:], own_library.log_vars[:, n_known:]
            if OBSERVED_KEY in self.adata.var:
                # sizes count all genes, also those that the new data lack
                known = self.module.library_size
                new = tuple(
                    values.mean().expand_as(part)
                    for values, part in zip((known.log_means, known.log_vars), new, strict=True)
                )
            self.module.library_size.extend(*new)
        self.module.eval()
        self.is_trained_ = True
        self._model_summary_string = self._summary()

    @classmethod
    def prepare_query_anndata(
        cls,
        adata: AnnData,
        reference_model: MergingMixin | str | Path,
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ) -> AnnData | pd.Index | None:
        """Put the genes of new data into the order of a model.

        There is no need to do so before :meth:`load_query_data`, which works on a copy. Genes that
        are missing count as unobserved in both.

        Parameters
        ----------
        adata
            New data.
        reference_model
            A model, or the folder that it was saved in.
        return_reference_var_names
            Whether to return the genes of the model, and leave the data alone.
        inplace
            Whether to change ``adata`` itself, or to return a copy.

        Returns
        -------
        The copy, or the names of the genes, or ``None``.

        Raises
        ------
        ValueError
            If less than half of the genes are there, or one of them occurs more than once.
        """
        if isinstance(reference_model, str | Path):
            names = cls.load(reference_model, adata=False).get_var_names()
        else:
            names = reference_model.get_var_names()
        if return_reference_var_names:
            return pd.Index(names)
        validation.check_anndata(adata)
        matched = match_genes(adata, names)
        if not inplace:
            return adata.copy() if matched is adata else matched
        if matched is not adata:
            adata._init_as_actual(matched)
        return None
