"""Who is in the swarm: from records, and from what we saw ourselves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping

import pytest

from peers.roster import PRESENCES_EVERY_S, Roster
from peers.simulation import run_simulated
from protocols.certificate_chain import CertificateChain
from protocols.ids import Epoch, PeerId, SwarmTime
from protocols.progress import STALE_AFTER_S
from protocols.record_keeping import RecordReader, record_key, seal_presence, seal_progress
from protocols.records import Phase, Presence, Progress
from tests.helpers.node_swarm import sealer_of, world
from tests.helpers.run_world import NOW, FixedClock, identity

ME, A, B, C = (identity(number).peer for number in range(4))
NUMBER_OF = {ME: 0, A: 1, B: 2, C: 3}
STATE = b"s" * 32


class Shelves:
    """A store that answers with what a test has put into it."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    async def put(self, key: str, subkey: str, value: bytes, expires_at: SwarmTime) -> bool:
        self.records.setdefault(key, {})[subkey] = value
        return True

    async def get(self, key: str) -> Mapping[str, bytes]:
        self.asked.append(key)
        await self._moment()
        return dict(self.records.get(key, {}))

    async def close(self) -> None:
        return

    @staticmethod
    async def _moment() -> None:
        """A real store answers later."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, answered.set_result, None)
        await answered


class Scene:
    """A roster, its clock, and the records it will find."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.store = Shelves()
        self.reader = CountingReader()
        self.roster = Roster(ME, world().run, self.store, self.reader, self.clock)

    def pass_time(self, seconds: float) -> None:
        self.clock.time = SwarmTime(self.clock.time + seconds)

    async def announces(self, *peers: PeerId, address: str = "192.0.2.1:4001", libp2p: tuple[str, ...] = ()) -> None:
        for peer in peers:
            sealer = sealer_of(NUMBER_OF[peer])
            leaf_pem = CertificateChain.from_bytes(sealer.certificate).leaf_pem
            presence = Presence(peer, address, leaf_pem, libp2p, "trainer" if address else "client", "cpu", 1000, NOW, "test")
            record = seal_presence(presence, sealer, self.clock.now())
            await self.store.put(record.key, record.subkey, record.value, record.expires_at)

    async def says(
        self, peer: PeerId, epoch: int = 3, phase: Phase = "training", state: bytes = STATE, ago_s: float = 0.0, samples: int = 10
    ) -> None:
        now = SwarmTime(self.clock.now() - ago_s)
        progress = Progress(peer, Epoch(epoch), samples, 1.0, 100, state, phase, None, 0, 0, now)
        record = seal_progress(progress, sealer_of(NUMBER_OF[peer]))
        await self.store.put(record.key, record.subkey, record.value, record.expires_at)

    async def everybody(self) -> None:
        await self.announces(A, B, C)
        for peer in (A, B, C):
            await self.says(peer)
        await self.roster.refresh()


class CountingReader(RecordReader):
    """Counts the records that it verifies."""

    def __init__(self) -> None:
        super().__init__(world().run, world().authority_key)
        self.verified = 0

    def presence(self, value: bytes, now: SwarmTime) -> Presence:
        self.verified += 1
        return super().presence(value, now)

    def progress(self, value: bytes, now: SwarmTime) -> Progress:
        self.verified += 1
        return super().progress(value, now)


def play(scene: Coroutine[None, None, None]) -> None:
    run_simulated(scene, limit_s=10)


def test_who_announced_itself_and_holds_a_state_is_live() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.everybody()
        assert scene.roster.live(Epoch(3)) == {A, B, C}
        assert scene.roster.live(Epoch(2)) == scene.roster.live(Epoch(4)) == {A, B, C}
        assert scene.roster.live(Epoch(5)) == scene.roster.live(Epoch(1)) == frozenset()
        endpoint = scene.roster.endpoint(A)
        assert endpoint is not None
        assert (endpoint.peer, endpoint.address) == (A, "192.0.2.1:4001")
        assert b"CERTIFICATE" in endpoint.certificate_pem

    play(main())


def test_who_cannot_be_dialled_may_be_reached_over_libp2p() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.announces(A, libp2p=("/ip4/192.0.2.1/tcp/4002/p2p/12D3KooWx",))
        await scene.announces(B, address="", libp2p=("/ip4/192.0.2.9/tcp/1/p2p/12D3KooWr/p2p-circuit/p2p/12D3KooWb",))
        await scene.announces(C, address="")
        await scene.roster.refresh()
        roster = scene.roster
        assert roster.endpoint(A) == roster.reachable(A)
        assert (found := roster.endpoint(A))
        assert found.libp2p_addresses == ("/ip4/192.0.2.1/tcp/4002/p2p/12D3KooWx",)
        assert roster.endpoint(B) is None
        assert (found := roster.reachable(B))
        assert found.address == ""
        assert found.libp2p_addresses[0].endswith("12D3KooWb")
        assert roster.endpoint(C) is None
        assert (found := roster.reachable(C)), "it may have connected to us"
        assert (found.address, found.libp2p_addresses) == ("", ())
        assert roster.reachable(identity(7).peer) is None

    play(main())


@pytest.mark.parametrize(
    "changes",
    [{"phase": "leaving"}, {"state": b""}, {"ago_s": STALE_AFTER_S + 1}, {"epoch": 5}],
    ids=["leaving", "empty", "stale", "ahead"],
)
def test_who_does_not_count(changes: dict[str, object]) -> None:
    async def main() -> None:
        scene = Scene()
        await scene.announces(A, B)
        await scene.says(A)
        await scene.says(B, **changes)  # type: ignore[arg-type]
        await scene.roster.refresh()
        assert scene.roster.live(Epoch(3)) == {A}

    play(main())


def test_our_own_records_are_passed_over() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.announces(ME, A)
        await scene.says(ME)
        await scene.says(A)
        await scene.roster.refresh()
        assert set(scene.roster.others()) == {A}
        assert scene.roster.live(Epoch(3)) == {A}

    play(main())


def test_progress_without_presence_cannot_be_dialled() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.says(A)
        await scene.roster.refresh()
        assert set(scene.roster.others()) == {A}
        assert scene.roster.live(Epoch(3)) == frozenset()
        assert scene.roster.endpoint(A) is None

    play(main())


def test_a_client_is_live_and_has_no_endpoint() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.announces(A, address="")
        await scene.says(A)
        await scene.roster.refresh()
        assert scene.roster.live(Epoch(3)) == {A}
        assert scene.roster.endpoint(A) is None

    play(main())


def test_a_suspect_counts_again_once_it_speaks() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.everybody()
        scene.pass_time(1)
        scene.roster.suspect(A)
        assert scene.roster.live(Epoch(3)) == set(scene.roster.others()) == {B, C}
        await scene.roster.refresh()
        assert scene.roster.live(Epoch(3)) == {B, C}  # the same record as before says nothing new
        await scene.says(A, ago_s=0.5, samples=11)
        await scene.roster.refresh()
        assert scene.roster.live(Epoch(3)) == {B, C}  # said before it fell silent
        scene.pass_time(1)
        await scene.says(A, samples=12)
        await scene.roster.refresh()
        assert scene.roster.live(Epoch(3)) == {A, B, C}

    play(main())


def test_an_older_record_does_not_undo_a_newer_one() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.announces(A)
        await scene.says(A, epoch=4)
        await scene.roster.refresh()
        await scene.says(A, epoch=3, ago_s=5.0)
        await scene.roster.refresh()
        assert scene.roster.progress[A].epoch == 4

    play(main())


def test_damaged_records_and_those_of_other_runs_are_dropped() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.everybody()
        progress = scene.store.records[record_key(world().run, "progress")]
        presence = scene.store.records[record_key(world().run, "presence")]
        scene.pass_time(1)
        await scene.says(B, epoch=4)
        progress["junk"] = b"junk"
        progress[str(A)] = progress[str(A)][:-1] + b"x"
        presence[str(C)] = progress[str(B)]
        await scene.roster.refresh()
        assert scene.roster.progress[B].epoch == 4
        assert scene.roster.progress[A].epoch == 3
        assert scene.roster.endpoint(C) is not None

    play(main())


def test_a_record_that_has_not_changed_is_not_verified_again() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.everybody()
        assert scene.reader.verified == 6
        await scene.roster.refresh()
        assert scene.reader.verified == 6
        scene.pass_time(1)
        await scene.says(A, epoch=4)
        await scene.roster.refresh()
        assert scene.reader.verified == 7
        assert scene.roster.progress[A].epoch == 4

    play(main())


def test_refreshes_at_the_same_time_share_one_reading() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.announces(A)
        await asyncio.gather(*(scene.roster.refresh() for _ in range(5)))
        assert len(scene.store.asked) == 2
        assert scene.roster.endpoint(A) is not None

    play(main())


def test_a_presence_that_moves_is_followed() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.announces(A)
        await scene.roster.refresh()
        scene.pass_time(1)
        await scene.announces(A, address="198.51.100.7:5000")
        await scene.roster.refresh()
        endpoint = scene.roster.endpoint(A)
        assert endpoint is not None
        assert endpoint.address == "198.51.100.7:5000"

    play(main())


def test_whoever_averaged_with_us_is_where_we_are() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.everybody()
        scene.pass_time(STALE_AFTER_S + 1)
        assert scene.roster.live(Epoch(4)) == frozenset()
        scene.roster.note_round((ME, A, B), Epoch(4), b"n" * 32, 200)
        assert scene.roster.live(Epoch(4)) == {A, B}
        known = scene.roster.progress[A]
        assert (known.epoch, known.state_hash, known.accepted_samples, known.samples) == (4, b"n" * 32, 200, 0)
        assert scene.roster.progress[C].epoch == 3
        scene.roster.suspect(A)
        assert scene.roster.live(Epoch(4)) == {B}
        scene.pass_time(1)
        await scene.says(B, epoch=4, phase="leaving")
        await scene.roster.refresh()
        assert scene.roster.live(Epoch(4)) == frozenset()

    play(main())


def test_what_a_round_showed_does_not_hide_what_a_member_says_later() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.everybody()
        scene.roster.note_round((A,), Epoch(4), b"n" * 32, 200)
        scene.pass_time(1)
        await scene.says(A, epoch=4, state=b"o" * 32)
        await scene.roster.refresh()
        assert scene.roster.progress[A].state_hash == b"o" * 32

    play(main())


def _presences_read(scene: Scene) -> int:
    return scene.store.asked.count(record_key(world().run, "presence"))


def test_following_reads_presences_only_now_and_then() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.everybody()
        before = _presences_read(scene)
        for _ in range(3):
            scene.pass_time(1.0)
            await scene.roster.follow()
        assert _presences_read(scene) == before
        scene.pass_time(PRESENCES_EVERY_S)
        await scene.roster.follow()
        assert _presences_read(scene) == before + 1

    play(main())


def test_a_member_without_a_presence_is_looked_for_at_once() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.announces(A)
        await scene.says(A)
        await scene.roster.refresh()
        await scene.announces(B)
        await scene.says(B)
        scene.pass_time(1.0)
        await scene.roster.follow()
        assert scene.roster.live(Epoch(3)) == {A, B}

    play(main())


def test_a_refresh_reads_presences_even_if_a_reading_without_them_is_under_way() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.everybody()
        before = _presences_read(scene)
        await asyncio.gather(scene.roster.follow(), scene.roster.refresh())
        assert _presences_read(scene) == before + 1

    play(main())


def test_where_epochs_are_short_a_record_is_held_against_the_epoch_of_its_time() -> None:
    async def main() -> None:
        scene = Scene()
        scene.roster.note_epoch(Epoch(3))
        await scene.announces(A, B)
        await scene.says(A, epoch=3)
        await scene.says(B, epoch=0)
        await scene.roster.refresh()
        for epoch in range(4, 9):
            scene.pass_time(0.5)
            scene.roster.note_epoch(Epoch(epoch))
        assert scene.roster.live(Epoch(8)) == {A}, "A said epoch 3 when we held 3; B was far behind then"
        scene.pass_time(0.5)
        await scene.says(A, epoch=3)
        await scene.roster.refresh()
        assert scene.roster.live(Epoch(8)) == frozenset(), "A says epoch 3 again although we hold 8"

    play(main())
