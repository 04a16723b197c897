"""Files that others read while we write them."""

from __future__ import annotations

import os
from pathlib import Path

from protocols.errors import StateDirError


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step; a crash at any moment leaves the old or the new one. One writer at a time.

    Raises:
        StateDirError: the directory cannot be written or the disk is full.
    """
    beside = path.with_name(f".{path.name}.new")  # always the same name: what a crash leaves is overwritten the next time
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StateDirError(f"Cannot write {path}: {error.strerror}; make room or choose another --state-dir.") from None
