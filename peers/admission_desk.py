"""Letting strangers in, over libp2p calls. The stranger's side is `peers.joining`.

call "spec"    empty request      reply: a `RunDocument`     served by every member
call "admit"   AdmissionRequest   reply: `Admitted`          served by members that may admit
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from peers.interfaces import CallHandler, Clock
from peers.private_files import make_private_dir, read_bounded, write_atomic
from peers.transport.handling import BANNED
from protocols.admission import MAX_LEDGER_BYTES, AdmissionDesk, AdmissionRequest, Refusal
from protocols.errors import LocalProtocolError, RemoteRefusal, StateDirError
from protocols.ids import PeerId
from protocols.run_document import RunDocument
from protocols.runspec import SignedRunSpec

log = logging.getLogger(__name__)

SPEC_CALL = "spec"
ADMIT_CALL = "admit"
_LEDGER_FILE = "run/admissions"


def spec_handler(
    signed_spec: SignedRunSpec, run_ca: bytes, clock: Clock, why_banned: Callable[[PeerId], str | None] = lambda _peer: None
) -> CallHandler:
    """Serves "spec": everything public about the run, to anybody who is not banned from it.

    Args:
        signed_spec: of the run.
        run_ca: the run's root, DER.
        clock: ours; the caller compares it with its own.
        why_banned: why a peer stays out, in a sentence for its owner; None if it does not.
    """

    async def serve(caller: PeerId, request: bytes) -> bytes:
        if sentence := why_banned(caller):
            raise RemoteRefusal(caller, BANNED, sentence)
        log.debug("run document asked for: caller=%s request_bytes=%d", caller.short, len(request))
        return RunDocument(signed_spec, run_ca, clock.now()).encode()

    return serve


class AdmissionService:
    """Serves "admit": a desk whose ledger is on disk before anybody is told that it was let in.

    Args:
        desk: decides.
        state_dir: keeps the ledger.
        clock: ours.

    Raises:
        StateDirError: the ledger is damaged, another run's, or the directory is not writable.
    """

    def __init__(self, desk: AdmissionDesk, state_dir: Path, clock: Clock) -> None:
        self._desk = desk
        self._clock = clock
        self._path = state_dir / _LEDGER_FILE
        self._saving = asyncio.Lock()
        self._saved = b""
        make_private_dir(self._path.parent)
        ledger = read_bounded(self._path, MAX_LEDGER_BYTES, private=True)
        if ledger is not None:
            try:
                desk.import_ledger(ledger)
            except LocalProtocolError as error:
                raise StateDirError(f"{self._path} cannot be used, {error}: restore it from a copy, or remove it to count anew.") from error
            self._saved = ledger

    async def admit(self, caller: PeerId, request: bytes) -> bytes:
        """A `CallHandler`.

        Raises:
            RemoteRefusal: not let in, and why.
            RemoteProtocolError: not a request.

        Cancellation: the use may have been counted and saved without the caller being told; asking again costs it nothing.
        """
        asked = AdmissionRequest.decode(request, caller)
        if asked.key.peer != caller:
            raise RemoteRefusal(caller, "bad-identity", "You ask for admission in another peer's name.")
        answer = self._desk.handle(asked, self._clock.now())
        if isinstance(answer, Refusal):
            log.info("admission refused: peer=%s code=%s", caller.short, answer.code)
            raise RemoteRefusal(caller, answer.code, answer.sentence)
        await self._save(caller)
        log.info("member admitted: peer=%s", caller.short)
        return answer.encode()

    async def _save(self, caller: PeerId) -> None:
        async with self._saving:
            ledger = self._desk.export_ledger()
            if ledger == self._saved:
                return
            try:
                await asyncio.to_thread(write_atomic, self._path, ledger)
            except StateDirError as error:
                log.error("admission ledger cannot be saved, nobody is let in: %s", error)
                raise RemoteRefusal(caller, "not-admitting", "The admission desk cannot save its ledger and lets nobody in.") from error
            self._saved = ledger
