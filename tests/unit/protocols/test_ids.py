from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import PeerId, RunId

keys = st.binary(min_size=32, max_size=32)


@given(keys)
def test_text_form_reads_back(key: bytes) -> None:
    peer = PeerId(key)
    assert PeerId.parse(str(peer)) == peer
    assert str(peer).startswith("12D3KooW")
    assert str(peer).endswith(peer.short)


def test_text_form_is_the_libp2p_id_of_the_key() -> None:
    # Worked by hand: base58 of the identity multihash 0x0024 of the protobuf {type: Ed25519 (1), data: 32 zero bytes}.
    assert str(PeerId(bytes(32))) == "12D3KooW9pNAk8aiBuGVQtWRdbkLmo5qVL3e2h5UxbN2Nz9ttwiw"


@given(keys)
def test_tls_name_is_a_dns_name(key: bytes) -> None:
    labels = PeerId(key).tls_name.split(".")
    assert labels[1] == "swarm"
    assert re.fullmatch(r"[a-z2-7]{52}", labels[0])


@given(keys, keys)
def test_different_keys_have_different_names(one: bytes, other: bytes) -> None:
    assert (PeerId(one).tls_name == PeerId(other).tls_name) == (one == other)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_wrong_lengths_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        PeerId(bytes(size))
    with pytest.raises(ValueError, match="32 bytes"):
        RunId(bytes(size))


@pytest.mark.parametrize("text", ["", "12D3KooW", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "0OIl", "12D3KooW\n"])
def test_other_text_is_not_a_peer(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        PeerId.parse(text)


@pytest.mark.parametrize("blanks", [" ", "\n", "\t \n"])
def test_a_peer_has_one_text_form(blanks: str) -> None:
    text = str(PeerId(bytes(32)))
    for other in (text + blanks, blanks + text, text[: -len(blanks)] + blanks):
        with pytest.raises(ValueError, match="not the libp2p id"):
            PeerId.parse(other)


def test_long_text_is_not_read_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading base58 takes seconds from about 64 KiB on."""
    monkeypatch.setattr("base58.b58decode", lambda text: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="100000 characters") as caught:
        PeerId.parse("z" * 100_000)
    assert len(str(caught.value)) < 200


def test_representation_never_shows_the_whole_key() -> None:
    assert len(repr(PeerId(bytes(32)))) < 20
    assert RunId(b"\xab" * 32).short == "abababababab"
    assert str(RunId(b"\xab" * 32)) == "ab" * 32
