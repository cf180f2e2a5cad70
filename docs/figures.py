"""The figures of the documentation.

    python docs/figures.py  # writes docs/figures/*.png; about two minutes

All but ``umap.png``, which ``make demo`` makes.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch

import scgmvae

ROOT = Path(__file__).parent
RESULTS = ROOT.parent / "benchmarks" / "results"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # of Okabe and Ito
OBSERVED = "0.85"

NODES = {"w": (0, 1), "y": (1, 1), "d": (1, 2), "z": (0.7, 0), "x": (0.7, -1), "c": (-0.7, 0)}
GENERATIVE = ("wz", "dy", "yz", "zx", "cx")
BY_CHOICE = ("cw", "cz")
"""Arrows of ``condition_prior="learned"``."""
INFERENCE = ("xz", "xw", "zy", "yd", "cz", "cw", "cy")
BENDS = {"cy": -1.1}
"""Of arrows around a node in between."""


def graph(axis: Axes, title: str, arrows: tuple[str, ...], dashed: tuple[str, ...] = ()) -> None:
    """Nodes of the model, observed ones grey, with arrows between them."""
    for name, place in NODES.items():
        face = OBSERVED if name in "xc" else "white"
        axis.add_patch(Circle(place, 0.22, facecolor=face, edgecolor="black", zorder=2))
        axis.text(*place, name, ha="center", va="center", fontsize=13, style="italic", zorder=3)
    for names, style, color in ((arrows, "-", "black"), (dashed, "--", BLUE)):
        for start, end in names:
            bend = BENDS.get(start + end, 0)
            arrow = FancyArrowPatch(
                NODES[start],
                NODES[end],
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


def trained(**settings: object) -> scgmvae.SCGMVAE:
    fit = scgmvae.SCGMVAE(scgmvae.datasets.pbmc68k_reduced(), **settings)
    fit.train(seed=0, enable_progress_bar=False)
    return fit


def main() -> None:
    figures = {
        "model": (model(), (5.6, 4)),
        "speed": (speed(), (4.4, 2.8)),
        "training": (scgmvae.pl.training(trained()), (8, 4)),
        "components": (scgmvae.pl.components(trained(n_components=16), "bulk_labels"), (7, 6)),
    }
    for name, (figure, inches) in figures.items():
        figure.set_size_inches(inches)  # for text that is legible in a column
        figure.savefig(ROOT / "figures" / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
