"""What is fuzzed, and what counts as a fault.

A target reads bytes as they come from others. For any bytes at all it must return a value or raise the refusal that its documentation
names; do the same the second time; and, where there is an encoder, read what was encoded from its value as an equal value (and, where its
format is canonical, only that encoding).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from peers.testing import make_key
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId
from scripts.fuzzing.formats import BYTES, PROTOBUF, Format

REPOSITORY = Path(__file__).resolve().parents[2]
SENDER = PeerId(make_key(900).public_key().public_bytes_raw())
"""Whoever sends what is fuzzed."""

MIB = 2**20
DEFAULT_INPUT_BYTES = 64 * 1024


class Hang(BaseException):
    """One input took too long. Not an `Exception`, so that nothing on the way takes it for a refusal."""


class NotAnInput(Exception):
    """A target cannot make of these bytes what its reader takes; never a fault of the reader."""


@dataclass(frozen=True)
class Target:
    """A reader of bytes.

    Args:
        name: also the folder of its corpus.
        decode: reads; what it returns is compared with ==.
        seeds: makes valid inputs with the real encoders.
        refusals: what it may raise.
        encode: undoes `decode`; None where nothing does.
        canonical: each value has one encoding, all others are refused.
        form: how its bytes are built, for mutations that keep lengths right.
        input_bytes: longest input that is tried.
        memory_bytes: what reading may take in Python's memory, besides `memory_factor` times the input.
        memory_factor: see above.
    """

    name: str
    decode: Callable[[bytes], Any]
    seeds: Callable[[], Sequence[bytes]]
    refusals: tuple[type[Exception], ...] = (RemoteProtocolError,)
    encode: Callable[[Any], bytes] | None = None
    canonical: bool = False
    form: Format = BYTES
    input_bytes: int = DEFAULT_INPUT_BYTES
    memory_bytes: int = MIB
    memory_factor: int = 32


_V = TypeVar("_V", bound="Message")


class Message(Protocol):
    """A value that writes itself; its class has a strict `decode(data, sender)`."""

    def encode(self) -> bytes:
        """Wire bytes."""


def message(name: str, *values: Message, form: Format = PROTOBUF, **changes: Any) -> Target:
    """The target of a message with `encode` and `decode(data, sender)`: one line for each message of the protocol.

    Args:
        name: of the target.
        values: valid ones of one class; they make the seeds.
        form, changes: see `Target`.
    """
    kind: Any = type(values[0])
    read = changes.pop("decode", lambda data: kind.decode(data, SENDER))
    return Target(name, read, lambda: [value.encode() for value in values], encode=kind.encode, form=form, **changes)


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault.

    Args:
        kind: "crash", "unstable", "round-trip", "hang" or "memory".
        summary: one line.
        place: where it happened, as "file:line"; findings of one kind and place, or of one summary without a place, are taken for one.
        trace: for people.
    """

    kind: str
    summary: str
    place: str = ""
    trace: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one input: a value, a refusal or a fault; all None for a value that is None."""

    value: Any = None
    refusal: str | None = None
    finding: Finding | None = None


def read_once(target: Target, data: bytes) -> Seen:
    """Read, and sort what happens. `Hang` and MemoryError pass through."""
    refusals: tuple[type[Exception], ...] = (*target.refusals, NotAnInput)
    try:
        return Seen(value=target.decode(data))
    except refusals as error:
        return Seen(refusal=f"{type(error).__name__}: {error}")
    except MemoryError:
        raise
    except BaseException as error:  # whatever it is, it is a finding; some libraries panic with a BaseException
        if isinstance(error, Hang | KeyboardInterrupt | SystemExit):
            raise
        return Seen(finding=fault("crash", error))


def check(target: Target, data: bytes) -> Seen:
    """Read once and see whether everything holds that a reader promises."""
    seen = read_once(target, data)
    if seen.finding is not None:
        return seen
    again = read_once(target, data)
    if (again.value, again.refusal) != (seen.value, seen.refusal):
        return Seen(finding=Finding("unstable", "it reads differently the second time", trace=f"{seen}\n{again}"[:4000]))
    if seen.refusal is not None or target.encode is None:
        return seen
    try:
        encoded = target.encode(seen.value)
    except Exception as error:  # noqa: BLE001  # an encoder takes whatever its decoder gives
        return Seen(finding=fault("round-trip", error))
    back = read_once(target, encoded)
    if back.finding is not None or back.refusal is not None or back.value != seen.value:
        return Seen(finding=Finding("round-trip", "encoded and read again it is another", trace=f"{seen}\n{encoded!r}\n{back}"[:4000]))
    if target.canonical and encoded != data:
        return Seen(finding=Finding("round-trip", "a second encoding of one value is accepted"))
    return seen


def fault(kind: str, error: BaseException) -> Finding:
    """What an exception tells."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(f"/{root}/" in frame.filename for root in ("protocols", "peers"))] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    summary = f"{type(error).__name__}: {error}"[:300]
    return Finding(kind, summary, place, "".join(traceback.format_exception(error))[-4000:])
