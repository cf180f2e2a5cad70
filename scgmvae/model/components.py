"""Components: how many cells each has, and how they overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scgmvae.clustering.merging import bhattacharyya
from scgmvae.data import validation
from scgmvae.data.categories import name_of, names_of
from scgmvae.model.annotation import AnnotationMixin

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["ComponentsMixin"]

N_DRAWS = 256
"""Number of draws of w over which the overlap of components is averaged."""


class ComponentsMixin(AnnotationMixin):
    """Number of cells in each component, and overlap of the components."""

    # -------------------------------------------------------------------------- similarity

    def component_similarity(self) -> pd.DataFrame:
        r"""Overlap of each two components in z.

        The Bhattacharyya coefficient of p(z|w,y=i,c) and p(z|w,y=j,c), averaged over 256 draws of
        c from the data and of w from p(w|c): 1 for equal components, 0 for components
        that do not overlap.

        Returns
        -------
        DataFrame, components × components.

        Raises
        ------
        RuntimeError
            If the model has no trained components, or no data to draw conditions from.

        Examples
        --------
        >>> model.component_similarity().shape
        (3, 3)
        """
        self._check_mixture()
        names = self.component_names
        return pd.DataFrame(bhattacharyya(*self._drawn_components()), index=names, columns=names)

    @torch.inference_mode()
    def _drawn_components(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Means and standard deviations of the components at draws of w and c, (S, K, L)."""
        if self.adata is None:
            raise RuntimeError("The model has no data to draw conditions from: load it with some.")
        self._validate_anndata()
        self.module.eval()
        rows = np.sort(np.random.default_rng(0).integers(self.adata.n_obs, size=N_DRAWS))
        (tensors,) = self._make_data_loader(self.adata, indices=rows, batch_size=N_DRAWS)
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(0)
            p_z = self.module.prior_components(tensors)
        return p_z.loc.cpu().numpy(), p_z.scale.cpu().numpy()

    def component_table(
        self, adata: AnnData | None = None, labels_key: str | None = None
    ) -> pd.DataFrame:
        r"""Table of the components: their cells, their weights and their overlap.

        Parameters
        ----------
        adata
            Data with the genes of the model; ``None`` is the model's own.
        labels_key
            obs column with the labels to compare to, which cells may lack; ``None`` takes the one
            that the model was set up with, if any.

        Returns
        -------
        DataFrame with a row per component: ``cluster`` that it belongs to (missing where it is
        dropped), ``n_cells`` assigned, their ``share``, the model's ``weight`` π,
        ``mean_confidence`` (probability of the component in its cells), ``entropy`` −s log s of
        the share in nats, whose sum is the entropy of use (log K where all are used alike),
        ``is_empty``, the ``nearest`` other component, its ``overlap``
        (:meth:`component_similarity`) and ``distance`` (of the means, in their pooled standard
        deviations, averaged over w). Where there are labels, ``label``, the commonest of its
        cells, and ``label_share`` among those of its cells that have one.

        Raises
        ------
        KeyError
            If there is no such obs column.
        RuntimeError
            If the model has no trained components.
        ValueError
            If no cell has a label in that column.

        Examples
        --------
        >>> table = model.component_table(labels_key="component")
        >>> int(table["n_cells"].sum())
        300
        """
        self._check_mixture()
        source = self._validate_anndata(adata)
        validation.check_columns(source, is_whole=False, labels_key=labels_key)
        log_proba = self._posteriors(source)["log_proba"]
        component = self._clustering.component_of(log_proba)
        proba, n_components = np.exp(log_proba), log_proba.shape[1]
        n_cells = np.bincount(component, minlength=n_components)
        share = n_cells / len(proba)
        of_own = proba[np.arange(len(proba)), component]
        confidence = pd.Series(of_own).groupby(component).mean()
        clusters = self.component_clusters_
        if clusters is None:
            clusters = np.arange(n_components)
        names = self.component_names
        table = pd.DataFrame(
            {
                "cluster": _objects(
                    np.array([*self.cluster_names, None], object)[clusters], names
                ),
                "n_cells": n_cells,
                "share": share,
                "weight": self.module.log_weights.detach().exp().cpu().numpy(),
                "mean_confidence": confidence.reindex(range(n_components)).to_numpy(),
                "entropy": -share * np.log(np.where(share > 0, share, 1.0)),
                "is_empty": n_cells == 0,
                **self._nearest(names),
            },
            index=pd.Index(names, name="component"),
        )
        if labels_key is None:
            labels_key = self._labels_key_of(source)
        if labels_key is not None:
            shares = self._label_shares(component, source, labels_key)
            largest = shares.max(axis=1).to_numpy()
            label = np.where(np.isnan(largest), None, shares.fillna(0).idxmax(axis=1).to_numpy())
            table = table.assign(label=_objects(label, names), label_share=largest)
        return table

    def _label_shares(
        self, component: NDArray[np.integer], adata: AnnData, labels_key: str
    ) -> pd.DataFrame:
        """Share of each label among the labelled cells of each component, NaN without any."""
        labels = self._known_labels(adata, labels_key)
        if labels.isna().all():
            raise ValueError(
                "Components are compared with the labels of cells, but in the obs column "
                f"{labels_key!r} no cell has one. Name another column with labels_key=..."
            )
        counts = pd.crosstab(component, labels.to_numpy())
        counts = counts.reindex(range(self.module.n_components), fill_value=0)
        return counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)

    def _known_labels(self, adata: AnnData, labels_key: str) -> pd.Series:
        """Label of each cell as a string, None where it has none."""
        labels = adata.obs[labels_key].astype(object)
        labels = labels.where(labels.isna(), names_of(labels))
        if labels_key == self._setup.labels_key:
            unlabeled = name_of(self._setup.arguments["unlabeled_category"])
            labels = labels.where(labels != unlabeled, None)
        return labels

    def _labels_key_of(self, adata: AnnData) -> str | None:
        """The obs column of labels of the set-up, if the data have it and any label in it."""
        key = self._setup.labels_key
        if not self._setup.label_names:
            return None
        is_given = key in adata.obs and self._known_labels(adata, key).notna().any()
        return key if is_given else None

    def _nearest(self, names: NDArray[np.str_]) -> dict[str, NDArray | pd.Series]:
        """Nearest other component of each component, by overlap, and how much they overlap."""
        loc, scale = self._drawn_components()
        overlap = bhattacharyya(loc, scale)
        if len(names) == 1:
            none = np.array([np.nan])
            nearest_to_none = _objects(np.array([None], object), names)
            return {"nearest": nearest_to_none, "overlap": none, "distance": none}
        np.fill_diagonal(overlap, -1)
        nearest = overlap.argmax(1)
        pooled = (scale**2 + scale[:, nearest] ** 2) / 2  # (S, K, L)
        distance = np.sqrt(((loc - loc[:, nearest]) ** 2 / pooled).sum(-1)).mean(0)
        return {"nearest": names[nearest], "overlap": overlap.max(1), "distance": distance}


def _objects(values: NDArray, names: NDArray[np.str_]) -> pd.Series:
    """Values for the components, some of which may be ``None``, which pandas is to keep."""
    return pd.Series(values, index=names, dtype=object)
