"""Starting a module: the decoder at the means of x, components and classifier at a partition.

:mod:`scgmvae.model.start` chooses the cells and their partition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scgmvae.data.keys import SHARED_KEYS
from scgmvae.distributions.families import FAMILIES
from scgmvae.train.devices import start_on_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from scipy import sparse

    from scgmvae.module.cgmvae import CGMVAE
    from scgmvae.module.joint import JointCGMVAE
    from scgmvae.train.checkpoints import Checkpoints
    from scgmvae.train.plan import StagedTrainingPlan

__all__ = [
    "MixtureStart",
    "Started",
    "start_decoder",
    "start_decoders",
    "start_mixture",
]

N_PEAKS = 10_000
"""Number of features from which on the share of cells that show one can be below 0.1 %."""


class Started(NamedTuple):
    """What a mixture was started from."""

    guide: NDArray
    """Component of each cell, (n,), −1 where it has none; or, where labels say how sure they are,
    probabilities of the components, (n, K), 0 where it has none."""
    split_tree: dict[str, NDArray] | None
    """Tree of the tested splits whose leaves are the components, if they are."""


@torch.no_grad()
def start_decoder(module: CGMVAE, mean: NDArray[np.floating]) -> None:
    """Set the decoder's bias to the average profile of the cells, so that it learns differences.

    Parameters
    ----------
    module
        A module with fresh weights.
    mean
        Mean of x over the training cells, ``(G,)``.
    """
    means = torch.as_tensor(np.asarray(mean), dtype=torch.float32)
    module.decoder.start_at(_start_bias(module.gene_likelihood, means))


def start_decoders(
    module: JointCGMVAE,
    mean: NDArray[np.floating],
    x: sparse.csr_matrix,
    measured: NDArray[np.bool_],
) -> None:
    """Set the bias of the decoder of each modality, as :func:`start_decoder` does.

    Parameters
    ----------
    module
        A module with fresh weights.
    mean
        Mean of x over the training cells, ``(G,)``.
    x
        Some of the training cells, ``(n, G)``, by which background and foreground of proteins are
        told apart.
    measured
        Whether each of these values was measured, ``(n, G)``.
    """
    means = torch.as_tensor(np.asarray(mean), dtype=torch.float32)
    biases = {}
    for modality, (first, end) in zip(module.modalities, module.ranges, strict=True):
        if modality.likelihood == "protein":
            levels = _levels(x[:, first:end].toarray(), measured[:, first:end])
            biases[modality.name] = [torch.as_tensor(level).float() for level in levels]
        else:
            biases[modality.name] = [_start_bias(modality.likelihood, means[first:end])]
    module.start_decoders(biases)


def _start_bias(likelihood: str, means: Tensor) -> Tensor:
    """Bias of a decoder at which the expectation of x is the mean of the cells, (G,)."""
    if FAMILIES[likelihood].is_count:
        if not means.any():
            return torch.zeros_like(means)
        smallest = means[means > 0].min()
        return torch.log(means.clamp(min=smallest / 10) / means.sum())
    if likelihood == "bernoulli":
        smallest = 1e-4 if len(means) > N_PEAKS else 1e-3
        return torch.logit(means.clamp(smallest, 1 - smallest))
    return means


def _levels(
    counts: NDArray[np.floating], measured: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean counts of each protein below and above a threshold, each (P,).

    The threshold of a protein is between the means of log(1 + counts) of the two groups that it
    makes (k-means with two centres).
    """
    logs = np.log1p(counts)
    threshold = _mean_where(logs, measured, np.zeros(logs.shape[1]))
    for _ in range(20):
        is_high = (logs > threshold) & measured
        low = _mean_where(logs, measured & ~is_high, threshold)
        threshold = (low + _mean_where(logs, is_high, threshold)) / 2
    is_high = (logs > threshold) & measured
    mean = _mean_where(counts, measured, np.zeros(counts.shape[1]))
    low = _mean_where(counts, measured & ~is_high, mean).clip(min=0.05)
    return low, np.maximum(_mean_where(counts, is_high, mean), 1.5 * low)


def _mean_where(
    values: NDArray[np.floating], mask: NDArray[np.bool_], otherwise: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Column means over the chosen values, or another value where there are none."""
    n = mask.sum(0)
    return np.where(n > 0, (values * mask).sum(0) / np.maximum(n, 1), otherwise)


def start_mixture(
    module: CGMVAE,
    tensors: dict[str, Tensor],
    posteriors: dict[str, NDArray[np.float32]],
    partition: Tensor,
    n_components: int,
    guide: Tensor | None = None,
) -> None:
    """Fit components and classifier to a partition of the latent.

    Parameters
    ----------
    module
        A pretrained module.
    tensors
        The training cells as one minibatch; x can be without columns where the classifier does not
        see it.
    posteriors
        Means ``z_loc`` and variances ``z_var`` of the cells' z, ``(n, L)``.
    partition
        Codes of the cells' groups, ``(n,)``, in 0 … K − 1, or −1 for cells that belong to no
        group.
    n_components
        K; a component without cells starts at a random place, drawn from the spread of the cells.
    guide
        Probabilities of the components, ``(n, K)``, to which the classifier is fitted in place of
        the partition where they are known.
    """
    device = module.device
    z = torch.from_numpy(posteriors["z_loc"]).to(device)
    z_var = torch.from_numpy(posteriors["z_var"]).to(device)
    partition = partition.to(device)
    module.set_components(n_components)
    with torch.no_grad():
        _place_components(module, z, z_var, partition)
    target = partition if guide is None else guide.to(device)
    _fit_classifier(module, z, tensors, partition, target)
    module.mixture_started = True


def _place_components(module: CGMVAE, z: Tensor, z_var: Tensor, partition: Tensor) -> None:
    """Set p(z|w,y,c) and π to the means, spreads and weights of the clusters."""
    n_components = module.n_components
    variance = z.var(0, unbiased=False) + z_var.mean(0)
    loc = z.mean(0) + variance.sqrt() * torch.randn(n_components, z.shape[1], device=z.device)
    scale = variance.sqrt().expand_as(loc).clone()
    for k in torch.unique(partition[partition >= 0]).tolist():
        members = partition == k
        n_members = int(members.sum())
        # A cluster of a few cells has no spread of its own: shrink towards the overall one.
        trust = n_members / (n_members + 10)
        cluster_variance = z[members].var(0, unbiased=False) + z_var[members].mean(0)
        loc[k] = z[members].mean(0)
        scale[k] = (trust * cluster_variance + (1 - trust) * variance).sqrt()
    module.component_prior.start_at(loc, scale)
    if module.weight_logits.requires_grad:
        sizes = torch.bincount(partition[partition >= 0], minlength=n_components)
        log_sizes = torch.log(sizes + 1.0)
        module.weight_logits.copy_(log_sizes - log_sizes.mean())


def _fit_classifier(
    module: CGMVAE,
    z: Tensor,
    tensors: dict[str, Tensor],
    partition: Tensor,
    target: Tensor,
    n_steps: int = 300,
    batch_size: int = 512,
) -> None:
    """Fit q(y|z,c) to codes or probabilities of the cells in a group, by cross-entropy."""
    grouped = (partition >= 0).nonzero().squeeze(-1).cpu()
    optimizer = torch.optim.Adam(module.classifier.parameters(), lr=5e-3)
    for _ in range(n_steps):
        rows = grouped[torch.randint(len(grouped), (min(batch_size, len(grouped)),))]
        batch = {
            name: (values if name in SHARED_KEYS else values[rows]).to(z.device)
            for name, values in tensors.items()
        }
        logits = module.classify(z[rows], batch)
        optimizer.zero_grad()
        cross_entropy(logits, target[rows]).backward()
        optimizer.step()


class MixtureStart(pl.Callback):
    """Starts the mixture at the first epoch of the joint stage.

    Parameters
    ----------
    start
        Function that starts the mixture.
    keep_tree
        Function that is given the tree of the tested splits, in every process.
    checkpoints
        Callback that writes a checkpoint once the mixture is started.
    """

    def __init__(
        self,
        start: Callable[[], Started],
        keep_tree: Callable[[dict[str, NDArray] | None], None],
        checkpoints: Checkpoints | None = None,
    ):
        self.start = start
        self.keep_tree = keep_tree
        self.checkpoints = checkpoints

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Start the mixture, give its parameters to the optimiser and its partition to the loader.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        module = pl_module.module
        is_due = trainer.current_epoch >= pl_module.pretrain_epochs
        if module.mixture_started or not module.has_mixture or not is_due:
            return
        started = start_on_all(trainer, module, self.start)
        self.keep_tree(started.split_tree)
        trainer.datamodule.guide_by(module, started.guide)
        trainer.strategy.setup_optimizers(trainer)
        # pretraining has another bound, so its best value is not comparable with later ones
        for callback in trainer.checkpoint_callbacks:
            callback.best_k_models.clear()
        if self.checkpoints is not None:
            self.checkpoints.write(trainer, pl_module)
