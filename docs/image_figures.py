"""The figures of MNIST, Fashion-MNIST and CIFAR-10 in the documentation.

    SCGMVAE_DATA_DIR=... python docs/image_figures.py  # writes docs/figures/images_*.png
    ... docs/image_figures.py latent_size mnist_plane  # these alone
    ... docs/image_figures.py --models FOLDER  # reads models from there, and keeps new ones there

Every model is one that ``benchmarks/images.py`` trains with seed 0, two to three minutes each on
one thread. All images that are shown are test images, which it was not trained on, but those of
``cifar_tsne``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure
from PIL import Image

import scgmvae
from scgmvae.plotting._latent import in_two_dimensions

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import images as benchmark

ROOT = Path(__file__).parent
RESULTS = ROOT.parent / "benchmarks" / "results"
SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
SHOWN = (2, 5, 10, 20)
"""Sizes of the latent whose reconstructions are shown."""
N_POINTS = 3000
"""Images in a reduction of z to two dimensions."""

FOLDERS = {"models": Path(tempfile.gettempdir()) / "scgmvae_image_models"}
"""Where models are kept from one run to the next."""


def kept(name: str, train: AnnData, make: partial) -> scgmvae.SCGMVAE:
    """The model of that name in the folder of models, or a new one, which is put there."""
    folder = FOLDERS["models"] / name
    if folder.is_dir():
        return scgmvae.SCGMVAE.load(folder, adata=train)
    model = make()
    model.save(folder)
    return model


@cache
def vae(name: str, n_latent: int) -> scgmvae.SCGMVAE:
    train, _ = benchmark.load(name, False)
    make = partial(benchmark.vae_of, train, n_latent, 0, False)
    return kept(f"{name}-{n_latent}-0", train, make)


@cache
def network(name: str) -> scgmvae.SCGMVAE:
    train, _, is_all = benchmark.photographs(False)
    make = partial(benchmark.network_of, train, name, 0, is_all, False)
    return kept(f"cifar-{name}-0", train, make)


def test_images(name: str) -> AnnData:
    return benchmark.load(name, False)[1]


def one_of_each_class(adata: AnnData) -> list[int]:
    """The first image of each class, in the order of the classes."""
    codes = adata.obs["label"].cat.codes.to_numpy()
    return [int(np.flatnonzero(codes == code)[0]) for code in range(codes.max() + 1)]


# ---------------------------------------------------------------------------------- figures


def latent_size() -> Figure:
    """Loss and reconstruction error of both sets by the size of z, mean and sd of the seeds."""
    rows = pd.DataFrame(json.loads((RESULTS / "images-vae.json").read_text())["rows"])
    figure, axes = plt.subplots(2, 2, figsize=(6.4, 4.6), layout="constrained", sharex=True)
    titles = {"loss": "loss, −ELBO", "reconstruction": "reconstruction, −log p(x|z)"}
    for line, (name, shown) in zip(axes, SETS.items(), strict=True):
        groups = rows[rows["data"] == name].groupby("n_latent")
        for axis, (column, title) in zip(line, titles.items(), strict=True):
            mean, spread = groups[column].mean(), groups[column].std().fillna(0.0)
            axis.errorbar(mean.index, mean, spread, marker="o", markersize=4, capsize=3)
            axis.set_title(f"{shown}: {title}", fontsize=9)
            axis.set_xticks(mean.index)
            axis.tick_params(labelsize=8)
        line[0].set_ylabel("nats per test image", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("dimensions of z", fontsize=9)
    return figure


def reconstructions(name: str) -> Figure:
    test = test_images(name)
    models = {f"z of {n}": vae(name, n) for n in SHOWN}
    return scgmvae.pl.reconstructions(models, test, indices=one_of_each_class(test))


def plane(name: str) -> Figure:
    """Where the test images lie in a z of two dimensions, by class."""
    figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
    scgmvae.pl.latent(vae(name, 2), "label", test_images(name), n_cells=10_000, ax=axis)
    axis.set_title(f"{SETS[name]}, two dimensions of z", fontsize=9)
    return figure


def reductions(name: str) -> Figure:
    """z of 20 dimensions, by class, as t-SNE and as UMAP show it."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
    for axis, (method, title) in zip(axes, {"tsne": "t-SNE", "umap": "UMAP"}.items(), strict=True):
        scgmvae.pl.latent(
            vae(name, 20), "label", test_images(name), method=method, n_cells=N_POINTS, ax=axis
        )
        axis.set_title(f"{SETS[name]}, {title} of 20 dimensions", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    for axis in axes:
        axis.get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def manifold(name: str) -> Figure:
    return scgmvae.pl.manifold(vae(name, 2), n=16, limits=(-4, 4))


def samples(name: str) -> Figure:
    return scgmvae.pl.samples(vae(name, 20), 5)


def photographs() -> Figure:
    """Photographs and their reconstructions by both networks."""
    _, test, _ = benchmark.photographs(False)
    models = {name: network(name) for name in benchmark.NETWORKS}
    return scgmvae.pl.reconstructions(models, test, n_images=10)


def photographs_tsne() -> Figure:
    """t-SNE of z of photographs, each as a point of its mean colour: the 4,000 have no labels."""
    train, test, is_all = benchmark.photographs(False)
    parts = (test[:4000].copy(),) if is_all else (train, test)
    colors = np.concatenate([part.X.reshape(part.n_obs, -1, 3).mean(1) / 255 for part in parts])
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
    for axis, name in zip(axes, benchmark.NETWORKS, strict=True):
        z = [network(name).get_latent_representation(part) for part in parts]
        shown = AnnData(np.concatenate(z))
        basis = in_two_dimensions(shown, "tsne")
        axis.scatter(*shown.obsm[f"X_{basis}"].T, s=7, color=colors, linewidths=0)
        axis.set_title(f"{name}, t-SNE of 256 dimensions", fontsize=9)
        axis.axis("off")
    return figure


OF_SETS = {
    "reconstructions": reconstructions,
    "plane": plane,
    "reductions": reductions,
    "manifold": manifold,
    "samples": samples,
}
FIGURES = {"latent_size": latent_size}
FIGURES |= {
    f"{name.partition('_')[0]}_{kind}": partial(draw, name)
    for name in SETS
    for kind, draw in OF_SETS.items()
}
FIGURES |= {"cifar_reconstructions": photographs, "cifar_tsne": photographs_tsne}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(FIGURES))
    parser.add_argument("--models", type=Path, default=FOLDERS["models"])
    args = parser.parse_args()
    FOLDERS["models"] = args.models
    for name in args.names:
        figure = FIGURES[name]()
        path = ROOT / "figures" / f"images_{name}.png"
        figure.savefig(path, dpi=120, bbox_inches="tight")
        plt.close(figure)
        # a palette takes a third of the space, and the repository keeps every version
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
        print(path.name, path.stat().st_size // 1024, "KB", flush=True)


if __name__ == "__main__":
    main()
