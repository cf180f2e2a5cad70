"""A pretraining by itself, without the stages that follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    >>> another_seed(0) in range(100)
    False
    """
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])


def pretrain(
    plan: StagedTrainingPlan,
    splitter: SeededDataSplitter,
    device: torch.device,
    callbacks: Sequence[pl.Callback] = (),
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
    )
    with quiet():
        trainer.fit(plan, splitter)
    plan.module.to(device).eval()
