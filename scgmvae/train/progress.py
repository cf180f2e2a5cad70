"""What a training shows while it runs: its stages by name, the time that is left, the ELBO."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from scgmvae.train.plan import StagedTrainingPlan

__all__ = ["StageProgress"]

EMBEDDING, CLUSTERS, MIXTURE = "learning the embedding", "finding clusters", "fitting the mixture"

BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} epochs [{elapsed}<{remaining}{postfix}]"
)


class StageProgress(ProgressBar):
    """One bar over all stages in a terminal or a notebook, one line per stage in a file.

    Parameters
    ----------
    refresh_rate
        0 shows nothing, 1 every epoch.
    """

    def __init__(self, refresh_rate: int = 1):
        super().__init__()
        self.is_enabled = refresh_rate > 0
        self.bar: tqdm | None = None
        self.stages: tuple[str, ...] = ()
        self.stage = ""
        self.began, self.first_epoch = 0.0, 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"bar": None}  # a bar belongs to the terminal of its process

    def disable(self) -> None:
        """Show nothing, as Lightning asks of all processes but the first."""
        self.is_enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Show an empty bar.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        super().on_train_start(trainer, pl_module)
        module = pl_module.module
        if not module.has_mixture:
            self.stages = (EMBEDDING,)
        else:
            whole = (EMBEDDING, CLUSTERS, MIXTURE)
            self.stages = (MIXTURE,) if module.mixture_started else whole
        if self.is_enabled and _is_watched():
            # the start of the mixture takes time and no epoch, so a mean rate is the better guess
            self.bar = tqdm(
                total=trainer.max_epochs,
                initial=trainer.current_epoch,
                smoothing=0,
                bar_format=BAR,
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Name the stage.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        super().on_train_epoch_start(trainer, pl_module)
        is_pretraining = trainer.current_epoch < pl_module.pretrain_epochs
        if len(self.stages) == 1:
            self._enter(self.stages[0], trainer)
        elif not pl_module.module.mixture_started:
            self._enter(EMBEDDING if is_pretraining else CLUSTERS, trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: StagedTrainingPlan, batch: object, batch_idx: int
    ) -> None:
        """Name the last stage, once there are clusters.

        Parameters
        ----------
        trainer, pl_module, batch, batch_idx
            The trainer, the training plan and the minibatch, as Lightning passes them.
        """
        if self.stage == CLUSTERS:
            self._enter(MIXTURE, trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Move the bar on.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        super().on_train_epoch_end(trainer, pl_module)
        if self.bar is not None:
            self.bar.set_postfix_str(_elbo(trainer), refresh=False)
            self.bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagedTrainingPlan) -> None:
        """Close the bar.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        super().on_train_end(trainer, pl_module)
        self._enter("", trainer)
        if self.bar is not None:
            self.bar.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: StagedTrainingPlan, exception: BaseException
    ) -> None:
        """Close the bar, so that the error has lines of its own.

        Parameters
        ----------
        trainer, pl_module, exception
            The trainer, the training plan and the error, as Lightning passes them.
        """
        if self.bar is not None:
            self.bar.close()

    def say(self, text: str) -> None:
        """Write a line, where anything is shown.

        Parameters
        ----------
        text
            The line.
        """
        if self.is_enabled:
            print(text, file=sys.stderr)

    def _enter(self, stage: str, trainer: pl.Trainer) -> None:
        """Begin a stage, and tell of the one that ends where there is no bar."""
        if stage == self.stage:
            return
        if self.stage and self.bar is None:
            n_epochs, seconds = trainer.current_epoch - self.first_epoch, time.time() - self.began
            epochs = f"{n_epochs:,} epoch{'s' * (n_epochs > 1)}, " if n_epochs else ""
            elbo = f", {_elbo(trainer)}" if n_epochs and _elbo(trainer) else ""
            self.say(f"{self._named()}: {epochs}{seconds:,.0f} s{elbo}")
        self.stage, self.began, self.first_epoch = stage, time.time(), trainer.current_epoch
        if stage and self.bar is not None:
            self.bar.set_description_str(self._named())

    def _named(self) -> str:
        """The stage with its number, where there are several."""
        if len(self.stages) == 1:
            return self.stage
        return f"{self.stages.index(self.stage) + 1}/{len(self.stages)} {self.stage}"


def _elbo(trainer: pl.Trainer) -> str:
    """The ELBO of the last epoch, in nats per cell."""
    loss = trainer.callback_metrics.get("elbo_train")
    return "" if loss is None else f"ELBO {-float(loss):,.1f}"


def _is_watched() -> bool:
    """Whether somebody sees a bar move: in a terminal, or in a notebook."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
