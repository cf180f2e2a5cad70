"""A fit in one HTML file: what went in, how training went, what came out, what to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS
from scvi.data import _constants as scvi_constants

from scgmvae import checks, plotting
from scgmvae.data.matrices import read_rows
from scgmvae.data.normalization import log_normalized
from scgmvae.io.whole_files import check_target, whole_file
from scgmvae.metrics import clustering_scores
from scgmvae.model.showing import epochs_of
from scgmvae.plotting._latent import in_two_dimensions
from scgmvae.plotting._training import terms_of
from scgmvae.report import diagnosis

__all__ = ["ReportMixin", "marker_genes"]

KEY = "scgmvae"
"""Name under which the report's own copy of obs is annotated."""

N_SHOWN = 5_000
"""Of more cells, as many are drawn at random for scatters, markers and the summary of counts."""

N_MARKERS = 5
DPI = 200


class Picture(NamedTuple):
    """A figure as it stands in the file."""

    source: str
    """PNG as a data URI."""
    text: str
    """What it shows, read out where it cannot be seen."""


class ReportMixin:
    """``report``."""

    def report(
        self,
        path: str | Path,
        labels_key: str | None = None,
        *,
        overwrite: bool = False,
        seed: int = 0,
    ) -> None:
        """Write what a fit is judged by into one HTML file that needs nothing else.

        Data, settings and versions; training curves; scatters of z by cluster, label and
        condition; the components with their marker genes; agreement with labels; how components
        merge; and what to look at, in plain words (:mod:`scgmvae.report.diagnosis`).

        Parameters
        ----------
        path
            File to write.
        labels_key
            obs column of labels to compare with; ``None`` takes the one that the model was set up
            with, if any.
        overwrite
            Replace a file that exists.
        seed
            Of the cells that are drawn where there are more than 5,000, and of the UMAP.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        KeyError
            If there is no such obs column.
        RuntimeError
            If the model is untrained, or has no data.
        ValueError
            If the file exists and ``overwrite`` is False.

        Notes
        -----
        The data are left as they are.
        """
        path = check_target(path, overwrite)
        self._check_if_trained(warn=False)
        if self.adata is None:
            raise RuntimeError("The model has no data to report on: load it with some.")
        checks.check_columns(self.adata, labels_key=labels_key)
        labels_key = labels_key or self._labels_key_of(self.adata)
        page = _template().render(self._content(labels_key, seed))
        with whole_file(path) as made:
            made.write_text(page, encoding="utf-8")

    def _content(self, labels_key: str | None, seed: int) -> dict[str, object]:
        """What the template shows, all numbers as text."""
        cells = AnnData(obs=self.adata.obs.copy(), uns=_colors(self.adata))
        self._write(cells, self._posteriors(), KEY)
        rows = np.arange(cells.n_obs)
        if cells.n_obs > N_SHOWN:
            rows = np.sort(np.random.default_rng(seed).choice(cells.n_obs, N_SHOWN, replace=False))
        counts = read_rows(self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY), rows)
        shown = cells[rows].copy()
        found = diagnosis.of_training(self.history) + diagnosis.of_latent(cells.obsm[f"X_{KEY}"])
        content = {
            "date": date.today().isoformat(),
            "data": self._data_rows(counts, labels_key),
            "settings": self._setting_rows(),
            "training": list(self._training_pictures()),
            "has_stages": self.module.mixture_started,
            "latent": list(self._latent_pictures(shown, labels_key, seed)),
            "n_shown": len(rows) if len(rows) < cells.n_obs else None,
        }
        if self.module.mixture_started:
            table = self.component_table(labels_key=labels_key)
            found += diagnosis.of_components(table)
            obs = cells.obs
            found += diagnosis.of_cells(obs[f"{KEY}_confidence"], obs[f"{KEY}_novelty"])
            content |= {
                "components": self._component_rows(table, counts, shown),
                "cells": [
                    _picture(plotting.confidence(cells).figure, "Confidence by cluster"),
                    _picture(plotting.novelty(cells).figure, "Novelty of the cells"),
                ],
                "merging": _picture(
                    plotting.component_similarity(self).figure,
                    "Overlap of the components, with the tree of their merging",
                ),
                "clusters": self._cluster_rows(),
            }
            if labels_key is not None:
                content |= self._agreement(cells, labels_key)
        elif self.module.has_mixture:
            found.append("Training ended before the components were started: call train() again.")
        return content | {"findings": found}

    # ------------------------------------------------------------------------------ tables

    def _data_rows(self, counts: NDArray, labels_key: str | None) -> dict[str, str]:
        setup = self.registry_[scvi_constants._SETUP_ARGS_KEY]
        of_images = self.module.image_shape is not None
        rows = {
            "images" if of_images else "cells": f"{self.adata.n_obs:,}",
            "values of each" if of_images else "genes": f"{self.adata.n_vars:,}",
            "values": "X" if setup["layer"] is None else f"layer {setup['layer']}",
        }
        if self.module.is_count:
            sizes = np.asarray(counts.sum(axis=1)).ravel()
            low, middle, high = np.quantile(sizes, (0.05, 0.5, 0.95))
            rows["counts per cell"] = (
                f"median {middle:,.0f} (5 to 95 %: {low:,.0f} to {high:,.0f})"
            )
            share = (counts > 0).sum() / np.prod(counts.shape)
            rows["non-zero values"] = f"{share:.1%}"
        for column, categories in self._known_categories().items():
            rows[f"condition: {column}"] = f"{len(categories)} categories"
        for column in setup["continuous_covariate_keys"] or ():
            rows[f"condition: {column}"] = "continuous"
        if labels_key is not None:
            labels = self._known_labels(self.adata, labels_key)
            n_known = int(labels.notna().sum())
            rows[f"labels: {labels_key}"] = f"{labels.nunique()} labels of {n_known:,} cells"
        return rows

    def _setting_rows(self) -> dict[str, str]:
        settings = self._settings()
        rows = {name: str(value) for name, value in settings["params"].items()}
        rows |= {"n_components": str(self.n_components_), "seed": str(self.seed_)}
        if self.history:
            rows["epochs"] = epochs_of(self)
        return rows | {f"{name} version": number for name, number in settings["versions"].items()}

    def _component_rows(
        self, table: pd.DataFrame, counts: NDArray, shown: AnnData
    ) -> dict[str, object]:
        """Header and rows of the table of components."""
        header = ["component", "cells", "share", "confidence", "nearest (overlap)"]
        columns = [
            table.index,
            [f"{n:,}" for n in table["n_cells"]],
            [f"{share:.1%}" for share in table["share"]],
            ["–" if np.isnan(value) else f"{value:.2f}" for value in table["mean_confidence"]],
            [
                "–" if name is None else f"{name} ({overlap:.2f})"
                for name, overlap in zip(table["nearest"], table["overlap"], strict=True)
            ],
        ]
        if "label" in table:
            header.append("label (share)")
            columns.append(
                [
                    "–" if label is None else f"{label} ({share:.0%})"
                    for label, share in zip(table["label"], table["label_share"], strict=True)
                ]
            )
        if self.module.image_shape is None:
            column = f"{KEY}_fine" if f"{KEY}_fine" in shown.obs else KEY
            adata = log_normalized(counts) if self.module.is_count else AnnData(counts)
            adata.var_names = self.adata.var_names.astype(str)
            markers = marker_genes(adata, shown.obs[column].to_numpy(), N_MARKERS)
            header.append("marker genes")
            columns.append([", ".join(markers.get(name, ())) or "–" for name in table.index])
        return {"header": header, "rows": list(zip(*columns, strict=True))}

    def _cluster_rows(self) -> dict[str, str]:
        """Cluster → its components, where components were merged."""
        if self.component_clusters_ is None:
            return {}
        parts = pd.Series(self.component_names).groupby(self.component_clusters_).agg(", ".join)
        names = [*self.cluster_names, "dropped"]  # the last one is at −1
        return {names[code]: of_cluster for code, of_cluster in parts.items()}

    def _agreement(self, cells: AnnData, labels_key: str) -> dict[str, object]:
        labels = self._known_labels(self.adata, labels_key)
        is_known = labels.notna().to_numpy()
        scores = clustering_scores(labels[is_known], cells.obs[KEY][is_known])
        scores["clusters"] = scores.pop("n_clusters")
        return {
            "scores": {
                name: str(value) if name == "clusters" else f"{value:.3f}"
                for name, value in scores.items()
            },
            "labels": _picture(
                plotting.component_labels(self, labels_key).figure,
                f"Share of the labels of {labels_key} in each component",
            ),
            "labels_key": labels_key,
            # a query that was not trained yet has no history
            "is_trained_on": labels_key == self._labels_key_of(self.adata) and bool(self.history),
        }

    # ---------------------------------------------------------------------------- pictures

    def _training_pictures(self) -> Iterator[Picture]:
        for term in terms_of(self) if self.history else ():
            axis = plotting.training_term(self, term)
            yield _picture(axis.figure, f"{axis.get_title()} by epoch")

    def _latent_pictures(
        self, shown: AnnData, labels_key: str | None, seed: int
    ) -> Iterator[Picture]:
        plane = AnnData(shown.obsm[f"X_{KEY}"], obs=shown.obs, uns=_colors(shown))
        basis = in_two_dimensions(plane, seed=seed)
        of_plane = {"z": "z itself", "umap": "UMAP of z"}[basis]
        names = {KEY: "Clusters", f"{KEY}_fine": "Components", labels_key: "Labels"}
        names |= dict.fromkeys(self._condition_names(), "Condition")
        for column, name in names.items():
            if column in plane.obs:
                figure = plotting.embedding(plane, column, basis)
                yield _picture(figure, f"{name}: {column}, {of_plane}")


def marker_genes(adata: AnnData, groups: NDArray, n: int) -> dict[str, list[str]]:
    """Genes that are higher in a group than in the other cells, by t-test, the best first.

    Parameters
    ----------
    adata
        Log-normalised values, (n, G); written to.
    groups
        Group of each cell, (n,). Groups of fewer than two cells have no markers.
    n
        Number of genes for each group.

    References
    ----------
    :func:`scanpy.tl.rank_genes_groups` with ``method="t-test_overestim_var"``.
    """
    adata.obs["group"] = pd.Categorical(groups)
    sizes = adata.obs["group"].value_counts()
    tested = [name for name in sizes.index if 2 <= sizes[name] < adata.n_obs]
    if not tested:
        return {}
    sc.tl.rank_genes_groups(
        adata, "group", groups=tested, n_genes=n, method="t-test_overestim_var"
    )
    found = adata.uns["rank_genes_groups"]
    return {
        name: [
            gene
            for gene, t in zip(found["names"][name], found["scores"][name], strict=True)
            if t > 0
        ]
        for name in tested
    }


def _colors(adata: AnnData) -> dict[str, object]:
    return {name: value for name, value in adata.uns.items() if name.endswith("_colors")}


def _picture(figure: Figure, text: str) -> Picture:
    """The figure as PNG, closed."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    plt.close(figure)
    encoded = base64.b64encode(content.getvalue()).decode()
    return Picture(f"data:image/png;base64,{encoded}", text)


def _template() -> jinja2.Template:
    # every name in the data is text to a browser, never markup
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(
        (files("scgmvae.report") / "page.html").read_text(encoding="utf-8")
    )
