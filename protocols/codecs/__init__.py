"""Codecs: fp32 block <-> bytes on the wire. Read `base.py` (the seam and its contract), then `full.py` and `half.py`."""

from __future__ import annotations

from protocols.codecs.base import Codec
from protocols.codecs.full import Fp32Codec
from protocols.codecs.half import Fp16Codec

_CODECS: dict[str, Codec] = {codec.name: codec for codec in (Fp32Codec(), Fp16Codec())}

CODEC_NAMES = tuple(_CODECS)


def codec_named(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ValueError: unknown name.
    """
    if name not in _CODECS:
        raise ValueError(f"unknown codec {name!r}; known: {', '.join(CODEC_NAMES)}")
    return _CODECS[name]


__all__ = ["CODEC_NAMES", "Codec", "Fp16Codec", "Fp32Codec", "codec_named"]
