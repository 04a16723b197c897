from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InviteBody(_message.Message):
    __slots__ = ("run", "run_name", "authority_key", "addresses", "token", "expires_at_ms", "max_uses", "delegate_certificate", "delegate_seed", "signed_by_delegate")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_KEY_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_USES_FIELD_NUMBER: _ClassVar[int]
    DELEGATE_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    DELEGATE_SEED_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BY_DELEGATE_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    run_name: str
    authority_key: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    token: bytes
    expires_at_ms: int
    max_uses: int
    delegate_certificate: bytes
    delegate_seed: bytes
    signed_by_delegate: bool
    def __init__(self, run: _Optional[bytes] = ..., run_name: _Optional[str] = ..., authority_key: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ..., token: _Optional[bytes] = ..., expires_at_ms: _Optional[int] = ..., max_uses: _Optional[int] = ..., delegate_certificate: _Optional[bytes] = ..., delegate_seed: _Optional[bytes] = ..., signed_by_delegate: _Optional[bool] = ...) -> None: ...

class AdmissionRequest(_message.Message):
    __slots__ = ("protocol_version", "peer", "invite", "tls_public_key", "binding", "time_ms", "proof")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    INVITE_FIELD_NUMBER: _ClassVar[int]
    TLS_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    peer: bytes
    invite: bytes
    tls_public_key: bytes
    binding: bytes
    time_ms: int
    proof: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., peer: _Optional[bytes] = ..., invite: _Optional[bytes] = ..., tls_public_key: _Optional[bytes] = ..., binding: _Optional[bytes] = ..., time_ms: _Optional[int] = ..., proof: _Optional[bytes] = ...) -> None: ...

class AdmissionReply(_message.Message):
    __slots__ = ("certificates", "run_ca", "time_ms")
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    RUN_CA_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    certificates: _containers.RepeatedScalarFieldContainer[bytes]
    run_ca: bytes
    time_ms: int
    def __init__(self, certificates: _Optional[_Iterable[bytes]] = ..., run_ca: _Optional[bytes] = ..., time_ms: _Optional[int] = ...) -> None: ...

class SpecReply(_message.Message):
    __slots__ = ("signed_spec", "run_ca", "time_ms")
    SIGNED_SPEC_FIELD_NUMBER: _ClassVar[int]
    RUN_CA_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    signed_spec: bytes
    run_ca: bytes
    time_ms: int
    def __init__(self, signed_spec: _Optional[bytes] = ..., run_ca: _Optional[bytes] = ..., time_ms: _Optional[int] = ...) -> None: ...

class TokenUses(_message.Message):
    __slots__ = ("token", "expires_at_ms", "peers")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    expires_at_ms: int
    peers: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, token: _Optional[bytes] = ..., expires_at_ms: _Optional[int] = ..., peers: _Optional[_Iterable[bytes]] = ...) -> None: ...

class AdmissionLedger(_message.Message):
    __slots__ = ("run", "tokens")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    tokens: _containers.RepeatedCompositeFieldContainer[TokenUses]
    def __init__(self, run: _Optional[bytes] = ..., tokens: _Optional[_Iterable[_Union[TokenUses, _Mapping]]] = ...) -> None: ...
