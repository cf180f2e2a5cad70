"""A fit in one HTML file: data and settings, training, results, and what to look at."""

from __future__ import annotations

import base64
import io
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS

from scgmvae import plotting
from scgmvae.data import validation
from scgmvae.data.matrices import read_rows
from scgmvae.data.modalities import panels_of
from scgmvae.io.whole_files import check_target, whole_file
from scgmvae.metrics import clustering_scores
from scgmvae.plotting._latent import in_two_dimensions
from scgmvae.plotting._training import terms_of
from scgmvae.report import diagnosis, explorer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scgmvae.model.scgmvae import SCGMVAE

__all__ = ["write_report"]

KEY = "scgmvae"
"""Name under which the report's own copy of obs is annotated."""

N_SHOWN = 5_000
"""Largest number of cells in scatters, markers and the summary of counts; more are sampled."""

N_EXPLORED = 10_000
"""The same of an interactive report, which is for single cells more than for groups of them."""

SENTENCE = 2_000
"""Bytes that the search for genes takes on a page, beside the genes themselves."""

UNTOLD = ("too few cells", "nothing beside it")
"""Verdicts on mixing that say nothing."""

N_MARKERS = 5
N_LEAST_CERTAIN = 10
"""Number of cells in the table of those with the lowest confidence."""
DPI = 200


class Picture(NamedTuple):
    """A figure as the file holds it."""

    source: str
    """PNG as a data URI."""
    text: str
    """Description of the figure, for readers who cannot see it."""


class Drawn(NamedTuple):
    """The cells that are drawn, all or a sample of them."""

    rows: NDArray[np.integer]
    """Their places in the data, (n,), ascending."""
    plane: AnnData
    """Their z as X, with the annotated obs, and their places in two dimensions in obsm."""
    basis: str
    """Name of the two dimensions in obsm."""
    markers: list[NDArray[np.integer]] | None
    """Numbers of the marker genes of each component; None without components, and of images."""


def write_report(
    model: SCGMVAE,
    path: str | Path,
    labels_key: str | None,
    *,
    overwrite: bool,
    seed: int,
    interactive: bool,
) -> None:
    """Write the report of a model, see :meth:`scgmvae.SCGMVAE.report`."""
    path = check_target(path, overwrite)
    if not isinstance(interactive, bool | np.bool_):
        raise ValueError(f"interactive must be True or False, but it is {interactive!r}.")
    model._check_if_trained(warn=False)
    if model.adata is None:
        raise RuntimeError("The model has no data to report on: load it with some.")
    validation.check_columns(model.adata, is_whole=False, labels_key=labels_key)
    labels_key = labels_key or model._labels_key_of(model.adata)
    cells = AnnData(obs=model.adata.obs.copy(), uns=_colors(model.adata))
    model._write_annotation(cells, model._posteriors_to_judge(), KEY)
    if KEY in cells.obs and model.adata.obs.get(KEY, pd.Series()).dtype == cells.obs[KEY].dtype:
        cells.uns |= _colors(model.adata)  # one colour means one thing
    drawn = _drawn(model, cells, N_EXPLORED if interactive else N_SHOWN, seed)
    content = _content(model, labels_key, cells, drawn)
    template = _template()
    if interactive:
        content["explorer"] = _explorer(model, labels_key, drawn)
        without_genes = template.render(content)
        room = explorer.LARGEST_FILE - len(without_genes.encode()) - SENTENCE
        content["explorer"] |= _genes(model, drawn, room)
    page = template.render(content)
    with whole_file(path) as made:
        made.write_text(page, encoding="utf-8")


def _drawn(model: SCGMVAE, cells: AnnData, n_most: int, seed: int) -> Drawn:
    """The annotated cells in two dimensions; of more than ``n_most``, as many at random."""
    rows = np.arange(cells.n_obs)
    if cells.n_obs > n_most:
        rows = np.sort(np.random.default_rng(seed).choice(cells.n_obs, n_most, replace=False))
    shown = cells[rows].copy()  # without categories that none of them has
    for column in model._setup.continuous:  # text that is a number is one to the model as well
        shown.obs[column] = pd.to_numeric(shown.obs[column])
    plane = AnnData(shown.obsm[f"X_{KEY}"], obs=shown.obs, uns=_colors(shown))
    basis = in_two_dimensions(plane, seed=seed)
    return Drawn(rows, plane, basis, _markers(model, rows, plane.obs))


def _markers(
    model: SCGMVAE, rows: NDArray[np.integer], obs: pd.DataFrame
) -> list[NDArray[np.integer]] | None:
    """Numbers of the marker genes of each component, by some of the cells."""
    if not model.module.mixture_started or model.module.image_shape is not None:
        return None
    names = list(model.component_names)
    column = f"{KEY}_fine" if f"{KEY}_fine" in obs else KEY
    sums = model._sums_by_group(
        rows, pd.Categorical(obs[column].astype(str), names).codes, len(names)
    )
    return [
        # one cell has no variance, and all cells have no others
        model._markers_of(component, sums, N_MARKERS) if 2 <= n < len(rows) else np.arange(0)
        for component, n in enumerate(sums.n_cells)
    ]


def _content(
    model: SCGMVAE, labels_key: str | None, cells: AnnData, drawn: Drawn
) -> dict[str, Any]:
    """Content of the template, with all numbers as text."""
    rows = drawn.rows
    counts = read_rows(model.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY), rows)
    found = diagnosis.training_findings(model.history)
    found += diagnosis.latent_findings(cells.obsm[f"X_{KEY}"])
    content = {
        "date": date.today().isoformat(),
        "data": _data_rows(model, counts, labels_key),
        "settings": _setting_rows(model),
        "training": list(_training_pictures(model)),
        "has_stages": model.module.mixture_started,
        "latent": list(_latent_pictures(drawn, _columns(model, labels_key, drawn.plane))),
        "n_shown": len(rows) if len(rows) < cells.n_obs else None,
    }
    if model.module.mixture_started:
        content |= _mixture_content(model, labels_key, cells, drawn, counts, found)
    elif model.module.has_mixture:
        found.append("Training ended before the components were started: call train() again.")
    return content | {"findings": found}


def _mixture_content(
    model: SCGMVAE,
    labels_key: str | None,
    cells: AnnData,
    drawn: Drawn,
    counts: NDArray,
    found: list[str],
) -> dict[str, Any]:
    """Content about components and clusters; what is to be looked at is added to ``found``."""
    table = model.component_table(labels_key=labels_key)
    found += diagnosis.component_findings(table) + model._split_findings()
    obs = cells.obs
    found += diagnosis.cell_findings(obs[KEY], obs[f"{KEY}_confidence"], obs[f"{KEY}_novelty"])
    content = {
        "components": _component_rows(model, table, drawn.markers),
        "cells": [
            _picture(plotting.confidence(cells).figure, "Confidence by cluster"),
            _picture(plotting.novelty(cells).figure, "Novelty of the cells"),
        ],
        "least_certain": _least_certain(cells),
        "clusters": _cluster_rows(model),
        "overlap": [],
        "splits": [],
    }
    if len(table) > 1:
        overlap = plotting.component_similarity(model).figure
        content["overlap"] = [_picture(overlap, "Overlap of the components in z")]
    if model.split_tree_ is not None and len(table) > 1:
        content["splits"] = [_picture(plotting.split_tree(model).figure, "The tested splits")]
        found += diagnosis.split_findings(model.split_table(n_genes=0))
    if model._setup.categories:
        clusters = cells.obs[KEY].reset_index(drop=True)
        mixing = model._integration_of(clusters, are_clusters=True)
        content |= _conditions(mixing, cells)
        found += diagnosis.mixing_findings(mixing)
    counts = counts[:, model._is_gene]
    # a cell that lacks RNA has no quality that could be told
    if model.module.is_count and (counts.sum(axis=1) > 0).all():
        clusters = drawn.plane.obs[KEY].to_numpy().astype(str)
        found += diagnosis.quality_findings(clusters, _quality(model, counts))
    if labels_key is not None:
        content |= _agreement(model, cells, labels_key)
    return content


def _columns(model: SCGMVAE, labels_key: str | None, plane: AnnData) -> dict[str, str]:
    """Column of obs by which the cells are coloured → what it holds."""
    names = {KEY: "Clusters", f"{KEY}_fine": "Components", labels_key: "Labels"}
    names |= dict.fromkeys(model._setup.condition_names, "Condition")
    fine = plane.obs.get(f"{KEY}_fine")
    if fine is not None and fine.nunique() == plane.obs[KEY].nunique():  # the same once more
        del names[f"{KEY}_fine"]
    return {column: name for column, name in names.items() if column in plane.obs}


# ---------------------------------------------------------------------------- explorer


def _explorer(model: SCGMVAE, labels_key: str | None, drawn: Drawn) -> dict[str, Any]:
    """What the template of the explorer needs, yet without genes."""
    obs = drawn.plane.obs
    names = {KEY: "cluster", f"{KEY}_fine": "component"}
    columns = [
        explorer.numbers(column, obs[column])
        if column in model._setup.continuous
        else explorer.groups(names.get(column, column), obs[column], _colors(drawn.plane))
        for column in _columns(model, labels_key, drawn.plane)
    ]
    if model.module.mixture_started:
        columns.insert(1, explorer.numbers("confidence", obs[f"{KEY}_confidence"], 0.0, 1.0))
    script = explorer.own_text("explorer.js")
    points = drawn.plane.obsm[f"X_{drawn.basis}"]
    return {
        "script": script,
        "policy": explorer.policy(script),
        "cells": explorer.cell_data(drawn.plane.obs_names, points, columns),
        "genes": "[]",
        "n_genes": 0,
        "n_all": model.adata.n_vars if model.module.image_shape is None else 0,
        "is_count": model.module.is_count,
        "n_steps": explorer.N_STEPS,
        "megabytes": explorer.LARGEST_FILE // 10**6,
    }


def _genes(model: SCGMVAE, drawn: Drawn, room: int) -> dict[str, Any]:
    """Genes of the explorer, as many as there is room for in bytes."""
    if model.module.image_shape is not None:
        return {}
    blocks = [part for _, part in model._expression_blocks(drawn.rows)]
    expression = sparse.vstack(blocks, format="csr")
    ranked = explorer.ranked_genes(expression, drawn.markers or [])
    genes, n_genes = explorer.gene_data(expression, model._setup.gene_names, ranked, room)
    return {"genes": genes, "n_genes": n_genes}


# ------------------------------------------------------------------------------ tables


def _data_rows(model: SCGMVAE, counts: NDArray, labels_key: str | None) -> dict[str, str]:
    setup = model._setup
    is_images = model.module.image_shape is not None
    rows = {
        "images" if is_images else "cells": f"{model.adata.n_obs:,}",
        "values of each" if is_images else "genes": f"{model.adata.n_vars:,}",
        "values": "X" if setup.layer is None else f"layer {setup.layer}",
    }
    if model.modalities_ is not None:
        rows = {"cells": rows["cells"]} | _modality_rows(model)
    elif model.module.is_count:
        sizes = np.asarray(counts.sum(axis=1)).ravel()
        low, middle, high = np.quantile(sizes, (0.05, 0.5, 0.95))
        rows["counts per cell"] = f"median {middle:,.0f} (5 to 95 %: {low:,.0f} to {high:,.0f})"
        share = (counts > 0).sum() / np.prod(counts.shape)
        rows["non-zero values"] = f"{share:.1%}"
    for column, categories in setup.categories.items():
        rows[f"condition: {column}"] = f"{len(categories)} categories"
    for column in setup.continuous:
        rows[f"condition: {column}"] = "continuous"
    if labels_key is not None:
        labels = model._known_labels(model.adata, labels_key)
        n_known = int(labels.notna().sum())
        rows[f"labels: {labels_key}"] = f"{labels.nunique()} labels of {n_known:,} cells"
    return rows


def _modality_rows(model: SCGMVAE) -> dict[str, str]:
    panels, first = panels_of(model.adata), 0
    rows = {}
    for name, modality in model.modalities_.items():
        n = modality["n_features"]
        n_cells = model.adata.n_obs
        if panels is not None:
            code, table = panels
            has = np.asarray(table[:, first : first + n].any(axis=1))
            n_cells = int(has[code].sum())
        first += n
        values = "X" if modality["layer"] is None else f"layer {modality['layer']}"
        rows[f"modality: {name}"] = (
            f"{n:,} features of {values}, likelihood {modality['likelihood']}, "
            f"in {n_cells:,} cells"
        )
    return rows


def _setting_rows(model: SCGMVAE) -> dict[str, str]:
    settings = model._settings()
    rows = {name: str(value) for name, value in settings["params"].items()}
    rows |= {"n_components": str(model.n_components_), "seed": str(model.seed_)}
    if model.history:
        rows["epochs"] = model._epochs_shown()
    return rows | {f"{name} version": number for name, number in settings["versions"].items()}


def _component_rows(
    model: SCGMVAE, table: pd.DataFrame, markers: list[NDArray[np.integer]] | None
) -> dict[str, Any]:
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
    if markers is not None:
        header.append("marker genes")
        columns.append([", ".join(model._setup.gene_names[own]) or "–" for own in markers])
    return {"header": header, "rows": list(zip(*columns, strict=True))}


def _least_certain(cells: AnnData) -> dict[str, Any]:
    """Header and rows of the table of the cells with the lowest confidence."""
    proba = cells.obsm[f"{KEY}_proba"]
    names = cells.uns[KEY]["clusters"]
    confidence = cells.obs[f"{KEY}_confidence"].to_numpy()
    rows = np.argsort(confidence, kind="stable")[:N_LEAST_CERTAIN]
    ranked = np.argsort(-proba[rows], axis=1, kind="stable")[:, :2]
    header = ["cell", "confidence", "novelty", "cluster (probability)"]
    columns = [
        cells.obs_names[rows],
        [f"{value:.2f}" for value in confidence[rows]],
        [f"{value:.3f}" for value in cells.obs[f"{KEY}_novelty"].to_numpy()[rows]],
        *(
            [
                f"{names[cluster]} ({proba[row, cluster]:.2f})"
                for row, cluster in zip(rows, of_rank, strict=True)
            ]
            for of_rank in ranked.T
        ),
    ]
    if ranked.shape[1] > 1:
        header.append("next cluster (probability)")
    return {"header": header, "rows": list(zip(*columns, strict=True))}


def _cluster_rows(model: SCGMVAE) -> dict[str, str]:
    """Cluster → its components, where components were merged."""
    if model.component_clusters_ is None:
        return {}
    parts = pd.Series(model.component_names).groupby(model.component_clusters_).agg(", ".join)
    names = [*model.cluster_names, "dropped"]  # the last one is at −1
    return {names[code]: members for code, members in parts.items()}


def _quality(model: SCGMVAE, counts: NDArray) -> dict[str, NDArray]:
    """Measure of the quality of cells → its values for the cells shown."""
    sizes = np.asarray(counts.sum(axis=1)).ravel()
    values = {
        "counts": sizes,
        "genes with counts": np.asarray((counts > 0).sum(axis=1)).ravel(),
    }
    names = model.adata.var_names[model._is_gene].astype(str).str.upper()
    is_mitochondrial = names.str.startswith("MT-")
    if is_mitochondrial.any():
        share = np.asarray(counts[:, is_mitochondrial].sum(axis=1)).ravel() / sizes
        values["mitochondrial counts"] = share
    return values


def _agreement(model: SCGMVAE, cells: AnnData, labels_key: str) -> dict[str, Any]:
    labels = model._known_labels(model.adata, labels_key)
    is_known = labels.notna().to_numpy()
    scores = clustering_scores(labels[is_known], cells.obs[KEY][is_known])
    scores["clusters"] = scores.pop("n_clusters")
    return {
        "scores": {
            name: str(value) if name == "clusters" else f"{value:.3f}"
            for name, value in scores.items()
        },
        "labels": _picture(
            plotting.component_labels(model, labels_key).figure,
            f"Share of the labels of {labels_key} in each component",
        ),
        "labels_key": labels_key,
        # a query that was not trained yet has no history
        "is_trained_on": labels_key == model._labels_key_of(model.adata) and bool(model.history),
    }


def _conditions(mixing: pd.DataFrame, cells: AnnData) -> dict[str, Any]:
    """Where the levels of the conditions do not mix, and their shares in the clusters."""
    is_told = ~mixing["verdict"].isin(["mixed", *UNTOLD])
    rows = [
        (
            row.condition,
            row.group,
            row.level,
            f"{row.n_cells:,}",
            f"{row.share:.0%} ({row.expected:.0%})",
            "–" if np.isnan(row.mixing) else f"{row.mixing:.2f}",
            row.verdict,
        )
        for row in mixing[is_told].itertuples()
    ]
    header = [
        "condition",
        "cluster",
        "level",
        "cells",
        "share (of all cells)",
        "mixing",
        "verdict",
    ]
    return {
        "mixing": {
            "header": header,
            "rows": rows,
            "n_mixed": int((mixing["verdict"] == "mixed").sum()),
            "n_all": int((~mixing["verdict"].isin(UNTOLD)).sum()),
        },
        "composition": [
            _picture(plotting.composition(cells, name).figure, f"Cells of each cluster by {name}")
            for name in mixing["condition"].unique()
        ],
    }


# ---------------------------------------------------------------------------- pictures


def _training_pictures(model: SCGMVAE) -> Iterator[Picture]:
    for term in terms_of(model) if model.history else ():
        axis = plotting.training_term(model, term)
        yield _picture(axis.figure, f"{axis.get_title()} by epoch")


def _latent_pictures(drawn: Drawn, columns: dict[str, str]) -> Iterator[Picture]:
    plane_name = {"z": "z itself", "pca": "two directions of z", "umap": "UMAP of z"}[drawn.basis]
    for column, name in columns.items():
        figure = plotting.embedding(drawn.plane, column, drawn.basis)
        yield _picture(figure, f"{name}: {column}, {plane_name}")


def _colors(adata: AnnData) -> dict[str, Any]:
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
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(explorer.own_text),
    )
    return environment.get_template("page.html")
