"""Our averaging round as a worker of the benchmark: gRPC with mutual TLS, signed joins, reports and commits; everything but the DHT."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import torch
import uvloop
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from numpy.typing import NDArray

from peers.averaging.averager import Averaged, Averager, RoundDone
from peers.averaging.context import AveragingRules, MemberContext
from peers.averaging.trust_rules import TrustRules
from peers.bandwidth import Bandwidth
from peers.clock import SystemClock
from peers.interfaces import Endpoint
from peers.memory import keep_freed_memory
from peers.notary import MemberNotary
from peers.transport.direct import DirectTransport
from peers.transport.tls import TlsCredentials
from protocols.certificate import MemberKey, binding_statement, membership_checker, read_leaf
from protocols.certificate_chain import CertificateChain, ders_from_pem, pem_from_der
from protocols.codecs import codec_named
from protocols.ids import Epoch, PeerId, RunId, SwarmTime
from protocols.issuing import Issuer, issue_member_certificate, make_run_ca
from protocols.messages import Join
from protocols.signing import Sealer
from scripts.bench.worker import Publish, Task, serve

RUN = RunId(b"\x17" * 32)
BANDWIDTH_BYTES_PER_S = 10**8
DAY_S = 86400.0
T = TypeVar("T")


class SigningKey:
    """`protocols.signing.Signer` over a key in memory."""

    def __init__(self, seed: int) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(seed.to_bytes(32, "little"))

    @property
    def public_key(self) -> bytes:
        """32 raw bytes."""
        return self.private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64-byte signature."""
        return self.private.sign(message)


@dataclass
class Everyone:
    """A directory of peers that never changes during a benchmark."""

    others: dict[PeerId, Endpoint] = field(default_factory=dict)

    def placed(self, epoch: Epoch) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """All but us can be dialled."""
        return self.live(epoch), frozenset()

    def live(self, epoch: Epoch) -> frozenset[PeerId]:
        """All but us."""
        return frozenset(self.others)

    def endpoint(self, peer: PeerId) -> Endpoint | None:
        """Where a peer listens."""
        return self.others.get(peer)

    def reachable(self, peer: PeerId) -> Endpoint | None:
        """The same."""
        return self.endpoint(peer)

    def age_s(self, peer: PeerId) -> float | None:
        """Nobody asks: nobody is audited."""

    async def refresh(self) -> None:
        """Nobody comes."""

    def suspect(self, peer: PeerId) -> None:
        """Everybody stays."""


def read_endpoint(file: Path) -> Endpoint:
    """Where a process said that it listens."""
    found = json.loads(file.read_text())
    return Endpoint(PeerId.parse(found["peer"]), found["address"], found["certificate"].encode())


class Ours:
    """One member, its network loop in a thread of its own as in a real peer."""

    measures_links = True
    trust: TrustRules | None = None

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._stack = AsyncExitStack()
        self._rounds = 0
        self._directory = Everyone()
        self._done: RoundDone | None = None
        self._links = Bandwidth() if self.measures_links else None

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def open(self, task: Task, publish: Publish) -> dict[str, Any]:
        """Listen, and learn where the others do."""
        torch.set_num_threads(1)
        keep_freed_memory()
        self._thread.start()
        self._weight = task.weight
        self._own_D = torch.empty(task.elems)
        if task.rank == 0:
            publish({})
        self._run(self._open(task))
        return {"grpcio": grpc.__version__, "block_elems": task.block_elems, "tls": "mutual, 1.3"}

    async def _open(self, task: Task) -> None:
        authority, key = SigningKey(10**6), SigningKey(1 + task.rank)
        me, now = PeerId(key.public_key), time.time()
        tls_key = generate_private_key(SECP256R1())
        spki = tls_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ca = make_run_ca(authority.private, "benchmark", 1, SwarmTime(now - DAY_S), SwarmTime(now + DAY_S))
        chain = issue_member_certificate(
            Issuer(authority.private, ca),
            MemberKey(me, spki, key.sign(binding_statement(RUN, spki))),
            RUN,
            2 + task.rank,
            SwarmTime(now - DAY_S),
            SwarmTime(now + DAY_S),
        )
        credentials = TlsCredentials(
            private_key_pem=tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            certificate_chain_pem=chain.pem,
            run_ca_pem=pem_from_der(ca),
            authenticate=lambda pem: read_leaf(ders_from_pem(pem)[0], RUN, ca).peer,
            is_banned=lambda peer: False,
        )
        transport = DirectTransport(credentials, f"{task.address}:0", task.address)
        rules = AveragingRules(RUN, task.block_elems, codec_named(task.codec), 64, 10.0, 3.0, task.timeout_s, self.trust)
        self._transport = transport
        pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="heavy")
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        notary = MemberNotary(Sealer(key, chain.to_bytes(), RUN), membership_checker(RUN, authority.public_key), SystemClock())
        context = MemberContext(me, transport, self._directory, notary, rules, tasks, pool, bandwidth=self._links)
        self._averager = Averager(context, lambda epoch: None, self._observe)
        self._stack.push_async_callback(transport.close)
        address = await self._stack.enter_async_context(transport.serve(self._averager.handlers))
        self._announce(task, me, address, chain)
        everybody = await self._meet(task)
        everybody.pop(me, None)
        self._directory.others.update(everybody)

    def _announce(self, task: Task, me: PeerId, address: str, chain: CertificateChain) -> None:
        file = task.directory / f"peer-{task.rank}.json"
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"peer": str(me), "address": address, "certificate": chain.leaf_pem.decode()}))
        unfinished.rename(file)

    async def _meet(self, task: Task) -> dict[PeerId, Endpoint]:
        """Wait until every peer has said where it listens."""
        endpoints = {}
        async with asyncio.timeout(task.timeout_s):
            for rank in range(task.peers):
                file: Path = task.directory / f"peer-{rank}.json"
                while not file.exists():
                    await asyncio.sleep(0.05)
                endpoint = read_endpoint(file)
                endpoints[endpoint.peer] = endpoint
        return endpoints

    def load(self, vector_D: NDArray[np.float32]) -> None:
        """Where the trainer leaves its contribution."""
        self._own_D = torch.from_numpy(vector_D)

    def average(self) -> int:
        """Gather, exchange and settle one round."""
        join = Join(Epoch(self._rounds), b"s" * 32, self._weight, BANDWIDTH_BYTES_PER_S)
        self._rounds += 1
        self._sent_bytes = self._transport.traffic.sent_bytes
        self._averaged: Averaged = self._run(self._averager.average_epoch(join, self._own_D))
        return len(self._averaged.contributors)

    def result(self) -> NDArray[np.float32]:
        """The averaged vector."""
        return self._averaged.vector_D.numpy()

    def _observe(self, done: RoundDone) -> None:
        self._done = done

    def notes(self) -> dict[str, Any]:
        """How long planning and the exchange took, seconds, what we have sent, and what our link seems to carry, bytes per second."""
        done = self._done
        if done is None:
            return {}
        times = {"plan_s": round(done.plan_s, 4), "exchange_s": round(done.exchange_s, 4)}
        times["sent_bytes"] = self._transport.traffic.sent_bytes - self._sent_bytes
        return {**times, "bandwidth_bytes_per_s": self._links.meter.estimate_bytes_per_s} if self._links else dict(times)

    def close(self) -> None:
        """Stop serving and end the loop."""
        self._run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    sys.exit(serve(Ours()))
