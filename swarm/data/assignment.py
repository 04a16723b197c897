"""Which window of the training bytes a member uses: a pure function that anyone can recompute for anyone (DESIGN §6, step 1).

    message = seed u64 | epoch u64 | public key 32 bytes | index u64, all big-endian
    digest = BLAKE3 of it in key-derivation mode with the context "swarm.v1 sample assignment", 16 bytes, big-endian
    offset = digest mod positions

Windows are drawn independently and with replacement. The remainder of a 128-bit number is uniform up to positions / 2**128.
"""

from __future__ import annotations

import struct

from blake3 import blake3

_CONTEXT = "swarm.v1 sample assignment"


def window_offset(run_seed: int, epoch: int, public_key: bytes, index: int, positions: int) -> int:
    """Offset of one sample's window.

    Args:
        run_seed: the run's seed, 0 to 2**64 - 1.
        epoch: swarm-wide epoch that the sample counts for.
        public_key: the member's Ed25519 public key, 32 bytes.
        index: how many samples of this epoch the member took before.
        positions: number of offsets to choose from (`Dataset.positions`).

    Returns:
        0 <= offset < positions.

    Raises:
        ValueError: a number out of range, or a key of another length.
    """
    if len(public_key) != 32:
        raise ValueError(f"a public key has 32 bytes, not {len(public_key)}")
    if positions < 1:
        raise ValueError("there is no window to choose from")
    try:
        message = struct.pack(">QQ32sQ", run_seed, epoch, public_key, index)
    except struct.error:
        raise ValueError("seed, epoch and index must be from 0 to 2**64 - 1") from None
    digest = blake3(message, derive_key_context=_CONTEXT).digest(length=16)
    return int.from_bytes(digest, "big") % positions


def window_offsets(run_seed: int, epoch: int, public_key: bytes, indices: range, positions: int) -> list[int]:
    """Offsets of a stretch of a member's samples; see `window_offset`."""
    return [window_offset(run_seed, epoch, public_key, index, positions) for index in indices]
