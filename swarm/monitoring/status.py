"""`PeerStatus`: what one running peer knows about itself and the swarm, in `<state_dir>/status.json`, replaced about once a second.

Readers never see half a file (it is written beside the old one and renamed), and can tell a live peer from the remains of a dead one.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from protocols.errors import ExitCode, StateDirError
from swarm.monitoring.replacing import replace_text

STALE_AFTER_S = 15.0
"""A status older than this is not believed, even if a process with its number exists."""

STOPPED = "stopped"
"""`state` of a peer's last status, written when it left cleanly."""

HASH_HISTORY = 20
"""How many epochs' state hashes a status carries."""

_MAX_FILE_BYTES = 8 * 2**20

_T = TypeVar("_T")


class Liveness(Enum):
    """Whether the peer that wrote a status is still there."""

    RUNNING = "running"
    STOPPED = "stopped"
    STALE = "not responding"
    DEAD = "died"


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member as this peer sees it; the fields are those of its signed progress record (`protocols.records.Progress`).

    Args:
        peer: text form of its id.
        samples: of the epoch in progress.
        loss: mean training loss per token in nats, or None before the first.
        state_hash: hex digest of its shared state, "" while it holds none.
    """

    peer: str
    role: str
    state: str
    epoch: int
    samples: int
    samples_per_s: float
    sent_bytes: int
    received_bytes: int
    loss: float | None
    state_hash: str


@dataclass(frozen=True, slots=True)
class BannedStatus:
    """A member that is out.

    Args:
        peer: text form of its id.
        epoch: in which it was caught.
        reason: one sentence's end: "its contribution is not what its samples give".
    """

    peer: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class EpochHash:
    """State hash that this peer held after one epoch."""

    epoch: int
    state_hash: str


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What one peer knows.

    Args:
        run_name: from the run file.
        run_id: fingerprint in hex.
        peer: text form of this peer's id.
        pid: its process.
        role: "trainer", "helper" or "client".
        state: phase of its progress record, or `STOPPED`.
        epoch: updates it has applied.
        samples: computed by it for the epoch in progress.
        samples_total: computed by it since it started.
        samples_per_s: its own speed.
        sent_bytes: payload sent since it started.
        received_bytes: payload received since it started.
        loss: training loss per token in nats of its last micro-batches.
        eval_loss: held-out loss per token in nats, newest it has measured.
        state_hash: hex digest of its shared state.
        target_samples: that close the epoch.
        swarm_samples: counted by all members towards it.
        addresses: libp2p multiaddrs at which it can be reached.
        members: everybody it sees, itself included.
        updated_at: seconds since the Unix epoch, by its clock.
        last_error: last thing that went wrong, "" if nothing did.
        data_address: "host:port" at which members dial its gRPC server, "" if nobody can.
        hashes: state hash after each of the last `HASH_HISTORY` epochs, oldest first.
        banned: everybody who is banned, as far as it knows; itself included.
    """

    run_name: str
    run_id: str
    peer: str
    pid: int
    role: str
    state: str
    epoch: int
    samples: int
    samples_total: int
    samples_per_s: float
    sent_bytes: int
    received_bytes: int
    loss: float | None
    eval_loss: float | None
    state_hash: str
    target_samples: int
    swarm_samples: int
    addresses: tuple[str, ...]
    members: tuple[MemberStatus, ...]
    updated_at: float
    last_error: str = ""
    data_address: str = ""
    hashes: tuple[EpochHash, ...] = ()
    banned: tuple[BannedStatus, ...] = ()

    def to_json(self) -> str:
        """Indented JSON object with the fields of this class."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> PeerStatus:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not JSON, a field is missing or unknown, or has another type.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
        return _build(
            cls,
            {
                **raw,
                "addresses": tuple(_listed(raw, "addresses")),
                "members": tuple(_build(MemberStatus, item) for item in _listed(raw, "members")),
                "hashes": tuple(_build(EpochHash, item) for item in _listed(raw, "hashes")),
                "banned": tuple(_build(BannedStatus, item) for item in _listed(raw, "banned")),
            },
        )

    def liveness(self, now: float) -> Liveness:
        """Whether the writer is still there.

        Args:
            now: seconds since the Unix epoch.
        """
        if self.state == STOPPED:
            return Liveness.STOPPED
        if not _process_exists(self.pid):
            return Liveness.DEAD
        return Liveness.RUNNING if now - self.updated_at <= STALE_AFTER_S else Liveness.STALE

    @property
    def swarm_loss(self) -> float | None:
        """Training loss of the swarm: mean of the members' losses weighted by their speed; None until somebody reports one."""
        losses = [(member.loss, max(member.samples_per_s, 1e-9)) for member in self.members if member.loss is not None]
        total = sum(speed for _, speed in losses)
        return sum(loss * speed for loss, speed in losses) / total if losses else self.loss


def write_status(path: Path, status: PeerStatus) -> None:
    """Replace the status file in one step; a crash at any moment leaves the old or the new one.

    Raises:
        StateDirError: the directory cannot be written or the disk is full.
    """
    replace_text(path, status.to_json())


def read_status(path: Path) -> PeerStatus | None:
    """The newest status, or None where no peer has ever reported.

    Raises:
        StateDirError: the file is unreadable or damaged.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateDirError(f"Cannot read {path}: {error.strerror}.", ExitCode.STATE_DIR) from None
    try:
        if len(raw) > _MAX_FILE_BYTES:
            raise ValueError("far too long")
        return PeerStatus.from_json(raw.decode("utf-8"))
    except ValueError as error:
        raise StateDirError(f"{path} is damaged ({error}); delete it, a running peer writes a new one within seconds.") from None


def _process_exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _listed(raw: dict[str, Any], key: str) -> list[Any]:
    value = raw.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key} is not a list")
    return value


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "tuple[str, ...]": (tuple,),
    "tuple[MemberStatus, ...]": (tuple,),
    "tuple[EpochHash, ...]": (tuple,),
    "tuple[BannedStatus, ...]": (tuple,),
}


def _build(kind: type[_T], raw: object) -> _T:
    """Make a dataclass of plain fields from a JSON object, strictly."""
    if not isinstance(raw, dict):
        raise ValueError(f"a {kind.__name__} is not an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if set(raw) != set(fields):
        raise ValueError(f"unexpected or missing fields: {', '.join(sorted(set(raw) ^ set(fields)))}")
    for name, field in fields.items():
        if not isinstance(raw[name], _TYPES[str(field.type)]) or isinstance(raw[name], bool):
            raise ValueError(f"{name} is of the wrong type")
    return kind(**raw)
