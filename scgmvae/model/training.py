"""Training in three stages under one trainer: pretrain, start the mixture, joint.

1. *pretrain*: the module is the plain VAE; the weight of its KL rises over the first part.
2. *start*: the latent, or principal components, are partitioned, and components and classifier
   are fitted to the partition.
3. *joint*: the full bound. The partition stays as a guide, a cross-entropy whose weight falls to
   zero, so that the first joint steps, in which the components are still rough, cannot undo a
   good start. What labels of some cells say of the others are probabilities, and their weight
   stays.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import settings as scvi_settings
from scvi.train._config import KwargsLike, merge_kwargs

from scgmvae import checks
from scgmvae.clustering.partition import Start, check_start
from scgmvae.data import validation
from scgmvae.data.datamodules import ForeignMinibatches
from scgmvae.data.minibatches import SeededDataSplitter
from scgmvae.data.registry import label_codes
from scgmvae.model.start import StartMixin
from scgmvae.train.cells import copies_of_cells
from scgmvae.train.checkpoints import (
    Checkpoints,
    check_new_folder,
    check_same,
    fingerprint,
    read_checkpoint,
    restore_module,
)
from scgmvae.train.devices import check_devices
from scgmvae.train.finite_watch import FiniteWatch
from scgmvae.train.plan import StagedTrainingPlan
from scgmvae.train.recipe import SMALLEST_MINIBATCH
from scgmvae.train.request import (
    Folders,
    Request,
    Training,
    check_length_is_known,
    check_only_minibatches,
    check_only_resumed,
    trainer_arguments,
)
from scgmvae.train.runner import StagedTrainRunner
from scgmvae.train.start import (
    MixtureStart,
)

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from numpy.typing import NDArray

__all__ = ["TrainingMixin"]

Splitter = SeededDataSplitter | ForeignMinibatches
"""Source of the minibatches of a training."""


class TrainingMixin(StartMixin):
    """The method ``train``, in three stages."""

    n_components_asked: int | None
    """K as the user has set it; ``None`` if it is found from the data."""
    reference_categories_: tuple[int, ...] | None
    """Categories of the conditions that a query's reference has; ``None`` without a reference."""

    def train(
        self,
        max_epochs: int | None = None,
        pretrain_epochs: int | None = None,
        *,
        start: Start | None = None,
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
        batch_size: int | None = None,
        early_stopping: bool = False,
        datasplitter_kwargs: dict | None = None,
        plan_config: KwargsLike | None = None,
        plan_kwargs: KwargsLike | None = None,
        datamodule: pl.LightningDataModule | None = None,
        trainer_config: KwargsLike | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int | None = None,
        resume_from: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model, and write embedding and clusters into its AnnData.

        The first call pretrains the model as a VAE, starts the mixture from a partition of the
        cells, and trains both together. If neither K nor labels nor ``guide_key`` is given,
        clusters are then made of the components: those of the tested splits that are strong
        (:meth:`cut`), or, with ``start="leiden"``, of components that overlap
        (:meth:`merge_components`). A further call goes on with the joint stage and keeps
        components and clusters.

        Parameters
        ----------
        max_epochs
            Epochs of the joint stage. ``None`` makes them about 2,500 minibatches of 128 cells,
            but no fewer than 20 epochs and no more than 120; of images about 4,700, 10 to 60
            epochs.
        pretrain_epochs
            Epochs of the first stage. ``None`` makes them about 2,000 minibatches, 10 to 120
            epochs; of images about 9,400, 10 to 60 epochs; and none without a mixture. A model
            that has its components has no first stage any more.
        start
            Initial partition. ``"tested"``, the default except for images: tested splits of the
            pretrained z (:meth:`split_table`), of a sample where there are more than 20,000 cells.
            ``"leiden"``, ``"kmeans"`` or ``"gmm"``: see
            :func:`~scgmvae.clustering.partition.initial_partition`; counts without conditions are
            then partitioned by principal components of their log-normalised values, all else by
            the pretrained z, of a sample where there are more than 100,000 cells. On disk a sample
            has 16,384 cells. Cells outside of a sample follow the classifier.
        guide_key
            obs column of your own clustering, for example Leiden groups, from which the components
            start in place of a computed partition. The components are not merged after training.
            If there are labels as well, groups with labelled cells start by their labels.
        guide_weight
            Weight of the cross-entropy to the starting partition at the start of the joint stage,
            in nats per nat; it falls to 0 over the first two thirds of the stage. ``None`` is 10;
            of images 0.64 for each value of x, and it falls until the end. Where labels of some
            cells are spread over others, as probabilities, the weight stays, and ``None`` is 3. A
            further training has no such guide.
        balance_key
            obs column whose groups come up equally often in training, however rare they are. Cells
            without a label come up as often as without balancing if it is the column of labels.
        seed
            Seed of everything random: first weights (drawn anew by the first call), order of the
            cells, dropout, samples, start. Any other random state stays as it is. ``None`` takes
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
            Largest number of cells in a minibatch. ``None`` is ``scvi.settings.batch_size`` where
            that was changed from 128. Else it is 128, and except of images twice as many for each
            doubling of 25,000 cells, up to 1,024; Adam's steps are then longer in proportion to
            the root, unless ``plan_kwargs`` has an ``lr``.
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
            Source of the minibatches, for a model made of its registry or without data. They
            must come in random order: the first ones, of at least 16,384 cells, become the AnnData
            of the model, with which the mixture is started, components are merged and novelty is
            measured. A further training takes a new sample. The other cells are guided by the
            classifier as it was when the mixture had started. Arguments that choose among cells
            (``guide_key``, ``balance_key``, ``train_size``, ``batch_size`` ...), checkpoints and
            several devices cannot be used with it.
        checkpoint_dir
            New folder for a checkpoint: the model as :meth:`save` writes it, and the state of its
            training. The next checkpoint replaces it once it is whole.
        checkpoint_every
            Epochs between two checkpoints (10 by default); each stage ends with one as well.
        resume_from
            Checkpoint of a training that was interrupted or killed. The training continues from
            the checkpoint with the arguments that it was started with; the model must have the
            same settings and data. Further checkpoints are written to the same folder unless
            ``checkpoint_dir`` is given. On a CPU the result is the same as without the
            interruption. Only the arguments of the machine and of the trainer can be given anew;
            loggers and callbacks have to be, with the settings that they had.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        FloatingPointError
            If loss, weights or statistics are infinite or NaN. The error names the term, the
            stage, the step and the cells. The weights are those that the epoch began with.
        KeyError
            If ``guide_key`` or ``balance_key`` is no obs column.
        NotImplementedError
            For a data module on several devices, and for settings of scvi-tools that would read
            pickles.
        OSError
            If a checkpoint cannot be written. What was trained so far is kept.
        ValueError
            If an argument is out of range, a column has missing values, a query has nothing to
            train, a setting needs validation cells and there are none, or ``resume_from`` has no
            checkpoint of this model and its data.

        Notes
        -----
        If fewer than 10 % of the cells are labelled, they are oversampled to 10 % of every
        minibatch.

        In a mixture of images the divergences have weight 0.05 in both stages, so that z keeps
        the detail that tells classes apart; ``plan_kwargs={"max_kl_weight": 1.0}`` sets
        weight 1 in the joint stage. The step length falls to 0 over the joint stage;
        ``plan_kwargs={"lr_decline": 0.0}`` keeps it.
        """
        trainer_kwargs = trainer_arguments(trainer_config, trainer_kwargs)
        request = Request(
            max_epochs=max_epochs,
            pretrain_epochs=pretrain_epochs,
            start=start,
            guide_key=guide_key,
            guide_weight=guide_weight,
            balance_key=balance_key,
            seed=seed,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            early_stopping=trainer_kwargs.pop("early_stopping", False) or early_stopping,
            datasplitter_kwargs=datasplitter_kwargs,
            plan_kwargs=merge_kwargs(plan_config, plan_kwargs, name="plan") or None,
        )
        folders = Folders(checkpoint_dir, checkpoint_every, resume_from)
        if datamodule is not None:
            check_only_minibatches(request, folders)
        check_devices(accelerator, devices)
        if self.module is None:
            self._make_for(datamodule, max_epochs)
        self._check_has_cells(datamodule)
        if resume_from is None:
            training = self._begun(request, trainer_kwargs, datamodule is None)
        else:
            check_only_resumed(request)
            training = self._resumed(Path(resume_from), trainer_kwargs)
        self._check_training(training.request, training.goes_on)
        checkpoints = self._checkpoints(training, folders)
        splitter = self._splitter(training, datamodule)
        with self._in_training(training.request.seed):
            rows = self._take_cells(splitter)
            self._make_ready(training, rows)
            plan = self._plan(training, splitter.n_obs)
            callbacks = self._callbacks(training, checkpoints, rows, splitter)
            machine = {"accelerator": accelerator, "devices": devices}
            runner = self._run(training, plan, splitter, checkpoints, callbacks, machine)
        self._finish(training, rows)
        if runner.progress is not None:
            runner.progress.say(self._found_in_words())

    # ------------------------------------------------------------------- what is asked for

    def _check_has_cells(self, datamodule: object) -> None:
        """Raise if there are no cells to train on, or no weights to train."""
        if datamodule is not None:
            self._check_data_module(datamodule)
        elif self.label_codes_ is not None:
            raise ValueError(
                "The model was made for a data module, and its AnnData is a sample of the cells. "
                "Train it by train(datamodule=...)."
            )
        elif self.adata is None:
            raise RuntimeError("The model has no data to train on: load it with adata=...")
        else:
            self._check_own_data(to_train=True)
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError(
                "A query trains the weights of its new batches or other new categories, but this "
                "one has none that the reference does not know. Read its results without training."
            )

    def _begun(
        self, request: Request, trainer_kwargs: dict[str, Any], is_of_anndata: bool
    ) -> Training:
        """New training."""
        minibatch = None
        if is_of_anndata and scvi_settings.batch_size == SMALLEST_MINIBATCH:
            minibatch = self._recipe.minibatch(self.adata.n_obs)
        return Training(
            request.resolved(self._seed_of(request.seed), trainer_kwargs, minibatch),
            trainer_kwargs,
            is_first=not self.is_trained_,
            goes_on=self.is_trained_ and self.module.mixture_started,
        )

    def _resumed(self, folder: Path, trainer_kwargs: dict[str, Any]) -> Training:
        """Training that continues from a checkpoint of this model and its data."""
        saved = read_checkpoint(folder, type(self).__name__)
        training = Training.resumed(saved, trainer_kwargs)
        data = self._fingerprint(training.request)
        check_same(folder, saved, self.init_params_, self.registry_, data)
        return training

    def _fingerprint(self, request: Request) -> str:
        """Hash of the data that a training reads."""
        columns = [key for key in (request.guide_key, request.balance_key) if key]
        return fingerprint(self.adata_manager, columns)

    def _check_training(self, request: Request, goes_on: bool) -> None:
        """Raise where an argument of :meth:`train` does not suit the model and its data."""
        guide_key, prior = request.guide_key, self.module.prior
        validation.check_key_added(self._setup.arguments)
        validation.check_columns(self.adata, guide_key=guide_key, balance_key=request.balance_key)
        if request.max_epochs is not None:
            checks.check_whole(1, max_epochs=request.max_epochs)
        if request.pretrain_epochs is not None:
            checks.check_whole(0, pretrain_epochs=request.pretrain_epochs)
        checks.check_whole(1, batch_size=request.batch_size)
        checks.check_at_least(0, guide_weight=request.guide_weight)
        # a K that an interrupted start has found does not bind the next start
        n_components = self.n_components_ if goes_on else self.n_components_asked
        if guide_key is None and not goes_on and self.module.has_mixture:
            check_start(request.start or self._recipe.start, n_components)
        if guide_key is not None and not self.module.has_mixture:
            raise ValueError(
                f"guide_key gives components their start, but prior={prior!r} has none. Leave it "
                "out."
            )
        if goes_on and guide_key is not None:
            raise ValueError(
                "guide_key gives a model its first components, but this one has been trained. "
                "Leave it out to go on, or make a new model."
            )
        validation.check_guide(self.adata, guide_key, n_components)

    def _checkpoints(self, training: Training, folders: Folders) -> Checkpoints | None:
        """Callback that writes checkpoints; ``None`` if there is no folder for them."""
        if folders.target is None:
            return None
        if folders.is_new:
            check_new_folder(folders.target)
        state = training.saved and training.saved.training
        return Checkpoints(
            folders.target,
            folders.every() if state is None else folders.every(state["every"]),
            save=self._write_checkpoint,
            attributes=self._attributes,
            training=training.kept(),
            data=self._fingerprint(training.request),
            state=state,
        )

    def _write_checkpoint(
        self, folder: Path, attributes: dict[str, Any], state: dict[str, Any]
    ) -> None:
        self._write_files(folder, "", attributes, training=state)

    # ------------------------------------------------------------------------- what is run

    def _splitter(self, training: Training, datamodule: pl.LightningDataModule | None) -> Splitter:
        """Source of the minibatches."""
        request = training.request
        if datamodule is not None:
            validates = request.needs_validation(training.trainer_kwargs)
            return ForeignMinibatches(datamodule, self._layout(), validates)
        return SeededDataSplitter(
            self.adata_manager,
            seed=request.seed,
            train_size=request.train_size,
            validation_size=request.validation_size,
            shuffle_set_split=request.shuffle_set_split,
            batch_size=request.batch_size,
            copies=self._copies(request.balance_key),
            sparse=self.module.takes_sparse,
            **(request.datasplitter_kwargs or {}),
        )

    def _copies(self, balance_key: str | None) -> NDArray[np.floating] | None:
        """How often each cell comes up in an epoch, (n,); ``None`` if each comes up once."""
        groups = None
        if balance_key is not None:
            groups = self.adata.obs[balance_key].astype("category").cat.codes.to_numpy()
        return copies_of_cells(
            label_codes(self.adata_manager),
            groups,
            groups_are_labels=balance_key == self._setup.labels_key,
            has_mixture=self.module.has_mixture,
        )

    def _take_cells(self, splitter: Splitter) -> NDArray[np.integer]:
        """Rows of the training cells; the sample of a data module becomes the model's data."""
        if isinstance(splitter, ForeignMinibatches):
            self.adata = splitter.sample()
            return np.arange(self.adata.n_obs)
        return np.sort(splitter.external_indexing[0])

    def _make_ready(self, training: Training, rows: NDArray[np.integer]) -> None:
        """Give the model the weights that training begins with: new, its own, or saved ones."""
        saved = training.saved
        if saved is not None:
            for name, value in saved.attributes.items():
                if name not in ("registry_", "init_params_"):
                    setattr(self, name, value)
        elif not training.goes_on:
            self.n_components_ = self.n_components_asked
            self.component_clusters_ = self.split_tree_ = None
        if training.is_first:
            self.module = self._make_module()
        elif saved is not None:
            self.module = deepcopy(self.module)  # after an error it is as before
        if saved is not None:
            restore_module(self.module, saved)
            known = self.module.n_known_categories
            if known is not None:  # a copy of a parameter has no hooks of its gradient
                self.module.freeze_known(known)
        elif training.is_first:
            self._start_module(rows)

    def _plan(self, training: Training, n_obs: int | None) -> StagedTrainingPlan:
        """The training plan, with the lengths of the stages and the weights of the terms."""
        request, recipe, has_mixture = training.request, self._recipe, self.module.has_mixture
        joint_epochs, pretrain_epochs = request.max_epochs, request.pretrain_epochs
        check_length_is_known(joint_epochs, n_obs)
        if joint_epochs is None:
            joint_epochs = recipe.joint.epochs(n_obs)
        if training.goes_on or not (training.is_first or has_mixture):
            pretrain_epochs = 0
        elif pretrain_epochs is None:
            # as many as the joint stage has, where nobody knows the number of cells
            default = joint_epochs if n_obs is None else recipe.pretraining.epochs(n_obs)
            pretrain_epochs = default if has_mixture else 0
        settings = recipe.weights(self.module.n_input) if has_mixture else {}
        if n_obs is not None:  # of a stream of cells nobody knows n
            settings["prior_weight"] = 1 / n_obs
        if training.goes_on:
            settings["guide_weight"] = 0.0
        elif request.guide_weight is not None:
            settings |= dict.fromkeys(("guide_weight", "soft_guide_weight"), request.guide_weight)
        settings |= request.plan_kwargs or {}
        if self.reference_categories_ is not None:
            # it would move frozen weights
            settings |= {"weight_decay": 0.0, "prior_weight": 0.0}
        return StagedTrainingPlan(
            self.module, pretrain_epochs=pretrain_epochs, joint_epochs=joint_epochs, **settings
        )

    def _callbacks(
        self,
        training: Training,
        checkpoints: Checkpoints | None,
        rows: NDArray[np.integer],
        splitter: Splitter,
    ) -> list[pl.Callback]:
        """The user's callbacks and our own, in the order in which they are called."""
        request = training.request
        method = request.start or self._recipe.start
        start = partial(self._start_mixture, rows, method, request.guide_key, request.seed)
        has_names = isinstance(splitter, SeededDataSplitter)
        return [
            *([] if checkpoints is None else [checkpoints]),
            *(training.trainer_kwargs.get("callbacks") or ()),
            MixtureStart(start, self._keep_tree, checkpoints),
            FiniteWatch(self.adata.obs_names if has_names else None),
        ]

    def _keep_tree(self, tree: dict[str, NDArray] | None) -> None:
        self.split_tree_ = tree

    def _run(
        self,
        training: Training,
        plan: StagedTrainingPlan,
        splitter: Splitter,
        checkpoints: Checkpoints | None,
        callbacks: list[pl.Callback],
        machine: dict[str, Any],
    ) -> StagedTrainRunner:
        """Run the trainer."""
        runner = StagedTrainRunner(
            self,
            plan,
            splitter,
            first_epoch=training.first_epoch,
            early_stopping=training.request.early_stopping,
            **machine,
            **(training.trainer_kwargs | {"callbacks": callbacks}),
        )
        if checkpoints is not None:
            checkpoints.runner = runner
        runner()
        return runner

    def _found_in_words(self) -> str:
        """What was found, and where it is written."""
        cells = f"{self.adata.n_obs:,} cells"
        if not self.module.mixture_started:
            return f"Embedding of {cells}, in adata.obsm['X_scgmvae']"
        n_clusters = len(self.cluster_names)
        clusters = "1 cluster" if n_clusters == 1 else f"{n_clusters:,} clusters"
        data = "adata" if self.modalities_ is None else "mdata"
        return f"{clusters} in {cells}, in {data}.obs['scgmvae']"

    def _finish(self, training: Training, rows: NDArray[np.integer]) -> None:
        """Merge components, keep the distances of the training cells, and write the results."""
        is_query = self.reference_categories_ is not None
        posteriors = self._posteriors_to_judge() if is_query else self._posteriors()
        finds_k = self.n_components_asked is None and training.request.guide_key is None
        is_new = self.mixture_started_ and not training.goes_on
        if is_new and finds_k and not self._setup.label_names:
            if self.split_tree_ is None:
                self._merge(posteriors)
            else:
                self._cut(posteriors)
            if len(self.cluster_names) == 1:
                warnings.warn(
                    f"One cluster was found: the {self.adata.n_obs:,} cells seem to be of one "
                    "type, or too few to tell types apart. n_components=... asks for a number.",
                    UserWarning,
                    stacklevel=3,
                )
        for finding in self._split_findings() if is_new else []:
            warnings.warn(finding, UserWarning, stacklevel=3)
        self._model_summary_string = self._summary()
        if self.module.mixture_started and not is_query:
            trained = posteriors
            if len(rows) < self.adata.n_obs:
                trained = {name: values[rows] for name, values in posteriors.items()}
            self._remember_training_cells(trained)
            self._remember_misfit(rows, self.seed_)
        self._write_to_own_data(posteriors)
