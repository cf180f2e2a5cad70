"""Training in three stages under one trainer: pretrain, start the mixture, joint.

1. *pretrain*: the module is the plain VAE; the weight of its KL rises over the first part.
2. *start*: the latent (or whatever representation is given) is partitioned, and components and
   classifier are fitted to the partition.
3. *joint*: the full bound. The partition stays as a guide, a cross-entropy whose weight falls to
   zero: without it the first joint steps, in which the components are still rough, undo part of
   a good start.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS, settings
from scvi.train import TrainingPlan, TrainRunner
from torch import Tensor

from scgmvae import checks
from scgmvae.loading import SeededDataSplitter
from scgmvae.module import CGMVAE, GUIDE_KEY
from scgmvae.partition import (
    Start,
    by_size,
    check_start,
    initial_partition,
    log_normalized_pcs,
    match_labels,
)
from scgmvae.start import start_decoder, start_mixture

if TYPE_CHECKING:
    from scvi.module.base import LossOutput

logger = logging.getLogger(__name__)

__all__ = ["MixtureStart", "StagedTrainRunner", "StagedTrainingMixin", "StagedTrainingPlan"]


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
    guide_weight
        Weight of the guide at the start of the joint stage.
    guide_fraction
        Fraction of the joint stage after which the guide's weight is 0.
    lr, weight_decay, eps
        Of Adam.
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
        guide_weight: float = 10.0,
        guide_fraction: float = 0.67,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        eps: float = 1e-8,
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
        self.pretrain_epochs = pretrain_epochs
        self.joint_epochs = joint_epochs
        self.kl_warmup = kl_warmup
        self.guide_weight = guide_weight
        self.guide_fraction = guide_fraction
        self._totals: dict[str, Tensor] = {}

    @property
    def epochs_done(self) -> float:
        """Epochs since the start of this training, with the fraction of the current one."""
        n_batches = self.global_step * self.trainer.accumulate_grad_batches
        return n_batches / self.trainer.num_training_batches

    @property
    def kl_weight(self) -> float | Tensor:
        """Weight of the divergences at the current step."""
        if self._trainer is None:  # scvi-tools asks once before there is a trainer
            return self.max_kl_weight
        if self.n_epochs_kl_warmup or self.n_steps_kl_warmup:
            return super().kl_weight
        warmup_epochs = self.kl_warmup * self.pretrain_epochs
        done = min(1.0, self.epochs_done / warmup_epochs) if warmup_epochs else 1.0
        return self.min_kl_weight + done * (self.max_kl_weight - self.min_kl_weight)

    @property
    def current_guide_weight(self) -> float:
        """Weight of the guide at the current step; 0 before there are components."""
        if not self.module.mixture_started:
            return 0.0
        joint_epochs_done = self.epochs_done - self.pretrain_epochs
        faded = joint_epochs_done / max(self.guide_fraction * self.joint_epochs, 1e-9)
        return self.guide_weight * max(0.0, 1.0 - max(faded, 0.0))

    def _optimizer_creator_fn(self, optimizer_cls):
        fused = self.device.type in ("cpu", "cuda")
        return lambda params: optimizer_cls(
            params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a minibatch."""
        return self._step(batch, self.kl_weight, self.current_guide_weight).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Record the terms of a validation minibatch."""
        self._step(batch, 1.0, 0.0)

    def _step(self, batch, kl_weight, guide_weight) -> LossOutput:
        weights = {"kl_weight": kl_weight, "guide_weight": guide_weight}
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs | weights)
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
        stage = "joint" if self.module.mixture_started else "pretraining"
        if not np.isfinite(float(totals["loss"])):
            terms = [name for name, value in totals.items() if not np.isfinite(float(value))]
            raise FloatingPointError(
                f"The {mode} loss of epoch {self.current_epoch + 1} ({stage}) must be a finite "
                f"number, but these terms are not: {', '.join(terms)}. Train with a smaller "
                "learning rate, for example plan_kwargs={'lr': 3e-4}."
            )
        means = {f"{name}_{mode}": value / n for name, value in totals.items()}
        loss_name = "train_loss" if mode == "train" else "validation_loss"
        self.log(loss_name, means.pop(f"loss_{mode}"), prog_bar=True, sync_dist=self.use_sync_dist)
        self.log_dict(means, sync_dist=self.use_sync_dist)

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
    """Starts the mixture at the first epoch of the joint stage."""

    def __init__(self, start: Callable[[], NDArray[np.integer]]):
        self.start = start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Start the mixture, give its parameters to the optimiser and its partition to the loader.

        Parameters
        ----------
        trainer, pl_module
            Lightning's.
        """
        module = pl_module.module
        is_due = trainer.current_epoch >= pl_module.pretrain_epochs
        if module.mixture_started or module.prior == "normal" or not is_due:
            return
        partition = self.start()
        trainer.train_dataloader.extra[GUIDE_KEY] = torch.from_numpy(partition)
        trainer.strategy.setup_optimizers(trainer)


class StagedTrainRunner(TrainRunner):
    """scvi-tools' runner that keeps what an interrupted training has learned."""

    def _run_training_core(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        try:
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
        self._update_history()
        self.model.train_indices = self.data_splitter.train_idx
        self.model.validation_indices = self.data_splitter.val_idx
        self.model.test_indices = self.data_splitter.test_idx
        self.model.module.eval()
        self.model.is_trained_ = True
        self.model.to_device(self.device)
        self.model.trainer = self.trainer

    def _update_history(self) -> None:
        """Append this training's history; terms that are new start where they appear."""
        if not isinstance(getattr(self.trainer.logger, "history", None), dict):
            return
        history = dict(self.model.history_ or {})
        done = max((len(old) and int(old.index.max()) + 1 for old in history.values()), default=0)
        for name, new in self.trainer.logger.history.items():
            new = new.copy()
            new.index = pd.Index(new.index.to_numpy(dtype=int) + done, name=new.index.name)
            history[name] = pd.concat([history[name], new]) if name in history else new
        self.model.history_ = history


class StagedTrainingMixin:
    """``train`` in three stages."""

    def train(
        self,
        max_epochs: int | None = None,
        pretrain_epochs: int | None = None,
        *,
        start: Start = "leiden",
        guide_key: str | None = None,
        seed: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        early_stopping: bool = False,
        datasplitter_kwargs: dict | None = None,
        plan_kwargs: dict | None = None,
        **trainer_kwargs: object,
    ) -> None:
        """Train the model, and write embedding and clusters into its AnnData.

        The first call pretrains the model as a VAE, starts the mixture from a partition of the
        cells, and trains both together. A further call goes on with the joint stage and keeps the
        components.

        Parameters
        ----------
        max_epochs
            Epochs of the joint stage. ``None`` makes them about 1,500 minibatches of 128 cells,
            but no fewer than 20 epochs and no more than 100.
        pretrain_epochs
            Epochs of the first stage. ``None`` makes them about 320 minibatches, 5 to 60 epochs.
            A model that has its components has no first stage any more.
        start
            Initial partition: ``"leiden"``, ``"kmeans"`` or ``"gmm"``, see
            :func:`~scgmvae.partition.initial_partition`. Counts without conditions are partitioned
            by principal components of their log-normalised values; all else by the pretrained z,
            from which differences between conditions are gone.
        guide_key
            obs column to start from in place of a partition that is found.
        seed
            Of everything random: first weights (drawn anew by the first call), order of the cells,
            dropout, samples, start. Any other random state stays as it is. ``None`` takes
            ``scvi.settings.seed``, or 0. On a CPU the same seed gives the same result bit for bit;
            on a GPU sums are added up in varying order.
        accelerator, devices
            As in Lightning; ``"auto"`` takes a GPU where there is one.
        train_size, validation_size, shuffle_set_split
            As in :class:`scvi.dataloaders.DataSplitter`, except that all cells are trained on
            unless early stopping needs some for validation (then 0.9).
        batch_size
            Largest number of cells in a minibatch.
        early_stopping
            Stop the joint stage when the ELBO of the validation cells stops rising. Further
            settings are those of :class:`scvi.train.Trainer`.
        datasplitter_kwargs
            Further arguments of :class:`~scgmvae.loading.SeededDataSplitter`.
        plan_kwargs
            Further arguments of :class:`~scgmvae.training.StagedTrainingPlan`, for example
            ``lr`` or ``guide_weight``.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        KeyError
            If ``guide_key`` is no obs column.
        ValueError
            If an argument is out of range.
        """
        if self.adata is None:
            raise RuntimeError("The model has no data to train on: load it with adata=...")
        is_first = not self.is_trained_
        checks.check_columns(self.adata, guide_key=guide_key)
        checks.check_guide(self.adata, guide_key, self.n_components_)
        checks.check_at_least(1, max_epochs=max_epochs, batch_size=batch_size)
        checks.check_at_least(0, pretrain_epochs=pretrain_epochs)
        goes_on = self.module.mixture_started
        if guide_key is None and not goes_on and self.module.prior != "normal":
            check_start(start, self.n_components_)
        if goes_on and guide_key is not None:
            raise ValueError(
                "guide_key gives a model its first components, but this one has been trained. "
                "Leave it out to go on, or make a new model."
            )
        if not goes_on:  # what an interrupted start has found does not bind the next
            self.n_components_ = self.init_params_["non_kwargs"]["n_components"]
        if max_epochs is None:
            max_epochs = default_epochs(self.adata.n_obs, JOINT_STEPS, shortest=20, longest=100)
        if goes_on or (not is_first and self.module.prior == "normal"):
            pretrain_epochs = 0
        elif pretrain_epochs is None:
            pretrain_epochs = default_epochs(
                self.adata.n_obs, PRETRAIN_STEPS, shortest=5, longest=60
            )
        if seed is None:
            seed = settings.seed or 0
        self.seed_ = seed
        splitter = SeededDataSplitter(
            self.adata_manager,
            seed=seed,
            train_size=train_size or (0.9 if early_stopping else 1.0),
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            **(datasplitter_kwargs or {}),
        )
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            if is_first:
                self.module = self._make_module()
                x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
                rows = np.sort(splitter.external_indexing[0])
                start_decoder(self.module, np.asarray(x[rows].mean(axis=0)).ravel())
            plan = StagedTrainingPlan(
                self.module,
                pretrain_epochs=pretrain_epochs,
                joint_epochs=max_epochs,
                **(plan_kwargs or {}) | ({"guide_weight": 0.0} if goes_on else {}),
            )

            def start_from_data() -> NDArray[np.integer]:
                return self._start_mixture(np.sort(splitter.train_idx), start, guide_key, seed)

            callbacks = [*trainer_kwargs.pop("callbacks", ()), MixtureStart(start_from_data)]
            warmup = trainer_kwargs.pop("early_stopping_warmup_epochs", 0)
            runner = StagedTrainRunner(
                self,
                training_plan=plan,
                data_splitter=splitter,
                max_epochs=pretrain_epochs + max_epochs,
                accelerator=accelerator,
                devices=devices,
                early_stopping=early_stopping,
                early_stopping_warmup_epochs=pretrain_epochs + warmup,
                callbacks=callbacks,
                **trainer_kwargs,
            )
            runner()
        self.mixture_started_ = self.module.mixture_started
        self._model_summary_string = self._summary()
        self.annotate()

    def _start_mixture(
        self, rows: NDArray[np.integer], start: Start, guide_key: str | None, seed: int
    ) -> NDArray[np.integer]:
        """Start the components from a partition of the training cells.

        Returns
        -------
        Codes of all cells, −1 outside of ``rows``.
        """
        posteriors = self._posteriors(indices=rows)
        partition = self._partition(rows, posteriors["z_loc"], start, guide_key, seed)
        n_found = max(self.module.n_labels, int(partition.max()) + 1)
        self.n_components_ = self.n_components_ or n_found
        tensors = self._training_cells(rows)
        start_mixture(
            self.module, tensors, posteriors, torch.from_numpy(partition), self.n_components_
        )
        self.module.train()
        codes = np.full(self.adata.n_obs, -1)
        codes[rows] = partition
        return codes

    def _training_cells(self, rows: NDArray[np.integer]) -> dict[str, Tensor]:
        """The training cells as one minibatch, with x only where the classifier sees it."""
        x_key = REGISTRY_KEYS.X_KEY
        n_columns = None if self.module.classifier_input == "zx" else 0
        loader = self._make_data_loader(self.adata, rows, batch_size=1024)
        parts = [part | {x_key: part[x_key][:, :n_columns].clone()} for part in loader]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _partition(
        self,
        rows: NDArray[np.integer],
        z: NDArray[np.float32],
        start: Start,
        guide_key: str | None,
        seed: int,
    ) -> NDArray[np.int64]:
        """Starting components of the training cells, (n,), with labels in their places."""
        if guide_key is not None:
            column = self.adata.obs[guide_key].iloc[rows].astype("category")
            partition = by_size(column.cat.codes.to_numpy())
        else:
            representation = z
            if self.module.is_count and not self.module.has_conditions:
                counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
                representation = log_normalized_pcs(counts[rows], seed=seed)
            partition = initial_partition(representation, self.n_components_, start, seed)
        n_labels = self.module.n_labels
        if n_labels:
            labels = self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY)
            labels = labels.ravel()[rows].astype(np.int64)
            labels[labels == n_labels] = -1  # the unlabelled category is the last code
            partition = match_labels(partition, labels, n_labels, self.n_components_)
        return partition


PRETRAIN_STEPS, JOINT_STEPS = 320, 1500
"""Minibatches of 128 in the stages, where the bounds on the epochs allow. The latent clusters best
after a few hundred steps, long before the bound stops rising (``benchmarks/recipe.py``)."""


def default_epochs(n_obs: int, n_steps: int, shortest: int, longest: int) -> int:
    """Epochs that make about ``n_steps`` minibatches of 128, within bounds.

    Examples
    --------
    >>> default_epochs(4_271, n_steps=320, shortest=5, longest=60)
    10
    """
    return int(np.clip(round(n_steps * 128 / n_obs), shortest, longest))
