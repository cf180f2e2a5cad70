r"""The c*GMVAE of several modalities: one z, w, y, d, and a likelihood for each modality.

.. math::
    p(w|c)\, p(d)\, p(y|d)\, p(z|w,y,c)\, \prod_m p(x_m|z,c)

The features of all modalities stand side by side in x. A *panel* is a set of features that were
measured together: cells that lack a modality, and batches that lack some proteins, have panels of
their own, and what a panel lacks has no part in the likelihood and is not seen by the encoder.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from scgmvae.checks import check_positive, check_rate, listed
from scgmvae.data.keys import GUIDE_KEY, PANEL_KEY, PANELS_KEY
from scgmvae.distributions.families import FAMILIES, JOINT
from scgmvae.distributions.joint import Modality, SideBySide
from scgmvae.distributions.likelihoods import (
    LOG_DISPERSION_BOUND,
    Bernoulli,
    log_likelihood,
    make_likelihood,
)
from scgmvae.distributions.proteins import make_protein_likelihood
from scgmvae.module.cgmvae import CGMVAE, GaussianScale
from scgmvae.module.panels import Panels, PanelTable, with_each_alone
from scgmvae.nn import sparse
from scgmvae.nn.bounds import inverse_bounded_exp
from scgmvae.nn.experts import Experts, Seen
from scgmvae.nn.layers import Conditions, ConditionSizes, Trunk
from scgmvae.nn.networks import Decoder, ProteinDecoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.distributions import Distribution, Normal

    from scgmvae.distributions.families import Likelihood

__all__ = ["JointCGMVAE"]

HIDDEN_SHARE = 0.03
"""Share of the cells of which, in training, one modality alone is read, drawn anew in every step.
Without it no modality of whole cells would learn to stand for a cell by itself; with more of it
each learns by heart what it does not show of the training cells."""

FEW_FEATURES = 256
"""Number of features up to which the values of a modality take less time with their zeros."""

_BLOCKS = WeakTensorKeyDictionary()
"""A CSR minibatch x → its blocks of columns, as long as x lives: a step needs them three times."""


class JointCGMVAE(CGMVAE):
    """c*GMVAE of several modalities.

    Parameters
    ----------
    n_input
        G, number of features of all modalities together.
    *args, **kwargs
        As in :class:`~scgmvae.CGMVAE`, without images and latent library sizes.
    modalities
        Name, likelihood and number of features of each modality, in their order in x.
    modality_weights
        Name of a modality → weight of its log likelihood; those that are left out have 1.
    hidden_share
        Share of the cells of which, in training, one modality alone is read.

    Raises
    ------
    ValueError
        If a setting is not one of its choices, or is out of range.

    References
    ----------
    Wu and Goodman 2018, "Multimodal generative models for scalable weakly-supervised learning"
    (product of experts); Gayoso et al. 2021, "Joint probabilistic modeling of single-cell
    multi-omic data with totalVI" (proteins); Ashuach et al. 2022, "PeakVI" (accessibility).
    """

    _likelihoods = (JOINT,)

    def __init__(
        self,
        n_input: int,
        *args: Any,
        modalities: Sequence[Modality | Sequence[Any]],
        modality_weights: Mapping[str, float] | None = None,
        hidden_share: float = HIDDEN_SHARE,
        likelihood: Any = JOINT,
        **kwargs: Any,
    ):
        self.modalities = tuple(Modality(*modality) for modality in modalities)
        names = [modality.name for modality in self.modalities]
        unknown = set(modality_weights or {}) - set(names)
        if unknown:
            raise ValueError(
                f"modality_weights must name modalities of the model, which are {listed(names)}, "
                f"but it names {listed(sorted(unknown))}."
            )
        weights = dict.fromkeys(names, 1.0) | dict(modality_weights or {})
        check_positive(**{f"modality_weights of {name}": w for name, w in weights.items()})
        check_rate(hidden_share=hidden_share)
        self.weights, self.hidden_share = [weights[name] for name in names], hidden_share
        self.sizes_of_modalities = [modality.n_features for modality in self.modalities]
        ends = list(accumulate(self.sizes_of_modalities))
        self.ranges = list(pairwise([0, *ends]))
        """First column of each modality in x, and the one after its last."""
        super().__init__(n_input, *args, likelihood=likelihood, **kwargs)
        every = torch.ones(1, n_input, dtype=torch.bool)
        self.register_buffer("every_feature", every, persistent=False)

    # -------------------------------------------------------------------------- being made

    def _check_images(self, encoder: str) -> None:
        """Raise ``ValueError`` for settings that a joint model does not have."""
        refused = {
            "encoder": (encoder, "mlp"),
            "image_shape": (self.image_shape, None),
            "classifier_input": (self.classifier_input, "z"),
            "gaussian_scale": (self.gaussian_scale, "gene"),
        }
        if self.dispersion == "gene-cell":
            refused["dispersion"] = (self.dispersion, "gene")
        for name, (value, wanted) in refused.items():
            if value != wanted:
                raise ValueError(
                    f"A model of several modalities has {name}={wanted!r} alone, but it is "
                    f"{value!r}. Leave it out."
                )

    def _checked_scale(self, gaussian_scale: GaussianScale | float | None) -> Any:
        return "gene" if gaussian_scale is None else gaussian_scale

    def _make_library(self, *args: Any) -> Any:
        raise ValueError(
            "use_observed_lib_size=False is for counts of one modality, but the model has "
            f"{listed([modality.name for modality in self.modalities])}. Leave it out."
        )

    def _make_networks(
        self,
        encoder: str,
        encode_covariates: bool,
        widths: tuple[int, ...],
        dropout_rate: float,
        input_dropout_rate: float,
    ) -> None:
        """Make an encoder and a decoder for each modality."""
        sizes = self.sizes if encode_covariates else ConditionSizes()
        self.encoder = Experts(
            [
                self._encoder_on(
                    Trunk(size, sizes, widths, dropout_rate), sizes, input_dropout_rate
                )
                for size in self.sizes_of_modalities
            ]
        )
        decoders: list[Decoder] = []
        for modality in self.modalities:
            n, shape = modality.n_features, widths[::-1]
            if modality.likelihood == "protein":
                decoders.append(ProteinDecoder(self.n_latent, self.sizes, n, shape))
            else:
                n_heads = FAMILIES[modality.likelihood].n_heads
                decoders.append(Decoder(self.n_latent, self.sizes, n, n_heads, shape))
        self.decoder = nn.ModuleList(decoders)

    def _make_dispersion(self) -> nn.Parameter:
        """Log inverse dispersion, or log standard deviation, of all features, (G,) or (rows, G).

        Likelihoods without any leave theirs as they are.
        """
        starts = [FAMILIES[modality.likelihood].start_dispersion for modality in self.modalities]
        values = [
            torch.full((size,), 1.0 if start is None else start)
            for size, start in zip(self.sizes_of_modalities, starts, strict=True)
        ]
        raw = inverse_bounded_exp(torch.cat(values), LOG_DISPERSION_BOUND)
        return nn.Parameter(raw.expand(*self._dispersion_rows, -1).clone())

    def _dispersions_of_counts(self) -> list[Tensor]:
        """Log inverse dispersions of the modalities that are counts."""
        return [
            self.raw_dispersion[..., first:end]
            for modality, (first, end) in zip(self.modalities, self.ranges, strict=True)
            if FAMILIES[modality.likelihood].is_count
        ]

    @property
    def is_count(self) -> bool:
        """Whether no modality has values below zero, so that x can be drawn as counts are."""
        return all(modality.likelihood != "gaussian" for modality in self.modalities)

    @property
    def _disperses_by_cell(self) -> bool:
        return False

    @property
    def takes_sparse(self) -> bool:
        """Whether minibatches may hold x as a CSR tensor."""
        return True

    # ---------------------------------------------------------------- minibatch → arguments

    def _panels(self, tensors: dict[str, Tensor]) -> Panels | None:
        """Panels of the cells of a minibatch; ``None`` if all cells have all features."""
        if PANELS_KEY not in tensors:
            return None
        return self._panels_of(tensors[PANEL_KEY].reshape(-1).long(), tensors[PANELS_KEY])

    def _panels_of(self, code: Tensor, holds: Tensor) -> Panels:
        """Panels of cells, given that of each, (n,), and what each panel holds, (P, G)."""
        return Panels(code, PanelTable.of(holds, self.ranges, self.typical_counts))

    def in_training(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A minibatch in which some cells have one of their modalities alone, drawn anew.

        Such a cell counts as one that lacks the others: its encoder does not see them, and they
        are not reconstructed either. If they were, the encoder of the one modality would learn
        the others of the training cells by heart.
        """
        n, n_modalities = len(tensors[REGISTRY_KEYS.BATCH_KEY]), len(self.modalities)
        if not self.hidden_share or n_modalities == 1:
            return tensors
        device = tensors[REGISTRY_KEYS.BATCH_KEY].device
        panels = self._panels(tensors)
        if panels is None:
            code = torch.zeros(n, dtype=torch.int64, device=device)
            panels = self._panels_of(code, self.every_feature)
        holds = panels.table.holds
        drawn = torch.rand(n, n_modalities, device=device).where(panels.has(), -1.0)
        is_hidden = torch.rand(n, device=device) < self.hidden_share
        number = torch.where(is_hidden, 1 + drawn.argmax(1), 0)
        tensors = tensors | {
            PANEL_KEY: (panels.code + len(holds) * number).unsqueeze(1),
            PANELS_KEY: with_each_alone(holds, self.ranges),
        }
        if GUIDE_KEY in tensors:  # nor is the cluster to be learned by heart
            guide = tensors[GUIDE_KEY]
            if guide.dim() == 1:
                tensors[GUIDE_KEY] = guide.masked_fill(is_hidden, -1)
            else:
                tensors[GUIDE_KEY] = guide.masked_fill(is_hidden.unsqueeze(-1), 0)
        return tensors

    def _get_inference_input(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return super()._get_inference_input(tensors) | {"observed": self._panels(tensors)}

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict
    ) -> dict[str, Any]:
        inputs = super()._get_generative_input(tensors, inference_outputs)
        return inputs | {"observed": self._panels(tensors)}

    # ------------------------------------------------------------------------- x, c → q

    def _blocks_of(self, x: Tensor) -> list[Tensor]:
        """The columns of each modality in x, each (n, G_m)."""
        sizes = self.sizes_of_modalities
        if not sparse.is_sparse(x) or not torch.is_grad_enabled():
            return sparse.columns_split(x, sizes)  # dense blocks are views, which cost nothing
        state = (tuple(sizes), x.values()._version)
        kept, blocks = _BLOCKS.get(x, (None, []))
        if kept != state:
            blocks = [
                sparse.dense(block) if block.shape[1] <= FEW_FEATURES else block
                for block in sparse.columns_split(x, sizes)
            ]
            _BLOCKS[x] = state, blocks
        return blocks

    def _seen(self, x: Tensor, observed: Panels | None, *_: Tensor | None) -> Seen:
        """Input of the encoders, and which of them each cell has."""
        blocks = self._blocks_of(x)
        inputs = [self._input_of(m, block, observed) for m, block in enumerate(blocks)]
        return Seen.of(inputs, None if observed is None else observed.has())

    def _input_of(self, m: int, x: Tensor, observed: Panels | None) -> Tensor:
        """Input of the encoder of a modality, (n, G_m), for cells of typical depth."""
        modality = self.modalities[m]
        if modality.likelihood == "gaussian":
            return self._scaled_up(m, x, observed)
        if modality.likelihood != "protein":
            depth = self._typical_depth(m, observed)
            size = torch.where(depth > 0, depth / sparse.row_sums(x).clamp(min=1), 1.0)
            x = sparse.scale_rows(x, size)
        if modality.likelihood != "bernoulli":
            x = sparse.map_values(torch.log1p, x)
        return self._scaled_up(m, x, observed)

    def _scaled_up(self, m: int, x: Tensor, observed: Panels | None) -> Tensor:
        """The measured features, scaled up as input dropout scales those that it leaves."""
        first, end = self.ranges[m]
        if observed is None or not observed.table.is_partial[m]:
            return x
        share = observed.table.holds[:, first:end].float().mean(1)[observed.code]
        return sparse.scale_rows(x, 1 / share.clamp(min=1e-6).unsqueeze(1))

    def _typical_depth(self, m: int, observed: Panels | None) -> Tensor:
        """Sum of the measured features of a modality in a typical cell, (n, 1) or ()."""
        if observed is None:
            first, end = self.ranges[m]
            return self.typical_counts[first:end].sum()
        return observed.table.depth[:, m][observed.code].unsqueeze(1)

    def _encode(self, encoder_input: Seen, c: Conditions) -> tuple[Normal, Normal | None]:
        """q(z|x,c) and, once the mixture is started, q(w|x,c)."""
        if self.mixture_started:
            return self.encoder.q_zw(encoder_input, c, self._center(c))
        center = 0.0 if self.has_mixture else self._center(c)
        return self.encoder.q_z(encoder_input, c, center), None

    def _library(self, x: Tensor, size_factor: Tensor | None, observed: Panels | None) -> Tensor:
        """Log depth of each cell in each modality, (n, M).

        It is the log number of counts; of ``"bernoulli"`` the log ratio to a typical cell. Cells
        without the modality have typical depth, so that what they lack can be predicted.
        """
        logs = []
        blocks = self._blocks_of(x)
        for m, (modality, block) in enumerate(zip(self.modalities, blocks, strict=True)):
            size, typical = sparse.row_sums(block), self._typical_depth(m, None).clamp(min=1)
            has = size > 0
            if observed is not None:
                has = has & observed.table.has[:, m][observed.code].unsqueeze(1)
            log_size = torch.where(has, size, typical).clamp(min=1e-6).log()
            is_ratio = modality.likelihood == "bernoulli"
            logs.append(log_size - typical.log() if is_ratio else log_size)
        return torch.cat(logs, dim=1)

    def sees_nothing(self, observed: Panels | None) -> Tensor:
        """Whether no feature of each cell is seen, (n, 1), or () where all cells are whole."""
        if observed is None:
            return torch.zeros((), dtype=torch.bool, device=self.device)
        return ~observed.table.has.any(1)[observed.code].unsqueeze(1)

    # ------------------------------------------------------------------------- z, c → p

    def _density_of_x(
        self,
        z: Tensor,
        c: Conditions,
        library: Tensor,
        observed: Panels | None,
        label: Tensor | None,
    ) -> SideBySide:
        """p(x|z,c) at samples of z, over (..., n, G).

        One library size for all modalities, (n, 1), is that of the counts; peaks then have
        typical depth.
        """
        raw_dispersion = self._dispersion_of(c, label)
        parts = []
        for m, (modality, decoder) in enumerate(zip(self.modalities, self.decoder, strict=True)):
            first, end = self.ranges[m]
            dispersion, heads = raw_dispersion[..., first:end], decoder(z, c)
            is_given = library.shape[-1] == len(self.modalities)
            size = library[..., m : m + 1] if is_given else library
            if modality.likelihood == "protein":
                parts.append(make_protein_likelihood(heads, dispersion))
            elif modality.likelihood == "bernoulli":
                logits = heads[0] + size if is_given else heads[0]
                peaks = Bernoulli(logits=logits, validate_args=False)
                peaks.typical_logits = heads[0]
                parts.append(peaks)
            else:
                if FAMILIES[modality.likelihood].is_count:
                    size = size - self._log_measured_share(heads[0], m, observed)
                kind = cast("Likelihood", modality.likelihood)
                parts.append(make_likelihood(kind, heads, size, dispersion))
        return SideBySide(parts)

    def _log_measured_share(
        self, logits: Tensor, m: int, observed: Panels | None
    ) -> Tensor | float:
        """Log share of a cell's counts that are of measured genes, (..., n, 1).

        Cells without the modality have none that were measured, and their depth is whole.
        """
        first, end = self.ranges[m]
        if observed is None or not observed.table.is_partial[m]:
            return 0.0
        mask = observed.mask(first, end)
        mask = mask | ~mask.any(1, keepdim=True)
        return (torch.softmax(logits, dim=-1) * mask).sum(-1, keepdim=True).log()

    # ------------------------------------------------------------------------- q, p → nats

    def log_likelihoods_of(self, p_x: SideBySide, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Log p(x_m|z,c) of each modality, each ``(..., n)``, in nats, 0 where it is missing."""
        blocks = self._blocks_of(tensors[REGISTRY_KEYS.X_KEY])
        panels, values = self._panels(tensors), []
        for m, (part, x) in enumerate(zip(p_x.parts, blocks, strict=True)):
            if panels is None:
                values.append(log_likelihood(part, x))
            elif panels.table.is_partial[m]:
                log_prob = part.log_prob(sparse.dense(x))
                values.append(log_prob.where(panels.mask(*self.ranges[m]), 0.0).sum(-1))
            else:
                is_there = panels.table.has[:, m][panels.code]
                values.append(log_likelihood(part, x).where(is_there, 0.0))
        return values

    def log_likelihood_of(self, p_x: Distribution, tensors: dict[str, Tensor]) -> Tensor:
        """Log p(x|z,c) of the cells of a minibatch, ``(..., n)``: the weighted modalities' sum."""
        values = self.log_likelihoods_of(p_x, tensors)
        return sum(w * value for w, value in zip(self.weights, values, strict=True))

    # ------------------------------------------------------------------------- the start

    @torch.no_grad()
    def start_decoders(self, biases: Mapping[str, Sequence[Tensor]]) -> None:
        """Start each decoder at typical cells.

        Parameters
        ----------
        biases
            Name of the modality → bias of its decoder, ``(G_m,)``; of proteins mean counts of
            background and foreground, each ``(P,)``.
        """
        for modality, decoder in zip(self.modalities, self.decoder, strict=True):
            if modality.likelihood == "protein":
                decoder.start_at_levels(*biases[modality.name])
            else:
                decoder.start_at(biases[modality.name][0])
