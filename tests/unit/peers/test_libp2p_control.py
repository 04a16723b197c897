"""What the daemon says of a stream that it hands over."""

from __future__ import annotations

import pytest

from peers.libp2p_control import decode_stream_info, encode_stream_info
from protocols.ids import PeerId


def test_the_opener_and_the_name_of_a_stream_are_read() -> None:
    assert decode_stream_info(encode_stream_info(PeerId(bytes(32)), "peer")) == (PeerId(bytes(32)), "peer")


def test_a_name_that_is_no_text_is_a_name_that_nobody_serves() -> None:
    message = encode_stream_info(PeerId(bytes(32)), "peer").replace(b"peer", b"p\xffer")
    assert decode_stream_info(message) == (PeerId(bytes(32)), "p\ufffder")


def test_a_long_peer_id_is_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    message = encode_stream_info(PeerId(bytes(32)), "peer")
    long = message.replace(message[:2], b"\x0a\xe8\x07" + bytes(1000 - message[1]), 1)
    monkeypatch.setattr("base58.b58encode", lambda raw: pytest.fail("it was converted"))
    with pytest.raises(ValueError, match="1000 bytes"):
        decode_stream_info(long)
