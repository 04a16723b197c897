"""Runs a handler and turns how it ended into what the caller is told. The same for every transport."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Generic, TypeVar

from protocols.errors import RemoteProtocolError, RemoteRefusal, RemoteTimeout
from protocols.ids import PeerId

_LOG = logging.getLogger(__name__)
_Reply = TypeVar("_Reply")

UNKNOWN_METHOD = "unknown-method"
"""Refusal code: nobody serves that method there."""

PROTOCOL_ERROR = "protocol-error"
"""Refusal code: the handler found that the caller broke the protocol."""

INTERNAL = "internal"
"""Refusal code: a bug at the serving side."""

BANNED = "banned"
"""Refusal code: the caller is banned from the run."""

BUSY = "busy"
"""Refusal code: more at once than is served; trying again later may help."""

BAD_IDENTITY = "bad-identity"
"""Refusal code: the caller's certificate does not belong to the identity it names."""

MAX_SENTENCE_CHARS = 500
_CODE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a caller is told instead of a reply.

    Args:
        code: short stable word of a-z, 0-9 and hyphens; anything else (it may come from the network) becomes `protocol-error`.
        sentence: one sentence, cut at `MAX_SENTENCE_CHARS`.
    """

    code: str
    sentence: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "sentence", self.sentence[:MAX_SENTENCE_CHARS])
        if not _CODE.fullmatch(self.code):
            object.__setattr__(self, "code", PROTOCOL_ERROR)

    def as_error(self, peer: PeerId) -> RemoteRefusal:
        """The exception that the caller sees."""
        return RemoteRefusal(peer, self.code, self.sentence)


@dataclass(frozen=True, slots=True)
class Answered(Generic[_Reply]):
    """The handler returned.

    Args:
        reply: what it returned.
    """

    reply: _Reply


@dataclass(frozen=True, slots=True)
class Broken:
    """The handler gave up because its caller had gone: there is nobody to answer."""


def unknown_method(method: str) -> Refusal:
    """The refusal of a method that is not served."""
    return Refusal(UNKNOWN_METHOD, f"method {method[:80]!r} is not served here")


async def run_handler(handling: Awaitable[_Reply], method: str, caller: PeerId) -> Answered[_Reply] | Refusal | Broken:
    """Await a handler; its refusals become values, our bugs are logged with their traceback.

    Args:
        handling: the handler's coroutine.
        method: for the log.
        caller: whom it serves.

    Cancellation: passes through to the handler and out.
    """
    try:
        return Answered(await handling)
    except RemoteRefusal as error:
        return Refusal(error.code, error.reason)
    except RemoteProtocolError as error:
        return Refusal(PROTOCOL_ERROR, error.reason)
    except Exception as error:  # noqa: BLE001  # the owner of the handler's task
        if isinstance(error, RemoteTimeout) and error.peer == caller:
            _LOG.debug("caller gone: method=%s peer=%s", method, caller.short)
            return Broken()
        _LOG.exception("handler failed: method=%s peer=%s", method, caller.short)
        return Refusal(INTERNAL, "the other side met a bug of its own while serving this")
