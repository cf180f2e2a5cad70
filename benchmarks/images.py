"""Images: clusters, few labels, latent sizes, convolutions, the price of the mixture.

    SCGMVAE_DATA_DIR=... python benchmarks/images.py [--tasks mnist-10] [--seeds 0 1 2]

Figures are of the test images, which no model was trained on. Variants were compared by training
images, but test figures without distortion had been seen before it was chosen. Every row of a task
has one recipe for all seeds. ACC is the share of images in the component that is matched to their
class, one to one (labels: the share of right labels); *majority* gives every component the class
that most of its training images have.

*mnist-10, fashion-10*: unsupervised, told K = 10, defaults.
*mnist-20, fashion-20*: told K = 20, with an encoder that sees the images distorted at random.
*mnist-10-distorted*: the same as *mnist-10* with an encoder that sees the images distorted.
*mnist-100, mnist-5pct*: labels of that many training images, distorted likewise.
*fashion-10pct, fashion-all*: labels of a tenth and of all, convolutions, less distortion, and no
guide.
*vae*: the factorised Gaussian VAE of both sets, nats against the size of the latent.
*cifar*: CIFAR-10, fully connected against convolutional, 256 dimensions. All images with their own
split, 25 epochs and a weight decay of 1e-5 where the data folder has ``cifar10``; where it has
``cifar10_subset`` alone, its 4,000 images, 500 of them held out, and 50 epochs.
*speed*: seconds per epoch of the c*GMVAE and of the VAE of the same widths.

``--short`` runs on scikit-learn's 8 × 8 digits for few epochs.
"""

from __future__ import annotations

import os
import time
from functools import cache, partial
from itertools import product
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from anndata import AnnData
from common import run_tasks
from sklearn.model_selection import train_test_split

import scgmvae
from scgmvae.metrics import clustering_scores

LABEL, KEY, UNLABELED = "label", "given", "unknown"
SHORT = {"max_epochs": 2, "pretrain_epochs": 2}
# bfloat16 in the matrix products halves the time on CPUs and GPUs that have it
FAST = {"batch_size": 256, "precision": "bf16-mixed", "enable_progress_bar": False}
DISTORTED = {"plan_kwargs": {"distortion": 1.0}}
# Clothes bear less distortion than digits, and their neighbours' labels err more often than those
# that the classifier learns, so nothing is to hold on to them.
FASHION = {
    "init": {"encoder": "conv"},
    "plan_kwargs": {"distortion": 0.3},
    "guide_weight": 0.0,
    "pretrain_epochs": 3,
    "max_epochs": 12,
}
WIDTHS = (512, 256, 128)
SIZES = (2, 5, 10, 15, 20, 25)


@cache
def load(name: str, short: bool) -> tuple[AnnData, AnnData]:
    """Training and test images."""
    if short:
        adata = scgmvae.datasets.digits()
        train, test = train_test_split(np.arange(adata.n_obs), test_size=0.3, random_state=0)
        return adata[train].copy(), adata[test].copy()
    adata = getattr(scgmvae.datasets, name)()
    is_train = (adata.obs["split"] == "train").to_numpy()
    return adata[is_train].copy(), adata[~is_train].copy()


def majority(model: scgmvae.SCGMVAE, train: AnnData, test: AnnData) -> float:
    """Accuracy where a component stands for the class of most of its training images."""
    counts = pd.crosstab(model.predict(train), train.obs[LABEL].astype(str))
    named = pd.Series(model.predict(test)).map(counts.idxmax(axis=1))
    return float((named.to_numpy() == test.obs[LABEL].astype(str).to_numpy()).mean())


def cluster(
    seed: int, short: bool, *, name: str, n_components: int, **train_kwargs: object
) -> list[dict[str, object]]:
    train, test = load(name, short)
    start = time.perf_counter()
    model = scgmvae.SCGMVAE(train, n_components=n_components)
    model.train(seed=seed, **FAST | train_kwargs | (SHORT if short else {}))
    seconds = time.perf_counter() - start
    on_train = clustering_scores(train.obs[LABEL], model.predict(train))
    scores = clustering_scores(test.obs[LABEL], model.predict(test))
    row = {"method": "scgmvae", "seed": seed} | {k: scores[k] for k in ("ACC", "NMI", "ARI")}
    return [
        row
        | {"majority": majority(model, train, test), "ACC_train": on_train["ACC"]}
        | {"seconds": seconds}
    ]


def classify(
    seed: int,
    short: bool,
    *,
    name: str,
    n_labelled: float | None,
    init: dict | None = None,
    **train_kwargs: object,
) -> list[dict[str, object]]:
    """Labels of a number (or share) of the training images, the same for every class."""
    train, test = load(name, short)
    labels = train.obs[LABEL].astype(str)
    given = labels.copy()
    if n_labelled is not None:
        n = 100 if short else n_labelled
        _, hidden = train_test_split(
            np.arange(len(given)), train_size=n, stratify=labels, random_state=seed
        )
        given.iloc[hidden] = UNLABELED
    data = AnnData(train.X, obs=pd.DataFrame({KEY: given}), var=train.var, uns=dict(train.uns))
    start = time.perf_counter()
    scgmvae.SCGMVAE.setup_anndata(data, labels_key=KEY, unlabeled_category=UNLABELED)
    model = scgmvae.SCGMVAE(data, n_components=10, **(init or {}))
    model.train(seed=seed, **FAST | train_kwargs | (SHORT if short else {}))
    seconds = time.perf_counter() - start
    unseen = AnnData(
        test.X, obs=pd.DataFrame(index=test.obs_names), var=test.var, uns=dict(test.uns)
    )
    unseen.obs[KEY] = UNLABELED
    truth = test.obs[LABEL].astype(str).to_numpy()
    right = float((model.predict(unseen) == truth).mean())
    row = {"method": "scgmvae", "seed": seed, "ACC": right, "seconds": seconds}
    if n_labelled is not None:
        unlabelled = (given == UNLABELED).to_numpy()
        predicted = model.predict(data)[unlabelled]
        row["ACC_train"] = float((predicted == labels[unlabelled].to_numpy()).mean())
    return [row]


def nats(model: scgmvae.SCGMVAE, test: AnnData) -> dict[str, float]:
    """Loss and reconstruction error of images, nats per image."""
    terms = model.get_elbo_terms(test).mean()
    return {"loss": float(terms.sum()), "reconstruction": float(terms["reconstruction_loss"])}


class EpochTimer(pl.Callback):
    """Seconds of the last epoch, without what comes before and after training."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.start


def vae_of(train: AnnData, n_latent: int, seed: int, short: bool) -> scgmvae.SCGMVAE:
    """The factorised Gaussian VAE of the texts, with a latent of that size."""
    model = scgmvae.SCGMVAE(
        train,
        prior="normal",
        n_latent=n_latent,
        n_hidden=WIDTHS,
        dropout_rate=0.0,
        input_dropout_rate=0.0,
    )
    model.train(
        max_epochs=2 if short else 20,
        pretrain_epochs=0,
        seed=seed,
        batch_size=128,
        enable_progress_bar=False,
        plan_kwargs={"lr": 1e-3, "weight_decay": 1e-5},
    )
    return model


def vae(seed: int, short: bool) -> list[dict[str, object]]:
    rows = []
    for name, n_latent in product(("mnist", "fashion_mnist"), SIZES):
        train, test = load(name, short)
        model = vae_of(train, n_latent, seed, short)
        rows.append({"data": name, "n_latent": n_latent, "seed": seed} | nats(model, test))
    return rows


NETWORKS = {"FC": {"encoder": "mlp", "n_hidden": WIDTHS}, "CNN": {"encoder": "conv"}}


@cache
def photographs(short: bool) -> tuple[AnnData, AnnData, bool]:
    """Training and test images of CIFAR-10, and whether they are all that there are.

    All are taken unless the data folder has 4,000 alone.
    """
    folder = Path(os.environ.get("SCGMVAE_DATA_DIR", ""))
    subset = folder / "cifar10_subset/cifar10_4000.npz"
    if short:
        return *load("digits", short), False
    if subset.is_file() and not (folder / "cifar10").is_dir():
        adata = scgmvae.datasets.images_to_anndata(np.load(subset)["images"])
        return adata[:3500].copy(), adata[3500:].copy(), False
    return *load("cifar10", short), True


def network_of(train: AnnData, name: str, seed: int, is_all: bool, short: bool) -> scgmvae.SCGMVAE:
    """A VAE of photographs; of all of them with the settings of the text, of few for longer."""
    model = scgmvae.SCGMVAE(
        train,
        prior="normal",
        n_latent=256,
        dropout_rate=0.0,
        input_dropout_rate=0.0,
        **NETWORKS[name],
    )
    of_text = {"max_epochs": 25, "plan_kwargs": {"weight_decay": 1e-5}}
    length = of_text if is_all else {"max_epochs": 2 if short else 50}
    model.train(pretrain_epochs=0, seed=seed, batch_size=128, enable_progress_bar=False, **length)
    return model


def cifar(seed: int, short: bool) -> list[dict[str, object]]:
    train, test, is_all = photographs(short)
    rows = []
    for name in NETWORKS:
        start = time.perf_counter()
        model = network_of(train, name, seed, is_all, short)
        seconds = time.perf_counter() - start
        network = f"{name}, all images" if is_all else name
        rows.append({"network": network, "seed": seed, **nats(model, test), "seconds": seconds})
    return rows


def speed(seed: int, short: bool) -> list[dict[str, object]]:
    """Median seconds per epoch of the joint stage, the two models in turn."""
    train, _ = load("mnist", short)
    models = {}
    for prior in ("normal", "dirichlet"):
        model = scgmvae.SCGMVAE(train, prior=prior, n_components=10, n_hidden=WIDTHS)
        model.train(max_epochs=1, pretrain_epochs=1, start="kmeans", seed=seed, **FAST)
        models[prior] = model
    seconds = {prior: [] for prior in models}
    for _ in range(1 if short else 5):
        for prior, model in models.items():
            timer = EpochTimer()
            model.train(max_epochs=1, seed=seed, callbacks=[timer], **FAST)
            seconds[prior].append(timer.seconds)
    median = {prior: float(np.median(values)) for prior, values in seconds.items()}
    return [
        {
            "method": "c*GMVAE against VAE",
            "seed": seed,
            "VAE_seconds": median["normal"],
            "cGMVAE_seconds": median["dirichlet"],
            "ratio": median["dirichlet"] / median["normal"],
        }
    ]


TASKS = {
    "mnist-10": partial(cluster, name="mnist", n_components=10),
    "mnist-10-distorted": partial(cluster, name="mnist", n_components=10, **DISTORTED),
    "mnist-20": partial(cluster, name="mnist", n_components=20, **DISTORTED),
    "fashion-10": partial(cluster, name="fashion_mnist", n_components=10),
    "fashion-20": partial(cluster, name="fashion_mnist", n_components=20, **DISTORTED),
    "mnist-100": partial(classify, name="mnist", n_labelled=100, **DISTORTED),
    "mnist-5pct": partial(classify, name="mnist", n_labelled=0.05, **DISTORTED),
    "fashion-10pct": partial(classify, name="fashion_mnist", n_labelled=0.1, **FASHION),
    "fashion-all": partial(classify, name="fashion_mnist", n_labelled=None, **FASHION),
}

if __name__ == "__main__":
    tasks = {task: (run, ["method"]) for task, run in TASKS.items()}
    tasks |= {"vae": (vae, ["data", "n_latent"]), "cifar": (cifar, ["network"])}
    run_tasks("images", __doc__.splitlines()[0], tasks | {"speed": (speed, ["method"])})
