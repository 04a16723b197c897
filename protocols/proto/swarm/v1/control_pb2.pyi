from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Join(_message.Message):
    __slots__ = ("epoch", "state_hash", "weight", "bandwidth_bytes_per_s", "round_index", "input_hash", "proven", "part_memory_bytes", "coin_root")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    ROUND_INDEX_FIELD_NUMBER: _ClassVar[int]
    INPUT_HASH_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    PART_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    COIN_ROOT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    state_hash: bytes
    weight: float
    bandwidth_bytes_per_s: int
    round_index: int
    input_hash: bytes
    proven: _containers.RepeatedCompositeFieldContainer[Proven]
    part_memory_bytes: int
    coin_root: bytes
    def __init__(self, epoch: _Optional[int] = ..., state_hash: _Optional[bytes] = ..., weight: _Optional[float] = ..., bandwidth_bytes_per_s: _Optional[int] = ..., round_index: _Optional[int] = ..., input_hash: _Optional[bytes] = ..., proven: _Optional[_Iterable[_Union[Proven, _Mapping]]] = ..., part_memory_bytes: _Optional[int] = ..., coin_root: _Optional[bytes] = ...) -> None: ...

class Proven(_message.Message):
    __slots__ = ("peer", "bytes_per_s")
    PEER_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    bytes_per_s: int
    def __init__(self, peer: _Optional[bytes] = ..., bytes_per_s: _Optional[int] = ...) -> None: ...

class Closing(_message.Message):
    __slots__ = ("epoch", "round_index", "stand_in", "failures")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_INDEX_FIELD_NUMBER: _ClassVar[int]
    STAND_IN_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    round_index: int
    stand_in: bool
    failures: int
    def __init__(self, epoch: _Optional[int] = ..., round_index: _Optional[int] = ..., stand_in: _Optional[bool] = ..., failures: _Optional[int] = ...) -> None: ...

class ClosingReply(_message.Message):
    __slots__ = ("commit", "coming", "plan")
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    COMING_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    commit: Commit
    coming: bool
    plan: Plan
    def __init__(self, commit: _Optional[_Union[Commit, _Mapping]] = ..., coming: _Optional[bool] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ...) -> None: ...

class BlockTask(_message.Message):
    __slots__ = ("block", "member")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    block: int
    member: int
    def __init__(self, block: _Optional[int] = ..., member: _Optional[int] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("epoch", "attempt", "sealed_joins", "size_elems", "block_elems", "codec", "reduce", "fetch", "block_hashes", "absent", "round_index", "counted", "number", "probation", "weight_cap")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEALED_JOINS_FIELD_NUMBER: _ClassVar[int]
    SIZE_ELEMS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ELEMS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    REDUCE_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PROBATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_CAP_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    attempt: int
    sealed_joins: _containers.RepeatedScalarFieldContainer[bytes]
    size_elems: int
    block_elems: int
    codec: str
    reduce: _containers.RepeatedCompositeFieldContainer[BlockTask]
    fetch: _containers.RepeatedCompositeFieldContainer[BlockTask]
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    absent: _containers.RepeatedScalarFieldContainer[int]
    round_index: int
    counted: int
    number: int
    probation: _containers.RepeatedScalarFieldContainer[int]
    weight_cap: float
    def __init__(self, epoch: _Optional[int] = ..., attempt: _Optional[int] = ..., sealed_joins: _Optional[_Iterable[bytes]] = ..., size_elems: _Optional[int] = ..., block_elems: _Optional[int] = ..., codec: _Optional[str] = ..., reduce: _Optional[_Iterable[_Union[BlockTask, _Mapping]]] = ..., fetch: _Optional[_Iterable[_Union[BlockTask, _Mapping]]] = ..., block_hashes: _Optional[_Iterable[bytes]] = ..., absent: _Optional[_Iterable[int]] = ..., round_index: _Optional[int] = ..., counted: _Optional[int] = ..., number: _Optional[int] = ..., probation: _Optional[_Iterable[int]] = ..., weight_cap: _Optional[float] = ...) -> None: ...

class ExchangeHeader(_message.Message):
    __slots__ = ("committed", "plan_digest")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    committed: bytes
    plan_digest: bytes
    def __init__(self, committed: _Optional[bytes] = ..., plan_digest: _Optional[bytes] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("plan_digest", "block_hashes")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    plan_digest: bytes
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, plan_digest: _Optional[bytes] = ..., block_hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("first_plan_digest", "epoch", "block_hashes", "weight", "state_hash", "round_index", "certificate")
    FIRST_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    ROUND_INDEX_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    first_plan_digest: bytes
    epoch: int
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    weight: float
    state_hash: bytes
    round_index: int
    certificate: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, first_plan_digest: _Optional[bytes] = ..., epoch: _Optional[int] = ..., block_hashes: _Optional[_Iterable[bytes]] = ..., weight: _Optional[float] = ..., state_hash: _Optional[bytes] = ..., round_index: _Optional[int] = ..., certificate: _Optional[_Iterable[bytes]] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("plan", "commit")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    commit: Commit
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("repair", "commit")
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    repair: Plan
    commit: Commit
    def __init__(self, repair: _Optional[_Union[Plan, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ...) -> None: ...

class BlocksRequest(_message.Message):
    __slots__ = ("first_plan_digest", "blocks")
    FIRST_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    first_plan_digest: bytes
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, first_plan_digest: _Optional[bytes] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...
