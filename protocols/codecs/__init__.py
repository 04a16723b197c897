"""Codecs: fp32 block <-> bytes on the wire. Read `base.py` (the seam and its contract), then `full.py`, `half.py`, `blockwise.py` with
`linear.py` and `exponent.py`, `policy.py`, which chooses among them, and of sparse blocks `topk.py` and `rate.py`.
"""

from __future__ import annotations

from protocols.codecs.base import Codec
from protocols.codecs.exponent import E3M0Codec
from protocols.codecs.full import Fp32Codec
from protocols.codecs.half import Bf16Codec, Fp16Codec
from protocols.codecs.linear import Int4Codec, Int8Codec
from protocols.codecs.policy import SizeAdaptiveCodec
from protocols.codecs.rate import RateCodec
from protocols.codecs.topk import TopKCodec

_ALL: tuple[Codec, ...] = (
    Fp32Codec(),
    Fp16Codec(),
    Bf16Codec(),
    Int8Codec(),
    Int4Codec(),
    E3M0Codec(),
    SizeAdaptiveCodec("adaptive-int8", small=Fp32Codec(), large=Int8Codec()),
    TopKCodec("topk64", slots=64, value_bits=2),
    TopKCodec("topk128", slots=128, value_bits=4),
    TopKCodec("topk32-152", slots=32, value_bits=2, result_slots=152),
    RateCodec("rd20", percent=20),
    RateCodec("rd50", percent=50),
    RateCodec("rd100", percent=100),
)
_CODECS: dict[str, Codec] = {codec.name: codec for codec in _ALL}

CODEC_NAMES = tuple(_CODECS)


def codec_named(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ValueError: unknown name.
    """
    if name not in _CODECS:
        raise ValueError(f"unknown codec {name!r}; known: {', '.join(CODEC_NAMES)}")
    return _CODECS[name]


def both_ways(name: str) -> tuple[Codec, ...]:
    """How contributions travel with the codec of that name, and results if they travel otherwise.

    Raises:
        ValueError: unknown name.
    """
    codec = codec_named(name)
    return (codec,) if codec.results is codec else (codec, codec.results)


__all__ = ["CODEC_NAMES", "Codec", "both_ways", "codec_named"]
