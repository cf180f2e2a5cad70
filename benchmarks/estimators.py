"""Estimators of the bound and of its gradient: means and variances over draws of z.

    python benchmarks/estimators.py

A VAE of scikit-learn's digits, trained for some epochs, then held fixed. For 64 images and many
draws of z from q(z|x): the value of −ELBO and its gradient with respect to the mean of q(z|x),

*closed*: reparameterised z, KL in closed form (Kingma and Welling 2014, eq. 7);
*Monte Carlo*: reparameterised z, KL as log q(z|x) − log p(z) at the draw (eq. 6);
*score function*: the value times the gradient of log q(z|x), with and without a baseline (the
mean of the value over the draws).

Bias is the largest difference from *closed* over all images and dimensions, in standard errors of
that difference: of 640 differences of equal means the largest is expected at about 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from common import set_threads, write
from torch import Tensor
from torch.distributions import Normal

import scgmvae
from scgmvae.distributions.divergences import normal_kl
from scgmvae.distributions.likelihoods import log_likelihood


def negative_elbo(module: scgmvae.CGMVAE, x: Tensor, z: Tensor, kl: Tensor) -> Tensor:
    """Values (S, n), in nats."""
    inputs = {"w": None, "library": x.sum(-1, keepdim=True), "batch_index": x.new_zeros(len(x), 1)}
    return kl - log_likelihood(module.generative(z=z, **inputs)["px"], x)


def estimates(module: scgmvae.CGMVAE, x: Tensor, n_draws: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Values (S, n) and gradients (S, n, L) of each estimator, S draws."""
    with torch.no_grad():
        q_z = module.inference(x, x.new_zeros(len(x), 1))["qz"]
    prior = Normal(torch.zeros_like(q_z.loc), torch.ones_like(q_z.scale))
    loc = q_z.loc.expand(n_draws, -1, -1).clone().requires_grad_()  # a mean for every draw
    q = Normal(loc, q_z.scale)
    z = q.rsample()
    found = {}
    for name, at in (("closed", None), ("Monte Carlo", z)):
        value = negative_elbo(module, x, z, normal_kl(q, prior, at))
        gradient = torch.autograd.grad(value.sum(), loc, retain_graph=True)[0]
        found[name] = value.detach(), gradient
    value = found["Monte Carlo"][0]
    score = (z.detach() - q_z.loc) / q_z.variance
    found["score function"] = value, value.unsqueeze(-1) * score
    centred = value - value.mean(0)
    found["score function, baseline"] = value, centred.unsqueeze(-1) * score
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--short", action="store_true")
    args = parser.parse_args()
    set_threads(args.threads, args.short)
    n_draws, epochs = (200, 2) if args.short else (5000, 60)
    adata = scgmvae.datasets.digits()
    model = scgmvae.SCGMVAE(adata, prior="normal", n_latent=10, input_dropout_rate=0.0)
    model.train(max_epochs=epochs, pretrain_epochs=0, seed=0, enable_progress_bar=False)
    torch.manual_seed(0)
    x = torch.from_numpy(adata.X[:64]).to(model.device)
    found = estimates(model.module.requires_grad_(False), x, n_draws)
    reference = found["closed"][1]
    rows = []
    for name, (value, gradient) in found.items():
        difference = gradient - reference
        error = difference.std(0) / n_draws**0.5
        in_errors = (difference.mean(0).abs() / error.clamp(min=1e-12)).max()
        rows.append(
            {
                "estimator": name,
                "value": float(value.mean()),
                "value_variance": float(value.var(0).mean()),
                "gradient_variance": float(gradient.var(0).mean()),
                "bias_in_standard_errors": float(in_errors) if name != "closed" else 0.0,
            }
        )
    table = pd.DataFrame(rows)
    write(
        args.out / "estimators.json",
        table,
        script="estimators.py",
        short=args.short,
        seed=0,
        draws=n_draws,
    )
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
