"""Foreground and background of simulated two-photon images, by the dual VAE and without it.

    python benchmarks/dual.py [--tasks separation] [--seeds 0 1 2]

Every seed simulates its own 2,000 images of 60 × 60 pixels and trains on 1,600; all figures are of
the other 400, which no setting was chosen by. *fg* and *bg* are correlations of found and true
light over all pixels. *sectors* is the share of sectors that are rightly told to be on or off, by
the mean light of a sector and the one threshold that is best on the training images.

*separation*: the defaults, where the background is as strong as a sector that is on, beside
background subtraction by a median filter over 31 pixels, half of the image, and over as many as
are best on 100 training images whose truth is known (*told*); and beside a plain VAE of the same
parts, with one latent of as many dimensions as the two and a linear decoder, trained alike.
*log_px* is log p(x) in nats per image, by importance sampling with 50 draws, *se* its standard
error over the images; *gain* is the dual VAE's less the plain VAE's, with its own error.
*interactions*: the three settings of what the low resolution is told of the foreground.
*strengths*: a background half as strong, and twice; few sectors on; counts with Poisson.
*encoders*: a convolutional encoder of the foreground, under a background as strong as a sector
that is on, and twice as strong.
*decoders*: what the image is told of the background (``image_interaction``), and a decoder with
128 hidden units; *gain* is log p(x) less that of the additive decoder, of the same images.
*shaded*: the same of images in which a sector that is on lets half of the background through, so
that light does not add up.

``--short`` has 120 images of 24 × 36 pixels and few epochs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import torch
from anndata import AnnData
from common import run_tasks
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput
from torch.distributions import Normal

import scgmvae
from scgmvae.distributions.divergences import normal_kl
from scgmvae.distributions.likelihoods import LOG_DISPERSION_BOUND, Gaussian, log_likelihood
from scgmvae.nn.bounds import bounded_exp
from scgmvae.nn.layers import Conditions

WIDE = 31
WINDOWS = (7, 13, 19, 25)
"""Sides of the median filter, in pixels, that are tried beside the wide one."""

N_LATENT = 136
"""Of the plain VAE: as many as the dual VAE's two latents have by default."""

N_DRAWS = 50

SHADE = 0.5
"""Share of the background that a sector which is on keeps back, where light does not add up."""

HIDDEN = {"n_hidden_decoder": (128,)}
DECODERS = {
    "additive": {},
    "none": {"image_interaction": "none"},
    "gated": {"image_interaction": "gated"},
    "concatenation": {"image_interaction": "concatenation"},
    "concatenation, hidden units": {"image_interaction": "concatenation"} | HIDDEN,
}
"""What decodes the image, by name."""


def images(seed: int, short: bool, **settings: object) -> tuple[AnnData, AnnData]:
    """Training images and those held out."""
    small = {"image_shape": (24, 36)} if short else {}
    adata = scgmvae.datasets.two_photon(120 if short else 2000, seed, **small, **settings)
    n_train = adata.n_obs * 4 // 5
    return adata[:n_train].copy(), adata[n_train:].copy()


def correlation(found: NDArray, adata: AnnData, source: str) -> float:
    """Correlation with the true light, over all pixels of all images."""
    return float(np.corrcoef(found.ravel(), adata.layers[f"true_{source}"].ravel())[0, 1])


def sector_means(rows: NDArray, adata: AnnData) -> NDArray:
    """Mean of each sector, (n, sectors)."""
    (height, width), side = adata.uns["image_shape"], adata.uns["sector"]
    blocks = rows.reshape(len(rows), height // side, side, width // side, side)
    return blocks.mean((2, 4)).reshape(len(rows), -1)


def threshold(means: NDArray, is_on: NDArray) -> tuple[float, float]:
    """The threshold that tells sectors on from off best, and its accuracy."""
    tried = np.linspace(*np.quantile(means, (0.01, 0.99)), 201)
    accuracy = [((means > t) == is_on).mean() for t in tried]
    return float(tried[np.argmax(accuracy)]), float(np.max(accuracy))


def scores(train: tuple, test: tuple) -> dict[str, float]:
    """Figures of (data, foreground, background) held out, with the threshold of the first."""
    (seen, found, _), (adata, foreground, background) = train, test
    at, _ = threshold(sector_means(found, seen), seen.obsm["sectors"])
    right = (sector_means(foreground, adata) > at) == adata.obsm["sectors"]
    return {
        "fg": correlation(foreground, adata, "foreground"),
        "bg": correlation(background, adata, "background"),
        "sectors": float(right.mean()),
    }


def filtered(adata: AnnData, window: int) -> tuple[AnnData, NDArray, NDArray]:
    """The data, the rest and the median over a window around every pixel."""
    stack = adata.X.reshape(-1, *adata.uns["image_shape"])
    background = np.stack([median_filter(image, window) for image in stack])
    background = background.reshape(adata.shape)
    return adata, adata.X - background, background


def trained(
    cls: type[scgmvae.DualVAE], seed: int, train: AnnData, short: bool, **settings: object
) -> tuple[scgmvae.DualVAE, float]:
    """A trained model, and the seconds that it took."""
    start = time.perf_counter()
    model = cls(train, **settings)
    model.train(seed=seed, enable_progress_bar=False, **({"max_epochs": 2} if short else {}))
    return model, time.perf_counter() - start


def log_px(model: scgmvae.DualVAE, test: AnnData, short: bool) -> NDArray[np.float64]:
    """Log p(x) of each image, in nats."""
    nats = model.get_marginal_ll(test, n_mc_samples=2 if short else N_DRAWS, return_mean=False)
    return np.asarray(nats, dtype=float)


def mean_and_error(nats: NDArray, name: str, error: str) -> dict[str, float]:
    return {name: nats.mean(), error: nats.std(ddof=1) / np.sqrt(len(nats))}


def dual_vae(
    seed: int, train: AnnData, test: AnnData, short: bool, **settings: object
) -> tuple[dict[str, object], NDArray[np.float64]]:
    """Figures of the dual VAE, and log p(x) of each image."""
    model, seconds = trained(scgmvae.DualVAE, seed, train, short, **settings)
    found = [(a, model.get_foreground(a), model.get_background(a)) for a in (train, test)]
    nats = log_px(model, test, short)
    row = scores(*found) | mean_and_error(nats, "log_px", "se") | {"seconds": seconds}
    return {"seed": seed} | row, nats


class PlainModule(scgmvae.DualModule):
    """A VAE of the same parts: one latent, one linear decoder of any sign, no low resolution."""

    def inference(self, x, n_samples=1, sample=True):
        outputs = super().inference(x, n_samples, sample)
        # z₂ has nothing to tell: as a draw of its prior it adds nothing to any bound
        prior = Normal(torch.zeros_like(outputs["q_z2"].loc), torch.ones(()))
        z2 = torch.randn_like(outputs["z2"]) if sample else prior.loc
        return outputs | {"q_z2": prior, "z2": z2}

    def generative(self, z1, z2):
        image = self.mean + self.unit * self.foreground(z1, Conditions())[0]
        scale = bounded_exp(self.raw_scale, LOG_DISPERSION_BOUND)
        return {"px": Gaussian(image, scale), "foreground": image, "background": 0 * image}

    def loss(self, tensors, inference_outputs, generative_outputs, kl_weight=1.0):
        reconstruction = -log_likelihood(generative_outputs["px"], tensors[REGISTRY_KEYS.X_KEY])
        kl = normal_kl(inference_outputs["q_z1"], Normal(torch.zeros(()), torch.ones(())))
        return LossOutput((reconstruction + kl_weight * kl).mean(), reconstruction, kl)


class PlainVAE(scgmvae.DualVAE):
    """The dual VAE's training and likelihood, of the plain module."""

    _module_cls = PlainModule


def separation(seed: int, short: bool) -> list[dict[str, object]]:
    train, test = images(seed, short)
    row, nats = dual_vae(seed, train, test, short)
    plain, seconds = trained(PlainVAE, seed, train, short, n_latent_foreground=N_LATENT)
    of_plain = log_px(plain, test, short)
    rows = [
        {"method": "dual VAE"} | row | mean_and_error(nats - of_plain, "gain", "gain_se"),
        {"method": "plain VAE", "seed": seed}
        | mean_and_error(of_plain, "log_px", "se")
        | {"seconds": seconds},
    ]
    some = train[:100].copy()
    by_window = {window: filtered(some, window) for window in (*WINDOWS, WIDE)}
    told = max(
        by_window,
        key=lambda w: threshold(sector_means(by_window[w][1], some), some.obsm["sectors"])[1],
    )
    for name, window in {"median filter, wide": WIDE, "median filter, told": told}.items():
        start = time.perf_counter()
        found = filtered(test, window)
        seconds = time.perf_counter() - start
        rows.append(
            {"method": name, "seed": seed, "window": window}
            | scores(by_window[window], found)
            | {"seconds": seconds}
        )
    return rows


def interactions(seed: int, short: bool) -> list[dict[str, object]]:
    train, test = images(seed, short)
    return [
        {"interaction": name} | dual_vae(seed, train, test, short, interaction=name)[0]
        for name in ("none", "concatenation", "gated")
    ]


def strengths(seed: int, short: bool) -> list[dict[str, object]]:
    cases = {
        "background 0.5": ({"background": 0.5}, {}),
        "background 2": ({"background": 2.0}, {}),
        "one sector in ten on": ({"p_on": 0.1}, {}),
        "counts, Poisson": ({"read_noise": 0.0}, {"likelihood": "poisson"}),
    }
    rows = []
    for name, (of_data, of_model) in cases.items():
        train, test = images(seed, short, **of_data)
        rows.append({"images": name} | dual_vae(seed, train, test, short, **of_model)[0])
    return rows


def encoders(seed: int, short: bool) -> list[dict[str, object]]:
    rows = []
    for background in (1, 2):
        train, test = images(seed, short, background=float(background))
        row, _ = dual_vae(seed, train, test, short, encoder="conv")
        rows.append({"images": f"background {background}", "encoder": "conv"} | row)
    return rows


def decoded(
    seed: int, train: AnnData, test: AnnData, short: bool, names: Iterable[str]
) -> list[dict[str, object]]:
    """Figures of some decoders, and their gain over the additive one, which comes first."""
    rows, of_additive = [], None
    for name in names:
        row, nats = dual_vae(seed, train, test, short, **DECODERS[name])
        of_additive = nats if of_additive is None else of_additive
        gain = mean_and_error(nats - of_additive, "gain", "gain_se")
        rows.append({"decoder": name} | row | gain)
    return rows


def decoders(seed: int, short: bool) -> list[dict[str, object]]:
    return decoded(seed, *images(seed, short), short, DECODERS)


def shade(adata: AnnData, seed: int) -> None:
    """New images of the same two sources, of which the upper keeps back light of the lower."""
    rng = np.random.default_rng(seed)
    focussed = adata.layers["true_foreground"]
    adata.layers["true_background"] *= 1 - SHADE * (focussed > 0)
    light = focussed + adata.layers["true_background"]
    adata.X = (rng.poisson(light) + rng.standard_normal(light.shape)).astype(np.float32)


def shaded(seed: int, short: bool) -> list[dict[str, object]]:
    parts = images(seed, short)
    for part, adata in enumerate(parts):
        shade(adata, 2 * seed + part)
    names = ("additive", "gated", "concatenation")
    return decoded(seed, *parts, short, names)


TASKS = {
    "separation": (separation, ["method"]),
    "interactions": (interactions, ["interaction"]),
    "strengths": (strengths, ["images"]),
    "encoders": (encoders, ["images", "encoder"]),
    "decoders": (decoders, ["decoder"]),
    "shaded": (shaded, ["decoder"]),
}

if __name__ == "__main__":
    run_tasks("dual", __doc__.splitlines()[0], TASKS)
