from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Commitment(_message.Message):
    __slots__ = ("first_plan_digest", "epoch", "round_index", "hashes_root", "coin", "first_sample", "samples", "previous_plan_digest", "late_samples", "inner_start", "inner_start_epoch", "inner_end", "cuts", "inner_start_plan")
    FIRST_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_INDEX_FIELD_NUMBER: _ClassVar[int]
    HASHES_ROOT_FIELD_NUMBER: _ClassVar[int]
    COIN_FIELD_NUMBER: _ClassVar[int]
    FIRST_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LATE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    INNER_START_FIELD_NUMBER: _ClassVar[int]
    INNER_START_EPOCH_FIELD_NUMBER: _ClassVar[int]
    INNER_END_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    INNER_START_PLAN_FIELD_NUMBER: _ClassVar[int]
    first_plan_digest: bytes
    epoch: int
    round_index: int
    hashes_root: bytes
    coin: _containers.RepeatedScalarFieldContainer[bytes]
    first_sample: int
    samples: int
    previous_plan_digest: bytes
    late_samples: int
    inner_start: bytes
    inner_start_epoch: int
    inner_end: bytes
    cuts: _containers.RepeatedScalarFieldContainer[int]
    inner_start_plan: bytes
    def __init__(self, first_plan_digest: _Optional[bytes] = ..., epoch: _Optional[int] = ..., round_index: _Optional[int] = ..., hashes_root: _Optional[bytes] = ..., coin: _Optional[_Iterable[bytes]] = ..., first_sample: _Optional[int] = ..., samples: _Optional[int] = ..., previous_plan_digest: _Optional[bytes] = ..., late_samples: _Optional[int] = ..., inner_start: _Optional[bytes] = ..., inner_start_epoch: _Optional[int] = ..., inner_end: _Optional[bytes] = ..., cuts: _Optional[_Iterable[int]] = ..., inner_start_plan: _Optional[bytes] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("sealed_commitment", "block_hashes", "certificate")
    SEALED_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    sealed_commitment: bytes
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    certificate: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sealed_commitment: _Optional[bytes] = ..., block_hashes: _Optional[_Iterable[bytes]] = ..., certificate: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Reduction(_message.Message):
    __slots__ = ("first_plan_digest", "blocks", "block_hashes", "radii", "attempt")
    FIRST_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    RADII_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    first_plan_digest: bytes
    blocks: _containers.RepeatedScalarFieldContainer[int]
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    radii: _containers.RepeatedScalarFieldContainer[float]
    attempt: int
    def __init__(self, first_plan_digest: _Optional[bytes] = ..., blocks: _Optional[_Iterable[int]] = ..., block_hashes: _Optional[_Iterable[bytes]] = ..., radii: _Optional[_Iterable[float]] = ..., attempt: _Optional[int] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("sealed_commitment", "share", "attempt", "relayed")
    SEALED_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    sealed_commitment: bytes
    share: bytes
    attempt: int
    relayed: _containers.RepeatedCompositeFieldContainer[MemberShare]
    def __init__(self, sealed_commitment: _Optional[bytes] = ..., share: _Optional[bytes] = ..., attempt: _Optional[int] = ..., relayed: _Optional[_Iterable[_Union[MemberShare, _Mapping]]] = ...) -> None: ...

class MemberShare(_message.Message):
    __slots__ = ("member", "sealed_commitment", "share")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    SEALED_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    member: int
    sealed_commitment: bytes
    share: bytes
    def __init__(self, member: _Optional[int] = ..., sealed_commitment: _Optional[bytes] = ..., share: _Optional[bytes] = ...) -> None: ...

class Coin(_message.Message):
    __slots__ = ("attempt", "shares", "missing", "sealed_reductions")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    SEALED_REDUCTIONS_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    shares: _containers.RepeatedCompositeFieldContainer[MemberShare]
    missing: _containers.RepeatedScalarFieldContainer[int]
    sealed_reductions: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, attempt: _Optional[int] = ..., shares: _Optional[_Iterable[_Union[MemberShare, _Mapping]]] = ..., missing: _Optional[_Iterable[int]] = ..., sealed_reductions: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ShareRequest(_message.Message):
    __slots__ = ("first_plan_digest", "attempt")
    FIRST_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    first_plan_digest: bytes
    attempt: int
    def __init__(self, first_plan_digest: _Optional[bytes] = ..., attempt: _Optional[int] = ...) -> None: ...

class Check(_message.Message):
    __slots__ = ("first_plan_digest", "coin", "epoch", "round_index", "electorate", "result_hash", "weight", "projections", "distances", "doubted")
    FIRST_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COIN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_INDEX_FIELD_NUMBER: _ClassVar[int]
    ELECTORATE_FIELD_NUMBER: _ClassVar[int]
    RESULT_HASH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PROJECTIONS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    DOUBTED_FIELD_NUMBER: _ClassVar[int]
    first_plan_digest: bytes
    coin: bytes
    epoch: int
    round_index: int
    electorate: int
    result_hash: bytes
    weight: float
    projections: _containers.RepeatedScalarFieldContainer[float]
    distances: _containers.RepeatedScalarFieldContainer[float]
    doubted: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, first_plan_digest: _Optional[bytes] = ..., coin: _Optional[bytes] = ..., epoch: _Optional[int] = ..., round_index: _Optional[int] = ..., electorate: _Optional[int] = ..., result_hash: _Optional[bytes] = ..., weight: _Optional[float] = ..., projections: _Optional[_Iterable[float]] = ..., distances: _Optional[_Iterable[float]] = ..., doubted: _Optional[_Iterable[int]] = ...) -> None: ...

class Checks(_message.Message):
    __slots__ = ("sealed",)
    SEALED_FIELD_NUMBER: _ClassVar[int]
    sealed: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sealed: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PartsRequest(_message.Message):
    __slots__ = ("first_plan_digest", "member", "blocks")
    FIRST_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    first_plan_digest: bytes
    member: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, first_plan_digest: _Optional[bytes] = ..., member: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...

class Accusation(_message.Message):
    __slots__ = ("first_plan_digest", "epoch", "accused", "offence", "block")
    FIRST_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ACCUSED_FIELD_NUMBER: _ClassVar[int]
    OFFENCE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    first_plan_digest: bytes
    epoch: int
    accused: bytes
    offence: str
    block: int
    def __init__(self, first_plan_digest: _Optional[bytes] = ..., epoch: _Optional[int] = ..., accused: _Optional[bytes] = ..., offence: _Optional[str] = ..., block: _Optional[int] = ...) -> None: ...

class Judgement(_message.Message):
    __slots__ = ("first_plan_digest", "epoch", "accused", "offence")
    FIRST_PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ACCUSED_FIELD_NUMBER: _ClassVar[int]
    OFFENCE_FIELD_NUMBER: _ClassVar[int]
    first_plan_digest: bytes
    epoch: int
    accused: bytes
    offence: str
    def __init__(self, first_plan_digest: _Optional[bytes] = ..., epoch: _Optional[int] = ..., accused: _Optional[bytes] = ..., offence: _Optional[str] = ...) -> None: ...

class Ban(_message.Message):
    __slots__ = ("accused", "offence", "plan", "judgements", "statements")
    ACCUSED_FIELD_NUMBER: _ClassVar[int]
    OFFENCE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    JUDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    accused: bytes
    offence: str
    plan: bytes
    judgements: _containers.RepeatedScalarFieldContainer[bytes]
    statements: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, accused: _Optional[bytes] = ..., offence: _Optional[str] = ..., plan: _Optional[bytes] = ..., judgements: _Optional[_Iterable[bytes]] = ..., statements: _Optional[_Iterable[bytes]] = ...) -> None: ...

class LedgerPage(_message.Message):
    __slots__ = ("bans", "more", "epochs")
    BANS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    bans: _containers.RepeatedScalarFieldContainer[bytes]
    more: bool
    epochs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, bans: _Optional[_Iterable[bytes]] = ..., more: _Optional[bool] = ..., epochs: _Optional[_Iterable[int]] = ...) -> None: ...

class LedgerRequest(_message.Message):
    __slots__ = ("offset", "known")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    offset: int
    known: bytes
    def __init__(self, offset: _Optional[int] = ..., known: _Optional[bytes] = ...) -> None: ...
