"""The small readers that all others are built on."""

from __future__ import annotations

from peers.libp2p_control import route_to
from protocols.canonical import canonical_json, pack_fields, pack_time, read_json, unpack_fields, unpack_time
from protocols.ids import PeerId, SwarmTime
from scripts.fuzzing.formats import FIELDS, JSON
from scripts.fuzzing.target import SENDER, Target

_ADDRESSES = (
    "/ip4/192.0.2.1/tcp/4001",
    "/dns4/example.org/tcp/80",
    "/ip6/2001:db8::1/udp/9/quic-v1",
    f"/ip4/1.2.3.4/tcp/1/p2p/{SENDER}/p2p-circuit",
)


def _json_seeds() -> list[bytes]:
    return [canonical_json({"a": [1, -2.5, None, True, "é"], "b": {"c": {}}}), b"[]", b'"x"', b"1e-7"]


def _route_seeds() -> list[bytes]:
    return [f"{address}/p2p/{SENDER}".encode() for address in _ADDRESSES]


VALUES: tuple[Target, ...] = (
    Target(
        "fields",
        lambda data: unpack_fields(data, 8),
        lambda: [pack_fields(b"", b"a", b"bc" * 40)],
        (ValueError,),
        lambda fields: pack_fields(*fields),
        canonical=True,
        form=FIELDS,
    ),
    Target(
        "time", unpack_time, lambda: [pack_time(SwarmTime(1.8e9)), pack_time(SwarmTime(0.001))], (ValueError,), pack_time, canonical=True
    ),
    Target("json", read_json, _json_seeds, (ValueError,), canonical_json, form=JSON),
    Target(
        "peer-id",
        lambda data: PeerId.parse(data.decode()),
        lambda: [str(SENDER).encode()],
        (ValueError,),
        lambda peer: str(peer).encode(),
        canonical=True,
        input_bytes=4096,
    ),
    Target("route", lambda data: route_to(SENDER, data.decode(errors="replace")), _route_seeds, (), input_bytes=1024),
)
