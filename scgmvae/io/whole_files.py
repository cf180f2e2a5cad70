"""Files that are written whole or not at all, and never replace another by mistake."""

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
        If the file exists and must not be overwritten, or the path is a folder.
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
    """A path to write to; its file replaces ``path`` if the block ends without an error.

    That path is in the same folder, so that one rename is enough, and has the same name, because
    writers read its suffix.
    """
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as workshop:
        made = Path(workshop) / path.name
        yield made
        made.replace(path)
