"""The error tree: the type says whose fault it is, the message says what to do.

SwarmError
├── UserError                 the person at this machine can mend it (bad file, bad flag, port in use); has an exit code
│   ├── ConfigError           a run file, a flag or an environment variable
│   ├── InviteError           an invite that cannot be read, was altered, has expired or is used up
│   ├── DatasetError          a data file that is missing or differs from the run's
│   ├── StateDirError         the state directory: not writable, in use by another process, damaged
│   └── NetworkSetupError     our own sockets and daemon: port in use, cannot start, cannot reach any member
├── LocalProtocolError        our bug: we were about to break the protocol ourselves
├── RemoteError(peer)         somebody else's doing
│   ├── RemoteProtocolError   they broke the protocol: bad bytes, bad signature, absurd number (evidence against them)
│   ├── RemoteRefusal         they said no, with a code and a sentence
│   └── RemoteTimeout         silence or a broken connection; no blame
│       └── RemoteGone        nobody listens there any more: its process has ended
└── RoundError                nobody's fault: the round could not be completed, try the next one
"""

from __future__ import annotations

from enum import IntEnum

from protocols.ids import PeerId


class ExitCode(IntEnum):
    """Numbered exit codes of every command; `docs/exit-codes.md` explains each. Never renumber."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    CONFIG = 10
    INVITE = 11
    DATASET = 12
    STATE_DIR = 13
    IDENTITY_IN_USE = 14
    NETWORK = 15
    PORT_IN_USE = 16
    WRONG_RUN = 17
    REFUSED = 18
    UNHEALTHY = 19
    NO_STATE = 20
    DEVICE = 21
    INTERRUPTED = 130


class SwarmError(Exception):
    """Root of every error this project raises on purpose."""


class UserError(SwarmError):
    """The person at this machine can mend it. The message is one sentence that says what is wrong and what to do."""

    exit_code: ExitCode = ExitCode.USAGE

    def __init__(self, message: str, exit_code: ExitCode | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class ConfigError(UserError):
    """A run file, a flag or an environment variable is wrong."""

    exit_code = ExitCode.CONFIG


class InviteError(UserError):
    """An invite cannot be read, was altered, has expired or is used up."""

    exit_code = ExitCode.INVITE


class DatasetError(UserError):
    """A data file is missing or is not the one the run was started with."""

    exit_code = ExitCode.DATASET


class StateDirError(UserError):
    """The state directory is not writable, damaged, or used by another process."""

    exit_code = ExitCode.STATE_DIR


class NetworkSetupError(UserError):
    """Our own sockets or daemon could not be started, or no member could be reached."""

    exit_code = ExitCode.NETWORK


class LocalProtocolError(SwarmError):
    """Our bug: we were about to send something that we would refuse ourselves."""


class RemoteError(SwarmError):
    """Another peer's doing.

    Args:
        peer: who, or None where a stranger never said.
        message: one sentence.
    """

    def __init__(self, peer: PeerId | None, message: str) -> None:
        super().__init__(f"peer {peer.short if peer else 'unknown'}: {message}")
        self.peer = peer
        self.reason = message


class RemoteProtocolError(RemoteError):
    """They broke the protocol: bad bytes, bad signature, absurd number. Whatever they sent is dropped."""


class RemoteRefusal(RemoteError):
    """They understood and said no.

    Args:
        code: short stable word, e.g. "wrong-run".
    """

    def __init__(self, peer: PeerId | None, code: str, message: str) -> None:
        super().__init__(peer, message)
        self.code = code


class RemoteTimeout(RemoteError):
    """Silence or a broken connection: no blame."""


class RemoteGone(RemoteTimeout):
    """Its machine answers that nobody listens there: the process has ended. Unlike silence this is no doubt, so nobody need wait."""


class RoundError(SwarmError):
    """A round could not be completed and it is nobody's fault; contributions stay where they are."""
