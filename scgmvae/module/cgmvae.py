r"""The c*GMVAE as a scvi-tools module: inference, generative model and loss.

======  ====================================  ==================  =======================
symbol  meaning                               shape               name in the code
======  ====================================  ==================  =======================
x       data of a cell                        (n, G)              ``x``
c       conditions: batch and covariates      (n, any)            ``c`` (``Conditions``)
z       main latent                           (n, L)              ``z``, ``q_z``, ``p_z``
w       latent that shifts the components     (n, W)              ``w``, ``q_w``, ``p_w``
y       component                             (n, K)              ``y_logits``, ``q_y``
d       per-cell weights of the components    (n, K)              ``d_concentration``
α       prior concentration of d              (K,)                ``alpha``
π       weights of the components             (K,)                ``log_weights``
======  ====================================  ==================  =======================

Generative model: p(w|c) p(d) p(y|d) p(z|w,y,c) p(x|z,c), where p(w|c) p(z|w,y,c) are p(w) p(z|w,y)
by default. Inference: q(z|x,c) q(w|x,c) q(y|z,c) q(d|z,c). Until the mixture is started
(pretraining), and for good with ``prior="normal"``, the module is the VAE p(z) = N(0, I), p(x|z,c)
and computes nothing else.

Related models are settings of this module:

=====================================  ====================================================
system                                 setting
=====================================  ====================================================
autoencoder                            ``prior="none"``: z is a point, no divergence
linear autoencoder                     the same with ``n_layers=0``
probabilistic PCA                      ``prior="normal", n_layers=0``, a Gaussian likelihood
                                       with ``gaussian_scale="shared"``
factor analysis                        the same with ``gaussian_scale="gene"``
factorised Gaussian VAE                ``prior="normal"``
CVAE                                   the same with conditions; p(z) is fixed, or learned
                                       as p(z|c) with ``condition_prior="learned"``
GMVAE                                  ``prior="mixture", component_weights="uniform"``
c*GMVAE                                ``prior="dirichlet"``, the default
=====================================  ====================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn.functional import cross_entropy, one_hot

from scgmvae.checks import check_at_least, check_choices, check_rate, check_whole
from scgmvae.data.images import shape_of
from scgmvae.data.keys import GUIDE_KEY, OBSERVED_KEY, SEEN_KEY
from scgmvae.distributions import divergences as dist
from scgmvae.distributions.families import FAMILIES, LIKELIHOODS, Family, Likelihood
from scgmvae.distributions.likelihoods import (
    LOG_DISPERSION_BOUND,
    LOG_NETWORK_SCALE_BOUND,
    log_likelihood,
    make_likelihood,
)
from scgmvae.module.base import ExtendableModule, importance_sampled
from scgmvae.module.library import LibrarySize
from scgmvae.nn import sparse
from scgmvae.nn.bounds import bounded, inverse_bounded_exp
from scgmvae.nn.convolutions import ConvolutionalDecoder, ConvolutionalTrunk, check_image_shape
from scgmvae.nn.layers import Conditions, ConditionSizes, Trunk
from scgmvae.nn.networks import (
    Classifier,
    ComponentPrior,
    ConditionPrior,
    Decoder,
    DirichletNetwork,
    Encoder,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from scvi.model.base import BaseModelClass

__all__ = ["CGMVAE", "MIXTURE_PRIORS", "Prior", "Widths", "rows_of_component"]

Prior = Literal["dirichlet", "mixture", "normal", "none"]
Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]
GaussianScale = Literal["gene", "shared", "network"]
MIXTURE_PRIORS = ("dirichlet", "mixture")

Widths = int | Sequence[int]

LOG_WEIGHT_BOUND = 7.0
"""Logits of π stay within ±7: if α of an unused component reached 0, log Γ would be infinite."""

DISPERSION_PRECISION = 24.0
"""Precision of the prior of log inverse dispersions, beside one bound for each cell: by the
likelihood of held-out cells (``benchmarks/studies/priors.py``)."""

INPUT_DROPOUT_RATE = 0.3
"""Share of the pixels that a mixture of images hides from its encoder in training. Convolutions
get 0: each sees few pixels at once, and pixels with holes among them are unlike those that it
reads after training. Of cells no gene is hidden: batch normalisation would follow slowly."""


class CGMVAE(ExtendableModule):
    """Conditional Gaussian-mixture VAE with a Dirichlet prior on the component weights.

    Parameters
    ----------
    n_input
        G, number of genes.
    n_batch
        Number of batches.
    n_cats_per_cov
        Number of categories of each further categorical condition.
    n_continuous_cov
        Number of continuous conditions.
    n_labels
        Number of label names; the first ``n_labels`` components carry them. 0 without labels.
    n_components
        K, number of components.
    n_latent, n_latent_w
        L and W.
    n_hidden, n_layers
        Width and number of the hidden layers of the encoder, mirrored in the decoder; or in
        ``n_hidden`` the width of each, from x to z. ``n_layers=0`` makes both linear.
    dropout_rate, input_dropout_rate
        Dropout in the encoder, on hidden units (of ``"mlp"`` alone) and on genes. ``None`` hides
        no gene, and 30 % of the pixels of images for a mixture with ``encoder="mlp"``.
    encoder
        ``"mlp"``, or ``"conv"``: three convolutions, and as many transposed ones in the decoder,
        in place of the hidden layers. The last of ``n_hidden`` is then the width of the other
        networks alone, and ``n_layers`` has no effect.
    image_shape
        Height, width and, if any, channels, where x are images.
    encode_covariates
        Whether the encoder sees c. In scvi-tools it does not by default. A learned m(c) is added
        to the output of the encoder in both cases.
    likelihood
        p(x|z,c).
    dispersion
        One inverse dispersion (standard deviation, for ``gaussian``) per gene, per gene and
        batch, per gene and label, or per gene and cell.
    gaussian_scale
        Standard deviation of the Gaussian likelihood: ``"gene"`` (or ``None``) learns one per
        gene, or as many as ``dispersion`` says; ``"shared"`` learns one for all values;
        ``"network"`` makes it an output of the decoder for each value, σ(z,c), as
        ``dispersion="gene-cell"`` does, from exp(-5) to exp(5) in the unit of x; a number fixes
        it.
    prior
        ``"dirichlet"``: c*GMVAE. ``"mixture"``: GMVAE, y has Cat(π) and there is no d.
        ``"normal"``: VAE, no w, y, d. ``"none"``: autoencoder, z has no noise either.
    component_weights
        π ``"learned"``, or ``"uniform"`` over the components.
    concentration
        Mean of α over the components; α_k is ``concentration * K * π_k``.
    dirichlet_posterior
        q(d) as the ``"conjugate"`` optimum Dir(α + q(y)), or as the output of a ``"network"`` of z
        and c.
    classifier_input
        q(y|z,c) or q(y|z,x,c).
    condition_prior
        ``"standard"``: the prior of the latents, p(w) = N(0, I) and p(z|w,y), does not depend on
        c, so that conditions mix in w and z. ``"learned"``: p(w|c) and p(z|w,y,c) are learned, or
        p(z|c) of a VAE.
    batch_representation
        ``"one-hot"``: every batch has weights of its own in every layer. ``"embedding"``: every
        batch is a point in a few dimensions, which all layers read, for many batches.
    batch_embedding_kwargs
        Arguments of :class:`scvi.nn.Embedding`, ``embedding_dim`` (5 by default) among them.
    use_size_factor
        Whether minibatches hold a size factor, used in place of the library size.
    use_observed_lib_size
        Whether the counts of a cell are its library size, or a latent with a prior of its batch
        (:mod:`scgmvae.module.library`).
    library_log_means, library_log_vars
        Mean and variance of the log library sizes of each batch, ``(1, n_batch)``, for that prior.

    Raises
    ------
    ValueError
        If a setting is not one of its choices, or is out of range.

    References
    ----------
    Kingma et al. 2014, "Semi-supervised learning with deep generative models" (M2);
    Dilokthanakul et al. 2016, "Deep unsupervised clustering with Gaussian mixture variational
    autoencoders" (GMVAE); Lopez et al. 2018, "Deep generative modeling for single-cell
    transcriptomics" (count likelihood and library size).
    """

    _likelihoods: tuple[str, ...] = LIKELIHOODS

    def __init__(
        self,
        n_input: int,
        n_batch: int = 1,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        n_labels: int = 0,
        *,
        n_components: int = 10,
        n_latent: int = 10,
        n_latent_w: int = 10,
        n_hidden: Widths = 128,
        n_layers: int = 1,
        encoder: Literal["mlp", "conv"] = "mlp",
        image_shape: Sequence[int] | None = None,
        encode_covariates: bool = True,
        dropout_rate: float = 0.1,
        input_dropout_rate: float | None = None,
        likelihood: Likelihood = "nb",
        dispersion: Dispersion = "gene",
        gaussian_scale: GaussianScale | float | None = "gene",
        prior: Prior = "dirichlet",
        component_weights: Literal["learned", "uniform"] = "learned",
        concentration: float = 1.0,
        dirichlet_posterior: Literal["conjugate", "network"] = "conjugate",
        classifier_input: Literal["z", "zx"] = "z",
        condition_prior: Literal["standard", "learned"] = "standard",
        batch_representation: Literal["one-hot", "embedding"] = "one-hot",
        batch_embedding_kwargs: dict[str, Any] | None = None,
        use_size_factor: bool = False,
        use_observed_lib_size: bool = True,
        library_log_means: ArrayLike | None = None,
        library_log_vars: ArrayLike | None = None,
    ):
        super().__init__()
        check_choices(
            likelihood=(likelihood, self._likelihoods),
            prior=(prior, get_args(Prior)),
            encoder=(encoder, ("mlp", "conv")),
            dispersion=(dispersion, get_args(Dispersion)),
            batch_representation=(batch_representation, ("one-hot", "embedding")),
            component_weights=(component_weights, ("learned", "uniform")),
            dirichlet_posterior=(dirichlet_posterior, ("conjugate", "network")),
            classifier_input=(classifier_input, ("z", "zx")),
            condition_prior=(condition_prior, ("standard", "learned")),
        )
        widths = hidden_widths(n_hidden, n_layers)
        check_whole(1, n_latent=n_latent, n_latent_w=n_latent_w)
        check_at_least(1e-3, concentration=concentration)
        check_rate(dropout_rate=dropout_rate)
        if input_dropout_rate is None:
            is_images = image_shape is not None
            hides = is_images and prior in MIXTURE_PRIORS and encoder == "mlp"
            input_dropout_rate = INPUT_DROPOUT_RATE if hides else 0.0
        check_rate(input_dropout_rate=input_dropout_rate)
        self.n_input = n_input
        self.n_labels = n_labels
        self.n_latent = n_latent
        self.n_latent_w = n_latent_w
        self.n_hidden = _last_width(n_hidden, widths)
        self.image_shape = None if image_shape is None else shape_of(image_shape)
        self.gene_likelihood = likelihood  # the name that scvi-tools' RNASeqMixin reads
        self.dispersion = dispersion
        self.gaussian_scale = self._checked_scale(gaussian_scale)
        self.prior = prior
        self.component_weights = component_weights
        self.concentration = concentration
        self.dirichlet_posterior = dirichlet_posterior
        self.classifier_input = classifier_input
        self.embeds_batches = batch_representation == "embedding"
        self.use_size_factor = use_size_factor
        self._make_typical_cell()
        self.mixture_started = False
        self._set_conditions((n_batch, *n_cats_per_cov), n_continuous_cov, batch_embedding_kwargs)
        self._check_images(encoder)
        self._make_networks(encoder, encode_covariates, widths, dropout_rate, input_dropout_rate)
        self.raw_dispersion = self._make_dispersion()
        self.library_size = None
        if not (use_observed_lib_size or use_size_factor):
            log_sizes = (library_log_means, library_log_vars)
            self.library_size = self._make_library(log_sizes, encode_covariates, dropout_rate)
        self.condition_prior = self._make_condition_prior(condition_prior)
        if self.has_mixture:
            self.set_components(n_components)

    def _make_typical_cell(self) -> None:
        """Make what is known of the training cells before training."""
        # counts per unit of size factor: factors of scanpy or scran have a mean of 1
        self.register_buffer("size_scale", torch.ones(()))
        # mean counts of the genes: the encoder sees cells of this depth; 0 leaves them as they are
        self.register_buffer("typical_counts", torch.zeros(self.n_input))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # the encoder of models before 0.2 saw counts of any depth
        state_dict.setdefault(f"{prefix}typical_counts", torch.zeros(self.n_input))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _set_conditions(
        self,
        n_categories: tuple[int, ...],
        n_continuous: int,
        batch_embedding_kwargs: dict[str, Any] | None,
    ) -> None:
        """Set the numbers of conditions, and make the points of the batches if they are points."""
        self.n_categories, self.n_continuous = n_categories, n_continuous
        settings = {} if batch_embedding_kwargs is None else dict(batch_embedding_kwargs)
        if settings.keys() - {"embedding_dim"} or (settings and not self.embeds_batches):
            raise ValueError(
                "batch_embedding_kwargs has embedding_dim alone, and goes with "
                f"batch_representation='embedding', but it is {settings!r}."
            )
        check_whole(1, **settings)
        if self.embeds_batches:
            self.init_embedding(REGISTRY_KEYS.BATCH_KEY, n_categories[0], **settings)
        self.sizes = self._condition_sizes()

    def _check_images(self, encoder: str) -> None:
        """Raise ``ValueError`` if the image shape does not suit x, or images not the encoder."""
        shape = self.image_shape
        if shape is not None and math.prod(shape) != self.n_input:
            raise ValueError(
                f"image_shape {shape} makes {math.prod(shape)} values, but x has {self.n_input}."
            )
        if encoder != "conv":
            return
        check_image_shape(shape)
        if self.is_count:
            raise ValueError(
                "encoder='conv' goes with likelihood 'bernoulli' or 'gaussian', but the "
                f"likelihood is {self.gene_likelihood!r}."
            )

    def _checked_scale(
        self, gaussian_scale: GaussianScale | float | None
    ) -> GaussianScale | float:
        """The scale of the Gaussian likelihood; ``ValueError`` if it is none, or does not fit."""
        if gaussian_scale is None:
            return "gene"
        names = get_args(GaussianScale)
        if isinstance(gaussian_scale, str) and gaussian_scale not in names:
            raise ValueError(
                f"gaussian_scale must be one of {names} or a number of at least 0.001, but it is "
                f"{gaussian_scale!r}."
            )
        if not isinstance(gaussian_scale, str):
            check_at_least(1e-3, gaussian_scale=gaussian_scale)
        if self.dispersion == "gene-cell" and gaussian_scale != "gene":
            raise ValueError(
                "dispersion='gene-cell' is an output of the decoder for each cell, so it does not "
                f"go with a gaussian_scale, but that is {gaussian_scale!r}. Leave one out."
            )
        if gaussian_scale == "gene":
            return gaussian_scale
        if self.gene_likelihood != "gaussian":
            raise ValueError(
                f"gaussian_scale={gaussian_scale!r} goes with likelihood='gaussian', but the "
                f"likelihood is {self.gene_likelihood!r}. Leave it out."
            )
        if isinstance(gaussian_scale, str) and self.dispersion != "gene":
            raise ValueError(
                f"gaussian_scale={gaussian_scale!r} says itself by what the standard deviation "
                f"differs, but dispersion is {self.dispersion!r}. Leave one out."
            )
        return gaussian_scale

    def _make_networks(
        self,
        encoder: str,
        encode_covariates: bool,
        widths: tuple[int, ...],
        dropout_rate: float,
        input_dropout_rate: float,
    ) -> None:
        """Make encoder and decoder, whose shapes do not depend on K."""
        sizes = self.sizes if encode_covariates else ConditionSizes()
        trunk: nn.Module = (
            Trunk(self.n_input, sizes, widths, dropout_rate)
            if encoder == "mlp"
            else ConvolutionalTrunk(self.image_shape)
        )
        self.encoder = self._encoder_on(trunk, sizes, input_dropout_rate)
        n_heads = self._family.n_heads + self._disperses_by_cell
        if encoder == "mlp":
            self.decoder = Decoder(self.n_latent, self.sizes, self.n_input, n_heads, widths[::-1])
        else:
            self.decoder = ConvolutionalDecoder(
                self.n_latent, self.sizes, self.image_shape, n_heads
            )

    def _encoder_on(
        self, trunk: nn.Module, sizes: ConditionSizes, input_dropout_rate: float
    ) -> Encoder:
        """Encoder of the latents on given hidden layers."""
        return Encoder(
            trunk,
            sizes,
            self.n_latent,
            self.n_latent_w if self.has_mixture else 0,
            input_dropout_rate,
            noise=self.prior != "none",
        )

    def _make_library(
        self,
        log_sizes: tuple[ArrayLike | None, ArrayLike | None],
        encode_covariates: bool,
        dropout_rate: float,
    ) -> LibrarySize:
        """Networks and prior of latent library sizes; ``ValueError`` where there can be none."""
        if not self.is_count:
            raise ValueError(
                "use_observed_lib_size=False is for counts, but the likelihood is "
                f"{self.gene_likelihood!r}. Leave it out."
            )
        if any(part is None for part in log_sizes):
            raise ValueError(
                "use_observed_lib_size=False needs library_log_means and library_log_vars, the "
                "mean and the variance of the log library sizes of each batch."
            )
        sizes = self.sizes if encode_covariates else ConditionSizes()
        return LibrarySize(self.n_input, sizes, self.n_hidden, dropout_rate, *log_sizes)

    def _make_dispersion(self) -> nn.Parameter | None:
        """Log inverse dispersion, or log standard deviation, (G,), (rows, G) or (1,).

        Rows are batches or labels. ``None`` where the
        likelihood has none, or the decoder gives one to each cell.
        """
        start = self._family.start_dispersion
        if start is None:
            return None
        fixed = self.gene_likelihood == "gaussian" and self.gaussian_scale not in get_args(
            GaussianScale
        )
        start = float(self.gaussian_scale) if fixed else start
        shape = (1,) if self.gaussian_scale == "shared" else (*self._dispersion_rows, self.n_input)
        raw = inverse_bounded_exp(torch.full(shape, start), self._log_dispersion_bound)
        if self._disperses_by_cell:
            self.decoder.start_at(raw, head=-1)
            return None
        return nn.Parameter(raw, requires_grad=not fixed)

    def log_prior(self) -> Tensor | float:
        """Log prior of log inverse dispersions of counts, up to a constant; 0 without any.

        They are normal around 0. Those of a rare gene are hardly known from its counts, and a
        decoder that has learned the training cells takes it for less dispersed than it is in
        others. The logarithm of another scale would depend on the unit of x, so it has no prior.
        """
        squares = sum(raw.square().sum() for raw in self._dispersions_of_counts())
        return -0.5 * DISPERSION_PRECISION * squares

    def _dispersions_of_counts(self) -> list[Tensor]:
        """Log inverse dispersions of counts, but for those that the decoder gives."""
        return [] if self.raw_dispersion is None or not self.is_count else [self.raw_dispersion]

    @property
    def _dispersion_rows(self) -> tuple[int, ...]:
        """Number of rows of the dispersions, by batch or label; none for one in all cells."""
        rows = {
            "gene-batch": (self.n_categories[0],),
            "gene-label": (max(self.n_labels, 1),),
        }
        return rows.get(self.dispersion, ())

    def _make_condition_prior(self, condition_prior: str) -> ConditionPrior | None:
        """Network of p(w|c), or of p(z|c) of a VAE; ``None`` where the prior is fixed."""
        if condition_prior != "learned" or self.prior == "none" or not self.has_conditions:
            return None
        n_placed = self.n_latent_w if self.has_mixture else self.n_latent
        return ConditionPrior(n_placed, self.sizes, self.n_hidden)

    @property
    def has_conditions(self) -> bool:
        """Whether there is any condition that can differ between cells."""
        return self.n_continuous > 0 or max(self.n_categories) > 1

    @property
    def has_mixture(self) -> bool:
        """Whether z has a mixture as its prior, once it is started."""
        return self.prior in MIXTURE_PRIORS

    @property
    def _family(self) -> Family:
        return FAMILIES[self.gene_likelihood]

    @property
    def is_count(self) -> bool:
        """Whether x are counts."""
        return self._family.is_count

    @property
    def _disperses_by_cell(self) -> bool:
        """Whether the decoder gives every cell dispersions of its own."""
        has_dispersion = self._family.start_dispersion is not None
        by_cell = self.dispersion == "gene-cell" or self.gaussian_scale == "network"
        return by_cell and has_dispersion

    @property
    def _log_dispersion_bound(self) -> float:
        """Bound of the log inverse dispersions, or of the log standard deviations."""
        is_network = self.gene_likelihood == "gaussian" and self._disperses_by_cell
        return LOG_NETWORK_SCALE_BOUND if is_network else LOG_DISPERSION_BOUND

    @property
    def takes_sparse(self) -> bool:
        """Whether minibatches may hold x as a CSR tensor."""
        by_layers = isinstance(self.encoder.trunk, Trunk)
        return self.is_count and by_layers and self.classifier_input == "z"

    @property
    def library_log_means(self) -> Tensor | None:
        """Mean of the log library sizes of each batch, (1, n_batch); ``None`` if not latent."""
        return None if self.library_size is None else self.library_size.log_means

    @property
    def library_log_vars(self) -> Tensor | None:
        """Variance of the log library sizes of each batch, (1, n_batch), if they are latent."""
        return None if self.library_size is None else self.library_size.log_vars

    def set_components(self, n_components: int) -> None:
        """Make everything whose shape depends on K anew, with random weights."""
        self.n_components = n_components
        n_in = self.n_latent + (self.n_input if self.classifier_input == "zx" else 0)
        self.classifier = Classifier(n_in, self.sizes, n_components, self.n_hidden)
        # If the prior depended on c, z would not have to forget c, and z decoded under another
        # condition would still carry its own.
        sizes = ConditionSizes() if self.condition_prior is None else self.sizes
        self.component_prior = ComponentPrior(
            self.n_latent, self.n_latent_w, sizes, n_components, self.n_hidden
        )
        learned = self.component_weights == "learned"
        self.weight_logits = nn.Parameter(torch.zeros(n_components), requires_grad=learned)
        if self.prior == "dirichlet" and self.dirichlet_posterior == "network":
            self.dirichlet_network = DirichletNetwork(
                self.n_latent, self.sizes, n_components, self.n_hidden
            )
        self.to(self.encoder.z_loc.weight.device)

    def on_load(self, model: BaseModelClass, **kwargs: Any) -> None:
        """Give the module the shape that the saved model had, before its weights are read."""
        reference = model.reference_categories_
        if not model.reference_has_condition_prior_:
            self.condition_prior = None  # the reference had no condition to learn it from
        if self.has_mixture and model.n_components_ is not None:
            with torch.random.fork_rng(devices=()):  # the saved weights replace these
                self.set_components(model.n_components_)
        self.mixture_started = model.mixture_started_
        if reference is not None:
            self.freeze_known(reference)

    @property
    def log_weights(self) -> Tensor:
        """Log π, (K,)."""
        return torch.log_softmax(bounded(self.weight_logits, LOG_WEIGHT_BOUND), dim=-1)

    @property
    def alpha(self) -> Tensor:
        """α, prior concentration of d, (K,)."""
        return self.concentration * self.n_components * self.log_weights.exp()

    # ------------------------------------------------------------------ minibatch → arguments

    def in_training(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A minibatch as it is read in training."""
        return tensors

    def _get_inference_input(self, tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
        return {
            "x": tensors.get(SEEN_KEY, tensors[REGISTRY_KEYS.X_KEY]),
            "batch_index": tensors[REGISTRY_KEYS.BATCH_KEY],
            "cat_covs": tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
            "cont_covs": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            "size_factor": tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY),
            "observed": tensors.get(OBSERVED_KEY),
        }

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict
    ) -> dict[str, Tensor | None]:
        return {
            "z": inference_outputs["z"],
            "w": inference_outputs["w"],
            "library": inference_outputs["library"],
            "batch_index": tensors[REGISTRY_KEYS.BATCH_KEY],
            "cat_covs": tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
            "cont_covs": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            "observed": tensors.get(OBSERVED_KEY),
            "label": tensors.get(REGISTRY_KEYS.LABELS_KEY),
        }

    def _conditions(
        self, batch_index: Tensor, cat_covs: Tensor | None, cont_covs: Tensor | None
    ) -> Conditions:
        """One-hot code of every categorical condition, made once per minibatch."""
        codes = [batch_index]
        if cat_covs is not None:
            codes += cat_covs.split(1, dim=1)
        dtype = self.encoder.z_loc.bias.dtype
        # torch's one_hot would have to wait for the GPU to find the largest code
        one_hots = tuple(
            (code.reshape(-1, 1) == torch.arange(n, device=code.device)).to(dtype)
            for code, n in zip(codes, self.n_categories, strict=True)
        )
        if self.embeds_batches:
            point = self.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch_index.long())
            cont_covs = point if cont_covs is None else torch.cat([point, cont_covs], dim=-1)
        return Conditions(one_hots, cont_covs)

    def _conditions_of(self, tensors: dict[str, Tensor]) -> Conditions:
        """Conditions of a minibatch."""
        inputs = self._get_inference_input(tensors)
        return self._conditions(inputs["batch_index"], inputs["cat_covs"], inputs["cont_covs"])

    # ------------------------------------------------------------------------- x, c → q

    @auto_move_data
    def inference(
        self,
        x: Tensor,
        batch_index: Tensor,
        cat_covs: Tensor | None = None,
        cont_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        observed: Tensor | None = None,
        n_samples: int = 1,
        sample: bool = True,
    ) -> dict[str, Normal | Tensor | None]:
        """Posteriors of a minibatch.

        Parameters
        ----------
        x
            Data, ``(n, G)``; dense or, where :attr:`takes_sparse`, CSR.
        batch_index, cat_covs, cont_covs
            Conditions: codes ``(n, 1)`` and ``(n, n_covariates)``, values ``(n, n_covariates)``.
        size_factor
            Size factors ``(n, 1)``, in place of the observed library size.
        observed
            Which genes were measured, ``(G,)``; ``None`` where all were.
        n_samples
            S, number of samples of z and w.
        sample
            ``False`` takes the posterior means for z and w, as prediction does.

        Returns
        -------
        ``qz``, ``qw`` Gaussians with parameters ``(n, L)`` and ``(n, W)``; ``z``, ``w`` samples,
        ``(n, ·)`` or, for S > 1, ``(S, n, ·)``; ``y_logits`` of q(y|z,c) and ``d_concentration``
        of q(d|z,c), ``(n, K)`` or ``(S, n, K)``; ``library`` log library size, ``(n, 1)``. What
        the module does not model (yet) is ``None``.
        """
        c = self._conditions(batch_index, cat_covs, cont_covs)
        encoder_input = self._seen(x, observed, batch_index, cat_covs, cont_covs)
        q_z, q_w = self._encode(encoder_input, c)
        shape = (n_samples,) if n_samples > 1 else ()
        z = q_z.rsample(shape) if sample else q_z.loc
        library, q_l = self._library(x, size_factor, observed), None
        if self.library_size is not None:
            seen = sparse.map_values(torch.log1p, x)  # with the depth, which it is to tell
            q_l = self.library_size.posterior(seen, c, batch_index)
            library = q_l.rsample(shape) if sample else q_l.loc
        outputs = {
            "qz": q_z,
            "z": z,
            "qw": q_w,
            "w": None,
            "y_logits": None,
            "d_concentration": None,
            "library": library,
            "ql": q_l,
        }
        if self.mixture_started:
            y_logits = self._classify(z, encoder_input, c)
            outputs |= {
                "w": q_w.rsample(shape) if sample else q_w.loc,
                "y_logits": y_logits,
                "d_concentration": self._dirichlet_posterior(z, y_logits, c),
            }
        return outputs

    def _encode(self, encoder_input: Tensor, c: Conditions) -> tuple[Normal, Normal | None]:
        """q(z|x,c) and, once the mixture is started, q(w|x,c)."""
        hidden = self.encoder(encoder_input, c)
        if self.mixture_started:
            return self.encoder.q_zw(hidden, c, self._center(c))
        center = 0.0 if self.has_mixture else self._center(c)
        return self.encoder.q_z(hidden, c, center), None

    def _library(self, x: Tensor, size_factor: Tensor | None, observed: Any) -> Tensor:
        """Log of the observed library size, or of the size factor in its place, (n, 1)."""
        if self.use_size_factor:
            size = size_factor * self.size_scale
        else:
            size = sparse.row_sums(x)
        # for values that are not counts this is no library size, and nothing reads it
        return torch.log(size) if self.is_count else size

    @property
    def _is_sum(self) -> bool:
        """Whether library sizes sum over the measured genes: size factors and latents do not."""
        return not self.use_size_factor and self.library_size is None

    @auto_move_data
    def library_of(self, tensors: dict[str, Tensor]) -> tuple[Tensor, bool]:
        """Log library sizes, (n, 1), and whether they sum over the measured genes alone."""
        outputs = self.inference(**self._get_inference_input(tensors), sample=False)
        return outputs["library"], self._is_sum

    @auto_move_data
    def classify(self, z: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Logits of q(y|z,c) at given z, ``(n, K)``, of the cells of a minibatch."""
        inputs = self._get_inference_input(tensors)
        seen = inputs["x"]  # which q(y|z,c) does not read
        if self.classifier_input == "zx":
            names = ("x", "observed", "batch_index", "cat_covs", "cont_covs")
            seen = self._seen(*(inputs[name] for name in names))
        return self._classify(z, seen, self._conditions_of(tensors))

    def _seen(
        self,
        x: Tensor,
        observed: Tensor | None,
        batch_index: Tensor,
        cat_covs: Tensor | None,
        cont_covs: Tensor | None,
    ) -> Tensor:
        """Input of the networks, (n, G).

        Counts that were not measured are what the model expects at the mean of z by those that
        were. Genes that were not measured in training either stay hidden.
        """
        if observed is None or not self.is_count:
            return self._encoder_input(x, observed)
        seen = observed | (self.typical_counts > 0)
        x = sparse.dense(x)
        size = x.sum(-1, keepdim=True)
        with torch.no_grad():
            c = self._conditions(batch_index, cat_covs, cont_covs)
            z = self._encode(self._encoder_input(x, observed), c)[0].loc
            library = torch.log(size.clamp(min=1))
            decoded = self.generative(
                z, None, library, batch_index, cat_covs, cont_covs, observed, only_x=True
            )
            mean = decoded["px"].mean
            # latent libraries and size factors are of all genes
            mean = mean * (size / mean[:, observed].sum(-1, keepdim=True))
        x = torch.where(observed, x, torch.where(seen, mean.to(x.dtype), 0.0))
        return self._encoder_input(x, None if seen.all() else seen)

    def _encoder_input(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Input of the networks from x, (n, G).

        Counts are those of a cell of typical depth, so that z is of composition alone. Genes that
        were not measured are 0 there and the others are scaled up, as input dropout does it with
        genes that it hides in training.
        """
        if self.is_count:
            typical = self.typical_counts if observed is None else self.typical_counts[observed]
            depth = typical.sum()
            size = torch.where(depth > 0, depth / sparse.row_sums(x).clamp(min=1), 1.0)
            x = sparse.map_values(torch.log1p, sparse.scale_rows(x, size))
        if observed is None:
            return x
        return sparse.map_values(lambda values: values / observed.float().mean(), x)

    def _classify(self, z: Tensor, encoder_input: Tensor, c: Conditions) -> Tensor:
        """Logits of q(y|z,c) or q(y|z,x,c), (..., n, K)."""
        if self.classifier_input == "zx":
            z = torch.cat([z, encoder_input.expand(*z.shape[:-1], -1)], dim=-1)
        return self.classifier(z, c)

    def _dirichlet_posterior(self, z: Tensor, y_logits: Tensor, c: Conditions) -> Tensor | None:
        """Concentration of q(d|z,c) for an unlabelled cell, (..., n, K)."""
        if self.prior != "dirichlet":
            return None
        if self.dirichlet_posterior == "conjugate":
            return self.alpha + y_logits.softmax(-1)
        return self.dirichlet_network(z, c)

    # ------------------------------------------------------------------------- z, w, c → p

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        w: Tensor | None,
        library: Tensor,
        batch_index: Tensor,
        cat_covs: Tensor | None = None,
        cont_covs: Tensor | None = None,
        observed: Tensor | None = None,
        label: Tensor | None = None,
        transform_batch: int | None = None,
        only_x: bool = False,
    ) -> dict[str, Any]:
        """Densities of the generative model at samples of the latents.

        Parameters
        ----------
        z, w
            Samples, ``(..., n, L)`` and ``(..., n, W)``.
        library
            Log library sizes, ``(n, 1)``.
        batch_index, cat_covs, cont_covs
            Conditions, as in :meth:`inference`.
        observed
            Which genes the observed library size sums over, ``(G,)``; ``None`` for all.
        label
            Label codes, ``(n, 1)``, by which genes have dispersions with
            ``dispersion="gene-label"``; ``None`` is no label.
        transform_batch
            Batch code to decode every cell with, in place of its own.
        only_x
            Whether to leave out the densities of the latents; w is then not read.

        Returns
        -------
        ``px`` over ``(..., n, G)``; ``pz`` with parameters ``(..., n, K, L)``, or N(0, I) before
        the mixture is started; ``pw`` over ``(..., n, W)`` or ``None``; ``pl`` over ``(n, 1)``,
        ``None`` where the library size is not a latent.
        """
        if transform_batch is not None:
            batch_index = torch.full_like(batch_index, transform_batch)
        c = self._conditions(batch_index, cat_covs, cont_covs)
        p_x = self._density_of_x(z, c, library, observed, label)
        if only_x:
            return {"px": p_x}
        p_l = None if self.library_size is None else self.library_size.prior(batch_index)
        if not self.mixture_started:
            center = 0.0 if self.has_mixture else self._center(c)
            return {"px": p_x, "pz": _unit_normal(z, center), "pw": None, "pl": p_l}
        p_w = _unit_normal(w, self._center(c))
        return {"px": p_x, "pz": self.component_prior(w, c), "pw": p_w, "pl": p_l}

    def _density_of_x(
        self,
        z: Tensor,
        c: Conditions,
        library: Tensor,
        observed: Any,
        label: Tensor | None,
    ) -> Distribution:
        """p(x|z,c) at samples of z, over (..., n, G)."""
        heads = self.decoder(z, c)
        if self._disperses_by_cell:
            *heads, raw_dispersion = heads
        else:
            raw_dispersion = self._dispersion_of(c, label)
        return make_likelihood(
            self.gene_likelihood,
            heads,
            library,
            raw_dispersion,
            observed if self._is_sum else None,
            self._log_dispersion_bound,
        )

    def _dispersion_of(self, c: Conditions, label: Tensor | None) -> Tensor | None:
        """Raw dispersion of the genes, (G,), or of those of each cell, (n, G)."""
        if self.raw_dispersion is None or self.dispersion == "gene":
            return self.raw_dispersion
        if self.dispersion == "gene-batch":
            return c.one_hots[0] @ self.raw_dispersion
        # a cell without a label, which has the last code or −1, has the mean of the labels
        rows = torch.cat([self.raw_dispersion, self.raw_dispersion.mean(0, keepdim=True)])
        return rows[-1] if label is None else rows[label.reshape(-1).long()]

    def _center(self, c: Conditions) -> Tensor | float:
        """Mean of p(w|c), (n, W), or of p(z|c) of a VAE, (n, L); 0 where it is fixed."""
        return 0.0 if self.condition_prior is None else self.condition_prior(c)

    @auto_move_data
    def component_proba(self, z: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """q(y|z,c) of a minibatch, (n, K); labelled cells have their label's component."""
        return self._observe_labels(tensors, self.classify(z, tensors), None)[0]

    @auto_move_data
    def sample_prior(self, component: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Draws of z, (n, L), for given components (n,) of a minibatch.

        They come from p(w|c) p(z|w,y,c), or from p(z) or p(z|c) where there is no mixture.
        """
        if not self.mixture_started:
            z = torch.randn(len(component), self.n_latent, device=component.device)
            return z if self.has_mixture else z + self._center(self._conditions_of(tensors))
        p_z = self.prior_components(tensors)
        loc, scale = rows_of_component(p_z.loc, component), rows_of_component(p_z.scale, component)
        return torch.normal(loc, scale)

    @auto_move_data
    def prior_components(self, tensors: dict[str, Tensor]) -> Normal:
        """p(z|w,y,c) for every y, (n, K, L), at a draw of w ~ p(w|c) for each of a minibatch."""
        n_cells = len(tensors[REGISTRY_KEYS.BATCH_KEY])
        noise = torch.randn(n_cells, self.n_latent_w, device=self.device)
        w = self._center(self._conditions_of(tensors)) + noise
        return self.component_density(w, tensors)

    @auto_move_data
    def prior_log_prob(self, z: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Log density of p(z|w,c) at points, (m, n), at a draw of w for each cell of a minibatch.

        Parameters
        ----------
        z
            Points, ``(m, L)``.
        tensors
            The minibatch of n cells, whose conditions are used.
        """
        points = z.unsqueeze(1)
        if self.mixture_started:
            return dist.mixture_log_prob(points, self.prior_components(tensors), self.log_weights)
        center = 0.0 if self.has_mixture else self._center(self._conditions_of(tensors))
        like = points.expand(-1, len(tensors[REGISTRY_KEYS.BATCH_KEY]), -1)
        return _unit_normal(like, center).log_prob(points).sum(-1)

    @auto_move_data
    def component_density(self, w: Tensor, tensors: dict[str, Tensor]) -> Normal:
        """p(z|w,y,c) for every y at given w, (n, K, L), of the cells of a minibatch."""
        return self.component_prior(w, self._conditions_of(tensors))

    # ------------------------------------------------------------------------- q, p → nats

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        kl_weight: float | Tensor = 1.0,
        classification_weight: float = 1.0,
        guide_weight: float = 0.0,
        monte_carlo_kl: bool = False,
    ) -> LossOutput:
        r"""Negative evidence lower bound, five terms, each ``(n,)`` and in nats.

        .. math::
            -\log p(x|z,c) + \textstyle\sum_k q(y{=}k|z) \mathrm{KL}(q(z|x) \| p(z|w,y{=}k,c))
            + \mathrm{KL}(q(w|x) \| p(w|c)) + \mathbb{E}_{q(d)}\mathrm{KL}(q(y|z) \|
            \mathrm{Cat}(d)) + \mathrm{KL}(q(d|z) \| \mathrm{Dir}(\alpha))

        A labelled cell has its label's component in place of q(y|z), and the classifier learns
        from it by cross-entropy. Classification and guidance are no part of the bound, so they
        stay out of ``kl_local``.

        Parameters
        ----------
        tensors
            The minibatch.
        inference_outputs, generative_outputs
            What :meth:`inference` and :meth:`generative` returned.
        kl_weight
            Weight of the four divergences.
        classification_weight
            Weight of −log q(y*|z) of labelled cells.
        guide_weight
            Weight of the cross-entropy between the starting partition and q(y|z).
        monte_carlo_kl
            Estimate the divergences of z and w at the samples, log q(z|x) − log p(z), in place of
            their closed forms (the first estimator of Kingma and Welling, eq. 6, in place of the
            second, eq. 7). Both have the same mean, except that of z in a mixture, see Notes.

        Notes
        -----
        q(y|z) is evaluated at one sample of z while the KL of z is a closed form over all of
        q(z|x). This is the bound of a q in which y depends on x through an independent draw of z;
        it never exceeds the log likelihood. By Monte Carlo y and z are of the same draw, which is
        the bound of q(z|x) q(y|z); the two means differ by Σ_k Cov(q(y=k|z), log q(z|x)/p(z|k))
        where y is not known. An autoencoder has the reconstruction alone, and no
        bound.

        References
        ----------
        Kingma and Welling 2014, "Auto-encoding variational Bayes".
        """
        q_z, p_z = inference_outputs["qz"], generative_outputs["pz"]
        reconstruction = -self.log_likelihood_of(generative_outputs["px"], tensors)
        reconstruction = _mean_over_samples(reconstruction)
        extra: dict[str, Tensor] = {}
        z, w = (inference_outputs[name] if monte_carlo_kl else None for name in ("z", "w"))
        if self.prior == "none":
            kl = {"kl_z": torch.zeros_like(reconstruction)}
        elif not self.mixture_started:
            kl = {"kl_z": dist.normal_kl(q_z, p_z, z)}
        else:
            y_logits = inference_outputs["y_logits"]
            q_y, concentration, label = self._observe_labels(
                tensors, y_logits, inference_outputs["d_concentration"]
            )
            kl_w = dist.normal_kl(inference_outputs["qw"], generative_outputs["pw"], w)
            kl = {"kl_z": dist.mixture_kl(q_z, p_z, q_y, z), "kl_w": kl_w}
            if self.prior == "dirichlet" and self.dirichlet_posterior == "conjugate":
                # the sum of both is simpler than each, and has all of the gradient
                with torch.no_grad():
                    kl["kl_y"] = dist.categorical_dirichlet_kl(q_y, concentration)
                kl["kl_d"] = dist.conjugate_dirichlet_bound(q_y, self.alpha) - kl["kl_y"]
            elif self.prior == "dirichlet":
                kl["kl_y"] = dist.categorical_dirichlet_kl(q_y, concentration)
                kl["kl_d"] = dist.dirichlet_kl(concentration, self.alpha)
            else:
                kl["kl_y"] = dist.categorical_kl(q_y, self.log_weights)
            if label is not None:
                extra["classification"] = _masked_cross_entropy(y_logits, label)
            if GUIDE_KEY in tensors:
                extra["guide"] = _masked_cross_entropy(y_logits, tensors[GUIDE_KEY])
        kl = {name: _mean_over_samples(value) for name, value in kl.items()}
        loss = (reconstruction + kl_weight * sum(kl.values())).mean()
        if self.library_size is not None:
            # as in scvi-tools it has its full weight from the start
            q_l, p_l = inference_outputs["ql"], generative_outputs["pl"]
            kl["kl_l"] = dist.normal_kl(q_l, p_l)
            loss = loss + kl["kl_l"].mean()
        if "classification" in extra:
            loss = loss + classification_weight * extra["classification"]
        if "guide" in extra:
            loss = loss + guide_weight * extra["guide"]
        means = {name: value.mean().detach() for name, value in kl.items()}
        return LossOutput(
            loss=loss,
            reconstruction_loss=reconstruction,
            kl_local=kl,
            extra_metrics=means | {name: value.detach() for name, value in extra.items()},
        )

    def log_likelihood_of(self, p_x: Distribution, tensors: dict[str, Tensor]) -> Tensor:
        """Log p(x|z,c) of the cells of a minibatch, ``(..., n)``, in nats."""
        return log_likelihood(p_x, tensors[REGISTRY_KEYS.X_KEY], tensors.get(OBSERVED_KEY))

    def _observe_labels(
        self, tensors: dict[str, Tensor], y_logits: Tensor, concentration: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """q(y) and q(d) with the components of labelled cells put in place of the classifier's.

        The label comes back as codes (n,), −1 where a cell has none, or None without labels.
        """
        q_y = y_logits.softmax(-1)  # (..., n, K)
        if not self.n_labels:
            return q_y, concentration, None
        label = tensors[REGISTRY_KEYS.LABELS_KEY].squeeze(-1).long()
        is_labelled = label < self.n_labels  # the unlabelled category is the last code
        observed = one_hot(label.clamp(max=self.n_labels - 1), self.n_components).to(q_y.dtype)
        q_y = torch.where(is_labelled.unsqueeze(-1), observed, q_y)
        if concentration is not None and self.dirichlet_posterior == "conjugate":
            concentration = self.alpha + q_y
        return q_y, concentration, torch.where(is_labelled, label, -1)

    # ------------------------------------------------------------------------- what users ask

    @torch.inference_mode()
    @auto_move_data
    def sample(
        self,
        tensors: dict[str, Tensor],
        n_samples: int = 1,
        generative_kwargs: dict | None = None,
    ) -> Tensor:
        """Draws from the posterior predictive, ``(n, G)`` or ``(n, G, S)``, on the CPU."""
        _, generative_outputs = self.forward(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=generative_kwargs,
            compute_loss=False,
        )
        draws = generative_outputs["px"].sample()
        return (draws if n_samples == 1 else draws.permute(1, 2, 0)).cpu()

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int = 25,
    ) -> Tensor | float:
        r"""Importance-sampled log p(x|c), with z and w drawn from q and y, d summed out.

        .. math::
            \log \tfrac{1}{S} \sum_s \frac{p(x|z_s,c)\, p(w_s|c) \sum_k \pi_k p(z_s|w_s,k,c)}
            {q(z_s|x,c)\, q(w_s|x,c)}

        Parameters
        ----------
        tensors
            The minibatch.
        n_mc_samples
            S, number of samples.
        return_mean
            Whether to return the mean over the minibatch, or one value per cell.
        n_mc_samples_per_pass
            Number of samples held in memory at once.

        Returns
        -------
        Tensor ``(n,)`` in nats, on the CPU, or its mean.
        """
        if self.prior == "none":
            raise NotImplementedError(
                "An autoencoder (prior='none') has no density of z, so there is no likelihood of "
                "x. Use prior='normal' for a VAE."
            )

        def log_ratio(n_samples: int) -> Tensor:
            q, p = self.forward(
                tensors, inference_kwargs={"n_samples": n_samples}, compute_loss=False
            )
            ratio = self.log_likelihood_of(p["px"], tensors) - q["qz"].log_prob(q["z"]).sum(-1)
            if self.library_size is not None:
                log_p_l, log_q_l = (d.log_prob(q["library"]) for d in (p["pl"], q["ql"]))
                ratio = ratio + (log_p_l - log_q_l).sum(-1)
            if not self.mixture_started:
                return ratio + p["pz"].log_prob(q["z"]).sum(-1)
            ratio = ratio + dist.mixture_log_prob(q["z"], p["pz"], self.log_weights)
            ratio = ratio + p["pw"].log_prob(q["w"]).sum(-1)
            return ratio - q["qw"].log_prob(q["w"]).sum(-1)

        value = importance_sampled(log_ratio, n_mc_samples, n_mc_samples_per_pass)
        return value.mean().item() if return_mean else value.cpu()


def hidden_widths(n_hidden: Widths, n_layers: int) -> tuple[int, ...]:
    """Units of each hidden layer of the encoder.

    Examples
    --------
    >>> hidden_widths(128, 2), hidden_widths((512, 256), 1), hidden_widths(128, 0)
    ((128, 128), (512, 256), ())
    """
    if isinstance(n_hidden, Sequence | np.ndarray):
        if not len(n_hidden):
            raise ValueError("n_hidden must name at least one width; n_layers=0 makes none.")
        for width in n_hidden:
            check_whole(1, n_hidden=width)
        if n_layers != 1:
            raise ValueError(
                f"n_hidden={tuple(n_hidden)} says how many hidden layers there are; leave out "
                f"n_layers={n_layers}."
            )
        return tuple(n_hidden)
    check_whole(1, n_hidden=n_hidden)
    check_whole(0, n_layers=n_layers)
    return (n_hidden,) * n_layers


def _last_width(n_hidden: Any, widths: tuple[int, ...]) -> int:
    """Width of the smaller networks: that of the last hidden layer of the encoder, if any."""
    return widths[-1] if widths else n_hidden


def _unit_normal(like: Tensor, center: Tensor | float) -> Normal:
    """N(center, I) over the shape of ``like``."""
    scale = torch.ones_like(like)
    return Normal(center * scale, scale, validate_args=False)


def rows_of_component(values: Tensor, component: Tensor) -> Tensor:
    """Rows of the given components, (n, K, L) and (n,) → (n, L)."""
    return values[torch.arange(len(component), device=values.device), component]


def _mean_over_samples(value: Tensor) -> Tensor:
    """Mean over samples, (S, n) or (n,) to (n,)."""
    return value.mean(0) if value.dim() == 2 else value


def _masked_cross_entropy(y_logits: Tensor, target: Tensor) -> Tensor:
    """Mean over all cells of −log q(y=target|z), of codes (n,) or probabilities (n, K).

    Cells with code −1, or probabilities of 0, count as 0.
    """
    of_all = target.expand(y_logits.shape[:-1] + target.shape[1:])
    of_all = of_all.flatten(0, y_logits.dim() - 2)
    total = cross_entropy(y_logits.flatten(0, -2), of_all, ignore_index=-1, reduction="sum")
    return total / len(of_all)
