"""The figures of the documentation.

    python docs/figures.py  # writes docs/figures/*.png; about five minutes
    python docs/figures.py dual conditions  # these alone

All but ``umap.png``, which ``make demo`` makes. ``report.png`` needs Chromium, and ``islets.png``
the folder of data that ``SCGMVAE_DATA_DIR`` names.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch
from PIL import Image

import scgmvae

ROOT = Path(__file__).parent
RESULTS = ROOT.parent / "benchmarks" / "results"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # of Okabe and Ito
COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00")
OBSERVED = "0.85"

NODES = {"w": (0, 1), "y": (1, 1), "d": (1, 2), "z": (0.7, 0), "x": (0.7, -1), "c": (-0.7, 0)}
GENERATIVE = ("wz", "dy", "yz", "zx", "cx")
BY_CHOICE = ("cw", "cz")
"""Arrows of ``condition_prior="learned"``."""
INFERENCE = ("xz", "xw", "zy", "yd", "cz", "cw", "cy")
BENDS = {"cy": -1.1}
"""Of arrows around a node in between."""


WORDS = {
    "x": "values",
    "c": "conditions",
    "z": "embedding",
    "w": "shift of the\ncomponents",
    "y": "component",
    "d": "weights",
}
"""Nodes in words."""


def graph(
    axis: Axes,
    title: str,
    arrows: tuple[str, ...],
    dashed: tuple[str, ...] = (),
    nodes: dict[str, tuple[float, float]] = NODES,
    words: dict[str, str] | None = None,
) -> None:
    """Nodes of a model, observed ones grey, with arrows between them, and words beside them."""
    for name, place in nodes.items():
        face = OBSERVED if name[0] in "xcg" else "white"
        axis.add_patch(Circle(place, 0.22, facecolor=face, edgecolor="black", zorder=2))
        size = 13 if len(name) < 3 else 8
        axis.text(*place, name, ha="center", va="center", fontsize=size, style="italic", zorder=3)
        x, y = place[0] + (-0.28 if place[0] < 0.5 else 0.28), place[1]
        side = "right" if place[0] < 0.5 else "left"
        axis.text(x, y, (words or {}).get(name, ""), fontsize=7, ha=side, va="center")
    for names, style, color in ((arrows, "-", "black"), (dashed, "--", BLUE)):
        for start, end in names:
            bend = BENDS.get(start + end, 0)
            arrow = FancyArrowPatch(
                nodes[start],
                nodes[end],
                arrowstyle="-|>",
                mutation_scale=13,
                shrinkA=17,
                shrinkB=17,
                linestyle=style,
                color=color,
                connectionstyle=f"arc3,rad={bend}",
            )
            axis.add_patch(arrow)
    axis.set(xlim=(-1, 1.5), ylim=(-1.35, 2.35), aspect="equal")
    axis.set_title(title, fontsize=11)
    axis.axis("off")


def model() -> plt.Figure:
    figure, axes = plt.subplots(1, 2, layout="constrained")
    graph(axes[0], "generative model", GENERATIVE, BY_CHOICE)
    graph(axes[1], "inference", INFERENCE)
    return figure


PARTS = {"x₁": (-0.3, -1), "x₂": (0.5, -1), "x₃": (1.3, -1)}
"""What is measured of each modality."""
PART_WORDS = {"x₁": "RNA", "x₂": "proteins", "x₃": "chromatin"}


def modalities() -> plt.Figure:
    """The model of several modalities, and q(z,w|x,c), a product of what each of them says."""
    figure, axes = plt.subplots(1, 2, layout="constrained")
    latents = {"w": (0.1, 1), "y": (0.9, 1), "d": (0.9, 2), "z": (0.5, 0), "c": (-0.8, 0)}
    given = [(node, part) for part in PARTS for node in "zc"]
    arrows = ("wz", "dy", "yz", *given)
    graph(axes[0], "generative model", arrows, BY_CHOICE, latents | PARTS)
    both = {"z, w": (0.5, 0), "y": (0.5, 1), "d": (0.5, 2), "c": (-0.8, 0)}
    seen = [(node, "z, w") for node in (*PARTS, "c")]
    graph(axes[1], "inference", ("cy", "yd", ("z, w", "y"), *seen), (), both | PARTS)
    for axis in axes:
        for part, (x, y) in PARTS.items():
            axis.text(x, y - 0.36, PART_WORDS[part], fontsize=8, ha="center", va="center")
        axis.set(xlim=(-1.1, 1.65), ylim=(-1.5, 2.35))
    return figure


DUAL_NODES = {"z₁": (0, 1), "z₂": (1, 1), "x": (0, 0), "g(x)": (1, 0)}
DUAL_WORDS = {
    "z₁": "foreground",
    "z₂": "background",
    "x": "image",
    "g(x)": "image at low\nresolution",
}
FAMILY = {
    "VAE": (("zx",), "zx", (0, 0), (0.2, 2.0)),
    "CVAE": (("zx", "cx"), "zxc", (1.95, 0), (-1.8, 2.0)),
    "GMVAE": (("wz", "yz", "zx"), "zxwy", (0, 1), (-1.2, 2.15)),
    "c*GMVAE": (GENERATIVE, "zxwydc", (3.6, 1), (-1.8, 2.15)),
}
"""Model → its arrows, its nodes, where it stands (units from the left, row), and its range."""


def family() -> plt.Figure:
    """What each model of the family draws first, and what from it; a plate for each model."""
    width, heights, unit = 9.4, (2.3, 4.1), 0.85
    figure = plt.figure(figsize=(width * unit, (sum(heights) + 0.1) * unit))

    def panel(left: float, row: int, bounds: tuple[float, float], low: float) -> Axes:
        bottom = 0.05 if row else heights[1] + 0.1
        size = (bounds[1] - bounds[0] - 0.1) / width, (heights[row] - 0.1) / (sum(heights) + 0.1)
        axis = figure.add_axes(((left + 0.05) / width, bottom / (sum(heights) + 0.1), *size))
        axis.set(xlim=bounds, ylim=(low, low + heights[row] - 0.1))
        return axis

    for name, (arrows, nodes, (left, row), bounds) in FAMILY.items():
        axis = panel(left, row, bounds, -1.45)
        ranges = axis.get_xlim(), axis.get_ylim()
        graph(axis, "", arrows, nodes={node: NODES[node] for node in nodes}, words=WORDS)
        _plate(axis, name, *ranges)
    axis = panel(5.75, 0, (-1.15, 2.4), -0.5)
    ranges = axis.get_xlim(), axis.get_ylim()
    arrows = (("z₁", "x"), ("z₂", "x"), ("z₂", "g(x)"))
    graph(axis, "", arrows, (("z₁", "g(x)"),), DUAL_NODES, DUAL_WORDS)
    _plate(axis, "dual VAE", *ranges)
    return figure


def _plate(axis: Axes, name: str, xlim: tuple[float, float], ylim: tuple[float, float]) -> None:
    """A frame around what is drawn anew for every cell, with the name of the model."""
    axis.set(xlim=xlim, ylim=ylim)
    box = (xlim[0] + 0.02, ylim[0] + 0.02), xlim[1] - xlim[0] - 0.04, ylim[1] - ylim[0] - 0.04
    axis.add_patch(plt.Rectangle(*box, fill=False, edgecolor="0.7", linewidth=0.8))
    axis.text(xlim[0] + 0.1, ylim[1] - 0.1, name, fontsize=10, weight="bold", va="top")
    axis.text(xlim[0] + 0.1, ylim[0] + 0.1, "for each cell", fontsize=7, color="0.4")


def speed() -> plt.Figure:
    """Speed of joint training by number of genes."""
    rows = pd.DataFrame(json.loads((RESULTS / "speed-steps.json").read_text())["rows"])
    rows = rows[(rows["model"] == "scgmvae, joint") & (rows["density"] == 0.08)]
    figure, axis = plt.subplots(layout="constrained")
    for (size, part), color in zip(rows.groupby("batch_size"), (BLUE, ORANGE), strict=True):
        marker = "o" if size == 128 else "s"
        axis.plot(part["genes"], part["to_SCVI"], marker=marker, color=color, label=f"{size:,}")
    axis.axhline(1, color="0.5", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", xlabel="genes", ylabel="cells per second, times SCVI's", ylim=(0, None))
    genes = sorted(rows["genes"].unique())
    axis.set_xticks(genes, [f"{n:,}" for n in genes])
    axis.minorticks_off()
    axis.legend(title="cells in a minibatch", fontsize=9, title_fontsize=9, frameon=False)
    return figure


@cache
def trained(**settings: object) -> scgmvae.SCGMVAE:
    fit = scgmvae.SCGMVAE(scgmvae.datasets.pbmc68k_reduced(), **settings)
    fit.train(seed=0, enable_progress_bar=False)
    return fit


def islets() -> plt.Figure:
    """Clusters of islet cells with their confidence and splits, beside the types of annotators."""
    adata = scgmvae.datasets.load("baron_mouse")
    sc.pp.highly_variable_genes(adata, n_top_genes=2000, flavor="seurat_v3", subset=True)
    scgmvae.SCGMVAE.setup_anndata(adata, batch_key="batch")
    fit = scgmvae.SCGMVAE(adata)
    fit.train(seed=0, enable_progress_bar=False)
    sc.pp.neighbors(adata, use_rep="X_scgmvae")
    sc.tl.umap(adata)
    figure = plt.figure(figsize=(7, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3.1, 5.1))
    left, right = above.subplots(1, 2, width_ratios=(1, 1.15))
    of_all = {"size": 40, "frameon": False, "show": False}
    sc.pl.umap(adata, color="scgmvae", legend_loc="on data", title="clusters", ax=left, **of_all)
    sc.pl.umap(adata, color="scgmvae_confidence", vmin=0.5, title="confidence", ax=right, **of_all)
    tree = scgmvae.pl.split_tree(fit, n_genes=2, ax=below.subplots())
    fine = adata.obs.get("scgmvae_fine", adata.obs["scgmvae"])
    types = pd.crosstab(fine, adata.obs["cell_type"]).idxmax(axis=1)
    for text in tree.texts:
        name, is_leaf, _ = text.get_text().partition("  (")
        if is_leaf:
            text.set_text(f"{name}  {types[name].replace('_', ' ')}{text.get_text()[len(name) :]}")
    return figure


def conditions() -> plt.Figure:
    """The same cells with and without their batch as a condition."""
    figure, axes = plt.subplots(1, 4, layout="constrained")
    for pair, batch_key in ((axes[:2], None), (axes[2:], "batch")):
        adata = scgmvae.datasets.synthetic_counts(1500, 300, n_batches=2, batch_scale=0.8, seed=0)
        scgmvae.SCGMVAE.setup_anndata(adata, batch_key=batch_key)
        fit = scgmvae.SCGMVAE(adata, n_components=5)
        fit.train(seed=0, enable_progress_bar=False)
        sc.pp.neighbors(adata, use_rep="X_scgmvae")
        sc.tl.umap(adata)
        for axis, column in zip(pair, ("component", "batch"), strict=True):
            for (_, cells), color in zip(
                adata.obs.groupby(column, observed=True), COLORS, strict=False
            ):
                rows = adata.obs_names.get_indexer(cells.index)
                axis.scatter(*adata.obsm["X_umap"][rows].T, s=1, color=color, linewidths=0)
            name = {"component": "types", "batch": "batches"}[column]
            known = "not registered" if batch_key is None else "registered"
            axis.set_title(f"batch {known}:\n{name}", fontsize=9)
            axis.set(xticks=[], yticks=[])
    return figure


def report() -> plt.Figure:
    """A report down to its table of components, as Chromium shows it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))))
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "report.html", Path(folder) / "report.png"
        trained().report(page, "bulk_labels")
        settings = ["headless", "no-sandbox", "hide-scrollbars", "window-size=1300,2832"]
        settings += ["force-device-scale-factor=0.75", f"screenshot={picture}"]
        command = [browser, *(f"--{setting}" for setting in settings), page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        image = plt.imread(picture)
    figure = plt.figure()
    figure.figimage(image)
    return figure


def dual() -> plt.Figure:
    """Foreground and background of images that were not trained on, beside the truth."""
    adata = scgmvae.datasets.two_photon()
    fit = scgmvae.DualVAE(adata[:1600].copy())
    fit.train(seed=0, enable_progress_bar=False)
    test = adata[1600:1603].copy()
    columns = {
        "image": (test.X, 40),
        "foreground, true": (test.layers["true_foreground"], 15),
        "foreground, found": (fit.get_foreground(test), 15),
        "background, true": (test.layers["true_background"], 30),
        "background, found": (fit.get_background(test), 30),
    }
    figure, axes = plt.subplots(len(test), len(columns), layout="constrained")
    for column, (name, (images, brightest)) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(f"{name}\n0 to {brightest} photons", fontsize=9)
        for axis, image in zip(column, images, strict=True):
            shape = tuple(test.uns["image_shape"])
            axis.imshow(image.reshape(shape), cmap="gray", vmin=0, vmax=brightest)
            axis.set(xticks=[], yticks=[])
    for row, axis in enumerate(axes[:, 0], 1):
        axis.set_ylabel(f"test image {row}", fontsize=9)
    return figure


# ----------------------------------------------------------------------------- gallery


@cache
def cells() -> scgmvae.SCGMVAE:
    """A fit of 700 PBMCs with the UMAP of its embedding in the AnnData."""
    fit = trained()
    sc.pp.neighbors(fit.adata, use_rep="X_scgmvae")
    sc.tl.umap(fit.adata)
    return fit


@cache
def treated() -> scgmvae.SCGMVAE:
    """A fit of simulated cells of five types, control and stimulated."""
    adata = scgmvae.datasets.synthetic_counts(
        1500, 300, n_components=5, n_conditions=2, component_scale=1.5, seed=0
    )
    adata.obs["condition"] = adata.obs["condition"].cat.rename_categories(
        ["control", "stimulated"]
    )
    scgmvae.SCGMVAE.setup_anndata(
        adata, labels_key="component", categorical_covariate_keys=["condition"]
    )
    fit = scgmvae.SCGMVAE(adata)
    fit.train(seed=0, enable_progress_bar=False)
    return fit


@cache
def digits(**settings: object) -> scgmvae.SCGMVAE:
    """A fit of handwritten digits."""
    fit = scgmvae.SCGMVAE(scgmvae.datasets.digits(), **settings)
    length = {"max_epochs": 60, "pretrain_epochs": 0} if "prior" in settings else {}
    fit.train(seed=0, enable_progress_bar=False, **length)
    return fit


def vae(n_latent: int) -> scgmvae.SCGMVAE:
    return digits(prior="normal", n_latent=n_latent, input_dropout_rate=0.0)


def query() -> plt.Figure:
    """Cells of a new batch among those of three others."""
    adata = scgmvae.datasets.synthetic_counts(2000, 300, n_batches=4, seed=0)
    is_new = adata.obs["batch"] == "batch_3"
    reference, new = adata[~is_new].copy(), adata[is_new].copy()
    scgmvae.SCGMVAE.setup_anndata(reference, batch_key="batch")
    fit = scgmvae.SCGMVAE(reference)
    fit.train(seed=0, enable_progress_bar=False)
    mapped = scgmvae.SCGMVAE.load_query_data(new, fit)
    mapped.train(seed=0, enable_progress_bar=False)
    return scgmvae.pl.query(fit, mapped)


def mean_expression() -> plt.Axes:
    """Control cells decoded as stimulated ones, beside the cells that were measured so."""
    fit = treated()
    condition = fit.adata.obs["condition"]
    target = {"condition": "stimulated"}
    rows = np.flatnonzero(condition == "control")
    predicted = fit.predict_counterfactual(fit.adata, target, indices=rows)
    return scgmvae.pl.mean_expression(fit.adata[condition == "stimulated"], predicted, genes=5)


def novelty() -> plt.Axes:
    """Cells of five types, of which the model was trained on four."""
    adata = scgmvae.datasets.synthetic_counts(1500, 300, n_components=5, seed=0)
    is_known = adata.obs["component"] != adata.obs["component"].cat.categories[-1]
    fit = scgmvae.SCGMVAE(adata[is_known].copy())
    fit.train(seed=0, enable_progress_bar=False)
    fit.annotate(adata)
    return scgmvae.pl.novelty(adata)


def latent_size() -> plt.Figure:
    """Loss of VAEs with two to twenty dimensions."""
    rows = []
    for n_latent in (2, 5, 10, 20):
        terms = vae(n_latent).get_elbo_terms().mean()
        reconstruction = terms["reconstruction_loss"]
        rows.append((n_latent, terms.sum(), reconstruction))
    columns = ["n_latent", "loss", "reconstruction"]
    return scgmvae.pl.latent_size(pd.DataFrame(rows, columns=columns))


pl = scgmvae.pl
GALLERY = {
    "overview": lambda: pl.overview(cells(), "bulk_labels"),
    "markers": lambda: pl.markers(cells(), n=2),
    "composition": lambda: pl.composition(cells().adata, "phase"),
    "confusion": lambda: pl.confusion(cells().adata, "bulk_labels"),
    "confidence": lambda: pl.confidence(trained(n_components=16).adata),
    "novelty": novelty,
    "query": query,
    "component_labels": lambda: pl.component_labels(cells(), "bulk_labels"),
    "component_similarity": lambda: pl.component_similarity(trained(n_components=16)),
    "training_term": lambda: pl.training_term(cells(), "kl_w"),
    "latent": lambda: pl.latent(vae(2), "label", point_size=8),
    "generated": lambda: pl.generated(treated().adata, treated().sample(1000)),
    "mean_expression": mean_expression,
    "samples": lambda: pl.samples(digits(n_components=10)),
    "reconstructions": lambda: pl.reconstructions({"VAE, 2": vae(2), "VAE, 20": vae(20)}),
    "manifold": lambda: pl.manifold(vae(2), n=12),
    "latent_size": latent_size,
}
"""Functions of ``scgmvae.pl`` that no other figure of the documentation shows."""


LAYERS = {
    "cli.py": "the command line",
    "report": "a fit in one HTML file",
    "plotting": "figures, as scgmvae.pl",
    "dual": "DualVAE, a slice of its own",
    "model": "SCGMVAE: data in, results out",
    "train": "one training",
    "module": "the c*GMVAE: inference, generative model, loss",
    "clustering": "partitions, trees, names",
    "data": "from an AnnData to minibatches",
    "datasets": "data to try things on",
    "io": "files that hold a model",
    "distributions": "densities and divergences",
    "nn": "networks",
    "metrics.py": "scores of clusterings",
    "checks.py": "checks of single values",
    "compat.py": "differences between versions of other packages",
    "versions.py": "the version, and those of other packages",
}
"""Folders and files of the package, and what is in them; each imports from those below it."""


def files_of(name: str) -> list[Path]:
    """The files of a folder of the package, or the one file of that name."""
    package = Path(scgmvae.__file__).parent
    return [package / name] if name.endswith(".py") else sorted((package / name).glob("*.py"))


def contents_of(name: str) -> str:
    """What is in a folder or file of the package, and the names of the files in a folder."""
    stems = [path.stem for path in files_of(name) if path.stem != "__init__"]
    listed = "" if name.endswith(".py") else textwrap.fill(", ".join(stems), 94)
    return f"{LAYERS[name]}\n{listed}".strip()


def layers() -> plt.Figure:
    """The layers of the package with their files, and a line from each to those it imports."""
    figure = plt.figure()
    axis = figure.add_axes((0, 0, 1, 1))
    contents = {name: contents_of(name) for name in LAYERS}
    half = {name: 0.12 + 0.07 * (1 + text.count("\n")) for name, text in contents.items()}
    edges = np.cumsum([0, *(2 * h + 0.08 for h in reversed(half.values()))])
    height = dict(zip(half, (edges[:-1] + 0.04 + [*reversed(half.values())])[::-1], strict=True))
    lane = 6.3
    for name, y in height.items():
        files = files_of(name)
        text = "".join(path.read_text() for path in files)
        imported = set(re.findall(r"from scgmvae(?:\.| import )(\w+)", text))
        lower = [height[n] for n in height if Path(n).stem in imported and height[n] < y]
        box = plt.Rectangle(
            (0.05, y - half[name]), 6.1, 2 * half[name], facecolor="0.95", ec="0.6"
        )
        axis.add_patch(box)
        axis.text(0.12, y, name, va="center", fontsize=9, weight="bold")
        axis.text(1.2, y, contents[name], va="center", fontsize=7, linespacing=1.35)
        if lower:
            axis.plot([6.15, lane, lane], [y, y, min(lower)], color=BLUE, linewidth=0.8)
            for end in lower:
                axis.plot([6.15, lane], [end, end], color=BLUE, linewidth=0.4, alpha=0.5)
            axis.scatter([lane] * len(lower), lower, s=10, color=BLUE, zorder=3)
        lane += 0.11
    axis.set(xlim=(0, 8), ylim=(0, edges[-1]))
    figure.set_size_inches(8, edges[-1])
    axis.axis("off")
    return figure


FIGURES = {
    "islets": (islets, None),
    "layers": (layers, None),
    "model": (model, (5.6, 4)),
    "modalities": (modalities, (6.4, 4.2)),
    "family": (family, None),
    "speed": (speed, (4.4, 2.8)),
    "training": (lambda: scgmvae.pl.training(trained()), (8, 4)),
    "components": (
        lambda: scgmvae.pl.components(trained(n_components=16), "bulk_labels"),
        (7, 6),
    ),
    "split_tree": (lambda: scgmvae.pl.split_tree(trained()).figure, None),
    "conditions": (conditions, (8, 2.3)),
    "dual": (dual, (7.2, 4.7)),
    "report": (report, (8.125, 17.7)),  # at 120 dots per inch the pixels of the window
    **{f"gallery_{name}": (draw, None) for name, draw in GALLERY.items()},
}
"""Name → what draws it, and its size in inches, for text that is legible in a column.

A figure whose height depends on its content sets its size itself.
"""


TIGHT = {f"gallery_{name}" for name in GALLERY}
"""Figures without a size of their own; the margins of what scanpy draws are wide."""


def main() -> None:
    for name in sys.argv[1:] or FIGURES:
        draw, inches = FIGURES[name]
        figure = draw()
        if isinstance(figure, Axes):
            figure = figure.figure
        if inches is not None:
            figure.set_size_inches(inches)
        path = ROOT / "figures" / f"{name}.png"
        figure.savefig(path, dpi=120, bbox_inches="tight" if name in TIGHT else None)
        # a palette takes a third of the space, and the repository keeps every version
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
