"""Two processes must not be the same peer. On one state directory the lock sees to that; this is for a copy of it, on any machine."""

from __future__ import annotations

from peers.interfaces import Clock, Endpoint, RecordStore, Transport
from protocols.errors import ExitCode, RemoteError, RemoteRefusal, StateDirError
from protocols.ids import PeerId, RunId
from protocols.record_keeping import RecordReader, record_key

ANSWER_WITHIN_S = 2.0

_CALL = "are-you-there"  # nobody serves it: being told so is the answer


async def refuse_twin(me: PeerId, run: RunId, reader: RecordReader, store: RecordStore, transport: Transport, clock: Clock) -> None:
    """Make sure that nobody answers as us where our own last announcement in the swarm points to. To be called before we serve.

    Right after we were killed there is an announcement too, but nobody answers there. Two that start at the same moment go unnoticed; they
    do no harm but to each other, since members take the newer of their records.

    Args:
        me, run: ours.
        reader: of this run's records.
        store: where members announce themselves.
        transport: to dial with.
        clock: ours.

    Raises:
        StateDirError: somebody with our keys does answer (exit code IDENTITY_IN_USE).
    """
    announced = (await store.get(record_key(run, "presence"))).get(str(me))
    if announced is None:
        return
    try:
        presence = reader.presence(announced, clock.now())
        if not presence.address:
            return
        await transport.call(Endpoint(me, presence.address, presence.certificate_pem), _CALL, b"", timeout_s=ANSWER_WITHIN_S)
    except RemoteRefusal:
        raise StateDirError(
            f"Another process takes part in this run with the same identity, at {presence.address}: stop it, or start this peer with a "
            "--state-dir of its own instead of a copy.",
            ExitCode.IDENTITY_IN_USE,
        ) from None
    except RemoteError:
        return
