r"""The dual VAE as a scvi-tools module: two sources of light in one image.

======  =========================================  ===============  ====================
symbol  meaning                                    shape            name in the code
======  =========================================  ===============  ====================
x       image                                      (n, P)           ``x``
g(x)    the image at low resolution                (n, Q)           ``low``
z₁      latent of the foreground                   (n, L₁)          ``z1``, ``q_z1``
z₂      latent of the background                   (n, L₂)          ``z2``, ``q_z2``
f       foreground, of z₁ alone by default, ≥ 0    (n, P)           ``foreground``
b       background, of z₂ alone, > 0               (n, Q)           ``background``
U       low resolution to pixels, linear           Q → P            ``resolution.upsample``
γ₁      share of b that the image includes         (n, Q) or 0, 1   ``image_gate``
γ       share of f in g(x) that r includes         (n, Q) or 0, 1   ``gate``
======  =========================================  ===============  ====================

Generative model: p(z₁) p(z₂) p(x|f + U γ₁ b), and r(g(x)|b + γ g(f)) beside it. Inference:
q(z₁|x) and s(z₂|g(x)). ``docs/dual.md`` derives the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import Poisson
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn.functional import softplus

from scgmvae.checks import check_choices, check_whole
from scgmvae.data.images import shape_of
from scgmvae.distributions.divergences import normal_kl
from scgmvae.distributions.likelihoods import LOG_DISPERSION_BOUND, Gaussian, log_likelihood
from scgmvae.dual.resolution import LowResolution
from scgmvae.module.base import importance_sampled
from scgmvae.nn.bounds import bounded_exp, inverse_bounded_exp
from scgmvae.nn.convolutions import ConvolutionalTrunk, check_image_shape
from scgmvae.nn.layers import Conditions, ConditionSizes, Trunk
from scgmvae.nn.networks import Decoder, Encoder

__all__ = ["DualLikelihood", "DualModule", "ImageInteraction", "Interaction"]

DualLikelihood = Literal["gaussian", "poisson"]
Interaction = Literal["none", "concatenation", "gated"]
ImageInteraction = Literal["additive", "none", "concatenation", "gated"]

NO_CONDITIONS, NO_SIZES = Conditions(), ConditionSizes()

BACKGROUND_WIDTHS = (64,)
"""Widths of the hidden layers between g(x), which is small, and z₂, and back."""

START_FOREGROUND = 0.1
"""Foreground at the start, and size of the decoder's weights, as multiples of the unit. As it
is nearly dark, the background takes all diffuse light, and the foreground grows where the
background cannot follow."""

OPEN = 3.0
"""Bias of the image's gate at the start, at which it lets 95 % of the background through."""


class DualModule(BaseModuleClass):
    """Two VAEs, of an image and of its low resolution, that explain the image together.

    Parameters
    ----------
    image_shape
        Height, width and, if there are any, channels.
    n_latent_foreground, n_latent_background
        L₁ and L₂.
    encoder
        Encoder of the foreground: ``"mlp"``, or ``"conv"``, three convolutions in place of hidden
        layers.
    n_hidden
        Width of each hidden layer of an ``"mlp"`` encoder; without any it is linear.
    n_hidden_decoder
        Width of each hidden layer of the foreground's decoder; without any it is linear up to the
        cut at 0 (a softplus for counts of which it is the only rate).
    window, blur
        Window and blur of g, in pixels; see :class:`~scgmvae.dual.resolution.LowResolution`.
    interaction
        What part of the foreground r(g(x)|z̃₂) includes: ``"none"`` (γ = 0), ``"concatenation"``
        (γ = 1: all of its light) or ``"gated"`` (γ a sigmoid of z₁ and z₂).
    image_interaction
        What p(x|z̃₁) is told of z₂: ``"additive"``, the background's light, which is added to that
        of the foreground; ``"none"``, nothing, so that the foreground explains the image alone;
        ``"concatenation"``, its light, and z₂ itself beside z₁ in the decoder of the foreground;
        ``"gated"``, a share γ₁ of its light, a sigmoid of z₁ and z₂ for each window.
    likelihood
        ``"gaussian"``, with a learned standard deviation for each pixel, or ``"poisson"``. A
        standard deviation that z₁ and z₂ give, as ``gaussian_scale="network"`` of ``SCGMVAE``, is
        not offered: light adds up, but standard deviations do not, so none could be told to be of
        foreground or background, and light that either network calls noise is missing from both.

    Raises
    ------
    ValueError
        If a setting is none of its choices, or out of range.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        n_latent_foreground: int = 128,
        n_latent_background: int = 8,
        encoder: Literal["mlp", "conv"] = "mlp",
        n_hidden: Sequence[int] = (),
        n_hidden_decoder: Sequence[int] = (),
        window: int = 6,
        blur: float = 0.0,
        interaction: Interaction = "concatenation",
        image_interaction: ImageInteraction = "additive",
        likelihood: DualLikelihood = "gaussian",
    ):
        super().__init__()
        check_choices(
            encoder=(encoder, ("mlp", "conv")),
            interaction=(interaction, get_args(Interaction)),
            image_interaction=(image_interaction, get_args(ImageInteraction)),
            likelihood=(likelihood, get_args(DualLikelihood)),
        )
        n_latent = {"n_latent_foreground": n_latent_foreground}
        n_latent["n_latent_background"] = n_latent_background
        check_whole(1, **n_latent)
        _check_widths("n_hidden", n_hidden)
        _check_widths("n_hidden_decoder", n_hidden_decoder)
        self.image_shape = image_shape = shape_of(image_shape)
        self.interaction = interaction
        self.image_interaction = image_interaction
        self.likelihood = likelihood
        self.resolution = LowResolution(image_shape, window, blur)
        n_input, n_low = math.prod(image_shape), self.resolution.n_out

        if encoder == "conv":
            check_image_shape(image_shape)
            trunk = ConvolutionalTrunk(image_shape)
        else:
            trunk = Trunk(n_input, NO_SIZES, n_hidden)
        self.q_z1 = Encoder(trunk, NO_SIZES, n_latent_foreground, 0, 0.0)
        trunk = Trunk(n_low, NO_SIZES, BACKGROUND_WIDTHS)
        self.q_z2 = Encoder(trunk, NO_SIZES, n_latent_background, 0, 0.0)
        n_latent_both = n_latent_foreground + n_latent_background
        n_seen = n_latent_both if image_interaction == "concatenation" else n_latent_foreground
        self.foreground = Decoder(n_seen, NO_SIZES, n_input, 1, n_hidden_decoder)
        self.background = Decoder(n_latent_background, NO_SIZES, n_low, 1, BACKGROUND_WIDTHS)
        if interaction == "gated":
            self.gate = nn.Linear(n_latent_both, n_low)
        if image_interaction == "gated":
            self.image_gate = nn.Linear(n_latent_both, n_low)
        if likelihood == "gaussian":
            self.raw_scale = nn.Parameter(torch.zeros(n_input))
            self.raw_low_scale = nn.Parameter(torch.zeros(n_low))
        # images as the networks see them: less their mean, in units of their standard deviation
        self.register_buffer("mean", torch.zeros(n_input))
        self.register_buffer("unit", torch.ones(()))

    @torch.no_grad()
    def start_at(self, x: Tensor) -> None:
        """Scale the networks to images, and let the background begin with all their light.

        Parameters
        ----------
        x
            Images, ``(n, P)``, in the unit of the data.
        """
        low = self.resolution(x)
        self.mean.copy_(x.mean(0))
        spread = (x - self.mean).square().mean().sqrt()
        self.unit.copy_(spread if spread > 0 else torch.ones_like(spread))
        light = (low.mean(0) / self.unit).clamp(min=1e-3)
        # softplus⁻¹ of the light
        self.background.start_at(light + torch.log(-torch.expm1(-light)))
        self.foreground.heads[0].weight.mul_(START_FOREGROUND)
        dark = torch.full_like(self.mean, START_FOREGROUND)
        # a foreground that explains the image alone begins with all of the light
        alone = (self.mean / self.unit).clamp(min=START_FOREGROUND)
        self.foreground.start_at(alone if self.image_interaction == "none" else dark)
        if self.image_interaction == "gated":
            self.image_gate.weight.mul_(START_FOREGROUND)
            self.image_gate.bias.fill_(OPEN)
        if self.likelihood == "gaussian":
            for raw, values in ((self.raw_scale, x), (self.raw_low_scale, low)):
                scale = values.std(0, correction=0).clamp(min=1e-3 * self.unit)
                raw.copy_(inverse_bounded_exp(scale, LOG_DISPERSION_BOUND))

    # ------------------------------------------------------------------ minibatch → arguments

    def _get_inference_input(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": tensors[REGISTRY_KEYS.X_KEY]}

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict
    ) -> dict[str, Tensor]:
        return {name: inference_outputs[name] for name in ("z1", "z2")}

    # ------------------------------------------------------------------------------- x → q

    @auto_move_data
    def inference(
        self, x: Tensor, n_samples: int = 1, sample: bool = True
    ) -> dict[str, Normal | Tensor]:
        """q(z₁|x) and s(z₂|g(x)) of a minibatch.

        Parameters
        ----------
        x
            Images, ``(n, P)``.
        n_samples
            S, number of samples of both latents.
        sample
            ``False`` takes the posterior means for z₁ and z₂.

        Returns
        -------
        ``q_z1``, ``q_z2`` Gaussians with parameters ``(n, L₁)`` and ``(n, L₂)``; ``z1``, ``z2``
        samples, ``(n, ·)`` or, for S > 1, ``(S, n, ·)``.
        """
        seen = (x - self.mean) / self.unit
        outputs = {}
        networks = (("1", self.q_z1, seen), ("2", self.q_z2, self.resolution(seen)))
        for name, network, inputs in networks:
            q_z = network.q_z(network(inputs, NO_CONDITIONS), NO_CONDITIONS)
            z = q_z.rsample((n_samples,) if n_samples > 1 else ()) if sample else q_z.loc
            outputs |= {f"q_z{name}": q_z, f"z{name}": z}
        return outputs

    # --------------------------------------------------------------------------- z₁, z₂ → p

    @auto_move_data
    def generative(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor | Distribution]:
        """Both sources of light, and the densities of image and low resolution.

        Parameters
        ----------
        z1, z2
            Samples, ``(..., n, L₁)`` and ``(..., n, L₂)``.

        Returns
        -------
        ``foreground`` f and ``background`` U γ₁ b, ``(..., n, P)``, in the unit of the data, which
        add up to the mean of x (of ``"none"`` f alone is that mean, and the background U b);
        ``px`` over ``(..., n, P)``; ``pr`` over ``(..., n, Q)``: of g(x), or of the windows' sums
        of counts for ``poisson``, which are Poisson as well.
        """
        both = torch.cat([z1, z2], dim=-1)
        seen = both if self.image_interaction == "concatenation" else z1
        # a rate of 0 would make counts impossible, unless there is a background beside it
        is_rate = self.likelihood == "poisson" and self.image_interaction == "none"
        rectified = softplus if is_rate else torch.relu
        foreground = self.unit * rectified(self.foreground(seen, NO_CONDITIONS)[0])
        low_background = self.unit * softplus(self.background(z2, NO_CONDITIONS)[0])
        low = low_background
        if self.image_interaction == "gated":
            low_background = torch.sigmoid(self.image_gate(both)) * low_background
        background = self.resolution.upsample(low_background)
        if self.interaction != "none":
            light = self.resolution(foreground)
            if self.interaction == "gated":
                light = torch.sigmoid(self.gate(both)) * light
            # the mean of g(x) under the model of x has the background as it is in the image
            low = low_background + light
        image = foreground if self.image_interaction == "none" else foreground + background
        if self.likelihood == "gaussian":
            p_x = _gaussian(image, self.raw_scale)
            p_r = _gaussian(low, self.raw_low_scale)
        else:
            p_x = Poisson(image, validate_args=False)
            p_r = Poisson(self.resolution.areas * low, validate_args=False)
        return {"foreground": foreground, "background": background, "px": p_x, "pr": p_r}

    # ------------------------------------------------------------------------- q, p → nats

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        r"""Sum of both negative bounds, four terms, each ``(n,)`` and in nats.

        .. math::
            -\log p(x|\tilde z_1) + \mathrm{KL}(q(z_1|x) \| p(z_1))
            - \log r(g(x)|\tilde z_2) + \mathrm{KL}(s(z_2|g(x)) \| p(z_2))

        Parameters
        ----------
        tensors
            The minibatch.
        inference_outputs, generative_outputs
            What :meth:`inference` and :meth:`generative` returned.
        kl_weight
            Weight of both divergences.
        """
        x = tensors[REGISTRY_KEYS.X_KEY]
        low = self.resolution(x)
        if self.likelihood == "poisson":
            low = self.resolution.areas * low
        reconstruction = {
            "reconstruction_pixels": -log_likelihood(generative_outputs["px"], x),
            "reconstruction_low": -log_likelihood(generative_outputs["pr"], low),
        }
        prior = Normal(torch.zeros_like(self.unit), torch.ones_like(self.unit))
        kl = {
            "kl_foreground": normal_kl(inference_outputs["q_z1"], prior),
            "kl_background": normal_kl(inference_outputs["q_z2"], prior),
        }
        loss = sum(reconstruction.values()) + kl_weight * sum(kl.values())
        return LossOutput(
            loss=loss.mean(),
            reconstruction_loss=reconstruction,
            kl_local=kl,
            extra_metrics={k: v.mean().detach() for k, v in (reconstruction | kl).items()},
        )

    # ------------------------------------------------------------------------- what users ask

    @torch.inference_mode()
    @auto_move_data
    def sample(self, tensors: dict[str, Tensor], n_samples: int = 1) -> Tensor:
        """Draws of images from the posterior predictive, ``(n, P)`` or ``(S, n, P)``."""
        _, outputs = self.forward(
            tensors, inference_kwargs={"n_samples": n_samples}, compute_loss=False
        )
        return outputs["px"].sample()

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int = 25,
    ) -> Tensor | float:
        r"""Importance-sampled log p(x), of the image alone, with z₁ and z₂ drawn from q and s.

        Where z₂ has no part in the image (``image_interaction="none"``), it is left out.

        .. math::
            \log \tfrac{1}{S} \sum_s \frac{p(x|z_{1s}, z_{2s})\, p(z_{1s})\, p(z_{2s})}
            {q(z_{1s}|x)\, s(z_{2s}|g(x))}

        Parameters
        ----------
        tensors
            The minibatch.
        n_mc_samples
            S, number of samples.
        return_mean
            Whether to return the mean over the minibatch, or one value per image.
        n_mc_samples_per_pass
            Number of samples held in memory at once.

        Returns
        -------
        Tensor ``(n,)`` in nats, on the CPU, or its mean.
        """
        x = tensors[REGISTRY_KEYS.X_KEY]
        prior = Normal(torch.zeros_like(self.unit), torch.ones_like(self.unit))
        names = ("z1",) if self.image_interaction == "none" else ("z1", "z2")

        def log_ratio(n_samples: int) -> Tensor:
            q, p = self.forward(
                tensors, inference_kwargs={"n_samples": n_samples}, compute_loss=False
            )
            ratio = log_likelihood(p["px"], x)
            for name in names:
                ratio = ratio - normal_kl(q[f"q_{name}"], prior, q[name])
            return ratio

        value = importance_sampled(log_ratio, n_mc_samples, n_mc_samples_per_pass)
        return value.mean().item() if return_mean else value.cpu()


def _check_widths(name: str, widths: object) -> None:
    """Raise ``ValueError`` unless all widths of hidden layers are whole numbers above 0."""
    if not isinstance(widths, Sequence | np.ndarray) or isinstance(widths, str):
        raise ValueError(f"{name} must be a sequence of widths, as (128,), but it is {widths!r}.")
    for width in widths:
        check_whole(1, **{name: width})


def _gaussian(loc: Tensor, raw_scale: Tensor) -> Gaussian:
    return Gaussian(loc, bounded_exp(raw_scale, LOG_DISPERSION_BOUND))
