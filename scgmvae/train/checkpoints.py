"""Checkpoints, from which a training that was killed continues as if it had not been.

A checkpoint is a saved model (:mod:`scgmvae.model.saving`), so it can be loaded and read like any
other, with the state of its training beside it: arguments, epoch, optimiser, schedules and the
random state. It is written between two epochs, when nothing else has a state.
"""

from __future__ import annotations

import hashlib
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scgmvae.data.keys import GUIDE_KEY
from scgmvae.data.matrices import is_on_disk
from scgmvae.data.registry import Setup
from scgmvae.io.model_files import FORMAT, TRAINING_FILE, Saved, check_there, read
from scgmvae.io.values import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from scvi.data import AnnDataManager

    from scgmvae.module.cgmvae import CGMVAE
    from scgmvae.train.plan import StagedTrainingPlan
    from scgmvae.train.runner import KeepingTrainRunner

__all__ = [
    "Checkpoints",
    "check_new_folder",
    "check_same",
    "fingerprint",
    "read_checkpoint",
    "restore_module",
]

Attributes = dict[str, Any]
"""Attributes of a model that are saved, by name."""


class Checkpoints(pl.Callback):
    """Saves the model and the state of its training between epochs, and restores the latter.

    Parameters
    ----------
    folder
        Folder of the checkpoint; the next checkpoint replaces it.
    every
        Epochs from one checkpoint to the next. Each stage ends with a checkpoint as well.
    save
        Function that saves the model in a folder, with given attributes and state of the training.
    attributes
        Function that returns the attributes of the model.
    training
        Arguments of the training, as :meth:`scgmvae.train.request.Training.kept` returns them.
    data
        Fingerprint of the data.
    state
        State to continue from, as :func:`read_checkpoint` returns it; ``None`` for a new training.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        *,
        save: Callable[[Path, Attributes, dict[str, Any]], None],
        attributes: Callable[[], Attributes],
        training: Mapping[str, Any],
        data: str,
        state: Mapping[str, Any] | None = None,
    ):
        self.folder = folder
        self.every = every
        self.save = save
        self.attributes = attributes
        self.training = training
        self.data = data
        self.state = state
        self.runner: KeepingTrainRunner | None = None
        self._written: tuple[int, bool] | None = None

    # ----------------------------------------------------------------------------- writing

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Write a checkpoint of the training so far, if one is due.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        epoch = trainer.current_epoch
        stage_ends = epoch == pl_module.pretrain_epochs
        if stage_ends or epoch % self.every == 0:
            self.write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Write the end of the training, unless it ran out of time or steps within an epoch.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        stopped = any(getattr(callback, "stopped_epoch", 0) for callback in trainer.callbacks)
        if stopped or trainer.current_epoch >= trainer.max_epochs:
            self.write(trainer, pl_module, is_finished=True)

    def write(
        self, trainer: pl.Trainer, plan: StagedTrainingPlan, is_finished: bool = False
    ) -> None:
        """Write a checkpoint, unless it is the one that training continues from.

        Parameters
        ----------
        trainer, plan
            The trainer and the training plan.
        is_finished
            Whether training has ended, by early stopping or because no epochs are left.
        """
        moment = (trainer.current_epoch, plan.module.mixture_started)
        if not trainer.is_global_zero or (moment == self._written and not is_finished):
            return
        state = {
            **self.training,
            "data": self.data,
            "every": self.every,
            "epoch": trainer.max_epochs if is_finished else trainer.current_epoch,
            "step": trainer.global_step,
            "random_state": torch.get_rng_state(),
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
            "callbacks": {
                callback.state_key: callback.state_dict()
                for callback in trainer.callbacks
                if callback.state_dict()
            },
            "partition": trainer.train_dataloader.extra.get(GUIDE_KEY),
        }
        before = self.attributes()
        attributes = before | self.runner.learned()
        attributes["is_trained_"] = before["is_trained_"] or trainer.current_epoch > 0
        self.save(self.folder, attributes, state)
        self._written = moment

    # --------------------------------------------------------------------------- restoring

    def setup(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan, stage: str) -> None:
        """Restore the numbers of epochs and steps.

        Parameters
        ----------
        trainer, pl_module, stage
            The trainer, the training plan and the name of the stage, as Lightning passes them.
        """
        if self.state is None:
            return
        loop = trainer.fit_loop
        epochs = loop.epoch_progress.current
        epochs.ready = epochs.started = epochs.processed = epochs.completed = self.state["epoch"]
        steps = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        steps.ready = steps.completed = self.state["step"]
        # loggers count steps by this number
        loop.epoch_loop.on_load_checkpoint({"_batches_that_stepped": self.state["step"]})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Restore the state of other callbacks, even if no epoch is left.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.

        Raises
        ------
        ValueError
            If a callback that had a state is missing.
        """
        if self.state is None:
            return
        given = {callback.state_key: callback for callback in trainer.callbacks}
        missing = self.state["callbacks"].keys() - given.keys()
        if missing:
            raise ValueError(
                "A training that is resumed needs the callbacks that it was begun with, but these "
                f"are missing: {', '.join(sorted(missing))}. Give them anew with the same "
                "settings, SaveCheckpoint with the same dirpath."
            )
        for key, values in self.state["callbacks"].items():
            given[key].load_state_dict(deepcopy(values))

    def on_train_start(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Restore optimiser, schedules and random state.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        if self.state is None:
            return
        state, self.state = self.state, None
        self._written = (state["epoch"], pl_module.module.mixture_started)
        for optimizer, values in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        configs = trainer.lr_scheduler_configs
        for config, values in zip(configs, state["schedulers"], strict=True):
            config.scheduler.load_state_dict(values)
        if state["partition"] is not None:
            trainer.train_dataloader.extra[GUIDE_KEY] = state["partition"]
        if trainer.world_size == 1:  # processes that train together have states of their own
            torch.set_rng_state(state["random_state"])


def check_new_folder(folder: Path) -> None:
    """Raise ``ValueError`` if checkpoints of a training would replace the model of another."""
    if (folder / "model.json").exists():
        raise ValueError(
            f"checkpoint_dir must hold no model yet, but {folder} does. Give another folder, or "
            "go on with the training that it is of by resume_from."
        )


def read_checkpoint(folder: Path, class_name: str) -> Saved:
    """Read a checkpoint of a training.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    class_name
        Class of the model.

    Raises
    ------
    ValueError
        If there is no checkpoint, or it is damaged or of an older format.
    """
    check_there(folder)
    saved = read(folder, "", class_name, {TRAINING_FILE})
    if saved.training is None:
        raise ValueError(
            f"resume_from must be a folder of checkpoints, but {folder} holds a model without the "
            "state of its training. Load it with SCGMVAE.load, and train it further from there."
        )
    if saved.format < FORMAT:
        raise ValueError(
            f"resume_from must be a checkpoint of format {FORMAT}, but {folder} has one of "
            f"{saved.format}, which an older scgmvae wrote. Resume it with that version, or load "
            "it with SCGMVAE.load and train it further from there."
        )
    return saved


def check_same(
    folder: Path, saved: Saved, init_params: object, registry: Mapping[str, Any], data: str
) -> None:
    """Raise ``ValueError`` where a checkpoint is of another model or of other cells.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    saved
        The checkpoint.
    init_params, registry
        Settings of the model, and its registry.
    data
        Fingerprint of the data of the model.
    """
    pairs = {
        "settings of the model": (init_params, saved.attributes["init_params_"]),
        "arguments of setup_anndata": (
            Setup(registry).arguments,
            Setup(saved.attributes["registry_"]).arguments,
        ),
        "cells, genes or values": (data, saved.training["data"]),
    }
    other = [what for what, (own, its) in pairs.items() if encode(own, {}) != encode(its, {})]
    if other:
        raise ValueError(
            f"resume_from must be of this model and its data, but that in {folder} has other "
            f"{' and other '.join(other)}. Make the model as it was made for that training."
        )


def restore_module(module: CGMVAE, saved: Saved) -> None:
    """Give a module the components and weights of a checkpoint.

    Parameters
    ----------
    module
        A module that has its conditions already.
    saved
        The checkpoint.
    """
    n_components = saved.attributes["n_components_"]
    # components made anew would not be frozen as those of a query are
    if module.has_mixture and n_components not in (None, module.n_components):
        module.set_components(n_components)
    saved.put_weights(module)
    module.mixture_started = saved.attributes["mixture_started_"]


def fingerprint(manager: AnnDataManager, columns: Sequence[str]) -> str:
    """Hash of all that a training reads: names, registered fields, columns, and the sum of x.

    Parameters
    ----------
    manager
        Manager of the AnnData.
    columns
        Further columns of obs.
    """
    adata = manager.adata
    digest = hashlib.sha256()
    for names in (adata.obs_names, adata.var_names, *(adata.obs[column] for column in columns)):
        digest.update("\0".join(map(str, names)).encode())
        digest.update(b"\1")
    for key in manager.data_registry:
        values = manager.get_from_registry(key)
        if key != REGISTRY_KEYS.X_KEY:
            digest.update(np.ascontiguousarray(values).tobytes())
        elif not is_on_disk(values):  # reading a file would take as long as an epoch
            digest.update(str(values.sum(dtype=np.float64)).encode())
    return digest.hexdigest()
