"""Arguments of a training, which are checked before anything is changed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scvi import settings
from scvi.train import SaveCheckpoint
from scvi.train._config import KwargsLike, merge_kwargs

from scgmvae import checks
from scgmvae.io.values import encode
from scgmvae.train.plan import STEP_LENGTH
from scgmvae.train.recipe import SMALLEST_MINIBATCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scgmvae.clustering.partition import Start
    from scgmvae.io.model_files import Saved

__all__ = [
    "Folders",
    "Request",
    "Training",
    "check_length_is_known",
    "check_only_minibatches",
    "check_only_resumed",
    "trainer_arguments",
]

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

EVERY = 10
"""Epochs between two checkpoints by default."""


@dataclass(frozen=True)
class Request:
    """Arguments of :meth:`scgmvae.SCGMVAE.train` that determine the result, with its defaults."""

    max_epochs: int | None = None
    pretrain_epochs: int | None = None
    start: Start | None = None
    guide_key: str | None = None
    guide_weight: float | None = None
    balance_key: str | None = None
    seed: int | None = None
    train_size: float | None = None
    validation_size: float | None = None
    shuffle_set_split: bool = True
    batch_size: int | None = None
    early_stopping: bool = False
    datasplitter_kwargs: dict[str, Any] | None = None
    plan_kwargs: dict[str, Any] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Arguments that differ from their defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = vars(type(self)())
        return {name: value for name, value in values.items() if value != defaults[name]}

    def resolved(
        self, seed: int, trainer_kwargs: Mapping[str, Any], minibatch: int | None
    ) -> Self:
        """Request in which every ``None`` that stands for a value is replaced by that value.

        Parameters
        ----------
        seed
            Seed of the training.
        trainer_kwargs
            Arguments of the trainer, some of which need validation cells.
        minibatch
            Number of cells in a minibatch if none is given. Steps are longer in proportion to the
            root of it, as the noise of a gradient falls so. ``None`` is that of the settings.
        """
        train_size = self.train_size
        if train_size is None:
            train_size = 0.9 if self.needs_validation(trainer_kwargs) else 1.0
        batch_size, plan_kwargs = self.batch_size, self.plan_kwargs
        if batch_size is None:
            batch_size = minibatch or settings.batch_size
            if (minibatch or 0) > SMALLEST_MINIBATCH:
                lr = STEP_LENGTH * (minibatch / SMALLEST_MINIBATCH) ** 0.5
                plan_kwargs = {"lr": lr} | (plan_kwargs or {})
        return replace(
            self,
            seed=seed,
            train_size=train_size,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
        )

    def needs_validation(self, trainer_kwargs: Mapping[str, Any]) -> bool:
        """Whether the training needs validation cells.

        Parameters
        ----------
        trainer_kwargs
            Arguments of the trainer.
        """
        options = ("check_val_every_n_epoch", "enable_checkpointing", "learning_rate_monitor")
        return (
            self.early_stopping
            or any(trainer_kwargs.get(name) for name in options)
            or bool((self.plan_kwargs or {}).get("reduce_lr_on_plateau"))
            or any(isinstance(c, SaveCheckpoint) for c in trainer_kwargs.get("callbacks") or ())
        )


@dataclass(frozen=True)
class Folders:
    """Folders that checkpoints are written to and read from."""

    checkpoint_dir: str | Path | None = None
    checkpoint_every: int | None = None
    resume_from: str | Path | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None:
            checks.check_whole(1, checkpoint_every=self.checkpoint_every)

    @property
    def target(self) -> Path | None:
        """Folder that checkpoints are written to; ``None`` without checkpoints."""
        folder = self.checkpoint_dir or self.resume_from
        return None if folder is None else Path(folder)

    @property
    def is_new(self) -> bool:
        """Whether checkpoints are written to another folder than they are read from."""
        if self.target is None or self.resume_from is None:
            return True
        return self.target.resolve() != Path(self.resume_from).resolve()

    def every(self, former: int = EVERY) -> int:
        """Epochs between two checkpoints.

        Parameters
        ----------
        former
            Number of epochs if none is given.
        """
        return self.checkpoint_every or former


@dataclass(frozen=True)
class Training:
    """A training before it is run."""

    request: Request
    """Arguments that the training was started with."""
    trainer_kwargs: dict[str, Any]
    """Arguments of the trainer."""
    is_first: bool
    """Whether it is the first training of the model."""
    goes_on: bool
    """Whether the model had its components before this training."""
    saved: Saved | None = None
    """Checkpoint that the training continues from; ``None`` for a new training."""

    @classmethod
    def resumed(cls, saved: Saved, trainer_kwargs: dict[str, Any]) -> Self:
        """Training that was interrupted, restored from its checkpoint.

        Parameters
        ----------
        saved
            The checkpoint.
        trainer_kwargs
            Arguments of the trainer that are given anew.
        """
        arguments = dict(saved.training["arguments"])
        trainer_kwargs = arguments.pop("trainer_kwargs") | trainer_kwargs
        is_first, goes_on = saved.training["is_first"], saved.training["goes_on"]
        return cls(Request(**arguments), trainer_kwargs, is_first, goes_on, saved)

    @property
    def first_epoch(self) -> int:
        """Number of the first epoch that is still to be run."""
        return 0 if self.saved is None else self.saved.training["epoch"]

    def kept(self) -> dict[str, Any]:
        """State and arguments of the training that a checkpoint keeps.

        Arguments of the trainer that JSON cannot hold, such as callbacks, are left out.

        Raises
        ------
        TypeError
            If JSON cannot hold another argument.
        """
        arguments = dict(vars(self.request))
        for name, value in arguments.items():
            try:
                encode(value, {})
            except TypeError as error:
                raise TypeError(
                    f"checkpoint_dir keeps the arguments of train, but {name} has {error}, which "
                    "no file of values can hold. Leave it out, or train without checkpoints."
                ) from error
        trainer_kwargs = {k: v for k, v in self.trainer_kwargs.items() if _is_value(v)}
        return {
            "arguments": arguments | {"trainer_kwargs": trainer_kwargs},
            "is_first": self.is_first,
            "goes_on": self.goes_on,
        }


def _is_value(value: object) -> bool:
    try:
        encode(value, {})
    except TypeError:
        return False
    return True


def trainer_arguments(
    trainer_config: KwargsLike | None, trainer_kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of the trainer, without those that ``train`` itself has.

    Raises
    ------
    NotImplementedError
        If a callback would read a pickle after an error of training.
    """
    merged = merge_kwargs(trainer_config, trainer_kwargs, name="trainer")
    for name in ("max_epochs", "accelerator", "devices"):
        merged.pop(name, None)
    for callback in merged.get("callbacks") or ():
        if isinstance(callback, SaveCheckpoint) and callback.check_nan_gradients:
            raise NotImplementedError(
                "SaveCheckpoint(check_nan_gradients=True) reads pickles, which are not written "
                "here. Leave it out: a loss that is no finite number ends the training with an "
                "error, and checkpoints are kept."
            )
    return merged


def check_length_is_known(max_epochs: int | None, n_obs: int | None) -> None:
    """Raise ``ValueError`` where neither the epochs are given nor the cells they go by."""
    if max_epochs is None and n_obs is None:
        raise ValueError(
            "The default number of epochs goes by the number of cells, which the data module does "
            "not tell. Set datamodule.n_obs, or give max_epochs."
        )


def check_only_minibatches(request: Request, folders: Folders) -> None:
    """Raise ``ValueError`` if an argument chooses among cells that a data module brings."""
    given = [name for name in OF_ANNDATA if name in request.given]
    given += [
        name for name in ("checkpoint_dir", "resume_from") if getattr(folders, name) is not None
    ]
    _refuse(
        given,
        "A data module makes the minibatches, and its cells have neither numbers nor columns "
        "other than those of its registry",
        "datamodule",
    )


def check_only_resumed(request: Request) -> None:
    """Raise ``ValueError`` if arguments are given to a resumed training, which has its own."""
    _refuse(
        list(request.given),
        "A training that is resumed has the arguments that it was begun with",
        "resume_from",
    )


def _refuse(given: Sequence[str], rule: str, source: str) -> None:
    if given:
        names = ", ".join(given)
        raise ValueError(f"{rule}, but train got {source} and {names}. Leave out {names}.")
