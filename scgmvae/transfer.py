"""Query mapping: new data into a reference that does not move."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from anndata import AnnData
from scvi.data import _constants as scvi_constants

from scgmvae import checks
from scgmvae.genes import match_genes

if TYPE_CHECKING:
    from scgmvae.model import SCGMVAE

__all__ = ["QueryMixin"]

KEPT = (
    "n_components_",
    "mixture_started_",
    "component_clusters_",
    "distance_quantiles_",
    "used_components_",
    "seed_",
)
"""What a model of a query has from its reference, beside the module."""


class QueryMixin:
    """``load_query_data``, in the way of scArches."""

    @classmethod
    def load_query_data(cls, adata: AnnData, reference_model: SCGMVAE | str | Path) -> SCGMVAE:
        """Model of new data on top of a trained reference.

        Batches, or other categories of registered conditions, that the reference does not know
        get weights of their own, which start as the mean of the known ones. They are all that
        :meth:`train` changes, so that the embedding of the reference's cells stays what it was to
        the last bit. Results can be read before training as well.

        Parameters
        ----------
        adata
            New data with the obs columns that the reference was set up with. Cells without a
            label, or with one that the reference does not know, count as unlabelled; a missing
            label column as one without labels. Genes are put into the reference's order, in a
            copy; up to 20 % can be missing and are then treated as unobserved, with a warning.
        reference_model
            The trained reference, or the folder that it was saved in.

        Returns
        -------
        The model of the new data; ``model.adata`` is ``adata``, or its copy with the reference's
        genes.

        Raises
        ------
        KeyError
            If a column is missing.
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
        reference = reference_model
        if isinstance(reference, str | Path):
            reference = cls.load(str(reference), adata=False)
        if not isinstance(adata, AnnData):
            raise ValueError(
                f"adata must be the AnnData of the query, but it is a {type(adata).__name__}. The "
                "reference comes second."
            )
        reference._check_if_trained(warn=False)
        if reference.module.has_mixture:
            reference._check_mixture()
        setup = reference.registry_[scvi_constants._SETUP_ARGS_KEY]
        checks.check_not_view(adata)
        adata = match_genes(adata, reference.get_var_names())
        with checks.unchanged_on_error(adata):
            cls.setup_anndata(
                adata, source_registry=reference.registry_, extend_categories=True, **setup
            )
            params = reference.init_params_
            settings = params["non_kwargs"] | {"adata": adata, "n_components": None}
            for of_kwargs in params["kwargs"].values():
                settings |= of_kwargs
            model = cls(**settings)
        for name in KEPT:
            setattr(model, name, getattr(reference, name))
        n_categories = model.module.n_categories
        model.reference_categories_ = reference.module.n_categories
        model.reference_has_condition_prior_ = reference.module.condition_prior is not None
        model.module = copy.deepcopy(reference.module)
        model.module.extend_categories(n_categories)
        model.module.eval()
        model.is_trained_ = True
        model._model_summary_string = model._summary()
        return model
