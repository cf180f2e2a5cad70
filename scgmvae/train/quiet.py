"""Messages of other packages that a training does not need, each by its name."""

from __future__ import annotations

import logging
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quiet"]

NOTES = re.compile(
    r"(GPU|TPU|HPU) available: |💡 Tip: |`Trainer\.fit` stopped: |LOCAL_RANK: \d+ - CUDA_VISIBLE"
)
"""What Lightning logs at the start and at the end of every training."""

WARNINGS = (
    # a query leaves frozen modules in evaluation mode on purpose
    r"Found \d+ module\(s\) in eval mode",
    # scvi-tools sets the interval, and values are kept by epoch
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # a call of Lightning's own
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


def _is_needed(record: logging.LogRecord) -> bool:
    return NOTES.match(record.getMessage()) is None


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Lightning says in every training; all other messages come through."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(_is_needed)
    try:
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        log.removeFilter(_is_needed)
