"""Hashes that name blocks and results by what is in them."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from protocols.ids import BytesLike


def content_hash(data: BytesLike) -> bytes:
    """32 bytes that name the encoded bytes of a block."""
    return blake3(data).digest()


def block_hash(content: bytes, contributors: int) -> bytes:
    """32 bytes that name a reduced block: its `content_hash` and who went in."""
    return blake3(b"swarm.v1.block" + contributors.to_bytes(8, "little") + content).digest()


def input_hash(contents: Sequence[bytes], first_plan_digest: bytes) -> bytes:
    """32 bytes that name a round's result as the input of the next round.

    The first half says what it is: groups that add up inputs in this order end with the same bytes. The second says which group it is
    of: members of one group bring one input, which counts once, while two groups may by chance have results that are alike.
    """
    what = blake3(b"swarm.v1.result" + b"".join(contents)).digest()
    return what[:16] + blake3(what + first_plan_digest).digest()[:16]
