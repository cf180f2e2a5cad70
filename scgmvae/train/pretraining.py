"""A pretraining by itself, without the stages that follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np

from scgmvae.train.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from scgmvae.data.minibatches import SeededDataSplitter
    from scgmvae.train.plan import StagedTrainingPlan

__all__ = ["another_seed", "pretrain"]


def another_seed(seed: int) -> int:
    """A seed whose draws have nothing to do with those of the given one, nor of the next.

    Parameters
    ----------
    seed
        Seed of a training.

    Examples
    --------
    >>> another_seed(0), another_seed(1)
    (3964924996, 1189033389)
    """
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])


def pretrain(
    plan: StagedTrainingPlan,
    splitter: SeededDataSplitter,
    device: torch.device,
    *,
    callbacks: Sequence[pl.Callback] = (),
    **step_settings: Any,
) -> None:
    """Run the first stage of a plan; its module stays on the device, in evaluation mode.

    Parameters
    ----------
    plan
        Training plan of the module.
    splitter
        Source of the minibatches.
    device
        Device to train on.
    callbacks
        Callbacks of the trainer.
    **step_settings
        Further arguments of the trainer, which say how a step is made.
    """
    trainer = pl.Trainer(
        max_epochs=plan.pretrain_epochs,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        callbacks=list(callbacks),
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **step_settings,
    )
    with quiet():
        trainer.fit(plan, splitter)
    plan.module.to(device).eval()
