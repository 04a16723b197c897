"""Others' inner states: fetched from whoever committed to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import torch

from peers.averaging.context import MemberContext
from peers.state_server import GIVING_TO_OTHERS, UNKNOWN_STATE
from peers.state_snapshot import StateSnapshot
from peers.state_transfer import FetchPolicy, fetch_state
from protocols.errors import RemoteError, RemoteRefusal, RoundError
from protocols.ids import PeerId
from protocols.manifest import Manifest
from protocols.trust.traced import Traced

log = logging.getLogger(__name__)

_TRIES = 3
_SLOWEST_BYTES_PER_S = 64 * 1024
"""Whoever gives its state more slowly than this gives it to nobody."""
_STALL_S = 30.0
"""Silence after which a giver is dropped: all who look into one member ask it at the same time, over what may be a thin link."""


class InnerStates:
    """Of the members of one swarm, seen by one of them.

    Args:
        context: who we are.
    """

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._fetching: dict[bytes, asyncio.Lock] = {}

    async def fetch(self, traced: Traced, holders: Sequence[PeerId]) -> bool:
        """Have both states of a contribution here; False if nobody gives them: at once if all say that they do not have one.

        Args:
            traced: what its member committed to.
            holders: who may have them.
        """
        for root in filter(None, (traced.inner_start, traced.inner_end)):
            if await self._one(root, holders) is None:
                return False
        return True

    def held(self, root: bytes) -> StateSnapshot | None:
        """The state with that root, if it is here."""
        return self._context.inner.find(root) if root else None

    @property
    def comparable(self) -> bool:
        """Whether we know what an inner state looks like: those who have none of their own cannot look into others'."""
        return self._context.inner.newest is not None

    async def _one(self, root: bytes, holders: Sequence[PeerId]) -> StateSnapshot | None:
        """However many ask for it, it is fetched once."""
        lock = self._fetching.setdefault(root, asyncio.Lock())
        try:
            async with lock:
                return self.held(root) or await self._fetched(root, holders)
        finally:
            if not lock.locked():
                self._fetching.pop(root, None)

    async def _fetched(self, root: bytes, holders: Sequence[PeerId]) -> StateSnapshot | None:
        newest = self._context.inner.newest
        if newest is None:
            return None
        size_bytes = 2 * newest.manifest.size_bytes
        total_s = 60.0 + size_bytes / _SLOWEST_BYTES_PER_S
        policy = FetchPolicy(stall_s=_STALL_S, total_timeout_s=total_s, max_state_bytes=size_bytes)
        loop, tries = asyncio.get_running_loop(), 0
        until_s = loop.time() + total_s
        while tries < _TRIES:
            donors = [endpoint for peer in dict.fromkeys(holders) if (endpoint := self._context.directory.reachable(peer))]
            failures: list[RemoteError] = []
            try:
                snapshot = await fetch_state(self._context.transport, donors, root, policy=policy, on_drop=failures.append)
            except RoundError as error:
                log.info("an inner state cannot be had: %s", error)
                codes = [failure.code if isinstance(failure, RemoteRefusal) else "" for failure in failures]
                if codes and set(codes) == {UNKNOWN_STATE}:
                    return None
                turned_away = GIVING_TO_OTHERS in codes and loop.time() < until_s  # by others who look into it as well
                tries += not turned_away
                await asyncio.sleep(self._context.rules.stall_timeout_s)
                continue
            self._context.inner.borrow(snapshot)
            return snapshot
        return None

    def is_malformed(self, traced: Traced) -> bool:
        """Whether a state that is here is not one of this run's model and optimizer: no honest member commits to it. Runs in the pool."""
        newest = self._context.inner.newest
        held = filter(None, map(self.held, (traced.inner_start, traced.inner_end)))
        return newest is not None and any(_layout(state.manifest) != _layout(newest.manifest) or not _finite(state) for state in held)


def _finite(state: StateSnapshot) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for _, tensor in state.tensors())


def _layout(manifest: Manifest) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(entry.name, entry.dtype, entry.shape) for entry in manifest.tensors]
