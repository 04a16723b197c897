"""Files that others read while we write them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from protocols.errors import StateDirError


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step; whenever the process ends, the old or the new one is there. One writer at a time.

    Raises:
        StateDirError: the directory cannot be written or the disk is full.
    """
    beside = path.with_name(f".{path.name}.new")  # always the same name: what a crash leaves is overwritten the next time
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise StateDirError(f"Cannot write {path}: {error.strerror}; make room or choose another --state-dir.") from None
