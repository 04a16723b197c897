"""Inputs that are kept: one file each, named by its hash, in a folder for each target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from scripts.fuzzing.target import REPOSITORY

CORPUS = REPOSITORY / "tests" / "fuzz" / "corpus"
MAX_FILE_BYTES = 4096
"""Longer inputs are not kept: what they reach, a shorter one mostly reaches too."""

FINDINGS = REPOSITORY / "build" / "fuzz"
"""Inputs that show a fault; not part of the tree."""


def file_name(data: bytes) -> str:
    """Of an input."""
    return hashlib.sha256(data).hexdigest()[:16]


def read(folder: Path) -> list[bytes]:
    """All inputs of a folder, shortest first."""
    files = [path.read_bytes() for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sorted(files, key=lambda data: (len(data), data))


def keep(folder: Path, data: bytes) -> Path:
    """Write an input, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(data)
    if not path.exists():
        path.write_bytes(data)
    return path


def replace(folder: Path, inputs: Iterable[bytes]) -> int:
    """Make these the inputs of a folder; longer ones than `MAX_FILE_BYTES` are left out. Returns how many there are."""
    wanted = {file_name(data): data for data in inputs if len(data) <= MAX_FILE_BYTES}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in wanted:
            path.unlink()
    for data in wanted.values():
        keep(folder, data)
    return len(wanted)
