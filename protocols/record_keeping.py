"""Records in the shared dictionary: where they live, for how long, and what everybody who stores or reads one checks by itself.

key                      subkey         value                                                 lives
"<run id>/presence"      str(peer id)   envelope of kind "presence" around swarm.v1.Presence  PRESENCE_TTL_S
"<run id>/progress"      str(peer id)   envelope of kind "progress" around swarm.v1.Progress  PROGRESS_TTL_S
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from protocols.canonical import from_milliseconds, to_milliseconds
from protocols.certificate import membership_checker
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerId, RunId, SwarmTime
from protocols.messages import require
from protocols.records import Presence, Progress
from protocols.signing import CLOCK_SKEW_S, Envelope, Sealer, verify_envelope

PRESENCE_TTL_S = 120.0
PROGRESS_TTL_S = 60.0
MAX_RECORD_BYTES = 8 * 1024

RecordKind = Literal["presence", "progress"]

_TTL_S: dict[str, float] = {"presence": PRESENCE_TTL_S, "progress": PROGRESS_TTL_S}


@dataclass(frozen=True, slots=True)
class SealedRecord:
    """A record as the store takes it."""

    key: str
    subkey: str
    value: bytes
    expires_at: SwarmTime


def record_key(run: RunId, kind: RecordKind) -> str:
    """Where all records of that kind lie."""
    return f"{run}/{kind}"


def seal_presence(presence: Presence, sealer: Sealer, now: SwarmTime) -> SealedRecord:
    """Sign our presence, to be stored until `PRESENCE_TTL_S` from now.

    Raises:
        LocalProtocolError: others would refuse it, or it is not ours.
    """
    return _seal("presence", presence.peer, presence.encode(), sealer, now)


def seal_progress(progress: Progress, sealer: Sealer) -> SealedRecord:
    """Sign our progress, to be stored until `PROGRESS_TTL_S` from its own time.

    Raises:
        LocalProtocolError: others would refuse it, or it is not ours.
    """
    return _seal("progress", progress.peer, progress.encode(), sealer, progress.time)


class RecordReader:
    """Reads and validates the records of one run. Remembers verified certificates; holds nothing else.

    Args:
        run: the run.
        authority_key: 32 raw bytes.
        cache_size: certificate chains to remember.
    """

    def __init__(self, run: RunId, authority_key: bytes, cache_size: int = 1024) -> None:
        self._run = run
        self._membership = membership_checker(run, authority_key, cache_size)

    def presence(self, value: bytes, now: SwarmTime) -> Presence:
        """Read a presence.

        Raises:
            RemoteProtocolError: it is not a genuine, current presence of a member.
        """
        return Presence.from_envelope(self._open("presence", value, now))

    def progress(self, value: bytes, now: SwarmTime) -> Progress:
        """Read a progress.

        Raises:
            RemoteProtocolError: it is not a genuine, current progress of a member.
        """
        return Progress.from_envelope(self._open("progress", value, now))

    def validate(self, key: str, subkey: str, value: bytes, expires_at: SwarmTime, now: SwarmTime) -> str | None:
        """A `RecordValidator`: None if the record may be stored there until then, else the reason in one sentence."""
        run, _, kind = key.partition("/")
        if run != str(self._run) or kind not in _TTL_S:
            return "no record of this run lives under that key"
        try:
            envelope = self._open(kind, value, now)
            if kind == "presence":
                Presence.from_envelope(envelope)
            else:
                Progress.from_envelope(envelope)
        except RemoteProtocolError as error:
            return str(error)
        if subkey != str(envelope.signer):
            return f"a record of {envelope.signer.short} under another peer's name"
        # Whoever stores an old record with a later expiry would hide the newer one behind it.
        if not expires_at <= envelope.expires_at:
            return "a record stored for longer than its signer said"
        return None

    def _open(self, kind: str, value: bytes, now: SwarmTime) -> Envelope:
        require(len(value) <= MAX_RECORD_BYTES, None, f"a record of {len(value)} bytes is too large")
        envelope = verify_envelope(value, kind, self._run, now, self._membership)
        lifetime_s = envelope.expires_at - envelope.issued_at
        require(lifetime_s <= _TTL_S[kind] + CLOCK_SKEW_S, envelope.signer, f"a {kind} that wants to live for {lifetime_s:.0f} s")
        return envelope


def _seal(kind: str, peer: PeerId, payload: bytes, sealer: Sealer, now: SwarmTime) -> SealedRecord:
    if peer.public_key != sealer.signer.public_key:
        raise LocalProtocolError(f"we were about to announce a {kind} of {peer.short} as our own")
    issued_at = from_milliseconds(to_milliseconds(now))
    expires_at = from_milliseconds(to_milliseconds(SwarmTime(issued_at + _TTL_S[kind])))
    value = sealer.seal(kind, payload, issued_at, _TTL_S[kind])
    envelope = Envelope(kind, sealer.run, peer, issued_at, expires_at, sealer.certificate, payload)
    try:
        if kind == "presence":
            Presence.from_envelope(envelope)
        else:
            Progress.from_envelope(envelope)
        require(len(value) <= MAX_RECORD_BYTES, peer, f"a record of {len(value)} bytes is too large")
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"others would refuse our {kind}: {error.reason}") from error
    return SealedRecord(f"{sealer.run}/{kind}", str(peer), value, expires_at)


def record_validator(
    run: RunId, authority_key: bytes, cache_size: int = 1024
) -> Callable[[str, str, bytes, SwarmTime, SwarmTime], str | None]:
    """`RecordReader.validate` of a reader of its own, for those who need no more: the store."""
    return RecordReader(run, authority_key, cache_size).validate
