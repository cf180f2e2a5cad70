"""Files that are there whole or not at all, and never in place of another by mistake."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_target", "whole_file"]


def check_target(path: str | Path, overwrite: bool, remedy: str = "overwrite=True") -> Path:
    """The path of a file to be written.

    Raises
    ------
    FileNotFoundError
        If its folder does not exist.
    ValueError
        If it exists and must not be overwritten, or is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder of {path} must exist, but {path.parent} does not.")
    if path.is_dir():
        raise ValueError(f"A file is to be written, but {path} is a folder. Name a file in it.")
    if path.exists() and not overwrite:
        raise ValueError(
            f"The file must not exist yet, but {path} does. Give another, or {remedy}."
        )
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of ``path`` when the block ends well.

    It is in the same folder, so that one rename does it, and has the same name, because writers
    go by suffixes.
    """
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as workshop:
        made = Path(workshop) / path.name
        yield made
        made.replace(path)
