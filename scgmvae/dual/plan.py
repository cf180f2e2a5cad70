"""Training plan of the dual VAE: the divergences' weight rises, the step length falls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LambdaLR

from scgmvae.train.plan import CheckedPlan, declined

if TYPE_CHECKING:
    from scgmvae.dual.module import DualModule

__all__ = ["DecliningPlan"]

KL_WARMUP = 0.33
"""Share of the steps over which the weight of the divergences rises from 0 to 1."""

DECLINE = 0.5
"""Share of the steps, the last ones, over which the step length falls to 0."""


class DecliningPlan(CheckedPlan):
    """scvi-tools' training plan with both schedules counted in steps.

    Parameters
    ----------
    module
        The module.
    n_steps
        Number of steps of the whole training.
    lr, eps, weight_decay
        Settings of the Adam optimiser: step length, epsilon and weight decay.
    **kwargs
        Further arguments of :class:`scvi.train.TrainingPlan`.

    Notes
    -----
    By default scvi-tools lets the weight of the divergences rise over 400 epochs, which is longer
    than a training. The weights of 3,600 pixels follow the noise of the last minibatches unless
    the steps get shorter.
    """

    def __init__(
        self,
        module: DualModule,
        *,
        n_steps: int,
        lr: float = 8e-4,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ):
        warmup = {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": round(KL_WARMUP * n_steps)}
        super().__init__(module, lr=lr, eps=eps, weight_decay=weight_decay, **(warmup | kwargs))
        self.n_steps = n_steps

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam, with a step length that falls linearly over the last half of the steps."""
        optimizer = super().configure_optimizers()["optimizer"]
        schedule = LambdaLR(optimizer, self._step_length)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _step_length(self, step: int) -> float:
        """Length of a step as a share of the full length."""
        return declined(step / self.n_steps, DECLINE)
