"""Watch over training: a value that is not finite ends it, with the cause, before it spreads.

A loss that is not finite is found before its gradient is taken. A gradient that is not finite is
found by the weights that it leaves, in the next step or at the end of the epoch. Either way the
weights go back to those that the epoch began with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from scgmvae.data.keys import CELLS_KEY
from scgmvae.nn.sparse import dense

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from scvi.module.base import LossOutput

__all__ = ["FiniteWatch"]

N_CELLS = 10
"""Number of cells that an error names."""


class FiniteWatch(pl.Callback):
    """Ends a training with ``FloatingPointError`` where loss or weights are not finite.

    Parameters
    ----------
    obs_names
        Names of the cells, for the error; ``None`` if minibatches do not hold the cells' rows.
    """

    def __init__(self, obs_names: pd.Index | None):
        self.obs_names = obs_names
        self._now: _Step | None = None
        self._before: _Step | None = None
        self._weights: dict[str, Tensor] = {}
        self._hook = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start listening to the losses of the module.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """

        def remember(module: nn.Module, arguments: object, outputs: tuple[Any, ...]) -> None:
            if self._now is not None:  # other callbacks can ask the module before the first step
                self._now.output = outputs[-1]

        self._hook = pl_module.module.register_forward_hook(remember)

    def on_train_end(self, *others: object) -> None:
        """Stop listening to the losses.

        Parameters
        ----------
        *others
            What Lightning passes; it is not used.
        """
        if self._hook is not None:
            self._hook.remove()
        self._now = self._before = self._hook = None
        self._weights = {}

    on_exception = on_train_end

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the weights that the epoch begins with.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        state = pl_module.module.state_dict()
        self._weights = {name: value.clone() for name, value in state.items()}
        self._before = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict, batch_idx: int
    ) -> None:
        """Remember the step that training is in.

        Parameters
        ----------
        trainer, pl_module, batch, batch_idx
            The trainer, the training plan, the minibatch and its number, as Lightning passes them.
        """
        self._now = _Step(f"in step {batch_idx + 1} of epoch {trainer.current_epoch + 1}", batch)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Check the loss.

        Parameters
        ----------
        trainer, pl_module, loss
            The trainer, the training plan and the loss, as Lightning passes them.
        """
        if not torch.isfinite(loss):
            self._check_weights(pl_module, self._before)
            cause = f"the loss is {loss.item()}: {self._now.cause}"
            raise self._error(pl_module, self._now.name, cause, self._now)
        self._before = self._now

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the weights after the last step.

        Parameters
        ----------
        trainer, pl_module
            The trainer and the training plan, as Lightning passes them.
        """
        self._check_weights(pl_module, self._before)
        buffers = pl_module.module.named_buffers()
        names = _not_finite(buffers)
        if names:  # too large values of x can do this although the loss is finite
            where = f"by the end of epoch {trainer.current_epoch + 1}"
            raise self._error(pl_module, where, f"{names} are not finite")

    def on_validation_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        """Remember the step that validation is in.

        Parameters
        ----------
        trainer, *others
            The trainer, and then the training plan, the minibatch and its number.
        """
        if not trainer.sanity_checking:
            pl_module, batch, batch_idx, *_ = others
            self.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *others: object
    ) -> None:
        """Check the loss of validation cells.

        Parameters
        ----------
        trainer, pl_module, *others
            The trainer, the training plan, and what else Lightning passes.
        """
        if trainer.sanity_checking:
            return
        loss = self._now.output.loss
        if not torch.isfinite(loss):
            self._check_weights(pl_module, self._before)
            cause = f"the loss of validation cells is {loss.item()}: {self._now.cause}"
            raise self._error(pl_module, self._now.name, cause, self._now)

    def _check_weights(self, pl_module: pl.LightningModule, step: _Step | None) -> None:
        """Check the weights after a step."""
        names = _not_finite(pl_module.module.named_parameters())
        if names and step is not None:
            cause = f"the gradient is not finite, and so neither is {names}"
            raise self._error(pl_module, step.name, cause, step)

    def _error(
        self, pl_module: pl.LightningModule, where: str, cause: str, step: _Step | None = None
    ) -> FloatingPointError:
        """Put the weights back to those of the start of the epoch, and return the error."""
        pl_module.module.load_state_dict(self._weights)
        stage = f" ({pl_module.stage})" if pl_module.stage else ""
        cells = ""
        if step is not None:
            rows = step.worst_cells()
            names = (
                f"rows {rows} of the minibatch"
                if self.obs_names is None
                else ", ".join(map(str, self.obs_names[rows]))
            )
            cells = f" The cells that contribute most are {names}."
        return FloatingPointError(
            f"Training must stay finite, but {where}{stage} {cause}.{cells} Look for extreme "
            "values in the data and covariates, and train with a shorter step, for example "
            "plan_kwargs={'lr': 3e-4}, or with gradient_clip_val=10. The weights are those that "
            "the epoch began with."
        )


def _not_finite(values: Iterable[tuple[str, Tensor]]) -> str:
    """Names of the first three values that are not finite."""
    names = [name for name, value in values if not torch.isfinite(value).all()]
    return ", ".join(names[:3])


class _Step:
    """A minibatch and the terms of its loss."""

    def __init__(self, name: str, batch: dict[str, Tensor]):
        self.name = name
        self.batch = batch
        self.output: LossOutput | None = None

    def terms(self) -> dict[str, Tensor]:
        """Terms of the bound, each (n,), and further terms, each ()."""
        output = self.output
        return {**output.extra_metrics, **output.reconstruction_loss, **output.kl_local}

    @property
    def cause(self) -> str:
        """The terms that are not finite, in words."""
        bad = [name for name, value in self.terms().items() if not torch.isfinite(value).all()]
        return f"{', '.join(bad)} is not finite" if bad else "its terms are, but not their sum"

    def worst_cells(self) -> list[int]:
        """Rows of the cells that contribute most; cells that are not finite come first.

        One cell can make a whole minibatch not finite, so such cells are sorted by their values.
        """
        cell_terms = [value.detach() for value in self.terms().values() if value.dim() == 1]
        total = torch.nan_to_num(sum(cell_terms), nan=torch.inf)
        order = dense(self.batch[REGISTRY_KEYS.X_KEY]).abs().amax(-1).argsort(descending=True)
        order = order[total[order].argsort(descending=True, stable=True)]
        return self.batch[CELLS_KEY][order[:N_CELLS]].tolist()
