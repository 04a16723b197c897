"""Cleans what strangers send before hivemind sees it. Anybody can speak to the DHT, and hivemind trusts what it reads more than we do.

What is wrong is taken out and the rest goes on; each removal is a debug line that names the sender. Messages are hivemind's protobufs
(`StoreRequest`, `FindRequest`, `FindResponse`, ...), cleaned in place or made anew from the same type.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import base58

from peers.store.dht_wire import ID_BYTES, WireRecord, decode_dictionary, decode_subkey, encode_dictionary, encode_subkey, node_id

log = logging.getLogger(__name__)

MAX_STORE_ENTRIES = 4096
MAX_FIND_KEYS = 64
MAX_NEIGHBOURS = 32
_MAX_PEER_ID_BYTES = 64
_WHOLE_DICTIONARY = b""
_NOT_FOUND, _FOUND_DICTIONARY = 0, 2

Admit = Callable[[bytes, WireRecord], str | None]
"""(20-byte key id, record) -> None if it may be kept and used, else the reason."""


class BadMessage(ValueError):
    """A whole message is refused; hivemind reports the sentence to its sender."""


class DhtGuard:
    """Cleans messages.

    Args:
        own_peer: our binary libp2p peer id.
        admit: judges single records.
    """

    def __init__(self, own_peer: bytes, admit: Admit) -> None:
        self._own_peer = own_peer
        self._admit = admit

    def clean_sender(self, node: Any, sender: bytes) -> None:
        """Forget a node id that is not the sender's own, or that is ours: such a peer is served but not remembered."""
        if node.node_id and (node.node_id != node_id(sender) or sender == self._own_peer):
            self._note(sender, "it claims another node's place")
            node.node_id = b""

    def check_find(self, request: Any) -> None:
        """Bound the work of one question.

        Raises:
            BadMessage: too many keys, or keys of another size.
        """
        if len(request.keys) > MAX_FIND_KEYS or any(len(key) != ID_BYTES for key in request.keys):
            raise BadMessage(f"a question has 1 to {MAX_FIND_KEYS} keys of {ID_BYTES} bytes")

    def clean_store(self, request: Any, sender: bytes) -> tuple[Any, list[int]]:
        """Unpack whole dictionaries into single records and keep the good ones.

        Returns:
            A request with single records only, and for each of them the index of the entry of `request` that it came from.

        Raises:
            BadMessage: its lists do not match, or are too long.
        """
        count = len(request.keys)
        lists = (request.subkeys, request.values, request.expiration_time, request.in_cache)
        if count > MAX_STORE_ENTRIES or any(len(items) != count for items in lists):
            raise BadMessage(f"a store request has at most {MAX_STORE_ENTRIES} entries in lists of equal length")
        clean, origin = type(request)(peer=request.peer), []
        for index, (key, tag, value, expires_at, in_cache) in enumerate(zip(request.keys, *lists, strict=True)):
            if in_cache or len(key) != ID_BYTES:
                self._note(sender, "it stores into the cache, or under a key of another size")
                continue
            for record in self._admitted(key, self._read(tag, value, expires_at, sender), sender):
                clean.keys.append(key)
                clean.subkeys.append(encode_subkey(record.subkey))
                clean.values.append(record.value)
                clean.expiration_time.append(record.expires_at)
                clean.in_cache.append(False)
                origin.append(index)
        return clean, origin

    def clean_found(self, response: Any, keys: Sequence[bytes], sender: bytes) -> None:
        """Keep the good records and the honest neighbours of an answer."""
        del response.results[len(keys) :]
        for key, result in zip(keys, response.results, strict=False):
            self._clean_neighbours(result, sender)
            records: list[WireRecord] = []
            if result.type == _FOUND_DICTIONARY:
                records = self._admitted(key, self._read(_WHOLE_DICTIONARY, result.value, 0.0, sender), sender)
            elif result.type != _NOT_FOUND:
                self._note(sender, "it answers with something else than a dictionary")
            result.type = _FOUND_DICTIONARY if records else _NOT_FOUND
            result.value = encode_dictionary(records) if records else b""
            result.expiration_time = max((record.expires_at for record in records), default=0.0)

    def _clean_neighbours(self, result: Any, sender: bytes) -> None:
        pairs = zip(result.nearest_node_ids, result.nearest_peer_ids, strict=False)
        honest = [(node, peer) for node, peer in pairs if 0 < len(peer) <= _MAX_PEER_ID_BYTES and node == node_id(peer)]
        # hivemind asserts that we are not our own neighbour
        honest = [(node, peer) for node, peer in honest if peer != self._own_peer][
            :MAX_NEIGHBOURS
        ]  # hivemind asserts that we are not our own
        if len(honest) < len(result.nearest_node_ids):
            self._note(sender, "it names neighbours under ids that are not theirs")
        del result.nearest_node_ids[:], result.nearest_peer_ids[:]
        result.nearest_node_ids.extend(node for node, _ in honest)
        result.nearest_peer_ids.extend(peer for _, peer in honest)

    def _read(self, tag: bytes, value: bytes, expires_at: float, sender: bytes) -> list[WireRecord]:
        try:
            if tag == _WHOLE_DICTIONARY:
                return decode_dictionary(value)
            return [WireRecord(decode_subkey(tag), value, expires_at)]
        except ValueError as error:
            self._note(sender, str(error))
            return []

    def _admitted(self, key: bytes, records: list[WireRecord], sender: bytes) -> list[WireRecord]:
        good = []
        for record in records:
            reason = self._admit(key, record)
            if reason is None:
                good.append(record)
            else:
                self._note(sender, reason)
        return good

    def _note(self, sender: bytes, reason: str) -> None:
        log.debug("dropped from the dht from=%s reason=%s", base58.b58encode(sender).decode(), reason)
