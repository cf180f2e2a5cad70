"""Training plans: the loss of a step, and the schedules of its weights and its length."""

from __future__ import annotations

from collections import defaultdict
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.train import TrainingPlan
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from scgmvae.checks import check_at_least, check_share, check_whole, listed
from scgmvae.data.images import distorted
from scgmvae.data.keys import GUIDE_KEY, SEEN_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scvi.module.base import BaseModuleClass, LossOutput
    from torch.optim import Optimizer

    from scgmvae.module.cgmvae import CGMVAE

__all__ = ["STEP_LENGTH", "CheckedPlan", "StagedTrainingPlan", "declined"]

STEP_LENGTH = 1e-3
"""Step length of Adam with minibatches of 128 cells."""


def declined(done: float, share: float) -> float:
    """Factor of the step length, which falls linearly from 1 to 0 over the end of a training.

    Parameters
    ----------
    done
        Share of the training that is done.
    share
        Share of the training over which the factor falls, above 0 and at most 1.

    Examples
    --------
    >>> [declined(done, share=0.5) for done in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return min(1.0, max(0.0, 1 - done) / share)


class CheckedPlan(TrainingPlan):
    """scvi-tools' training plan with its settings checked, and a fused Adam.

    Parameters
    ----------
    module
        The module.
    lr, weight_decay, eps
        Settings of the Adam optimiser: step length, weight decay and epsilon.
    **kwargs
        Further arguments of :class:`scvi.train.TrainingPlan`.

    Raises
    ------
    TypeError
        If a setting is unknown.
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self,
        module: BaseModuleClass,
        *,
        lr: float,
        weight_decay: float,
        eps: float,
        **kwargs: Any,
    ):
        super().__init__(module, lr=lr, weight_decay=weight_decay, eps=eps, **kwargs)
        unknown = self.loss_kwargs.keys() - signature(module.loss).parameters.keys()
        if unknown:
            raise TypeError(
                "plan_kwargs has settings that neither the training plan nor the loss takes: "
                f"{listed(sorted(unknown))}."
            )
        check_at_least(
            0,
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            min_kl_weight=self.min_kl_weight,
            max_kl_weight=self.max_kl_weight,
            classification_weight=self.loss_kwargs.get("classification_weight"),
            n_epochs_kl_warmup=self.n_epochs_kl_warmup,
            n_steps_kl_warmup=self.n_steps_kl_warmup,
        )

    @property
    def stage(self) -> str:
        """Name of the current stage; empty if a training has only one stage."""
        return ""

    def _optimizer_creator_fn(
        self, optimizer_cls: type[Optimizer]
    ) -> Callable[[Iterable[Tensor]], Optimizer]:
        fused = self.device.type in ("cpu", "cuda")
        return lambda params: optimizer_cls(
            params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )


class StagedTrainingPlan(CheckedPlan):
    """scvi-tools' training plan with the schedules of the stages.

    Parameters
    ----------
    module
        The module.
    pretrain_epochs, joint_epochs
        Lengths of the stages.
    kl_warmup
        Fraction of the pretraining steps over which the KL weight rises from 0 to its maximum.
        scvi-tools counts epochs (400 by default), which short trainings never reach.
    pretrain_kl_weight
        Weight of the divergence in pretraining, in place of the maximum, which is 1 unless
        ``max_kl_weight`` says otherwise.
    guide_weight
        Weight of a guide by codes at the start of the joint stage.
    guide_fraction
        Fraction of the joint stage after which that weight is 0.
    soft_guide_weight
        Weight of a guide by probabilities, throughout. It says how sure the labels of a few cells
        are of the others; left to itself a mixture becomes too sure (``docs/decisions.md``).
    n_samples
        S, number of draws of z and w per cell and step, over which the loss is averaged.
    monte_carlo_kl
        Whether to estimate divergences at the draws in place of their closed forms, see
        :meth:`scgmvae.CGMVAE.loss`.
    distortion
        Amount by which the images that the encoder sees are turned, sheared, enlarged and moved,
        at random and anew in every step (:func:`scgmvae.data.images.distorted`). The decoder
        has to reconstruct the undistorted images, so that z forgets the distortion.
    lr, weight_decay, eps
        Settings of the Adam optimiser: step length, weight decay and epsilon.
    prior_weight
        Weight of the log prior of dispersions (:meth:`scgmvae.CGMVAE.log_prior`) beside the bound
        of a cell: 1 / number of cells is that of the model.
    lr_decline
        Share of the joint stage, at its end, over which the step length falls linearly to 0. It
        has no effect with ``reduce_lr_on_plateau``.
    **kwargs
        Further arguments of :class:`scvi.train.TrainingPlan`; with ``n_epochs_kl_warmup`` or
        ``n_steps_kl_warmup`` the KL weight follows scvi-tools' schedule.
    """

    def __init__(
        self,
        module: CGMVAE,
        *,
        pretrain_epochs: int,
        joint_epochs: int,
        kl_warmup: float = 0.33,
        pretrain_kl_weight: float | None = None,
        guide_weight: float = 10.0,
        guide_fraction: float = 0.67,
        soft_guide_weight: float = 3.0,
        n_samples: int = 1,
        monte_carlo_kl: bool = False,
        distortion: float = 0.0,
        lr: float = STEP_LENGTH,
        weight_decay: float = 1e-6,
        eps: float = 1e-8,
        prior_weight: float = 0.0,
        lr_decline: float = 0.0,
        n_epochs_kl_warmup: int | None = None,
        **kwargs: object,
    ):
        super().__init__(
            module,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            n_epochs_kl_warmup=n_epochs_kl_warmup,
            **kwargs,
        )
        if self.on_step:
            raise NotImplementedError(
                "on_step=True is not offered: terms are summed up and logged once per epoch."
            )
        check_whole(1, n_samples=n_samples)
        check_at_least(
            0,
            prior_weight=prior_weight,
            distortion=distortion,
            kl_warmup=kl_warmup,
            pretrain_kl_weight=pretrain_kl_weight,
            guide_weight=guide_weight,
            guide_fraction=guide_fraction,
            soft_guide_weight=soft_guide_weight,
        )
        check_share(lr_decline=lr_decline)
        if distortion:
            _check_distortion(module)
        self.pretrain_epochs = pretrain_epochs
        self.joint_epochs = joint_epochs
        self.kl_warmup = kl_warmup
        self.pretrain_kl_weight = pretrain_kl_weight
        self.guide_weight = guide_weight
        self.guide_fraction = guide_fraction
        self.soft_guide_weight = soft_guide_weight
        self.has_soft_guide = False
        self.n_samples = n_samples
        self.monte_carlo_kl = monte_carlo_kl
        self.distortion = distortion
        self.prior_weight = prior_weight
        self.lr_decline = lr_decline
        self._totals: dict[str, Tensor] = {}

    @property
    def epochs_done(self) -> float:
        """Epochs since the start of this training, with the fraction of the current one."""
        # the last step of an epoch can have fewer minibatches
        n_steps = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        return self.global_step / n_steps

    @property
    def kl_weight(self) -> float | Tensor:
        """Weight of the divergences at the current step."""
        if self._trainer is None:  # scvi-tools asks once before there is a trainer
            return self.max_kl_weight
        if self.n_epochs_kl_warmup or self.n_steps_kl_warmup:
            return super().kl_weight
        warmup_epochs = self.kl_warmup * self.pretrain_epochs
        done = min(1.0, self.epochs_done / warmup_epochs) if warmup_epochs else 1.0
        top = self.max_kl_weight
        if self.pretrain_kl_weight is not None and self.epochs_done < self.pretrain_epochs:
            top = self.pretrain_kl_weight
        return self.min_kl_weight + done * (top - self.min_kl_weight)

    @property
    def joint_done(self) -> float:
        """Share of the joint stage that is done at the current step."""
        return max(0.0, self.epochs_done - self.pretrain_epochs) / self.joint_epochs

    @property
    def current_guide_weight(self) -> float:
        """Weight of the guide at the current step; 0 before there are components."""
        if not self.module.mixture_started:
            return 0.0
        if self.has_soft_guide:
            return self.soft_guide_weight
        return self.guide_weight * max(0.0, 1 - self.joint_done / max(self.guide_fraction, 1e-9))

    @property
    def stage(self) -> str:
        """Name of the current stage."""
        return "joint stage" if self.module.mixture_started else "pretraining"

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimiser, and the schedule of its step length if that falls."""
        config = super().configure_optimizers()
        if self.lr_decline and "lr_scheduler" not in config:
            schedule = LambdaLR(config["optimizer"], self._step_length)
            config["lr_scheduler"] = {"scheduler": schedule, "interval": "step"}
        return config

    def _step_length(self, step: int) -> float:
        """Length of a step as a share of the full length, which the first one has."""
        # there may be no trainer yet at the first step
        return declined(self.joint_done, self.lr_decline) if step else 1.0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a minibatch."""
        if self.distortion:
            x, shape = batch[REGISTRY_KEYS.X_KEY], self.module.image_shape
            batch[SEEN_KEY] = distorted(x, shape, self.distortion)
        batch = self.module.in_training(batch)
        self.has_soft_guide = GUIDE_KEY in batch and batch[GUIDE_KEY].dim() == 2
        loss = self._step(batch, self.kl_weight, self.current_guide_weight).loss
        return loss - self.prior_weight * self.module.log_prior() if self.prior_weight else loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Record the terms of a validation minibatch."""
        self._step(batch, 1.0, 0.0)

    def _step(
        self, batch: dict[str, Tensor], kl_weight: float | Tensor, guide_weight: float
    ) -> LossOutput:
        how = {
            "kl_weight": kl_weight,
            "guide_weight": guide_weight,
            "monte_carlo_kl": self.monte_carlo_kl,
        }
        _, _, output = self.forward(
            batch,
            inference_kwargs={"n_samples": self.n_samples},
            loss_kwargs=self.loss_kwargs | how,
        )
        # Lightning's own metrics cost as much per step as the networks do, so terms are summed
        # here and logged once per epoch.
        n = output.n_obs_minibatch
        terms = {
            "loss": output.loss.detach() * n,
            "elbo": (output.reconstruction_loss_sum + output.kl_local_sum).detach(),
            "reconstruction_loss": output.reconstruction_loss_sum.detach(),
            "kl_local": output.kl_local_sum.detach(),
        } | {name: value * n for name, value in output.extra_metrics.items()}
        if not self._totals:
            self._totals = defaultdict(float)
        for name, value in terms.items():
            self._totals[name] += value
        self._totals["n"] += n
        return output

    def _log_epoch(self, mode: str) -> None:
        totals, self._totals = self._totals, {}
        n = totals.pop("n")
        means = {f"{name}_{mode}": value / n for name, value in totals.items()}
        loss_name = "train_loss" if mode == "train" else "validation_loss"
        self.log(loss_name, means.pop(f"loss_{mode}"), prog_bar=True, sync_dist=self.use_sync_dist)
        self.log_dict(means, sync_dist=self.use_sync_dist)

    def on_train_start(self) -> None:
        """Let processes that train together draw different noise."""
        if self.trainer.world_size > 1:
            torch.manual_seed(torch.initial_seed() + self.trainer.global_rank)

    def on_train_epoch_start(self) -> None:
        """Forget what a sanity check or an interrupted epoch left."""
        self._totals = {}

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch."""
        self._log_epoch("train")
        self.log_dict(
            {"kl_weight": float(self.kl_weight), "guide_weight": self.current_guide_weight}
        )

    def on_validation_epoch_start(self) -> None:
        """Keep the training epoch's sums: validation runs within it."""
        self._train_totals, self._totals = self._totals, {}

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation cells."""
        self._log_epoch("validation")
        self._totals = self._train_totals


def _check_distortion(module: CGMVAE) -> None:
    """Raise ``ValueError`` unless the data are images whose values can be interpolated."""
    if module.image_shape is None:
        raise ValueError(
            "distortion is one of images, but the data are none: adata.uns has no 'image_shape'."
        )
    if module.is_count:
        raise ValueError(
            "distortion makes values between those of the pixels, which are no counts, but the "
            f"likelihood is {module.gene_likelihood!r}. Take likelihood='bernoulli' or "
            "'gaussian', or distortion=0."
        )
