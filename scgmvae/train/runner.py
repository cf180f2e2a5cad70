"""The runner of a training, which keeps what was learned before an interruption."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
from lightning.pytorch.callbacks import ProgressBar
from scvi.train import SaveCheckpoint, TrainRunner

from scgmvae.train.devices import strategy_for
from scgmvae.train.progress import StageProgress
from scgmvae.train.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl
    from scvi.dataloaders import DataSplitter
    from scvi.model.base import BaseModelClass

    from scgmvae.train.plan import StagedTrainingPlan

logger = logging.getLogger(__name__)

__all__ = ["KeepingTrainRunner", "StagedTrainRunner", "unchanged_without_training"]


@contextmanager
def unchanged_without_training(model: BaseModelClass) -> Iterator[None]:
    """Restore the attributes of a model if the block raises before a training result is kept.

    Parameters
    ----------
    model
        The model. Weights that a further training has changed stay changed.
    """
    before, was_training = dict(vars(model)), model.module.training
    try:
        yield
    except BaseException:
        if vars(model).get("trainer") is before.get("trainer"):  # a runner sets it at the end
            vars(model).clear()
            vars(model).update(before)
            model.module.train(was_training)
        raise


class KeepingTrainRunner(TrainRunner):
    """scvi-tools' runner, which keeps the result of a training that did not reach its end.

    Raises
    ------
    ValueError
        If the trainer needs validation cells and there are none.
    """

    first_epoch: int = 0
    """Epoch that this part of a training begins with, where an earlier part was interrupted."""

    def __init__(self, model: BaseModelClass, *, data_splitter: DataSplitter, **kwargs: object):
        with quiet():
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
        # Lightning does not change the mode, and an earlier training or reading of results has
        # left dropout off and batch normalisation with fixed statistics.
        self.training_plan.train()
        try:
            with quiet():
                self.trainer.fit(self.training_plan, self.data_splitter, ckpt_path=self.ckpt_path)
        except SystemExit as exit_:
            # Lightning turns Ctrl-C into an exit of the whole process and then ignores SIGINT.
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
        """Hand the result of the training over to the model."""
        self.model.module.eval()
        self.model.to_device(self.device)
        self.model.trainer = self.trainer
        for name, value in self.learned().items():
            setattr(self.model, name, value)

    def learned(self) -> dict[str, Any]:
        """Attributes of the model after the training so far."""
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
        done = {"epoch": 0, "step": 0}  # some terms, such as the learning rate, are logged by step
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
    """Runner of a training in stages, after which a model has components.

    Parameters
    ----------
    model
        The model.
    plan
        Training plan of the model.
    data_splitter
        Source of the minibatches.
    first_epoch
        Epoch that this part of the training begins with.
    devices
        Devices to train on, as in Lightning.
    **trainer_kwargs
        Further arguments of :class:`scvi.train.TrainRunner`.
    """

    def __init__(
        self,
        model: BaseModelClass,
        plan: StagedTrainingPlan,
        data_splitter: DataSplitter | pl.LightningDataModule,
        *,
        first_epoch: int,
        devices: int | list[int] | str,
        **trainer_kwargs: Any,
    ):
        every = trainer_kwargs.get("check_val_every_n_epoch") or 1
        if plan.reduce_lr_on_plateau:
            # scvi-tools does this only if there is no LearningRateMonitor yet
            trainer_kwargs["check_val_every_n_epoch"] = every
        self.progress = _progress(trainer_kwargs)
        # scvi-tools counts validations from the start of the trainer
        warmup = plan.pretrain_epochs + trainer_kwargs.pop("early_stopping_warmup_epochs", 0)
        super().__init__(
            model,
            training_plan=plan,
            data_splitter=data_splitter,
            max_epochs=int(plan.pretrain_epochs + plan.joint_epochs),
            devices=devices,
            strategy=strategy_for(trainer_kwargs.pop("strategy", "auto"), devices),
            early_stopping_warmup_epochs=max(0, warmup // every - first_epoch // every),
            **trainer_kwargs,
        )
        self.first_epoch = first_epoch

    def learned(self) -> dict[str, Any]:
        """Attributes of the model after the training so far."""
        module, known = self.model.module, self.model.n_components_
        components = {
            "mixture_started_": module.mixture_started,
            "n_components_": module.n_components if module.mixture_started else known,
        }
        return super().learned() | components


def _progress(trainer_kwargs: dict[str, Any]) -> StageProgress | None:
    """The display of the stages, put among the callbacks in place of scvi-tools' bar."""
    callbacks = list(trainer_kwargs.get("callbacks") or ())
    is_simple = trainer_kwargs.pop("simple_progress_bar", True)
    trainer_kwargs["simple_progress_bar"] = False  # scvi-tools' own
    has_own = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if has_own or not is_simple or not trainer_kwargs.get("enable_progress_bar", True):
        return None
    progress = StageProgress(trainer_kwargs.pop("progress_bar_refresh_rate", 1))
    # first, so that a stage has its name before it begins
    trainer_kwargs["callbacks"] = [progress, *callbacks]
    return progress
