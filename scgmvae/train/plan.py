"""What runs in the trainer: loss and schedules of the stages, start of the mixture, the runner."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS
from scvi.dataloaders import DataSplitter
from scvi.train import SaveCheckpoint, TrainingPlan, TrainRunner
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from scgmvae.checks import check_at_least, check_plan, check_share, check_whole
from scgmvae.data.images import SEEN_KEY, distorted
from scgmvae.module.cgmvae import CGMVAE
from scgmvae.train.devices import start_on_all

if TYPE_CHECKING:
    from scvi.model.base import BaseModelClass
    from scvi.module.base import LossOutput

    from scgmvae.train.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

__all__ = [
    "KeepingTrainRunner",
    "MixtureStart",
    "StagedTrainRunner",
    "StagedTrainingPlan",
    "check_checkpoints",
    "declined",
    "needs_validation",
    "unchanged_without_training",
]


def needs_validation(
    arguments: Mapping[str, object], trainer_kwargs: Mapping[str, object]
) -> bool:
    """Whether a training, by its arguments, reads something off validation cells."""
    of_trainer = ("check_val_every_n_epoch", "enable_checkpointing", "learning_rate_monitor")
    return (
        arguments["early_stopping"]
        or any(trainer_kwargs.get(name) for name in of_trainer)
        or bool((arguments["plan_kwargs"] or {}).get("reduce_lr_on_plateau"))
        or any(isinstance(c, SaveCheckpoint) for c in trainer_kwargs.get("callbacks") or ())
    )


def check_checkpoints(callbacks: Sequence[pl.Callback]) -> None:
    """Raise ``NotImplementedError`` where an error of training is to be met with a pickle."""
    for callback in callbacks:
        if isinstance(callback, SaveCheckpoint) and callback.check_nan_gradients:
            raise NotImplementedError(
                "SaveCheckpoint(check_nan_gradients=True) reads pickles, which are not written "
                "here. Leave it out: a loss that is no finite number ends the training with an "
                "error, and checkpoints are kept."
            )


def declined(done: float, share: float) -> float:
    """Length of a step, from 1 in a line to 0 over the last share of a training.

    Parameters
    ----------
    done
        Share of the training that is behind the step.
    share
        Above 0, at most 1.

    Examples
    --------
    >>> [declined(done, share=0.5) for done in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return min(1.0, max(0.0, 1 - done) / share)


class StagedTrainingPlan(TrainingPlan):
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
        Weight of the guide at the start of the joint stage.
    guide_fraction
        Fraction of the joint stage after which the guide's weight is 0.
    n_samples
        S, draws of z and w per cell and step, over which the loss is averaged.
    monte_carlo_kl
        Estimate divergences at the draws in place of their closed forms, see
        :meth:`scgmvae.CGMVAE.loss`.
    distortion
        Amount by which the images that the encoder sees are turned, sheared, enlarged and moved,
        at random and anew in every step (:func:`scgmvae.data.images.distorted`). The decoder is
        asked for the images as they are, so that z forgets the distortion.
    lr, weight_decay, eps
        Of Adam.
    lr_decline
        Share of the joint stage, its last part, over which the step length falls in a line to 0.
        Without effect where ``reduce_lr_on_plateau`` has another rule.
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
        n_samples: int = 1,
        monte_carlo_kl: bool = False,
        distortion: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        eps: float = 1e-8,
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
        check_plan(self)
        check_whole(1, n_samples=n_samples)
        check_at_least(
            0,
            distortion=distortion,
            kl_warmup=kl_warmup,
            pretrain_kl_weight=pretrain_kl_weight,
            guide_weight=guide_weight,
            guide_fraction=guide_fraction,
        )
        check_share(lr_decline=lr_decline)
        if distortion and module.image_shape is None:
            raise ValueError(
                "distortion is one of images, but the data are none: adata.uns has no "
                "'image_shape'."
            )
        if distortion and module.is_count:
            raise ValueError(
                "distortion makes values between those of the pixels, which are no counts, but "
                f"the likelihood is {module.gene_likelihood!r}. Take likelihood='bernoulli' or "
                "'gaussian', or distortion=0."
            )
        self.pretrain_epochs = pretrain_epochs
        self.joint_epochs = joint_epochs
        self.kl_warmup = kl_warmup
        self.pretrain_kl_weight = pretrain_kl_weight
        self.guide_weight = guide_weight
        self.guide_fraction = guide_fraction
        self.n_samples = n_samples
        self.monte_carlo_kl = monte_carlo_kl
        self.distortion = distortion
        self.lr_decline = lr_decline
        self._totals: dict[str, Tensor] = {}

    @property
    def epochs_done(self) -> float:
        """Epochs since the start of this training, with the fraction of the current one."""
        # the last step of an epoch can be one of fewer minibatches
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
        """Share of the joint stage that is behind the current step."""
        return max(0.0, self.epochs_done - self.pretrain_epochs) / self.joint_epochs

    @property
    def current_guide_weight(self) -> float:
        """Weight of the guide at the current step; 0 before there are components."""
        if not self.module.mixture_started:
            return 0.0
        return self.guide_weight * max(0.0, 1 - self.joint_done / max(self.guide_fraction, 1e-9))

    def _optimizer_creator_fn(self, optimizer_cls):
        fused = self.device.type in ("cpu", "cuda")
        return lambda params: optimizer_cls(
            params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )

    def configure_optimizers(self) -> dict[str, object]:
        """Optimiser, and the schedule of its step length where that is to fall."""
        config = super().configure_optimizers()
        if self.lr_decline and "lr_scheduler" not in config:
            schedule = LambdaLR(
                config["optimizer"],
                # at its first step a stage has the full length, and there may be no trainer yet
                lambda step: declined(self.joint_done, self.lr_decline) if step else 1.0,
            )
            config["lr_scheduler"] = {"scheduler": schedule, "interval": "step"}
        return config

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a minibatch."""
        if self.distortion:
            x, shape = batch[REGISTRY_KEYS.X_KEY], self.module.image_shape
            batch[SEEN_KEY] = distorted(x, shape, self.distortion)
        return self._step(batch, self.kl_weight, self.current_guide_weight).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Record the terms of a validation minibatch."""
        self._step(batch, 1.0, 0.0)

    def _step(self, batch, kl_weight, guide_weight) -> LossOutput:
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


class MixtureStart(pl.Callback):
    """Starts the mixture at the first epoch of the joint stage.

    Parameters
    ----------
    start
        Starts it, and returns the partition of the cells, ``(n,)``, −1 where a cell has none.
    checkpoints
        Where to write that it is started.
    """

    def __init__(
        self,
        start: Callable[[], NDArray[np.integer]],
        checkpoints: Checkpoints | None = None,
    ):
        self.start = start
        self.checkpoints = checkpoints

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Start the mixture, give its parameters to the optimiser and its partition to the loader.

        Parameters
        ----------
        trainer, pl_module
            Lightning's.
        """
        module = pl_module.module
        is_due = trainer.current_epoch >= pl_module.pretrain_epochs
        if module.mixture_started or not module.has_mixture or not is_due:
            return
        partition = start_on_all(trainer, module, self.start)
        trainer.datamodule.guide_by(module, partition)
        trainer.strategy.setup_optimizers(trainer)
        # the best of a stage with another bound is not to be compared with what comes
        for callback in trainer.checkpoint_callbacks:
            callback.best_k_models.clear()
        if self.checkpoints is not None:
            self.checkpoints.write(trainer, pl_module)


@contextmanager
def unchanged_without_training(model: BaseModelClass) -> Iterator[None]:
    """Take back what was set on a model if the block raises before anything trained is kept.

    Parameters
    ----------
    model
        The model. Weights that a further training has changed stay changed.
    """
    before, was_training = dict(vars(model)), model.module.training
    try:
        yield
    except BaseException:
        if vars(model).get("trainer") is before.get("trainer"):  # a runner sets it as it keeps
            vars(model).clear()
            vars(model).update(before)
            model.module.train(was_training)
        raise


class KeepingTrainRunner(TrainRunner):
    """scvi-tools' runner that keeps what a training has learned that did not reach its end.

    Raises
    ------
    ValueError
        If the trainer is to look at validation cells, and there are none.
    """

    first_epoch: int = 0
    """Epoch that this part of a training begins with, where an earlier part was interrupted."""

    def __init__(self, model: BaseModelClass, *, data_splitter: DataSplitter, **kwargs: object):
        super().__init__(model, data_splitter=data_splitter, **kwargs)
        if not data_splitter.n_val and self.trainer.check_val_every_n_epoch < sys.maxsize:
            raise ValueError(
                "Early stopping, checkpoints and the like need validation cells, but all cells "
                f"are trained on (train_size={data_splitter.train_size}). Give a train_size below "
                "1, or leave it out."
            )

    def _run_training_core(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        to_load = [
            callback
            for callback in self.trainer.checkpoint_callbacks
            if isinstance(callback, SaveCheckpoint) and callback.load_best_on_end
        ]
        for callback in to_load:
            callback.load_best_on_end = False  # it would read a pickle
        # Lightning leaves the mode as it finds it, and an earlier training or a reading of results
        # has left dropout off and batch normalisation with fixed statistics.
        self.training_plan.train()
        try:
            with warnings.catch_warnings():
                # what a query leaves in evaluation mode is frozen on purpose
                warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
                self.trainer.fit(self.training_plan, self.data_splitter, ckpt_path=self.ckpt_path)
        except SystemExit as exit_:
            # Lightning turns Ctrl-C into an exit of the whole process and deafens it to SIGINT.
            if not isinstance(exit_.__context__, KeyboardInterrupt):
                raise
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
            logger.warning(
                "Training was interrupted in epoch %d of %d; what was trained so far is kept. "
                "train() goes on with the stage that was interrupted.",
                self.trainer.current_epoch + 1,
                self.trainer.max_epochs,
            )
        except OSError:
            if not (self.trainer.current_epoch or self.model.is_trained_):
                raise
            self._keep()
            logger.error(
                "Training ended in epoch %d of %d, because a file could not be read or written; "
                "what was trained so far is kept.",
                self.trainer.current_epoch + 1,
                self.trainer.max_epochs,
            )
            raise
        except FloatingPointError:  # the weights are those that the epoch began with
            if self.trainer.current_epoch or self.model.is_trained_:
                self._keep()
            raise
        for callback in to_load:
            callback.load_best_on_end = True
            self.model.module.load_state_dict(self.model._saved_weights(callback.best_model_path))
        self._keep()

    def _keep(self) -> None:
        """Hand what was trained over to the model."""
        self.model.module.eval()
        self.model.to_device(self.device)
        self.model.trainer = self.trainer
        for name, value in self.learned().items():
            setattr(self.model, name, value)

    def learned(self) -> dict[str, object]:
        """Attributes of the model as what was trained so far has them."""
        return {
            "is_trained_": True,
            "train_indices_": self.data_splitter.train_idx,
            "validation_indices_": self.data_splitter.val_idx,
            "test_indices_": self.data_splitter.test_idx,
            "history_": self._history(),
        }

    def _history(self) -> dict[str, pd.DataFrame] | None:
        """The model's history and that of this training; terms start where they appear."""
        if not isinstance(getattr(self.trainer.logger, "history", None), dict):
            return self.model.history_
        history = dict(self.model.history_ or {})
        done = {"epoch": 0, "step": 0}  # some terms, as the learning rate, are logged by step
        for old in history.values():
            unit = old.index.name
            done[unit] = max(done[unit], len(old) and int(old.index.max()) + 1)
        shift = {"epoch": done["epoch"] - self.first_epoch, "step": done["step"]}
        if self.first_epoch:  # the trainer goes on counting steps
            shift["step"] = 0
        for name, new in self.trainer.logger.history.items():
            new = new.copy()
            index = new.index.to_numpy(dtype=int) + shift[new.index.name]
            new.index = pd.Index(index, name=new.index.name)
            history[name] = pd.concat([history[name], new]) if name in history else new
        return history


class StagedTrainRunner(KeepingTrainRunner):
    """The same, with the components."""

    def learned(self) -> dict[str, object]:
        """Attributes of the model as what was trained so far has them."""
        module, known = self.model.module, self.model.n_components_
        components = {
            "mixture_started_": module.mixture_started,
            "n_components_": module.n_components if module.mixture_started else known,
        }
        return super().learned() | components
