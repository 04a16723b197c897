"""Frames of libp2p streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.transport.libp2p_frames import Opening
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId

SENDER = PeerId(bytes(32))


@given(st.integers(1, 2**32 - 1))
def test_every_millisecond_survives(timeout_ms: int) -> None:
    opening = Opening("call", "spec", timeout_ms / 1000, b"chain")
    assert Opening.decode(opening.encode(), SENDER) == opening


def test_a_stream_that_may_not_live_is_refused() -> None:
    encoded = Opening("call", "spec", 1.0, b"chain").encode()
    with pytest.raises(RemoteProtocolError, match="may not live"):
        Opening.decode(encoded[:1] + bytes(4) + encoded[5:], SENDER)
