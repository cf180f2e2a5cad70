"""Writing of results into an AnnData, which happens only here."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgmvae.data import validation
from scgmvae.model.novelty import NoveltyMixin

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

__all__ = ["AnnotationMixin"]


class AnnotationMixin(NoveltyMixin):
    """The method ``annotate``."""

    def annotate(self, adata: AnnData | MuData | None = None, key_added: str = "scgmvae") -> None:
        """Write embedding and clusters into an AnnData.

        ``obsm["X_<key>"]`` mean of z, ``obsm["X_<key>_w"]`` mean of w, ``obsm["<key>_proba"]``
        probabilities of the clusters, ``obs["<key>"]`` the most probable one (categorical),
        ``obs["<key>_fine"]`` the most probable component of that cluster, once components were
        merged to clusters (without merging clusters are components),
        ``obs["<key>_novelty"]`` how unlike the training cells the cell is (:meth:`get_novelty`),
        ``obs["<key>_confidence"]`` the probability of its cluster times 1 − p of the least certain
        split that sets the cluster apart (``split_table``), which falls to 0 from novelty 0.99 to
        1 because such cells fit no component, ``uns["<key>"]`` settings, versions and
        seed. A model without components writes the embedding and the settings alone.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own. For a MuData
            the results are written into its modality, and those of several into the MuData.
        key_added
            Name of what is written.

        Raises
        ------
        RuntimeError
            If the model is untrained.
        ValueError
            If ``key_added`` is a column that the model was set up with, or ``adata`` a view.

        Examples
        --------
        >>> model.annotate(adata, key_added="mine")
        >>> adata.obsm["X_mine"].shape
        (300, 10)
        """
        self._check_if_trained(warn=False)
        if adata is None:
            target = self._validate_anndata()
        else:
            target = self._anndata_of(adata, vars(self), to_write=True)
        validation.check_key_added(self._setup.arguments, key_added)
        posteriors = self._posteriors_to_judge(target)
        beside = self._written_beside(adata, target, target)
        if target is self.adata:
            if self._given is None:  # a model without data has just made these its own
                self._given = beside
            self._write_to_own_data(posteriors, key_added)
        else:
            self._write_annotation(target if beside is None else beside, posteriors, key_added)

    def _write_to_own_data(
        self, posteriors: dict[str, NDArray], key_added: str = "scgmvae"
    ) -> None:
        """Write results into the model's data, and into what they are a copy of, if anything."""
        self._write_annotation(self.adata, posteriors, key_added)
        if self._given is None:
            return
        rows = self.adata.obs_names.get_indexer(self._given.obs_names)
        if (rows < 0).any():
            warnings.warn(
                "The AnnData that was given has cells of other names by now, so the results are "
                "in model.adata alone.",
                UserWarning,
                stacklevel=3,
            )
            return
        of_given = {name: values[rows] for name, values in posteriors.items()}
        self._write_annotation(self._given, of_given, key_added)

    def _write_annotation(
        self, target: AnnData, posteriors: dict[str, NDArray], key_added: str = "scgmvae"
    ) -> None:
        target.obsm[f"X_{key_added}"] = posteriors["z_loc"]
        if self.module.mixture_started:
            proba = np.exp(self._clustering.log_proba(posteriors["log_proba"]))
            novelty = self._novelty_if_measured(posteriors)
            target.obsm[f"X_{key_added}_w"] = posteriors["w_loc"]
            target.obsm[f"{key_added}_proba"] = proba
            clusters = pd.Categorical.from_codes(proba.argmax(1), list(self.cluster_names))
            target.obs[key_added] = clusters.remove_unused_categories()
            if self.component_clusters_ is not None:
                component = self._clustering.component_of(posteriors["log_proba"])
                fine = pd.Categorical.from_codes(component, list(self.component_names))
                target.obs[f"{key_added}_fine"] = fine.remove_unused_categories()
            target.obs[f"{key_added}_confidence"] = self._confidence(proba, novelty)
            target.obs[f"{key_added}_novelty"] = novelty
        # what an earlier model wrote does not belong to this embedding
        stale = []
        if not self.module.mixture_started:
            for name in (f"X_{key_added}_w", f"{key_added}_proba"):
                target.obsm.pop(name, None)
            stale += [key_added, f"{key_added}_confidence", f"{key_added}_novelty"]
        if self.component_clusters_ is None:
            stale.append(f"{key_added}_fine")
        target.obs = target.obs.drop(columns=stale, errors="ignore")
        # scanpy keeps colours by position: those of an earlier partition would mislead
        for name in (key_added, f"{key_added}_fine"):
            target.uns.pop(f"{name}_colors", None)
        target.uns[key_added] = self._settings()

    def _settings(self) -> dict[str, Any]:
        """Settings, seed and versions of the annotation, in types that h5ad files can hold."""
        settings = super()._settings()
        if self.module.mixture_started:
            settings["n_components"] = self.n_components_
            settings["components"] = self.component_names.astype(object)
            settings["clusters"] = self.cluster_names.astype(object)
        return settings
