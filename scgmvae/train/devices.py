"""Training by several processes, each with a device and a share of the minibatches."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from scvi.model._utils import parse_device_args

if TYPE_CHECKING:
    from collections.abc import Callable

    import lightning.pytorch as pl

    from scgmvae.module.cgmvae import CGMVAE

__all__ = ["check_devices", "device_of", "start_on_all", "strategy_for"]

T = TypeVar("T")

FORKING = ("ddp_spawn", "ddp_fork", "ddp_notebook")


def check_devices(accelerator: str, devices: int | list[int] | str) -> None:
    """Raise ``ValueError`` where more GPUs are asked for than there are."""
    if accelerator not in ("gpu", "cuda") or devices in ("auto", -1, "-1"):
        return
    if isinstance(devices, str) and "," in devices:
        asked = [int(device) for device in devices.split(",") if device]
    elif isinstance(devices, list):
        asked = [int(device) for device in devices]
    else:
        asked = list(range(int(devices)))
    n_found = torch.cuda.device_count()
    if asked and max(asked) >= n_found:
        raise ValueError(
            f"devices={devices!r} asks for {max(asked) + 1} GPUs, but {n_found} are found. Give "
            "devices='auto', or accelerator='cpu'."
        )


def device_of(accelerator: str, device: int | str) -> torch.device:
    """The device that a model is put on.

    Parameters
    ----------
    accelerator, device
        As in Lightning, or in ``device`` what torch calls it, as ``"cuda:0"`` or ``"cpu"``.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if isinstance(device, int) or device == "auto":
        if isinstance(device, int):
            check_devices(accelerator, [device])
        _, _, found = parse_device_args(
            accelerator, device, return_device="torch", validate_single_device=True
        )
        return found
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            "device must be 'auto', a number, or the name of a device, as 'cuda:0' or 'cpu' are, "
            f"but it is {device!r}."
        ) from error
    n_found = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= n_found:
        raise ValueError(
            f"device={device!r} asks for a GPU that is not there: {n_found} are found. Leave it "
            "out, or give device='cpu'."
        )
    return found


def strategy_for(
    strategy: str | Strategy | None, devices: int | list[int] | str
) -> str | Strategy | None:
    """Lightning's strategy for the given strategy and devices.

    In pretraining the networks of w and y are not part of the loss; DDP has to be told so.

    Raises
    ------
    ValueError
        For a strategy that trains copies of the model in processes that end with the training.
    """
    several = isinstance(devices, int) and devices > 1
    several |= isinstance(devices, list) and len(devices) > 1
    if isinstance(strategy, str) and strategy.startswith(FORKING):
        raise ValueError(
            f"strategy={strategy!r} trains a copy of the model, whose components would be lost. "
            "Run a script with strategy='ddp'."
        )
    if strategy == "ddp" or (strategy in (None, "auto") and several):
        return DDPStrategy(find_unused_parameters=True)
    return strategy


def start_on_all(trainer: pl.Trainer, module: CGMVAE, start: Callable[[], T]) -> T:
    """Start the mixture in one process and send it to all.

    Parameters
    ----------
    trainer
        The trainer.
    module
        Module of this process.
    start
        Function that starts the mixture of the module.

    Returns
    -------
    What the function returned, the same in all processes.
    """
    if trainer.world_size == 1:
        return start()
    sent = None
    if trainer.is_global_zero:
        started = start()
        sent = (started, module.n_components, module.state_dict())
    started, n_components, state = trainer.strategy.broadcast(sent)
    if not trainer.is_global_zero:
        module.set_components(n_components)
        module.load_state_dict(state)
        module.mixture_started = True
        module.train()
    if isinstance(trainer.strategy, DDPStrategy):  # DDP still holds the old parameters
        trainer.strategy.model = trainer.lightning_module
        trainer.strategy.configure_ddp()
    return started
