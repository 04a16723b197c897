"""Settings of gRPC channels and servers, each with its reason. Times in these options are milliseconds."""

from __future__ import annotations

from peers.interfaces import MAX_CALL_BYTES

SERVICE_PATH = "/swarm.v1.Peer/"
"""Methods are called as `/swarm.v1.Peer/<method>`."""

REFUSAL_CODE_KEY = "swarm-refusal"
"""Trailing metadata: the refusal's code; its sentence travels as the status details."""

_BOTH: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_CALL_BYTES),
    # 16 times gRPC's own: a tenth less work per block, and a ping still passes a block half-way.
    ("grpc.http2.max_frame_size", 256 * 1024),
    # A dead peer or a black hole is noticed within 20 s even where nobody sets a deadline. Not sooner: on a home uplink that is busy
    # with blocks a ping waits behind seconds of data.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
]

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    *_BOTH,
    ("grpc.use_local_subchannel_pool", 1),  # channels to one address with other certificates must never share a connection
    ("grpc.enable_http_proxy", 0),  # peers are dialled directly, whatever the machine's proxy settings
    ("grpc.service_config_disable_resolution", 1),  # no TXT look-ups
    ("grpc.enable_retries", 0),  # its buffer costs a copy, and who retries what is decided by the round
    ("grpc.initial_reconnect_backoff_ms", 100),  # a restarted peer is reachable again at once; gRPC's own maximum is 2 minutes
    ("grpc.min_reconnect_backoff_ms", 5_000),  # also the limit of one connection attempt
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.client_idle_timeout_ms", 300_000),
]

SERVER_OPTIONS: list[tuple[str, int | str]] = [
    *_BOTH,
    ("grpc.so_reuseport", 0),  # otherwise a second process binds the same port and steals half of the connections
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),  # never answer keepalive pings with GOAWAY
    ("grpc.max_concurrent_streams", 256),  # per connection
    ("grpc.server_handshake_timeout_ms", 10_000),  # who connects and says nothing is dropped
]
