"""hivemind's codecs for the benchmarks, as they are in 1.1.12 but for one repair."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import hivemind.compression.quantization as quantization
import numpy as np
from hivemind.compression import (
    BlockwiseQuantization,
    CompressionBase,
    Float16Compression,
    NoCompression,
    SizeAdaptiveCompression,
    Uniform8BitQuantization,
)

_THRESHOLD_ELEMS = 2**16 + 1
"""As in hivemind's own examples: smaller tensors travel in fp16."""


class _Numpy:
    """numpy, except that a single size reads as a number: numpy 2.4 takes no `int()` of an array of one, which hivemind's decoders do."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def frombuffer(buffer: bytes, dtype: Any = float, count: int = -1, offset: int = 0) -> Any:
        """`numpy.frombuffer`, without the dimension if one int64 is asked for."""
        found = np.frombuffer(buffer, dtype=dtype, count=count, offset=offset)
        return found.reshape(()) if count == 1 and dtype == np.int64 else found


def repair() -> None:
    """Let hivemind's 8-bit codecs work with the numpy and torch of today; in this process and in those it forks."""
    quantization.np = _Numpy()
    warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # deprecated


def eight_bit() -> CompressionBase:
    """The faster of its two 8-bit codecs that keep up: blockwise (dynamic, in bitsandbytes' C++) if that is installed, else uniform."""
    return BlockwiseQuantization() if find_spec("bitsandbytes") else Uniform8BitQuantization()


def nearest(codec: str) -> CompressionBase:
    """What hivemind offers instead of a codec of ours: it has nothing below 8 bits, and no bf16 that is not cast."""
    if codec == "fp32":
        return NoCompression()
    if codec in ("fp16", "bf16"):
        return Float16Compression()
    if codec == "adaptive-int8":
        return SizeAdaptiveCompression(_THRESHOLD_ELEMS, less=Float16Compression(), greater_equal=eight_bit())
    return eight_bit()


def described(codec: CompressionBase) -> str:
    """Name for reports."""
    if isinstance(codec, SizeAdaptiveCompression):
        return f"{type(codec).__name__}({described(codec.less)}, {described(codec.greater_equal)})"
    return type(codec).__name__
