from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Presence(_message.Message):
    __slots__ = ("address", "libp2p_addresses", "role", "device", "bandwidth_bytes_per_s", "started_at", "agent")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LIBP2P_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    address: str
    libp2p_addresses: _containers.RepeatedScalarFieldContainer[str]
    role: str
    device: str
    bandwidth_bytes_per_s: int
    started_at: float
    agent: str
    def __init__(self, address: _Optional[str] = ..., libp2p_addresses: _Optional[_Iterable[str]] = ..., role: _Optional[str] = ..., device: _Optional[str] = ..., bandwidth_bytes_per_s: _Optional[int] = ..., started_at: _Optional[float] = ..., agent: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("epoch", "samples", "samples_per_s", "accepted_samples", "state_hash", "phase", "loss", "sent_bytes", "received_bytes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_S_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    samples: int
    samples_per_s: float
    accepted_samples: int
    state_hash: bytes
    phase: str
    loss: float
    sent_bytes: int
    received_bytes: int
    def __init__(self, epoch: _Optional[int] = ..., samples: _Optional[int] = ..., samples_per_s: _Optional[float] = ..., accepted_samples: _Optional[int] = ..., state_hash: _Optional[bytes] = ..., phase: _Optional[str] = ..., loss: _Optional[float] = ..., sent_bytes: _Optional[int] = ..., received_bytes: _Optional[int] = ...) -> None: ...
