"""Training in three stages under one trainer: pretrain, start the mixture, joint.

1. *pretrain*: the module is the plain VAE; the weight of its KL rises over the first part.
2. *start*: the latent (or whatever representation is given) is partitioned, and components and
   classifier are fitted to the partition.
3. *joint*: the full bound. The partition stays as a guide, a cross-entropy whose weight falls to
   zero, so that the first joint steps, in which the components are still rough, cannot undo a
   good start.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS, settings
from scvi.data import _constants as scvi_constants
from scvi.train._config import KwargsLike, merge_kwargs
from torch import Tensor

from scgmvae import checks
from scgmvae.clustering.partition import (
    Start,
    by_size,
    check_start,
    initial_partition,
    log_normalized_pcs,
    partition_by_labels,
)
from scgmvae.data.datamodules import ForeignMinibatches, check_data_module
from scgmvae.data.images import pixel_scale
from scgmvae.data.matrices import column_means, is_on_disk, read_rows
from scgmvae.data.minibatches import BLOCK, CELLS_IN_MEMORY, SeededDataSplitter
from scgmvae.model.saving import Saved
from scgmvae.train.checkpoints import (
    Checkpoints,
    Training,
    check_new_folder,
    kept_arguments,
    read_checkpoint,
    restore_module,
)
from scgmvae.train.devices import check_devices, strategy_for
from scgmvae.train.finite_watch import FiniteWatch
from scgmvae.train.plan import (
    MixtureStart,
    StagedTrainingPlan,
    StagedTrainRunner,
    check_checkpoints,
    needs_validation,
    unchanged_without_training,
)
from scgmvae.train.start import start_decoder, start_mixture

__all__ = ["StagedTrainingMixin"]


class StagedTrainingMixin:
    """``train`` in three stages."""

    def train(
        self,
        max_epochs: int | None = None,
        pretrain_epochs: int | None = None,
        *,
        start: Start = "leiden",
        guide_key: str | None = None,
        guide_weight: float | None = None,
        balance_key: str | None = None,
        seed: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = 128,
        early_stopping: bool = False,
        datasplitter_kwargs: dict | None = None,
        plan_config: KwargsLike | None = None,
        plan_kwargs: KwargsLike | None = None,
        datamodule: pl.LightningDataModule | None = None,
        trainer_config: KwargsLike | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int | None = None,
        resume_from: str | Path | None = None,
        **trainer_kwargs: object,
    ) -> None:
        """Train the model, and write embedding and clusters into its AnnData.

        The first call pretrains the model as a VAE, starts the mixture from a partition of the
        cells, and trains both together. Where neither K nor labels nor ``guide_key`` is given,
        components that overlap are then merged (:meth:`merge_components`). A further call goes on
        with the joint stage and keeps components and clusters.

        Parameters
        ----------
        max_epochs
            Epochs of the joint stage. ``None`` makes them about 1,500 minibatches of 128 cells,
            but no fewer than 20 epochs and no more than 100; of images about 4,700, 10 to 60
            epochs.
        pretrain_epochs
            Epochs of the first stage. ``None`` makes them about 320 minibatches, 5 to 60 epochs;
            of images about 9,400, 10 to 60 epochs; and none without a mixture. A model that has
            its components has no first stage any more.
        start
            Initial partition: ``"leiden"``, ``"kmeans"`` or ``"gmm"``, see
            :func:`~scgmvae.clustering.partition.initial_partition`. Counts without conditions are
            partitioned by principal components of their log-normalised values; all else by the
            pretrained z, from which differences between conditions are gone. Of more than 100,000
            cells, or 16,384 on disk, a sample is partitioned, and the others follow the
            classifier.
        guide_key
            obs column to start from in place of a partition that is found, for example one of
            Leiden groups, which are not merged after training. Where there are labels as well,
            groups with labelled cells start by their labels.
        guide_weight
            Weight of the cross-entropy to the starting partition at the start of the joint stage,
            in nats per nat; it falls to 0 over the first two thirds of the stage. ``None`` is 10;
            of images 0.64 for each value of x, and it falls until the end.
        balance_key
            obs column whose groups come up equally often in training, however rare they are. Cells
            without a label come up as often as without balancing where it is the column of labels.
        seed
            Of everything random: first weights (drawn anew by the first call), order of the cells,
            dropout, samples, start. Any other random state stays as it is. ``None`` takes
            ``scvi.settings.seed``, or 0. On a CPU the same seed gives the same result bit for bit;
            on a GPU sums are added up in varying order.
        accelerator, devices
            As in Lightning; ``"auto"`` takes a GPU where there is one. With several devices a
            script is run once for each of them (``strategy="ddp"``), and ``batch_size`` is that of
            one device.
        train_size, validation_size, shuffle_set_split
            As in :class:`scvi.dataloaders.DataSplitter`, except that all cells are trained on
            unless some setting needs validation cells (then 0.9): early stopping,
            ``check_val_every_n_epoch``, checkpoints, or a learning rate that is lowered on a
            plateau.
        load_sparse_tensor
            Without effect: minibatches are CSR tensors wherever that is faster.
        batch_size
            Largest number of cells in a minibatch; ``None`` is ``scvi.settings.batch_size``.
        early_stopping
            Stop the joint stage when the ELBO of the validation cells stops rising, with the
            divergences at full weight whatever weight they train with. Further settings are those
            of :class:`scvi.train.Trainer`.
        datasplitter_kwargs
            Further arguments of :class:`~scgmvae.data.minibatches.SeededDataSplitter`.
        plan_config, trainer_config
            As ``plan_kwargs`` and ``trainer_kwargs``, which come first where both say something.
        plan_kwargs
            Further arguments of :class:`~scgmvae.train.plan.StagedTrainingPlan`, for example
            ``lr``, or ``classification_weight``, that of the cross-entropy of labelled cells
            (default 1, of images 0.64 for each value of x).
        datamodule
            Minibatches of a model that was made of this data module's registry. They must come
            mixed, as its sample does: its first minibatches, of at least 16,384 cells, become the
            model's AnnData, by which the mixture starts, components are merged and novelty is
            measured. A further training takes a new sample in its place. The other cells are
            guided by the classifier of the start. What chooses among cells (``guide_key``,
            ``balance_key``, ``train_size``, ``batch_size`` ...), checkpoints and several devices
            are not for it.
        checkpoint_dir
            New folder for a checkpoint: the model as :meth:`save` writes it, and the state of its
            training. The next one replaces it once it is whole.
        checkpoint_every
            Epochs between two checkpoints (10 by default); each stage ends with one as well.
        resume_from
            Checkpoint of a training that was interrupted or killed. It goes on where that was
            written, with the arguments that it was begun with, in a model of the same settings and
            data, and goes on writing there unless ``checkpoint_dir`` is given. On a CPU it ends as
            if it had never stopped. Of the arguments only those of the machine and of the trainer
            can be given anew; loggers and callbacks have to be, with the settings that they had.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        FloatingPointError
            If loss, weights or statistics come out infinite or NaN: with the term, the stage, the
            step and the cells. The weights are those that the epoch began with.
        KeyError
            If ``guide_key`` or ``balance_key`` is no obs column.
        NotImplementedError
            For a data module on several devices, and what of scvi-tools' training would read
            pickles.
        OSError
            If a checkpoint cannot be written. What was trained so far is kept.
        ValueError
            If an argument is out of range, a column has missing values, a query has nothing to
            train, a setting needs validation cells and there are none, or ``resume_from`` has no
            checkpoint of this model and its data.

        Notes
        -----
        Where fewer than a tenth of the cells have labels, they come up so often that a tenth of
        every minibatch has.

        In a mixture of images the divergences have weight 0.05 in both stages, so that z keeps
        the detail that tells classes apart; ``plan_kwargs={"max_kl_weight": 1.0}`` has
        weight 1 in the joint stage. The step length falls to 0 over the joint stage;
        ``plan_kwargs={"lr_decline": 0.0}`` keeps it.
        """
        if datamodule is not None:
            check_data_module(self, datamodule)
        elif self.label_codes_ is not None:
            raise ValueError(
                "The model was made for a data module, and its AnnData is a sample of the cells. "
                "Train it by train(datamodule=...)."
            )
        elif self.adata is None:
            raise RuntimeError("The model has no data to train on: load it with adata=...")
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError(
                "A query trains the weights of its new batches or other new categories, but this "
                "one has none that the reference does not know. Read its results without training."
            )
        trainer_kwargs = merge_kwargs(trainer_config, trainer_kwargs, name="trainer")
        for name in ("max_epochs", "accelerator", "devices"):  # are arguments of their own
            trainer_kwargs.pop(name, None)
        check_checkpoints(trainer_kwargs.get("callbacks") or ())
        arguments = {
            "max_epochs": max_epochs,
            "pretrain_epochs": pretrain_epochs,
            "start": start,
            "guide_key": guide_key,
            "guide_weight": guide_weight,
            "balance_key": balance_key,
            "seed": seed,
            "train_size": train_size,
            "validation_size": validation_size,
            "shuffle_set_split": shuffle_set_split,
            "batch_size": batch_size,
            "early_stopping": trainer_kwargs.pop("early_stopping", False) or early_stopping,
            "datasplitter_kwargs": datasplitter_kwargs,
            "plan_kwargs": merge_kwargs(plan_config, plan_kwargs, name="plan") or None,
        }
        if datamodule is not None:
            of_folders = {"checkpoint_dir": checkpoint_dir, "resume_from": resume_from}
            _check_not_given(
                {name: arguments[name] for name in OF_ANNDATA} | of_folders,
                "A data module makes the minibatches, and its cells have neither numbers nor "
                "columns other than those of its registry",
                "datamodule",
            )
        if checkpoint_every is not None:
            checks.check_whole(1, checkpoint_every=checkpoint_every)
        check_devices(accelerator, devices)
        if resume_from is not None:
            _check_not_given(
                arguments,
                "A training that is resumed has the arguments that it was begun with",
                "resume_from",
            )
            saved = read_checkpoint(self, Path(resume_from))
            training = Training(*(saved.training[name] for name in Training._fields))
            arguments = dict(training.arguments)
            trainer_kwargs = arguments.pop("trainer_kwargs") | trainer_kwargs
            checkpoint_every = checkpoint_every or saved.training["every"]
        else:
            saved = None
            arguments["seed"] = settings.seed or 0 if seed is None else seed
            if batch_size is None:
                arguments["batch_size"] = settings.batch_size
            if train_size is None:
                validates = needs_validation(arguments, trainer_kwargs)
                arguments["train_size"] = 0.9 if validates else 1.0
            training = Training(
                arguments,
                is_first=not self.is_trained_,
                goes_on=self.is_trained_ and self.module.mixture_started,
            )
        self._check_training(training.goes_on, **arguments)
        checkpoints = None
        if checkpoint_dir is not None or resume_from is not None:
            folder = Path(checkpoint_dir or resume_from)
            if resume_from is None or folder.resolve() != Path(resume_from).resolve():
                check_new_folder(folder)
            kept = training._replace(arguments=kept_arguments(arguments, trainer_kwargs))
            checkpoints = Checkpoints(
                folder, checkpoint_every or 10, self, kept, saved and saved.training
            )
        self._train(
            training._replace(arguments=arguments),
            saved,
            checkpoints,
            datamodule,
            accelerator=accelerator,
            devices=devices,
            **trainer_kwargs,
        )

    def _check_training(
        self,
        goes_on: bool,
        *,
        max_epochs: int | None,
        pretrain_epochs: int | None,
        start: Start,
        guide_key: str | None,
        guide_weight: float | None,
        balance_key: str | None,
        batch_size: int,
        **others: object,
    ) -> None:
        """Raise where an argument of :meth:`train` does not suit the model and its data."""
        checks.check_key_added(self.registry_[scvi_constants._SETUP_ARGS_KEY])
        checks.check_columns(self.adata, guide_key=guide_key, balance_key=balance_key)
        if max_epochs is not None:
            checks.check_whole(1, max_epochs=max_epochs)
        if pretrain_epochs is not None:
            checks.check_whole(0, pretrain_epochs=pretrain_epochs)
        checks.check_whole(1, batch_size=batch_size)
        checks.check_at_least(0, guide_weight=guide_weight)
        # what an interrupted start has found does not bind the next
        n_components = (
            self.n_components_ if goes_on else self.init_params_["non_kwargs"]["n_components"]
        )
        if guide_key is None and not goes_on and self.module.has_mixture:
            check_start(start, n_components)
        if guide_key is not None and not self.module.has_mixture:
            raise ValueError(
                f"guide_key gives components their start, but prior={self.module.prior!r} has "
                "none. Leave it out."
            )
        if goes_on and guide_key is not None:
            raise ValueError(
                "guide_key gives a model its first components, but this one has been trained. "
                "Leave it out to go on, or make a new model."
            )
        checks.check_guide(self.adata, guide_key, n_components)

    def _go_on_from(self, saved: Saved) -> None:
        """Make the model what it was when a checkpoint was written, except for its weights."""
        for name, value in saved.attributes.items():
            if name not in ("registry_", "init_params_"):
                setattr(self, name, value)

    def _train(
        self,
        training: Training,
        saved: Saved | None,
        checkpoints: Checkpoints | None,
        datamodule: pl.LightningDataModule | None,
        accelerator: str,
        devices: int | list[int] | str,
        **trainer_kwargs: object,
    ) -> None:
        """Train from the start, or from a checkpoint, and write the results."""
        given, goes_on, seed = training.arguments, training.goes_on, training.arguments["seed"]
        recipe = self._recipe
        if datamodule is not None:
            validates = needs_validation(given, trainer_kwargs)
            splitter = ForeignMinibatches(self, datamodule, validates)
        else:
            splitter = SeededDataSplitter(
                self.adata_manager,
                seed=seed,
                train_size=given["train_size"],
                validation_size=given["validation_size"],
                shuffle_set_split=given["shuffle_set_split"],
                batch_size=given["batch_size"],
                copies=self._copies(given["balance_key"]),
                sparse=self.module.takes_sparse,
                **(given["datasplitter_kwargs"] or {}),
            )
        max_epochs, pretrain_epochs = given["max_epochs"], given["pretrain_epochs"]
        if max_epochs is None:
            max_epochs = recipe.joint.epochs(splitter.n_obs)
        if goes_on or not (training.is_first or self.module.has_mixture):
            pretrain_epochs = 0
        elif pretrain_epochs is None:
            default = recipe.pretraining.epochs(splitter.n_obs)
            pretrain_epochs = default if self.module.has_mixture else 0
        with (
            unchanged_without_training(self),
            torch.random.fork_rng(range(torch.cuda.device_count())),
        ):
            torch.manual_seed(seed)
            self.seed_ = seed
            if datamodule is not None:
                self.adata = splitter.sample()
                rows = np.arange(self.adata.n_obs)
            else:
                rows = np.sort(splitter.external_indexing[0])
            if saved is not None:
                self._go_on_from(saved)
            elif not goes_on:
                self.n_components_ = self.init_params_["non_kwargs"]["n_components"]
                self.component_clusters_ = None
            if training.is_first:
                self.module = self._make_module()
            elif saved is not None:
                self.module = deepcopy(self.module)  # which an error leaves as it was
            if saved is not None:
                restore_module(self, saved)
            elif training.is_first:
                self._start_module(rows)
            guide_weight = 0.0 if goes_on else given["guide_weight"]
            settings_of_plan = {
                **(recipe.weights(self.module.n_input) if self.module.has_mixture else {}),
                **({} if guide_weight is None else {"guide_weight": guide_weight}),
                **(given["plan_kwargs"] or {}),
            }
            if self.reference_categories_ is not None:
                settings_of_plan["weight_decay"] = 0.0  # it would move what is frozen
            plan = StagedTrainingPlan(
                self.module,
                pretrain_epochs=pretrain_epochs,
                joint_epochs=max_epochs,
                **settings_of_plan,
            )

            def start_from_data() -> NDArray[np.integer]:
                return self._start_mixture(rows, given["start"], given["guide_key"], seed)

            callbacks = [
                *([] if checkpoints is None else [checkpoints]),
                *(trainer_kwargs.pop("callbacks", None) or ()),
                MixtureStart(start_from_data, checkpoints),
                FiniteWatch(self.adata.obs_names if datamodule is None else None),
            ]
            first_epoch = 0 if saved is None else saved.training["epoch"]
            every = trainer_kwargs.get("check_val_every_n_epoch") or 1
            if plan.reduce_lr_on_plateau:
                # scvi-tools sees to it, but not where there is a LearningRateMonitor already
                trainer_kwargs["check_val_every_n_epoch"] = every
            # scvi-tools counts validations from the start of the trainer
            warmup = pretrain_epochs + trainer_kwargs.pop("early_stopping_warmup_epochs", 0)
            strategy = strategy_for(trainer_kwargs.pop("strategy", "auto"), devices)
            runner = StagedTrainRunner(
                self,
                training_plan=plan,
                data_splitter=splitter,
                max_epochs=int(pretrain_epochs + max_epochs),
                accelerator=accelerator,
                devices=devices,
                early_stopping=given["early_stopping"],
                early_stopping_warmup_epochs=max(0, warmup // every - first_epoch // every),
                callbacks=callbacks,
                strategy=strategy,
                **trainer_kwargs,
            )
            runner.first_epoch = first_epoch
            if checkpoints is not None:
                checkpoints.runner = runner
            runner()
        posteriors = self._posteriors()
        finds_k = (
            self.init_params_["non_kwargs"]["n_components"] is None and given["guide_key"] is None
        )
        if self.mixture_started_ and not goes_on and finds_k and not self._label_names:
            self._merge(posteriors)
        self._model_summary_string = self._summary()
        if self.module.mixture_started and self.reference_categories_ is None:
            trained = posteriors
            if len(rows) < self.adata.n_obs:
                trained = {name: values[rows] for name, values in posteriors.items()}
            self._remember_training_cells(trained)
        self._write(self.adata, posteriors)

    def _start_module(self, rows: NDArray[np.integer]) -> None:
        """Give fresh weights what they need to know of the training cells."""
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        mean = column_means(x, rows) * pixel_scale(self.adata_manager)
        start_decoder(self.module, mean)
        if self.module.use_size_factor:
            factors = self.adata_manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY)
            mean_factor = factors[rows].astype(float).mean()
            self.module.size_scale.fill_(mean.sum() / mean_factor)

    @property
    def _recipe(self) -> Recipe:
        return COUNTS if self.module.image_shape is None else IMAGES

    def _copies(self, balance_key: str | None) -> NDArray[np.floating] | None:
        """How often each cell comes up in an epoch, (n,); ``None`` is once each."""
        n_obs, labels = self.adata.n_obs, self._label_codes()
        copies = np.ones(n_obs)
        is_labelled = labels >= 0
        if balance_key is not None:
            groups = self.adata.obs[balance_key].astype("category").cat.codes.to_numpy()
            balanced = np.ones(n_obs, dtype=bool)
            if balance_key == self.registry_[scvi_constants._SETUP_ARGS_KEY]["labels_key"]:
                balanced = is_labelled
            _, group, sizes = np.unique(groups[balanced], return_inverse=True, return_counts=True)
            copies[balanced] = balanced.sum() / (len(sizes) * sizes[group])
        if self.module.has_mixture and 0 < is_labelled.sum() < LABELLED_SHARE * n_obs:
            wanted = LABELLED_SHARE / (1 - LABELLED_SHARE) * copies[~is_labelled].sum()
            copies[is_labelled] *= max(1.0, wanted / copies[is_labelled].sum())
        return None if (copies == 1).all() else copies

    def _label_codes(self) -> NDArray[np.int64]:
        """Label of each cell as the number of its component, −1 where it has none, (n,)."""
        n_labels = len(self._label_names)
        if not n_labels:
            return np.full(self.adata.n_obs, -1)
        codes = self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY)
        codes = codes.ravel().astype(np.int64)
        return np.where(codes == n_labels, -1, codes)  # the unlabelled category is the last code

    def _start_mixture(
        self, rows: NDArray[np.integer], start: Start, guide_key: str | None, seed: int
    ) -> NDArray[np.integer]:
        """Start the components from a partition of the training cells.

        Returns
        -------
        Codes of all cells, −1 outside of ``rows``.
        """
        chosen = rows if guide_key is not None else self._cells_to_start_from(rows, seed)
        posteriors = self._posteriors(indices=chosen)
        partition = self._partition(chosen, posteriors["z_loc"], start, guide_key, seed)
        n_found = max(self.module.n_labels, int(partition.max()) + 1)
        self.n_components_ = self.n_components_ or n_found
        tensors = self._training_cells(chosen)
        start_mixture(
            self.module, tensors, posteriors, torch.from_numpy(partition), self.n_components_
        )
        codes = np.full(self.adata.n_obs, -1)
        codes[chosen] = partition
        others = np.setdiff1d(rows, chosen)
        # the others follow the classifier that was fitted to the chosen ones
        for part in np.split(others, range(CELLS_IN_MEMORY, len(others), CELLS_IN_MEMORY)):
            if len(part):
                codes[part] = self._posteriors(indices=part)["log_proba"].argmax(1)
        labels = self._label_codes()
        codes[others] = np.where(labels[others] >= 0, labels[others], codes[others])
        self.mixture_started_ = True  # for checkpoints that are saved from now on
        self.module.train()
        return codes

    def _cells_to_start_from(self, rows: NDArray[np.integer], seed: int) -> NDArray[np.integer]:
        """Training cells that are partitioned: all, or a sample that memory and time allow.

        Labelled cells come first, up to half of the sample, those of the rarest labels before
        others. On disk the sample is made of blocks of neighbours, which are read at once.
        """
        on_disk = is_on_disk(self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))
        largest = CELLS_IN_MEMORY if on_disk else LARGEST_START
        if len(rows) <= largest:
            return rows
        rng = np.random.default_rng(seed)
        labels = pd.Series(self._label_codes()[rows], index=rows)
        labelled = labels[labels >= 0].sample(frac=1, random_state=seed)
        rank = labelled.groupby(labelled).cumcount().sort_values(kind="stable")
        chosen = rank.index[: largest // 2].to_numpy()
        others = np.setdiff1d(rows, chosen)
        block = BLOCK if on_disk else 1
        blocks = np.split(others, range(block, len(others), block))
        n_blocks = (largest - len(chosen)) // block
        picked = rng.choice(len(blocks), min(n_blocks, len(blocks)), replace=False)
        return np.sort(np.concatenate([chosen, *(blocks[i] for i in picked)]))

    def _training_cells(self, rows: NDArray[np.integer]) -> dict[str, Tensor]:
        """The training cells as one minibatch, with x only where the classifier sees it."""
        x_key = REGISTRY_KEYS.X_KEY
        loader = self._make_data_loader(self.adata, rows, batch_size=1024)
        tensors = {key: values[rows] for key, values in loader.fields.items()}
        tensors[x_key] = torch.empty(len(rows), 0)
        if self.module.classifier_input == "zx":
            tensors[x_key] = torch.cat([part[x_key] for part in loader])
        return tensors | loader.of_all_cells

    def _partition(
        self,
        rows: NDArray[np.integer],
        z: NDArray[np.float32],
        start: Start,
        guide_key: str | None,
        seed: int,
    ) -> NDArray[np.int64]:
        """Starting components of the training cells, (n,), with labels in their places."""
        representation = z
        if self.module.is_count and not self.module.has_conditions:
            counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
            representation = log_normalized_pcs(read_rows(counts, rows), seed=seed)
        if guide_key is not None:
            column = self.adata.obs[guide_key].iloc[rows].astype("category")
            partition = by_size(column.cat.codes.to_numpy())
        else:
            partition = initial_partition(
                representation, self.n_components_, start, seed, self._recipe.straight
            )
        if self.module.n_labels:
            partition = partition_by_labels(
                representation,
                partition,
                self._label_codes()[rows],
                self.module.n_labels,
                self.n_components_,
                straight=self._recipe.straight,
            )
        return partition


OF_ANNDATA = (
    "guide_key",
    "balance_key",
    "train_size",
    "validation_size",
    "shuffle_set_split",
    "batch_size",
    "datasplitter_kwargs",
)
"""Arguments of ``train`` that choose among the cells of an AnnData."""

LARGEST_START = 100_000
"""Of more cells, a sample is partitioned."""

LABELLED_SHARE = 0.1
"""Share of labelled cells in a minibatch, unless there are more."""


def _check_not_given(arguments: dict[str, object], rule: str, source: str) -> None:
    """Raise ``ValueError`` where an argument is given that a training does not go by."""
    defaults = inspect.signature(StagedTrainingMixin.train).parameters
    given = [name for name, value in arguments.items() if value != defaults[name].default]
    if given:
        names = ", ".join(given)
        raise ValueError(f"{rule}, but train got {source} and {names}. Leave out {names}.")


class Length(NamedTuple):
    """Length of a stage: minibatches of 128, and bounds on the epochs that they make."""

    n_steps: int
    shortest: int
    longest: int

    def epochs(self, n_obs: int) -> int:
        """Epochs for a number of cells.

        Parameters
        ----------
        n_obs
            Number of cells.

        Examples
        --------
        >>> Length(n_steps=320, shortest=5, longest=60).epochs(4_271)
        10
        """
        return int(np.clip(round(self.n_steps * 128 / n_obs), self.shortest, self.longest))


class Recipe(NamedTuple):
    """Defaults of training that differ between kinds of data."""

    pretraining: Length
    joint: Length
    plan: dict[str, float]
    """Settings of the training plan of a model with a mixture."""
    per_value: dict[str, float]
    """Further ones that are multiplied by the number of values in x, as its likelihood is."""
    straight: bool
    """Whether groups in the latent are balls, with straight borders between them."""

    def weights(self, n_input: int) -> dict[str, float]:
        """Settings of the training plan for x of n_input values."""
        return self.plan | {name: value * n_input for name, value in self.per_value.items()}


COUNTS = Recipe(Length(320, 5, 60), Length(1500, 20, 100), {}, {}, straight=True)
"""Longer pretraining ends at the same agreement with the labels, as
``benchmarks/studies/recipe.py`` shows."""

IMAGES = Recipe(
    Length(9400, 10, 60),
    Length(4700, 10, 60),
    {
        "pretrain_kl_weight": 0.05,
        "max_kl_weight": 0.05,
        "guide_fraction": 1.0,
        "lr_decline": 1.0,
    },
    {"guide_weight": 0.64, "classification_weight": 0.64},
    straight=False,
)
"""A weak divergence in pretraining keeps the classes apart in z, as curved sheets rather than
balls, which a graph follows and straight borders do not. Gaussian components cannot hold on to
such sheets by themselves, so the guide fades until the very end. Cross-entropies weighted as for
counts would drown in the reconstruction of hundreds of pixels. The borders of the classes jump
from epoch to epoch unless the steps get shorter."""
