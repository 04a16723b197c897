"""A libp2p node with py-libp2p's default security, which accepts plaintext: what the probe must complain about.

A program of its own (py-libp2p and hivemind cannot share a process): prints its address and serves until its standard input ends.
"""

from __future__ import annotations

import sys

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr


async def _serve() -> None:
    host = new_host(key_pair=create_new_key_pair())
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        sys.stdout.write(f"{host.get_addrs()[0]}\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(_serve)
