"""Documents -> fingerprint, training bytes, held-out bytes, and windows of tokens.

Held-out rule: documents are cut into units of at most `UNIT_BYTES`; units are ranked by BLAKE3 of the unit's number and the document's
name; the first `holdout_percent` of them, rounded up, are held out and never trained on. A dataset of one unit holds out the same part of
its end. Both parts keep the order of the documents.

Letters: B windows, T tokens in a window (`sequence_length` + 1: inputs and the token after each).
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from protocols.errors import DatasetError
from protocols.runspec import DataSection
from swarm.data.sources import Document, file_documents, stdlib_documents
from swarm.data.windows import ByteSequence

UNIT_BYTES = 256 * 2**10
"""Longest stretch that is held out or trained on as a whole: most source files are shorter, so no file is in both parts."""

MAPPED_FROM_BYTES = 16 * 2**20
"""Files of this size and more are memory-mapped; smaller ones are read into memory."""

_FINGERPRINT_CONTEXT = "swarm.v1 dataset fingerprint"
_HELD_OUT_CONTEXT = "swarm.v1 held-out rank"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Text as bytes, split into training and held-out bytes.

    Args:
        description: for people, e.g. "standard library of Python 3.11.7".
        fingerprint: 32 bytes; equal on members that have the same documents under the same names.
        training: bytes to learn from.
        held_out: bytes to measure on.
        sequence_length: tokens predicted in a window; a window holds one more.
    """

    description: str
    fingerprint: bytes
    training: ByteSequence
    held_out: ByteSequence
    sequence_length: int

    @property
    def positions(self) -> int:
        """Number of offsets at which a training window can begin."""
        return len(self.training) - self.sequence_length

    def sample(self, offsets: Sequence[int]) -> torch.Tensor:
        """Training windows.

        Args:
            offsets: B offsets from `swarm.data.assignment`.

        Returns:
            tokens_BT, int64, values 0 to 255.

        Raises:
            IndexError: an offset outside [0, positions).
        """
        return self.training.windows(offsets, self.sequence_length + 1)

    def held_out_sample(self, windows: int) -> torch.Tensor:
        """The same windows of the held-out bytes every time, spread evenly over them.

        Args:
            windows: how many, at least 1; fewer come back where that many distinct offsets do not exist.

        Returns:
            tokens_BT, int64, values 0 to 255.
        """
        positions = len(self.held_out) - self.sequence_length
        count = min(windows, positions)
        offsets = [number * positions // count for number in range(count)]
        return self.held_out.windows(offsets, self.sequence_length + 1)


def load_dataset(data: DataSection, root: Path) -> Dataset:
    """Load what a run's data section names.

    Args:
        data: the section; its fingerprint is not looked at, see `check_fingerprint`.
        root: folder below which files are looked for; unused for "stdlib".

    Raises:
        DatasetError: a file that is missing, unreadable or too short; one sentence that names it.
    """
    if data.source == "stdlib":
        documents, description = stdlib_documents(), stdlib_description()
    else:
        documents = file_documents(data.files, root)
        description = f"{len(documents)} file{'s' if len(documents) != 1 else ''}"
    return build_dataset(documents, description, data.sequence_length, data.holdout_percent)


def build_dataset(documents: Sequence[Document], description: str, sequence_length: int, holdout_percent: int) -> Dataset:
    """Read, fingerprint and split documents.

    Raises:
        DatasetError: a document that cannot be read, or too little text for one window in either part.
    """
    contents = _read(documents)
    units = [
        (document.name, number, content[start : start + UNIT_BYTES])
        for document, content in zip(documents, contents, strict=True)
        for number, start in enumerate(range(0, len(content), UNIT_BYTES))
    ]
    training, held_out = _split(units, holdout_percent)
    dataset = Dataset(description, _fingerprint(documents, contents), ByteSequence(training), ByteSequence(held_out), sequence_length)
    shortest = min(len(dataset.training), len(dataset.held_out))
    if shortest <= sequence_length:
        named = documents[0].path if len(documents) == 1 else description
        raise DatasetError(
            f"{named} is too short: its smaller part has {shortest} bytes and one window needs {sequence_length + 1}, so add text"
            " or shorten the sequence length."
        )
    return dataset


def check_fingerprint(expected: bytes, actual: bytes, ours: str, theirs: str | None) -> None:
    """Refuse to train on other data than the run's.

    Args:
        expected: fingerprint in the run's specification.
        actual: `Dataset.fingerprint` of this machine.
        ours: `Dataset.description` of this machine, e.g. "standard library of Python 3.11.2".
        theirs: the founder's description, where the run tells it.

    Raises:
        DatasetError: they differ; says what to do.
    """
    if expected == actual:
        return
    if ours.startswith(_STDLIB) and theirs is None:
        advice = "run this peer with the version of Python that the run's founder used"
    elif ours.startswith(_STDLIB) and theirs == ours:
        advice = "use the same build of Python as the run's founder (a distribution may have changed its files)"
    elif theirs is not None and theirs.startswith(_STDLIB):
        advice = f"run this peer with {theirs.removeprefix(_STDLIB)}"
    else:
        advice = "fetch the files that the run's founder published, under the same names"
    run = f"{theirs}, {expected.hex()[:12]}" if theirs else expected.hex()[:12]
    raise DatasetError(f"This machine's data ({ours}, {actual.hex()[:12]}) is not the run's ({run}): {advice}.")


_STDLIB = "standard library of "


def stdlib_description() -> str:
    """The standard library of this interpreter, named so that `check_fingerprint` can compare versions."""
    return f"{_STDLIB}Python {platform.python_version()}"


def _read(documents: Sequence[Document]) -> list[NDArray[np.uint8]]:
    contents: list[NDArray[np.uint8]] = []
    for document in documents:
        try:
            length = document.path.stat().st_size
            mapped = length >= MAPPED_FROM_BYTES
            contents.append(
                np.memmap(document.path, dtype=np.uint8, mode="r") if mapped else np.frombuffer(document.path.read_bytes(), dtype=np.uint8)
            )
        except OSError as error:
            raise DatasetError(
                f"The data file {document.path} cannot be read ({error.strerror}): check that it exists and is yours."
            ) from None
    return contents


def _fingerprint(documents: Sequence[Document], contents: Sequence[NDArray[np.uint8]]) -> bytes:
    """BLAKE3 over, for each document in order: length of name u32 | name | length of content u64 | BLAKE3 of content. Big-endian."""
    hasher = blake3(derive_key_context=_FINGERPRINT_CONTEXT)
    for document, content in zip(documents, contents, strict=True):
        name = document.name.encode("utf-8", "surrogateescape")
        threads = blake3.AUTO if len(content) > 2**20 else 1
        digest = blake3(content.data, max_threads=threads).digest()
        hasher.update(struct.pack(">I", len(name)) + name + struct.pack(">Q", len(content)) + digest)
    return hasher.digest()


def _split(
    units: Sequence[tuple[str, int, NDArray[np.uint8]]], holdout_percent: int
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    if len(units) == 1:
        content = units[0][2]
        cut = len(content) - len(content) * holdout_percent // 100
        return [content[:cut]], [content[cut:]]

    def rank(index: int) -> bytes:
        name, number, _ = units[index]
        message = struct.pack(">Q", number) + name.encode("utf-8", "surrogateescape")
        return blake3(message, derive_key_context=_HELD_OUT_CONTEXT).digest()

    chosen = set(sorted(range(len(units)), key=rank)[: -(-len(units) * holdout_percent // 100)])
    training = [content for index, (_, _, content) in enumerate(units) if index not in chosen]
    return training, [units[index][2] for index in sorted(chosen)]
